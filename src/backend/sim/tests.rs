//! The simulated device: addresses, the rules of virtual memory, vector clocks, planned failures.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use super::*;
use crate::backend::{Backend, GrowError, Lost, MemoryKind, VirtualMemory};

const KIND: MemoryKind = MemoryKind(0);
const G: Bytes = 2 * MIB;

fn sim(capacity: Bytes) -> Sim {
    Sim::new(SimOptions { capacity, ..SimOptions::default() })
}

fn virtual_sim(capacity: Bytes) -> Sim {
    Sim::new(SimOptions { capacity, virtual_memory: true, ..SimOptions::default() })
}

fn asynchronous() -> Sim {
    Sim::new(SimOptions { asynchronous: true, ..SimOptions::default() })
}

/// A chunk of `size`, mapped at `offset` and open.
fn map(sim: &Sim, range: &SimMemory, offset: Bytes, size: Bytes) {
    let chunk = sim.create(size).unwrap();
    sim.map(range, offset, chunk).unwrap();
    sim.set_access(range, offset, size).unwrap();
}

// Addresses and capacity.

#[test]
fn addresses_are_first_fit_and_ascending() {
    let sim = virtual_sim(100 * G);
    let [a, b, c] = [1, 2, 3].map(|size| sim.allocate(size * G, KIND).unwrap());
    let start = sim.address(&a).unwrap();
    assert!(start != 0 && start.is_multiple_of(sim.limits().alignment));
    assert_eq!(sim.address(&b), Some(start + G));
    assert_eq!(sim.address(&c), Some(start + 3 * G));
    sim.free(b);
    let too_large_for_the_gap = sim.allocate(3 * G, KIND).unwrap();
    assert_eq!(sim.address(&too_large_for_the_gap), Some(start + 6 * G));
    let [d, e] = [1, 1].map(|size| sim.allocate(size * G, KIND).unwrap());
    assert_eq!(sim.view(&d), SimView { address: start + G, size: G });
    assert_eq!(sim.address(&e), Some(start + 2 * G));
    sim.free(a);
    let range = sim.reserve(G).unwrap();
    assert_eq!(sim.address(&range), Some(start), "ranges share the addresses of segments");
    [c, d, e, too_large_for_the_gap, range].into_iter().for_each(|memory| sim.free(memory));
    assert_eq!((sim.live_segments(), sim.live_ranges(), sim.leaked()), (0, 0, 0));
    assert_eq!((sim.used_bytes(), sim.peak_used_bytes()), (0, 9 * G));
}

#[test]
fn capacity_counts_bytes_of_segments_and_chunks() {
    let sim = virtual_sim(4 * G);
    let range = sim.reserve(64 * G).unwrap();
    assert_eq!(sim.used_bytes(), 0, "addresses are free");
    let segment = sim.allocate(2 * G, KIND).unwrap();
    let chunk = sim.create(G).unwrap();
    assert_eq!((sim.used_bytes(), sim.free_bytes()), (3 * G, Some(G)));
    assert_eq!(sim.create(2 * G).err(), Some(GrowError::OutOfMemory));
    assert_eq!(sim.allocate(2 * G, KIND).err(), Some(GrowError::OutOfMemory));
    sim.map(&range, 5 * G, chunk).unwrap();
    assert_eq!((sim.used_bytes(), sim.mapped_bytes(), sim.live_chunks()), (3 * G, G, 1));
    sim.set_capacity(2 * G);
    assert_eq!((sim.free_bytes(), sim.limits().total), (Some(0), Some(4 * G)));
    sim.free(segment);
    assert_eq!(sim.free_bytes(), Some(G));
    let chunk = sim.unmap(&range, 5 * G).unwrap();
    assert_eq!((chunk.size(), sim.used_bytes(), sim.mapped_bytes()), (G, G, 0));
    sim.release(chunk);
    sim.free(range);
    assert_eq!((sim.used_bytes(), sim.live_chunks(), sim.leaked()), (0, 0, 0));
}

