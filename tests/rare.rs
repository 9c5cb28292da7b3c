//! What needs two threads at one moment, or a device that is nearly full: each case as small as it
//! can be shown.

#[path = "support/gate.rs"]
mod gate;
mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use aquifer::backend::{MemoryKind, Sim, SimOptions};
use aquifer::{Allocator, Config, PoolOptions};
use gate::Gate;
use support::{
    Context, Device, KIB, MIB, Rng, assert_emptied, configured, expandable, harvest, sim,
    virtual_sim,
};

fn asynchronous(capacity: u64) -> SimOptions {
    SimOptions { capacity, asynchronous: true, ..SimOptions::default() }
}

impl Device for Gate {
    fn used(&self) -> u64 {
        self.sim.used_bytes()
    }

    fn sim(&self) -> Option<&Sim> {
        Some(&self.sim)
    }
}

/// Runs `work` on a thread of its own, which is left behind if it does not end.
#[track_caller]
fn ends(what: &str, work: impl FnOnce() + Send + 'static) {
    let (send, receive) = channel();
    let thread = std::thread::spawn(move || {
        work();
        // Nobody listens any more if it took too long.
        let _ = send.send(());
    });
    let outcome = receive.recv_timeout(Duration::from_secs(20));
    assert!(outcome != Err(RecvTimeoutError::Timeout), "{what} does not end");
    thread.join().expect("no assertion failed");
}

#[test]
fn a_free_amid_a_poll_is_marked_before_old_entries_meet_it() {
    ends("empty_cache", || {
        let device = Gate::new(asynchronous(256 * MIB));
        let allocator = Allocator::new(device.clone(), Config::default());
        let (first, second) = (allocator.stream(1), allocator.stream(2));
        let held = allocator.allocate(20 * MIB).expect("room");
        let address = held.address();
        allocator.record_stream(&held, &first);
        device.sim.submit(1);
        drop(held);
        let again = allocator.allocate(20 * MIB).expect("room");
        assert_eq!(again.address(), address, "through a wait on the device");
        allocator.record_stream(&again, &second);
        device.sim.submit(2);
        device.sim.complete(1);
        // Another thread frees the block while the event of stream 1 is asked about.
        let held = Mutex::new(vec![again]);
        device.watch(move |call, _| {
            let held = if call == "query" { held.lock().ok() } else { None };
            drop(held.map(|mut held| std::mem::take(&mut *held)));
        });
        allocator.maintain(Duration::ZERO);
        device.open();
        allocator.empty_cache();
        assert_eq!(allocator.memory_active(), 0);
    });
}

/// A request is refused by what it needs alone, not by the segment or page it would have liked.
#[test]
fn what_the_liked_segment_has_no_room_for_is_grown_exactly() {
    let allocator = Allocator::new(sim(8 * MIB), Config::default());
    let held = allocator.allocate(3 * MIB).expect("a segment of 20 MiB is not needed");
    assert_eq!(allocator.memory_reserved(), 4 * MIB);
    drop(held);
    assert_emptied(&allocator);
    for size in [3 * MIB, 12 * MIB] {
        let allocator = Allocator::new(virtual_sim(34 * MIB), expandable());
        let page = allocator.allocate(20 * MIB).expect("a page");
        let segment = allocator.allocate(size).expect("another page is not needed");
        allocator.verify();
        drop((page, segment));
        assert_emptied(&allocator);
    }
}

#[test]
fn a_pool_that_helps_out_is_searched_after_its_blocks_were_waited_for() {
    for device_wait in [false, true] {
        let options = SimOptions { device_wait, ..asynchronous(20 * MIB) };
        let allocator = Allocator::new(Sim::new(options), Config::default());
        let options = PoolOptions { use_on_oom: true, ..PoolOptions::default() };
        let pool = allocator.create_pool(options);
        let (home, user) = (allocator.stream(1), allocator.stream(2));
        let route = pool.route_thread();
        let kept = allocator.allocate_on(&home, 8 * MIB).expect("room");
        let freed = allocator.allocate_on(&home, 12 * MIB).expect("room");
        drop(route);
        allocator.record_stream(&freed, &user);
        drop(freed);
        let helped = allocator.allocate(12 * MIB).expect("12 MiB are free in the pool");
        drop((kept, helped));
        assert_emptied(&allocator);
    }
}

