//! Every fallible call of every scenario fails once, in every way a device can fail.
//!
//! A scenario runs once undisturbed, to count the calls; then once for each call and each fault.
//! However the call fails, nothing panics, the books stay true (`verify`), and at the end
//! everything has come back to the device. A device that was lost stays lost for the allocator;
//! after any other failure it works as before.
mod support;

use aquifer::backend::{Fault, Sim, SimOptions};
use aquifer::{AllocError, Allocation, Allocator, Config, PoolOptions};

use support::{Context, KIB, MIB, assert_nothing_held, configured, expandable};

type Held = Vec<Allocation<Sim>>;

/// What is tried; failed requests leave nothing behind and the scenario goes on.
type Scenario = fn(&Allocator<Sim>, &Sim);

/// Allocates if it can, and checks the books either way.
#[track_caller]
fn attempt(allocator: &Allocator<Sim>, stream: u32, size: u64, held: &mut Held) {
    let handle = allocator.stream(stream);
    held.extend(allocator.allocate_on(&handle, size));
    allocator.verify();
}

fn grow_and_shrink(allocator: &Allocator<Sim>, _sim: &Sim) {
    let mut held = Held::new();
    for size in [1, 700 * KIB, 3 * MIB, 12 * MIB, 21 * MIB, 30 * MIB] {
        attempt(allocator, 0, size, &mut held);
    }
    held.drain(..held.len() / 2);
    allocator.empty_cache();
    allocator.verify();
    // Beyond the capacity: every rung of the ladder is tried.
    for size in [40 * MIB, 30 * MIB, 90 * MIB, 25 * MIB] {
        attempt(allocator, 0, size, &mut held);
    }
    held.clear();
    attempt(allocator, 0, 80 * MIB, &mut held);
}

fn streams(allocator: &Allocator<Sim>, sim: &Sim) {
    let mut held = Held::new();
    for round in 0..4 {
        for (stream, size) in [(0, 3 * MIB), (1, 12 * MIB), (2, 18 * MIB), (1, 2 * KIB)] {
            attempt(allocator, stream, size, &mut held);
            sim.submit(stream);
        }
        let user = allocator.stream((round + 1) % 3);
        for allocation in &held {
            allocator.record_stream(allocation, &user);
        }
        sim.submit((round + 1) % 3);
        held.drain(..held.len() - held.len() / 3);
        allocator.verify();
        if round == 2 {
            sim.complete(1);
            allocator.maintain(std::time::Duration::from_secs(round.into()));
        }
    }
    // Waits for everybody.
    attempt(allocator, 2, 70 * MIB, &mut held);
    held.clear();
    allocator.empty_cache();
}

fn pools(allocator: &Allocator<Sim>, _sim: &Sim) {
    let options = PoolOptions { use_on_oom: true, ..PoolOptions::default() };
    let pool = allocator.create_pool(options);
    let stream = allocator.stream(1);
    let mut held = Held::new();
    drop(pool.prime(&stream, 12 * MIB));
    allocator.verify();
    let capture = allocator.begin_capture(&stream, &pool);
    attempt(allocator, 1, 8 * MIB, &mut held);
    attempt(allocator, 1, 30 * MIB, &mut held);
    drop(capture);
    let route = pool.route_thread();
    attempt(allocator, 0, 3 * MIB, &mut held);
    attempt(allocator, 0, 20 * MIB, &mut held);
    drop(route);
    attempt(allocator, 0, 60 * MIB, &mut held);
    held.truncate(2);
    pool.trim();
    allocator.verify();
    drop(pool);
    allocator.verify();
    held.clear();
    allocator.verify();
}

fn trims(allocator: &Allocator<Sim>, sim: &Sim) {
    let mut held = Held::new();
    for size in [3 * MIB, 700 * KIB, 25 * MIB, 22 * MIB, 12 * MIB, 2 * KIB] {
        attempt(allocator, 0, size, &mut held);
    }
    let other = allocator.stream(1);
    sim.submit(1);
    held.iter().for_each(|allocation| allocator.record_stream(allocation, &other));
    while held.pop().is_some() {
        allocator.trim_to(30 * MIB);
        allocator.verify();
    }
    allocator.empty_cache();
    allocator.verify();
}

fn forgets(allocator: &Allocator<Sim>, sim: &Sim) {
    let mut held = Held::new();
    for raw in 1..5 {
        attempt(allocator, raw, 12 * MIB, &mut held);
        attempt(allocator, raw, 3 * MIB, &mut held);
        sim.submit(raw);
        let next = allocator.stream(raw + 1);
        held.iter().for_each(|allocation| allocator.record_stream(allocation, &next));
        held.truncate(1);
        allocator.forget_stream(raw);
        allocator.verify();
    }
    attempt(allocator, 0, 60 * MIB, &mut held);
}

/// Everything is cached or held when the allocator goes.
fn teardown(allocator: &Allocator<Sim>, sim: &Sim) {
    let mut held = Held::new();
    for (stream, size) in [(0, 3 * MIB), (1, 12 * MIB), (0, 22 * MIB), (1, 2 * KIB)] {
        attempt(allocator, stream, size, &mut held);
        sim.submit(stream);
    }
    let other = allocator.stream(0);
    held.iter().for_each(|allocation| allocator.record_stream(allocation, &other));
    held.truncate(2);
}

