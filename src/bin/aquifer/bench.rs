//! `aquifer bench`: the time of one allocate and free, beside which other allocators can be timed.
//!
//! Everything goes through the public API, each thread on a stream of its own, all on one
//! allocator over a simulated device that is large enough. Streams, blocks and random sizes are
//! there before the clock starts; drawing from them costs some two nanoseconds a number, which are
//! in the result. After the pairs of which only all are timed come some more that are timed one by
//! one: `singles` says how.

use std::process::ExitCode;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use aquifer::backend::{Sim, SimOptions};
use aquifer::{AllocError, Allocation, Allocator, Bytes, Stream};
use cpu_time::ThreadTime;
use indicatif::ProgressBar;

use crate::EXIT_USAGE;
use crate::output::{self, Format};
use crate::policy::PolicyArgs;
use crate::random::{Random, Sizes};
use crate::singles::{ROUND_PAIRS, Singles};

/// Bytes of the device: a million of the largest blocks fit.
const CAPACITY: Bytes = 1 << 50;

/// Bytes of the block that is allocated and freed in `hit`.
const HIT_SIZE: Bytes = 64 << 10;

/// The most pairs of a thread that are timed one by one.
const SINGLES_MAX: u64 = 100 * ROUND_PAIRS;

/// One in so many pairs is run before the clock starts, to fill the cache.
const WARM_UP_PARTS: u64 = 10;

/// Measures the time of one allocate and free.
///
/// The same numbers are drawn on every machine, so runs can be compared with one another, and with
/// another allocator that is given the same scenario. With one thread the time is CPU time of the
/// thread; with more it is time on the wall, as waiting for one another is then a part of it.
///
/// Then as many pairs again, at most a million, are timed one by one on the wall, for their
/// percentiles: those of 10,000 pairs, and then the median over all such rounds, so that the bursts
/// of other programs do not count. What reading the clock takes, measured between the pairs, is
/// taken off. Single pairs cannot overlap, so the 50th percentile is above the mean of all.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    policy: PolicyArgs,

    /// What each thread does over and over again
    #[arg(long, value_enum, default_value_t = Scenario::Hit)]
    scenario: Scenario,

    /// Blocks of each thread that are live meanwhile; 0 for `hit` and 10000 for the others, unless
    /// given
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(..=10_000_000))]
    live: Option<u32>,

    /// Threads, each on its own stream of the one allocator
    #[arg(long, value_name = "T", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,

    /// Timed pairs of each thread
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    pairs: u64,

    /// `table` for people, `json` for programs: one object
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

const EXAMPLES: &str = "\
Examples:
  aquifer bench
      the cost of a cached allocation
  aquifer bench --scenario mixed --live 100000 --format json
      random sizes with many blocks live, for a program to read
  aquifer bench --scenario hit --threads 2
      what threads cost one another

Keys of the JSON object:
  scenario, live, threads, policy  as asked for; live is the number of blocks of each thread
  pairs                            timed pairs of all threads together
  ns_per_pair                      for one thread, the mean over the threads
  pairs_per_second                 of all threads together
  p50_ns, p99_ns, p99_9_ns         of single pairs: so many in a hundred take no longer

Exit codes: 0 done; 1 the run failed; 2 bad usage.";

/// What each thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Scenario {
    /// Allocates 64 KiB and frees them, always from the cache; the live blocks have 64 KiB too
    Hit,
    /// Frees one of the live blocks at random and allocates another of 512 B to 16 MiB instead, all
    /// powers of two alike
    Mixed,
    /// Allocates 512 B to 128 KiB and frees them, among as many holes of up to 64 KiB as there are
    /// live blocks, which lie between the holes
    Fragmented,
}

impl Scenario {
    fn name(self) -> &'static str {
        match self {
            Scenario::Hit => "hit",
            Scenario::Mixed => "mixed",
            Scenario::Fragmented => "fragmented",
        }
    }

    fn live_default(self) -> u32 {
        if self == Scenario::Hit { 0 } else { 10_000 }
    }

    /// The smallest and the largest of the sizes that are drawn while the clock runs.
    fn sizes(self) -> (Bytes, Bytes) {
        match self {
            Scenario::Hit => (HIT_SIZE, HIT_SIZE),
            Scenario::Mixed => (512, 16 << 20),
            Scenario::Fragmented => (512, 128 << 10),
        }
    }
}

