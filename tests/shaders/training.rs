//! Loss, gradient and Adam, each on its own and as one step of training in one buffer.

use super::layer::{Shape, column_sums, product};
use super::near::{Near, assert_meaningful, assert_near};
use super::{
    ADAM, Guarded, LINEAR, LOSS, MATMUL, PERIOD, Rng, SIZES, cycle, groups_of, numbers, operand,
    run,
};
use crate::gpu::{Dispatch, Gpu, range, whole};

/// Invocations of `square_sums`, and the steps in which their sums are added.
const SUMS: usize = 65_536;
const SUM_STEPS: usize = 16;

/// As many partial sums as `square_sums` has workgroups.
const PARTIAL_SUMS: usize = 256;

fn mean_square(prediction: &[Near], targets: &[Near]) -> Near {
    let square = |(prediction, target): (&Near, &Near)| {
        let difference = *prediction - *target;
        difference * difference
    };
    let squares = prediction.iter().zip(targets).map(square);
    let depth = prediction.len().div_ceil(SUMS) + SUM_STEPS;
    Near::sum(depth, squares) / Near::exact(prediction.len() as f32)
}

/// Of `values` values; the arrays may be shorter where they repeat.
fn gradient(values: usize, prediction: &[Near], targets: &[Near]) -> Vec<Near> {
    let scale = Near::exact(2.0) / Near::exact(values as f32);
    let pairs = prediction.iter().zip(targets);
    pairs.map(|(prediction, target)| scale * (*prediction - *target)).collect()
}

/// The loss of two arrays on the GPU.
fn loss(gpu: &Gpu, prediction: &[f32], targets: &[f32]) -> f32 {
    let params = gpu.uniform(&[prediction.len() as u32]);
    let (prediction, targets) = (operand(gpu, prediction), operand(gpu, targets));
    let partial_sums = Guarded::new(gpu, &[f32::NAN; PARTIAL_SUMS]);
    let loss = Guarded::new(gpu, &[f32::NAN]);
    let sums = [(0, &params), (1, &prediction), (2, &targets), (3, &partial_sums.buffer)];
    let square_sums = gpu.pipeline(LOSS, "square_sums");
    run(gpu, &square_sums, &sums, [PARTIAL_SUMS as u32, 1, 1]);
    let mean = [(0, &params), (3, &partial_sums.buffer), (4, &loss.buffer)];
    run(gpu, &gpu.pipeline(LOSS, "mean"), &mean, [1, 1, 1]);
    partial_sums.read::<f32>(gpu);
    loss.read::<f32>(gpu)[0]
}

#[test]
fn the_loss_is_the_mean_of_squares() {
    let Some(gpu) = Gpu::shared() else { return };
    let mut random = Rng::new(13);
    for &size in SIZES.iter().chain(&[SUMS - 1, SUMS, SUMS + 1]) {
        let prediction = cycle(&numbers(&mut random, PERIOD), size);
        let targets = cycle(&numbers(&mut random, PERIOD - 2), size);
        let wanted = mean_square(&Near::all(&prediction), &Near::all(&targets));
        let first = loss(gpu, &prediction, &targets);
        assert_near(&format!("loss of {size}"), &[first], &[wanted]);
        let again = loss(gpu, &prediction, &targets);
        assert_eq!(first.to_bits(), again.to_bits(), "the order of the sum of {size} is fixed");
    }
}

#[test]
fn the_gradient_is_that_of_the_loss() {
    let Some(gpu) = Gpu::shared() else { return };
    let kernel = gpu.pipeline(LOSS, "gradient");
    let mut random = Rng::new(17);
    for &size in SIZES {
        let prediction = numbers(&mut random, PERIOD);
        let targets = numbers(&mut random, PERIOD);
        let wanted = gradient(size, &Near::all(&prediction), &Near::all(&targets));
        let out = Guarded::new(gpu, &vec![f32::NAN; size]);
        let params = gpu.uniform(&[size as u32]);
        let (a, b) =
            (operand(gpu, &cycle(&prediction, size)), operand(gpu, &cycle(&targets, size)));
        let bindings = [(0, &params), (1, &a), (2, &b), (5, &out.buffer)];
        run(gpu, &kernel, &bindings, groups_of(gpu, size));
        assert_near(&format!("gradient of {size}"), &out.read::<f32>(gpu), &wanted);
    }
}

