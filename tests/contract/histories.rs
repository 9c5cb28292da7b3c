//! The history: what is recorded, in which order, and that it agrees with the state.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aquifer::report::history::{Action, Event};
use aquifer::report::snapshot::{BlockState, Snapshot};
use aquifer::{Allocator, HistoryOptions, PoolOptions};

use crate::Subject;
use crate::support::{Device, KIB, MIB, assert_emptied, harvest};

fn names(snapshot: &Snapshot) -> Vec<&'static str> {
    snapshot.history.iter().map(|event| event.action.name()).collect()
}

fn recording<D: Device>(subject: &Subject<D>) -> (D, Allocator<D>) {
    let (device, allocator) = subject.fresh();
    allocator.record_history(HistoryOptions::default());
    (device, allocator)
}

/// Plays a history back from nothing: no event contradicts the one before, and at the end there is
/// what the snapshot shows.
#[track_caller]
pub(crate) fn check(snapshot: &Snapshot) {
    let mut memory: BTreeMap<u64, u64> = BTreeMap::new();
    let mut live: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
    let backed = |memory: &BTreeMap<u64, u64>, start: u64, size: u64| {
        let (mut at, end) = (start, start + size);
        while at < end {
            let below = memory.range(..=at).next_back();
            match below.map(|(start, size)| start + size).filter(|&stop| stop > at) {
                Some(stop) => at = stop,
                None => return false,
            }
        }
        true
    };
    let mut last = 0;
    for event in &snapshot.history {
        assert!(event.time_us >= last, "time goes on: {event:?}");
        last = event.time_us;
        let (at, size) = (event.address, event.size);
        match event.action {
            Action::SegmentAlloc | Action::SegmentMap => {
                let overlaps = memory.range(..at + size).next_back();
                assert!(overlaps.is_none_or(|(start, size)| start + size <= at), "{event:?}");
                memory.insert(at, size);
            }
            Action::SegmentFree => assert_eq!(memory.remove(&at), Some(size), "{event:?}"),
            Action::SegmentUnmap => unmap(&mut memory, at, size),
            Action::Alloc => {
                assert!(backed(&memory, at, size), "nothing behind {event:?}");
                assert!(live.insert(at, (size, true)).is_none(), "twice: {event:?}");
            }
            Action::FreeRequested => {
                let held = live.get_mut(&at).unwrap_or_else(|| panic!("not live: {event:?}"));
                assert_eq!(*held, (size, true), "{event:?}");
                held.1 = false;
            }
            Action::FreeCompleted => {
                assert_eq!(live.remove(&at), Some((size, false)), "{event:?}");
            }
            _ => {}
        }
    }
    let mut shown: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
    let mut total = 0;
    for segment in &snapshot.segments {
        total += segment.total_size;
        for block in &segment.blocks {
            let at = segment.place + block.offset;
            match block.state {
                BlockState::Allocated => drop(shown.insert(at, (block.requested_size, true))),
                BlockState::Pending => drop(shown.insert(at, (block.requested_size, false))),
                _ => {}
            }
        }
    }
    assert_eq!(live, shown, "the history against the state");
    assert_eq!(memory.values().sum::<u64>(), total, "the segments of the history");
}

/// Pages go in other pieces than they came.
fn unmap(memory: &mut BTreeMap<u64, u64>, at: u64, size: u64) {
    let (mut from, end) = (at, at + size);
    while from < end {
        let (&start, &len) = memory.range(..=from).next_back().expect("pages are there");
        let stop = (start + len).min(end);
        assert!(stop > from, "pages are there");
        memory.remove(&start);
        if start < from {
            memory.insert(start, from - start);
        }
        if start + len > stop {
            memory.insert(stop, start + len - stop);
        }
        from = stop;
    }
}

pub(crate) fn what_happens_is_recorded<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = recording(subject);
    let tag = allocator.tag("model");
    let (held, line) = (allocator.request(3 * MIB).tag(tag).allocate().expect("room"), line!());
    drop(held);
    let events = allocator.memory_snapshot().history;
    let came = if subject.is_expandable() { Action::SegmentMap } else { Action::SegmentAlloc };
    let actions: Vec<_> = events.iter().map(|event| event.action).collect();
    let expected =
        [came, Action::Alloc, Action::FreeRequested, Action::FreeCompleted, Action::Snapshot];
    assert_eq!(actions, expected);
    let alloc = &events[1];
    assert_eq!((alloc.size, alloc.tag.as_deref()), (3 * MIB, Some("model")));
    assert_eq!((alloc.frames[0].line, &*alloc.frames[0].file), (line, file!()));
    assert_eq!((events[2].address, events[3].address), (alloc.address, alloc.address));
    assert!(alloc.time_us > 1_600_000_000_000_000, "since 1970");
    allocator.stop_history();
    assert!(allocator.memory_snapshot().history.is_empty());
    assert_emptied(&allocator);
}

