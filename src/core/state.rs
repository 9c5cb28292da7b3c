//! The machine: a request that an arena cannot serve by itself → [`Step`]; `commit_*(outcome)`.
//!
//! A [`World`] is everything in one hand: the global books and all arenas, borrowed mutably. It
//! decides; it never waits and never calls the backend. What must be done outside comes back as a
//! [`Step`], the caller does it with nothing locked, and tells the outcome through the matching
//! `commit_*`. Then the pool is searched again, after **every** step, for much may have changed in
//! between.
//!
//! ```text
//!            ┌───────────────────────────── search again ◀──────────────────────────────┐
//!  Miss ─▶ own pool ─ pending ─ other streams ─▶ rung of the ladder ─▶ Step ─▶ backend ─▶ commit
//!                     found │                         │ no rung left
//!                           ▼                         ▼
//!                        Done(grant)              Fail(why)
//! ```
//!
//! Numbered invariants, on top of those of blocks, segments, bins, clocks and ledgers:
//! - W1: `reserved` = Σ mapped bytes of all segments + bytes of growth and release in flight.
//! - W2: `reserved ≤ limit` after every growth (a limit that is lowered later binds from the next
//!   one).
//! - W3: requested ≤ allocated ≤ active ≤ reserved + away (see `pause`), in bytes, in every arena.

use std::collections::VecDeque;

use crate::config::Config;
use crate::core::arena::{Arena, Grant};
use crate::core::block::{Block, Links, State};
use crate::core::chunks::Chunks;
use crate::core::classes::Group;
use crate::core::headroom::Regret;
use crate::core::ledger::{self, Counter, Entry, Gauge, Spare};
use crate::core::lifetime::{Clock, Recorded};
use crate::core::miss::Miss;
use crate::core::note::{Note, Noted};
use crate::core::owners::{Capture, Owner};
use crate::core::pause::Presence;
use crate::core::pool::{Pool, Traits};
use crate::core::scopes::Marks;
use crate::core::segment::{Idle, Segment, vacate};
use crate::core::step::{Growth, Step};
use crate::id::{ArenaId, BlockId, OwnerId, PoolId, SegmentId};
use crate::units::{Bytes, to_bytes, to_granules};

/// What the core knows of the device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Device {
    pub(crate) total: Option<Bytes>,
    pub(crate) granularity: Bytes,
    pub(crate) segment_max: Bytes,
    pub(crate) device_wait: bool,
    pub(crate) virtual_memory: bool,
}

/// The state that belongs to no single stream.
#[derive(Debug)]
pub(crate) struct Global<E> {
    /// One clock for each arena.
    pub(crate) clocks: Vec<Clock<E>>,
    /// Owner 0 is the default one.
    pub(crate) owners: Vec<Owner>,
    /// Reserved bytes of private pools whose owner entry was taken over by a later pool.
    pub(crate) gone_pools: VecDeque<(PoolId, [Counter; 3])>,
    pub(crate) pools_made: u32,
    pub(crate) spare: Spare,
    pub(crate) marks: Marks,
    /// What headroom gave back too early.
    pub(crate) regret: Regret,
    /// W1, in bytes.
    pub(crate) reserved: Bytes,
    pub(crate) limit: Option<Bytes>,
    /// The most bytes that were ever active, over resets of the peaks.
    pub(crate) active_peak: Bytes,
    /// Misses so far: the clock of idle segments.
    pub(crate) epoch: u64,
    pub(crate) time_us: u64,
    pub(crate) segments_made: u64,
    /// Growths and releases that other threads have under way.
    pub(crate) in_flight: u32,
    /// Those of them that are growths.
    pub(crate) growing: u32,
    /// How often memory came back.
    pub(crate) returns: u64,
    /// How often a growth was refused: what it had been charged is within the limit again.
    pub(crate) refusals: u64,
    /// A released private pool has something to give back; the shell sees to it.
    pub(crate) purge: bool,
    /// The device is gone.
    pub(crate) lost: bool,
    /// Streams under capture, each with the pool it is routed to.
    pub(crate) captures: Vec<Capture>,
    /// What happened to segments and late frees, if somebody writes a history.
    pub(crate) notes: Option<Vec<Note>>,
    pub(crate) counts: Counts,
    /// Those before the user reset them.
    counts_before: Counts,
}

