//! Who a stream is, and when its memory may be used again.

use std::sync::Arc;

use aquifer::CudaAllocator;

use crate::cuda::{Fake, Options};
use crate::{KIB, MIB, asynchronous, close, open};

#[test]
fn the_same_stream_costs_no_call() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let stream = memory.context().new_stream().expect("the fake works");
    let on = memory.on(&stream).expect("known");
    let warm = || {
        for size in [300, 20 * KIB, 3 * MIB, 30 * MIB] {
            drop(on.allocate(size).expect("room"));
        }
    };
    warm();
    fake.take_log();
    for _ in 0..100 {
        warm();
    }
    assert_eq!(fake.take_order(), "", "a hit calls nobody");
    assert_eq!(fake.calls("cuEventRecord"), 0);
    drop(on);
    drop(stream);
    close(&fake, memory);
}

#[test]
fn a_stream_is_found_again() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    let stream = memory.context().new_stream().expect("the fake works");
    let first = memory.on(&stream).expect("known").stream().index();
    let again = memory.on(&Arc::clone(&stream)).expect("known").stream().index();
    assert_eq!(first, again);
    let null = memory.on(&memory.context().default_stream()).expect("known");
    assert_eq!(null.stream().index(), memory.default_stream().index());
    assert_eq!(fake.calls("cuStreamGetId"), 1, "the driver is asked once");
    drop((null, stream));
    close(&fake, memory);
}

#[test]
fn a_stream_lives_as_long_as_it_is_known() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let streams = fake.live().streams;
    let stream = memory.context().new_stream().expect("the fake works");
    let mut buffer = memory.on(&stream).expect("known").alloc_zeros::<u8>(3 << 20).expect("room");
    stream.memset_zeros(&mut buffer).expect("the fake works");
    drop(buffer);
    let id = memory.on(&stream).expect("known").stream().raw().id();
    drop(stream);
    assert_eq!(fake.live().streams, streams + 1, "its memory waits for it");
    assert_eq!(memory.forget_idle_streams(), 1);
    assert_eq!(fake.live().streams, streams, "now it is destroyed");
    // The handle comes again, of another stream.
    let next = memory.context().new_stream().expect("the fake works");
    let known = memory.on(&next).expect("known");
    assert_ne!(known.stream().raw().id(), id);
    let used = fake.used_bytes(0);
    let held = known.allocate(3 << 20).expect("room");
    assert_eq!(fake.used_bytes(0), used, "it takes over what the other one left");
    fake.complete_all();
    drop((held, known, next));
    assert_eq!(memory.forget_idle_streams(), 1);
    close(&fake, memory);
}

#[test]
fn a_new_stream_sweeps_idle_ones() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    for _ in 0..50 {
        let stream = memory.context().new_stream().expect("the fake works");
        drop(memory.on(&stream).expect("known").alloc_zeros::<u8>(100).expect("room"));
    }
    assert!(fake.live().streams <= 3, "{:?}", fake.live());
    close(&fake, memory);
}

#[test]
fn drivers_without_numbers_know_streams_by_handle() {
    let fake = Fake::fresh(Options { stream_ids: false, ..Options::default() });
    let memory = open(&fake);
    let streams = [(); 2].map(|()| memory.context().new_stream().expect("the fake works"));
    let ids = streams.each_ref().map(|stream| memory.on(stream).expect("known").stream().index());
    assert_ne!(ids[0], ids[1]);
    let per_thread = memory.context().per_thread_stream();
    let here = memory.on(&per_thread).expect("known").stream().index();
    let there = std::thread::scope(|scope| {
        let there = scope.spawn(|| memory.on(&per_thread).expect("known").stream().index());
        there.join().expect("no panic")
    });
    assert_ne!(here, there);
    drop((streams, per_thread));
    close(&fake, memory);
}

