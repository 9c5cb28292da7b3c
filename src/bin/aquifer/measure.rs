//! The runs behind the figures of one trace.
//!
//! ```text
//!   rounds ×   new device and allocator ─▶ run: cold time ─▶ run again: warm time
//!              │                                         └ after the first: calls
//!              └ after the first cold run: peaks and calls
//!   once       new device and allocator ─▶ run, watched after every event: the means
//!   if asked   smaller and smaller devices ─▶ run: does it fit? With how many calls?
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
    /// Calls of the warm run after it, of all kinds; `None` if the cold one failed.
    pub(crate) calls_warm: Option<u64>,
    /// Calls of one cold run on the smallest device, of all kinds.
    pub(crate) calls_min_capacity: Option<u64>,
    /// The event that could not be carried out, by index, and why.
    pub(crate) failure: Option<(usize, AllocError)>,
    /// Nanoseconds an event; `None` if the run failed.
    pub(crate) cold: Option<f64>,
    /// Nanoseconds an event; `None` if the run failed.
    pub(crate) warm: Option<f64>,
}

impl Figures {
    /// So many bytes as a multiple of the peak of live ones; `None` if nothing was ever live.
    pub(crate) fn over_live(&self, bytes: Bytes) -> Option<f64> {
        (self.peak_live > 0).then(|| bytes as f64 / self.peak_live as f64)
    }

    /// So many calls for each 1000 allocations; `None` without any.
    pub(crate) fn per_1000(&self, calls: u64) -> Option<f64> {
        (self.allocations > 0).then(|| calls as f64 * 1000.0 / self.allocations as f64)
    }
}

/// The calls that are told, by name. Making a page and giving it back count with its `map` and
/// `unmap`, and addresses cost nothing.
pub(crate) fn call_counts(calls: &CallCounts) -> [(&'static str, u64); 9] {
    [
        ("allocate", calls.allocate),
        ("free", calls.free),
        ("map", calls.map),
        ("unmap", calls.unmap),
        ("set_access", calls.set_access),
        ("record", calls.record),
        ("wait", calls.wait),
        ("query", calls.query),
        ("synchronize", calls.synchronize),
    ]
}

/// The sum of [`call_counts`].
pub(crate) fn call_count(calls: &CallCounts) -> u64 {
    call_counts(calls).iter().map(|(_, count)| count).sum()
}

/// A trace and a way to make devices for it.
pub(crate) struct Bench<'a, F> {
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
    let bench = Bench::new(trace, setup, make, bar)?;
    let mut figures = bench.figures();
    let (mut cold, mut warm) = (vec![figures.cold], vec![figures.warm]);
    if figures.failure.is_none() {
        for _ in 1..setup.rounds {
            let round = bench.round();
            cold.push(round.cold);
            warm.push(round.warm);
        }
    }
    figures.cold = median(cold);
    figures.warm = median(warm);
    Ok(figures)
}

/// A cold and a warm run: nanoseconds an event, `None` for a run that failed or has no events.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    pub(crate) cold: Option<f64>,
    pub(crate) warm: Option<f64>,
}

impl<'a, D: Device, F: Fn(Bytes) -> D> Bench<'a, F> {
    /// Makes the trace ready.
    ///
    /// # Errors
    /// If it names more streams than an allocator can have at a time: how many.
    pub(crate) fn new(
        trace: &'a Trace,
        setup: &'a Setup,
        make: F,
        bar: &'a ProgressBar,
    ) -> Result<Self, usize> {
        let program = Program::compile(trace, setup.obey_markers);
        // Stream 0 is the default one.
        let streams = program.streams().iter().filter(|&&number| number != 0).count();
        if streams > Allocator::<D>::STREAMS_MAX {
            return Err(streams);
        }
        Ok(Self { trace, program, setup, make, bar })
    }

    /// All figures, with the times of one round.
    pub(crate) fn figures(&self) -> Figures {
        let summary = self.trace.summary();
        let (device, allocator) = self.fresh(self.setup.capacity);
        let (cold, failure) = self.run(&allocator);
        let stats = allocator.memory_stats();
        let peak_reserved = device.peak_used_bytes();
        let mut figures = Figures {
            events: summary.events,
            allocations: summary.allocations,
            peak_live: summary.peak_live_bytes,
            peak_allocated: stats.allocated_bytes.all.peak,
            peak_active: stats.active_bytes.all.peak,
            peak_reserved: peak_reserved.unwrap_or(stats.reserved_bytes.all.peak),
            mean_ratio: None,
            min_capacity: None,
            calls: device.calls(),
            calls_warm: None,
            calls_min_capacity: None,
            failure,
            cold: None,
            warm: None,
        };
        if figures.failure.is_none() {
            let (warm, failure) = self.run(&allocator);
            let calls = call_count(&device.calls()) - call_count(&figures.calls);
            figures.cold = self.each(cold);
            figures.warm = self.each(warm).filter(|_| failure.is_none());
            figures.calls_warm = failure.is_none().then_some(calls);
        }
        figures.mean_ratio = self.mean_ratio();
        if self.setup.min_capacity {
            let least = self.min_capacity(&figures);
            (figures.min_capacity, figures.calls_min_capacity) = least.unzip();
        }
        figures
    }

