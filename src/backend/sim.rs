//! The simulated device: a capacity, addresses and streams, and no bytes at all.
//!
//! It runs the allocator in tests, replays and plans. Nothing in it depends on time, threads or
//! chance: the same calls get the same answers. A clone drives it from outside:
//!
//! ```text
//!   allocator ──── calls ────▶ Sim ──┐
//!                                    ├─ one state, one lock
//!   test ──── fail_at, complete,     │    calls.rs     counts, and failures at the n-th call
//!             calls, … ──────▶ Sim ──┘    space.rs     addresses, mappings, capacity
//!                                         timeline.rs  streams, events, who waits for whom
//! ```
//!
//! `contract.rs` is the allocator's side of it, `memory.rs` what the allocator holds, this file the
//! side of the test.
//!
//! Misuse by the caller is a panic with the broken rule in it; see `sim/space.rs`. Memory that is
//! dropped instead of given back is counted, see [`Sim::leaked`].
//!
//! Every call takes the one lock and costs O(log n) and little more, but for `allocate` and
//! `reserve`, which walk the live ranges.

#[cfg(test)]
mod tests;

mod calls;
mod contract;
mod memory;
mod space;
mod timeline;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use calls::{CallCounts, Fault};
pub use memory::{SimChunk, SimMemory, SimView};
pub use timeline::{SimEvent, WorkId};

use crate::units::{Bytes, GRANULE, MIB, SEGMENT_MAX};

/// What a simulated device is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimOptions {
    /// Bytes of the device; 1 TiB.
    pub capacity: Bytes,
    /// Whether it has virtual memory; no.
    pub virtual_memory: bool,
    /// Whether work goes on until a hand finishes it ([`Sim::complete`] and its like); no: all work
    /// is done as soon as it is submitted.
    pub asynchronous: bool,
    /// Granularity and alignment of segments and chunks, a power of two of at least 512; 2 MiB.
    pub granularity: Bytes,
    /// Whether streams can wait for events without the host; yes.
    pub device_wait: bool,
    /// The largest segment and the largest range of addresses; the largest the core can describe.
    pub segment_max: Bytes,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            capacity: 1 << 40,
            virtual_memory: false,
            asynchronous: false,
            granularity: 2 * MIB,
            device_wait: true,
            segment_max: SEGMENT_MAX,
        }
    }
}

/// A simulated device. Cheap to clone; clones are the same device.
///
/// # Examples
/// ```
/// use aquifer::backend::{Backend, Fault, GrowError, MemoryKind, Sim, SimOptions};
///
/// let sim = Sim::new(SimOptions { capacity: 4 << 20, ..SimOptions::default() });
/// sim.fail_at(2, Fault::OutOfMemory);
/// let memory = sim.allocate(2 << 20, MemoryKind::default())?;
/// let refused = sim.allocate(2 << 20, MemoryKind::default());
/// assert_eq!(refused.err(), Some(GrowError::OutOfMemory));
/// sim.free(memory);
/// assert_eq!((sim.used_bytes(), sim.leaked()), (0, 0));
/// # Ok::<(), GrowError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sim {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: SimOptions,
    state: Mutex<State>,
    /// Outside of the lock: memory may be dropped by a panic that holds it.
    leaked: AtomicU64,
}

#[derive(Debug)]
struct State {
    calls: calls::Calls,
    space: space::Space,
    timeline: timeline::Timeline,
}

/// Making a device, telling it to fail, and moving its work on.
impl Sim {
    /// A device with nothing on it.
    ///
    /// # Panics
    /// If the granularity is no power of two, or below 512.
    pub fn new(options: SimOptions) -> Self {
        let granularity = options.granularity;
        assert!(
            granularity.is_power_of_two() && granularity >= GRANULE,
            "SimOptions::granularity is {granularity}; choose a power of two of at least {GRANULE}"
        );
        let state = State {
            calls: calls::Calls::default(),
            space: space::Space::new(options.capacity, granularity),
            timeline: timeline::Timeline::new(options.asynchronous),
        };
        let leaked = AtomicU64::new(0);
        Self { shared: Arc::new(Shared { options, state: Mutex::new(state), leaked }) }
    }

