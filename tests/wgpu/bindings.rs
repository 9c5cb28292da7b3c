//! Blocks in dispatches and draws: which may be bound together, what each role is good for, and how
//! large a binding can be.

use aquifer::backend::Role;
use aquifer::{AllocError, WgpuAllocation, WgpuAllocator};
use wgpu::{BufferUsages, CommandEncoder, ComputePipeline, IndexFormat};

use super::kernels::buffer_of;
use super::{allocator, allocator_with};
use crate::gpu::{Dispatch, Gpu, chain};
use crate::support::{KIB, MIB};

/// `z = x + y`, with inputs that are only read.
const ADD: &str = "
    @group(0) @binding(0) var<storage, read> x: array<u32>;
    @group(0) @binding(1) var<storage, read> y: array<u32>;
    @group(0) @binding(2) var<storage, read_write> z: array<u32>;
    @compute @workgroup_size(1) fn main() { z[0] = x[0] + y[0]; }";

fn add(
    gpu: &Gpu,
    encoder: &mut CommandEncoder,
    kernel: &ComputePipeline,
    [x, y, z]: [&WgpuAllocation; 3],
) {
    let bindings = (0..).zip([x, y, z].map(|block| buffer_of(block.binding()))).collect();
    gpu.record(encoder, &[Dispatch { pipeline: kernel, bindings, groups: [1, 1, 1] }]);
}

/// What the dispatch makes of 3 and 4, or the device's error.
fn sum_of(gpu: &Gpu, memory: &WgpuAllocator, blocks: [&WgpuAllocation; 3]) -> Result<u32, String> {
    let kernel = gpu.pipeline(ADD, "main");
    for (block, value) in blocks.iter().zip([3_u32, 4, 0]) {
        memory.write_now(block, 0, &value.to_le_bytes()).expect("nothing is open");
    }
    let error = gpu.error_of(|| {
        let mut encoder = gpu.encoder();
        add(gpu, &mut encoder, &kernel, blocks);
        gpu.queue.submit([encoder.finish()]);
    });
    match error {
        Some(error) => Err(chain(&error)),
        None => Ok(memory.read(blocks[2]).expect("there")[..4].iter().map(|&b| u32::from(b)).sum()),
    }
}

fn segment_count<'a>(blocks: impl IntoIterator<Item = &'a WgpuAllocation>) -> usize {
    let mut buffers: Vec<_> =
        blocks.into_iter().map(|block| block.segment().buffer().clone()).collect();
    buffers.sort();
    buffers.dedup();
    buffers.len()
}

#[test]
fn an_output_apart_from_its_inputs_may_be_written_as_they_are_read() {
    let Some((gpu, memory)) = allocator() else { return };
    for size in [4 * KIB, 64 * KIB, 3 * MIB] {
        // A segment with room for all of them.
        drop(memory.allocate(6 * size).expect("room"));
        let [x, y, beside] = [(); 3].map(|()| memory.allocate(size).expect("room"));
        assert_eq!(segment_count([&x, &y, &beside]), 1);
        let error = sum_of(&gpu, &memory, [&x, &y, &beside]).expect_err("one buffer");
        assert!(error.contains("exclusive usage"), "{error}");
        let apart = memory.allocate_avoiding(size, [&x, &y]).expect("room");
        assert_eq!(sum_of(&gpu, &memory, [&x, &y, &apart]), Ok(7));
        let mut encoder = gpu.encoder();
        let scope = memory.begin(&mut encoder);
        let scoped = scope.allocate_avoiding(size, [&x, &y, &apart]).expect("room");
        scope.submit(encoder);
        assert_eq!(sum_of(&gpu, &memory, [&x, &apart, &scoped]), Ok(7));
    }
}

/// Inputs all over the place need one segment more, and no other.
#[test]
fn inputs_of_many_segments_are_avoided() {
    let Some((gpu, memory)) = allocator() else { return };
    // 32 blocks of 64 KiB fill a segment.
    let mut blocks: Vec<_> = (0..128).map(|_| memory.allocate(64 * KIB).expect("room")).collect();
    // Each has a hole that would do.
    for at in [100, 70, 40, 10] {
        drop(blocks.remove(at));
    }
    let inputs: Vec<_> = blocks.iter().step_by(31).collect();
    let segments = segment_count(inputs.iter().copied());
    assert_eq!(segments, 4);
    let output = memory.allocate_avoiding(64 * KIB, inputs.iter().copied()).expect("room");
    assert_eq!(segment_count(inputs.iter().copied().chain([&output])), segments + 1);
    let next = memory.allocate_avoiding(64 * KIB, inputs.iter().copied()).expect("room");
    assert_eq!(segment_count([&output, &next]), 1, "one more segment is enough");
    assert_eq!(sum_of(&gpu, &memory, [inputs[0], inputs[3], &output]), Ok(7));
}

