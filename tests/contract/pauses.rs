//! Pausing private pools: memory goes back, addresses and holders stay.

use aquifer::report::oom::OomCause;
use aquifer::{AllocError, Allocator, PauseError, PoolOptions, PrivatePool};

use crate::Subject;
use crate::support::{Device, KIB, MIB, Shadow, assert_emptied};

fn pool_of<D: Device>(allocator: &Allocator<D>) -> PrivatePool<D> {
    allocator.create_pool(PoolOptions::default())
}

pub(crate) fn a_paused_pool_gives_its_memory_back<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let pool = pool_of(&allocator);
    let take = |size| allocator.request(size).pool(&pool).allocate().expect("room");
    let held = [700, 30 * KIB, 3 * MIB, 12 * MIB].map(take);
    let hole = take(5 * MIB);
    let last = take(2 * MIB);
    drop(hole);
    let places = held.each_ref().map(|one| (one.address(), one.offset()));
    let other = allocator.allocate(MIB).expect("room");
    let (used, allocated) = (device.used(), allocator.memory_allocated());
    let bytes = pool.pause().expect("it can be paused");
    assert!(bytes >= 17 * MIB, "{bytes} bytes went");
    allocator.verify();
    assert!(pool.is_paused() && pool.paused_bytes() == bytes);
    assert!(device.used() <= used - bytes, "the device has them again");
    assert_eq!(device.used(), allocator.memory_reserved());
    assert_eq!(allocator.memory_allocated(), allocated, "holders hold");
    assert_eq!(pool.pause(), Err(PauseError::Paused));
    assert_eq!(pool.resume(), Ok(bytes));
    allocator.verify();
    assert!(!pool.is_paused() && pool.paused_bytes() == 0);
    assert_eq!(pool.resume(), Err(PauseError::NotPaused));
    assert_eq!(held.each_ref().map(|one| (one.address(), one.offset())), places);
    // The bytes are there, and each block's are its own.
    let mut shadow = Shadow::default();
    for (seed, one) in held.iter().chain([&last, &other]).enumerate() {
        let view = one.view().expect("not empty");
        let start = one.address().expect("a virtual device has addresses");
        shadow.insert(start, one.capacity(), one.size());
        device.write(&view, one.offset(), one.capacity() / 8 * 8, seed as u64 * 1000);
    }
    for (seed, one) in held.iter().chain([&last, &other]).enumerate() {
        let view = one.view().expect("not empty");
        let whole = one.capacity() / 8 * 8;
        assert!(device.reads_back(&view, one.offset(), whole, seed as u64 * 1000));
    }
    drop(take(5 * MIB));
    drop((held, last, other, pool));
    assert_emptied(&allocator);
}

pub(crate) fn a_paused_pool_hands_nothing_out<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let options = PoolOptions { use_on_oom: true, ..PoolOptions::default() };
    let pool = allocator.create_pool(options);
    let stream = allocator.stream(1);
    let request = |size| allocator.request(size).pool(&pool).on(&stream).allocate();
    let (held, free) = (request(3 * MIB).expect("room"), request(3 * MIB).expect("room"));
    let apart = request(512).expect("room");
    drop(free);
    pool.pause().expect("it can be paused");
    for size in [100, 3 * MIB, 20 * MIB] {
        let error = request(size).expect_err("paused");
        let AllocError::OutOfMemory(report) = &error else { panic!("{error}") };
        assert_eq!(report.cause, OomCause::Paused);
        assert!(error.to_string().contains("PrivatePool::resume"), "{error}");
    }
    assert!(pool.prime(&stream, MIB).is_err());
    assert!(allocator.request(512).pool(&pool).on(&stream).allocate_cached().is_none());
    // It does not help out, nor is it trimmed.
    let rest = 128 * MIB - device.used();
    let _full = allocator.allocate(rest / 2).expect("the device has the memory again");
    assert!(allocator.allocate(rest).is_err());
    assert_eq!(pool.trim(), 0);
    allocator.verify();
    drop(apart);
    drop(held);
    allocator.verify();
}

