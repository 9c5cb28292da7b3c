//! An allocation and its free, from a warm cache: in a loop, alone and with waits for the stream in
//! between, as a program has them that looks at a loss now and then.

use std::time::Instant;

use crate::driver::Driver;
use crate::harness::{Bar, Run, Series, nanoseconds_each, take_turns};
use crate::rivals::{Async, OnDevice, OnHost, Own, OwnTyped, Plain};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A request of which both have the same segments.
const SMALL: u64 = 64 * KIB;

/// The most that CUDA may add to a hit.
const BAR: Bar = Bar::AtMost(1.5);

/// Nanoseconds of a pair that is worth a tenth of the others.
const SLOW_NS: f64 = 20_000.0;

/// What is done in a turn.
#[derive(Debug, Clone, Copy)]
struct Load {
    size: u64,
    pairs: usize,
    /// Pairs between two waits for the stream.
    wait_after: usize,
}

/// A contender of any kind.
trait Lane {
    /// Nanoseconds of each pair in a loop; times of single pairs, waits apart.
    fn turn(&mut self, load: Load, singles: &mut Vec<u64>) -> f64;
}

impl<T: OnDevice> Lane for T {
    fn turn(&mut self, load: Load, singles: &mut Vec<u64>) -> f64 {
        self.reset();
        self.pair(load.size);
        // The driver's own take so long that fewer of them say as much.
        let one = nanoseconds_each(4, || (0..4).for_each(|_| self.pair(load.size)));
        let is_slow = one > SLOW_NS;
        let pairs = if is_slow { load.pairs.div_ceil(10) } else { load.pairs };
        let each = nanoseconds_each(pairs, || {
            for number in 1..=pairs {
                self.pair(load.size);
                if number % load.wait_after == 0 {
                    self.stream().synchronize().expect("the device is there");
                }
            }
        });
        for number in 1..=pairs {
            let began = Instant::now();
            self.pair(load.size);
            singles.push(began.elapsed().as_nanos() as u64);
            if number % load.wait_after == 0 {
                self.stream().synchronize().expect("the device is there");
            }
        }
        each
    }
}

pub(crate) fn run(run: Run, driver: &Driver) {
    let run = run.section("cuda: ns per allocate + free");
    run.heading(&["median ns", "p50 ns", "p99 ns", "p99.9 ns", "max ns", "ours / it"]);
    let sizes = [("64 KiB", SMALL), ("2 MiB", 2 * MIB), ("64 MiB", 64 * MIB)];
    for (waits, wait_after) in [("never waits", usize::MAX), ("waits each 64 pairs", 64)] {
        for (name, size) in sizes {
            // What the driver does in between is slow: the loop is short.
            let pairs = run.pick(if wait_after == 64 { 640 } else { 2000 }, 10);
            contest(run, driver, &format!("{name}, {waits}"), Load { size, pairs, wait_after });
        }
    }
}

fn contest(run: Run, driver: &Driver, case: &str, load: Load) {
    let own = || Own::new(driver, None).expect("the default is there");
    let lanes: [(&str, Box<dyn Lane>); 6] = [
        ("aquifer", Box::new(own())),
        ("aquifer, host", Box::new(OnHost::new(driver))),
        ("aquifer, typed", Box::new(OwnTyped(own()))),
        ("async", Box::new(Async::new(driver, 0))),
        ("async, tuned", Box::new(Async::new(driver, u64::MAX))),
        ("cuMemAlloc", Box::new(Plain::new(driver))),
    ];
    let (names, lanes): (Vec<_>, Vec<_>) = lanes.into_iter().unzip();
    let mut singles = vec![Vec::new(); names.len()];
    let mut turns: Vec<_> = lanes
        .into_iter()
        .zip(&mut singles)
        .map(|(mut lane, singles)| move || lane.turn(load, singles))
        .collect();
    let mut turns: Vec<&mut dyn FnMut() -> f64> =
        turns.iter_mut().map(|turn| turn as &mut dyn FnMut() -> f64).collect();
    let series = take_turns(run.rounds(50), &mut turns);
    for ((who, each), times) in names.iter().zip(&series).zip(&mut singles) {
        let ratio = series[0].over(each).median();
        let figures = figures(each, times, ratio);
        let case = format!("{case}: {who}");
        // Larger ones come from a range here and from a segment there, and a wait is no part of it.
        let is_same = load.size == SMALL && load.wait_after == usize::MAX;
        match is_same && *who == "aquifer, host" {
            true => run.judge(&case, &figures, BAR),
            false => run.result(&case, &figures),
        }
    }
}

/// A row: the loop, single pairs by their percentiles, the ratio.
pub(crate) fn figures(each: &Series, times: &mut [u64], ratio: f64) -> [(&'static str, f64); 6] {
    times.sort_unstable();
    let at = |thousandths: usize| match times.len() {
        0 => f64::NAN,
        count => times[(count * thousandths / 1000).min(count - 1)] as f64,
    };
    [
        ("median_ns", each.median()),
        ("p50_ns", at(500)),
        ("p99_ns", at(990)),
        ("p99_9_ns", at(999)),
        ("max_ns", at(1000)),
        ("ours_over_it", ratio),
    ]
}
