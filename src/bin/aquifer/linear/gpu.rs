//! Training recorded for the GPU: the shaders over tensors of any [`Source`].
//!
//! ```text
//!   encoder   ▕ parameters up ▏ one pass: 9 dispatches ▏ loss down ▏ ─▶ queue
//!   scope     ▕ begin ── allocate, drop, allocate, drop, ... ──────── submit ▏
//! ```
//!
//! A step is one encoder and one scope. Its activations, loss, gradients and kernel parameters are
//! allocated while it is recorded, and dropped while it is recorded: the next step has the same
//! bytes, long before the GPU is done with this one. Nothing waits: losses come back by downloads
//! that are read when somebody wants them.

#[cfg(test)]
mod tests;

use aquifer::backend::HostVisible;
use wgpu::CommandEncoder;

use super::kernels::{Kernels, PARTIAL_SUMS, Pass};
use super::source::Source;
use super::{Correction, DECAY, EPSILON, Failure, Purpose, Shape, host};

/// A layer with its optimizer and its data.
pub(crate) struct Training<S: Source> {
    source: S,
    kernels: Kernels,
    shape: Shape,
    weights: Parameter<S>,
    bias: Parameter<S>,
    data: Vec<Batch<S>>,
    steps: i32,
}

/// Values to be learnt, with Adam's two moments of them.
struct Parameter<S: Source> {
    len: usize,
    values: S::Tensor,
    first: S::Tensor,
    second: S::Tensor,
}

/// Samples and the values to be learnt for them.
struct Batch<S: Source> {
    samples: usize,
    x: S::Tensor,
    target: S::Tensor,
}

/// What a forward pass leaves: the classic thing to keep by mistake.
pub(crate) struct Forward<S: Source> {
    prediction: S::Tensor,
    loss: S::Tensor,
}

/// One gradient for each parameter of the layer.
struct Gradients<S: Source> {
    weights: S::Tensor,
    bias: S::Tensor,
}

/// Parameters of the kernels.
struct Uniforms<S: Source> {
    /// Of `x · weights`.
    product: S::Tensor,
    /// Of `xᵀ · g`.
    transposed: S::Tensor,
    /// Rows and columns of the prediction.
    matrix: S::Tensor,
    /// Values of the prediction.
    size: S::Tensor,
    adam: [S::Tensor; 2],
}

impl<S: Source> Training<S> {
    /// Begins where a training on the host would begin: with this layer, on this data.
    pub(crate) fn new<B: HostVisible>(
        source: S,
        linear: &host::Linear<B>,
        data: &[host::Batch<B>],
    ) -> Result<Self, Failure> {
        let shape = linear.shape;
        let batch = |batch: &host::Batch<B>| -> Result<_, Failure> {
            let samples = batch.x.len() / shape.inputs;
            let x = source.filled(Purpose::Data, &batch.x)?;
            let target = source.filled(Purpose::Data, &batch.target)?;
            Ok(Batch { samples, x, target })
        };
        let data = data.iter().map(batch).collect::<Result<_, _>>()?;
        let weights = Parameter::new(&source, &linear.weights)?;
        let bias = Parameter::new(&source, &linear.bias)?;
        let kernels = Kernels::new(source.device());
        Ok(Self { source, kernels, shape, weights, bias, data, steps: 0 })
    }

    /// One step of training, recorded and submitted: what its forward pass left, which is the
    /// caller's, and the loss on its way back. Takes the batches in turn.
    pub(crate) fn step(&mut self) -> Result<(Forward<S>, S::Download), Failure> {
        let batch = &self.data[self.steps as usize % self.data.len()];
        let step = self.steps.saturating_add(1);
        let (mut encoder, mut scope) = self.begin();
        let uniforms = self.uniforms(&mut scope, &mut encoder, batch, step)?;
        let mut pass = self.pass(&scope, &mut encoder);
        let forward = self.forward(&mut pass, &uniforms, batch)?;
        let gradients = self.backward(&mut pass, &uniforms, batch, &forward)?;
        self.update(&mut pass, &uniforms, &gradients);
        drop((pass, gradients, uniforms));
        let loss = self.source.download(&mut scope, &mut encoder, &forward.loss)?;
        self.source.submit(scope, encoder);
        self.steps = step;
        Ok((forward, loss))
    }

    /// The loss of the first batch as it is now, on its way back.
    pub(crate) fn loss(&self) -> Result<S::Download, Failure> {
        let batch = &self.data[0];
        let (mut encoder, mut scope) = self.begin();
        let uniforms = self.uniforms(&mut scope, &mut encoder, batch, 1)?;
        let mut pass = self.pass(&scope, &mut encoder);
        let forward = self.forward(&mut pass, &uniforms, batch)?;
        drop((pass, uniforms));
        let loss = self.source.download(&mut scope, &mut encoder, &forward.loss)?;
        drop(forward);
        self.source.submit(scope, encoder);
        Ok(loss)
    }

    /// Weights and bias as they are after the last step, on their way back.
    pub(crate) fn parameters(&self) -> Result<[S::Download; 2], Failure> {
        let (mut encoder, mut scope) = self.begin();
        let weights = self.source.download(&mut scope, &mut encoder, &self.weights.values)?;
        let bias = self.source.download(&mut scope, &mut encoder, &self.bias.values)?;
        self.source.submit(scope, encoder);
        Ok([weights, bias])
    }

