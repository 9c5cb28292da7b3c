//! Memory and time of a random program that frees and reuses while it records: 150 encoders of 64
//! steps (upload a block, y = x + 1 into a new block, drop one), with at most 32 blocks that live.
//!
//! - *ordered*: [`Reuse::Ordered`], uploads recorded in the encoder;
//! - *quarantine*: [`Reuse::Quarantine`], uploads by `queue.write_buffer`;
//! - *completion*: the rival, a free list over one buffer. A block is free again when the device is
//!   found, without blocking, to be done with the submission that used it last.
//!
//! *Blocks* counts the places that were ever used, *wrong* the live blocks that did not hold what
//! they should, of all that live after every tenth encoder (in a run of its own).

use std::collections::{HashSet, VecDeque};
use std::num::NonZeroU64;
use std::time::Duration;

use aquifer::surface::wgpu::Reuse;
use aquifer::{WgpuAllocation, WgpuAllocator};
use wgpu::{
    BindingResource, Buffer, BufferBinding, BufferDescriptor, BufferUsages, ComputePipeline,
    Device, MapMode, PollType, Queue, SubmissionIndex,
};

use crate::gpu::{Gpu, buffer, dispatch, encoder, kernel, wait};
use crate::harness::{Bar, Random, Run, interleave, nanoseconds_each};

const LIVE: usize = 32;
const BLOCK: u64 = 64 << 10;
/// Bytes of a block that are uploaded and computed on.
const BYTES: u64 = 256;
/// Blocks of the rival: enough for it never to wait on this program.
const RIVAL_BLOCKS: u64 = 2048;

const KERNEL: &str = "
    @group(0) @binding(0) var<storage, read_write> x: array<u32>;
    @group(0) @binding(1) var<storage, read_write> y: array<u32>;
    @compute @workgroup_size(64)
    fn main(@builtin(global_invocation_id) at: vec3<u32>) { y[at.x] = x[at.x] + 1u; }
";

/// One step. Blocks have numbers; each is written once.
#[derive(Debug, Clone, Copy)]
enum Step {
    Upload { to: usize },
    Add { from: usize, to: usize },
    Drop { block: usize },
}

/// What is recorded into each encoder, and what each block holds once it is written.
#[derive(Debug)]
struct Program {
    encoders: Vec<Vec<Step>>,
    values: Vec<u32>,
}

pub(crate) fn run(run: Run, gpu: &Gpu) {
    let run = run.section("reuse: a random program");
    run.heading(&["us per encoder", "time / rival", "wrong", "blocks", "blocks / 32"]);
    let program = Program::new(run.pick(150, 20), 64);
    let mut ordered = Scopes::new(gpu, Reuse::Ordered);
    let mut quarantine = Scopes::new(gpu, Reuse::Quarantine);
    let mut completion = Completion::new(gpu);
    let wrong = [
        program.check(&mut ordered),
        program.check(&mut quarantine),
        program.check(&mut completion),
    ];
    let series = interleave(
        run.pick(8, 1),
        [&mut || program.time(&mut ordered), &mut || program.time(&mut quarantine), &mut || {
            program.time(&mut completion)
        }],
    );
    let blocks = [ordered.seen.len(), quarantine.seen.len(), completion.high];
    for (at, name) in ["ordered", "quarantine", "completion"].into_iter().enumerate() {
        let figures = [
            ("us", series[at].median() / 1e3),
            ("time_over_rival", series[at].over(&series[2]).median()),
            ("wrong", wrong[at] as f64),
            ("blocks", blocks[at] as f64),
            ("blocks_over_live", blocks[at] as f64 / LIVE as f64),
        ];
        if at == 0 {
            run.judge(name, &figures, Bar::AtMost(1.1));
        } else {
            run.result(name, &figures);
        }
    }
}

