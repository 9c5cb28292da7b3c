//! Streams, events and who waits for whom: vector clocks over work that nobody does.
//!
//! Work on a stream is a number, its position: 1, 2, 3 …. A stream knows how much was submitted to
//! it, how much of that is done, and, as a clock, how far every *other* stream is certain to be
//! before its own next work begins.
//!
//! ```text
//!   stream 0   1 ── 2 ──●A           A = (0: 2)
//!                        ╲ wait_on
//!   stream 1   1 ─────────┬─ 2 ──●B  B = (1: 2, 0: 2)
//!                                 ╲ wait_on
//!   stream 2   ────────────────────┬ next work: after 2 on stream 0 and 2 on stream 1
//! ```
//!
//! Invariants, of every stream:
//!
//! - T1: `completed <= submitted`.
//! - T2: clocks are closed: whatever a known position depends on is in the clock as well.
//! - T3: `barriers` are in order of position, and each clock is at least the one before it: the
//!   last one at or below a position says all that the next work waits for.
//! - T4: work is complete only if everything it waits for is.

use std::collections::BTreeMap;

/// For each stream, the position that is certain to be reached.
type Clock = BTreeMap<u32, u64>;

/// Takes the later position of each stream.
fn join(clock: &mut Clock, other: &Clock) {
    for (&stream, &position) in other {
        let known = clock.entry(stream).or_default();
        *known = position.max(*known);
    }
}

/// One piece of work on a stream: what a kernel would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkId {
    /// The stream that it runs on.
    pub stream: u32,
    /// Its place on the stream, from 1 on.
    pub position: u64,
}

/// A mark on a simulated stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimEvent {
    last: WorkId,
    /// All that must be done before the mark is reached, `last` included.
    clock: Clock,
}

impl SimEvent {
    /// The last work before the mark.
    pub fn last(&self) -> WorkId {
        self.last
    }
}

#[derive(Debug, Default)]
struct Stream {
    submitted: u64,
    completed: u64,
    knows: Clock,
    /// `(position, clock)`: work after `position` waits for `clock`.
    barriers: Vec<(u64, Clock)>,
}

impl Stream {
    /// Moves `completed` on, and forgets barriers that a later one, reached as well, includes.
    fn finish_to(&mut self, position: u64) {
        self.completed = self.completed.max(position);
        let reached = self.barriers_reached();
        self.barriers.drain(..reached.saturating_sub(1));
    }

    /// How many barriers the next work to finish stands behind.
    fn barriers_reached(&self) -> usize {
        self.barriers.partition_point(|&(position, _)| position <= self.completed)
    }
}

/// All streams of one device. A stream exists from its first use on.
#[derive(Debug)]
pub(super) struct Timeline {
    streams: BTreeMap<u32, Stream>,
    asynchronous: bool,
}

impl Timeline {
    pub(super) fn new(asynchronous: bool) -> Self {
        Self { streams: BTreeMap::new(), asynchronous }
    }

    pub(super) fn submit(&mut self, id: u32) -> WorkId {
        let stream = self.streams.entry(id).or_default();
        stream.submitted += 1;
        if !self.asynchronous {
            stream.completed = stream.submitted;
        }
        WorkId { stream: id, position: stream.submitted }
    }

    /// A mark on an idle stream gets work of its own to stand behind: no event of an asynchronous
    /// device is complete before a hand has moved.
    pub(super) fn record(&mut self, id: u32) -> SimEvent {
        let stream = self.streams.entry(id).or_default();
        if self.asynchronous && stream.completed == stream.submitted {
            stream.submitted += 1;
        }
        let last = WorkId { stream: id, position: stream.submitted };
        let mut clock = stream.knows.clone();
        clock.insert(id, last.position);
        SimEvent { last, clock }
    }

    pub(super) fn is_complete(&self, event: &SimEvent) -> bool {
        // Not of `last` alone: the stream may wait for others between that and the mark.
        event.clock.iter().all(|(&stream, &position)| self.is_done(WorkId { stream, position }))
    }

    fn is_done(&self, work: WorkId) -> bool {
        let completed = self.streams.get(&work.stream).map_or(0, |stream| stream.completed);
        completed >= work.position
    }

    pub(super) fn wait_on(&mut self, id: u32, event: &SimEvent) {
        if !self.asynchronous {
            return; // The event is complete.
        }
        let stream = self.streams.entry(id).or_default();
        join(&mut stream.knows, &event.clock);
        match stream.barriers.last_mut() {
            Some((position, clock)) if *position == stream.submitted => {
                clock.clone_from(&stream.knows);
            }
            _ => stream.barriers.push((stream.submitted, stream.knows.clone())),
        }
    }

    /// Whether `work`, and all before it on its stream, is certain to be done before work that is
    /// submitted to stream `id` next begins.
    pub(super) fn is_ordered(&self, work: WorkId, id: u32) -> bool {
        let known = self.streams.get(&id).and_then(|stream| stream.knows.get(&work.stream));
        work.stream == id || self.is_done(work) || known.is_some_and(|&at| at >= work.position)
    }

    /// Whether the next work of `later` was made to wait for all of `earlier` so far.
    pub(super) fn is_joined(&self, earlier: u32, later: u32) -> bool {
        let submitted = self.streams.get(&earlier).map_or(0, |stream| stream.submitted);
        let known = self.streams.get(&later).and_then(|stream| stream.knows.get(&earlier));
        earlier == later || known.is_some_and(|&at| at >= submitted)
    }

    /// Finishes the event, and first of all whatever it waits for.
    pub(super) fn complete_event(&mut self, event: &SimEvent) {
        self.finish(&event.clock);
    }

    /// Finishes all that was submitted to the stream, and first of all whatever that waits for.
    pub(super) fn complete(&mut self, id: u32) {
        let stream = self.streams.entry(id).or_default();
        let mut clock = stream.knows.clone();
        clock.insert(id, stream.submitted);
        self.finish(&clock);
    }

    pub(super) fn complete_all(&mut self) {
        for stream in self.streams.values_mut() {
            stream.finish_to(stream.submitted);
        }
    }

    /// Finishes up to `count` pieces of work, and stops in front of one that has to wait. Returns
    /// how many were finished.
    pub(super) fn advance(&mut self, id: u32, count: u64) -> u64 {
        let mut finished = 0;
        while finished < count && self.can_finish_next(id) {
            let Some(stream) = self.streams.get_mut(&id) else { break };
            stream.finish_to(stream.completed + 1);
            finished += 1;
        }
        finished
    }

    fn can_finish_next(&self, id: u32) -> bool {
        let Some(stream) = self.streams.get(&id) else { return false };
        let last = stream.barriers_reached().checked_sub(1);
        let waits_for = last.map(|index| &stream.barriers[index].1);
        let waits_done = waits_for.is_none_or(|clock| {
            clock.iter().all(|(&stream, &position)| self.is_done(WorkId { stream, position }))
        });
        stream.completed < stream.submitted && waits_done
    }

    /// By T2 the clock names everything that has to be finished, so T4 holds afterwards.
    fn finish(&mut self, clock: &Clock) {
        for (&id, &position) in clock {
            let stream = self.streams.entry(id).or_default();
            assert!(
                position <= stream.submitted,
                "sim: position {position} of stream {id} was never submitted; is the event from \
                 another Sim?"
            );
            stream.finish_to(position);
        }
    }
}
