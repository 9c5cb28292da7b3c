//! The experiment on a GPU, and its results against those of the CPU.
//!
//! The CPU trains the same layer on the same data, without the GPU's memory: that is the reference
//! for the loss of every step and for the parameters at the end, over the first [`CHECKED_STEPS`].
//!
//! # How far the GPU may be off
//!
//! Both add the same numbers in 32 bits, but in different orders and with different roundings, so
//! they drift apart. Adam moves a parameter by [`RATE`] times a quotient of about one; where a
//! gradient is itself hardly more than a rounding error, so is the quotient. The drift of a few
//! parameters in a million is therefore far larger than that of the rest, but stays a small part of
//! one move: 3e-5 at most was measured (Mesa's driver for the CPU, 23 runs, batches of 1 to 4096).
//! A parameter may be off by a quarter of a move. A step that is lost, done twice, or done on
//! somebody else's bytes moves most parameters by a whole one.
//!
//! The loss sums over all parameters, and drifts by little more than its own rounding, 1e-7 of the
//! first one as measured; it may be off by 1e-4 of that. A step that is left out changes it by
//! 2e-3.

use std::error::Error;
use std::time::Instant;

use aquifer::backend::{Backend, Host, MemoryInfo, MemorySource};
use aquifer::report::holders::Holder;
use aquifer::surface::wgpu::OpenError;
use aquifer::{AllocError, Allocator, Bytes, Config, WgpuAllocator};
use wgpu::{Backends, DeviceType};

use super::moments::{Aftermath, Answers, Moment};
use super::report::{Deviation, Report};
use super::{BATCHES, DemoArgs, SHAPE, progress, record, write_report};
use crate::linear::gpu::{Forward, Training};
use crate::linear::host::{Adam, Batch, Linear, Memory, generate};
use crate::linear::source::{Aquifer, Source};
use crate::linear::{RATE, Random};

/// The CPU trains for as many steps, at most: some seconds.
const CHECKED_STEPS: u32 = 100;

/// Of a parameter, and of a loss as a part of the first; see above.
const TOLERANCE: (f32, f32) = (RATE / 4.0, 1e-4);

/// Losses are read when so many steps are on their way: the GPU has work while the CPU records, and
/// the bar moves.
const STEPS_ON_THEIR_WAY: usize = 4;

/// The tag of what Aquifer holds itself to bring bytes to the GPU and back.
const STAGING: &str = "staging";

/// The fastest GPU of this machine; which backends are tried can be said as everywhere in wgpu,
/// by the variable `WGPU_BACKEND`.
pub(super) fn open() -> Result<WgpuAllocator, OpenError> {
    pollster::block_on(WgpuAllocator::open(Backends::PRIMARY.with_env()))
}

impl Answers for WgpuAllocator {
    fn moment(&self) -> Moment {
        let own = |holder: &Holder| holder.tag.as_deref() == Some(STAGING);
        let holders = Allocator::holders(self).into_iter().filter(own);
        let staging: Bytes = holders.map(|holder| holder.bytes).sum();
        let allocated = self.memory_allocated() - staging;
        Moment { allocated, reserved: self.memory_reserved(), staging }
    }

    fn holders(&self) -> Vec<Holder> {
        Allocator::holders(self)
    }

    fn empty_cache(&self) {
        Self::empty_cache(self);
    }

    fn annotate(&self, text: &str) {
        Allocator::annotate(self, text);
    }

    fn driver_free(&self) -> Option<Bytes> {
        let told = |info: &MemoryInfo| info.source == MemorySource::VulkanBudget;
        self.memory_info().filter(told).map(|info| info.free)
    }

    fn is_resident(&self) -> bool {
        self.device().adapter_info().device_type == DeviceType::Cpu
    }
}

/// What the CPU begins with: the same as the GPU.
struct Start {
    memory: Memory<Host>,
    data: Vec<Batch<Host>>,
    linear: Linear<Host>,
}

/// What became of it on the GPU, over the steps that are compared.
struct Trained {
    losses: Vec<f32>,
    parameters: [Vec<f32>; 2],
}

