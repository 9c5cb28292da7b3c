//! What do real programs' requests cost, and how much memory is held for them?
//!
//! Replays each trace over a simulated device that hands out memory in 2 MiB granules and counts
//! calls, under both presets, each plain and with expandable segments. The first table is the same
//! in every run:
//!
//! - *peak / live*: the most bytes held from an unlimited device, over the most that were live;
//! - *mean / mean*: the same for the means over all events;
//! - *least / live*: the smallest device on which the trace runs;
//! - *calls*, *maps*: backend calls, and maps and unmaps of pages among them, for each 1000
//!   allocations of a cold run; *warm*: calls of the run after it; *in least*: of a cold run on the
//!   smallest device.
//!
//! The second one is time, nanoseconds per event (allocation, free or use on another stream).
//! *Cold*: a new allocator with nothing cached, every growth and release in it. *Warm*: the same
//! once more. The rivals (`harness/rivals.rs`) are told sizes only; their cold run begins with a
//! new arena. Markers (`m empty_cache`) are obeyed; rivals have no cache to empty.
//!
//! The third one says how large an arena has to be for `offset-allocator` to run the trace, as a
//! multiple of live.
//!
//! `cargo bench --bench replay --features cli`; `AQUIFER_TRACES` names folders with more traces.
//! Two cores shared with other programs: the least of the runs repeats within 5 %; traces of less
//! than 10³ events within 20 %.

#[path = "../src/bin/aquifer/device.rs"]
#[allow(dead_code)] // Of what the program measures with, the bench uses its part.
mod device;
mod harness;
#[path = "../src/bin/aquifer/measure.rs"]
#[allow(dead_code)]
mod measure;
#[path = "../src/bin/aquifer/output/mod.rs"]
#[allow(dead_code, unused_imports)]
mod output;
#[path = "harness/rivals.rs"]
mod rivals;

use std::alloc::System;

use aquifer::backend::{Sim, SimOptions};
use aquifer::trace::Trace;
use aquifer::{Bytes, Config};
use harness::contest::{Contender, Needs};
use harness::steps::Steps;
use harness::{Run, Series, take_double_turns};
use indicatif::ProgressBar;
use measure::{Bench, Figures, Setup, call_count};
use mimalloc::MiMalloc;
use rivals::{Heap, Offset, Rlsf};

/// More than any trace needs.
const CAPACITY: Bytes = 1 << 40;

fn main() {
    let run = Run::new("replay");
    let traces = harness::traces::traces();
    let traces: Vec<(String, Trace)> = traces
        .into_iter()
        .filter_map(|(name, path)| match Trace::open(&path) {
            Ok(trace) => Some((name, trace)),
            Err(error) => {
                eprintln!("traces: {}: {error}", path.display());
                None
            }
        })
        .collect();
    memory(run.section("replay: memory and calls"), &traces);
    time(run.section("replay: ns per event"), &traces);
    arenas(run.section("replay: smallest arena of offset-allocator"), &traces);
}

/// The presets, with and without expandable segments.
fn setups() -> Vec<(&'static str, Setup)> {
    let expandable = |mut config: Config| {
        config.expandable_segments = true;
        config
    };
    let setup = |config| Setup {
        config,
        capacity: CAPACITY,
        rounds: 1,
        obey_markers: true,
        min_capacity: true,
    };
    [
        ("torch", Config::torch()),
        ("default", Config::default()),
        ("torch, expandable", expandable(Config::torch())),
        ("default, expandable", expandable(Config::default())),
    ]
    .map(|(name, config)| (name, setup(config)))
    .into()
}

/// Makes devices as `setup` needs them.
fn device(setup: &Setup) -> impl Fn(Bytes) -> Sim {
    let virtual_memory = setup.config.expandable_segments;
    move |capacity| Sim::new(SimOptions { capacity, virtual_memory, ..SimOptions::default() })
}

fn memory(run: Run, traces: &[(String, Trace)]) {
    run.heading(&[
        "peak MiB",
        "peak/live",
        "mean/mean",
        "least/live",
        "calls",
        "maps",
        "warm",
        "in least",
    ]);
    let bar = ProgressBar::hidden();
    let setups = setups();
    let mut ratios = vec![Vec::new(); setups.len()];
    for (name, trace) in traces {
        for ((preset, setup), ratios) in setups.iter().zip(&mut ratios) {
            let Ok(bench) = Bench::new(trace, setup, device(setup), &bar) else {
                eprintln!("replay: {name} has more streams than an allocator");
                continue;
            };
            let figures = bench.figures();
            run.result(&format!("{name}: {preset}"), &row(&figures));
            ratios.push(
                [Some(figures.peak_reserved), figures.min_capacity].map(|bytes| {
                    bytes.and_then(|bytes| figures.over_live(bytes)).unwrap_or(f64::NAN)
                }),
            );
        }
    }
    let run = run.section("replay: over all traces");
    run.heading(&["geomean peak/live", "worst", "geomean least/live", "worst"]);
    for ((preset, _), ratios) in setups.iter().zip(&ratios) {
        let of = |which: usize| Series(ratios.iter().map(|ratio| ratio[which]).collect());
        let [peak, least] = [of(0), of(1)];
        let figures = [
            ("geomean_peak_over_live", peak.geometric_mean()),
            ("worst_peak_over_live", peak.max()),
            ("geomean_least_over_live", least.geometric_mean()),
            ("worst_least_over_live", least.max()),
        ];
        run.result(preset, &figures);
    }
}

