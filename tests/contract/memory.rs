//! Allocations, their errors, and giving memory back.

use aquifer::backend::{Sim, SimOptions};
use aquifer::report::stats::MemoryStats;
use aquifer::{AllocError, AllocationId, Allocator, FreeError};

use crate::Subject;
use crate::support::{Device, KIB, MIB, Shadow, assert_emptied, assert_nothing_held};

const SIZES: [u64; 13] = [
    1,
    511,
    512,
    513,
    4096,
    MIB - 1,
    MIB,
    MIB + 1,
    3 * MIB,
    10 * MIB - 1,
    10 * MIB,
    12 * MIB,
    21 * MIB,
];

pub(crate) fn allocations_do_not_overlap<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.with(400 << 20, |_| {});
    let mut shadow = Shadow::default();
    let mut held = Vec::new();
    for round in 0..3 {
        for (at, &size) in SIZES.iter().enumerate() {
            let stream = allocator.stream(at as u32 % 2);
            let allocation = allocator.allocate_on(&stream, size).expect("there is room");
            let address = allocation.address().expect("an address");
            shadow.insert(address, allocation.capacity(), size);
            assert_eq!(allocation.size(), size);
            let view = allocation.view().expect("a view");
            device.write(&view, allocation.offset(), allocation.capacity(), size << 32 | round);
            held.push((address, size << 32 | round, allocation));
        }
        assert_eq!(allocator.memory_allocated(), shadow.allocated);
        for (_, seed, allocation) in &held {
            let view = allocation.view().expect("a view");
            let len = allocation.capacity();
            assert!(device.reads_back(&view, allocation.offset(), len, *seed), "{allocation:?}");
        }
        let mut keep = false;
        held.retain(|(address, ..)| {
            keep = !keep;
            if !keep {
                shadow.remove(*address);
            }
            keep
        });
        allocator.verify();
    }
    held.clear();
    assert_emptied(&allocator);
}

pub(crate) fn zero_size_holds_nothing<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let none = allocator.allocate(0).expect("nothing is always there");
    assert_eq!((none.size(), none.capacity(), none.offset()), (0, 0, 0));
    assert_eq!((none.id(), none.address()), (AllocationId::EMPTY, None));
    assert!(none.view().is_none());
    allocator.record_stream(&none, &allocator.stream(1));
    let raw = allocator.request(0).allocate_raw().expect("nothing is always there");
    assert_eq!(allocator.free_raw(raw.id), Ok(()));
    assert_eq!(allocator.free_raw(raw.id), Ok(()), "freeing nothing does nothing");
    assert_eq!((allocator.memory_reserved(), device.used()), (0, 0));
}

pub(crate) fn alignment_is_kept_or_refused<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let limit = allocator.backend().limits().alignment;
    let mut held = Vec::new();
    for shift in 0..=limit.ilog2() {
        for size in [1, 5000, MIB, 3 * MIB] {
            let align = 1 << shift;
            let allocation = allocator.request(size).align(align).allocate().expect("room");
            let address = allocation.address().expect("an address");
            assert!(address.is_multiple_of(align), "{address:#x} for {align}");
            allocator.verify();
            held.push(allocation);
            held.drain(..held.len().saturating_sub(5));
        }
    }
    for requested in [limit * 2, 1 << 63, 3, 513, limit - 1] {
        let error = allocator.request(1).align(requested).allocate().err();
        assert_eq!(error, Some(AllocError::Alignment { requested, limit }));
    }
    held.clear();
    assert_emptied(&allocator);
}

pub(crate) fn what_is_beyond_the_device<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let limit = allocator.backend().limits().segment_max;
    let error = allocator.allocate(u64::MAX).err();
    assert_eq!(error, Some(AllocError::TooLarge { requested: u64::MAX, limit: limit / 512 * 512 }));
    for size in [129 * MIB, 1 << 45] {
        let error = allocator.allocate(size).expect_err("more than the device has");
        assert!(matches!(error, AllocError::OutOfMemory(_)), "{error}");
    }
    assert_eq!(allocator.memory_stats().num_ooms, 2);
    assert_eq!((allocator.memory_reserved(), device.used()), (0, 0), "nothing is kept of it");
}