#[test]
fn a_pool_of_another_kind_does_not_help_out() {
    let config = configured(|config| config.trim_private_pools = false);
    let allocator = Allocator::new(sim(20 * MIB), config);
    let options = PoolOptions { use_on_oom: true, kind: MemoryKind(3), ..PoolOptions::default() };
    let pool = allocator.create_pool(options);
    pool.prime(&allocator.default_stream(), 20 * MIB).expect("room");
    let helped = allocator.allocate(12 * MIB);
    assert!(helped.is_err(), "memory of kind 3 serves a request for the default kind");
}

#[test]
fn pages_of_a_released_pool_go_back_before_another_growth() {
    let options = SimOptions { virtual_memory: true, ..asynchronous(256 * MIB) };
    let sim = Sim::new(options);
    let allocator = Allocator::new(sim.clone(), expandable());
    let pool = allocator.create_pool(PoolOptions::default());
    let route = pool.route_thread();
    let held = allocator.allocate(20 * MIB).expect("room");
    allocator.record_stream(&held, &allocator.stream(1));
    drop((route, pool, held));
    // An event is recorded, and completes; the miss is the first to see that.
    harvest(&allocator);
    sim.complete(1);
    let other = allocator.allocate(30 * MIB).expect("room");
    assert_eq!(allocator.memory_active(), other.capacity());
    assert_eq!(allocator.memory_reserved(), 30 * MIB, "the pages of the pool are still there");
    drop(other);
    assert_emptied(&allocator);
}

/// As `a_stream_handle_keeps_no_memory` of the contract, for a block that another stream used.
#[test]
fn a_stream_handle_keeps_no_memory_that_was_recorded() {
    let sim = Sim::new(asynchronous(256 * MIB));
    let allocator = Allocator::new(sim.clone(), Config::default());
    let (home, user) = (allocator.stream(1), allocator.stream(2));
    let held = allocator.allocate_on(&home, 3 * MIB).expect("room");
    allocator.record_stream(&held, &user);
    drop(allocator);
    drop(held);
    let used = sim.used_bytes();
    drop(home);
    assert_eq!(used, 0, "a handle of a stream kept memory");
}

#[test]
fn under_a_limit_no_more_goes_back_than_is_missing() {
    let config = configured(|config| {
        config.headroom = None;
        config.memory_limit = Some(100 * MIB);
    });
    let allocator = Allocator::new(sim(256 * MIB), config);
    let held = [46, 20, 28].map(|size| allocator.allocate(size * MIB).expect("room"));
    drop(held);
    let large = allocator.allocate(50 * MIB).expect("room");
    assert_eq!(allocator.memory_reserved(), 98 * MIB, "the oldest segment was enough");
    drop(large);
}

#[test]
fn headroom_may_be_without_bound() {
    let unbounded: [fn(&mut Config); 2] = [
        |config| config.headroom = Some(f64::MAX),
        |config| config.headroom_learned_max = f64::MAX,
    ];
    for (change, reserved) in unbounded.into_iter().zip([110 * MIB, 60 * MIB]) {
        let allocator = Allocator::new(sim(256 * MIB), configured(change));
        drop(allocator.allocate(50 * MIB).expect("room"));
        let held = allocator.allocate(60 * MIB).expect("room");
        assert_eq!(allocator.memory_reserved(), reserved);
        drop(held);
    }
}

#[test]
fn more_pages_than_one_segment_could_hold_go_back() {
    const TIB: u64 = 1 << 40;
    let sim = virtual_sim(8 * TIB);
    let config = configured(|config| {
        config.expandable_segments = true;
        config.large_segment = TIB / 32;
    });
    let allocator = Allocator::new(sim.clone(), config);
    let held = [0, 1].map(|_| allocator.allocate(TIB * 3 / 2).expect("room"));
    drop(held);
    assert_emptied(&allocator);
}

