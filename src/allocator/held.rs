//! What keeps a cell alive for its allocations, without a count of its own.
//!
//! ```text
//!   Allocation ─▶ Held ──────▶ Cell ── lock ──▶ Inside { arena, owned, keeper }
//!                (a pointer)    ▲                                      │
//!                               └──────────────── Arc ─────────────────┘
//! ```
//!
//! Every allocation needs its cell until it is dropped. An `Arc` in each of them costs two atomic
//! operations a pair, 4.7 of some 25 ns, for a number that is known anyway: allocations are made
//! and dropped under the cell's lock. So they are counted there, and all of them together hold one
//! `Arc`, the keeper.
//!
//! - H1: `owned` = how many [`Held`] of the cell there are.
//! - H2: the keeper is there as long as `owned > 0`, or the allocator lives.
//! - H3: who gives its [`Held`] up (and `owned` falls) does not touch the cell after its lock is
//!   released, unless it holds an `Arc`.
//!
//! This is the one file of the shell with `unsafe` in it.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::allocator::cell::{Cell, Memory};
use crate::backend::Backend;
use crate::core::arena::Arena;
use crate::report::ring::Ring;

/// What a cell's lock protects.
pub(super) struct Inside<B: Backend> {
    pub(super) arena: Arena<Memory<B>>,
    /// What happened on the stream, while that is recorded.
    pub(super) history: Option<Box<Ring>>,
    /// H1.
    owned: usize,
    /// H2.
    keeper: Option<Arc<Cell<B>>>,
    /// The allocator is gone, and done with giving back.
    orphaned: bool,
}

/// One allocation's hold on its cell. To be given up by [`Inside::give_up`], with the cell locked.
pub(super) struct Held<B: Backend>(NonNull<Cell<B>>);

// SAFETY: a shared reference to the cell that can be had from it is all that a thread can do with
// it, as with an `Arc`.
unsafe impl<B: Backend> Send for Held<B> where Arc<Cell<B>>: Send {}
// SAFETY: as above.
unsafe impl<B: Backend> Sync for Held<B> where Arc<Cell<B>>: Sync {}

impl<B: Backend> Held<B> {
    /// The cell.
    #[inline]
    pub(super) fn cell(&self) -> &Cell<B> {
        // SAFETY: H1 and H2: this `Held` is counted, so the keeper, from which the pointer was
        // taken, is there. Who gives it up may have the reference in a variable for the rest of a
        // function, never as its argument, and does not use it (H3): that claims nothing.
        unsafe { self.0.as_ref() }
    }
}

impl<B: Backend> Inside<B> {
    pub(super) fn new(arena: Arena<Memory<B>>) -> Self {
        Self { arena, history: None, owned: 0, keeper: None, orphaned: false }
    }

    /// The cell exists, and is its own keeper from now on.
    pub(super) fn keep(&mut self, cell: &Arc<Cell<B>>) {
        self.keeper = Some(Arc::clone(cell));
    }

    /// One more allocation holds the cell.
    ///
    /// # Panics
    /// If the allocator is gone: then nothing is allocated any more.
    #[inline]
    pub(super) fn hold(&mut self) -> Held<B> {
        let keeper = self.keeper.as_ref().expect("H2 is broken: an allocator without its cells");
        let held = Held(NonNull::from(&**keeper));
        self.owned += 1;
        held
    }

    /// One allocation less holds the cell; the keeper, if that was the last one and the allocator
    /// is gone: to be dropped when the cell is not needed any more.
    #[inline]
    pub(super) fn give_up(&mut self) -> Option<Arc<Cell<B>>> {
        self.owned -= 1;
        if self.owned == 0 { self.release() } else { None }
    }

    #[cold]
    fn release(&mut self) -> Option<Arc<Cell<B>>> {
        if self.orphaned && self.owned == 0 { self.keeper.take() } else { None }
    }

    /// The allocator is gone; as [`give_up`](Self::give_up) if nobody holds the cell.
    pub(super) fn orphan(&mut self) -> Option<Arc<Cell<B>>> {
        self.orphaned = true;
        self.release()
    }

    pub(super) fn is_orphaned(&self) -> bool {
        self.orphaned
    }

    /// Keeps the cell for somebody who goes on without its lock (H3).
    pub(super) fn keeper(&self) -> Option<Arc<Cell<B>>> {
        self.keeper.clone()
    }
}
