//! A trace as plain steps, for contenders that know sizes only: streams, uses on other streams and
//! markers are left out, which makes it easier for them.

use std::collections::HashMap;

use aquifer::trace::{Event, Trace};

use super::contest::Contender;
use super::cpu_nanoseconds_each;

/// Allocations and frees in order.
#[derive(Debug, Clone)]
pub(crate) struct Steps {
    /// A slot and the bytes to allocate into it; 0 bytes for a free.
    list: Vec<(usize, u64)>,
    slots: usize,
}

impl Steps {
    pub(crate) fn new(trace: &Trace) -> Self {
        let (mut slot_of, mut vacant) = (HashMap::new(), Vec::new());
        let (mut list, mut slots) = (Vec::new(), 0);
        for event in &trace.events {
            match *event {
                Event::Allocate { id, size, .. } => {
                    let slot = vacant.pop().unwrap_or_else(|| {
                        slots += 1;
                        slots - 1
                    });
                    slot_of.insert(id, slot);
                    list.push((slot, size));
                }
                Event::Free { id } => {
                    let slot = slot_of.remove(&id).expect("a reader lets nothing else through");
                    vacant.push(slot);
                    list.push((slot, 0));
                }
                Event::Use { .. } | Event::Marker(_) => {}
            }
        }
        Self { list, slots }
    }

    /// The most blocks that are live at a time.
    pub(crate) fn blocks(&self) -> usize {
        self.slots
    }

    /// Runs all of it and frees what is left: nanoseconds a step, or `None` if there is no room.
    pub(crate) fn run<M: Contender>(&self, memory: &mut M) -> Option<f64> {
        self.timed(memory, |count, work| cpu_nanoseconds_each(count, work))
    }

    /// The same by a clock of the caller's: nanoseconds of each of so many steps of what it runs.
    pub(crate) fn timed<M: Contender>(
        &self,
        memory: &mut M,
        clock: impl FnOnce(usize, &mut dyn FnMut()) -> f64,
    ) -> Option<f64> {
        let mut live: Vec<Option<M::Block>> = Vec::new();
        live.resize_with(self.slots, || None);
        let mut has_room = true;
        let each = clock(self.list.len(), &mut || {
            for &(slot, size) in &self.list {
                if let Some(block) = live[slot].take() {
                    memory.free(block);
                }
                if size > 0 {
                    live[slot] = memory.allocate(size);
                    if live[slot].is_none() {
                        has_room = false;
                        return;
                    }
                }
            }
        });
        live.into_iter().flatten().for_each(|block| memory.free(block));
        has_room.then_some(each)
    }
}