    /// Two runs with a new device and allocator, for their time.
    pub(crate) fn round(&self) -> Round {
        let (_device, allocator) = self.fresh(self.setup.capacity);
        let [cold, warm] = [(); 2].map(|()| {
            let (time, failure) = self.run(&allocator);
            self.each(time).filter(|_| failure.is_none())
        });
        Round { cold, warm }
    }

    fn each(&self, time: Duration) -> Option<f64> {
        nanoseconds_each(time, self.program.events())
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
        let mut reserved_sum = 0u128;
        let mut done = 0;
        self.observe(|index, reserved| {
            done = index + 1;
            if !matches!(self.trace.events[index], Event::Marker(_)) {
                reserved_sum += u128::from(reserved);
            }
        });
        // Both sums are over the same events, so their ratio is that of the means.
        let live_sum = live_sum(&self.trace.events[..done]);
        (live_sum > 0).then(|| reserved_sum as f64 / live_sum as f64)
    }

    /// One cold run; `see` is told each event's index and the bytes that are reserved after it, as
    /// far as the trace runs.
    pub(crate) fn observe(&self, mut see: impl FnMut(usize, Bytes)) {
        let (device, allocator) = self.fresh(self.setup.capacity);
        let numbers = self.program.streams();
        let streams: Vec<_> = numbers.iter().map(|&number| allocator.stream(number)).collect();
        self.program.run_observed(&allocator, &streams, |index| see(index, device.used_bytes()));
        self.bar.inc(1);
    }

    /// The smallest device on which the whole trace runs, by bisection between what is live and
    /// what an ample device has to give, and the calls of a run on it; `None` if there is none up
    /// to [`SEARCH_MAX`].
    fn min_capacity(&self, figures: &Figures) -> Option<(Bytes, u64)> {
        let (device, _) = self.fresh(self.setup.capacity);
        let granule = device.limits().granularity;
        let mut calls = 0;
        let mut fits = |capacity: Bytes| {
            self.bar.inc_length(1);
            let (device, allocator) = self.fresh(capacity);
            let fits = self.run(&allocator).1.is_none();
            if fits {
                calls = call_count(&device.calls());
            }
            fits
        };
        let mut low = figures.peak_live.checked_next_multiple_of(granule)?;
        if low > SEARCH_MAX {
            return None;
        }
        if fits(low) {
            return Some((low, calls));
        }
        let known = figures.failure.is_none().then_some(figures.peak_reserved);
        let mut high = known.into_iter().chain([SEARCH_MAX]).find(|&capacity| fits(capacity))?;
        // `low` does not fit and `high` does, all along.
        while high.saturating_sub(low) > granule.max(low / SEARCH_PARTS) {
            let middle = (low + (high - low) / 2).next_multiple_of(granule);
            *(if fits(middle) { &mut high } else { &mut low }) = middle;
        }
        // The last one that fitted is the smallest.
        Some((high, calls))
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
    let after = events.iter().zip(live_bytes(events));
    let counted = after.filter(|(event, _)| !matches!(event, Event::Marker(_)));
    counted.map(|(_, live)| u128::from(live)).sum()
}

/// The live bytes after each event.
pub(crate) fn live_bytes(events: &[Event]) -> impl Iterator<Item = Bytes> {
    let mut sizes = HashMap::new();
    let mut live = 0;
    events.iter().map(move |event| {
        match event {
            Event::Allocate { id, size, .. } => {
                sizes.insert(*id, *size);
                live += *size;
            }
            Event::Free { id } => live -= sizes.remove(id).unwrap_or(0),
            Event::Use { .. } | Event::Marker(_) => {}
        }
        live
    })
}

/// The one in the middle, the later of two; `None` if there is one without a time.
fn median(times: Vec<Option<f64>>) -> Option<f64> {
    let mut times = times.into_iter().collect::<Option<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}
