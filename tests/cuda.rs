//! The CUDA backend and its surface over the fake driver: what a program sees of devices, streams,
//! buffers, pinned memory, captures, sharing and pausing.
//!
//! Every test has the driver for itself, and ends with the driver's own judgement: nothing was
//! misused, nothing was left.
#![cfg(all(feature = "cuda", target_os = "linux"))]

#[path = "cuda/buffers.rs"]
mod buffers;
#[path = "cuda/captures.rs"]
mod captures;
#[path = "support/cuda.rs"]
mod cuda;
#[path = "cuda/devices.rs"]
mod devices;
#[path = "cuda/leaving.rs"]
mod leaving;
#[path = "cuda/pinned.rs"]
mod pinned;
#[cfg(feature = "gz")]
#[path = "cuda/replays.rs"]
mod replays;
#[path = "cuda/streams.rs"]
mod streams;

use aquifer::CudaAllocator;
use aquifer::backend::{Cuda, CudaOptions, CudaSource};
use cuda::{Fake, Options};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// An allocator of the first device, with the defaults.
fn open(fake: &Fake) -> CudaAllocator {
    let _ = fake;
    CudaAllocator::open(0).expect("the fake has a device")
}

/// One whose memory comes from such a source.
fn open_source(fake: &Fake, source: CudaSource) -> CudaAllocator {
    let _ = fake;
    let options = CudaOptions { source: Some(source), ..CudaOptions::default() };
    let backend = Cuda::new(0, &options).expect("the fake has it all");
    let config = CudaAllocator::recommended_config(source);
    CudaAllocator::with(backend, config).expect("a valid configuration")
}

/// A driver whose work goes on until a hand moves it.
fn asynchronous() -> Options {
    Options { asynchronous: true, ..Options::default() }
}

/// All of the allocator goes, and the driver has everything back.
#[track_caller]
fn close(fake: &Fake, memory: CudaAllocator) {
    memory.verify();
    drop(memory);
    fake.assert_no_leaks();
}
