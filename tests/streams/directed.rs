//! One rule of the streams each, as small as it can be shown.

use aquifer::backend::SimOptions;
use aquifer::{AllocError, Allocation, Allocator, Config, PoolOptions, Stream};

use super::oracle::Watched;

const MIB: u64 = 1 << 20;

fn options(capacity: u64) -> SimOptions {
    SimOptions { capacity, asynchronous: true, ..SimOptions::default() }
}

fn virtual_options(capacity: u64) -> SimOptions {
    SimOptions { virtual_memory: true, ..options(capacity) }
}

fn expandable() -> Config {
    let mut config = Config::default();
    config.expandable_segments = true;
    config
}

/// A program in short words; everything it does is judged.
struct Bench {
    device: Watched,
    allocator: Allocator<Watched>,
}

type Held = Allocation<Watched>;

impl Bench {
    fn new(options: SimOptions, config: Config) -> Self {
        let device = Watched::new(options);
        let allocator = Allocator::new(device.clone(), config);
        Self { device, allocator }
    }

    fn stream(&self, raw: u32) -> Stream<Watched> {
        self.allocator.stream(raw)
    }

    /// Allocates and uses.
    #[track_caller]
    fn take(&self, raw: u32, size: u64) -> Held {
        self.try_take(raw, size).expect("there is room")
    }

    fn try_take(&self, raw: u32, size: u64) -> Result<Held, AllocError> {
        let held = self.allocator.allocate_on(&self.stream(raw), size)?;
        self.device.handed(&held, raw);
        self.device.use_on(&held, raw);
        Ok(held)
    }

    /// Uses on another stream, as it should be done.
    fn lend(&self, held: &Held, raw: u32) {
        self.allocator.record_stream(held, &self.stream(raw));
        self.device.use_on(held, raw);
    }

    fn drop(&self, held: Held) {
        self.device.let_go(&held);
        drop(held);
    }

    /// Backend calls while `work` runs: record, query, wait on the device, wait on the host, and
    /// all of them with those for memory.
    fn counted<R>(&self, work: impl FnOnce() -> R) -> (R, [u64; 5]) {
        self.device.sim.reset_calls();
        let result = work();
        let calls = self.device.sim.calls();
        let counts = [calls.record, calls.query, calls.wait, calls.synchronize, calls.total()];
        (result, counts)
    }

    /// Nothing is left, and nothing was unsafe.
    fn end(self) {
        let Self { device, allocator } = self;
        device.sim.complete_all();
        allocator.verify();
        let releasable = allocator.releasable_bytes();
        assert_eq!(allocator.empty_cache(), releasable, "releasable_bytes told the truth");
        assert_eq!(allocator.memory_active(), 0, "something is stranded");
        assert_eq!(allocator.memory_reserved(), 0);
        drop(allocator);
        assert_eq!((device.sim.used_bytes(), device.sim.leaked()), (0, 0));
        device.assert_safe();
    }
}

#[test]
fn the_same_stream_has_its_memory_back_at_once() {
    let bench = Bench::new(options(64 * MIB), Config::default());
    for size in [1000, MIB, 9 * MIB] {
        let first = bench.take(1, size);
        let address = first.address();
        let (second, calls) = bench.counted(|| {
            bench.drop(first);
            bench.take(1, size)
        });
        assert_eq!(second.address(), address);
        assert_eq!(calls, [0; 5], "no event, and no call at all");
        bench.drop(second);
    }
    bench.end();
}

#[test]
fn a_recorded_block_is_reused_through_one_wait_on_the_device() {
    let bench = Bench::new(options(64 * MIB), Config::default());
    let held = bench.take(0, 20 * MIB);
    let address = held.address();
    bench.lend(&held, 1);
    bench.drop(held);
    let (again, calls) = bench.counted(|| bench.take(0, 20 * MIB));
    assert_eq!(again.address(), address);
    assert_eq!(calls, [1, 1, 1, 0, 3], "an event, a look at it, and a wait for it on the device");
    bench.drop(again);
    bench.end();
}

