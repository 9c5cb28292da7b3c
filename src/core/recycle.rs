//! Holes: which free pages can be taken out, and taking them.
//!
//! ```text
//!   free block    [ · · |  chunk  | chunk |  chunk  | · ]    whole chunks can go, their rests not
//!   work on it    ──────────── done? ────────────▶ now       not before the device is done with it
//! ```
//!
//! Two want pages: a growth that would push what is reserved above its target, and takes them from
//! elsewhere instead; and a trim, which gives them back. Both take the largest holes first: large
//! chunks, few calls.
//!
//! Pages may be taken out only when the work on them is known to be complete, for unmapping under a
//! running kernel is a fault. A growth does not wait for that. It has an event recorded where none
//! covers the last work on holes that it could use, asks once what is complete, and takes what it
//! may: on a device that is behind these are the holes that were asked about some misses ago. What
//! others use and free meanwhile is passed over, or it would be followed for ever.
//!
//! O(free blocks of at least a page) for each growth above the target, and for each trim.

use crate::core::arena::Want;
use crate::core::block::State;
use crate::core::chunks::Chunk;
use crate::core::expand::{Pages, UnmapPlan};
use crate::core::harvest::Event;
use crate::core::ledger::Entry;
use crate::core::lifetime::Mark;
use crate::core::miss::Miss;
use crate::core::note::Noted;
use crate::core::pages::Place;
use crate::core::pause::{Presence, away};
use crate::core::pool::Pool;
use crate::core::segment::split;
use crate::core::state::World;
use crate::core::step::Step;
use crate::core::trim::is_trimmable;
use crate::id::{ArenaId, BlockId, OwnerId};
use crate::units::{Bytes, to_bytes, to_granules};

/// A free block with whole chunks in it.
#[derive(Debug, Clone, Copy)]
struct Hole {
    arena: ArenaId,
    block: BlockId,
    /// Granules: where the first chunk begins and the last one ends.
    start: u32,
    end: u32,
}

/// How much is to be taken.
#[derive(Debug, Clone, Copy)]
enum Amount {
    AtMost(Bytes),
    AtLeast(Bytes),
}

impl Amount {
    /// Which of the chunks are taken: the first that is not too large, and those that follow it;
    /// what is left to be taken after them.
    fn of(self, chunks: &[Chunk]) -> (&[Chunk], Self) {
        let is_too_large =
            |chunk: &Chunk| matches!(self, Amount::AtMost(left) if to_bytes(chunk.size) > left);
        let chunks = &chunks[chunks.iter().take_while(|chunk| is_too_large(chunk)).count()..];
        let mut count = 0;
        let mut amount = self;
        for chunk in chunks {
            let size = to_bytes(chunk.size);
            amount = match amount {
                Amount::AtMost(left) if size <= left => Amount::AtMost(left - size),
                Amount::AtLeast(left) if left > 0 => Amount::AtLeast(left.saturating_sub(size)),
                _ => break,
            };
            count += 1;
        }
        (&chunks[..count], amount)
    }
}

