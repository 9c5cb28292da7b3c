//! A GPU for the tests: the Vulkan adapter of this machine, and the few steps that each of them
//! needs on it.
//!
//! lavapipe, Mesa's Vulkan on the CPU, is enough. Vulkan is pinned because wgpu would otherwise
//! fall back on OpenGL without a word, and other rules would be tested than those that the crate
//! rests on. Errors of the device that no scope catches panic in the thread that caused them
//! (wgpu's default), and so does the loss of the device; so a test need not ask for errors.
#![allow(dead_code)] // Each test program uses its part.

use std::error::Error as _;
use std::io::Write as _;
use std::sync::{OnceLock, mpsc};

use bytemuck::Pod;
use wgpu::{
    Adapter, BindGroup, BindGroupDescriptor, BindGroupEntry, BindingResource, Buffer,
    BufferBinding, BufferDescriptor, BufferUsages, CommandEncoder, ComputePipeline,
    ComputePipelineDescriptor, Device, DeviceDescriptor, DeviceLostReason, Error, ErrorFilter,
    Features, Instance, InstanceDescriptor, MapMode, PollType, Queue, RequestAdapterOptions,
    ShaderModuleDescriptor, ShaderSource,
};

/// What a buffer of the tests is for, unless a test says otherwise.
pub(crate) const STORAGE: BufferUsages =
    BufferUsages::STORAGE.union(BufferUsages::COPY_SRC).union(BufferUsages::COPY_DST);

/// A device of the adapter under test.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) adapter: Adapter,
    pub(crate) device: Device,
    pub(crate) queue: Queue,
}

/// One kernel over some ranges: `(binding, range)` of group 0.
#[derive(Debug)]
pub(crate) struct Dispatch<'a> {
    pub(crate) pipeline: &'a ComputePipeline,
    pub(crate) bindings: Vec<(u32, BufferBinding<'a>)>,
    pub(crate) groups: [u32; 3],
}

/// The adapter, looked up once per process.
///
/// # Panics
/// Without an adapter if `CI` is set in the environment: there, a test that does not run is a
/// failure.
fn adapter() -> Option<&'static Adapter> {
    static ADAPTER: OnceLock<Option<Adapter>> = OnceLock::new();
    let find = || {
        let backends = wgpu::Backends::VULKAN;
        let descriptor = InstanceDescriptor::new_without_display_handle();
        let instance = Instance::new(InstanceDescriptor { backends, ..descriptor });
        let request = instance.request_adapter(&RequestAdapterOptions::default());
        match pollster::block_on(request) {
            Ok(adapter) => Some(adapter),
            Err(error) => {
                // Not `eprintln!`, which the harness keeps to itself where a test passes.
                let advice = "NO VULKAN ADAPTER: tests on a GPU DO NOT RUN here. \
                              Install a driver (Debian: mesa-vulkan-drivers).";
                writeln!(std::io::stderr(), "{advice} {error}").expect("stderr takes a line");
                None
            }
        }
    };
    let adapter = ADAPTER.get_or_init(find).as_ref();
    let is_demanded = std::env::var_os("CI").is_some();
    assert!(adapter.is_some() || !is_demanded, "CI needs a Vulkan adapter: mesa-vulkan-drivers");
    adapter
}

