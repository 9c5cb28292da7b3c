//! When a free completes: timelines, marks, events.
//!
//! Every stream has a clock that ticks when an event is recorded on it:
//!
//! ```text
//!  stream S   work  work ▲ work ▲ work  work ▲ work ……
//!                        │t=1   │t=2         │t=3      open = 4: covered by the next event
//!             completed = 1: the event of tick 1 was seen complete
//! ```
//!
//! - A block remembers the tick that was open when its own stream last used it. The same stream may
//!   have it at once; another stream A may have it when `tick ≤ completed(S)` or `tick ≤ seen(A,
//!   S)`, the latest tick of S that A was made to wait for on the device.
//! - A block that other streams used (`record_stream`) is Pending after its free, with one mark
//!   (stream, tick) for each of them. It completes when all marks are completed; its own stream may
//!   have it earlier, when it was made to wait for them.
//!
//! Events are recorded lazily, one for a stream and all frees since the last: frees of used blocks
//! queue up `fresh`, unmarked; the next operation that holds all arenas marks them with the open
//! tick, which is later than their use, never earlier. So nothing is recorded for memory that
//! nobody asks for.
//!
//! - T1: `completed(S) < open(S)`; the events of a clock ascend strictly by tick, all in between.
//! - T2: a mark's tick is at most the open tick of its stream.
//! - T3: every marked pending block is in the queue of a stream on which it has a mark that is not
//!   yet completed. (Queues may hold leftovers of blocks that completed otherwise; those are
//!   skipped.)

use std::collections::VecDeque;

use crate::core::arena::Arena;
use crate::core::block::{Holder, State};
use crate::core::state::World;
use crate::id::{ArenaId, BlockId, SideId};

/// A point on a stream's timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) stream: ArenaId,
    pub(crate) tick: u64,
}

impl Mark {
    /// The tick of a mark that is not set yet.
    pub(crate) const UNSET: u64 = u64::MAX;
}

/// What a pending block waits for, and who held it.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) holder: Holder,
    pub(crate) marks: Vec<Mark>,
}

/// An event on its stream. `E` is the backend's event, opaque here.
#[derive(Debug, Clone)]
pub(crate) struct Recorded<E> {
    pub(crate) tick: u64,
    pub(crate) event: E,
}

/// The timeline of one stream.
#[derive(Debug)]
pub(crate) struct Clock<E> {
    /// Everything up to this tick is known to be done.
    pub(crate) completed: u64,
    /// Events not yet seen complete, oldest first.
    pub(crate) events: VecDeque<Recorded<E>>,
    /// By arena: the latest tick of that stream which this stream's later work waits for.
    pub(crate) seen: Vec<u64>,
    /// Pending blocks that wait for this stream, by tick.
    queue: VecDeque<Queued>,
    /// The stream is gone; its last event covers all it ever did.
    pub(crate) retired: bool,
    /// A new stream is about to take the place of a gone one.
    pub(crate) claimed: bool,
    /// The stream is about to go: nothing is asked of it any more.
    pub(crate) closing: bool,
    /// Its last mark could not be waited for when that was tried last, for it is captured and
    /// nobody said so: left alone until something else is tried.
    pub(crate) mute: bool,
    /// Backend calls that concern this stream and are under way.
    pub(crate) calls: u32,
    /// Recordings of work for this stream that the program has not handed to the device.
    pub(crate) recordings: u32,
}

#[derive(Debug, Clone, Copy)]
struct Queued {
    tick: u64,
    arena: ArenaId,
    block: BlockId,
    side: SideId,
}

impl<E> Clock<E> {
    pub(crate) fn new() -> Self {
        Self {
            completed: 0,
            events: VecDeque::new(),
            seen: Vec::new(),
            queue: VecDeque::new(),
            retired: false,
            claimed: false,
            closing: false,
            mute: false,
            calls: 0,
            recordings: 0,
        }
    }

