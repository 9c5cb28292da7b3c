//! G8 of the list: memory of a captured stream that others have used, in the same capture.

use aquifer::backend::{Backend, Sim, SimOptions};
use aquifer::units::{GIB, MIB};
use aquifer::{AllocError, Allocation, Allocator, Bytes, Config, PoolOptions, PrivatePool, Stream};

use super::in_both_modes;

const SIZE: Bytes = 20 * MIB;

/// A captured stream whose pool has one block of [`SIZE`].
struct Bench {
    sim: Sim,
    allocator: Allocator<Sim>,
    streams: [Stream<Sim>; 4],
    pool: PrivatePool<Sim>,
}

impl Bench {
    fn new(expandable: bool, reuse: bool) -> Self {
        let options = SimOptions {
            capacity: GIB,
            virtual_memory: expandable,
            asynchronous: true,
            ..SimOptions::default()
        };
        let sim = Sim::new(options);
        let mut config = Config::torch();
        config.expandable_segments = expandable;
        config.graph_capture_record_stream_reuse = reuse;
        let allocator = Allocator::new(sim.clone(), config);
        let streams = [1, 2, 3, 4].map(|raw| allocator.stream(raw));
        let pool = allocator.create_pool(PoolOptions::default());
        pool.prime(&streams[0], SIZE).expect("room");
        Self { sim, allocator, streams, pool }
    }

    fn take(&self) -> Result<Allocation<Sim>, AllocError> {
        let request = self.allocator.request(SIZE).pool(&self.pool);
        request.on(&self.streams[0]).allocate()
    }

    /// Captured work of another stream on a block.
    fn use_on(&self, held: &Allocation<Sim>, which: usize) {
        self.allocator.record_stream(held, &self.streams[which]);
        self.sim.submit(self.streams[which].raw());
    }

    /// The captured stream waits for another one.
    fn join(&self, which: usize) {
        let event = self.sim.record(self.streams[which].raw()).expect("a live device");
        self.sim.wait_on(self.streams[0].raw(), &event).expect("a live device");
    }
}

/// G8 `test_graph_capture_reclaim_2_streams`, `…_4_streams`: no reuse before all have been joined.
fn g8_reclaim_in_a_capture(expandable: bool) {
    for others in [1..2, 1..4] {
        let bench = Bench::new(expandable, true);
        let capture = bench.allocator.begin_capture(&bench.streams[0], &bench.pool);
        let held = bench.take().expect("primed");
        let place = held.address();
        others.clone().for_each(|which| bench.use_on(&held, which));
        drop(held);
        for which in others.clone() {
            assert!(bench.take().is_err(), "{which} of {others:?} is not joined");
            bench.join(which);
        }
        let again = bench.take().expect("all are joined");
        assert_eq!(again.address(), place);
        bench.allocator.verify();
        // Used once more: what was joined before says nothing of it.
        bench.use_on(&again, 1);
        drop(again);
        assert!(bench.take().is_err());
        bench.join(1);
        drop(bench.take().expect("joined again"));
        drop(capture);
        bench.allocator.verify();
    }
}

/// G8: without the option what others have used is put off to the end of the capture.
fn g8_not_without_the_option(expandable: bool) {
    let bench = Bench::new(expandable, false);
    let capture = bench.allocator.begin_capture(&bench.streams[0], &bench.pool);
    let held = bench.take().expect("primed");
    bench.use_on(&held, 1);
    drop(held);
    bench.join(1);
    assert!(bench.take().is_err());
    drop(capture);
    bench.sim.complete_all();
    drop(bench.take().expect("recovered"));
}

/// G8 `test_graph_capture_pre_capture_stream_use`: work from before the capture is no part of the
/// graph; only its event tells when it is done.
fn g8_work_from_before_the_capture(expandable: bool) {
    let bench = Bench::new(expandable, true);
    let held = bench.take().expect("primed");
    bench.use_on(&held, 1);
    let capture = bench.allocator.begin_capture(&bench.streams[0], &bench.pool);
    drop(held);
    bench.join(1);
    assert!(bench.take().is_err(), "the kernel from before may still run");
    drop(capture);
    bench.allocator.maintain(std::time::Duration::ZERO);
    bench.sim.complete_all();
    bench.allocator.maintain(std::time::Duration::ZERO);
    let capture = bench.allocator.begin_capture(&bench.streams[0], &bench.pool);
    drop(bench.take().expect("its event is complete"));
    drop(capture);
    bench.allocator.verify();
}

/// G8 `test_graph_capture_reclaim_shared_pool`: what one capture leaves the next one has.
fn g8_captures_share_a_pool(expandable: bool) {
    let bench = Bench::new(expandable, true);
    for _ in 0..3 {
        let capture = bench.allocator.begin_capture(&bench.streams[0], &bench.pool);
        let held = bench.take().expect("primed, or left by the one before");
        bench.use_on(&held, 2);
        drop(held);
        bench.join(2);
        drop(bench.take().expect("joined"));
        drop(capture);
    }
    bench.allocator.verify();
}

in_both_modes! {
    g8_reclaim_in_a_capture,
    g8_not_without_the_option,
    g8_work_from_before_the_capture,
    g8_captures_share_a_pool,
}
