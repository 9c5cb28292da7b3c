//! The allocator as users of CUDA have it: streams and buffers of cudarc, captures, pinned memory.
//!
//! ```text
//!   your program     Arc<CudaContext>, Arc<CudaStream>, kernels
//!        │                                  │
//!   CudaAllocator ── on(&stream) ──▶ OnStream ── alloc_zeros, clone_htod ──▶ CudaBuffer<T>
//!        │    │                              DevicePtr, DevicePtrMut, kernel argument
//!        │    └── pinned() ──▶ Allocator<CudaPinned> ──▶ PinnedBuffer<T>
//!   Allocator<Cuda>            blocks, streams, events, limits, statistics
//! ```
//!
//! # Streams
//!
//! A buffer belongs to the stream it was allocated on: dropped, that stream has its bytes back at
//! once, with no event and no call of the driver. Used on another stream through cudarc's copies
//! and libraries, or by a kernel of which [`CudaBuffer::record_on`] tells, that stream is recorded,
//! and nobody gets the bytes before both are past their uses. What *order* the work of two streams
//! has is the program's business, as ever (`CudaStream::wait`, `join`). A copy
//! *between devices* by cudarc asks for its source as if that stayed on its own stream: keep the
//! source until the copy is done.
//!
//! The backend keeps an `Arc<CudaStream>` as long as the stream is known, so none is
//! destroyed while memory waits for it; when nobody else has it any more, it is forgotten at the
//! next stream that is new, or by [`CudaAllocator::forget_idle_streams`].
//!
//! | file      | what it owns |
//! |-----------|--------------|
//! | `streams` | which cudarc stream is which of ours |
//! | `buffer`  | typed buffers and views, cudarc's traits for them |
//! | `pinned`  | typed pinned buffers, copies |
//! | `capture` | graph captures |
//! | `pause`   | memory that leaves the device and comes back |

mod buffer;
mod capture;
mod pause;
mod pinned;
mod streams;

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaStream};

pub use buffer::{BorrowedSlice, CudaBuffer, CudaBufferView, CudaBufferViewMut};
pub use capture::CudaCapture;
pub use pause::Contents;
pub use pinned::PinnedBuffer;
pub use streams::OnStream;

use crate::allocator::{
    AllocError, Allocation, Allocator, MaybeOutOfMemory, PauseError, Stream, is_out_of_memory,
};
use crate::backend::cuda::Code;
#[cfg(unix)]
use crate::backend::cuda::{ShareError, SharedMemory};
use crate::backend::{Cuda, CudaOptions, CudaPinned, CudaSource, CudaUnavailable, Lost};
use crate::config::{Config, ConfigError};
use crate::units::{Bytes, MIB};

/// Chunks of large ranges: mapping costs the driver as much for 2 MiB as for these.
const LARGE_CHUNK: Bytes = 32 * MIB;

/// Pinned memory that has been idle for so long goes back at the next
/// [`CudaAllocator::maintain`].
const PINNED_AGE: Duration = Duration::from_secs(60);

/// Why an operation on CUDA memory failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaError {
    /// There is no memory; see there.
    Alloc(AllocError),
    /// The driver refused a copy or the like.
    Driver(Code),
    /// Memory cannot be paused or resumed now.
    Pause(PauseError),
    /// The device is gone.
    Lost(Lost),
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alloc(error) => error.fmt(f),
            Self::Driver(code) => code.fmt(f),
            Self::Pause(error) => error.fmt(f),
            Self::Lost(lost) => lost.fmt(f),
        }
    }
}

impl std::error::Error for CudaError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Alloc(error) => Some(error),
            Self::Driver(code) => Some(code),
            Self::Pause(error) => Some(error),
            Self::Lost(lost) => Some(lost),
        }
    }
}

impl MaybeOutOfMemory for CudaError {
    fn is_out_of_memory(&self) -> bool {
        is_out_of_memory(self)
    }
}

impl From<AllocError> for CudaError {
    fn from(error: AllocError) -> Self {
        Self::Alloc(error)
    }
}

