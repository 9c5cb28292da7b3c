//! Seeded programs against a shadow allocator, and every short program there is.
//!
//! `model/run.rs` executes one step and judges it: no byte in two hands, alignment, totals and
//! peaks recomputed from the outside, the device's own count of bytes, contents on the host, and on
//! a simulated device the order of work: whoever gets bytes comes after all earlier work on them,
//! and no page goes while work on it runs. Here are the programs.
//!
//! A failure prints the configuration, the seed and the last steps; the same seed fails again.

#[cfg(all(feature = "cuda", target_os = "linux"))]
#[path = "support/cuda.rs"]
mod cuda;
#[cfg(all(feature = "cuda", target_os = "linux"))]
#[path = "support/cuda_device.rs"]
mod cuda_device;
#[path = "model/run.rs"]
mod run;
mod support;

use aquifer::backend::{Host, Sim, SimOptions};
use aquifer::{Allocator, Config};
use run::{Op, Run};
use support::{Context, Device, KIB, MIB, Rng, configured, expandable};

/// What kind of program: how often what is done, and how large.
#[derive(Debug, Clone, Copy)]
struct Plan {
    name: &'static str,
    streams: u32,
    steps: u32,
    seeds: u64,
    size_max: u64,
    /// Whether private pools, limits and streams come and go.
    pools: bool,
    limits: bool,
    forgets: bool,
}

const PLAN: Plan = Plan {
    name: "",
    streams: 1,
    steps: 400,
    seeds: if cfg!(debug_assertions) { 4 } else { 60 },
    size_max: 40 * MIB,
    pools: false,
    limits: false,
    forgets: false,
};

/// The next step of a random program.
fn chance(rng: &mut Rng, plan: &Plan) -> Op {
    let stream = rng.below(u64::from(plan.streams)) as u32;
    let which = rng.next() as usize;
    match rng.below(100) {
        0..40 => {
            let align = if rng.below(8) == 0 { 1 << rng.below(17) } else { 0 };
            let size = match rng.below(4) {
                0 => [512 * KIB, MIB, 3 * MIB, 12 * MIB][rng.below(4) as usize].min(plan.size_max),
                // Sizes that come again and again, for the front cache.
                1 => [KIB, 8 * KIB, 24 * KIB, 100 * KIB][rng.below(4) as usize],
                _ => rng.size(plan.size_max),
            };
            Op::Allocate { size, stream, align }
        }
        40..74 => Op::Free(which),
        74..82 => Op::Record { which, stream },
        82..86 => Op::Finish(stream),
        86 => Op::FinishAll,
        87 => Op::Advance(stream),
        88 => Op::EmptyCache,
        89 => Op::Trim(rng.below(200 * MIB)),
        90 => Op::Maintain,
        91 => Op::ResetPeaks,
        92 if plan.limits => Op::Limit(30 * MIB + rng.below(200 * MIB)),
        93..95 if plan.pools => {
            let (use_on_oom, no_split) = (which.is_multiple_of(2), which.is_multiple_of(3));
            Op::OpenPool { use_on_oom, no_split }
        }
        95 if plan.pools => Op::ClosePool(which),
        96 if plan.pools => Op::RouteThread(which),
        97 if plan.pools && which.is_multiple_of(2) => Op::Capture { which, stream },
        97 if plan.pools => Op::RouteStream { which, stream },
        98 if plan.pools => Op::EndRoute(which),
        99 if plan.forgets => Op::Forget(stream),
        _ => Op::FreeMany(which),
    }
}

/// Runs the plan's programs over devices that `make` makes.
fn programs<D: Device>(plan: Plan, config: &Config, make: impl Fn() -> D) {
    for seed in 0..plan.seeds {
        let _context = Context((plan.name, "seed", seed));
        let mut rng = Rng::new(seed);
        let mut run = Run::new(make(), config.clone(), plan.streams);
        // To judge is to look at everything, which merges what waits for a request of its size: so
        // every second program is left alone for some steps. A limit binds from its setting on.
        let every = if seed % 2 == 0 { 1 } else { 8 };
        for step in 0..plan.steps {
            let op = chance(&mut rng, &plan);
            if matches!(op, Op::Limit(_)) {
                run.judge();
            }
            run.step(op);
            if step % every == 0 || matches!(op, Op::Limit(_)) {
                run.judge();
            }
        }
        run.judge();
        run.finish();
    }
}

