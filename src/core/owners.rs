//! Owners of pools: the default one, and private pools; captures into them.
//!
//! An owner has pools in as many arenas as it is used on; what all of them share, its traits and
//! its reserved bytes, is here. When the last handle goes the owner is released: what is free in
//! its pools goes back, and the rest as it is freed; an owner that holds nothing is taken over by
//! the next.

use crate::core::classes::Group;
use crate::core::ledger::{self, Counter};
use crate::core::pool::{Pool, Traits};
use crate::core::state::World;
use crate::id::{ArenaId, OwnerId, PoolId};
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

impl<M, E: Clone> World<'_, M, E> {
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
        self.global.captures.push((stream, owner));
        self.global.owners[owner.index()].traits.captured = true;
        self.spread_traits(owner);
    }

    /// The capture has ended.
    pub(crate) fn end_capture(&mut self, stream: ArenaId, owner: OwnerId) {
        let captures = &mut self.global.captures;
        if let Some(at) = captures.iter().rposition(|&capture| capture == (stream, owner)) {
            captures.remove(at);
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