/// Where no more segments may be made, a buffer of just the size will do.
#[test]
fn what_cannot_be_avoided_gets_a_buffer_of_its_own() {
    for exact_growth in [true, false] {
        let exact = allocator_with(|config, _| config.exact_growth = exact_growth);
        let Some((gpu, memory)) = exact else { return };
        let [x, y] = [(); 2].map(|()| memory.allocate(64 * KIB).expect("room"));
        memory.write_now(&x, 0, &[0; 4]).expect("nothing is open");
        memory.set_memory_limit(Some(memory.memory_reserved() + 128 * KIB));
        let output = memory.allocate_avoiding(64 * KIB, [&x, &y]).expect("below the limit");
        assert_eq!(output.segment().buffer().size(), 64 * KIB);
        assert_eq!(sum_of(&gpu, &memory, [&x, &y, &output]), Ok(7));
        let mut encoder = gpu.encoder();
        let scope = memory.begin(&mut encoder);
        let scoped = scope.allocate_avoiding(32 * KIB, [&x, &y]).expect("below the limit");
        scope.submit(encoder);
        assert_eq!(sum_of(&gpu, &memory, [&x, &y, &scoped]), Ok(7));
    }
}

#[test]
fn exclusive_blocks_have_buffers_of_their_own() {
    let Some((gpu, memory)) = allocator() else { return };
    let blocks = [5000, 5000, 3 * MIB].map(|size| {
        let request = memory.request(size).role(Role::StorageExclusive);
        request.allocate().expect("room")
    });
    assert!(blocks.iter().all(|block| block.offset() == 0 && block.role().is_exclusive()));
    assert_eq!(segment_count(&blocks), 3);
    assert_eq!(sum_of(&gpu, &memory, [&blocks[0], &blocks[1], &blocks[2]]), Ok(7));
    let reserved = memory.memory_reserved();
    drop(blocks);
    let again = memory.request(5000).role(Role::StorageExclusive).allocate().expect("room");
    assert_eq!(again.segment().buffer().size(), 8 * KIB, "the smallest that fits");
    assert_eq!(memory.memory_reserved(), reserved, "cached by size");
}

#[test]
fn uniforms_are_bound_beside_what_is_written() {
    let Some((gpu, memory)) = allocator() else { return };
    let text = "@group(0) @binding(0) var<uniform> given: vec4<u32>;
                @group(0) @binding(1) var<storage, read_write> taken: array<u32>;
                @compute @workgroup_size(1) fn main() { taken[0] += given.y; }";
    let kernel = gpu.pipeline(text, "main");
    let output = memory.allocate_zeroed(16).expect("room");
    let mut encoder = gpu.encoder();
    let mut scope = memory.begin(&mut encoder);
    for value in 1..=3_u32 {
        // One place for all of them: each dispatch sees its own.
        let params = scope.request(16).role(Role::Uniform).allocate().expect("room");
        let words = [0, value, 0, 0];
        scope.upload(&mut encoder, &params, 0, bytemuck::cast_slice(&words)).expect("room");
        let bindings =
            vec![(0, buffer_of(scope.binding(&params))), (1, buffer_of(scope.binding(&output)))];
        gpu.record(&mut encoder, &[Dispatch { pipeline: &kernel, bindings, groups: [1, 1, 1] }]);
    }
    scope.submit(encoder);
    assert_eq!(memory.read(&output).expect("there")[0], 1 + 2 + 3);
}

