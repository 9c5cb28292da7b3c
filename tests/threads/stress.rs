//! Threads that allocate, free, hand over and trim, on a device that is always nearly full.
//!
//! Every allocation is stamped with a number of its own at both ends and in the middle, and the
//! stamps are read back before it is freed, by whichever thread that is: bytes that are handed out
//! twice cannot go unseen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use aquifer::backend::{Host, HostVisible};
use aquifer::report::stats::Gauge;
use aquifer::{AllocError, Allocation, Allocator, Config, PoolOptions, Stream};

const MIB: u64 = 1 << 20;
const STEPS: u32 = 1200;
const SHARED_STREAMS: u32 = 4;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }
}

struct Held {
    allocation: Allocation<Host>,
    stamp: u64,
}

/// The places of the stamps, in bytes from the start of the block.
fn places(capacity: u64) -> [u64; 3] {
    [0, capacity / 16 * 8, capacity - 8]
}

/// Where a stamp lies.
fn cell(host: &Host, allocation: &Allocation<Host>, at: u64) -> *mut u64 {
    let view = allocation.view().expect("the size is not 0");
    // SAFETY: the allocation is live as long as it is borrowed, and `at + 8` is at most its
    // capacity; it is written by the thread that holds it, and by no other.
    let bytes = unsafe { host.bytes(&view, allocation.offset() + at, 8) };
    bytes.cast()
}

impl Held {
    fn new(host: &Host, allocation: Allocation<Host>, stamp: u64) -> Self {
        for at in places(allocation.capacity()) {
            // SAFETY: `cell` points to 8 aligned bytes of a live allocation that is ours.
            unsafe { cell(host, &allocation, at).write(stamp) };
        }
        Self { allocation, stamp }
    }

    fn check(&self, host: &Host) {
        for at in places(self.allocation.capacity()) {
            // SAFETY: as in `new`; the bytes were written there.
            let found = unsafe { cell(host, &self.allocation, at).read() };
            assert_eq!(found, self.stamp, "{:?} was handed out twice", self.allocation);
        }
    }
}

/// What all threads share.
struct Common {
    host: Host,
    allocator: Allocator<Host>,
    streams: Vec<Stream<Host>>,
    /// Allocations on their way from thread to thread.
    table: Mutex<Vec<Held>>,
    stamps: AtomicU64,
}

struct Worker<'a> {
    common: &'a Common,
    random: Random,
    held: Vec<Held>,
    /// A stream that only this thread names, and its number.
    own: Option<Stream<Host>>,
    numbers: std::ops::Range<u32>,
}