/// Parameters of `adam` with PyTorch's constants.
#[derive(Debug, Clone, Copy)]
struct Step {
    rate: f32,
    scale: f32,
    decay: (f32, f32),
    epsilon: f32,
}

impl Step {
    /// The `number`-th step, from 1.
    fn new(number: i32) -> Self {
        let decay = (0.9_f32, 0.999_f32);
        let rate = 1e-3 / (1.0 - decay.0.powi(number));
        let scale = 1.0 / (1.0 - decay.1.powi(number));
        Self { rate, scale, decay, epsilon: 1e-8 }
    }

    fn params(self, values: usize) -> [u32; 6] {
        let Self { rate, scale, decay, epsilon } = self;
        let [rate, scale, first, second, epsilon] =
            [rate, scale, decay.0, decay.1, epsilon].map(f32::to_bits);
        [values as u32, rate, scale, first, second, epsilon]
    }

    /// Value, first and second moment after it.
    fn update(self, value: Near, gradient: Near, (first, second): (Near, Near)) -> [Near; 3] {
        let [rate, scale, epsilon] = [self.rate, self.scale, self.epsilon].map(Near::exact);
        let decay = (Near::exact(self.decay.0), Near::exact(self.decay.1));
        let one = Near::exact(1.0);
        let first = decay.0 * first + (one - decay.0) * gradient;
        let second = decay.1 * second + (one - decay.1) * gradient * gradient;
        [value - rate * first / ((scale * second).sqrt() + epsilon), first, second]
    }
}

/// Numbers of many sizes, down to where epsilon rules, and some zeros.
fn scattered(random: &mut Rng) -> Vec<f32> {
    let mut values = numbers(random, PERIOD);
    for (at, value) in values.iter_mut().enumerate() {
        *value *= if at % 17 == 0 { 0.0 } else { 10.0_f32.powi(-(at as i32 % 13)) };
    }
    values
}

#[test]
fn adam_updates() {
    let Some(gpu) = Gpu::shared() else { return };
    let kernel = gpu.pipeline(ADAM, "adam");
    let mut random = Rng::new(19);
    let step = Step::new(3);
    for &size in SIZES {
        let values = numbers(&mut random, PERIOD);
        let gradients = scattered(&mut random);
        let first = scattered(&mut random);
        let second: Vec<f32> = scattered(&mut random).iter().map(|root| root * root).collect();
        let params = gpu.uniform(&step.params(size));
        let [value_block, gradient_block, first_block, second_block] =
            [&values, &gradients, &first, &second].map(|x| Guarded::new(gpu, &cycle(x, size)));
        let blocks = [&value_block, &gradient_block, &first_block, &second_block];
        let mut bindings = vec![(0, &params)];
        bindings.extend((1..).zip(blocks.map(|block| &block.buffer)));
        run(gpu, &kernel, &bindings, groups_of(gpu, size));
        let [values, gradients, first, second] =
            [&values, &gradients, &first, &second].map(|x| Near::all(x));
        let wanted: Vec<[Near; 3]> = (0..PERIOD)
            .map(|at| step.update(values[at], gradients[at], (first[at], second[at])))
            .collect();
        let column = |at: usize| -> Vec<Near> { wanted.iter().map(|row| row[at]).collect() };
        assert_near(&format!("{size} values"), &value_block.read::<f32>(gpu), &column(0));
        assert_near(&format!("{size} first"), &first_block.read::<f32>(gpu), &column(1));
        assert_near(&format!("{size} second"), &second_block.read::<f32>(gpu), &column(2));
        assert_near(&format!("{size} kept"), &gradient_block.read::<f32>(gpu), &gradients);
    }
}

const BATCH: usize = 37;
const INPUTS: usize = 50;
const OUTPUTS: usize = 29;

