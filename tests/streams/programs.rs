//! Seeded random programs: everything that a program may do with streams, in any order.

use std::collections::BTreeSet;
use std::mem::ManuallyDrop;

use aquifer::backend::SimOptions;
use aquifer::{
    AllocError, Allocation, Allocator, CaptureGuard, Config, PoolOptions, PrivatePool, RouteGuard,
    Stream,
};

use super::oracle::Watched;

const MIB: u64 = 1 << 20;
const STEPS: u32 = 250;

/// xorshift64*: the same program for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// An allocation and the streams on which it may be used.
struct Held {
    allocation: Allocation<Watched>,
    streams: BTreeSet<u32>,
}

struct Capture {
    stream: u32,
    guard: CaptureGuard<Watched>,
}

struct Program {
    random: Random,
    device: Watched,
    allocator: Allocator<Watched>,
    /// Streams that exist; number 0 is the default one.
    streams: Vec<Stream<Watched>>,
    gone: Vec<u32>,
    /// Numbers that were given to a second stream.
    reused: BTreeSet<u32>,
    made: u32,
    held: Vec<Held>,
    pools: Vec<PrivatePool<Watched>>,
    routes: Vec<RouteGuard<Watched>>,
    capture: Option<Capture>,
    ooms: u32,
}

impl Program {
    fn new(seed: u64, options: SimOptions, config: Config) -> Self {
        let device = Watched::new(options);
        let allocator = Allocator::new(device.clone(), config);
        let mut random = Random::new(seed);
        let count = 1 + random.below(5) as u32;
        let streams = (0..count).map(|raw| allocator.stream(raw)).collect();
        Self {
            random,
            device,
            allocator,
            streams,
            gone: Vec::new(),
            reused: BTreeSet::new(),
            made: count,
            held: Vec::new(),
            pools: Vec::new(),
            routes: Vec::new(),
            capture: None,
            ooms: 0,
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..30 => self.allocate(),
            30..50 => self.use_one(),
            50..62 => self.record(),
            62..82 => self.free(),
            82..90 => self.progress(),
            90 | 91 => self.forget(),
            92 | 93 => self.begin_stream(),
            94 => self.trim(),
            95 | 96 => self.change_pools(),
            97 => self.begin_capture(),
            _ => self.end_capture(),
        }
    }

    fn any_stream(&mut self) -> Stream<Watched> {
        let at = self.random.below(self.streams.len() as u64) as usize;
        self.streams[at].clone()
    }

    fn is_captured(&self, raw: u32) -> bool {
        self.capture.as_ref().is_some_and(|capture| capture.stream == raw)
    }

