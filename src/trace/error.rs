//! What can be wrong with a trace, and on which line.
//!
//! An error is a [`Fault`] and a line. It holds numbers and field names, no text of the input but
//! the head of an unknown tag; its message is built when it is shown.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fmt;
use std::io;

use super::{EVENTS_MAX, LINE_MAX, STREAMS_MAX, TEXT_MAX};

/// Why a trace could not be read or written, and where.
///
/// # Examples
/// ```
/// use aquifer::trace::{Fault, Trace};
///
/// let error = Trace::read(&b"# mtrace: 1\na 0 4096 0\na 1 0 0\n"[..]).unwrap_err();
/// assert_eq!(error.line(), 3);
/// assert!(matches!(error.fault(), Fault::ZeroSize { id: 1 }));
/// assert_eq!(error.to_string(), "line 3: allocation 1 has size 0");
/// ```
#[derive(Debug)]
pub struct TraceError {
    line: u64,
    fault: Fault,
}

impl TraceError {
    /// The line, counted from 1, of the text read or to be written; 0 if it never came to a line.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// What is wrong.
    pub fn fault(&self) -> &Fault {
        &self.fault
    }
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        self.fault.fmt(f)
    }
}

impl Error for TraceError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // The message of an I/O error is this error's own; its cause comes after it.
        match &self.fault {
            Fault::Io(error) => error.source(),
            _ => None,
        }
    }
}

/// What is wrong with a trace.
#[derive(Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The input or output failed, or its gzip data is damaged.
    Io(io::Error),
    /// The input ends inside a line or inside a gzip stream.
    CutShort,
    /// The input is gzip'd, or the output was to be, and the cargo feature `gz` is off.
    GzipDisabled,
    /// A line is longer than [`LINE_MAX`] bytes.
    LineTooLong,
    /// A byte that no text holds: the input is binary.
    ControlByte {
        /// The byte.
        byte: u8,
    },
    /// The line is not UTF-8.
    NotUtf8,
    /// There is no header `# mtrace: 1` before the first event.
    MissingVersion,
    /// The header `mtrace` names another version than 1.
    UnknownVersion,
    /// The header `mtrace` occurs twice, or stands among the headers to be written.
    RepeatedVersion,
    /// A line that begins with `#` does not have the form `# key: value`, or a key that could not
    /// be read back was to be written.
    MalformedHeader,
    /// The headers are larger than 1 MiB together.
    HeadersTooLarge,
    /// A header stands after the first event. There are no comments.
    LateHeader,
    /// The line is empty.
    EmptyLine,
    /// The line begins with none of `a`, `f`, `u`, `m`.
    UnknownTag {
        /// The first 16 characters of the tag, at most.
        tag: String,
    },
    /// A field is absent or empty.
    MissingField {
        /// Which one.
        field: &'static str,
    },
    /// There is more on the line than the event has fields, if only a space.
    ExtraField,
    /// A field has something else than the digits 0 to 9 in it.
    NotDecimal {
        /// Which one.
        field: &'static str,
    },
    /// A number does not fit in 64 bits.
    NumberTooLarge {
        /// Which field it is in.
        field: &'static str,
    },
    /// A stream number is not below [`STREAMS_MAX`].
    StreamTooLarge,
    /// An allocation of 0 bytes.
    ZeroSize {
        /// Which one.
        id: u64,
    },
    /// An allocation has the number of an earlier one, be that live or freed.
    ReusedId {
        /// The number.
        id: u64,
    },
    /// A free or use of what was never allocated.
    UnknownId {
        /// The number.
        id: u64,
    },
    /// A free or use of what was freed before.
    FreedId {
        /// The number.
        id: u64,
    },
    /// The live bytes do not fit in 64 bits.
    LiveBytesOverflow,
    /// The file does not begin as a log of RMM does.
    NotRmm,
    /// A field of a log is no hexadecimal number.
    NotHexadecimal {
        /// Which one.
        field: &'static str,
    },
    /// A log frees what is not live.
    UnknownPointer {
        /// Where.
        pointer: u64,
    },
    /// A log hands out what is live.
    LivePointer {
        /// Where.
        pointer: u64,
    },
    /// More than [`EVENTS_MAX`] events or [`TEXT_MAX`] bytes of text for a trace in memory.
    TraceTooLarge,
}

impl Fault {
    /// The error of this fault on a line.
    pub(super) fn at(self, line: u64) -> TraceError {
        TraceError { line, fault: self }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::CutShort,
            _ => Self::Io(error),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::CutShort => write!(f, "the trace ends too early: it has been cut short"),
            Self::GzipDisabled => {
                write!(f, "this is a gzip'd trace: build with the cargo feature `gz`")
            }
            Self::LineTooLong => write!(f, "the line is longer than {LINE_MAX} bytes"),
            Self::ControlByte { byte } => {
                write!(f, "byte {byte:#04x} in the line: this is no text")
            }
            Self::NotUtf8 => write!(f, "the line is not UTF-8"),
            Self::MissingVersion => write!(f, "no header `# mtrace: 1` before the first event"),
            Self::UnknownVersion => write!(f, "the version of the format is not 1"),
            Self::RepeatedVersion => write!(f, "the header `mtrace` occurs twice"),
            Self::MalformedHeader => write!(f, "the header does not read `# key: value`"),
            Self::HeadersTooLarge => write!(f, "the headers are larger than 1 MiB together"),
            Self::LateHeader => write!(f, "a line with `#` after the first event"),
            Self::EmptyLine => write!(f, "the line is empty"),
            Self::UnknownTag { tag } => write!(f, "unknown tag {tag:?}: not one of a, f, u, m"),
            Self::MissingField { field } => write!(f, "the field {field} is missing"),
            Self::ExtraField => write!(f, "there is something after the last field"),
            Self::NotDecimal { field } => write!(f, "the field {field} is not a decimal number"),
            Self::NumberTooLarge { field } => write!(f, "the field {field} exceeds 64 bits"),
            Self::StreamTooLarge => write!(f, "the stream number is not below {STREAMS_MAX}"),
            Self::ZeroSize { id } => write!(f, "allocation {id} has size 0"),
            Self::ReusedId { id } => write!(f, "the id {id} has been used before"),
            Self::UnknownId { id } => write!(f, "no allocation has the id {id}"),
            Self::FreedId { id } => write!(f, "allocation {id} has been freed before"),
            Self::LiveBytesOverflow => write!(f, "the live bytes exceed 64 bits"),
            Self::NotRmm => write!(f, "no header of an RMM log"),
            Self::NotHexadecimal { field } => {
                write!(f, "the field {field} is not a hexadecimal number")
            }
            Self::UnknownPointer { pointer } => write!(f, "nothing lives at {pointer:#x}"),
            Self::LivePointer { pointer } => {
                write!(f, "what lives at {pointer:#x} has not been freed")
            }
            Self::TraceTooLarge => write!(
                f,
                "more than {EVENTS_MAX} events or {TEXT_MAX} bytes of text: read them one by one"
            ),
        }
    }
}
