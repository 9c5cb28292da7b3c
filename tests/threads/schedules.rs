//! Two or three threads in a few steps, under many schedules.

use std::sync::{Arc, Mutex, PoisonError};

use aquifer::backend::SimOptions;
use aquifer::{AllocError, Allocation, Allocator, Config, PoolOptions};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

use super::oracle::Watched;

const MIB: u64 = 1 << 20;
const RANDOM_RUNS: usize = 300;
const PCT_RUNS: usize = 1200;
const SEEDS: std::ops::Range<u64> = 1..4;

type Outcome = Result<Allocation<Watched>, AllocError>;

/// Runs `scenario` under all schedules.
fn explore(scenario: impl Fn() + Send + Sync + Copy + 'static) {
    for seed in SEEDS {
        println!("seed {seed}: {RANDOM_RUNS} random schedules, {PCT_RUNS} of PCT with depth 3");
        run(RandomScheduler::new_from_seed(seed, RANDOM_RUNS), scenario);
        run(PctScheduler::new_from_seed(seed, 3, PCT_RUNS), scenario);
    }
}

fn run(scheduler: impl Scheduler + 'static, scenario: impl Fn() + Send + Sync + 'static) {
    shuttle::Runner::new(scheduler, shuttle::Config::default()).run(scenario);
}

/// A point at which the scheduler may switch. (`yield_now` would lower the thread's priority, too.)
fn switch() {
    AtomicBool::new(false).load(Ordering::SeqCst);
}

fn device(capacity: u64) -> (Watched, SimOptions) {
    let options = SimOptions { capacity, asynchronous: true, ..SimOptions::default() };
    (Watched::pausing(options, switch), options)
}

fn allocator(capacity: u64, config: Config) -> (Watched, Allocator<Watched>) {
    let (device, _) = device(capacity);
    (device.clone(), Allocator::new(device, config))
}

fn virtual_allocator(capacity: u64) -> (Watched, Allocator<Watched>) {
    let mut config = Config::default();
    config.expandable_segments = true;
    let options = SimOptions { virtual_memory: true, ..device(capacity).1 };
    let device = Watched::pausing(options, switch);
    (device.clone(), Allocator::new(device, config))
}

/// Runs both at once; their results.
fn both<A: Send + 'static, B: Send + 'static>(
    a: impl FnOnce() -> A + Send + 'static,
    b: impl FnOnce() -> B + Send + 'static,
) -> (A, B) {
    let a = thread::spawn(a);
    let b = thread::spawn(b);
    (a.join().expect("thread a"), b.join().expect("thread b"))
}

fn request(
    allocator: &Allocator<Watched>,
    raw: u32,
    size: u64,
) -> impl FnOnce() -> Outcome + use<> {
    let allocator = allocator.clone();
    move || allocator.allocate_on(&allocator.stream(raw), size)
}

/// Everything comes back, and nothing was unsafe.
fn end(device: &Watched, allocator: Allocator<Watched>) {
    device.sim.complete_all();
    allocator.verify();
    allocator.empty_cache();
    assert_eq!((allocator.memory_active(), allocator.memory_reserved()), (0, 0));
    drop(allocator);
    closed(device);
}

fn closed(device: &Watched) {
    let sim = &device.sim;
    assert_eq!((sim.used_bytes(), sim.live_ranges(), sim.leaked()), (0, 0, 0));
    device.assert_safe();
}

#[test]
fn of_two_misses_for_the_last_bytes_one_succeeds() {
    explore(|| {
        let (device, allocator) = allocator(20 * MIB, Config::default());
        let pair = both(request(&allocator, 1, 20 * MIB), request(&allocator, 2, 20 * MIB));
        let count = u32::from(pair.0.is_ok()) + u32::from(pair.1.is_ok());
        assert_eq!(count, 1, "the bytes are enough for one");
        drop(pair);
        end(&device, allocator);
    });
}

#[test]
fn two_misses_that_both_fit_succeed() {
    explore(|| {
        let (device, allocator) = allocator(40 * MIB, Config::default());
        let pair = both(request(&allocator, 1, 20 * MIB), request(&allocator, 2, 20 * MIB));
        assert!(pair.0.is_ok() && pair.1.is_ok(), "{pair:?}");
        drop(pair);
        end(&device, allocator);
    });
}

/// One of them gets the device's only segment; the other finds the rest of it.
#[test]
fn two_misses_share_a_segment_that_holds_both() {
    explore(|| {
        let (device, allocator) = allocator(20 * MIB, Config::default());
        let pair = both(request(&allocator, 1, 8 * MIB), request(&allocator, 2, 8 * MIB));
        assert!(pair.0.is_ok() && pair.1.is_ok(), "{pair:?}");
        drop(pair);
        end(&device, allocator);
    });
}

#[test]
fn a_miss_waits_for_a_release_that_is_under_way() {
    explore(|| {
        let (device, allocator) = allocator(20 * MIB, Config::default());
        drop(allocator.allocate(20 * MIB).expect("there is room"));
        let trimmer = allocator.clone();
        let miss = request(&allocator, 1, 18 * MIB);
        let (_, outcome) = both(move || trimmer.empty_cache(), miss);
        assert!(outcome.is_ok(), "out of memory with all memory free: {outcome:?}");
        drop(outcome);
        end(&device, allocator);
    });
}