pub(crate) fn what_is_dropped_while_paused_is_free_after_it<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let pool = pool_of(&allocator);
    let user = allocator.stream(1);
    let take = |size| allocator.request(size).pool(&pool).allocate().expect("room");
    let (first, second, third) = (take(3 * MIB), take(3 * MIB), take(4 * MIB));
    allocator.record_stream(&second, &user);
    let bytes = pool.pause().expect("it can be paused");
    drop(first);
    drop(second);
    allocator.verify();
    assert_eq!(allocator.empty_cache(), 0);
    allocator.verify();
    assert_eq!(pool.resume(), Ok(bytes));
    allocator.verify();
    let before = device.used();
    let again = take(6 * MIB);
    assert!(device.used() <= before.max(allocator.memory_allocated() + 2 * MIB));
    drop((again, third, pool));
    assert_emptied(&allocator);
}

pub(crate) fn a_pool_without_room_stays_paused<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let pool = pool_of(&allocator);
    let held = allocator.request(60 * MIB).pool(&pool).allocate().expect("room");
    let bytes = pool.pause().expect("it can be paused");
    let full = allocator.allocate(100 * MIB).expect("the device has the memory again");
    let used = device.used();
    let refused = pool.resume();
    assert!(
        matches!(refused, Err(PauseError::OutOfMemory { needed, .. }) if needed == bytes),
        "{refused:?}"
    );
    allocator.verify();
    assert!(pool.is_paused() && device.used() == used, "nothing is left of the attempt");
    drop(full);
    // What is cached makes room.
    assert_eq!(pool.resume(), Ok(bytes));
    allocator.verify();
    pool.pause().expect("it can be paused again");
    allocator.set_memory_limit(Some(30 * MIB));
    assert!(matches!(pool.resume(), Err(PauseError::OutOfMemory { .. })), "the limit binds");
    allocator.set_memory_limit(None);
    assert_eq!(pool.resume(), Ok(bytes));
    drop((held, pool));
    assert_emptied(&allocator);
}

pub(crate) fn a_pool_that_goes_while_paused_strands_nothing<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let pool = pool_of(&allocator);
    let take = |size| allocator.request(size).pool(&pool).allocate().expect("room");
    let (first, second) = (take(3 * MIB), take(600));
    pool.pause().expect("it can be paused");
    drop(pool);
    allocator.verify();
    drop(first);
    allocator.verify();
    let next = pool_of(&allocator);
    drop(allocator.request(MIB).pool(&next).allocate().expect("room"));
    allocator.verify();
    drop(second);
    drop(next);
    assert_emptied(&allocator);
    assert_eq!(device.used(), 0);
}

pub(crate) fn an_allocator_that_goes_with_a_paused_pool<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let pool = pool_of(&allocator);
    let held = allocator.request(3 * MIB).pool(&pool).allocate().expect("room");
    let kept = allocator.request(30 * MIB).pool(&pool).allocate().expect("room");
    pool.pause().expect("it can be paused");
    drop(held);
    drop((pool, allocator));
    drop(kept);
    assert_eq!(device.used(), 0);
}

/// Memory in one piece cannot leave and come back to its place.
pub(crate) fn only_virtual_memory_is_paused<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let pool = pool_of(&allocator);
    let held = allocator.request(3 * MIB).pool(&pool).allocate().expect("room");
    assert_eq!(pool.pause(), Err(PauseError::NoVirtualMemory));
    assert!(!pool.is_paused());
    drop(allocator.request(MIB).pool(&pool).allocate().expect("it works on"));
    drop((held, pool));
    assert_emptied(&allocator);
}

pub(crate) fn no_pause_beside_a_capture<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let (pool, captured) = (pool_of(&allocator), pool_of(&allocator));
    let stream = allocator.stream(1);
    let held = allocator.request(3 * MIB).pool(&pool).allocate().expect("room");
    let capture = allocator.begin_capture(&stream, &captured);
    assert_eq!(pool.pause(), Err(PauseError::Capture));
    drop(capture);
    assert!(pool.pause().is_ok_and(|bytes| bytes >= 3 * MIB));
    drop((held, pool, captured));
    assert_emptied(&allocator);
}