    fn allocate(&mut self) {
        let size = match self.random.below(4) {
            0 => 1 + self.random.below(8000),
            1 => 1 + self.random.below(3 * MIB),
            2 => MIB + self.random.below(9 * MIB),
            _ => 4 * MIB * (1 + self.random.below(6)),
        };
        let stream = self.any_stream();
        let align = 512 << self.random.below(6);
        let request = self.allocator.request(size).on(&stream);
        let request = if self.random.one_in(20) { request.align(align) } else { request };
        match request.allocate() {
            Ok(allocation) => {
                self.device.handed(&allocation, stream.raw());
                let streams = BTreeSet::from([stream.raw()]);
                self.held.push(Held { allocation, streams });
            }
            Err(AllocError::OutOfMemory(report)) => {
                self.ooms += 1;
                if self.capture.is_none() {
                    assert_eq!(report.pending, 0, "memory was still on its way: {report}");
                    let fits = report.largest_free >= size.next_multiple_of(512) + align;
                    let config = self.allocator.config();
                    let shares = config.cross_stream && config.max_split_size.is_none();
                    let shares = shares && self.routes.is_empty();
                    assert!(!(shares && fits), "a block that fits is free: {report}");
                }
                for _ in 0..self.held.len() / 2 {
                    self.free();
                }
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn any_held(&mut self) -> Option<usize> {
        let count = self.held.len() as u64;
        (count > 0).then(|| self.random.below(count) as usize)
    }

    fn use_one(&mut self) {
        let Some(at) = self.any_held() else { return };
        let streams: Vec<u32> = self.held[at].streams.iter().copied().collect();
        if streams.is_empty() {
            return;
        }
        let raw = streams[self.random.below(streams.len() as u64) as usize];
        self.device.use_on(&self.held[at].allocation, raw);
    }

    fn record(&mut self) {
        let Some(at) = self.any_held() else { return };
        let stream = self.any_stream();
        self.allocator.record_stream(&self.held[at].allocation, &stream);
        self.held[at].streams.insert(stream.raw());
        self.device.use_on(&self.held[at].allocation, stream.raw());
    }

    fn free(&mut self) {
        let Some(at) = self.any_held() else { return };
        let held = self.held.swap_remove(at);
        self.device.let_go(&held.allocation);
    }

    fn progress(&mut self) {
        let raw = self.any_stream().raw();
        match self.random.below(6) {
            0 => self.device.sim.complete(raw),
            1 => self.device.sim.complete_all(),
            _ => {
                let count = 1 + self.random.below(5);
                self.device.sim.advance(raw, count);
            }
        }
    }

    fn forget(&mut self) {
        let at = self.random.below(self.streams.len() as u64) as usize;
        let raw = self.streams[at].raw();
        if raw == 0 || self.is_captured(raw) {
            return;
        }
        self.streams.swap_remove(at);
        self.allocator.forget_stream(raw);
        self.device.stream_ends(raw);
        self.gone.push(raw);
        for held in &mut self.held {
            held.streams.remove(&raw);
        }
    }

    /// A new stream, which may get the number of one that is gone.
    fn begin_stream(&mut self) {
        if self.streams.len() >= 5 {
            return;
        }
        let raw = match self.gone.pop().filter(|_| self.random.one_in(2)) {
            Some(raw) => {
                self.reused.insert(raw);
                raw
            }
            None => {
                self.made += 1;
                self.made - 1
            }
        };
        self.device.stream_begins(raw);
        self.streams.push(self.allocator.stream(raw));
    }

    fn trim(&mut self) {
        let releasable = self.allocator.releasable_bytes();
        match self.random.below(3) {
            0 => {
                self.allocator.trim_to(self.random.below(64 * MIB));
            }
            _ => {
                let returned = self.allocator.empty_cache();
                assert_eq!(returned, releasable, "releasable_bytes told the truth");
            }
        }
    }

    fn change_pools(&mut self) {
        match self.random.below(5) {
            0 | 1 if self.pools.len() < 3 => {
                let use_on_oom = self.random.one_in(2);
                let no_split = self.random.one_in(4);
                let options = PoolOptions { use_on_oom, no_split, ..PoolOptions::default() };
                self.pools.push(self.allocator.create_pool(options));
            }
            2 if !self.pools.is_empty() && self.routes.is_empty() => {
                let pool = &self.pools[self.random.below(self.pools.len() as u64) as usize];
                let at = self.random.below(self.streams.len() as u64) as usize;
                let route = match self.random.below(2) {
                    0 => pool.route_thread(),
                    _ => pool.route_stream(&self.streams[at]),
                };
                self.routes.push(route);
            }
            3 if !self.pools.is_empty() && self.capture.is_none() => {
                self.pools.remove(0);
            }
            _ => self.routes.clear(),
        }
    }

    fn begin_capture(&mut self) {
        let Some(pool) = self.pools.first().cloned() else { return };
        if self.capture.is_some() {
            return;
        }
        self.routes.clear();
        let stream = self.any_stream();
        // Events of an earlier stream with the same number may still be asked for.
        if self.reused.contains(&stream.raw()) {
            return;
        }
        if pool.prime(&stream, 8 * MIB).is_err() {
            return;
        }
        let guard = self.allocator.begin_capture(&stream, &pool);
        self.device.capture_begins(stream.raw());
        self.capture = Some(Capture { stream: stream.raw(), guard });
    }

    fn end_capture(&mut self) {
        if let Some(Capture { stream, guard }) = self.capture.take() {
            self.device.capture_ends(stream);
            drop(guard);
        }
    }

    /// Lets go of everything: all memory is back, from every stream there ever was.
    fn end(mut self) -> u32 {
        self.end_capture();
        self.routes.clear();
        while !self.held.is_empty() {
            self.free();
        }
        self.device.sim.complete_all();
        self.pools.clear();
        let releasable = self.allocator.releasable_bytes();
        assert_eq!(self.allocator.empty_cache(), releasable);
        self.allocator.verify();
        assert_eq!(self.allocator.memory_active(), 0, "something is stranded");
        assert_eq!(self.allocator.memory_reserved(), 0);
        self.streams.clear();
        drop(self.allocator);
        self.device.assert_safe();
        let sim = &self.device.sim;
        assert_eq!((sim.used_bytes(), sim.live_ranges(), sim.leaked()), (0, 0, 0));
        self.ooms
    }
}

/// Draws the device and the configuration from the seed, the large choices in turn.
fn draw(seed: u64) -> (SimOptions, Config) {
    let mut random = Random::new(seed ^ 0x5EED);
    let options = SimOptions {
        capacity: MIB * (32 << random.below(4)),
        virtual_memory: seed & 1 != 0,
        asynchronous: true,
        device_wait: seed & 2 != 0,
        ..SimOptions::default()
    };
    let mut config = if seed & 4 != 0 { Config::torch() } else { Config::default() };
    config.expandable_segments = options.virtual_memory;
    if seed & 8 != 0 {
        config.harvest_every_allocate = random.one_in(2);
        config.event_batch_count = [1, 2, 8, 64][random.below(4) as usize];
        config.cross_stream = random.one_in(2);
        config.page_recycling = random.one_in(2);
        if random.one_in(3) {
            config.chunk_share = if random.one_in(2) { 0.0 } else { 0.1 };
        }
        config.trim_private_pools = random.one_in(2);
        config.headroom = random.one_in(2).then_some(0.05);
        config.max_split_size = random.one_in(3).then_some(20 * MIB);
        config.memory_limit = random.one_in(3).then_some(options.capacity * 3 / 4);
    }
    (options, config)
}

fn run(seed: u64) -> u32 {
    let (options, config) = draw(seed);
    // After a panic the pieces are left where they are: to drop them might panic again.
    let mut program = ManuallyDrop::new(Program::new(seed, options, config));
    for step in 0..STEPS {
        program.step();
        program.device.assert_safe();
        if step % 16 == 0 {
            program.allocator.verify();
        }
    }
    ManuallyDrop::into_inner(program).end()
}

/// `AQUIFER_SEEDS=n` for the first n, `AQUIFER_SEEDS=n..m` for some of them. Every one of the 16
/// large choices gets as many.
fn seeds() -> std::ops::Range<u64> {
    let asked = std::env::var("AQUIFER_SEEDS").unwrap_or_default();
    let (first, end) = asked.split_once("..").unwrap_or(("0", &asked));
    first.parse().unwrap_or(0)..end.parse().unwrap_or(640)
}

#[test]
fn random_programs_never_get_memory_that_is_in_use() {
    let mut ooms = 0;
    let mut failed = Vec::new();
    for seed in seeds() {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(count) => ooms += count,
            Err(_) => failed.push(seed),
        }
    }
    assert!(failed.is_empty(), "{} programs failed: seeds {failed:?}", failed.len());
    assert!(ooms > 0, "no program ever ran out of memory: the devices are too large");
}
