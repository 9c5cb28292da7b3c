//! Private pools, routes, captures.

use aquifer::backend::Sim;
use aquifer::report::oom::OomCause;
use aquifer::{AllocError, Allocation, Allocator, PoolId, PoolOptions};

use crate::Subject;
use crate::support::{Device, MIB, assert_emptied, assert_nothing_held, harvest};

/// The pool of the segment that an allocation is in.
fn pool_of<D: Device>(allocator: &Allocator<D>, allocation: &Allocation<D>) -> PoolId {
    let address = allocation.address().expect("an address");
    let segments = allocator.memory_snapshot().segments;
    let holds = segments.iter().find(|segment| {
        let base = segment.address.expect("an address");
        segment.blocks.iter().any(|block| base + block.offset == address)
    });
    holds.expect("the allocation is in a segment").pool_id
}

fn options(change: impl FnOnce(&mut PoolOptions)) -> PoolOptions {
    let mut options = PoolOptions::default();
    change(&mut options);
    options
}

pub(crate) fn routes_lead_requests<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.with(256 * MIB, |_| {});
    let pool = allocator.create_pool(PoolOptions::default());
    assert_ne!(pool.id(), PoolId::default());
    let (home, other) = (allocator.default_stream(), allocator.stream(1));
    let place = |stream| {
        let allocation = allocator.allocate_on(stream, 3 * MIB).expect("room");
        pool_of(&allocator, &allocation)
    };
    assert_eq!(place(&home), PoolId::default());
    let route = pool.route_thread();
    assert_eq!((place(&home), place(&other)), (pool.id(), pool.id()), "any stream of the thread");
    drop(route);
    assert_eq!(place(&home), PoolId::default());
    let route = pool.route_stream(&other);
    assert_eq!((place(&home), place(&other)), (PoolId::default(), pool.id()));
    let thread = std::thread::scope(|scope| scope.spawn(|| place(&other)).join());
    assert_eq!(thread.ok(), Some(pool.id()), "any thread on the stream");
    drop(route);
    let route = pool.route_thread();
    let thread = std::thread::scope(|scope| scope.spawn(|| place(&home)).join());
    assert_eq!(thread.ok(), Some(PoolId::default()), "another thread");
    drop(route);
    allocator.verify();
}

pub(crate) fn the_innermost_route_wins<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.with(256 * MIB, |_| {});
    let [outer, inner] = [0; 2].map(|_| allocator.create_pool(PoolOptions::default()));
    assert_ne!(outer.id(), inner.id());
    let stream = allocator.default_stream();
    let place = || pool_of(&allocator, &allocator.allocate(3 * MIB).expect("room"));
    let first = outer.route_thread();
    let second = inner.route_stream(&stream);
    assert_eq!(place(), inner.id());
    let third = outer.route_stream(&stream);
    assert_eq!(place(), outer.id());
    drop(third);
    assert_eq!(place(), inner.id());
    // Not in order: the inner route outlives the outer one.
    drop(first);
    assert_eq!(place(), inner.id());
    drop(second);
    assert_eq!(place(), PoolId::default());
}

pub(crate) fn a_pool_serves_nobody_else<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.with(256 * MIB, |config| config.headroom = None);
    let pool = allocator.create_pool(PoolOptions::default());
    pool.prime(&allocator.default_stream(), 12 * MIB).expect("room");
    let cached = allocator.memory_reserved();
    let held = allocator.allocate(12 * MIB).expect("room");
    assert_eq!(pool_of(&allocator, &held), PoolId::default());
    assert!(allocator.memory_reserved() > cached);
    let grown = allocator.memory_reserved();
    let route = pool.route_thread();
    let routed = allocator.allocate(12 * MIB).expect("room");
    assert_eq!(allocator.memory_reserved(), grown, "what was primed serves the pool");
    drop((routed, route));
    allocator.verify();
}

pub(crate) fn a_pool_may_help_out<D: Device>(subject: &Subject<D>) {
    for use_on_oom in [false, true] {
        let (_, allocator) = subject.with(64 * MIB, |config| config.trim_private_pools = false);
        let pool = allocator.create_pool(options(|options| options.use_on_oom = use_on_oom));
        pool.prime(&allocator.default_stream(), 40 * MIB).expect("room");
        let outcome = allocator.allocate(30 * MIB);
        assert_eq!(outcome.is_ok(), use_on_oom, "{outcome:?}");
        if let Ok(allocation) = outcome {
            assert_eq!(pool_of(&allocator, &allocation), pool.id());
        }
        allocator.verify();
    }
}

