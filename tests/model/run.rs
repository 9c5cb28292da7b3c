//! One program under way: its steps, and the judgement of each.

use aquifer::backend::{Sim, WorkId};
use aquifer::report::snapshot::{BlockState, SegmentSnapshot};
use aquifer::{
    AllocError, Allocation, Allocator, CaptureGuard, Config, PoolOptions, PrivatePool, RouteGuard,
    Stream,
};

use crate::support::{Device, Shadow, assert_emptied, assert_nothing_held, harvest, is_done};

/// One step. Numbers that name one of several things are taken modulo how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Allocate {
        size: u64,
        stream: u32,
        align: u64,
    },
    Free(usize),
    /// Every second block from there on.
    FreeMany(usize),
    FreeOldest,
    FreeNewest,
    Record {
        which: usize,
        stream: u32,
    },
    /// The newest block is used by the other one of two streams.
    RecordNewest,
    Finish(u32),
    FinishAll,
    Advance(u32),
    EmptyCache,
    Trim(u64),
    Maintain,
    ResetPeaks,
    Limit(u64),
    OpenPool {
        use_on_oom: bool,
        no_split: bool,
    },
    ClosePool(usize),
    RouteThread(usize),
    RouteStream {
        which: usize,
        stream: u32,
    },
    Capture {
        which: usize,
        stream: u32,
    },
    EndRoute(usize),
    Forget(u32),
}

/// An allocation that the program holds.
struct Live<D: Device> {
    allocation: Allocation<D>,
    stream: u32,
    /// Which of the streams that had this number.
    generation: u32,
    address: u64,
    seed: u64,
    works: Vec<WorkId>,
}

/// What ends with its drop.
enum Guard<D: Device> {
    Route { _guard: RouteGuard<D> },
    Capture { _guard: CaptureGuard<D> },
}

/// A place that was freed, with the work that may still run on it.
struct Trace {
    start: u64,
    end: u64,
    works: Vec<WorkId>,
}

pub(crate) struct Run<D: Device> {
    device: D,
    allocator: Allocator<D>,
    /// By number: the handle, once there is one, and how many streams had the number before.
    streams: Vec<(Option<Stream<D>>, u32)>,
    live: Vec<Live<D>>,
    shadow: Shadow,
    traces: Vec<Trace>,
    pools: Vec<PrivatePool<D>>,
    routes: Vec<Guard<D>>,
    log: Vec<Op>,
    reserved: u64,
    /// Frees and unmaps that the device has seen.
    removals: (u64, u64),
    time: std::time::Duration,
    serial: u64,
}

impl<D: Device> Drop for Run<D> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let from = self.log.len().saturating_sub(25);
            eprintln!("step {}; the last were {:?}", self.log.len(), &self.log[from..]);
            // Taking a broken allocator down may panic again, which would end the whole program.
            std::mem::forget(self.allocator.clone());
        }
    }
}

impl<D: Device> Run<D> {
    pub(crate) fn new(device: D, config: Config, streams: u32) -> Self {
        let allocator = Allocator::new(device.clone(), config);
        let streams = (0..streams).map(|_| (None, 0)).collect();
        Self {
            device,
            allocator,
            streams,
            live: Vec::new(),
            shadow: Shadow::default(),
            traces: Vec::new(),
            pools: Vec::new(),
            routes: Vec::new(),
            log: Vec::new(),
            reserved: 0,
            removals: (0, 0),
            time: std::time::Duration::ZERO,
            serial: 0,
        }
    }

    pub(crate) fn step(&mut self, op: Op) {
        self.log.push(op);
        match op {
            Op::Allocate { size, stream, align } => self.allocate(size, stream, align),
            Op::Free(which) => self.free(which),
            Op::FreeMany(which) => (0..self.live.len() / 2).for_each(|at| self.free(which + at)),
            Op::FreeOldest => self.free(0),
            Op::FreeNewest => self.free(self.live.len().wrapping_sub(1)),
            Op::Record { which, stream } => self.record(which, stream),
            Op::RecordNewest => {
                let stream = self.live.last().map_or(0, |live| 1 - live.stream);
                self.record(self.live.len().wrapping_sub(1), stream);
            }
            Op::Finish(_) | Op::FinishAll | Op::Advance(_) => self.work_on(op),
            Op::EmptyCache | Op::Trim(_) | Op::Maintain => self.give_back(op),
            Op::ResetPeaks => {
                self.allocator.reset_peak_memory_stats();
                self.shadow.allocated_peak = self.shadow.allocated;
            }
            Op::Limit(limit) => {
                self.allocator.set_memory_limit((!limit.is_multiple_of(3)).then_some(limit));
            }
            Op::Forget(stream) => self.forget(stream),
            _ => self.private(op),
        }
        self.look_for_removals();
    }

