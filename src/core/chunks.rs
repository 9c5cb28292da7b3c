//! Chunks: the pieces of physical memory behind one range of addresses.
//!
//! ```text
//!   blocks  [ Allocated | Free | Allocated |      Free      |   Unmapped    | Free | Unmapped …… ]
//!   chunks  |   a    |    b      | c |     d     |     e    |               |  f   |
//!                                      └── whole in a hole: can move ──┘      yes
//! ```
//!
//! A backend maps and unmaps a chunk as a whole, at one call each, and never cuts one. So large
//! chunks are cheap and small ones are free to move: a chunk is made as large as the growth that
//! needs it (see [`expand`](crate::core::expand)), which is what the program frees as one thing
//! later. With the torch preset all have the size of PyTorch's page.
//!
//! - I7: the chunks of a segment ascend, do not overlap, and cover exactly its mapped blocks.
//!
//! A sorted list: O(log n) to find, O(n) to change, n at most a few thousand for a device. Nothing
//! here is looked at by a hit.

use crate::units::{Bytes, to_bytes, to_granules};

/// A run of addresses, in bytes from the start of the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) offset: Bytes,
    pub(crate) size: Bytes,
}

/// One piece of physical memory. Granules from the start of the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) start: u32,
    pub(crate) size: u32,
}

impl Chunk {
    pub(crate) fn end(self) -> u32 {
        self.start + self.size
    }
}

/// The chunks of one segment, in address order.
#[derive(Debug, Default)]
pub(crate) struct Chunks(Vec<Chunk>);

impl Chunks {
    /// The chunks that lie wholly within `start..end`.
    pub(crate) fn within(&self, start: u32, end: u32) -> &[Chunk] {
        let first = self.0.partition_point(|chunk| chunk.start < start);
        let last = self.0.partition_point(|chunk| chunk.end() <= end);
        &self.0[first.min(last)..last]
    }

    /// Adds a chunk where none is.
    pub(crate) fn insert(&mut self, chunk: Chunk) {
        let at = self.0.partition_point(|other| other.start < chunk.start);
        self.0.insert(at, chunk);
    }

    /// Takes out the chunks within `start..end`.
    pub(crate) fn take(&mut self, start: u32, end: u32) -> Vec<Chunk> {
        let first = self.0.partition_point(|chunk| chunk.start < start);
        let last = self.0.partition_point(|chunk| chunk.end() <= end);
        self.0.drain(first..last).collect()
    }

    /// Whether there is a chunk behind every granule of `start..end`.
    pub(crate) fn covers(&self, start: u32, end: u32) -> bool {
        let first = self.0.partition_point(|chunk| chunk.end() <= start);
        let mut at = start;
        for chunk in self.0[first..].iter().take_while(|chunk| chunk.start < end) {
            if chunk.start > at {
                return false;
            }
            at = chunk.end();
        }
        at >= end
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Chunk] {
        &self.0
    }
}

/// A chunk to be put at an address. Bytes from the start of the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: Bytes,
    pub(crate) size: Bytes,
    /// Which of the chunks taken elsewhere this is; a new one if none.
    pub(crate) taken: Option<usize>,
}

impl Piece {
    /// The chunk that it is once it is mapped.
    pub(crate) fn chunk(self) -> Chunk {
        Chunk { start: to_granules(self.offset), size: to_granules(self.size) }
    }
}

/// Cuts runs of addresses into pieces: chunks that were `taken` elsewhere where they fit, the
/// largest first, and new ones of at most `fresh_max` bytes for the rest. What fits nowhere is left
/// to be given back. O(runs · taken).
pub(crate) fn cut(runs: &[Run], taken: &[Chunk], fresh_max: Bytes) -> Vec<Piece> {
    let mut unused: Vec<usize> = (0..taken.len()).collect();
    unused.sort_by_key(|&at| std::cmp::Reverse(taken[at].size));
    let mut pieces = Vec::new();
    for run in runs {
        let (mut offset, end) = (run.offset, run.offset + run.size);
        while offset < end {
            let fits = unused.iter().position(|&at| to_bytes(taken[at].size) <= end - offset);
            let taken_at = fits.map(|at| unused.remove(at));
            let size = match taken_at {
                Some(at) => to_bytes(taken[at].size),
                None => fresh_max.min(end - offset),
            };
            pieces.push(Piece { offset, size, taken: taken_at });
            offset += size;
        }
    }
    pieces
}

#[cfg(test)]
mod tests;
