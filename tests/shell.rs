//! The shell where it is easiest to get wrong: the end of an allocator whose allocations live on,
//! streams and pools whose numbers are taken over, misuse that must not break anything for others.
mod support;

#[path = "support/gate.rs"]
mod gate;
#[path = "shell/streamed.rs"]
mod streamed;

use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use aquifer::backend::{MemoryKind, Sim, SimOptions};
use aquifer::{
    AllocError, Allocation, Allocator, Config, DeviceVec, PoolId, PoolOptions, PrivatePool, Stream,
};

use gate::Gate;
use streamed::Streamed;
use support::{MIB, assert_emptied, assert_nothing_held, configured, expandable, sim};

/// A device of 64 MiB.
const DEVICE: SimOptions = SimOptions {
    capacity: 64 * MIB,
    virtual_memory: false,
    asynchronous: false,
    granularity: 2 * MIB,
    device_wait: true,
    segment_max: 1 << 40,
};

#[test]
fn one_stream_too_many_breaks_nothing_for_others() {
    let allocator = Allocator::new(sim(64 * MIB), Config::default());
    let held = allocator.allocate(MIB).expect("there is room");
    for raw in 1..=4094 {
        allocator.stream(raw);
    }
    let refused = catch_unwind(AssertUnwindSafe(|| allocator.stream(5000)));
    assert!(refused.is_err(), "the documented limit");
    assert_eq!(allocator.memory_allocated(), MIB);
    // There is room again, for the one that was refused too.
    allocator.forget_stream(1);
    drop(allocator.allocate_on(&allocator.stream(5000), MIB).expect("there is room"));
    drop(held);
    assert_emptied(&allocator);
}

#[test]
fn the_last_allocation_takes_all_with_it_even_if_other_streams_used_it() {
    let sim = sim(64 * MIB);
    let allocator = Allocator::new(sim.clone(), Config::default());
    let stream = allocator.stream(1);
    let held = allocator.allocate_on(&stream, MIB).expect("there is room");
    allocator.record_stream(&held, &allocator.default_stream());
    drop(allocator);
    drop(held);
    // A handle of the stream keeps no memory.
    assert_nothing_held(&sim);
    drop(stream);
}

#[test]
fn the_last_allocation_may_go_while_the_allocator_gives_back() {
    let gate = Gate::new(SimOptions { virtual_memory: true, ..DEVICE });
    let allocator = Allocator::new(gate.clone(), expandable());
    let held = allocator.allocate(20 * MIB).expect("there is room");
    drop(allocator.allocate(20 * MIB).expect("there is room"));
    // The pages behind the free block are being taken out when the other block is freed.
    let unmap = gate.stop_at("unmap");
    let ending = thread::spawn(move || drop(allocator));
    unmap.arrives();
    let freed = catch_unwind(AssertUnwindSafe(|| drop(held)));
    unmap.goes_on();
    assert!(ending.join().is_ok() && freed.is_ok(), "somebody panicked");
    assert_nothing_held(&gate.sim);
}

#[test]
fn an_allocation_whose_stream_is_gone_becomes_a_vector_without_it() {
    let device = Streamed::default();
    let allocator = Allocator::new(device.clone(), Config::default());
    let allocation = allocator.allocate_on(&allocator.stream(1), 40).expect("host memory");
    allocator.forget_stream(1);
    assert_eq!(device.recorded(), [1], "the last event of the stream");
    // The program has destroyed the stream: nothing may be recorded on it any more.
    let vec = DeviceVec::<u64, _>::from_allocation(allocation, 5).expect("it fits");
    assert_eq!(device.recorded(), []);
    assert_eq!(vec.len(), 5);
}

#[test]
fn a_stream_does_not_inherit_the_routes_and_captures_of_one_that_is_gone() {
    let allocator = Allocator::new(sim(64 * MIB), Config::default());
    let pool = allocator.create_pool(PoolOptions::default());
    let route = pool.route_stream(&allocator.stream(1));
    allocator.forget_stream(1);
    let heir = allocator.stream(2);
    assert_eq!(heir.index(), 1, "it has the place of the one that is gone");
    let held = allocator.allocate_on(&heir, MIB).expect("there is room");
    let pools: Vec<_> = allocator.memory_snapshot().segments.iter().map(|s| s.pool_id).collect();
    assert_eq!(pools, [PoolId::default()]);

    let capture = allocator.begin_capture(&heir, &pool);
    allocator.forget_stream(2);
    let next = allocator.stream(3);
    assert_eq!(next.index(), 1);
    let more = allocator.allocate_on(&next, 20 * MIB).expect("nobody captures this stream");
    drop((route, capture, held, more, pool));
    assert_emptied(&allocator);
}

