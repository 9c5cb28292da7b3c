//! Pinned memory: copies beside the CPU, and no byte handed out before they are done.

use std::time::Duration;

use aquifer::backend::{Cuda, CudaOptions};
use aquifer::{Config, CudaAllocator};

use crate::cuda::{Fake, Options};
use crate::{KIB, MIB, asynchronous, close, open};

#[test]
fn copies_run_beside_the_cpu() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let stream = memory.context().new_stream().expect("the fake works");
    let on = memory.on(&stream).expect("known");
    let mut source = memory.alloc_pinned::<u32>(1000).expect("room");
    source.slice_mut().expect("idle").iter_mut().zip(0..).for_each(|(value, at)| *value = at);
    let mut buffer = on.alloc_zeros::<u32>(1000).expect("room");
    let mut back = memory.alloc_pinned::<u32>(1000).expect("room");
    on.copy_to_device(&mut source, &mut buffer).expect("submitted");
    on.copy_to_host(&buffer, &mut back).expect("submitted");
    assert!(fake.pending() > 0, "nobody has waited");
    assert_eq!((source.is_settled(), back.is_settled()), (Ok(false), Ok(false)));
    // Reading waits for its own copy.
    assert_eq!(back.slice().expect("the fake works")[999], 999);
    assert_eq!((source.is_settled(), back.is_settled()), (Ok(true), Ok(true)));
    drop((source, back, buffer, on, stream));
    close(&fake, memory);
}

#[test]
fn what_a_copy_reads_is_not_handed_out() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let stream = memory.context().new_stream().expect("the fake works");
    let on = memory.on(&stream).expect("known");
    let mut buffer = on.alloc_zeros::<u8>(2 << 20).expect("room");
    let mut source = memory.alloc_pinned::<u8>(2 << 20).expect("room");
    source.slice_mut().expect("idle").fill(7);
    let place = source.slice().expect("idle").as_ptr();
    on.copy_to_device(&mut source, &mut buffer).expect("submitted");
    drop(source);
    let mut next = memory.alloc_pinned::<u8>(2 << 20).expect("room");
    assert_ne!(next.slice().expect("idle").as_ptr(), place, "the copy has not read it yet");
    next.slice_mut().expect("idle").fill(9);
    fake.complete_all();
    assert_eq!(stream.clone_dtoh(&buffer.view(..10)).expect("a copy"), [7; 10]);
    memory.pinned().maintain(Duration::ZERO);
    memory.pinned().maintain(Duration::ZERO);
    let again = memory.alloc_pinned::<u8>(2 << 20).expect("room");
    assert_eq!(again.slice().expect("idle").as_ptr(), place, "now it has");
    drop((next, again, buffer, on, stream));
    close(&fake, memory);
}

#[test]
fn rounding_wastes_little() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    let pinned = memory.pinned();
    let sizes = [5 * KIB, 33 * KIB, 65 * KIB, 700 * KIB, MIB + 1, 3 * MIB + 5, 33 * MIB, 65 * MIB];
    let held = sizes.map(|size| pinned.allocate(size).expect("room"));
    for (size, held) in sizes.iter().zip(&held) {
        assert!(held.capacity() <= size + size / 8, "{} for {size}", held.capacity());
    }
    let stats = pinned.memory_stats();
    let (live, reserved) = (sizes.iter().sum::<u64>(), stats.reserved_bytes.all.current);
    assert!(reserved <= live + live / 8, "{reserved} bytes pinned for {live}");
    assert_eq!(memory.memory_reserved(), 0, "books of its own");
    assert_eq!(fake.live().host_allocations, stats.segment.all.current);
    drop(held);
    assert!(pinned.empty_cache() > 0);
    assert_eq!(fake.live().host_allocations, 0);
    close(&fake, memory);
}

#[test]
fn pinned_memory_has_a_cap_and_ages() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    memory.pinned().set_memory_limit(Some(64 * MIB));
    let error = memory.alloc_pinned::<u8>(65 << 20).expect_err("above the cap");
    assert!(error.to_string().contains("limit 64"), "{error}");
    memory.maintain(Duration::from_secs(1000));
    drop(memory.alloc_pinned::<u8>(30 << 20).expect("room"));
    assert_eq!(memory.maintain(Duration::from_secs(1030)), 0, "idle for half a minute");
    assert!(memory.maintain(Duration::from_secs(1062)) >= 30 * MIB, "idle for a minute");
    assert_eq!(fake.live().host_allocations, 0);
    close(&fake, memory);
}

