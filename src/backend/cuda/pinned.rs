//! Pinned memory of the host: what the device reads and writes by itself while the CPU goes on.
//!
//! The same core caches it, since pinning costs the driver milliseconds and freeing waits for the
//! whole device. What differs is who uses a block: the CPU, at once, and copies of some streams.
//!
//! ```text
//!  CPU      write ────────────────────────── write        has the block again when `copy` is done
//!              ╲                            ╱
//!  stream       ╲── copy ──▶ event ────────╱              record_stream
//! ```
//!
//! So every block belongs to the timeline of the CPU ([`CudaPinned::HOST`], the default stream),
//! which is always complete; streams that copy are recorded, and since the CPU does not wait on the
//! device, `device_wait` is off: a block is handed out when its events are complete.
//!
//! Costs: one `cuMemHostAlloc` and one zeroing for a segment, one event for a batch of frees.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use super::Cuda;
use super::device::{Device, Holding, grow_error};
use super::streams::{CudaEvent, CudaStreamId};
use crate::backend::{Backend, GrowError, Host, HostVisible, Limits, Lost, MemoryKind, NoVirtual};
use crate::units::{Bytes, KIB, SEGMENT_MAX, align_down};

/// Segments are multiples of this: whole pages on every system.
const GRANULARITY: Bytes = 64 * KIB;
/// What the driver aligns pinned memory to: a page.
const ALIGNMENT: Bytes = 4 * KIB;

/// Pinned memory for one device, and for all others too.
#[derive(Debug, Clone)]
pub struct CudaPinned {
    device: Arc<Device>,
    total: Option<Bytes>,
}

/// One segment of pinned memory.
#[derive(Debug)]
pub struct PinnedMemory {
    start: NonNull<c_void>,
    len: Bytes,
}

// SAFETY: it is an address and a length; to use the address is unsafe.
unsafe impl Send for PinnedMemory {}
// SAFETY: as for `Send`; it has no interior that could change.
unsafe impl Sync for PinnedMemory {}

/// Where a segment of pinned memory is; the device knows it by the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinnedView {
    start: NonNull<c_void>,
    len: Bytes,
}

// SAFETY: as `PinnedMemory`.
unsafe impl Send for PinnedView {}
// SAFETY: as `PinnedMemory`.
unsafe impl Sync for PinnedView {}

impl PinnedView {
    /// The segment's first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr().cast()
    }

    /// Bytes of the segment.
    pub fn size(&self) -> Bytes {
        self.len
    }
}

impl CudaPinned {
    /// The timeline of the CPU: always complete.
    pub const HOST: CudaStreamId = CudaStreamId::HOST;

    /// Pinned memory for copies to and from `cuda`.
    pub fn new(cuda: &Cuda) -> Self {
        Self { device: Arc::clone(&cuda.device), total: Host::new().limits().total }
    }
}

impl Backend for CudaPinned {
    type Memory = PinnedMemory;
    type View = PinnedView;
    type Stream = CudaStreamId;
    type Event = CudaEvent;
    type Virtual = NoVirtual<PinnedMemory>;

    fn describe(&self) -> String {
        format!("pinned host memory of {}", self.device.name)
    }

    fn limits(&self) -> Limits {
        let addresses = align_down(isize::MAX as Bytes, GRANULARITY);
        Limits {
            total: self.total,
            granularity: GRANULARITY,
            alignment: ALIGNMENT,
            segment_max: align_down(SEGMENT_MAX, GRANULARITY).min(addresses),
            device_wait: false,
            one_queue: false,
        }
    }

    fn default_stream(&self) -> CudaStreamId {
        Self::HOST
    }

    /// Zeroed: every byte is initialised from the start.
    fn allocate(&self, size: Bytes, _kind: MemoryKind) -> Result<PinnedMemory, GrowError> {
        let device = &self.device;
        let _entry = device.enter().map_err(|code| grow_error("cuCtxSetCurrent", code))?;
        device.retry();
        let start = device.driver.host_alloc(size);
        let start = start.map_err(|code| grow_error("cuMemHostAlloc", code))?;
        let start = NonNull::new(start).ok_or(GrowError::OutOfMemory)?;
        let first = start.as_ptr().cast::<u8>();
        // SAFETY: the driver has just given `size` bytes there, and nobody else knows of them.
        unsafe { first.write_bytes(0, size as usize) };
        Ok(PinnedMemory { start, len: size })
    }

    /// Waits for the work of the whole device, as the driver does.
    fn free(&self, memory: PinnedMemory) {
        match self.device.enter().or_else(|_| self.device.enter()) {
            Ok(_entry) => {
                let address = memory.start.as_ptr().expose_provenance() as u64;
                self.device.give_back(Holding::Pinned(address));
                self.device.retry();
            }
            Err(code) => log::warn!("aquifer: {memory:?} was not given back: {code}"),
        }
    }

    fn view(&self, memory: &PinnedMemory) -> PinnedView {
        PinnedView { start: memory.start, len: memory.len }
    }

    fn address(&self, memory: &PinnedMemory) -> Option<u64> {
        Some(memory.start.as_ptr().addr() as u64)
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

    /// Not called, as `device_wait` is off; the host waits.
    fn wait_on(&self, _stream: CudaStreamId, event: &CudaEvent) -> Result<(), Lost> {
        self.wait(event)
    }

    fn is_waitable(&self, event: &CudaEvent) -> bool {
        self.device.is_waitable(event)
    }

    /// Nothing is captured here.
    fn is_joined(&self, _earlier: CudaStreamId, _later: CudaStreamId) -> bool {
        false
    }

    fn free_bytes(&self) -> Option<Bytes> {
        Host::new().free_bytes()
    }

    fn virtual_memory(&self) -> Option<&NoVirtual<PinnedMemory>> {
        None
    }
}

// SAFETY: a view is made from live memory only, which the driver keeps readable and writable at one
// address until it is freed, and which was zeroed when it came.
unsafe impl HostVisible for CudaPinned {
    // SAFETY: as the trait says.
    unsafe fn bytes(&self, view: &PinnedView, offset: Bytes, len: Bytes) -> *mut u8 {
        debug_assert!(offset.checked_add(len).is_some_and(|end| end <= view.len));
        // SAFETY: the caller promises a live segment with `offset` in its range.
        unsafe { view.as_ptr().add(offset as usize) }
    }
}