impl Program {
    fn new(encoders: usize, steps: usize) -> Self {
        let mut random = Random::new(0x9e37_79b9);
        let (mut values, mut live) = (Vec::new(), Vec::new());
        let mut record = || {
            let mut list = Vec::new();
            for _ in 0..steps {
                let to = values.len();
                if live.len() < LIVE * 3 / 4 || random.below(4) == 0 {
                    if live.len() == LIVE {
                        let block = live.swap_remove(random.below(live.len()));
                        list.push(Step::Drop { block });
                    }
                    values.push(random.below(1 << 20) as u32);
                    list.push(Step::Upload { to });
                } else {
                    let from: usize = live.swap_remove(random.below(live.len()));
                    values.push(values[from] + 1);
                    list.extend([Step::Add { from, to }, Step::Drop { block: from }]);
                }
                live.push(to);
            }
            list
        };
        Self { encoders: (0..encoders).map(|_| record()).collect(), values }
    }

    /// How many live blocks were wrong.
    fn check<P: Protocol>(&self, protocol: &mut P) -> usize {
        let mut live: Vec<Option<P::Block>> = self.values.iter().map(|_| None).collect();
        let mut wrong = 0;
        for (at, steps) in self.encoders.iter().enumerate() {
            protocol.record(steps, &self.values, &mut live);
            if at % 10 == 9 {
                for (block, &value) in live.iter().zip(&self.values) {
                    wrong += usize::from(
                        block.as_ref().is_some_and(|block| protocol.read(block) != value),
                    );
                }
            }
        }
        live.into_iter().flatten().for_each(|block| protocol.give_back(block));
        wrong
    }

    /// Nanoseconds for each encoder, until the device is done.
    fn time<P: Protocol>(&self, protocol: &mut P) -> f64 {
        let mut live: Vec<Option<P::Block>> = self.values.iter().map(|_| None).collect();
        let each = nanoseconds_each(self.encoders.len(), || {
            for steps in &self.encoders {
                protocol.record(steps, &self.values, &mut live);
            }
            wait(protocol.device());
        });
        live.into_iter().flatten().for_each(|block| protocol.give_back(block));
        each
    }
}

/// A way of reusing memory.
trait Protocol {
    type Block;
    fn device(&self) -> &Device;
    /// Records the steps into one encoder and submits it.
    fn record(&mut self, steps: &[Step], values: &[u32], live: &mut [Option<Self::Block>]);
    /// The first word of a block, after all that was submitted.
    fn read(&mut self, block: &Self::Block) -> u32;
    fn give_back(&mut self, block: Self::Block);
}

fn bytes_of(value: u32) -> Vec<u8> {
    value.to_le_bytes().repeat(BYTES as usize / 4)
}

/// This crate.
struct Scopes {
    memory: WgpuAllocator,
    kernel: ComputePipeline,
    reuse: Reuse,
    seen: HashSet<(Buffer, u64)>,
}

impl Scopes {
    fn new(gpu: &Gpu, reuse: Reuse) -> Self {
        let memory = gpu.allocator();
        let kernel = kernel(memory.device(), KERNEL);
        Self { memory, kernel, reuse, seen: HashSet::new() }
    }
}

impl Protocol for Scopes {
    type Block = WgpuAllocation;

    fn device(&self) -> &Device {
        self.memory.device()
    }

    fn record(&mut self, steps: &[Step], values: &[u32], live: &mut [Option<WgpuAllocation>]) {
        let mut encoder = encoder(self.memory.device());
        let mut scope = self.memory.begin_with(&mut encoder, self.reuse);
        for &step in steps {
            if let Step::Upload { to } | Step::Add { to, .. } = step {
                let block = scope.allocate(BLOCK).expect("there is room");
                self.seen.insert((block.segment().buffer().clone(), block.offset()));
                live[to] = Some(block);
            }
            match step {
                Step::Drop { block } => live[block] = None,
                Step::Upload { to } => {
                    let (block, bytes) = (live[to].as_ref().expect("new"), bytes_of(values[to]));
                    if self.reuse == Reuse::Ordered {
                        scope.upload(&mut encoder, block, 0, &bytes).expect("there is room");
                    } else {
                        let (buffer, at) = (block.buffer(), block.offset());
                        self.memory.queue().write_buffer(buffer, at, &bytes);
                    }
                }
                Step::Add { from, to } => {
                    let bindings = [from, to]
                        .map(|block| scope.binding(live[block].as_ref().expect("it lives")));
                    dispatch(self.memory.device(), &mut encoder, &self.kernel, &bindings);
                }
            }
        }
        scope.submit(encoder);
    }

