//! The knobs of this crate's own policy by name: for `--set`, and for the ablation among the
//! benches.
//!
//! A knob is a field of [`Config`]; a line in [`KNOBS`] is all that a new one takes, and a test
//! fails for a field that has neither a line there nor a key of PyTorch's. What a mechanism is
//! without its knob is what [`Config::torch`] has for it: PyTorch has none of them.

#[cfg(test)]
mod tests;

use aquifer::{Bytes, Config};

/// A field of [`Config`], to be read and set as text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Knob {
    pub(crate) name: &'static str,
    read: fn(&Config) -> String,
    write: fn(&mut Config, &str) -> Result<(), &'static str>,
}

macro_rules! knobs {
    ($($name:ident),* $(,)?) => {
        &[$(Knob {
            name: stringify!($name),
            read: |config| config.$name.to_text(),
            write: |config, text| {
                config.$name = Value::from_text(text)?;
                Ok(())
            },
        }),*]
    };
}

/// All of them. What PyTorch has a key for is left to `--config`.
pub(crate) const KNOBS: &[Knob] = knobs![
    headroom,
    headroom_learned_max,
    page_headroom,
    chunk_share,
    cross_stream,
    front_cache,
    segment_share,
    segment_batch,
    spare_idle_ratio,
    spare_idle_count,
    whole_fit_parts,
    exact_growth,
    event_batch_count,
    harvest_every_allocate,
    tie_walk,
    split_remainder_large,
    page_recycling,
    trim_private_pools,
    collect_without_limit,
    split_remainder_small,
    small_max,
    small_segment,
    large_min,
    large_round,
    memory_limit,
];

/// Reads `NAME=VALUE` and does what it says.
///
/// # Errors
/// What is wrong, for people.
pub(crate) fn set(config: &mut Config, setting: &str) -> Result<(), String> {
    let Some((name, value)) = setting.split_once('=') else {
        return Err(format!("`{setting}` is no setting: write NAME=VALUE"));
    };
    let Some(knob) = KNOBS.iter().find(|knob| knob.name == name.trim()) else {
        let names: Vec<_> = KNOBS.iter().map(|knob| knob.name).collect();
        return Err(format!("`{name}` is no knob; the knobs are {}", names.join(", ")));
    };
    let value = value.trim();
    (knob.write)(config, value).map_err(|allowed| {
        let value = if value.is_empty() { "an empty value" } else { value };
        format!("{}: {value} is not allowed: {allowed}", knob.name)
    })
}

/// The default policy with one mechanism switched off, for each that can be: what was set, in
/// words, and the configuration.
#[allow(dead_code)] // The program does not ask; the ablation does.
pub(crate) fn ablations() -> Vec<(String, Config)> {
    let (default, torch) = (Config::default(), Config::torch());
    let differs = |knob: &&Knob| (knob.read)(&default) != (knob.read)(&torch);
    let without = |knob: &Knob| {
        let value = (knob.read)(&torch);
        let mut config = Config::default();
        (knob.write)(&mut config, &value).expect("a knob reads what it writes");
        (format!("{} = {value}", knob.name), config)
    };
    KNOBS.iter().filter(differs).map(without).collect()
}

/// What a field can hold, as text and back.
trait Value: Sized {
    fn to_text(&self) -> String;
    /// What is allowed, if this is not.
    fn from_text(text: &str) -> Result<Self, &'static str>;
}

impl Value for bool {
    fn to_text(&self) -> String {
        self.to_string()
    }

    fn from_text(text: &str) -> Result<Self, &'static str> {
        text.parse().map_err(|_| "true or false")
    }
}

impl Value for u32 {
    fn to_text(&self) -> String {
        if *self == u32::MAX { "all".to_owned() } else { self.to_string() }
    }

    fn from_text(text: &str) -> Result<Self, &'static str> {
        if text == "all" {
            return Ok(u32::MAX);
        }
        text.parse().map_err(|_| "a whole number below 4294967296, or all")
    }
}

impl Value for f64 {
    fn to_text(&self) -> String {
        self.to_string()
    }

    fn from_text(text: &str) -> Result<Self, &'static str> {
        text.parse().map_err(|_| "a number such as 0.05")
    }
}

impl Value for Bytes {
    fn to_text(&self) -> String {
        self.to_string()
    }

    fn from_text(text: &str) -> Result<Self, &'static str> {
        if text == "0" {
            return Ok(0);
        }
        crate::bytes::parse(text).map_err(|_| "bytes, or a number with KiB, MiB, GiB or TiB")
    }
}

impl<T: Value> Value for Option<T> {
    fn to_text(&self) -> String {
        self.as_ref().map_or_else(|| "off".to_owned(), T::to_text)
    }

    fn from_text(text: &str) -> Result<Self, &'static str> {
        if text == "off" { Ok(None) } else { T::from_text(text).map(Some) }
    }
}
