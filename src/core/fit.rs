//! Which free block serves a request, and how much of it.
//!
//! ```text
//!  best fit ─▶ plain? ─▶ a vast idle segment? ─ no ─▶ that block
//!                 │                │ yes: one of the next few, in a segment that is in use anyway,
//!                 │                │      or none (grow instead), or that block, if that must be
//!                 ▼
//!   alignment, segments to avoid or made to measure, oversize blocks, expandable segments: rules
//!   that few programs switch on
//! ```
//!
//! Everything here only looks; [`carve`](crate::core::arena::Arena::carve) acts. O(1), but for
//! alignments above a granule, which walk the blocks between the request's size and that size plus
//! the alignment, and for segments to avoid, which walk their larger free blocks.

use crate::config::Config;
use crate::core::arena::{Arena, Want};
use crate::core::classes::{Group, exclusive_size, split_remainder};
use crate::core::pool::Pool;
use crate::id::{BlockId, OwnerId, SegmentId};
use crate::units::{align_up, to_bytes};

impl<M> Arena<M> {
    /// The block of `pool` that the policy would use.
    #[inline]
    pub(crate) fn fit(&self, pool: usize, want: &Want, config: &Config) -> Option<BlockId> {
        let bins = &self.pools[pool].free;
        let id = bins.best_fit(&self.blocks, want.size)?;
        let ruled = want.align > 1 || !want.avoid.is_empty() || self.pools[pool].traits.exclusive;
        if ruled || config.max_split_size.is_some() || config.expandable_segments {
            return self.fit_with_rules(pool, id, want, config);
        }
        let vast = is_vast(self.blocks[id.index()].size, want.size, config);
        if vast && self.spares(pool, id) { self.spare_idle(pool, id, config) } else { Some(id) }
    }

    /// Whether a block that is much too large should stay whole: it is all of a large segment that
    /// everyone shares, and growing has not been ruled out. A private pool is there to be used up.
    fn spares(&self, pool: usize, id: BlockId) -> bool {
        let Pool { group, owner, .. } = self.pools[pool];
        let shared = group == Group::Large && owner == OwnerId::DEFAULT;
        shared && !self.may_break && self.is_whole(id)
    }

    /// Whether a free block is all of its segment.
    #[inline]
    pub(crate) fn is_whole(&self, id: BlockId) -> bool {
        let block = &self.blocks[id.index()];
        block.size == self.segments[block.segment.index()].size
    }

    /// One of the next larger blocks after `id`, if it lies in a segment that is in use anyway;
    /// else none, so that the pool grows. What lives in few segments leaves whole ones for large
    /// requests and trims (the rule of "fullest first", as in Temeraire: Hunter et al., OSDI 2021).
    #[cold]
    fn spare_idle(&self, pool: usize, id: BlockId, config: &Config) -> Option<BlockId> {
        let bins = &self.pools[pool].free;
        let larger = std::iter::successors(Some(id), |&at| bins.after(&self.blocks, at));
        let mut larger = larger.skip(1).take(config.spare_idle_count as usize);
        larger.find(|&at| !self.is_whole(at))
    }

    /// The rules that few programs switch on: alignment, segments to avoid, segments made to
    /// measure, oversize blocks, expandable segments.
    #[cold]
    fn fit_with_rules(
        &self,
        pool: usize,
        id: BlockId,
        want: &Want,
        config: &Config,
    ) -> Option<BlockId> {
        let bins = &self.pools[pool].free;
        let mut at = Some(id);
        let suits = |id: BlockId| {
            self.aligned_start(id, want).is_some() && !self.is_avoided(self.segment_of(id), want)
        };
        while let Some(id) = at.filter(|&id| !suits(id)) {
            at = bins.after(&self.blocks, id);
        }
        let mut id = at?;
        let traits = self.pools[pool].traits;
        if traits.exclusive {
            // The next class or two serve as well; what is larger waits for its own kind. No class
            // is smaller than a segment can be, or small blocks would never be used again.
            let own = align_up(exclusive_size(to_bytes(want.size)), traits.granularity);
            return Some(id).filter(|&id| to_bytes(self.blocks[id.index()].size) <= own / 8 * 9);
        }
        if config.expandable_segments && want.align <= 1 {
            // The piece that can still grow counts as large as it can become, so that smaller
            // leftovers go first (PyTorch's rule in get_free_block).
            while self.segments[self.blocks[id.index()].segment.index()].is_virtual() {
                match bins.after(&self.blocks, id) {
                    Some(next) if self.growable_size(next) < self.growable_size(id) => id = next,
                    _ => break,
                }
            }
        }
        let size = to_bytes(self.blocks[id.index()].size);
        let asked = to_bytes(want.size);
        match config.max_split_size {
            Some(max) if asked < max && size >= max => None,
            Some(max) if asked >= max && size >= asked + config.max_non_split_rounding => None,
            _ => Some(id),
        }
    }

