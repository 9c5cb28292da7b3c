//! What the demo trains: a linear layer with Adam, every tensor of which is Aquifer's memory.
//!
//! ```text
//!   x [batch][inputs] ──▶ prediction = x · weights + bias ──▶ loss = mean (prediction - target)²
//!                                                                │
//!   parameters ◀── Adam ◀── weights' gradient = xᵀ · g, bias' = Σ g ◀── g = its gradient
//! ```
//!
//! Matrices are rows one after the other; weights are `[inputs][outputs]`, so that both products
//! run along rows.
//!
//! | file      | what it owns |
//! |-----------|--------------|
//! | `host`    | the data, the first weights, and training on memory that the CPU can see |
//! | `source`  | where tensors of the GPU come from: Aquifer, or what a bench compares it with |
//! | `kernels` | the shaders as pipelines, and how many workgroups they want |
//! | `gpu`     | the same training, recorded for the GPU |
//! | `launch`  | tensors and kernels of a CUDA device, with their operands checked |
//! | `cuda`    | the same training on such a device |
//!
//! Nothing here uses the rest of the program, so that a bench can include it as it is.

#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(feature = "wgpu")]
pub(crate) mod gpu;
pub(crate) mod host;
#[cfg(feature = "wgpu")]
mod kernels;
#[cfg(feature = "cuda")]
pub(crate) mod launch;
#[cfg(feature = "wgpu")]
pub(crate) mod source;

use aquifer::backend::Backend;
use aquifer::{Allocator, Tag};

/// Whatever a training may fail with.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) type Failure = Box<dyn std::error::Error>;

/// Width of what goes into a layer and of what comes out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

/// What a tensor is for: the name under which reports show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Model,
    Optimizer,
    Data,
    Activations,
    Loss,
    Gradients,
}

impl Purpose {
    /// In the order of their declaration.
    const NAMES: [&'static str; 6] =
        ["model", "optimizer", "data", "activations", "loss", "gradients"];
}

/// A tag for each purpose.
#[derive(Debug, Clone, Copy)]
struct Tags([Tag; Purpose::NAMES.len()]);

impl Tags {
    fn new<B: Backend>(allocator: &Allocator<B>) -> Self {
        Self(Purpose::NAMES.map(|name| allocator.tag(name)))
    }

    fn of(&self, purpose: Purpose) -> Tag {
        self.0[purpose as usize]
    }
}

/// How far Adam moves a parameter in one step, at most and about.
pub(crate) const RATE: f32 = 1e-3;

/// Of Adam's first and second moment.
const DECAY: (f32, f32) = (0.9, 0.999);

const EPSILON: f32 = 1e-8;

/// What hangs on the number of the step in Adam with PyTorch's constants:
/// <https://arxiv.org/abs/1412.6980>, algorithm 1.
#[derive(Debug, Clone, Copy)]
struct Correction {
    rate: f32,
    scale: f32,
}

impl Correction {
    /// Of a step, from 1.
    fn at(step: i32) -> Self {
        Self { rate: RATE / (1.0 - DECAY.0.powi(step)), scale: 1.0 / (1.0 - DECAY.1.powi(step)) }
    }
}

/// Numbers that a seed determines (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Uniform in -1 ... 1.
    pub(crate) fn symmetric(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bits = (mixed ^ (mixed >> 31)) >> 40;
        bits as f32 / (1_u64 << 23) as f32 - 1.0
    }
}
