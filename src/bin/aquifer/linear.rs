//! What the demo trains: a linear layer with Adam, every tensor of which is Aquifer's memory.
//!
//! ```text
//!   x [batch][inputs] ──▶ prediction = x · weights + bias ──▶ loss = mean (prediction - target)²
//!                                                                │
//!   parameters ◀── Adam ◀── weights' gradient = xᵀ · g, bias' = Σ g ◀── g = its gradient
//! ```
//!
//! Matrices are rows one after the other; weights are `[inputs][outputs]`, so that both products
//! run along rows. Sums are taken in the order of the plain triple loop, so the results are equal
//! to its results to the last bit, whatever the tiling.
//!
//! A training step allocates its activations, its loss and its gradients, and frees them at its
//! end: five requests a step, none of which reaches the backend after the first step.

#[cfg(test)]
mod tests;

use aquifer::backend::HostVisible;
use aquifer::{AllocError, Allocator, DeviceVec, Tag};

/// Values in the allocator's memory.
pub(crate) type Tensor<B> = DeviceVec<f32, B>;

/// Columns and rows of a tile of a product: 16 KiB of sums stay in the first cache.
const TILE: usize = 64;

/// How far a target is off what the hidden map says.
const NOISE: f32 = 0.1;

/// Where tensors come from, and the names under which reports show them.
pub(crate) struct Memory<B: HostVisible> {
    allocator: Allocator<B>,
    model: Tag,
    optimizer: Tag,
    data: Tag,
    activations: Tag,
    loss: Tag,
    gradients: Tag,
}

impl<B: HostVisible> Memory<B> {
    pub(crate) fn new(allocator: &Allocator<B>) -> Self {
        Self {
            allocator: allocator.clone(),
            model: allocator.tag("model"),
            optimizer: allocator.tag("optimizer"),
            data: allocator.tag("data"),
            activations: allocator.tag("activations"),
            loss: allocator.tag("loss"),
            gradients: allocator.tag("gradients"),
        }
    }

    #[track_caller]
    fn zeros(&self, tag: Tag, len: usize) -> Result<Tensor<B>, AllocError> {
        DeviceVec::request(&self.allocator).tag(tag).zeroed(len)
    }

    /// For what is written whole before it is read.
    #[track_caller]
    fn blank(&self, tag: Tag, len: usize) -> Result<Tensor<B>, AllocError> {
        DeviceVec::request(&self.allocator).tag(tag).recycled(len)
    }
}

/// Width of what goes into a layer and of what comes out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

/// The layer: `prediction = x · weights + bias`.
pub(crate) struct Linear<B: HostVisible> {
    shape: Shape,
    weights: Tensor<B>,
    bias: Tensor<B>,
}

/// Samples and the values to be learnt for them.
pub(crate) struct Batch<B: HostVisible> {
    x: Tensor<B>,
    target: Tensor<B>,
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
        let mut weights = memory.blank(memory.model, shape.inputs * shape.outputs)?;
        let mut bias = memory.blank(memory.model, shape.outputs)?;
        weights.fill_with(|| bound * random.symmetric());
        bias.fill_with(|| bound * random.symmetric());
        Ok(Self { shape, weights, bias })
    }

    fn predict(&self, memory: &Memory<B>, x: &[f32]) -> Result<Tensor<B>, AllocError> {
        let Shape { inputs, outputs } = self.shape;
        let mut prediction = memory.blank(memory.activations, x.len() / inputs * outputs)?;
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
        let mut loss = memory.blank(memory.loss, 1)?;
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
        let mut outer = memory.blank(memory.gradients, batch.target.len())?;
        let scale = 2.0 / batch.target.len() as f32;
        let pairs = forward.prediction.iter().zip(&*batch.target);
        for (outer, (prediction, target)) in outer.iter_mut().zip(pairs) {
            *outer = scale * (prediction - target);
        }
        let mut weights = memory.zeros(memory.gradients, self.weights.len())?;
        let transposed = Matrix { values: &batch.x, row: 1, column: inputs };
        add_product(&mut weights, transposed, &outer, outputs);
        let mut bias = memory.zeros(memory.gradients, self.bias.len())?;
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
        let mut x = memory.blank(memory.data, batch * shape.inputs)?;
        x.fill_with(|| spread * random.symmetric());
        let mut target = memory.blank(memory.data, batch * shape.outputs)?;
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
        let first = memory.zeros(memory.optimizer, len)?;
        let second = memory.zeros(memory.optimizer, len)?;
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

/// Adam on one parameter: <https://arxiv.org/abs/1412.6980>, algorithm 1.
fn update(
    values: &mut [f32],
    gradient: &[f32],
    (first, second): (&mut [f32], &mut [f32]),
    steps: i32,
) {
    const RATE: f32 = 1e-3;
    const DECAY: (f32, f32) = (0.9, 0.999);
    const EPSILON: f32 = 1e-8;
    let rate = RATE / (1.0 - DECAY.0.powi(steps));
    let scale = 1.0 / (1.0 - DECAY.1.powi(steps));
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