#[test]
fn each_thread_has_its_per_thread_stream() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let per_thread = memory.context().per_thread_stream();
    let here = memory.on(&per_thread).expect("known");
    let mut buffer = here.alloc_zeros::<u32>(1 << 20).expect("room");
    per_thread.memset_zeros(&mut buffer).expect("the fake works");
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let there = memory.on(&per_thread).expect("known");
            assert_ne!(there.stream().index(), here.stream().index());
            // Used on this thread's stream too: freed, it waits for both.
            buffer.record_on(&per_thread).expect("known");
            let mine = there.alloc_zeros::<u32>(1 << 20).expect("room");
            (mine, buffer)
        });
        let (mine, buffer) = there.join().expect("no panic");
        drop(buffer);
        // Its thread is gone; its work is reached through the legacy stream.
        drop(mine);
    });
    memory.empty_cache();
    assert_eq!(memory.memory_reserved(), 0);
    drop(here);
    drop(per_thread);
    close(&fake, memory);
}

#[test]
fn another_stream_waits_on_the_device() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let [a, b] = [(); 2].map(|()| memory.context().new_stream().expect("the fake works"));
    let (on_a, on_b) = (memory.on(&a).expect("known"), memory.on(&b).expect("known"));
    let buffer = on_a.alloc_zeros::<u8>(30 << 20).expect("room");
    let place = buffer.address();
    drop(buffer);
    let used = fake.used_bytes(0);
    fake.take_log();
    let other = on_b.alloc_zeros::<u8>(30 << 20).expect("room");
    assert_eq!((other.address(), fake.used_bytes(0)), (place, used), "lent, not grown");
    assert_eq!(fake.calls("cuStreamWaitEvent"), 1);
    assert_eq!(fake.calls("cuEventRecord"), 1);
    assert_eq!(fake.calls("cuStreamSynchronize") + fake.calls("cuEventSynchronize"), 0);
    fake.complete_all();
    drop((other, on_a, on_b, a, b));
    close(&fake, memory);
}

#[test]
fn recorded_streams_are_waited_for() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let [a, b] = [(); 2].map(|()| memory.context().new_stream().expect("the fake works"));
    let on = memory.on(&a).expect("known");
    let known = memory.on(&b).expect("known");
    let mut target = known.alloc_zeros::<u8>(1000).expect("room");
    fake.complete_all();
    let buffer = on.clone_htod(&[7_u8; 1000]).expect("room");
    let place = buffer.address();
    a.synchronize().expect("the fake works");
    // The copy on `b` records it by itself.
    b.memcpy_dtod(&buffer, &mut target).expect("the fake copies");
    drop(buffer);
    assert!(memory.memory_active() > memory.memory_allocated(), "it waits for `b`");
    let next = on.clone_htod(&[9_u8; 1000]).expect("room");
    assert_ne!(next.address(), place, "`b` has not read it yet");
    memory.maintain(std::time::Duration::ZERO);
    fake.complete_all();
    memory.maintain(std::time::Duration::ZERO);
    assert_eq!(memory.memory_active(), memory.memory_allocated());
    assert_eq!(b.clone_dtoh(&target).expect("the fake copies"), [7; 1000]);
    drop((next, target, on, known, a, b));
    close(&fake, memory);
}

#[test]
fn a_stream_that_nobody_told_of_is_waited_for() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let [a, b] = [(); 2].map(|()| memory.context().new_stream().expect("the fake works"));
    let buffer = memory.on(&a).expect("known").clone_htod(&[7_u8; 1000]).expect("room");
    a.synchronize().expect("the fake works");
    // Slow, and right: the copy is done when the call returns.
    assert_eq!(b.clone_dtoh(&buffer).expect("the fake copies"), [7; 1000]);
    assert_eq!(fake.pending(), 0);
    drop((buffer, a, b));
    close(&fake, memory);
}