impl<M: Clone, E: Clone> World<'_, M, E> {
    /// A record, or a poll, towards knowing `wanted` bytes of holes complete; `None` when they are,
    /// or no more can be learned now. `needed` granules from `place` on are the growth's own.
    pub(super) fn learn_holes(
        &mut self,
        miss: &mut Miss,
        (place, needed): (Place, u32),
        wanted: Bytes,
    ) -> Option<Step<M, E>> {
        if wanted == 0 || !self.config.page_recycling {
            return None;
        }
        self.set_out(&mut miss.polled_holes);
        let mut found = 0;
        let mut unknown = false;
        let mut holes = self.donor_holes(&miss.want, wanted);
        // What the growth itself will cover is no donor.
        let own = self.arena(miss.arena).run_blocks(place.start, needed);
        holes.retain(|hole| hole.arena != miss.arena || !own.contains(&hole.block));
        for hole in holes.iter().filter(|hole| self.is_done(hole)) {
            found += to_bytes(hole.end - hole.start);
        }
        for hole in holes {
            if found >= wanted {
                break;
            }
            if self.is_done(&hole) {
                continue;
            }
            let Mark { stream, tick } = self.last_use(hole.arena, hole.block);
            if !miss.polled_holes.reaches(stream, tick) {
                continue;
            }
            if let Event::ToRecord(tick) = self.event_for(stream, tick) {
                return Some(Step::Record { stream, tick });
            }
            unknown = true;
            found += to_bytes(hole.end - hole.start);
        }
        if unknown { self.poll(&mut miss.polled_holes) } else { None }
    }

    /// Pages of holes elsewhere, for `wanted` bytes that should not be new.
    pub(super) fn find_donors(&mut self, want: &Want, wanted: Bytes) -> Vec<Pages<M>> {
        if wanted == 0 || !self.config.page_recycling {
            return Vec::new();
        }
        let holes = self.donor_holes(want, wanted);
        self.take_holes(holes, Amount::AtLeast(wanted))
    }

    /// Holes that may give pages to a growth. What users keep in private pools, primed perhaps, is
    /// not in the way of others' growth, unless the limit is.
    fn donor_holes(&self, want: &Want, wanted: Bytes) -> Vec<Hole> {
        let trim_private = self.config.trim_private_pools;
        let mixes = self.config.chunk_share != 0.0;
        let pressed = !self.global.has_room(wanted);
        self.holes(|pool| {
            let open = pool.owner == OwnerId::DEFAULT || pool.traits.released;
            (mixes || pool.group == want.group)
                && (open || pressed)
                && is_trimmable(pool, trim_private)
        })
    }

    /// What a trim takes out: whole free chunks, at most `budget` bytes.
    pub(crate) fn plan_unmap(
        &mut self,
        budget: Bytes,
        from: impl Fn(&Pool) -> bool,
    ) -> Option<UnmapPlan<M>> {
        let holes = self.holes(from);
        let pages = self.take_holes(holes, Amount::AtMost(budget));
        self.unmap_step(pages)
    }

    /// Has pages, if there are any, given back.
    pub(super) fn unmap_step(&mut self, pages: Vec<Pages<M>>) -> Option<UnmapPlan<M>> {
        if pages.is_empty() {
            return None;
        }
        self.global.in_flight += 1;
        let bytes = pages.iter().map(Pages::bytes).sum();
        Some(UnmapPlan { pages, bytes })
    }

    /// Takes chunks out of holes on which no work runs.
    fn take_holes(&mut self, holes: Vec<Hole>, amount: Amount) -> Vec<Pages<M>> {
        let mut taken = Vec::new();
        let mut amount = amount;
        for hole in holes {
            if !self.is_done(&hole) {
                continue;
            }
            let arena = &self.arenas[hole.arena.index()];
            let segment = &arena.segments[arena.blocks[hole.block.index()].segment.index()];
            let chunks = segment.chunks.within(hole.start, hole.end);
            let (chunks, left) = amount.of(chunks);
            amount = left;
            if let (Some(first), Some(last)) = (chunks.first(), chunks.last()) {
                let (start, end) = (first.start, last.end());
                taken.push(self.take_pages(Hole { start, end, ..hole }));
            }
        }
        taken
    }

    fn is_done(&self, hole: &Hole) -> bool {
        self.is_completed(&self.last_use(hole.arena, hole.block))
    }

    /// Free blocks with whole chunks, largest first; none of streams under capture, nor of a pool
    /// on its way to or from a pause: its contents are being copied.
    fn holes(&self, from: impl Fn(&Pool) -> bool) -> Vec<Hole> {
        let mut holes = Vec::new();
        for (index, arena) in self.arenas.iter().enumerate() {
            let id = ArenaId::from_index(index);
            if self.global.is_apart(id) {
                continue;
            }
            for pool in arena.pools.iter().filter(|pool| from(pool) && !pool.traits.paused) {
                // No chunk is smaller than a page.
                let page = to_granules(self.page_size(pool.group));
                let first = pool.free.best_fit(&arena.blocks, page);
                let larger = std::iter::successors(first, |&at| pool.free.after(&arena.blocks, at));
                holes.extend(larger.filter_map(|at| {
                    let block = &arena.blocks[at.index()];
                    let segment = &arena.segments[block.segment.index()];
                    if segment.presence != Presence::Here {
                        return None;
                    }
                    let chunks = segment.chunks.within(block.offset, block.end());
                    let (start, end) = (chunks.first()?.start, chunks.last()?.end());
                    Some(Hole { arena: id, block: at, start, end })
                }));
            }
        }
        holes.sort_by_key(|hole| std::cmp::Reverse(hole.end - hole.start));
        holes
    }

    /// Cuts chunks out of a free block; they are claimed until [`Self::forget_pages`].
    fn take_pages(&mut self, hole: Hole) -> Pages<M> {
        let config = self.config;
        let segment_id = self.arenas[hole.arena.index()].blocks[hole.block.index()].segment;
        let run = (hole.start, hole.end - hole.start);
        self.note_range(Noted::PagesWent, hole.arena, segment_id.index(), run);
        let arena = &mut *self.arenas[hole.arena.index()];
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
        let memory = segment.memory.clone();
        let chunks = segment.chunks.take(hole.start, hole.end);
        let (group, owner) = (arena.pools[pool].group, arena.pools[pool].owner);
        arena.ledger.apply(group, Entry::Unmap { size });
        self.global.owners[owner.index()].book_reserved(group, -(to_bytes(size) as i64));
        Pages { memory: Some(memory), chunks, arena: hole.arena, block: middle }
    }

    /// The pages are gone: the block that was theirs has nothing behind it.
    pub(super) fn forget_pages(&mut self, pages: Pages<M>) {
        self.arena(pages.arena).make_unmapped(pages.block);
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
                    && segment.presence != Presence::Moving
                    && from(&pools[segment.pool])
            };
            let ids: Vec<usize> =
                arena.segments.iter().map(|entry| entry.0).filter(|&id| empty(id)).collect();
            for id in ids {
                let owner = arena.pools[arena.segments[id].pool].owner;
                self.global.owners[owner.index()].away -= to_bytes(away(&arena.segments[id]));
                memories.push(arena.remove_range(id));
            }
        }
        memories
    }
}
