//! The CUDA backend: device memory of NVIDIA GPUs, through the driver's own library.
//!
//! ```text
//!   Cuda  ── the contract ──▶  device    one device: context, memory, what is stranded
//!                                ├─ memory    segments; ranges and their chunks
//!                                ├─ streams   who a stream is; events
//!                                ├─ pinned    memory of the host that the device reads by itself
//!                                ├─ share     chunks for other processes
//!                                └─ calls ─▶ driver   the functions of libcuda, found at run time
//!                                               ▲
//!                              probe ───────────┘ is there a driver, a device?
//! ```
//!
//! Nothing here is on the path of a hit. Every call enters the device's context for its own time
//! and leaves the thread as it was, so that threads may use several devices, and several threads
//! one.
//!
//! **Where memory comes from** ([`CudaSource`]): virtual memory, where the device has it; else a
//! stream-ordered pool of our own, which keeps what is freed until it is trimmed; else
//! `cuMemAlloc`. Freeing the latter makes the driver wait for the whole device, so does freeing a
//! segment of the others here.
//!
//! **Refusals.** What the driver refuses once is tried again, or done in a slower way: an event
//! that cannot be had becomes a wait of the host, memory that is not taken back is offered again
//! later. Only the driver's sticky errors, after which no call succeeds, are a loss.

mod calls;
mod device;
mod driver;
mod memory;
mod pinned;
mod probe;
#[cfg(unix)]
mod share;
mod streams;

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use cudarc::driver::{CudaContext, CudaStream};

pub use driver::Code;
pub use memory::{CudaChunk, CudaMemory, CudaView, CudaVirtual};
pub use pinned::{CudaPinned, PinnedMemory, PinnedView};
pub use probe::{CudaUnavailable, device_count};
#[cfg(unix)]
pub use share::{ImportedMemory, ShareError, SharedMemory};
pub use streams::{CudaEvent, CudaStreamId};

use super::{Backend, GrowError, Limits, Lost, MemoryKind};
use crate::units::Bytes;
use device::{Device, lost};

/// Where device memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CudaSource {
    /// Ranges of addresses, and chunks of physical memory mapped there (CUDA 10.2, most devices).
    Virtual,
    /// A stream-ordered pool of our own (CUDA 11.2).
    Pool,
    /// `cuMemAlloc`: every device.
    Plain,
}

/// What is special to a CUDA device, beside the [`Config`](crate::Config).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CudaOptions {
    /// Where memory comes from; the first of [`CudaSource`] that the device has, unless given.
    pub source: Option<CudaSource>,
    /// Numbers of other devices that may read and write the memory too. Virtual memory only.
    pub peers: Vec<usize>,
    /// Whether memory can be given to other processes by file descriptor. Virtual memory only.
    pub exportable: bool,
}

/// A CUDA device. Cheap to clone; clones are the same device.
#[derive(Debug, Clone)]
pub struct Cuda {
    device: Arc<Device>,
    ranges: Option<Arc<CudaVirtual>>,
}

impl Cuda {
    /// Device `ordinal`, in its primary context.
    ///
    /// # Errors
    /// [`CudaUnavailable`] says what is missing; never a panic, on any machine.
    pub fn new(ordinal: usize, options: &CudaOptions) -> Result<Self, CudaUnavailable> {
        probe::find(ordinal)?;
        let context = CudaContext::new(ordinal);
        // The error's own words are the driver's to give, and may need it; the number does not.
        let context = context.map_err(|error| Code(error.0 as i32));
        let context = context.map_err(CudaUnavailable::at("cuDevicePrimaryCtxRetain"))?;
        Self::with_context(&context, options)
    }

    /// The device of a context of cudarc.
    ///
    /// # Errors
    /// [`CudaUnavailable`] says what the device lacks.
    pub fn with_context(
        context: &Arc<CudaContext>,
        options: &CudaOptions,
    ) -> Result<Self, CudaUnavailable> {
        let device = Arc::new(Device::open(context, options)?);
        let has_ranges = device.source == CudaSource::Virtual;
        let ranges = has_ranges.then(|| Arc::new(CudaVirtual { device: Arc::clone(&device) }));
        Ok(Self { device, ranges })
    }

