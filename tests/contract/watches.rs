//! Thresholds that tell when they are crossed, and batches that shrink until they fit.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aquifer::{
    AllocError, Allocation, Allocator, CallbackGuard, Crossing, Threshold,
    find_executable_batch_size, find_executable_batch_size_with, is_out_of_memory,
};

use crate::Subject;
use crate::support::{Device, KIB, MIB, assert_emptied};

type Told = Arc<Mutex<Vec<Crossing>>>;

fn watch<D: Device>(allocator: &Allocator<D>, threshold: Threshold) -> (Told, CallbackGuard) {
    let told = Told::default();
    let noted = Arc::clone(&told);
    let guard = allocator.watch(threshold, move |crossing| {
        noted.lock().expect("no panic here").push(*crossing);
    });
    (told, guard)
}

fn count(told: &Told) -> usize {
    told.lock().expect("no panic here").len()
}

pub(crate) fn a_threshold_fires_once_a_crossing<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let (told, guard) = watch(&allocator, Threshold::reserved(60 * MIB));
    let (low, _low) = watch(&allocator, Threshold::reserved(60 * MIB).rearmed_below(0.1));
    let few = allocator.allocate(40 * MIB).expect("room");
    assert_eq!(count(&told), 0, "below");
    let more = allocator.allocate(30 * MIB).expect("room");
    assert_eq!(count(&told), 1);
    let crossing = told.lock().expect("no panic here")[0];
    assert_eq!((crossing.threshold, crossing.allocated), (60 * MIB, 70 * MIB));
    assert!(crossing.reserved >= 70 * MIB && crossing.bound == Some(128 * MIB), "{crossing:?}");
    let most = allocator.allocate(20 * MIB).expect("room");
    allocator.maintain(Duration::from_secs(1));
    assert_eq!(count(&told), 1, "it has been above all the time");
    drop((more, most));
    allocator.empty_cache();
    let more = allocator.allocate(30 * MIB).expect("room");
    assert_eq!((count(&told), count(&low)), (2, 1), "down far enough for one of them, and up");
    // Above already: no crossing.
    let (late, _late) = watch(&allocator, Threshold::reserved(60 * MIB));
    let most = allocator.allocate(20 * MIB).expect("room");
    allocator.maintain(Duration::from_secs(2));
    assert_eq!(count(&late), 0);
    drop((guard, few, more, most));
    allocator.empty_cache();
    let held = allocator.allocate(70 * MIB).expect("room");
    assert_eq!((count(&told), count(&low), count(&late)), (2, 2, 1), "its guard is gone");
    drop(held);
    assert_emptied(&allocator);
}

pub(crate) fn fractions_are_of_the_limit_or_the_device<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let (told, _guard) = watch(&allocator, Threshold::reserved_fraction(0.5));
    let held = allocator.allocate(62 * MIB).expect("room");
    assert_eq!(count(&told), 0, "half of the device is 64 MiB");
    drop(held);
    allocator.empty_cache();
    allocator.set_memory_limit(Some(100 * MIB));
    let held = allocator.allocate(62 * MIB).expect("room");
    assert_eq!(count(&told), 1, "half of the limit is 50 MiB");
    assert_eq!(told.lock().expect("no panic here")[0].threshold, 50 * MIB);
    for fraction in [-0.1, 1.1, f64::NAN] {
        let made = catch_unwind(|| Threshold::allocated_fraction(fraction));
        assert!(made.is_err(), "{fraction} was taken");
        let made = catch_unwind(|| Threshold::allocated(1).rearmed_below(fraction));
        assert!(made.is_err(), "{fraction} was taken");
    }
    drop(held);
    assert_emptied(&allocator);
}

pub(crate) fn what_rises_in_the_cache_is_seen_by_the_clock<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    drop(allocator.allocate(80 * MIB).expect("room"));
    let (told, _guard) = watch(&allocator, Threshold::allocated(50 * MIB));
    let held = allocator.allocate(80 * MIB).expect("cached");
    assert_eq!(count(&told), 0, "a hit looks at nothing");
    allocator.maintain(Duration::from_secs(1));
    assert_eq!(count(&told), 1);
    drop(held);
    allocator.maintain(Duration::from_secs(2));
    let held = allocator.allocate(80 * MIB).expect("cached");
    allocator.maintain(Duration::from_secs(3));
    assert_eq!(count(&told), 2, "the clock saw that it was below");
    drop(held);
    assert_emptied(&allocator);
}

pub(crate) fn a_watch_may_do_anything<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let threshold = Threshold::reserved(20 * MIB);
    let _panics = allocator.watch(threshold, |_| panic!("this panic is part of the test"));
    let (inner, kept): (_, Arc<Mutex<Vec<Allocation<D>>>>) = (allocator.clone(), Arc::default());
    let keeper = Arc::clone(&kept);
    let guard = allocator.watch(threshold, move |_| {
        inner.verify();
        let more = inner.allocate(25 * MIB).expect("room");
        keeper.lock().expect("called once, not within itself").push(more);
    });
    let held = allocator.allocate(30 * MIB).expect("room");
    assert_eq!(kept.lock().expect("no panic here").len(), 1);
    kept.lock().expect("no panic here").clear();
    drop((guard, held));
    assert_emptied(&allocator);
}

pub(crate) fn a_batch_is_halved_until_it_fits<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let mut tried = Vec::new();
    let run = |batch: usize| -> Result<usize, AllocError> {
        tried.push(batch);
        // The halves of what failed before would be in the way, if they stayed cached.
        let first = allocator.allocate(batch as u64 * MIB)?;
        let second = allocator.allocate(batch as u64 * MIB)?;
        Ok((first.size() + second.size()) as usize)
    };
    let found = find_executable_batch_size(&allocator, 400, run);
    assert_eq!(found, Ok((50, 100 << 20)));
    assert_eq!(tried, [400, 200, 100, 50]);
    // Errors of a program's own, with the allocator's in their chain.
    let boxed = |batch: usize| -> Result<(), Box<dyn Error + Send + Sync>> {
        allocator.allocate(batch as u64 * MIB)?;
        Ok(())
    };
    let found = find_executable_batch_size(&allocator, 200, boxed).expect("100 MiB fit");
    assert_eq!(found, (100, ()));
    let is_large = |error: &String| error.contains("large");
    let found = find_executable_batch_size_with(&allocator, 9, is_large, |batch| {
        if batch > 2 { Err("too large".to_string()) } else { Ok(()) }
    });
    assert_eq!(found, Ok((2, ())));
    assert_emptied(&allocator);
}

pub(crate) fn a_batch_of_one_that_does_not_fit_is_an_error<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let held = allocator.allocate(4 * KIB).expect("room");
    let mut tried = Vec::new();
    let outcome = find_executable_batch_size(&allocator, 4, |batch| {
        tried.push(batch);
        allocator.allocate(1 << 30).map(|allocation| allocation.size())
    });
    let error = outcome.expect_err("never enough");
    assert!(is_out_of_memory(&error), "{error}");
    assert_eq!(tried, [4, 2, 1]);
    // What has nothing to do with memory is no reason to try again.
    let mut tries = 0;
    let outcome = find_executable_batch_size(&allocator, 4, |_| {
        tries += 1;
        Err::<(), Box<dyn Error>>("the data set is gone".into())
    });
    assert!(outcome.is_err() && tries == 1);
    let start = || find_executable_batch_size(&allocator, 0, |_| Ok::<_, AllocError>(()));
    assert!(catch_unwind(AssertUnwindSafe(start)).is_err(), "0 is misuse");
    drop(held);
    assert_emptied(&allocator);
}