/// Where the tensors of the step lie in their one buffer, in this order.
#[derive(Debug, Clone, Copy)]
enum Tensor {
    X,
    Targets,
    Weights,
    Bias,
    Prediction,
    PartialSums,
    Loss,
    Outer,
    WeightGradients,
    BiasGradients,
    WeightFirst,
    WeightSecond,
    BiasFirst,
    BiasSecond,
}

use Tensor::*;

/// Values of each tensor.
const LENGTHS: [usize; 14] = {
    let (x, y, weights) = (BATCH * INPUTS, BATCH * OUTPUTS, INPUTS * OUTPUTS);
    let bias = OUTPUTS;
    [x, y, weights, bias, y, PARTIAL_SUMS, 1, y, weights, bias, weights, weights, bias, bias]
};

/// All tensors of a step in one buffer, as an allocator would place them.
struct Tensors<'a> {
    gpu: &'a Gpu,
    buffer: wgpu::Buffer,
}

impl Tensors<'_> {
    /// Bytes before the tensor: each begins at a multiple of 256, the largest alignment there is.
    fn offset(tensor: usize) -> u64 {
        LENGTHS[..tensor].iter().map(|len| (4 * *len as u64).next_multiple_of(256)).sum()
    }

    fn range(&self, tensor: Tensor) -> wgpu::BufferBinding<'_> {
        let at = tensor as usize;
        range(&self.buffer, Self::offset(at), 4 * LENGTHS[at] as u64)
    }

    fn write(&self, tensor: Tensor, values: &[f32]) {
        let offset = Self::offset(tensor as usize);
        self.gpu.queue.write_buffer(&self.buffer, offset, bytemuck::cast_slice(values));
    }

    fn read(&self, tensor: Tensor) -> Vec<f32> {
        let at = tensor as usize;
        self.gpu.read_range(&self.buffer, Self::offset(at), 4 * LENGTHS[at] as u64)
    }

    /// A kernel over its parameters and `(binding, tensor)`.
    fn dispatch<'a>(
        &'a self,
        pipeline: &'a wgpu::ComputePipeline,
        params: &'a wgpu::Buffer,
        tensors: &[(u32, Tensor)],
        groups: [u32; 3],
    ) -> Dispatch<'a> {
        let mut bindings = vec![(0, whole(params))];
        bindings.extend(tensors.iter().map(|(at, tensor)| (*at, self.range(*tensor))));
        Dispatch { pipeline, bindings, groups }
    }

    fn train(&self, step: Step) {
        let gpu = self.gpu;
        let uniform = |words: &[u32]| gpu.uniform(words);
        let forward = Shape { rows: BATCH, depth: INPUTS, columns: OUTPUTS };
        let backward = Shape { rows: INPUTS, depth: BATCH, columns: OUTPUTS };
        let (values, weights) = (BATCH * OUTPUTS, INPUTS * OUTPUTS);
        let [matmul, transposed] =
            ["matmul", "matmul_transposed"].map(|name| gpu.pipeline(MATMUL, name));
        let [add_bias, column_sums] =
            ["add_bias", "column_sums"].map(|name| gpu.pipeline(LINEAR, name));
        let [square_sums, mean, gradient] =
            ["square_sums", "mean", "gradient"].map(|name| gpu.pipeline(LOSS, name));
        let adam = gpu.pipeline(ADAM, "adam");
        let (product, outer) = (uniform(&forward.params()), uniform(&backward.params()));
        let matrix = uniform(&[BATCH as u32, OUTPUTS as u32]);
        let size = uniform(&[values as u32]);
        let (of_weights, of_bias) =
            (uniform(&step.params(weights)), uniform(&step.params(OUTPUTS)));
        let sums = &[(1, Prediction), (2, Targets), (3, PartialSums)];
        let difference = &[(1, Prediction), (2, Targets), (5, Outer)];
        let product_of = &[(1, X), (2, Weights), (3, Prediction)];
        let gradient_of = &[(1, X), (2, Outer), (3, WeightGradients)];
        let to_weights = &[(1, Weights), (2, WeightGradients), (3, WeightFirst), (4, WeightSecond)];
        let to_bias = &[(1, Bias), (2, BiasGradients), (3, BiasFirst), (4, BiasSecond)];
        let columns = gpu.fold(OUTPUTS.div_ceil(16) as u64);
        gpu.run(&[
            self.dispatch(&matmul, &product, product_of, forward.groups()),
            self.dispatch(
                &add_bias,
                &matrix,
                &[(1, Prediction), (2, Bias)],
                groups_of(gpu, values),
            ),
            self.dispatch(&square_sums, &size, sums, [PARTIAL_SUMS as u32, 1, 1]),
            self.dispatch(&mean, &size, &[(3, PartialSums), (4, Loss)], [1, 1, 1]),
            self.dispatch(&gradient, &size, difference, groups_of(gpu, values)),
            self.dispatch(&transposed, &outer, gradient_of, backward.groups()),
            self.dispatch(&column_sums, &matrix, &[(1, Outer), (2, BiasGradients)], columns),
            self.dispatch(&adam, &of_weights, to_weights, groups_of(gpu, weights)),
            self.dispatch(&adam, &of_bias, to_bias, groups_of(gpu, OUTPUTS)),
        ]);
    }
}

