//! Where gzip meets the trace: recognising it, unpacking it, and writing it.
//!
//! The only file of this module that knows the cargo feature `gz`. Without it the same functions
//! exist, let plain text through, and answer gzip with [`Fault::GzipDisabled`].
//!
//! Unpacking streams through two buffers of 64 KiB, whatever the data claims to hold. Every byte is
//! covered by the checksum and the length at the end of its gzip member, so gzip'd input that has
//! been cut short or added to is never mistaken for a whole trace.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Cursor, Read};

#[cfg(not(feature = "gz"))]
pub(super) use disabled::save;
#[cfg(feature = "gz")]
pub(super) use enabled::save;

#[cfg(not(feature = "gz"))]
use disabled::decoder;
#[cfg(feature = "gz")]
use enabled::decoder;

use super::{Fault, TraceError};

/// The first two bytes of every gzip member; no text begins with the first of them.
const MAGIC: [u8; 2] = [0x1f, 0x8b];

const BUFFER: usize = 64 << 10;

/// The text in `input`, unpacked if it is gzip'd.
pub(super) fn unpack<'a>(mut input: impl Read + 'a) -> Result<Box<dyn BufRead + 'a>, TraceError> {
    let mut head = Vec::with_capacity(MAGIC.len());
    // `read_to_end` goes on after short reads; one `fill_buf` might see only half the magic.
    input
        .by_ref()
        .take(MAGIC.len() as u64)
        .read_to_end(&mut head)
        .map_err(|error| Fault::from(error).at(1))?;
    let packed = head == MAGIC;
    let input = BufReader::with_capacity(BUFFER, Cursor::new(head).chain(input));
    if packed { decoder(input) } else { Ok(Box::new(input)) }
}

#[cfg(feature = "gz")]
mod enabled {
    use std::fs::File;
    use std::io::{BufRead, BufReader};
    use std::path::Path;

    use flate2::Compression;
    use flate2::bufread::MultiGzDecoder;
    use flate2::write::GzEncoder;

    use super::super::{Fault, Trace, TraceError};
    use super::BUFFER;

    pub(super) fn decoder<'a>(
        input: impl BufRead + 'a,
    ) -> Result<Box<dyn BufRead + 'a>, TraceError> {
        Ok(Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(input))))
    }

    /// Writes `trace` to a new file at `path`, gzip'd; equal traces give equal files.
    pub(in super::super) fn save(trace: &Trace, path: &Path) -> Result<(), TraceError> {
        let file = File::create(path).map_err(|error| Fault::Io(error).at(0))?;
        let mut encoder = GzEncoder::new(file, Compression::best());
        trace.write(&mut encoder)?;
        encoder.finish().map(drop).map_err(|error| Fault::Io(error).at(0))
    }
}

#[cfg(not(feature = "gz"))]
mod disabled {
    use std::io::BufRead;
    use std::path::Path;

    use super::super::{Fault, Trace, TraceError};

    pub(super) fn decoder<'a>(
        _input: impl BufRead + 'a,
    ) -> Result<Box<dyn BufRead + 'a>, TraceError> {
        Err(Fault::GzipDisabled.at(0))
    }

    pub(in super::super) fn save(_trace: &Trace, _path: &Path) -> Result<(), TraceError> {
        Err(Fault::GzipDisabled.at(0))
    }
}
