//! What it takes that outputs avoid the segments of their inputs.
//!
//! A dispatch may bind a buffer as `read` or as `read_write`, not both; so kernels z = f(x, y, …)
//! that declare their inputs `read` want z in another buffer than any input. A random program of
//! 2,000 such kernels with one to four inputs; every tensor lives until a random kernel drops it.
//!
//! - *avoiding*: `allocate_avoiding`.
//! - *anywhere*: `allocate`; *illegal* counts the kernels whose bindings would all have to be
//!   `read_write`.
//! - *exclusive*: a buffer for every tensor, cached by this crate by size.
//! - *own buffer*: as few bytes as buffers of just the sizes can take, without a cache.
//!
//! Nothing is dispatched: only memory and the time of a request are asked for.

use std::sync::Arc;

use aquifer::backend::Role;
use aquifer::{WgpuAllocation, WgpuAllocator};

use crate::gpu::Gpu;
use crate::harness::{Random, Run, interleave, nanoseconds_each};

/// Tensors that live at a time.
const LIVE: usize = 64;

/// One kernel: the tensor that is dropped for its output, and its inputs, by place.
#[derive(Debug)]
struct Kernel {
    output: usize,
    inputs: Vec<usize>,
    size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placing {
    Avoiding,
    Anywhere,
    Exclusive,
}

pub(crate) fn run(run: Run, gpu: &Gpu) {
    let run = run.section("avoiding: memory of 2,000 kernels");
    run.heading(&["ns a tensor", "segments", "peak MiB", "peak / live", "illegal"]);
    let count = run.pick(2_000, 50);
    for (sizes, min, max) in [
        ("4 KiB-1 MiB", 4 << 10, 1 << 20),
        ("64 KiB-16 MiB", 64 << 10, 16 << 20),
        ("1-64 MiB", 1 << 20, 64 << 20),
    ] {
        let program = program(count, min, max);
        let live = peak_live(&program);
        run.result(
            &format!("{sizes}, own buffer"),
            &[
                ("ns", 0.0),
                ("segments", LIVE as f64),
                ("peak_mib", mib(live)),
                ("over_live", 1.0),
                ("illegal", 0.0),
            ],
        );
        let placings = [Placing::Avoiding, Placing::Anywhere, Placing::Exclusive];
        let mut turns = placings.map(|placing| Turn::new(gpu, placing));
        let [first, second, third] = &mut turns;
        let series = interleave(
            run.pick(10, 1),
            [&mut || first.run(&program), &mut || second.run(&program), &mut || {
                third.run(&program)
            }],
        );
        for ((turn, series), name) in
            turns.iter().zip(&series).zip(["avoiding", "anywhere", "exclusive"])
        {
            let stats = turn.memory.memory_stats();
            let peak = stats.reserved_bytes.all.peak;
            run.result(
                &format!("{sizes}, {name}"),
                &[
                    ("ns", series.median()),
                    ("segments", stats.segment.all.peak as f64),
                    ("peak_mib", mib(peak)),
                    ("over_live", peak as f64 / live as f64),
                    ("illegal", turn.illegal as f64),
                ],
            );
        }
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn program(count: usize, min: u64, max: u64) -> Vec<Kernel> {
    let mut random = Random::new(0x5eed);
    (0..count)
        .map(|at| {
            // The first ones fill the places; later ones replace what is there.
            let filled = at.min(LIVE);
            let inputs = (0..=random.below(4)).filter(|_| filled > 0);
            let inputs: Vec<_> = inputs.map(|_| random.below(filled.max(1))).collect();
            let output = if at < LIVE { at } else { random.below(LIVE) };
            Kernel { output, inputs, size: random.size(min, max) }
        })
        .collect()
}

/// The most bytes that live at a time, inputs and output of a kernel together.
fn peak_live(program: &[Kernel]) -> u64 {
    let mut sizes = [0; LIVE];
    let (mut live, mut peak) = (0, 0);
    for kernel in program {
        peak = peak.max(live + kernel.size);
        live = live + kernel.size - sizes[kernel.output];
        sizes[kernel.output] = kernel.size;
    }
    peak
}

#[derive(Debug)]
struct Turn {
    memory: WgpuAllocator,
    placing: Placing,
    illegal: usize,
}

impl Turn {
    fn new(gpu: &Gpu, placing: Placing) -> Self {
        Self { memory: gpu.allocator(), placing, illegal: 0 }
    }

    fn run(&mut self, program: &[Kernel]) -> f64 {
        let mut live: [Option<WgpuAllocation>; LIVE] = [const { None }; LIVE];
        let mut illegal = 0;
        let each = nanoseconds_each(program.len(), || {
            for kernel in program {
                let inputs = kernel.inputs.iter().filter_map(|&at| live[at].as_ref());
                let request = self.memory.request(kernel.size);
                let request = match self.placing {
                    Placing::Avoiding => request.avoiding(inputs),
                    Placing::Anywhere => request,
                    Placing::Exclusive => request.role(Role::StorageExclusive),
                };
                let output = request.allocate().expect("there is room");
                let mut inputs = kernel.inputs.iter().filter_map(|&at| live[at].as_ref());
                illegal += usize::from(inputs.any(|input| shares(input, &output)));
                live[kernel.output] = Some(output);
            }
        });
        self.illegal = illegal;
        assert!(illegal == 0 || self.placing == Placing::Anywhere, "{illegal} kernels are illegal");
        each
    }
}

fn shares(one: &WgpuAllocation, other: &WgpuAllocation) -> bool {
    Arc::ptr_eq(one.segment(), other.segment())
}