/// Lifetime counts; the names are PyTorch's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) alloc_retries: u64,
    pub(crate) ooms: u64,
    pub(crate) oom_rejections: u64,
    pub(crate) sync_all_streams: u64,
    pub(crate) device_alloc: u64,
    pub(crate) device_free: u64,
}

/// Everything in one hand.
pub(crate) struct World<'a, M, E> {
    pub(crate) config: &'a Config,
    pub(crate) device: &'a Device,
    pub(crate) global: &'a mut Global<E>,
    pub(crate) arenas: Vec<&'a mut Arena<M>>,
}

impl<E> Global<E> {
    pub(crate) fn new(limit: Option<Bytes>) -> Self {
        let default = Owner {
            pool_id: PoolId::default(),
            traits: Traits::default(),
            use_on_oom: false,
            reserved: [Counter::default(); 3],
            away: 0,
        };
        Self {
            clocks: Vec::new(),
            owners: vec![default],
            gone_pools: VecDeque::new(),
            pools_made: 0,
            regret: Regret::default(),
            spare: [[0; ledger::GAUGES]; ledger::ROWS],
            marks: Marks::default(),
            reserved: 0,
            limit,
            active_peak: 0,
            epoch: 0,
            time_us: 0,
            segments_made: 0,
            in_flight: 0,
            growing: 0,
            returns: 0,
            refusals: 0,
            purge: false,
            lost: false,
            captures: Vec::new(),
            notes: None,
            counts: Counts::default(),
            counts_before: Counts::default(),
        }
    }

    /// All counts, whoever reset them.
    pub(crate) fn lifetime_counts(&self) -> Counts {
        let Counts { alloc_retries, ooms, oom_rejections, sync_all_streams, .. } = self.counts;
        let Counts { device_alloc, device_free, .. } = self.counts;
        let before = self.counts_before;
        Counts {
            alloc_retries: before.alloc_retries + alloc_retries,
            ooms: before.ooms + ooms,
            oom_rejections: before.oom_rejections + oom_rejections,
            sync_all_streams: before.sync_all_streams + sync_all_streams,
            device_alloc: before.device_alloc + device_alloc,
            device_free: before.device_free + device_free,
        }
    }

    /// Whether `size` more bytes are within the limit.
    pub(crate) fn has_room(&self, size: Bytes) -> bool {
        self.limit.is_none_or(|limit| self.reserved.saturating_add(size) <= limit)
    }

    /// A growth was decided on: W1 counts it from now.
    pub(crate) fn charge(&mut self, size: Bytes) {
        self.reserved += size;
        self.begin_growth();
    }

    pub(crate) fn begin_growth(&mut self) {
        self.in_flight += 1;
        self.growing += 1;
    }

    pub(crate) fn end_growth(&mut self) {
        self.in_flight -= 1;
        self.growing -= 1;
    }

    /// Whether nothing may be asked of the backend about the stream: it is captured or about to go,
    /// its work is recorded and not in the device's hands, or its marks cannot be waited for.
    pub(crate) fn is_apart(&self, stream: ArenaId) -> bool {
        self.is_barred(stream) || self.is_recording(stream) || self.clocks[stream.index()].mute
    }

    /// Whether the stream lends nothing to others: it is captured, or about to go.
    pub(crate) fn is_barred(&self, stream: ArenaId) -> bool {
        self.clocks[stream.index()].closing || self.is_captured(stream)
    }

    /// Whether the stream is under capture.
    pub(crate) fn is_captured(&self, stream: ArenaId) -> bool {
        self.captures.iter().any(|capture| capture.stream == stream)
    }
}

