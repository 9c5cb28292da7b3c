//! Aquifer is a caching GPU memory allocator for any GPU: what `torch.cuda.memory` is to PyTorch,
//! for every program that computes on a GPU.
//!
//! Drivers are slow to allocate and slower to free, so memory that is freed stays cached and is
//! handed out again. This crate makes that cache fast, compact, observable and returnable: *my
//! training is done and my process lives on; where is my memory, who holds it, and how do I get it
//! back?*
//!
//! ```
//! use aquifer::{Allocator, Config, backend::Host};
//!
//! let allocator = Allocator::new(Host::new(), Config::default());
//! let model = allocator.tag("model");
//! let weights = allocator.request(4_000_000).tag(model).allocate()?;
//! let activations = allocator.allocate(256_000)?;
//! println!("{} of {} bytes in use", allocator.memory_allocated(), allocator.memory_reserved());
//! drop(activations); // cached: the next allocation gets it back within nanoseconds
//! for holder in allocator.holders() {
//!     println!("still held: {holder}"); // bytes, count, file:line, tag
//! }
//! drop(weights);
//! let returned = allocator.empty_cache(); // the operating system, or the driver, has it again
//! assert!(returned > 0 && allocator.memory_reserved() == 0);
//! # Ok::<(), aquifer::AllocError>(())
//! ```
//!
//! On a GPU, through wgpu, it is a `WgpuAllocator` (feature `wgpu`, on by default): the same
//! allocator with buffers, encoders and bindings. On NVIDIA's, through CUDA, it is a
//! `CudaAllocator` (feature `cuda`), with streams and buffers of cudarc. See `surface`.
//!
//! # The picture
//!
//! ```text
//!        your program                                  aquifer (feature cli): demo, replay, bench
//!            │                                                  │
//!            ├──▶ surface   wgpu: scopes, buffers, transfers    │
//!            │        │     cuda: streams, buffers, captures    │
//!            │        │                                         │
//!            │ allocate, drop, empty_cache, memory_stats        │
//!   ┌────────▼────────▼──────────────────────────────────────────────────────────┐
//!   │ allocator   the shell: lock → ask the core for a step → unlock →           │
//!   │             do it on the backend → lock → commit the outcome               │
//!   └───┬───────────────────────────┬────────────────────────────────┬───────────┘
//!       │ step / commit             │ reads                          │ Backend trait
//!   ┌───▼──────────────┐   ┌────────▼──────────┐       ┌─────────────▼────────────┐
//!   │ core  the policy │   │ report            │       │ backend host, sim, wgpu, │
//!   │                  │   │                   │       │         cuda             │
//!   └──────────────────┘   └───────────────────┘       └──────────────────────────┘
//! ```
//!
//! # Modules, in reading order
//!
//! A module uses only those above it; core and backend never see each other.
//!
//! | module | what it owns |
//! |--------|--------------|
//! | [`units`] | bytes and alignment arithmetic |
//! | `id` | typed handles |
//! | `ds` | data structures that know no word of the allocator |
//! | [`config`] | every knob; reads `PYTORCH_CUDA_ALLOC_CONF` |
//! | `core` | the policy: a deterministic state machine |
//! | [`report`] | statistics, summaries, snapshots, holders, scopes, out-of-memory reports |
//! | [`backend`] | the contract with devices; host memory; a simulated device; wgpu; CUDA |
//! | [`allocator`] | the shell: locks, backend calls, the public face |
//! | [`mod@vec`] | typed access to memory that the CPU can see |
//! | `surface` | what users of one API hold: wgpu's scopes, CUDA's streams and buffers |
//! | [`trace`] | recordings of allocations: read, write, replay |
//!
//! # Words
//!
//! - *segment*: one backend allocation, or one range of addresses with pages behind parts of it.
//! - *block*: bytes of a segment. **Free** (cached), **Allocated** (a user holds it), or
//!   **Pending** (freed, but a stream may still touch it).
//! - *pool*: segments and free blocks that are searched together: those of one stream, size group
//!   and owner.
//! - *arena*: one stream's pools; what a hit locks.
//! - *stream*: one ordered timeline of device work. *event*: a mark on it.
//! - *recording*: work of a stream that is written down and not handed to the device yet.
//! - *scope*: one encoder of wgpu from its beginning to its submission: a recording.
//! - *named scope* ([`Allocator::scope`]): a stretch of the program that is reported on.
//! - *trim*: give cached memory back. The public call keeps PyTorch's name, `empty_cache`.
//! - *backend*: whatever owns the memory.
//!
//! In bytes, at all times: requested ≤ allocated ≤ active = allocated + pending ≤ reserved, and
//! *reserved* is what the device has really given.

pub mod allocator;
pub mod backend;
pub mod config;
mod core;
mod ds;
mod id;
pub mod report;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub mod surface;
pub mod trace;
pub mod units;
pub mod vec;

pub use allocator::{
    AllocError, Allocation, Allocator, CallbackGuard, CaptureGuard, Crossing, FreeError,
    HistoryOptions, LimitError, MaybeOutOfMemory, MemInfo, PauseError, PoolOptions, Pressure,
    PrivatePool, RawAllocation, RecordingGuard, Request, RouteGuard, ScopeGuard, Stream, Threshold,
    find_executable_batch_size, find_executable_batch_size_with, is_out_of_memory,
};
pub use config::{Config, ConfigError};
pub use id::{AllocationId, PoolId, Tag};
pub use units::Bytes;
pub use vec::DeviceVec;

#[cfg(feature = "cuda")]
pub use backend::cuda::tune_default_pool;
#[cfg(feature = "cuda")]
pub use surface::cuda::{CudaAllocator, CudaBuffer, OnStream, PinnedBuffer};

#[cfg(feature = "wgpu")]
pub use backend::wgpu::recommended_device_descriptor;
#[cfg(feature = "wgpu")]
pub use surface::wgpu::{GpuVec, Scope, WgpuAllocation, WgpuAllocator, WgpuOptions};

/// The README's examples, so that they are compiled and run with the tests.
#[cfg(all(doctest, feature = "wgpu"))]
#[doc = include_str!("../README.md")]
struct Readme;
