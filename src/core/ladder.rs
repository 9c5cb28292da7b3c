//! What is tried, in which order, when the pool has nothing that fits.
//!
//! ```text
//!  Events     record what pending blocks wait for, ask what is complete   (record, query)
//!  Order      have the device wait for another stream's last use           (record, wait)
//!  Break      break up idle segments, where growing by the need would exceed headroom
//!  Relief     give idle segments back, where growing would exceed headroom (free)
//!  Grow       the segment that the policy likes                            (allocate, or map)
//!  Callbacks  ask the program, once, by priority
//!  Grow       again, if that freed something
//!  Spare      private pools that serve everyone when memory is out
//!  Aged       give back what has been idle for long
//!  Missing    give back exactly what is missing, coldest first
//!  Grow       again
//!  Submitted  wait on the host for streams that still use freed blocks     (record, synchronize)
//!  Spare      again
//!  All        give everything back
//!  Grow       again
//!  Exact      a segment of just the size that is needed
//!  Spare      again
//!  Others     wait for other threads' growths and releases, then from Grow on
//! ```
//!
//! Callbacks come after the first refused growth: they are for real pressure, not for every miss.
//! After every rung that changed something the pool is searched again, so a call never fails while
//! a block that fits is free in pools of its sort, on any stream. With the torch preset Order,
//! Missing and Exact are off.

use crate::core::arena::{Grant, Want};
use crate::core::harvest::Event;
use crate::core::lifetime::Mark;
use crate::core::miss::Miss;
use crate::core::pool::Traits;
use crate::core::state::World;
use crate::core::step::{Failure, Growth, Step};
use crate::core::trim::Trim;
use crate::id::{ArenaId, BlockId, OwnerId, SideId};
use crate::units::{Bytes, to_bytes};

/// One thing to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rung {
    Events,
    Order,
    Break,
    Relief,
    Grow,
    Callbacks,
    Spare,
    Aged,
    Missing,
    Exact,
    Submitted,
    All,
    Others,
}

const LADDER: [Rung; 18] = [
    Rung::Events,
    Rung::Order,
    Rung::Break,
    Rung::Relief,
    Rung::Grow,
    Rung::Callbacks,
    Rung::Grow,
    Rung::Spare,
    Rung::Aged,
    Rung::Missing,
    Rung::Grow,
    Rung::Submitted,
    Rung::Spare,
    Rung::All,
    Rung::Grow,
    Rung::Exact,
    Rung::Spare,
    Rung::Others,
];

/// Where on the ladder `Others` goes back to.
const FIRST_GROW: usize = 4;

/// What a rung brought.
enum Climb<M, E> {
    Do(Step<M, E>),
    Again,
    Next,
}

