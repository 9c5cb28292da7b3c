//! The experiment on a CUDA device.

use std::error::Error;
use std::fmt;
use std::time::Instant;

use aquifer::backend::{Backend, CudaUnavailable};
use aquifer::report::holders::Holder;
use aquifer::surface::cuda::CudaOpenError;
use aquifer::{Allocator, Bytes, CudaAllocator};

use super::check::{STEPS_ON_THEIR_WAY, Start, Trained, checked_steps, first};
use super::moments::{Aftermath, Answers, Moment};
use super::report::Report;
use super::{DemoArgs, progress, record, write_report};
use crate::linear::Failure;
use crate::linear::cuda::{Forward, Training};
use crate::linear::launch::Kernels;

/// A device whose driver has taken the kernels.
pub(super) struct Device {
    memory: CudaAllocator,
    kernels: Kernels,
}

/// Why CUDA cannot be had.
#[derive(Debug)]
pub(super) enum Missing {
    /// There is no allocator.
    Memory(CudaOpenError),
    /// The driver refused the kernels: the device is older than Volta, say.
    Kernels(Failure),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::Kernels(error) => {
                write!(f, "the NVIDIA driver refused the kernels, which need Volta: {error}")
            }
        }
    }
}

impl Missing {
    /// Whether it is what a machine without an NVIDIA GPU says, and not worth a word where there is
    /// another GPU.
    pub(super) fn is_usual(&self) -> bool {
        let Self::Memory(CudaOpenError::Unavailable(reason)) = self else { return false };
        matches!(reason, CudaUnavailable::NoLibrary { .. } | CudaUnavailable::NoDevice)
    }
}

/// The first device; `CUDA_VISIBLE_DEVICES` says which that is.
pub(super) fn open() -> Result<Device, Missing> {
    let memory = CudaAllocator::open(0).map_err(Missing::Memory)?;
    let kernels = Kernels::new(&memory).map_err(Missing::Kernels)?;
    Ok(Device { memory, kernels })
}

impl Answers for CudaAllocator {
    fn moment(&self) -> Moment {
        let (allocated, reserved) = (self.memory_allocated(), self.memory_reserved());
        Moment { allocated, reserved, staging: 0 }
    }

    fn holders(&self) -> Vec<Holder> {
        Allocator::holders(self)
    }

    fn empty_cache(&self) {
        Allocator::empty_cache(self);
        self.pinned().empty_cache();
    }

    fn annotate(&self, text: &str) {
        Allocator::annotate(self, text);
    }

    fn driver_free(&self) -> Option<Bytes> {
        self.backend().free_bytes()
    }

    fn is_resident(&self) -> bool {
        false
    }
}

/// Training, then the allocator's answers while things are deleted, then the comparison.
pub(super) fn observe(device: Device, args: &DemoArgs) -> Result<Report, Box<dyn Error>> {
    let Device { memory, kernels } = device;
    record(args, &memory);
    let start = Start::new(args)?;
    let mut training = Training::new(kernels, &start.linear, &start.data)?;
    let loss_first = first(training.loss()?.slice()?);

    // The classic mistake: a list of losses that keeps what they were computed from.
    let mut history: Vec<Forward> = Vec::new();
    let began = Instant::now();
    let trained = train(&mut training, args, &mut history)?;
    let ms_per_step = began.elapsed().as_secs_f64() * 1e3 / f64::from(args.steps);
    let loss_last = first(training.loss()?.slice()?);

    let aftermath = Aftermath::of(&memory, || drop(training));
    write_report(args, &memory)?;
    drop(history);
    Ok(Report {
        backend: "cuda",
        adapter: memory.backend().describe(),
        loss: (loss_first, loss_last),
        ms_per_step,
        aftermath,
        deviation: Some(start.deviation_of(&trained)?),
    })
}

/// All steps. Their losses come back while later steps are on their way.
fn train(
    training: &mut Training,
    args: &DemoArgs,
    history: &mut Vec<Forward>,
) -> Result<Trained, Box<dyn Error>> {
    let checked = checked_steps(args);
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
                losses.push(first(loss.slice()?));
            }
            bar.set_message(format!("loss {:.4}", losses[losses.len() - 1]));
            bar.set_position(step.into());
        }
    }
    bar.finish_and_clear();
    losses.truncate(checked as usize);
    let [weights, bias] = snapshot.expect("there is a step, and one of them was the last to check");
    Ok(Trained { losses, parameters: [weights.slice()?.to_vec(), bias.slice()?.to_vec()] })
}
