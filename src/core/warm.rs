//! The front cache: blocks that were just freed, found again by their exact size.
//!
//! ```text
//!   free ─▶ slot of (pool, size) ─▶ the next request of that size: no bin, no cut, no merge
//!                  │
//!                  └─ another free of that slot, a miss, or anyone who looks at everything:
//!                     the block merges and goes to the bins, as if it had done so at its free
//! ```
//!
//! Programs repeat themselves: most requests have the size of a block that was freed a moment ago.
//! Such a block is neither merged nor put into a bin; its state is Warm, and to its segment it is
//! as busy as an allocated one. The books have it as free at once.
//!
//! What does not merge costs memory. So a slot belongs to the size that was freed there last, and
//! only a second free of that size in a row is kept: sizes that never repeat merge at once. And it
//! is for crumbs alone (see [`Config::front_cache`]): what 23 traces need is the same with
//! and without it, to 0.1 %; a program of nothing but small blocks of random sizes needs 9 % more.
//!
//! - F1: a block is Warm ⇔ it is in the slot of its pool and size.
//! - F2: no block is Warm while all arenas are in one hand: whoever decides about more than one
//!   block sees merged ones. (So reading statistics merges; it moves later placements, never
//!   correctness.)
//!
//! A hit through a slot costs 22 ns with all that belongs to it, through the bins 44 to 60. Off
//! with the torch preset, whose placements are to the byte.

use crate::config::Config;
use crate::core::arena::{Arena, Freed, Grant};
use crate::core::block::{Block, Holder, State};
use crate::core::classes::Group;
use crate::core::ledger::Entry;
use crate::core::pool::Pool;
use crate::id::BlockId;

const SLOTS: usize = 64;

/// One block, and under which name it is found.
#[derive(Debug, Clone, Copy)]
struct Slot {
    pool: u32,
    size: u32,
    block: BlockId,
}

/// The slots of one arena.
#[derive(Debug)]
pub(crate) struct Warm {
    slots: [Slot; SLOTS],
    count: u32,
}

impl Warm {
    pub(crate) fn new() -> Self {
        Self { slots: [Slot { pool: 0, size: 0, block: BlockId::NONE }; SLOTS], count: 0 }
    }

    #[inline]
    fn slot(&mut self, pool: usize, size: u32) -> &mut Slot {
        // The multiplier of Fibonacci hashing: sizes are often multiples of large powers of two.
        let hash = (size ^ (pool as u32) << 20).wrapping_mul(0x9E37_79B9);
        &mut self.slots[(hash >> 26) as usize]
    }

    #[inline]
    pub(crate) fn take(&mut self, pool: usize, size: u32) -> Option<BlockId> {
        let slot = self.slot(pool, size);
        let found = !slot.block.is_none() && slot.size == size && slot.pool == pool as u32;
        if !found {
            return None;
        }
        let block = std::mem::replace(&mut slot.block, BlockId::NONE);
        self.count -= 1;
        Some(block)
    }

    /// Puts a block in if its slot is one of its size; the block that has to leave instead, if any:
    /// the one before it, or this one, whose size has the slot from now on. Then both leave.
    #[inline]
    fn put(&mut self, pool: usize, size: u32, block: BlockId) -> [BlockId; 2] {
        let slot = self.slot(pool, size);
        let old = slot.block;
        if slot.size == size && slot.pool == pool as u32 {
            slot.block = block;
            self.count += u32::from(old.is_none());
            return [old, BlockId::NONE];
        }
        *slot = Slot { pool: pool as u32, size, block: BlockId::NONE };
        self.count -= u32::from(!old.is_none());
        [block, old]
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl<M> Arena<M> {
    /// Hands out a block that left its slot of `pool`, or puts it back if the peaks do not allow
    /// it. O(1).
    #[inline(always)]
    pub(crate) fn take_warm(
        &mut self,
        pool: usize,
        id: BlockId,
        group: Group,
        holder: Holder,
        owned: u32,
    ) -> Option<Grant> {
        let Block { size, segment, .. } = self.blocks[id.index()];
        // No free piece comes or goes.
        if !self.ledger.admits(group, size, holder.requested, (0, 0)) {
            self.warm.put(pool, size, id);
            return None;
        }
        let base = self.segments[segment.index()].base;
        Some(self.grant(id, base, group, holder, owned))
    }

    /// Keeps a block that its user lets go of for the next request of its size; `entry` is booked.
    /// The block that had the slot merges.
    #[inline]
    pub(crate) fn keep_warm(&mut self, id: BlockId, entry: Entry, config: &Config) -> Freed {
        let block = &mut self.blocks[id.index()];
        block.state = State::Warm;
        let (size, segment) = (block.size, block.segment);
        let pool = self.segments[segment.index()].pool;
        let Pool { group, traits, .. } = self.pools[pool];
        self.ledger.apply(group, entry);
        if traits.released {
            return self.settle_free(id, config);
        }
        let [first, second] = self.warm.put(pool, size, id);
        if first.is_none() {
            return Freed::default();
        }
        let freed = self.settle_free(first, config);
        if second.is_none() { freed } else { self.settle_free(second, config) }
    }

    /// Every warm block merges and goes to the bins (F2); whether there was one, and so free pieces
    /// beyond the leases perhaps (L2). O(slots), and nothing if none is warm.
    pub(crate) fn settle_warm(&mut self, config: &Config) -> bool {
        if self.warm.is_empty() {
            return false;
        }
        for at in 0..SLOTS {
            let block = std::mem::replace(&mut self.warm.slots[at].block, BlockId::NONE);
            if !block.is_none() {
                self.settle_free(block, config);
            }
        }
        self.warm.count = 0;
        true
    }
}
