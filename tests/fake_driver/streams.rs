//! Streams and events: what waits for what, and when work is really done.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::api::*;
use crate::cuda::{Fake, Options, code};

fn asynchronous() -> Options {
    Options { asynchronous: true, ..Options::default() }
}

fn blocking_stream() -> u64 {
    made(|stream| cuStreamCreate(stream, 0))
}

/// Whether the byte at an address has been set.
fn is_set(fake: &Fake, address: u64) -> bool {
    fake.read(address, 1) == [1]
}

fn set(address: u64, stream: u64) {
    assert_eq!(cuMemsetD8Async(address, 1, 1, stream), 0);
}

#[test]
fn work_waits_until_the_test_or_the_program_moves_on() {
    let fake = Fake::fresh(asynchronous());
    let context = context(0);
    let (memory, stream, event) = (memory(8), stream(), event());
    assert_eq!(cuEventQuery(event), 0);
    set(memory, stream);
    set(memory + 1, stream);
    assert_eq!(cuEventRecord(event, stream), 0);
    set(memory + 2, stream);
    assert_eq!((cuEventQuery(event), cuStreamQuery(stream)), (code::NOT_READY, code::NOT_READY));
    assert_eq!(fake.advance(context, stream, 1), 1);
    assert!(is_set(&fake, memory) && !is_set(&fake, memory + 1));
    assert_eq!(cuEventSynchronize(event), 0);
    assert!(is_set(&fake, memory + 1) && !is_set(&fake, memory + 2));
    assert_eq!(cuEventQuery(event), 0);
    assert_eq!((fake.pending(), fake.complete(context, stream)), (1, 1));
    assert!(is_set(&fake, memory + 2));
    assert_eq!(cuStreamQuery(stream), 0);
    set(memory + 3, stream);
    assert_eq!(cuStreamSynchronize(stream), 0);
    set(memory + 4, stream);
    assert_eq!(cuCtxSynchronize(), 0);
    assert_eq!(fake.read(memory + 3, 2), [1, 1]);
}

#[test]
fn a_stream_that_waits_does_not_advance() {
    let fake = Fake::fresh(asynchronous());
    let context = context(0);
    let (memory, first, second, event) = (memory(8), stream(), stream(), event());
    set(memory, first);
    assert_eq!(cuEventRecord(event, first), 0);
    assert_eq!(cuStreamWaitEvent(second, event, 0), 0);
    set(memory + 1, second);
    // The wait is for the record as it was: neither a later record nor the end of the event counts.
    set(memory + 2, first);
    assert_eq!(cuEventRecord(event, first), 0);
    assert_eq!(cuEventDestroy_v2(event), 0);
    assert_eq!(fake.complete(context, second), 0);
    assert_eq!(fake.advance(context, first, 2), 2);
    assert_eq!(fake.complete(context, second), 2);
    assert!(is_set(&fake, memory + 1) && !is_set(&fake, memory + 2));
    // Synchronising does what is depended on, and no more.
    let event = crate::api::event();
    assert_eq!(cuEventRecord(event, first), 0);
    set(memory + 3, first);
    assert_eq!(cuStreamWaitEvent(second, event, 0), 0);
    assert_eq!(cuStreamSynchronize(second), 0);
    assert!(is_set(&fake, memory + 2) && !is_set(&fake, memory + 3));
    fake.complete_all();
    assert_eq!((fake.pending(), is_set(&fake, memory + 3)), (0, true));
}

#[test]
fn the_legacy_stream_waits_for_blocking_streams_and_they_for_it() {
    let fake = Fake::fresh(asynchronous());
    let context = context(0);
    let (memory, blocking, free) = (memory(8), blocking_stream(), stream());
    set(memory, blocking);
    set(memory + 1, 0);
    set(memory + 2, blocking);
    set(memory + 3, free);
    set(memory + 4, 2);
    assert_eq!((fake.complete(context, 0), fake.complete(context, 2)), (0, 0));
    assert_eq!(fake.complete(context, free), 1);
    assert_eq!(fake.complete(context, blocking), 1);
    assert_eq!((fake.complete(context, 0), fake.complete(context, 2)), (1, 1));
    assert!(!is_set(&fake, memory + 2));
    assert_eq!(cuStreamSynchronize(1), 0);
    assert!(is_set(&fake, memory + 2));
}

