//! One block: a run of granules of a segment, and who holds it.
//!
//! ```text
//!   segment  ├── Allocated ──┼─ Free ─┼── Pending ──┼──────── Free ────────┤   in address order
//!   prev/next ◀─────────────▶◀───────▶◀────────────▶
//!   links            (bin list)─┘          └─(bin of pending blocks)
//! ```
//!
//! A record is 64 bytes, one cache line: what only one state needs is in that state, and what is
//! rare (recorded streams, what a pending block waits for) is in side tables of the arena.

use std::panic::Location;

use crate::id::{BlockId, SegmentId, SideId, Tag};
use crate::units::Bytes;

/// One block of a segment.
#[derive(Debug)]
pub(crate) struct Block {
    /// First granule, counted from the start of the segment.
    pub(crate) offset: u32,
    /// Granules; never 0.
    pub(crate) size: u32,
    /// Neighbours in address order.
    pub(crate) prev: BlockId,
    pub(crate) next: BlockId,
    pub(crate) segment: SegmentId,
    /// Of an allocated block: counts the arena's allocations, which tells stale ids from live ones;
    /// and [`Block::OWNED`].
    pub(crate) serial: u32,
    /// The tick of the arena's timeline that covers the last use by the arena's own stream.
    pub(crate) tick: u64,
    pub(crate) state: State,
}

/// Who holds the bytes.
// The tag has a whole word: behind a tag of one byte the compiler copies states in pieces that
// straddle fields, and a load that straddles a recent store waits for it.
#[repr(u32)]
#[derive(Debug)]
pub(crate) enum State {
    /// Cached; in a bin of its pool.
    Free(Links),
    /// A user holds it.
    Allocated(Holder),
    /// Freed by its user, but another stream may still touch it; in its pool's bin of pending
    /// blocks.
    Pending { links: Links, side: SideId },
    /// Freed a moment ago, and kept for the next request of its size (see `warm`).
    Warm,
    /// Addresses with nothing behind them (virtual memory only).
    Unmapped,
    /// No block: a record that waits to be used again.
    Vacant,
    /// Part of a growth in flight: neither searched nor merged until that is committed. `mapped`
    /// tells whether there is memory behind it now.
    Claimed { mapped: bool },
}

/// Who asked for an allocated block, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holder {
    /// Bytes asked for, unrounded.
    pub(crate) requested: Bytes,
    /// The caller's place in the source.
    pub(crate) location: &'static Location<'static>,
    pub(crate) tag: Tag,
    /// Streams that use the block besides its own, in the arena's side table; or none.
    pub(crate) uses: SideId,
}

/// Places in a bin's lists. Heads, one for each size, are linked in order of size; blocks of equal
/// size hang off their head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Links {
    /// Head: the next smaller head of the class. Member: the block before it in the chain.
    pub(crate) prev: BlockId,
    /// Head: the next larger head of the class. Member: the block after it in the chain.
    pub(crate) next: BlockId,
    /// Head: the first member of its chain.
    pub(crate) twin: BlockId,
    /// Whether the block hangs off a head of its size.
    pub(crate) member: bool,
}

impl Links {
    pub(crate) const NONE: Self =
        Self { prev: BlockId::NONE, next: BlockId::NONE, twin: BlockId::NONE, member: false };
}

impl Block {
    /// The bit of `serial` that says: an owner's drop will free the block, and nothing else may.
    pub(crate) const OWNED: u32 = 1 << 31;

    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        matches!(self.state, State::Free(_))
    }

    #[inline]
    pub(crate) fn is_unmapped(&self) -> bool {
        matches!(self.state, State::Unmapped)
    }

    /// Whether there is device memory behind the block.
    pub(crate) fn is_mapped(&self) -> bool {
        !matches!(self.state, State::Unmapped | State::Vacant | State::Claimed { mapped: false })
    }

    /// The end of the block, in granules from the start of the segment.
    #[inline]
    pub(crate) fn end(&self) -> u32 {
        self.offset + self.size
    }

    /// The links of a block that is in a bin.
    ///
    /// # Panics
    /// If it is in none: invariant B2 is broken.
    #[inline]
    pub(crate) fn links(&self) -> &Links {
        match &self.state {
            State::Free(links) | State::Pending { links, .. } => links,
            other => panic!("B2 is broken: a block in a bin is {other:?}"),
        }
    }

    /// As [`links`](Self::links), to be changed.
    ///
    /// # Panics
    /// If it is in none: invariant B2 is broken.
    #[inline]
    pub(crate) fn links_mut(&mut self) -> &mut Links {
        match &mut self.state {
            State::Free(links) | State::Pending { links, .. } => links,
            other => panic!("B2 is broken: a block in a bin is {other:?}"),
        }
    }
}

// Small records are why a random walk over a million live blocks stays fast.
const _: () = assert!(size_of::<Block>() <= 64);
