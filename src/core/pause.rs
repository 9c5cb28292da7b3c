//! Pausing a private pool: its memory goes back to the device, its addresses and blocks stay.
//!
//! ```text
//!   Here      [ Allocated | Free | Allocated | Unmapped …… ]      chunks behind the blocks
//!     │ pause: Moving, the chunks are taken out and given back
//!     ▼
//!   Away      [ Allocated | Free | Allocated | Unmapped …… ]      nothing behind them
//!     │ resume: Moving, new chunks of the same sizes at the same places; or Away as before
//!     ▼
//!   Here
//! ```
//!
//! Holders keep what they hold, and may free it meanwhile; nothing of the pool is handed out. What
//! is away is allocated and not reserved:
//!
//! - A1: `mapped` of a segment that is not Here is 0, and its chunks say what was there, and will
//!   be.
//! - A2: `owner.away` = Σ chunks of its segments that are not Here, in bytes.
//!
//! Only ranges of addresses can be away: a segment in one piece would come back elsewhere.
//! O(blocks) and one backend call, or three, for each chunk.

use crate::core::block::State;
use crate::core::chunks::{Chunk, Run};
use crate::core::ledger::Entry;
use crate::core::segment::Segment;
use crate::core::state::World;
use crate::id::{ArenaId, OwnerId, SegmentId};
use crate::units::{Bytes, to_bytes, to_granules};

/// Whether the memory of a segment is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Presence {
    #[default]
    Here,
    /// A call of the backend is under way for it.
    Moving,
    /// Given back until the pool is resumed.
    Away,
}

/// One range on its way.
#[derive(Debug)]
pub(crate) struct Moving<M> {
    pub(crate) memory: M,
    pub(crate) chunks: Vec<Chunk>,
    arena: ArenaId,
    segment: SegmentId,
}

impl<M> Moving<M> {
    fn bytes(&self) -> Bytes {
        self.chunks.iter().map(|chunk| to_bytes(chunk.size)).sum()
    }

    /// The runs of addresses that the chunks cover.
    pub(crate) fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for chunk in &self.chunks {
            let (offset, size) = (to_bytes(chunk.start), to_bytes(chunk.size));
            match runs.last_mut() {
                Some(run) if run.offset + run.size == offset => run.size += size,
                _ => runs.push(Run { offset, size }),
            }
        }
        runs
    }
}

/// All that moves at a time.
#[derive(Debug)]
pub(crate) struct Move<M> {
    pub(crate) ranges: Vec<Moving<M>>,
    pub(crate) bytes: Bytes,
}

impl<M> Move<M> {
    /// What is to be done when the ranges' memory is borrowed no more: where they are.
    pub(crate) fn into_places(self) -> (Vec<(ArenaId, SegmentId)>, Bytes) {
        let places = self.ranges.iter().map(|range| (range.arena, range.segment)).collect();
        (places, self.bytes)
    }
}

