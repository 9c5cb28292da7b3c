//! All cells of an allocator, in order of registration: found by number without a lock.
//!
//! ```text
//!   chunks   [ 0 … 63 ] [ 64 … 127 ]   –   –  …      64 of them, made when their first cell comes
//! ```
//!
//! Cells come under the global lock and never go, so whoever looks one up needs nothing but to see
//! it. O(1); 1 KiB for each allocator and for each 64 streams.

use std::sync::{Arc, OnceLock};

use crate::allocator::cell::Cell;
use crate::allocator::sync::{AtomicUsize, Ordering};
use crate::backend::Backend;
use crate::id::{AllocationId, ArenaId};

const CHUNK: usize = 64;
const CHUNKS: usize = AllocationId::ARENA_MAX as usize / CHUNK;

type Chunk<B> = [OnceLock<Arc<Cell<B>>>; CHUNK];

/// The cells by number; grows only.
pub(super) struct Roster<B: Backend> {
    chunks: [OnceLock<Box<Chunk<B>>>; CHUNKS],
    count: AtomicUsize,
}

impl<B: Backend> Roster<B> {
    pub(super) fn new() -> Self {
        Self { chunks: [const { OnceLock::new() }; CHUNKS], count: AtomicUsize::new(0) }
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// The cell at a place, if there is one: an id may be any number.
    #[inline]
    pub(super) fn get(&self, id: ArenaId) -> Option<&Arc<Cell<B>>> {
        self.chunks.get(id.index() / CHUNK)?.get()?[id.index() % CHUNK].get()
    }

    /// Appends a cell. Under the global lock: one at a time.
    pub(super) fn push(&self, cell: Arc<Cell<B>>) {
        let at = self.len();
        debug_assert_eq!(at, cell.id.index());
        let chunk =
            self.chunks[at / CHUNK].get_or_init(|| Box::new([const { OnceLock::new() }; CHUNK]));
        let placed = chunk[at % CHUNK].set(cell);
        assert!(placed.is_ok(), "cells are registered one at a time");
        self.count.store(at + 1, Ordering::Release);
    }

    /// All cells that are there now.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Cell<B>>> {
        (0..self.len()).filter_map(|at| self.get(ArenaId::from_index(at)))
    }
}
