//! Seeded programs over many open scopes: blocks are stamped once, and looked at in any scope and
//! any order until they are freed. No word may be wrong.
//!
//! A program is one that means what it says: a block is used in its writer's scope alone until that
//! was submitted, and its bytes do not change after that. Frees care for nothing: a block goes
//! while scopes that stamp it or look at it are open, finished, or about to be thrown away.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};

use aquifer::surface::wgpu::{Download, DownloadError, Finished, Reuse, UploadError};
use aquifer::{AllocError, Scope, WgpuAllocation, WgpuAllocator};
use wgpu::{CommandBuffer, CommandEncoder};

use super::kernels::{Kernels, Marks};
use super::{allocator, allocator_with};
use crate::gpu::Gpu;
use crate::support::{Context, KIB, MIB, Rng};

const LIVE_MAX: usize = 20;
const OPEN_MAX: usize = 3;

/// What was asked for, or nothing for want of memory. Nothing else may go wrong.
#[track_caller]
fn granted<T>(outcome: Result<T, UploadError>) -> Option<T> {
    match outcome {
        Ok(granted) => Some(granted),
        Err(UploadError::Alloc(AllocError::OutOfMemory(_))) => None,
        Err(error) => panic!("{error}"),
    }
}

/// A stamped block.
#[derive(Debug)]
struct Block {
    allocation: WgpuAllocation,
    marks: Marks,
    /// The scope that stamps it, until that was submitted.
    writer: Option<u64>,
}

/// A scope that is not submitted.
#[derive(Debug)]
struct Open {
    number: u64,
    encoder: CommandEncoder,
    scope: Scope,
    downloads: Vec<(Download, Marks)>,
}

/// A scope that is finished and not submitted.
#[derive(Debug)]
struct Late {
    number: u64,
    commands: CommandBuffer,
    finished: Finished,
    downloads: Vec<(Download, Marks)>,
}

/// One thread's part of a program.
struct Program<'a> {
    gpu: &'a Gpu,
    memory: &'a WgpuAllocator,
    kernels: &'a Kernels,
    random: Rng,
    live: Vec<Block>,
    open: Vec<Open>,
    late: VecDeque<Late>,
    begun: u64,
    /// To the next thread, and from the last one.
    neighbours: Option<(Sender<Block>, Receiver<Block>)>,
}

impl<'a> Program<'a> {
    fn new(gpu: &'a Gpu, memory: &'a WgpuAllocator, kernels: &'a Kernels, seed: u64) -> Self {
        let (live, open, late) = (Vec::new(), Vec::new(), VecDeque::new());
        let random = Rng::new(seed);
        Self { gpu, memory, kernels, random, live, open, late, begun: 0, neighbours: None }
    }