    /// Makes the `nth` fallible call from now fail, 1 being the next one. Plans add up.
    ///
    /// # Panics
    /// If `nth` is 0.
    pub fn fail_at(&self, nth: u64, fault: Fault) {
        self.state().calls.plan(nth, fault);
    }

    /// Makes every fallible call fail, the `nth` from now being the first.
    ///
    /// # Panics
    /// If `nth` is 0.
    pub fn fail_from(&self, nth: u64, fault: Fault) {
        self.state().calls.plan_from(nth, fault);
    }

    /// Forgets all planned failures, and a loss.
    pub fn heal(&self) {
        self.state().calls.forget_plan();
    }

    /// Changes the capacity, as other programs on the device would. What is allocated stays; the
    /// total in [`Limits`](super::Limits) does too.
    pub fn set_capacity(&self, capacity: Bytes) {
        self.state().space.capacity = capacity;
    }

    /// Starts the counts of [`calls`](Self::calls) from zero; planned failures stay where they are.
    pub fn reset_calls(&self) {
        self.state().calls.counts = CallCounts::default();
    }

    /// One piece of work at the end of `stream`, as a program would launch a kernel.
    pub fn submit(&self, stream: u32) -> WorkId {
        self.state().timeline.submit(stream)
    }

    /// Finishes all work submitted to `stream` so far, and what that waits for on other streams.
    pub fn complete(&self, stream: u32) {
        self.state().timeline.complete(stream);
    }

    /// Finishes the work before an event, and what that waits for on other streams.
    pub fn complete_event(&self, event: &SimEvent) {
        self.state().timeline.complete_event(event);
    }

    /// Finishes all work of all streams.
    pub fn complete_all(&self) {
        self.state().timeline.complete_all();
    }

    /// Finishes the next `count` pieces of work on `stream`. Work that waits for another stream is
    /// not finished, nor any behind it: returns how many were.
    pub fn advance(&self, stream: u32, count: u64) -> u64 {
        self.state().timeline.advance(stream, count)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic about misuse comes before any change, so the state can be read afterwards.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What there is to see.
impl Sim {
    /// The options it was made with.
    pub fn options(&self) -> SimOptions {
        self.shared.options
    }

    /// Calls since the device was made, or since [`reset_calls`](Self::reset_calls).
    pub fn calls(&self) -> CallCounts {
        self.state().calls.counts
    }

    /// [`CallCounts::fallible`] of [`calls`](Self::calls): how many failures a test can plan.
    pub fn fallible_calls(&self) -> u64 {
        self.calls().fallible()
    }

    /// Whether [`Fault::LostForever`] has struck.
    pub fn is_lost(&self) -> bool {
        self.state().calls.is_lost()
    }

    /// Physical bytes in use: segments and chunks, mapped or not.
    pub fn used_bytes(&self) -> Bytes {
        self.state().space.used
    }

    /// The most that [`used_bytes`](Self::used_bytes) ever was.
    pub fn peak_used_bytes(&self) -> Bytes {
        self.state().space.peak
    }

    /// Bytes of chunks that are mapped.
    pub fn mapped_bytes(&self) -> Bytes {
        self.state().space.mapped
    }

    /// Segments that are allocated, ranges of addresses not counted.
    pub fn live_segments(&self) -> u64 {
        self.state().space.segment_count()
    }

    /// Ranges of addresses that are reserved.
    pub fn live_ranges(&self) -> u64 {
        self.state().space.range_count()
    }

    /// Chunks that exist, mapped or not.
    pub fn live_chunks(&self) -> u64 {
        self.state().space.chunks
    }

    /// Segments, ranges and chunks that were dropped instead of given back. Their bytes stay in
    /// use, as they would on a device.
    pub fn leaked(&self) -> u64 {
        self.shared.leaked.load(Ordering::Relaxed)
    }

    /// Whether the device could read and write all of `address..address + size`: backed by a
    /// segment, or by chunks that are mapped and have access.
    pub fn is_accessible(&self, address: u64, size: Bytes) -> bool {
        self.state().space.is_accessible(address, size)
    }

    /// Whether `work`, and all before it on its stream, is sure to be done before the next work on
    /// `stream` begins: because it is complete, because the stream is the same, or because
    /// `stream` waits, directly or through others, for an event behind it.
    pub fn is_ordered(&self, work: WorkId, stream: u32) -> bool {
        self.state().timeline.is_ordered(work, stream)
    }
}