#[test]
fn a_recorded_block_is_kept_until_its_event_where_the_device_cannot_wait() {
    let options = SimOptions { device_wait: false, ..options(64 * MIB) };
    let mut config = Config::default();
    config.headroom = None;
    for config in [config, Config::torch()] {
        let bench = Bench::new(options, config);
        let held = bench.take(0, 20 * MIB);
        let address = held.address();
        bench.lend(&held, 1);
        bench.drop(held);
        let (other, calls) = bench.counted(|| bench.take(0, 20 * MIB));
        assert_ne!(other.address(), address, "the other stream still uses it");
        assert_eq!(calls[2..4], [0, 0], "nobody waits while the device has room");
        bench.device.sim.complete_all();
        // A request that misses asks for events; whoever comes next finds the block.
        let extra = bench.take(0, 20 * MIB);
        let third = bench.try_take(0, 20 * MIB);
        let found = [extra.address(), third.as_ref().ok().and_then(Allocation::address)];
        assert!(found.contains(&address), "the event was not seen");
        [Some(other), Some(extra), third.ok()].into_iter().flatten().for_each(|h| bench.drop(h));
        bench.end();
    }
}

#[test]
fn events_are_lazy_and_shared_by_a_batch_of_frees() {
    let bench = Bench::new(options(64 * MIB), Config::default());
    let few = Config::default().event_batch_count - 1;
    let held: Vec<_> = (0..few).map(|_| bench.take(0, 4096)).collect();
    held.iter().for_each(|held| bench.lend(held, 1));
    let ((), calls) = bench.counted(|| held.into_iter().for_each(|held| bench.drop(held)));
    assert_eq!(calls, [0; 5], "a free records nothing");
    let (returned, calls) = bench.counted(|| bench.allocator.empty_cache());
    assert_eq!(returned, 2 * MIB);
    assert_eq!(calls[..4], [1, 0, 0, 1], "one event for all of them");

    let batch = u64::from(Config::default().event_batch_count);
    let held: Vec<_> = (0..2 * batch).map(|_| bench.take(0, 4096)).collect();
    held.iter().for_each(|held| bench.lend(held, 1));
    let ((), calls) = bench.counted(|| held.into_iter().for_each(|held| bench.drop(held)));
    assert_eq!(calls[0], 2, "a full batch has its event recorded, so that it can complete");
    assert_eq!(calls[2..4], [0, 0]);
    bench.end();

    let bench = Bench::new(options(64 * MIB), Config::torch());
    let held: Vec<_> = (0..10).map(|_| bench.take(0, 4096)).collect();
    held.iter().for_each(|held| bench.lend(held, 1));
    let ((), calls) = bench.counted(|| held.into_iter().for_each(|held| bench.drop(held)));
    assert_eq!(calls[0], 10, "the torch preset: one event for each free");
    bench.end();
}

#[test]
fn another_stream_takes_completed_memory_without_a_wait() {
    let bench = Bench::new(options(64 * MIB), Config::default());
    let (a, b) = (bench.take(0, 20 * MIB), bench.take(0, 20 * MIB));
    bench.drop(a);
    bench.drop(b);
    let (first, calls) = bench.counted(|| bench.take(1, 20 * MIB));
    assert_eq!(calls, [1, 0, 1, 0, 2], "the first is ordered on the device");
    bench.device.sim.complete(0);
    let (second, calls) = bench.counted(|| bench.take(2, 20 * MIB));
    assert_eq!(calls, [0, 1, 0, 0, 1], "the second needs a question, and no wait");
    bench.drop(first);
    bench.drop(second);
    bench.end();
}

