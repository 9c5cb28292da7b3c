//! Virtual memory: aliasing, access, life of chunks, sharing; and each misuse.

use crate::api::*;
use crate::cuda::{Fake, MIB, Options, code};

const PAGE: usize = 2 << 20;

fn properties(handle_types: u32) -> Properties {
    let location = Location { kind: 1, id: 0 };
    Properties { kind: 1, handle_types, location, windows: 0, flags: [0; 8] }
}

fn reserve(pages: usize) -> u64 {
    made(|pointer| cuMemAddressReserve(pointer, pages * PAGE, 0, 0, 0))
}

fn create(pages: usize) -> u64 {
    made(|handle| cuMemCreate(handle, pages * PAGE, &properties(0), 0))
}

fn open(start: u64, pages: usize) -> i32 {
    let access = Access { location: Location { kind: 1, id: 0 }, flags: 3 };
    cuMemSetAccess(start, pages * PAGE, &access, 1)
}

#[test]
fn a_chunk_that_is_mapped_twice_is_the_same_memory() {
    let fake = Fake::fresh(Options::default());
    context(0);
    let granularity: usize = made(|size| cuMemGetAllocationGranularity(size, &properties(0), 1));
    assert_eq!(granularity, PAGE);
    let (range, step) = (reserve(4), PAGE as u64);
    let (first, second) = (create(1), create(2));
    assert_eq!(fake.used_bytes(0), 6 * MIB);
    assert_eq!(cuMemMap(range, PAGE, 0, first, 0), 0);
    assert_eq!(cuMemMap(range + step, 2 * PAGE, 0, second, 0), 0);
    assert_eq!(cuMemMap(range + 3 * step, PAGE, 0, first, 0), 0);
    assert_eq!(open(range, 4), 0);
    // Over the seams of three mappings at once.
    assert_eq!(cuMemsetD8_v2(range, 1, 4 * PAGE), 0);
    assert_eq!(cuMemsetD8_v2(range + 3 * step, 7, 3), 0);
    assert_eq!(fake.read(range, 4), [7, 7, 7, 1]);
    let flags: u64 = made(|flags| cuMemGetAccess(flags, &properties(0).location, range));
    assert_eq!(flags, 3);
    let again: u64 = made(|handle| cuMemRetainAllocationHandle(handle, range + 5));
    assert_eq!(again, first);
    assert_eq!(fake.live().chunks, 3);
    for handle in [first, first, second] {
        assert_eq!(cuMemRelease(handle), 0);
    }
    // Mappings keep chunks alive.
    assert_eq!(fake.used_bytes(0), 6 * MIB);
    assert_eq!(cuMemUnmap(range, PAGE), 0);
    assert_eq!(fake.read(range + 3 * step, 1), [7]);
    assert_eq!(fake.used_bytes(0), 6 * MIB);
    assert_eq!(cuMemUnmap(range + step, 3 * PAGE), 0);
    assert_eq!(fake.used_bytes(0), 0);
    assert_eq!(cuMemAddressFree(range, 4 * PAGE), 0);
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), 0);
    fake.assert_no_leaks();
}

#[test]
fn addresses_are_cheap_and_chunks_end_at_the_capacity() {
    let fake = Fake::fresh(Options { capacity: 80 << 30, ..Options::default() });
    context(0);
    let range: u64 = made(|pointer| cuMemAddressReserve(pointer, 1 << 40, 1 << 30, 0, 0));
    assert_eq!(range % (1 << 30), 0);
    let chunks: Vec<u64> = (0..4000).map(|_| create(10)).collect();
    assert_eq!(cuMemCreate(&mut 0, 1000 * PAGE, &properties(0), 0), code::OUT_OF_MEMORY);
    for (at, chunk) in chunks.iter().enumerate() {
        let start = range + (at * 10 * PAGE) as u64;
        assert_eq!(cuMemMap(start, 10 * PAGE, 0, *chunk, 0), 0);
        assert_eq!(cuMemRelease(*chunk), 0);
    }
    assert_eq!(open(range, 40_000), 0);
    fake.write(range + (70 << 30), &[1]);
    assert_eq!(cuMemUnmap(range, 40_000 * PAGE), 0);
    assert_eq!(cuMemAddressFree(range, 1 << 40), 0);
    // What a chunk held is gone with it.
    let (range, chunk) = (reserve(1), create(1));
    assert_eq!(cuMemMap(range, PAGE, 0, chunk, 0), 0);
    assert_eq!(open(range, 1), 0);
    assert_eq!(fake.read(range, 1), [0]);
}

