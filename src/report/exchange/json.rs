//! The writer of JSON: the same keys and values, everything written out.

use std::io::{self, Write};
use std::sync::Arc;

use super::layout::{Sink, TAG_FILE};
use super::out::Out;
use super::words::Word;
use crate::report::history::Frames;

/// Writes one JSON text.
pub(super) struct Json<W> {
    out: Out<W>,
    /// Whether the next key or item is the first of its kind.
    first: bool,
}

impl<W: Write> Json<W> {
    pub(super) fn new(output: W) -> Self {
        Self { out: Out::new(output), first: true }
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.byte(b'\n');
        self.out.finish()
    }

    fn comma(&mut self) {
        if !self.first {
            self.out.byte(b',');
        }
        self.first = false;
    }

    fn begin(&mut self, bracket: u8) {
        self.out.byte(bracket);
        self.first = true;
    }

    fn end(&mut self, bracket: u8) {
        self.out.byte(bracket);
        self.first = false;
    }

    fn quoted(&mut self, text: &str) {
        write_text(&mut self.out, text);
    }
}

/// A text in quotation marks, with escapes where JSON wants them.
pub(super) fn write_text<W: Write>(out: &mut Out<W>, text: &str) {
    out.byte(b'"');
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
        let (plain, tail) = rest.split_at(at);
        out.bytes(plain.as_bytes());
        let byte = tail.as_bytes()[0];
        match byte {
            b'"' | b'\\' => out.bytes(&[b'\\', byte]),
            _ => out.format(format_args!("\\u{byte:04x}")),
        }
        rest = &tail[1..];
    }
    out.bytes(rest.as_bytes());
    out.byte(b'"');
}

impl<'a, W: Write> Sink<'a> for Json<W> {
    fn begin_dict(&mut self) {
        self.begin(b'{');
    }

    fn key(&mut self, key: Word) {
        self.key_text(key.text());
    }

    fn key_text(&mut self, key: &str) {
        self.comma();
        self.quoted(key);
        self.out.byte(b':');
    }

    fn end_dict(&mut self) {
        self.end(b'}');
    }

    fn begin_list(&mut self) {
        self.begin(b'[');
    }

    fn item(&mut self) {
        self.comma();
    }

    fn end_list(&mut self) {
        self.end(b']');
    }

    fn pair(&mut self, first: u64, second: u64) {
        self.out.format(format_args!("[{first},{second}]"));
    }

    fn number(&mut self, number: u64) {
        self.out.format(format_args!("{number}"));
    }

    fn minus_one(&mut self) {
        self.out.bytes(b"-1");
    }

    fn float(&mut self, number: f64) {
        match number.is_finite() {
            true => self.out.format(format_args!("{number:?}")),
            false => self.out.bytes(b"0.0"),
        }
    }

    fn boolean(&mut self, value: bool) {
        self.out.bytes(if value { b"true" } else { b"false" });
    }

    fn none(&mut self) {
        self.out.bytes(b"null");
    }

    fn word(&mut self, word: Word) {
        self.quoted(word.text());
    }

    fn text(&mut self, text: &'a str) {
        self.quoted(text);
    }

    fn frames(&mut self, frames: &'a Frames, tag: Option<&'a Arc<str>>) {
        self.begin_list();
        let frames = frames.iter().map(|frame| (&*frame.file, frame.line, &*frame.name));
        let tag = tag.map(|tag| format!("[{tag}]"));
        let tag = tag.as_deref().map(|tag| (TAG_FILE, 0, tag));
        for (file, line, name) in tag.into_iter().chain(frames) {
            self.item();
            self.begin_dict();
            self.key(Word::Filename);
            self.quoted(file);
            self.key(Word::Line);
            self.number(line.into());
            self.key(Word::Name);
            self.quoted(name);
            self.end_dict();
        }
        self.end_list();
    }
}
