//! One device as all parts of the backend share it: its context, and what is still to be given
//! back.
//!
//! ```text
//!  a thread ── enter ──▶ our context is current, captures of others are none of our business
//!                          │ calls of the driver
//!           ◀── drop ──── both are again as the thread had them
//! ```
//!
//! - V1: a call that needs a context is made inside an [`Entry`].
//! - V2: what the driver would not take back is *stranded*, and is offered again before the next
//!   call that gives memory, after every free, and when the device goes. So a refusal that passes
//!   leaks nothing, and one that does not is told once.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use cudarc::driver::{CudaContext, CudaStream};

use super::driver::{AccessDesc, Address, Code, Driver, Handle, RELAXED};
use super::probe::{self, CudaUnavailable};
use super::{CudaOptions, CudaSource};
use crate::backend::{GrowError, Lost};
use crate::units::{Bytes, MIB, SEGMENT_MAX, align_down};

/// `CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED`.
const POOLS_SUPPORTED: i32 = 115;
/// `CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED`.
const VIRTUAL_SUPPORTED: i32 = 102;
/// `CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED`.
const EXPORT_SUPPORTED: i32 = 103;

/// Something that the driver has to take back.
#[derive(Debug, Clone, Copy)]
pub(super) enum Holding {
    /// Of `cuMemAlloc`.
    Plain(Address),
    /// Of our pool.
    Pooled(Address),
    /// A range of addresses with nothing in it.
    Range(Address, Bytes),
    /// A chunk's place in a range; the range comes after it.
    Mapping(Address, Bytes),
    /// A chunk of physical memory.
    Chunk(u64),
    /// Pinned memory of the host.
    Pinned(Address),
    /// What our pool has and nobody uses.
    Cached,
}

