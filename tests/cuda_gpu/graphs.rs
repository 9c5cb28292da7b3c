//! Captures into a primed pool, and their replays at the same addresses.

use aquifer::PoolOptions;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use crate::fixture::{Counter, Device, blank, pick};
use crate::support::MIB;

#[test]
fn replays_find_their_addresses_and_nobody_else_has_them() {
    let device = Device::new();
    let (memory, on) = (&device.memory, device.stream());
    let words = pick(4, 2) * MIB as usize / 4;
    let mut counter = Counter::new(&on);
    let mut output = on.alloc_zeros::<u32>(words).expect("room");
    let pool = memory.create_pool(PoolOptions::default());
    pool.prime(on.stream(), 4 * words as u64 * 4).expect("room");
    on.cuda_stream().synchronize().expect("the device is there");

    let asked = memory.memory_stats().num_device_alloc;
    let capture = memory.begin_capture(&on, &pool);
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    on.cuda_stream().begin_capture(mode).expect("a capture");
    let mut addresses = Vec::new();
    for seed in [7, 8, 9] {
        let mut temporary = blank(&on, words);
        addresses.push(temporary.address());
        device.words.stamp(&on, &mut temporary, seed);
        device.words.check(&on, &temporary, seed, &mut counter);
        on.cuda_stream().memcpy_dtod(&temporary, &mut output).expect("a copy");
    }
    let graph = on.cuda_stream().end_capture(CUgraphInstantiate_flags(0));
    let graph = graph.expect("nothing broke the capture").expect("there is work in it");
    drop(capture);
    assert_eq!(memory.memory_stats().num_device_alloc, asked, "asked for memory in a capture");
    assert_eq!(addresses[0], addresses[1], "a temporary's bytes serve the next one");

    // Others come and go, and what the pool holds is no business of theirs.
    for round in 0..pick(50, 10_u32) {
        let mut other = blank(&on, words);
        let theirs = other.address()..other.address() + words as u64 * 4;
        assert!(addresses.iter().all(|address| !theirs.contains(address)));
        device.words.stamp(&on, &mut other, round);
        device.words.fill(&on, &mut output, 0);
        graph.launch().expect("a replay");
        device.words.check(&on, &output, 9, &mut counter);
        device.words.check(&on, &other, round, &mut counter);
        memory.empty_cache();
    }
    assert_eq!(counter.wrong(), 0);
    on.cuda_stream().synchronize().expect("the device is there");
    drop((graph, pool, output, counter, on));
    device.finish();
}

#[test]
fn a_capture_that_is_given_up_breaks_nothing() {
    let device = Device::new();
    let (memory, on) = (&device.memory, device.stream());
    let pool = memory.create_pool(PoolOptions::default());
    pool.prime(on.stream(), MIB).expect("room");
    for _ in 0..3 {
        let capture = memory.begin_capture(&on, &pool);
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        on.cuda_stream().begin_capture(mode).expect("a capture");
        let mut temporary = blank(&on, 1000);
        device.words.stamp(&on, &mut temporary, 1);
        // More than the pool has: it is refused, and the driver is not asked.
        on.allocate(1 << 40).expect_err("nobody has so much");
        drop(on.cuda_stream().end_capture(CUgraphInstantiate_flags(0)).expect("it is sound"));
        drop((capture, temporary));
        let mut counter = Counter::new(&on);
        let mut buffer = blank(&on, 1000);
        device.words.stamp(&on, &mut buffer, 5);
        device.words.check(&on, &buffer, 5, &mut counter);
        assert_eq!(counter.wrong(), 0);
    }
    drop((pool, on));
    device.finish();
}
