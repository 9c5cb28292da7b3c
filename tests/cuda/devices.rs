//! Whether there is a device, where its memory comes from, and several of them.

use std::error::Error;

use aquifer::backend::{Backend, Cuda, CudaOptions, CudaSource, CudaUnavailable};
use aquifer::{CudaAllocator, tune_default_pool};
use cudarc::driver::CudaContext;

use crate::cuda::{Fake, Options};
use crate::{MIB, close, open, open_source};

fn refused(options: Options, cuda: &CudaOptions, ordinal: usize) -> CudaUnavailable {
    let fake = Fake::fresh(options);
    let error = Cuda::new(ordinal, cuda).expect_err("there is no such device");
    fake.assert_no_leaks();
    error
}

#[test]
fn what_is_missing_is_said() {
    let sound = CudaOptions::default();
    let stub = refused(Options { stub: true, ..Options::default() }, &sound, 0);
    assert_eq!(stub, CudaUnavailable::Stub);
    let none = refused(Options { devices: 0, ..Options::default() }, &sound, 0);
    assert_eq!(none, CudaUnavailable::NoDevice);
    let third = refused(Options { devices: 2, ..Options::default() }, &sound, 2);
    assert_eq!(third, CudaUnavailable::NoSuchDevice { ordinal: 2, count: 2 });
    assert!(third.to_string().contains("there are 2"), "{third}");
    let huge = refused(Options::default(), &sound, usize::MAX);
    assert!(matches!(huge, CudaUnavailable::NoSuchDevice { count: 1, .. }), "{huge}");
    for error in [stub, none, third] {
        assert_eq!(error.to_string().lines().count(), 1, "one line: {error}");
    }
}

#[test]
fn what_the_device_cannot_do_is_said() {
    let asks = |source| CudaOptions { source: Some(source), ..CudaOptions::default() };
    let no_pages = Options { virtual_memory: false, ..Options::default() };
    let error = refused(no_pages, &asks(CudaSource::Virtual), 0);
    assert_eq!(error, CudaUnavailable::Unsupported { what: "virtual memory" });
    let no_pools = Options { pools: false, ..Options::default() };
    let error = refused(no_pools, &asks(CudaSource::Pool), 0);
    assert_eq!(error, CudaUnavailable::Unsupported { what: "memory pools" });
    let exportable = CudaOptions { exportable: true, ..CudaOptions::default() };
    for options in [no_pages, Options { posix_handles: false, ..Options::default() }] {
        let error = refused(options, &exportable, 0);
        assert!(matches!(error, CudaUnavailable::Unsupported { .. }), "{error}");
    }
    let peers = CudaOptions { peers: vec![7], ..CudaOptions::default() };
    let error = refused(Options::default(), &peers, 0);
    assert_eq!(error, CudaUnavailable::NoSuchDevice { ordinal: 7, count: 1 });
    let shared = CudaOptions { peers: vec![1], ..asks(CudaSource::Pool) };
    let error = refused(Options { devices: 2, ..Options::default() }, &shared, 0);
    assert_eq!(error, CudaUnavailable::Unsupported { what: "memory for other devices" });
}

#[test]
fn the_best_source_is_chosen() {
    let sound = Options::default();
    let no_pages = Options { virtual_memory: false, ..sound };
    let neither = Options { pools: false, ..no_pages };
    let expected = [
        (sound, CudaSource::Virtual, "cuMemCreate"),
        (no_pages, CudaSource::Pool, "cuMemAllocFromPoolAsync"),
        (neither, CudaSource::Plain, "cuMemAlloc_v2"),
    ];
    for (options, source, symbol) in expected {
        let fake = Fake::fresh(options);
        let memory = open(&fake);
        assert_eq!(memory.backend().source(), source);
        drop(memory.allocate(3 * MIB).expect("room"));
        assert!(fake.calls(symbol) > 0, "{source:?} calls {symbol}");
        assert!(memory.backend().describe().contains("CUDA 13.0"), "{:?}", memory.backend());
        close(&fake, memory);
    }
}

#[test]
fn no_source_touches_the_default_pool() {
    for source in [CudaSource::Virtual, CudaSource::Pool, CudaSource::Plain] {
        let fake = Fake::fresh(Options::default());
        let memory = open_source(&fake, source);
        let held = [MIB, 30 * MIB, 3000].map(|size| memory.allocate(size).expect("room"));
        drop(held);
        assert!(memory.empty_cache() > 0);
        assert_eq!(fake.used_bytes(0), 0, "{source:?}: the pool is trimmed too");
        assert_eq!(fake.calls("cuDeviceGetMemPool") + fake.calls("cuMemAllocAsync"), 0);
        close(&fake, memory);
    }
}

