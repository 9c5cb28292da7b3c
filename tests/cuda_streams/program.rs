//! The random programs: what they do, and what they complain of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer::backend::{Cuda, CudaOptions, CudaSource};
use aquifer::{AllocError, Allocation, Config, CudaAllocator};
use cudarc::driver::{CudaStream, DriverError};

use crate::cuda::{Fake, Options};
use crate::work::{Stamp, Stamps};

const STEPS: u32 = 300;
const STREAMS: usize = 4;

/// Whether a program keeps the rules of `record_stream`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rules {
    Kept,
    /// It uses buffers on other streams without a word.
    UsesUntold,
    /// It gives streams up, and has a raw handle go on with the buffers.
    ForgottenUsed,
}

/// What kind of program.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) source: CudaSource,
    pub(crate) config: Config,
    pub(crate) options: Options,
    pub(crate) size_max: u64,
    pub(crate) rules: Rules,
}

/// What came of a program.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// What was wrong; nothing, if all was well.
    pub(crate) complaints: Vec<String>,
    /// How often a request got bytes that an earlier one had.
    pub(crate) reused: u64,
}

/// A buffer with its stamp.
struct Buffer {
    allocation: Allocation<Cuda>,
    stamp: Stamp,
    /// Where it was allocated; nothing, if that stream is gone.
    own: Option<usize>,
    /// Other streams that read it since it was stamped.
    users: Vec<usize>,
}

struct Program<'a> {
    plan: &'a Plan,
    fake: &'a Fake,
    random: Random,
    memory: CudaAllocator,
    stamps: Stamps,
    /// The default one first, which stays.
    streams: Vec<Arc<CudaStream>>,
    buffers: Vec<Buffer>,
    seed: u32,
    /// Ends of earlier allocations, by start.
    had: BTreeMap<u64, u64>,
    outcome: Outcome,
}

/// Vigna's splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit.max(1)
    }

    fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// From 4 bytes to `limit`, small ones as often as large ones.
    fn size(&mut self, limit: u64) -> u64 {
        let bits = self.below(u64::from(limit.ilog2()) + 1);
        (4 + self.below(1 << (bits + 1))).min(limit)
    }
}

/// Runs the program of a seed.
pub(crate) fn run(plan: &Plan, seed: u64) -> Outcome {
    let fake = Fake::fresh(plan.options);
    let mut program = Program::new(plan, &fake, seed);
    for step in 0..STEPS {
        program.step();
        if step % 16 == 0 {
            program.memory.verify();
        }
        if !program.outcome.complaints.is_empty() {
            break;
        }
    }
    program.end()
}