impl From<PauseError> for CudaError {
    fn from(error: PauseError) -> Self {
        Self::Pause(error)
    }
}

impl From<Lost> for CudaError {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

impl From<cudarc::driver::DriverError> for CudaError {
    fn from(error: cudarc::driver::DriverError) -> Self {
        // Its own words are the driver's to give, which may be gone.
        Self::Driver(Code(error.0 as i32))
    }
}

/// Why there is no allocator.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaOpenError {
    /// There is no device, or it lacks something.
    Unavailable(CudaUnavailable),
    /// The configuration is not valid.
    Config(ConfigError),
}

impl fmt::Display for CudaOpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(error) => error.fmt(f),
            Self::Config(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CudaOpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unavailable(error) => Some(error),
            Self::Config(error) => Some(error),
        }
    }
}

impl From<CudaUnavailable> for CudaOpenError {
    fn from(error: CudaUnavailable) -> Self {
        Self::Unavailable(error)
    }
}

impl From<ConfigError> for CudaOpenError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

/// A caching allocator of one CUDA device. Cheap to clone; clones are the same allocator.
///
/// Statistics, holders, snapshots, limits, private pools and the like are those of [`Allocator`],
/// to which this dereferences.
///
/// # Examples
/// ```no_run
/// use aquifer::CudaAllocator;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let memory = CudaAllocator::open(0)?;
/// let stream = memory.context().new_stream()?;
/// let here = memory.on(&stream)?;
/// let weights = here.clone_htod(&[1.0_f32; 1000])?;
/// let mut sums = here.alloc_zeros::<f32>(1000)?;
/// stream.memcpy_dtod(&weights, &mut sums)?; // As a CudaSlice: copies, cuBLAS, kernels.
/// drop(weights); // The stream has the bytes back at once; the driver is not called.
/// assert_eq!(stream.clone_dtoh(&sums)?[0], 1.0);
/// println!("{} bytes given back", memory.empty_cache());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct CudaAllocator {
    shared: Arc<Shared>,
}

/// What all handles of one allocator share.
struct Shared {
    core: Allocator<Cuda>,
    pinned: OnceLock<Allocator<CudaPinned>>,
    pausable: pause::Pausable,
    /// Dropped last: the allocators may still wait for a stream when they go.
    streams: streams::Known,
}

impl CudaAllocator {
    /// An allocator of device `ordinal`, in its primary context, with the defaults: virtual memory
    /// where the device has it.
    ///
    /// # Errors
    /// [`CudaOpenError::Unavailable`] says what is missing: the driver, the device, the number.
    /// Never a panic, on any machine.
    pub fn open(ordinal: usize) -> Result<Self, CudaOpenError> {
        let backend = Cuda::new(ordinal, &CudaOptions::default())?;
        let config = Self::recommended_config(backend.source());
        Ok(Self::with(backend, config)?)
    }

