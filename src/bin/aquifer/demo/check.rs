//! A GPU's results against those of the CPU.
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

use aquifer::backend::Host;
use aquifer::{AllocError, Allocator, Config};

use super::report::Deviation;
use super::{BATCHES, DemoArgs, SHAPE, progress};
use crate::linear::host::{Adam, Batch, Linear, Memory, generate};
use crate::linear::{RATE, Random};

/// The CPU trains for as many steps, at most: some seconds.
const CHECKED_STEPS: u32 = 100;

/// Of a parameter, and of a loss as a part of the first; see above.
const TOLERANCE: (f32, f32) = (RATE / 4.0, 1e-4);

/// Losses are read when so many steps are on their way: the GPU has work while the CPU submits, and
/// the bar moves.
pub(super) const STEPS_ON_THEIR_WAY: usize = 4;

/// What the CPU begins with: the same as the GPU.
pub(super) struct Start {
    memory: Memory<Host>,
    pub(super) data: Vec<Batch<Host>>,
    pub(super) linear: Linear<Host>,
}

/// What became of it on the GPU, over the steps that are compared.
pub(super) struct Trained {
    pub(super) losses: Vec<f32>,
    pub(super) parameters: [Vec<f32>; 2],
}

/// How many steps are compared.
pub(super) fn checked_steps(args: &DemoArgs) -> u32 {
    args.steps.min(CHECKED_STEPS)
}

impl Start {
    pub(super) fn new(args: &DemoArgs) -> Result<Self, AllocError> {
        let memory = Memory::new(&Allocator::new(Host::new(), Config::default()));
        let mut random = Random(args.seed);
        let data = generate(&memory, SHAPE, (BATCHES, args.batch as usize), &mut random)?;
        let linear = Linear::new(&memory, SHAPE, &mut random)?;
        Ok(Self { memory, data, linear })
    }

    /// Trains on the CPU, and compares.
    pub(super) fn deviation_of(self, trained: &Trained) -> Result<Deviation, AllocError> {
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
pub(super) fn first(values: &[f32]) -> f32 {
    values[0]
}