#[test]
fn the_default_pool_can_be_tuned() {
    let fake = Fake::fresh(Options::default());
    let context = CudaContext::new(0).expect("the fake has a device");
    let stream = context.default_stream();
    let reserved = || {
        let slice = stream.alloc_zeros::<u8>(8 << 20).expect("room");
        drop(slice);
        stream.synchronize().expect("the fake works");
        fake.used_bytes(0)
    };
    assert_eq!(reserved(), 0, "by default all goes back at every synchronisation");
    tune_default_pool(0).expect("the fake has pools");
    assert!(reserved() >= 8 * MIB, "and is kept from now on");
    let error = tune_default_pool(3).expect_err("there is one device");
    assert!(matches!(error, CudaUnavailable::NoSuchDevice { .. }), "{error}");
    drop(stream);
    drop(context);
    let _ = fake.take_violations();
}

#[test]
fn memory_of_the_device_is_told() {
    let fake = Fake::fresh(Options { capacity: 256 * MIB, ..Options::default() });
    let memory = open(&fake);
    let info = memory.mem_get_info().expect("the driver tells");
    assert_eq!((info.free, info.total), (256 * MIB, 256 * MIB));
    let held = memory.allocate(100 * MIB).expect("room");
    assert!(memory.mem_get_info().expect("the driver tells").free <= 156 * MIB);
    memory.set_memory_fraction(0.5).expect("the total is known");
    assert_eq!(memory.memory_limit(), Some(128 * MIB));
    let error = memory.allocate(60 * MIB).expect_err("above the limit");
    assert!(error.to_string().contains("set_memory_fraction") || error.source().is_none());
    drop(held);
    close(&fake, memory);
}

#[test]
fn devices_do_not_mix() {
    let fake = Fake::fresh(Options { devices: 2, ..Options::default() });
    let [first, second] =
        [0, 1].map(|ordinal| CudaAllocator::open(ordinal).expect("the fake has two"));
    let a = first.allocate(40 * MIB).expect("room");
    let b = second.allocate(70 * MIB).expect("room");
    assert!(fake.used_bytes(0) >= 40 * MIB && fake.used_bytes(1) >= 70 * MIB);
    // The program's own device stays the current one, whoever frees what.
    second.context().bind_to_thread().expect("the fake works");
    drop(a);
    first.empty_cache();
    assert_eq!((fake.used_bytes(0), fake.used_bytes(1) >= 70 * MIB), (0, true));
    let stream = second.context().new_stream().expect("the fake works");
    let buffer = second.on(&stream).expect("known").alloc_zeros::<u32>(100).expect("room");
    assert_eq!(stream.clone_dtoh(&buffer).expect("the fake copies"), [0; 100]);
    drop((b, buffer, stream));
    drop(first);
    close(&fake, second);
}

#[test]
#[should_panic(expected = "another context")]
fn a_stream_of_another_device_is_misuse() {
    let fake = Fake::fresh(Options { devices: 2, ..Options::default() });
    let memory = open(&fake);
    let other = CudaContext::new(1).expect("the fake has two");
    let _ = memory.on(&other.default_stream());
}

#[test]
fn threads_that_never_saw_the_device_may_use_it() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let memory = &memory;
            scope.spawn(move || {
                for round in 0..20_u64 {
                    let size = (1 + (thread * 7 + round * 3) % 40) * MIB / 2;
                    let held = memory.allocate(size).expect("room");
                    if round % 7 == thread {
                        memory.empty_cache();
                    }
                    drop(held);
                }
            });
        }
    });
    memory.verify();
    memory.empty_cache();
    assert_eq!(fake.used_bytes(0), 0);
    close(&fake, memory);
}

#[test]
fn peers_get_access() {
    let fake = Fake::fresh(Options { devices: 2, ..Options::default() });
    let options = CudaOptions { peers: vec![1], ..CudaOptions::default() };
    let backend = Cuda::new(0, &options).expect("the fake has two");
    let config = CudaAllocator::recommended_config(backend.source());
    let memory = CudaAllocator::with(backend, config).expect("a valid configuration");
    let on = memory.on(&memory.context().default_stream()).expect("known");
    let held = on.clone_htod(&[5_u32; 1000]).expect("room");
    let peer = CudaContext::new(1).expect("the fake has two");
    let stream = peer.new_stream().expect("the fake works");
    // Read by the other device: without access the driver notes a misuse.
    let mut copy = vec![0_u32; 1000];
    // SAFETY: the buffer has so many values and lives; the copy is waited for.
    unsafe {
        cudarc::driver::result::memcpy_dtoh_async(&mut copy, held.address(), stream.cu_stream())
    }
    .expect("the fake copies");
    stream.synchronize().expect("the fake works");
    assert_eq!(copy, [5; 1000]);
    drop((held, on, stream, peer));
    close(&fake, memory);
}

#[test]
fn a_device_of_real_size() {
    let fake = Fake::fresh(Options { capacity: 80 << 30, ..Options::default() });
    let memory = open(&fake);
    let held: Vec<_> = (0..39).map(|_| memory.allocate(2 << 30).expect("room")).collect();
    assert!(memory.allocate(3 << 30).is_err());
    assert!(fake.used_bytes(0) >= 78 << 30);
    drop(held);
    let whole = memory.allocate(79 << 30).expect("one piece, of pages that are there");
    memory.verify();
    drop(whole);
    assert!(memory.empty_cache() >= 79 << 30);
    close(&fake, memory);
}
