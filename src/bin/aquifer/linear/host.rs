//! Training on memory that the CPU can see; and the data and first weights of every training.
//!
//! Sums are taken in the order of the plain triple loop, so the results are equal to its results to
//! the last bit, whatever the tiling. That makes it the reference for the GPU too.
//!
//! A training step allocates its activations, its loss and its gradients, and frees them at its
//! end: five requests a step, none of which reaches the backend after the first step.

#[cfg(test)]
mod tests;

use aquifer::backend::HostVisible;
use aquifer::{AllocError, Allocator, DeviceVec};

use super::{Correction, DECAY, EPSILON, Purpose, Random, Shape, Tags};

/// Values in the allocator's memory.
pub(crate) type Tensor<B> = DeviceVec<f32, B>;

/// Columns and rows of a tile of a product: 16 KiB of sums stay in the first cache.
const TILE: usize = 64;

/// How far a target is off what the hidden map says.
const NOISE: f32 = 0.1;

/// Where tensors come from.
pub(crate) struct Memory<B: HostVisible> {
    allocator: Allocator<B>,
    tags: Tags,
}

impl<B: HostVisible> Memory<B> {
    pub(crate) fn new(allocator: &Allocator<B>) -> Self {
        Self { allocator: allocator.clone(), tags: Tags::new(allocator) }
    }

    #[track_caller]
    fn zeros(&self, purpose: Purpose, len: usize) -> Result<Tensor<B>, AllocError> {
        DeviceVec::request(&self.allocator).tag(self.tags.of(purpose)).zeroed(len)
    }

    /// For what is written whole before it is read.
    #[track_caller]
    fn blank(&self, purpose: Purpose, len: usize) -> Result<Tensor<B>, AllocError> {
        DeviceVec::request(&self.allocator).tag(self.tags.of(purpose)).recycled(len)
    }
}

/// The layer: `prediction = x · weights + bias`.
pub(crate) struct Linear<B: HostVisible> {
    pub(super) shape: Shape,
    pub(super) weights: Tensor<B>,
    pub(super) bias: Tensor<B>,
}

/// Samples and the values to be learnt for them.
pub(crate) struct Batch<B: HostVisible> {
    pub(super) x: Tensor<B>,
    pub(super) target: Tensor<B>,
}

/// What a forward pass leaves: the classic thing to keep by mistake.
pub(crate) struct Forward<B: HostVisible> {
    prediction: Tensor<B>,
    loss: Tensor<B>,
}

/// One gradient for each parameter of the layer.
struct Gradients<B: HostVisible> {
    weights: Tensor<B>,
    bias: Tensor<B>,
}

impl<B: HostVisible> Linear<B> {
    /// Uniform in ±1/√inputs, as PyTorch's layer begins.
    pub(crate) fn new(
        memory: &Memory<B>,
        shape: Shape,
        random: &mut Random,
    ) -> Result<Self, AllocError> {
        let bound = 1.0 / (shape.inputs as f32).sqrt();
        let mut weights = memory.blank(Purpose::Model, shape.inputs * shape.outputs)?;
        let mut bias = memory.blank(Purpose::Model, shape.outputs)?;
        weights.fill_with(|| bound * random.symmetric());
        bias.fill_with(|| bound * random.symmetric());
        Ok(Self { shape, weights, bias })
    }

    /// Weights and bias, to compare a GPU's with.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    pub(crate) fn parameters(&self) -> [&[f32]; 2] {
        [&self.weights, &self.bias]
    }

    fn predict(&self, memory: &Memory<B>, x: &[f32]) -> Result<Tensor<B>, AllocError> {
        let Shape { inputs, outputs } = self.shape;
        let mut prediction = memory.blank(Purpose::Activations, x.len() / inputs * outputs)?;
        for row in prediction.chunks_exact_mut(outputs) {
            row.copy_from_slice(&self.bias);
        }
        let x = Matrix { values: x, row: inputs, column: 1 };
        add_product(&mut prediction, x, &self.weights, outputs);
        Ok(prediction)
    }

    /// Prediction and loss of a batch.
    pub(crate) fn forward(
        &self,
        memory: &Memory<B>,
        batch: &Batch<B>,
    ) -> Result<Forward<B>, AllocError> {
        let prediction = self.predict(memory, &batch.x)?;
        let mut loss = memory.blank(Purpose::Loss, 1)?;
        loss[0] = mean_square(&prediction, &batch.target);
        Ok(Forward { prediction, loss })
    }

    fn backward(
        &self,
        memory: &Memory<B>,
        batch: &Batch<B>,
        forward: &Forward<B>,
    ) -> Result<Gradients<B>, AllocError> {
        let Shape { inputs, outputs } = self.shape;
        let mut outer = memory.blank(Purpose::Gradients, batch.target.len())?;
        let scale = 2.0 / batch.target.len() as f32;
        let pairs = forward.prediction.iter().zip(&*batch.target);
        for (outer, (prediction, target)) in outer.iter_mut().zip(pairs) {
            *outer = scale * (prediction - target);
        }
        let mut weights = memory.zeros(Purpose::Gradients, self.weights.len())?;
        let transposed = Matrix { values: &batch.x, row: 1, column: inputs };
        add_product(&mut weights, transposed, &outer, outputs);
        let mut bias = memory.zeros(Purpose::Gradients, self.bias.len())?;
        for row in outer.chunks_exact(outputs) {
            bias.iter_mut().zip(row).for_each(|(bias, value)| *bias += value);
        }
        Ok(Gradients { weights, bias })
    }
}

impl<B: HostVisible> Forward<B> {
    pub(crate) fn loss(&self) -> f32 {
        self.loss[0]
    }
}

