//! A training loop on the GPU, as the author of a framework would write it: every step is one
//! encoder and one scope, and its temporaries are allocated and dropped while it is recorded.
//!
//! `cargo run --example wgpu_training`. Without a GPU it says so and ends.
//!
//! It fits a polynomial, `a + b x + c x² + d x³`, to a sine, with Adam. The powers of `x` are the
//! features of a linear layer, so the shaders of this repository do the work.

use std::error::Error;

use aquifer::backend::Role;
use aquifer::surface::wgpu::VecDownload;
use aquifer::{GpuVec, Scope, WgpuAllocation, WgpuAllocator};
use wgpu::{Backends, CommandEncoder, ComputePass, ComputePipeline, Device};

const MATMUL: &str = include_str!("../shaders/matmul.wgsl");
const LOSS: &str = include_str!("../shaders/loss.wgsl");
const ADAM: &str = include_str!("../shaders/adam.wgsl");

const SAMPLES: u32 = 512;
const POWERS: u32 = 4;
const STEPS: i32 = 400;

struct Kernels {
    matmul: ComputePipeline,
    matmul_transposed: ComputePipeline,
    gradient: ComputePipeline,
    adam: ComputePipeline,
}

/// What stays from step to step.
struct Fit {
    features: GpuVec<f32>,
    targets: GpuVec<f32>,
    coefficients: GpuVec<f32>,
    moments: [GpuVec<f32>; 2],
}

fn main() -> Result<(), Box<dyn Error>> {
    let memory = match pollster::block_on(WgpuAllocator::open(Backends::PRIMARY.with_env())) {
        Ok(memory) => memory,
        Err(error) => {
            println!("nothing to show here: {error}");
            return Ok(());
        }
    };
    let kernels = Kernels::new(memory.device());
    let fit = Fit::new(&memory)?;
    let mut downloads = Vec::new();
    for number in 1..=STEPS {
        let download = fit.step(&memory, &kernels, number)?;
        if number % 100 == 0 {
            downloads.push((number, download)); // Nothing waits for it yet.
        }
    }
    for (number, download) in downloads {
        let coefficients = download.wait()?;
        println!("step {number}: off by {:.3} at most, {coefficients:.3?}", off(&coefficients));
        assert!(number < STEPS || off(&coefficients) < 0.1, "it did not learn");
    }
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
    fn new(memory: &WgpuAllocator) -> Result<Self, Box<dyn Error>> {
        let powers = |sample| (0..POWERS as i32).map(move |power| x_of(sample).powi(power));
        let features: Vec<f32> = (0..SAMPLES).flat_map(powers).collect();
        let targets: Vec<f32> = (0..SAMPLES).map(x_of).map(wanted).collect();
        let zeros = || GpuVec::zeroed(memory, POWERS as usize);
        Ok(Self {
            features: GpuVec::from_slice(memory, &features)?,
            targets: GpuVec::from_slice(memory, &targets)?,
            coefficients: zeros()?,
            moments: [zeros()?, zeros()?],
        })
    }

    /// Records and submits one step; the coefficients after it are on their way back.
    fn step(
        &self,
        memory: &WgpuAllocator,
        kernels: &Kernels,
        number: i32,
    ) -> Result<VecDownload<f32>, Box<dyn Error>> {
        let mut encoder = memory.device().create_command_encoder(&Default::default());
        let mut scope = memory.begin(&mut encoder);
        let product = uniform(&mut scope, &mut encoder, &[SAMPLES, POWERS, 1])?;
        let transposed = uniform(&mut scope, &mut encoder, &[POWERS, SAMPLES, 1])?;
        let size = uniform(&mut scope, &mut encoder, &[SAMPLES])?;
        let adam = uniform(&mut scope, &mut encoder, &adam_step(number))?;

        let pass = encoder.begin_compute_pass(&Default::default());
        let mut run = Run { device: memory.device(), scope: &scope, pass };
        let Self { features, targets, coefficients, moments: [first, second] } = self;
        let prediction = scope.allocate(bytes_of(SAMPLES))?;
        let operands: [&WgpuAllocation; 4] = [&product, features, coefficients, &prediction];
        run.kernel(&kernels.matmul, [0, 1, 2, 3], operands, [1, SAMPLES.div_ceil(64)]);
        let outer = scope.allocate(bytes_of(SAMPLES))?;
        let operands: [&WgpuAllocation; 4] = [&size, &prediction, targets, &outer];
        run.kernel(&kernels.gradient, [0, 1, 2, 5], operands, [SAMPLES.div_ceil(256), 1]);
        drop(prediction); // What is recorded from here on may have its bytes.
        let slopes = scope.allocate(bytes_of(POWERS))?;
        let operands: [&WgpuAllocation; 4] = [&transposed, features, &outer, &slopes];
        run.kernel(&kernels.matmul_transposed, [0, 1, 2, 3], operands, [1, 1]);
        let operands: [&WgpuAllocation; 5] = [&adam, coefficients, &slopes, first, second];
        run.kernel(&kernels.adam, [0, 1, 2, 3, 4], operands, [1, 1]);
        drop(run);
        let download = self.coefficients.download_in(&mut scope, &mut encoder)?;
        scope.submit(encoder);
        Ok(download)
    }
}

