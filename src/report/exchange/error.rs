//! What can be wrong with a snapshot in a file, and at which byte.

use std::error::Error;
use std::fmt;
use std::io;

/// Why a snapshot could not be read, and where.
///
/// # Examples
/// ```
/// use aquifer::report::snapshot::Snapshot;
///
/// let error = Snapshot::read_pickle(&b"\x80\x02cos\nsystem\n."[..]).unwrap_err();
/// assert_eq!(error.offset(), 2);
/// assert_eq!(
///     error.to_string(),
///     "byte 2: opcode 0x63 (GLOBAL) has no place in a snapshot: only plain data is read"
/// );
/// ```
#[derive(Debug)]
pub struct SnapshotError {
    offset: u64,
    fault: SnapshotFault,
}

impl SnapshotError {
    /// How many bytes of the file come before the place.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What is wrong.
    pub fn fault(&self) -> &SnapshotFault {
        &self.fault
    }
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}", self.offset, self.fault)
    }
}

impl Error for SnapshotError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.fault {
            SnapshotFault::Io(error) => error.source(),
            _ => None,
        }
    }
}

/// What is wrong with a snapshot in a file.
#[derive(Debug)]
#[non_exhaustive]
pub enum SnapshotFault {
    /// The input failed.
    Io(io::Error),
    /// The input ends too early.
    CutShort,
    /// The pickle's protocol is not one of 2 to 5.
    Protocol {
        /// The one it says.
        version: u8,
    },
    /// An opcode of pickles that plain data does not need, or no opcode at all.
    Opcode {
        /// The byte.
        byte: u8,
        /// What Python calls it; empty if it is none.
        name: &'static str,
    },
    /// Something else stands there.
    Expected {
        /// What was expected.
        what: &'static str,
    },
    /// A key is not there.
    MissingKey {
        /// Which one.
        key: &'static str,
    },
    /// The value of a key is something else.
    WrongValue {
        /// Which key.
        key: &'static str,
        /// What was expected.
        what: &'static str,
    },
    /// The blocks of a segment do not add up to it.
    NotTiled {
        /// Bytes of all blocks.
        blocks: u64,
        /// Bytes that the segment has.
        segment: u64,
    },
    /// More of something than a file of this size can honestly hold, or than is supported.
    TooMuch {
        /// Of what.
        what: &'static str,
    },
}

impl SnapshotFault {
    /// The error of this fault at a byte.
    pub(super) fn at(self, offset: u64) -> SnapshotError {
        SnapshotError { offset, fault: self }
    }
}

impl fmt::Display for SnapshotFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::CutShort => write!(f, "the file ends too early: it has been cut short"),
            Self::Protocol { version } => {
                write!(f, "this is a pickle of protocol {version}; 2 to 5 are read")
            }
            Self::Opcode { byte, name: "" } => write!(f, "{byte:#04x} is no opcode of a pickle"),
            Self::Opcode { byte, name } => write!(
                f,
                "opcode {byte:#04x} ({name}) has no place in a snapshot: only plain data is read"
            ),
            Self::Expected { what } => write!(f, "{what} expected"),
            Self::MissingKey { key } => write!(f, "the key {key:?} is missing"),
            Self::WrongValue { key, what } => write!(f, "{what} expected as {key:?}"),
            Self::NotTiled { blocks, segment } => {
                write!(f, "the blocks of this segment of {segment} bytes make {blocks} bytes")
            }
            Self::TooMuch { what } => write!(f, "too many or too large: {what}"),
        }
    }
}
