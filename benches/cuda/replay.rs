//! Traces of programs: time, reserved memory, and what the driver is asked.
//!
//! Streams, uses on other streams and markers are left out (`harness/steps.rs`), for everyone.
//! *Cold* begins with nothing cached, *warm* is the same once more.

use std::cell::RefCell;

use aquifer::backend::CudaSource;
use aquifer::trace::{Event, Trace};

use crate::driver::Driver;
use crate::harness::steps::Steps;
use crate::harness::{Run, Series, nanoseconds_each, take_double_turns, traces};
use crate::rivals::{Async, OnDevice, Own, Plain};

/// What a run left behind.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    reserved_peak: Option<u64>,
    growths: Option<u64>,
    calls: Option<u64>,
}

/// A contender of any kind.
trait Lane {
    /// Nanoseconds a step, cold and warm, and what was seen of the cold run.
    fn turn(&mut self, steps: &Steps, driver: &Driver) -> ([f64; 2], Seen);
}

impl<T: OnDevice> Lane for T {
    fn turn(&mut self, steps: &Steps, driver: &Driver) -> ([f64; 2], Seen) {
        self.reset();
        let before = driver.calls();
        let wall = |count: usize, work: &mut dyn FnMut()| nanoseconds_each(count, work);
        let cold = steps.timed(self, wall).unwrap_or(f64::NAN);
        let calls = driver.calls().zip(before).map(|(after, before)| after - before);
        let (reserved_peak, growths) = (self.reserved_peak(), self.growths());
        self.stream().synchronize().expect("the device is there");
        // Without a cache all runs are cold, and slow.
        let has_cache = growths.is_some() || reserved_peak.is_some();
        let again = has_cache.then(|| steps.timed(self, wall).unwrap_or(f64::NAN));
        let warm = again.unwrap_or(cold);
        // What there was no room for says nothing.
        let seen = Seen { reserved_peak, growths, calls };
        ([cold, warm], if cold.is_nan() { Seen::default() } else { seen })
    }
}

pub(crate) fn run(run: Run, driver: &Driver) {
    let run = run.section("cuda: replay, ns per event");
    run.heading(&[
        "cold ns",
        "warm ns",
        "peak MiB",
        "peak / live",
        "asked / 1000",
        "calls / 1000",
        "ours / it, warm",
    ]);
    for (name, path) in traces::traces() {
        match Trace::open(&path) {
            Ok(trace) => contest(run, driver, &name, &trace),
            Err(error) => eprintln!("traces: {}: {error}", path.display()),
        }
    }
}

fn contest(run: Run, driver: &Driver, name: &str, trace: &Trace) {
    let own = |source| Own::new(driver, Some(source)).map(|own| Box::new(own) as Box<dyn Lane>);
    let lanes: [(&str, Option<Box<dyn Lane>>); 6] = [
        ("aquifer, virtual memory", own(CudaSource::Virtual)),
        ("aquifer, pool", own(CudaSource::Pool)),
        ("aquifer, plain", own(CudaSource::Plain)),
        ("async", Some(Box::new(Async::new(driver, 0)))),
        ("async, tuned", Some(Box::new(Async::new(driver, u64::MAX)))),
        ("cuMemAlloc", Some(Box::new(Plain::new(driver)))),
    ];
    let steps = &Steps::new(trace);
    let live = trace.summary().peak_live_bytes;
    let is_allocation = |event: &&Event| matches!(event, Event::Allocate { size: 1.., .. });
    let allocations = trace.events.iter().filter(is_allocation).count() as f64;
    let seen = &RefCell::new(vec![Seen::default(); lanes.len()]);
    let (names, mut turns): (Vec<_>, Vec<_>) = lanes
        .into_iter()
        .enumerate()
        .map(|(index, (who, mut lane))| {
            let turn = move || {
                let Some(lane) = &mut lane else { return [f64::NAN; 2] };
                let (times, left) = lane.turn(steps, driver);
                seen.borrow_mut()[index] = left;
                times
            };
            (who, turn)
        })
        .unzip();
    let [cold, warm] = take_double_turns(run.rounds(5), &mut turns);
    for (index, who) in names.iter().enumerate() {
        let Seen { reserved_peak, growths, calls } = seen.borrow()[index];
        let number = |value: Option<u64>| value.map_or(f64::NAN, |value| value as f64);
        let peak = number(reserved_peak);
        // Who has no cache asks for each.
        let asked = growths.map_or(1000.0, |growths| growths as f64 * 1000.0 / allocations);
        let asked = if cold[index].min().is_finite() { asked } else { f64::NAN };
        let least = |series: &Series| series.min();
        let figures = [
            ("cold_ns", least(&cold[index])),
            ("warm_ns", least(&warm[index])),
            ("peak_mib", peak / f64::from(1 << 20)),
            ("peak_over_live", peak / live as f64),
            ("asked_per_1000", asked),
            ("calls_per_1000", number(calls) * 1000.0 / allocations),
            ("ours_over_it_warm", warm[0].over(&warm[index]).median()),
        ];
        run.result(&format!("{name}: {who}"), &figures);
    }
}
