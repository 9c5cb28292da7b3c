//! The kernels of a training step on a CUDA device, and the tensors they work on.
//!
//! A kernel trusts its arguments, so launching one is unsafe; all of that is here. What is outside
//! can do nothing wrong, since
//!
//! - H1: the length of every operand is checked against the shape that the kernel is told.
//! - H2: tensors and kernels are of one stream, so they come in the order of the calls.
//! - H3: a tensor that nobody filled is made by the kernel that writes all of it.
#![allow(unsafe_code)]

use std::sync::Arc;

use aquifer::{CudaAllocator, CudaBuffer, OnStream, PinnedBuffer};
use cudarc::driver::{CudaContext, CudaFunction, DeviceSlice, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

use super::{Failure, Purpose, Tags};

/// Values on the device.
pub(crate) type Tensor = CudaBuffer<f32>;

/// Values on their way back.
pub(crate) type Download = PinnedBuffer<f32>;

/// Of a block, but for the loss.
const THREADS: usize = 256;

/// Kernels go on in strides of the grid, so that more blocks than this are of no use.
const BLOCKS_MAX: usize = 1 << 14;

/// The one block of the loss.
const LOSS_BLOCK: LaunchConfig =
    LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1024, 1, 1), shared_mem_bytes: 0 };

/// Of a product: rows, depth of the sums, columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub(super) rows: usize,
    pub(super) depth: usize,
    pub(super) columns: usize,
}

/// What Adam is told of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct AdamStep {
    pub(super) rate: f32,
    pub(super) scale: f32,
    pub(super) decay: (f32, f32),
    pub(super) epsilon: f32,
}

/// A stream with the kernels that run on it; `shaders/cuda/*.ptx` say what each does and wants.
#[derive(Debug)]
pub(crate) struct Kernels {
    here: OnStream,
    tags: Tags,
    matmul: CudaFunction,
    column_sums: CudaFunction,
    mean_square: CudaFunction,
    gradient: CudaFunction,
    adam: CudaFunction,
}

/// A thread for each of so many values, within reason.
fn blocks(values: usize) -> LaunchConfig {
    let blocks = values.div_ceil(THREADS).clamp(1, BLOCKS_MAX) as u32;
    LaunchConfig {
        grid_dim: (blocks, 1, 1),
        block_dim: (THREADS as u32, 1, 1),
        shared_mem_bytes: 0,
    }
}

impl Kernels {
    /// Loads the kernels, which the driver compiles for the device, and opens a stream.
    pub(crate) fn new(memory: &CudaAllocator) -> Result<Self, Failure> {
        let context = memory.context();
        let layer = include_str!("../../../../shaders/cuda/layer.ptx");
        let loss = include_str!("../../../../shaders/cuda/loss.ptx");
        let adam = include_str!("../../../../shaders/cuda/adam.ptx");
        let [matmul, column_sums] = load(context, layer, ["matmul_f32", "column_sums_f32"])?;
        let [mean_square, gradient] = load(context, loss, ["mean_square_f32", "gradient_f32"])?;
        let [adam] = load(context, adam, ["adam_f32"])?;
        let here = memory.on(&context.new_stream()?)?;
        let tags = Tags::new(memory);
        Ok(Self { here, tags, matmul, column_sums, mean_square, gradient, adam })
    }

    /// Room for values that the next call writes (H3).
    #[track_caller]
    fn blank(&self, purpose: Purpose, len: usize) -> Result<Tensor, Failure> {
        // SAFETY: who calls this writes all of it before it is anybody's.
        Ok(unsafe { self.here.alloc_tagged(len, self.tags.of(purpose)) }?)
    }

    /// A tensor with these values.
    #[track_caller]
    pub(super) fn filled(&self, purpose: Purpose, values: &[f32]) -> Result<Tensor, Failure> {
        let mut tensor = self.blank(purpose, values.len())?;
        self.here.cuda_stream().memcpy_htod(values, &mut tensor)?;
        Ok(tensor)
    }

    /// A tensor of zeros.
    #[track_caller]
    pub(super) fn zeros(&self, purpose: Purpose, len: usize) -> Result<Tensor, Failure> {
        let mut tensor = self.blank(purpose, len)?;
        self.here.cuda_stream().memset_zeros(&mut tensor)?;
        Ok(tensor)
    }

    /// The values of a tensor as they are now, on their way back.
    pub(super) fn download(&self, tensor: &Tensor) -> Result<Download, Failure> {
        let mut values = self.here.memory().alloc_pinned(tensor.len())?;
        self.here.copy_to_host(tensor, &mut values)?;
        Ok(values)
    }

    /// `left · right`, plus the row `start` in every row.
    #[track_caller]
    pub(super) fn product(
        &self,
        purpose: Purpose,
        (left, right, start): (&Tensor, &Tensor, &Tensor),
        extent: Extent,
    ) -> Result<Tensor, Failure> {
        assert_eq!(start.len(), extent.columns, "H1");
        let strides = (extent.depth, 1);
        self.matmul(purpose, (left, right, start.address()), strides, extent)
    }

