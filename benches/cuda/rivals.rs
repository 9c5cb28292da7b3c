//! Who gives memory: this crate, and the driver in its three ways.

use std::ffi::c_void;
use std::hint::black_box;
use std::sync::Arc;

use aquifer::backend::{Cuda, CudaSource, Host};
use aquifer::{Allocation, Allocator, Config, CudaAllocator, CudaBuffer, OnStream, Stream};
use cudarc::driver::sys::{CUdeviceptr, CUmemPool_attribute, CUmemoryPool};
use cudarc::driver::{CudaStream, result};

use crate::driver::Driver;
use crate::harness::contest::Contender;

/// A contender with memory on the device.
pub(crate) trait OnDevice: Contender {
    /// Begins a turn with nothing cached.
    fn reset(&mut self);

    fn stream(&self) -> &Arc<CudaStream>;

    /// The most bytes that were reserved since the reset, if it can be known.
    fn reserved_peak(&self) -> Option<u64>;

    /// How often memory was asked of the driver since the reset; none: each time.
    fn growths(&self) -> Option<u64>;
}

/// This crate.
pub(crate) struct Own {
    here: OnStream,
    growths_before: u64,
}

impl Own {
    pub(crate) fn new(driver: &Driver, source: Option<CudaSource>) -> Option<Self> {
        let memory = driver.allocator(source)?;
        let stream = driver.context.new_stream().expect("a stream");
        let here = memory.on(&stream).expect("the driver knows it");
        Some(Self { here, growths_before: 0 })
    }

    pub(crate) fn memory(&self) -> &CudaAllocator {
        self.here.memory()
    }
}

impl Contender for Own {
    type Block = Allocation<Cuda>;

    fn allocate(&mut self, size: u64) -> Option<Allocation<Cuda>> {
        self.here.allocate(size).ok()
    }

    fn free(&mut self, block: Allocation<Cuda>) {
        drop(block);
    }

    // Without a detour through an `Option`, which would copy the handle once more.
    fn pair(&mut self, size: u64) {
        black_box(&self.here.allocate(size).expect("there is room"));
    }
}

impl OnDevice for Own {
    fn reset(&mut self) {
        self.memory().empty_cache();
        self.memory().reset_peak_memory_stats();
        self.growths_before = self.memory().memory_stats().num_device_alloc;
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.here.cuda_stream()
    }

    fn reserved_peak(&self) -> Option<u64> {
        Some(self.memory().max_memory_reserved())
    }

    fn growths(&self) -> Option<u64> {
        Some(self.memory().memory_stats().num_device_alloc - self.growths_before)
    }
}

/// This crate by its typed buffers.
pub(crate) struct OwnTyped(pub(crate) Own);

impl Contender for OwnTyped {
    type Block = CudaBuffer<u8>;

    fn allocate(&mut self, size: u64) -> Option<CudaBuffer<u8>> {
        // SAFETY: nobody reads it.
        unsafe { self.0.here.alloc(size as usize) }.ok()
    }

    fn free(&mut self, block: CudaBuffer<u8>) {
        drop(block);
    }
}

impl OnDevice for OwnTyped {
    fn reset(&mut self) {
        self.0.reset();
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.0.stream()
    }

    fn reserved_peak(&self) -> Option<u64> {
        self.0.reserved_peak()
    }

    fn growths(&self) -> Option<u64> {
        self.0.growths()
    }
}

/// The core over host memory: the same hit, and nothing of CUDA.
pub(crate) struct OnHost {
    allocator: Allocator<Host>,
    own: Stream<Host>,
    /// For a wait now and then, as the others have it.
    stream: Arc<CudaStream>,
}

impl OnHost {
    pub(crate) fn new(driver: &Driver) -> Self {
        let allocator = Allocator::new(Host::new(), Config::default());
        let (own, stream) = (allocator.stream(1), driver.context.new_stream().expect("a stream"));
        Self { allocator, own, stream }
    }
}