#[test]
fn indirect_arguments_are_read_beside_what_is_written() {
    let Some((gpu, memory)) = allocator() else { return };
    let text = "@group(0) @binding(0) var<storage, read_write> count: atomic<u32>;
                @compute @workgroup_size(1) fn main() { atomicAdd(&count, 1u); }";
    let kernel = gpu.pipeline(text, "main");
    let count = memory.allocate_zeroed(4).expect("room");
    let [_, arguments] =
        [(); 2].map(|()| memory.request(12).role(Role::Indirect).allocate().expect("room"));
    assert!(arguments.offset() > 0, "arguments are found at an offset");
    let words = [3_u32, 2, 1];
    memory.write_now(&arguments, 0, bytemuck::cast_slice(&words)).expect("nothing is open");
    let group = gpu.bind_group(&kernel, &[(0, buffer_of(count.binding()))]);
    let mut encoder = gpu.encoder();
    let scope = memory.begin(&mut encoder);
    scope.uses(&arguments);
    let mut pass = encoder.begin_compute_pass(&Default::default());
    pass.set_pipeline(&kernel);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups_indirect(arguments.buffer(), arguments.offset());
    drop(pass);
    scope.submit(encoder);
    assert_eq!(memory.read(&count).expect("there"), [6, 0, 0, 0]);
}

const DRAW: &str = "
    struct Out { @builtin(position) at: vec4<f32>, @location(0) color: vec4<f32> }
    @vertex fn vertex(@location(0) at: vec2<f32>, @location(1) color: vec2<f32>) -> Out {
        return Out(vec4(at, 0.0, 1.0), vec4(color, 0.0, 1.0));
    }
    @fragment fn fragment(given: Out) -> @location(0) vec4<f32> { return given.color; }";

fn draw_pipeline(gpu: &Gpu, format: wgpu::TextureFormat) -> wgpu::RenderPipeline {
    let source = wgpu::ShaderSource::Wgsl(DRAW.into());
    let descriptor = wgpu::ShaderModuleDescriptor { label: None, source };
    let module = gpu.device.create_shader_module(descriptor);
    let layout = wgpu::VertexBufferLayout {
        array_stride: 16,
        step_mode: wgpu::VertexStepMode::Vertex,
        attributes: &wgpu::vertex_attr_array![0 => Float32x2, 1 => Float32x2],
    };
    gpu.device.create_render_pipeline(&wgpu::RenderPipelineDescriptor {
        label: None,
        layout: None,
        vertex: wgpu::VertexState {
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            buffers: &[Some(layout)],
        },
        primitive: Default::default(),
        depth_stencil: None,
        multisample: Default::default(),
        fragment: Some(wgpu::FragmentState {
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            targets: &[Some(format.into())],
        }),
        multiview_mask: None,
        cache: None,
    })
}

/// One pixel under a triangle of the second colour of two, found through indices.
#[test]
fn geometry_is_drawn() {
    let Some((gpu, memory)) = allocator() else { return };
    let format = wgpu::TextureFormat::Rgba8Unorm;
    let pipeline = draw_pipeline(&gpu, format);
    let size = wgpu::Extent3d { width: 1, height: 1, depth_or_array_layers: 1 };
    let usage = wgpu::TextureUsages::RENDER_ATTACHMENT | wgpu::TextureUsages::COPY_SRC;
    let texture = gpu.device.create_texture(&wgpu::TextureDescriptor {
        label: None,
        size,
        mip_level_count: 1,
        sample_count: 1,
        dimension: wgpu::TextureDimension::D2,
        format,
        usage,
        view_formats: &[],
    });
    let view = texture.create_view(&Default::default());
    let corners = [[-1.0_f32, -1.0], [3.0, -1.0], [-1.0, 3.0]];
    let vertices: Vec<[f32; 4]> = [[1.0, 0.0], [0.0, 1.0]]
        .into_iter()
        .flat_map(|[red, green]| corners.map(|[x, y]| [x, y, red, green]))
        .collect();
    let geometry = |bytes: &[u8]| {
        let request = memory.request(bytes.len() as u64).role(Role::Geometry);
        let block = request.allocate().expect("room");
        memory.write_now(&block, 0, bytes).expect("nothing is open");
        block
    };
    let vertices = geometry(bytemuck::cast_slice(&vertices));
    let indices = geometry(bytemuck::cast_slice(&[3_u16, 4, 5]));
    assert_eq!(segment_count([&vertices, &indices]), 1, "they share a buffer");
    let pixel = memory.allocate_zeroed(256).expect("room");
    let mut encoder = gpu.encoder();
    let scope = memory.begin(&mut encoder);
    let attachment = wgpu::RenderPassColorAttachment {
        view: &view,
        depth_slice: None,
        resolve_target: None,
        ops: Default::default(),
    };
    let mut pass = encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
        color_attachments: &[Some(attachment)],
        ..Default::default()
    });
    pass.set_pipeline(&pipeline);
    pass.set_vertex_buffer(0, scope.slice(&vertices));
    pass.set_index_buffer(indices.slice(..), IndexFormat::Uint16);
    pass.draw_indexed(0..3, 0, 0..1);
    drop(pass);
    let layout = wgpu::TexelCopyBufferLayout { offset: pixel.offset(), ..Default::default() };
    let target = wgpu::TexelCopyBufferInfo { buffer: pixel.buffer(), layout };
    encoder.copy_texture_to_buffer(texture.as_image_copy(), target, size);
    scope.submit(encoder);
    assert_eq!(memory.read(&pixel).expect("there")[..4], [0, 255, 0, 255]);
}