#[test]
fn a_stream_that_waited_once_takes_more_without_a_call() {
    let bench = Bench::new(options(64 * MIB), Config::default());
    let (a, b) = (bench.take(0, 20 * MIB), bench.take(0, 20 * MIB));
    bench.drop(a);
    bench.drop(b);
    let first = bench.take(1, 20 * MIB);
    let (second, calls) = bench.counted(|| bench.take(1, 20 * MIB));
    assert_eq!(calls, [0; 5], "the event it waited for covers this block too");
    bench.drop(first);
    bench.drop(second);
    bench.end();
}

#[test]
fn without_device_waits_the_host_waits_as_the_last_resort() {
    let options = SimOptions { device_wait: false, ..options(20 * MIB) };
    // Both blocks in one segment: a segment of its own would be given back instead.
    let mut config = Config::default();
    config.segment_share = 0.0;
    let bench = Bench::new(options, config);
    let kept = bench.take(0, 8 * MIB);
    let freed = bench.take(0, 8 * MIB);
    let address = freed.address();
    bench.drop(freed);
    let (other, calls) = bench.counted(|| bench.take(1, 8 * MIB));
    assert_eq!(other.address(), address);
    assert_eq!(calls[..4], [1, calls[1], 0, 1]);
    bench.drop(kept);
    bench.drop(other);
    bench.end();
}

#[test]
fn a_pending_block_blocks_none_behind_it() {
    let options = SimOptions { device_wait: false, ..options(40 * MIB) };
    let mut config = Config::default();
    config.event_batch_count = 1;
    let bench = Bench::new(options, config);
    let (slow, fast) = (bench.take(0, 20 * MIB), bench.take(0, 20 * MIB));
    let behind = fast.address();
    bench.lend(&slow, 1);
    bench.lend(&slow, 2);
    bench.lend(&fast, 2);
    bench.drop(slow);
    bench.drop(fast);
    bench.device.sim.complete(2);
    let (again, calls) = bench.counted(|| bench.take(0, 20 * MIB));
    assert_eq!(again.address(), behind, "stream 1 was waited for, with no need");
    assert_eq!(calls[2..4], [0, 0], "nor is anybody else");
    bench.drop(again);
    bench.end();
}

#[test]
fn a_stream_that_goes_away_strands_nothing() {
    for known in [false, true] {
        let bench = Bench::new(options(64 * MIB), Config::default());
        // Pending on the stream, live on it, and cached on it.
        let pending = bench.take(0, 20 * MIB);
        bench.lend(&pending, 1);
        let live = bench.take(1, 5 * MIB);
        let cached = bench.take(1, 5 * MIB);
        bench.drop(cached);
        bench.drop(pending);
        if known {
            // With everything in hand once, the pending block has its mark.
            let _ = bench.allocator.releasable_bytes();
        }
        bench.allocator.forget_stream(1);
        bench.device.stream_ends(1);
        bench.device.assert_safe();
        let again = bench.take(0, 20 * MIB);
        let foreign = bench.take(2, 5 * MIB);
        bench.drop(live);
        bench.drop(again);
        bench.drop(foreign);
        bench.end();
    }
}

#[test]
fn memory_on_its_way_back_from_a_gone_stream_is_released() {
    let bench = Bench::new(options(64 * MIB), Config::default());
    let pending = bench.take(0, 20 * MIB);
    bench.lend(&pending, 1);
    bench.drop(pending);
    bench.allocator.forget_stream(1);
    bench.device.stream_ends(1);
    bench.end();
}

#[test]
fn a_new_stream_adopts_what_a_gone_one_left() {
    let bench = Bench::new(options(64 * MIB), Config::default());
    let held = bench.take(1, 20 * MIB);
    let address = held.address();
    let index = bench.stream(1).index();
    bench.drop(held);
    bench.allocator.forget_stream(1);
    bench.device.stream_ends(1);
    let ((), calls) = bench.counted(|| assert_eq!(bench.stream(7).index(), index));
    assert_eq!(calls, [0, 0, 1, 0, 1], "the new stream waits for the end of the old one");
    let (again, calls) = bench.counted(|| bench.take(7, 20 * MIB));
    assert_eq!((again.address(), calls), (address, [0; 5]));
    bench.drop(again);
    bench.end();
}

