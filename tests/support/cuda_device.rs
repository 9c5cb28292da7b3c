//! The CUDA backend over the fake driver, as a device that the shared suites run on: streams are
//! numbers, and a test that makes a second device gets another one of the same driver.
#![allow(dead_code)] // Each test program uses its part.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use aquifer::backend::{
    Backend, Cuda, CudaEvent, CudaMemory, CudaOptions, CudaSource, CudaStreamId, CudaView,
    CudaVirtual, GrowError, Limits, Lost, MemoryKind,
};
use cudarc::driver::CudaStream;

use crate::cuda::{Fake, Options};
use crate::support::Device;

/// One driver and the devices of it that the test has made.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) fake: Fake,
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
                let session = Arc::new(Self { fake: Fake::fresh(options), devices });
                *here = Arc::downgrade(&session);
                session
            })
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.fake.assert_no_leaks();
        }
    }
}

/// A device of the fake driver. Clones are the same device.
#[derive(Debug, Clone)]
pub(crate) struct CudaDevice {
    // Declared, and so dropped, before the session: that looks for what was not given back.
    cuda: Arc<Cuda>,
    streams: Arc<Mutex<BTreeMap<u32, Arc<CudaStream>>>>,
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
        let cuda = Cuda::new(number as usize, &cuda_options).expect("the fake has this device");
        Self { cuda: Arc::new(cuda), streams: Arc::default(), number, session }
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
        &self.session.fake
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
    type Virtual = CudaVirtual;

    fn describe(&self) -> String {
        self.cuda.describe()
    }

    fn limits(&self) -> Limits {
        self.cuda.limits()
    }

    fn default_stream(&self) -> u32 {
        0
    }

    fn allocate(&self, size: u64, kind: MemoryKind) -> Result<CudaMemory, GrowError> {
        self.cuda.allocate(size, kind)
    }

    fn free(&self, memory: CudaMemory) {
        self.cuda.free(memory);
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

    fn is_joined(&self, earlier: u32, later: u32) -> bool {
        self.cuda.is_joined(self.stream(earlier), self.stream(later))
    }

    fn free_bytes(&self) -> Option<u64> {
        self.cuda.free_bytes()
    }

    fn virtual_memory(&self) -> Option<&CudaVirtual> {
        self.cuda.virtual_memory()
    }
}

/// The pattern of a seed.
fn pattern(seed: u64, len: u64) -> Vec<u64> {
    (seed..seed + len / 8).collect()
}

impl Device for CudaDevice {
    fn used(&self) -> u64 {
        self.session.fake.used_bytes(self.number)
    }

    fn write(&self, view: &CudaView, offset: u64, len: u64, seed: u64) {
        let words = pattern(seed, len);
        self.session.fake.write(view.address() + offset, bytemuck::cast_slice(&words));
    }

    fn reads_back(&self, view: &CudaView, offset: u64, len: u64, seed: u64) -> bool {
        let bytes = self.session.fake.read(view.address() + offset, len as usize);
        bytes == bytemuck::cast_slice::<u64, u8>(&pattern(seed, len))
    }
}