/// A request is refused by what it needs alone, not by the segment that would have been liked.
pub(crate) fn the_largest_segment_can_be_had(subject: &Subject<Sim>) {
    let segment_max = 50 * MIB;
    let options = SimOptions {
        segment_max,
        capacity: 200 * MIB,
        virtual_memory: subject.is_expandable(),
        ..SimOptions::default()
    };
    let allocator = Allocator::new(Sim::new(options), (subject.config)());
    let error = allocator.allocate(segment_max + 1).err();
    let too_large = AllocError::TooLarge { requested: segment_max + 1, limit: segment_max };
    assert_eq!(error, Some(too_large));
    let whole = allocator.allocate(segment_max).expect("within every limit");
    drop(whole);
    assert_emptied(&allocator);
}

pub(crate) fn exhaustion_is_an_error_and_nothing_more<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.with(64 * MIB, |_| {});
    let mut held = Vec::new();
    let error = loop {
        match allocator.allocate(3 * MIB) {
            Ok(allocation) => held.push(allocation),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AllocError::OutOfMemory(_)), "{error}");
    // 60 MiB in segments that three of them leave 2 MiB of, and what is left exactly.
    assert!(held.len() >= 18, "{} blocks of 3 MiB in 64 MiB", held.len());
    let allocated = allocator.memory_allocated();
    assert!(allocator.allocate(40 * MIB).is_err() && allocator.allocate(3 * MIB).is_err());
    assert_eq!(allocator.memory_allocated(), allocated, "a failure changes nothing");
    assert_eq!(device.used(), allocator.memory_reserved());
    allocator.verify();
    held.pop();
    held.push(allocator.allocate(3 * MIB).expect("one was freed"));
    held.clear();
    let large = allocator.allocate(38 * MIB).expect("all was freed");
    drop(large);
    assert_emptied(&allocator);
}

pub(crate) fn empty_cache_returns_what_was_announced<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    assert_eq!((allocator.releasable_bytes(), allocator.empty_cache()), (0, 0));
    let sizes = [1, 4 * KIB, 3 * MIB, 12 * MIB, 21 * MIB, 700 * KIB];
    let mut held: Vec<_> =
        sizes.iter().map(|&size| allocator.allocate(size).expect("room")).collect();
    while !held.is_empty() {
        held.remove(held.len() / 2);
        let (before, releasable) = (allocator.memory_reserved(), allocator.releasable_bytes());
        assert_eq!(allocator.empty_cache(), releasable);
        assert_eq!(allocator.memory_reserved(), before - releasable);
        assert_eq!(device.used(), allocator.memory_reserved());
        assert_eq!(allocator.releasable_bytes(), 0);
    }
    assert_eq!(device.used(), 0);
    assert_emptied(&allocator);
}

pub(crate) fn trim_to_keeps_its_floor<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let sizes = [12 * MIB, 14 * MIB, 16 * MIB, 3 * MIB, 1];
    let held: Vec<_> = sizes.iter().map(|&size| allocator.allocate(size).expect("room")).collect();
    drop(held);
    let reserved = allocator.memory_reserved();
    assert_eq!(allocator.trim_to(reserved), 0);
    for floor in [reserved - 1, 40 * MIB, 30 * MIB, 5 * MIB, 0] {
        let before = allocator.memory_reserved();
        let returned = allocator.trim_to(floor);
        let left = allocator.memory_reserved();
        assert_eq!(before - left, returned);
        assert!(left >= floor, "{left} bytes left of a floor of {floor}");
        assert!(left < floor + 20 * MIB, "{left} bytes left: that is far above {floor}");
        assert_eq!(device.used(), left);
        allocator.verify();
    }
    assert_eq!(device.used(), 0);
}

pub(crate) fn dropping_the_allocator_returns_all<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let stream = allocator.stream(1);
    let held = [3 * MIB, 12 * MIB].map(|size| allocator.allocate_on(&stream, size).expect("room"));
    allocator.record_stream(&held[0], &allocator.default_stream());
    drop((held, stream));
    assert!(device.used() > 0, "it is cached");
    let clone = allocator.clone();
    drop(allocator);
    assert!(device.used() > 0, "a clone is the same allocator");
    drop(clone);
    assert_nothing_held(&device);
}