#[test]
fn options_show_in_the_limits() {
    let options = SimOptions {
        capacity: 1 << 30,
        granularity: 512,
        device_wait: false,
        segment_max: 1025,
        ..SimOptions::default()
    };
    let sim = Sim::new(options);
    let limits = sim.limits();
    assert_eq!((limits.total, limits.granularity, limits.alignment), (Some(1 << 30), 512, 512));
    assert_eq!((limits.segment_max, limits.device_wait), (1024, false));
    assert_eq!(sim.allocate(1536, KIND).err(), Some(GrowError::TooLarge));
    assert!(sim.virtual_memory().is_none() && virtual_sim(1).virtual_memory().is_some());
    assert_eq!((sim.options(), sim.default_stream()), (options, 0));
    assert_eq!(sim.describe(), "simulated device, 1073741824 bytes");
    assert_eq!(Sim::new(SimOptions::default()).limits().total, Some(1 << 40));
}

#[test]
fn dropped_memory_is_a_leak_and_stays_in_use() {
    let sim = virtual_sim(10 * G);
    drop(sim.allocate(G, KIND).unwrap());
    assert_eq!((sim.leaked(), sim.used_bytes()), (1, G));
    drop(sim.create(G).unwrap());
    drop(sim.reserve(G).unwrap());
    assert_eq!((sim.leaked(), sim.used_bytes(), sim.live_chunks()), (3, 2 * G, 1));
    let chunk = sim.create(G).unwrap();
    sim.release(chunk);
    assert_eq!(sim.leaked(), 3);
}

#[test]
fn four_threads_never_exceed_the_capacity() {
    let sim = sim(8 * G);
    let fill = || {
        let mut held = Vec::new();
        while let Ok(memory) = sim.allocate(G, KIND) {
            held.push(memory);
        }
        held
    };
    let held = thread::scope(|scope| {
        let threads = [(); 4].map(|()| scope.spawn(fill));
        threads.map(|thread| thread.join().unwrap())
    });
    let mut addresses =
        held.iter().flatten().map(|memory| sim.address(memory).unwrap()).collect::<Vec<_>>();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!((addresses.len(), sim.used_bytes()), (8, 8 * G));
    held.into_iter().flatten().for_each(|memory| sim.free(memory));
    assert_eq!((sim.used_bytes(), sim.leaked()), (0, 0));
}

#[test]
#[should_panic(expected = "no multiple of the granularity")]
fn sizes_off_the_granularity_panic() {
    let _ = sim(10 * G).allocate(G + 512, KIND);
}

#[test]
#[should_panic(expected = "choose a power of two of at least 512")]
fn a_granularity_of_three_panics() {
    Sim::new(SimOptions { granularity: 3, ..SimOptions::default() });
}

#[test]
#[should_panic(expected = "memory of another Sim")]
fn memory_of_another_device_panics() {
    let memory = sim(10 * G).allocate(G, KIND).unwrap();
    sim(10 * G).free(memory);
}

// Virtual memory.