/// A free block of a pool that serves everyone is free memory, whatever its stream.
pub(crate) fn a_pool_may_help_out_other_streams<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.with(64 * MIB, |config| config.trim_private_pools = false);
    let pool = allocator.create_pool(options(|options| options.use_on_oom = true));
    pool.prime(&allocator.stream(1), 40 * MIB).expect("room");
    let helped = allocator.allocate(30 * MIB);
    assert!(helped.is_ok(), "40 MiB are free in the pool: {helped:?}");
}

pub(crate) fn unsplit_pools_give_segments_whole<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.with(256 * MIB, |_| {});
    let pool = allocator.create_pool(options(|options| options.no_split = true));
    let route = pool.route_thread();
    let held = [3 * MIB, 12 * MIB, 5000].map(|size| allocator.allocate(size).expect("room"));
    for segment in &allocator.memory_snapshot().segments {
        assert!(segment.expandable || segment.blocks.len() == 1, "{segment:?}");
    }
    assert!(held.iter().all(|allocation| allocation.capacity() >= 2 * MIB), "{held:?}");
    drop((held, route, pool));
    assert_emptied(&allocator);
}

pub(crate) fn a_live_pool_is_trimmed<D: Device>(subject: &Subject<D>) {
    for trims in [true, false] {
        let (_, allocator) = subject.with(256 * MIB, |config| {
            config.trim_private_pools = trims;
            config.headroom = None;
        });
        let pool = allocator.create_pool(PoolOptions::default());
        let other = allocator.create_pool(PoolOptions::default());
        let stream = allocator.default_stream();
        for pool in [&pool, &other] {
            pool.prime(&stream, 12 * MIB).expect("room");
            pool.prime(&stream, 30 * MIB).expect("room");
        }
        let reserved = allocator.memory_reserved();
        let returned = pool.trim();
        assert_eq!(returned, if trims { reserved / 2 } else { 0 }, "only this pool's");
        assert_eq!(allocator.memory_reserved(), reserved - returned);
        let releasable = allocator.releasable_bytes();
        assert_eq!(releasable, if trims { reserved / 2 } else { 0 });
        assert_eq!(allocator.empty_cache(), releasable);
        drop((pool, other));
        assert_emptied(&allocator);
    }
}

pub(crate) fn a_released_pool_goes<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.with(256 * MIB, |_| {});
    let pool = allocator.create_pool(PoolOptions::default());
    let clone = pool.clone();
    pool.prime(&allocator.stream(1), 12 * MIB).expect("room");
    pool.prime(&allocator.default_stream(), 5000).expect("room");
    assert_eq!(pool.use_count(), 2);
    drop(pool);
    assert!(device.used() > 0, "a clone keeps it");
    let route = clone.route_thread();
    drop(clone);
    assert!(device.used() > 0, "a route keeps it");
    drop(route);
    assert_eq!((device.used(), allocator.memory_reserved()), (0, 0));
    allocator.verify();
}

pub(crate) fn a_released_pool_goes_as_it_is_freed<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.with(256 * MIB, |_| {});
    let pool = allocator.create_pool(PoolOptions::default());
    let route = pool.route_thread();
    let held = [12 * MIB, 5000, 25 * MIB].map(|size| allocator.allocate(size).expect("room"));
    drop(route);
    drop(pool);
    allocator.verify();
    for (at, allocation) in held.into_iter().enumerate() {
        let before = device.used();
        drop(allocation);
        allocator.verify();
        // Blocks of a range share pages, so only the last one is sure to leave something.
        let shares = subject.is_expandable();
        assert!(shares || device.used() < before, "what block {at} leaves goes back");
    }
    assert_eq!(device.used(), 0, "the last block is free");
    drop(allocator);
    assert_nothing_held(&device);
}

/// As above, for blocks that another stream was still using when they were freed.
pub(crate) fn a_released_pool_goes_when_streams_are_done<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.with(256 * MIB, |_| {});
    let pool = allocator.create_pool(PoolOptions::default());
    let stream = allocator.stream(1);
    let route = pool.route_thread();
    let held = allocator.allocate(12 * MIB).expect("room");
    drop(route);
    allocator.record_stream(&held, &stream);
    drop(pool);
    drop(held);
    harvest(&allocator);
    if let Some(sim) = device.sim() {
        sim.complete_all();
    }
    harvest(&allocator);
    assert_eq!(allocator.memory_active(), 0);
    assert_eq!(device.used(), 0, "the block has completed and its pool is gone");
}

