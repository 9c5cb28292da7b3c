//! Limits, callbacks, and memory that goes back by itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aquifer::backend::{Fault, Sim};
use aquifer::report::oom::OomCause;
use aquifer::{AllocError, Allocation, Allocator, CallbackGuard, LimitError};

use crate::Subject;
use crate::support::{Device, MIB, assert_emptied};

pub(crate) fn a_limit_binds<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    allocator.set_memory_limit(Some(50 * MIB));
    assert_eq!(allocator.memory_limit(), Some(50 * MIB));
    let held = allocator.allocate(20 * MIB).expect("below the limit");
    assert!(allocator.allocate(41 * MIB).is_err());
    assert!(device.used() <= 50 * MIB);
    // What is cached makes room.
    let other = allocator.allocate(10 * MIB).expect("below the limit");
    drop(held);
    let third = allocator.allocate(25 * MIB).expect("below the limit, once the cache is gone");
    assert!(device.used() <= 50 * MIB);
    allocator.set_memory_limit(None);
    let fourth = allocator.allocate(60 * MIB).expect("no limit");
    drop((other, third, fourth));
    assert_emptied(&allocator);
}

pub(crate) fn a_fraction_binds<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.fresh();
    assert_eq!(allocator.set_memory_fraction(0.5), Ok(()));
    assert_eq!((allocator.memory_fraction(), allocator.memory_limit()), (0.5, Some(64 * MIB)));
    assert!(allocator.allocate(65 * MIB).is_err());
    drop(allocator.allocate(60 * MIB).expect("below the limit"));
    allocator.set_memory_limit(Some(30 * MIB));
    assert_eq!(allocator.memory_limit(), Some(30 * MIB), "the lower of both");
    assert_eq!(allocator.set_memory_fraction(1.0), Ok(()));
    assert_eq!(allocator.memory_limit(), Some(30 * MIB));
    allocator.set_memory_limit(None);
    assert_eq!(allocator.memory_limit(), None);
    drop(allocator.allocate(100 * MIB).expect("no limit"));
    assert!(device.used() >= 100 * MIB);
}

pub(crate) fn fractions_out_of_range_are_refused<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    for fraction in [-0.1, 1.1, f64::INFINITY] {
        let outcome = allocator.set_memory_fraction(fraction);
        assert_eq!(outcome, Err(LimitError::Fraction(fraction)));
    }
    assert!(allocator.set_memory_fraction(f64::NAN).is_err());
    assert_eq!((allocator.memory_fraction(), allocator.memory_limit()), (1.0, None));
    assert_eq!(allocator.set_memory_fraction(0.0), Ok(()));
    assert!(allocator.allocate(1).is_err(), "a fraction of 0 leaves nothing");
}

pub(crate) fn rejection_comes_before_the_driver<D: Device>(subject: &Subject<D>) {
    let (device, allocator) = subject.with(128 * MIB, |config| {
        config.reject_before_driver = true;
        config.headroom = None;
        config.memory_limit = Some(64 * MIB);
    });
    let held = allocator.allocate(30 * MIB).expect("below the limit");
    drop(allocator.allocate(12 * MIB).expect("below the limit"));
    let before = device.sim().map(Sim::calls);
    let reserved = allocator.memory_reserved();
    let error = allocator.allocate(60 * MIB).expect_err("above the limit");
    let AllocError::OutOfMemory(report) = &error else { panic!("{error}") };
    assert_eq!(report.cause, OomCause::Rejected, "{error}");
    assert_eq!(device.sim().map(Sim::calls), before, "the driver was asked");
    assert_eq!(allocator.memory_reserved(), reserved, "something was given back for it");
    assert_eq!(allocator.memory_stats().num_oom_rejections, 1);
    drop(held);
    allocator.verify();
}

type Asked = Arc<Mutex<Vec<(i32, u64)>>>;

fn note<D: Device>(
    allocator: &Allocator<D>,
    asked: &Asked,
    priority: i32,
    freed: bool,
) -> CallbackGuard {
    let asked = Arc::clone(asked);
    allocator.on_out_of_memory(priority, move |pressure| {
        asked.lock().expect("no panic here").push((priority, pressure.requested));
        freed
    })
}

