//! Which driver calls are made, how many, and in what order, by the fake driver's own log.
//!
//! | what                | the promise                                                            |
//! |---------------------|------------------------------------------------------------------------|
//! | a hit               | no call at all; no event as long as no second stream is involved       |
//! | a capture           | no call for the captured stream, whatever is allocated and freed       |
//! | a refusal           | events are asked about, then memory goes back, then work is waited for |
//! | pages               | each map has its unmap; one access for each run; few and large chunks  |
//! | growth after a trim | chunks that are there are moved before new ones are made               |
#![cfg(all(feature = "cuda", target_os = "linux"))]

#[path = "support/cuda.rs"]
mod cuda;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer::backend::{Cuda, CudaOptions, CudaSource};
use aquifer::{AllocError, Allocation, CudaAllocator, OnStream, PoolOptions};
use cudarc::driver::{CudaStream, sys};

use cuda::{Call, Fake, Options};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Calls that enter and leave the context: they ask nothing of the device.
const ENTRIES: [&str; 4] =
    ["cuCtxGetCurrent", "cuCtxSetCurrent", "cuCtxGetDevice", "cuThreadExchangeStreamCaptureMode"];

/// An allocator with some streams.
struct Bench {
    memory: CudaAllocator,
    streams: Vec<Arc<CudaStream>>,
    fake: Fake,
}

impl Bench {
    fn new(source: CudaSource, options: Options) -> Self {
        let fake = Fake::fresh(options);
        let cuda_options = CudaOptions { source: Some(source), ..CudaOptions::default() };
        let backend = Cuda::new(0, &cuda_options).expect("the fake has the device");
        let config = CudaAllocator::recommended_config(source);
        let memory = CudaAllocator::with(backend, config).expect("a sound configuration");
        let stream = || memory.context().new_stream().expect("the fake makes streams");
        let streams = vec![stream(), stream(), stream()];
        Self { memory, streams, fake }
    }

    fn asynchronous(source: CudaSource, capacity: u64) -> Self {
        Self::new(source, Options { capacity, asynchronous: true, ..Options::default() })
    }

    fn on(&self, stream: usize) -> OnStream {
        self.memory.on(&self.streams[stream]).expect("the driver knows it")
    }

    /// The calls that `act` makes, entries apart.
    fn calls<R>(&self, act: impl FnOnce() -> R) -> (R, Vec<Call>) {
        self.fake.take_log();
        let result = act();
        let mut calls = self.fake.take_log();
        calls.retain(|call| !ENTRIES.contains(&call.symbol.as_str()));
        (result, calls)
    }

    /// Work of a stream on the first bytes of an allocation.
    fn work(&self, stream: usize, allocation: &Allocation<Cuda>) {
        let start = allocation.address().expect("it has bytes");
        // SAFETY: the allocation is alive, and the stream is its own or was recorded.
        let set = unsafe { sys::cuMemsetD8Async(start, 1, 512, self.streams[stream].cu_stream()) };
        set.result().expect("undisturbed");
    }

    /// All is given back, and nothing was misused.
    fn end(self) {
        let Self { memory, streams, fake } = self;
        drop((memory, streams));
        fake.assert_no_leaks();
    }
}

fn count(calls: &[Call], symbol: &str) -> usize {
    calls.iter().filter(|call| call.symbol == symbol).count()
}

/// The calls in words, for messages.
fn words(calls: &[Call]) -> String {
    let words: Vec<_> = calls.iter().map(|call| call.symbol.as_str()).collect();
    words.join(" ")
}

const SOURCES: [CudaSource; 3] = [CudaSource::Virtual, CudaSource::Pool, CudaSource::Plain];

#[test]
fn a_hit_makes_no_call() {
    for source in SOURCES {
        let bench = Bench::asynchronous(source, 512 * MIB);
        let (first, second) = (bench.on(0), bench.on(1));
        let take = |on: &OnStream| {
            let sizes = [1, 3 * KIB, 700 * KIB, 3 * MIB, 24 * MIB];
            sizes.map(|size| on.allocate(size).expect("there is room"))
        };
        for _ in 0..10 {
            drop(take(&first));
        }
        let events = bench.fake.call_table();
        let events = events.iter().filter(|(symbol, _)| symbol.starts_with("cuEvent"));
        assert_eq!(events.count(), 0, "{source:?}: no event as long as one stream is alone");
        // Both have blocks of their own from here on.
        drop((take(&first), take(&second)));
        bench.fake.take_log();
        for _ in 0..100 {
            drop(take(&first));
            drop(take(&second));
        }
        let log = bench.fake.take_log();
        assert!(log.is_empty(), "{source:?}: {}", words(&log));
        drop((first, second));
        bench.end();
    }
}

