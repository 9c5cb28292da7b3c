//! Recordings: work that is written down for a stream and not yet in the device's hands; and the
//! places that a request may ask for.

use std::panic::{AssertUnwindSafe, catch_unwind};

use aquifer::{AllocError, PoolOptions};

use crate::Subject;
use crate::support::{Device, KIB, MIB, assert_emptied};

pub(crate) fn a_recording_has_its_memory_back_at_once<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let stream = allocator.stream(1);
    let recording = allocator.begin_recording(&stream);
    let take = || allocator.allocate_on(&stream, 3 * MIB).expect("room");
    let first = take();
    let address = first.address();
    drop(first);
    assert_eq!(take().address(), address);
    drop(recording);
    assert_eq!(take().address(), address, "and after its end");
    assert_emptied(&allocator);
}

pub(crate) fn others_get_nothing_of_an_open_recording<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let (stream, other) = (allocator.stream(1), allocator.stream(2));
    let recording = allocator.begin_recording(&stream);
    let held = allocator.allocate_on(&stream, 20 * MIB).expect("room");
    let address = held.address();
    drop(held);
    let taken = allocator.allocate_on(&other, 20 * MIB).expect("room");
    assert_ne!(taken.address(), address, "the recording may still use it");
    assert_eq!(device.used(), 40 * MIB);
    drop(recording);
    let again = allocator.allocate_on(&other, 20 * MIB).expect("room");
    assert_eq!(device.used(), 40 * MIB, "the end of the recording makes it everyone's");
    drop((taken, again));
    assert_emptied(&allocator);
}

pub(crate) fn what_was_freed_before_a_recording_is_lent<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let (stream, other) = (allocator.stream(1), allocator.stream(2));
    drop(allocator.allocate_on(&stream, 20 * MIB).expect("room"));
    let recording = allocator.begin_recording(&stream);
    let taken = allocator.allocate_on(&other, 20 * MIB).expect("room");
    assert_eq!(device.used(), 20 * MIB);
    drop((taken, recording));
    assert_emptied(&allocator);
}

pub(crate) fn a_use_in_a_recording_is_waited_for<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let stream = allocator.stream(1);
    let held = allocator.allocate(3 * MIB).expect("room");
    let address = held.address();
    let recording = allocator.begin_recording(&stream);
    allocator.record_stream(&held, &stream);
    drop(held);
    assert_eq!((allocator.memory_allocated(), allocator.memory_active()), (0, 3 * MIB));
    assert_ne!(allocator.allocate(3 * MIB).expect("room").address(), address);
    drop(recording);
    assert_eq!(allocator.memory_active(), 0, "its end completes the free, with no event");
    assert_eq!(allocator.allocate(3 * MIB).expect("room").address(), address);
    assert_emptied(&allocator);
}

pub(crate) fn a_trim_leaves_open_recordings_alone<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let stream = allocator.stream(1);
    let unrelated = allocator.allocate(20 * MIB).expect("room");
    let shared = allocator.allocate(20 * MIB).expect("room");
    drop(allocator.allocate_on(&stream, 40 * KIB).expect("room"));
    let recording = allocator.begin_recording(&stream);
    let own = allocator.allocate_on(&stream, 20 * MIB).expect("room");
    allocator.record_stream(&shared, &stream);
    drop((own, shared, unrelated));
    let releasable = allocator.releasable_bytes();
    assert_eq!(allocator.empty_cache(), releasable, "exact, and without an endless wait");
    assert!(device.used() >= 40 * MIB, "what the recording may use is still there");
    allocator.verify();
    drop(recording);
    assert_emptied(&allocator);
}

pub(crate) fn exhaustion_beside_a_recording_is_an_error<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.with(64 * MIB, |_| {});
    let stream = allocator.stream(1);
    let recording = allocator.begin_recording(&stream);
    drop(allocator.allocate_on(&stream, 40 * MIB).expect("room"));
    let refused = allocator.allocate(40 * MIB);
    assert!(matches!(refused, Err(AllocError::OutOfMemory(_))), "{refused:?}");
    assert!(allocator.allocate_on(&stream, 40 * MIB).is_ok(), "its own stream can have it");
    drop(recording);
    assert!(allocator.allocate(40 * MIB).is_ok());
    assert_emptied(&allocator);
}

