//! Requests that fail: what the error says where it happens, and who is told of it.

use std::sync::{Arc, Mutex};

use aquifer::report::oom::{OomCause, OomReport};
use aquifer::{AllocError, Allocation, Allocator, Config, PoolOptions};

use crate::Subject;
use crate::support::{Device, MIB, assert_emptied};

fn refused<D: Device>(allocator: &Allocator<D>, size: u64) -> OomReport {
    match allocator.allocate(size) {
        Err(AllocError::OutOfMemory(report)) => *report,
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("there is room for {size}"),
    }
}

/// Half of the device in holes of 4 MiB, which a request of 6 MiB cannot have.
fn riddled<D: Device>(
    subject: &Subject<D>,
    change: impl FnOnce(&mut Config),
) -> (Allocator<D>, Vec<Allocation<D>>) {
    let (_, allocator) = subject.with(128 * MIB, change);
    let mut held: Vec<_> = std::iter::from_fn(|| allocator.allocate(4 * MIB).ok()).collect();
    let mut at = 0;
    held.retain(|_| {
        at += 1;
        at % 2 == 0
    });
    (allocator, held)
}

pub(crate) fn the_error_tells_holes_from_room<D: Device>(subject: &Subject<D>) {
    let (allocator, held) = riddled(subject, |_| {});
    let mut more = Vec::new();
    let report = loop {
        match allocator.allocate(6 * MIB) {
            Ok(allocation) => more.push(allocation),
            Err(AllocError::OutOfMemory(report)) => break report,
            Err(error) => panic!("{error}"),
        }
    };
    let (hint, text) = (report.hint(), report.to_string());
    assert!(!hint.contains("expandable_segments"), "there is none, or it is on: {text}");
    if report.usable_free >= 6 * MIB {
        assert!(hint.contains("cannot be joined"), "{text}");
        assert!(report.largest_free < 6 * MIB && report.usable_count > 1, "{text}");
        assert!(text.contains("this request could use"), "{text}");
    }
    assert!(report.releasable <= report.cached(), "{text}");
    drop((held, more));
    assert_emptied(&allocator);
}

/// A device with virtual memory that is not used.
pub(crate) fn expandable_segments_are_recommended_where_they_help<D: Device>(subject: &Subject<D>) {
    let (allocator, held) = riddled(subject, |config| config.expandable_segments = false);
    let report = refused(&allocator, 30 * MIB);
    assert!(report.hint().contains("switch on Config::expandable_segments"), "{report}");
    drop(held);
    // Not to those who would not have it from there.
    let pool = allocator.create_pool(PoolOptions { no_split: true, ..PoolOptions::default() });
    let held = allocator.allocate(100 * MIB).expect("room");
    let request = allocator.request(100 * MIB).pool(&pool);
    let error = request.allocate().expect_err("no room").to_string();
    assert!(!error.contains("expandable_segments"), "{error}");
    drop((held, pool));
    assert_emptied(&allocator);
}

pub(crate) fn the_limit_is_blamed_where_it_is_to_blame<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let held = allocator.allocate(40 * MIB).expect("room");
    assert!(!refused(&allocator, 100 * MIB).hint().contains("limit"), "there is none");
    allocator.set_memory_limit(Some(50 * MIB));
    let report = refused(&allocator, 20 * MIB);
    assert!(report.hint().contains("in the way, not the device; raise it (set_memory_limit)"));
    assert_eq!((report.limit, report.limit_is_fraction), (Some(50 * MIB), false));
    assert_eq!(allocator.set_memory_fraction(0.35), Ok(()));
    let report = refused(&allocator, 20 * MIB);
    assert!(report.hint().contains("raise it (set_memory_fraction)"), "{report}");
    assert!(report.limit_is_fraction);
    drop(held);
    assert_emptied(&allocator);
}

pub(crate) fn a_private_pool_that_would_do_is_named<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.with(128 * MIB, |config| config.trim_private_pools = false);
    let pool = allocator.create_pool(PoolOptions::default());
    drop(allocator.request(60 * MIB).pool(&pool).allocate().expect("room"));
    let held = allocator.allocate(40 * MIB).expect("room");
    let report = refused(&allocator, 50 * MIB);
    assert!(report.private_free >= 60 * MIB, "{report}");
    assert!(report.hint().contains("PoolOptions::use_on_oom"), "{report}");
    assert!(report.to_string().contains("are in private pools"), "{report}");
    drop((held, pool));
    assert_emptied(&allocator);
}

type Told = Arc<Mutex<Vec<(u64, OomCause)>>>;

fn told(told: &Told) -> Vec<(u64, OomCause)> {
    told.lock().expect("no panic here").clone()
}

pub(crate) fn observers_are_told_once_of_each_failure<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let [first, second] = [Told::default(), Told::default()];
    let guards = [&first, &second].map(|told| {
        let told = Arc::clone(told);
        allocator.observe_out_of_memory(move |report| {
            told.lock().expect("no panic here").push((report.requested, report.cause));
        })
    });
    let held = allocator.allocate(100 * MIB).expect("room");
    drop(allocator.allocate(20 * MIB).expect("room"));
    assert!(told(&first).is_empty(), "nothing has failed");
    let error = allocator.allocate(60 * MIB).expect_err("no room");
    assert!(matches!(error, AllocError::OutOfMemory(_)), "{error}");
    assert!(allocator.allocate(64 * MIB).is_err());
    let expected = vec![(60 * MIB, OomCause::NoRoom), (64 * MIB, OomCause::NoRoom)];
    assert_eq!((told(&first), told(&second)), (expected.clone(), expected.clone()));
    let [guard, other] = guards;
    drop(guard);
    assert!(allocator.allocate(50 * MIB).is_err());
    assert_eq!(told(&first), expected, "its guard is gone");
    assert_eq!(told(&second).len(), expected.len() + 1);
    drop((other, held));
    assert_emptied(&allocator);
}

pub(crate) fn an_observer_may_do_anything<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let seen = Told::default();
    let _panics = allocator.observe_out_of_memory(|_| panic!("this panic is part of the test"));
    let (inner, noted) = (allocator.clone(), Arc::clone(&seen));
    let guard = allocator.observe_out_of_memory(move |report| {
        // Nothing is locked; and what fails in here is told to nobody.
        inner.verify();
        assert!(inner.memory_allocated() >= 100 * MIB);
        assert!(inner.allocate(1000).is_ok());
        assert!(inner.allocate(100 * MIB).is_err());
        noted.lock().expect("no panic here").push((report.requested, report.cause));
    });
    let held = allocator.allocate(100 * MIB).expect("room");
    for _ in 0..2 {
        let error = allocator.allocate(50 * MIB).expect_err("no room");
        assert!(matches!(error, AllocError::OutOfMemory(_)), "{error}");
    }
    assert_eq!(told(&seen), vec![(50 * MIB, OomCause::NoRoom); 2]);
    drop((guard, held));
    assert_emptied(&allocator);
}