    /// An allocator in a context of cudarc, with the defaults.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, CudaOpenError> {
        let backend = Cuda::with_context(context, &CudaOptions::default())?;
        let config = Self::recommended_config(backend.source());
        Ok(Self::with(backend, config)?)
    }

    /// An allocator over a device, with a configuration of the program's own.
    ///
    /// # Errors
    /// If the configuration is not valid.
    pub fn with(backend: Cuda, config: Config) -> Result<Self, ConfigError> {
        let core = Allocator::try_new(backend, config)?;
        let (streams, pausable) = (streams::Known::default(), pause::Pausable::default());
        Ok(Self { shared: Arc::new(Shared { core, streams, pinned: OnceLock::new(), pausable }) })
    }

    /// The default policy for memory from such a source. With virtual memory: expandable segments
    /// in chunks of 32 MiB (2 MiB for small requests), of which some are moved when more than 1 %
    /// of what was ever in use would be reserved.
    ///
    /// A chunk costs the driver the same whatever its size, so chunks here are larger than
    /// [`Config::default`] has them: over 21 traces of real programs reserved memory is 1.012 times
    /// what is live instead of 1.008, for a quarter of the calls.
    pub fn recommended_config(source: CudaSource) -> Config {
        let mut config = Config::default();
        if source == CudaSource::Virtual {
            config.expandable_segments = true;
            config.large_segment = LARGE_CHUNK;
            config.chunk_share = 0.0;
        }
        config
    }

    /// The context.
    pub fn context(&self) -> &Arc<CudaContext> {
        self.shared.core.backend().context()
    }

    /// This allocator's memory on a stream, which is known from then on. Keep it for loops: finding
    /// a stream takes a lock.
    ///
    /// # Errors
    /// If the driver does not say which stream it is.
    ///
    /// # Panics
    /// If more than 4094 streams are known at a time, or the stream is another context's.
    pub fn on(&self, stream: &Arc<CudaStream>) -> Result<OnStream, Lost> {
        assert!(
            stream.context() == self.context(),
            "the stream belongs to another context: use the allocator of its device"
        );
        let handle = stream.cu_stream() as usize;
        if let Some(known) = self.shared.streams.lookup(&self.shared.core, handle) {
            return Ok(OnStream::new(self, known, stream));
        }
        self.forget_idle_streams();
        let known = self.shared.streams.enter(&self.shared.core, stream)?;
        Ok(OnStream::new(self, known, stream))
    }

    fn known_stream(&self, handle: usize) -> Option<Stream<Cuda>> {
        self.shared.streams.lookup(&self.shared.core, handle)
    }

    /// Forgets the streams that nobody else has any more, whose handles are destroyed with that;
    /// returns how many. Their cached memory goes on to serve other streams.
    pub fn forget_idle_streams(&self) -> usize {
        self.shared.streams.sweep(self.backend(), |gone| {
            self.shared.core.forget_stream(gone);
            if let Some(pinned) = self.shared.pinned.get() {
                pinned.forget_stream(gone);
            }
        })
    }

    /// Pinned memory of the host for copies to and from this device: its own allocator, with its
    /// own statistics, limits and cache. What is idle for a minute goes back by
    /// [`maintain`](Self::maintain). To cap it, [`Allocator::set_memory_limit`].
    pub fn pinned(&self) -> &Allocator<CudaPinned> {
        self.shared.pinned.get_or_init(|| {
            let config = Config { trim_age: Some(PINNED_AGE), ..Config::default() };
            Allocator::new(CudaPinned::new(self.shared.core.backend()), config)
        })
    }

    /// As [`Allocator::maintain`], of pinned memory too.
    pub fn maintain(&self, now: Duration) -> Bytes {
        let pinned = self.shared.pinned.get().map_or(0, |pinned| pinned.maintain(now));
        self.shared.core.maintain(now) + pinned
    }

    /// An allocation for other processes, which [`Cuda::import`] it there. Keep the allocation as
    /// long as they use it: what is freed may be moved, and is another's then.
    ///
    /// # Errors
    /// [`ShareError::NotExportable`] if the device was opened without
    /// [`CudaOptions::exportable`], or the allocation is empty; what the driver refuses.
    #[cfg(unix)]
    pub fn share(&self, allocation: &Allocation<Cuda>) -> Result<SharedMemory, ShareError> {
        let (offset, size) = (allocation.offset(), allocation.size());
        let backend = self.backend();
        let shared = allocation.with_memory(|memory| backend.export(memory, offset, size));
        shared.unwrap_or(Err(ShareError::NotExportable))
    }

    /// Blocks until the device has done all that was submitted.
    ///
    /// # Errors
    /// If the device is gone, or a stream is being captured.
    pub fn synchronize(&self) -> Result<(), Lost> {
        self.shared.core.backend().synchronize()
    }
}

impl Deref for CudaAllocator {
    type Target = Allocator<Cuda>;

    fn deref(&self) -> &Allocator<Cuda> {
        &self.shared.core
    }
}

impl fmt::Debug for CudaAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.shared.core, f)
    }
}
