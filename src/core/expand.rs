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
//! How much may be mapped follows the program closely, since pages can be moved where segments can
//! only be given back whole: a growth that would push reserved above (1 + `page_headroom`) times
//! the high-water mark takes the pages of holes elsewhere (see `recycle`).
//!
//! What it costs, in backend calls: a growth of `n` chunks 2n (create, map), and one `set_access`
//! for each run of addresses; a recycled chunk two (unmap, map) and now and then an event that
//! tells that the work on it is done. So chunks are as large as they can be and still be moved: a
//! chunk that is half in use strands the other half. With chunks of 1/2048 of the high-water mark
//! 21 traces need 0.8 % more than what is live, with chunks of 1/500 1.1 % and half of the calls.
//!
//! The shape follows PyTorch's expandable segments (PR #96995): lowest addresses first. With the
//! torch preset chunks are its pages, one size for each size group, and nothing moves.

use crate::core::arena::{Grant, Want};
use crate::core::chunks::{self, Chunk, Piece, Run};
use crate::core::classes::{self, Group};
use crate::core::ledger::Entry;
use crate::core::miss::Miss;
use crate::core::note::Noted;
use crate::core::segment::merge_next;
use crate::core::state::World;
use crate::core::step::{Growth, Step};
use crate::id::{ArenaId, BlockId, SegmentId, SideId};
use crate::units::{Bytes, SEGMENT_MAX, align_down, align_up, to_bytes, to_granules};

/// A growth brings so many chunks, if it may: 1/256 of the high-water mark by default.
const GROWTH_CHUNKS: Bytes = 8;

/// A run of addresses takes about so many chunks at most, however small those of the program are:
/// what begins with large requests that stay would come in thousands.
const RUN_CHUNKS: Bytes = 32;

/// Pages to be put behind addresses. Offsets and sizes in bytes.
#[derive(Debug)]
pub(crate) struct MapPlan<M> {
    /// Present until the pages are mapped.
    memory: Option<M>,
    /// Runs of addresses that lack pages.
    pub(crate) runs: Vec<Run>,
    /// The chunks that fill the runs, in order.
    pub(crate) pieces: Vec<Piece>,
    /// Pages to be taken from elsewhere; what no piece uses is given back before new ones come.
    pub(crate) donors: Vec<Pages<M>>,
    /// What W1 counts until the pages are mapped: what comes beyond what donors give.
    charged: Bytes,
    /// More is to be mapped than is needed: without that it may not be refused.
    is_ambitious: bool,
    arena: ArenaId,
    segment: SegmentId,
    claimed: Vec<BlockId>,
}

/// Pages that are to be taken out.
#[derive(Debug)]
pub(crate) struct Pages<M> {
    /// Present until the pages are taken out.
    pub(super) memory: Option<M>,
    pub(crate) chunks: Vec<Chunk>,
    pub(super) arena: ArenaId,
    pub(super) block: BlockId,
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
    pub(super) fn bytes(&self) -> Bytes {
        self.chunks.iter().map(|chunk| to_bytes(chunk.size)).sum()
    }

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

impl<M: Clone, E: Clone> World<'_, M, E> {
    /// Bytes of which the chunks of a new range are made.
    pub(super) fn page_size(&self, group: Group) -> Bytes {
        let page = match group {
            Group::Large if self.config.chunk_share == 0.0 => self.config.large_segment,
            _ => self.config.small_segment,
        };
        align_up(page, self.device.granularity)
    }

    /// What may be reserved by pages while `want` is served.
    fn page_target(&self, want: &Want) -> Bytes {
        let target = match self.config.page_headroom {
            Some(headroom) => {
                let high_water = self.high_water(want);
                Some(high_water.saturating_add((high_water as f64 * headroom) as Bytes))
            }
            None => self.headroom_target(want),
        };
        target.unwrap_or(Bytes::MAX).min(self.global.limit.unwrap_or(Bytes::MAX))
    }

    /// The largest chunk that is made where `run` bytes lack pages.
    fn chunk_max(&self, want: &Want, run: Bytes) -> Bytes {
        let page = self.page_size(want.group);
        if self.config.chunk_share == 0.0 {
            return page;
        }
        let share = (self.high_water(want) as f64 * self.config.chunk_share) as Bytes;
        align_down(share, page).max(align_up(run / RUN_CHUNKS, page)).max(page)
    }

    /// How much a growth brings at least, where that is within the target: small ones come many at
    /// a time.
    fn growth_size(&self, want: &Want) -> Bytes {
        let no_split = self.global.owners[want.owner.index()].traits.no_split;
        match want.group {
            Group::Large if !no_split => {
                let share = self.high_water(want) as f64 * self.config.chunk_share;
                (share as Bytes).saturating_mul(GROWTH_CHUNKS)
            }
            _ => 0,
        }
    }

