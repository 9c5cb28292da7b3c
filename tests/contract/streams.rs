//! Reuse by the same stream and by others, and streams that come and go.

use std::panic::{AssertUnwindSafe, catch_unwind};

use aquifer::Config;
use aquifer::backend::Sim;

use crate::Subject;
use crate::support::{
    Device, MIB, assert_emptied, assert_nothing_held, asynchronous_virtual_sim, harvest, is_done,
};

pub(crate) fn the_same_stream_reuses_at_once<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let stream = allocator.stream(3);
    for size in [5000, 3 * MIB, 12 * MIB] {
        let first = allocator.allocate_on(&stream, size).expect("room");
        let address = first.address();
        drop(first);
        let again = allocator.allocate_on(&stream, size).expect("room");
        assert_eq!(again.address(), address);
    }
}

pub(crate) fn a_hit_makes_no_call(subject: &Subject<Sim>) {
    let (sim, allocator) = subject.fresh();
    let streams = [0, 1, 2].map(|raw| allocator.stream(raw));
    let warm = [0, 1, 2].map(|at| allocator.allocate_on(&streams[at], 12 * MIB).expect("room"));
    drop(warm);
    let before = sim.calls();
    for round in 0..100 {
        let stream = &streams[round % 3];
        let held = allocator.allocate_on(stream, 3 * MIB).expect("cached");
        drop(allocator.allocate_on(stream, 5 * MIB).expect("cached"));
        drop(held);
    }
    assert_eq!(sim.calls(), before);
}

/// Memory never runs out beside a free block, whatever stream it was for.
pub(crate) fn other_streams_reuse_what_is_free<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.with(64 * MIB, |_| {});
    let (one, two) = (allocator.stream(1), allocator.stream(2));
    // One block pins the segment, so that it cannot go back to the device.
    let pins = allocator.allocate_on(&one, 12 * MIB).expect("room");
    let large = allocator.allocate_on(&one, 45 * MIB).expect("room");
    let work = device.sim().map(|sim| sim.submit(1));
    drop(large);
    let taken = allocator.allocate_on(&two, 45 * MIB).expect("it is free on another stream");
    if let Some((sim, work)) = device.sim().zip(work) {
        assert!(sim.is_ordered(work, 2), "stream 2 would run into the work of stream 1");
    }
    allocator.verify();
    drop((pins, taken));
    assert_emptied(&allocator);
}

pub(crate) fn recorded_streams_are_waited_for(subject: &Subject<Sim>) {
    let (sim, allocator) = subject.fresh();
    let user = allocator.stream(1);
    let held = allocator.allocate(30 * MIB).expect("room");
    let address = held.address();
    allocator.record_stream(&held, &user);
    allocator.record_stream(&held, &user);
    let work = sim.submit(1);
    drop(held);
    assert_eq!((allocator.memory_allocated(), allocator.memory_active()), (0, 30 * MIB));
    let next = allocator.allocate(30 * MIB).expect("room");
    assert!(next.address() != address || sim.is_ordered(work, 0), "used under running work");
    assert!(!is_done(&sim, work), "the host need not have waited");
    drop(next);
    sim.complete(1);
    harvest(&allocator);
    sim.complete_all();
    harvest(&allocator);
    assert_eq!(allocator.memory_active(), 0);
    allocator.verify();
}

/// A stream that waits on the device for another one says nothing about a third.
pub(crate) fn a_wait_of_one_stream_is_not_one_of_all(subject: &Subject<Sim>) {
    let (sim, allocator) = subject.fresh();
    let streams = [0, 1, 2].map(|raw| allocator.stream(raw));
    let used = allocator.allocate(12 * MIB).expect("room");
    let marker = allocator.allocate_on(&streams[1], 5000).expect("room");
    allocator.record_stream(&used, &streams[1]);
    allocator.record_stream(&marker, &streams[0]);
    let work = sim.submit(1);
    drop((used, marker));
    // An event of stream 0 is recorded and completes, before stream 0 waits for stream 1.
    harvest(&allocator);
    sim.complete(0);
    harvest(&allocator);
    let part = allocator.allocate(3 * MIB).expect("stream 0 waits for stream 1 and has it");
    let rest = allocator.allocate_on(&streams[2], 9 * MIB).expect("room");
    let address = rest.address().expect("an address");
    let start = part.address().expect("an address");
    let shares = start < address && address < start + 12 * MIB;
    assert!(!shares || sim.is_ordered(work, 2), "stream 2 runs into the work of stream 1");
    sim.complete_all();
}

pub(crate) fn events_are_recorded_lazily(subject: &Subject<Sim>) {
    let (sim, allocator) = subject.fresh();
    let user = allocator.stream(1);
    let batch = u64::from(Config::default().event_batch_count);
    let held: Vec<_> = (0..batch - 1).map(|_| allocator.allocate(5000).expect("room")).collect();
    held.iter().for_each(|allocation| allocator.record_stream(allocation, &user));
    drop(held);
    assert_eq!(sim.calls().record, 0, "nobody asked for the memory");
    let many: Vec<_> = (0..4 * batch).map(|_| allocator.allocate(5000).expect("room")).collect();
    many.iter().for_each(|allocation| allocator.record_stream(allocation, &user));
    drop(many);
    let recorded = sim.calls().record;
    assert!((1..=5).contains(&recorded), "{recorded} events for {} frees", 5 * batch - 1);
}

