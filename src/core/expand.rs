//! Virtual memory: segments that are ranges of addresses, with pages put behind them as they are
//! needed.
//!
//! ```text
//!   range  [ Allocated |   Free   |  Unmapped  | Allocated | Free | Unmapped ……………… ]
//!                        └───── a request that fits into Free + Unmapped ─────┘
//!                                  maps only the pages that it lacks
//!
//!   recycling: pages of a hole elsewhere are taken out and put here, with no new physical memory
//! ```
//!
//! A growth claims its blocks first (state Claimed, W1 charged), then the pages are mapped with
//! nothing locked, then the claim becomes a free block that serves the request; or everything is as
//! before, less the pages of donors, which went back to the device. Pages may be taken out only
//! when the work on them is known to be complete: unmapping under a running kernel is a fault.
//!
//! The shape follows PyTorch's expandable segments (PR #96995): lowest addresses first, one page
//! size for each size group. One `set_access` for each run; recycled pages cost one unmap and one
//! map.

use crate::core::arena::{Grant, Want};
use crate::core::block::{Block, State};
use crate::core::classes::Group;
use crate::core::ledger::Entry;
use crate::core::miss::Miss;
use crate::core::pool::Pool;
use crate::core::segment::{merge_next, split, vacate};
use crate::core::state::World;
use crate::core::step::{Growth, Step};
use crate::id::{ArenaId, BlockId, SegmentId, SideId};
use crate::units::{Bytes, SEGMENT_MAX, align_down, align_up, to_bytes, to_granules};

/// Pages to be put behind addresses. Offsets and sizes in bytes.
#[derive(Debug)]
pub(crate) struct MapPlan<M> {
    /// Present until the pages are mapped.
    memory: Option<M>,
    pub(crate) page: Bytes,
    /// Runs of addresses that lack pages.
    pub(crate) runs: Vec<Run>,
    /// Pages to be taken from elsewhere; they go first, new ones make up the rest.
    pub(crate) donors: Vec<Pages<M>>,
    /// New physical memory.
    fresh: Bytes,
    arena: ArenaId,
    segment: SegmentId,
    claimed: Vec<BlockId>,
}

/// A run of pages, in bytes from the start of the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) offset: Bytes,
    pub(crate) size: Bytes,
}

/// Pages that are to be taken out.
#[derive(Debug)]
pub(crate) struct Pages<M> {
    /// Present until the pages are taken out.
    memory: Option<M>,
    pub(crate) page: Bytes,
    pub(crate) run: Run,
    arena: ArenaId,
    block: BlockId,
}

/// Pages to be taken out and given back.
#[derive(Debug)]
pub(crate) struct UnmapPlan<M> {
    pub(crate) pages: Vec<Pages<M>>,
    pub(crate) bytes: Bytes,
}

/// What a plan borrows is there as long as the caller works on it.
fn borrowed<M>(memory: &Option<M>) -> &M {
    memory.as_ref().expect("a plan keeps its memory until it is unborrowed")
}

impl<M> Pages<M> {
    pub(crate) fn memory_ref(&self) -> &M {
        borrowed(&self.memory)
    }
}

impl<M> MapPlan<M> {
    pub(crate) fn memory_ref(&self) -> &M {
        borrowed(&self.memory)
    }

    /// Lets go of the memory that the plan borrows: nothing may borrow what is handed out for
    /// release.
    pub(crate) fn unborrow(&mut self) {
        self.memory = None;
        self.donors.iter_mut().for_each(|pages| pages.memory = None);
    }
}

impl<M> UnmapPlan<M> {
    /// As [`MapPlan::unborrow`].
    pub(crate) fn unborrow(&mut self) {
        self.pages.iter_mut().for_each(|pages| pages.memory = None);
    }
}

/// A free block with whole pages in it.
#[derive(Debug, Clone, Copy)]
struct Hole {
    arena: ArenaId,
    block: BlockId,
    /// Granules: first page to end of the last page.
    start: u32,
    end: u32,
}

/// The whole pages of a block, in granules.
fn whole_pages(block: &Block, page: u32) -> Option<(u32, u32)> {
    let start = block.offset.checked_next_multiple_of(page)?;
    let end = block.end() - block.end() % page;
    (start < end).then_some((start, end))
}

