//! One kernel on the GPU, over memory from Aquifer: open, allocate, dispatch, read back, give back.
//!
//! `cargo run --example wgpu_compute`. Without a GPU it says so and ends.

use aquifer::{GpuVec, WgpuAllocator};
use wgpu::{Backends, ComputePipeline, Device};

const SQUARES: &str = "
    @group(0) @binding(0) var<storage, read_write> values: array<f32>;
    @compute @workgroup_size(64) fn squares(@builtin(global_invocation_id) id: vec3<u32>) {
        if (id.x < arrayLength(&values)) { values[id.x] *= values[id.x]; }
    }";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let memory = match pollster::block_on(WgpuAllocator::open(Backends::PRIMARY.with_env())) {
        Ok(memory) => memory,
        Err(error) => {
            println!("nothing to show here: {error}");
            return Ok(());
        }
    };
    let kernel = pipeline(memory.device());
    let values = GpuVec::from_slice(&memory, &[1.0f32, 2.0, 3.0, 4.0])?;

    // A scope spans the recording of an encoder; bindings come from it.
    let mut encoder = memory.device().create_command_encoder(&Default::default());
    let scope = memory.begin(&mut encoder);
    let bind_group = memory.device().create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &kernel.get_bind_group_layout(0),
        entries: &[wgpu::BindGroupEntry { binding: 0, resource: scope.binding(&values) }],
    });
    let mut pass = encoder.begin_compute_pass(&Default::default());
    pass.set_pipeline(&kernel);
    pass.set_bind_group(0, &bind_group, &[]);
    pass.dispatch_workgroups(1, 1, 1);
    drop((pass, bind_group));
    scope.submit(encoder);

    println!("{:?} by {memory:?}", values.download()?);
    drop(values); // Cached, for the next one ...
    println!("{} bytes given back, {} left", memory.empty_cache(), memory.memory_reserved());
    Ok(())
}

/// The kernel above.
fn pipeline(device: &Device) -> ComputePipeline {
    let source = wgpu::ShaderSource::Wgsl(SQUARES.into());
    let descriptor = wgpu::ShaderModuleDescriptor { label: None, source };
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("squares"),
        layout: None,
        module: &device.create_shader_module(descriptor),
        entry_point: Some("squares"),
        compilation_options: Default::default(),
        cache: None,
    })
}
