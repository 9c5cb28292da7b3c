//! Numbers as text that a browser reads fast: columns of varints in base64, and JSON.
//!
//! A varint has seven bits of the number in each byte, the lowest first, and the eighth bit set in
//! all but the last. Numbers that may be negative are doubled, and odd if they were (zigzag).

use std::fmt::Write;

/// A column of numbers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Column {
    bytes: Vec<u8>,
}

impl Column {
    pub(super) fn push(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// A difference of two numbers.
    pub(super) fn push_change(&mut self, from: u64, to: u64) {
        let change = i128::from(to) - i128::from(from);
        let doubled = if change < 0 { -2 * change - 1 } else { 2 * change };
        // Only hostile numbers are that far apart.
        self.push(u64::try_from(doubled).unwrap_or(u64::MAX));
    }

    /// It as base64.
    pub(super) fn text(&self) -> String {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::with_capacity(self.bytes.len().div_ceil(3) * 4);
        for three in self.bytes.chunks(3) {
            let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            for place in 0..4 {
                let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63] as char;
                text.push(if place <= three.len() { digit } else { '=' });
            }
        }
        text
    }
}

/// `text` as a JSON string that may stand inside a `<script>`: nothing in it can end the element or
/// begin a comment.
pub(super) fn json_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\0'..='\x1f' | '<' | '>' | '&' | '\'' | '\u{7f}' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

/// `[…]` of values that are JSON already.
pub(super) fn json_list(values: impl IntoIterator<Item = String>) -> String {
    let values: Vec<String> = values.into_iter().collect();
    format!("[{}]", values.join(","))
}

/// `{…}` of values that are JSON already.
pub(super) fn json_object(fields: &[(&str, String)]) -> String {
    let fields = fields.iter().map(|(name, value)| format!("{}:{value}", json_string(name)));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

/// `null`, or the number.
pub(super) fn json_number(number: Option<u64>) -> String {
    number.map_or_else(|| "null".to_owned(), |number| number.to_string())
}

/// `text` as it may stand between tags and in attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // HTML has no way to write the others.
            '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' | '\x7f' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}