#[test]
fn cudarc_copies_pinned_memory_too() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let stream = memory.context().new_stream().expect("the fake works");
    let on = memory.on(&stream).expect("known");
    let mut pinned = memory.alloc_pinned::<u16>(300).expect("room");
    pinned.slice_mut().expect("idle").fill(5);
    let mut buffer = on.clone_htod(&pinned).expect("room");
    assert_eq!(fake.pending(), 0, "its copies are waited for");
    stream.memset_zeros(&mut buffer).expect("cleared");
    stream.memcpy_dtoh(&buffer, &mut pinned).expect("a copy");
    assert_eq!(pinned.slice().expect("idle"), [0; 300]);
    drop((pinned, buffer, on, stream));
    close(&fake, memory);
}

#[test]
fn a_stream_that_copied_may_go() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let stream = memory.context().new_stream().expect("the fake works");
    let on = memory.on(&stream).expect("known");
    let mut source = memory.alloc_pinned::<u8>(MIB as usize).expect("room");
    let mut buffer = on.alloc_zeros::<u8>(MIB as usize).expect("room");
    on.copy_to_device(&mut source, &mut buffer).expect("submitted");
    drop((source, buffer, on, stream));
    assert_eq!(memory.forget_idle_streams(), 1);
    fake.complete_all();
    memory.pinned().empty_cache();
    memory.empty_cache();
    assert_eq!((memory.memory_reserved(), fake.live().host_allocations), (0, 0));
    close(&fake, memory);
}

/// An allocator whose pinned memory is configured as PyTorch's strings say.
fn configured(fake: &Fake, settings: &str) -> CudaAllocator {
    let _ = fake;
    let backend = Cuda::new(0, &CudaOptions::default()).expect("the fake has a device");
    let config = Config::from_torch_conf(settings).expect("valid settings");
    CudaAllocator::with(backend, config).expect("a valid configuration")
}

/// B2, B5: rounding to powers of two, up to a threshold.
#[test]
fn powers_of_two_as_in_pytorch() {
    let fake = Fake::fresh(Options::default());
    let memory = configured(&fake, "");
    let held = memory.alloc_pinned::<f32>(10_240).expect("room");
    let allocated = |memory: &CudaAllocator| memory.pinned().memory_allocated();
    assert_eq!(allocated(&memory), 16_384 * 4);
    let more = memory.alloc_pinned::<f32>(20_480).expect("room");
    assert_eq!(allocated(&memory), (16_384 + 32_768) * 4);
    drop((held, more));
    assert_eq!(allocated(&memory), 0);
    close(&fake, memory);
    let memory = configured(&fake, "pinned_max_round_threshold_mb:128");
    let held = memory.alloc_pinned::<u8>(129 << 20).expect("room");
    assert!(memory.pinned().memory_reserved() < 256 * MIB);
    drop(held);
    close(&fake, memory);
}

/// B6 to B8: what is too large to be cached goes as it is freed.
#[test]
fn large_pinned_memory_is_not_cached() {
    let fake = Fake::fresh(asynchronous());
    for (settings, size, rounded, cached) in [
        ("pinned_max_cached_size_mb:32", 64, true, false),
        ("pinned_max_cached_size_mb:256,pinned_max_round_threshold_mb:128", 150, false, true),
        ("pinned_max_cached_size_mb:64,pinned_max_round_threshold_mb:256", 100, false, false),
    ] {
        let memory = configured(&fake, settings);
        let held = memory.alloc_pinned::<u8>(size << 20).expect("room");
        // Above the size that is cached nothing is rounded either, by more than an eighth.
        let reserved = memory.pinned().memory_reserved();
        assert!(rounded || reserved <= (size as u64) * MIB / 8 * 9, "{settings}: {reserved}");
        drop(held);
        assert_eq!(memory.pinned().memory_reserved() > 0, cached, "{settings}");
        assert_eq!(fake.live().host_allocations > 0, cached, "{settings}");
        close(&fake, memory);
    }
    // Copies first.
    let memory = configured(&fake, "pinned_max_cached_size_mb:1");
    let stream = memory.context().new_stream().expect("the fake works");
    let on = memory.on(&stream).expect("known");
    let mut buffer = on.alloc_zeros::<u8>(2 << 20).expect("room");
    let mut source = memory.alloc_pinned::<u8>(2 << 20).expect("room");
    on.copy_to_device(&mut source, &mut buffer).expect("submitted");
    drop(source);
    assert_eq!(fake.live().host_allocations, 1);
    memory.maintain(Duration::ZERO);
    fake.complete_all();
    memory.maintain(Duration::ZERO);
    assert_eq!(fake.live().host_allocations, 0);
    drop((buffer, on, stream));
    close(&fake, memory);
}