fn device(virtual_memory: bool, asynchronous: bool) -> impl Fn() -> Sim {
    let capacity = 300 * MIB;
    move || Sim::new(SimOptions { capacity, virtual_memory, asynchronous, ..SimOptions::default() })
}

/// Small pages, so that many come and go.
fn tiny_segments() -> Config {
    configured(|config| {
        config.small_max = 16 * KIB;
        config.small_segment = 64 * KIB;
        config.large_segment = 256 * KIB;
        config.large_min = 128 * KIB;
        config.large_round = 64 * KIB;
    })
}

fn tiny_device(virtual_memory: bool) -> Sim {
    let (capacity, granularity, asynchronous) = (4 * MIB, 64 * KIB, true);
    Sim::new(SimOptions {
        capacity,
        granularity,
        virtual_memory,
        asynchronous,
        ..SimOptions::default()
    })
}

/// Stamps tests of plan, configuration and device.
macro_rules! plans {
    ($($name:ident: $plan:expr, $config:expr, $make:expr;)*) => {$(
        #[test]
        fn $name() {
            programs(Plan { name: stringify!($name), ..$plan }, &$config, $make);
        }
    )*};
}

/// Everything that comes and goes, on four streams.
const BUSY: Plan = Plan { streams: 4, pools: true, limits: true, forgets: true, ..PLAN };
const SMALL: Plan = Plan { size_max: 600 * KIB, ..PLAN };
const FOUR: Plan = Plan { streams: 4, ..PLAN };

plans! {
    default_alone: PLAN, Config::default(), device(false, false);
    default_four_streams: FOUR, Config::default(), device(false, true);
    default_busy: BUSY, Config::default(), device(false, true);
    torch_alone: PLAN, Config::torch(), device(false, false);
    torch_busy: BUSY, Config::torch(), device(false, true);
    max_split_size: FOUR, configured(|config| {
        config.max_split_size = Some(20 * MIB);
        config.max_non_split_rounding = 4 * MIB;
    }), device(false, true);
    roundup_divisions: FOUR, configured(|config| config.roundup_power2_divisions = [4; 16]),
        device(false, false);
    garbage_collection: FOUR, configured(|config| {
        config.garbage_collection_threshold = Some(0.5);
        config.headroom = None;
    }), device(false, true);
    no_headroom_no_exact: FOUR, configured(|config| {
        config.headroom = Some(0.0);
        config.exact_growth = false;
        config.tie_walk = 1;
        config.event_batch_count = 2;
    }), device(false, true);
    no_cross_stream: FOUR, configured(|config| config.cross_stream = false), device(false, true);
    no_device_wait: FOUR, Config::default(), || Sim::new(SimOptions {
        capacity: 300 * MIB,
        asynchronous: true,
        device_wait: false,
        ..SimOptions::default()
    });
    expandable_alone: PLAN, expandable(), device(true, false);
    expandable_four_streams: FOUR, expandable(), device(true, true);
    expandable_limits: Plan { limits: true, ..FOUR }, expandable(), device(true, true);
    expandable_busy: BUSY, expandable(), device(true, true);
    expandable_pages_of_one_size: FOUR, configured(|config| {
        config.expandable_segments = true;
        config.chunk_share = 0.0;
        config.page_headroom = None;
    }), device(true, true);
    expandable_large_chunks: BUSY, configured(|config| {
        config.expandable_segments = true;
        config.chunk_share = 1.0;
        config.page_headroom = Some(0.0);
    }), device(true, true);
    expandable_torch: FOUR, {
        let mut config = Config::torch();
        config.expandable_segments = true;
        config
    }, device(true, true);
    tiny_fixed: Plan { streams: 4, ..SMALL }, tiny_segments(), || tiny_device(false);
    tiny_expandable: Plan { streams: 4, ..SMALL }, {
        let mut config = tiny_segments();
        config.expandable_segments = true;
        config
    }, || tiny_device(true);
    host_alone: Plan { size_max: 3 * MIB, ..PLAN }, Config::default(), Host::new;
    host_busy: Plan { size_max: 3 * MIB, ..BUSY }, Config::default(), || {
        Host::with_capacity(64 * MIB)
    };
}