pub(crate) fn a_stream_that_goes_strands_nothing<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.with(64 * MIB, |_| {});
    let stream = allocator.stream(7);
    let pins = allocator.allocate_on(&stream, 5000).expect("room");
    drop(allocator.allocate_on(&stream, 40 * MIB).expect("room"));
    device.sim().map(|sim| sim.submit(7));
    allocator.forget_stream(7);
    allocator.verify();
    let serves = allocator.allocate(40 * MIB).expect("its memory serves others");
    drop((serves, pins));
    assert_emptied(&allocator);
    allocator.forget_stream(7);
    allocator.forget_stream(99);
    allocator.verify();
}

/// Blocks that wait for a stream when it goes, with no event recorded yet.
pub(crate) fn frees_before_a_stream_goes_strand_nothing<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let stream = allocator.stream(7);
    let held = allocator.allocate(12 * MIB).expect("room");
    allocator.record_stream(&held, &stream);
    device.sim().map(|sim| sim.submit(7));
    drop(held);
    allocator.forget_stream(7);
    allocator.verify();
    let before = device.sim().map(|sim| sim.calls().record);
    device.sim().into_iter().for_each(Sim::complete_all);
    harvest(&allocator);
    assert_eq!(device.sim().map(|sim| sim.calls().record), before, "a stream that is gone");
    assert_eq!(allocator.memory_active(), 0, "the last event of the stream covers it");
    assert_emptied(&allocator);
}

pub(crate) fn a_new_stream_takes_the_place_over<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let old = allocator.stream(7);
    let first = allocator.allocate_on(&old, 12 * MIB).expect("room");
    let address = first.address();
    let work = device.sim().map(|sim| sim.submit(7));
    drop(first);
    allocator.forget_stream(7);
    let new = allocator.stream(8);
    assert_eq!((new.index(), new.raw()), (old.index(), 8));
    let again = allocator.allocate_on(&new, 12 * MIB).expect("room");
    assert_eq!(again.address(), address);
    if let Some((sim, work)) = device.sim().zip(work) {
        assert!(sim.is_ordered(work, 8), "the new stream runs into the work of the old one");
    }
    let number = allocator.stream(9).index();
    assert_ne!(number, new.index(), "one place, one stream");
    drop(again);
    assert_emptied(&allocator);
}

pub(crate) fn handles_of_forgotten_streams_are_misuse<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let old = allocator.stream(7);
    allocator.forget_stream(7);
    let tries: [&dyn Fn() -> bool; 2] = [&|| allocator.allocate_on(&old, 1).is_ok(), &|| {
        let held = allocator.allocate(1).expect("room");
        allocator.record_stream(&held, &old);
        true
    }];
    for attempt in tries {
        assert!(catch_unwind(AssertUnwindSafe(attempt)).is_err(), "a stale handle was taken");
    }
    let anew = allocator.stream(7);
    drop(allocator.allocate_on(&anew, 1).expect("the number can be used again"));
    assert!(catch_unwind(AssertUnwindSafe(tries[0])).is_err(), "a stale handle was taken");
    allocator.verify();
}

pub(crate) fn the_default_stream_stays<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let stream = allocator.default_stream();
    allocator.forget_stream(stream.raw());
    drop(allocator.allocate_on(&stream, 1).expect("room"));
    drop(allocator.allocate(1).expect("room"));
    assert_eq!(allocator.stream(0).index(), 0);
}

pub(crate) fn live_allocations_survive_their_stream<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let held = allocator.allocate_on(&allocator.stream(7), 3 * MIB).expect("room");
    let view = held.view().expect("a view");
    device.write(&view, held.offset(), held.capacity(), 7);
    allocator.forget_stream(7);
    let next = allocator.stream(8);
    let others = [3 * MIB; 5].map(|size| allocator.allocate_on(&next, size).expect("room"));
    assert!(device.reads_back(&view, held.offset(), held.capacity(), 7));
    let (start, end) = (held.address(), held.address().map(|at| at + held.capacity()));
    let apart = others.iter().all(|other| other.address() >= end || other.address() < start);
    assert!(apart, "{held:?} {others:?}");
    drop((held, others));
    assert_emptied(&allocator);
}

/// Once the allocator is gone, its pages still go only when all work on them is done.
pub(crate) fn pages_stay_while_work_runs_after_the_allocator(subject: &Subject<Sim>) {
    let sim = asynchronous_virtual_sim(128 * MIB);
    let allocator = aquifer::Allocator::new(sim.clone(), (subject.config)());
    let held = allocator.allocate(3 * MIB).expect("room");
    allocator.record_stream(&held, &allocator.stream(1));
    let own = sim.submit(0);
    let work = sim.submit(1);
    drop(allocator);
    drop(held);
    assert_nothing_held(&sim);
    assert!(is_done(&sim, own), "pages were taken out under work of their own stream");
    assert!(is_done(&sim, work), "pages were taken out under work of a recorded stream");
}