impl<'a> Program<'a> {
    fn new(plan: &'a Plan, fake: &'a Fake, seed: u64) -> Self {
        let options = CudaOptions { source: Some(plan.source), ..CudaOptions::default() };
        let backend = Cuda::new(0, &options).expect("the fake has the device");
        let memory = CudaAllocator::with(backend, plan.config.clone()).expect("a sound config");
        let stamps = Stamps::load(memory.context(), fake);
        let mut streams = vec![memory.context().default_stream()];
        for _ in 1..STREAMS {
            streams.push(memory.context().new_stream().expect("the fake makes streams"));
        }
        let (random, outcome) = (Random(seed), Outcome::default());
        let (buffers, had) = (Vec::new(), BTreeMap::new());
        Self { plan, fake, random, memory, stamps, streams, buffers, seed: 0, had, outcome }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..32 => self.allocate(),
            32..44 => self.stamp_again(),
            44..60 => self.lend(),
            60..82 => self.free(),
            82..92 => self.advance(),
            92 => self.trim(),
            93 => drop(self.memory.maintain(Duration::ZERO)),
            94..98 => self.renew_stream(),
            _ => {
                let stream = self.random.index(STREAMS);
                self.advance_stream(stream, u64::MAX);
            }
        }
    }

    /// Takes note of what the driver said; in a program that keeps the rules it refuses nothing.
    fn hear(&mut self, outcome: Result<(), DriverError>) {
        if let Err(error) = outcome {
            self.outcome.complaints.push(error.to_string());
        }
    }

    fn allocate(&mut self) {
        let stream = self.random.index(STREAMS);
        let size = self.random.size(self.plan.size_max);
        let on = match self.memory.on(&self.streams[stream]) {
            Ok(on) => on,
            Err(lost) => return self.outcome.complaints.push(lost.to_string()),
        };
        let allocation = match on.allocate(size) {
            Ok(allocation) => allocation,
            Err(AllocError::OutOfMemory(_)) => {
                for _ in 0..self.buffers.len().div_ceil(2) {
                    self.free();
                }
                return;
            }
            Err(error) => return self.outcome.complaints.push(error.to_string()),
        };
        let address = allocation.address().expect("it has bytes");
        let end = address + allocation.capacity();
        let before = self.had.range(..end).next_back();
        self.outcome.reused += u64::from(before.is_some_and(|(_, &other)| other > address));
        self.had.insert(address, end);
        let stamp = Stamp { address, words: size / 4, seed: self.seed };
        let users = Vec::new();
        self.buffers.push(Buffer { allocation, stamp, own: Some(stream), users });
        self.stamp(self.buffers.len() - 1);
    }

    /// New values by the buffer's own stream, after all who read the old ones.
    fn stamp(&mut self, at: usize) {
        self.seed = self.seed.wrapping_add(1_000_003);
        let Some(own) = self.buffers[at].own else { return };
        let users = std::mem::take(&mut self.buffers[at].users);
        for user in users {
            let joined = self.streams[own].join(&self.streams[user]);
            self.hear(joined);
        }
        self.buffers[at].stamp.seed = self.seed;
        let stamped = self.stamps.stamp(&self.streams[own], self.buffers[at].stamp);
        self.hear(stamped);
    }

    /// Some buffer.
    fn any(&mut self) -> Option<usize> {
        (!self.buffers.is_empty()).then(|| self.random.index(self.buffers.len()))
    }

    fn check(&mut self, at: usize, stream: usize) {
        let checked = self.stamps.check(&self.streams[stream], self.buffers[at].stamp);
        self.hear(checked);
    }

    fn stamp_again(&mut self) {
        let Some(at) = self.any() else { return };
        let Some(own) = self.buffers[at].own else { return };
        self.check(at, own);
        self.stamp(at);
    }

    /// Another stream reads the buffer, after the stamp.
    fn lend(&mut self) {
        let Some(at) = self.any() else { return };
        let user = self.random.index(STREAMS);
        let Some(own) = self.buffers[at].own.filter(|&own| own != user) else { return };
        let joined = self.streams[user].join(&self.streams[own]);
        self.hear(joined);
        if self.plan.rules != Rules::UsesUntold {
            match self.memory.on(&self.streams[user]) {
                Ok(on) => self.memory.record_stream(&self.buffers[at].allocation, on.stream()),
                Err(lost) => self.outcome.complaints.push(lost.to_string()),
            }
        }
        self.check(at, user);
        self.buffers[at].users.push(user);
    }

    fn free(&mut self) {
        let Some(at) = self.any() else { return };
        if let Some(own) = self.buffers[at].own {
            self.check(at, own);
        }
        drop(self.buffers.swap_remove(at));
    }

    fn advance(&mut self) {
        let stream = self.random.index(STREAMS);
        let count = 1 + self.random.below(6);
        self.advance_stream(stream, count);
    }

    fn advance_stream(&mut self, stream: usize, count: u64) {
        let context = self.memory.context().cu_ctx() as u64;
        self.fake.advance(context, self.streams[stream].cu_stream() as u64, count);
    }

    fn trim(&mut self) {
        match self.random.below(3) {
            0 => drop(self.memory.empty_cache()),
            _ => drop(self.memory.trim_to(self.random.below(self.plan.options.capacity))),
        }
    }

    /// A stream goes with its work under way, and another one comes, with the same handle, maybe.
    fn renew_stream(&mut self) {
        let at = 1 + self.random.index(STREAMS - 1);
        let stream = Arc::clone(&self.streams[at]);
        let fresh = self.memory.context().new_stream().expect("the fake makes streams");
        let gone = std::mem::replace(&mut self.streams[at], fresh);
        for index in 0..self.buffers.len() {
            let buffer = &mut self.buffers[index];
            buffer.own = buffer.own.filter(|&own| own != at);
            if !buffer.users.contains(&at) {
                continue;
            }
            buffer.users.retain(|&user| user != at);
            if let Some(own) = buffer.own {
                // Who stamps it next comes after what the stream still reads.
                let joined = self.streams[own].join(&stream);
                self.hear(joined);
            }
        }
        if self.plan.rules == Rules::ForgottenUsed {
            // The allocator has nobody's word for the use that comes now.
            drop(gone);
            let raw = self.memory.stream(self.identity(&stream));
            self.memory.forget_stream(raw.raw());
            for at in 0..self.buffers.len() {
                let checked = self.stamps.check(&stream, self.buffers[at].stamp);
                self.hear(checked);
            }
            return;
        }
        drop((gone, stream));
        if self.random.below(2) == 0 {
            self.memory.forget_idle_streams();
        }
    }

    fn identity(&self, stream: &CudaStream) -> aquifer::backend::CudaStreamId {
        // SAFETY: the stream lives, and is forgotten before it goes.
        let identity = unsafe { self.memory.backend().stream_of(stream.cu_stream() as usize) };
        identity.expect("the fake answers")
    }

    /// Lets go of everything, lets all work be done, and counts.
    fn end(mut self) -> Outcome {
        let is_well = self.outcome.complaints.is_empty();
        while is_well && !self.buffers.is_empty() {
            self.free();
        }
        self.buffers.clear();
        self.fake.complete_all();
        let mismatches = self.stamps.mismatches(self.fake);
        if mismatches > 0 {
            self.outcome.complaints.push(format!("{mismatches} words of others were seen"));
        }
        self.outcome.complaints.extend(self.fake.take_violations());
        let Self { fake, memory, stamps, streams, outcome, .. } = self;
        if outcome.complaints.is_empty() {
            for _ in 0..STREAMS {
                // Blocks that several streams used wait for one after the other.
                memory.maintain(Duration::ZERO);
            }
            memory.empty_cache();
            memory.verify();
            assert_eq!(memory.memory_reserved(), 0, "bytes are stranded");
        }
        stamps.end();
        drop((memory, streams));
        if outcome.complaints.is_empty() {
            fake.assert_no_leaks();
        } else {
            fake.take_violations();
        }
        outcome
    }
}