pub(crate) fn pools_keep_their_statistics<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.with(256 * MIB, |_| {});
    let pool = allocator.create_pool(PoolOptions::default());
    let id = pool.id();
    pool.prime(&allocator.default_stream(), 12 * MIB).expect("room");
    let all = |id| allocator.memory_stats().reserved_bytes_by_private_pools[&id].all;
    let reserved = allocator.memory_reserved();
    assert_eq!((all(id).current, all(id).peak), (reserved, reserved));
    drop(pool);
    assert_eq!((all(id).current, all(id).peak), (0, reserved));
    let next = allocator.create_pool(PoolOptions::default());
    assert_ne!(next.id(), id);
    assert_eq!((all(id).peak, all(next.id()).peak), (reserved, 0), "the new one begins at 0");
    allocator.verify();
}

/// What was primed is there when it is needed, whatever others do in between.
pub(crate) fn a_primed_pool_stays_primed<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.with(256 * MIB, |_| {});
    let pool = allocator.create_pool(PoolOptions::default());
    let stream = allocator.default_stream();
    pool.prime(&stream, 40 * MIB).expect("room");
    pool.prime(&stream, 5000).expect("room");
    let held = allocator.allocate(60 * MIB).expect("room");
    let capture = allocator.begin_capture(&stream, &pool);
    let primed = [40 * MIB, 5000].map(|size| allocator.allocate_on(&stream, size).map(drop));
    assert_eq!(primed, [Ok(()), Ok(())], "a growth elsewhere took what was primed");
    drop((capture, held));
}

pub(crate) fn a_capture_makes_no_call(subject: &Subject<Sim>) {
    let (sim, allocator) = subject.with(256 * MIB, |config| config.headroom = None);
    let (stream, other) = (allocator.stream(1), allocator.stream(2));
    let pool = allocator.create_pool(PoolOptions::default());
    pool.prime(&stream, 40 * MIB).expect("room");
    let cached = allocator.allocate_on(&stream, 60 * MIB).expect("room");
    drop(cached);
    let capture = allocator.begin_capture(&stream, &pool);
    let before = sim.calls();
    let held = [3 * MIB, 12 * MIB].map(|size| allocator.allocate_on(&stream, size).expect("room"));
    for allocation in &held {
        assert_eq!(pool_of(&allocator, allocation), pool.id());
        allocator.record_stream(allocation, &other);
    }
    // Not from the pool, though the default pool has it.
    let error = allocator.allocate_on(&stream, 60 * MIB).expect_err("not in the pool");
    let AllocError::OutOfMemory(report) = &error else { panic!("{error}") };
    assert_eq!(report.cause, OomCause::Capture);
    drop(held);
    assert!(allocator.allocate_on(&stream, 39 * MIB).is_err(), "what is pending is put off");
    allocator.verify();
    assert_eq!(sim.calls(), before, "the backend was called");
    drop(capture);
    let route = pool.route_stream(&stream);
    drop(allocator.allocate_on(&stream, 60 * MIB).expect("the capture is over"));
    assert_ne!(sim.calls(), before);
    drop((route, pool));
    sim.complete_all();
    assert_emptied(&allocator);
}

/// A capture is replayed at the same addresses: they stay, whatever memory is wanted for.
pub(crate) fn a_captured_pool_keeps_its_memory(subject: &Subject<Sim>) {
    // With oversize blocks, what is idle is no fit, but would make room for the growth.
    // A range rounds to pages, which the rule for oversize blocks may find too large for its own.
    let cases = [(None, 125 * MIB), (Some(20 * MIB), 66 * MIB)];
    for (max_split_size, wanted) in cases.into_iter().take(2 - usize::from(subject.is_expandable()))
    {
        let (_, allocator) = subject.with(128 * MIB, |config| {
            config.max_split_size = max_split_size;
            config.max_non_split_rounding = 2 * MIB;
        });
        let stream = allocator.stream(1);
        let pool = allocator.create_pool(PoolOptions::default());
        pool.prime(&stream, 70 * MIB).expect("room");
        let reserved = allocator.memory_reserved();
        let capture = allocator.begin_capture(&stream, &pool);
        drop(allocator.allocate_on(&stream, 70 * MIB).expect("primed"));
        drop(capture);
        assert_eq!((allocator.empty_cache(), pool.trim()), (0, 0));
        let before = allocator.memory_stats().num_device_free;
        let route = pool.route_stream(&stream);
        drop(allocator.allocate_on(&stream, wanted));
        drop(route);
        let freed = allocator.memory_stats().num_device_free - before;
        assert_eq!(freed, 0, "segments went, with max_split_size {max_split_size:?}");
        assert!(allocator.memory_reserved() >= reserved);
        drop(pool);
        assert_emptied(&allocator);
    }
}
