//! Pinned memory: copies beside the CPU, and no byte handed out before they are done.

use std::time::Duration;

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