pub(crate) fn the_error_says_what_waits_for_a_recording<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.with(64 * MIB, |_| {});
    let stream = allocator.stream(1);
    let held = allocator.allocate(40 * MIB).expect("room");
    let recording = allocator.begin_recording(&stream);
    allocator.record_stream(&held, &stream);
    drop(held);
    let text = allocator.allocate(40 * MIB).expect_err("it waits").to_string();
    assert!(text.contains("recorded and not submitted; submit it"), "{text}");
    drop(recording);
    let text = allocator.allocate(80 * MIB).expect_err("too much").to_string();
    assert!(text.contains("the request alone exceeds the device"), "{text}");
    assert_emptied(&allocator);
}

pub(crate) fn a_recording_stream_cannot_be_forgotten<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let stream = allocator.stream(1);
    let recordings = [(); 2].map(|()| allocator.begin_recording(&stream));
    let forget = || allocator.forget_stream(1);
    assert!(catch_unwind(AssertUnwindSafe(forget)).is_err());
    let [first, second] = recordings;
    drop(first);
    drop(allocator.allocate_on(&stream, 20 * MIB).expect("room"));
    assert_eq!(allocator.releasable_bytes(), 0, "the second one is open");
    drop(second);
    forget();
    assert_emptied(&allocator);
}

pub(crate) fn segments_can_be_avoided<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let base = |allocation: &aquifer::Allocation<D>| {
        allocation.address().expect("an address") - allocation.offset()
    };
    // A program of some size: the segments of the smallest ones hold a block or two.
    let _held = allocator.allocate(24 * MIB).expect("room");
    for size in [4 * KIB, 2 * MIB] {
        let inputs = [(); 2].map(|()| allocator.allocate(size).expect("room"));
        assert_eq!(base(&inputs[0]), base(&inputs[1]), "they share a segment");
        let avoid = || allocator.request(size).avoiding(&inputs).allocate().expect("room");
        let output = avoid();
        assert_ne!(base(&output), base(&inputs[0]));
        let beside = avoid();
        assert_eq!(base(&beside), base(&output), "one more segment is enough");
        let nothing = allocator.allocate(0).expect("nothing");
        let same = allocator.request(size).avoiding([&nothing]).allocate().expect("room");
        assert_eq!(base(&same), base(&inputs[0]), "nothing is in no segment");
        allocator.verify();
    }
}

pub(crate) fn a_pool_can_be_named<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let [named, routed] = [0; 2].map(|_| allocator.create_pool(PoolOptions::default()));
    let route = routed.route_thread();
    let held = allocator.request(MIB).pool(&named).allocate().expect("room");
    let snapshot = allocator.memory_snapshot();
    assert!(snapshot.segments.iter().all(|segment| segment.pool_id == named.id()));
    let (_, stranger) = subject.fresh();
    let foreign = || drop(stranger.request(MIB).pool(&named));
    assert!(catch_unwind(AssertUnwindSafe(foreign)).is_err(), "a pool of another allocator");
    drop((held, route));
}

pub(crate) fn exclusive_segments_are_made_to_measure<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.with(512 * MIB, |_| {});
    let pool = allocator.create_pool(PoolOptions { exclusive: true, ..PoolOptions::default() });
    let granularity = allocator.backend().limits().granularity;
    let take = |size| allocator.request(size).pool(&pool).allocate().expect("room");
    let mut expected = 0;
    let mut held = Vec::new();
    for size in [1, 4 * KIB, 65 * KIB, MIB, 9 * MIB, 33 * MIB] {
        let before = device.used();
        let one = take(size);
        assert_eq!(one.offset(), 0, "alone in its segment");
        let cost = device.used() - before;
        assert!(cost <= (size + size / 8).next_multiple_of(granularity).max(granularity), "{size}");
        expected += cost;
        held.push(one);
    }
    drop(held);
    assert_eq!(take(33 * MIB - KIB).capacity(), 36 * MIB, "a freed one serves its like");
    assert_eq!(device.used(), expected);
    // Below the granularity too, and just above it.
    for size in [1, granularity + 1] {
        drop(take(size));
        let before = device.used();
        drop(take(size));
        assert_eq!(device.used(), before, "{size} bytes are cached");
    }
    let tiny = take(2 * granularity);
    assert!(tiny.capacity() <= 4 * granularity, "a small request gets no large segment");
    drop(tiny);
    assert_emptied(&allocator);
}
