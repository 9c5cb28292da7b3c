//! Faults on command, counts, the log, and what the client itself promises.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::api::*;
use crate::cuda::{Call, Fake, Live, Options, code};

#[test]
fn planned_calls_fail_and_do_nothing() {
    let fake = Fake::fresh(Options::default());
    context(0);
    // cuInit and cuDevicePrimaryCtxRetain; the current context is not counted.
    assert_eq!(fake.fallible_calls(), 2);
    fake.fail_at(2, code::UNKNOWN);
    let pointer = memory(512);
    assert_eq!(cuMemFree_v2(pointer), code::UNKNOWN);
    assert_eq!(fake.live().allocations, 1);
    assert_eq!(cuMemFree_v2(pointer), 0);
    fake.fail_call("cuMemAlloc_v2", 2, code::OUT_OF_MEMORY);
    let pointer = memory(512);
    assert_eq!(cuMemAlloc_v2(&mut 0, 512), code::OUT_OF_MEMORY);
    assert_eq!(cuMemFree_v2(pointer), 0);
    fake.fail_from(2, 46);
    assert_eq!(cuCtxSynchronize(), 0);
    assert_eq!((cuCtxSynchronize(), cuCtxSynchronize()), (46, 46));
    fake.heal();
    assert_eq!(cuCtxSynchronize(), 0);
    fake.count_call("cuCtxSynchronize", false);
    fake.fail_at(1, code::UNKNOWN);
    assert_eq!(cuCtxSynchronize(), 0);
    assert_eq!(cuStreamQuery(0), code::UNKNOWN);
    assert_eq!(fake.calls("cuMemAlloc_v2"), 3);
    assert!(fake.call_table().contains(&("cuMemFree_v2".into(), 3)));
}

#[test]
fn a_lost_device_stays_lost() {
    let fake = Fake::fresh(Options::default());
    let context = context(0);
    let pointer = memory(512);
    fake.lose_at(2);
    assert_eq!(cuCtxSynchronize(), 0);
    for _ in 0..3 {
        assert_eq!(cuMemFree_v2(pointer), code::ILLEGAL_ADDRESS);
    }
    assert_eq!(cuCtxSetCurrent(context), 0);
    assert_eq!(cuGetErrorName(700, &mut std::ptr::null()), 0);
    fake.heal();
    assert_eq!(cuMemFree_v2(pointer), 0);
}

#[test]
fn the_log_has_the_order_of_the_calls() {
    let fake = Fake::fresh(Options::default());
    context(0);
    fake.take_log();
    let pointer = memory(4096);
    assert_eq!(cuMemFree_v2(pointer), 0);
    let call = |symbol: &str, subject| Call { symbol: symbol.into(), subject };
    let wanted = [call("cuMemAlloc_v2", 4096), call("cuMemFree_v2", pointer)];
    assert_eq!(fake.take_log(), wanted);
    assert_eq!(cuCtxSynchronize(), 0);
    assert_eq!((fake.take_order().as_str(), fake.take_log().len()), ("cuCtxSynchronize", 0));
}

#[test]
fn leaks_are_named_and_the_next_test_does_not_see_them() {
    let fake = Fake::fresh(Options::default());
    context(0);
    let (_, stream, _) = (memory(8), stream(), event());
    assert_eq!(cuStreamBeginCapture_v2(stream, 2), 0);
    let live = Live { contexts: 1, allocations: 1, streams: 1, ..Live::default() };
    assert_eq!(fake.live(), Live { events: 1, captures: 1, ..live });
    let leaked = catch_unwind(AssertUnwindSafe(|| fake.assert_no_leaks()));
    assert!(leaked.is_err());
    drop(fake);
    let fake = Fake::fresh(Options::default());
    fake.assert_no_leaks();
    assert_eq!(cuMemAlloc_v2(&mut 0, 8), code::NOT_INITIALIZED);
    assert_eq!(cuInit(0), 0);
    assert_eq!(cuMemAlloc_v2(&mut 0, 8), code::INVALID_CONTEXT);
    assert_eq!(fake.take_violations().len(), 2);
}

#[test]
fn a_violation_that_nobody_took_note_of_fails_the_test() {
    let misused = catch_unwind(|| {
        let _fake = Fake::fresh(Options::default());
        context(0);
        assert_eq!(cuMemFree_v2(12345), code::INVALID_VALUE);
    });
    assert!(misused.is_err());
}

/// A sanity bound, far above what it costs; the number itself is printed.
#[test]
fn calls_are_cheap() {
    let _fake = Fake::fresh(Options::default());
    context(0);
    let (stream, event) = (stream(), event());
    let calls = 200_000;
    let begun = Instant::now();
    for _ in 0..calls / 2 {
        assert_eq!(cuEventRecord(event, stream), 0);
        assert_eq!(cuEventQuery(event), 0);
    }
    let each = begun.elapsed().as_nanos() / calls;
    println!("{each} ns per call");
    assert!(each < 20_000, "{each} ns per call");
}