fn row(figures: &Figures) -> [(&'static str, f64); 8] {
    let ratio =
        |bytes: Option<Bytes>| bytes.and_then(|bytes| figures.over_live(bytes)).unwrap_or(f64::NAN);
    let calls =
        |calls: Option<u64>| calls.and_then(|calls| figures.per_1000(calls)).unwrap_or(f64::NAN);
    [
        ("peak_mib", figures.peak_reserved as f64 / f64::from(1 << 20)),
        ("peak_over_live", ratio(Some(figures.peak_reserved))),
        ("mean_over_mean", figures.mean_ratio.unwrap_or(f64::NAN)),
        ("least_over_live", ratio(figures.min_capacity)),
        ("calls_per_1000", calls(Some(call_count(&figures.calls)))),
        ("maps_unmaps_per_1000", calls(Some(figures.calls.map + figures.calls.unmap))),
        ("calls_per_1000_warm", calls(figures.calls_warm)),
        ("calls_per_1000_in_least", calls(figures.calls_min_capacity)),
    ]
}

fn time(run: Run, traces: &[(String, Trace)]) {
    run.heading(&["cold ns", "warm ns", "ours / it, cold", "ours / it, warm"]);
    for (name, trace) in traces {
        let bar = ProgressBar::hidden();
        let setups = setups();
        let steps = &Steps::new(trace);
        let bytes = (trace.summary().peak_live_bytes * 2).max(1 << 20);
        let needs = Needs { bytes, blocks: steps.blocks(), streams: 1 };
        let mut lanes: Vec<Lane> = Vec::new();
        for (preset, setup) in &setups {
            let Ok(bench) = Bench::new(trace, setup, device(setup), &bar) else { continue };
            let round = move || {
                let round = bench.round();
                [round.cold, round.warm].map(|time| time.unwrap_or(f64::NAN))
            };
            lanes.push((preset, Box::new(round)));
        }
        lanes.push(("offset-allocator", Box::new(|| rival(steps, Some(Offset::new(needs))))));
        lanes.push(("rlsf", Box::new(|| rival(steps, Rlsf::new(needs)))));
        lanes.push(("malloc", Box::new(|| rival(steps, Heap::new(System, needs)))));
        lanes.push(("mimalloc", Box::new(|| rival(steps, Heap::new(MiMalloc, needs)))));
        contest(run, name, harness::traces::rounds(run, trace.events.len()), lanes);
    }
}

/// A contender by name, and a cold and a warm run of it.
type Lane<'a> = (&'static str, Box<dyn FnMut() -> [f64; 2] + 'a>);

fn rival<M: Contender>(steps: &Steps, memory: Option<M>) -> [f64; 2] {
    let Some(mut memory) = memory else { return [f64::NAN; 2] };
    [(); 2].map(|()| steps.run(&mut memory).unwrap_or(f64::NAN))
}

/// A row for each; the default preset, which is the second, is compared with all.
fn contest(run: Run, name: &str, rounds: usize, lanes: Vec<Lane>) {
    let (names, mut turns): (Vec<_>, Vec<_>) = lanes.into_iter().unzip();
    let [cold, warm] = take_double_turns(rounds, &mut turns);
    for (index, who) in names.iter().enumerate() {
        let figures = [
            ("cold_ns", cold[index].min()),
            ("warm_ns", warm[index].min()),
            ("ours_over_it_cold", cold[1].over(&cold[index]).median()),
            ("ours_over_it_warm", warm[1].over(&warm[index]).median()),
        ];
        run.result(&format!("{name}: {who}"), &figures);
    }
}

fn arenas(run: Run, traces: &[(String, Trace)]) {
    run.heading(&["arena / live"]);
    for (name, trace) in traces {
        let live = trace.summary().peak_live_bytes;
        let steps = Steps::new(trace);
        let fits = |bytes: u64| {
            let needs = Needs { bytes, blocks: steps.blocks(), streams: 1 };
            steps.run(&mut Offset::new(needs)).is_some()
        };
        // `low` does not fit and `high` does, all along.
        let (mut low, mut high) = (live, 4 * live);
        let found = live > 0 && fits(high);
        while found && high - low > live / 1000 + 512 {
            let middle = low + (high - low) / 2;
            *(if fits(middle) { &mut high } else { &mut low }) = middle;
        }
        let ratio = if found { high as f64 / live as f64 } else { f64::NAN };
        run.result(name, &[("arena_over_live", ratio)]);
    }
}
