//! The wgpu backend: segments are buffers, on Vulkan, Metal, DX12 and the web.
//!
//! ```text
//!   core      segment 7                    block: offset, size
//!               │                            │
//!   backend   WgpuSegment { buffer, role } ──┴─▶ buffer + offset: bindings, copies, slices
//!               │
//!   wgpu      create_buffer under error scopes … drop (the driver has it when the work is done)
//! ```
//!
//! wgpu has one queue and orders what is submitted to it, so whatever was submitted comes before
//! all that is submitted later: streams need no events, and every event is complete as it is made.
//! What is *not* submitted yet is another matter: the recordings of the surface
//! ([`surface::wgpu`](crate::surface)) and of the core see to that.
//!
//! | file         | what it owns |
//! |--------------|--------------|
//! | `role`       | what buffers are for, and their usages |
//! | `loss`       | whether the device is gone |
//! | `wait`       | everything that may block, or differs on the web |
//! | `info`       | how much memory the device has, and who says so |
//! | `recordings` | which streams have an open recording |
//! | `setup`      | how to ask for a device, and whether it caches memory itself |
//!
//! There are no addresses; a segment's number in the upper bits stands in for one, so that blocks
//! can be told apart in reports: `number · 2⁴⁰ + offset`.
//!
//! Costs: making a buffer 0.3 to 6 µs on an empty heap (Mesa's CPU driver; real ones 0.1 to 1 ms
//! above the block size of wgpu), error scopes 0.13 µs, and the first use of fresh bytes clears
//! them (60 ms for 128 MiB on that driver): what caching saves.

mod info;
mod loss;
pub(crate) mod recordings;
mod role;
mod setup;
pub(crate) mod wait;

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use wgpu::{Buffer, BufferDescriptor, Device, ErrorFilter, Queue, SubmissionIndex};

pub use info::{MemoryInfo, MemorySource};
use loss::Loss;
use recordings::Recordings;
pub use role::Role;
pub use setup::recommended_device_descriptor;

use super::{Backend, GrowError, Limits, Lost, MemoryKind, NoVirtual};
use crate::units::{Bytes, KIB, SEGMENT_MAX, align_down};

/// Segments are multiples of this, so that an exclusive buffer of some bytes costs little.
const GRANULARITY: Bytes = 4 * KIB;

/// Bits of a stand-in address that are the offset.
const OFFSET_BITS: u32 = 40;

/// Buffers of one device. Cheap to clone; clones are the same device.
#[derive(Debug, Clone)]
pub struct Wgpu {
    inner: Arc<Inner>,
}

type Hook = Arc<dyn Fn(&Buffer) + Send + Sync>;