#[test]
fn nothing_is_rejected_that_can_be_had_below_the_limit() {
    let config = configured(|config| {
        config.reject_before_driver = true;
        config.memory_limit = Some(24 * MIB);
    });
    let allocator = Allocator::new(sim(256 * MIB), config);
    let kept = allocator.allocate(8 * MIB).expect("room");
    drop(allocator.allocate(8 * MIB).expect("room"));
    let other = allocator.stream(1);
    let lent = allocator.allocate_on(&other, 9 * MIB).expect("12 MiB are free on another stream");
    let exact = allocator.allocate_on(&other, 4 * MIB).expect("4 MiB are left to the limit");
    assert!(allocator.allocate_on(&other, 4 * MIB).is_err(), "the limit is reached");
    assert_eq!(allocator.memory_stats().num_oom_rejections, 1);
    drop((kept, lent, exact));
    assert_emptied(&allocator);
}

#[test]
fn a_device_without_addresses_for_a_range_gives_segments() {
    let options = SimOptions { virtual_memory: true, ..asynchronous(256 * MIB) };
    let device = Gate::new(options);
    let allocator = Allocator::new(device.clone(), expandable());
    device.refuse(Some("reserve"));
    let first = allocator.allocate(3 * MIB).expect("256 MiB are free");
    device.refuse(None);
    let second = allocator.allocate(30 * MIB).expect("room");
    assert_eq!((device.sim.live_segments(), device.sim.live_ranges()), (1, 1));
    drop((first, second));
    assert_emptied(&allocator);
}

#[test]
fn a_free_on_a_captured_stream_makes_no_call_for_a_released_pool() {
    let sim = sim(256 * MIB);
    let allocator = Allocator::new(sim.clone(), Config::default());
    let stream = allocator.stream(1);
    let old = allocator.create_pool(PoolOptions::default());
    let route = old.route_thread();
    let held = allocator.allocate_on(&stream, 20 * MIB).expect("room");
    drop((route, old));
    let pool = allocator.create_pool(PoolOptions::default());
    pool.prime(&stream, 20 * MIB).expect("room");
    let capture = allocator.begin_capture(&stream, &pool);
    let calls = sim.calls();
    drop(held);
    drop(allocator.allocate_on(&stream, 20 * MIB).expect("it was primed"));
    assert_eq!(sim.calls(), calls, "a call amid a capture");
    drop(capture);
    assert_eq!(sim.used_bytes(), 20 * MIB, "the old pool goes when the capture has ended");
    drop(pool);
    assert_emptied(&allocator);
}

#[test]
fn a_pool_that_is_dropped_under_a_request_is_not_taken_over_by_the_next() {
    let device = Gate::new(asynchronous(256 * MIB));
    let allocator = Allocator::new(device.clone(), Config::default());
    let stream = allocator.stream(1);
    let options = PoolOptions { kind: MemoryKind(3), ..PoolOptions::default() };
    let old = allocator.create_pool(options);
    let route = old.route_stream(&stream);
    // Another thread ends the route and makes a pool of its own while the device is asked.
    let left = Mutex::new(Some((route, old, allocator.clone())));
    let (send, receive) = channel();
    device.watch(move |_, _| {
        let left = left.lock().ok().and_then(|mut left| left.take());
        if let Some((route, old, allocator)) = left {
            drop((route, old));
            let _ = send.send(allocator.create_pool(PoolOptions::default()));
        }
    });
    let held = allocator.allocate_on(&stream, 20 * MIB).expect("room");
    device.open();
    allocator.verify();
    let new = receive.recv().expect("the device was asked");
    let snapshot = allocator.memory_snapshot();
    let of_new = snapshot.segments.iter().any(|segment| segment.pool_id == new.id());
    assert!(!of_new, "memory of kind 3 in a pool of the default kind");
    drop(held);
    assert_eq!(allocator.memory_reserved(), 0, "the old pool is gone");
}

