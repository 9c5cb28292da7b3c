//! A hit, line by line: [`Arena::take_plain`] and [`Arena::free`].
//!
//! ```text
//!  take:  one of the size that is warm ─ or best fit in the pool's bins ─▶ cut ─▶ Allocated
//!                                        no fit: Miss (the ladder)
//!  free:  Allocated ─▶ small: Warm ─ large: merge with free neighbours ─▶ Free
//!                                        used by other streams: Pending
//! ```
//!
//! Most programs configure nothing that looks at more than sizes, and most requests say nothing but
//! a size. For those the path is written out here; whatever has rules goes the long way, which is
//! built from the same pieces (`fit`, `carve`, `suspend`, `vacate`).
//!
//! **Budget.** Instructions of one pair of [`Allocator::allocate`] and drop, on one stream, by the
//! file in which they stand (x86-64, release build, counted by callgrind: repeatable to one):
//!
//! | file                            | warm, 64 KiB | cut and merged, 4 MiB | whole segment |
//! |---------------------------------|--------------|-----------------------|---------------|
//! | `hit`                           |           37 |                   117 |           109 |
//! | `warm`                          |           54 |                       |               |
//! | `bins`, `bitmap`                |              |                   184 |           107 |
//! | `arena`, `segment`, `pool`      |           29 |                   176 |           127 |
//! | `ledger`                        |           47 |                   109 |           109 |
//! | records: bounds, insert, vacate |           38 |                   156 |           110 |
//! | `id`                            |           20 |                    25 |            22 |
//! | the shell, locks, results       |          195 |                   241 |           212 |
//! | in all                          |          420 |                 1,008 |           796 |
//! | ns a pair                       |           24 |                    59 |            45 |
//!
//! [`Allocator::allocate`]: crate::Allocator::allocate
//!
//! No allocation of node memory: records come from vectors that only grow. O(1).

use std::panic::Location;

use crate::config::Config;
use crate::core::arena::{Arena, Freed, Grant, Take, Want};
use crate::core::block::{Block, Holder, Links, State};
use crate::core::classes::Group;
use crate::core::fit::{is_vast, takes_whole};
use crate::core::ledger::Entry;
use crate::core::segment::split;
use crate::id::{AllocationId, BlockId, SideId, Tag};
use crate::units::{Bytes, to_bytes, to_granules};

/// Blocks of at most so small a part of the largest small one may wait in the front cache.
const WARM_PARTS: Bytes = 8;

/// What of the configuration a hit looks at, worked out once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Bytes: up to here a request that says nothing but a size is plain; 0 if none is.
    plain_max: Bytes,
    /// Granules: the largest block of the small group.
    small_max: u32,
    /// No option is set that looks at more than the size of what is freed.
    frees_plainly: bool,
    /// Granules: the largest block that may be kept warm, or 0.
    warm_max: u32,
    /// Granules: the smallest remainder that is cut off, by group.
    remainders: [u32; 2],
}

impl Terms {
    pub(crate) fn of(config: &Config, segment_max: Bytes) -> Self {
        let frees_plainly = config.max_split_size.is_none();
        let rounds = config.roundup_power2_divisions.iter().any(|&divisions| divisions > 1);
        // Garbage collection counts searches of pools, which a plain hit does not.
        let counts = config.garbage_collection_threshold.is_some();
        let is_plain = frees_plainly && !rounds && !counts && !config.harvest_every_allocate;
        let warm_max = if config.front_cache { config.small_max / WARM_PARTS } else { 0 };
        Self {
            plain_max: if is_plain { segment_max } else { 0 },
            small_max: to_granules(config.small_max),
            frees_plainly,
            warm_max: to_granules(warm_max),
            remainders: [config.split_remainder_small, config.split_remainder_large]
                .map(to_granules),
        }
    }

    /// The request for `size` bytes, if that is plain.
    #[inline(always)]
    pub(crate) fn plain(&self, size: Bytes, location: &'static Location<'static>) -> Option<Plain> {
        // 0 is not plain: it wraps round.
        if size.wrapping_sub(1) >= self.plain_max {
            return None;
        }
        let granules = to_granules(size);
        let group = if granules <= self.small_max { Group::Small } else { Group::Large };
        Some(Plain { size: granules, group, requested: size, location, owned: Block::OWNED })
    }
}

/// A request to the default pools that says nothing but a size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain {
    /// Granules.
    size: u32,
    group: Group,
    requested: Bytes,
    location: &'static Location<'static>,
    /// [`Block::OWNED`], or 0 if the block is to be freed by id.
    owned: u32,
}

impl Plain {
    /// The same, of a block without an owner.
    #[inline(always)]
    pub(crate) fn unowned(self) -> Self {
        Self { owned: 0, ..self }
    }

    #[inline(always)]
    fn holder(self) -> Holder {
        let Self { requested, location, .. } = self;
        Holder { requested, location, tag: Tag::default(), uses: SideId::NONE }
    }
}