impl Worker<'_> {
    fn run(mut self) {
        for _ in 0..STEPS {
            match self.random.below(100) {
                0..40 => self.allocate(),
                40..70 => self.free(),
                70..78 => self.hand_over(),
                78..86 => self.take_over(),
                86..92 => self.record(),
                92 | 93 => self.change_stream(),
                94 | 95 => self.visit_pool(),
                96 => {
                    self.common.allocator.empty_cache();
                }
                97 => {
                    self.common.allocator.trim_to(8 * MIB);
                }
                98 => check_stats(&self.common.allocator),
                _ => self.common.allocator.verify(),
            }
        }
        while !self.held.is_empty() {
            self.free();
        }
        if let Some(own) = self.own.take() {
            self.common.allocator.forget_stream(own.raw());
        }
    }

    fn stream(&mut self) -> Stream<Host> {
        let at = self.random.below(u64::from(SHARED_STREAMS) + 1) as usize;
        let shared = self.common.streams.get(at).cloned();
        shared.or_else(|| self.own.clone()).unwrap_or_else(|| self.common.streams[0].clone())
    }

    fn allocate(&mut self) {
        let size = match self.random.below(3) {
            0 => 1 + self.random.below(4000),
            1 => 1 + self.random.below(MIB),
            _ => 1 + self.random.below(5 * MIB),
        };
        let stream = self.stream();
        match self.common.allocator.allocate_on(&stream, size) {
            Ok(allocation) => {
                let stamp = self.common.stamps.fetch_add(1, Ordering::Relaxed);
                self.held.push(Held::new(&self.common.host, allocation, stamp));
            }
            Err(AllocError::OutOfMemory(_)) => {
                for _ in 0..self.held.len() / 2 {
                    self.free();
                }
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn any(&mut self) -> Option<Held> {
        let count = self.held.len() as u64;
        (count > 0).then(|| self.random.below(count) as usize).map(|at| self.held.swap_remove(at))
    }

    fn free(&mut self) {
        if let Some(held) = self.any() {
            held.check(&self.common.host);
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Vec<Held>> {
        self.common.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_over(&mut self) {
        if let Some(held) = self.any() {
            self.table().push(held);
        }
    }

    fn take_over(&mut self) {
        let taken = self.table().pop();
        self.held.extend(taken);
    }

    fn record(&mut self) {
        let stream = self.stream();
        if let Some(held) = self.held.last() {
            self.common.allocator.record_stream(&held.allocation, &stream);
        }
    }

    /// Forgets the own stream, or registers a new one.
    fn change_stream(&mut self) {
        let allocator = &self.common.allocator;
        match self.own.take() {
            Some(own) => allocator.forget_stream(own.raw()),
            None => self.own = self.numbers.next().map(|raw| allocator.stream(raw)),
        }
    }

    fn visit_pool(&mut self) {
        let use_on_oom = self.random.below(2) == 0;
        let options = PoolOptions { use_on_oom, ..PoolOptions::default() };
        let pool = self.common.allocator.create_pool(options);
        let route = pool.route_thread();
        for _ in 0..3 {
            self.allocate();
        }
        drop(route);
    }
}

fn check_stats(allocator: &Allocator<Host>) {
    let stats = allocator.memory_stats();
    let gauges = [
        stats.allocation,
        stats.segment,
        stats.active,
        stats.inactive_split,
        stats.allocated_bytes,
        stats.reserved_bytes,
        stats.active_bytes,
        stats.inactive_split_bytes,
        stats.requested_bytes,
    ];
    for gauges in gauges {
        for Gauge { current, peak, .. } in [gauges.all, gauges.small_pool, gauges.large_pool] {
            assert!(current <= peak, "a peak of {peak} below {current}");
        }
    }
    let (requested, allocated) = (stats.requested_bytes.all, stats.allocated_bytes.all);
    let (active, reserved) = (stats.active_bytes.all, stats.reserved_bytes.all);
    assert!(allocated.current <= active.current && active.current <= reserved.current);
    assert!(requested.current <= active.current);
}

fn stress(seed: u64, threads: u32, config: Config) {
    println!("seed {seed}, {threads} threads");
    // Room for about half of what the threads would like to hold.
    let host = Host::with_capacity(u64::from(threads) * 4 * MIB);
    let allocator = Allocator::new(host.clone(), config);
    let streams = (0..SHARED_STREAMS).map(|raw| allocator.stream(raw)).collect();
    let (table, stamps) = (Mutex::default(), AtomicU64::new(1));
    let common = Common { host: host.clone(), allocator, streams, table, stamps };
    std::thread::scope(|scope| {
        for index in 0..threads {
            let random = Random((seed << 8 | u64::from(index + 1)).wrapping_mul(0x9E37_79B9));
            let numbers = 1000 * (index + 1)..1000 * (index + 2);
            let worker = Worker { common: &common, random, held: Vec::new(), own: None, numbers };
            scope.spawn(|| worker.run());
        }
    });
    let Common { allocator, streams, table, .. } = common;
    let left = table.into_inner().unwrap_or_else(PoisonError::into_inner);
    left.iter().for_each(|held| held.check(&host));
    drop(left);
    allocator.verify();
    check_stats(&allocator);
    assert!(allocator.memory_stats().num_ooms > 0, "the device is too large for this test");
    let releasable = allocator.releasable_bytes();
    assert_eq!(allocator.empty_cache(), releasable);
    assert_eq!((allocator.memory_active(), allocator.memory_reserved()), (0, 0));
    allocator.verify();
    drop(streams);
    drop(allocator);
    assert_eq!(host.used_bytes(), 0);
}

/// Segments that are small against the device, so that they come and go all the time.
fn small_segments(mut config: Config) -> Config {
    config.large_segment = 4 * MIB;
    config.large_min = 2 * MIB;
    config
}

#[test]
fn eight_threads_never_share_bytes() {
    for seed in 0..4 {
        stress(seed, 8, small_segments(Config::default()));
    }
}

#[test]
fn sixteen_threads_never_share_bytes() {
    for seed in 10..12 {
        stress(seed, 16, small_segments(Config::default()));
    }
}

#[test]
fn eight_threads_never_share_bytes_with_the_torch_preset() {
    for seed in 20..23 {
        stress(seed, 8, small_segments(Config::torch()));
    }
}