#[test]
fn what_grows_for_a_pool_that_is_gone_does_not_land_in_the_next_pool() {
    let gate = Gate::new(DEVICE);
    let allocator = Allocator::new(gate.clone(), Config::default());
    let pool = allocator.create_pool(PoolOptions::default());
    let route = pool.route_stream(&allocator.default_stream());
    let growth = gate.stop_at("allocate");
    let asker = allocator.clone();
    let asking = thread::spawn(move || drop(asker.allocate(MIB).expect("there is room")));
    growth.arrives();
    drop((route, pool));
    let options = PoolOptions { kind: MemoryKind(7), ..PoolOptions::default() };
    let next = allocator.create_pool(options);
    growth.goes_on();
    asking.join().expect("the request was served");

    let route = next.route_thread();
    let held = allocator.allocate(MIB).expect("there is room");
    let segment = held.address().expect("the device has addresses") - held.offset();
    assert_eq!(gate.kind_at(segment), Some(MemoryKind(7)), "memory of the pool's own kind");
    drop((route, held, next));
    assert_given_back(&allocator);
}

#[test]
fn the_end_of_a_pool_takes_nothing_from_the_next_pool() {
    let gate = Gate::new(SimOptions { asynchronous: true, ..DEVICE });
    let allocator = Allocator::new(gate.clone(), Config::default());
    let pending = allocator.allocate(MIB).expect("there is room");
    allocator.record_stream(&pending, &allocator.stream(1));
    drop(pending);
    let pool = allocator.create_pool(PoolOptions::default());
    // A trim waits for blocks that streams still use.
    let wait = gate.stop_at("wait");
    let ending = thread::spawn(move || drop(pool));
    wait.arrives();
    let next = allocator.create_pool(PoolOptions::default());
    next.prime(&allocator.default_stream(), 20 * MIB).expect("there is room");
    let primed = allocator.memory_reserved();
    wait.goes_on();
    ending.join().expect("the pool was dropped");
    assert_eq!(allocator.memory_reserved(), primed, "the next pool keeps what it was primed with");
    drop(next);
    assert_given_back(&allocator);
}

#[track_caller]
fn assert_given_back(allocator: &Allocator<Gate>) {
    allocator.empty_cache();
    allocator.verify();
    assert_eq!((allocator.memory_reserved(), allocator.backend().sim.used_bytes()), (0, 0));
}

#[test]
fn of_two_threads_that_name_a_new_stream_one_registers_it() {
    let gate = Gate::new(SimOptions { asynchronous: true, ..DEVICE });
    let allocator = Allocator::new(gate.clone(), Config::default());
    drop(allocator.allocate_on(&allocator.stream(1), MIB).expect("there is room"));
    allocator.forget_stream(1);
    // The new stream is to wait for the one whose place it takes.
    let wait = gate.stop_at("wait_on");
    let namer = allocator.clone();
    let first = thread::spawn(move || namer.stream(7).index());
    wait.arrives();
    let (captured, captures) = channel();
    let capturer = allocator.clone();
    let second = thread::spawn(move || {
        let stream = capturer.stream(7);
        let pool = capturer.create_pool(PoolOptions::default());
        let guard = capturer.begin_capture(&stream, &pool);
        captured.send(guard).expect("the test goes on");
        stream.index()
    });
    // A call that concerns stream 7 is under way, so its capture cannot have begun.
    let early = captures.recv_timeout(Duration::from_millis(100));
    assert!(early.is_err(), "captured under a call");
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    gate.watch(move |call, stream| {
        if stream == Some(7) {
            seen.lock().expect("no test panics here").push(call);
        }
    });
    wait.goes_on();
    let guard = captures.recv().expect("the capture begins");
    assert_eq!(first.join().ok(), second.join().ok(), "one place");
    assert_eq!(*calls.lock().expect("no test panics here"), [""; 0], "calls after the wait");
    drop(guard);
    assert_given_back(&allocator);
}