/// A pool that leaves the device, makes room for others, and comes back.
fn pauses(allocator: &Allocator<Sim>, sim: &Sim) {
    let pool = allocator.create_pool(PoolOptions::default());
    let mut held = Held::new();
    for size in [3 * MIB, 600, 12 * MIB, 22 * MIB] {
        held.extend(allocator.request(size).pool(&pool).allocate());
        allocator.verify();
    }
    sim.submit(0);
    let _ = pool.pause();
    allocator.verify();
    held.truncate(2);
    attempt(allocator, 1, 60 * MIB, &mut held);
    attempt(allocator, 1, 20 * MIB, &mut held);
    let _ = pool.resume();
    allocator.verify();
    held.truncate(2);
    // What failed before may pass now, and the rest of the memory is cached.
    if pool.is_paused() {
        let _ = pool.resume();
        allocator.verify();
    }
    let _ = pool.pause();
    allocator.verify();
    held.clear();
}

const SCENARIOS: [(&str, Scenario); 7] = [
    ("grow_and_shrink", grow_and_shrink),
    ("streams", streams),
    ("pools", pools),
    ("trims", trims),
    ("pauses", pauses),
    ("forgets", forgets),
    ("teardown", teardown),
];

const FAULTS: [Fault; 4] = [Fault::OutOfMemory, Fault::TooLarge, Fault::Lost, Fault::LostForever];

/// How a device fails: one call, or every call from one on until it is healed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failing {
    Once,
    Until,
}

/// One run with one failure.
#[derive(Debug, Clone, Copy)]
struct Trial {
    nth: u64,
    fault: Fault,
    failing: Failing,
    /// Whether only calls that give memory were made undisturbed: then nothing is ever lost.
    memory_only: bool,
}

fn sweep(config: &Config, make: impl Fn() -> Sim) {
    for (scenario, run) in SCENARIOS {
        let sim = make();
        let allocator = Allocator::new(sim.clone(), config.clone());
        run(&allocator, &sim);
        drop(allocator);
        assert_nothing_held(&sim);
        let calls = sim.calls();
        let count = calls.fallible();
        assert!(count > 3, "{scenario} has {count} fallible calls: nothing to break");
        let memory_only = count == calls.allocate + calls.reserve + calls.create;
        for nth in 1..=count {
            for fault in FAULTS {
                for failing in [Failing::Once, Failing::Until] {
                    let trial = Trial { nth, fault, failing, memory_only };
                    let _context = Context((scenario, trial));
                    fail(&trial, run, config, make());
                }
            }
        }
    }
}

fn fail(trial: &Trial, run: Scenario, config: &Config, sim: Sim) {
    let allocator = Allocator::new(sim.clone(), config.clone());
    match trial.failing {
        Failing::Once => sim.fail_at(trial.nth, trial.fault),
        Failing::Until => sim.fail_from(trial.nth, trial.fault),
    }
    run(&allocator, &sim);
    allocator.verify();
    assert_eq!(allocator.memory_allocated(), 0, "the scenario frees what it got");
    let struck = sim.fallible_calls() >= trial.nth;
    let forever = trial.fault == Fault::LostForever;
    if !forever {
        sim.heal();
    }
    allocator.empty_cache();
    allocator.verify();
    if !forever {
        assert_eq!(sim.used_bytes(), allocator.memory_reserved(), "the device against the books");
        assert_eq!(allocator.memory_reserved(), 0, "bytes are stranded");
    }
    let lost = matches!(trial.fault, Fault::Lost | Fault::LostForever) && struck;
    check_after(trial, &allocator, lost);
    drop(allocator);
    assert_nothing_held(&sim);
}

/// Whether the allocator still works, or keeps saying that the device is gone.
fn check_after(trial: &Trial, allocator: &Allocator<Sim>, lost: bool) {
    let first = allocator.allocate(50 * MIB);
    allocator.verify();
    match first {
        Ok(_) => assert!(!lost, "the loss of the device was forgotten"),
        Err(AllocError::DeviceLost(_)) => {
            assert!(lost || !trial.memory_only, "a device is taken for lost that is not");
            let again = allocator.allocate(3 * MIB).err();
            let said = matches!(again, Some(AllocError::DeviceLost(_)));
            assert!(said, "the loss of the device was forgotten: {again:?}");
        }
        Err(error) => panic!("after the device works again: {error}"),
    }
}

fn options(asynchronous: bool, virtual_memory: bool) -> Sim {
    let capacity = 100 * MIB;
    Sim::new(SimOptions { capacity, asynchronous, virtual_memory, ..SimOptions::default() })
}

#[test]
fn fixed_segments() {
    sweep(&Config::default(), || options(false, false));
}

#[test]
fn fixed_segments_asynchronous() {
    sweep(&Config::default(), || options(true, false));
}

#[test]
fn torch_preset() {
    sweep(&Config::torch(), || options(true, false));
}

#[test]
fn virtual_memory() {
    sweep(&expandable(), || options(false, true));
}

#[test]
fn virtual_memory_asynchronous() {
    sweep(&expandable(), || options(true, true));
}

#[test]
fn virtual_memory_within_a_limit() {
    let config = configured(|config| {
        config.expandable_segments = true;
        config.memory_limit = Some(64 * MIB);
    });
    sweep(&config, || options(true, true));
}
