//! Named scopes: what came and went in them, their peaks, and what of them is still held.

use std::thread;

use aquifer::report::scope::ScopeReport;
use aquifer::{Allocation, ScopeGuard};

use crate::Subject;
use crate::support::{Device, KIB, MIB, Rng, assert_emptied};

pub(crate) fn a_scope_tells_what_it_did<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let before = allocator.allocate(4 * MIB).expect("room");
    let later = allocator.allocate(2 * MIB).expect("room");
    let reserved = allocator.memory_reserved();
    let scope = allocator.scope("step");
    assert_eq!(scope.name(), "step");
    let inside = [8 * MIB, 30 * MIB].map(|size| allocator.allocate(size).expect("room"));
    drop(inside);
    drop(later);
    allocator.empty_cache();
    // Totals that start anew are the user's business.
    allocator.reset_accumulated_memory_stats();
    let kept = allocator.allocate(3 * MIB).expect("room");
    let report = scope.end();
    assert_eq!((report.allocated_count, report.allocated_bytes), (3, 41 * MIB));
    assert_eq!((report.freed_count, report.freed_bytes), (3, 40 * MIB));
    assert_eq!((report.allocated_before, report.allocated_after), (6 * MIB, 7 * MIB));
    assert_eq!((report.allocated_peak, report.active_peak), (44 * MIB, 44 * MIB));
    assert_eq!((report.reserved_before, report.reserved_after), {
        (reserved, allocator.memory_reserved())
    });
    assert!(report.reserved_peak >= 44 * MIB && report.returned_bytes >= 38 * MIB, "{report}");
    let balance = report.reserved_before + report.grown_bytes - report.returned_bytes;
    assert_eq!(balance, report.reserved_after, "{report}");
    assert_eq!((report.held_count(), report.held_bytes()), (1, 3 * MIB));
    drop((before, kept));
    assert_emptied(&allocator);
}

pub(crate) fn a_scope_names_who_holds_what<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let tag = allocator.tag("cache");
    let before = allocator.request(4 * KIB).tag(tag).allocate().expect("room");
    let swapped = allocator.allocate(256 * KIB).expect("room");
    let raw = allocator.request(4 * KIB).allocate_raw().expect("room");
    let scope = allocator.scope("serve");
    // Its block is handed out again: what is there now is of the scope.
    drop(swapped);
    let swapped = allocator.allocate(256 * KIB).expect("room");
    let line = line!() + 1;
    let keep = || allocator.request(2 * MIB).tag(tag).allocate().expect("room");
    let kept = [keep(), keep()];
    drop(allocator.allocate(MIB).expect("room"));
    let before = before.into_raw();
    let report = scope.report();
    let [first, second] = report.held.as_slice() else { panic!("{report}") };
    assert_eq!((first.bytes, first.count), (4 * MIB, 2));
    assert_eq!(first.tag.as_deref(), Some("cache"));
    assert_eq!(first.location, format!("{}:{line}", file!()));
    assert_eq!(first.age, Some(2), "one of the two, and what was dropped, came after it");
    assert_eq!((second.bytes, second.count, second.tag.as_deref()), (256 * KIB, 1, None));
    assert_eq!(second.age, Some(3));
    let text = report.to_string();
    for part in ["\"serve\"", "[cache]", "still held of it: 4.25 MiB in 3", "2 allocations ago"] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    drop((kept, swapped));
    allocator.free_raw(before.id).expect("it is live");
    allocator.free_raw(raw.id).expect("it is live");
    let report = scope.end();
    assert!(report.held.is_empty(), "{report}");
    assert!(report.to_string().contains("nothing of it is still held"), "{report}");
    assert_emptied(&allocator);
}