#[test]
fn access_needs_mapping_and_set_access() {
    let sim = virtual_sim(100 * G);
    let range = sim.reserve(8 * G).unwrap();
    let base = sim.address(&range).unwrap();
    assert!(!sim.is_accessible(base, 1));
    for offset in [G, 2 * G] {
        let chunk = sim.create(G).unwrap();
        sim.map(&range, offset, chunk).unwrap();
    }
    assert!(!sim.is_accessible(base + G, 1), "mapped, not open");
    sim.set_access(&range, G, 2 * G).unwrap();
    assert!(sim.is_accessible(base + G, 2 * G) && sim.is_accessible(base + 2 * G - 1, 2));
    assert!(!sim.is_accessible(base + G - 1, 2) && !sim.is_accessible(base + 2 * G, G + 1));
    let chunk = sim.unmap(&range, G).unwrap();
    assert!(!sim.is_accessible(base + G, 1));
    sim.map(&range, 3 * G, chunk).unwrap();
    assert!(!sim.is_accessible(base + 2 * G, 2 * G), "access does not move with the chunk");
    sim.set_access(&range, 2 * G, 2 * G).unwrap();
    assert!(sim.is_accessible(base + 2 * G, 2 * G));
    let segment = sim.allocate(G, KIND).unwrap();
    let start = sim.address(&segment).unwrap();
    assert!(sim.is_accessible(start, G) && !sim.is_accessible(start, G + 1));
    assert!(!sim.is_accessible(0, 1));
    sim.free(segment);
    for offset in [2 * G, 3 * G] {
        let chunk = sim.unmap(&range, offset).unwrap();
        sim.release(chunk);
    }
    sim.free(range);
    assert_eq!((sim.leaked(), sim.used_bytes(), sim.live_ranges()), (0, 0, 0));
}

/// Runs a wrong call on a device with a range of 8 granules, in which a chunk of 2 lies at 2 and
/// one of 1 at 4. The panic must come before any change.
fn misuse(wrong: impl FnOnce(&Sim, &SimMemory)) {
    let sim = virtual_sim(100 * G);
    let range = sim.reserve(8 * G).unwrap();
    map(&sim, &range, 2 * G, 2 * G);
    map(&sim, &range, 4 * G, G);
    let panic = catch_unwind(AssertUnwindSafe(|| wrong(&sim, &range))).unwrap_err();
    for (offset, size) in [(2 * G, 2 * G), (4 * G, G)] {
        let chunk = sim.unmap(&range, offset).unwrap();
        assert_eq!(chunk.size(), size);
        sim.release(chunk);
    }
    sim.free(range);
    std::panic::resume_unwind(panic);
}

#[test]
#[should_panic(expected = "mapped twice")]
fn mapping_over_the_end_of_a_chunk_panics() {
    misuse(|sim, range| map(sim, range, 3 * G, G));
}

#[test]
#[should_panic(expected = "mapped twice")]
fn mapping_over_the_start_of_a_chunk_panics() {
    misuse(|sim, range| map(sim, range, G, 2 * G));
}

#[test]
#[should_panic(expected = "ends behind the range")]
fn mapping_behind_the_range_panics() {
    misuse(|sim, range| map(sim, range, 7 * G, 2 * G));
}

#[test]
#[should_panic(expected = "no multiple of the granularity")]
fn mapping_off_the_granularity_panics() {
    misuse(|sim, range| map(sim, range, 512, G));
}

#[test]
#[should_panic(expected = "no range of addresses but a segment")]
fn mapping_into_a_segment_panics() {
    misuse(|sim, _| map(sim, &sim.allocate(G, KIND).unwrap(), 0, G));
}

#[test]
#[should_panic(expected = "not fully mapped")]
fn access_over_a_hole_panics() {
    misuse(|sim, range| sim.set_access(range, 2 * G, 4 * G).unwrap());
}

#[test]
#[should_panic(expected = "no chunk begins at")]
fn access_from_inside_a_chunk_panics() {
    misuse(|sim, range| sim.set_access(range, 3 * G, 2 * G).unwrap());
}

#[test]
#[should_panic(expected = "ends inside a chunk")]
fn access_to_a_part_of_a_chunk_panics() {
    misuse(|sim, range| sim.set_access(range, 2 * G, G).unwrap());
}

#[test]
#[should_panic(expected = "nothing is mapped there")]
fn unmap_of_nothing_panics() {
    misuse(|sim, range| drop(sim.unmap(range, 5 * G)));
}

#[test]
#[should_panic(expected = "the inside of a chunk")]
fn unmap_of_a_part_panics() {
    misuse(|sim, range| drop(sim.unmap(range, 3 * G)));
}

#[test]
#[should_panic(expected = "with 1 chunks still mapped")]
fn free_of_a_mapped_range_panics() {
    misuse(|sim, _| {
        let range = sim.reserve(G).unwrap();
        map(sim, &range, 0, G);
        sim.free(range);
    });
}

