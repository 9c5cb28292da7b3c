//! Stream-ordered pools: order, books, thresholds; and each misuse.

use std::ffi::c_void;

use crate::api::*;
use crate::cuda::{Fake, MIB, Options, code};

fn attribute(pool: u64, attribute: u32) -> u64 {
    made(|value: *mut u64| cuMemPoolGetAttribute(pool, attribute, value.cast()))
}

fn set_threshold(pool: u64, mut bytes: u64) {
    let value = (&raw mut bytes).cast::<c_void>();
    assert_eq!(cuMemPoolSetAttribute(pool, 4, value), 0);
}

fn allocate(size: u64, stream: u64) -> u64 {
    made(|pointer| cuMemAllocAsync(pointer, size as usize, stream))
}

#[test]
fn a_pool_keeps_what_its_threshold_says() {
    let fake = Fake::fresh(Options::default());
    context(0);
    let pool: u64 = made(|pool| cuDeviceGetDefaultMemPool(pool, 0));
    let stream = stream();
    let first = allocate(3 * MIB, stream);
    assert_eq!(
        (fake.used_bytes(0), attribute(pool, 5), attribute(pool, 7)),
        (4 << 20, 4 << 20, 3 << 20)
    );
    assert_eq!(cuMemFreeAsync(first, stream), 0);
    assert_eq!((fake.used_bytes(0), attribute(pool, 7)), (4 * MIB, 0));
    assert_eq!(cuStreamSynchronize(stream), 0);
    assert_eq!((fake.used_bytes(0), attribute(pool, 6), attribute(pool, 8)), (0, 4 << 20, 3 << 20));
    set_threshold(pool, u64::MAX);
    let second = allocate(3 * MIB, stream);
    assert_eq!(cuMemFreeAsync(second, stream), 0);
    assert_eq!(cuCtxSynchronize(), 0);
    assert_eq!(fake.used_bytes(0), 4 * MIB);
    assert_eq!(cuMemPoolTrimTo(pool, 2 << 20), 0);
    assert_eq!(fake.used_bytes(0), 2 * MIB);
    assert_eq!(cuMemPoolTrimTo(pool, 0), 0);
    assert_eq!(fake.used_bytes(0), 0);
}

#[test]
fn frees_happen_in_the_order_of_their_stream() {
    let fake = Fake::fresh(Options { asynchronous: true, capacity: 4 * MIB, ..Options::default() });
    let context = context(0);
    let (own, other) = (stream(), stream());
    let pool: u64 = made(|pool| cuDeviceGetMemPool(pool, 0));
    let first = allocate(4 * MIB, own);
    assert_eq!(cuMemsetD8Async(first, 1, 8, own), 0);
    assert_eq!(cuMemFreeAsync(first, own), 0);
    assert_eq!(attribute(pool, 7), 4 * MIB);
    assert_eq!(cuMemAllocAsync(&mut 0, 4 << 20, other), code::OUT_OF_MEMORY);
    // In the same stream the order is enough.
    let second = allocate(4 * MIB, own);
    assert_eq!(cuMemPoolTrimTo(pool, 0), 0);
    assert_eq!(fake.used_bytes(0), 4 * MIB);
    assert_eq!(fake.complete(context, own), 2);
    assert_eq!((attribute(pool, 7), fake.live().allocations), (4 * MIB, 1));
    assert_eq!(cuMemFree_v2(second), 0);
    assert_eq!(fake.implicit_syncs(), 0);
}

#[test]
fn own_pools_have_ends() {
    let fake = Fake::fresh(Options::default());
    context(0);
    let properties = PoolProperties {
        kind: 1,
        handle_types: 0,
        location: Location { kind: 1, id: 0 },
        windows: 0,
        bytes_max: 4 << 20,
        rest: [0; 56],
    };
    let pool: u64 = made(|pool| cuMemPoolCreate(pool, &properties));
    let access = Access { location: Location { kind: 1, id: 0 }, flags: 3 };
    assert_eq!((cuDeviceSetMemPool(0, pool), cuMemPoolSetAccess(pool, &access, 1)), (0, 0));
    let pointer = allocate(4 * MIB, 0);
    let refused = cuMemAllocFromPoolAsync(&mut 0, 512, pool, 0);
    assert_eq!(refused, code::OUT_OF_MEMORY);
    assert_eq!(cuMemPoolDestroy(pool), code::INVALID_VALUE);
    assert!(fake.take_violations()[0].contains("still has allocations"));
    assert_eq!((cuMemFreeAsync(pointer, 0), cuMemPoolDestroy(pool)), (0, 0));
    assert_eq!(fake.used_bytes(0), 0);
    assert_eq!(cuMemPoolTrimTo(pool, 0), code::INVALID_VALUE);
    assert!(fake.take_violations()[0].contains("no pool"));
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), 0);
    fake.assert_no_leaks();
}

