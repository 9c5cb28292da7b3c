//! The host backend: ordinary memory of this machine, taken from the operating system in pages.
//!
//! A segment is one mapping of its own (see `host/os.rs`), so that giving it back really lowers the
//! resident size of the process. Everything is synchronous: a stream is only a number, and an event
//! is complete when it is made.
//!
//! Invariants:
//!
//! - H1 (in `host/os.rs`): every mapping is aligned, live, and owned by one [`HostMemory`].
//! - H2: `used == sum(memory.size)` over the live memory of one `Host` and the calls under way,
//!   and `used <= capacity` at every moment, from any number of threads.
//!
//! Costs: two system calls a segment (up to six where the first mapping is not aligned), and one
//! page fault for every page at its first touch. Segments are large, so the faults are the price
//! that counts: pages of a cached segment stay resident, which is what a cache is for.
//!
//! Sizes are multiples of 64 KiB, the largest page in common use: whole pages everywhere, and small
//! enough that the core's own rounding of segments decides. Alignment is 64 KiB too, the most that
//! every system gives without waste of memory.
//!
//! Bytes are zero at their first touch only. A block that was used before holds what its last user
//! wrote.

#[cfg(test)]
mod tests;

mod os;

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Backend, GrowError, HostVisible, Limits, Lost, MemoryKind, NoVirtual};
use crate::units::{Bytes, KIB, SEGMENT_MAX, align_down};

/// Segments are multiples of this: whole pages on every system.
const GRANULARITY: Bytes = 64 * KIB;

/// Memory of the machine the program runs on.
///
/// Cheap to clone; clones share the capacity and the count of used bytes.
///
/// The system may promise more memory than it has, and end the process when the pages are touched.
/// [`with_capacity`](Self::with_capacity) is the way to stay below that.
///
/// # Examples
/// ```
/// use aquifer::backend::{Backend, Host, MemoryKind};
///
/// let host = Host::with_capacity(1 << 20);
/// let memory = host.allocate(1 << 16, MemoryKind::default())?;
/// assert_eq!(host.used_bytes(), 1 << 16);
/// host.free(memory);
/// assert_eq!(host.used_bytes(), 0);
/// # Ok::<(), aquifer::backend::GrowError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Host {
    account: Arc<Account>,
    limits: Limits,
}

/// The count behind H2.
#[derive(Debug)]
struct Account {
    used: AtomicU64,
    capacity: Option<Bytes>,
}

impl Host {
    /// As much memory as the system gives.
    pub fn new() -> Self {
        Self::build(None)
    }

    /// At most `capacity` bytes at any time: a request beyond is [`GrowError::OutOfMemory`].
    pub fn with_capacity(capacity: Bytes) -> Self {
        Self::build(Some(capacity))
    }

    fn build(capacity: Option<Bytes>) -> Self {
        let addresses = align_down(isize::MAX as Bytes, GRANULARITY);
        let limits = Limits {
            total: capacity.or_else(os::machine_total),
            granularity: GRANULARITY,
            alignment: os::ALIGNMENT,
            segment_max: align_down(SEGMENT_MAX, GRANULARITY).min(addresses),
            device_wait: true,
            one_queue: true,
        };
        Self { account: Arc::new(Account { used: AtomicU64::new(0), capacity }), limits }
    }

    /// Bytes of all live segments; touched or not.
    pub fn used_bytes(&self) -> Bytes {
        self.account.used.load(Ordering::Relaxed)
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Account {
    /// Takes `size` bytes of the capacity, or nothing: `used` moves once or not at all (H2).
    fn charge(&self, size: Bytes) -> Result<(), GrowError> {
        let limit = self.capacity.unwrap_or(Bytes::MAX);
        let charged = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(size).filter(|&sum| sum <= limit)
        });
        if charged.is_ok() { Ok(()) } else { Err(GrowError::OutOfMemory) }
    }

    fn refund(&self, size: Bytes) {
        let before = self.used.fetch_sub(size, Ordering::Relaxed);
        assert!(before >= size, "H2 broken: refund of {size} bytes with {before} in use");
    }
}

/// One segment of host memory. Dropping it gives the pages back, as [`Backend::free`] does.
#[derive(Debug)]
pub struct HostMemory {
    // Declared, and so dropped, before `charge`: `used` falls only when the pages are gone.
    mapping: os::Mapping,
    charge: Charge,
}