impl<M: Clone, E: Clone> World<'_, M, E> {
    fn page_size(&self, group: Group) -> Bytes {
        let page = match group {
            Group::Small => self.config.small_segment,
            Group::Large => self.config.large_segment,
        };
        align_up(page, self.device.granularity)
    }

    /// Grows by pages; `None` if there is no room.
    pub(crate) fn grow_virtual(&mut self, miss: &mut Miss) -> Option<Step<M, E>> {
        let want = miss.want;
        let pool = self.pool(miss.arena, want.owner, want.group);
        let needed = want.size.checked_add(want.align - 1)?;
        let Some((segment, start)) = self.arena(miss.arena).growable_place(pool, needed, &want)
        else {
            return self.grow_range(miss);
        };
        let page = to_granules(self.page_size(want.group));
        let (claimed, runs) = self.arena(miss.arena).claim(start, needed, page);
        let lacking: Bytes = runs.iter().map(|run| run.size).sum();
        let donors = self.find_donors(miss, lacking, page);
        let given: Bytes = donors.iter().map(|pages| pages.run.size).sum();
        let memory = self.arena(miss.arena).segments[segment.index()].memory.clone();
        let mut plan = MapPlan {
            memory: Some(memory),
            page: to_bytes(page),
            runs,
            donors,
            fresh: lacking - given,
            arena: miss.arena,
            segment,
            claimed,
        };
        // PyTorch checks the limit with the size that a fixed segment would have.
        let checked = match self.config.exact_growth {
            true => plan.fresh,
            false => crate::core::classes::segment_size(to_bytes(want.size), self.config),
        };
        let has_room = self.global.has_room(checked);
        self.global.charge(plan.fresh);
        if !has_room {
            let pages = std::mem::take(&mut plan.donors);
            self.commit_map(miss, plan, Err(None));
            miss.limit();
            if pages.is_empty() {
                return None;
            }
            self.global.in_flight += 1;
            return Some(Step::Unmap(UnmapPlan { pages, bytes: given }));
        }
        Some(Step::Map(plan))
    }

    /// The size of a range for `want`: room for the whole device and some, as in PyTorch. `None` if
    /// there is no virtual memory, or no range is large enough.
    pub(crate) fn range_size(&self, want: &Want) -> Option<Bytes> {
        if !self.config.expandable_segments || !self.device.virtual_memory {
            return None;
        }
        let page = self.page_size(want.group);
        let limit = align_down(self.device.segment_max.min(SEGMENT_MAX), page);
        let liked =
            self.device.total.map_or(limit, |total| align_up((total / 8).saturating_mul(9), page));
        let needed = align_up(to_bytes(want.size) + to_bytes(want.align), page);
        (needed <= limit).then(|| liked.max(needed).min(limit))
    }

    /// A new range of addresses.
    fn grow_range(&mut self, miss: &mut Miss) -> Option<Step<M, E>> {
        let size = self.range_size(&miss.want)?;
        miss.stay();
        self.global.begin_growth();
        let (owner, group) = (miss.want.owner, miss.want.group);
        let kind = self.global.owners[owner.index()].traits.kind;
        Some(Step::Range(Growth { arena: miss.arena, owner, group, size, kind }))
    }

    /// The range has come, or not.
    pub(crate) fn commit_range(
        &mut self,
        miss: &mut Miss,
        growth: Growth,
        memory: Option<(M, u64)>,
    ) {
        self.global.end_growth();
        let Some((memory, base)) = memory else {
            // A segment needs no range: the same rung tries that.
            miss.no_range = true;
            return;
        };
        let page = to_granules(self.page_size(growth.group));
        let pool = self.pool(growth.arena, growth.owner, growth.group);
        let size = (to_granules(growth.size), page);
        let id = self.insert_segment(growth.arena, pool, size, memory, base);
        let segment = &mut self.arena(growth.arena).segments[id.index()];
        segment.holes.push(segment.first);
    }

    /// Pages of holes elsewhere, largest holes first, for what the limit or the headroom does not
    /// allow to be new.
    fn find_donors(&mut self, miss: &Miss, lacking: Bytes, page: u32) -> Vec<Pages<M>> {
        if !self.config.page_recycling {
            return Vec::new();
        }
        let ceiling = self.headroom_target(&miss.want).unwrap_or(Bytes::MAX);
        let ceiling = ceiling.min(self.global.limit.unwrap_or(Bytes::MAX));
        let over = (self.global.reserved + lacking).saturating_sub(ceiling);
        let wanted = align_up(over, to_bytes(page)).min(lacking);
        let group = miss.want.group;
        let trim_private = self.config.trim_private_pools;
        let donates = |pool: &Pool| {
            pool.group == group && crate::core::trim::is_trimmable(pool, trim_private)
        };
        self.take_holes(wanted, donates)
    }

    /// Takes whole pages worth at most `budget` bytes out of holes on which no work runs.
    fn take_holes(&mut self, budget: Bytes, from: impl Fn(&Pool) -> bool) -> Vec<Pages<M>> {
        let mut taken = Vec::new();
        let mut left = budget;
        for hole in self.holes(from) {
            let block = &self.arenas[hole.arena.index()].blocks[hole.block.index()];
            let done = self.is_completed(&self.point(hole.arena, block.tick));
            let page = self.arenas[hole.arena.index()].segments[block.segment.index()].page;
            // What is left may exceed what granules of one segment can count.
            let room = to_granules(align_down(left.min(SEGMENT_MAX), to_bytes(page)));
            let size = (hole.end - hole.start).min(room);
            if done && size > 0 {
                taken.push(self.take_pages(Hole { end: hole.start + size, ..hole }));
                left -= to_bytes(size);
            }
        }
        taken
    }

    /// Free blocks with whole pages, largest first; none of streams under capture.
    fn holes(&self, from: impl Fn(&Pool) -> bool) -> Vec<Hole> {
        let mut holes = Vec::new();
        for (index, arena) in self.arenas.iter().enumerate() {
            let id = ArenaId::from_index(index);
            if self.global.is_apart(id) {
                continue;
            }
            for pool in arena.pools.iter().filter(|pool| from(pool)) {
                let page = to_granules(self.page_size(pool.group));
                let first = pool.free.best_fit(&arena.blocks, page);
                let large = std::iter::successors(first, |&at| pool.free.after(&arena.blocks, at));
                holes.extend(large.filter_map(|at| {
                    let block = &arena.blocks[at.index()];
                    let segment = &arena.segments[block.segment.index()];
                    let (start, end) =
                        whole_pages(block, segment.page.max(1)).filter(|_| segment.is_virtual())?;
                    Some(Hole { arena: id, block: at, start, end })
                }));
            }
        }
        holes.sort_by_key(|hole| std::cmp::Reverse(hole.end - hole.start));
        holes
    }

    /// Cuts pages out of a free block; they are claimed until [`Self::forget_pages`].
    fn take_pages(&mut self, hole: Hole) -> Pages<M> {
        let config = self.config;
        let arena = &mut *self.arenas[hole.arena.index()];
        let segment_id = arena.blocks[hole.block.index()].segment;
        let pool = arena.segments[segment_id.index()].pool;
        arena.pools[pool].free.remove(&mut arena.blocks, hole.block);
        arena.blocks[hole.block.index()].state = State::Claimed { mapped: false };
        let mut middle = hole.block;
        let front = hole.start - arena.blocks[middle.index()].offset;
        if front > 0 {
            let state = State::Claimed { mapped: false };
            middle = split(&mut arena.blocks, hole.block, front, state);
            arena.make_free(hole.block, config);
        }
        let size = hole.end - hole.start;
        if arena.blocks[middle.index()].size > size {
            let state = State::Claimed { mapped: false };
            let back = split(&mut arena.blocks, middle, size, state);
            arena.make_free(back, config);
        }
        let segment = &mut arena.segments[segment_id.index()];
        segment.busy += 1;
        segment.mapped -= size;
        let (page, memory) = (to_bytes(segment.page), segment.memory.clone());
        let (group, owner) = (arena.pools[pool].group, arena.pools[pool].owner);
        arena.ledger.apply(group, Entry::Unmap { size });
        self.global.owners[owner.index()].book_reserved(group, -(to_bytes(size) as i64));
        let run = Run { offset: to_bytes(hole.start), size: to_bytes(size) };
        Pages { memory: Some(memory), page, run, arena: hole.arena, block: middle }
    }

    /// The pages are mapped, or everything is as before, less the donors' pages.
    pub(crate) fn commit_map(
        &mut self,
        miss: &mut Miss,
        plan: MapPlan<M>,
        outcome: Result<(), Option<Bytes>>,
    ) -> Option<Grant> {
        self.global.end_growth();
        let given: Bytes = plan.donors.iter().map(|pages| pages.run.size).sum();
        let donors = plan.donors.len() as u64;
        for pages in plan.donors {
            self.forget_pages(pages);
        }
        if let Err(device_free) = outcome {
            self.global.reserved -= plan.fresh + given;
            self.global.counts.device_free += donors;
            self.global.refusals += 1;
            miss.own_refusal();
            if given > 0 {
                self.global.returns += 1;
                miss.own_return();
            }
            self.unclaim(plan.arena, &plan.claimed);
            miss.refuse(device_free);
            return None;
        }
        // Recycled pages neither came from the device nor went back to it.
        self.global.counts.device_alloc += if plan.fresh > 0 { plan.runs.len() as u64 } else { 0 };
        let (owner, group) = (miss.want.owner, miss.want.group);
        let config = self.config;
        let mapped: Bytes = plan.runs.iter().map(|run| run.size).sum();
        self.global.owners[owner.index()].book_reserved(group, mapped as i64);
        let arena = &mut *self.arenas[plan.arena.index()];
        arena.ledger.apply(group, Entry::Map { size: to_granules(mapped) });
        let segment = &mut arena.segments[plan.segment.index()];
        segment.mapped += to_granules(mapped);
        segment.busy -= plan.claimed.len() as u32;
        for _ in 1..plan.claimed.len() {
            merge_next(&mut arena.blocks, plan.claimed[0]);
        }
        let block = arena.make_free(plan.claimed[0], config);
        let grant = arena.carve(block, &miss.want, SideId::NONE, config);
        Some(grant)
    }

    /// Gives claimed blocks back to what they were.
    fn unclaim(&mut self, arena: ArenaId, claimed: &[BlockId]) {
        let config = self.config;
        let arena = &mut *self.arenas[arena.index()];
        for &block in claimed {
            let segment = arena.blocks[block.index()].segment;
            if arena.blocks[block.index()].is_mapped() {
                arena.segments[segment.index()].busy -= 1;
                arena.make_free(block, config);
            } else {
                arena.make_unmapped(block);
            }
        }
    }

    fn forget_pages(&mut self, pages: Pages<M>) {
        self.arena(pages.arena).make_unmapped(pages.block);
    }

    /// What a trim takes out: whole free pages, at most `budget` bytes.
    pub(crate) fn plan_unmap(
        &mut self,
        budget: Bytes,
        from: impl Fn(&Pool) -> bool,
    ) -> Option<UnmapPlan<M>> {
        let pages = self.take_holes(budget, from);
        if pages.is_empty() {
            return None;
        }
        self.global.in_flight += 1;
        let bytes = pages.iter().map(|pages| pages.run.size).sum();
        Some(UnmapPlan { pages, bytes })
    }

    /// The pages are given back.
    pub(crate) fn commit_unmap(&mut self, plan: UnmapPlan<M>) {
        self.global.in_flight -= 1;
        self.global.reserved -= plan.bytes;
        self.global.returns += 1;
        self.global.counts.device_free += plan.pages.len() as u64;
        for pages in plan.pages {
            self.forget_pages(pages);
        }
    }

    /// The newest tick of a stream's own work on pages that could go.
    pub(crate) fn newest_page_use(
        &self,
        stream: ArenaId,
        from: impl Fn(&Pool) -> bool,
    ) -> Option<u64> {
        let holes = self.holes(from).into_iter().filter(|hole| hole.arena == stream);
        let arena = &self.arenas[stream.index()];
        let tick = holes.map(|hole| arena.blocks[hole.block.index()].tick).max()?;
        Some(self.point(stream, tick).tick)
    }

    /// Takes ranges without pages out of the books; their memory is the caller's to give back.
    pub(crate) fn detach_ranges(&mut self, from: impl Fn(&Pool) -> bool) -> Vec<M> {
        let mut memories = Vec::new();
        for arena in &mut self.arenas {
            let pools = &arena.pools;
            let empty = |id: usize| {
                let segment = &arena.segments[id];
                segment.is_virtual()
                    && segment.mapped == 0
                    && segment.busy == 0
                    && from(&pools[segment.pool])
            };
            let ids: Vec<usize> =
                arena.segments.iter().map(|entry| entry.0).filter(|&id| empty(id)).collect();
            for id in ids {
                let segment = arena.segments.remove(id);
                vacate(&mut arena.blocks, segment.first);
                memories.push(segment.memory);
            }
        }
        memories
    }
}
