//! The contract between the policy core and whatever owns the memory.
//!
//! A backend is called **on the slow path only**: a cache hit never reaches it. It decides nothing:
//! sizes, order and moment of every call come from the core, so a backend is a thin translation
//! (the target is at most 400 lines) and the same policy runs over all of them.
//!
//! Rules that hold for every method:
//!
//! - Sizes and offsets are multiples of [`Limits::granularity`] and never zero.
//! - Memory moves **by value**: passing it to [`Backend::free`] is the only way to lose it.
//! - No lock of the allocator is held during a call, so a call may block, and may be made from
//!   several threads at once.
//! - A backend never panics on what a device does. What nobody could foresee comes back as
//!   [`GrowError`] or [`Lost`].
//! - What an API cannot do is absent (`virtual_memory() == None`, `Limits::device_wait == false`);
//!   it is never called then.

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod host;
pub mod sim;
#[cfg(feature = "wgpu")]
pub mod wgpu;

#[cfg(feature = "cuda")]
pub use cuda::{
    Cuda, CudaChunk, CudaEvent, CudaMemory, CudaOptions, CudaPinned, CudaSource, CudaStreamId,
    CudaUnavailable, CudaView, CudaVirtual, PinnedMemory, PinnedView,
};
pub use host::{Host, HostEvent, HostMemory, HostView, resident_bytes};
pub use sim::{CallCounts, Fault, Sim, SimChunk, SimEvent, SimMemory, SimOptions, SimView, WorkId};
#[cfg(feature = "wgpu")]
pub use wgpu::{MemoryInfo, MemorySource, Role, Wgpu, WgpuEvent, WgpuMemory, WgpuSegment};

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use crate::units::Bytes;

/// What a device can do and how much it has. Constant for one backend instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Memory of the device in bytes, if known: fractions are taken of it.
    pub total: Option<Bytes>,
    /// Segment sizes are multiples of this; the device really gives this much at least.
    pub granularity: Bytes,
    /// Every segment starts at a multiple of this (in bytes, a power of two, at least 512).
    pub alignment: Bytes,
    /// The largest single segment, in bytes.
    pub segment_max: Bytes,
    /// Whether [`Backend::wait_on`] orders streams on the device, without the host.
    pub device_wait: bool,
    /// Whether the work of all streams ends up in one queue, in the order in which it is submitted
    /// (or is done at once): then what is submitted comes before all that is submitted later.
    pub one_queue: bool,
}

impl Limits {
    /// Limits of a device with 2 MiB pages, no known size and device-side waits.
    pub const fn new() -> Self {
        Self {
            total: None,
            granularity: 2 << 20,
            alignment: 2 << 20,
            segment_max: crate::units::SEGMENT_MAX,
            device_wait: true,
            one_queue: false,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new()
    }
}

/// Which sort of memory a segment is made of; the numbers are the backend's own (0 is its default).
///
/// wgpu uses it for buffer roles, CUDA for pinned host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MemoryKind(pub u8);

/// The device is gone, or in a state in which nothing can be known of it any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    detail: Arc<str>,
}

impl Lost {
    /// A loss with the backend's own words about it.
    pub fn new(detail: impl Into<Arc<str>>) -> Self {
        Self { detail: detail.into() }
    }

    /// What the backend said.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the device was lost: {}", self.detail)
    }
}

impl std::error::Error for Lost {}

/// Why a backend gave no memory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum GrowError {
    /// The device has no room now; after a trim it may have.
    OutOfMemory,
    /// The request is beyond a limit of the API; trimming does not help.
    TooLarge,
    /// The device is gone.
    Lost(Lost),
}

impl std::fmt::Display for GrowError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GrowError::OutOfMemory => f.write_str("the device has no room for the segment"),
            GrowError::TooLarge => f.write_str("the segment is beyond a limit of the device's API"),
            GrowError::Lost(lost) => write!(f, "{lost}"),
        }
    }
}

impl std::error::Error for GrowError {}

