//! The adapter, devices of it, and the few steps that the questions share.

use aquifer::{Config, WgpuAllocator, WgpuOptions, recommended_device_descriptor};
use wgpu::{
    Adapter, Backends, BindGroupDescriptor, BindGroupEntry, BindingResource, Buffer,
    BufferDescriptor, BufferUsages, CommandEncoder, ComputePipeline, ComputePipelineDescriptor,
    Device, DeviceDescriptor, Instance, InstanceDescriptor, MemoryHints, PollType, Queue,
    RequestAdapterOptions, ShaderModuleDescriptor, ShaderSource,
};

/// Usages of the buffers that this crate's default role has, so that the rivals' cost the same.
const STORAGE: BufferUsages =
    BufferUsages::STORAGE.union(BufferUsages::COPY_SRC).union(BufferUsages::COPY_DST);

/// One adapter. Every question opens devices of its own, so that none finds another's memory.
#[derive(Debug)]
pub(crate) struct Gpu {
    adapter: Adapter,
}

impl Gpu {
    /// The first adapter of a backend that reports its memory; OpenGL's would not, and wgpu would
    /// fall back on it without a word.
    pub(crate) fn find() -> Option<Self> {
        let backends = Backends::VULKAN | Backends::METAL | Backends::DX12;
        let descriptor = InstanceDescriptor::new_without_display_handle();
        let instance = Instance::new(InstanceDescriptor { backends, ..descriptor });
        let request = instance.request_adapter(&RequestAdapterOptions::default());
        pollster::block_on(request).ok().map(|adapter| Self { adapter })
    }

    /// A device as this crate recommends it.
    pub(crate) fn recommended(&self) -> (Device, Queue) {
        self.open(&recommended_device_descriptor(&self.adapter))
    }

    /// The same with wgpu's default memory hints: what a program without this crate has.
    pub(crate) fn with_default_hints(&self) -> (Device, Queue) {
        let descriptor = recommended_device_descriptor(&self.adapter);
        self.open(&DeviceDescriptor { memory_hints: MemoryHints::default(), ..descriptor })
    }

    fn open(&self, descriptor: &DeviceDescriptor<'_>) -> (Device, Queue) {
        pollster::block_on(self.adapter.request_device(descriptor)).expect("the adapter has one")
    }

    /// An allocator with the defaults, on a device as recommended.
    pub(crate) fn allocator(&self) -> WgpuAllocator {
        let (device, queue) = self.recommended();
        allocator_of(device, queue)
    }
}

/// An allocator with the defaults.
pub(crate) fn allocator_of(device: Device, queue: Queue) -> WgpuAllocator {
    WgpuAllocator::with(device, queue, Config::default(), WgpuOptions::default())
        .expect("the defaults are valid")
}

/// A buffer of wgpu's own.
pub(crate) fn buffer(device: &Device, size: u64) -> Buffer {
    device.create_buffer(&BufferDescriptor {
        label: None,
        size,
        usage: STORAGE,
        mapped_at_creation: false,
    })
}

pub(crate) fn encoder(device: &Device) -> CommandEncoder {
    device.create_command_encoder(&Default::default())
}

/// Blocks until everything that was submitted is complete.
pub(crate) fn wait(device: &Device) {
    device.poll(PollType::wait_indefinitely()).expect("the device answers");
}

/// The kernel `main` of a shader.
pub(crate) fn kernel(device: &Device, wgsl: &str) -> ComputePipeline {
    let source = ShaderSource::Wgsl(wgsl.into());
    device.create_compute_pipeline(&ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &device.create_shader_module(ShaderModuleDescriptor { label: None, source }),
        entry_point: Some("main"),
        compilation_options: Default::default(),
        cache: None,
    })
}

/// Records one workgroup of `kernel` with the bindings 0, 1, ….
pub(crate) fn dispatch(
    device: &Device,
    encoder: &mut CommandEncoder,
    kernel: &ComputePipeline,
    bindings: &[BindingResource<'_>],
) {
    let entries: Vec<_> = (0..)
        .zip(bindings)
        .map(|(binding, resource)| BindGroupEntry { binding, resource: resource.clone() })
        .collect();
    let group = device.create_bind_group(&BindGroupDescriptor {
        label: None,
        layout: &kernel.get_bind_group_layout(0),
        entries: &entries,
    });
    let mut pass = encoder.begin_compute_pass(&Default::default());
    pass.set_pipeline(kernel);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(1, 1, 1);
}
