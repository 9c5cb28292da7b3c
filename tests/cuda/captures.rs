//! Graph captures: no call for the captured stream, addresses that stay, and captures that survive
//! what other threads do.

use aquifer::backend::{Cuda, CudaOptions, CudaSource};
use aquifer::report::oom::OomCause;
use aquifer::{AllocError, CudaAllocator, OnStream, PoolOptions};
use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags as Flags, CUstreamCaptureMode as Mode};

use crate::cuda::Fake;
use crate::{MIB, asynchronous, close, open};

/// Ends the capture of a stream and makes it a graph.
fn end(on: &OnStream) -> CudaGraph {
    let flags = Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = on.cuda_stream().end_capture(flags).expect("the capture is sound");
    graph.expect("something was captured")
}

#[test]
fn a_primed_pool_serves_a_capture() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let stream = memory.context().new_stream().expect("the fake works");
    let on = memory.on(&stream).expect("known");
    let pool = memory.create_pool(PoolOptions::default());
    pool.prime(on.stream(), 20 * MIB).expect("room");
    let source = on.clone_htod(&vec![7_u8; 3 << 20]).expect("room");
    let mut output = on.alloc_zeros::<u8>(3 << 20).expect("room");
    fake.complete_all();

    let capture = memory.begin_capture(&on, &pool);
    stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_GLOBAL).expect("the fake captures");
    fake.take_log();
    // SAFETY: written before it is read, on the same stream.
    let mut scratch = unsafe { on.alloc::<u8>(3 << 20) }.expect("primed");
    let place = scratch.address();
    stream.memcpy_dtod(&source, &mut scratch).expect("captured");
    stream.memcpy_dtod(&scratch, &mut output).expect("captured");
    drop(scratch);
    // SAFETY: as above.
    let again = unsafe { on.alloc::<u8>(3 << 20) }.expect("primed");
    assert_eq!(again.address(), place, "the same stream has it back at once");
    drop(again);
    let calls = fake.take_order();
    let asked = ["cuEvent", "cuMemCreate", "cuMemMap", "cuMemAlloc", "Synchronize"];
    assert!(!asked.iter().any(|name| calls.contains(name)), "{calls}");
    let graph = end(&on);
    drop(capture);

    // The pool keeps the graph's memory, whatever is trimmed.
    let before = memory.memory_reserved();
    memory.empty_cache();
    assert!(memory.memory_reserved() >= 3 * MIB && memory.memory_reserved() <= before);
    for _ in 0..3 {
        stream.memset_zeros(&mut output).expect("the fake works");
        graph.launch().expect("the fake replays");
        assert_eq!(stream.clone_dtoh(&output).expect("a copy"), vec![7; 3 << 20]);
    }
    drop((graph, source, output, on, stream));
    fake.complete_all();
    drop(pool);
    memory.empty_cache();
    assert_eq!(memory.memory_reserved(), 0, "with the pool its memory goes");
    close(&fake, memory);
}

#[test]
fn a_capture_without_room_is_an_error() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let stream = memory.context().new_stream().expect("the fake works");
    let on = memory.on(&stream).expect("known");
    let pool = memory.create_pool(PoolOptions::default());
    let capture = memory.begin_capture(&on, &pool);
    stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_GLOBAL).expect("the fake captures");
    let error = on.allocate(3 * MIB).expect_err("the pool is empty");
    let AllocError::OutOfMemory(report) = &error else { panic!("{error}") };
    assert_eq!(report.cause, OomCause::Capture);
    assert!(error.to_string().contains("prime"), "{error}");
    let flags = Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    drop(stream.end_capture(flags).expect("the capture is sound"));
    drop(capture);
    drop(on.allocate(3 * MIB).expect("the process goes on"));
    drop((pool, on, stream));
    close(&fake, memory);
}

#[test]
fn other_threads_grow_beside_a_capture() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let stream = memory.context().new_stream().expect("the fake works");
    let on = memory.on(&stream).expect("known");
    let pool = memory.create_pool(PoolOptions::default());
    pool.prime(on.stream(), 4 * MIB).expect("room");
    let capture = memory.begin_capture(&on, &pool);
    stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_GLOBAL).expect("the fake captures");
    let mut held = on.alloc_zeros::<u8>(2 << 20).expect("primed");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Growth, release, events and waits of other streams: the capture is none the wiser.
            let other = memory.context().new_stream().expect("the fake works");
            let on = memory.on(&other).expect("known");
            drop(on.allocate(50 * MIB).expect("room"));
            drop(memory.allocate(60 * MIB).expect("room"));
            memory.empty_cache();
            drop(memory.alloc_pinned::<u8>(1 << 20).expect("room"));
            memory.pinned().empty_cache();
        });
    });
    stream.memset_zeros(&mut held).expect("captured");
    let graph = end(&on);
    drop(capture);
    graph.launch().expect("the fake replays");
    fake.complete_all();
    drop((graph, held, pool, on, stream));
    close(&fake, memory);
}

#[test]
fn frees_that_wait_are_recovered_after_the_capture() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let [stream, side] = [(); 2].map(|()| memory.context().new_stream().expect("the fake works"));
    let on = memory.on(&stream).expect("known");
    memory.on(&side).expect("known");
    let pool = memory.create_pool(PoolOptions::default());
    pool.prime(on.stream(), 8 * MIB).expect("room");
    let capture = memory.begin_capture(&on, &pool);
    stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_RELAXED).expect("the fake captures");
    let crossed = on.alloc_zeros::<u8>(2 << 20).expect("primed");
    crossed.record_on(&side).expect("known");
    drop(crossed);
    fake.take_log();
    drop(on.allocate(2 * MIB).expect("primed"));
    assert!(!fake.take_order().contains("cuEvent"), "put off while the capture runs");
    drop(end(&on));
    drop(capture);
    memory.maintain(std::time::Duration::ZERO);
    fake.complete_all();
    memory.maintain(std::time::Duration::ZERO);
    assert_eq!(memory.memory_active(), 0, "recovered");
    drop((pool, on, stream, side));
    close(&fake, memory);
}

