//! Random programs over several streams: blocks are marked, checked and marked again at home and
//! abroad, and dropped with all of that under way, among growth and trims.
//!
//! A block that somebody gets too early is marked by its new owner before a check of the old one
//! runs, which then counts its words. Every stream is kept busy by work on a block of its own, so
//! that a check comes late.

use aquifer::backend::CudaSource;
use aquifer::{CudaBuffer, OnStream};

use crate::fixture::{Counter, Device, blank, pick};
use crate::support::{Context, MIB, Rng, Shadow};

const STREAMS: usize = 4;

struct Block {
    buffer: CudaBuffer<u32>,
    seed: u32,
    home: usize,
}

struct Program {
    device: Device,
    streams: Vec<OnStream>,
    counters: Vec<Counter>,
    /// What keeps a stream busy.
    ballast: Vec<CudaBuffer<u32>>,
    blocks: Vec<Block>,
    shadow: Shadow,
    random: Rng,
    room: u64,
}

impl Program {
    fn new(device: Device, seed: u64) -> Self {
        let streams: Vec<_> = (0..STREAMS).map(|_| device.stream()).collect();
        let counters = streams.iter().map(Counter::new).collect();
        let words = pick(16, 1) * MIB as usize / 4;
        let ballast = streams.iter().map(|on| blank(on, words)).collect();
        let (room, random) = (device.room(), Rng::new(seed));
        let (blocks, shadow) = (Vec::new(), Shadow::default());
        Self { device, streams, counters, ballast, blocks, shadow, random, room }
    }

    fn any_stream(&mut self) -> usize {
        self.random.below(STREAMS as u64) as usize
    }

    fn any_block(&mut self) -> Option<usize> {
        let count = self.blocks.len() as u64;
        (count > 0).then(|| self.random.below(count) as usize)
    }

    /// `later` goes on when `earlier` has done what it has.
    fn order(&self, later: usize, earlier: usize) {
        if later != earlier {
            let [later, earlier] = [later, earlier].map(|at| self.streams[at].cuda_stream());
            later.join(earlier).expect("an event");
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..36 => self.allocate(),
            36..46 => self.check(false),
            46..62 => self.check(true),
            62..68 => self.stamp_abroad(),
            68..92 => self.free(),
            92..97 => {
                let at = self.any_stream();
                self.device.advance(&self.streams[at]);
                let Self { device, streams, ballast, .. } = self;
                device.words.stamp(&streams[at], &mut ballast[at], 0);
            }
            97 => {
                let at = self.any_stream();
                self.streams[at].cuda_stream().synchronize().expect("the device is there");
            }
            98 => {
                let floor = self.random.below(self.room);
                self.device.memory.trim_to(floor);
            }
            _ => {
                self.device.memory.empty_cache();
            }
        }
    }

    fn allocate(&mut self) {
        let words = self.random.size(pick(64, 2) * MIB / 4) as usize;
        while self.shadow.allocated + words as u64 * 4 > self.room {
            self.free();
        }
        let (home, seed) = (self.any_stream(), self.random.next() as u32);
        let mut buffer = blank(&self.streams[home], words);
        let capacity = buffer.allocation().capacity();
        self.shadow.insert(buffer.address(), capacity, words as u64 * 4);
        self.device.words.stamp(&self.streams[home], &mut buffer, seed);
        self.blocks.push(Block { buffer, seed, home });
    }

    fn check(&mut self, is_abroad: bool) {
        let Some(block) = self.any_block() else { return };
        let home = self.blocks[block].home;
        let at = if is_abroad { self.any_stream() } else { home };
        self.order(at, home);
        let Self { device, streams, counters, blocks, .. } = self;
        let Block { buffer, seed, .. } = &blocks[block];
        buffer.record_on(streams[at].cuda_stream()).expect("a stream of the device");
        device.words.check(&streams[at], buffer, *seed, &mut counters[at]);
    }

    /// New marks from another stream, after all that anybody does with the block.
    fn stamp_abroad(&mut self) {
        let Some(block) = self.any_block() else { return };
        let (at, home) = (self.any_stream(), self.blocks[block].home);
        let seed = self.random.next() as u32;
        (0..STREAMS).for_each(|earlier| self.order(at, earlier));
        let Self { device, streams, blocks, .. } = self;
        blocks[block].seed = seed;
        let buffer = &mut blocks[block].buffer;
        buffer.record_on(streams[at].cuda_stream()).expect("a stream of the device");
        device.words.stamp(&streams[at], buffer, seed);
        self.order(home, at);
    }

    fn free(&mut self) {
        let Some(block) = self.any_block() else { return };
        let Block { buffer, .. } = self.blocks.swap_remove(block);
        self.shadow.remove(buffer.address());
    }

    /// Checks what is left, drops everything, and adds the wrong words up.
    fn finish(mut self) {
        while let Some(Block { buffer, seed, home }) = self.blocks.pop() {
            let Self { device, streams, counters, .. } = &mut self;
            device.words.check(&streams[home], &buffer, seed, &mut counters[home]);
        }
        let wrong: u64 = self.counters.iter().map(Counter::wrong).sum();
        assert_eq!(wrong, 0, "words that somebody else has written");
        let Self { device, streams, counters, ballast, .. } = self;
        drop((counters, ballast, streams));
        device.finish();
    }
}

fn run(source: CudaSource, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let Some(device) = Device::with_source(Some(source)) else { return };
        let _context = Context((source, seed));
        let mut program = Program::new(device, seed);
        for step in 0..pick(10_000, 1500) {
            program.step();
            if step % 500 == 0 {
                program.device.memory.verify();
            }
        }
        program.finish();
    }
}

#[test]
fn no_word_is_in_two_hands_over_virtual_memory() {
    run(CudaSource::Virtual, 0..3);
}

#[test]
fn no_word_is_in_two_hands_over_a_pool() {
    run(CudaSource::Pool, 10..12);
}

#[test]
fn no_word_is_in_two_hands_over_plain_memory() {
    run(CudaSource::Plain, 20..22);
}
