//! Events: recording what pending blocks wait for, asking what is complete, waiting for the rest.
//!
//! ```text
//!  fresh frees ─ absorb ─▶ marked ─ record (one a stream) ─▶ poll … poll ─▶ complete ─▶ Free
//! ```
//!
//! Nothing is asked about a stream that must be left alone: one under capture, or about to go. Nor
//! is anything that others do meanwhile: it would go on as long as they do. O(streams) a step.

use crate::core::lifetime::Recorded;
use crate::core::state::{Global, World};
use crate::core::step::Step;
use crate::id::ArenaId;

/// Recording and polling of events for all streams that pending blocks wait for.
#[derive(Debug, Default)]
pub(crate) struct Harvest {
    polled: Polled,
}

/// Polling goes on while it gets anywhere, up to where all streams were when it began.
#[derive(Debug, Default)]
pub(crate) struct Polled {
    /// By stream, the tick behind which nothing is asked.
    until: Vec<u64>,
    /// How far all streams were at the last poll.
    last: Option<u64>,
}

impl Polled {
    /// Whether a tick is of what was there when it began. Streams that came later have none.
    pub(crate) fn reaches(&self, stream: ArenaId, tick: u64) -> bool {
        self.until.get(stream.index()).is_some_and(|&until| tick <= until)
    }
}

/// How a tick can be waited for.
pub(crate) enum Event<E> {
    Recorded(Recorded<E>),
    ToRecord(u64),
    /// The stream is gone and no event is left: it is complete.
    None,
}

impl<E> Global<E> {
    /// Something is tried anew: perhaps every stream can be waited for by now.
    pub(crate) fn listen(&mut self) {
        self.clocks.iter_mut().for_each(|clock| clock.mute = false);
    }
}

impl<M: Clone, E: Clone> World<'_, M, E> {
    /// A poll of the oldest event of every stream, but of those under capture; `None` when there is
    /// none, or the last poll brought nothing.
    pub(crate) fn poll(&self, polled: &mut Polled) -> Option<Step<M, E>> {
        self.set_out(polled);
        let clocks = self.global.clocks.iter().zip(&polled.until);
        let completed = clocks.map(|(clock, &until)| clock.completed.min(until)).sum();
        if polled.last.replace(completed) == Some(completed) {
            return None;
        }
        let clocks = self.global.clocks.iter().enumerate();
        let polls: Vec<_> = clocks
            .map(|(index, clock)| (ArenaId::from_index(index), clock))
            .filter(|&(stream, _)| !self.global.is_apart(stream))
            .filter_map(|(stream, clock)| Some((stream, clock.events.front()?.clone())))
            .collect();
        (!polls.is_empty()).then_some(Step::Poll(polls))
    }

    /// Remembers how far all streams are, the first time.
    pub(crate) fn set_out(&self, polled: &mut Polled) {
        if polled.until.is_empty() {
            polled.until = self.ticks();
        }
    }

    /// The event that covers a tick, or the demand to record one.
    pub(crate) fn event_for(&mut self, stream: ArenaId, tick: u64) -> Event<E> {
        let clock = &self.global.clocks[stream.index()];
        if let Some(recorded) = clock.event_covering(tick) {
            return Event::Recorded(recorded.clone());
        }
        if clock.retired {
            return Event::None;
        }
        Event::ToRecord(self.close_tick(stream))
    }

    /// Towards the completion of pending blocks: record what no event covers, or wait for the
    /// newest event that one of them needs. `None` when nothing waits (but for streams that must be
    /// left alone). `until` has the ticks, by stream, behind which nothing is waited for.
    pub(crate) fn await_pending(&mut self, until: Option<&[u64]>) -> Option<Step<M, E>> {
        for index in 0..self.global.clocks.len() {
            let stream = ArenaId::from_index(index);
            if self.global.is_apart(stream) {
                continue;
            }
            let Some(tick) = self.global.clocks[index].awaited_tick() else { continue };
            // Streams that came later than the ticks have none.
            let last = until.map_or(u64::MAX, |ticks| ticks.get(index).copied().unwrap_or(0));
            let tick = tick.min(last);
            if tick <= self.global.clocks[index].completed {
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

    /// The next step of a harvest: record what pending blocks wait for, then poll.
    pub(crate) fn advance_harvest(&mut self, harvest: &mut Harvest) -> Option<Step<M, E>> {
        if harvest.polled.until.is_empty() {
            self.global.listen();
        }
        let step = self.harvest_step(harvest);
        step.iter().for_each(|step| self.begin_calls(step));
        step
    }

    pub(crate) fn harvest_step(&mut self, harvest: &mut Harvest) -> Option<Step<M, E>> {
        self.absorb();
        self.set_out(&mut harvest.polled);
        for index in 0..self.global.clocks.len() {
            let stream = ArenaId::from_index(index);
            let open = self.arenas[index].open;
            let is_awaited = self.global.clocks[index].awaited_tick() == Some(open);
            let asks = is_awaited && harvest.polled.reaches(stream, open);
            if asks && !self.global.is_apart(stream) {
                let tick = self.close_tick(stream);
                return Some(Step::Record { stream, tick });
            }
        }
        self.poll(&mut harvest.polled)
    }
}
