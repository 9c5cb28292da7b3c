//! Files of recordings, of any kind that can be read, recognised by their first bytes.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::Path;

use aquifer::report::exchange;
use aquifer::report::snapshot::Snapshot;
use aquifer::trace::Trace;
use flate2::bufread::MultiGzDecoder;
use indicatif::ProgressBar;

/// What can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Source {
    /// An mtrace text
    Mtrace,
    /// A snapshot as PyTorch pickles it
    Pickle,
    /// A snapshot as JSON, keys as in the pickle
    Json,
    /// A log of RMM
    Rmm,
}

/// What was read.
#[derive(Debug)]
pub(crate) enum Recording {
    Trace(Trace),
    /// One for each device, at least one.
    Snapshots(Vec<Snapshot>),
}

impl Recording {
    /// Reads a file, gzip'd or not. `bar` counts its bytes. The error names the place in the file,
    /// not the file.
    pub(crate) fn open(
        path: &Path,
        source: Option<Source>,
        bar: &ProgressBar,
    ) -> Result<Self, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        bar.set_length(file.metadata().map_or(0, |metadata| metadata.len()));
        let mut packed = BufReader::with_capacity(64 << 10, bar.wrap_read(file));
        let head = packed.fill_buf().map_err(|error| error.to_string())?;
        let is_packed = head.starts_with(&[0x1f, 0x8b]);
        let plain: Box<dyn Read> =
            if is_packed { Box::new(MultiGzDecoder::new(packed)) } else { Box::new(packed) };
        Self::read(plain, source)
    }

    fn read(mut input: Box<dyn Read>, source: Option<Source>) -> Result<Self, String> {
        let mut head = Vec::new();
        let read = input.by_ref().take(16).read_to_end(&mut head);
        read.map_err(|error| error.to_string())?;
        let source = source.unwrap_or_else(|| recognise(&head));
        let input = Cursor::new(head).chain(input);
        let trace = |trace: Result<Trace, aquifer::trace::TraceError>| {
            trace.map(Recording::Trace).map_err(|error| error.to_string())
        };
        let snapshots = |read: Result<Vec<Snapshot>, exchange::SnapshotError>| {
            read.map(Recording::Snapshots).map_err(|error| error.to_string())
        };
        match source {
            Source::Mtrace => trace(Trace::read(input)),
            Source::Rmm => trace(Trace::read_rmm(input)),
            Source::Pickle => snapshots(exchange::read_pickle(input)),
            Source::Json => snapshots(exchange::read_json(input)),
        }
    }

    /// The trace, or that of a snapshot's device: the one asked for, or the first.
    pub(crate) fn into_trace(self, device: Option<u32>) -> Result<Trace, String> {
        match self {
            Recording::Trace(trace) => Ok(trace),
            Recording::Snapshots(snapshots) => {
                let snapshot = choose(snapshots, device)?;
                Trace::from_snapshot(&snapshot).map_err(|error| error.to_string())
            }
        }
    }
}

/// The snapshot of a device: the one asked for, or the first.
pub(crate) fn choose(snapshots: Vec<Snapshot>, device: Option<u32>) -> Result<Snapshot, String> {
    let mut chosen = snapshots.into_iter();
    let chosen = chosen.find(|it| device.is_none_or(|device| it.device == device));
    chosen.ok_or_else(|| format!("no device {} in this file", device.unwrap_or(0)))
}

fn recognise(head: &[u8]) -> Source {
    let text = head.trim_ascii_start();
    match () {
        () if head.starts_with(&[0x80]) => Source::Pickle,
        () if text.starts_with(b"{") || text.starts_with(b"[") => Source::Json,
        () if head.starts_with(b"Thread,") => Source::Rmm,
        () => Source::Mtrace,
    }
}