    /// Grows by pages; `None` if there is no room.
    pub(crate) fn grow_virtual(&mut self, miss: &mut Miss) -> Option<Step<M, E>> {
        let want = miss.want;
        let pool = self.pool(miss.arena, want.owner, want.group);
        let needed = want.size.checked_add(want.align - 1)?;
        let Some(place) = self.arena(miss.arena).growable_place(pool, needed, &want) else {
            return self.grow_range(miss);
        };
        let arena = &self.arenas[miss.arena.index()];
        let page = arena.segments[place.segment.index()].page;
        let lacking = arena.lacking(place.start, needed, page);
        let room = self.page_target(&want).saturating_sub(self.global.reserved);
        let over = lacking.saturating_sub(room);
        if let Some(step) = self.learn_holes(miss, (place, needed), over) {
            miss.stay();
            return Some(step);
        }
        let liked = if miss.modest { 0 } else { self.growth_size(&want) };
        let more = liked.min(room).saturating_sub(lacking);
        let more = to_granules(align_down(more.min(SEGMENT_MAX), to_bytes(page)));
        let roomy = needed.saturating_add(more);
        let arena = self.arena(miss.arena);
        let is_ambitious = roomy > needed && arena.has_run(place.start, roomy);
        let needed = if is_ambitious { roomy } else { needed };
        let (claimed, runs) = arena.claim(place.start, needed, page);
        let mut plan = self.plan_map(miss, place.segment, (claimed, runs), over);
        plan.is_ambitious = is_ambitious;
        self.check_room(miss, plan)
    }

    /// What fills the runs of a claim; `over` bytes of it should come from elsewhere.
    fn plan_map(
        &mut self,
        miss: &Miss,
        segment: SegmentId,
        (claimed, runs): (Vec<BlockId>, Vec<Run>),
        over: Bytes,
    ) -> MapPlan<M> {
        let donors = self.find_donors(&miss.want, over);
        let lacking: Bytes = runs.iter().map(|run| run.size).sum();
        let given: Bytes = donors.iter().map(Pages::bytes).sum();
        let taken: Vec<Chunk> = donors.iter().flat_map(|pages| &pages.chunks).copied().collect();
        let largest = runs.iter().map(|run| run.size).max().unwrap_or(0);
        let fresh_max = self.chunk_max(&miss.want, largest);
        let pieces = chunks::cut(&runs, &taken, fresh_max);
        let memory = self.arena(miss.arena).segments[segment.index()].memory.clone();
        MapPlan {
            memory: Some(memory),
            runs,
            pieces,
            donors,
            charged: lacking.saturating_sub(given),
            is_ambitious: false,
            arena: miss.arena,
            segment,
            claimed,
        }
    }

    /// Charges a plan, or, where the limit has no room for it, gives back what it took.
    fn check_room(&mut self, miss: &mut Miss, mut plan: MapPlan<M>) -> Option<Step<M, E>> {
        // PyTorch checks the limit with the size that a fixed segment would have.
        let checked = match self.config.exact_growth {
            true => plan.charged,
            false => classes::segment_size(to_bytes(miss.want.size), self.config),
        };
        let has_room = self.global.has_room(checked);
        self.global.charge(plan.charged);
        if has_room {
            return Some(Step::Map(plan));
        }
        let pages = std::mem::take(&mut plan.donors);
        self.commit_map(miss, plan, Err(None));
        miss.limit();
        self.unmap_step(pages).map(Step::Unmap)
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

    /// The pages are mapped, or everything is as before, less the donors' pages.
    pub(crate) fn commit_map(
        &mut self,
        miss: &mut Miss,
        plan: MapPlan<M>,
        outcome: Result<(), Option<Bytes>>,
    ) -> Option<Grant> {
        self.global.end_growth();
        let given: Bytes = plan.donors.iter().map(Pages::bytes).sum();
        let donors = plan.donors.len() as u64;
        for pages in plan.donors {
            self.forget_pages(pages);
        }
        if let Err(device_free) = outcome {
            self.global.reserved -= plan.charged + given;
            self.global.counts.device_free += donors;
            self.global.refusals += 1;
            miss.own_refusal();
            if given > 0 {
                self.global.returns += 1;
                miss.own_return();
            }
            self.unclaim(plan.arena, &plan.claimed);
            if plan.is_ambitious {
                miss.ask_for_less();
            } else {
                miss.refuse(device_free);
            }
            return None;
        }
        // Recycled pages neither came from the device nor went back to it.
        let is_fresh = plan.pieces.iter().any(|piece| piece.taken.is_none());
        self.global.counts.device_alloc += if is_fresh { plan.runs.len() as u64 } else { 0 };
        let (owner, group) = (miss.want.owner, miss.want.group);
        let config = self.config;
        let mapped: Bytes = plan.runs.iter().map(|run| run.size).sum();
        // Donors may give more than is lacking.
        self.global.returns += u64::from(given > mapped);
        self.global.reserved = self.global.reserved - plan.charged - given + mapped;
        self.global.owners[owner.index()].book_reserved(group, mapped as i64);
        for run in &plan.runs {
            let run = (to_granules(run.offset), to_granules(run.size));
            self.note_range(Noted::PagesCame, plan.arena, plan.segment.index(), run);
        }
        let arena = &mut *self.arenas[plan.arena.index()];
        arena.ledger.apply(group, Entry::Map { size: to_granules(mapped) });
        let segment = &mut arena.segments[plan.segment.index()];
        segment.mapped += to_granules(mapped);
        plan.pieces.iter().for_each(|piece| segment.chunks.insert(piece.chunk()));
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
}
