//! The sweep over all calls of a scenario, and what is looked at after each run.

use aquifer::AllocError;
use cudarc::driver::CudaContext;

use crate::cuda::{Call, Fake, Live, code};
use crate::stage::{Fault, Held, Scenario, Stage, thread_state};
use crate::{ENTRY, MIB, Setup};

const FAULTS: [Fault; 3] =
    [Fault::Refused(code::OUT_OF_MEMORY), Fault::Refused(code::INVALID_VALUE), Fault::Lost];

/// Calls that are outside of the fake's numbering.
const NOT_NUMBERED: [&str; 5] =
    ["cuGetErrorName", "cuGetErrorString", "cuCtxGetCurrent", "cuCtxSetCurrent", "cuCtxGetDevice"];

/// Which call fails, and when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// In the scenario; what comes after it works.
    Scenario,
    /// In the teardown.
    Teardown,
}

/// Prints what a trial was about if it panics.
struct Trial<'a> {
    setup: &'a str,
    act: Act,
    nth: u64,
    fault: Fault,
    call: &'a Call,
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { setup, act, nth, fault, call } = self;
            eprintln!("while trying {setup}, {act:?}: call {nth}, {call:?}, {fault:?}");
        }
    }
}

/// What a scenario does undisturbed.
struct Script {
    scenario: Vec<Call>,
    teardown: Vec<Call>,
    failures: usize,
}

/// The numbered calls since the last look.
fn numbered(fake: &Fake, entries: bool) -> Vec<Call> {
    let mut calls = fake.take_log();
    calls.retain(|Call { symbol, .. }| {
        !NOT_NUMBERED.contains(&symbol.as_str()) && (entries || symbol != ENTRY)
    });
    calls
}

fn rehearse(setup: &Setup, run: Scenario) -> Script {
    let fake = setup.fake();
    let stage = Stage::new(&fake, setup, None);
    let start = fake.fallible_calls();
    numbered(&fake, setup.entries);
    let held = run(&stage);
    let scenario = numbered(&fake, setup.entries);
    let failures = stage.failures();
    assert_working(&stage, &held, None);
    numbered(&fake, setup.entries);
    let middle = fake.fallible_calls();
    end(stage, held);
    let teardown = numbered(&fake, setup.entries);
    fake.assert_no_leaks();
    let counted = (scenario.len() as u64, teardown.len() as u64);
    assert!(counted.0 > 20 && counted.1 > 3, "{counted:?} calls: nothing to break");
    assert_eq!(counted.1, fake.fallible_calls() - middle, "numbered calls");
    assert!(start + counted.0 <= middle, "numbered calls");
    Script { scenario, teardown, failures }
}

/// An unoptimised build takes a part of the calls, another one for each fault; an optimised one
/// all.
const STRIDE: usize = if cfg!(debug_assertions) { 5 } else { 1 };

/// Every call of the scenario, and of the teardown, with every fault.
pub(crate) fn sweep(setup: &Setup, run: Scenario) {
    let script = rehearse(setup, run);
    let ours = own_stream(&script.teardown);
    for (act, calls) in [(Act::Scenario, &script.scenario), (Act::Teardown, &script.teardown)] {
        for (nth, call) in (1..).zip(calls) {
            for (turn, fault) in FAULTS.into_iter().enumerate() {
                if !(nth as usize + turn).is_multiple_of(STRIDE) {
                    continue;
                }
                let _trial = Trial { setup: setup.name, act, nth, fault, call };
                let fake = setup.fake();
                let spared = leaks_of_cudarc(call, ours);
                match act {
                    Act::Scenario => disturb(&fake, setup, run, (nth, fault), &script, spared),
                    Act::Teardown => disturb_end(&fake, setup, run, (nth, fault), spared),
                }
            }
        }
    }
}

/// Every call of the thread's context in a scenario that makes none itself. They are outside of the
/// fake's numbering, and counted by name.
pub(crate) fn sweep_contexts(setup: &Setup, run: Scenario) {
    let refused = Fault::Refused(code::INVALID_VALUE);
    for symbol in ["cuCtxGetCurrent", "cuCtxSetCurrent"] {
        let mut nth = 1;
        loop {
            let call = Call { symbol: symbol.into(), subject: 0 };
            let act = Act::Scenario;
            let _trial = Trial { setup: setup.name, act, nth, fault: refused, call: &call };
            let fake = setup.fake();
            let stage = Stage::new(&fake, setup, Some(refused));
            let other = CudaContext::new(1).expect("the fake has two devices");
            let (before, start) = (thread_state(), fake.calls(symbol));
            fake.fail_call(symbol, nth, code::INVALID_VALUE);
            let held = run(&stage);
            let made = fake.calls(symbol) - start;
            fake.heal();
            assert_eq!(thread_state(), before, "the thread's context and capture mode");
            assert!(stage.failures() <= 1, "failed:\n{}", stage.complaints());
            assert_working(&stage, &held, None);
            end(stage, held);
            drop(other);
            fake.assert_no_leaks();
            if nth > made {
                assert!(nth > 10, "{made} calls of {symbol}: nothing to break");
                break;
            }
            nth += 1;
        }
    }
}