impl From<Lost> for GrowError {
    fn from(lost: Lost) -> Self {
        GrowError::Lost(lost)
    }
}

/// Owns device memory, streams and events. See the module's rules.
pub trait Backend: Send + Sync + 'static {
    /// One segment, owned: a device allocation, or a reserved range of addresses.
    type Memory: Send + Sync;
    /// What a user needs to reach the bytes of a segment: a buffer handle, a base pointer.
    type View: Clone + Send + Sync;
    /// One ordered timeline of device work.
    type Stream: Copy + Eq + Hash + Debug + Send + Sync;
    /// A mark on a stream.
    type Event: Send + Sync;
    /// Virtual memory, or [`NoVirtual`] where the API has none.
    type Virtual: VirtualMemory<Memory = Self::Memory>;

    /// One line for people: the backend and the device it drives.
    fn describe(&self) -> String;
    /// What the device can do; the same answer every time.
    fn limits(&self) -> Limits;
    /// The stream that work goes to when the user names none.
    fn default_stream(&self) -> Self::Stream;

    /// A new segment of `size` bytes.
    ///
    /// # Errors
    /// As [`GrowError`] says; nothing is held then.
    fn allocate(&self, size: Bytes, kind: MemoryKind) -> Result<Self::Memory, GrowError>;
    /// Gives a segment (or a range of addresses with nothing mapped) back. Work on it that was
    /// submitted before may still run: the backend waits, or defers, as its API needs.
    fn free(&self, memory: Self::Memory);
    /// How users reach the segment's bytes.
    fn view(&self, memory: &Self::Memory) -> Self::View;
    /// The device address of the segment's first byte, where the API has addresses.
    fn address(&self, memory: &Self::Memory) -> Option<u64>;

    /// Marks the present end of `stream`.
    ///
    /// # Errors
    /// [`Lost`] if the device is gone.
    fn record(&self, stream: Self::Stream) -> Result<Self::Event, Lost>;
    /// Whether everything before the mark is done. Never blocks.
    ///
    /// # Errors
    /// [`Lost`] if the device is gone.
    fn is_complete(&self, event: &Self::Event) -> Result<bool, Lost>;
    /// Blocks the calling thread until everything before the mark is done.
    ///
    /// # Errors
    /// [`Lost`] if the device is gone.
    fn wait(&self, event: &Self::Event) -> Result<(), Lost>;
    /// Makes later work on `stream` wait for the mark, on the device, without blocking the host.
    ///
    /// # Errors
    /// [`Lost`] if the device is gone.
    fn wait_on(&self, stream: Self::Stream, event: &Self::Event) -> Result<(), Lost>;
    /// Whether the mark can be waited for now. `false` as long as the stream is captured and nobody
    /// said so: then neither [`wait`](Self::wait) nor [`wait_on`](Self::wait_on) is called for it,
    /// and it is asked again later. Never blocks.
    fn is_waitable(&self, event: &Self::Event) -> bool {
        let _ = event;
        true
    }
    /// Whether all that was *captured* on `earlier` so far comes before what is captured on `later`
    /// next, in the graph that both become. Asked while captures are under way: makes no call that
    /// would break one. `false` where that is not known.
    fn is_joined(&self, earlier: Self::Stream, later: Self::Stream) -> bool;

    /// Free memory of the device in bytes as the driver sees it (other programs counted in).
    fn free_bytes(&self) -> Option<Bytes>;
    /// Virtual memory, if the API has it and it is switched on.
    fn virtual_memory(&self) -> Option<&Self::Virtual>;
}