impl<M, E: Clone> World<'_, M, E> {
    pub(crate) fn arena(&mut self, id: ArenaId) -> &mut Arena<M> {
        self.arenas[id.index()]
    }

    /// The sum of a gauge over all arenas, in bytes.
    pub(crate) fn total(&self, gauge: Gauge) -> Bytes {
        self.arenas.iter().map(|arena| arena.ledger.bytes(gauge)).sum()
    }

    /// Lets every arena know the time and the count of misses, and the ledgers settle (L1, L2).
    pub(crate) fn settle(&mut self) {
        let (epoch, time_us) = (self.global.epoch, self.global.time_us);
        for arena in &mut self.arenas {
            (arena.epoch, arena.time_us) = (epoch, time_us);
        }
        let mut ledgers: Vec<_> = self.arenas.iter_mut().map(|arena| &mut arena.ledger).collect();
        ledger::settle(&mut ledgers, &mut self.global.spare);
    }

    /// Lets the lifetime totals and counts start at 0.
    pub(crate) fn reset_accumulated(&mut self) {
        self.arenas.iter_mut().for_each(|arena| arena.ledger.reset_accumulated());
        self.global.counts_before = self.global.lifetime_counts();
        self.global.counts = Counts::default();
        for counter in self.global.owners.iter_mut().flat_map(|owner| &mut owner.reserved) {
            (counter.risen, counter.fallen) = (0, 0);
        }
    }

    /// The largest free block of an owner's pools of `group`, over all streams, in bytes.
    pub(crate) fn largest_free(&self, owner: OwnerId, group: Group) -> Bytes {
        let sizes = self.arenas.iter().filter_map(|arena| {
            let pool = &arena.pools[arena.pool_of(owner, group)?];
            let block = pool.free.largest(&arena.blocks)?;
            Some(to_bytes(arena.blocks[block.index()].size))
        });
        sizes.max().unwrap_or(0)
    }

    /// The segment that a request asked for has come, or not. On success the request is served from
    /// it at once, before anyone else can see it.
    pub(crate) fn commit_grow(
        &mut self,
        miss: &mut Miss,
        growth: Growth,
        outcome: Result<(M, u64), Option<Bytes>>,
    ) -> Option<Grant> {
        self.global.end_growth();
        let (memory, base) = match outcome {
            Ok(memory) => memory,
            Err(device_free) => {
                self.global.reserved -= growth.size;
                self.global.refusals += 1;
                miss.own_refusal();
                self.refused(miss, growth.size, device_free);
                return None;
            }
        };
        self.global.counts.device_alloc += 1;
        self.allow_breaking(false);
        let learned_max = self.learned_max();
        self.global.regret.grown(growth.size, learned_max);
        let block = self.add_segment(growth, memory, base);
        let grant = self.arenas[growth.arena.index()].carve(
            block,
            &miss.want,
            crate::id::SideId::NONE,
            self.config,
        );
        Some(grant)
    }

    /// Puts a new segment, wholly free, into its pool; returns its one block.
    fn add_segment(&mut self, growth: Growth, memory: M, base: u64) -> BlockId {
        let pool = self.pool(growth.arena, growth.owner, growth.group);
        let size = to_granules(growth.size);
        let id = self.insert_segment(growth.arena, pool, (size, 0), memory, base);
        let config = self.config;
        let oversize = config.max_split_size.is_some_and(|max| growth.size >= max);
        let owner = &mut self.global.owners[growth.owner.index()];
        owner.book_reserved(growth.group, growth.size as i64);
        let (epoch, time_us) = (self.global.epoch, self.global.time_us);
        let arena = self.arena(growth.arena);
        let segment = &mut arena.segments[id.index()];
        segment.mapped = size;
        let block = segment.first;
        arena.ledger.apply(growth.group, Entry::Grow { size });
        if oversize {
            arena.ledger.oversize[1].rise(1);
        }
        arena.make_free(block, config);
        arena.pools[pool].link_idle(&mut arena.segments, id, epoch, time_us);
        self.note_range(Noted::SegmentCame, growth.arena, id.index(), (0, size));
        block
    }

    /// A segment of `(size, page)` granules with one block, which is Unmapped and in no bin.
    pub(crate) fn insert_segment(
        &mut self,
        arena: ArenaId,
        pool: usize,
        (size, page): (u32, u32),
        memory: M,
        base: u64,
    ) -> SegmentId {
        self.global.segments_made += 1;
        let number = self.global.segments_made;
        let arena = self.arena(arena);
        let id = SegmentId::from_index(arena.segments.vacant_key());
        let first = BlockId::from_index(arena.blocks.insert(Block {
            offset: 0,
            size,
            prev: BlockId::NONE,
            next: BlockId::NONE,
            segment: id,
            serial: 0,
            tick: 0,
            state: State::Unmapped,
        }));
        let (idle, mapped, busy) = (Idle::NEW, 0, 0);
        let (holes, chunks) = (Vec::new(), Chunks::default());
        arena.segments.insert(Segment {
            number,
            pool,
            size,
            page,
            mapped,
            first,
            busy,
            base,
            idle,
            holes,
            presence: Presence::Here,
            chunks,
            memory,
        });
        id
    }

    /// Takes a wholly free fixed segment out of the books; its memory is the caller's to give back.
    pub(crate) fn detach_segment(&mut self, arena_id: ArenaId, id: SegmentId) -> (M, Bytes) {
        let config = self.config;
        let size = self.arena(arena_id).segments[id.index()].size;
        self.note_range(Noted::SegmentWent, arena_id, id.index(), (0, size));
        let arena = self.arena(arena_id);
        let Segment { pool, first, size, .. } = arena.segments[id.index()];
        let (group, owner) = (arena.pools[pool].group, arena.pools[pool].owner);
        arena.pools[pool].unlink_idle(&mut arena.segments, id);
        arena.pools[pool].free.remove(&mut arena.blocks, first);
        vacate(&mut arena.blocks, first);
        let memory = arena.segments.remove(id.index()).memory;
        arena.ledger.apply(group, Entry::Release { size });
        if config.max_split_size.is_some_and(|max| to_bytes(size) >= max) {
            arena.ledger.oversize[1].fall(1);
        }
        self.global.owners[owner.index()].book_reserved(group, -(to_bytes(size) as i64));
        (memory, to_bytes(size))
    }

    /// Moves a wholly free fixed segment to the same pool of another arena; returns its block
    /// there.
    pub(crate) fn transfer(&mut self, from: ArenaId, id: SegmentId, to: ArenaId) -> BlockId {
        let config = self.config;
        let size = self.arena(from).segments[id.index()].size;
        self.note_range(Noted::SegmentWent, from, id.index(), (0, size));
        let source = self.arena(from);
        let pool_index = source.segments[id.index()].pool;
        let Pool { group, owner, .. } = source.pools[pool_index];
        source.pools[pool_index].unlink_idle(&mut source.segments, id);
        let first = source.segments[id.index()].first;
        source.pools[pool_index].free.remove(&mut source.blocks, first);
        let size = source.blocks[first.index()].size;
        vacate(&mut source.blocks, first);
        let mut segment = source.segments.remove(id.index());
        source.ledger.apply(group, Entry::Surrender { size });
        let oversize = config.max_split_size.is_some_and(|max| to_bytes(size) >= max);
        source.ledger.oversize[1].current -= u64::from(oversize);

        segment.pool = self.pool(to, owner, group);
        let (epoch, time_us) = (self.global.epoch, self.global.time_us);
        let target = self.arena(to);
        target.ledger.apply(group, Entry::Adopt { size });
        let counter = &mut target.ledger.oversize[1];
        counter.current += u64::from(oversize);
        counter.peak = counter.peak.max(counter.current);
        let new_id = SegmentId::from_index(target.segments.vacant_key());
        // The new owner was made to wait for the old one's work, so its own open tick covers that
        // too.
        let block = Block {
            offset: 0,
            size,
            prev: BlockId::NONE,
            next: BlockId::NONE,
            segment: new_id,
            serial: 0,
            tick: target.open,
            state: State::Free(Links::NONE),
        };
        let block = BlockId::from_index(target.blocks.insert(block));
        segment.first = block;
        let pool = segment.pool;
        target.segments.insert(segment);
        target.make_free(block, config);
        target.pools[pool].link_idle(&mut target.segments, new_id, epoch, time_us);
        self.note_range(Noted::SegmentCame, to, new_id.index(), (0, size));
        block
    }

    /// Segments, or pages, were given back to the device.
    pub(crate) fn commit_release(&mut self, memories: usize, bytes: Bytes) {
        self.global.in_flight -= 1;
        self.global.returns += 1;
        self.allow_breaking(false);
        self.global.reserved -= bytes;
        // Ranges come with no bytes: their pages were counted as they went.
        self.global.counts.device_free += if bytes > 0 { memories as u64 } else { 0 };
    }

    /// The device is gone: nothing runs any more, so nothing waits any more.
    pub(crate) fn lose(&mut self) {
        self.global.lost = true;
        self.arenas.iter_mut().for_each(|arena| arena.lost = true);
        self.absorb();
        for index in 0..self.arenas.len() {
            let stream = ArenaId::from_index(index);
            let open = self.close_tick(stream);
            self.complete_through(stream, open);
        }
    }

    /// The step is about to be performed, with nothing locked: counted until
    /// [`end_calls`](Self::end_calls), so that a stream can be let go, or captured, when nothing
    /// more happens to it.
    pub(crate) fn begin_calls(&mut self, step: &Step<M, E>) {
        for stream in step.touches() {
            self.global.clocks[stream.index()].calls += 1;
        }
    }

    /// The step that touches these streams was performed.
    pub(crate) fn end_calls(&mut self, touched: &[ArenaId]) {
        for stream in touched {
            self.global.clocks[stream.index()].calls -= 1;
        }
    }

    /// The stream is about to go, and with it captures of it. Requests that fail meanwhile wait for
    /// the outcome.
    pub(crate) fn begin_retire(&mut self, stream: ArenaId) {
        self.global.captures.retain(|capture| capture.stream != stream);
        self.global.clocks[stream.index()].closing = true;
        self.global.in_flight += 1;
    }

    /// Claims the place of a gone stream for a new one, which must wait for the event, if there is
    /// one, before [`commit_adopt`](Self::commit_adopt): until then nothing is recorded for that
    /// place.
    pub(crate) fn claim_place(&mut self) -> Option<(ArenaId, Option<Recorded<E>>)> {
        let may_wait = self.device.device_wait;
        let clocks = &mut self.global.clocks;
        let index = clocks.iter().position(|clock| {
            clock.retired && !clock.claimed && (may_wait || clock.events.is_empty())
        })?;
        clocks[index].claimed = true;
        Some((ArenaId::from_index(index), clocks[index].events.back().cloned()))
    }

    /// The new stream is ordered after all that the gone one did.
    pub(crate) fn commit_adopt(&mut self, place: ArenaId) {
        let clock = &mut self.global.clocks[place.index()];
        (clock.retired, clock.claimed) = (false, false);
    }

    /// The stream is gone; the event that covers all it did, if any, was committed before.
    ///
    /// `false` if a block came to wait for the stream meanwhile: another event has to be recorded.
    pub(crate) fn retire(&mut self, stream: ArenaId) -> bool {
        self.absorb();
        if self.global.lost {
            // No event will cover what came to wait since the loss, and nothing runs.
            let open = self.close_tick(stream);
            self.complete_through(stream, open);
        }
        let open = self.arenas[stream.index()].open;
        let clock = &mut self.global.clocks[stream.index()];
        clock.retired = clock.awaited_tick() != Some(open);
        if clock.retired && std::mem::take(&mut clock.closing) {
            self.global.in_flight -= 1;
            self.global.returns += 1;
        }
        clock.retired
    }
}