/// The same programs over the CUDA backend and the fake driver: data is written and read back.
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod over_cuda {
    use aquifer::CudaAllocator;
    use aquifer::backend::CudaSource;

    use super::*;
    use crate::cuda_device::CudaDevice;

    const CAPACITY: u64 = 64 * MIB;
    const ALONE: Plan = Plan { size_max: 3 * MIB, ..PLAN };
    const BUSY: Plan = Plan { size_max: 3 * MIB, ..super::BUSY };

    plans! {
        cuda_pages_alone: ALONE, expandable(), || CudaDevice::with_pages(CAPACITY);
        cuda_pages_busy: BUSY, expandable(), || CudaDevice::with_pages(CAPACITY);
        cuda_pages_recommended: BUSY, CudaAllocator::recommended_config(CudaSource::Virtual),
            || CudaDevice::with_pages(4 * CAPACITY);
        cuda_whole_pages_busy: BUSY, Config::default(), || CudaDevice::with_pages(CAPACITY);
        cuda_pool_busy: BUSY, Config::default(), || CudaDevice::with_pool(CAPACITY);
        cuda_plain_busy: BUSY, Config::default(), || CudaDevice::plain(CAPACITY);
        cuda_plain_torch: BUSY, Config::torch(), || CudaDevice::plain(CAPACITY);
    }
}

/// The alphabet of the short programs: sizes of every sort on two streams, and what undoes them.
const ALPHABET: [Op; 12] = [
    Op::Allocate { size: 1, stream: 0, align: 0 },
    Op::Allocate { size: MIB, stream: 0, align: 0 },
    Op::Allocate { size: 3 * MIB, stream: 0, align: 0 },
    Op::Allocate { size: 12 * MIB, stream: 0, align: 0 },
    Op::Allocate { size: 1, stream: 1, align: 0 },
    Op::Allocate { size: 3 * MIB, stream: 1, align: 0 },
    Op::Allocate { size: 12 * MIB, stream: 1, align: 0 },
    Op::FreeOldest,
    Op::FreeNewest,
    Op::RecordNewest,
    Op::Finish(1),
    Op::EmptyCache,
];

/// Runs every program of at most `depth` letters, checking all invariants after each. As every
/// prefix is a program too, that is after every step.
fn exhaust(depth: u32, config: &Config, make: impl Fn() -> Sim) {
    let mut count = 0_u64;
    for length in 1..=depth {
        let mut word = vec![0_usize; length as usize];
        loop {
            if is_new(&word) {
                let _context = Context(&word);
                let mut run = Run::new(make(), config.clone(), 2);
                word.iter().for_each(|&letter| run.step(ALPHABET[letter]));
                run.judge();
                // The longest ones only leave: to free, merge and give back took their prefixes.
                if length == depth {
                    run.leave()
                } else {
                    run.finish()
                }
                count += 1;
            }
            let Some(at) = word.iter().rposition(|&letter| letter + 1 < ALPHABET.len()) else {
                break;
            };
            word[at] += 1;
            word[at + 1..].fill(0);
        }
    }
    assert!(count > 100, "{count} programs are not all there are");
}