#[test]
fn without_device_waits_a_running_stream_is_not_adopted() {
    let options = SimOptions { device_wait: false, ..options(64 * MIB) };
    let bench = Bench::new(options, Config::default());
    let held = bench.take(1, 20 * MIB);
    let index = bench.stream(1).index();
    bench.drop(held);
    bench.allocator.forget_stream(1);
    bench.device.stream_ends(1);
    assert_ne!(bench.stream(7).index(), index, "nothing orders stream 7 after stream 1");
    bench.end();
}

#[test]
fn no_request_fails_while_a_fitting_block_is_free_on_any_stream() {
    for device_wait in [false, true] {
        for config in [Config::default(), expandable()] {
            let options = SimOptions { device_wait, ..virtual_options(60 * MIB) };
            let bench = Bench::new(options, config);
            let kept: Vec<_> = (0..3).map(|raw| bench.take(raw, 8 * MIB)).collect();
            let freed: Vec<_> = (0..3).map(|raw| bench.take(raw, 8 * MIB)).collect();
            freed.into_iter().for_each(|held| bench.drop(held));
            let taken: Vec<_> = (0..3).map(|_| bench.take(3, 8 * MIB)).collect();
            kept.into_iter().chain(taken).for_each(|held| bench.drop(held));
            bench.end();
        }
    }
}

#[test]
fn what_is_left_of_a_block_that_only_its_own_stream_may_have_stays_so() {
    let bench = Bench::new(options(40 * MIB), Config::default());
    let (held, spare) = (bench.take(0, 18 * MIB), bench.take(0, 20 * MIB));
    bench.lend(&held, 1);
    bench.drop(held);
    bench.drop(spare);
    // Stream 2 has an event recorded on stream 0 that covers the free, and it completes.
    let taken = bench.take(2, 20 * MIB);
    bench.device.sim.complete(0);
    // Stream 0 waits for stream 1 on the device, and uses a part of the block.
    let part = bench.take(0, 4 * MIB);
    bench.device.assert_safe();
    // The rest is ordered for stream 0; stream 3 has waited for nobody.
    let rest = bench.take(3, 4 * MIB);
    bench.device.assert_safe();
    [taken, part, rest].into_iter().for_each(|held| bench.drop(held));
    bench.end();
}

#[test]
fn nothing_is_asked_of_a_captured_stream_and_its_frees_are_made_up_for() {
    for mut config in [Config::default(), Config::torch()] {
        config.headroom = None;
        let bench = Bench::new(options(256 * MIB), config);
        let pool = bench.allocator.create_pool(PoolOptions::default());
        pool.prime(&bench.stream(1), 8 * MIB).expect("there is room");
        let (before, during) = (bench.take(0, 20 * MIB), bench.take(0, 20 * MIB));
        bench.lend(&before, 1);
        bench.lend(&during, 1);
        bench.drop(before);
        let capture = bench.allocator.begin_capture(&bench.stream(1), &pool);
        bench.device.capture_begins(1);
        bench.drop(during);
        let inside = bench.take(1, 8 * MIB);
        let outside = bench.take(0, 20 * MIB);
        bench.allocator.empty_cache();
        bench.device.assert_safe();
        assert!(matches!(bench.try_take(1, 90 * MIB), Err(AllocError::OutOfMemory(_))));
        drop(capture);
        bench.device.capture_ends(1);
        bench.drop(inside);
        bench.drop(outside);
        bench.allocator.empty_cache();
        assert_eq!(bench.allocator.memory_active(), 0, "the deferred frees were made up for");
        drop(pool);
        bench.end();
    }
}