/// A growth above the high-water mark takes pages out of holes, as far as the work on them is done.
#[test]
fn pages_move_when_the_work_on_them_is_done() {
    let reserved = |config: Config, is_done: bool| {
        let options = SimOptions { asynchronous: !is_done, ..asynchronous(1024 * MIB) };
        let sim = Sim::new(SimOptions { virtual_memory: true, ..options });
        let allocator = Allocator::new(sim.clone(), config);
        let [hole, wall] = [60 * MIB, 60 * MIB].map(|size| allocator.allocate(size).expect("room"));
        let _ = sim.submit(0);
        drop(hole);
        let large = allocator.allocate(100 * MIB).expect("room");
        let reserved = allocator.memory_reserved();
        allocator.verify();
        sim.complete_all();
        drop((wall, large));
        assert_emptied(&allocator);
        reserved
    };
    let with = |change: fn(&mut Config)| {
        configured(|config| {
            config.expandable_segments = true;
            change(config);
        })
    };
    assert_eq!(reserved(expandable(), true), 160 * MIB, "what is live, and not a page more");
    assert_eq!(reserved(expandable(), false), 220 * MIB, "a page went under running work");
    let off = with(|config| config.page_recycling = false);
    assert_eq!(reserved(off, true), 220 * MIB, "nothing is to move");
    let loose = with(|config| config.page_headroom = None);
    assert_eq!(reserved(loose, true), 164 * MIB, "3 % more than what is live");
}

/// Physical memory comes in chunks that grow with the program.
#[test]
fn chunks_are_a_share_of_what_is_live() {
    let maps = |share: f64, size: u64| {
        let sim = virtual_sim(1 << 40);
        let config = configured(|config| {
            config.expandable_segments = true;
            config.chunk_share = share;
            config.page_headroom = Some(0.0);
        });
        let allocator = Allocator::new(sim.clone(), config);
        let held = allocator.allocate(size).expect("room");
        let maps = sim.calls().map;
        drop(held);
        assert_emptied(&allocator);
        maps
    };
    assert_eq!(maps(0.0, 640 * MIB), 32, "pages of 20 MiB");
    assert_eq!(maps(1.0, 640 * MIB), 1);
    assert_eq!(maps(1.0 / 64.0, 640 * MIB), 32, "a run takes no more");
    assert_eq!(maps(1.0 / 16.0, 640 * MIB), 16);
    assert_eq!(maps(1.0 / 2048.0, 2 * MIB), 1, "no chunk is smaller than a page");
}

/// A program that repeats itself at the edge of what headroom allows: it asks for other sizes in
/// each phase, so that what one phase leaves is given back for the next. What that costs is
/// bounded, and it ends: see `core/headroom.rs`.
#[test]
fn alternating_at_the_edge_of_headroom_comes_to_rest() {
    for seed in 0..40 {
        let _context = Context(("seed", seed));
        let mut rng = Rng::new(seed);
        let phases: Vec<Vec<u64>> = (0..4)
            .map(|_| {
                let size = (8 + rng.below(60)) * MIB + rng.below(4) * 512 * KIB;
                vec![size; (400 * MIB / size) as usize]
            })
            .collect();
        let sim = sim(1 << 40);
        let allocator = Allocator::new(sim.clone(), Config::default());
        let mut last = 0;
        for _ in 0..100 {
            sim.reset_calls();
            for phase in &phases {
                let held = phase.iter().map(|&size| allocator.allocate(size).expect("room"));
                drop(held.collect::<Vec<_>>());
            }
            let calls = sim.calls();
            last = calls.allocate + calls.free;
            let requests: usize = phases.iter().map(Vec::len).sum();
            assert!(last <= 2 * requests as u64, "{last} calls of {requests} requests");
        }
        assert_eq!(last, 0, "it still gives back and grows again");
    }
}

