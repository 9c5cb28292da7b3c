//! What do real programs' requests cost, and how much memory is held for them?
//!
//! Replays each trace of `benches/traces` over a simulated device that hands out memory in 2 MiB
//! granules and counts calls, under both presets. *Cold*: a new allocator with nothing cached,
//! every growth and release in it. *Warm*: the same once more. Nanoseconds per event (allocation,
//! free or use on another stream), the least of several runs; *peak*: the most bytes held from the
//! device at once; *calls*: all calls of the backend in the cold run. These last two are the same
//! in every run.
//!
//! The rival is `offset-allocator` over one arena that is large enough for everything: a bound from
//! below on what an event can cost, without streams, growth or statistics. It holds its arena from
//! the start, so it has no peak. Markers (`m empty_cache`) are obeyed; the rival has no cache to
//! empty.
//!
//! `cargo bench --bench replay --features gz`. Two cores shared with other programs: the least of
//! the runs repeats within 5 %; traces of less than 10³ events within 20 %.

mod harness;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use aquifer::backend::{Sim, SimOptions};
use aquifer::trace::replay::{Outcome, Program};
use aquifer::trace::{Event, Trace};
use aquifer::{Allocator, Config};
use harness::{Run, Series, interleave, nanoseconds_each};

fn main() {
    let run = Run::new("replay: ns per event");
    run.heading(&["cold", "warm", "rival", "ratio, warm", "peak MiB", "peak / live", "calls"]);
    for path in traces() {
        let trace = Trace::open(&path).expect("the traces here are valid");
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let name = name.trim_end_matches(".mtrace.gz");
        for (preset, config) in [("torch", Config::torch()), ("default", Config::default())] {
            let name: String = name.chars().take(24).collect();
            replay(run, &trace, &format!("{name}, {preset}"), &config);
        }
    }
}

/// The traces, in order of their names.
fn traces() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/traces");
    let files = std::fs::read_dir(folder).expect("the traces are beside this file");
    let paths = files.map(|file| file.expect("the folder is readable").path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension() == Some("gz".as_ref())).collect();
    paths.sort();
    paths
}

fn replay(run: Run, trace: &Trace, case: &str, config: &Config) {
    let program = Program::compile(trace, true);
    let mut last = None;
    let mut warm = Series(Vec::new());
    let mut rival = Rival::new(trace);
    let mut own = || {
        let turn = Turn::new(&program, config);
        warm.0.push(turn.warm);
        let cold = turn.cold;
        last = Some(turn);
        cold
    };
    let [cold, rival] = interleave(run.pick(20, 1), [&mut own, &mut || rival.turn()]);
    warm.0.remove(0);
    let turn = last.expect("there is at least one round");
    let live = trace.summary().peak_live_bytes as f64;
    let figures = [
        ("cold_ns", cold.min()),
        ("warm_ns", warm.min()),
        ("rival_ns", rival.min()),
        ("ratio_warm", warm.over(&rival).median()),
        ("peak_mib", (turn.peak >> 20) as f64),
        ("peak_over_live", turn.peak as f64 / live),
        ("calls", turn.calls as f64),
    ];
    run.result(case, &figures);
}

/// What one cold and one warm run of this crate gave.
#[derive(Debug)]
struct Turn {
    cold: f64,
    warm: f64,
    peak: u64,
    calls: u64,
}

impl Turn {
    fn new(program: &Program, config: &Config) -> Self {
        let sim = Sim::new(SimOptions::default());
        let allocator = Allocator::new(sim.clone(), config.clone());
        let streams: Vec<_> = program.streams().iter().map(|&raw| allocator.stream(raw)).collect();
        let once = || {
            nanoseconds_each(program.events(), || {
                assert_eq!(program.run(&allocator, &streams), Outcome::Done);
            })
        };
        let cold = once();
        let (peak, calls) = (sim.peak_used_bytes(), sim.calls().total());
        Self { cold, warm: once(), peak, calls }
    }
}

/// `offset-allocator`, with a trace made ready: `(slot, granules)`, 0 granules for a free.
struct Rival {
    arena: offset_allocator::Allocator<u32>,
    live: Vec<Option<offset_allocator::Allocation<u32>>>,
    steps: Vec<(usize, u32)>,
    events: usize,
}

impl Rival {
    fn new(trace: &Trace) -> Self {
        let mut slots = HashMap::new();
        let mut vacant = Vec::new();
        let mut steps = Vec::new();
        let mut count = 0;
        for event in &trace.events {
            match *event {
                Event::Allocate { id, size, .. } => {
                    let slot = vacant.pop().unwrap_or_else(|| {
                        count += 1;
                        count - 1
                    });
                    slots.insert(id, slot);
                    steps.push((slot, size.div_ceil(512) as u32));
                }
                Event::Free { id } => {
                    let slot = slots.remove(&id).expect("a reader lets nothing else through");
                    vacant.push(slot);
                    steps.push((slot, 0));
                }
                Event::Use { .. } | Event::Marker(_) => {}
            }
        }
        let arena = offset_allocator::Allocator::new(u32::MAX);
        Self { arena, live: vec![None; count], events: steps.len(), steps }
    }

    fn turn(&mut self) -> f64 {
        let each = nanoseconds_each(self.events, || {
            for &(slot, granules) in &self.steps {
                self.live[slot] = match granules {
                    0 => {
                        self.arena.free(self.live[slot].take().expect("it is live"));
                        None
                    }
                    _ => Some(self.arena.allocate(granules).expect("2 TiB are enough")),
                };
            }
        });
        for block in self.live.iter_mut().filter_map(Option::take) {
            self.arena.free(block);
        }
        each
    }
}