pub(crate) fn allocations_outlive_the_allocator<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let large = allocator.allocate(30 * MIB).expect("room");
    let held = allocator.allocate(3 * MIB).expect("room");
    let other = allocator.allocate_on(&allocator.stream(1), 5000).expect("room");
    let view = held.view().expect("a view");
    device.write(&view, held.offset(), held.capacity(), 7);
    let (address, before) = (held.address(), device.used());
    drop(large);
    drop(allocator);
    assert!(device.used() < before, "what is free goes with the allocator");
    assert_eq!(held.address(), address);
    assert!(device.reads_back(&view, held.offset(), held.capacity(), 7));
    let two = device.used();
    drop(held);
    assert!(device.used() < two, "the last allocation of a stream takes its memory along");
    drop(other);
    assert_nothing_held(&device);
}

/// The memory goes with the allocator and the last allocation, not with the last handle of a
/// stream.
pub(crate) fn a_stream_handle_keeps_no_memory<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    let stream = allocator.stream(1);
    let held = allocator.allocate_on(&stream, 3 * MIB).expect("room");
    drop(allocator);
    drop(held);
    let used = device.used();
    drop(stream);
    assert_eq!(used, 0, "a handle of a stream kept memory");
}

pub(crate) fn raw_allocations_are_freed_once<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let raw = allocator.request(5000).allocate_raw().expect("room");
    assert_eq!(raw.size, 5000);
    assert_eq!(allocator.memory_allocated(), 5120, "it lives on without an owner");
    assert_eq!(allocator.record_stream_raw(raw.id, &allocator.stream(1)), Ok(()));
    assert_eq!(allocator.free_raw(raw.id), Ok(()));
    let unknown = Err(FreeError::Unknown);
    assert_eq!(allocator.free_raw(raw.id), unknown, "twice");
    assert_eq!(allocator.record_stream_raw(raw.id, &allocator.stream(1)), unknown);
    // The block is used again; the old id still means the old allocation.
    let again = allocator.allocate(5000).expect("room");
    assert_eq!(allocator.free_raw(raw.id), unknown);
    for bits in [0, 1, u64::MAX - 1, raw.id.to_bits() ^ 1, raw.id.to_bits() ^ 1 << 24, 1 << 60] {
        let id = AllocationId::from_bits(bits);
        assert!(id == again.id() || allocator.free_raw(id) == unknown, "{bits:#x}");
    }
    allocator.verify();
    let kept = again.into_raw();
    assert_eq!(allocator.memory_allocated(), 5120, "into_raw frees nothing");
    assert_eq!(allocator.free_raw(kept.id), Ok(()));
    allocator.verify();
    assert_eq!(allocator.memory_allocated(), 0);
}

pub(crate) fn raw_allocations_are_freed_by_address<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let unknown = Err(FreeError::Unknown);
    let raw = allocator.request(3 * MIB).allocate_raw().expect("room");
    let address = raw.address.expect("an address");
    assert_eq!(allocator.free_address(address + 512), unknown);
    assert_eq!(allocator.free_address(0), unknown);
    assert_eq!(allocator.free_address(address), Ok(()));
    assert_eq!(allocator.free_address(address), unknown, "twice");
    let owned = allocator.allocate(3 * MIB).expect("room");
    assert_eq!(owned.address(), Some(address), "the block was cached");
    assert_eq!(allocator.free_address(address), unknown, "owned allocations are not raw");
    drop(owned);
    // Freed by id: the address must not speak of it any more, whoever has it then.
    let raw = allocator.request(3 * MIB).allocate_raw().expect("room");
    assert_eq!(allocator.free_raw(raw.id), Ok(()));
    let owned = allocator.allocate(3 * MIB).expect("room");
    assert_eq!(allocator.free_address(address), unknown);
    drop(owned);
    assert_emptied(&allocator);
}

pub(crate) fn foreign_ids_are_refused<D: Device>(subject: &Subject<D>) {
    let ((_, one), (_, two)) = (subject.fresh(), subject.fresh());
    let foreign = one.request(5000).allocate_raw().expect("room");
    assert_eq!(two.free_raw(foreign.id), Err(FreeError::Unknown));
    assert_eq!(two.free_address(foreign.address.expect("an address")), Err(FreeError::Unknown));
    assert_eq!(two.record_stream_raw(foreign.id, &two.stream(1)), Err(FreeError::Unknown));
    two.verify();
    assert_eq!(one.free_raw(foreign.id), Ok(()));
}