#[test]
fn a_miss_waits_for_pages_that_are_on_their_way_back() {
    explore(|| {
        let (device, allocator) = virtual_allocator(20 * MIB);
        drop(allocator.allocate(20 * MIB).expect("there is room"));
        let trimmer = allocator.clone();
        let miss = request(&allocator, 1, 18 * MIB);
        let (_, outcome) = both(move || trimmer.empty_cache(), miss);
        assert!(outcome.is_ok(), "out of memory with all memory free: {outcome:?}");
        drop(outcome);
        end(&device, allocator);
    });
}

#[test]
fn a_free_races_with_a_trim() {
    explore(|| {
        let (device, allocator) = allocator(60 * MIB, Config::default());
        let cached = allocator.allocate(20 * MIB).expect("there is room");
        let live = allocator.allocate(9 * MIB).expect("there is room");
        let lent = allocator.allocate(9 * MIB).expect("there is room");
        device.handed(&lent, 0);
        allocator.record_stream(&lent, &allocator.stream(1));
        device.use_on(&lent, 1);
        drop(cached);
        let trimmer = allocator.clone();
        let free = move || {
            drop(live);
            drop(lent);
        };
        both(move || trimmer.empty_cache(), free);
        end(&device, allocator);
    });
}

#[test]
fn the_allocator_is_dropped_while_another_thread_frees() {
    explore(|| {
        for (device, allocator) in
            [allocator(60 * MIB, Config::default()), virtual_allocator(60 * MIB)]
        {
            let first = allocator.allocate(20 * MIB).expect("there is room");
            let second = allocator.allocate_on(&allocator.stream(1), 5 * MIB).expect("room");
            both(
                move || drop(allocator),
                move || {
                    drop(first);
                    drop(second);
                },
            );
            closed(&device);
        }
    });
}

#[test]
fn the_allocator_is_dropped_while_a_lent_block_is_freed() {
    explore(|| {
        let (device, allocator) = allocator(60 * MIB, Config::torch());
        let held = allocator.allocate(20 * MIB).expect("there is room");
        allocator.record_stream(&held, &allocator.stream(1));
        both(move || drop(allocator), move || drop(held));
        closed(&device);
    });
}

#[test]
fn callbacks_serve_two_misses_at_once() {
    explore(|| {
        let (device, allocator) = allocator(40 * MIB, Config::default());
        let hoard = Arc::new(Mutex::new(allocator.allocate(20 * MIB).ok()));
        let guard = allocator.on_out_of_memory(0, move |_| {
            let taken = hoard.lock().unwrap_or_else(PoisonError::into_inner).take();
            taken.is_some()
        });
        let pair = both(request(&allocator, 1, 20 * MIB), request(&allocator, 2, 20 * MIB));
        assert!(pair.0.is_ok() && pair.1.is_ok(), "{pair:?}");
        drop(pair);
        drop(guard);
        end(&device, allocator);
    });
}

#[test]
fn a_stream_is_registered_once_by_two_threads() {
    explore(|| {
        let (device, allocator) = allocator(40 * MIB, Config::default());
        let (a, b) = (allocator.clone(), allocator.clone());
        let (a, b) = both(move || a.stream(5).index(), move || b.stream(5).index());
        assert_eq!(a, b, "one stream has two places");
        end(&device, allocator);
    });
}

/// A thread comes and goes with a stream of its own while another one allocates and frees.
#[test]
fn a_forgotten_stream_is_not_touched_by_a_miss_elsewhere() {
    explore(|| {
        let (device, allocator) = allocator(40 * MIB, Config::default());
        drop(allocator.allocate_on(&allocator.stream(1), 20 * MIB));
        let (forgetter, watch) = (allocator.clone(), device.clone());
        let forget = move || {
            forgetter.forget_stream(1);
            watch.stream_ends(1);
        };
        let (_, outcome) = both(forget, request(&allocator, 2, 20 * MIB));
        assert!(outcome.is_ok(), "{outcome:?}");
        drop(outcome);
        end(&device, allocator);
    });
}

#[test]
fn a_stream_that_is_forgotten_while_a_block_waits_for_it_strands_nothing() {
    explore(|| {
        let (device, allocator) = allocator(40 * MIB, Config::default());
        let lent = allocator.allocate(20 * MIB).expect("there is room");
        allocator.record_stream(&lent, &allocator.stream(1));
        let (forgetter, other) = (allocator.clone(), allocator.clone());
        both(
            move || forgetter.forget_stream(1),
            move || {
                drop(lent);
                other.verify();
                let _ = other.releasable_bytes();
            },
        );
        end(&device, allocator);
    });
}

#[test]
fn nothing_is_asked_of_a_stream_once_its_capture_has_begun() {
    explore(|| {
        let (device, allocator) = allocator(40 * MIB, Config::default());
        drop(allocator.allocate_on(&allocator.stream(1), 20 * MIB));
        let pool = allocator.create_pool(PoolOptions::default());
        let (capturer, watch) = (allocator.clone(), device.clone());
        let capture = move || {
            let guard = capturer.begin_capture(&capturer.stream(1), &pool);
            watch.capture_begins(1);
            switch();
            watch.capture_ends(1);
            drop(guard);
        };
        let (_, outcome) = both(capture, request(&allocator, 2, 20 * MIB));
        assert!(outcome.is_ok(), "{outcome:?}");
        drop(outcome);
        end(&device, allocator);
    });
}