/// The device.
pub(super) struct Device {
    pub(super) driver: &'static Driver,
    pub(super) context: Arc<CudaContext>,
    pub(super) number: i32,
    pub(super) name: String,
    /// Of the driver: 12040 for CUDA 12.4.
    pub(super) version: i32,
    pub(super) total: Bytes,
    pub(super) granularity: Bytes,
    pub(super) source: CudaSource,
    pub(super) exportable: bool,
    /// Who may read and write: the device itself first, then its peers.
    pub(super) access: Vec<AccessDesc>,
    /// Our own pool, if memory comes from one.
    pool: Handle,
    /// A stream of our own for the pool's calls and for copies.
    pub(super) stream: Handle,
    /// Events that stand for nothing at the moment.
    pub(super) events: Mutex<Vec<Handle>>,
    /// Streams of cudarc that are known, by handle: none is destroyed while memory may wait for it.
    /// How many allocators know each.
    pub(super) kept: Mutex<HashMap<Handle, (Arc<CudaStream>, usize)>>,
    /// Captures that were announced and have not ended. Who waits for the device reads it as long
    /// as that takes: no capture begins meanwhile.
    pub(super) captures: RwLock<usize>,
    stranded: Mutex<Vec<Holding>>,
    is_stranded: AtomicBool,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Device {
    /// The device behind a context.
    pub(super) fn open(
        context: &Arc<CudaContext>,
        options: &CudaOptions,
    ) -> Result<Self, CudaUnavailable> {
        let (driver, number) = probe::find(context.ordinal())?;
        let entry = Entry::new(driver, context.cu_ctx() as Handle)
            .map_err(CudaUnavailable::at("cuCtxSetCurrent"))?;
        // A driver that has the functions knows the attribute: a refusal is no answer.
        let has = |attribute| {
            let value = driver.attribute(number, attribute);
            let value = value.map_err(CudaUnavailable::at("cuDeviceGetAttribute"))?;
            Ok::<_, CudaUnavailable>(value != 0)
        };
        let pages = driver.has_pages() && has(VIRTUAL_SUPPORTED)?;
        let pools = driver.has_pools() && has(POOLS_SUPPORTED)?;
        let source = choose(options.source, pages, pools)?;
        let exportable = options.exportable;
        if exportable && !(source == CudaSource::Virtual && has(EXPORT_SUPPORTED)?) {
            return Err(CudaUnavailable::Unsupported { what: "memory that can be exported" });
        }
        if !options.peers.is_empty() && source != CudaSource::Virtual {
            return Err(CudaUnavailable::Unsupported { what: "memory for other devices" });
        }
        let granularity = match source {
            CudaSource::Virtual => driver
                .granularity(number, exportable)
                .map_err(CudaUnavailable::at("cuMemGetAllocationGranularity"))?,
            CudaSource::Pool | CudaSource::Plain => 2 * MIB,
        };
        let mut access = vec![AccessDesc::of(number)];
        for &peer in &options.peers {
            access.push(AccessDesc::of(probe::find(peer)?.1));
        }
        let total = driver.total(number).map_err(CudaUnavailable::at("cuDeviceTotalMem"))?;
        let name = driver.name(number).unwrap_or_else(|_| "CUDA device".to_owned());
        let version = driver.version().unwrap_or(0);
        let stream = driver.create_stream().map_err(CudaUnavailable::at("cuStreamCreate"))?;
        // From here on the device's own drop gives back what there is.
        let mut device = Self {
            driver,
            context: Arc::clone(context),
            number,
            name,
            version,
            total,
            granularity,
            source,
            exportable,
            access,
            pool: 0,
            stream,
            events: Mutex::default(),
            kept: Mutex::default(),
            captures: RwLock::new(0),
            stranded: Mutex::default(),
            is_stranded: AtomicBool::new(false),
        };
        if source == CudaSource::Pool {
            let pool = driver.create_pool(number);
            device.pool = pool.map_err(CudaUnavailable::at("cuMemPoolCreate"))?;
        }
        drop(entry);
        Ok(device)
    }

    /// Makes the context current for the calling thread, until the entry is dropped.
    pub(super) fn enter(&self) -> Result<Entry, Code> {
        Entry::new(self.driver, self.context.cu_ctx() as Handle)
    }

    /// Calls the driver with the context current.
    pub(super) fn inside<T>(
        self: &Arc<Self>,
        call: impl FnOnce(&Arc<Self>) -> Result<T, Lost>,
    ) -> Result<T, Lost> {
        let entry = self.enter().or_else(|_| self.enter());
        let _entry = entry.map_err(|code| lost("cuCtxSetCurrent", code))?;
        call(self)
    }

    /// The largest segment and range of addresses.
    pub(super) fn segment_max(&self) -> Bytes {
        align_down(SEGMENT_MAX, self.granularity)
    }

    /// Free bytes, as the driver sees them.
    pub(super) fn free_bytes(&self) -> Option<Bytes> {
        let _entry = self.enter().ok()?;
        self.driver.mem_info().ok().map(|(free, _)| free)
    }

    /// A segment in one piece from the pool, or by `cuMemAlloc`.
    pub(super) fn allocate(&self, size: Bytes) -> Result<Holding, Code> {
        if self.source == CudaSource::Plain {
            return self.driver.mem_alloc(size).map(Holding::Plain);
        }
        let address = self.driver.pool_alloc(size, self.pool, self.stream)?;
        match self.driver.synchronize_stream(self.stream) {
            Ok(()) => Ok(Holding::Pooled(address)),
            Err(code) => {
                self.give_back(Holding::Pooled(address));
                Err(code)
            }
        }
    }

    /// Waits until the device has done all that was submitted.
    ///
    /// While a stream is captured this may not be asked: the capture would be broken by it.
    pub(super) fn quiesce(&self) -> Result<(), Code> {
        let captures = self.captures.read().unwrap_or_else(PoisonError::into_inner);
        if *captures > 0 {
            return Err(Code::CAPTURE_UNSUPPORTED);
        }
        self.driver.synchronize_context()
    }

    /// Gives something back, now or (V2) later. Inside an entry.
    pub(super) fn give_back(&self, holding: Holding) {
        let taken =
            if self.is_filled(holding) { Err(Code::NOT_READY) } else { self.release(holding) };
        if let Err(code) = taken {
            if !code.is_loss() {
                log::debug!(
                    "aquifer: the driver did not take {holding:?} back: {code}; later then"
                );
            }
            self.stranded().push(holding);
            self.is_stranded.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it is a range in which a chunk is stranded: that comes first, or the driver would
    /// be given addresses in use.
    fn is_filled(&self, holding: Holding) -> bool {
        let Holding::Range(start, size) = holding else { return false };
        let range = start..start + size;
        let inside = |held: &Holding| matches!(held, Holding::Mapping(at, _) if range.contains(at));
        self.is_stranded.load(Ordering::Relaxed) && self.stranded().iter().any(inside)
    }

    /// Offers what is stranded again. Inside an entry.
    pub(super) fn retry(&self) {
        if !self.is_stranded.load(Ordering::Relaxed) {
            return;
        }
        let stranded = std::mem::take(&mut *self.stranded());
        self.is_stranded.store(false, Ordering::Relaxed);
        stranded.into_iter().for_each(|holding| self.give_back(holding));
    }

    fn stranded(&self) -> MutexGuard<'_, Vec<Holding>> {
        self.stranded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives something back, if the driver takes it.
    fn release(&self, holding: Holding) -> Result<(), Code> {
        let driver = self.driver;
        match holding {
            // Both wait for the work of the device themselves.
            Holding::Plain(address) => driver.mem_free(address),
            Holding::Pinned(address) => {
                let start = std::ptr::with_exposed_provenance_mut(address as usize);
                driver.host_free(start)
            }
            Holding::Pooled(address) => {
                self.quiesce()?;
                driver.pool_free(address, self.stream)?;
                self.give_back(Holding::Cached);
                Ok(())
            }
            Holding::Cached => {
                // Only what the host has seen complete is trimmed.
                driver.synchronize_stream(self.stream)?;
                driver.trim_pool(self.pool)
            }
            Holding::Mapping(address, size) => {
                self.quiesce()?;
                driver.unmap(address, size)
            }
            Holding::Range(address, size) => driver.address_free(address, size),
            Holding::Chunk(chunk) => driver.release(chunk),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let Ok(_entry) = self.enter().or_else(|_| self.enter()) else { return };
        // A call that failed once may pass the second time.
        let twice = |call: &dyn Fn() -> Result<(), Code>| call().or_else(|_| call());
        self.retry();
        self.retry();
        let events =
            std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner));
        let mut failed = None;
        for event in events {
            failed = twice(&|| self.driver.destroy_event(event)).err().or(failed);
        }
        if self.pool != 0 {
            failed = twice(&|| self.driver.destroy_pool(self.pool)).err().or(failed);
        }
        failed = twice(&|| self.driver.destroy_stream(self.stream)).err().or(failed);
        let stranded = self.stranded().len();
        if let Some(code) = failed.filter(|code| !code.is_loss()) {
            log::warn!("aquifer: the driver did not take everything back: {code}");
        }
        if stranded > 0 {
            log::warn!("aquifer: the driver did not take {stranded} pieces of memory back");
        }
    }
}

/// Where memory comes from: what was asked for, if the device has it, or the best it has.
fn choose(
    asked: Option<CudaSource>,
    pages: bool,
    pools: bool,
) -> Result<CudaSource, CudaUnavailable> {
    match asked {
        Some(CudaSource::Virtual) if !pages => {
            Err(CudaUnavailable::Unsupported { what: "virtual memory" })
        }
        Some(CudaSource::Pool) if !pools => {
            Err(CudaUnavailable::Unsupported { what: "memory pools" })
        }
        Some(source) => Ok(source),
        None if pages => Ok(CudaSource::Virtual),
        None if pools => Ok(CudaSource::Pool),
        None => Ok(CudaSource::Plain),
    }
}

/// The calling thread inside our context (V1).
#[derive(Debug)]
pub(super) struct Entry {
    driver: &'static Driver,
    /// The context to return to, if it was another.
    previous: Option<Handle>,
    mode: i32,
    /// An entry is of the thread that made it.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Entry {
    fn new(driver: &'static Driver, context: Handle) -> Result<Self, Code> {
        let current = driver.context_current()?;
        let mut previous = None;
        if current != context {
            // Others release contexts that are current; those are not to be returned to.
            let is_live = current != 0 && driver.is_context_live();
            previous = Some(if is_live { current } else { 0 });
            driver.set_context(context)?;
        }
        // Another thread's capture forbids what we do to threads that are not relaxed about it.
        match driver.exchange_capture_mode(RELAXED) {
            Ok(mode) => Ok(Self { driver, previous, mode, _thread: std::marker::PhantomData }),
            Err(code) => {
                if let Some(previous) = previous {
                    let _ = driver.set_context(previous);
                }
                Err(code)
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // What is refused once may pass the second time; of the rest there is nobody to tell, and
        // the thread's next call of the driver says it again.
        let exchange = || self.driver.exchange_capture_mode(self.mode);
        let _ = exchange().or_else(|_| exchange());
        if let Some(previous) = self.previous {
            let set = || self.driver.set_context(previous);
            let _ = set().or_else(|_| set());
        }
    }
}

/// A refusal of memory in the words of the contract.
pub(super) fn grow_error(call: &str, code: Code) -> GrowError {
    if code.is_loss() {
        return GrowError::Lost(lost(call, code));
    }
    if code != Code::OUT_OF_MEMORY {
        log::warn!("aquifer: {call}: {code}; taken for a want of memory");
    }
    GrowError::OutOfMemory
}

/// The device is gone, or in a state that nobody knows.
pub(super) fn lost(call: &str, code: Code) -> Lost {
    Lost::new(format!("{call}: {code}"))
}