#[test]
fn plain_memory_can_be_freed_in_a_stream_too() {
    let fake = Fake::fresh(Options { asynchronous: true, ..Options::default() });
    context(0);
    let (pointer, stream) = (memory(512), stream());
    assert_eq!(cuMemFreeAsync(pointer, stream), 0);
    assert_eq!(fake.used_bytes(0), 512);
    assert_eq!(cuMemFree_v2(pointer), code::INVALID_VALUE);
    assert!(fake.take_violations()[0].contains("freed already"));
    assert_eq!(cuStreamSynchronize(stream), 0);
    assert_eq!(fake.used_bytes(0), 0);
}

#[test]
fn a_driver_without_pools_says_so() {
    let _fake = Fake::fresh(Options { pools: false, ..Options::default() });
    context(0);
    assert_eq!(cuMemAllocAsync(&mut 0, 8, 0), code::NOT_SUPPORTED);
    assert_eq!(cuDeviceGetDefaultMemPool(&mut 0, 0), code::NOT_SUPPORTED);
}

#[test]
fn misuses_of_pools_are_noted() {
    let fake = Fake::fresh(Options { devices: 2, asynchronous: true, ..Options::default() });
    context(0);
    let invalid = code::INVALID_VALUE;
    let default: u64 = made(|pool| cuDeviceGetDefaultMemPool(pool, 0));
    misuse(&fake, invalid, cuMemPoolDestroy(default), "default pool");
    misuse(&fake, invalid, cuDeviceSetMemPool(1, default), "another device");
    misuse(&fake, invalid, cuMemAllocFromPoolAsync(&mut 0, 8, 77, 0), "no pool");
    misuse(&fake, invalid, cuMemAllocAsync(&mut 0, 0, 0), "no bytes");
    let pointer = allocate(8, 0);
    assert_eq!(cuMemFreeAsync(pointer, 0), 0);
    misuse(&fake, invalid, cuMemFreeAsync(pointer, 0), "freed already");
    misuse(&fake, invalid, cuMemFreeAsync(pointer + 1, 0), "inside");
    let host = PoolProperties {
        kind: 1,
        handle_types: 0,
        location: Location { kind: 2, id: 0 },
        windows: 0,
        bytes_max: 0,
        rest: [0; 56],
    };
    misuse(&fake, invalid, cuMemPoolCreate(&mut 0, &host), "no device pool");
}

#[test]
fn freeing_under_queued_work_is_noted() {
    let fake = Fake::fresh(Options { asynchronous: true, ..Options::default() });
    let context = context(0);
    let (first, second) = (stream(), stream());
    // A free that the work of another stream is in no order with.
    let pointer = allocate(512, first);
    assert_eq!(cuMemsetD8Async(pointer, 1, 8, second), 0);
    assert_eq!(cuMemFreeAsync(pointer, first), 0);
    fake.complete(context, first);
    assert!(fake.take_violations()[0].contains("overtakes a memset"));
    fake.heal();
    fake.complete(context, second);
    assert_eq!(fake.take_violations().len(), 1);
    fake.heal();
    // A plain free of pool memory does not wait.
    let pointer = allocate(512, first);
    assert_eq!(cuMemsetD8Async(pointer, 1, 8, second), 0);
    assert_eq!(cuMemFree_v2(pointer), 0);
    assert!(fake.take_violations()[0].contains("still to be touched"));
    fake.complete_all();
    assert_eq!(fake.take_violations().len(), 1);
    fake.heal();
    // In order there is nothing to note.
    let (pointer, event) = (allocate(512, first), event());
    assert_eq!(cuMemsetD8Async(pointer, 1, 8, second), 0);
    assert_eq!(cuEventRecord(event, second), 0);
    assert_eq!(cuStreamWaitEvent(first, event, 0), 0);
    assert_eq!(cuMemFreeAsync(pointer, first), 0);
    assert_eq!(cuStreamSynchronize(first), 0);
}