#[test]
fn a_chunk_can_be_exported_and_imported() {
    let fake = Fake::fresh(Options::default());
    context(0);
    let own: u64 = made(|handle| cuMemCreate(handle, PAGE, &properties(1), 0));
    let file: i32 = made(|file| cuMemExportToShareableHandle(file, own, 1, 0));
    assert_eq!(fake.live().files, 1);
    let same: u64 = made(|handle| cuMemImportFromShareableHandle(handle, file as u64, 1));
    assert_eq!((same, fake.live().chunks), (own, 2));
    // SAFETY: the descriptor is this test's.
    assert_eq!(unsafe { libc::close(file) }, 0);
    assert_eq!((cuMemRelease(own), cuMemRelease(own)), (0, 0));
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), 0);
    fake.assert_no_leaks();
    let plain = create(1);
    let exported = cuMemExportToShareableHandle(&mut 0, plain, 1, 0);
    misuse(&fake, code::INVALID_VALUE, exported, "not created to be exported");
}

#[test]
fn misuses_of_ranges_and_chunks_are_noted() {
    let fake = Fake::fresh(Options::default());
    context(0);
    let invalid = code::INVALID_VALUE;
    misuse(&fake, invalid, cuMemAddressReserve(&mut 0, 5, 0, 0, 0), "no sound range");
    misuse(&fake, invalid, cuMemAddressReserve(&mut 0, PAGE, 3, 0, 0), "no sound range");
    misuse(&fake, invalid, cuMemAddressReserve(&mut 0, PAGE, 0, 0, 1), "flags");
    misuse(&fake, invalid, cuMemCreate(&mut 0, 5, &properties(0), 0), "granularity");
    let host = Properties { kind: 0, ..properties(0) };
    misuse(&fake, invalid, cuMemCreate(&mut 0, PAGE, &host, 0), "properties");
    let (range, step) = (reserve(4), PAGE as u64);
    let (first, second) = (create(1), create(1));
    misuse(&fake, invalid, cuMemMap(range, PAGE, 0, 99, 0), "no handle");
    misuse(&fake, invalid, cuMemMap(range, PAGE, PAGE, first, 0), "offset");
    misuse(&fake, invalid, cuMemMap(range, 2 * PAGE, 0, first, 0), "size of the chunk");
    misuse(&fake, invalid, cuMemMap(range + 512, PAGE, 0, first, 0), "granularity");
    misuse(&fake, invalid, cuMemMap(range + 4 * step, PAGE, 0, first, 0), "reserved range");
    assert_eq!(cuMemMap(range, PAGE, 0, first, 0), 0);
    misuse(&fake, invalid, cuMemMap(range, PAGE, 0, second, 0), "is mapped there");
    assert_eq!(cuMemMap(range + 2 * step, PAGE, 0, second, 0), 0);
    misuse(&fake, invalid, open(range, 3), "without a hole");
    misuse(&fake, invalid, open(range + step, 1), "without a hole");
    misuse(&fake, invalid, cuMemMap(range + step, PAGE, 0, first, 1), "flags");
    let location = properties(0).location;
    misuse(&fake, invalid, cuMemGetAccess(&mut 0, &location, range + step), "nothing is mapped");
    let write_only = Access { location, flags: 2 };
    misuse(&fake, invalid, cuMemSetAccess(range, PAGE, &write_only, 1), "flags: 2");
    let nowhere = Access { location: Location { kind: 0, id: 0 }, flags: 3 };
    misuse(&fake, invalid, cuMemSetAccess(range, PAGE, &nowhere, 1), "kind: 0");
    misuse(&fake, invalid, cuMemUnmap(range, PAGE / 2), "whole mappings");
    misuse(&fake, invalid, cuMemUnmap(range, 3 * PAGE), "whole mappings");
    misuse(&fake, invalid, cuMemUnmap(range + step, PAGE), "whole mappings");
    misuse(&fake, invalid, cuMemsetD8_v2(range, 0, 1), "without access");
    misuse(&fake, invalid, cuMemsetD8_v2(range + step, 0, 1), "nothing is mapped");
    assert_eq!(open(range, 1), 0);
    misuse(&fake, invalid, cuMemsetD8_v2(range, 0, PAGE + 1), "nothing is mapped");
    misuse(&fake, invalid, cuMemFree_v2(range), "no memory");
    misuse(&fake, invalid, cuMemAddressFree(range, 4 * PAGE), "still has mappings");
    misuse(&fake, invalid, cuMemAddressFree(range, PAGE), "not what was reserved");
    assert_eq!((cuMemRelease(first), cuMemRelease(second)), (0, 0));
    misuse(&fake, invalid, cuMemRelease(first), "was released");
    misuse(&fake, invalid, cuMemMap(range + step, PAGE, 0, first, 0), "was released");
    assert_eq!(cuMemUnmap(range, PAGE), 0);
    misuse(&fake, invalid, cuMemRetainAllocationHandle(&mut 0, range), "nothing is mapped");
    assert_eq!(cuMemUnmap(range + 2 * step, PAGE), 0);
    assert_eq!(cuMemAddressFree(range, 4 * PAGE), 0);
    misuse(&fake, invalid, cuMemAddressFree(range, 4 * PAGE), "not what was reserved");
}