#[test]
#[should_panic(expected = "SimOptions::virtual_memory is false")]
fn virtual_memory_that_is_off_panics() {
    let _ = sim(10 * G).reserve(G);
}

#[test]
#[should_panic(expected = "Limits::device_wait is false")]
fn device_waits_that_are_off_panic() {
    let sim = Sim::new(SimOptions { device_wait: false, ..SimOptions::default() });
    let event = sim.record(0).unwrap();
    let _ = sim.wait_on(1, &event);
}

// Streams.

#[test]
fn a_synchronous_device_is_always_done() {
    let sim = sim(10 * G);
    let work = sim.submit(3);
    let event = sim.record(3).unwrap();
    assert_eq!((sim.is_complete(&event), event.last()), (Ok(true), work));
    assert!(sim.is_ordered(work, 4));
    sim.wait_on(4, &event).unwrap();
    sim.wait(&event).unwrap();
    assert_eq!(sim.is_complete(&sim.record(9).unwrap()), Ok(true));
}

#[test]
fn events_complete_by_hand_only() {
    let sim = asynchronous();
    let idle = sim.record(0).unwrap();
    assert_eq!(sim.is_complete(&idle), Ok(false), "a mark on an idle stream waits as well");
    sim.submit(0);
    let second = sim.record(0).unwrap();
    sim.submit(0);
    let third = sim.record(0).unwrap();
    let other = sim.record(1).unwrap();
    let done = || [&idle, &second, &third, &other].map(|event| sim.is_complete(event).unwrap());
    assert_eq!(sim.advance(0, 1), 1);
    assert_eq!(done(), [true, false, false, false]);
    sim.complete_event(&second);
    assert_eq!(done(), [true, true, false, false]);
    sim.complete(0);
    assert_eq!(done(), [true, true, true, false]);
    assert_eq!(sim.advance(0, 5), 0, "nothing is left");
    sim.complete_all();
    assert_eq!(done(), [true; 4]);
    assert_eq!(sim.is_complete(&sim.record(0).unwrap()), Ok(false));
}

#[test]
fn order_comes_from_the_same_stream_or_from_completion() {
    let sim = asynchronous();
    let work = sim.submit(0);
    let later = sim.submit(0);
    assert!(sim.is_ordered(work, 0) && sim.is_ordered(later, 0));
    assert!(!sim.is_ordered(work, 1), "streams know nothing of each other");
    sim.advance(0, 1);
    assert!(sim.is_ordered(work, 1) && !sim.is_ordered(later, 1));
    let event = sim.record(0).unwrap();
    assert_eq!(sim.wait(&event), Ok(()));
    assert!(sim.is_ordered(later, 1));
}

#[test]
fn waits_order_what_was_before_the_event_only() {
    let sim = asynchronous();
    let before = sim.submit(0);
    let event = sim.record(0).unwrap();
    let after = sim.submit(0);
    sim.wait_on(1, &event).unwrap();
    assert!(sim.is_ordered(before, 1) && !sim.is_ordered(after, 1));
    assert!(!sim.is_ordered(before, 2) && !sim.is_ordered(sim.submit(1), 0), "one way only");
    let older = SimEvent::clone(&event);
    sim.wait_on(1, &sim.record(0).unwrap()).unwrap();
    sim.wait_on(1, &older).unwrap();
    assert!(sim.is_ordered(after, 1), "an older event takes nothing away");
}

#[test]
fn waits_are_transitive() {
    let sim = asynchronous();
    let first = sim.submit(0);
    sim.wait_on(1, &sim.record(0).unwrap()).unwrap();
    let second = sim.submit(1);
    let too_early = sim.record(2).unwrap();
    sim.wait_on(2, &sim.record(1).unwrap()).unwrap();
    sim.wait_on(3, &too_early).unwrap();
    assert!(sim.is_ordered(first, 2) && sim.is_ordered(second, 2));
    assert!(!sim.is_ordered(first, 3), "the mark on 2 was made before 2 waited");
    sim.wait_on(3, &sim.record(2).unwrap()).unwrap();
    assert!(sim.is_ordered(first, 3) && sim.is_ordered(second, 3));
}