    /// The context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.device.context
    }

    /// Where its memory comes from.
    pub fn source(&self) -> CudaSource {
        self.device.source
    }

    /// Who the stream behind a driver's handle is: a `CUstream` of this context, 0 for the default
    /// one. Of handle 2 it is the calling thread's own stream.
    ///
    /// # Errors
    /// [`Lost`] if the driver does not answer.
    ///
    /// # Safety
    /// - The handle is of a stream of this device's context.
    /// - The stream is not destroyed before [`Allocator::forget_stream`](crate::Allocator) was told
    ///   of it, if it was ever given to an allocator.
    pub unsafe fn stream_of(&self, handle: usize) -> Result<CudaStreamId, Lost> {
        let identify = || {
            let _entry = self.device.enter()?;
            self.device.identify(handle)
        };
        identify().or_else(|_| identify()).map_err(|code| lost("cuStreamGetId", code))
    }

    /// Keeps a stream of cudarc, whose handle stays its own until [`let_go`](Self::let_go). It is
    /// kept as long as the device: what is allocated may outlive the allocator. Each allocator that
    /// knows it keeps it once.
    pub(crate) fn keep(&self, stream: &Arc<CudaStream>) {
        let mut kept = self.kept();
        kept.entry(stream.cu_stream() as usize).or_insert_with(|| (Arc::clone(stream), 0)).1 += 1;
    }

    /// Whether nobody else has a stream that is kept, and it is not captured: its end could not be
    /// marked then.
    pub(crate) fn is_idle(&self, handle: usize) -> bool {
        let is_kept_alone = |kept: &(Arc<CudaStream>, usize)| Arc::strong_count(&kept.0) == 1;
        if !self.kept().get(&handle).is_some_and(is_kept_alone) {
            return false;
        }
        let captured = self.device.enter().and_then(|_entry| self.device.is_capturing(handle));
        captured == Ok(false)
    }

    /// Lets a stream go, which is destroyed with its last owner. Its allocator asks no more.
    pub(crate) fn let_go(&self, handle: usize) {
        let mut kept = self.kept();
        let is_last = kept.get_mut(&handle).is_some_and(|(_, count)| {
            *count -= 1;
            *count == 0
        });
        let stream = if is_last { kept.remove(&handle) } else { None };
        drop(kept);
        drop(stream);
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<usize, (Arc<CudaStream>, usize)>> {
        self.device.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A capture is about to begin: nothing is waited for that would break it.
    pub(crate) fn announce_capture(&self) {
        *self.device.captures.write().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    /// It has ended.
    pub(crate) fn end_capture(&self) {
        *self.device.captures.write().unwrap_or_else(PoisonError::into_inner) -= 1;
    }

    /// Copies between any places, each `(to, from, bytes)`, and waits until that is done.
    pub(crate) fn copy_all(
        &self,
        copies: impl Iterator<Item = (u64, u64, Bytes)>,
    ) -> Result<(), Code> {
        let device = &self.device;
        let _entry = device.enter().or_else(|_| device.enter())?;
        let (driver, stream) = (device.driver, device.stream);
        // What is refused once may pass the second time: contents would be lost with a copy.
        let twice = |call: &dyn Fn() -> Result<(), Code>| call().or_else(|_| call());
        let mut copies = copies;
        let copied =
            copies.try_for_each(|(to, from, size)| twice(&|| driver.copy(to, from, size, stream)));
        // Whatever was submitted is over when this returns.
        copied.and(twice(&|| driver.synchronize_stream(stream)))
    }

    /// Blocks until the device has done all that was submitted.
    ///
    /// # Errors
    /// [`Lost`] if the device is gone, or a stream is being captured.
    pub fn synchronize(&self) -> Result<(), Lost> {
        let wait = || {
            let _entry = self.device.enter()?;
            self.device.quiesce()
        };
        // While a stream is captured nothing was asked, and is not to be.
        let again = |code| if code == Code::CAPTURE_UNSUPPORTED { Err(code) } else { wait() };
        wait().or_else(again).map_err(|code| lost("cuCtxSynchronize", code))
    }
}

impl Backend for Cuda {
    type Memory = CudaMemory;
    type View = CudaView;
    type Stream = CudaStreamId;
    type Event = CudaEvent;
    type Virtual = CudaVirtual;

    fn describe(&self) -> String {
        let Device { name, number, version, total, .. } = &*self.device;
        let (major, minor) = (version / 1000, version % 1000 / 10);
        format!("{name} (CUDA device {number}, driver for CUDA {major}.{minor}), {total} bytes")
    }

    fn limits(&self) -> Limits {
        let device = &self.device;
        let is_virtual = device.source == CudaSource::Virtual;
        Limits {
            total: Some(device.total),
            granularity: device.granularity,
            // The driver promises 256 bytes and gives 512 at least; pages are aligned as they are.
            alignment: if is_virtual { device.granularity } else { 512 },
            segment_max: device.segment_max(),
            device_wait: true,
            one_queue: false,
        }
    }

    /// The legacy default stream.
    fn default_stream(&self) -> CudaStreamId {
        CudaStreamId::DEFAULT
    }

    /// All kinds of device memory are the same here.
    fn allocate(&self, size: Bytes, _kind: MemoryKind) -> Result<CudaMemory, GrowError> {
        self.device.segment(size)
    }

    fn free(&self, memory: CudaMemory) {
        match self.device.enter().or_else(|_| self.device.enter()) {
            Ok(_entry) => {
                self.device.take_back(memory);
                self.device.retry();
            }
            Err(code) => log::warn!("aquifer: {memory:?} was not given back: {code}"),
        }
    }

    fn view(&self, memory: &CudaMemory) -> CudaView {
        CudaView { address: memory.address, size: memory.size }
    }

    fn address(&self, memory: &CudaMemory) -> Option<u64> {
        Some(memory.address)
    }

    fn record(&self, stream: CudaStreamId) -> Result<CudaEvent, Lost> {
        self.device.inside(|device| device.record(stream))
    }

    fn is_complete(&self, event: &CudaEvent) -> Result<bool, Lost> {
        self.device.inside(|device| device.is_event_complete(event))
    }

    fn wait(&self, event: &CudaEvent) -> Result<(), Lost> {
        self.device.inside(|device| device.wait_event(event))
    }

    fn wait_on(&self, stream: CudaStreamId, event: &CudaEvent) -> Result<(), Lost> {
        self.device.inside(|device| device.order(stream, event))
    }

    fn is_waitable(&self, event: &CudaEvent) -> bool {
        self.device.is_waitable(event)
    }

    fn is_joined(&self, earlier: CudaStreamId, later: CudaStreamId) -> bool {
        let Ok(_entry) = self.device.enter() else { return false };
        self.device.is_joined(earlier, later).unwrap_or(false)
    }

    fn free_bytes(&self) -> Option<Bytes> {
        self.device.free_bytes()
    }

    fn virtual_memory(&self) -> Option<&CudaVirtual> {
        self.ranges.as_deref()
    }
}

/// Makes device `ordinal`'s own pool, from which `cuMemAllocAsync` takes, keep what is freed.
///
/// For programs that stay on that function, as cudarc's own allocations do: by default everything
/// that is free goes back to the system at every synchronisation, and the next allocation pays for
/// it again (31 ms a GiB against 1.4 µs, as measured by others). Nothing else is changed.
///
/// # Errors
/// [`CudaUnavailable`] says what is missing.
pub fn tune_default_pool(ordinal: usize) -> Result<(), CudaUnavailable> {
    let (driver, device) = probe::find(ordinal)?;
    let pool = driver.current_pool(device).map_err(CudaUnavailable::at("cuDeviceGetMemPool"))?;
    driver.keep_all(pool).map_err(CudaUnavailable::at("cuMemPoolSetAttribute"))
}
