//! The CUDA backend as a device that the shared suites run on: streams are numbers, and a test that
//! makes a second device gets another one of the same driver.
//!
//! The fake driver's devices are as large as the test wants them. With `AQUIFER_CUDA=real` all of
//! them are the machine's first one, each with a count of its own that refuses what goes beyond.
#![allow(dead_code)] // Each test program uses its part.

#[path = "driver.rs"]
mod driver;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use aquifer::backend::{
    Backend, Cuda, CudaChunk, CudaEvent, CudaMemory, CudaOptions, CudaSource, CudaStreamId,
    CudaView, GrowError, Limits, Lost, MemoryKind, VirtualMemory,
};
use cudarc::driver::{CudaStream, result};
use driver::Driver;

use crate::cuda::{self, Fake, Options};
use crate::support::Device;

/// One driver and the devices of it that the test has made.
#[derive(Debug)]
pub(crate) struct Session {
    driver: Driver,
    devices: AtomicU32,
}

thread_local! {
    /// The driver of the test that runs on this thread.
    static HERE: RefCell<Weak<Session>> = const { RefCell::new(Weak::new()) };
}

impl Session {
    /// The one of this thread's test, or a fresh one.
    fn here(options: Options) -> Arc<Self> {
        HERE.with_borrow_mut(|here| {
            here.upgrade().unwrap_or_else(|| {
                let devices = AtomicU32::new(0);
                let session = Arc::new(Self { driver: Driver::with(options), devices });
                *here = Arc::downgrade(&session);
                session
            })
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(fake) = self.driver.fake().filter(|_| !std::thread::panicking()) {
            fake.assert_no_leaks();
        }
    }
}

/// What a device may hand out, and has.
#[derive(Debug)]
struct Bound {
    capacity: u64,
    used: AtomicU64,
    /// Bytes of segments by their address.
    segments: Mutex<BTreeMap<u64, u64>>,
}

impl Bound {
    /// Takes bytes, and gives them back if `make` fails.
    fn charge<T>(
        &self,
        size: u64,
        make: impl FnOnce() -> Result<T, GrowError>,
    ) -> Result<T, GrowError> {
        let take = |used: u64| used.checked_add(size).filter(|used| *used <= self.capacity);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map_err(|_| GrowError::OutOfMemory)?;
        make().inspect_err(|_| self.refund(size))
    }

    fn refund(&self, size: u64) {
        self.used.fetch_sub(size, Ordering::Relaxed);
    }

    fn segments(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pages of a device, counted.
#[derive(Debug)]
pub(crate) struct Pages {
    cuda: Cuda,
    bound: Arc<Bound>,
}

impl Pages {
    fn inner(&self) -> &<Cuda as Backend>::Virtual {
        self.cuda.virtual_memory().expect("made only where there is virtual memory")
    }
}

impl VirtualMemory for Pages {
    type Memory = CudaMemory;
    type Chunk = (CudaChunk, u64);

    fn reserve(&self, size: u64) -> Result<CudaMemory, GrowError> {
        self.inner().reserve(size)
    }

    fn create(&self, size: u64) -> Result<(CudaChunk, u64), GrowError> {
        let chunk = self.bound.charge(size, || self.inner().create(size))?;
        Ok((chunk, size))
    }

    fn map(
        &self,
        memory: &CudaMemory,
        offset: u64,
        (chunk, size): (CudaChunk, u64),
    ) -> Result<(), ((CudaChunk, u64), GrowError)> {
        let mapped = self.inner().map(memory, offset, chunk);
        mapped.map_err(|(chunk, error)| ((chunk, size), error))?;
        let address = self.cuda.address(memory).expect("a range has an address") + offset;
        self.bound.segments().insert(address, size);
        Ok(())
    }

    fn set_access(&self, memory: &CudaMemory, offset: u64, size: u64) -> Result<(), GrowError> {
        self.inner().set_access(memory, offset, size)
    }

    fn unmap(&self, memory: &CudaMemory, offset: u64) -> Result<(CudaChunk, u64), Lost> {
        let chunk = self.inner().unmap(memory, offset)?;
        let address = self.cuda.address(memory).expect("a range has an address") + offset;
        let size = self.bound.segments().remove(&address).expect("it was mapped there");
        Ok((chunk, size))
    }

    fn release(&self, (chunk, size): (CudaChunk, u64)) {
        self.inner().release(chunk);
        self.bound.refund(size);
    }
}

/// A device of the driver. Clones are the same device.
#[derive(Debug, Clone)]
pub(crate) struct CudaDevice {
    // Declared, and so dropped, before the session: that looks for what was not given back.
    cuda: Arc<Cuda>,
    streams: Arc<Mutex<BTreeMap<u32, Arc<CudaStream>>>>,
    pages: Option<Arc<Pages>>,
    bound: Arc<Bound>,
    number: u32,
    pub(crate) session: Arc<Session>,
}

impl CudaDevice {
    /// A device whose memory comes from such a source.
    pub(crate) fn new(options: Options, source: CudaSource) -> Self {
        let session = Session::here(Options { devices: 4, ..options });
        let number = session.devices.fetch_add(1, Ordering::Relaxed);
        let source = Some(source);
        let cuda_options = CudaOptions { source, ..CudaOptions::default() };
        // The fake driver counts by itself, pool and all.
        let is_fake = session.driver.fake().is_some();
        let capacity = if is_fake { u64::MAX } else { options.capacity };
        let cuda = Cuda::new(if is_fake { number as usize } else { 0 }, &cuda_options);
        let cuda = cuda.expect("there is a device");
        let (used, segments) = (AtomicU64::new(0), Mutex::default());
        let bound = Arc::new(Bound { capacity, used, segments });
        let pages = Pages { cuda: cuda.clone(), bound: Arc::clone(&bound) };
        let pages = cuda.virtual_memory().is_some().then(|| Arc::new(pages));
        Self { cuda: Arc::new(cuda), streams: Arc::default(), pages, bound, number, session }
    }

    pub(crate) fn with_pages(capacity: u64) -> Self {
        Self::new(Options { capacity, ..Options::default() }, CudaSource::Virtual)
    }

    pub(crate) fn with_pool(capacity: u64) -> Self {
        Self::new(Options { capacity, ..Options::default() }, CudaSource::Pool)
    }

    pub(crate) fn plain(capacity: u64) -> Self {
        Self::new(Options { capacity, ..Options::default() }, CudaSource::Plain)
    }

    pub(crate) fn cuda(&self) -> &Cuda {
        &self.cuda
    }

    pub(crate) fn fake(&self) -> &Fake {
        self.session.driver.fake().expect("the test is for the fake driver")
    }

    /// The stream that a number stands for, made at first sight.
    pub(crate) fn cuda_stream(&self, number: u32) -> Arc<CudaStream> {
        if number == 0 {
            return self.cuda.context().default_stream();
        }
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = streams
            .entry(number)
            .or_insert_with(|| self.cuda.context().new_stream().expect("the fake makes streams"));
        Arc::clone(stream)
    }

    fn stream(&self, number: u32) -> CudaStreamId {
        let stream = self.cuda_stream(number);
        // SAFETY: the stream lives as long as the device.
        unsafe { self.cuda.stream_of(stream.cu_stream() as usize) }.expect("the fake answers")
    }
}

/// An event, which keeps the device and so comes before the session's look for leaks.
#[derive(Debug)]
pub(crate) struct Marked {
    event: CudaEvent,
    _session: Arc<Session>,
}

impl Backend for CudaDevice {
    type Memory = CudaMemory;
    type View = CudaView;
    type Stream = u32;
    type Event = Marked;
    type Virtual = Pages;

    fn describe(&self) -> String {
        self.cuda.describe()
    }

    fn limits(&self) -> Limits {
        let mut limits = self.cuda.limits();
        limits.total = limits.total.map(|total| total.min(self.bound.capacity));
        limits
    }

    fn default_stream(&self) -> u32 {
        0
    }

    fn allocate(&self, size: u64, kind: MemoryKind) -> Result<CudaMemory, GrowError> {
        let granularity = self.cuda.limits().granularity;
        let rounded = size.checked_next_multiple_of(granularity).ok_or(GrowError::TooLarge)?;
        let memory = self.bound.charge(rounded, || self.cuda.allocate(size, kind))?;
        let address = self.cuda.address(&memory).expect("a segment has an address");
        self.bound.segments().insert(address, rounded);
        Ok(memory)
    }

    fn free(&self, memory: CudaMemory) {
        // Of a range nothing is left by now.
        let address = self.cuda.address(&memory).expect("a segment has an address");
        let size = self.bound.segments().remove(&address);
        self.cuda.free(memory);
        self.bound.refund(size.unwrap_or(0));
    }

    fn view(&self, memory: &CudaMemory) -> CudaView {
        self.cuda.view(memory)
    }

    fn address(&self, memory: &CudaMemory) -> Option<u64> {
        self.cuda.address(memory)
    }

    fn record(&self, stream: u32) -> Result<Marked, Lost> {
        let event = self.cuda.record(self.stream(stream))?;
        Ok(Marked { event, _session: Arc::clone(&self.session) })
    }

    fn is_complete(&self, event: &Marked) -> Result<bool, Lost> {
        self.cuda.is_complete(&event.event)
    }

    fn wait(&self, event: &Marked) -> Result<(), Lost> {
        self.cuda.wait(&event.event)
    }

    fn wait_on(&self, stream: u32, event: &Marked) -> Result<(), Lost> {
        self.cuda.wait_on(self.stream(stream), &event.event)
    }

    fn is_waitable(&self, event: &Marked) -> bool {
        self.cuda.is_waitable(&event.event)
    }

    fn is_joined(&self, earlier: u32, later: u32) -> bool {
        self.cuda.is_joined(self.stream(earlier), self.stream(later))
    }

    fn free_bytes(&self) -> Option<u64> {
        let left = self.bound.capacity - self.bound.used.load(Ordering::Relaxed);
        self.cuda.free_bytes().map(|free| free.min(left))
    }

    fn virtual_memory(&self) -> Option<&Pages> {
        self.pages.as_deref()
    }
}

/// The pattern of a seed.
fn pattern(seed: u64, len: u64) -> Vec<u64> {
    (seed..seed + len / 8).collect()
}

impl Device for CudaDevice {
    fn used(&self) -> u64 {
        match self.session.driver.fake() {
            Some(fake) => fake.used_bytes(self.number),
            None => self.bound.used.load(Ordering::Relaxed),
        }
    }

    fn write(&self, view: &CudaView, offset: u64, len: u64, seed: u64) {
        let (address, words) = (view.address() + offset, pattern(seed, len));
        match self.session.driver.fake() {
            Some(fake) => fake.write(address, bytemuck::cast_slice(&words)),
            None => {
                self.cuda.context().bind_to_thread().expect("the device is there");
                // SAFETY: the test holds so many bytes, and no work of the device is under way.
                unsafe { result::memcpy_htod_sync(address, &words) }.expect("a copy");
            }
        }
    }

    fn reads_back(&self, view: &CudaView, offset: u64, len: u64, seed: u64) -> bool {
        let (address, wanted) = (view.address() + offset, pattern(seed, len));
        match self.session.driver.fake() {
            Some(fake) => {
                let bytes = fake.read(address, len as usize);
                bytes == bytemuck::cast_slice::<u64, u8>(&wanted)
            }
            None => {
                self.cuda.context().bind_to_thread().expect("the device is there");
                let mut words = vec![0; wanted.len()];
                // SAFETY: the test holds so many bytes, and no work of the device is under way.
                unsafe { result::memcpy_dtoh_sync(&mut words, address) }.expect("a copy");
                words == wanted
            }
        }
    }
}
