//! Giving memory back: which segments and pages, in what order, and why.
//!
//! Only whole things go: a fixed segment without a live block, a page of a virtual segment without
//! a live byte. Victims are taken coldest first: every pool keeps its idle segments in the order in
//! which they became idle, and pools are merged by the count of misses at that moment.
//!
//! | why                      | when                  | how much                                  |
//! |--------------------------|-----------------------|-------------------------------------------|
//! | headroom                 | a miss is to grow     | until reserved ≤ (1 + h) · peak of active |
//! | garbage collection       | a miss is to grow     | old segments, above a threshold           |
//! | age                      | `maintain`, refusal   | what has been idle for longer             |
//! | missing                  | refusal               | what the growth lacks                     |
//! | `empty_cache`, `trim_to` | the user, last resort | everything; down to a floor               |
//!
//! Never touched: what a recording that is not submitted may use; pools that a capture went
//! through, while they live; with the torch preset, any private pool while it lives.
//! [`World::releasable`] walks all segments; the rest costs O(pools + victims).

use crate::core::arena::Arena;
use crate::core::block::{Block, State};
use crate::core::classes::Group;
use crate::core::harvest::Event;
use crate::core::ledger::Gauge;
use crate::core::lifetime::Mark;
use crate::core::miss::Miss;
use crate::core::pause::Presence;
use crate::core::pool::{Pool, idle_segments};
use crate::core::segment::Segment;
use crate::core::state::World;
use crate::core::step::Step;
use crate::id::{ArenaId, OwnerId, SegmentId};
use crate::units::{Bytes, to_bytes};

/// Giving back all that can be given back, down to a floor.
#[derive(Debug)]
pub(crate) struct Trim {
    /// Keep at least this many bytes reserved.
    floor: Bytes,
    scope: Scope,
    stage: Stage,
    /// How far each stream was when the trim began: what others do meanwhile is not waited for.
    until: Vec<u64>,
    /// Bytes on their way back so far.
    pub(crate) returned: Bytes,
}

/// Which pools a trim may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    All,
    Owner(OwnerId),
    /// One owner whose last handle is gone, unless another took its number over meanwhile.
    Gone(OwnerId),
    /// Private pools whose last handle is gone.
    Released,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// What is idle already, if a floor may make waiting needless.
    Idle,
    /// Wait for pending blocks.
    Pending,
    /// All idle segments.
    Segments,
    /// Wait for streams whose pages are to go.
    PageUse,
    /// Free pages.
    Pages,
    /// Ranges without pages.
    Ranges,
    Done,
}

impl Trim {
    /// Everything, down to a floor.
    pub(crate) fn all(floor: Bytes) -> Self {
        let stage = if floor == 0 { Stage::Pending } else { Stage::Idle };
        Self::new(floor, Scope::All, stage)
    }

    /// The pools of one owner.
    pub(crate) fn of(owner: OwnerId) -> Self {
        Self::new(0, Scope::Owner(owner), Stage::Pending)
    }

    /// The pools of an owner whose last handle is gone.
    pub(crate) fn of_gone(owner: OwnerId) -> Self {
        Self::new(0, Scope::Gone(owner), Stage::Pending)
    }

    /// What released private pools left: follows a free. Waits only for work on pages that are to
    /// go.
    pub(crate) fn released() -> Self {
        Self::new(0, Scope::Released, Stage::Segments)
    }

    fn new(floor: Bytes, scope: Scope, stage: Stage) -> Self {
        Self { floor, scope, stage, until: Vec::new(), returned: 0 }
    }

    fn includes(&self, pool: &Pool, trim_private: bool) -> bool {
        is_trimmable(pool, trim_private)
            && match self.scope {
                Scope::All => true,
                Scope::Owner(owner) => owner == pool.owner,
                Scope::Gone(owner) => owner == pool.owner && pool.traits.released,
                Scope::Released => pool.traits.released,
            }
    }
}

/// Whether what is free in a pool may go.
pub(crate) fn is_trimmable(pool: &Pool, trim_private: bool) -> bool {
    let live_private = pool.owner != OwnerId::DEFAULT && !pool.traits.released;
    !live_private || (trim_private && !pool.traits.captured)
}

/// An idle segment on the list of victims.
#[derive(Debug, Clone, Copy)]
struct Victim {
    arena: ArenaId,
    segment: SegmentId,
    size: Bytes,
}