#[test]
fn finishing_an_event_finishes_what_it_waits_for() {
    let sim = asynchronous();
    let base = sim.record(0).unwrap();
    let behind = sim.submit(0);
    sim.wait_on(1, &base).unwrap();
    let middle = sim.record(1).unwrap();
    sim.wait_on(2, &middle).unwrap();
    let top = sim.record(2).unwrap();
    sim.wait(&top).unwrap();
    for event in [&base, &middle, &top] {
        assert_eq!(sim.is_complete(event), Ok(true));
    }
    assert!(!sim.is_ordered(behind, 1), "and no more than that");
    sim.wait_on(2, &sim.record(0).unwrap()).unwrap();
    sim.complete(2);
    assert!(sim.is_ordered(behind, 1), "a whole stream includes its last wait");
}

#[test]
fn advance_stops_in_front_of_a_wait() {
    let sim = asynchronous();
    let event = sim.record(0).unwrap();
    let free = sim.submit(1);
    let mark = sim.record(1).unwrap();
    sim.wait_on(1, &event).unwrap();
    let bound = sim.submit(1);
    assert_eq!(sim.advance(1, 9), 1);
    assert!(sim.is_ordered(free, 2) && !sim.is_ordered(bound, 2));
    sim.complete_event(&mark);
    assert_eq!(sim.advance(1, 9), 0, "a wait behind the last finished work is not forgotten");
    assert_eq!(sim.advance(0, 9), 1);
    assert_eq!(sim.advance(1, 9), 1);
    assert!(sim.is_ordered(bound, 2));
}

#[test]
fn every_wait_holds_the_work_behind_it_and_none_before() {
    let sim = asynchronous();
    let events = [0, 1, 2].map(|stream| sim.record(stream).unwrap());
    for event in &events {
        sim.submit(9);
        sim.wait_on(9, event).unwrap();
    }
    sim.submit(9);
    assert_eq!(sim.advance(9, 9), 1);
    sim.complete(2);
    assert_eq!(sim.advance(9, 9), 0);
    sim.complete(0);
    assert_eq!(sim.advance(9, 9), 1);
    sim.complete(1);
    assert_eq!(sim.advance(9, 9), 2);
}

#[test]
#[should_panic(expected = "was never submitted")]
fn an_event_of_another_device_panics() {
    let event = asynchronous().record(0).unwrap();
    asynchronous().complete_event(&event);
}

/// The slow truth about order: a graph with a node for each piece of work and each wait.
#[derive(Default)]
struct Graph {
    before: Vec<Vec<usize>>,
    last: [Option<usize>; STREAMS as usize],
    work: Vec<(WorkId, usize)>,
}

const STREAMS: u32 = 4;

impl Graph {
    fn add(&mut self, stream: u32, waits_for: Option<usize>) -> usize {
        let last = &mut self.last[stream as usize];
        self.before.push(last.iter().copied().chain(waits_for).collect());
        last.insert(self.before.len() - 1).to_owned()
    }

    /// The node of `work`, made when it is new: a mark on an idle stream brings its own.
    fn node(&mut self, work: WorkId) -> usize {
        let known = self.work.iter().find(|(known, _)| *known == work).map(|&(_, node)| node);
        known.unwrap_or_else(|| {
            let node = self.add(work.stream, None);
            self.work.push((work, node));
            node
        })
    }

    /// The nodes that come before `from`, itself included.
    fn ancestors(&self, from: Option<usize>) -> Vec<bool> {
        let mut seen = vec![false; self.before.len()];
        let mut open = Vec::from_iter(from);
        while let Some(node) = open.pop() {
            if !std::mem::replace(&mut seen[node], true) {
                open.extend(&self.before[node]);
            }
        }
        seen
    }