    /// `leftᵀ · right`.
    #[track_caller]
    pub(super) fn transposed_product(
        &self,
        purpose: Purpose,
        (left, right): (&Tensor, &Tensor),
        extent: Extent,
    ) -> Result<Tensor, Failure> {
        self.matmul(purpose, (left, right, 0), (1, extent.rows), extent)
    }

    #[track_caller]
    fn matmul(
        &self,
        purpose: Purpose,
        (left, right, start): (&Tensor, &Tensor, u64),
        strides: (usize, usize),
        Extent { rows, depth, columns }: Extent,
    ) -> Result<Tensor, Failure> {
        assert_eq!((left.len(), right.len()), (rows * depth, depth * columns), "H1");
        let mut product = self.blank(purpose, rows * columns)?;
        let config = blocks(product.len());
        let shape = [rows, depth, columns, strides.0, strides.1].map(|number| number as u32);
        let mut launch = self.here.cuda_stream().launch_builder(&self.matmul);
        launch.arg(left).arg(right).arg(&start).arg(&mut product);
        shape.iter().for_each(|number| {
            launch.arg(number);
        });
        // SAFETY: H1 to H3; the arguments are those that the kernel declares, and every value of
        // the product is written.
        unsafe { launch.launch(config) }?;
        Ok(product)
    }

    /// The sums of the columns of a matrix.
    #[track_caller]
    pub(super) fn column_sums(
        &self,
        purpose: Purpose,
        matrix: &Tensor,
        columns: usize,
    ) -> Result<Tensor, Failure> {
        let rows = matrix.len() / columns;
        assert_eq!(matrix.len(), rows * columns, "H1");
        let mut sums = self.blank(purpose, columns)?;
        let shape = [rows as u32, columns as u32];
        let mut launch = self.here.cuda_stream().launch_builder(&self.column_sums);
        launch.arg(matrix).arg(&mut sums).arg(&shape[0]).arg(&shape[1]);
        // SAFETY: as for a product.
        unsafe { launch.launch(blocks(columns)) }?;
        Ok(sums)
    }

    /// The mean of the squared differences: one value.
    #[track_caller]
    pub(super) fn mean_square(
        &self,
        purpose: Purpose,
        prediction: &Tensor,
        targets: &Tensor,
    ) -> Result<Tensor, Failure> {
        assert_eq!(prediction.len(), targets.len(), "H1");
        let mut loss = self.blank(purpose, 1)?;
        let count = prediction.len() as u64;
        let mut launch = self.here.cuda_stream().launch_builder(&self.mean_square);
        launch.arg(prediction).arg(targets).arg(&mut loss).arg(&count);
        // SAFETY: as for a product; the kernel has the one block that it wants.
        unsafe { launch.launch(LOSS_BLOCK) }?;
        Ok(loss)
    }

    /// The gradient of that.
    #[track_caller]
    pub(super) fn gradient(
        &self,
        purpose: Purpose,
        prediction: &Tensor,
        targets: &Tensor,
    ) -> Result<Tensor, Failure> {
        assert_eq!(prediction.len(), targets.len(), "H1");
        let mut gradient = self.blank(purpose, prediction.len())?;
        let (count, config) = (gradient.len() as u64, blocks(gradient.len()));
        let scale = 2.0 / prediction.len() as f32;
        let mut launch = self.here.cuda_stream().launch_builder(&self.gradient);
        launch.arg(prediction).arg(targets).arg(&mut gradient).arg(&count).arg(&scale);
        // SAFETY: as for a product.
        unsafe { launch.launch(config) }?;
        Ok(gradient)
    }

    /// Moves values against their gradient, and updates both moments.
    pub(super) fn adam(
        &self,
        values: &mut Tensor,
        gradient: &Tensor,
        (first, second): (&mut Tensor, &mut Tensor),
        step: AdamStep,
    ) -> Result<(), Failure> {
        let len = values.len();
        assert_eq!([gradient.len(), first.len(), second.len()], [len; 3], "H1");
        let count = len as u64;
        let AdamStep { rate, scale, decay, epsilon } = step;
        let mut launch = self.here.cuda_stream().launch_builder(&self.adam);
        launch.arg(values).arg(gradient).arg(first).arg(second).arg(&count);
        launch.arg(&rate).arg(&scale).arg(&decay.0).arg(&decay.1).arg(&epsilon);
        // SAFETY: H1 and H2; the arguments are those that the kernel declares.
        unsafe { launch.launch(blocks(len)) }?;
        Ok(())
    }
}

/// Kernels of a text by their names.
fn load<const N: usize>(
    context: &Arc<CudaContext>,
    text: &str,
    names: [&str; N],
) -> Result<[CudaFunction; N], Failure> {
    let module = context.load_module(Ptx::from_src(text))?;
    let functions = names.map(|name| module.load_function(name));
    let functions: Vec<_> = functions.into_iter().collect::<Result<_, _>>()?;
    Ok(functions.try_into().expect("one for each name"))
}