    fn private(&mut self, op: Op) {
        let among = |which: usize, count: usize| (count > 0).then(|| which % count);
        match op {
            Op::OpenPool { use_on_oom, no_split } if self.pools.len() < 4 => {
                let mut options = PoolOptions::default();
                (options.use_on_oom, options.no_split) = (use_on_oom, no_split);
                self.pools.push(self.allocator.create_pool(options));
            }
            Op::ClosePool(which) => {
                if let Some(at) = among(which, self.pools.len()) {
                    drop(self.pools.swap_remove(at));
                }
            }
            Op::RouteThread(which) | Op::RouteStream { which, .. } | Op::Capture { which, .. } => {
                if let Some(at) = among(which, self.pools.len()).filter(|_| self.routes.len() < 3) {
                    let guard = self.route(op, at);
                    self.routes.push(guard);
                }
            }
            Op::EndRoute(which) => {
                if let Some(at) = among(which, self.routes.len()) {
                    drop(self.routes.swap_remove(at));
                }
            }
            _ => {}
        }
    }

    fn route(&mut self, op: Op, pool: usize) -> Guard<D> {
        match op {
            Op::RouteStream { stream, .. } => {
                let handle = self.handle(stream);
                Guard::Route { _guard: self.pools[pool].route_stream(&handle) }
            }
            Op::Capture { stream, .. } => {
                let (handle, pool) = (self.handle(stream), &self.pools[pool]);
                Guard::Capture { _guard: self.allocator.begin_capture(&handle, pool) }
            }
            _ => Guard::Route { _guard: self.pools[pool].route_thread() },
        }
    }

    fn allocate(&mut self, size: u64, stream: u32, align: u64) {
        let (handle, generation) = (self.handle(stream), self.streams[stream as usize].1);
        let align = align.min(self.device.limits().alignment);
        let outcome = self.allocator.request(size).on(&handle).align(align).allocate();
        let allocation = match outcome {
            Ok(allocation) => allocation,
            Err(AllocError::OutOfMemory(_)) => return,
            Err(error) => panic!("{error}"),
        };
        let address = allocation.address().expect("these devices have addresses");
        let capacity = allocation.capacity();
        assert!(address.is_multiple_of(align.max(512)), "{address:#x} for alignment {align}");
        self.shadow.insert(address, capacity, size);
        self.look_for_removals();
        let mut works = Vec::new();
        if let Some(sim) = self.device.sim() {
            let backed = sim.is_accessible(address, capacity);
            assert!(backed, "no memory behind {address:#x} + {capacity}");
            check_order(sim, &self.traces, (address, address + capacity), stream);
            works.push(sim.submit(stream));
        }
        self.serial += 1;
        let seed = self.serial << 32;
        if let Some(view) = allocation.view() {
            self.device.write(&view, allocation.offset(), capacity, seed);
        }
        self.live.push(Live { allocation, stream, generation, address, seed, works });
    }

    fn free(&mut self, which: usize) {
        if self.live.is_empty() {
            return;
        }
        let mut live = self.live.remove(which % self.live.len());
        check_content(&self.device, &live);
        if let Some(sim) = self.device.sim() {
            // Work up to the free counts, if the stream is still there.
            if self.streams[live.stream as usize].1 == live.generation {
                live.works.push(sim.submit(live.stream));
            }
            let works = live.works.iter().copied().filter(|&work| !is_done(sim, work)).collect();
            let (start, end) = (live.address, live.address + live.allocation.capacity());
            self.traces.push(Trace { start, end, works });
        }
        self.shadow.remove(live.address);
        drop(live);
    }

