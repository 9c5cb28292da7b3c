//! A wgpu device of so many bytes: the backend, and a count that refuses what goes beyond.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use aquifer::backend::{
    Backend, GrowError, Limits, Lost, MemoryKind, NoVirtual, Wgpu, WgpuEvent, WgpuMemory,
    WgpuSegment,
};
use wgpu::{BufferDescriptor, BufferUsages, MapMode, PollType};

use crate::gpu::Gpu;
use crate::support::Device;

/// [`Wgpu`] with an end. Clones are the same device.
#[derive(Debug, Clone)]
pub(crate) struct Bounded {
    inner: Wgpu,
    capacity: u64,
    used: Arc<AtomicU64>,
}

impl Bounded {
    fn new(device: &wgpu::Device, queue: &wgpu::Queue, capacity: u64) -> Self {
        let inner = Wgpu::new(device.clone(), queue.clone());
        Self { inner, capacity, used: Arc::default() }
    }

    /// On the adapter of this machine.
    pub(crate) fn adapter(capacity: u64) -> Self {
        let gpu = Gpu::shared().expect("asked before whether it is there");
        Self::new(&gpu.device, &gpu.queue, capacity)
    }

    /// On the backend of wgpu that computes nothing, and is everywhere.
    pub(crate) fn noop(capacity: u64) -> Self {
        static NOOP: OnceLock<(wgpu::Device, wgpu::Queue)> = OnceLock::new();
        let (device, queue) = NOOP.get_or_init(|| wgpu::Device::noop(&Default::default()));
        Self::new(device, queue, capacity)
    }
}

impl Backend for Bounded {
    type Memory = WgpuMemory;
    type View = Arc<WgpuSegment>;
    type Stream = u32;
    type Event = WgpuEvent;
    type Virtual = NoVirtual<WgpuMemory>;

    fn describe(&self) -> String {
        format!("{} of {} bytes", self.inner.describe(), self.capacity)
    }

    fn limits(&self) -> Limits {
        let mut limits = self.inner.limits();
        limits.total = Some(self.capacity);
        limits
    }

    fn default_stream(&self) -> u32 {
        self.inner.default_stream()
    }

    fn allocate(&self, size: u64, kind: MemoryKind) -> Result<WgpuMemory, GrowError> {
        let used = self.used.fetch_add(size, Ordering::Relaxed);
        let outcome = match used + size <= self.capacity {
            true => self.inner.allocate(size, kind),
            false => Err(GrowError::OutOfMemory),
        };
        if outcome.is_err() {
            self.used.fetch_sub(size, Ordering::Relaxed);
        }
        outcome
    }

    fn free(&self, memory: WgpuMemory) {
        let size = self.inner.view(&memory).buffer().size();
        self.used.fetch_sub(size, Ordering::Relaxed);
        self.inner.free(memory);
    }

    fn view(&self, memory: &WgpuMemory) -> Arc<WgpuSegment> {
        self.inner.view(memory)
    }

    fn address(&self, memory: &WgpuMemory) -> Option<u64> {
        self.inner.address(memory)
    }

    fn record(&self, stream: u32) -> Result<WgpuEvent, Lost> {
        self.inner.record(stream)
    }

    fn is_complete(&self, event: &WgpuEvent) -> Result<bool, Lost> {
        self.inner.is_complete(event)
    }

    fn wait(&self, event: &WgpuEvent) -> Result<(), Lost> {
        self.inner.wait(event)
    }

    fn wait_on(&self, stream: u32, event: &WgpuEvent) -> Result<(), Lost> {
        self.inner.wait_on(stream, event)
    }

    fn is_waitable(&self, event: &WgpuEvent) -> bool {
        self.inner.is_waitable(event)
    }

    fn is_joined(&self, earlier: u32, later: u32) -> bool {
        self.inner.is_joined(earlier, later)
    }

    fn free_bytes(&self) -> Option<u64> {
        Some(self.capacity.saturating_sub(self.used.load(Ordering::Relaxed)))
    }

    fn virtual_memory(&self) -> Option<&NoVirtual<WgpuMemory>> {
        None
    }
}

/// The pattern of a seed.
fn pattern(seed: u64, len: u64) -> Vec<u64> {
    (seed..seed + len / 8).collect()
}

impl Device for Bounded {
    fn used(&self) -> u64 {
        // What the wrapped backend counts is the same, or one of them is wrong.
        assert_eq!(self.used.load(Ordering::Relaxed), self.inner.used_bytes());
        self.inner.used_bytes()
    }

    fn write(&self, view: &Self::View, offset: u64, len: u64, seed: u64) {
        let words = pattern(seed, len);
        self.inner.queue().write_buffer(view.buffer(), offset, bytemuck::cast_slice(&words));
    }

    fn reads_back(&self, view: &Self::View, offset: u64, len: u64, seed: u64) -> bool {
        let device = self.inner.device();
        let back = device.create_buffer(&BufferDescriptor {
            label: None,
            size: len,
            usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(view.buffer(), offset, &back, 0, len);
        self.inner.queue().submit([encoder.finish()]);
        let (sender, receiver) = std::sync::mpsc::channel();
        back.map_async(MapMode::Read, .., move |outcome| {
            sender.send(outcome).expect("the test waits for the map");
        });
        device.poll(PollType::wait_indefinitely()).expect("the device answers");
        receiver.recv().expect("the map tells its result").expect("a map of one's own buffer");
        let view = back.get_mapped_range(..).expect("mapped");
        *view == *bytemuck::cast_slice::<u64, u8>(&pattern(seed, len))
    }
}