/// A backend whose bytes the program can read and write itself, through a plain pointer.
///
/// # Safety
/// Whoever implements this promises, for every view made by [`Backend::view`]:
///
/// - [`bytes`](Self::bytes) points into the segment, at `offset` bytes from its start, with the
///   alignment that [`Limits::alignment`] and the offset give.
/// - These bytes are initialised, readable and writable until the segment is freed.
/// - The same view and offset give the same pointer every time.
/// - Bytes of a segment are bytes of no other live segment, nor of anything else in the process.
pub unsafe trait HostVisible: Backend {
    /// The bytes from `offset` on of the segment behind `view`, valid for `len` bytes. No lock, no
    /// system call.
    ///
    /// # Safety
    /// - The segment behind `view` was made by this backend and is not freed as long as the pointer
    ///   is used.
    /// - `offset + len` is at most the size of the segment.
    /// - While the pointer is used to write, nobody else reads or writes these bytes.
    unsafe fn bytes(&self, view: &Self::View, offset: Bytes, len: Bytes) -> *mut u8;
}

/// Ranges of addresses whose pages are mapped and unmapped one chunk at a time.
///
/// Life of a range: [`reserve`](Self::reserve) → any number of `create` → `map` → `set_access` …
/// `unmap` → `map` elsewhere or `release` → [`Backend::free`] once nothing is mapped in it.
pub trait VirtualMemory: Send + Sync {
    /// The reserved range; the same type as a segment, so that users see no difference.
    type Memory: Send + Sync;
    /// Physical memory that is mapped nowhere.
    type Chunk: Send;

    /// A range of `size` bytes of addresses with nothing behind them.
    ///
    /// # Errors
    /// As [`GrowError`] says.
    fn reserve(&self, size: Bytes) -> Result<Self::Memory, GrowError>;
    /// `size` bytes of physical memory.
    ///
    /// # Errors
    /// As [`GrowError`] says.
    fn create(&self, size: Bytes) -> Result<Self::Chunk, GrowError>;
    /// Puts a chunk behind the addresses from `offset` on. They cannot be touched before
    /// [`set_access`](Self::set_access).
    ///
    /// # Errors
    /// The chunk comes back with the reason.
    fn map(
        &self,
        memory: &Self::Memory,
        offset: Bytes,
        chunk: Self::Chunk,
    ) -> Result<(), (Self::Chunk, GrowError)>;
    /// Makes a run of mapped chunks accessible; one call may span many chunks.
    ///
    /// # Errors
    /// As [`GrowError`] says; the chunks stay mapped.
    fn set_access(
        &self,
        memory: &Self::Memory,
        offset: Bytes,
        size: Bytes,
    ) -> Result<(), GrowError>;
    /// Takes the chunk that was mapped at `offset` out again; all work on it is complete.
    ///
    /// # Errors
    /// [`Lost`] if the device is gone; the chunk is gone with it.
    fn unmap(&self, memory: &Self::Memory, offset: Bytes) -> Result<Self::Chunk, Lost>;
    /// Gives physical memory back to the device.
    fn release(&self, chunk: Self::Chunk);
}

/// The absence of virtual memory: no value of this type exists, so none of it can be called.
#[derive(Debug)]
pub enum NoVirtual<M> {
    #[doc(hidden)]
    Never(std::convert::Infallible, std::marker::PhantomData<fn() -> M>),
}

impl<M: Send + Sync> VirtualMemory for NoVirtual<M> {
    type Memory = M;
    type Chunk = std::convert::Infallible;

    fn reserve(&self, _: Bytes) -> Result<M, GrowError> {
        match *self {
            NoVirtual::Never(never, _) => match never {},
        }
    }
    fn create(&self, _: Bytes) -> Result<Self::Chunk, GrowError> {
        match *self {
            NoVirtual::Never(never, _) => match never {},
        }
    }
    fn map(&self, _: &M, _: Bytes, chunk: Self::Chunk) -> Result<(), (Self::Chunk, GrowError)> {
        match chunk {}
    }
    fn set_access(&self, _: &M, _: Bytes, _: Bytes) -> Result<(), GrowError> {
        match *self {
            NoVirtual::Never(never, _) => match never {},
        }
    }
    fn unmap(&self, _: &M, _: Bytes) -> Result<Self::Chunk, Lost> {
        match *self {
            NoVirtual::Never(never, _) => match never {},
        }
    }
    fn release(&self, chunk: Self::Chunk) {
        match chunk {}
    }
}
