//! Sizes in bytes as people write them.

#[cfg(test)]
mod tests;

use aquifer::Bytes;

/// Suffixes and how far each shifts; all are binary, as memory is.
const UNITS: [(&str, u32); 9] = [
    ("", 0),
    ("K", 10),
    ("KiB", 10),
    ("M", 20),
    ("MiB", 20),
    ("G", 30),
    ("GiB", 30),
    ("T", 40),
    ("TiB", 40),
];

/// Reads `25301942272`, `24GiB` or `24G`.
///
/// # Errors
/// What is wrong, for people, without the text itself: clap names that.
pub(crate) fn parse(text: &str) -> Result<Bytes, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let Some((_, shift)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!(
            "`{unit}` is no unit; write a whole number of bytes, or one with KiB, MiB, GiB or TiB"
        ));
    };
    if number.is_empty() {
        return Err("a whole number of bytes was expected, such as 1048576 or 80GiB".to_owned());
    }
    let value = number.parse::<Bytes>().ok().and_then(|value| value.checked_mul(1 << shift));
    match value {
        Some(0) => Err("0 bytes are too few".to_owned()),
        Some(value) => Ok(value),
        None => Err("more than 64 bits of bytes".to_owned()),
    }
}
