//! Devices, contexts, plain and pinned memory, copies; and each misuse of them.

use std::ffi::CStr;
use std::ptr::null_mut;

use crate::api::*;
use crate::cuda::{Fake, MIB, Options, code};

#[test]
fn a_program_goes_through() {
    let fake = Fake::fresh(Options::default());
    let context = context(0);
    let device: i32 = made(cuCtxGetDevice);
    assert_eq!(device, 0);
    let pointer = memory(1000);
    assert_eq!(pointer % 512, 0);
    assert_eq!(fake.used_bytes(0), 1024);
    let sent: Vec<u8> = (0..1000).map(|at| at as u8).collect();
    assert_eq!(cuMemcpyHtoD_v2(pointer, sent.as_ptr() as u64, 1000), 0);
    let mut got = vec![0u8; 1000];
    assert_eq!(cuMemcpyDtoH_v2(got.as_mut_ptr() as u64, pointer, 1000), 0);
    assert_eq!(got, sent);
    assert_eq!(fake.read(pointer + 10, 2), [10, 11]);
    fake.write(pointer, &[7]);
    assert_eq!(cuMemsetD8_v2(pointer + 1, 9, 2), 0);
    assert_eq!(fake.read(pointer, 4), [7, 9, 9, 3]);
    let size: usize = made(|size| cuMemGetAddressRange_v2(null_mut(), size, pointer + 999));
    assert_eq!(size, 1000);
    assert_eq!(cuMemFree_v2(pointer), 0);
    assert_eq!((fake.used_bytes(0), fake.peak_used_bytes(0)), (0, 1024));
    assert_eq!(fake.live().contexts, 1);
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), 0);
    fake.assert_no_leaks();
    assert_eq!(fake.calls("cuMemcpyHtoD_v2"), 1);
    assert_ne!(context, 0);
}

#[test]
fn devices_are_what_the_options_say() {
    let options = Options {
        devices: 3,
        capacity: 8 * MIB,
        total: 16 * MIB,
        virtual_memory: false,
        driver_version: 12020,
        ..Options::default()
    };
    let fake = Fake::fresh(options);
    context(2);
    let count: i32 = made(cuDeviceGetCount);
    let version: i32 = made(cuDriverGetVersion);
    let total: usize = made(|bytes| cuDeviceTotalMem_v2(bytes, 1));
    assert_eq!((count, version, total), (3, 12020, 16 << 20));
    let attribute = |attribute| made(|value| cuDeviceGetAttribute(value, attribute, 0));
    assert_eq!([75, 102, 103, 115].map(attribute), [9, 0, 0, 1]);
    fake.set_attribute(115, 0);
    assert_eq!(attribute(115), 0);
    assert_eq!(cuDeviceGetAttribute(&mut 0, 75, 3), code::INVALID_DEVICE);
    let handle = cuMemAddressReserve(&mut 0, 2 << 20, 0, 0, 0);
    assert_eq!(handle, code::NOT_SUPPORTED);
    let mut free = 0;
    let total: usize = made(|total| cuMemGetInfo_v2(&mut free, total));
    assert_eq!((free, total), (8 << 20, 16 << 20));
    let mut name = [1; 6];
    assert_eq!(cuDeviceGetName(name.as_mut_ptr(), 6, 0), 0);
    assert_eq!(&name, b"Fake \0");
    let device: i32 = made(|device| cuDeviceGet(device, 1));
    assert_eq!((device, cuCtxSetFlags(0)), (1, 0));
    let uuid_v1 = |device| made(|uuid: *mut [u8; 16]| cuDeviceGetUuid(uuid.cast(), device));
    let uuid = |device| made(|uuid: *mut [u8; 16]| cuDeviceGetUuid_v2(uuid.cast(), device));
    assert_ne!(uuid(0), uuid(1));
    assert_eq!(uuid(1), uuid_v1(1));
}

#[test]
fn a_stub_and_a_machine_without_devices_say_so() {
    let fake = Fake::fresh(Options { stub: true, ..Options::default() });
    assert_eq!(cuInit(0), code::STUB_LIBRARY);
    drop(fake);
    let _fake = Fake::fresh(Options { devices: 0, ..Options::default() });
    assert_eq!(cuInit(0), code::NO_DEVICE);
}

#[test]
fn errors_have_names() {
    let _fake = Fake::fresh(Options::default());
    let mut name = std::ptr::null();
    assert_eq!(cuGetErrorName(code::OUT_OF_MEMORY, &mut name), 0);
    // SAFETY: the driver's texts are constants that end with a zero.
    let name = unsafe { CStr::from_ptr(name) };
    assert_eq!(name, c"CUDA_ERROR_OUT_OF_MEMORY");
    assert_eq!(cuGetErrorString(12345, &mut std::ptr::null()), code::INVALID_VALUE);
}

#[test]
fn memory_ends_at_the_capacity_which_can_change() {
    let fake = Fake::fresh(Options { capacity: 80 << 30, ..Options::default() });
    context(0);
    let large = memory(60 << 30);
    assert_eq!(large % (2 << 20), 0);
    assert_eq!(cuMemAlloc_v2(&mut 0, 30 << 30), code::OUT_OF_MEMORY);
    fake.set_capacity(0, 100 << 30);
    let second = memory(30 << 30);
    fake.set_capacity(0, 1 << 30);
    assert_eq!(cuMemAlloc_v2(&mut 0, 512), code::OUT_OF_MEMORY);
    let free: usize = made(|free| cuMemGetInfo_v2(free, &mut 0));
    assert_eq!(free, 0);
    assert_eq!((cuMemFree_v2(large), cuMemFree_v2(second)), (0, 0));
}