/// Training, then the allocator's answers while things are deleted, then the comparison.
pub(super) fn observe(memory: &WgpuAllocator, args: &DemoArgs) -> Result<Report, Box<dyn Error>> {
    record(args, memory);
    let start = Start::new(args)?;
    let source = Aquifer::new(memory);
    let mut training = Training::new(source.clone(), &start.linear, &start.data)?;
    let loss_first = first(&source.read(&training.loss()?)?);

    // The classic mistake: a list of losses that keeps what they were computed from.
    let mut history: Vec<Forward<Aquifer>> = Vec::new();
    let began = Instant::now();
    let trained = train(&source, &mut training, args, &mut history)?;
    let ms_per_step = began.elapsed().as_secs_f64() * 1e3 / f64::from(args.steps);
    let loss_last = first(&source.read(&training.loss()?)?);

    let aftermath = Aftermath::of(memory, || drop((training, source)));
    write_report(args, memory)?;
    drop(history);
    Ok(Report {
        backend: "wgpu",
        adapter: memory.backend().describe(),
        loss: (loss_first, loss_last),
        ms_per_step,
        aftermath,
        deviation: Some(start.deviation_of(&trained)?),
    })
}

/// All steps. Their losses come back while later steps are on their way.
fn train(
    source: &Aquifer,
    training: &mut Training<Aquifer>,
    args: &DemoArgs,
    history: &mut Vec<Forward<Aquifer>>,
) -> Result<Trained, Box<dyn Error>> {
    let checked = args.steps.min(CHECKED_STEPS);
    let mut losses = Vec::new();
    let mut snapshot = None;
    let mut on_their_way = Vec::new();
    let bar = progress(args.steps, "training");
    for step in 1..=args.steps {
        let (forward, loss) = training.step()?;
        if args.leak {
            history.push(forward);
        }
        if step == checked {
            snapshot = Some(training.parameters()?);
        }
        on_their_way.push(loss);
        if on_their_way.len() == STEPS_ON_THEIR_WAY || step == args.steps {
            for loss in on_their_way.drain(..) {
                losses.push(first(&source.read(&loss)?));
            }
            bar.set_message(format!("loss {:.4}", losses[losses.len() - 1]));
            bar.set_position(step.into());
        }
    }
    bar.finish_and_clear();
    losses.truncate(checked as usize);
    let [weights, bias] = snapshot.expect("there is a step, and one of them was the last to check");
    Ok(Trained { losses, parameters: [source.read(&weights)?, source.read(&bias)?] })
}

impl Start {
    fn new(args: &DemoArgs) -> Result<Self, AllocError> {
        let memory = Memory::new(&Allocator::new(Host::new(), Config::default()));
        let mut random = Random(args.seed);
        let data = generate(&memory, SHAPE, (BATCHES, args.batch as usize), &mut random)?;
        let linear = Linear::new(&memory, SHAPE, &mut random)?;
        Ok(Self { memory, data, linear })
    }

    /// Trains on the CPU, and compares.
    fn deviation_of(self, trained: &Trained) -> Result<Deviation, AllocError> {
        let Self { memory, data, mut linear } = self;
        let steps = trained.losses.len() as u32;
        let bar = progress(steps, "checking");
        let mut optimizer = Adam::new(&memory, &linear)?;
        let first = trained.losses[0];
        let mut loss = 0.0;
        for (got, batch) in trained.losses.iter().zip(data.iter().cycle()) {
            let wanted = optimizer.train(&memory, &mut linear, batch)?.loss();
            loss = larger(loss, (got - wanted).abs() / first);
            bar.inc(1);
        }
        bar.finish_and_clear();
        let pairs = trained.parameters.iter().zip(linear.parameters());
        let values = pairs.flat_map(|(got, wanted)| got.iter().zip(wanted));
        let parameter = values.map(|(got, wanted)| (got - wanted).abs()).fold(0.0, larger);
        Ok(Deviation { steps, parameter, loss, tolerance: TOLERANCE })
    }
}

/// The larger one; no number, if either is none.
fn larger(a: f32, b: f32) -> f32 {
    if a >= b || a.is_nan() { a } else { b }
}

/// A loss is one value.
fn first(values: &[f32]) -> f32 {
    values[0]
}