    fn check(&self, sim: &Sim) {
        let idle = STREAMS; // A stream that waits for nothing: ordered with it means done.
        for stream in 0..STREAMS {
            let seen = self.ancestors(self.last[stream as usize]);
            for &(work, node) in &self.work {
                let expected = seen[node] || sim.is_ordered(work, idle);
                assert_eq!(sim.is_ordered(work, stream), expected, "{work:?} before {stream}");
            }
        }
        for &(work, node) in self.work.iter().filter(|(work, _)| sim.is_ordered(*work, idle)) {
            let seen = self.ancestors(Some(node));
            let undone =
                |&&(other, at): &&(WorkId, usize)| seen[at] && !sim.is_ordered(other, idle);
            assert_eq!(self.work.iter().find(undone), None, "{work:?} is done before it (T4)");
        }
    }
}

#[test]
fn vector_clocks_agree_with_a_graph() {
    for seed in 0..60 {
        let mut state: u64 = seed;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let (sim, mut graph) = (asynchronous(), Graph::default());
        let mut events = Vec::new();
        for _ in 0..60 {
            let stream = random(STREAMS.into()) as u32;
            let pick = random(1 << 20) as usize % events.len().max(1);
            match (random(10), events.get(pick)) {
                (0..3, _) => _ = graph.node(sim.submit(stream)),
                (3..6, _) => {
                    let event = sim.record(stream).unwrap();
                    graph.node(event.last());
                    events.push((event, graph.last[stream as usize]));
                }
                (6..8, Some((event, node))) => {
                    sim.wait_on(stream, event).unwrap();
                    graph.add(stream, *node);
                }
                (8, Some((event, _))) => sim.complete_event(event),
                (9, _) if random(3) == 0 => sim.complete(stream),
                _ => _ = sim.advance(stream, 1 + random(2)),
            }
            graph.check(&sim);
        }
    }
}

// Counts and failures.

/// One call of every kind; stops at the first error, giving everything back as the core has to.
fn one_of_each(sim: &Sim) -> Result<(), GrowError> {
    let segment = sim.allocate(G, KIND)?;
    let rest = || {
        let range = sim.reserve(2 * G)?;
        let mapped = sim.create(G).and_then(|chunk| {
            sim.map(&range, G, chunk).map_err(|(chunk, error)| {
                sim.release(chunk);
                error
            })
        });
        let opened = mapped.clone().and_then(|()| sim.set_access(&range, G, G));
        let unmapped =
            mapped.and_then(|()| Ok(sim.unmap(&range, G)?)).map(|chunk| sim.release(chunk));
        sim.free(range);
        opened.and(unmapped)?;
        let event = sim.record(0)?;
        sim.wait_on(1, &event)?;
        sim.is_complete(&event)?;
        sim.wait(&event)?;
        Ok(())
    };
    let result = rest();
    sim.free(segment);
    result
}

#[test]
fn every_call_is_counted_under_its_name() {
    let sim = virtual_sim(10 * G);
    one_of_each(&sim).unwrap();
    let once = CallCounts {
        allocate: 1,
        free: 1,
        unreserve: 1,
        reserve: 1,
        create: 1,
        map: 1,
        set_access: 1,
        unmap: 1,
        release: 1,
        record: 1,
        query: 1,
        wait: 1,
        synchronize: 1,
    };
    assert_eq!(sim.calls(), once);
    assert_eq!((once.total(), once.fallible(), sim.fallible_calls()), (13, 10, 10));
    sim.reset_calls();
    assert_eq!((sim.calls(), sim.clone().fallible_calls()), (CallCounts::default(), 0));
}

