//! What does each mechanism of the default policy bring?
//!
//! Replays all traces with one knob after the other set to what PyTorch's preset has for it, which
//! is the mechanism switched off; the list follows from the knobs themselves (`knobs`). Once with
//! plain segments and once with expandable ones. Over all traces:
//!
//! - *peak / live*: the geometric mean and the worst; *least / live*: the same for the smallest
//!   device on which a trace runs; in both, nothing can be below 1;
//! - *calls*: backend calls for each 1000 allocations, all traces together; *in least*: of cold
//!   runs on the smallest devices;
//! - *time*: nanoseconds per event of a cold and of a warm run, as multiples of the default's in
//!   the same rounds: the geometric mean over the traces of the medians over the rounds.
//!
//! Memory and calls are the same in every run. A mechanism that serves what no trace does shows
//! nothing here: private pools, a limit, frees that wait for other streams.
//!
//! `cargo bench --bench ablation --features cli`; `AQUIFER_TRACES` names folders with more traces.
//! Two cores shared with other programs: times repeat within 5 %.

#[path = "../src/bin/aquifer/bytes/mod.rs"]
#[allow(dead_code, unused_imports)] // Of what the program measures with, the bench uses its part.
mod bytes;
#[path = "../src/bin/aquifer/device.rs"]
#[allow(dead_code)]
mod device;
mod harness;
#[path = "../src/bin/aquifer/knobs/mod.rs"]
#[allow(dead_code, unused_imports)]
mod knobs;
#[path = "../src/bin/aquifer/measure.rs"]
#[allow(dead_code)]
mod measure;
#[path = "../src/bin/aquifer/output/mod.rs"]
#[allow(dead_code, unused_imports)]
mod output;

use aquifer::backend::{Sim, SimOptions};
use aquifer::trace::Trace;
use aquifer::{Bytes, Config};
use harness::{Run, Series, take_double_turns};
use indicatif::ProgressBar;
use measure::{Bench, Figures, Round, Setup, call_count};

/// More than any trace needs.
const CAPACITY: Bytes = 1 << 40;

fn main() {
    let run = Run::new("ablation");
    let mut traces = Vec::new();
    for (_, path) in harness::traces::traces() {
        match Trace::open(&path) {
            Ok(trace) => traces.push(trace),
            Err(error) => eprintln!("traces: {}: {error}", path.display()),
        }
    }
    if run.quick {
        traces.sort_by_key(|trace| trace.events.len());
        traces.truncate(1);
    }
    for (name, expandable) in [("ablation", false), ("ablation, expandable", true)] {
        let run = run.section(name);
        let variants = variants(expandable);
        run.heading(&[
            "peak/live",
            "worst",
            "least/live",
            "worst",
            "calls",
            "in least",
            "cold time",
            "warm time",
        ]);
        for (variant, figures) in variants.iter().zip(measure_all(run, &traces, &variants)) {
            run.result(&variant.0, &figures);
        }
    }
}

/// The default, then the default with one thing off for each that can be, then PyTorch's.
fn variants(expandable: bool) -> Vec<(String, Setup)> {
    let mut configs = vec![("default".to_owned(), Config::default())];
    configs.extend(knobs::ablations());
    configs.push(("torch".to_owned(), Config::torch()));
    let setup = |(name, mut config): (String, Config)| {
        config.expandable_segments = expandable;
        let (capacity, rounds) = (CAPACITY, 1);
        (name, Setup { config, capacity, rounds, obey_markers: true, min_capacity: true })
    };
    configs.into_iter().map(setup).collect()
}

/// What a variant gave, trace by trace.
#[derive(Debug, Default)]
struct Sums {
    peak: Vec<f64>,
    least: Vec<f64>,
    allocations: u64,
    calls: u64,
    calls_in_least: u64,
    cold: Vec<f64>,
    warm: Vec<f64>,
}

/// A row for each variant.
fn measure_all(
    run: Run,
    traces: &[Trace],
    variants: &[(String, Setup)],
) -> Vec<[(&'static str, f64); 8]> {
    let mut sums: Vec<Sums> = variants.iter().map(|_| Sums::default()).collect();
    let bar = ProgressBar::hidden();
    for trace in traces {
        let benches: Result<Vec<_>, usize> = variants
            .iter()
            .map(|(_, setup)| {
                let virtual_memory = setup.config.expandable_segments;
                let options = SimOptions { virtual_memory, ..SimOptions::default() };
                let make = move |capacity| Sim::new(SimOptions { capacity, ..options });
                Bench::new(trace, setup, make, &bar)
            })
            .collect();
        let Ok(benches) = benches else {
            eprintln!("ablation: a trace has more streams than an allocator: left out");
            continue;
        };
        for (bench, sums) in benches.iter().zip(&mut sums) {
            sums.add(&bench.figures());
        }
        let turn = |bench| {
            move || {
                let Round { cold, warm } = Bench::round(bench);
                [cold, warm].map(|time| time.unwrap_or(f64::NAN))
            }
        };
        let mut turns: Vec<_> = benches.iter().map(turn).collect();
        let rounds = harness::traces::rounds(run, trace.events.len());
        let [cold, warm] = take_double_turns(rounds, &mut turns);
        for ((sums, cold_of), warm_of) in sums.iter_mut().zip(&cold).zip(&warm) {
            sums.cold.push(cold_of.over(&cold[0]).median());
            sums.warm.push(warm_of.over(&warm[0]).median());
        }
    }
    sums.iter().map(Sums::row).collect()
}

impl Sums {
    fn add(&mut self, figures: &Figures) {
        let ratio = |bytes: Option<Bytes>| {
            bytes.and_then(|bytes| figures.over_live(bytes)).unwrap_or(f64::NAN)
        };
        self.peak.push(ratio(Some(figures.peak_reserved)));
        self.least.push(ratio(figures.min_capacity));
        self.allocations += figures.allocations;
        self.calls += call_count(&figures.calls);
        self.calls_in_least += figures.calls_min_capacity.unwrap_or(0);
    }

    fn row(&self) -> [(&'static str, f64); 8] {
        let series = |values: &Vec<f64>| Series(values.clone());
        let per_1000 = |calls: u64| calls as f64 * 1000.0 / self.allocations as f64;
        [
            ("geomean_peak_over_live", series(&self.peak).geometric_mean()),
            ("worst_peak_over_live", series(&self.peak).max()),
            ("geomean_least_over_live", series(&self.least).geometric_mean()),
            ("worst_least_over_live", series(&self.least).max()),
            ("calls_per_1000", per_1000(self.calls)),
            ("calls_per_1000_in_least", per_1000(self.calls_in_least)),
            ("cold_time", series(&self.cold).geometric_mean()),
            ("warm_time", series(&self.warm).geometric_mean()),
        ]
    }
}
