//! Events: recording what pending blocks wait for, asking what is complete, waiting for the rest.
//!
//! ```text
//!  fresh frees ─ absorb ─▶ marked ─ record (one a stream) ─▶ poll … poll ─▶ complete ─▶ Free
//! ```
//!
//! Nothing is asked about a stream that must be left alone: one under capture, or about to go.
//! O(streams) a step.

use crate::core::lifetime::Recorded;
use crate::core::state::World;
use crate::core::step::Step;
use crate::id::ArenaId;

/// Recording and polling of events for all streams that pending blocks wait for.
#[derive(Debug, Default)]
pub(crate) struct Harvest {
    polled: Polled,
}

/// How far all streams were at the last poll: polling goes on while it gets anywhere.
#[derive(Debug, Default)]
pub(crate) struct Polled(Option<u64>);

/// How a tick can be waited for.
pub(crate) enum Event<E> {
    Recorded(Recorded<E>),
    ToRecord(u64),
    /// The stream is gone and no event is left: it is complete.
    None,
}

impl<M: Clone, E: Clone> World<'_, M, E> {
    /// A poll of the oldest event of every stream, but of those under capture; `None` when there is
    /// none, or the last poll brought nothing.
    pub(crate) fn poll(&self, polled: &mut Polled) -> Option<Step<M, E>> {
        let completed = self.global.clocks.iter().map(|clock| clock.completed).sum();
        if polled.0.replace(completed) == Some(completed) {
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
        let step = self.harvest_step(harvest);
        step.iter().for_each(|step| self.begin_calls(step));
        step
    }

    pub(crate) fn harvest_step(&mut self, harvest: &mut Harvest) -> Option<Step<M, E>> {
        self.absorb();
        for index in 0..self.global.clocks.len() {
            let stream = ArenaId::from_index(index);
            let awaited = self.global.clocks[index].awaited_tick();
            if awaited == Some(self.arenas[index].open) && !self.global.is_apart(stream) {
                let tick = self.close_tick(stream);
                return Some(Step::Record { stream, tick });
            }
        }
        self.poll(&mut harvest.polled)
    }
}
