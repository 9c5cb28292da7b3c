//! Replays a trace through the public API of an allocator, over any backend.
//!
//! A [`Program`] is a trace made ready: identifiers become slots of one array and stream numbers
//! become indices, so that a run does nothing but call the allocator. Running costs the allocator's
//! own time plus a few nanoseconds an event.

use std::collections::HashMap;

use crate::allocator::{AllocError, Allocation, Allocator, Stream};
use crate::backend::Backend;
use crate::trace::{Event, Trace};
use crate::units::Bytes;

/// One event, ready to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Allocate { slot: u32, stream: u32, size: Bytes },
    Free { slot: u32 },
    Use { slot: u32, stream: u32 },
    EmptyCache,
    Nothing,
}

/// A trace, ready to run.
#[derive(Debug, Clone)]
pub struct Program {
    ops: Vec<Op>,
    slots: usize,
    streams: Vec<u32>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Every event was carried out.
    Done,
    /// An allocation failed; the events behind it were not run.
    Failed {
        /// Index of the event in the trace.
        event: usize,
        /// Why.
        error: AllocError,
    },
}

impl Program {
    /// Makes a trace ready. With `obey_markers`, `m empty_cache` calls `empty_cache`; all other
    /// markers do nothing. Events that name no live identifier, which no reader lets through, do
    /// nothing either.
    pub fn compile(trace: &Trace, obey_markers: bool) -> Self {
        let mut streams: Vec<u32> = Vec::new();
        let mut stream_of = |number: u32| {
            let known = streams.iter().position(|&stream| stream == number);
            known.unwrap_or_else(|| {
                streams.push(number);
                streams.len() - 1
            }) as u32
        };
        let mut live: HashMap<u64, u32> = HashMap::new();
        let mut vacant: Vec<u32> = Vec::new();
        let mut slots = 0;
        let mut ops = Vec::with_capacity(trace.events.len());
        for event in &trace.events {
            ops.push(match event {
                Event::Allocate { id, size, stream } => {
                    let slot = vacant.pop().unwrap_or_else(|| {
                        slots += 1;
                        slots - 1
                    });
                    live.insert(*id, slot);
                    Op::Allocate { slot, stream: stream_of(*stream), size: *size }
                }
                Event::Free { id } => live.remove(id).map_or(Op::Nothing, |slot| {
                    vacant.push(slot);
                    Op::Free { slot }
                }),
                Event::Use { id, stream } => live
                    .get(id)
                    .map_or(Op::Nothing, |&slot| Op::Use { slot, stream: stream_of(*stream) }),
                Event::Marker(label) if obey_markers && label == "empty_cache" => Op::EmptyCache,
                Event::Marker(_) => Op::Nothing,
            });
        }
        Self { ops, slots: slots as usize, streams }
    }

    /// The trace's stream numbers, in order of appearance: a run needs one handle for each.
    pub fn streams(&self) -> &[u32] {
        &self.streams
    }

    /// Number of allocations, frees and uses.
    pub fn events(&self) -> usize {
        let counts = |op: &&Op| !matches!(op, Op::EmptyCache | Op::Nothing);
        self.ops.iter().filter(counts).count()
    }

    /// Runs everything; what is live at the end is freed. `streams[k]` stands for
    /// `self.streams()[k]`.
    ///
    /// # Panics
    /// If there are fewer handles than streams.
    pub fn run<B: Backend>(&self, allocator: &Allocator<B>, streams: &[Stream<B>]) -> Outcome {
        self.run_observed(allocator, streams, |_| {})
    }

    /// As [`run`](Self::run); `observe` is called after every event with its index.
    ///
    /// # Panics
    /// If there are fewer handles than streams.
    pub fn run_observed<B: Backend>(
        &self,
        allocator: &Allocator<B>,
        streams: &[Stream<B>],
        mut observe: impl FnMut(usize),
    ) -> Outcome {
        assert!(streams.len() >= self.streams.len(), "one handle for each stream of the trace");
        let mut live: Vec<Option<Allocation<B>>> = Vec::new();
        live.resize_with(self.slots, || None);
        for (index, op) in self.ops.iter().enumerate() {
            match *op {
                Op::Allocate { slot, stream, size } => {
                    match allocator.allocate_on(&streams[stream as usize], size) {
                        Ok(allocation) => live[slot as usize] = Some(allocation),
                        Err(error) => return Outcome::Failed { event: index, error },
                    }
                }
                Op::Free { slot } => live[slot as usize] = None,
                Op::Use { slot, stream } => {
                    if let Some(allocation) = &live[slot as usize] {
                        allocator.record_stream(allocation, &streams[stream as usize]);
                    }
                }
                Op::EmptyCache => {
                    allocator.empty_cache();
                }
                Op::Nothing => {}
            }
            observe(index);
        }
        Outcome::Done
    }
}