#[test]
fn events_are_used_again() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let [a, b] = [(); 2].map(|()| memory.context().new_stream().expect("the fake works"));
    let on = memory.on(&a).expect("known");
    memory.on(&b).expect("known");
    for _ in 0..200 {
        let held: Vec<_> = (0..64).map(|_| on.alloc_zeros::<u8>(5000).expect("room")).collect();
        held.iter().for_each(|buffer| buffer.record_on(&b).expect("known"));
        drop(held);
        fake.complete_all();
        memory.maintain(std::time::Duration::ZERO);
    }
    let created = fake.calls("cuEventCreate");
    assert!(created <= 8, "{created} events for {} marks", fake.calls("cuEventRecord"));
    drop((on, a, b));
    close(&fake, memory);
}

/// Allocators of one device are told of an idle stream one by one; it goes with the last of them.
#[test]
fn a_stream_is_kept_for_each_allocator() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let config = memory.config().clone();
    let other = CudaAllocator::with(memory.backend().clone(), config).expect("valid");
    let streams = fake.live().streams;
    let stream = memory.context().new_stream().expect("the fake works");
    let (on, there) = (memory.on(&stream).expect("known"), other.on(&stream).expect("known"));
    drop((on.alloc_zeros::<u8>(3 << 20).expect("room"), on));
    drop((there.alloc_zeros::<u8>(3 << 20).expect("room"), there));
    drop(stream);
    assert_eq!(memory.forget_idle_streams(), 1);
    other.empty_cache();
    assert_eq!(fake.live().streams, streams + 1, "the other allocator may wait for it");
    assert_eq!(other.forget_idle_streams(), 1);
    assert_eq!(fake.live().streams, streams);
    fake.complete_all();
    other.empty_cache();
    drop(other);
    close(&fake, memory);
}

/// The stream behind it is the calling thread's, whoever asked first.
#[test]
fn a_per_thread_stream_is_that_of_who_allocates() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let per_thread = memory.context().per_thread_stream();
    let on = memory.on(&per_thread).expect("known");
    let mut used = on.alloc_zeros::<u8>(1000).expect("room");
    per_thread.memset_zeros(&mut used).expect("submitted");
    drop(used);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let buffer = on.clone_htod(&[7_u8; 1000]).expect("room");
            per_thread.synchronize().expect("the fake works");
            // What the other thread's stream has not done yet is nothing to these bytes.
            fake.complete_all();
            assert_eq!(per_thread.clone_dtoh(&buffer).expect("a copy"), [7; 1000]);
            assert_ne!(buffer.allocation().stream_index(), on.stream().index());
        });
    });
    drop((on, per_thread));
    close(&fake, memory);
}

/// Threads come and go; their streams' places serve others.
#[test]
fn streams_of_threads_that_are_gone_are_forgotten() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    let per_thread = memory.context().per_thread_stream();
    let mut most = 0;
    for _ in 0..100 {
        std::thread::scope(|scope| {
            let index = scope.spawn(|| {
                let on = memory.on(&per_thread).expect("known");
                drop(on.alloc_zeros::<u8>(3 << 20).expect("room"));
                on.stream().index()
            });
            most = most.max(index.join().expect("no panic"));
        });
    }
    assert!(most < 10, "{most} places");
    assert!(memory.memory_reserved() < 100 * MIB, "what they left serves others");
    drop(per_thread);
    close(&fake, memory);
}

/// Streams may be forgotten by hand, too: the place is another's then, the stream is known anew.
#[test]
fn what_is_forgotten_by_hand_is_known_anew() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    let [first, next] = [(); 2].map(|()| memory.context().new_stream().expect("the fake works"));
    drop(memory.on(&first).expect("known").allocate(MIB).expect("room"));
    let raw = memory.on(&first).expect("known").stream().raw();
    memory.forget_stream(raw);
    let on_next = memory.on(&next).expect("known");
    drop(on_next.allocate(MIB).expect("room"));
    drop(memory.on(&first).expect("known").allocate(MIB).expect("it is known anew"));
    let raw = memory.on(&first).expect("known").stream().raw();
    memory.forget_stream(raw);
    drop(first);
    memory.forget_idle_streams();
    drop(on_next.allocate(MIB).expect("nobody forgot this one"));
    drop((on_next, next));
    close(&fake, memory);
}