/// Ids of two allocators can be equal, but an allocation is one's own.
pub(crate) fn a_foreign_allocation_is_misuse<D: Device>(subject: &Subject<D>) {
    let ((_, one), (_, two)) = (subject.fresh(), subject.fresh());
    let foreign = one.allocate(5000).expect("room");
    let own = two.allocate(5000).expect("room");
    let stream = two.stream(1);
    two.record_stream(&own, &stream);
    let record = || two.record_stream(&foreign, &stream);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(record));
    assert!(outcome.is_err(), "record_stream took an allocation of another allocator");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        one.allocate_on(&stream, 1).err()
    }));
    assert!(outcome.is_err(), "a stream of another allocator");
}

fn each_is_true(stats: &MemoryStats) {
    let gauges = [stats.allocated_bytes, stats.active_bytes, stats.reserved_bytes, stats.segment];
    for gauge in gauges {
        let (all, small, large) = (gauge.all, gauge.small_pool, gauge.large_pool);
        assert_eq!(all.current, small.current + large.current);
        assert!(all.peak >= all.current && all.peak <= small.peak + large.peak);
        assert_eq!(all.allocated - all.freed, all.current);
    }
}

pub(crate) fn statistics_follow<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let small = allocator.allocate(5000).expect("room");
    let large = allocator.allocate(3 * MIB).expect("room");
    each_is_true(&allocator.memory_stats());
    let stats = allocator.memory_stats();
    assert_eq!(stats.allocated_bytes.small_pool.current, 5120);
    assert_eq!(stats.allocated_bytes.large_pool.current, 3 * MIB);
    assert_eq!(stats.requested_bytes.all.current, 5000 + 3 * MIB);
    assert_eq!(allocator.max_memory_allocated(), 5120 + 3 * MIB);
    let reserved = allocator.memory_reserved();
    assert_eq!(allocator.max_memory_reserved(), reserved);
    drop(large);
    each_is_true(&allocator.memory_stats());
    assert_eq!((allocator.memory_allocated(), allocator.memory_active()), (5120, 5120));
    allocator.reset_peak_memory_stats();
    assert_eq!(allocator.max_memory_allocated(), 5120);
    allocator.reset_accumulated_memory_stats();
    let stats = allocator.memory_stats();
    assert_eq!((stats.allocation.all.allocated, stats.allocation.all.freed), (0, 0));
    drop(small);
    let stats = allocator.memory_stats();
    assert_eq!((stats.allocation.all.allocated, stats.allocation.all.freed), (0, 1));
    assert_emptied(&allocator);
}

/// What came from the device and is not there any more went back to it.
pub(crate) fn device_calls_are_counted<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    for size in [1, 3 * MIB, 12 * MIB, 25 * MIB] {
        drop(allocator.allocate(size).expect("room"));
    }
    let stats = allocator.memory_stats();
    assert!(stats.num_device_alloc > 0);
    assert_emptied(&allocator);
    let stats = allocator.memory_stats();
    // Pages come by runs and go by holes, whose numbers differ.
    let equal = stats.num_device_alloc == stats.num_device_free;
    assert!(equal || subject.is_expandable());
}

pub(crate) fn the_error_says_what_would_help<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.with(64 * MIB, |config| config.memory_limit = Some(48 * MIB));
    let tag = allocator.tag("weights");
    let held = allocator.request(30 * MIB).tag(tag).allocate().expect("room");
    let line = line!() + 1;
    let error = allocator.allocate(25 * MIB).expect_err("no room");
    let AllocError::OutOfMemory(report) = &error else { panic!("{error}") };
    assert_eq!((report.requested, report.limit), (25 * MIB, Some(48 * MIB)));
    assert_eq!(report.allocated, held.capacity());
    assert_eq!((report.location.line(), report.location.file()), (line, file!()));
    let text = error.to_string();
    for part in [
        "25.00 MiB".to_string(),
        format!("{}:{line}", file!()),
        "limit 48.00 MiB".to_string(),
        format!("{}:{}", file!(), line - 2),
        "[weights]".to_string(),
        "What would help: ".to_string(),
    ] {
        assert!(text.contains(&part), "`{part}` is not in: {text}");
    }
    let alone = allocator.allocate(49 * MIB).expect_err("above the limit").to_string();
    assert!(alone.contains("raise it (set_memory_limit"), "{alone}");
}