    /// The segment that a block lies in.
    #[inline]
    fn segment_of(&self, id: BlockId) -> SegmentId {
        self.blocks[id.index()].segment
    }

    /// Whether the request must not be served from a segment of this arena.
    pub(crate) fn is_avoided(&self, segment: SegmentId, want: &Want) -> bool {
        want.avoid.contains(&(self.id, segment))
    }

    /// Size of a free block together with the unmapped range that follows it.
    fn growable_size(&self, id: BlockId) -> u64 {
        let block = &self.blocks[id.index()];
        let next = self.blocks.get(block.next.index()).filter(|next| next.is_unmapped());
        u64::from(block.size) + next.map_or(0, |next| u64::from(next.size))
    }

    /// Where in a free block the request would start, if it fits there with its alignment.
    #[inline]
    pub(crate) fn aligned_start(&self, id: BlockId, want: &Want) -> Option<u32> {
        let block = &self.blocks[id.index()];
        let start = block.offset.checked_next_multiple_of(want.align)?;
        (start.checked_add(want.size)? <= block.end()).then_some(start)
    }

    /// Granules that the request would get out of block `id`.
    #[inline]
    pub(crate) fn cut_size(&self, id: BlockId, want: &Want, config: &Config) -> u32 {
        let block = &self.blocks[id.index()];
        let segment = &self.segments[block.segment.index()];
        let pad = match want.align {
            0 | 1 => 0,
            _ => self.aligned_start(id, want).map_or(0, |start| start - block.offset),
        };
        let rest = block.size - pad - want.size;
        if block.size == segment.size && want.align <= 1 && takes_whole(rest, want.size, config) {
            return block.size;
        }
        let splits = !self.pools[segment.pool].traits.no_split
            && rest >= split_remainder(want.group, segment.is_virtual(), config)
            && (want.group == Group::Small
                || segment.is_virtual()
                || config.max_split_size.is_none_or(|max| to_bytes(want.size) < max));
        if splits { want.size } else { want.size + rest }
    }

    /// Whether handing out `cut` granules of block `id` stays within the leases of the peaks.
    #[inline]
    pub(crate) fn is_leased(&self, id: BlockId, cut: u32, want: &Want) -> bool {
        let block = &self.blocks[id.index()];
        let rest = block.size - cut;
        let left = u64::from(rest > 0) + u64::from(rest > 0 && want.align > 1);
        // A part of a segment counts as a free piece already; a whole segment does not.
        let pieces = if self.is_whole(id) { (left, rest) } else { (left.saturating_sub(1), 0) };
        self.ledger.admits(want.group, cut, want.requested, pieces)
    }
}

/// Whether a wholly idle segment of `whole` granules is much too large for a request of `size`.
#[inline]
pub(crate) fn is_vast(whole: u32, size: u32, config: &Config) -> bool {
    u64::from(size) * u64::from(config.spare_idle_ratio) <= u64::from(whole)
}

/// Whether a request of `size` granules gets all of an idle segment, of which it leaves `rest`.
#[inline]
pub(crate) fn takes_whole(rest: u32, size: u32, config: &Config) -> bool {
    u64::from(rest) * u64::from(config.whole_fit_parts) < u64::from(size)
        && to_bytes(size) >= config.large_min
}