/// Whether one parameter and its moments are what Adam makes of them from moments of zero.
fn updates_are_right(
    tensors: &Tensors<'_>,
    step: Step,
    (before, gradients): (&[f32], &[Near]),
    names: [Tensor; 4],
) {
    let [value, gradient, first, second] = names;
    let zero = Near::exact(0.0);
    let wanted: Vec<[Near; 3]> = before
        .iter()
        .zip(gradients)
        .map(|(value, gradient)| step.update(Near::exact(*value), *gradient, (zero, zero)))
        .collect();
    assert_near(&format!("{gradient:?}"), &tensors.read(gradient), gradients);
    for (at, tensor) in [value, first, second].into_iter().enumerate() {
        let wanted: Vec<Near> = wanted.iter().map(|row| row[at]).collect();
        assert_near(&format!("{tensor:?}"), &tensors.read(tensor), &wanted);
        // A step moves each value by the rate, 1e-3: a bound near that would pass anything.
        assert_meaningful(&format!("{tensor:?}"), &wanted, 2e-5);
    }
}

/// Forward, loss, gradients and Adam, recorded in one pass over ranges of one buffer, against the
/// same step in 64 bits from start to end.
#[test]
fn one_step_of_training() {
    let Some(gpu) = Gpu::shared() else { return };
    let size = Tensors::offset(LENGTHS.len());
    let tensors = Tensors { gpu, buffer: gpu.zeros(size, crate::gpu::STORAGE) };
    let mut random = Rng::new(23);
    let [x, targets, weights, bias] = [X, Targets, Weights, Bias].map(|tensor| {
        let values = numbers(&mut random, LENGTHS[tensor as usize]);
        tensors.write(tensor, &values);
        values
    });
    let step = Step::new(1);
    tensors.train(step);

    let forward = Shape { rows: BATCH, depth: INPUTS, columns: OUTPUTS };
    let backward = Shape { rows: INPUTS, depth: BATCH, columns: OUTPUTS };
    let (near_x, near_targets) = (Near::all(&x), Near::all(&targets));
    let mut prediction = product(forward, &near_x, false, &Near::all(&weights));
    for row in prediction.chunks_exact_mut(OUTPUTS) {
        row.iter_mut().zip(&bias).for_each(|(value, bias)| *value = *value + Near::exact(*bias));
    }
    let loss = mean_square(&prediction, &near_targets);
    let outer = gradient(prediction.len(), &prediction, &near_targets);
    let weight_gradients = product(backward, &near_x, true, &outer);
    let bias_gradients = column_sums(BATCH, &outer);
    assert_near("prediction", &tensors.read(Prediction), &prediction);
    assert_near("loss", &tensors.read(Loss), &[loss]);
    assert_near("outer", &tensors.read(Outer), &outer);
    let names = [Weights, WeightGradients, WeightFirst, WeightSecond];
    updates_are_right(&tensors, step, (&weights, &weight_gradients), names);
    let names = [Bias, BiasGradients, BiasFirst, BiasSecond];
    updates_are_right(&tensors, step, (&bias, &bias_gradients), names);
}