#[test]
fn events_of_the_pool_are_used_again() {
    let bench = Bench::asynchronous(CudaSource::Virtual, 512 * MIB);
    let (first, second) = (bench.on(0), bench.on(1));
    let mut created = Vec::new();
    for _ in 0..50 {
        let ((), calls) = bench.calls(|| {
            let held = first.allocate(20 * MIB).expect("there is room");
            bench.work(0, &held);
            bench.memory.record_stream(&held, second.stream());
            bench.work(1, &held);
        });
        bench.fake.complete_all();
        created.push(count(&calls, "cuEventCreate"));
        assert!(count(&calls, "cuEventRecord") <= 1, "one event for a batch: {}", words(&calls));
        assert_eq!(count(&calls, "cuEventDestroy_v2"), 0, "none is destroyed before the end");
    }
    assert!(created.iter().sum::<usize>() <= 3, "{created:?} events were created");
    assert_eq!(created[10..].iter().sum::<usize>(), 0, "warm, none is created: {created:?}");
    drop((first, second));
    bench.end();
}

#[test]
fn a_capture_makes_no_call_for_its_stream() {
    for source in SOURCES {
        let bench = Bench::asynchronous(source, 512 * MIB);
        let (captured, other) = (bench.on(0), bench.on(1));
        let pool = bench.memory.create_pool(PoolOptions::default());
        for size in [256 * KIB, 48 * MIB] {
            pool.prime(captured.stream(), size).expect("there is room");
        }
        // Something that only the capture's end can deal with.
        let before = captured.allocate(3 * MIB).expect("there is room");
        let capture = bench.memory.begin_capture(&captured, &pool);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
        bench.streams[0].begin_capture(mode).expect("undisturbed");
        let ((), calls) = bench.calls(|| {
            // So many that their events would be recorded, and asked about.
            let batch = bench.memory.config().event_batch_count as usize;
            let sizes = std::iter::repeat_n(512, 3 * batch).chain([3 * KIB, 12 * MIB, 20 * MIB]);
            for size in sizes {
                let held = captured.allocate(size).expect("primed");
                bench.memory.record_stream(&held, other.stream());
            }
            bench.memory.record_stream(&before, other.stream());
            drop(before);
            let refused = captured.allocate(100 * MIB).expect_err("more than was primed");
            assert!(matches!(refused, AllocError::OutOfMemory(_)), "{refused}");
        });
        // The report says what the device has free: that is no business of any stream.
        let calls: Vec<_> =
            calls.into_iter().filter(|call| call.symbol != "cuMemGetInfo_v2").collect();
        assert!(calls.is_empty(), "{source:?}: {}", words(&calls));
        // Others work meanwhile, and leave the stream alone.
        let handle = bench.streams[0].cu_stream() as u64;
        let ((), calls) = bench.calls(|| {
            let held = other.allocate(40 * MIB).expect("there is room");
            bench.work(1, &held);
            drop(held);
            bench.memory.maintain(Duration::from_secs(1));
            bench.memory.trim_to(0);
        });
        assert!(calls.iter().all(|call| call.subject != handle), "{source:?}: {}", words(&calls));
        let graph = bench.streams[0].end_capture(sys::CUgraphInstantiate_flags(0));
        drop(graph.expect("nothing has broken the capture"));
        drop((capture, pool, captured, other));
        bench.end();
    }
}

/// Where each of the symbols stands first.
fn first_of(calls: &[Call], symbols: &[&str]) -> Option<usize> {
    calls.iter().position(|call| symbols.contains(&call.symbol.as_str()))
}

/// Memory goes back by these, and comes by those.
const GIVES: [&str; 3] = ["cuMemUnmap", "cuMemFreeAsync", "cuMemFree_v2"];
const TAKES: [&str; 3] = ["cuMemCreate", "cuMemAllocFromPoolAsync", "cuMemAlloc_v2"];

/// 30 MiB held, 30 MiB idle, and 30 MiB that another stream has used, of 128 MiB.
fn crowded(bench: &Bench) -> Allocation<Cuda> {
    let (first, second, third) = (bench.on(0), bench.on(1), bench.on(2));
    let kept = first.allocate(30 * MIB).expect("there is room");
    let idle = third.allocate(30 * MIB).expect("there is room");
    let used = second.allocate(30 * MIB).expect("there is room");
    bench.memory.record_stream(&used, first.stream());
    bench.work(0, &used);
    drop((idle, used));
    kept
}

#[test]
fn what_is_done_goes_and_nothing_is_waited_for() {
    for source in SOURCES {
        // All work is done as soon as it is submitted.
        let bench = Bench::new(source, Options { capacity: 128 * MIB, ..Options::default() });
        let kept = crowded(&bench);
        let (held, calls) = bench.calls(|| bench.on(0).allocate(60 * MIB).expect("room is made"));
        let said = words(&calls);
        let asked = first_of(&calls, &["cuEventQuery"]).expect("events are asked about");
        let given = first_of(&calls, &GIVES).expect("memory goes back");
        assert!(asked < given, "{source:?}: {said}");
        assert_eq!(count(&calls, "cuEventSynchronize"), 0, "{source:?}: {said}");
        drop((held, kept));
        bench.end();
    }
}