/// A crumb does not take a vast idle segment while there is room to grow, so that the segment is
/// there for its like; but it does when growing fails, and when headroom is used up.
#[test]
fn vast_idle_segments_stay_whole_while_there_is_room() {
    let (vast, crumb) = (512 * MIB, 4 * MIB);
    let room = sim(1 << 40);
    let allocator = Allocator::new(room.clone(), Config::default());
    let held = allocator.allocate(3 * vast).expect("room");
    drop(allocator.allocate(vast).expect("room"));
    let kept = allocator.allocate(crumb).expect("room");
    let calls = room.calls().allocate;
    let again = allocator.allocate(vast).expect("room");
    assert_eq!(room.calls().allocate, calls, "the vast one was there");
    drop((held, kept, again));
    allocator.verify();

    let full = sim(vast);
    let allocator = Allocator::new(full.clone(), Config::default());
    drop(allocator.allocate(vast).expect("room"));
    let crumbs: Vec<_> = (0..128).map(|_| allocator.allocate(crumb).expect("room")).collect();
    assert_eq!(full.used_bytes(), vast, "all of the device, and no failure");
    drop(crumbs);
    allocator.verify();
}

/// A segment that a request nearly fills is the request's alone: what lay in the rest kept it.
#[test]
fn a_request_that_nearly_fills_an_idle_segment_gets_all_of_it() {
    let sim = sim(1 << 40);
    let allocator = Allocator::new(sim.clone(), Config::default());
    drop(allocator.allocate(200 * MIB).expect("room"));
    let nearly = allocator.allocate(194 * MIB).expect("room");
    assert_eq!(nearly.capacity(), 200 * MIB, "less than a twentieth is left");
    drop(nearly);
    let less = allocator.allocate(180 * MIB).expect("room");
    assert_eq!(less.capacity(), 180 * MIB);
    drop(less);
    let calls = sim.calls();
    assert_eq!((calls.allocate, calls.free), (1, 0));
}

/// Segments of several blocks are for a device with room; where memory is scarce, by the device or
/// by a limit, they have the usual sizes.
#[test]
fn segments_hold_several_blocks_only_while_memory_is_plentiful() {
    let grown = |capacity: u64, limit: Option<u64>| {
        let sim = sim(capacity);
        let allocator =
            Allocator::new(sim.clone(), configured(|config| config.headroom = Some(1.0)));
        allocator.set_memory_limit(limit);
        let most = allocator.allocate(400 * MIB).expect("room");
        let little = allocator.allocate(4 * MIB).expect("room");
        let grown = sim.used_bytes() - 400 * MIB;
        drop((most, little));
        assert_emptied(&allocator);
        grown
    };
    let plenty = grown(1 << 40, None);
    assert!(plenty >= 40 * MIB, "many blocks of 4 MiB, not {plenty}");
    assert_eq!(grown(538 * MIB, None), 20 * MIB, "75.1 % of the device");
    assert_eq!(grown(1 << 40, Some(538 * MIB)), 20 * MIB, "75.1 % of the limit");
    assert_eq!(grown(540 * MIB, None), plenty, "74.8 % of the device");
}

/// A segment for several blocks that are too large to be split off would be one block's.
#[test]
fn what_is_not_split_has_a_segment_of_its_size() {
    let sim = sim(1 << 40);
    let config = configured(|config| config.max_split_size = Some(20 * MIB));
    let allocator = Allocator::new(sim.clone(), config);
    let most = allocator.allocate(16 << 30).expect("room");
    let blocks = [(); 12].map(|()| allocator.allocate(20 * MIB).expect("room"));
    assert_eq!(sim.used_bytes(), (16 << 30) + 12 * 20 * MIB);
    drop((most, blocks));
    assert_emptied(&allocator);
}

/// Every request ages what is idle, the quick ones too: garbage collection takes what is older than
/// the mean, and no more.
#[test]
fn requests_that_are_served_at_once_age_idle_segments() {
    for mut config in [Config::default(), Config::torch()] {
        config.headroom = None;
        config.garbage_collection_threshold = Some(0.6);
        config.memory_limit = Some(100 * MIB);
        let allocator = Allocator::new(sim(256 * MIB), config);
        let [old, young, mut busy] =
            [40, 30, 20].map(|size| allocator.allocate(size * MIB).expect("room"));
        drop(old);
        for _ in 0..10 {
            drop(busy);
            busy = allocator.allocate(20 * MIB).expect("it was freed a moment ago");
        }
        drop(young);
        let large = allocator.allocate(50 * MIB).expect("40 MiB are old");
        assert_eq!(allocator.memory_reserved(), 100 * MIB, "the young segment stays");
        drop((busy, large));
        assert_emptied(&allocator);
    }
}