/// What was measured.
#[derive(Debug)]
struct Timing {
    /// Nanoseconds a pair takes on one thread, the mean over the threads.
    pair: f64,
    /// Pairs of all threads together.
    pairs_per_second: f64,
    /// Pairs one by one, of all threads.
    singles: Singles,
}

/// Runs the scenario and prints its time.
pub(crate) fn run(args: &BenchArgs) -> ExitCode {
    let config = match args.policy.configuration() {
        Ok(config) => config,
        Err(error) => {
            output::complain(&error);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let live = args.live.unwrap_or(args.scenario.live_default());
    if args.scenario == Scenario::Mixed && live == 0 {
        output::complain("--scenario mixed needs --live of at least 1: it replaces live blocks");
        return ExitCode::from(EXIT_USAGE);
    }
    let virtual_memory = config.expandable_segments;
    let options = SimOptions { capacity: CAPACITY, virtual_memory, ..SimOptions::default() };
    let allocator = Allocator::new(Sim::new(options), config);
    match time(&allocator, args, live as usize) {
        Ok(timing) => match output::print(&describe(args, live, &timing)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => ExitCode::from(output::give_up(&error, 0)),
        },
        Err(error) => {
            output::complain(&format!("bench: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn describe(args: &BenchArgs, live: u32, timing: &Timing) -> String {
    let (scenario, policy) = (args.scenario.name(), args.policy.policy.name());
    let pairs = args.pairs * u64::from(args.threads);
    let percentiles = timing.singles.percentiles();
    if args.format == Format::Json {
        return output::json_line(&[
            ("scenario", scenario.into()),
            ("live", live.into()),
            ("threads", args.threads.into()),
            ("pairs", pairs.into()),
            ("ns_per_pair", output::rounded(Some(timing.pair), 1)),
            ("pairs_per_second", output::rounded(Some(timing.pairs_per_second), 0)),
            ("p50_ns", output::rounded(Some(percentiles.p50), 1)),
            ("p99_ns", output::rounded(Some(percentiles.p99), 1)),
            ("p99_9_ns", output::rounded(Some(percentiles.p99_9), 1)),
            ("policy", policy.into()),
        ]);
    }
    let heading = [
        "scenario", "live", "threads", "pairs", "ns/pair", "pairs/s", "p50", "p99", "p99.9",
        "policy",
    ];
    let row = [
        scenario.to_owned(),
        live.to_string(),
        args.threads.to_string(),
        pairs.to_string(),
        format!("{:.1}", timing.pair),
        format!("{:.0}", timing.pairs_per_second),
        format!("{:.0}", percentiles.p50),
        format!("{:.0}", percentiles.p99),
        format!("{:.0}", percentiles.p99_9),
        policy.to_owned(),
    ];
    output::table(&[heading.map(str::to_owned).to_vec(), row.to_vec()])
}

/// Runs all threads and puts their times together.
fn time(allocator: &Allocator<Sim>, args: &BenchArgs, live: usize) -> Result<Timing, AllocError> {
    let pairs = args.pairs;
    let nanoseconds = |time: &Duration| time.as_nanos().max(1) as f64;
    let bar = output::progress(2 * u64::from(args.threads), "filling the cache");
    if args.threads == 1 {
        let mut worker = Worker::ready(allocator, args, live, 0, &bar)?;
        bar.finish_and_clear();
        let begin = ThreadTime::now();
        worker.repeat(pairs)?;
        let pair = nanoseconds(&begin.elapsed()) / pairs as f64;
        let singles = worker.singles(pairs)?;
        return Ok(Timing { pair, pairs_per_second: 1e9 / pair, singles });
    }
    let start = Barrier::new(args.threads as usize);
    let thread = |number: u32| -> Result<(Duration, Singles), AllocError> {
        let worker = Worker::ready(allocator, args, live, number, &bar);
        // Whoever failed comes here too: the others would wait for ever.
        start.wait();
        let mut worker = worker?;
        let begin = Instant::now();
        worker.repeat(pairs)?;
        Ok((begin.elapsed(), worker.singles(pairs)?))
    };
    let parts = thread::scope(|scope| {
        let thread = &thread;
        let spawn = |number| scope.spawn(move || thread(number));
        let threads: Vec<_> = (0..args.threads).map(spawn).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>, AllocError>>()
    });
    bar.finish_and_clear();
    let (times, rounds): (Vec<Duration>, Vec<Singles>) = parts?.into_iter().unzip();
    let mut singles = Singles::default();
    rounds.into_iter().for_each(|rounds| singles.append(rounds));
    // All start at once, so the slowest one took as long as they did together.
    let slowest = times.iter().map(nanoseconds).fold(1.0, f64::max);
    let sum: f64 = times.iter().map(nanoseconds).sum();
    let (threads, pairs) = (f64::from(args.threads), pairs as f64);
    let pairs_per_second = pairs * threads * 1e9 / slowest;
    Ok(Timing { pair: sum / threads / pairs, pairs_per_second, singles })
}

/// One thread's part: its stream, its live blocks and its random numbers.
struct Worker<'a> {
    allocator: &'a Allocator<Sim>,
    stream: Stream<Sim>,
    scenario: Scenario,
    live: Vec<Option<Allocation<Sim>>>,
    random: Random,
    sizes: Sizes,
}

impl<'a> Worker<'a> {
    /// A worker that has run for a while already, so that the cache holds what it needs.
    fn ready(
        allocator: &'a Allocator<Sim>,
        args: &BenchArgs,
        live: usize,
        number: u32,
        bar: &ProgressBar,
    ) -> Result<Self, AllocError> {
        let mut worker = Self::new(allocator, args.scenario, live, number)?;
        bar.inc(1);
        worker.repeat(args.pairs / WARM_UP_PARTS)?;
        bar.inc(1);
        Ok(worker)
    }

    /// Allocates what is live all along.
    fn new(
        allocator: &'a Allocator<Sim>,
        scenario: Scenario,
        live: usize,
        number: u32,
    ) -> Result<Self, AllocError> {
        let stream = allocator.stream(number);
        let mut random = Random::new(u64::from(number));
        let (least, most) = scenario.sizes();
        let sizes = Sizes::new(&mut random, least, most);
        let fill = if scenario == Scenario::Fragmented { 2 * live } else { live };
        let fill_sizes = match scenario {
            Scenario::Fragmented => Sizes::new(&mut random, 512, 64 << 10),
            _ => Sizes::new(&mut random, least, most),
        };
        let mut blocks = Vec::with_capacity(fill);
        for _ in 0..fill {
            let size = fill_sizes.draw(&mut random);
            blocks.push(Some(allocator.allocate_on(&stream, size)?));
        }
        if scenario == Scenario::Fragmented {
            // Every second block becomes a hole.
            blocks.iter_mut().step_by(2).for_each(|block| *block = None);
        }
        Ok(Self { allocator, stream, scenario, live: blocks, random, sizes })
    }

    /// Runs `pairs` pairs, or as many as there may be, one by one.
    fn singles(&mut self, pairs: u64) -> Result<Singles, AllocError> {
        let pairs = pairs.min(SINGLES_MAX);
        let round = pairs.min(ROUND_PAIRS);
        let mut singles = Singles::default();
        for _ in 0..pairs / round {
            singles.round(round, || self.repeat(1))?;
        }
        Ok(singles)
    }

    /// Runs `pairs` pairs of an allocation and a free.
    fn repeat(&mut self, pairs: u64) -> Result<(), AllocError> {
        let (allocator, stream) = (self.allocator, &self.stream);
        match self.scenario {
            Scenario::Hit => {
                for _ in 0..pairs {
                    drop(allocator.allocate_on(stream, HIT_SIZE)?);
                }
            }
            Scenario::Mixed => {
                for _ in 0..pairs {
                    let slot = self.random.below(self.live.len());
                    let size = self.sizes.draw(&mut self.random);
                    self.live[slot] = None;
                    self.live[slot] = Some(allocator.allocate_on(stream, size)?);
                }
            }
            Scenario::Fragmented => {
                for _ in 0..pairs {
                    let size = self.sizes.draw(&mut self.random);
                    drop(allocator.allocate_on(stream, size)?);
                }
            }
        }
        Ok(())
    }
}