#[test]
fn a_refusal_comes_when_all_is_done_and_given_back() {
    for source in SOURCES {
        let bench = Bench::asynchronous(source, 128 * MIB);
        let kept = crowded(&bench);
        let (refused, calls) = bench.calls(|| bench.on(0).allocate(110 * MIB).err());
        assert!(matches!(refused, Some(AllocError::OutOfMemory(_))), "{refused:?}");
        let said = words(&calls);
        let last_of = |symbols: &[&str]| {
            calls.iter().rposition(|call| symbols.contains(&call.symbol.as_str()))
        };
        let asked = first_of(&calls, &["cuEventQuery"]).expect("events are asked about");
        let taken = first_of(&calls, &TAKES).expect("growing is tried");
        let waited = first_of(&calls, &["cuEventSynchronize"]).expect("work is waited for");
        let given = last_of(&GIVES).expect("memory goes back");
        let again = last_of(&TAKES).expect("growing is tried again");
        let steps = [asked, taken, waited, given, again];
        assert!(steps.is_sorted(), "{source:?}: {steps:?} of {said}");
        assert_eq!(bench.memory.releasable_bytes(), 0, "{source:?}: all went");
        drop(kept);
        bench.end();
    }
}

#[test]
fn each_map_has_its_unmap_and_each_run_its_access() {
    let bench = Bench::new(CudaSource::Virtual, Options::default());
    let on = bench.on(0);
    let mut mapped: BTreeMap<u64, i32> = BTreeMap::new();
    let (held, calls) = bench.calls(|| on.allocate(200 * MIB).expect("there is room"));
    assert_eq!(count(&calls, "cuMemSetAccess"), 1, "one run, one access: {}", words(&calls));
    assert!(count(&calls, "cuMemMap") > 1, "of several chunks");
    let mut all = calls;
    drop(held);
    let ((), calls) = bench.calls(|| {
        for round in 0..3 {
            let held: Vec<_> = [3 * MIB, 50 * MIB, 700 * KIB, 24 * MIB, 90 * MIB]
                .map(|size| on.allocate(size + round * MIB).expect("there is room"))
                .into();
            bench.memory.trim_to(100 * MIB);
            drop(held);
            bench.memory.trim_to(40 * MIB);
        }
        bench.memory.empty_cache();
    });
    all.extend(calls);
    for call in &all {
        match call.symbol.as_str() {
            "cuMemMap" => *mapped.entry(call.subject).or_default() += 1,
            // The fake lets nothing but whole chunks go; that each has an unmap of its own, from
            // its own beginning, is left to see.
            "cuMemUnmap" => *mapped.entry(call.subject).or_default() -= 1,
            _ => {}
        }
    }
    assert!(mapped.len() > 3 && mapped.values().all(|&open| open == 0), "{mapped:x?}");
    assert_eq!(count(&all, "cuMemMap"), count(&all, "cuMemUnmap"));
    assert_eq!(count(&all, "cuMemCreate"), count(&all, "cuMemRelease"));
    assert_eq!(bench.fake.live().mappings, 0);
    drop(on);
    bench.end();
}

#[test]
fn growing_costs_one_triple_for_32_mib() {
    let bench = Bench::new(CudaSource::Virtual, Options::default());
    let on = bench.on(0);
    let mut held = Vec::new();
    let ((), calls) = bench.calls(|| {
        for _ in 0..80 {
            held.push(on.allocate(8 * MIB).expect("there is room"));
        }
    });
    let most = (80 * 8_usize).div_ceil(32);
    for symbol in ["cuMemCreate", "cuMemMap", "cuMemSetAccess"] {
        let made = count(&calls, symbol);
        assert!(made <= most && made > 0, "{made} of {symbol} for 640 MiB");
    }
    assert_eq!(count(&calls, "cuMemAddressReserve"), 1, "one range for all of it");
    drop((held, on));
    bench.end();
}

#[test]
fn growth_after_a_partial_trim_moves_chunks_that_are_there() {
    let capacity = 256 * MIB;
    let bench = Bench::new(CudaSource::Virtual, Options { capacity, ..Options::default() });
    let on = bench.on(0);
    let mut held: Vec<_> =
        (0..7).map(|_| Some(on.allocate(32 * MIB).expect("there is room"))).collect();
    // Every second block is free; a part of that goes back.
    for at in [0, 2, 4] {
        held[at] = None;
    }
    let returned = bench.memory.trim_to(190 * MIB);
    assert!(returned >= 32 * MIB, "{returned} bytes went");
    let (again, calls) = bench.calls(|| on.allocate(96 * MIB).expect("there is room"));
    let (created, mapped) = (count(&calls, "cuMemCreate"), count(&calls, "cuMemMap"));
    let moved = count(&calls, "cuMemUnmap");
    assert!(mapped >= 3 && created < mapped && moved > 0, "{created} made: {}", words(&calls));
    assert_eq!(count(&calls, "cuMemSetAccess"), 1, "one run: {}", words(&calls));
    drop((again, held, on));
    bench.end();
}