/// A segment that was made to be shared can be split again, whatever size it has.
#[test]
fn no_segment_is_too_large_to_be_split_again() {
    let sim = sim(1 << 40);
    let config = configured(|config| config.max_split_size = Some(20 * MIB));
    let allocator = Allocator::new(sim.clone(), config);
    let most = allocator.allocate(1024 * MIB).expect("room");
    let little = [(); 4].map(|()| allocator.allocate(5 * MIB).expect("room"));
    assert_eq!(allocator.memory_reserved(), 1044 * MIB, "the rest of a segment lies fallow");
    drop((most, little));
    assert_emptied(&allocator);
}

/// A growth that brings more pages than are needed is tried with those alone when it is refused.
#[test]
fn a_device_without_room_for_more_pages_gives_what_is_needed() {
    const GIB: u64 = 1024 * MIB;
    let sim = virtual_sim(16 * GIB);
    let allocator = Allocator::new(sim.clone(), expandable());
    let most = allocator.allocate(16 * GIB - 4 * MIB).expect("room");
    let little = allocator.allocate(2 * MIB).expect("4 MiB are free");
    assert_eq!(allocator.memory_reserved(), 16 * GIB - 2 * MIB);
    assert_eq!(sim.live_segments(), 0, "no page, but a segment");
    assert_eq!(allocator.memory_stats().num_alloc_retries, 0, "everything was given back");
    drop((most, little));
    assert_emptied(&allocator);
}

/// What others use and free while a growth looks for pages is not looked at again.
#[test]
fn a_growth_does_not_follow_pages_that_are_in_use_again_and_again() {
    let device = Gate::new(SimOptions { virtual_memory: true, ..asynchronous(1024 * MIB) });
    let allocator = Allocator::new(device.clone(), expandable());
    let other = allocator.stream(1);
    let hole = allocator.allocate_on(&other, 60 * MIB).expect("room");
    let wall = allocator.allocate(60 * MIB).expect("room");
    device.sim.submit(1);
    drop(hole);
    let (user, records) = (allocator.clone(), Mutex::new(0));
    device.watch(move |call, _| {
        let mut records = records.lock().expect("no test panics here");
        if call == "record" && *records < 100 {
            *records += 1;
            drop(user.allocate_on(&other, 60 * MIB));
        }
    });
    let large = allocator.allocate(100 * MIB).expect("room");
    let records = device.sim.calls().record;
    device.open();
    assert!(records <= 2, "{records} events");
    device.sim.complete_all();
    drop((wall, large));
    assert_emptied(&allocator);
}

/// Down to the floor, but for less than a chunk: a large chunk does not keep the small ones.
#[test]
fn a_trim_takes_the_chunks_that_fit() {
    let allocator = Allocator::new(virtual_sim(1 << 40), expandable());
    let held = [640 * MIB, 4 * MIB].map(|size| allocator.allocate(size).expect("room"));
    drop(held);
    let reserved = allocator.memory_reserved();
    assert_eq!(allocator.trim_to(reserved - 4 * MIB), 4 * MIB, "20 MiB are too much");
    assert_eq!(allocator.trim_to(reserved - 26 * MIB), 20 * MIB);
    assert_emptied(&allocator);
}

