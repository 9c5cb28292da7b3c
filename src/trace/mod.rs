//! Allocation traces: what a program asked a GPU allocator for, event by event.
//!
//! This module owns the events, the trace held in memory, and the way to and from files. The text
//! format (mtrace v1, one event a line) is described and implemented in `mtrace`, the rules that a
//! sequence of events obeys in `check`.
//!
//! ```text
//!   file ──▶ gzip? ──▶ Reader: one line, one event ──▶ check ──▶ Trace ──▶ Writer ──▶ file
//!            (gz)              (mtrace)               (check)              (mtrace)
//! ```
//!
//! A trace that was read has only events that obey the rules; the same rules are applied again to
//! whatever is written, so that nothing can be written that does not read back equal.
//!
//! Cost: reading is linear in the text. A [`Trace`] takes 32 bytes an event, and is limited to
//! [`EVENTS_MAX`] events and [`TEXT_MAX`] bytes of text; a [`Reader`] holds one line, the live
//! allocations and a few bits for each id ever seen, and has no such limits.
//!
//! ```
//! use aquifer::trace::{Event, Trace};
//!
//! let text = "# mtrace: 1\n# name: two blocks\na 0 4096 0\na 1 512 0\nf 0\n";
//! let trace = Trace::read(text.as_bytes())?;
//! assert_eq!(trace.header("name"), Some("two blocks"));
//! assert_eq!(trace.events[2], Event::Free { id: 0 });
//! assert_eq!(trace.summary().peak_live_bytes, 4608);
//! # Ok::<(), aquifer::trace::TraceError>(())
//! ```
#![forbid(unsafe_code)]

mod check;
mod error;
mod gz;
mod mtrace;
mod recorded;
mod rmm;

use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::path::Path;

use crate::units::{Bytes, GIB};

pub mod replay;
pub use error::{Fault, TraceError};
pub use mtrace::{LINE_MAX, Reader, Writer};

use check::Checker;

/// The most events a [`Trace`] holds (2²⁵); a [`Reader`] streams any number.
pub const EVENTS_MAX: usize = 1 << 25;

/// The most text, unpacked, that a [`Trace`] is read from, in bytes; a [`Reader`] streams any.
pub const TEXT_MAX: Bytes = GIB;

/// Stream numbers are below this.
pub const STREAMS_MAX: u32 = 1 << 16;

/// One thing that the program did.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// The program asks for memory.
    Allocate {
        /// Names the allocation; no other allocation of the trace has this number, before or after.
        id: u64,
        /// Bytes as the program asked for them, not rounded; never 0.
        size: Bytes,
        /// The stream on which the memory is used first; 0 is the default stream.
        stream: u32,
    },
    /// The program lets go of a live allocation.
    Free {
        /// Which one.
        id: u64,
    },
    /// A live allocation is used on another stream: once freed, it may be reused only after that
    /// stream has passed this point (`record_stream`).
    Use {
        /// Which allocation.
        id: u64,
        /// On which stream.
        stream: u32,
    },
    /// A word from whoever recorded the trace, such as `iter=7` or `empty_cache`; never empty, and
    /// on one line.
    Marker(String),
}

// A trace has millions of events: a label in place of a `String` would not make them smaller.
const _: () = assert!(size_of::<Event>() <= 32);

/// A whole trace in memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trace {
    /// Keys and values in the order of the file; a key may occur more than once.
    ///
    /// The version of the format (`# mtrace: 1`) is not among them: it is demanded when reading,
    /// and written by itself.
    pub headers: Vec<(String, String)>,
    /// What happened, in order.
    pub events: Vec<Event>,
}

impl Trace {
    /// Reads a trace to its end; gzip'd input is recognised by its first two bytes.
    ///
    /// `input` need not be buffered. Cost: linear in the text, 32 bytes of memory an event.
    ///
    /// # Errors
    /// The first line that breaks a rule of the format, a failure of `input`, more than
    /// [`EVENTS_MAX`] events or [`TEXT_MAX`] bytes, and gzip'd input without the cargo feature
    /// `gz`. See [`Fault`].
    ///
    /// # Examples
    /// ```
    /// use aquifer::trace::Trace;
    ///
    /// let error = Trace::read(&b"# mtrace: 1\nf 3\n"[..]).unwrap_err();
    /// assert_eq!(error.to_string(), "line 2: no allocation has the id 3");
    /// ```
    pub fn read(input: impl Read) -> Result<Self, TraceError> {
        Self::collect(Reader::new(gz::unpack(input)?)?, EVENTS_MAX, TEXT_MAX)
    }