#[test]
fn access_is_that_of_one_device() {
    let fake = Fake::fresh(Options { devices: 2, ..Options::default() });
    context(1);
    let (range, chunk) = (reserve(1), create(1));
    assert_eq!((fake.used_bytes(0), fake.used_bytes(1)), (2 * MIB, 0));
    assert_eq!((cuMemMap(range, PAGE, 0, chunk, 0), open(range, 1)), (0, 0));
    misuse(&fake, code::INVALID_VALUE, cuMemsetD8_v2(range, 1, 1), "without access");
    let second = Access { location: Location { kind: 1, id: 1 }, flags: 3 };
    assert_eq!(cuMemSetAccess(range, PAGE, &second, 1), 0);
    assert_eq!(cuMemsetD8_v2(range, 1, 1), 0);
    let elsewhere = Access { location: Location { kind: 1, id: 2 }, flags: 3 };
    assert_eq!(cuMemSetAccess(range, PAGE, &elsewhere, 1), code::INVALID_DEVICE);
}

#[test]
fn unmapping_under_queued_work_is_noted() {
    let fake = Fake::fresh(Options { asynchronous: true, ..Options::default() });
    let context = context(0);
    let (range, chunk, stream) = (reserve(1), create(1), stream());
    assert_eq!(cuMemMap(range, PAGE, 0, chunk, 0), 0);
    assert_eq!(open(range, 1), 0);
    assert_eq!(cuMemsetD8Async(range + 5, 1, 10, stream), 0);
    assert_eq!(cuMemUnmap(range, PAGE), 0);
    assert!(fake.take_violations()[0].contains("still to be touched by a memset"));
    // And when the work gets there, the device is lost.
    fake.complete(context, stream);
    assert!(fake.take_violations()[0].contains("nothing is mapped"));
    assert_eq!(cuCtxSynchronize(), code::ILLEGAL_ADDRESS);
}
