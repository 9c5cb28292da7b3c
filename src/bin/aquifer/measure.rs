//! The runs behind the figures of one trace.
//!
//! ```text
//!   rounds ×   new device and allocator ─▶ run: cold time ─▶ run again: warm time
//!              └ after the first cold run: peaks and calls
//!   once       new device and allocator ─▶ run, watched after every event: the means
//!   if asked   smaller and smaller devices ─▶ run: does it fit?
//! ```
//!
//! Times are CPU time of the calling thread, and nothing else runs on it within them: the trace is
//! compiled before, and peaks and calls are read after.

use std::collections::HashMap;
use std::time::Duration;

use aquifer::backend::CallCounts;
use aquifer::trace::replay::{Outcome, Program};
use aquifer::trace::{Event, Trace};
use aquifer::{AllocError, Allocator, Bytes, Config};
use cpu_time::ThreadTime;
use indicatif::ProgressBar;

use crate::device::Device;
use crate::output::nanoseconds_each;

/// What the search for the smallest device starts from if the trace does not fit the given one.
const SEARCH_MAX: Bytes = 1 << 40;

/// The search ends when the answer is known to one part in so many.
const SEARCH_PARTS: Bytes = 1000;

/// How to run.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) config: Config,
    /// Bytes of the device.
    pub(crate) capacity: Bytes,
    /// Timed runs of each kind, at least 1.
    pub(crate) rounds: u32,
    pub(crate) obey_markers: bool,
    /// Whether to look for the smallest device.
    pub(crate) min_capacity: bool,
}

/// What came of one trace. Sizes in bytes.
#[derive(Debug)]
pub(crate) struct Figures {
    /// Events of all kinds, markers included.
    pub(crate) events: u64,
    pub(crate) allocations: u64,
    pub(crate) peak_live: Bytes,
    pub(crate) peak_allocated: Bytes,
    pub(crate) peak_active: Bytes,
    pub(crate) peak_reserved: Bytes,
    /// `None` if nothing was ever live.
    pub(crate) mean_ratio: Option<f64>,
    /// `None` if it was not asked for, or no device is large enough.
    pub(crate) min_capacity: Option<Bytes>,
    /// Calls of one cold run.
    pub(crate) calls: CallCounts,
    /// The event that could not be carried out, by index, and why.
    pub(crate) failure: Option<(usize, AllocError)>,
    /// Nanoseconds an event; `None` if the run failed.
    pub(crate) cold: Option<f64>,
    /// Nanoseconds an event; `None` if the run failed.
    pub(crate) warm: Option<f64>,
}

/// A trace and a way to make devices for it.
struct Bench<'a, F> {
    trace: &'a Trace,
    program: Program,
    setup: &'a Setup,
    make: F,
    bar: &'a ProgressBar,
}

/// How many runs [`measure`] takes, before the search for the smallest device.
pub(crate) fn run_count(rounds: u32) -> u64 {
    2 * u64::from(rounds) + 1
}

/// Replays `trace` on devices that `make` makes of a capacity.
///
/// # Errors
/// If the trace names more streams than an allocator can have at a time: how many.
pub(crate) fn measure<D: Device>(
    trace: &Trace,
    setup: &Setup,
    make: impl Fn(Bytes) -> D,
    bar: &ProgressBar,
) -> Result<Figures, usize> {
    let program = Program::compile(trace, setup.obey_markers);
    // Stream 0 is the default one.
    let streams = program.streams().iter().filter(|&&number| number != 0).count();
    if streams > Allocator::<D>::STREAMS_MAX {
        return Err(streams);
    }
    let bench = Bench { trace, program, setup, make, bar };
    let mut figures = bench.time();
    figures.mean_ratio = bench.mean_ratio();
    if setup.min_capacity {
        figures.min_capacity = bench.min_capacity(&figures);
    }
    Ok(figures)
}