    fn run(&mut self, steps: usize) {
        for step in 0..steps {
            self.step();
            // The books of peaks are in order while no other thread is amid a free.
            if step % 50 == 49 && self.neighbours.is_none() {
                self.memory.verify();
            }
        }
        self.end();
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..8 => self.begin(),
            8..30 => self.stamp(),
            30..40 => self.upload(),
            40..46 => self.write(),
            46..68 => self.check(),
            68..80 => self.free(),
            80..84 => self.download(),
            84..88 => self.submit(),
            88..91 => self.finish(),
            91..94 => self.submit_late(),
            94..96 => self.abandon(),
            96..98 => self.hand_on(),
            98 => self.memory.backend().poll(),
            _ => drop(self.memory.empty_cache()),
        }
        if let Some((_, receiver)) = &self.neighbours {
            self.live.extend(receiver.try_iter());
        }
        while self.live.len() > LIVE_MAX {
            self.free();
        }
    }

    fn any(&mut self, len: usize) -> usize {
        self.random.below(len as u64) as usize
    }

    /// Mostly small, sometimes with a segment of its own; whole words.
    fn size(&mut self) -> u64 {
        match self.random.below(40) {
            0 => 10 * MIB,
            1..4 => MIB + self.random.below(MIB) / 4 * 4,
            _ => self.random.size(1 << 16).next_multiple_of(4),
        }
    }

    fn begin(&mut self) {
        if self.open.len() == OPEN_MAX {
            self.submit();
        }
        let mut encoder = self.gpu.encoder();
        let quarantined = self.random.below(3) == 0;
        let reuse = if quarantined { Reuse::Quarantine } else { Reuse::Ordered };
        let scope = self.memory.begin_with(&mut encoder, reuse);
        self.begun += 1;
        self.open.push(Open { number: self.begun, encoder, scope, downloads: Vec::new() });
    }

    /// One of the open scopes; there is one.
    fn pick(&mut self) -> usize {
        if self.open.is_empty() {
            self.begin();
        }
        self.any(self.open.len())
    }

    /// A block in the memory of an open scope, or outside of it.
    fn allocate(&mut self, at: Option<usize>) -> Option<(WgpuAllocation, Marks)> {
        let (size, seed) = (self.size(), self.random.next() as u32);
        let outcome = match at {
            Some(at) => self.open[at].scope.allocate(size),
            None => self.memory.allocate(size),
        };
        let allocation = granted(outcome.map_err(UploadError::from))?;
        let marks = Marks::of(&allocation, seed);
        Some((allocation, marks))
    }

    /// One of the open scopes, and a block for its work: mostly in its memory.
    fn allocate_for(&mut self) -> Option<(usize, WgpuAllocation, Marks)> {
        let at = self.pick();
        let within = self.random.below(3) > 0;
        let (allocation, marks) = self.allocate(within.then_some(at))?;
        Some((at, allocation, marks))
    }

    fn stamp(&mut self) {
        let Some((at, allocation, marks)) = self.allocate_for() else { return };
        let plain = self.random.below(4) == 0;
        let Open { number, encoder, scope, .. } = &mut self.open[at];
        let block = if plain { allocation.binding() } else { scope.binding(&allocation) };
        self.kernels.stamp(self.gpu, encoder, block, marks);
        self.live.push(Block { allocation, marks, writer: Some(*number) });
    }

    fn upload(&mut self) {
        let Some((at, allocation, marks)) = self.allocate_for() else { return };
        let Open { number, encoder, scope, .. } = &mut self.open[at];
        if granted(scope.upload(encoder, &allocation, 0, &marks.bytes())).is_some() {
            self.live.push(Block { allocation, marks, writer: Some(*number) });
        }
    }

    /// Before everything that is recorded, though it comes later.
    fn write(&mut self) {
        let Some((allocation, marks)) = self.allocate(None) else { return };
        // A new block is nobody's, so the write overtakes nothing that matters.
        if granted(self.memory.write_now(&allocation, 0, &marks.bytes())).is_some() {
            self.live.push(Block { allocation, marks, writer: None });
        }
    }

    /// A scope and a block that it may look at.
    fn readable(&mut self) -> Option<(usize, usize)> {
        let at = self.pick();
        let number = self.open[at].number;
        let readable = |block: &Block| block.writer.is_none_or(|writer| writer == number);
        let start = self.any(self.live.len());
        let around = (start..self.live.len()).chain(0..start);
        let block = around.into_iter().find(|&block| readable(&self.live[block]))?;
        Some((at, block))
    }

    fn check(&mut self) {
        let Some((at, block)) = self.readable() else { return };
        let plain = self.random.below(4) == 0;
        let Block { allocation, marks, .. } = &self.live[block];
        let Open { encoder, scope, .. } = &mut self.open[at];
        let binding = if plain { allocation.binding() } else { scope.binding(allocation) };
        self.kernels.check(self.gpu, encoder, binding, *marks);
    }

    fn download(&mut self) {
        let Some((at, block)) = self.readable() else { return };
        let drops = self.random.below(3) == 0;
        let Block { allocation, marks, .. } = &self.live[block];
        let Open { encoder, scope, downloads, .. } = &mut self.open[at];
        match scope.download(encoder, allocation) {
            Ok(download) if !drops => downloads.push((download, *marks)),
            Ok(_) | Err(DownloadError::Alloc(AllocError::OutOfMemory(_))) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn free(&mut self) {
        if !self.live.is_empty() {
            let at = self.any(self.live.len());
            drop(self.live.swap_remove(at));
        }
    }

    /// The writer of these blocks was submitted, or will never be: then they are nothing.
    fn settle(&mut self, number: u64, submitted: bool) {
        self.live.retain(|block| submitted || block.writer != Some(number));
        let own = self.live.iter_mut().filter(|block| block.writer == Some(number));
        own.for_each(|block| block.writer = None);
    }

    fn submit(&mut self) {
        let at = self.pick();
        let Open { number, encoder, scope, downloads } = self.open.swap_remove(at);
        scope.submit(encoder);
        self.settle(number, true);
        self.compare(downloads);
    }

    /// Some of the downloads are read, some are dropped on their way.
    fn compare(&mut self, downloads: Vec<(Download, Marks)>) {
        for (download, marks) in downloads {
            if self.random.below(3) > 0 {
                assert!(download.wait() == Ok(marks.bytes()), "a download of {marks:?}");
            }
        }
    }

    fn finish(&mut self) {
        let at = self.pick();
        let Open { number, encoder, scope, downloads } = self.open.swap_remove(at);
        let (commands, finished) = scope.finish(encoder);
        self.late.push_back(Late { number, commands, finished, downloads });
        if self.late.len() > OPEN_MAX {
            self.submit_late();
        }
    }

    /// One of those that are finished, in any order; the allocator is told or not.
    fn submit_late(&mut self) {
        let at = self.any(self.late.len());
        let Some(Late { number, commands, finished, downloads }) = self.late.remove(at) else {
            return;
        };
        self.gpu.queue.submit([commands]);
        if self.random.below(2) == 0 {
            finished.submitted();
        }
        self.settle(number, true);
        self.compare(downloads);
    }

    fn abandon(&mut self) {
        let at = self.pick();
        let Open { number, encoder, scope, .. } = self.open.swap_remove(at);
        if self.random.below(2) == 0 {
            self.settle(number, false);
            drop(encoder);
            drop(scope);
        } else {
            drop(scope);
            drop(encoder);
            self.settle(number, false);
        }
    }

    /// To another thread, whatever open scopes of this one do with it.
    fn hand_on(&mut self) {
        let at = self.live.iter().position(|block| block.writer.is_none());
        let Some((at, (sender, _))) = at.zip(self.neighbours.as_ref()) else { return };
        let block = self.live.swap_remove(at);
        if let Err(refused) = sender.send(block) {
            // The neighbour's program is over.
            self.live.push(refused.0);
        }
    }

    fn end(&mut self) {
        while !self.late.is_empty() {
            self.submit_late();
        }
        while !self.open.is_empty() {
            for _ in 0..LIVE_MAX {
                self.check();
            }
            self.submit();
        }
        self.live.clear();
    }
}

/// Nothing is held, nothing was wrong.
fn assert_clean(gpu: &Gpu, memory: &WgpuAllocator, kernels: &Kernels) {
    assert_eq!(kernels.wrong(gpu), 0, "wrong words");
    memory.empty_cache();
    memory.verify();
    assert_eq!((memory.memory_allocated(), memory.memory_reserved()), (0, 0), "something is held");
    assert_eq!(memory.backend().used_bytes(), 0, "the device holds what nobody knows");
}

/// With much memory or little, and scrubbing or not, by the seed.
fn allocator_of(seed: u64) -> Option<(Gpu, WgpuAllocator)> {
    allocator_with(|config, options| {
        options.scrub_on_free = seed % 4 == 3;
        if seed % 2 == 1 {
            config.memory_limit = Some(40 * MIB);
            options.upload_chunk = 256 * KIB;
        }
    })
}

#[test]
fn programs_of_one_thread() {
    for seed in 0..6 {
        let Some((gpu, memory)) = allocator_of(seed) else { return };
        let _context = Context(seed);
        let kernels = Kernels::new(&gpu);
        Program::new(&gpu, &memory, &kernels, seed).run(500);
        assert_clean(&gpu, &memory, &kernels);
    }
}

#[test]
fn programs_of_four_threads() {
    for seed in 100..104 {
        let Some((gpu, memory)) = allocator_of(seed) else { return };
        let _context = Context(seed);
        let kernels = Kernels::new(&gpu);
        let (senders, mut receivers): (Vec<_>, Vec<_>) = (0..4).map(|_| channel()).unzip();
        receivers.rotate_left(1);
        std::thread::scope(|threads| {
            for (thread, neighbours) in (0..).zip(senders.into_iter().zip(receivers)) {
                let (gpu, memory, kernels) = (&gpu, &memory, &kernels);
                threads.spawn(move || {
                    let _context = Context((seed, thread));
                    let mut program = Program::new(gpu, memory, kernels, seed * 10 + thread);
                    program.neighbours = Some(neighbours);
                    program.run(250);
                });
            }
        });
        assert_clean(&gpu, &memory, &kernels);
    }
}

/// The checks of these programs see what the kernels of `stamp.wgsl` see.
#[test]
fn marks_of_the_cpu_are_those_of_the_gpu() {
    let Some((gpu, memory)) = allocator() else { return };
    let kernels = Kernels::new(&gpu);
    let block = memory.allocate(4000).expect("room");
    let marks = Marks::of(&block, 3);
    memory.write_now(&block, 0, &marks.bytes()).expect("nothing is open");
    let mut encoder = gpu.encoder();
    kernels.check(&gpu, &mut encoder, block.binding(), marks);
    gpu.queue.submit([encoder.finish()]);
    assert_eq!(kernels.wrong(&gpu), 0);
    memory.write_now(&block, 8, &[0; 4]).expect("nothing is open");
    let mut encoder = gpu.encoder();
    kernels.check(&gpu, &mut encoder, block.binding(), marks);
    gpu.queue.submit([encoder.finish()]);
    assert_eq!(kernels.wrong(&gpu), 1);
}