impl<M> Arena<M> {
    /// A block out of this arena's own default pools; anything but a grant says that nothing has
    /// changed and [`take`](Self::take) knows more. O(1).
    #[inline(always)]
    pub(crate) fn take_plain(&mut self, plain: Plain, config: &Config) -> Option<Grant> {
        let Plain { size, group, requested, owned, .. } = plain;
        let at = group as usize;
        if self.lost {
            return None;
        }
        if size <= self.terms.warm_max
            && let Some(id) = self.warm.take(at, size)
        {
            return self.take_warm(at, id, group, plain.holder(), owned);
        }
        let pool = &mut self.pools[at];
        let id = pool.free.best_fit(&self.blocks, size)?;
        let Block { size: whole, segment: segment_id, next, .. } = self.blocks[id.index()];
        let segment = &mut self.segments[segment_id.index()];
        let is_whole = whole == segment.size;
        let is_virtual = segment.is_virtual();
        // A piece of a range that can still grow has rules.
        if is_virtual && (is_whole || self.blocks.get(next.index()).is_some_and(Block::is_unmapped))
        {
            return None;
        }
        if is_whole && is_vast(whole, size, config) && group == Group::Large && !self.may_break {
            return None;
        }
        let rest = whole - size;
        let least = if is_virtual && group == Group::Large { 1 } else { self.terms.remainders[at] };
        let all = rest < least || is_whole && takes_whole(rest, size, config);
        let rest = if all { 0 } else { rest };
        // A part of a segment counts as a free piece already; a whole segment does not.
        let more = if is_whole { (u64::from(rest > 0), rest) } else { (0, 0) };
        if !self.ledger.admits(group, whole - rest, requested, more) {
            return None;
        }
        segment.busy += 1;
        let base = segment.base;
        pool.free.remove(&mut self.blocks, id);
        if is_whole {
            pool.unlink_idle(&mut self.segments, segment_id);
        }
        if rest > 0 {
            let back = split(&mut self.blocks, id, whole - rest, State::Free(Links::NONE));
            pool.free.insert(&mut self.blocks, &self.segments, back, config.tie_walk);
        }
        if !is_virtual {
            let count = i64::from(rest > 0) - i64::from(!is_whole);
            let granules = i64::from(rest) - if is_whole { 0 } else { i64::from(whole) };
            self.ledger.apply(group, Entry::Split { count, granules });
        }
        Some(self.grant(id, base, group, plain.holder(), owned))
    }

    /// A block for `want` out of this arena's own pool, if one fits. O(1), but for what has rules
    /// (see `fit`).
    pub(crate) fn take(&mut self, want: &Want, config: &Config) -> Take {
        let Some(pool) = self.pool_of(want.owner, want.group) else { return Take::Miss };
        if self.pools[pool].traits.paused {
            return Take::Miss;
        }
        self.pools[pool].searches += 1;
        let may_be_warm = want.align <= 1 && want.avoid.is_empty() && !self.lost;
        if may_be_warm && let Some(id) = self.warm.take(pool, want.size) {
            let holder = want.holder(SideId::NONE);
            let Some(grant) = self.take_warm(pool, id, want.group, holder, Block::OWNED) else {
                return Take::Unleased;
            };
            if config.max_split_size.is_some_and(|max| to_bytes(grant.size) >= max) {
                self.ledger.oversize[0].rise(1);
            }
            return Take::Granted(grant);
        }
        if let Some(id) = self.fit(pool, want, config).filter(|_| !self.lost) {
            return self.take_free(id, want, config);
        }
        if self.warm.is_empty() { Take::Miss } else { self.take_merged(pool, want, config) }
    }

    /// The last look before a miss: what is warm may fit when it has merged.
    #[cold]
    #[inline(never)]
    fn take_merged(&mut self, pool: usize, want: &Want, config: &Config) -> Take {
        self.settle_warm(config);
        if !self.ledger.splits_are_within_leases() {
            return Take::Unleased;
        }
        match self.fit(pool, want, config).filter(|_| !self.lost) {
            Some(id) => self.take_free(id, want, config),
            None => Take::Miss,
        }
    }

    /// Takes (part of) a free block, if the peaks allow it.
    fn take_free(&mut self, id: BlockId, want: &Want, config: &Config) -> Take {
        let cut = self.cut_size(id, want, config);
        if !self.ledger.sole && !self.is_leased(id, cut, want) {
            return Take::Unleased;
        }
        Take::Granted(self.carve_cut(id, cut, want, SideId::NONE, config))
    }

    /// The user lets go of a block; `None` if the id is stale, and nothing has changed. O(1).
    #[inline(always)]
    pub(crate) fn free(&mut self, id: AllocationId, config: &Config) -> Option<Freed> {
        let (id, holder) = self.live(id)?;
        let (requested, is_used) = (holder.requested, !holder.uses.is_none());
        let open = self.open;
        let block = &mut self.blocks[id.index()];
        block.tick = open;
        let size = block.size;
        if is_used || !self.terms.frees_plainly {
            self.count_oversize(size, config);
            if is_used {
                return Some(self.suspend(id, config));
            }
        }
        let entry = Entry::Return { size, requested };
        if size <= self.terms.warm_max {
            return Some(self.keep_warm(id, entry, config));
        }
        Some(self.vacate(id, entry, config))
    }

    /// A block is about to be freed that may be one of those that are counted apart.
    #[cold]
    fn count_oversize(&mut self, size: u32, config: &Config) {
        if config.max_split_size.is_some_and(|max| to_bytes(size) >= max) {
            self.ledger.oversize[0].fall(1);
        }
    }
}