#[test]
fn identities_are_never_given_twice_and_handles_are() {
    let _fake = Fake::fresh(Options::default());
    let context = context(0);
    let id = |stream| -> u64 { made(|id| cuStreamGetId(stream, id)) };
    let first = stream();
    let first_id = id(first);
    assert_eq!(cuStreamDestroy_v2(first), 0);
    let second = blocking_stream();
    assert_eq!(second, first);
    assert_ne!(id(second), first_id);
    assert_eq!(id(0), id(1));
    assert_eq!(id(2), id(2));
    let other = std::thread::scope(|scope| {
        let ask = || {
            assert_eq!(cuCtxSetCurrent(context), 0);
            id(2)
        };
        scope.spawn(ask).join().expect("the other thread")
    });
    assert_ne!(other, id(2));
    let of: u64 = made(|context| cuStreamGetCtx(second, context));
    let flags: u32 = made(|flags| cuStreamGetFlags(second, flags));
    assert_eq!((of, flags), (context, 0));
}

#[test]
fn a_driver_without_stream_identities_says_so() {
    let _fake = Fake::fresh(Options { stream_ids: false, ..Options::default() });
    context(0);
    assert_eq!(cuStreamGetId(0, &mut 0), code::NOT_SUPPORTED);
}

#[test]
fn a_destroyed_stream_still_does_its_work() {
    let fake = Fake::fresh(asynchronous());
    context(0);
    let (memory, stream, event) = (memory(8), stream(), event());
    set(memory, stream);
    assert_eq!(cuEventRecord(event, stream), 0);
    assert_eq!(cuStreamDestroy_v2(stream), 0);
    assert_eq!(cuEventQuery(event), code::NOT_READY);
    assert_eq!(fake.live().streams, 0);
    assert_eq!(cuEventSynchronize(event), 0);
    assert!(is_set(&fake, memory));
}

#[test]
fn a_plain_free_waits_for_the_device() {
    let fake = Fake::fresh(asynchronous());
    context(0);
    let (first, second, stream) = (memory(8), memory(8), stream());
    let host: u64 = made(|host| cuMemHostAlloc(host, 8, 0));
    set(first, stream);
    set(second, stream);
    assert_eq!(cuMemFree_v2(first), 0);
    assert_eq!((fake.implicit_syncs(), is_set(&fake, second)), (1, true));
    assert_eq!(cuMemcpyDtoHAsync_v2(host, second, 8, stream), 0);
    assert_eq!(fake.pending(), 1);
    assert_eq!(cuMemFreeHost(host), 0);
    assert_eq!((fake.implicit_syncs(), fake.pending()), (2, 0));
}

#[test]
fn pageable_memory_is_read_and_written_before_the_call_returns() {
    let fake = Fake::fresh(asynchronous());
    context(0);
    let (memory, stream) = (memory(4), stream());
    let mut sent = [1u8, 2, 3, 4];
    assert_eq!(cuMemcpyHtoDAsync_v2(memory, sent.as_ptr() as u64, 4, stream), 0);
    assert_eq!(fake.pending(), 1);
    sent.fill(9);
    let mut got = [0u8; 4];
    assert_eq!(cuMemcpyDtoHAsync_v2(got.as_mut_ptr() as u64, memory, 4, stream), 0);
    assert_eq!((got, sent), ([1, 2, 3, 4], [9; 4]));
}

/// Adds one.
///
/// # Safety
/// The argument is an `AtomicU32`.
unsafe extern "C" fn count(data: *mut c_void) {
    // SAFETY: the tests below pass a counter that lives longer.
    let counter = unsafe { &*data.cast::<AtomicU32>() };
    counter.fetch_add(1, Ordering::SeqCst);
}

/// Calls the driver, which a host function must not.
///
/// # Safety
/// None needed.
unsafe extern "C" fn misbehave(_: *mut c_void) {
    assert_eq!(cuMemAlloc_v2(&mut 0, 8), code::NOT_PERMITTED);
}

#[test]
fn host_functions_run_when_they_are_reached() {
    let fake = Fake::fresh(asynchronous());
    let context = context(0);
    let (memory, stream, counter) = (memory(8), stream(), AtomicU32::new(0));
    set(memory, stream);
    assert_eq!(cuLaunchHostFunc(stream, count, (&raw const counter).cast_mut().cast()), 0);
    assert_eq!(fake.advance(context, stream, 1), 1);
    assert_eq!(counter.load(Ordering::SeqCst), 0);
    assert_eq!(fake.advance(context, stream, 9), 1);
    assert_eq!(counter.load(Ordering::SeqCst), 1);
    assert_eq!(cuLaunchHostFunc(stream, misbehave, null_mut()), 0);
    assert_eq!(cuStreamSynchronize(stream), 0);
    assert!(fake.take_violations()[0].contains("host function"));
}

#[test]
fn events_tell_time() {
    let _fake = Fake::fresh(Options::default());
    context(0);
    let memory = memory(8);
    let stream: u64 = made(|stream| cuStreamCreateWithPriority(stream, 1, -1));
    let (start, end): (u64, u64) =
        (made(|event| cuEventCreate(event, 0)), made(|event| cuEventCreate(event, 0)));
    assert_eq!(cuEventRecord(start, stream), 0);
    set(memory, stream);
    assert_eq!(cuEventRecord(end, stream), 0);
    let elapsed: f32 = made(|time| cuEventElapsedTime(time, start, end));
    assert!(elapsed > 0.0);
    let untimed = event();
    assert_eq!(cuEventRecord(untimed, stream), 0);
    assert_eq!(cuEventElapsedTime(&mut 0.0, start, untimed), code::INVALID_HANDLE);
}