struct Inner {
    device: Device,
    queue: Queue,
    limits: Limits,
    /// The most bytes of one binding: of a storage buffer, of a uniform buffer. Asked for once: the
    /// device locks and copies all its limits for every answer.
    binding_max: [Bytes; 2],
    loss: Arc<Loss>,
    used: AtomicU64,
    made: AtomicU64,
    recordings: Recordings,
    hooks: RwLock<Vec<Hook>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// One buffer, which blocks share or have for themselves.
#[derive(Debug)]
pub struct WgpuSegment {
    buffer: Buffer,
    role: Role,
    number: u64,
    /// An upload buffer is mapped when it is made; whoever gets it first finds it so.
    fresh: AtomicBool,
}

impl WgpuSegment {
    /// The buffer.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// What it is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether nobody had it before; `false` from now on.
    pub(crate) fn take_fresh(&self) -> bool {
        self.fresh.swap(false, Ordering::Relaxed)
    }
}

/// One segment, owned.
#[derive(Debug)]
pub struct WgpuMemory {
    segment: Arc<WgpuSegment>,
}

/// A mark on a stream: complete when it is made, since one queue orders everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WgpuEvent;

impl Wgpu {
    /// Buffers of `device`. The device's callback for its loss is replaced, since nothing else
    /// tells of it; a program that has its own calls [`report_loss`](Self::report_loss) from there
    /// and sets it afterwards.
    ///
    /// Warns through `log` if the device caches memory itself in large blocks, as it does unless it
    /// was asked for with [`recommended_device_descriptor`]: memory that is given back to it may
    /// then stay with it.
    pub fn new(device: Device, queue: Queue) -> Self {
        let loss = Arc::new(Loss::default());
        let watch = Arc::clone(&loss);
        device.set_device_lost_callback(move |reason, detail| {
            watch.set(format!("{reason:?}: {detail}"));
        });
        if let Some(block) = setup::shared_block(&device) {
            log::warn!(
                "aquifer: the wgpu device caches memory itself, in blocks of {} MiB: what is given \
                 back may stay with it. Ask for the device with recommended_device_descriptor.",
                block >> 20
            );
        }
        let limits = setup::limits(&device);
        let asked = device.limits();
        let inner = Inner {
            binding_max: [
                asked.max_storage_buffer_binding_size,
                asked.max_uniform_buffer_binding_size,
            ],
            device,
            queue,
            limits,
            loss,
            used: AtomicU64::new(0),
            made: AtomicU64::new(0),
            recordings: Recordings::default(),
            hooks: RwLock::new(Vec::new()),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// Its queue.
    pub fn queue(&self) -> &Queue {
        &self.inner.queue
    }

    /// Bytes of all live buffers made here.
    pub fn used_bytes(&self) -> Bytes {
        self.inner.used.load(Ordering::Relaxed)
    }

    /// The most bytes that one binding of a storage buffer may have, as the device was asked for.
    pub fn binding_max(&self) -> Bytes {
        self.inner.binding_max[0]
    }

    /// The most bytes that one binding of a uniform buffer may have, as the device was asked for.
    pub fn uniform_max(&self) -> Bytes {
        self.inner.binding_max[1]
    }

    /// How much memory the device has, and who says so; `None` if nobody does. A driver call.
    pub fn memory_info(&self) -> Option<MemoryInfo> {
        info::memory_info(&self.inner.device, self.used_bytes())
    }

    /// Whether the device was found to cache memory itself, in blocks of so many bytes.
    pub fn device_block_bytes(&self) -> Option<Bytes> {
        setup::shared_block(&self.inner.device)
    }

    /// The device is gone: everything fails with that from now on.
    pub fn report_loss(&self, detail: impl Into<String>) {
        self.inner.loss.set(detail.into());
    }

    /// # Errors
    /// If the device is gone.
    pub fn check(&self) -> Result<(), Lost> {
        self.inner.loss.check()
    }

    /// Calls `hook` with every buffer that is about to be given back, so that caches of bind groups
    /// can drop what keeps it alive. No lock of the allocator is held.
    pub fn on_segment_release(&self, hook: impl Fn(&Buffer) + Send + Sync + 'static) {
        let mut hooks = self.inner.hooks.write().unwrap_or_else(PoisonError::into_inner);
        hooks.push(Arc::new(hook));
    }

    /// Lets callbacks of what is complete run, and memory of dropped buffers go back. Never blocks.
    pub fn poll(&self) {
        wait::poll(&self.inner.device);
    }

    /// Blocks until all that was submitted is complete. On the web nothing can block: use
    /// [`completion`](Self::completion).
    ///
    /// # Errors
    /// If the device is gone.
    pub fn synchronize(&self) -> Result<(), Lost> {
        wait::wait_for(&self.inner.device, &self.inner.loss, None)
    }

    /// Resolves when all that was submitted before is complete. Natively somebody has to poll the
    /// device meanwhile.
    pub fn completion(&self) -> impl Future<Output = ()> + Send + use<> {
        wait::completion(&self.inner.queue)
    }

    /// Unmaps a buffer that is mapped, or about to be. wgpu calls that an error where the device
    /// was destroyed meanwhile, and panics on errors that nobody catches.
    pub(crate) fn unmap(&self, buffer: &Buffer) {
        let scope = self.inner.device.push_error_scope(ErrorFilter::Validation);
        buffer.unmap();
        let _ = wait::caught(scope);
    }

    /// Blocks until `done`, which a callback of a submission, or of any if none is named, brings
    /// about.
    ///
    /// # Errors
    /// If the device is gone.
    pub(crate) fn wait_until(
        &self,
        submission: Option<&SubmissionIndex>,
        done: impl Fn() -> bool,
    ) -> Result<(), Lost> {
        wait::until(&self.inner.device, &self.inner.loss, submission, done)
    }

    /// As [`wait_until`](Self::wait_until), where the work may not have been submitted.
    ///
    /// # Errors
    /// If the device is gone.
    pub(crate) fn wait_a_while(&self, done: impl Fn() -> bool) -> Result<(), Lost> {
        wait::a_while(&self.inner.device, &self.inner.loss, done)
    }

    pub(crate) fn recordings(&self) -> &Recordings {
        &self.inner.recordings
    }

    /// Makes a buffer and finds out what became of it.
    fn create(&self, size: Bytes, role: Role) -> Result<Buffer, GrowError> {
        let device = &self.inner.device;
        let scopes = [ErrorFilter::Internal, ErrorFilter::Validation, ErrorFilter::OutOfMemory]
            .map(|filter| device.push_error_scope(filter));
        let buffer = device.create_buffer(&BufferDescriptor {
            label: Some(role.label()),
            size,
            usage: role.usages(),
            mapped_at_creation: role == Role::Upload,
        });
        // Scopes end innermost first.
        let [internal, validation, out_of_memory] = scopes;
        let errors = [out_of_memory, validation, internal].map(wait::caught);
        self.check()?;
        match errors {
            [None, None, None] => Ok(buffer),
            [Some(_), ..] => Err(GrowError::OutOfMemory),
            [None, validation, internal] => {
                for error in [validation, internal].into_iter().flatten() {
                    log::warn!("aquifer: no buffer of {size} bytes: {error}");
                }
                Err(GrowError::TooLarge)
            }
        }
    }
}

impl Backend for Wgpu {
    type Memory = WgpuMemory;
    type View = Arc<WgpuSegment>;
    type Stream = u32;
    type Event = WgpuEvent;
    type Virtual = NoVirtual<WgpuMemory>;

    fn describe(&self) -> String {
        let info = self.inner.device.adapter_info();
        format!("{} ({})", info.name, info.backend)
    }

    fn limits(&self) -> Limits {
        self.inner.limits
    }

    fn default_stream(&self) -> u32 {
        0
    }

    fn allocate(&self, size: Bytes, kind: MemoryKind) -> Result<WgpuMemory, GrowError> {
        self.check()?;
        if size > self.inner.limits.segment_max {
            return Err(GrowError::TooLarge);
        }
        let role = Role::of_kind(kind);
        let buffer = match self.create(size, role) {
            Err(GrowError::OutOfMemory) => {
                // What was given back is the driver's again when the work on it is complete and the
                // device was polled after that.
                self.synchronize()?;
                self.create(size, role)?
            }
            outcome => outcome?,
        };
        self.inner.used.fetch_add(size, Ordering::Relaxed);
        let number = self.inner.made.fetch_add(1, Ordering::Relaxed) + 1;
        let fresh = AtomicBool::new(true);
        Ok(WgpuMemory { segment: Arc::new(WgpuSegment { buffer, role, number, fresh }) })
    }

    /// Drops the buffer. The driver has its memory when the work on it is done, and the device was
    /// polled after that.
    fn free(&self, memory: WgpuMemory) {
        // A hook may free memory itself, or add hooks: nothing is locked while it runs.
        let hooks = self.inner.hooks.read().unwrap_or_else(PoisonError::into_inner).clone();
        hooks.iter().for_each(|hook| hook(&memory.segment.buffer));
        self.inner.used.fetch_sub(memory.segment.buffer.size(), Ordering::Relaxed);
    }

    fn view(&self, memory: &WgpuMemory) -> Arc<WgpuSegment> {
        Arc::clone(&memory.segment)
    }

    fn address(&self, memory: &WgpuMemory) -> Option<u64> {
        Some(memory.segment.number << OFFSET_BITS)
    }

    fn record(&self, _: u32) -> Result<WgpuEvent, Lost> {
        self.check()?;
        Ok(WgpuEvent)
    }

    fn is_complete(&self, _: &WgpuEvent) -> Result<bool, Lost> {
        self.check()?;
        Ok(true)
    }

    fn wait(&self, _: &WgpuEvent) -> Result<(), Lost> {
        self.check()
    }

    fn wait_on(&self, _: u32, _: &WgpuEvent) -> Result<(), Lost> {
        self.check()
    }

    /// Nothing is captured here.
    fn is_joined(&self, _earlier: u32, _later: u32) -> bool {
        false
    }

    fn free_bytes(&self) -> Option<Bytes> {
        self.memory_info().map(|info| info.free)
    }

    fn virtual_memory(&self) -> Option<&NoVirtual<WgpuMemory>> {
        None
    }
}

/// The largest segment that a device with such limits can have.
fn segment_max(limits: &wgpu::Limits) -> Bytes {
    let addresses = (1 << OFFSET_BITS) - 1;
    align_down(limits.max_buffer_size.min(SEGMENT_MAX).min(addresses), GRANULARITY)
}