/// Whether no shorter program does the same: nothing is freed or recorded that is not there, and
/// the cache is not emptied twice.
fn is_new(word: &[usize]) -> bool {
    let mut live = 0;
    let mut before = None;
    word.iter().all(|&letter| {
        let op = ALPHABET[letter];
        let does_something = match op {
            Op::Allocate { .. } => true,
            Op::FreeOldest | Op::FreeNewest | Op::RecordNewest => live > 0,
            _ => before.is_some(),
        };
        live += i32::from(matches!(op, Op::Allocate { .. }));
        live -= i32::from(matches!(op, Op::FreeOldest | Op::FreeNewest));
        // With one live block the oldest is the newest.
        let twin = live == 0 && matches!(op, Op::FreeOldest);
        let again = before == Some(letter) && matches!(op, Op::EmptyCache | Op::Finish(_));
        before = Some(letter);
        does_something && !twin && !again
    })
}

const DEPTH: u32 = if cfg!(debug_assertions) { 4 } else { 5 };
const CAPACITY: u64 = 26 * MIB;

#[test]
fn every_short_program() {
    // The one configuration that goes a step further.
    let depth = if cfg!(debug_assertions) { DEPTH } else { DEPTH + 1 };
    exhaust(depth, &Config::default(), || support::asynchronous_sim(CAPACITY));
}

#[test]
fn every_short_program_torch() {
    exhaust(DEPTH, &Config::torch(), || support::asynchronous_sim(CAPACITY));
}

#[test]
fn every_short_program_expandable() {
    exhaust(DEPTH, &expandable(), || support::asynchronous_virtual_sim(2 * CAPACITY));
}

#[test]
fn every_short_program_within_a_limit() {
    let config = configured(|config| {
        config.expandable_segments = true;
        config.memory_limit = Some(44 * MIB);
    });
    exhaust(DEPTH, &config, || support::asynchronous_virtual_sim(4 * CAPACITY));
}

/// A request that says nothing but a size takes a path of its own through the core. One with a tag
/// takes the long way, and gets the same place.
#[test]
fn plain_requests_get_the_places_of_those_with_a_word_more() {
    let configs = [
        Config::default(),
        expandable(),
        configured(|config| (config.whole_fit_parts, config.spare_idle_ratio) = (2, 3)),
        configured(|config| (config.front_cache, config.split_remainder_large) = (false, MIB)),
        configured(|config| {
            (config.expandable_segments, config.split_remainder_large) = (true, MIB);
        }),
        configured(|config| config.cross_stream = false),
    ];
    for (number, config) in configs.into_iter().enumerate() {
        for seed in 0..if cfg!(debug_assertions) { 3 } else { 40 } {
            let _context = Context(("config, seed", number, seed));
            let options =
                SimOptions { capacity: 8 << 30, virtual_memory: true, ..SimOptions::default() };
            let sims = [(); 2].map(|()| Sim::new(options));
            let [plain, worded] =
                sims.each_ref().map(|sim| Allocator::new(sim.clone(), config.clone()));
            let tag = worded.tag("a word more");
            let mut rng = Rng::new(seed);
            let mut held = Vec::new();
            for _ in 0..600 {
                if rng.below(10) < 6 || held.is_empty() {
                    let size = if rng.below(2) == 0 { rng.size(40 * MIB) } else { 3 * MIB / 4 };
                    let raw = rng.below(1 + seed % 3) as u32;
                    let stream = plain.stream(raw);
                    let one = plain.allocate_on(&stream, size).expect("room");
                    let stream = worded.stream(raw);
                    let other = worded.request(size).on(&stream).tag(tag).allocate().expect("room");
                    let places = (one.address(), one.capacity(), one.stream_index());
                    assert_eq!(places, (other.address(), other.capacity(), other.stream_index()));
                    held.push((one, other));
                } else {
                    held.swap_remove(rng.below(held.len() as u64) as usize);
                }
            }
            assert_eq!(plain.memory_stats(), worded.memory_stats());
            assert_eq!(sims[0].calls(), sims[1].calls());
            plain.verify();
            worded.verify();
        }
    }
}