#[test]
fn no_segment_goes_back_on_behalf_of_a_captured_stream() {
    let sim = sim(64 * MIB);
    let allocator = Allocator::new(sim.clone(), Config::default());
    let stream = allocator.stream(1);
    let old = allocator.create_pool(PoolOptions::default());
    let route = old.route_thread();
    let held = allocator.allocate_on(&stream, MIB).expect("there is room");
    drop((route, old));
    let pool = allocator.create_pool(PoolOptions::default());
    pool.prime(&stream, MIB).expect("there is room");
    let capture = allocator.begin_capture(&stream, &pool);
    let calls = sim.calls();
    // Its pool is gone, so the segment is to go back; but not now.
    drop(held);
    assert_eq!(sim.calls(), calls, "a free");
    let size = |bytes| allocator.allocate_on(&stream, bytes).expect("the pool was primed");
    // The slow way, since the peak of both streams together is a new one.
    let captured = [size(MIB / 2), size(MIB / 4)];
    assert_eq!(sim.calls(), calls, "a request");
    drop(capture);
    assert_eq!(sim.calls().free, calls.free + 1, "the end of the capture");
    drop((captured, pool));
    assert_emptied(&allocator);
}

#[test]
fn a_device_without_bounds_has_ranges() {
    let options = SimOptions { capacity: u64::MAX, virtual_memory: true, ..DEVICE };
    let allocator = Allocator::new(Sim::new(options), expandable());
    drop(allocator.allocate(MIB).expect("there is room"));
    assert_emptied(&allocator);
}

#[test]
fn headroom_may_be_without_bounds() {
    let config = configured(|config| {
        (config.headroom, config.headroom_learned_max) = (Some(1e30), f64::MAX);
    });
    let allocator = Allocator::new(sim(64 * MIB), config);
    for size in [MIB, 20 * MIB, 30 * MIB, 40 * MIB] {
        drop(allocator.allocate(size).expect("there is room"));
        allocator.verify();
    }
    assert_emptied(&allocator);
}

#[test]
fn requests_that_are_all_refused_do_not_keep_each_other_going() {
    const THREADS: u32 = 4;
    const REQUESTS: u32 = 5;
    let gate = Gate::new(DEVICE);
    let allocator = Allocator::new(gate.clone(), Config::default());
    // A driver takes its time to refuse, so that the refusals of all threads overlap; but not for
    // ever, so that the test ends if they do not.
    let refusals = AtomicU64::new(0);
    gate.watch(move |call, _| {
        if call == "allocate" && refusals.fetch_add(1, Ordering::Relaxed) < 500 {
            // Long enough for the other threads to get as far.
            (0..200).for_each(|_| thread::yield_now());
        }
    });
    thread::scope(|scope| {
        for number in 0..THREADS {
            let allocator = &allocator;
            scope.spawn(move || {
                let stream = allocator.stream(number);
                for _ in 0..REQUESTS {
                    let refused = allocator.allocate_on(&stream, DEVICE.capacity + 1);
                    assert!(matches!(refused, Err(AllocError::OutOfMemory(_))), "{refused:?}");
                }
            });
        }
    });
    // A request alone asks the device twice.
    let calls = gate.sim.calls().allocate;
    assert!(calls <= u64::from(4 * THREADS * REQUESTS), "{calls} calls");
    assert_given_back(&allocator);
}

#[test]
fn a_trim_does_not_wait_for_what_others_do_meanwhile() {
    let gate = Gate::new(DEVICE);
    let allocator = Allocator::new(gate.clone(), Config::default());
    let other = allocator.stream(1);
    let use_and_free = move |allocator: &Allocator<Gate>| {
        let held = allocator.allocate(MIB).expect("there is room");
        allocator.record_stream(&held, &other);
    };
    use_and_free(&allocator);
    // Another block begins to wait for the stream during each of the first waits.
    let (user, waits) = (allocator.clone(), AtomicU64::new(0));
    gate.watch(move |call, _| {
        if call == "wait" && waits.fetch_add(1, Ordering::Relaxed) < 100 {
            use_and_free(&user);
        }
    });
    allocator.empty_cache();
    let waits = gate.sim.calls().synchronize;
    // Cuts the ring of the hook and the allocator.
    gate.open();
    assert!(waits <= 2, "{waits} waits");
    assert_given_back(&allocator);
}

/// A program may catch a panic with a reference to an allocator in hand, as with a `Mutex`.
#[test]
fn references_may_cross_a_caught_panic_and_threads() {
    fn check<T: UnwindSafe + RefUnwindSafe + Send + Sync>() {}
    check::<Allocator<Sim>>();
    check::<Allocation<Sim>>();
    check::<Stream<Sim>>();
    check::<PrivatePool<Sim>>();
}