/// A pool that does not split hands out whole segments: none is made for several blocks.
#[test]
fn a_pool_that_does_not_split_has_segments_of_the_usual_sizes() {
    for (config, size) in [(Config::default(), 20 * MIB), (expandable(), 6 * MIB)] {
        let allocator = Allocator::new(virtual_sim(1 << 40), config);
        let most = allocator.allocate(4096 * MIB).expect("room");
        let options = PoolOptions { no_split: true, ..PoolOptions::default() };
        let pool = allocator.create_pool(options);
        let alone = allocator.request(5 * MIB).pool(&pool).allocate().expect("room");
        assert_eq!(alone.capacity(), size);
        drop((most, alone, pool));
        assert_emptied(&allocator);
    }
}

/// Without headroom there is no bound on what is reserved, nor on the room for more blocks.
#[test]
fn segments_hold_several_blocks_without_headroom_too() {
    let allocator = Allocator::new(sim(1 << 40), configured(|config| config.headroom = None));
    let most = allocator.allocate(4096 * MIB).expect("room");
    let little = allocator.allocate(5 * MIB).expect("room");
    assert_eq!(allocator.memory_reserved(), (4096 + 60) * MIB);
    drop((most, little));
    assert_emptied(&allocator);
}

/// Blocks are lent to other streams where a growth is refused, not where less is grown.
#[test]
fn a_growth_that_is_less_than_was_liked_is_not_refused() {
    let config = configured(|config| {
        (config.segment_share, config.headroom) = (1.0, Some(1.0));
        config.reject_before_driver = true;
    });
    let allocator = Allocator::new(sim(1 << 40), config);
    let first = allocator.allocate(20 * MIB).expect("room");
    let little = allocator.allocate(2 * MIB).expect("room");
    let most = allocator.allocate(600 * MIB).expect("room");
    let reserved = allocator.memory_reserved();
    allocator.set_memory_limit(Some(1000 * MIB));
    let other = allocator.allocate_on(&allocator.stream(1), 2 * MIB).expect("room");
    assert_eq!(allocator.memory_reserved(), reserved + 20 * MIB, "it was lent");
    drop((first, little, most, other));
    assert_emptied(&allocator);
}

/// What is cached is there for a request that may not grow, however much it is.
#[test]
fn a_vast_idle_segment_serves_a_request_for_cached_memory() {
    let allocator = Allocator::new(sim(1 << 40), Config::default());
    let most = allocator.allocate(4096 * MIB).expect("room");
    drop(allocator.allocate(512 * MIB).expect("room"));
    let cached = allocator.request(4 * MIB).allocate_cached().expect("512 MiB are cached");
    drop((most, cached));
    assert_emptied(&allocator);
}

/// As `a_trim_does_not_wait_for_what_others_do_meanwhile` of the shell, for events on a miss.
#[test]
fn a_request_does_not_ask_about_what_others_do_meanwhile() {
    for busy in ["record", "query"] {
        let device = Gate::new(asynchronous(256 * MIB));
        let config = configured(|config| config.event_batch_count = 1 << 20);
        let allocator = Allocator::new(device.clone(), config);
        let other = allocator.stream(1);
        let use_and_free = move |allocator: &Allocator<Gate>| {
            let held = allocator.allocate(MIB).expect("room");
            allocator.record_stream(&held, &other);
        };
        use_and_free(&allocator);
        let (user, calls) = (allocator.clone(), AtomicU64::new(0));
        let is_inside = AtomicBool::new(false);
        device.watch(move |call, _| {
            if call != busy || is_inside.swap(true, Ordering::Relaxed) {
                return;
            }
            if calls.fetch_add(1, Ordering::Relaxed) < 100 {
                // Another thread frees a block again, whose event completes.
                use_and_free(&user);
                if call == "query" {
                    harvest(&user);
                    user.backend().sim.complete(1);
                }
            }
            is_inside.store(false, Ordering::Relaxed);
        });
        let held = allocator.allocate(20 * MIB).expect("room");
        let calls = device.sim.calls();
        device.open();
        assert!(calls.record <= 4, "{} events while others {busy}", calls.record);
        device.sim.complete_all();
        drop(held);
        assert_emptied(&allocator);
    }
}