impl Gpu {
    /// The device that tests of a process share; `None` where there is no adapter, which has been
    /// said on stderr by then: return early.
    pub(crate) fn shared() -> Option<&'static Self> {
        static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
        GPU.get_or_init(|| Self::open(Features::empty())).as_ref()
    }

    /// A device of one's own, with all limits of the adapter; `None` where there is no adapter or
    /// where it lacks the features.
    pub(crate) fn open(features: Features) -> Option<Self> {
        let adapter = adapter()?;
        if !adapter.features().contains(features) {
            return None;
        }
        let descriptor = DeviceDescriptor {
            required_features: features,
            required_limits: adapter.limits(),
            ..DeviceDescriptor::default()
        };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).expect("a device");
        // After a loss, scopes and polls report nothing: only this callback tells.
        device.set_device_lost_callback(|reason, message| {
            assert!(reason == DeviceLostReason::Destroyed, "the device is lost: {message}");
        });
        Some(Self { adapter: adapter.clone(), device, queue })
    }

    /// A buffer that wgpu zeroes before its first use.
    pub(crate) fn zeros(&self, size: u64, usage: BufferUsages) -> Buffer {
        let mapped_at_creation = false;
        let descriptor = BufferDescriptor { label: None, size, usage, mapped_at_creation };
        self.device.create_buffer(&descriptor)
    }

    /// A buffer with contents, for any kernel and copy.
    pub(crate) fn buffer<T: Pod>(&self, contents: &[T]) -> Buffer {
        self.filled(STORAGE, bytemuck::cast_slice(contents))
    }

    /// The parameters of a kernel, word by word.
    pub(crate) fn uniform(&self, words: &[u32]) -> Buffer {
        self.filled(BufferUsages::UNIFORM | BufferUsages::COPY_DST, bytemuck::cast_slice(words))
    }

    fn filled(&self, usage: BufferUsages, bytes: &[u8]) -> Buffer {
        let size = bytes.len() as u64;
        let mapped_at_creation = true;
        let descriptor = BufferDescriptor { label: None, size, usage, mapped_at_creation };
        let buffer = self.device.create_buffer(&descriptor);
        let mut view = buffer.get_mapped_range_mut(..).expect("mapped since its creation");
        view.copy_from_slice(bytes);
        drop(view);
        buffer.unmap();
        buffer
    }

    /// What a buffer holds when all work submitted so far is done.
    pub(crate) fn read<T: Pod>(&self, buffer: &Buffer) -> Vec<T> {
        self.read_range(buffer, 0, buffer.size())
    }

    /// The same of `size` bytes from `offset` on; both are multiples of 4.
    pub(crate) fn read_range<T: Pod>(&self, buffer: &Buffer, offset: u64, size: u64) -> Vec<T> {
        let staging = self.zeros(size, BufferUsages::MAP_READ | BufferUsages::COPY_DST);
        let mut encoder = self.encoder();
        encoder.copy_buffer_to_buffer(buffer, offset, &staging, 0, size);
        self.queue.submit([encoder.finish()]);
        self.map(&staging, MapMode::Read, 0..size).expect("a map of a buffer of its own");
        let view = staging.get_mapped_range(..).expect("the range was mapped");
        bytemuck::pod_collect_to_vec(&view)
    }

    /// Maps a range and waits for it.
    pub(crate) fn map(
        &self,
        buffer: &Buffer,
        mode: MapMode,
        range: std::ops::Range<u64>,
    ) -> Result<(), wgpu::BufferAsyncError> {
        let (sender, receiver) = mpsc::channel();
        buffer.map_async(mode, range, move |result| {
            sender.send(result).expect("the test waits for the map");
        });
        self.wait();
        // Another test's wait may have taken the callback over, and be running it only now.
        receiver.recv().expect("the map tells its result")
    }

    /// Returns when all work submitted so far is done.
    pub(crate) fn wait(&self) {
        self.device.poll(PollType::wait_indefinitely()).expect("the device answers");
    }

    pub(crate) fn encoder(&self) -> CommandEncoder {
        self.device.create_command_encoder(&Default::default())
    }

    /// A kernel, with the layout that its text implies: bindings that this entry point does not
    /// use are not in it.
    pub(crate) fn pipeline(&self, wgsl: &str, entry_point: &str) -> ComputePipeline {
        let source = ShaderSource::Wgsl(wgsl.into());
        let descriptor = ShaderModuleDescriptor { label: Some(entry_point), source };
        self.device.create_compute_pipeline(&ComputePipelineDescriptor {
            label: Some(entry_point),
            layout: None,
            module: &self.device.create_shader_module(descriptor),
            entry_point: Some(entry_point),
            compilation_options: Default::default(),
            cache: None,
        })
    }

    pub(crate) fn bind_group(
        &self,
        pipeline: &ComputePipeline,
        bindings: &[(u32, BufferBinding<'_>)],
    ) -> BindGroup {
        let entries: Vec<_> = bindings
            .iter()
            .map(|(binding, range)| BindGroupEntry {
                binding: *binding,
                resource: BindingResource::Buffer(range.clone()),
            })
            .collect();
        let layout = &pipeline.get_bind_group_layout(0);
        self.device.create_bind_group(&BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        })
    }

    /// Records kernels that see each other's results, in one pass.
    pub(crate) fn record(&self, encoder: &mut CommandEncoder, dispatches: &[Dispatch<'_>]) {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for Dispatch { pipeline, bindings, groups: [x, y, z] } in dispatches {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, &self.bind_group(pipeline, bindings), &[]);
            pass.dispatch_workgroups(*x, *y, *z);
        }
    }

    /// Records and submits them.
    pub(crate) fn run(&self, dispatches: &[Dispatch<'_>]) {
        let mut encoder = self.encoder();
        self.record(&mut encoder, dispatches);
        self.queue.submit([encoder.finish()]);
    }

    /// At least `groups` workgroups in two dimensions, as near to it as they can be: a dimension
    /// has a limit of 65,535 in most places.
    pub(crate) fn fold(&self, groups: u64) -> [u32; 3] {
        let limit = u64::from(self.device.limits().max_compute_workgroups_per_dimension);
        let y = groups.div_ceil(limit).max(1);
        let x = groups.div_ceil(y);
        assert!(y <= limit, "{groups} workgroups are too many for two dimensions");
        [x as u32, y as u32, 1]
    }

    /// The first error of the device while `run` ran on this thread, of any kind.
    pub(crate) fn error_of(&self, run: impl FnOnce()) -> Option<Error> {
        let kinds = [ErrorFilter::Validation, ErrorFilter::OutOfMemory, ErrorFilter::Internal];
        let scopes = kinds.map(|kind| self.device.push_error_scope(kind));
        run();
        // Scopes are a stack: the last one goes first.
        scopes
            .into_iter()
            .rev()
            .fold(None, |found, scope| pollster::block_on(scope.pop()).or(found))
    }
}

/// A whole buffer at a binding.
pub(crate) fn whole(buffer: &Buffer) -> BufferBinding<'_> {
    buffer.as_entire_buffer_binding()
}

/// `size` bytes from `offset` on.
pub(crate) fn range(buffer: &Buffer, offset: u64, size: u64) -> BufferBinding<'_> {
    BufferBinding { buffer, offset, size: wgpu::BufferSize::new(size) }
}

/// An error with all its causes, for a look at which rule it names.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
