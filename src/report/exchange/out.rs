//! A buffer before a file that remembers the first failure, so that writers need not ask after
//! every byte.

use std::io::{self, Write};

const FULL: usize = 64 << 10;

/// Bytes on their way out.
pub(super) struct Out<W> {
    output: W,
    buffer: Vec<u8>,
    failure: Option<io::Error>,
}

impl<W: Write> Out<W> {
    pub(super) fn new(output: W) -> Self {
        Self { output, buffer: Vec::with_capacity(2 * FULL), failure: None }
    }

    #[inline]
    pub(super) fn byte(&mut self, byte: u8) {
        self.buffer.push(byte);
    }

    #[inline]
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= FULL {
            self.pass_on();
        }
    }

    pub(super) fn format(&mut self, text: std::fmt::Arguments<'_>) {
        // A vector takes everything.
        let _ = self.buffer.write_fmt(text);
        self.bytes(&[]);
    }

    #[cold]
    fn pass_on(&mut self) {
        if self.failure.is_none() {
            self.failure = self.output.write_all(&self.buffer).err();
        }
        self.buffer.clear();
    }

    /// Hands everything on, and says what failed first.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.pass_on();
        match self.failure {
            Some(error) => Err(error),
            None => self.output.flush(),
        }
    }
}
