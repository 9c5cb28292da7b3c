//! Which events of a history contradict the state at its end.
//!
//! Viewers know the state at the end, and get to every earlier one by undoing events, newest first:
//!
//! ```text
//!   the newest                                                                     the oldest
//!   segment_free   free_completed  free_requested  alloc            segment_alloc
//!   memory is      the block is    the block is    the block is     the memory is
//!   back           pending again   allocated       gone             gone
//! ```
//!
//! So a history whose oldest events are lost is as good as a whole one. But one from which events
//! of some kind were left out, or of a foreign file, may ask for what is not there, at which
//! viewers stop. An event is left out if undoing it
//!
//! - U1: frees a block where one is live, or where there is no memory;
//! - U2: asks a block to be pending that is not, or to go that is not there;
//! - U3: brings memory back where there is some, or takes memory away that is not there, or that
//!   has live blocks in it.
//!
//! What is left is consistent by construction: each event is undone on the state after those that
//! stay. Cost: 24 bytes a live block, O(log blocks) an event.

use std::collections::BTreeMap;

use crate::report::exchange::layout::{by_address, place_of, runs};
use crate::report::history::{Action, Event};
use crate::report::snapshot::{BlockState, Snapshot};
use crate::units::Bytes;

/// A set of events by index.
pub(super) struct Events(Vec<u64>);

impl Events {
    pub(super) fn has(&self, index: usize) -> bool {
        self.0.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    fn add(&mut self, index: usize) {
        let word = index / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (index % 64);
    }
}

/// The events that viewers would stumble over; `None` if there are none.
pub(super) fn contradictions(snapshot: &Snapshot) -> Option<Events> {
    let history = &snapshot.history;
    if history.is_empty() {
        return None;
    }
    let mut state = State::at_end(snapshot);
    let mut found = Events(Vec::new());
    let mut index = history.len();
    while index > 0 {
        index -= 1;
        let event = &history[index];
        // A free at once is one step: viewers fold the two events.
        let before = index.checked_sub(1).map(|before| &history[before]);
        let at_once = event.action == Action::FreeCompleted
            && before.is_some_and(|before| {
                before.action == Action::FreeRequested && before.address == event.address
            });
        if at_once {
            index -= 1;
            if !state.revive(event, false) {
                found.add(index);
                found.add(index + 1);
            }
        } else if !state.undo(event) {
            found.add(index);
        }
    }
    (!found.0.is_empty()).then_some(found)
}

/// What there is at one time.
struct State {
    /// Live blocks: whether they are pending.
    blocks: BTreeMap<u64, bool>,
    memory: BTreeMap<u64, Run>,
}

/// Contiguous memory of one stream.
#[derive(Clone, Copy)]
struct Run {
    size: Bytes,
    stream: u32,
}

impl State {
    fn at_end(snapshot: &Snapshot) -> Self {
        let segments = by_address(&snapshot.segments);
        let parts = || segments.iter().flat_map(|segment| runs(segment).map(|run| (*segment, run)));
        // Both ascend by address, so that the maps are built in one pass.
        let memory = parts().map(|(segment, run)| {
            let size = run.iter().map(|block| block.size).fold(0, Bytes::saturating_add);
            (place_of(segment, &run[0]), Run { size, stream: segment.stream })
        });
        let blocks = parts().flat_map(|(segment, run)| {
            run.iter().filter_map(move |block| match block.state {
                BlockState::Allocated => Some((place_of(segment, block), false)),
                BlockState::Pending => Some((place_of(segment, block), true)),
                BlockState::Free | BlockState::Growing => None,
            })
        });
        Self { memory: memory.collect(), blocks: blocks.collect() }
    }

    /// Undoes an event; `false` if that cannot be, and then nothing has changed.
    fn undo(&mut self, event: &Event) -> bool {
        match event.action {
            Action::Alloc => self.blocks.remove(&event.address).is_some(),
            Action::FreeCompleted => self.revive(event, true),
            Action::FreeRequested => match self.blocks.get_mut(&event.address) {
                Some(pending) => std::mem::replace(pending, false),
                None => false,
            },
            Action::SegmentFree => self.restore(event, false),
            Action::SegmentUnmap => self.restore(event, true),
            Action::SegmentAlloc | Action::SegmentMap => self.remove(event),
            Action::Snapshot | Action::Oom => true,
        }
    }

    /// The run in which the address lies.
    fn run_at(&self, address: u64) -> Option<(u64, Run)> {
        let (&start, &run) = self.memory.range(..=address).next_back()?;
        (address - start < run.size).then_some((start, run))
    }

    /// A freed block is there again.
    fn revive(&mut self, event: &Event, pending: bool) -> bool {
        if self.run_at(event.address).is_none() || self.blocks.contains_key(&event.address) {
            return false;
        }
        self.blocks.insert(event.address, pending);
        true
    }

    /// Memory is back, and one with what touches it, if it is pages.
    fn restore(&mut self, event: &Event, merges: bool) -> bool {
        let Event { address: start, size, stream, .. } = *event;
        let Some(end) = start.checked_add(size).filter(|end| *end > start) else { return false };
        let below = self.memory.range(..end).next_back().map(|(&start, &run)| (start, run));
        if below.is_some_and(|(below, run)| below.saturating_add(run.size) > start) {
            return false;
        }
        let mut run = Run { size, stream };
        if !merges {
            self.memory.insert(start, run);
            return true;
        }
        if let Some(&above) = self.memory.get(&end)
            && above.stream == stream
        {
            self.memory.remove(&end);
            run.size += above.size;
        }
        match below {
            Some((below, lower)) if below + lower.size == start && lower.stream == stream => {
                run.size += lower.size;
                self.memory.insert(below, run);
            }
            _ => drop(self.memory.insert(start, run)),
        }
        true
    }

    /// Memory is not there yet: a whole segment, or pages out of a run.
    fn remove(&mut self, event: &Event) -> bool {
        let Event { address: start, size, .. } = *event;
        let Some(end) = start.checked_add(size).filter(|end| *end > start) else { return false };
        let Some((below, run)) = self.run_at(start) else { return false };
        let stop = below + run.size;
        let whole = event.action == Action::SegmentAlloc;
        let fits = if whole { (below, stop) == (start, end) } else { end <= stop };
        if !fits || self.blocks.range(start..end).next().is_some() {
            return false;
        }
        self.memory.remove(&below);
        if below < start {
            self.memory.insert(below, Run { size: start - below, ..run });
        }
        if end < stop {
            self.memory.insert(end, Run { size: stop - end, ..run });
        }
        true
    }
}

#[cfg(test)]
mod tests;
