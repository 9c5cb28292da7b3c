//! Owners of pools: the default one, and private pools; captures into them.
//!
//! An owner has pools in as many arenas as it is used on; what all of them share, its traits and
//! its reserved bytes, is here. When the last handle goes the owner is released: what is free in
//! its pools goes back, and the rest as it is freed; an owner that holds nothing is taken over by
//! the next.

use crate::core::block::State;
use crate::core::classes::Group;
use crate::core::ledger::{self, Counter};
use crate::core::miss::Miss;
use crate::core::pool::{Pool, Traits};
use crate::core::state::World;
use crate::core::step::Step;
use crate::id::{ArenaId, BlockId, OwnerId, PoolId};
use crate::units::Bytes;

/// How many private pools that are gone the statistics remember.
const GONE_POOLS_MAX: usize = 1024;

/// An owner of pools.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) pool_id: PoolId,
    pub(crate) traits: Traits,
    pub(crate) use_on_oom: bool,
    /// Reserved bytes: small, large, all.
    pub(crate) reserved: [Counter; 3],
    /// Bytes that are away (A2).
    pub(crate) away: Bytes,
}

impl Owner {
    /// Books bytes that came to, or left, the owner's pools of `group`.
    pub(crate) fn book_reserved(&mut self, group: Group, bytes: i64) {
        for counter in [group as usize, ledger::ALL] {
            let counter = &mut self.reserved[counter];
            if bytes >= 0 {
                counter.rise(bytes as u64);
            } else {
                counter.fall(bytes.unsigned_abs());
            }
        }
    }
}

/// A stream under capture, and the pool that its requests are routed to.
#[derive(Debug, Clone)]
pub(crate) struct Capture {
    pub(crate) stream: ArenaId,
    pub(crate) owner: OwnerId,
    /// What was held of the pool when the capture began, with its serial: work of other streams on
    /// it may be no part of the graph.
    earlier: Vec<(BlockId, u32)>,
}