/// Parameters of a kernel, which hold from this point of the encoder on.
fn uniform(
    scope: &mut Scope,
    encoder: &mut CommandEncoder,
    words: &[u32],
) -> Result<WgpuAllocation, Box<dyn Error>> {
    let uniform = scope.request(bytes_of(words.len() as u32)).role(Role::Uniform).allocate()?;
    scope.upload(encoder, &uniform, 0, bytemuck::cast_slice(words))?;
    Ok(uniform)
}

fn bytes_of(values: u32) -> u64 {
    u64::from(values) * 4
}

/// Parameters of `adam.wgsl` in a step, counted from 1.
fn adam_step(number: i32) -> [u32; 6] {
    let (rate, decay) = (0.05, (0.9f32, 0.999f32));
    let (rate, scale) = (rate / (1.0 - decay.0.powi(number)), 1.0 / (1.0 - decay.1.powi(number)));
    let [rate, scale, first, second, epsilon] =
        [rate, scale, decay.0, decay.1, 1e-8].map(f32::to_bits);
    [POWERS, rate, scale, first, second, epsilon]
}

/// A pass that is being recorded.
struct Run<'a> {
    device: &'a Device,
    scope: &'a Scope,
    pass: ComputePass<'a>,
}

impl Run<'_> {
    /// Dispatches a kernel over operands at these bindings.
    fn kernel<const N: usize>(
        &mut self,
        kernel: &ComputePipeline,
        bindings: [u32; N],
        operands: [&WgpuAllocation; N],
        [x, y]: [u32; 2],
    ) {
        let entries = bindings.into_iter().zip(operands).map(|(binding, operand)| {
            wgpu::BindGroupEntry { binding, resource: self.scope.binding(operand) }
        });
        let bind_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &kernel.get_bind_group_layout(0),
            entries: &entries.collect::<Vec<_>>(),
        });
        self.pass.set_pipeline(kernel);
        self.pass.set_bind_group(0, &bind_group, &[]);
        self.pass.dispatch_workgroups(x, y, 1);
    }
}

impl Kernels {
    fn new(device: &Device) -> Self {
        let kernel = |text: &'static str, entry_point| {
            let source = wgpu::ShaderSource::Wgsl(text.into());
            let descriptor = wgpu::ShaderModuleDescriptor { label: None, source };
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(entry_point),
                layout: None,
                module: &device.create_shader_module(descriptor),
                entry_point: Some(entry_point),
                compilation_options: Default::default(),
                cache: None,
            })
        };
        Self {
            matmul: kernel(MATMUL, "matmul"),
            matmul_transposed: kernel(MATMUL, "matmul_transposed"),
            gradient: kernel(LOSS, "gradient"),
            adam: kernel(ADAM, "adam"),
        }
    }
}