impl<M: Clone, E: Clone> World<'_, M, E> {
    /// From now on nothing of the pool is handed out; `false` if that was so before.
    pub(crate) fn begin_pause(&mut self, owner: OwnerId) -> bool {
        let traits = &mut self.global.owners[owner.index()].traits;
        let begins = !std::mem::replace(&mut traits.paused, true);
        self.spread_traits(owner);
        begins
    }

    /// The pool hands out again.
    pub(crate) fn end_pause(&mut self, owner: OwnerId) {
        self.global.owners[owner.index()].traits.paused = false;
        self.spread_traits(owner);
    }

    pub(crate) fn is_paused(&self, owner: OwnerId) -> bool {
        self.global.owners[owner.index()].traits.paused
    }

    /// Whether a growth of one of the pool's ranges, or pages taken from them, are on their way.
    pub(crate) fn is_growing(&self, owner: OwnerId) -> bool {
        self.ranges_of(owner).iter().any(|&(arena, segment)| {
            let arena = &self.arenas[arena.index()];
            let blocks = arena.blocks_of(&arena.segments[segment.index()]);
            let mut states = blocks.map(|block| &block.state);
            states.any(|state| matches!(state, State::Claimed { .. }))
        })
    }

    /// Address and size of every live allocation of the pool, where there are addresses.
    pub(crate) fn live_of(&self, owner: OwnerId) -> Vec<(u64, Bytes)> {
        let mut live = Vec::new();
        for (arena, segment) in self.ranges_of(owner) {
            let arena = &self.arenas[arena.index()];
            let segment = &arena.segments[segment.index()];
            let held =
                arena.blocks_of(segment).filter(|block| matches!(block.state, State::Allocated(_)));
            live.extend(
                held.map(|block| (segment.base + to_bytes(block.offset), to_bytes(block.size))),
            );
        }
        live
    }

    /// The streams whose work may use the pool's memory: those that it was allocated on, and those
    /// that were recorded.
    pub(crate) fn users_of(&self, owner: OwnerId) -> Vec<ArenaId> {
        let mut users = Vec::new();
        for (id, _) in self.ranges_of(owner) {
            let arena = &self.arenas[id.index()];
            users.push(id);
            users.extend(arena.users());
            users.extend(arena.uses.iter().flat_map(|(_, streams)| streams));
        }
        users.sort_unstable();
        users.dedup();
        users
    }

    fn ranges_of(&self, owner: OwnerId) -> Vec<(ArenaId, SegmentId)> {
        let mut ranges = Vec::new();
        for (index, arena) in self.arenas.iter().enumerate() {
            for (id, segment) in &arena.segments {
                if segment.is_virtual() && arena.pools[segment.pool].owner == owner {
                    ranges.push((ArenaId::from_index(index), SegmentId::from_index(id)));
                }
            }
        }
        ranges
    }

    fn moving(&mut self, owner: OwnerId, from: Presence) -> Move<M> {
        let mut ranges = Vec::new();
        for (arena, segment) in self.ranges_of(owner) {
            let range = &mut self.arena(arena).segments[segment.index()];
            if range.presence == from && !range.chunks.all().is_empty() {
                range.presence = Presence::Moving;
                let (memory, chunks) = (range.memory.clone(), range.chunks.all().to_vec());
                ranges.push(Moving { memory, chunks, arena, segment });
            }
        }
        let bytes = ranges.iter().map(Moving::bytes).sum();
        Move { ranges, bytes }
    }

    /// Books that a range's chunks are there no more, or again.
    fn book_presence(&mut self, (arena, segment): (ArenaId, SegmentId), here: bool) {
        let arena = self.arena(arena);
        let Segment { pool, .. } = arena.segments[segment.index()];
        let (group, owner) = (arena.pools[pool].group, arena.pools[pool].owner);
        let range = &mut arena.segments[segment.index()];
        let size: u32 = range.chunks.all().iter().map(|chunk| chunk.size).sum();
        range.mapped = if here { size } else { 0 };
        let entry = if here { Entry::Map { size } } else { Entry::Unmap { size } };
        arena.ledger.apply(group, entry);
        let bytes = to_bytes(size) as i64;
        let owner = &mut self.global.owners[owner.index()];
        owner.book_reserved(group, if here { bytes } else { -bytes });
        owner.away = owner.away.wrapping_add_signed(if here { -bytes } else { bytes });
    }

    fn set_presence(&mut self, (arena, segment): (ArenaId, SegmentId), presence: Presence) {
        self.arena(arena).segments[segment.index()].presence = presence;
    }

    /// Takes all of a paused pool's chunks out of the books, to be unmapped and given back.
    pub(crate) fn plan_leave(&mut self, owner: OwnerId) -> Move<M> {
        let plan = self.moving(owner, Presence::Here);
        for range in &plan.ranges {
            self.book_presence((range.arena, range.segment), false);
        }
        self.global.in_flight += 1;
        plan
    }

    /// The chunks were given back.
    pub(crate) fn commit_leave(&mut self, (places, bytes): (Vec<(ArenaId, SegmentId)>, Bytes)) {
        places.into_iter().for_each(|place| self.set_presence(place, Presence::Away));
        self.commit_release(0, bytes);
    }

    /// What has to be mapped again, charged; `None` if the limit has no room for it.
    pub(crate) fn plan_return(&mut self, owner: OwnerId) -> Option<Move<M>> {
        let plan = self.moving(owner, Presence::Away);
        if !self.global.has_room(plan.bytes) {
            for range in &plan.ranges {
                self.set_presence((range.arena, range.segment), Presence::Away);
            }
            return None;
        }
        self.global.charge(plan.bytes);
        Some(plan)
    }

    /// Everything is there again, or nothing is.
    pub(crate) fn commit_return(
        &mut self,
        (places, bytes): (Vec<(ArenaId, SegmentId)>, Bytes),
        done: bool,
    ) {
        self.global.end_growth();
        for place in places {
            if done {
                self.set_presence(place, Presence::Here);
                self.book_presence(place, true);
            } else {
                self.set_presence(place, Presence::Away);
            }
        }
        if !done {
            self.global.reserved -= bytes;
            self.global.refusals += 1;
        }
    }

    /// Bytes that are away from an owner's pools.
    pub(crate) fn away_of(&self, owner: OwnerId) -> Bytes {
        self.global.owners[owner.index()].away
    }
}

/// Granules that are away from a segment (A1).
pub(crate) fn away<M>(segment: &Segment<M>) -> u32 {
    match segment.presence {
        Presence::Here => 0,
        Presence::Moving | Presence::Away => {
            to_granules(segment.chunks.all().iter().map(|chunk| to_bytes(chunk.size)).sum())
        }
    }
}