    /// Reads the file at `path`, as [`Trace::read`] does.
    ///
    /// # Errors
    /// As for [`Trace::read`], and if the file cannot be opened; the error does not name the path.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TraceError> {
        Self::collect(Reader::open(path)?, EVENTS_MAX, TEXT_MAX)
    }

    /// Writes the trace as plain text; reading it back gives an equal trace.
    ///
    /// `output` need not be buffered.
    ///
    /// # Errors
    /// A failure of `output`, or the first header or event that breaks a rule of the format (which
    /// only a trace put together by hand can hold), with the line that it would have had. What
    /// came before it may have been written by then.
    ///
    /// # Examples
    /// ```
    /// use aquifer::trace::{Event, Trace};
    ///
    /// let mut trace = Trace::default();
    /// trace.events.push(Event::Allocate { id: 0, size: 4096, stream: 0 });
    /// let mut text = Vec::new();
    /// trace.write(&mut text)?;
    /// assert_eq!(text, b"# mtrace: 1\na 0 4096 0\n");
    /// # Ok::<(), aquifer::trace::TraceError>(())
    /// ```
    pub fn write(&self, output: impl Write) -> Result<(), TraceError> {
        let mut writer = Writer::new(output, &self.headers)?;
        for event in &self.events {
            writer.event(event)?;
        }
        writer.finish().map(drop)
    }

    /// Writes the trace to a file, in place of what was there; gzip'd if the name ends in `.gz`.
    ///
    /// The trace is checked before the file is touched, but if the file system fails half-way, half
    /// a file remains. Cost: the trace is formatted twice.
    ///
    /// # Errors
    /// As for [`Trace::write`], if the file cannot be created, and for a name in `.gz` without the
    /// cargo feature `gz`.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), TraceError> {
        let path = path.as_ref();
        self.write(std::io::sink())?;
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz")) {
            return gz::save(self, path);
        }
        let file = File::create(path).map_err(|error| Fault::Io(error).at(0))?;
        self.write(file)
    }

    /// The value of the first header named `key`.
    pub fn header(&self, key: &str) -> Option<&str> {
        self.headers.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Counts and the peak, in one pass over the events.
    ///
    /// An event that breaks a rule (which only a trace put together by hand can hold) counts for
    /// nothing.
    pub fn summary(&self) -> Summary {
        let mut checker = Checker::default();
        for event in &self.events {
            // A trace that was read has no faults; see above for the others.
            let _ = checker.apply(event);
        }
        checker.summary()
    }

    /// Everything `reader` has left, within limits; nothing is reserved on the word of a header.
    fn collect<R: BufRead>(
        mut reader: Reader<R>,
        events_max: usize,
        text_max: Bytes,
    ) -> Result<Self, TraceError> {
        let mut events = Vec::new();
        while let Some(event) = reader.next() {
            let event = event?;
            if events.len() == events_max || reader.text_bytes() > text_max {
                return Err(Fault::TraceTooLarge.at(reader.line()));
            }
            events.push(event);
        }
        Ok(Self { headers: reader.into_headers(), events })
    }
}

/// What a trace adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Summary {
    /// Events of all kinds, markers included.
    pub events: u64,
    /// Events of the kind [`Event::Allocate`].
    pub allocations: u64,
    /// Events of the kind [`Event::Free`]; the allocations beyond them are live at the end.
    pub frees: u64,
    /// Events of the kind [`Event::Use`].
    pub uses: u64,
    /// Events of the kind [`Event::Marker`].
    pub markers: u64,
    /// How many different streams allocations and uses name.
    pub streams: u64,
    /// The most bytes that were live at once, as asked for: no allocator can do with less.
    pub peak_live_bytes: Bytes,
}

#[cfg(test)]
mod tests;