impl<M: Clone, E: Clone> World<'_, M, E> {
    /// The next step of a trim, or `None` when it is done.
    pub(crate) fn advance_trim(&mut self, trim: &mut Trim) -> Option<Step<M, E>> {
        let step = self.trim_step(trim);
        step.iter().for_each(|step| self.begin_calls(step));
        step
    }

    /// As [`advance_trim`](Self::advance_trim), as a part of another step.
    pub(crate) fn trim_step(&mut self, trim: &mut Trim) -> Option<Step<M, E>> {
        loop {
            self.absorb();
            if trim.until.is_empty() {
                self.global.listen();
                trim.until = self.ticks();
            }
            let step = match trim.stage {
                Stage::Idle | Stage::Segments => self.trim_segments(trim),
                Stage::Pending => self.await_pending(Some(&trim.until)),
                Stage::PageUse => self.await_page_use(trim),
                Stage::Pages => self.trim_pages(trim),
                Stage::Ranges => self.trim_ranges(trim),
                Stage::Done => {
                    return None;
                }
            };
            // Waiting goes on until nothing is left to wait for; giving back is one step.
            let waits = matches!(trim.stage, Stage::Pending | Stage::PageUse);
            if step.is_none() || !waits {
                trim.stage = self.stage_after(trim);
            }
            if step.is_some() {
                return step;
            }
        }
    }

    fn stage_after(&self, trim: &Trim) -> Stage {
        match trim.stage {
            Stage::Idle if self.total(Gauge::ReservedBytes) <= trim.floor => Stage::Done,
            Stage::Idle => Stage::Pending,
            Stage::Pending => Stage::Segments,
            Stage::Segments => Stage::PageUse,
            Stage::PageUse => Stage::Pages,
            Stage::Pages => Stage::Ranges,
            Stage::Ranges | Stage::Done => Stage::Done,
        }
    }

    fn trim_segments(&mut self, trim: &mut Trim) -> Option<Step<M, E>> {
        let trim_private = self.config.trim_private_pools;
        let mut kept = self.total(Gauge::ReservedBytes);
        let floor = trim.floor;
        let victims = self.victims(
            |pool| trim.includes(pool, trim_private),
            |victim| {
                let goes = kept - victim.size >= floor;
                kept -= if goes { victim.size } else { 0 };
                if goes { Verdict::Take } else { Verdict::Keep }
            },
        );
        trim.returned += victims.iter().map(|victim| victim.size).sum::<Bytes>();
        self.release(victims)
    }

    fn trim_pages(&mut self, trim: &mut Trim) -> Option<Step<M, E>> {
        let trim_private = self.config.trim_private_pools;
        let budget = self.total(Gauge::ReservedBytes).saturating_sub(trim.floor);
        let plan = self.plan_unmap(budget, |pool| trim.includes(pool, trim_private))?;
        trim.returned += plan.bytes;
        Some(Step::Unmap(plan))
    }

    fn trim_ranges(&mut self, trim: &mut Trim) -> Option<Step<M, E>> {
        let trim_private = self.config.trim_private_pools;
        let memories = self.detach_ranges(|pool| trim.includes(pool, trim_private));
        if memories.is_empty() {
            return None;
        }
        self.global.in_flight += 1;
        Some(Step::Release { memories, sizes: Vec::new() })
    }

    /// Waits for streams whose own work may still touch pages that are to go.
    fn await_page_use(&mut self, trim: &Trim) -> Option<Step<M, E>> {
        let trim_private = self.config.trim_private_pools;
        for (index, &until) in trim.until.iter().enumerate() {
            let stream = ArenaId::from_index(index);
            let tick = self.newest_page_use(stream, |pool| trim.includes(pool, trim_private));
            let tick = tick.map(|tick| tick.min(until));
            let Some(tick) = tick.filter(|&tick| tick > self.global.clocks[index].completed) else {
                continue;
            };
            if self.global.is_apart(stream) {
                continue;
            }
            match self.event_for(stream, tick) {
                Event::Recorded(recorded) => return Some(Step::Wait { stream, recorded }),
                Event::ToRecord(tick) => return Some(Step::Record { stream, tick }),
                Event::None => {}
            }
        }
        None
    }

    /// Before a growth by `size`: what headroom and garbage collection ask to give back first.
    pub(crate) fn relief(&mut self, miss: &mut Miss, size: Bytes) -> Option<Step<M, E>> {
        let collected = self.collect_garbage();
        if collected.is_some() {
            return collected;
        }
        let target = self.headroom_target(&miss.want)?;
        // What users keep in private pools, primed perhaps, is not in the way of others' growth.
        let goal = (self.global.reserved + size).saturating_sub(target);
        let from = |pool: &Pool| pool.owner == OwnerId::DEFAULT || pool.traits.released;
        let step = self.release_coldest(goal, from);
        if let Some(Step::Release { sizes, .. }) = &step {
            sizes.iter().for_each(|&size| self.global.regret.released(size));
        }
        step
    }

    /// Gives idle segments back, coldest first, until `goal` bytes are on their way; what a larger
    /// one among them makes needless stays.
    fn release_coldest(&mut self, goal: Bytes, from: impl Fn(&Pool) -> bool) -> Option<Step<M, E>> {
        let mut taken: Bytes = 0;
        let mut victims = self.victims(from, |victim| {
            if taken >= goal {
                return Verdict::Stop;
            }
            taken += victim.size;
            Verdict::Take
        });
        let mut excess = taken.saturating_sub(goal);
        victims.retain(|victim| {
            let stays = victim.size <= excess;
            excess -= if stays { victim.size } else { 0 };
            !stays
        });
        self.release(victims)
    }

    /// After a refusal: gives back what a growth by `size` lacks, if that much is idle.
    pub(crate) fn release_missing(&mut self, miss: &Miss, size: Bytes) -> Option<Step<M, E>> {
        if let Some(max) = self.config.max_split_size {
            return self.release_oversize(miss, to_bytes(miss.want.size).max(max));
        }
        if !self.config.exact_growth {
            return None;
        }
        let over_limit = self
            .global
            .limit
            .map_or(0, |limit| (self.global.reserved + size).saturating_sub(limit));
        // The limit refuses before the device is asked, which may have room enough.
        let lacking = size.saturating_sub(miss.device_free.unwrap_or(0));
        let missing = if miss.limited { over_limit } else { over_limit.max(lacking) };
        let trim_private = self.config.trim_private_pools;
        let mut idle: Bytes = 0;
        self.victims(
            |pool| is_trimmable(pool, trim_private),
            |victim| {
                idle += victim.size;
                Verdict::Keep
            },
        );
        (idle >= missing)
            .then(|| self.release_coldest(missing, |pool| is_trimmable(pool, trim_private)))?
    }

    /// PyTorch's `release_available_cached_blocks`: one idle segment of this stream that is large
    /// enough, or its oversize segments from the largest down, if they reach `key` bytes together.
    fn release_oversize(&mut self, miss: &Miss, key: Bytes) -> Option<Step<M, E>> {
        let max_split = self.config.max_split_size?;
        let mut oversize = self.victims(
            |pool| {
                let own = pool.group == Group::Large && pool.owner == miss.want.owner;
                own && !pool.traits.captured
            },
            |_| Verdict::Take,
        );
        oversize.retain(|victim| victim.arena == miss.arena && victim.size >= max_split);
        oversize.sort_by_key(|victim| victim.size);
        if let Some(&one) = oversize.iter().find(|victim| victim.size >= key) {
            return self.release(vec![one]);
        }
        let mut sum: Bytes = 0;
        let enough = oversize.iter().rev().position(|victim| {
            sum += victim.size;
            sum >= key
        })?;
        let victims = oversize.split_off(oversize.len() - 1 - enough);
        self.release(victims)
    }

    /// What has been idle for longer than the configured age, by the time the user last told.
    pub(crate) fn release_aged(&mut self) -> Option<Step<M, E>> {
        let age = self.config.trim_age?;
        let age_us = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        let now = self.global.time_us;
        let trim_private = self.config.trim_private_pools;
        let mut victims = self.victims(|pool| is_trimmable(pool, trim_private), |_| Verdict::Take);
        victims.retain(|victim| {
            let segment = &self.arenas[victim.arena.index()].segments[victim.segment.index()];
            now.saturating_sub(segment.idle.time_us) > age_us
        });
        self.release(victims)
    }

    /// PyTorch's garbage collection: above the threshold, rounds that free every idle large segment
    /// at least as old as the mean, until the excess is gone. Age is searches of the pool. Unlike
    /// there, it can work without a limit, against the device's size.
    fn collect_garbage(&mut self) -> Option<Step<M, E>> {
        let threshold = self.config.garbage_collection_threshold?;
        let total = self.device.total.filter(|_| self.config.collect_without_limit);
        let limit = self.global.limit.or(total)?;
        let mut excess = self.global.reserved.saturating_sub((limit as f64 * threshold) as Bytes);
        if excess == 0 {
            return None;
        }
        let mut idle = self.victims(
            |pool| pool.group == Group::Large && pool.owner == OwnerId::DEFAULT,
            |_| Verdict::Take,
        );
        let age = |world: &Self, victim: &Victim| {
            let arena = &world.arenas[victim.arena.index()];
            let segment = &arena.segments[victim.segment.index()];
            arena.pools[segment.pool].searches - segment.idle.searches
        };
        let mut victims = Vec::new();
        while excess > 0 && !idle.is_empty() {
            let total: u64 = idle.iter().map(|victim| age(self, victim)).sum();
            let mean = total as f64 / idle.len() as f64;
            let (old, young): (Vec<_>, Vec<_>) =
                idle.into_iter().partition(|victim| age(self, victim) as f64 >= mean);
            let freed: Bytes = old.iter().map(|victim| victim.size).sum();
            excess = excess.saturating_sub(freed);
            victims.extend(old);
            idle = young;
        }
        self.release(victims)
    }

    /// Idle segments, coldest first, as far as `judge` lets it go.
    fn victims(
        &self,
        from: impl Fn(&Pool) -> bool,
        mut judge: impl FnMut(&Victim) -> Verdict,
    ) -> Vec<Victim> {
        let mut lists: Vec<_> = Vec::new();
        for (index, arena) in self.arenas.iter().enumerate() {
            let id = ArenaId::from_index(index);
            for pool in arena.pools.iter().filter(|pool| from(pool)) {
                let list = idle_segments(pool, &arena.segments).filter(move |segment| {
                    !self.is_in_recording(id, arena.segments[segment.index()].first)
                });
                let mut list = list.map(move |segment| {
                    let size = to_bytes(arena.segments[segment.index()].size);
                    (
                        Victim { arena: id, segment, size },
                        arena.segments[segment.index()].idle.epoch,
                    )
                });
                if let Some(first) = list.next() {
                    lists.push((first, list));
                }
            }
        }
        let mut taken = Vec::new();
        while let Some(coldest) = (0..lists.len()).min_by_key(|&at| lists[at].0.1) {
            let (victim, list) = &mut lists[coldest];
            match judge(&victim.0) {
                Verdict::Take => taken.push(victim.0),
                Verdict::Keep => {}
                Verdict::Stop => break,
            }
            match list.next() {
                Some(next) => *victim = next,
                None => drop(lists.remove(coldest)),
            }
        }
        taken
    }

    fn release(&mut self, victims: Vec<Victim>) -> Option<Step<M, E>> {
        if victims.is_empty() {
            return None;
        }
        let mut memories = Vec::with_capacity(victims.len());
        let mut sizes = Vec::with_capacity(victims.len());
        for victim in victims {
            let (memory, size) = self.detach_segment(victim.arena, victim.segment);
            memories.push(memory);
            sizes.push(size);
        }
        self.global.in_flight += 1;
        Some(Step::Release { memories, sizes })
    }

    /// Exactly what `empty_cache` would give back now, in bytes.
    pub(crate) fn releasable(&self) -> Bytes {
        let trim = Trim::all(0);
        let trim_private = self.config.trim_private_pools;
        let mut sum = 0;
        for arena in &self.arenas {
            for (_, segment) in &arena.segments {
                if trim.includes(&arena.pools[segment.pool], trim_private) {
                    sum += self.releasable_of(arena, segment);
                }
            }
        }
        sum
    }

    /// Bytes of one segment that would go, pending blocks counted as free: a trim waits for them.
    fn releasable_of(&self, arena: &Arena<M>, segment: &Segment<M>) -> Bytes {
        if segment.presence != Presence::Here {
            return 0;
        }
        let mut sum = 0;
        let mut run: Option<(u32, u32)> = None;
        let mut at = segment.first;
        loop {
            let block = arena.blocks.get(at.index());
            match (block.filter(|block| self.will_be_free(arena, block)), &mut run) {
                (Some(block), Some((_, end))) => *end = block.end(),
                (Some(block), None) => run = Some((block.offset, block.end())),
                (None, Some((start, end))) => {
                    sum += segment.whole_bytes(*start, *end);
                    run = None;
                }
                (None, None) => {}
            }
            match block {
                Some(block) => at = block.next,
                None => return sum,
            }
        }
    }

    fn will_be_free(&self, arena: &Arena<M>, block: &Block) -> bool {
        // A trim waits for nobody who cannot be waited for.
        let stays =
            |stream: ArenaId| self.global.is_captured(stream) || self.global.is_recording(stream);
        if arena.segments[block.segment.index()].is_virtual() && stays(arena.id) {
            return false;
        }
        let own = Mark { stream: arena.id, tick: block.tick };
        if self.global.is_recording(arena.id) && !self.is_completed(&own) {
            return false;
        }
        match &block.state {
            State::Free(_) => true,
            State::Pending { side, .. } => {
                let marks = &arena.waiting[side.index()].marks;
                !marks.iter().any(|mark| stays(mark.stream) && !self.is_completed(mark))
            }
            _ => false,
        }
    }
}

/// What becomes of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Take,
    Keep,
    Stop,
}