impl Contender for OnHost {
    type Block = Allocation<Host>;

    fn allocate(&mut self, size: u64) -> Option<Allocation<Host>> {
        self.allocator.allocate_on(&self.own, size).ok()
    }

    fn free(&mut self, block: Allocation<Host>) {
        drop(block);
    }

    fn pair(&mut self, size: u64) {
        black_box(&self.allocator.allocate_on(&self.own, size).expect("there is room"));
    }
}

impl OnDevice for OnHost {
    fn reset(&mut self) {}

    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    fn reserved_peak(&self) -> Option<u64> {
        None
    }

    fn growths(&self) -> Option<u64> {
        None
    }
}

/// `cuMemAllocAsync` on the device's default pool.
pub(crate) struct Async {
    stream: Arc<CudaStream>,
    pool: CUmemoryPool,
    /// Bytes that the pool keeps when somebody waits for the device.
    threshold: u64,
}

impl Async {
    pub(crate) fn new(driver: &Driver, threshold: u64) -> Self {
        let stream = driver.context.new_stream().expect("a stream");
        let device = result::device::get(0).expect("there is a device");
        // SAFETY: the device is there.
        let pool = unsafe { result::device::get_default_mem_pool(device) };
        Self { stream, pool: pool.expect("the device has a pool"), threshold }
    }

    fn set(&self, attribute: CUmemPool_attribute, mut value: u64) {
        let value = (&raw mut value).cast::<c_void>();
        // SAFETY: these attributes are of 64 bits.
        unsafe { result::mem_pool::set_attribute(self.pool, attribute, value) }
            .expect("the pool takes it");
    }
}

impl Contender for Async {
    type Block = CUdeviceptr;

    fn allocate(&mut self, size: u64) -> Option<CUdeviceptr> {
        // SAFETY: the stream is alive.
        unsafe { result::malloc_async(self.stream.cu_stream(), size as usize) }.ok()
    }

    fn free(&mut self, block: CUdeviceptr) {
        // SAFETY: it was allocated, and nothing is submitted after this that uses it.
        unsafe { result::free_async(block, self.stream.cu_stream()) }.expect("it is live");
    }
}

impl OnDevice for Async {
    /// The pool is one for both of them: each begins with its own threshold, and nothing in it.
    fn reset(&mut self) {
        self.stream.synchronize().expect("the device is there");
        // SAFETY: the pool is the device's own.
        unsafe { result::mem_pool::trim_to(self.pool, 0) }.expect("a pool can be trimmed");
        self.set(CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, self.threshold);
        self.set(CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH, 0);
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    fn reserved_peak(&self) -> Option<u64> {
        let mut peak = 0_u64;
        let (attribute, value) = (
            CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH,
            (&raw mut peak).cast::<c_void>(),
        );
        // SAFETY: the attribute is of 64 bits.
        unsafe { result::mem_pool::get_attribute(self.pool, attribute, value) }.ok()?;
        Some(peak)
    }

    fn growths(&self) -> Option<u64> {
        None
    }
}

/// `cuMemAlloc`.
pub(crate) struct Plain {
    stream: Arc<CudaStream>,
}

impl Plain {
    pub(crate) fn new(driver: &Driver) -> Self {
        Self { stream: driver.context.new_stream().expect("a stream") }
    }
}

impl Contender for Plain {
    type Block = CUdeviceptr;

    fn allocate(&mut self, size: u64) -> Option<CUdeviceptr> {
        // SAFETY: a context is current.
        unsafe { result::malloc_sync(size as usize) }.ok()
    }

    fn free(&mut self, block: CUdeviceptr) {
        // SAFETY: it was allocated; the driver waits for its users.
        unsafe { result::free_sync(block) }.expect("it is live");
    }
}

impl OnDevice for Plain {
    fn reset(&mut self) {}

    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    fn reserved_peak(&self) -> Option<u64> {
        None
    }

    fn growths(&self) -> Option<u64> {
        None
    }
}