/// One run with a fault in its scenario.
fn disturb(
    fake: &Fake,
    setup: &Setup,
    run: Scenario,
    trial: (u64, Fault),
    script: &Script,
    spared: Live,
) {
    let stage = Stage::new(fake, setup, Some(trial.1));
    let before = thread_state();
    stage.plan(trial.0);
    let held = run(&stage);
    stage.verify();
    match trial.1 {
        Fault::Refused(code) => {
            fake.heal();
            assert_eq!(thread_state(), before, "the thread's context and capture mode");
            let (failures, usual) = (stage.failures(), script.failures);
            let said = stage.complaints();
            assert!(failures <= usual + 1, "{failures} failed, {usual} undisturbed:\n{said}");
            assert_working(&stage, &held, Some(code));
            end(stage, held);
            assert_eq!(fake.live(), spared, "leaked, and {} bytes", fake.used_bytes(0));
        }
        Fault::Lost => {
            assert_lost(&stage);
            end(stage, held);
            assert_eq!(fake.live().files, 0, "descriptors are no business of the device");
        }
    }
}

/// One run with a fault in its teardown.
fn disturb_end(fake: &Fake, setup: &Setup, run: Scenario, trial: (u64, Fault), spared: Live) {
    let stage = Stage::new(fake, setup, Some(trial.1));
    let held = run(&stage);
    assert_working(&stage, &held, None);
    stage.plan(trial.0);
    end(stage, held);
    if trial.1 != Fault::Lost {
        assert_eq!(fake.live(), spared, "leaked, and {} bytes", fake.used_bytes(0));
    }
}

/// The allocator goes, then the streams, then what is still held.
fn end(stage: Stage<'_>, held: Held) {
    let Stage { memory, streams, .. } = stage;
    drop((memory, streams));
    drop(held);
}

/// The allocator works as before, and knows what the device knows.
fn assert_working(stage: &Stage<'_>, held: &Held, refused: Option<i32>) {
    let memory = &stage.memory;
    drop(memory.allocate(700 << 10).expect("the next request is served"));
    drop(memory.allocate(20 * MIB).expect("a large one too"));
    // What a drop of cudarc was refused comes up at its next call, once.
    if let Err(error) = memory.context().check_err() {
        assert_eq!(Some(error.0 as i32), refused, "cudarc remembers another error");
    }
    let on = memory.on(&stage.streams[1]).expect("the stream is known");
    drop(on.alloc_zeros::<u32>(100).expect("cudarc's calls work"));
    drop(memory.alloc_pinned::<u32>(100).expect("pinned memory"));
    stage.fake.complete_all();
    for _ in 0..4 {
        // Blocks that several streams used wait for one after the other.
        memory.maintain(std::time::Duration::ZERO);
    }
    memory.empty_cache();
    memory.pinned().empty_cache();
    stage.verify();
    memory.pinned().verify();
    assert_eq!(stage.fake.used_bytes(0), memory.memory_reserved(), "the device's own count");
    assert_eq!(stage.fake.live().host_allocations, 0, "pinned memory is stranded");
    assert_eq!(memory.memory_active(), memory.memory_allocated(), "something waits for nothing");
    if held.is_empty() {
        assert_eq!(memory.memory_reserved(), 0, "bytes are stranded");
    }
}

/// The allocator says that the device is gone, again and again.
fn assert_lost(stage: &Stage<'_>) {
    let memory = &stage.memory;
    let is_lost = |outcome: Option<AllocError>| matches!(outcome, Some(AllocError::DeviceLost(_)));
    // What is cached may be handed out as long as nobody had to ask the device.
    memory.empty_cache();
    for size in [120 * MIB, 1, 3 * MIB] {
        let outcome = memory.allocate(size).err();
        assert!(is_lost(outcome.clone()), "{size} bytes after the loss: {outcome:?}");
    }
    let pinned = memory.alloc_pinned::<u32>(20 << 20).err();
    assert!(is_lost(pinned.clone()), "pinned memory after the loss: {pinned:?}");
    assert!(memory.synchronize().is_err(), "the device is synchronised after its loss");
    if let Ok(on) = memory.on(&stage.streams[1]) {
        assert!(on.alloc_zeros::<u32>(100).is_err(), "zeros after the loss");
    }
    memory.empty_cache();
    memory.maintain(std::time::Duration::from_secs(1000));
    stage.verify();
}

/// The stream of the backend, which is destroyed in every teardown: it was created first.
fn own_stream(teardown: &[Call]) -> u64 {
    let destroyed = teardown.iter().filter(|call| call.symbol == "cuStreamDestroy_v2");
    destroyed.map(|call| call.subject).min().expect("the backend has a stream")
}

/// What stays when cudarc's own calls fail: its drops do not try again. Everything else is ours.
fn leaks_of_cudarc(call: &Call, ours: u64) -> Live {
    match call.symbol.as_str() {
        // `CudaStream::drop`.
        "cuStreamDestroy_v2" if call.subject != ours => Live { streams: 1, ..Live::default() },
        // `CudaContext::drop`.
        "cuDevicePrimaryCtxRelease_v2" => Live { contexts: 1, ..Live::default() },
        // `CudaGraph::drop`.
        "cuGraphDestroy" | "cuGraphExecDestroy" => Live { graphs: 1, ..Live::default() },
        _ => Live::default(),
    }
}

/// How many calls open the device: for the tests of opening.
pub(crate) fn calls_of(fake: &Fake, open: impl FnOnce()) -> Vec<Call> {
    numbered(fake, true);
    open();
    numbered(fake, true)
}