impl<M: Clone, E: Clone> World<'_, M, E> {
    /// The next step of a request: see the module.
    pub(crate) fn advance(&mut self, miss: &mut Miss) -> Step<M, E> {
        if !miss.started {
            miss.started = true;
            self.global.listen();
            self.global.epoch += 1;
            self.pool(miss.arena, miss.want.owner, miss.want.group);
        }
        self.absorb();
        let step = self.climb_until_step(miss);
        self.begin_calls(&step);
        step
    }

    fn climb_until_step(&mut self, miss: &mut Miss) -> Step<M, E> {
        let captured = self.global.is_captured(miss.arena);
        if miss.harvest_first && !captured {
            if let Some(step) = self.harvest_step(&mut miss.harvest) {
                return step;
            }
            miss.harvest_first = false;
        }
        let mut search = true;
        loop {
            if self.global.lost {
                return Step::Fail(Failure::Lost);
            }
            if self.is_paused(miss.want.owner) {
                return Step::Fail(Failure::Paused);
            }
            if search && let Some((arena, grant)) = self.search_for(miss) {
                return Step::Done(arena, grant);
            }
            if captured {
                return self.joins(miss).unwrap_or(Step::Fail(Failure::Capture));
            }
            let Some(&rung) = LADDER.get(miss.rung) else {
                self.global.counts.ooms += 1;
                return Step::Fail(Failure::OutOfMemory);
            };
            match self.climb(rung, miss) {
                Climb::Do(step) => return step,
                Climb::Again => search = true,
                Climb::Next => {
                    search = false;
                    miss.rung += 1;
                }
            }
        }
    }

    fn climb(&mut self, rung: Rung, miss: &mut Miss) -> Climb<M, E> {
        let (liked, needed) = self.segment_sizes(&miss.want, miss.modest);
        match rung {
            Rung::Events => self.harvest_step(&mut miss.harvest).map_or(Climb::Next, Climb::Do),
            Rung::Order => self.order(miss.arena, &miss.want, self.is_pressed(miss)),
            Rung::Break if self.headroom_is_spent(miss, needed) && self.allow_breaking(true) => {
                Climb::Again
            }
            Rung::Break => Climb::Next,
            Rung::Relief => {
                if self.global.purge {
                    // One step at a time; the mark stays until nothing is left to give back.
                    let step = self.trim_step(&mut Trim::released());
                    self.global.purge = step.is_some();
                    return step.map_or(Climb::Again, Climb::Do);
                }
                miss.rung += 1;
                self.relief(miss, liked).map_or(Climb::Again, Climb::Do)
            }
            Rung::Grow => self.grow(miss, liked),
            Rung::Exact if self.config.exact_growth => self.grow_exactly(miss, liked, needed),
            Rung::Callbacks if miss.callbacks && miss.refused => Climb::Do(Step::Callbacks),
            Rung::Callbacks if !miss.refused => {
                miss.rung -= 1;
                self.grow(miss, liked)
            }
            Rung::Spare => self.spare(miss),
            Rung::Aged => {
                miss.rung += 1;
                self.release_aged().map_or(Climb::Again, Climb::Do)
            }
            Rung::Missing => {
                miss.rung += 1;
                self.release_missing(miss, liked).map_or(Climb::Again, Climb::Do)
            }
            Rung::Submitted => self.await_submitted(miss),
            Rung::All => self.trim_all(miss),
            Rung::Others => self.others(miss),
            Rung::Exact | Rung::Callbacks => Climb::Next,
        }
    }

    /// Whether growing was refused, or would be, before anything else is tried.
    fn is_pressed(&self, miss: &Miss) -> bool {
        // More than the usual segment would not be refused: less would be asked for.
        let (usual, _) = self.segment_sizes(&miss.want, true);
        miss.refused || (self.config.reject_before_driver && !self.fits(usual))
    }

    /// As [`search`](Self::search), for a request on its way. Where growing is no choice nothing is
    /// spared any more; every failure comes after such a search.
    fn search_for(&mut self, miss: &Miss) -> Option<(ArenaId, Grant)> {
        let pressed = self.is_pressed(miss);
        if pressed {
            self.allow_breaking(true);
        }
        self.search(miss.arena, &miss.want, pressed)
    }

    /// A block that fits and may be used now: own pool, pending blocks, other streams.
    fn search(&mut self, reader: ArenaId, want: &Want, pressed: bool) -> Option<(ArenaId, Grant)> {
        if let Some(block) = self.own_fit(reader, want) {
            let config = self.config;
            return Some((reader, self.arena(reader).carve(block, want, SideId::NONE, config)));
        }
        let (home, block) = self.foreign_fit(reader, want, pressed)?;
        if !self.is_ordered(reader, &self.last_use(home, block)) {
            return None;
        }
        Some(self.borrow(home, block, reader, want))
    }

    /// A block of the stream's own pool, if one fits and may be used now.
    pub(crate) fn take_cached(&mut self, reader: ArenaId, want: &Want) -> Option<Grant> {
        self.absorb();
        if self.is_paused(want.owner) {
            return None;
        }
        let mut block = self.own_fit(reader, want);
        if block.is_none() {
            // There is nothing else to try: a vast idle segment may be broken up.
            let may_break = std::mem::replace(&mut self.arena(reader).may_break, true);
            block = self.own_fit(reader, want);
            self.arena(reader).may_break = may_break;
        }
        let block = block.filter(|_| !self.global.lost)?;
        let config = self.config;
        Some(self.arena(reader).carve(block, want, SideId::NONE, config))
    }

    fn own_fit(&mut self, reader: ArenaId, want: &Want) -> Option<BlockId> {
        let pool = self.pool(reader, want.owner, want.group);
        loop {
            let arena = &self.arenas[reader.index()];
            if let Some(block) = arena.fit(pool, want, self.config) {
                return Some(block);
            }
            let pending = self.pending_fit(reader, want)?;
            if self.unordered_mark(reader, pending).is_some() {
                return None;
            }
            self.promote_for_own(reader, pending);
        }
    }

    /// The pending block of the own pool that would fit best.
    fn pending_fit(&self, reader: ArenaId, want: &Want) -> Option<BlockId> {
        let arena = &self.arenas[reader.index()];
        let pool = &arena.pools[arena.pool_of(want.owner, want.group)?];
        pool.pending.best_fit(&arena.blocks, want.size)
    }

    /// What a pending block waits for that `reader` is not ordered after.
    fn unordered_mark(&self, reader: ArenaId, block: BlockId) -> Option<Mark> {
        let waiting = self.waiting_of(reader, block);
        waiting.marks.iter().find(|mark| !self.is_ordered(reader, mark)).copied()
    }

    /// The best fitting free block of another stream's pool of the same sort.
    ///
    /// A whole segment may move at any time. A part is lent, which costs a wait and a slow way each
    /// time, so it must be worth it: the request would need a segment of its own size, or growing
    /// was refused (`pressed`). Streams that make small requests get segments of their own and hit
    /// from then on.
    fn foreign_fit(
        &self,
        reader: ArenaId,
        want: &Want,
        pressed: bool,
    ) -> Option<(ArenaId, BlockId)> {
        if !self.config.cross_stream {
            return None;
        }
        let lends = pressed || to_bytes(want.size) >= self.config.large_min;
        let fits = self.arenas.iter().enumerate().filter_map(|(index, arena)| {
            let home = ArenaId::from_index(index);
            if home == reader || self.global.is_barred(home) {
                return None;
            }
            let pool = arena.pool_of(want.owner, want.group)?;
            let Traits { captured, paused, .. } = arena.pools[pool].traits;
            if captured || paused {
                return None;
            }
            let block = arena.fit(pool, want, self.config)?;
            let lends = lends || arena.is_whole(block);
            (lends && !self.is_in_recording(home, block)).then_some((home, block))
        });
        // One that needs no wait first, then the smallest, then the older stream.
        fits.min_by_key(|&(home, block)| {
            let size = self.arenas[home.index()].blocks[block.index()].size;
            (!self.is_ordered(reader, &self.last_use(home, block)), size, home)
        })
    }

    pub(crate) fn last_use(&self, home: ArenaId, block: BlockId) -> Mark {
        self.point(home, self.arenas[home.index()].blocks[block.index()].tick)
    }

    /// Hands a free block of `home` to `reader`, which is ordered after its last use: a whole
    /// segment moves for good; a part is lent, and used by `reader` as if recorded.
    fn borrow(
        &mut self,
        home: ArenaId,
        block: BlockId,
        reader: ArenaId,
        want: &Want,
    ) -> (ArenaId, Grant) {
        let config = self.config;
        let arena = self.arena(home);
        let segment_id = arena.blocks[block.index()].segment;
        let segment = &arena.segments[segment_id.index()];
        if !segment.is_virtual() && segment.busy == 0 {
            let block = self.transfer(home, segment_id, reader);
            return (reader, self.arena(reader).carve(block, want, SideId::NONE, config));
        }
        let uses = SideId::from_index(arena.uses.insert(vec![reader]));
        (home, arena.carve(block, want, uses, config))
    }

    /// Has the device wait for another stream, where that makes a fitting block safe.
    fn order(&mut self, reader: ArenaId, want: &Want, pressed: bool) -> Climb<M, E> {
        if !self.config.cross_stream || !self.device.device_wait {
            return Climb::Next;
        }
        let pending = self.pending_fit(reader, want);
        let mark = pending.and_then(|block| self.unordered_mark(reader, block)).or_else(|| {
            let (home, block) = self.foreign_fit(reader, want, pressed)?;
            Some(self.last_use(home, block)).filter(|mark| !self.is_ordered(reader, mark))
        });
        let Some(Mark { stream, tick }) = mark else { return Climb::Next };
        if self.global.is_apart(stream) {
            return Climb::Next;
        }
        match self.event_for(stream, tick) {
            Event::Recorded(recorded) => Climb::Do(Step::WaitOn { reader, stream, recorded }),
            Event::ToRecord(tick) => Climb::Do(Step::Record { stream, tick }),
            Event::None => Climb::Next,
        }
    }

    fn grow(&mut self, miss: &mut Miss, size: Bytes) -> Climb<M, E> {
        miss.rung += 1;
        if miss.refused {
            return Climb::Again;
        }
        (miss.returns, miss.refusals) = (self.global.returns, self.global.refusals);
        let by_pages = self.grows_by_pages(miss);
        if !self.fits(size) && (self.config.reject_before_driver || !by_pages) {
            if self.is_ambitious(miss, size) {
                miss.ask_for_less();
                return Climb::Again;
            }
            return self.refuse_growth(miss);
        }
        if by_pages {
            return self.grow_virtual(miss).map_or_else(|| self.refuse_growth(miss), Climb::Do);
        }
        self.grow_segment(miss, size)
    }

    /// After all else: a segment of just the size that is needed, where more was refused.
    fn grow_exactly(&mut self, miss: &mut Miss, liked: Bytes, needed: Bytes) -> Climb<M, E> {
        miss.rung += 1;
        // Pages are as large as the segments that the policy likes.
        if needed >= liked && !self.grows_by_pages(miss) {
            return Climb::Again;
        }
        (miss.returns, miss.refusals) = (self.global.returns, self.global.refusals);
        if self.fits(needed) { self.grow_segment(miss, needed) } else { self.refuse_growth(miss) }
    }

    fn grow_segment(&mut self, miss: &Miss, size: Bytes) -> Climb<M, E> {
        let Want { owner, group, .. } = miss.want;
        let kind = self.global.owners[owner.index()].traits.kind;
        self.global.charge(size);
        Climb::Do(Step::Grow(Growth { arena: miss.arena, owner, group, size, kind }))
    }

    /// Whether a request grows by pages. They have no kind: only a pool of the default one can.
    /// What is too large for a range, or finds none, gets a segment.
    fn grows_by_pages(&self, miss: &Miss) -> bool {
        let Traits { kind, exclusive, .. } = self.global.owners[miss.want.owner.index()].traits;
        let shares = kind == 0 && !exclusive && !miss.no_range;
        shares && self.range_size(&miss.want).is_some()
    }

    /// Whether `size` more bytes are within the limit, and on the device if that is not asked.
    fn fits(&self, size: Bytes) -> bool {
        let rejects = self.config.reject_before_driver;
        let total = self.device.total.filter(|_| rejects).unwrap_or(Bytes::MAX);
        self.global.has_room(size) && self.global.reserved.saturating_add(size) <= total
    }

    /// The limit leaves no room, or the addresses do.
    fn refuse_growth(&mut self, miss: &mut Miss) -> Climb<M, E> {
        miss.limit();
        if !self.config.reject_before_driver {
            return Climb::Again;
        }
        // Refused is what is needed, not what would be liked.
        let (_, needed) = self.segment_sizes(&miss.want, true);
        if self.config.exact_growth && self.fits(needed) {
            return self.grow_segment(miss, needed);
        }
        self.global.counts.oom_rejections += 1;
        Climb::Do(Step::Fail(Failure::Rejected))
    }

    /// Waits for other threads' growths and releases, or starts over when there were some.
    fn others(&mut self, miss: &mut Miss) -> Climb<M, E> {
        let global = &self.global;
        let returned = global.in_flight > global.growing || global.returns != miss.returns;
        let refused = global.growing > 0 || global.refusals != miss.refusals;
        if !returned && !miss.limited {
            if !refused || miss.patience == 0 {
                return Climb::Next;
            }
            miss.patience -= 1;
        } else if !returned && !refused {
            return Climb::Next;
        }
        miss.start_over(FIRST_GROW);
        if self.global.in_flight > 0 { Climb::Do(Step::Await) } else { Climb::Again }
    }

    /// Private pools that help out serve the request from what they have, on whatever stream.
    fn spare(&mut self, miss: &mut Miss) -> Climb<M, E> {
        for want in self.helpers(&miss.want) {
            if let Some((arena, grant)) = self.search(miss.arena, &want, true) {
                return Climb::Do(Step::Done(arena, grant));
            }
            if let Climb::Do(step) = self.order(miss.arena, &want, true) {
                return Climb::Do(step);
            }
        }
        miss.rung += 1;
        Climb::Again
    }

    /// What is asked of the private pools that help out: those of the same sort of memory.
    fn helpers<'w>(&self, want: &Want<'w>) -> Vec<Want<'w>> {
        let kind = self.global.owners[want.owner.index()].traits.kind;
        let owners = self.global.owners.iter().enumerate().skip(1);
        let helpers = owners.filter(|(_, owner)| {
            let Traits { released, captured, paused, .. } = owner.traits;
            let helps = owner.use_on_oom && !released && !captured && !paused;
            helps && want.owner == OwnerId::DEFAULT && owner.traits.kind == kind
        });
        helpers.map(|(index, _)| Want { owner: OwnerId::from_index(index), ..*want }).collect()
    }

    /// Waits on the host for one event that stands between the request and memory.
    fn await_submitted(&mut self, miss: &mut Miss) -> Climb<M, E> {
        if let Some(step) = self.await_pending(None) {
            return Climb::Do(step);
        }
        let mut wants = self.helpers(&miss.want);
        wants.insert(0, miss.want);
        for want in wants {
            let foreign = self.foreign_fit(miss.arena, &want, true);
            let mark = foreign.map(|(home, block)| self.last_use(home, block));
            let unordered = mark.filter(|mark| !self.is_ordered(miss.arena, mark));
            let Some(Mark { stream, tick }) = unordered else { continue };
            if self.global.is_apart(stream) {
                continue;
            }
            match self.event_for(stream, tick) {
                Event::Recorded(recorded) => return Climb::Do(Step::Wait { stream, recorded }),
                Event::ToRecord(tick) => return Climb::Do(Step::Record { stream, tick }),
                Event::None => {}
            }
        }
        miss.rung += 1;
        Climb::Again
    }

    fn trim_all(&mut self, miss: &mut Miss) -> Climb<M, E> {
        if miss.trim.is_none() {
            self.global.counts.alloc_retries += 1;
            self.global.counts.sync_all_streams += 1;
        }
        let mut trim = miss.trim.take().unwrap_or_else(|| Trim::all(0));
        let step = self.trim_step(&mut trim);
        match step {
            Some(step) => {
                miss.trim = Some(trim);
                Climb::Do(step)
            }
            None => {
                miss.rung += 1;
                miss.relieve();
                Climb::Again
            }
        }
    }
}