pub(crate) fn a_history_agrees_with_the_state<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = recording(subject);
    let pool = allocator.create_pool(PoolOptions::default());
    let other = allocator.stream(1);
    let mut held = Vec::new();
    for round in 0..40_u64 {
        let size = [700, 20 * KIB, 3 * MIB, 12 * MIB, 100 * KIB][round as usize % 5] + round;
        let stream = if round % 3 == 0 { &other } else { &allocator.default_stream() };
        let mut request = allocator.request(size).on(stream);
        if round % 7 == 0 {
            request = request.pool(&pool);
        }
        held.extend(request.allocate());
        if round % 4 == 1 {
            allocator.record_stream(&held[held.len() / 2], &other);
        }
        if round % 2 == 0 {
            held.swap_remove(round as usize % held.len());
        }
        if round % 11 == 10 {
            allocator.empty_cache();
        }
        if round % 5 == 4 {
            check(&allocator.memory_snapshot());
        }
    }
    held.truncate(3);
    harvest(&allocator);
    check(&allocator.memory_snapshot());
    allocator.verify();
    drop((held, pool));
    allocator.empty_cache();
    check(&allocator.memory_snapshot());
    assert_emptied(&allocator);
}

pub(crate) fn the_oldest_events_go<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    allocator.record_history(HistoryOptions { max_entries: 10, ..HistoryOptions::default() });
    for size in 1..=100 {
        drop(allocator.allocate(size).expect("room"));
    }
    let events = allocator.memory_snapshot().history;
    let sizes: Vec<u64> = events
        .iter()
        .filter(|event| event.action == Action::Alloc)
        .map(|event| event.size)
        .collect();
    assert_eq!(sizes, [97, 98, 99, 100], "10 entries, of which one is the snapshot itself");
    allocator.clear_history();
    assert_eq!(names(&allocator.memory_snapshot()), ["snapshot"]);
}

pub(crate) fn actions_can_be_skipped<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let skip_actions = vec![Action::FreeRequested, Action::Snapshot, Action::SegmentMap];
    allocator.record_history(HistoryOptions { skip_actions, ..HistoryOptions::default() });
    drop(allocator.allocate(3000).expect("room"));
    let seen = names(&allocator.memory_snapshot());
    assert!(seen.ends_with(&["alloc", "free_completed"]), "{seen:?}");
    let skip_actions = vec![Action::FreeRequested, Action::FreeCompleted];
    allocator.record_history(HistoryOptions { skip_actions, ..HistoryOptions::default() });
    drop(allocator.allocate(3000).expect("room"));
    assert_eq!(names(&allocator.memory_snapshot()), ["alloc", "snapshot"]);
}

pub(crate) fn failures_and_remarks_are_recorded<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = recording(subject);
    allocator.annotate("epoch 1");
    assert!(allocator.allocate(1 << 30).is_err());
    let snapshot = allocator.memory_snapshot();
    let oom = snapshot.history.iter().find(|event| event.action == Action::Oom);
    let oom = oom.expect("a failed request is an event");
    assert_eq!((oom.size, oom.device_free), (1 << 30, Some(128 * MIB)));
    assert_eq!(snapshot.annotations[0].text, "epoch 1");
    assert!(snapshot.annotations[0].time_us <= oom.time_us);
    assert_eq!(snapshot.device_total, Some(128 * MIB));
    assert!(!snapshot.device_name.is_empty());
    assert_eq!(snapshot.settings.contains("expandable_segments:True"), subject.is_expandable());
}

pub(crate) fn observers_hear_of_events<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let heard: Arc<Mutex<Vec<Event>>> = Arc::default();
    let theirs = Arc::clone(&heard);
    let inner = allocator.clone();
    let guard = allocator.on_event(move |event| {
        // No lock is held: it may ask, and is not asked about that.
        assert!(inner.memory_reserved() < u64::MAX);
        theirs.lock().expect("no panic here").push(event.clone());
    });
    drop(allocator.allocate(MIB).expect("room"));
    assert!(heard.lock().expect("no panic here").is_empty(), "nothing is recorded");
    allocator.record_history(HistoryOptions::default());
    let panics = allocator.on_event(|_| panic!("this panic is part of the test"));
    drop(allocator.allocate(3 * MIB).expect("room"));
    drop(panics);
    let actions: Vec<_> =
        heard.lock().expect("no panic here").iter().map(|event| event.action.name()).collect();
    assert!(actions.ends_with(&["alloc", "free_requested", "free_completed"]), "{actions:?}");
    drop(guard);
    let before = heard.lock().expect("no panic here").len();
    drop(allocator.allocate(3 * MIB).expect("room"));
    assert_eq!(heard.lock().expect("no panic here").len(), before);
}

/// What an observer owns goes with it, and may be of the same allocator.
pub(crate) fn observers_may_own_memory<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    allocator.record_history(HistoryOptions::default());
    let owned = Mutex::new(Some(allocator.allocate(MIB).expect("room")));
    let inner = allocator.on_event(|_| ());
    let guard = allocator
        .on_event(move |_| assert!(owned.lock().is_ok() && !format!("{inner:?}").is_empty()));
    drop(guard);
    assert_eq!(allocator.memory_allocated(), 0);
}

/// As a snapshot says it.
pub(crate) fn observers_hear_of_pools<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let heard: Arc<Mutex<Vec<Event>>> = Arc::default();
    let theirs = Arc::clone(&heard);
    allocator.record_history(HistoryOptions::default());
    let pool = allocator.create_pool(PoolOptions::default());
    let _guard =
        allocator.on_event(move |event| theirs.lock().expect("no panic").push(event.clone()));
    drop(allocator.request(3 * MIB).pool(&pool).allocate().expect("room"));
    let heard = heard.lock().expect("no panic");
    assert!(heard.iter().all(|event| event.pool_id == pool.id()), "{heard:?}");
}