/// Samples of a hidden linear map with noise; the map is freed before this returns.
pub(crate) fn generate<B: HostVisible>(
    memory: &Memory<B>,
    shape: Shape,
    (batches, batch): (usize, usize),
    random: &mut Random,
) -> Result<Vec<Batch<B>>, AllocError> {
    let hidden = Linear::new(memory, shape, random)?;
    let spread = 3.0_f32.sqrt();
    let make = |_| {
        let mut x = memory.blank(Purpose::Data, batch * shape.inputs)?;
        x.fill_with(|| spread * random.symmetric());
        let mut target = memory.blank(Purpose::Data, batch * shape.outputs)?;
        let clean = hidden.predict(memory, &x)?;
        for (target, clean) in target.iter_mut().zip(&*clean) {
            *target = 2.0 * clean + NOISE * random.symmetric();
        }
        Ok(Batch { x, target })
    };
    (0..batches).map(make).collect()
}

/// Adam's two moments of one parameter.
struct Moments<B: HostVisible> {
    first: Tensor<B>,
    second: Tensor<B>,
}

/// The optimizer, with PyTorch's constants.
pub(crate) struct Adam<B: HostVisible> {
    steps: i32,
    weights: Moments<B>,
    bias: Moments<B>,
}

impl<B: HostVisible> Moments<B> {
    fn new(memory: &Memory<B>, len: usize) -> Result<Self, AllocError> {
        let first = memory.zeros(Purpose::Optimizer, len)?;
        let second = memory.zeros(Purpose::Optimizer, len)?;
        Ok(Self { first, second })
    }

    fn update(&mut self, values: &mut [f32], gradient: &[f32], steps: i32) {
        let Self { first, second } = self;
        update(values, gradient, (first, second), steps);
    }
}

impl<B: HostVisible> Adam<B> {
    pub(crate) fn new(memory: &Memory<B>, linear: &Linear<B>) -> Result<Self, AllocError> {
        let weights = Moments::new(memory, linear.weights.len())?;
        let bias = Moments::new(memory, linear.bias.len())?;
        Ok(Self { steps: 0, weights, bias })
    }

    /// One step of training: forward, backward, update. What the forward pass left is the caller's.
    pub(crate) fn train(
        &mut self,
        memory: &Memory<B>,
        linear: &mut Linear<B>,
        batch: &Batch<B>,
    ) -> Result<Forward<B>, AllocError> {
        let forward = linear.forward(memory, batch)?;
        let gradients = linear.backward(memory, batch, &forward)?;
        self.steps = self.steps.saturating_add(1);
        self.weights.update(&mut linear.weights, &gradients.weights, self.steps);
        self.bias.update(&mut linear.bias, &gradients.bias, self.steps);
        Ok(forward)
    }
}

/// Adam on one parameter.
fn update(
    values: &mut [f32],
    gradient: &[f32],
    (first, second): (&mut [f32], &mut [f32]),
    steps: i32,
) {
    let Correction { rate, scale } = Correction::at(steps);
    let moments = first.iter_mut().zip(second);
    for ((value, gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
        *first = DECAY.0 * *first + (1.0 - DECAY.0) * gradient;
        *second = DECAY.1 * *second + (1.0 - DECAY.1) * gradient * gradient;
        *value -= rate * *first / ((scale * *second).sqrt() + EPSILON);
    }
}

/// The mean of squared differences, summed in 64 bits.
fn mean_square(prediction: &[f32], target: &[f32]) -> f32 {
    let square = |(prediction, target): (&f32, &f32)| f64::from(prediction - target).powi(2);
    let sum: f64 = prediction.iter().zip(target).map(square).sum();
    (sum / prediction.len() as f64) as f32
}

/// A matrix by strides, so that its transpose costs nothing.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    values: &'a [f32],
    /// From one row to the next.
    row: usize,
    /// From one column to the next.
    column: usize,
}

impl Matrix<'_> {
    fn at(&self, row: usize, column: usize) -> f32 {
        self.values[row * self.row + column * self.column]
    }
}

/// `sum += left · right`, where `sum` and `right` have rows of `width`.
///
/// In tiles: the sums of 64 rows and 64 columns stay in the first cache while four rows of `right`
/// at a time are added to all of them.
fn add_product(sum: &mut [f32], left: Matrix<'_>, right: &[f32], width: usize) {
    let (rows, depth) = (sum.len() / width, right.len() / width);
    for column in (0..width).step_by(TILE) {
        let columns = column..width.min(column + TILE);
        for row in (0..rows).step_by(TILE) {
            for at in (0..depth).step_by(4) {
                for row in row..rows.min(row + TILE) {
                    let sum = &mut sum[row * width..][columns.clone()];
                    let term =
                        |at: usize| (left.at(row, at), &right[at * width..][columns.clone()]);
                    if at + 4 <= depth {
                        add_four(sum, [term(at), term(at + 1), term(at + 2), term(at + 3)]);
                    } else {
                        (at..depth).for_each(|at| add_one(sum, term(at)));
                    }
                }
            }
        }
    }
}

/// Four terms of each sum, from left to right: the order of the plain loop.
fn add_four(sum: &mut [f32], terms: [(f32, &[f32]); 4]) {
    let [(a, left), (b, second), (c, third), (d, right)] = terms;
    let pairs = left.iter().zip(second).zip(third.iter().zip(right));
    for (sum, ((left, second), (third, right))) in sum.iter_mut().zip(pairs) {
        *sum = *sum + a * left + b * second + c * third + d * right;
    }
}

fn add_one(sum: &mut [f32], (factor, values): (f32, &[f32])) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * value);
}