pub(crate) fn callbacks_by_priority_once_each<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let asked = Asked::default();
    // The answers are lies: they bring one more look each, not one more question.
    let guards = [(1, true), (5, false), (-3, true), (5, true)]
        .map(|(priority, freed)| note(&allocator, &asked, priority, freed));
    let held = allocator.allocate(100 * MIB).expect("room");
    assert!(allocator.allocate(50 * MIB).is_err());
    let order = [5, 5, 1, -3].map(|priority| (priority, 50 * MIB));
    assert_eq!(*asked.lock().expect("no panic here"), order);
    assert!(allocator.allocate(60 * MIB).is_err());
    assert_eq!(asked.lock().expect("no panic here").len(), 8, "once for each request");
    drop((guards, held));
    assert_emptied(&allocator);
}

pub(crate) fn callbacks_are_not_asked_without_need<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let asked = Asked::default();
    let _guard = note(&allocator, &asked, 0, true);
    for size in [1, 3 * MIB, 12 * MIB, 30 * MIB, 12 * MIB] {
        drop(allocator.allocate(size).expect("room"));
    }
    assert!(asked.lock().expect("no panic here").is_empty(), "a miss is no pressure");
}

pub(crate) fn a_panic_in_a_callback_is_contained<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let asked = Asked::default();
    let _panics = allocator.on_out_of_memory(9, |_| panic!("this panic is part of the test"));
    let _after = note(&allocator, &asked, 0, false);
    let held = allocator.allocate(100 * MIB).expect("room");
    let error = allocator.allocate(50 * MIB).expect_err("no room");
    assert!(matches!(error, AllocError::OutOfMemory(_)), "{error}");
    assert_eq!(asked.lock().expect("no panic here").len(), 1, "the others are asked all the same");
    drop(held);
    drop(allocator.allocate(110 * MIB).expect("the allocator works on"));
    allocator.verify();
}

pub(crate) fn a_callback_that_frees_helps<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let cache: Arc<Mutex<Vec<Allocation<D>>>> = Arc::default();
    let full = allocator.allocate(70 * MIB).expect("room");
    cache.lock().expect("no panic here").push(full);
    let asked = Asked::default();
    let theirs = Arc::clone(&cache);
    let _frees = allocator.on_out_of_memory(5, move |_| {
        let mut cache = theirs.lock().expect("no panic here");
        let some = !cache.is_empty();
        cache.clear();
        some
    });
    let _not_needed = note(&allocator, &asked, 0, false);
    let held = allocator.allocate(90 * MIB).expect("the callback made room");
    assert!(cache.lock().expect("no panic here").is_empty());
    drop(held);
    allocator.verify();
    assert_emptied(&allocator);
}

pub(crate) fn a_callback_may_allocate<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let (calls, inner) = (Arc::new(AtomicU64::new(0)), allocator.clone());
    let counted = Arc::clone(&calls);
    let guard = allocator.on_out_of_memory(0, move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        let small = inner.allocate(1000).is_ok();
        // Refused, and no callback is asked for it: this one would be inside itself.
        let large = inner.allocate(100 * MIB).is_ok();
        assert!(small && !large, "small {small} large {large}");
        inner.empty_cache();
        inner.verify();
        false
    });
    let held = allocator.allocate(90 * MIB).expect("room");
    assert!(allocator.allocate(50 * MIB).is_err());
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    drop((held, guard));
    assert_emptied(&allocator);
}

pub(crate) fn a_dropped_callback_is_silent<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let asked = Asked::default();
    drop(note(&allocator, &asked, 0, true));
    let _held = allocator.allocate(100 * MIB).expect("room");
    assert!(allocator.allocate(50 * MIB).is_err());
    assert!(asked.lock().expect("no panic here").is_empty());
}

