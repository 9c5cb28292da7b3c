//! The kernels that these tests dispatch: marks for whole blocks, checks of the marks, and one step
//! of a computation.

use aquifer::WgpuAllocation;
use wgpu::{BindingResource, Buffer, BufferBinding, CommandEncoder, ComputePipeline};

use crate::gpu::{Dispatch, Gpu, whole};

/// Invocations of a workgroup of the stamping kernels.
const INVOCATIONS: u64 = 256;

/// Words that [`Kernels::step`] works on.
pub(crate) const STEP_WORDS: usize = 64;

const STEP: &str = "
    @group(0) @binding(0) var<storage, read_write> x: array<u32>;
    @group(0) @binding(1) var<storage, read_write> y: array<u32>;
    @compute @workgroup_size(64) fn step(@builtin(global_invocation_id) at: vec3<u32>) {
        y[at.x] = x[at.x] + 1u;
    }";

/// Pipelines of one device, and a counter of wrong words.
#[derive(Debug)]
pub(crate) struct Kernels {
    stamp: ComputePipeline,
    check: ComputePipeline,
    step: ComputePipeline,
    wrong: Buffer,
}

/// What is to be in a block: marks of a seed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    pub(crate) words: u32,
    pub(crate) seed: u32,
}

impl Marks {
    /// The marks of all words of a block.
    pub(crate) fn of(allocation: &WgpuAllocation, seed: u32) -> Self {
        Self { words: (allocation.size() / 4) as u32, seed }
    }

    /// The bytes that the kernel `stamp` would write.
    pub(crate) fn bytes(self) -> Vec<u8> {
        let salt = mix(self.seed.wrapping_add(0x85eb_ca6b));
        let mut words: Vec<u32> = vec![salt; self.words as usize];
        // A plain loop: builds without optimisation are slow at anything else.
        let mut index = 0x9e37_79b9_u32;
        for word in &mut words {
            *word = mix(mix(index) ^ salt);
            index = index.wrapping_add(1);
        }
        bytemuck::cast_slice(&words).to_vec()
    }
}

/// The hash of the shader.
fn mix(word: u32) -> u32 {
    let x = (word ^ word >> 16).wrapping_mul(0x7feb_352d);
    let x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

impl Kernels {
    pub(crate) fn new(gpu: &Gpu) -> Self {
        let text = include_str!("../../shaders/stamp.wgsl");
        Self {
            stamp: gpu.pipeline(text, "stamp"),
            check: gpu.pipeline(text, "check"),
            step: gpu.pipeline(STEP, "step"),
            wrong: gpu.buffer(&[0_u32]),
        }
    }

    /// Records the marks of a block.
    pub(crate) fn stamp(
        &self,
        gpu: &Gpu,
        encoder: &mut CommandEncoder,
        block: BindingResource<'_>,
        marks: Marks,
    ) {
        let params = gpu.uniform(&[marks.words, marks.seed]);
        let bindings = vec![(0, whole(&params)), (1, buffer_of(block))];
        let groups = gpu.fold(u64::from(marks.words).div_ceil(INVOCATIONS));
        gpu.record(encoder, &[Dispatch { pipeline: &self.stamp, bindings, groups }]);
    }

    /// Records a look at them; [`wrong`](Self::wrong) counts what is not there.
    pub(crate) fn check(
        &self,
        gpu: &Gpu,
        encoder: &mut CommandEncoder,
        block: BindingResource<'_>,
        marks: Marks,
    ) {
        let params = gpu.uniform(&[marks.words, marks.seed]);
        let bindings = vec![(0, whole(&params)), (1, buffer_of(block)), (2, whole(&self.wrong))];
        let groups = gpu.fold(u64::from(marks.words).div_ceil(INVOCATIONS));
        gpu.record(encoder, &[Dispatch { pipeline: &self.check, bindings, groups }]);
    }

    /// Records `to = from + 1` on the first [`STEP_WORDS`] words.
    pub(crate) fn step(
        &self,
        gpu: &Gpu,
        encoder: &mut CommandEncoder,
        from: BufferBinding<'_>,
        to: BufferBinding<'_>,
    ) {
        let bindings = vec![(0, from), (1, to)];
        gpu.record(encoder, &[Dispatch { pipeline: &self.step, bindings, groups: [1, 1, 1] }]);
    }

    /// Words that all checks together found wrong, of what was submitted so far.
    pub(crate) fn wrong(&self, gpu: &Gpu) -> u32 {
        gpu.read::<u32>(&self.wrong)[0]
    }
}

/// A binding as the tests' own bind groups take it.
pub(crate) fn buffer_of(resource: BindingResource<'_>) -> BufferBinding<'_> {
    match resource {
        BindingResource::Buffer(binding) => binding,
        other => panic!("an allocation is a range of a buffer, not {other:?}"),
    }
}