    fn begin(&self) -> (CommandEncoder, S::Scope) {
        let mut encoder = self.source.device().create_command_encoder(&Default::default());
        let scope = self.source.begin(&mut encoder);
        (encoder, scope)
    }

    fn pass<'a>(&'a self, scope: &'a S::Scope, encoder: &'a mut CommandEncoder) -> Pass<'a, S> {
        let pass = encoder.begin_compute_pass(&Default::default());
        Pass { source: &self.source, scope, pass }
    }

    fn uniforms(
        &self,
        scope: &mut S::Scope,
        encoder: &mut CommandEncoder,
        batch: &Batch<S>,
        step: i32,
    ) -> Result<Uniforms<S>, Failure> {
        let Shape { inputs, outputs } = self.shape;
        let [samples, inputs, outputs] = [batch.samples, inputs, outputs].map(|len| len as u32);
        let Correction { rate, scale } = Correction::at(step);
        let [rate, scale, first, second, epsilon] =
            [rate, scale, DECAY.0, DECAY.1, EPSILON].map(f32::to_bits);
        let adam = |len: u32| [len, rate, scale, first, second, epsilon];
        let words: [&[u32]; 6] = [
            &[samples, inputs, outputs],
            &[inputs, samples, outputs],
            &[samples, outputs],
            &[samples * outputs],
            &adam(inputs * outputs),
            &adam(outputs),
        ];
        let [product, transposed, matrix, size, weights, bias] =
            self.source.uniforms(scope, encoder, words)?;
        Ok(Uniforms { product, transposed, matrix, size, adam: [weights, bias] })
    }

    fn forward(
        &self,
        at: &mut Pass<'_, S>,
        uniforms: &Uniforms<S>,
        batch: &Batch<S>,
    ) -> Result<Forward<S>, Failure> {
        let (kernels, outputs) = (&self.kernels, self.shape.outputs);
        let len = batch.samples * outputs;
        let prediction = at.source.blank(at.scope, Purpose::Activations, len)?;
        let operands =
            [(0, &uniforms.product), (1, &batch.x), (2, &self.weights.values), (3, &prediction)];
        kernels.matmul.dispatch(at, &operands, kernels.groups_of_product(batch.samples, outputs));
        let operands = [(0, &uniforms.matrix), (1, &prediction), (2, &self.bias.values)];
        kernels.add_bias.dispatch(at, &operands, kernels.groups_of_values(len));

        let sums = at.source.blank(at.scope, Purpose::Loss, PARTIAL_SUMS)?;
        let operands = [(0, &uniforms.size), (1, &prediction), (2, &batch.target), (3, &sums)];
        kernels.square_sums.dispatch(at, &operands, [PARTIAL_SUMS as u32, 1, 1]);
        let loss = at.source.blank(at.scope, Purpose::Loss, 1)?;
        kernels.mean.dispatch(at, &[(0, &uniforms.size), (3, &sums), (4, &loss)], [1, 1, 1]);
        Ok(Forward { prediction, loss })
    }

    fn backward(
        &self,
        at: &mut Pass<'_, S>,
        uniforms: &Uniforms<S>,
        batch: &Batch<S>,
        forward: &Forward<S>,
    ) -> Result<Gradients<S>, Failure> {
        let (kernels, Shape { inputs, outputs }) = (&self.kernels, self.shape);
        let len = batch.samples * outputs;
        let outer = at.source.blank(at.scope, Purpose::Gradients, len)?;
        let operands =
            [(0, &uniforms.size), (1, &forward.prediction), (2, &batch.target), (5, &outer)];
        kernels.gradient.dispatch(at, &operands, kernels.groups_of_values(len));

        let weights = at.source.blank(at.scope, Purpose::Gradients, self.weights.len)?;
        let operands = [(0, &uniforms.transposed), (1, &batch.x), (2, &outer), (3, &weights)];
        let groups = kernels.groups_of_product(inputs, outputs);
        kernels.matmul_transposed.dispatch(at, &operands, groups);

        let bias = at.source.blank(at.scope, Purpose::Gradients, self.bias.len)?;
        let operands = [(0, &uniforms.matrix), (1, &outer), (2, &bias)];
        kernels.column_sums.dispatch(at, &operands, kernels.groups_of_columns(outputs));
        Ok(Gradients { weights, bias })
    }

    fn update(&self, at: &mut Pass<'_, S>, uniforms: &Uniforms<S>, gradients: &Gradients<S>) {
        let [weights, bias] = &uniforms.adam;
        for (parameter, gradient, uniform) in
            [(&self.weights, &gradients.weights, weights), (&self.bias, &gradients.bias, bias)]
        {
            let Parameter { len, values, first, second } = parameter;
            let operands = [(0, uniform), (1, values), (2, gradient), (3, first), (4, second)];
            let groups = self.kernels.groups_of_values(*len);
            self.kernels.adam.dispatch(at, &operands, groups);
        }
    }
}

impl<S: Source> Parameter<S> {
    fn new(source: &S, values: &[f32]) -> Result<Self, Failure> {
        let len = values.len();
        let values = source.filled(Purpose::Model, values)?;
        let first = source.zeros(Purpose::Optimizer, len)?;
        let second = source.zeros(Purpose::Optimizer, len)?;
        Ok(Self { len, values, first, second })
    }
}