#[test]
fn pinned_memory_is_not_the_devices() {
    let fake = Fake::fresh(Options::default());
    context(0);
    let host: u64 = made(|host| cuMemHostAlloc(host, 4096, 0));
    assert_eq!((fake.used_bytes(0), fake.live().host_allocations), (0, 1));
    let seen: u64 = made(|pointer| cuMemHostGetDevicePointer_v2(pointer, host, 0));
    let kind: u32 = made(|kind: *mut u32| cuPointerGetAttribute(kind.cast(), 2, host));
    assert_eq!((seen, kind), (host, 1));
    let device = memory(16);
    let kind: u32 = made(|kind: *mut u32| cuPointerGetAttribute(kind.cast(), 2, device));
    let ordinal: i32 = made(|at: *mut i32| cuPointerGetAttribute(at.cast(), 9, device));
    assert_eq!((kind, ordinal), (2, 0));
    assert_eq!(cuMemsetD32Async(seen, 0x0102_0304, 4, 0), 0);
    assert_eq!(cuMemcpyAsync(device, host, 16, 0), 0);
    assert_eq!(fake.read(device, 5), [4, 3, 2, 1, 4]);
    assert_eq!((cuMemFree_v2(device), cuMemFreeHost(host)), (0, 0));
}

#[test]
fn contexts_belong_to_threads() {
    let fake = Fake::fresh(Options { devices: 2, ..Options::default() });
    let first = context(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let current: u64 = made(cuCtxGetCurrent);
            assert_eq!(current, 0);
            assert_eq!(cuMemAlloc_v2(&mut 0, 512), code::INVALID_CONTEXT);
        });
    });
    assert_eq!(fake.take_violations().len(), 1);
    let second: u64 = made(|context| cuDevicePrimaryCtxRetain(context, 1));
    assert_eq!(cuCtxPushCurrent_v2(second), 0);
    let device: i32 = made(cuCtxGetDevice);
    let popped: u64 = made(cuCtxPopCurrent_v2);
    let current: u64 = made(cuCtxGetCurrent);
    assert_eq!((device, popped, current), (1, second, first));
    assert_eq!(cuDevicePrimaryCtxRelease_v2(1), 0);
    assert_eq!(cuCtxSetCurrent(second), code::INVALID_CONTEXT);
    assert_eq!(fake.take_violations().len(), 1);
}

/// Each has to be answered with the code, and to be noted once.
#[test]
fn misuses_of_memory_are_noted() {
    let fake = Fake::fresh(Options { devices: 2, ..Options::default() });
    misuse(&fake, code::NOT_INITIALIZED, cuDeviceGetCount(&mut 0), "before cuInit");
    assert_eq!(cuInit(0), 0);
    misuse(&fake, code::INVALID_CONTEXT, cuMemAlloc_v2(&mut 0, 8), "no current context");
    misuse(&fake, code::INVALID_CONTEXT, cuDevicePrimaryCtxRelease_v2(0), "more often");
    misuse(&fake, code::INVALID_CONTEXT, cuCtxPopCurrent_v2(null_mut()), "no context to pop");
    context(1);
    let foreign = memory(64);
    context(0);
    let (own, host) = (memory(64), made(|host| cuMemHostAlloc(host, 64, 0)));
    let bytes = [0u8; 80];
    let source = bytes.as_ptr() as u64;
    let invalid = code::INVALID_VALUE;
    misuse(&fake, invalid, cuMemAlloc_v2(&mut 0, 0), "no bytes");
    misuse(&fake, invalid, cuMemFree_v2(0), "no memory");
    misuse(&fake, invalid, cuMemFree_v2(own + 8), "inside");
    misuse(&fake, invalid, cuMemFree_v2(host), "pinned host memory");
    misuse(&fake, invalid, cuMemFree_v2(foreign), "another device");
    misuse(&fake, invalid, cuMemFreeHost(own), "no pinned memory");
    misuse(&fake, invalid, cuMemcpyHtoD_v2(own, source, 65), "out of bounds");
    misuse(&fake, invalid, cuMemcpyHtoD_v2(foreign, source, 8), "another device");
    misuse(&fake, invalid, cuMemcpyHtoD_v2(own, foreign, 8), "given as memory of the host");
    misuse(&fake, invalid, cuMemsetD32Async(own + 2, 0, 1, 0), "not aligned");
    misuse(&fake, invalid, cuMemsetD8_v2(own + 60, 0, 5), "out of bounds");
    misuse(&fake, invalid, cuMemHostGetDevicePointer_v2(&mut 0, own, 0), "not pinned");
    assert_eq!(cuMemFree_v2(own), 0);
    misuse(&fake, invalid, cuMemFree_v2(own), "no memory");
    misuse(&fake, invalid, cuMemcpyDtoD_v2(own, host, 8), "no memory");
}

#[test]
fn addresses_stay_unused_where_that_is_asked() {
    let fake = Fake::fresh(Options { fresh_addresses: true, ..Options::default() });
    context(0);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let pointer = memory(4 << 20);
        assert!(seen.insert(pointer), "{pointer:#x} came back");
        assert_eq!(cuMemFree_v2(pointer), 0);
    }
    assert_eq!(fake.used_bytes(0), 0);
}
