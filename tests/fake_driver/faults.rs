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

/// The fake's own file is closed under it, which it takes for impossible.
#[test]
fn a_panic_of_the_fake_is_an_error_and_a_violation() {
    let fake = Fake::fresh(Options::default());
    context(0);
    let location = Location { kind: 1, id: 0 };
    let properties = Properties { kind: 1, handle_types: 1, location, windows: 0, flags: [0; 8] };
    let chunk: u64 = made(|chunk| cuMemCreate(chunk, 2 << 20, &properties, 0));
    let entries = std::fs::read_dir("/proc/self/fd").expect("the list of open files");
    let paths = entries.map(|entry| entry.expect("an open file").path());
    let is_chunk = |path: &std::path::PathBuf| {
        let target = std::fs::read_link(path);
        target.is_ok_and(|target| target.to_string_lossy().contains("memfd:fakecuda"))
    };
    let chunks: Vec<_> = paths.filter(is_chunk).collect();
    let [only] = chunks.as_slice() else { panic!("one file expected: {chunks:?}") };
    let file: i32 =
        only.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number");
    // SAFETY: closing a file that the fake holds is what this test is about.
    assert_eq!(unsafe { libc::close(file) }, 0);
    assert_eq!(cuMemRelease(chunk), code::UNKNOWN);
    let violations = fake.take_violations();
    assert!(violations[0].contains("panicked"), "{violations:?}");
    // It got no further than the file: the books are wrong, and that is noticed as well.
    assert!(violations[1].starts_with("S1: "), "{violations:?}");
    fake.reset(Options::default());
}

#[test]
fn both_names_of_the_driver_are_the_fake() {
    let fake = Fake::fresh(Options::default());
    for name in [c"libcuda.so", c"libcuda.so.1"] {
        // SAFETY: the name ends with a zero, and the library is loaded already.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY) };
        // SAFETY: the handle is open, the name ends with a zero.
        let symbol = unsafe { libc::dlsym(handle, c"cuMemAlloc_v2".as_ptr()) };
        assert_eq!(symbol, fake.library().symbol("cuMemAlloc_v2"), "{name:?}");
    }
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