#[test]
fn a_capture_that_nobody_announced_is_not_broken() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let [stream, other] = [(); 2].map(|()| memory.context().new_stream().expect("the fake works"));
    let (on, on_other) = (memory.on(&stream).expect("known"), memory.on(&other).expect("known"));
    let mut held = on.alloc_zeros::<u8>(30 << 20).expect("room");
    fake.complete_all();
    stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_RELAXED).expect("the fake captures");
    stream.memset_zeros(&mut held).expect("captured");
    drop(held);
    // Another stream would like the block, and no event of a captured stream tells when: it gets
    // another one, the capture is sound, and nothing is lost.
    let other_block = on_other.allocate(30 * MIB).expect("room elsewhere");
    memory.empty_cache();
    drop(other_block);
    drop(end(&on));
    drop(on_other.allocate(30 * MIB).expect("the process goes on"));
    memory.empty_cache();
    fake.complete_all();
    memory.maintain(std::time::Duration::ZERO);
    memory.empty_cache();
    assert_eq!(memory.memory_reserved(), 0, "all goes when the capture has ended");
    drop((on, on_other, stream, other));
    close(&fake, memory);
}

/// A stream that has joined an announced capture, and the default stream while a blocking one is
/// captured, cannot be waited for: what needs that goes another way, and the device is not lost.
#[test]
fn streams_beside_a_capture_lose_nothing() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let [side, other] = [(); 2].map(|()| memory.context().new_stream().expect("the fake works"));
    let stream = memory.context().per_thread_stream();
    let (on, on_side) = (memory.on(&stream).expect("known"), memory.on(&side).expect("known"));
    let on_other = memory.on(&other).expect("known");
    let on_null = memory.on(&memory.context().default_stream()).expect("known");
    let pool = memory.create_pool(PoolOptions::default());
    pool.prime(on.stream(), 4 * MIB).expect("room");
    drop(on_side.alloc_zeros::<u8>(30 << 20).expect("room"));
    drop(on_null.alloc_zeros::<u8>(60 << 20).expect("room"));
    let crossed = on_other.alloc_zeros::<u8>(3 << 20).expect("room");
    crossed.record_on(&side).expect("known");
    fake.complete_all();

    let capture = memory.begin_capture(&on, &pool);
    stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_RELAXED).expect("the fake captures");
    let mut held = on.alloc_zeros::<u8>(2 << 20).expect("primed");
    side.join(&stream).expect("the fork");
    drop(crossed);
    let lent = [30, 60].map(|size| on_other.allocate(size * MIB).expect("room elsewhere"));
    memory.empty_cache();
    memory.maintain(std::time::Duration::ZERO);
    drop(lent);
    let full = on_other.allocate(2000 * MIB).expect_err("more than there is");
    assert!(matches!(full, AllocError::OutOfMemory(_)), "{full}");
    stream.memset_zeros(&mut held).expect("captured");
    stream.join(&side).expect("the join");
    drop(end(&on));
    drop(capture);
    drop(on_other.allocate(30 * MIB).expect("the process goes on"));
    fake.complete_all();
    memory.maintain(std::time::Duration::ZERO);
    fake.complete_all();
    memory.maintain(std::time::Duration::ZERO);
    drop((held, pool));
    memory.empty_cache();
    assert_eq!((memory.memory_active(), memory.memory_reserved()), (0, 0));
    drop((on, on_side, on_other, on_null, stream, side, other));
    close(&fake, memory);
}

#[test]
fn joined_streams_give_back_within_the_capture() {
    let fake = Fake::fresh(asynchronous());
    let mut config = CudaAllocator::recommended_config(CudaSource::Virtual);
    config.graph_capture_record_stream_reuse = true;
    let backend = Cuda::new(0, &CudaOptions::default()).expect("the fake has a device");
    let memory = CudaAllocator::with(backend, config).expect("a valid configuration");
    let [stream, side] = [(); 2].map(|()| memory.context().new_stream().expect("the fake works"));
    let (on, on_side) = (memory.on(&stream).expect("known"), memory.on(&side).expect("known"));
    let pool = memory.create_pool(PoolOptions::default());
    pool.prime(on.stream(), 32 * MIB).expect("room");
    let mut target = on_side.alloc_zeros::<u8>(1000).expect("room");
    fake.complete_all();

    let capture = memory.begin_capture(&on, &pool);
    let beside = memory.begin_capture(&on_side, &pool);
    stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_GLOBAL).expect("the fake captures");
    let mut held = on.alloc_zeros::<u8>(32 << 20).expect("primed");
    let place = held.address();
    side.join(&stream).expect("the fork");
    side.memcpy_dtod(&held.view(..1000), &mut target).expect("captured");
    stream.memset_zeros(&mut held).expect("captured");
    drop(held);
    assert!(on.allocate(32 * MIB).is_err(), "the side stream is not joined");
    stream.join(&side).expect("the join");
    let again = on.allocate(32 * MIB).expect("joined");
    assert_eq!(again.address(), Some(place));
    drop(again);
    let graph = end(&on);
    drop((capture, beside));
    graph.launch().expect("the fake replays");
    fake.complete_all();
    drop((graph, target, pool, on, on_side, stream, side));
    close(&fake, memory);
}