impl<M, E: Clone> World<'_, M, E> {
    /// The blocks of an owner's pools in an arena that somebody holds, or that wait.
    fn held_by(&self, arena: ArenaId, owner: OwnerId) -> Vec<(BlockId, u32)> {
        let arena = &self.arenas[arena.index()];
        let blocks = arena.blocks.iter().enumerate().filter(|(_, block)| {
            let is_held = matches!(block.state, State::Allocated(_) | State::Pending { .. });
            is_held && arena.pools[arena.segments[block.segment.index()].pool].owner == owner
        });
        blocks.map(|(at, block)| (BlockId::from_index(at), block.serial)).collect()
    }

    /// The pool of an owner in an arena, made if need be.
    pub(crate) fn pool(&mut self, arena: ArenaId, owner: OwnerId, group: Group) -> usize {
        let traits = self.global.owners[owner.index()].traits;
        let arena = self.arena(arena);
        arena.pool_of(owner, group).unwrap_or_else(|| {
            arena.pools.push(Pool::new(group, owner, traits));
            arena.pools.len() - 1
        })
    }

    /// A new owner of pools. The entry of a released owner that holds nothing any more is taken
    /// over, so that a program may make and drop pools for ever.
    pub(crate) fn create_owner(&mut self, traits: Traits, use_on_oom: bool) -> OwnerId {
        self.global.pools_made += 1;
        let traits = Traits { granularity: self.device.granularity, ..traits };
        let pool_id = PoolId(0, self.global.pools_made);
        let owner =
            Owner { pool_id, traits, use_on_oom, reserved: [Counter::default(); 3], away: 0 };
        let holds_nothing = |owner: &Owner| {
            owner.traits.released && owner.reserved[ledger::ALL].current == 0 && owner.away == 0
        };
        let vacant = self.global.owners.iter().skip(1).position(holds_nothing);
        let Some(index) = vacant.map(|index| index + 1) else {
            self.global.owners.push(owner);
            return OwnerId::from_index(self.global.owners.len() - 1);
        };
        let gone = std::mem::replace(&mut self.global.owners[index], owner);
        if self.global.gone_pools.len() == GONE_POOLS_MAX {
            self.global.gone_pools.pop_front();
        }
        self.global.gone_pools.push_back((gone.pool_id, gone.reserved));
        let id = OwnerId::from_index(index);
        self.spread_traits(id);
        id
    }

    /// The last handle of a private pool is gone.
    pub(crate) fn release_owner(&mut self, owner: OwnerId) {
        self.global.owners[owner.index()].traits.released = true;
        self.spread_traits(owner);
    }

    /// The allocator is gone: nothing keeps pools any more, not even the default ones.
    pub(crate) fn release_all_owners(&mut self) {
        self.global.captures.clear();
        for index in 0..self.global.owners.len() {
            self.release_owner(OwnerId::from_index(index));
        }
    }

    /// A stream is captured into a private pool: nothing is asked of the backend for it from now
    /// on.
    pub(crate) fn begin_capture(&mut self, stream: ArenaId, owner: OwnerId) {
        let earlier = self.held_by(stream, owner);
        self.global.captures.push(Capture { stream, owner, earlier });
        self.global.owners[owner.index()].traits.captured = true;
        self.spread_traits(owner);
    }

    /// The capture has ended.
    pub(crate) fn end_capture(&mut self, stream: ArenaId, owner: OwnerId) {
        let captures = &mut self.global.captures;
        let is_it = |capture: &Capture| (capture.stream, capture.owner) == (stream, owner);
        if let Some(at) = captures.iter().rposition(is_it) {
            captures.remove(at);
        }
    }

    /// Pending blocks of a captured stream that only work of the same graph may still use, if the
    /// streams of that work have been joined: with their streams.
    pub(crate) fn joinable(&self, stream: ArenaId) -> Vec<(BlockId, Vec<ArenaId>)> {
        let Some(capture) =
            self.global.captures.iter().rev().find(|capture| capture.stream == stream)
        else {
            return Vec::new();
        };
        let arena = &self.arenas[stream.index()];
        let mut found = Vec::new();
        for (at, block) in arena.blocks.iter().enumerate() {
            let State::Pending { side, .. } = block.state else { continue };
            let id = BlockId::from_index(at);
            let is_own =
                arena.pools[arena.segments[block.segment.index()].pool].owner == capture.owner;
            if is_own && !capture.earlier.contains(&(id, block.serial)) {
                let marks = &arena.waiting[side.index()].marks;
                found.push((id, marks.iter().map(|mark| mark.stream).collect()));
            }
        }
        found
    }

    /// Which streams the captured one has joined: what only they use may be had again.
    pub(super) fn joins(&self, miss: &mut Miss) -> Option<Step<M, E>> {
        let asks = self.config.graph_capture_record_stream_reuse;
        if !asks || std::mem::replace(&mut miss.asked_joins, true) {
            return None;
        }
        let reader = miss.arena;
        let found = self.joinable(reader);
        let of_reader = &self.arenas[reader.index()].blocks;
        let blocks = found.iter().map(|&(id, _)| (id, of_reader[id.index()].serial)).collect();
        let mut streams: Vec<ArenaId> =
            found.into_iter().flat_map(|(_, streams)| streams).collect();
        streams.sort_unstable();
        streams.dedup();
        (!streams.is_empty()).then_some(Step::Joins { reader, streams, blocks })
    }

    /// Of the blocks that were asked about, those all of whose streams are among `joined` are the
    /// captured stream's again. What was freed since may have been used since.
    pub(crate) fn commit_joins(
        &mut self,
        stream: ArenaId,
        joined: &[ArenaId],
        asked: &[(BlockId, u32)],
    ) {
        for (block, streams) in self.joinable(stream) {
            let serial = self.arenas[stream.index()].blocks[block.index()].serial;
            let was_asked = asked.contains(&(block, serial));
            if was_asked && streams.iter().all(|stream| joined.contains(stream)) {
                self.promote_for_own(stream, block);
            }
        }
    }

    /// Gives all pools of an owner its present traits.
    pub(crate) fn spread_traits(&mut self, owner: OwnerId) {
        let traits = self.global.owners[owner.index()].traits;
        for pool in self.arenas.iter_mut().flat_map(|arena| &mut arena.pools) {
            if pool.owner == owner {
                pool.traits = traits;
            }
        }
    }
}
