//! Training on a CUDA device: the kernels over buffers of one stream.
//!
//! ```text
//!   stream   forward: 2 kernels │ loss down │ backward: 3 │ Adam: 2 │ forward of the next …
//!   memory   prediction, loss      pinned     gradients     freed: the next step has them
//! ```
//!
//! A step's activations, loss and gradients are allocated and dropped while it is submitted: the
//! next step has the same bytes, long before the GPU is done with this one. Nothing waits: losses
//! come back by copies to pinned memory that are read when somebody wants them.

use aquifer::backend::HostVisible;

use super::launch::{AdamStep, Download, Extent, Kernels, Tensor};
use super::{Correction, DECAY, EPSILON, Failure, Purpose, Shape, host};

/// A layer with its optimizer and its data.
pub(crate) struct Training {
    kernels: Kernels,
    shape: Shape,
    weights: Parameter,
    bias: Parameter,
    data: Vec<Batch>,
    steps: i32,
}

/// Values to be learnt, with Adam's two moments of them.
struct Parameter {
    values: Tensor,
    first: Tensor,
    second: Tensor,
}

/// Samples and the values to be learnt for them.
struct Batch {
    samples: usize,
    x: Tensor,
    target: Tensor,
}

/// What a forward pass leaves: the classic thing to keep by mistake.
pub(crate) struct Forward {
    prediction: Tensor,
    loss: Tensor,
}

/// One gradient for each parameter of the layer.
struct Gradients {
    weights: Tensor,
    bias: Tensor,
}

impl Training {
    /// Begins where a training on the host would begin: with this layer, on this data.
    pub(crate) fn new<B: HostVisible>(
        kernels: Kernels,
        linear: &host::Linear<B>,
        data: &[host::Batch<B>],
    ) -> Result<Self, Failure> {
        let shape = linear.shape;
        let mut batches = Vec::with_capacity(data.len());
        for batch in data {
            let x = kernels.filled(Purpose::Data, &batch.x)?;
            let target = kernels.filled(Purpose::Data, &batch.target)?;
            batches.push(Batch { samples: batch.x.len() / shape.inputs, x, target });
        }
        let weights = Parameter::new(&kernels, &linear.weights)?;
        let bias = Parameter::new(&kernels, &linear.bias)?;
        Ok(Self { kernels, shape, weights, bias, data: batches, steps: 0 })
    }

    /// One step of training, submitted: what its forward pass left, which is the caller's, and the
    /// loss on its way back. Takes the batches in turn.
    pub(crate) fn step(&mut self) -> Result<(Forward, Download), Failure> {
        let batch = &self.data[self.steps as usize % self.data.len()];
        let forward = self.forward(batch)?;
        let loss = self.kernels.download(&forward.loss)?;
        let gradients = self.backward(batch, &forward)?;
        self.steps = self.steps.saturating_add(1);
        let Correction { rate, scale } = Correction::at(self.steps);
        let step = AdamStep { rate, scale, decay: DECAY, epsilon: EPSILON };
        self.weights.update(&self.kernels, &gradients.weights, step)?;
        self.bias.update(&self.kernels, &gradients.bias, step)?;
        Ok((forward, loss))
    }

    /// The loss of the first batch as it is now, on its way back.
    pub(crate) fn loss(&self) -> Result<Download, Failure> {
        let forward = self.forward(&self.data[0])?;
        self.kernels.download(&forward.loss)
    }

    /// Weights and bias as they are after the last step, on their way back.
    pub(crate) fn parameters(&self) -> Result<[Download; 2], Failure> {
        let weights = self.kernels.download(&self.weights.values)?;
        let bias = self.kernels.download(&self.bias.values)?;
        Ok([weights, bias])
    }

    fn forward(&self, batch: &Batch) -> Result<Forward, Failure> {
        let (kernels, Shape { inputs, outputs }) = (&self.kernels, self.shape);
        let extent = Extent { rows: batch.samples, depth: inputs, columns: outputs };
        let operands = (&batch.x, &self.weights.values, &self.bias.values);
        let prediction = kernels.product(Purpose::Activations, operands, extent)?;
        let loss = kernels.mean_square(Purpose::Loss, &prediction, &batch.target)?;
        Ok(Forward { prediction, loss })
    }

    fn backward(&self, batch: &Batch, forward: &Forward) -> Result<Gradients, Failure> {
        let (kernels, Shape { inputs, outputs }) = (&self.kernels, self.shape);
        let purpose = Purpose::Gradients;
        let outer = kernels.gradient(purpose, &forward.prediction, &batch.target)?;
        let extent = Extent { rows: inputs, depth: batch.samples, columns: outputs };
        let weights = kernels.transposed_product(purpose, (&batch.x, &outer), extent)?;
        let bias = kernels.column_sums(purpose, &outer, outputs)?;
        Ok(Gradients { weights, bias })
    }
}

impl Parameter {
    fn new(kernels: &Kernels, values: &[f32]) -> Result<Self, Failure> {
        let len = values.len();
        let values = kernels.filled(Purpose::Model, values)?;
        let first = kernels.zeros(Purpose::Optimizer, len)?;
        let second = kernels.zeros(Purpose::Optimizer, len)?;
        Ok(Self { values, first, second })
    }

    fn update(
        &mut self,
        kernels: &Kernels,
        gradient: &Tensor,
        step: AdamStep,
    ) -> Result<(), Failure> {
        let Self { values, first, second } = self;
        kernels.adam(values, gradient, (first, second), step)
    }
}
