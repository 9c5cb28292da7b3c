//! What the integration tests share: seeded chance that tells its seed, the devices under test, and
//! a shadow allocator that knows which bytes are in whose hands.
#![allow(dead_code)] // Each test program uses its part.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use aquifer::backend::{Backend, Host, Sim, SimOptions, WorkId};
use aquifer::{Allocator, Config};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// Prints what a test was about if it panics: the seed, the configuration, the step.
#[derive(Debug)]
pub(crate) struct Context<T: Debug>(pub(crate) T);

impl<T: Debug> Drop for Context<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("while testing {:?}", self.0);
        }
    }
}

/// Chance without a clock: the same seed, the same numbers (Vigna's splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// Mostly small, sometimes large: log-uniform from 1 to `limit`.
    pub(crate) fn size(&mut self, limit: u64) -> u64 {
        let bits = self.below(u64::from(limit.ilog2()) + 1);
        (1 + self.below(1 << (bits + 1))).min(limit)
    }
}

/// A backend under test.
pub(crate) trait Device: Backend<Stream = u32> + Clone {
    /// Bytes that the device has given out.
    fn used(&self) -> u64;

    /// The simulated device, if it is one.
    fn sim(&self) -> Option<&Sim> {
        None
    }

    /// Writes a pattern derived from `seed` into all of `len` bytes, where the device has bytes.
    fn write(&self, _view: &Self::View, _offset: u64, _len: u64, _seed: u64) {}

    /// Whether the pattern is still there.
    fn reads_back(&self, _view: &Self::View, _offset: u64, _len: u64, _seed: u64) -> bool {
        true
    }
}

impl Device for Sim {
    fn used(&self) -> u64 {
        self.used_bytes()
    }

    fn sim(&self) -> Option<&Sim> {
        Some(self)
    }
}

/// The words of a live block of host memory.
///
/// # Safety
/// - `view`, `offset` and `len` are of a live allocation; `len` is a multiple of 8.
/// - Nobody else uses these bytes while the slice lives.
unsafe fn words<'a>(view: &aquifer::backend::HostView, offset: u64, len: u64) -> &'a mut [u64] {
    // SAFETY: the offset is inside the segment.
    let start = unsafe { view.as_ptr().add(offset as usize) };
    // SAFETY: the caller promises a live block of `len` bytes for itself; blocks are 512-aligned,
    // and pages of the system are initialised.
    unsafe { std::slice::from_raw_parts_mut(start.cast(), len as usize / 8) }
}

impl Device for Host {
    fn used(&self) -> u64 {
        self.used_bytes()
    }

    fn write(&self, view: &Self::View, offset: u64, len: u64, seed: u64) {
        // SAFETY: the test holds the allocation; no other thread runs.
        let words = unsafe { words(view, offset, len) };
        words.iter_mut().zip(seed..).for_each(|(word, value)| *word = value);
    }

    fn reads_back(&self, view: &Self::View, offset: u64, len: u64, seed: u64) -> bool {
        // SAFETY: the test holds the allocation; no other thread runs.
        let words = unsafe { words(view, offset, len) };
        words.iter().zip(seed..).all(|(&word, value)| word == value)
    }
}

/// A simulated device of so many bytes.
pub(crate) fn sim(capacity: u64) -> Sim {
    Sim::new(SimOptions { capacity, ..SimOptions::default() })
}

/// One with virtual memory.
pub(crate) fn virtual_sim(capacity: u64) -> Sim {
    Sim::new(SimOptions { capacity, virtual_memory: true, ..SimOptions::default() })
}

/// One whose work goes on until a hand finishes it.
pub(crate) fn asynchronous_sim(capacity: u64) -> Sim {
    Sim::new(SimOptions { capacity, asynchronous: true, ..SimOptions::default() })
}

/// One with both.
pub(crate) fn asynchronous_virtual_sim(capacity: u64) -> Sim {
    let asynchronous = true;
    Sim::new(SimOptions { capacity, virtual_memory: true, asynchronous, ..SimOptions::default() })
}

/// A configuration that differs from the default in some fields.
pub(crate) fn configured(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    change(&mut config);
    config
}

/// The default configuration over virtual memory.
pub(crate) fn expandable() -> Config {
    configured(|config| config.expandable_segments = true)
}

/// Whether `work` is done: a stream that knows of nothing else is sure of it.
pub(crate) fn is_done(sim: &Sim, work: WorkId) -> bool {
    sim.is_ordered(work, u32::MAX)
}

/// Everything has come back to the device, and nothing was lost on the way.
#[track_caller]
pub(crate) fn assert_nothing_held<D: Device>(device: &D) {
    assert_eq!(device.used(), 0, "bytes did not come back");
    if let Some(sim) = device.sim() {
        let held = (sim.live_segments(), sim.live_ranges(), sim.live_chunks(), sim.leaked());
        assert_eq!(held, (0, 0, 0, 0), "segments, ranges, chunks, leaked");
    }
}

/// Nothing is cached, nothing is reserved, and the device agrees. All allocations are dropped
/// before.
#[track_caller]
pub(crate) fn assert_emptied<D: Device>(allocator: &Allocator<D>) {
    allocator.verify();
    assert_eq!(allocator.memory_allocated(), 0, "somebody holds something");
    let releasable = allocator.releasable_bytes();
    assert_eq!(allocator.empty_cache(), releasable, "empty_cache against releasable_bytes");
    allocator.verify();
    assert_eq!(allocator.memory_reserved(), 0, "bytes are stranded");
    assert_eq!(allocator.backend().used(), 0, "the device holds what the allocator does not know");
}

/// Asks for completed events without a request.
pub(crate) fn harvest<D: Device>(allocator: &Allocator<D>) {
    allocator.maintain(Duration::ZERO);
}

/// Which bytes are in whose hands: no byte is in two.
#[derive(Debug, Default)]
pub(crate) struct Shadow {
    /// Start → (end, requested).
    live: BTreeMap<u64, (u64, u64)>,
    pub(crate) allocated: u64,
    pub(crate) requested: u64,
    pub(crate) allocated_peak: u64,
}

impl Shadow {
    /// Books an allocation of `requested` bytes at `start..start + capacity`.
    #[track_caller]
    pub(crate) fn insert(&mut self, start: u64, capacity: u64, requested: u64) {
        let end = start + capacity;
        assert!(capacity >= requested, "{capacity} bytes for a request of {requested}");
        assert!(start.is_multiple_of(512) && capacity.is_multiple_of(512), "{start:#x} {capacity}");
        let below = self.live.range(..end).next_back();
        if let Some((&other, &(other_end, _))) = below {
            let clash = other_end > start;
            assert!(!clash, "{start:#x}..{end:#x} overlaps {other:#x}..{other_end:#x}");
        }
        self.live.insert(start, (end, requested));
        self.allocated += capacity;
        self.requested += requested;
        self.allocated_peak = self.allocated_peak.max(self.allocated);
    }

    /// Books the free of the allocation at `start`.
    #[track_caller]
    pub(crate) fn remove(&mut self, start: u64) {
        let (end, requested) = self.live.remove(&start).expect("a live allocation begins here");
        self.allocated -= end - start;
        self.requested -= requested;
    }

    /// All live blocks by address: start, end, requested bytes.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.live.iter().map(|(&start, &(end, requested))| (start, end, requested))
    }
}
