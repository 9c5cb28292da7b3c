//! The device under test, its kernels, and how much of everything there is.

use aquifer::backend::{Cuda, CudaOptions, CudaSource, CudaUnavailable};
use aquifer::{CudaAllocator, CudaBuffer, OnStream};
use cudarc::driver::{CudaFunction, DeviceSlice, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

use crate::cuda::Options;
use crate::driver::{Driver, is_real};
use crate::support::MIB;

/// A device with an allocator; the driver goes last.
pub(crate) struct Device {
    pub(crate) words: Words,
    pub(crate) memory: CudaAllocator,
    pub(crate) driver: Driver,
}

/// One number for the machine's device, another for the fake one, and where it is only to be seen
/// that it works: `AQUIFER_CUDA_SHORT`.
pub(crate) fn pick<T>(real: T, fake: T) -> T {
    let is_short = std::env::var_os("AQUIFER_CUDA_SHORT").is_some();
    if is_real() && !is_short { real } else { fake }
}

impl Device {
    /// With the defaults; work of the fake device waits until somebody waits for it.
    pub(crate) fn new() -> Self {
        Self::with_source(None).expect("there is a device")
    }

    /// With memory from this source; none, if the device lacks it.
    pub(crate) fn with_source(source: Option<CudaSource>) -> Option<Self> {
        let driver = Driver::with(Options { asynchronous: true, ..Options::default() });
        let cuda = match Cuda::new(0, &CudaOptions { source, ..CudaOptions::default() }) {
            Ok(cuda) => cuda,
            Err(CudaUnavailable::Unsupported { what }) => {
                println!("left out: the device has no {what}");
                return None;
            }
            Err(error) => panic!("there is no device: {error}"),
        };
        let config = CudaAllocator::recommended_config(cuda.source());
        let memory = CudaAllocator::with(cuda, config).expect("the configuration is valid");
        let words = Words::load(&memory);
        Some(Self { words, memory, driver })
    }

    /// A new stream.
    pub(crate) fn stream(&self) -> OnStream {
        let stream = self.memory.context().new_stream().expect("a stream");
        self.memory.on(&stream).expect("the driver knows it")
    }

    /// Bytes that a test may hold: what is free, within reason.
    pub(crate) fn room(&self) -> u64 {
        let free = self.memory.mem_get_info().expect("the driver tells").free;
        (free / 2).min(pick(8 << 10, 300) * MIB)
    }

    /// Lets the fake device do what waits in a stream. A real one does so by itself.
    pub(crate) fn advance(&self, on: &OnStream) {
        if let Some(fake) = self.driver.fake() {
            let stream = on.cuda_stream();
            fake.complete(stream.context().cu_ctx() as u64, stream.cu_stream() as u64);
        }
    }

    /// Everything was dropped, so everything comes back.
    pub(crate) fn finish(self) {
        let Self { words, memory, driver } = self;
        memory.synchronize().expect("the device is there");
        memory.verify();
        assert_eq!(memory.memory_allocated(), 0, "somebody holds something");
        memory.empty_cache();
        memory.pinned().empty_cache();
        assert_eq!((memory.memory_reserved(), memory.pinned().memory_reserved()), (0, 0));
        drop((words, memory));
        if let Some(fake) = driver.fake() {
            fake.assert_no_leaks();
        }
    }
}

/// The kernels of `shaders/cuda/words.ptx`.
pub(crate) struct Words {
    fill: CudaFunction,
    stamp: CudaFunction,
    check: CudaFunction,
}

/// Kernels go on in strides of the grid.
fn blocks(words: usize) -> LaunchConfig {
    LaunchConfig::for_num_elems(words.clamp(1, 1 << 20) as u32)
}

impl Words {
    fn load(memory: &CudaAllocator) -> Self {
        let text = include_str!("../../shaders/cuda/words.ptx");
        let module = memory.context().load_module(Ptx::from_src(text)).expect("valid PTX");
        let load = |name| module.load_function(name).expect("a kernel of that name");
        Self { fill: load("fill_u32"), stamp: load("stamp_u32"), check: load("check_u32") }
    }

    pub(crate) fn fill(&self, on: &OnStream, buffer: &mut CudaBuffer<u32>, value: u32) {
        let (count, config) = (buffer.len() as u64, blocks(buffer.len()));
        let mut launch = on.cuda_stream().launch_builder(&self.fill);
        launch.arg(buffer).arg(&count).arg(&value);
        // SAFETY: the buffer has so many words, and the callers keep their streams in order.
        unsafe { launch.launch(config) }.expect("a launch");
    }

    /// Word i becomes `seed + i`.
    pub(crate) fn stamp(&self, on: &OnStream, buffer: &mut CudaBuffer<u32>, seed: u32) {
        self.stamp_first(on, buffer, usize::MAX, seed);
    }

    /// The same of so many words, at most.
    pub(crate) fn stamp_first(
        &self,
        on: &OnStream,
        buffer: &mut CudaBuffer<u32>,
        words: usize,
        seed: u32,
    ) {
        let words = words.min(buffer.len());
        let count = words as u64;
        let mut launch = on.cuda_stream().launch_builder(&self.stamp);
        launch.arg(buffer).arg(&count).arg(&seed);
        // SAFETY: the buffer has so many words, and the callers keep their streams in order.
        unsafe { launch.launch(blocks(words)) }.expect("a launch");
    }

    /// Adds to the counter how many words are not `seed + i`.
    pub(crate) fn check(
        &self,
        on: &OnStream,
        buffer: &CudaBuffer<u32>,
        seed: u32,
        counter: &mut Counter,
    ) {
        self.check_first(on, buffer, usize::MAX, seed, counter);
    }

    /// The same of so many words, at most.
    pub(crate) fn check_first(
        &self,
        on: &OnStream,
        buffer: &CudaBuffer<u32>,
        words: usize,
        seed: u32,
        counter: &mut Counter,
    ) {
        let words = words.min(buffer.len());
        let count = words as u64;
        let mut launch = on.cuda_stream().launch_builder(&self.check);
        launch.arg(buffer).arg(&count).arg(&seed).arg(&mut counter.0);
        // SAFETY: the buffer has so many words, and the counter is of the stream.
        unsafe { launch.launch(blocks(words)) }.expect("a launch");
    }
}

/// Words of blocks that were not what they had to be, as one stream has seen them.
pub(crate) struct Counter(CudaBuffer<u64>);

impl Counter {
    pub(crate) fn new(on: &OnStream) -> Self {
        Self(on.alloc_zeros(1).expect("room for a word"))
    }

    /// Waits for the stream.
    pub(crate) fn wrong(&self) -> u64 {
        self.0.stream().clone_dtoh(&self.0).expect("the device is there")[0]
    }
}

/// Words on a stream, not written yet.
pub(crate) fn blank(on: &OnStream, words: usize) -> CudaBuffer<u32> {
    // SAFETY: the tests write before they read.
    unsafe { on.alloc(words) }.expect("there is room")
}
