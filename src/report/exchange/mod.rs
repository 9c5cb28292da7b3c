//! Snapshots as files: PyTorch's pickles, which its viewers open, the same as JSON, and what other
//! viewers open (`perfetto`, `profile`, `vma`).
//!
//! ```text
//!                 ┌─ pickle ──▶ file ──▶ unpickle ─┐
//!   Snapshot ─▶ layout          (bytes)            ├─▶ Tree ─▶ model ─▶ Snapshot
//!      undo ──┘   └─ json ────▶ file ──▶ parse ────┘
//! ```
//!
//! One description of the schema (`layout`) writes both formats, and one (`model`) reads both.
//! JSON needs no crate for that, so it is there in every build, its errors name the byte as those
//! of pickles do, and its memory is bounded by the same rules.
//!
//! Writing streams: memory grows with the number of different call stacks, not with blocks or
//! events (but for one bit an event, and 24 bytes a live block while events are checked). Reading
//! builds the whole tree first: at most some 64 bytes for each byte of the file, whatever the file
//! claims.
//!
//! What a viewer demands beyond the syntax, and where it is seen to:
//!
//! - V1: blocks tile their segment, so an expandable range is one segment for each contiguous run
//!   of pages (`layout`).
//! - V2: played backwards from the state at the end, no event contradicts what came after it
//!   (`undo` leaves out those that would).
//! - V3: `device_traces` has a list for every device up to the highest (`layout`).
//! - V4: no batch of more than 1000 items, no integer of more than 8 bytes, no opcode beyond the
//!   viewer's (`pickle`).
#![forbid(unsafe_code)]

mod error;
mod json;
mod layout;
mod model;
mod out;
mod parse;
mod perfetto;
mod pickle;
mod profile;
mod tree;
mod undo;
mod unpickle;
mod vma;
mod words;

use std::io::{self, Read, Write};

pub use error::{SnapshotError, SnapshotFault};
pub use profile::When;

use crate::report::snapshot::Snapshot;

/// Devices are numbered below this, in files.
pub const DEVICES_MAX: u32 = 1 << 12;

impl Snapshot {
    /// Writes what `torch.cuda.memory._dump_snapshot` would: a pickle that pytorch.org/memory_viz,
    /// `python -m torch.cuda._memory_viz` and every other reader of PyTorch's snapshots open.
    ///
    /// Tags are the first frame of a call stack, `tag:0:[NAME]`, and `user_metadata` of events.
    /// `output` need not be buffered.
    ///
    /// # Errors
    /// A failure of `output`; a device that is not below [`DEVICES_MAX`].
    ///
    /// # Examples
    /// ```
    /// use aquifer::{Allocator, Config, HistoryOptions, backend::Host};
    /// use aquifer::report::snapshot::Snapshot;
    ///
    /// let allocator = Allocator::new(Host::new(), Config::default());
    /// allocator.record_history(HistoryOptions::default());
    /// let held = allocator.allocate(1000)?;
    /// let mut file = Vec::new();
    /// allocator.memory_snapshot().write_pickle(&mut file)?;
    /// let read = Snapshot::read_pickle(&file[..])?;
    /// assert_eq!(read.segments[0].requested_size, 1000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write_pickle(&self, output: impl Write) -> io::Result<()> {
        write_pickle(&[self], output)
    }

    /// Writes the same as JSON, keys and values as in the pickle. JSON cannot share what is equal,
    /// so call stacks are written out wherever they occur.
    ///
    /// # Errors
    /// As [`Snapshot::write_pickle`].
    pub fn write_json(&self, output: impl Write) -> io::Result<()> {
        write_json(&[self], output)
    }

    /// Reads a pickle: one of ours, or what PyTorch wrote (protocols 2 to 5). Nothing in the file
    /// is run: opcodes that would are refused.
    ///
    /// Of a file with several devices, the first that has segments or events.
    ///
    /// # Errors
    /// The first byte that is not what belongs there; see [`SnapshotFault`].
    pub fn read_pickle(input: impl Read) -> Result<Self, SnapshotError> {
        read_pickle(input).map(first)
    }

    /// Reads JSON in the schema of the pickle.
    ///
    /// # Errors
    /// As [`Snapshot::read_pickle`].
    pub fn read_json(input: impl Read) -> Result<Self, SnapshotError> {
        read_json(input).map(first)
    }
}

/// Writes the snapshots of several devices into one pickle.
///
/// # Errors
/// A failure of `output`; a device that is not below [`DEVICES_MAX`], or there twice.
pub fn write_pickle(snapshots: &[&Snapshot], output: impl Write) -> io::Result<()> {
    check_devices(snapshots)?;
    let mut sink = pickle::Pickle::new(output);
    layout::write(&mut sink, snapshots);
    sink.finish()
}

/// Writes the snapshots of several devices into one JSON text.
///
/// # Errors
/// As [`write_pickle`].
pub fn write_json(snapshots: &[&Snapshot], output: impl Write) -> io::Result<()> {
    check_devices(snapshots)?;
    let mut sink = json::Json::new(output);
    layout::write(&mut sink, snapshots);
    sink.finish()
}

/// Reads a pickle with any number of devices: one snapshot for each that has something, by number;
/// at least one.
///
/// # Errors
/// As [`Snapshot::read_pickle`].
pub fn read_pickle(input: impl Read) -> Result<Vec<Snapshot>, SnapshotError> {
    model::snapshots(&unpickle::read(input)?)
}

/// Reads a JSON text with any number of devices.
///
/// # Errors
/// As [`Snapshot::read_pickle`].
pub fn read_json(input: impl Read) -> Result<Vec<Snapshot>, SnapshotError> {
    model::snapshots(&parse::read(input)?)
}

fn first(snapshots: Vec<Snapshot>) -> Snapshot {
    snapshots.into_iter().next().unwrap_or_default()
}

fn check_devices(snapshots: &[&Snapshot]) -> io::Result<()> {
    let mut devices: Vec<u32> = snapshots.iter().map(|snapshot| snapshot.device).collect();
    devices.sort_unstable();
    let twice = devices.windows(2).any(|pair| pair[0] == pair[1]);
    if twice || devices.last().is_some_and(|&device| device >= DEVICES_MAX) {
        let message = format!("devices {devices:?}: each once, and below {DEVICES_MAX}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(())
}