/// Scopes that begin and end as they like on three streams, against counters of the test's own.
pub(crate) fn scopes_overlap_as_they_like<D: Device>(subject: &Subject<D>) {
    for seed in 0..6 {
        let (_, allocator) = subject.fresh();
        let streams = [1, 2].map(|stream| allocator.stream(stream));
        let mut rng = Rng::new(seed);
        let mut live: Vec<(Allocation<D>, u64)> = Vec::new();
        let mut scopes: Vec<Counted<D>> = Vec::new();
        let (mut allocated, mut peak, mut serial) = (0, 0, 0);
        for _ in 0..600 {
            match rng.below(20) {
                0 if scopes.len() < 5 => {
                    let guard = allocator.scope(format!("scope {serial}"));
                    scopes.push(Counted {
                        guard,
                        began: serial,
                        came: 0,
                        gone: 0,
                        peak: allocated,
                    });
                }
                1 if !scopes.is_empty() => {
                    let scope = scopes.swap_remove(rng.below(scopes.len() as u64) as usize);
                    scope.check(&live);
                }
                2 => {
                    allocator.reset_peak_memory_stats();
                    peak = allocated;
                }
                3 => {
                    allocator.empty_cache();
                }
                4..=11 if allocated < 60 * MIB => {
                    let size = rng.size(4 * MIB);
                    let stream = rng.below(3) as usize;
                    let made = match streams.get(stream) {
                        Some(stream) => allocator.allocate_on(stream, size),
                        None => allocator.allocate(size),
                    };
                    let made = made.expect("there is room for twice as much");
                    allocated += made.capacity();
                    peak = peak.max(allocated);
                    for scope in &mut scopes {
                        scope.came += made.capacity();
                        scope.peak = scope.peak.max(allocated);
                    }
                    serial += 1;
                    live.push((made, serial));
                }
                _ if !live.is_empty() => {
                    let (gone, _) = live.swap_remove(rng.below(live.len() as u64) as usize);
                    allocated -= gone.capacity();
                    scopes.iter_mut().for_each(|scope| scope.gone += gone.capacity());
                }
                _ => {}
            }
            if rng.below(10) == 0 {
                assert_eq!(allocator.max_memory_allocated(), peak, "seed {seed}");
                allocator.verify();
            }
        }
        scopes.into_iter().for_each(|scope| scope.check(&live));
        assert_eq!(allocator.max_memory_allocated(), peak, "seed {seed}");
        live.clear();
        assert_emptied(&allocator);
    }
}

struct Counted<D: Device> {
    guard: ScopeGuard<D>,
    /// Allocations made before it.
    began: u64,
    came: u64,
    gone: u64,
    peak: u64,
}

impl<D: Device> Counted<D> {
    #[track_caller]
    fn check(self, live: &[(Allocation<D>, u64)]) {
        let report = self.guard.end();
        let ScopeReport { allocated_bytes, freed_bytes, allocated_peak, .. } = report;
        assert_eq!((allocated_bytes, freed_bytes, allocated_peak), {
            (self.came, self.gone, self.peak)
        });
        let held: Vec<u64> = live
            .iter()
            .filter(|(_, serial)| *serial > self.began)
            .map(|(allocation, _)| allocation.capacity())
            .collect();
        assert_eq!(report.held_count(), held.len() as u64);
        assert_eq!(report.held_bytes(), held.iter().sum::<u64>());
        assert!(report.reserved_peak >= report.allocated_peak);
    }
}

pub(crate) fn scopes_leave_the_statistics_alone<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    drop(allocator.allocate(40 * MIB).expect("room"));
    let stats = allocator.memory_stats();
    let outer = allocator.scope("outer");
    drop(allocator.allocate(20 * MIB).expect("room"));
    let inner = allocator.scope("inner");
    drop(allocator.allocate(10 * MIB).expect("room"));
    let inner = inner.end();
    let outer = outer.end();
    assert_eq!((inner.allocated_peak, outer.allocated_peak), (10 * MIB, 20 * MIB));
    assert_eq!(inner.reserved_peak, allocator.memory_reserved());
    let now = allocator.memory_stats();
    for (of, earlier) in [
        (now.allocated_bytes.all, stats.allocated_bytes.all),
        (now.active_bytes.large_pool, stats.active_bytes.large_pool),
        (now.reserved_bytes.all, stats.reserved_bytes.all),
        (now.segment.all, stats.segment.all),
    ] {
        assert_eq!(of.peak, earlier.peak);
    }
    // The user's own reset is seen by no scope.
    let scope = allocator.scope("over a reset");
    drop(allocator.allocate(30 * MIB).expect("room"));
    allocator.reset_peak_memory_stats();
    assert_eq!(allocator.max_memory_allocated(), 0);
    drop(allocator.allocate(5 * MIB).expect("room"));
    assert_eq!(allocator.max_memory_allocated(), 5 * MIB);
    assert_eq!(scope.end().allocated_peak, 30 * MIB);
    assert_eq!(allocator.max_memory_allocated(), 5 * MIB);
    assert_emptied(&allocator);
}

pub(crate) fn a_scope_sees_all_threads<D: Device>(subject: &Subject<D>) {
    let (_, allocator) = subject.fresh();
    let streams = [1, 2, 3].map(|stream| allocator.stream(stream));
    let scope = allocator.scope("threads");
    thread::scope(|threads| {
        for stream in &streams {
            let allocator = &allocator;
            threads.spawn(move || {
                let inner = allocator.scope("one of them");
                for _ in 0..50 {
                    drop(allocator.allocate_on(stream, 64 * KIB).expect("room"));
                }
                let report = inner.end();
                assert!(report.allocated_count >= 50, "{report}");
            });
        }
    });
    let report = scope.end();
    assert_eq!((report.allocated_count, report.freed_count), (150, 150));
    let peak = report.allocated_peak;
    assert!((64 * KIB..=3 * 64 * KIB).contains(&peak), "{report}");
    assert!(report.held.is_empty(), "{report}");
    // Dropped while the thread unwinds, or whenever: it ends.
    drop(allocator.scope("dropped"));
    assert_emptied(&allocator);
}