#[test]
fn every_role_is_one_of_the_device() {
    let Some((_, memory)) = allocator() else { return };
    for role in Role::ALL {
        let block = memory.request(5000).role(role).allocate().expect("room");
        assert_eq!(block.role(), role);
        assert_eq!(block.segment().buffer().usage(), role.usages());
        assert!(Role::for_usages(role.usages()).is_some());
    }
    assert_eq!(Role::for_usages(BufferUsages::STORAGE), Some(Role::Storage));
    let both = BufferUsages::VERTEX | BufferUsages::UNIFORM;
    assert_eq!(Role::for_usages(both), None);
    memory.empty_cache();
    assert_eq!(memory.backend().used_bytes(), 0);
}

#[test]
fn what_cannot_be_bound_is_too_large() {
    let Some((gpu, memory)) = allocator() else { return };
    let limits = gpu.device.limits();
    let limit = limits.max_storage_buffer_binding_size;
    let requested = limit + 4;
    let too_large = Some(AllocError::TooLarge { requested, limit });
    assert_eq!(memory.allocate(requested).err(), too_large);
    let exclusive = memory.request(requested).role(Role::StorageExclusive);
    assert_eq!(exclusive.allocate().err(), too_large);
    let limit = limits.max_uniform_buffer_binding_size;
    let uniform = memory.request(limit + 1).role(Role::Uniform).allocate().err();
    assert_eq!(uniform, Some(AllocError::TooLarge { requested: limit + 1, limit }));
    if requested > limits.max_buffer_size {
        return; // No buffer is larger than a binding here.
    }
    // It can be copied from and to.
    let large = memory.request(requested).unbound().allocate().expect("the machine has that much");
    let small = memory.allocate(4096).expect("room");
    memory.write_now(&small, 0, &[7; 4096]).expect("nothing is open");
    let mut encoder = gpu.encoder();
    let scope = memory.begin(&mut encoder);
    scope.copy(&mut encoder, &small, &large).expect("two buffers");
    let (at, to) = (large.offset(), small.offset());
    encoder.clear_buffer(small.buffer(), to, Some(4096));
    encoder.copy_buffer_to_buffer(large.buffer(), at, small.buffer(), to, 4096);
    scope.submit(encoder);
    assert_eq!(memory.read(&small), Ok(vec![7; 4096]));
    let whole = memory.allocate(limits.max_storage_buffer_binding_size).expect("as much as binds");
    let kernel = gpu.pipeline(ADD, "main");
    let bind = || {
        let bindings = [(0, &whole), (1, &small), (2, &small)];
        let bindings = bindings.map(|(at, block)| (at, buffer_of(block.binding())));
        drop(gpu.bind_group(&kernel, &bindings));
    };
    assert!(gpu.error_of(bind).is_none());
}

#[test]
fn offsets_are_aligned_as_asked() {
    let Some((_, memory)) = allocator() else { return };
    let mut held = Vec::new();
    for align in [1, 4, 256, 512, 4 * KIB, 64 * KIB] {
        let block = memory.request(1000).align(align).allocate().expect("room");
        assert!(block.offset().is_multiple_of(align.max(512)), "{} for {align}", block.offset());
        held.push(block);
    }
    assert!(memory.request(1000).align(MIB).allocate().is_err());
}