#[test]
fn misuses_of_streams_and_events_are_noted() {
    let fake = Fake::fresh(Options { devices: 2, ..Options::default() });
    context(1);
    let foreign = stream();
    let foreign_event = event();
    context(0);
    let (memory, gone, gone_event) = (memory(8), stream(), event());
    assert_eq!((cuStreamDestroy_v2(gone), cuEventDestroy_v2(gone_event)), (0, 0));
    let kept = event();
    let bad = code::INVALID_HANDLE;
    misuse(&fake, bad, cuStreamSynchronize(gone), "no stream");
    misuse(&fake, bad, cuStreamDestroy_v2(gone), "no stream");
    misuse(&fake, bad, cuEventRecord(kept, gone), "no stream");
    misuse(&fake, bad, cuMemsetD8Async(memory, 0, 1, gone), "no stream");
    misuse(&fake, bad, cuEventQuery(gone_event), "no event");
    misuse(&fake, bad, cuEventDestroy_v2(gone_event), "no event");
    misuse(&fake, bad, cuStreamWaitEvent(0, gone_event, 0), "no event");
    misuse(&fake, bad, cuMemsetD8Async(memory, 0, 1, foreign), "another device");
    misuse(&fake, bad, cuEventRecord(foreign_event, 0), "different devices");
    misuse(&fake, bad, cuStreamDestroy_v2(0), "default stream");
    misuse(&fake, code::INVALID_VALUE, cuStreamCreate(&mut 0, 8), "flags");
    misuse(&fake, code::INVALID_VALUE, cuEventCreate(&mut 0, 8), "flags");
}

#[test]
fn many_threads_work_at_once() {
    let fake = Fake::fresh(Options { asynchronous: true, ..Options::default() });
    let context = context(0);
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            scope.spawn(move || {
                assert_eq!(cuCtxSetCurrent(context), 0);
                let (own, event) = (stream(), event());
                for round in 0..500usize {
                    let pointer = memory(64 + round);
                    assert_eq!(cuMemsetD8Async(pointer, thread, 64 + round, own), 0);
                    assert_eq!(cuEventRecord(event, own), 0);
                    assert_eq!(cuStreamWaitEvent(2, event, 0), 0);
                    let mut got = 99u8;
                    let target = (&raw mut got) as u64;
                    assert_eq!(cuMemcpyDtoHAsync_v2(target, pointer + 63, 1, 2), 0);
                    assert_eq!((got, cuMemFree_v2(pointer)), (thread, 0));
                }
                assert_eq!((cuEventDestroy_v2(event), cuStreamDestroy_v2(own)), (0, 0));
            });
        }
    });
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), 0);
    fake.assert_no_leaks();
    assert_eq!((fake.used_bytes(0), fake.pending()), (0, 0));
}

/// Says that it has begun, and returns when it is told to.
///
/// # Safety
/// The argument is two `AtomicU32`.
unsafe extern "C" fn hold(data: *mut c_void) {
    // SAFETY: the test below passes two flags that live longer.
    let [begun, may_end] = unsafe { &*data.cast::<[AtomicU32; 2]>() };
    begun.store(1, Ordering::SeqCst);
    while may_end.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
}

#[test]
fn other_threads_work_while_a_host_function_runs_and_wait_for_it_where_they_must() {
    let fake = Fake::fresh(asynchronous());
    let context = context(0);
    let (memory, stream) = (memory(8), stream());
    let flags = [AtomicU32::new(0), AtomicU32::new(0)];
    let data = (&raw const flags).cast_mut().cast();
    assert_eq!(cuLaunchHostFunc(stream, hold, data), 0);
    set(memory, stream);
    std::thread::scope(|scope| {
        let synchronize = || {
            assert_eq!(cuCtxSetCurrent(context), 0);
            assert_eq!(cuStreamSynchronize(stream), 0);
            flags[1].load(Ordering::SeqCst)
        };
        let first = scope.spawn(synchronize);
        while flags[0].load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let second = scope.spawn(synchronize);
        assert_eq!(cuStreamQuery(stream), code::NOT_READY);
        assert_eq!((fake.complete(context, stream), is_set(&fake, memory)), (0, false));
        flags[1].store(1, Ordering::SeqCst);
        for thread in [first, second] {
            assert_eq!(thread.join().expect("a thread that waits"), 1);
        }
    });
    assert!(is_set(&fake, memory));
}