    fn record(&mut self, which: usize, stream: u32) {
        if self.live.is_empty() {
            return;
        }
        let at = which % self.live.len();
        let handle = self.handle(stream);
        let live = &mut self.live[at];
        self.allocator.record_stream(&live.allocation, &handle);
        if let Some(sim) = self.device.sim() {
            live.works.push(sim.submit(stream));
        }
    }

    fn work_on(&mut self, op: Op) {
        let Some(sim) = self.device.sim() else { return };
        match op {
            Op::Finish(stream) => sim.complete(stream),
            Op::FinishAll => sim.complete_all(),
            Op::Advance(stream) => {
                sim.advance(stream, 3);
            }
            _ => unreachable!("work is finished or moved on"),
        }
    }

    fn give_back(&mut self, op: Op) {
        let before = self.allocator.memory_reserved();
        let returned = match op {
            Op::EmptyCache => {
                let releasable = self.allocator.releasable_bytes();
                let returned = self.allocator.empty_cache();
                assert_eq!(returned, releasable, "empty_cache against releasable_bytes");
                assert_eq!(self.allocator.releasable_bytes(), 0, "after empty_cache");
                returned
            }
            Op::Trim(floor) => {
                let returned = self.allocator.trim_to(floor);
                let left = self.allocator.memory_reserved();
                assert!(left >= floor.min(before), "{left} bytes left, below the floor of {floor}");
                returned
            }
            _ => {
                self.time += std::time::Duration::from_secs(10);
                self.allocator.maintain(self.time)
            }
        };
        assert_eq!(
            before - self.allocator.memory_reserved(),
            returned,
            "bytes said to be returned"
        );
    }

    fn forget(&mut self, stream: u32) {
        // The default stream stays, and so does a stream that a route speaks of.
        if stream == 0 || !self.routes.is_empty() {
            return;
        }
        self.allocator.forget_stream(stream);
        let (handle, generation) = &mut self.streams[stream as usize];
        *generation += u32::from(handle.take().is_some());
    }

    /// The handle of a stream, which is registered anew if it was forgotten.
    fn handle(&mut self, stream: u32) -> Stream<D> {
        let handle = &mut self.streams[stream as usize].0;
        handle.get_or_insert_with(|| self.allocator.stream(stream)).clone()
    }

    /// What went back to the device since the last look: no page under running work; and the work
    /// on whole segments is the device's business from then on.
    fn look_for_removals(&mut self) {
        let Some(sim) = self.device.sim() else { return };
        let calls = sim.calls();
        let removals = (calls.free, calls.unmap);
        let (freed, unmapped) = (removals.0 != self.removals.0, removals.1 != self.removals.1);
        self.removals = removals;
        if freed {
            self.traces.clear();
        }
        if !unmapped && self.traces.len() < 100 {
            return;
        }
        for trace in &mut self.traces {
            trace.works.retain(|&work| !is_done(sim, work));
        }
        self.traces.retain(|trace| !trace.works.is_empty());
        for Trace { start, end, works } in self.traces.iter().filter(|_| unmapped) {
            let there = sim.is_accessible(*start, end - start);
            assert!(there, "pages of {start:#x}..{end:#x} went while {works:?} ran there");
        }
    }

    /// Compares everything that can be seen with what the program knows.
    pub(crate) fn judge(&mut self) {
        self.allocator.verify();
        let stats = self.allocator.memory_stats();
        let allocated = stats.allocated_bytes.all;
        let (active, reserved) = (stats.active_bytes.all, stats.reserved_bytes.all);
        assert_eq!(allocated.current, self.shadow.allocated, "memory_allocated");
        assert_eq!(allocated.peak, self.shadow.allocated_peak, "the peak of memory_allocated");
        assert_eq!(stats.allocation.all.current, self.live.len() as u64, "live allocations");
        assert!(self.shadow.requested <= stats.requested_bytes.all.current, "requested bytes");
        assert!(allocated.current <= active.current && active.current <= reserved.current, "W3");
        assert_eq!(self.device.used(), reserved.current, "the device's bytes against reserved");
        for gauge in
            [allocated, active, reserved, stats.segment.all, stats.inactive_split_bytes.all]
        {
            assert_eq!(gauge.allocated - gauge.freed, gauge.current, "came less left is there");
        }
        let limit = self.allocator.memory_limit().unwrap_or(u64::MAX);
        // PyTorch measures a limit with the size a fixed segment would have, not with pages.
        let exact = self.allocator.config().exact_growth;
        let grew = reserved.current > self.reserved && exact;
        assert!(!grew || reserved.current <= limit, "W2: {} beyond {limit}", reserved.current);
        self.reserved = reserved.current;
        if self.log.len() % 8 == 1 {
            self.judge_snapshot();
            let at = self.log.len() % self.live.len().max(1);
            self.live.get(at).into_iter().for_each(|live| check_content(&self.device, live));
        }
    }