impl<D: Device, F: Fn(Bytes) -> D> Bench<'_, F> {
    /// The timed rounds, and the figures that are read after the first cold run.
    fn time(&self) -> Figures {
        let summary = self.trace.summary();
        let mut figures = None;
        let (mut cold, mut warm) = (Vec::new(), Vec::new());
        for _ in 0..self.setup.rounds {
            let (device, allocator) = self.fresh(self.setup.capacity);
            let (time, failure) = self.run(&allocator);
            cold.push(time);
            let failed = failure.is_some();
            figures.get_or_insert_with(|| {
                let stats = allocator.memory_stats();
                let peak_reserved = device.peak_used_bytes();
                Figures {
                    events: summary.events,
                    allocations: summary.allocations,
                    peak_live: summary.peak_live_bytes,
                    peak_allocated: stats.allocated_bytes.all.peak,
                    peak_active: stats.active_bytes.all.peak,
                    peak_reserved: peak_reserved.unwrap_or(stats.reserved_bytes.all.peak),
                    mean_ratio: None,
                    min_capacity: None,
                    calls: device.calls(),
                    failure,
                    cold: None,
                    warm: None,
                }
            });
            if failed {
                break;
            }
            warm.push(self.run(&allocator).0);
        }
        let mut figures = figures.expect("there is at least one round");
        if figures.failure.is_none() {
            figures.cold = nanoseconds_each(median(cold), self.program.events());
            figures.warm = nanoseconds_each(median(warm), self.program.events());
        }
        figures
    }

    /// A new device with an allocator that has cached nothing.
    fn fresh(&self, capacity: Bytes) -> (D, Allocator<D>) {
        let device = (self.make)(capacity);
        let allocator = Allocator::new(device.clone(), self.setup.config.clone());
        (device, allocator)
    }

    /// One run, with its time and the event that failed.
    fn run(&self, allocator: &Allocator<D>) -> (Duration, Option<(usize, AllocError)>) {
        let numbers = self.program.streams();
        let streams: Vec<_> = numbers.iter().map(|&number| allocator.stream(number)).collect();
        let begin = ThreadTime::now();
        let outcome = self.program.run(allocator, &streams);
        let time = begin.elapsed();
        self.bar.inc(1);
        (time, failure(outcome))
    }

    /// Mean of the reserved bytes over mean of the live ones, both taken after every allocation,
    /// free and use, as far as the trace runs.
    fn mean_ratio(&self) -> Option<f64> {
        let (device, allocator) = self.fresh(self.setup.capacity);
        let numbers = self.program.streams();
        let streams: Vec<_> = numbers.iter().map(|&number| allocator.stream(number)).collect();
        let mut reserved_sum = 0u128;
        let mut done = 0;
        self.program.run_observed(&allocator, &streams, |index| {
            done = index + 1;
            if !matches!(self.trace.events[index], Event::Marker(_)) {
                reserved_sum += u128::from(device.used_bytes());
            }
        });
        self.bar.inc(1);
        // Both sums are over the same events, so their ratio is that of the means.
        let live_sum = live_sum(&self.trace.events[..done]);
        (live_sum > 0).then(|| reserved_sum as f64 / live_sum as f64)
    }

    /// The smallest device on which the whole trace runs, by bisection between what is live and
    /// what an ample device has to give; `None` if there is none up to [`SEARCH_MAX`].
    fn min_capacity(&self, figures: &Figures) -> Option<Bytes> {
        let (device, _) = self.fresh(self.setup.capacity);
        let granule = device.limits().granularity;
        let fits = |capacity: Bytes| {
            self.bar.inc_length(1);
            let (_, allocator) = self.fresh(capacity);
            self.run(&allocator).1.is_none()
        };
        let mut low = figures.peak_live.checked_next_multiple_of(granule)?;
        if low > SEARCH_MAX {
            return None;
        }
        if fits(low) {
            return Some(low);
        }
        let known = figures.failure.is_none().then_some(figures.peak_reserved);
        let mut high = known.into_iter().chain([SEARCH_MAX]).find(|&capacity| fits(capacity))?;
        // `low` does not fit and `high` does, all along.
        while high.saturating_sub(low) > granule.max(low / SEARCH_PARTS) {
            let middle = (low + (high - low) / 2).next_multiple_of(granule);
            *(if fits(middle) { &mut high } else { &mut low }) = middle;
        }
        Some(high)
    }
}

fn failure(outcome: Outcome) -> Option<(usize, AllocError)> {
    match outcome {
        Outcome::Failed { event, error } => Some((event, error)),
        _ => None,
    }
}

/// The live bytes after each allocation, free and use, summed up.
fn live_sum(events: &[Event]) -> u128 {
    let mut sizes = HashMap::new();
    let (mut live, mut sum) = (0u128, 0u128);
    for event in events {
        match event {
            Event::Allocate { id, size, .. } => {
                sizes.insert(*id, *size);
                live += u128::from(*size);
            }
            Event::Free { id } => live -= u128::from(sizes.remove(id).unwrap_or(0)),
            Event::Use { .. } => {}
            Event::Marker(_) => continue,
        }
        sum += live;
    }
    sum
}

/// The one in the middle, the later of two.
///
/// # Panics
/// If there are none.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