/// The part of the capacity that one segment holds.
#[derive(Debug)]
struct Charge {
    account: Arc<Account>,
    size: Bytes,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.refund(self.size);
    }
}

/// Where a segment's bytes are: a base address and a length. Copying it keeps nothing alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostView {
    base: NonNull<u8>,
    len: Bytes,
}

// SAFETY: a view is an address and a length; to use the address is unsafe, and whoever does so
// answers for threads as well.
unsafe impl Send for HostView {}
// SAFETY: as for `Send`; a view has no interior that could change.
unsafe impl Sync for HostView {}

impl HostView {
    /// The address of the segment's first byte.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as usize as u64
    }

    /// The segment's first byte. Only as long as the segment was not freed may it be read or
    /// written, for [`len`](Self::len) bytes, and no two threads may touch one byte at once unless
    /// both only read it.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes in the segment.
    pub fn len(&self) -> Bytes {
        self.len
    }

    /// Never true: no segment is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A mark on a host stream: always complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostEvent;

impl Backend for Host {
    type Memory = HostMemory;
    type View = HostView;
    type Stream = u32;
    type Event = HostEvent;
    type Virtual = NoVirtual<HostMemory>;

    fn describe(&self) -> String {
        match self.limits.total {
            Some(total) => format!("host memory, {total} bytes"),
            None => "host memory, size unknown".to_owned(),
        }
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn default_stream(&self) -> u32 {
        0
    }

    /// Fresh pages, zero at their first touch. All kinds of memory are the same here.
    fn allocate(&self, size: Bytes, _kind: MemoryKind) -> Result<HostMemory, GrowError> {
        assert!(
            size > 0 && size.is_multiple_of(GRANULARITY),
            "a segment of {size} bytes is no multiple of the granularity, {GRANULARITY}"
        );
        if size > self.limits.segment_max {
            return Err(GrowError::TooLarge);
        }
        self.account.charge(size)?;
        let charge = Charge { account: Arc::clone(&self.account), size };
        let mapping = os::Mapping::new(size).ok_or(GrowError::OutOfMemory)?;
        Ok(HostMemory { mapping, charge })
    }

    fn free(&self, memory: HostMemory) {
        drop(memory);
    }

    fn view(&self, memory: &HostMemory) -> HostView {
        HostView { base: memory.mapping.base(), len: memory.charge.size }
    }

    fn address(&self, memory: &HostMemory) -> Option<u64> {
        Some(self.view(memory).address())
    }

    fn record(&self, _stream: u32) -> Result<HostEvent, Lost> {
        Ok(HostEvent)
    }

    fn is_complete(&self, _event: &HostEvent) -> Result<bool, Lost> {
        Ok(true)
    }

    fn wait(&self, _event: &HostEvent) -> Result<(), Lost> {
        Ok(())
    }

    fn wait_on(&self, _stream: u32, _event: &HostEvent) -> Result<(), Lost> {
        Ok(())
    }

    /// Nothing is captured here.
    fn is_joined(&self, _earlier: u32, _later: u32) -> bool {
        false
    }

    /// What is left of the capacity; without one, what the system says it could still give.
    fn free_bytes(&self) -> Option<Bytes> {
        match self.account.capacity {
            Some(capacity) => Some(capacity - self.used_bytes()),
            None => os::machine_available(),
        }
    }

    fn virtual_memory(&self) -> Option<&NoVirtual<HostMemory>> {
        None
    }
}

// SAFETY: a `HostView` is made from a live `HostMemory` only; its pages are readable and writable
// for `len` bytes at one address until the segment is freed (H1).
unsafe impl HostVisible for Host {
    // SAFETY: as the trait says.
    unsafe fn bytes(&self, view: &HostView, offset: Bytes, len: Bytes) -> *mut u8 {
        debug_assert!(offset.checked_add(len).is_some_and(|end| end <= view.len));
        // SAFETY: the caller promises a live segment with `offset` in its range; a mapping is never
        // longer than `isize::MAX` bytes.
        unsafe { view.as_ptr().add(offset as usize) }
    }
}

/// Resident memory of this process in bytes, as Linux counts it (`VmRSS`); `None` elsewhere.
///
/// Reads a file of the system: some microseconds.
pub fn resident_bytes() -> Option<Bytes> {
    os::resident()
}