    fn judge_snapshot(&self) {
        let snapshot = self.allocator.memory_snapshot();
        let reserved: u64 = snapshot.segments.iter().map(|segment| segment.total_size).sum();
        assert_eq!(reserved, self.allocator.memory_reserved(), "segments in the snapshot");
        let mut blocks: Vec<_> = snapshot.segments.iter().flat_map(allocated_blocks).collect();
        blocks.sort_unstable();
        assert!(blocks.iter().copied().eq(self.shadow.blocks()), "blocks in the snapshot");
    }

    /// Ends the program: everything is freed, merged, given back.
    pub(crate) fn finish(mut self) {
        for live in std::mem::take(&mut self.live) {
            check_content(&self.device, &live);
            self.shadow.remove(live.address);
        }
        self.routes.clear();
        // Each round records what was not recorded, finishes it and sees it; blocks that were used
        // by several streams wait for one after the other.
        for _ in 0..=self.streams.len() {
            harvest(&self.allocator);
            self.device.sim().into_iter().for_each(Sim::complete_all);
        }
        harvest(&self.allocator);
        self.allocator.verify();
        assert_eq!(self.allocator.memory_active(), 0, "all is done, and something is pending");
        for segment in &self.allocator.memory_snapshot().segments {
            assert_merged(segment);
        }
        self.pools.clear();
        assert_emptied(&self.allocator);
        self.leave();
    }

    /// Drops everything, the allocator first.
    pub(crate) fn leave(mut self) {
        let empty = Allocator::new(self.device.clone(), Config::default());
        drop(std::mem::replace(&mut self.allocator, empty));
        self.live.clear();
        self.streams.clear();
        assert_nothing_held(&self.device);
    }
}

/// Whoever uses these bytes on `stream` next comes after all earlier work on them.
fn check_order(sim: &Sim, traces: &[Trace], (start, end): (u64, u64), stream: u32) {
    for trace in traces.iter().filter(|trace| trace.start < end && start < trace.end) {
        for &work in &trace.works {
            let ordered = sim.is_ordered(work, stream);
            assert!(ordered, "{start:#x}..{end:#x} for stream {stream} while {work:?} runs there");
        }
    }
}

fn check_content<D: Device>(device: &D, live: &Live<D>) {
    let Some(view) = live.allocation.view() else { return };
    let (offset, capacity) = (live.allocation.offset(), live.allocation.capacity());
    let same = device.reads_back(&view, offset, capacity, live.seed);
    assert!(same, "somebody wrote into {:#x} + {capacity}", live.address);
}

fn allocated_blocks(segment: &SegmentSnapshot) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
    let base = segment.address.expect("these devices have addresses");
    let allocated = segment.blocks.iter().filter(|block| block.state == BlockState::Allocated);
    allocated.map(move |block| {
        let start = base + block.offset;
        (start, start + block.size, block.requested_size)
    })
}

/// Nothing is used and all that can merge has merged.
fn assert_merged(segment: &SegmentSnapshot) {
    let free = segment.blocks.iter().all(|block| block.state == BlockState::Free);
    assert!(free, "something is not free: {segment:?}");
    let apart = segment.blocks.windows(2).all(|two| two[0].offset + two[0].size < two[1].offset);
    assert!(apart, "free neighbours have not merged: {segment:?}");
    assert!(segment.expandable || segment.blocks.len() == 1, "{segment:?}");
}