#[test]
fn pages_outlive_the_work_of_other_streams_when_the_allocator_goes_first() {
    let bench = Bench::new(virtual_options(256 * MIB), expandable());
    let held = bench.take(0, 20 * MIB);
    bench.lend(&held, 1);
    let Bench { device, allocator } = bench;
    drop(allocator);
    device.let_go(&held);
    drop(held);
    device.assert_safe();
    assert_eq!((device.sim.used_bytes(), device.sim.leaked()), (0, 0));
}

#[test]
fn a_gone_stream_is_not_touched_when_the_allocator_goes_first() {
    let bench = Bench::new(virtual_options(256 * MIB), expandable());
    let held = bench.take(1, 20 * MIB);
    bench.allocator.forget_stream(1);
    bench.device.stream_ends(1);
    let Bench { device, allocator } = bench;
    drop(allocator);
    device.let_go(&held);
    drop(held);
    device.assert_safe();
    assert_eq!((device.sim.used_bytes(), device.sim.leaked()), (0, 0));
}

#[test]
fn an_oversize_segment_moves_to_another_stream_and_goes_back() {
    let mut config = Config::default();
    config.max_split_size = Some(20 * MIB);
    let bench = Bench::new(options(64 * MIB), config);
    let held = bench.take(0, 24 * MIB);
    bench.drop(held);
    let moved = bench.take(1, 24 * MIB);
    bench.drop(moved);
    bench.end();
}

#[test]
fn pages_that_were_to_be_recycled_go_back_when_the_limit_forbids_the_growth() {
    let mut config = expandable();
    config.event_batch_count = 1;
    config.cross_stream = false;
    config.headroom = None;
    config.memory_limit = Some(42 * MIB);
    let bench = Bench::new(virtual_options(256 * MIB), config);
    let hole = bench.take(0, 20 * MIB);
    bench.drop(hole);
    // Has an event recorded on stream 0 that covers the hole's last use.
    let small = bench.take(1, 1000);
    bench.lend(&small, 0);
    bench.drop(small);
    bench.device.sim.complete_all();
    assert!(bench.try_take(1, 60 * MIB).is_err());
    assert_eq!(bench.device.sim.used_bytes(), bench.allocator.memory_reserved());
    bench.end();
}

/// The protocol that the documentation forbids: use on another stream without `record_stream`.
#[test]
fn an_unrecorded_use_is_caught_by_the_oracle() {
    for (options, config) in
        [(options(20 * MIB), Config::default()), (virtual_options(20 * MIB), expandable())]
    {
        let bench = Bench::new(options, config);
        let held = bench.take(0, 20 * MIB);
        bench.device.use_on(&held, 1);
        bench.drop(held);
        bench.device.assert_safe();
        let again = bench.take(0, 20 * MIB);
        let breaches = bench.device.breaches();
        assert!(breaches.iter().any(|breach| breach.starts_with("R1")), "{breaches:?}");
        bench.drop(again);
    }
    // Pages under work that nobody told of.
    let bench = Bench::new(virtual_options(20 * MIB), expandable());
    let held = bench.take(0, 20 * MIB);
    bench.device.use_on(&held, 1);
    bench.drop(held);
    bench.allocator.empty_cache();
    let breaches = bench.device.breaches();
    assert!(breaches.iter().any(|breach| breach.starts_with("R2")), "{breaches:?}");
    // A stream that is destroyed without a word.
    let bench = Bench::new(options(20 * MIB), Config::default());
    let held = bench.take(1, 20 * MIB);
    bench.device.stream_ends(1);
    bench.drop(held);
    bench.drop(bench.take(0, 20 * MIB));
    let breaches = bench.device.breaches();
    assert!(breaches.iter().any(|breach| breach.starts_with("R4")), "{breaches:?}");
    // A capture that nobody told of.
    let held = bench.take(2, 20 * MIB);
    bench.device.capture_begins(2);
    bench.drop(held);
    bench.drop(bench.take(0, 20 * MIB));
    let breaches = bench.device.breaches();
    assert!(breaches.iter().any(|breach| breach.starts_with("R3")), "{breaches:?}");
}
