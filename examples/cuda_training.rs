//! A training loop on an NVIDIA GPU, as the author of a framework would write it: buffers from
//! Aquifer, kernels launched by cudarc, a step's temporaries dropped as soon as it is submitted.
//!
//! `cargo run --example cuda_training --features cuda`. Without a GPU it says so and ends.
//!
//! It fits a polynomial, `a + b x + c x² + d x³`, to a sine, with Adam. The powers of `x` are the
//! features of a linear layer, so the kernels of this repository do the work.

use std::error::Error;

use aquifer::report::format_bytes;
use aquifer::{CudaAllocator, CudaBuffer, OnStream};
use cudarc::driver::{CudaFunction, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

const SAMPLES: u32 = 512;
const POWERS: u32 = 4;
const STEPS: i32 = 400;

struct Kernels {
    matmul: CudaFunction,
    gradient: CudaFunction,
    adam: CudaFunction,
}

/// What stays from step to step.
struct Fit {
    features: CudaBuffer<f32>,
    targets: CudaBuffer<f32>,
    coefficients: CudaBuffer<f32>,
    moments: [CudaBuffer<f32>; 2],
}

fn main() -> Result<(), Box<dyn Error>> {
    let memory = match CudaAllocator::open(0) {
        Ok(memory) => memory,
        Err(error) => {
            println!("nothing to show here: {error}");
            return Ok(());
        }
    };
    let kernels = Kernels::new(&memory)?;
    let here = memory.on(&memory.context().new_stream()?)?; // Once: a look-up takes a lock.
    let mut fit = Fit::new(&here)?;
    let mut copies = Vec::new();
    for number in 1..=STEPS {
        fit.step(&here, &kernels, number)?;
        if number % 100 == 0 {
            let mut copy = memory.alloc_pinned(POWERS as usize)?;
            here.copy_to_host(&fit.coefficients, &mut copy)?;
            copies.push((number, copy)); // Nothing waits for it yet.
        }
    }
    for (number, copy) in copies {
        let coefficients = copy.slice()?; // Waits for this copy, not for the stream.
        println!("step {number}: off by {:.3} at most, {coefficients:.3?}", off(coefficients));
        assert!(number < STEPS || off(coefficients) < 0.1, "it did not learn");
    }
    let stats = memory.memory_stats();
    println!(
        "{} in use, {} at most; the driver was asked for memory {} times in {STEPS} steps",
        format_bytes(memory.memory_allocated()),
        format_bytes(memory.max_memory_allocated()),
        stats.num_device_alloc,
    );
    for holder in memory.holders() {
        println!("held: {holder}");
    }
    drop(fit);
    println!("{} bytes given back", memory.empty_cache());
    Ok(())
}

fn x_of(sample: u32) -> f32 {
    sample as f32 / SAMPLES as f32 * 2.0 - 1.0
}

fn wanted(x: f32) -> f32 {
    (2.0 * x).sin()
}

/// The largest distance of the polynomial to what was to be learnt.
fn off(coefficients: &[f32]) -> f32 {
    let value = |x: f32| coefficients.iter().rev().fold(0.0, |sum, factor| sum * x + factor);
    (0..SAMPLES).map(x_of).map(|x| (value(x) - wanted(x)).abs()).fold(0.0, f32::max)
}

impl Fit {
    fn new(here: &OnStream) -> Result<Self, Box<dyn Error>> {
        let powers = |sample| (0..POWERS as i32).map(move |power| x_of(sample).powi(power));
        let features: Vec<f32> = (0..SAMPLES).flat_map(powers).collect();
        let targets: Vec<f32> = (0..SAMPLES).map(x_of).map(wanted).collect();
        let zeros = || here.alloc_zeros(POWERS as usize);
        Ok(Self {
            features: here.clone_htod(&features)?,
            targets: here.clone_htod(&targets)?,
            coefficients: zeros()?,
            moments: [zeros()?, zeros()?],
        })
    }

    /// Submits one step. Its temporaries are dropped here, long before the GPU is done with them:
    /// the stream has their bytes back, and the next step's work comes after this one's.
    fn step(
        &mut self,
        here: &OnStream,
        kernels: &Kernels,
        number: i32,
    ) -> Result<(), Box<dyn Error>> {
        let Self { features, targets, coefficients, moments: [first, second] } = self;
        let samples = SAMPLES as usize;
        let prediction = kernels.product(here, features, coefficients, [SAMPLES, POWERS, 1])?;

        // SAFETY: the kernel below writes all of it.
        let mut outer = unsafe { here.alloc::<f32>(samples) }?;
        let (count, scale) = (u64::from(SAMPLES), 2.0 / SAMPLES as f32);
        let mut launch = here.cuda_stream().launch_builder(&kernels.gradient);
        launch.arg(&prediction).arg(&*targets).arg(&mut outer).arg(&count).arg(&scale);
        // SAFETY: three arrays of `count` values.
        unsafe { launch.launch(LaunchConfig::for_num_elems(SAMPLES)) }?;
        drop(prediction); // What is submitted from here on may have its bytes.

        let slopes = kernels.transposed_product(here, features, &outer, [POWERS, SAMPLES, 1])?;
        let (rate, scale) = (0.05 / (1.0 - 0.9_f32.powi(number)), 1.0 - 0.999_f32.powi(number));
        let (count, scale, decays, epsilon) =
            (u64::from(POWERS), 1.0 / scale, [0.9_f32, 0.999], 1e-8_f32);
        let mut launch = here.cuda_stream().launch_builder(&kernels.adam);
        launch.arg(coefficients).arg(&slopes).arg(first).arg(second).arg(&count);
        launch.arg(&rate).arg(&scale).arg(&decays[0]).arg(&decays[1]).arg(&epsilon);
        // SAFETY: four arrays of `count` values.
        unsafe { launch.launch(LaunchConfig::for_num_elems(POWERS)) }?;
        Ok(())
    }
}

impl Kernels {
    /// The driver compiles them for the device it has.
    fn new(memory: &CudaAllocator) -> Result<Self, Box<dyn Error>> {
        let load = |text: &str, name: &str| {
            memory.context().load_module(Ptx::from_src(text))?.load_function(name)
        };
        Ok(Self {
            matmul: load(include_str!("../shaders/cuda/layer.ptx"), "matmul_f32")?,
            gradient: load(include_str!("../shaders/cuda/loss.ptx"), "gradient_f32")?,
            adam: load(include_str!("../shaders/cuda/adam.ptx"), "adam_f32")?,
        })
    }

    /// `left · right`, of `[rows, depth, columns]`.
    fn product(
        &self,
        here: &OnStream,
        left: &CudaBuffer<f32>,
        right: &CudaBuffer<f32>,
        shape: [u32; 3],
    ) -> Result<CudaBuffer<f32>, Box<dyn Error>> {
        self.matmul(here, (left, right), shape, [shape[1], 1])
    }

    /// `leftᵀ · right`.
    fn transposed_product(
        &self,
        here: &OnStream,
        left: &CudaBuffer<f32>,
        right: &CudaBuffer<f32>,
        shape: [u32; 3],
    ) -> Result<CudaBuffer<f32>, Box<dyn Error>> {
        self.matmul(here, (left, right), shape, [1, shape[0]])
    }

    fn matmul(
        &self,
        here: &OnStream,
        (left, right): (&CudaBuffer<f32>, &CudaBuffer<f32>),
        [rows, depth, columns]: [u32; 3],
        strides: [u32; 2],
    ) -> Result<CudaBuffer<f32>, Box<dyn Error>> {
        // SAFETY: the kernel writes all of it.
        let mut product = unsafe { here.alloc::<f32>((rows * columns) as usize) }?;
        let nothing = 0_u64; // Where a bias would be.
        let mut launch = here.cuda_stream().launch_builder(&self.matmul);
        launch.arg(left).arg(right).arg(&nothing).arg(&mut product);
        launch.arg(&rows).arg(&depth).arg(&columns).arg(&strides[0]).arg(&strides[1]);
        // SAFETY: the operands are as large as the shape says.
        unsafe { launch.launch(LaunchConfig::for_num_elems(rows * columns)) }?;
        Ok(product)
    }
}
