//! The front cache: small blocks that wait for the next request of their size.

use aquifer::backend::{Fault, Sim};
use aquifer::{AllocError, PoolOptions};

use crate::Subject;
use crate::support::{Device, KIB, MIB, assert_emptied};

const SIZES: [u64; 4] = [20 * KIB, 50 * KIB, 90 * KIB, 120 * KIB];

pub(crate) fn the_next_request_of_the_size_has_the_block<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let take = |size| allocator.allocate(size).expect("room");
    // A size is kept from its second free on.
    drop(SIZES.map(take));
    let held = SIZES.map(|size| (size, take(size)));
    let places = held.each_ref().map(|(size, one)| (*size, one.address()));
    drop(held);
    for (size, address) in places.into_iter().rev() {
        assert_eq!(take(size).address(), address);
    }
    assert_emptied(&allocator);
}

pub(crate) fn what_waits_merges_before_anything_grows<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let take = |size| allocator.allocate(size).expect("room");
    drop(SIZES.map(take));
    drop(SIZES.map(take));
    let used = device.used();
    // The last one has room only where the four of them were.
    let whole = [MIB, 700 * KIB, 280 * KIB].map(take);
    assert_eq!(device.used(), used, "pieces that touch are one place");
    drop(whole);
    assert_emptied(&allocator);
}

pub(crate) fn statistics_see_what_waits_as_free<D: Device>(subject: &Subject<D>) {
    let see = |front_cache: bool| {
        let (_, allocator) = subject.with(128 * MIB, |config| config.front_cache = front_cache);
        drop(SIZES.map(|size| allocator.allocate(size).expect("room")));
        let held = SIZES.map(|size| allocator.allocate(size).expect("room"));
        let [first, _second, third, _fourth] = held;
        drop((first, third));
        let mut stats = allocator.memory_stats();
        // When pieces merge is what differs, and so how many there were at most.
        let splits = [&mut stats.inactive_split, &mut stats.inactive_split_bytes];
        for split in splits {
            for row in [&mut split.all, &mut split.small_pool, &mut split.large_pool] {
                (row.peak, row.allocated, row.freed) = (0, 0, 0);
            }
        }
        (stats, allocator.releasable_bytes(), allocator.memory_snapshot().segments.len())
    };
    assert_eq!(see(true), see(false));
}

pub(crate) fn peaks_see_what_comes_out_of_it<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    drop(allocator.allocate_on(&allocator.stream(1), KIB).expect("room"));
    let take = |size| allocator.allocate(size).expect("room");
    drop(take(20 * KIB));
    let held = take(20 * KIB);
    allocator.reset_peak_memory_stats();
    drop(held);
    // The first is within the old peak, both together are a new one.
    drop((take(16 * KIB), take(20 * KIB)));
    assert_eq!(allocator.max_memory_allocated(), 36 * KIB);
}

pub(crate) fn another_stream_gets_what_waits<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    drop(SIZES.map(|size| allocator.allocate(size).expect("room")));
    drop(SIZES.map(|size| allocator.allocate(size).expect("room")));
    let used = device.used();
    let other = allocator.allocate_on(&allocator.stream(1), MIB).expect("room");
    // A whole segment moves to the other stream, or the pages of a range do.
    assert_eq!(device.used(), used);
    drop(other);
    assert_emptied(&allocator);
}

pub(crate) fn what_is_freed_of_a_released_pool_does_not_wait<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let pool = allocator.create_pool(PoolOptions::default());
    let take = || allocator.request(20 * KIB).pool(&pool).allocate().expect("room");
    drop(take());
    let held = take();
    drop(pool);
    assert!(device.used() > 0, "something in it is held");
    drop(held);
    assert_eq!(device.used(), 0, "the last block takes the pool's memory along");
    allocator.verify();
}

pub(crate) fn what_waits_is_lost_with_the_device(subject: &Subject<Sim>) {
    let (sim, allocator) = subject.fresh();
    drop(allocator.allocate(20 * KIB).expect("room"));
    let held = allocator.allocate(20 * KIB).expect("room");
    sim.fail_at(1, Fault::Lost);
    assert!(allocator.allocate(70 * MIB).is_err(), "the device is gone");
    drop(held);
    let hit = allocator.allocate(20 * KIB);
    assert!(matches!(hit, Err(AllocError::DeviceLost(_))), "{hit:?}");
    assert_emptied(&allocator);
}