    fn read(&mut self, block: &WgpuAllocation) -> u32 {
        let bytes = self.memory.read(block).expect("the device is there");
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn give_back(&mut self, block: WgpuAllocation) {
        drop(block);
    }
}

/// Waiting for completion, over one large buffer.
struct Completion {
    device: Device,
    queue: Queue,
    kernel: ComputePipeline,
    buffer: Buffer,
    readback: Buffer,
    /// The next block that was never used.
    high: usize,
    free: Vec<usize>,
    in_flight: VecDeque<(SubmissionIndex, Vec<usize>)>,
}

impl Completion {
    fn new(gpu: &Gpu) -> Self {
        let (device, queue) = gpu.recommended();
        let kernel = kernel(&device, KERNEL);
        let buffer = buffer(&device, BLOCK * RIVAL_BLOCKS);
        let readback = device.create_buffer(&BufferDescriptor {
            label: None,
            size: BYTES,
            usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let (free, in_flight) = (Vec::new(), VecDeque::new());
        Self { device, queue, kernel, buffer, readback, high: 0, free, in_flight }
    }

    fn allocate(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            assert!((self.high as u64) < RIVAL_BLOCKS, "the rival's buffer is too small");
            self.high += 1;
            self.high - 1
        })
    }

    /// Takes back the blocks of the submissions that are complete.
    fn collect(&mut self) {
        while let Some((index, blocks)) = self.in_flight.pop_front() {
            let submission_index = Some(index.clone());
            let wait = PollType::Wait { submission_index, timeout: Some(Duration::ZERO) };
            if self.device.poll(wait).is_err() {
                self.in_flight.push_front((index, blocks));
                return;
            }
            self.free.extend(blocks);
        }
    }
}

impl Protocol for Completion {
    type Block = usize;

    fn device(&self) -> &Device {
        &self.device
    }

    fn record(&mut self, steps: &[Step], values: &[u32], live: &mut [Option<usize>]) {
        let mut encoder = encoder(&self.device);
        let mut freed = Vec::new();
        self.collect();
        for &step in steps {
            match step {
                Step::Drop { block } => freed.extend(live[block].take()),
                Step::Upload { to } => {
                    let block = self.allocate();
                    let at = block as u64 * BLOCK;
                    self.queue.write_buffer(&self.buffer, at, &bytes_of(values[to]));
                    live[to] = Some(block);
                }
                Step::Add { from, to } => {
                    live[to] = Some(self.allocate());
                    let bindings = [from, to].map(|block| {
                        let offset = live[block].expect("it lives") as u64 * BLOCK;
                        let size = NonZeroU64::new(BLOCK);
                        BindingResource::Buffer(BufferBinding {
                            buffer: &self.buffer,
                            offset,
                            size,
                        })
                    });
                    dispatch(&self.device, &mut encoder, &self.kernel, &bindings);
                }
            }
        }
        let index = self.queue.submit([encoder.finish()]);
        self.in_flight.push_back((index, freed));
    }

    fn read(&mut self, &block: &usize) -> u32 {
        let mut encoder = encoder(&self.device);
        let at = block as u64 * BLOCK;
        encoder.copy_buffer_to_buffer(&self.buffer, at, &self.readback, 0, BYTES);
        self.queue.submit([encoder.finish()]);
        self.readback.map_async(MapMode::Read, .., |mapped| mapped.expect("it can be mapped"));
        wait(&self.device);
        let view = self.readback.get_mapped_range(..).expect("it is mapped");
        let word = u32::from_le_bytes([view[0], view[1], view[2], view[3]]);
        drop(view);
        self.readback.unmap();
        word
    }

    fn give_back(&mut self, block: usize) {
        self.free.push(block);
    }
}