/// B3: what is active comes down to nothing, after a copy too.
#[test]
fn active_pinned_memory_returns_to_nothing() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    drop(memory.alloc_pinned::<u8>(5000).expect("room"));
    let active = |memory: &CudaAllocator| memory.pinned().memory_active();
    assert_eq!(active(&memory), 0);
    let stream = memory.context().new_stream().expect("the fake works");
    let on = memory.on(&stream).expect("known");
    let mut source = memory.alloc_pinned::<u8>(5000).expect("room");
    let mut buffer = on.alloc_zeros::<u8>(5000).expect("room");
    on.copy_to_device(&mut source, &mut buffer).expect("submitted");
    drop(source);
    assert_eq!(active(&memory), 5120);
    memory.maintain(Duration::ZERO);
    fake.complete_all();
    memory.maintain(Duration::ZERO);
    assert_eq!(active(&memory), 0);
    drop((buffer, on, stream));
    close(&fake, memory);
}

/// B12: used on a second device, it is not reused early.
#[test]
fn two_devices_copy_from_one_buffer() {
    let fake = Fake::fresh(Options { devices: 2, ..asynchronous() });
    let memory = open(&fake);
    let second = CudaAllocator::open(1).expect("the fake has two");
    let stream = second.context().new_stream().expect("the fake works");
    let on = second.on(&stream).expect("known");
    let mut source = memory.alloc_pinned::<u8>(1000).expect("room");
    source.slice_mut().expect("idle").fill(3);
    // cudarc waits for it: the second device's streams are not the first one's to record.
    let buffer = on.clone_htod(&source).expect("room");
    drop(source);
    let mut next = memory.alloc_pinned::<u8>(1000).expect("room");
    next.slice_mut().expect("idle").fill(9);
    assert_eq!(stream.clone_dtoh(&buffer).expect("a copy"), [3; 1000]);
    drop((next, buffer, on, stream, second));
    close(&fake, memory);
}

/// The other device's default stream has the handle of the own one.
#[test]
fn copies_of_another_device_are_waited_for() {
    let fake = Fake::fresh(Options { devices: 2, ..asynchronous() });
    let memory = open(&fake);
    let second = CudaAllocator::open(1).expect("the fake has two");
    let stream = second.context().default_stream();
    let on = second.on(&stream).expect("known");
    let mut source = memory.alloc_pinned::<u8>(1000).expect("room");
    source.slice_mut().expect("idle").fill(3);
    let mut buffer = on.alloc_zeros::<u8>(1000).expect("room");
    on.copy_to_device(&mut source, &mut buffer).expect("submitted");
    source.slice_mut().expect("idle").fill(9);
    assert_eq!(stream.clone_dtoh(&buffer).expect("a copy"), [3; 1000]);
    let mut back = memory.alloc_pinned::<u8>(1000).expect("room");
    on.copy_to_host(&buffer, &mut back).expect("submitted");
    assert_eq!(back.slice().expect("idle"), [3; 1000]);
    drop((source, back, buffer, on, stream, second));
    close(&fake, memory);
}

/// The stream is known to the allocator that the buffer is of, or it could go before the buffer.
#[test]
fn copies_by_another_allocator_keep_their_stream() {
    let fake = Fake::fresh(asynchronous());
    let (memory, other) = (open(&fake), open(&fake));
    let stream = other.context().new_stream().expect("the fake works");
    let on = other.on(&stream).expect("known");
    let mut source = memory.alloc_pinned::<u8>(1000).expect("room");
    let mut buffer = on.alloc_zeros::<u8>(1000).expect("room");
    on.copy_to_device(&mut source, &mut buffer).expect("submitted");
    drop((source, buffer, on, stream));
    other.forget_idle_streams();
    drop(other);
    memory.maintain(Duration::ZERO);
    fake.complete_all();
    memory.maintain(Duration::ZERO);
    assert_eq!(memory.pinned().memory_active(), 0);
    close(&fake, memory);
}