/// Of idle segments only those go back that a growth above headroom asks for: not a cold small one
/// beside a large one that has to go anyway.
#[test]
fn a_large_idle_segment_that_goes_back_spares_the_small_ones() {
    let sim = sim(1 << 40);
    let allocator = Allocator::new(
        sim.clone(),
        configured(|config| {
            (config.headroom, config.headroom_learned_max) = (Some(0.1), 0.0);
            config.segment_share = 0.0;
        }),
    );
    let hold = |size| allocator.allocate(size * MIB).expect("room");
    let (kept, small, large) = (hold(200), hold(12), hold(100));
    drop(small);
    drop(large);
    // 312 MiB are reserved, 452 would be, 374 may.
    let more = hold(140);
    assert_eq!(sim.used_bytes(), (200 + 12 + 140) * MIB);
    drop((kept, more));
    assert_emptied(&allocator);
}

/// What was ruled out for want of memory is no longer when a segment has come.
#[test]
fn vast_idle_segments_are_spared_again_after_a_growth() {
    let (vast, crumb) = (512 * MIB, 4 * MIB);
    let sim = sim(1 << 40);
    let allocator = Allocator::new(sim.clone(), configured(|config| config.headroom = Some(1.0)));
    allocator.set_memory_limit(Some(vast));
    assert!(allocator.allocate(vast + crumb).is_err(), "beyond the limit");
    allocator.set_memory_limit(None);
    drop(allocator.allocate(vast).expect("room"));
    let kept = allocator.allocate(crumb).expect("room");
    let calls = sim.calls().allocate;
    let again = allocator.allocate(vast).expect("room");
    assert_eq!(sim.calls().allocate, calls, "the vast one was there");
    drop((kept, again));
    assert_emptied(&allocator);
}

/// A request that the limit refuses at once is served from a vast idle segment all the same, and
/// nothing is given back for it.
#[test]
fn vast_idle_segments_are_broken_where_growing_is_no_choice() {
    for reject in [false, true] {
        let sim = sim(1 << 40);
        let config = configured(|config| {
            (config.headroom, config.reject_before_driver) = (Some(1.0), reject);
        });
        let allocator = Allocator::new(sim.clone(), config);
        allocator.set_memory_limit(Some(512 * MIB));
        drop(allocator.allocate(512 * MIB).expect("room"));
        let crumbs = [(); 100].map(|()| allocator.allocate(4 * MIB).expect("room"));
        let calls = sim.calls();
        assert_eq!((calls.allocate, calls.free), (1, 0), "rejects: {reject}");
        drop(crumbs);
        assert_emptied(&allocator);
    }
}

/// When the device has no room for a segment of several blocks, one of the usual size is asked for
/// before anything is given back.
#[test]
fn an_ambitious_segment_that_the_device_refuses_is_tried_in_the_usual_size() {
    let sim = sim(300 * MIB);
    let allocator = Allocator::new(sim.clone(), configured(|config| config.headroom = Some(1.0)));
    let hold = |size| allocator.allocate(size * MIB).expect("room");
    let (idle, most, rest) = (hold(6), hold(200), hold(60));
    drop(idle);
    // 64 MiB would be liked, 34 are free.
    let little = hold(8);
    assert_eq!(sim.used_bytes(), (6 + 200 + 60 + 20) * MIB);
    assert_eq!((sim.calls().free, allocator.memory_stats().num_alloc_retries), (0, 0));
    drop((most, rest, little));
    assert_emptied(&allocator);
}

/// Small growths by pages bring those of the next ones too, while there is room.
#[test]
fn a_growth_by_pages_brings_those_of_the_next_ones() {
    let sim = virtual_sim(1 << 40);
    let allocator = Allocator::new(sim.clone(), expandable());
    let most = allocator.allocate(8 << 30).expect("room");
    sim.reset_calls();
    let blocks = [(); 8].map(|()| allocator.allocate(2 * MIB).expect("room"));
    assert_eq!(sim.calls().set_access, 1, "eight chunks of 4 MiB, for 16 MiB");
    assert_eq!(allocator.memory_reserved(), (8 << 30) + 32 * MIB);
    drop((most, blocks));
    assert_emptied(&allocator);
}