pub(crate) fn idle_memory_goes_after_its_age<D: Device>(subject: &Subject<D>) {
    let age = Duration::from_secs(60);
    let (device, allocator) = subject.with(128 * MIB, |config| {
        config.trim_age = Some(age);
        config.headroom = None;
    });
    let seconds = |seconds| Duration::from_secs(seconds);
    assert_eq!(allocator.maintain(seconds(100)), 0);
    let held = allocator.allocate(12 * MIB).expect("room");
    let old = allocator.allocate(14 * MIB).expect("room");
    drop(old);
    assert_eq!(allocator.maintain(seconds(130)), 0, "idle for 30 s");
    let young = allocator.allocate(30 * MIB).expect("room");
    drop(young);
    assert_eq!(allocator.maintain(seconds(90)), 0, "time does not go back");
    let reserved = allocator.memory_reserved();
    let returned = allocator.maintain(seconds(161));
    assert!(returned >= 14 * MIB, "{returned} bytes of what has been idle for 61 s");
    assert_eq!(allocator.memory_reserved(), reserved - returned);
    assert_eq!(device.used(), allocator.memory_reserved());
    assert!(allocator.maintain(seconds(191)) >= 30 * MIB);
    assert!(allocator.memory_reserved() >= 12 * MIB, "what is held stays");
    drop(held);
    allocator.verify();
}

pub(crate) fn garbage_collection_needs_no_fraction<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.with(128 * MIB, |config| {
        config.garbage_collection_threshold = Some(0.5);
        config.headroom = None;
    });
    let sizes = [12 * MIB, 14 * MIB, 16 * MIB, 18 * MIB, 20 * MIB];
    let held: Vec<_> = sizes.iter().map(|&size| allocator.allocate(size).expect("room")).collect();
    drop(held);
    // 80 MiB of 128 are cached, the threshold is at 64.
    let _held = allocator.allocate(24 * MIB).expect("room");
    let stats = allocator.memory_stats();
    assert!(stats.reserved_bytes.all.current < 104 * MIB, "nothing was collected");
    assert_eq!(stats.num_alloc_retries, 0, "it was not for want of memory");
}

pub(crate) fn cached_memory_follows_the_high_water_mark<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.with(1 << 30, |_| {});
    // Each phase uses other sizes, so that nothing of the last one fits.
    for phase in 0..6_u64 {
        let size = (11 + 4 * phase) * MIB;
        let mut held = Vec::new();
        for _ in 0..100 * MIB / size {
            held.push(allocator.allocate(size).expect("room"));
            let stats = allocator.memory_stats();
            let high_water = stats.active_bytes.all.peak;
            let segment = (size + 2 * MIB).max(20 * MIB);
            let bound = (high_water as f64 * 1.05) as u64 + segment;
            let reserved = stats.reserved_bytes.all.current;
            assert!(reserved <= bound, "phase {phase}: {reserved} reserved, {bound} is enough");
        }
    }
}

/// Nothing is handed out on a device that is gone, not even what is cached.
pub(crate) fn a_lost_device_serves_nothing(subject: &Subject<Sim>) {
    let (sim, allocator) = subject.with(128 * MIB, |config| config.headroom = None);
    let held = allocator.allocate(3 * MIB).expect("room");
    drop(allocator.allocate(5000).expect("room"));
    sim.fail_at(1, Fault::Lost);
    let error = allocator.allocate(70 * MIB).expect_err("the device is gone");
    assert!(matches!(error, AllocError::DeviceLost(_)), "{error}");
    assert!(error.to_string().contains("simulated fault"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
    allocator.verify();
    let error = allocator.allocate(40 * MIB).err();
    assert!(matches!(error, Some(AllocError::DeviceLost(_))), "a miss: {error:?}");
    let hit = allocator.allocate(5000);
    assert!(matches!(hit, Err(AllocError::DeviceLost(_))), "a hit: {hit:?}");
    drop(held);
    assert_emptied(&allocator);
}

/// A growth that the limit refuses touches no page of anybody.
pub(crate) fn a_refused_growth_leaves_its_donors_alone(subject: &Subject<Sim>) {
    let (sim, allocator) = subject.with(200 * MIB, |config| config.memory_limit = Some(60 * MIB));
    // A broken allocator must not be taken down during a panic: the second one would end the
    // program.
    std::mem::forget(allocator.clone());
    let held = [20 * MIB; 3].map(|size| allocator.allocate(size).expect("room"));
    let [first, second, third] = held;
    drop(second);
    // Its 20 MiB are not enough for 40 in one piece, as third is in the way.
    assert!(allocator.allocate(40 * MIB).is_err());
    assert_eq!(sim.used_bytes(), allocator.memory_reserved(), "the books against the device");
    allocator.verify();
    drop((first, third));
    allocator.empty_cache();
    assert_eq!(sim.used_bytes(), 0);
}
