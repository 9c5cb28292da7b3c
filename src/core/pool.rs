//! A pool: segments and free blocks of one (stream, size group, owner) that are searched together.
//!
//! ```text
//!  arena (one stream)
//!   ├─ pool 0: small, default owner ─ free: Bins ─ pending: Bins ─ idle: segment ⇄ segment ⇄ …
//!   ├─ pool 1: large, default owner                                 (coldest first)
//!   ├─ pool 2: small, private pool 1
//!   └─ …
//! ```
//!
//! The idle list holds the pool's wholly free fixed segments in the order in which they became so:
//! what a trim takes first. Invariant I5 of the segments speaks of it.

use slab::Slab;

use crate::core::bins::Bins;
use crate::core::classes::Group;
use crate::core::segment::{Idle, Segment};
use crate::id::{OwnerId, SegmentId};
use crate::units::Bytes;

/// What a pool inherits from its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Traits {
    /// The backend's number for the sort of memory.
    pub(crate) kind: u8,
    /// Blocks are never split.
    pub(crate) no_split: bool,
    /// Every block is a segment of its own, made to measure.
    pub(crate) exclusive: bool,
    /// Bytes; segments are multiples of it.
    pub(crate) granularity: Bytes,
    /// A capture went through the pool: its addresses must stay as long as the pool lives.
    pub(crate) captured: bool,
    /// Nothing is handed out: its memory is away, or on its way (see `pause`).
    pub(crate) paused: bool,
    /// The last handle is gone: what becomes free is given back.
    pub(crate) released: bool,
}

#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) group: Group,
    pub(crate) owner: OwnerId,
    pub(crate) traits: Traits,
    pub(crate) free: Bins,
    pub(crate) pending: Bins,
    /// Searches so far: the clock of garbage collection.
    pub(crate) searches: u64,
    pub(crate) idle_first: SegmentId,
    pub(crate) idle_last: SegmentId,
}

impl Pool {
    pub(crate) fn new(group: Group, owner: OwnerId, traits: Traits) -> Self {
        Self {
            group,
            owner,
            traits,
            free: Bins::new(),
            pending: Bins::new(),
            searches: 0,
            idle_first: SegmentId::NONE,
            idle_last: SegmentId::NONE,
        }
    }

    /// Appends a segment that became wholly free.
    #[inline]
    pub(crate) fn link_idle<M>(
        &mut self,
        segments: &mut Slab<Segment<M>>,
        id: SegmentId,
        epoch: u64,
        time_us: u64,
    ) {
        segments[id.index()].idle = Idle {
            prev: self.idle_last,
            next: SegmentId::NONE,
            epoch,
            searches: self.searches,
            time_us,
        };
        match self.idle_last {
            SegmentId::NONE => self.idle_first = id,
            last => segments[last.index()].idle.next = id,
        }
        self.idle_last = id;
    }

    /// Takes a segment out of the idle list: it is used again, or given back.
    #[inline]
    pub(crate) fn unlink_idle<M>(&mut self, segments: &mut Slab<Segment<M>>, id: SegmentId) {
        let Idle { prev, next, .. } = segments[id.index()].idle;
        match prev {
            SegmentId::NONE => self.idle_first = next,
            prev => segments[prev.index()].idle.next = next,
        }
        match next {
            SegmentId::NONE => self.idle_last = prev,
            next => segments[next.index()].idle.prev = prev,
        }
    }
}

/// The idle segments of a pool, coldest first.
pub(crate) fn idle_segments<'a, M>(
    pool: &Pool,
    segments: &'a Slab<Segment<M>>,
) -> impl Iterator<Item = SegmentId> + use<'a, M> {
    let some = |id: SegmentId| (!id.is_none()).then_some(id);
    std::iter::successors(some(pool.idle_first), move |id| some(segments[id.index()].idle.next))
}