#[test]
fn the_nth_call_fails_for_every_n_and_every_fault() {
    let dry = virtual_sim(10 * G);
    one_of_each(&dry).unwrap();
    let lost_only = [6, 7, 8, 9, 10]; // `unmap`, and the four calls of streams.
    for fault in [Fault::OutOfMemory, Fault::TooLarge, Fault::Lost, Fault::LostForever] {
        for nth in 1..=dry.fallible_calls() {
            let sim = virtual_sim(10 * G);
            sim.fail_at(nth, fault);
            let error = one_of_each(&sim).unwrap_err();
            match fault {
                Fault::OutOfMemory if !lost_only.contains(&nth) => {
                    assert_eq!(error, GrowError::OutOfMemory);
                }
                Fault::TooLarge if !lost_only.contains(&nth) => {
                    assert_eq!(error, GrowError::TooLarge);
                }
                _ => assert!(matches!(error, GrowError::Lost(_)), "{nth}: {error:?}"),
            }
            assert_eq!((sim.used_bytes(), sim.live_chunks(), sim.leaked()), (0, 0, 0), "{nth}");
            assert_eq!(sim.is_lost(), fault == Fault::LostForever);
            let again = one_of_each(&sim);
            assert_eq!(again.is_err(), sim.is_lost(), "{nth} {fault:?}: {again:?}");
        }
    }
}

#[test]
fn plans_add_up_and_can_be_forgotten() {
    let sim = sim(10 * G);
    let fails = |count| (0..count).map(|_| sim.record(0).is_err()).collect::<Vec<_>>();
    sim.fail_at(1, Fault::Lost);
    sim.fail_at(3, Fault::OutOfMemory);
    assert_eq!(fails(4), [true, false, true, false]);
    sim.fail_at(2, Fault::Lost);
    sim.reset_calls();
    assert_eq!(fails(3), [false, true, false], "a plan outlives a reset of the counts");
    sim.fail_from(2, Fault::TooLarge);
    assert_eq!(fails(4), [false, true, true, true]);
    assert_eq!(sim.allocate(G, KIND).err(), Some(GrowError::TooLarge));
    sim.heal();
    assert_eq!(fails(2), [false, false]);
    sim.fail_at(1, Fault::LostForever);
    assert_eq!(fails(3), [true; 3]);
    sim.heal();
    assert_eq!(fails(2), [false, false]);
}

#[test]
fn a_failed_map_gives_the_chunk_back() {
    let sim = virtual_sim(10 * G);
    let range = sim.reserve(G).unwrap();
    let chunk = sim.create(G).unwrap();
    sim.fail_at(1, Fault::OutOfMemory);
    let (chunk, error) = sim.map(&range, 0, chunk).unwrap_err();
    assert_eq!((error, chunk.size(), sim.mapped_bytes()), (GrowError::OutOfMemory, G, 0));
    sim.map(&range, 0, chunk).unwrap();
    assert_eq!((sim.mapped_bytes(), sim.leaked()), (G, 0));
}

#[test]
fn a_lost_device_takes_everything_back() {
    let sim = virtual_sim(10 * G);
    let segment = sim.allocate(G, KIND).unwrap();
    let range = sim.reserve(4 * G).unwrap();
    map(&sim, &range, 0, G);
    map(&sim, &range, 2 * G, 2 * G);
    let chunk = sim.create(G).unwrap();
    sim.fail_at(1, Fault::LostForever);
    let lost: Lost = sim.unmap(&range, 0).unwrap_err();
    assert_eq!(lost.detail(), "simulated fault LostForever");
    assert_eq!((sim.mapped_bytes(), sim.used_bytes()), (2 * G, 4 * G), "that chunk is gone");
    sim.free(segment);
    sim.release(chunk);
    sim.free(range);
    assert_eq!((sim.used_bytes(), sim.mapped_bytes(), sim.live_chunks()), (0, 0, 0));
    assert_eq!(sim.leaked(), 0);
}

#[test]
#[should_panic(expected = "there is no call number 0")]
fn call_number_zero_panics() {
    sim(G).fail_at(0, Fault::Lost);
}