    /// The latest tick of `stream` that this stream's later work waits for.
    pub(crate) fn has_seen(&self, stream: ArenaId) -> u64 {
        self.seen.get(stream.index()).copied().unwrap_or(0)
    }

    fn see(&mut self, stream: ArenaId, tick: u64) {
        if self.seen.len() <= stream.index() {
            self.seen.resize(stream.index() + 1, 0);
        }
        let seen = &mut self.seen[stream.index()];
        *seen = (*seen).max(tick);
    }

    fn enqueue(&mut self, entry: Queued) {
        let at = self.queue.partition_point(|queued| queued.tick <= entry.tick);
        self.queue.insert(at, entry);
    }

    /// The oldest event that covers `tick`, if one was recorded.
    pub(crate) fn event_covering(&self, tick: u64) -> Option<&Recorded<E>> {
        let at = self.events.partition_point(|recorded| recorded.tick < tick);
        self.events.get(at)
    }

    /// The newest tick that a pending block waits for.
    pub(crate) fn awaited_tick(&self) -> Option<u64> {
        self.queue.back().map(|queued| queued.tick)
    }
}

impl<M, E: Clone> World<'_, M, E> {
    /// Marks the fresh pending blocks with their streams' open ticks and queues them.
    pub(crate) fn absorb(&mut self) {
        for index in 0..self.arenas.len() {
            let fresh = std::mem::take(&mut self.arenas[index].fresh);
            for block in fresh {
                let State::Pending { side, .. } = self.arenas[index].blocks[block.index()].state
                else {
                    continue;
                };
                let mut marks = std::mem::take(&mut self.arenas[index].waiting[side.index()].marks);
                for mark in &mut marks {
                    mark.tick = self.tick_of(mark.stream);
                }
                self.arenas[index].waiting[side.index()].marks = marks;
                self.complete_or_queue(ArenaId::from_index(index), block, side);
            }
        }
    }

    /// Whether any block is pending.
    pub(crate) fn has_waiting(&self) -> bool {
        self.arenas.iter().any(|arena| !arena.waiting.is_empty())
    }

    /// The tick that covers everything `stream` did so far: the open one, or the last of a gone
    /// stream.
    fn tick_of(&self, stream: ArenaId) -> u64 {
        let open = self.arenas[stream.index()].open;
        if self.global.clocks[stream.index()].retired { open - 1 } else { open }
    }

    /// A point on a timeline, cut to its end if the stream is gone: its last event covers
    /// everything.
    pub(crate) fn point(&self, stream: ArenaId, tick: u64) -> Mark {
        Mark { stream, tick: tick.min(self.tick_of(stream)) }
    }

    /// How far every stream is.
    pub(crate) fn ticks(&self) -> Vec<u64> {
        let streams = (0..self.arenas.len()).map(ArenaId::from_index);
        streams.map(|stream| self.point(stream, u64::MAX).tick).collect()
    }

    pub(crate) fn is_completed(&self, mark: &Mark) -> bool {
        mark.tick <= self.global.clocks[mark.stream.index()].completed
    }

    /// Whether stream `reader` may touch what `mark` stands for.
    pub(crate) fn is_ordered(&self, reader: ArenaId, mark: &Mark) -> bool {
        mark.stream == reader
            || self.is_completed(mark)
            || mark.tick <= self.global.clocks[reader.index()].has_seen(mark.stream)
    }

    /// A marked pending block: completes it if nothing is left to wait for, else queues it.
    fn complete_or_queue(&mut self, arena: ArenaId, block: BlockId, side: SideId) {
        let marks = &self.arenas[arena.index()].waiting[side.index()].marks;
        match marks.iter().find(|mark| !self.is_completed(mark)) {
            None => self.promote(arena, block),
            Some(&Mark { stream, tick }) => {
                let entry = Queued { tick, arena, block, side };
                self.global.clocks[stream.index()].enqueue(entry);
            }
        }
    }

    /// What a pending block waits for.
    pub(crate) fn waiting_of(&self, arena: ArenaId, block: BlockId) -> &Waiting {
        let arena = &self.arenas[arena.index()];
        match arena.blocks[block.index()].state {
            State::Pending { side, .. } => &arena.waiting[side.index()],
            ref other => panic!("B2 is broken: a block in the pending bins is {other:?}"),
        }
    }

    /// Makes a pending block Free.
    pub(crate) fn promote(&mut self, arena: ArenaId, block: BlockId) {
        let config = self.config;
        self.note_completion(arena, block);
        let arena = &mut self.arenas[arena.index()];
        let requested = arena.unpend(block);
        let freed = arena.complete(block, requested, config);
        self.global.purge |= freed.purge;
    }

    /// Makes a pending block Free for its own stream, which was made to wait for the others on the
    /// device: that wait comes after the free, so only the open tick covers it.
    pub(crate) fn promote_for_own(&mut self, arena: ArenaId, block: BlockId) {
        self.arenas[arena.index()].blocks[block.index()].tick = self.arenas[arena.index()].open;
        self.promote(arena, block);
    }

    /// Everything up to `tick` of `stream` is done.
    pub(crate) fn complete_through(&mut self, stream: ArenaId, tick: u64) {
        // A leftover may name a block that is fresh again, which must not be queued unmarked.
        self.absorb();
        let clock = &mut self.global.clocks[stream.index()];
        clock.completed = clock.completed.max(tick);
        let completed = clock.completed;
        while clock.events.front().is_some_and(|recorded| recorded.tick <= completed) {
            clock.events.pop_front();
        }
        while let Some(entry) = self.next_done(stream, completed) {
            let arena = &self.arenas[entry.arena.index()];
            let state = arena.blocks.get(entry.block.index()).map(|block| &block.state);
            // A block that completed otherwise left its entry behind.
            if matches!(state, Some(State::Pending { side, .. }) if *side == entry.side) {
                self.complete_or_queue(entry.arena, entry.block, entry.side);
            }
        }
    }

    fn next_done(&mut self, stream: ArenaId, completed: u64) -> Option<Queued> {
        let queue = &mut self.global.clocks[stream.index()].queue;
        let done = queue.front().is_some_and(|entry| entry.tick <= completed);
        if done { queue.pop_front() } else { None }
    }

    /// Closes the open tick of `stream`: the caller records an event, which will cover it.
    pub(crate) fn close_tick(&mut self, stream: ArenaId) -> u64 {
        let tick = self.arenas[stream.index()].open;
        self.arenas[stream.index()].open += 1;
        tick
    }

    /// The event that [`close_tick`](Self::close_tick) announced was recorded.
    pub(crate) fn commit_record(&mut self, stream: ArenaId, tick: u64, event: E) {
        let clock = &mut self.global.clocks[stream.index()];
        if tick <= clock.completed {
            return;
        }
        let at = clock.events.partition_point(|recorded| recorded.tick < tick);
        clock.events.insert(at, Recorded { tick, event });
    }

    /// Later work of `reader` waits, on the device, for `tick` of `stream`.
    pub(crate) fn commit_wait_on(&mut self, reader: ArenaId, stream: ArenaId, tick: u64) {
        self.global.clocks[reader.index()].see(stream, tick);
    }
}

impl<M> Arena<M> {
    /// Takes a pending block out of its bin and forgets what it waited for; returns the bytes that
    /// its holder had asked for.
    fn unpend(&mut self, block: BlockId) -> u64 {
        let State::Pending { side, .. } = self.blocks[block.index()].state else {
            panic!("T3 is broken: a block that waits is {:?}", self.blocks[block.index()].state);
        };
        let pool = self.segments[self.blocks[block.index()].segment.index()].pool;
        self.pools[pool].pending.remove(&mut self.blocks, block);
        self.waiting.remove(side.index()).holder.requested
    }
}
