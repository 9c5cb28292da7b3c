//! The experiment on a GPU by Vulkan, Metal or DX12.

use std::error::Error;
use std::time::Instant;

use aquifer::backend::{Backend, MemoryInfo, MemorySource};
use aquifer::report::holders::Holder;
use aquifer::surface::wgpu::OpenError;
use aquifer::{Allocator, Bytes, WgpuAllocator};
use wgpu::{Backends, DeviceType};

use super::check::{STEPS_ON_THEIR_WAY, Start, Trained, checked_steps, first};
use super::moments::{Aftermath, Answers, Moment};
use super::report::Report;
use super::{DemoArgs, progress, record, write_report};
use crate::linear::gpu::{Forward, Training};
use crate::linear::source::{Aquifer, Source};

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
