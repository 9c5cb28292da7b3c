//! The allocator as users of wgpu have it: buffers, encoders, bindings.
//!
//! ```text
//!   your program     encoder ── begin ──▶ Scope ── submit ──▶ queue
//!        │                                  │ allocate, bind, upload, download
//!   WgpuAllocator ── lanes, staging, scrub ─┤
//!        │                                  ▼
//!   Allocator<Wgpu>          blocks, streams, recordings, limits, statistics
//! ```
//!
//! # The hazard
//!
//! `queue.write_buffer` runs before every encoder of the next submission, however early that was
//! recorded, and encoders run where they are submitted, not where they were recorded. Memory that
//! is reused at once, without care, is overwritten under work that is still to run: in a random
//! program 76 % of the live blocks were wrong. So:
//!
//! - every encoder that uses memory of this allocator, and is not submitted at once, is begun with
//!   [`WgpuAllocator::begin`];
//! - bytes come by [`Scope::upload`], or by [`WgpuAllocator::write_now`], which refuses where it
//!   would overtake; never by `queue.write_buffer`.
//!
//! A program that keeps to these two needs no wait, no flush, and no more memory than lives at a
//! time. (A scope of [`Reuse::Quarantine`] allows `queue.write_buffer` into what was allocated in
//! it and not used yet, at the price of more memory.)
//!
//! | file         | what it owns |
//! |--------------|--------------|
//! | `allocation` | a block as a range of a buffer; where it may have been used |
//! | `request`    | a request with more to say |
//! | `scope`      | one encoder from beginning to submission |
//! | `lanes`      | the streams that scopes record on |
//! | `staging`    | upload chunks |
//! | `transfer`   | writes and reads outside of scopes; downloads |
//! | `vec`        | typed vectors |
//! | `scrub`      | clearing what is freed |
//! | `movable`    | allocations that may be moved, and moving them |
//! | `error`      | what can go wrong with moving bytes |

mod allocation;
mod error;
mod lanes;
mod movable;
mod request;
mod scope;
mod scrub;
mod staging;
mod transfer;
mod vec;

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, Weak};

use wgpu::{Backends, Buffer, CommandEncoder, Device, Queue};

pub use allocation::WgpuAllocation;
pub use error::{DownloadError, UploadError};
pub use movable::{Defragmented, Movable};
pub use request::WgpuRequest;
pub use scope::{Finished, Scope, Upload};
pub use transfer::Download;
pub use vec::{GpuVec, VecDownload};

use crate::allocator::{
    AllocError, Allocation, Allocator, CallbackGuard, MemInfo, PoolOptions, PrivatePool, Stream,
};
use crate::backend::wgpu::recommended_device_descriptor;
use crate::backend::{Backend, Lost, MemoryInfo, Role, Wgpu};
use crate::config::{Config, ConfigError};
use crate::id::Tag;
use crate::units::{Bytes, MIB};

/// What is special to wgpu, beside the [`Config`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WgpuOptions {
    /// Bytes; 256 MiB. Uploads on their way may take so many at a time.
    pub upload_cap: Bytes,
    /// Bytes; 1 MiB. Uploads share chunks of this size; larger ones get one of their own.
    pub upload_chunk: Bytes,
    /// Bytes; 256 MiB. Downloads that were not dropped may take so many at a time.
    pub readback_cap: Bytes,
    /// `false`. Freed memory is cleared before anyone can have it, and waits for the scopes that
    /// may use it: for hosts whose tenants must not read one another's data. Except buffers of the
    /// role [`Upload`](Role::Upload), which the CPU fills itself.
    pub scrub_on_free: bool,
    /// `true`. Without a limit in the [`Config`], one is set: most of what the device has
    /// ([`MemoryInfo::cap`]), since drivers page to the host's memory long before they refuse.
    pub cap_memory: bool,
}

impl Default for WgpuOptions {
    fn default() -> Self {
        Self {
            upload_cap: 256 * MIB,
            upload_chunk: MIB,
            readback_cap: 256 * MIB,
            scrub_on_free: false,
            cap_memory: true,
        }
    }
}

/// When a scope's own freed memory may be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reuse {
    /// At once, for what is recorded in the scope later. Bytes come by [`Scope::upload`].
    #[default]
    Ordered,
    /// When the scope was submitted. What is allocated in the scope, and not used yet, may be
    /// written by `queue.write_buffer` too. Takes about three times the memory.
    Quarantine,
}

/// Why there is no device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenError {
    /// No adapter was found; what wgpu says about it.
    NoAdapter(String),
    /// The adapter gave no device; what wgpu says about it.
    NoDevice(String),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::NoAdapter(detail) => write!(f, "no GPU was found: {detail}"),
            OpenError::NoDevice(detail) => write!(f, "the GPU could not be opened: {detail}"),
        }
    }
}

impl std::error::Error for OpenError {}

/// A caching allocator of wgpu buffers. Cheap to clone; clones are the same allocator.
///
/// Statistics, holders, snapshots, limits and the like are those of [`Allocator`], to which this
/// dereferences.
///
/// # Examples
/// ```no_run
/// # fn run(device: wgpu::Device, queue: wgpu::Queue) -> Result<(), Box<dyn std::error::Error>> {
/// use aquifer::WgpuAllocator;
///
/// let memory = WgpuAllocator::new(device.clone(), queue);
/// let mut encoder = device.create_command_encoder(&Default::default());
/// let mut scope = memory.begin(&mut encoder);
/// let block = scope.allocate(4096)?;
/// scope.upload(&mut encoder, &block, 0, &[7; 4096])?;
/// let back = scope.download(&mut encoder, &block)?;
/// drop(block); // The scope has its bytes back at once, for what it records from here on.
/// scope.submit(encoder);
/// assert_eq!(back.wait()?, [7; 4096]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct WgpuAllocator {
    shared: Arc<Shared>,
}

/// What all handles of one allocator share.
struct Shared {
    core: Allocator<Wgpu>,
    options: WgpuOptions,
    /// One for each role but `Storage`, which is the core's own.
    pools: Vec<PrivatePool<Wgpu>>,
    lanes: lanes::Lanes,
    staging: staging::Staging,
    staging_tag: Tag,
    /// Where downloads go. Neither these nor the upload chunks share buffers with what programs
    /// ask for by role: bytes on their way are nobody else's.
    downloads: PrivatePool<Wgpu>,
    /// Bytes of downloads that live.
    readback: AtomicU64,
    scrubber: Option<Arc<scrub::Scrubber>>,
    movables: Mutex<Vec<Weak<movable::Slot>>>,
    _pressure: CallbackGuard,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("core", &self.core).finish_non_exhaustive()
    }
}

impl Shared {
    fn new(backend: Wgpu, config: Config, options: WgpuOptions) -> Result<Arc<Self>, ConfigError> {
        let unlimited = config.memory_limit.is_none() && config.memory_fraction >= 1.0;
        let core = Allocator::try_new(backend, config)?;
        if unlimited && options.cap_memory {
            core.set_memory_limit(core.backend().memory_info().map(|info| info.cap()));
        }
        let pool_of = |role: &Role| {
            let (kind, exclusive) = (role.kind(), role.is_exclusive());
            core.create_pool(PoolOptions { kind, exclusive, ..PoolOptions::default() })
        };
        let pools: Vec<_> = Role::ALL[1..].iter().map(pool_of).collect();
        let [uploads, downloads] = [Role::Upload, Role::Readback].map(|role| pool_of(&role));
        let staging_tag = core.tag("staging");
        let sizes = (options.upload_chunk, options.upload_cap);
        let scrub = options.scrub_on_free;
        Ok(Arc::new_cyclic(|weak: &Weak<Self>| {
            let weak = weak.clone();
            let pressure = core.on_out_of_memory(0, move |_| {
                weak.upgrade().is_some_and(|shared| shared.relieve())
            });
            Self {
                staging: staging::Staging::new(uploads, staging_tag, sizes),
                scrubber: scrub.then(|| Arc::new(scrub::Scrubber::new(core.backend().clone()))),
                core,
                options,
                pools,
                lanes: lanes::Lanes::new(),
                staging_tag,
                downloads,
                readback: AtomicU64::new(0),
                movables: Mutex::new(Vec::new()),
                _pressure: pressure,
            }
        }))
    }

    /// Memory has run out: what can come free without the program's doing; whether anything could.
    fn relieve(&self) -> bool {
        // Upload chunks come back when the work that reads them is complete. A lost device has
        // nothing to wait for.
        let _ = self.core.backend().synchronize();
        let swept = self.lanes.sweep(&self.core);
        self.staging.trim(&self.core);
        let scrubbed = self.scrub();
        swept || scrubbed
    }

    /// Clears what waits for it, if scrubbing is on; whether anything was.
    fn scrub(&self) -> bool {
        self.scrubber.as_ref().is_some_and(|scrubber| scrubber.flush())
    }

    /// The private pool of a role; `Storage` has none.
    fn pool(&self, role: Role) -> Option<&PrivatePool<Wgpu>> {
        (role as usize).checked_sub(1).map(|at| &self.pools[at])
    }

    fn exclusive_pool(&self) -> &PrivatePool<Wgpu> {
        &self.pools[Role::StorageExclusive as usize - 1]
    }

    /// The most bytes of a block of this role, if blocks of the role are bound.
    fn binding_max(&self, role: Role) -> Option<Bytes> {
        match role {
            Role::Storage | Role::StorageExclusive => Some(self.core.backend().binding_max()),
            Role::Uniform => Some(self.core.backend().uniform_max()),
            _ => None,
        }
    }

    /// A request with nothing more to say than its size: the moves of the builder cost 30 ns.
    #[track_caller]
    #[inline]
    fn allocate(
        &self,
        stream: Option<&Stream<Wgpu>>,
        size: Bytes,
    ) -> Result<WgpuAllocation, AllocError> {
        self.core.backend().check().map_err(AllocError::DeviceLost)?;
        let limit = self.core.backend().binding_max();
        if size > limit {
            return Err(AllocError::TooLarge { requested: size, limit });
        }
        let block = match stream {
            Some(stream) => self.core.allocate_on(stream, size),
            None => self.core.allocate(size),
        };
        block.map(|block| self.wrap(block, stream))
    }

    /// A block in its user's hands, who asked for it on a stream, or on none.
    fn wrap(&self, block: Allocation<Wgpu>, stream: Option<&Stream<Wgpu>>) -> WgpuAllocation {
        WgpuAllocation::new(block, stream.map_or(0, Stream::index), self.scrubber.clone())
    }
}

impl WgpuAllocator {
    /// An allocator of buffers of `device`, with the defaults.
    ///
    /// The device's callback for its loss is replaced; see [`Wgpu::new`].
    pub fn new(device: Device, queue: Queue) -> Self {
        let made = Self::with(device, queue, Config::default(), WgpuOptions::default());
        made.expect("the default configuration is valid")
    }

    /// An allocator of buffers of `device`.
    ///
    /// # Errors
    /// If the configuration is not valid.
    pub fn with(
        device: Device,
        queue: Queue,
        config: Config,
        options: WgpuOptions,
    ) -> Result<Self, ConfigError> {
        Ok(Self { shared: Shared::new(Wgpu::new(device, queue), config, options)? })
    }

    /// Finds an adapter of one of `backends`, preferring the fastest, and opens a device as
    /// [`recommended_device_descriptor`] describes it.
    ///
    /// # Errors
    /// If there is none, or it gives no device.
    pub async fn open(backends: Backends) -> Result<Self, OpenError> {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = backends;
        let instance = wgpu::Instance::new(descriptor);
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = instance.request_adapter(&options).await;
        let adapter = adapter.map_err(|error| OpenError::NoAdapter(error.to_string()))?;
        let device = adapter.request_device(&recommended_device_descriptor(&adapter)).await;
        let (device, queue) = device.map_err(|error| OpenError::NoDevice(error.to_string()))?;
        Ok(Self::new(device, queue))
    }

    /// The same allocator over another device, after the loss of this one: same configuration, same
    /// options, nothing allocated. What is allocated here is gone with its device; drop it.
    pub fn rebuild(&self, device: Device, queue: Queue) -> Self {
        let (config, options) = (self.shared.core.config().clone(), self.shared.options.clone());
        let made = Self::with(device, queue, config, options);
        made.expect("a configuration that was valid is valid")
    }

    fn of(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared) }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.shared.core.backend().device()
    }

    /// Its queue.
    pub fn queue(&self) -> &Queue {
        self.shared.core.backend().queue()
    }

    /// The options, as given.
    pub fn options(&self) -> &WgpuOptions {
        &self.shared.options
    }

    /// Begins a scope: `encoder` is about to be recorded. Locks all streams in turn, some
    /// microseconds.
    pub fn begin(&self, encoder: &mut CommandEncoder) -> Scope {
        self.begin_with(encoder, Reuse::Ordered)
    }

    /// As [`begin`](Self::begin), and says when the scope's own memory may be used again.
    pub fn begin_with(&self, encoder: &mut CommandEncoder, reuse: Reuse) -> Scope {
        self.shared.scrub();
        let berth = self.shared.lanes.begin(&self.shared.core, encoder);
        Scope::new(&self.shared, berth, reuse)
    }

    /// A request with more to say: role, tag, alignment.
    pub fn request(&self, size: Bytes) -> WgpuRequest<'_> {
        WgpuRequest::new(&self.shared, size)
    }

    /// `size` bytes of the role `Storage`, outside of scopes, with whatever an earlier owner left
    /// in them. For what lives longer than a scope: weights, data.
    ///
    /// # Errors
    /// [`AllocError`], when everything that could free memory has been tried;
    /// [`AllocError::TooLarge`] if the device cannot bind so many bytes at once (see
    /// [`WgpuRequest::unbound`]).
    #[track_caller]
    #[inline]
    pub fn allocate(&self, size: Bytes) -> Result<WgpuAllocation, AllocError> {
        self.shared.allocate(None, size)
    }

    /// As [`allocate`](Self::allocate), all zero.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    #[track_caller]
    pub fn allocate_zeroed(&self, size: Bytes) -> Result<WgpuAllocation, AllocError> {
        let allocation = self.allocate(size)?;
        self.shared.clear(&allocation);
        Ok(allocation)
    }

    /// As [`allocate`](Self::allocate), in a buffer that holds none of `inputs`: then a dispatch
    /// may bind them as `read` and this as `read_write`. Falls back to a buffer of its own.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    #[track_caller]
    pub fn allocate_avoiding<'a>(
        &'a self,
        size: Bytes,
        inputs: impl IntoIterator<Item = &'a WgpuAllocation>,
    ) -> Result<WgpuAllocation, AllocError> {
        self.request(size).avoiding(inputs).allocate()
    }

    /// Copies `bytes` to `to`, from `offset` bytes on, in a submission of its own: before
    /// everything that is recorded and not submitted.
    ///
    /// # Errors
    /// [`UploadError::Unordered`] if some of that may use the same bytes: nothing was written then.
    ///
    /// # Panics
    /// As [`Scope::upload`].
    pub fn write_now(
        &self,
        to: &WgpuAllocation,
        offset: Bytes,
        bytes: &[u8],
    ) -> Result<(), UploadError> {
        self.shared.write(to, offset, bytes)
    }

    /// All bytes of `from`, as they are after everything that was submitted. Blocks; on the web use
    /// [`Scope::download`].
    ///
    /// # Errors
    /// If there is no memory for the way, or the device is gone.
    pub fn read(&self, from: &WgpuAllocation) -> Result<Vec<u8>, DownloadError> {
        self.shared.read(from)
    }

    /// Gives every byte back that can be given back, and says how many that were; then waits until
    /// the driver has them. What open scopes may use stays. Upload chunks that are idle go as well:
    /// they count as allocated, so that this may be more than `releasable_bytes` said.
    pub fn empty_cache(&self) -> Bytes {
        self.shared.relieve();
        let returned = self.shared.core.empty_cache();
        // Scrubbing submitted more work; what it cleared was free at once, and goes when that is
        // done. A lost device gives its buffers up as ever.
        let _ = self.synchronize();
        self.shared.core.backend().poll();
        returned
    }

    /// Calls `hook` with every buffer that is about to be given back: a bind group that is kept
    /// would keep its memory. No lock of the allocator is held.
    pub fn on_segment_release(&self, hook: impl Fn(&Buffer) + Send + Sync + 'static) {
        self.shared.core.backend().on_segment_release(hook);
    }

    /// Free and total memory of the device, as [`memory_info`](Self::memory_info) has them.
    pub fn mem_get_info(&self) -> Option<MemInfo> {
        self.memory_info().map(|info| MemInfo { free: info.free, total: info.total })
    }

    /// Free and total memory of the device, and who says so; `None` if nobody does. A driver call.
    pub fn memory_info(&self) -> Option<MemoryInfo> {
        self.shared.core.backend().memory_info()
    }

    /// Bytes of upload chunks, in use or ready; they count as allocated.
    pub fn staging_bytes(&self) -> Bytes {
        self.shared.staging.held_bytes()
    }

    /// Blocks until all that was submitted is complete; see [`Wgpu::synchronize`].
    ///
    /// # Errors
    /// If the device is gone.
    pub fn synchronize(&self) -> Result<(), Lost> {
        self.shared.core.backend().synchronize()
    }
}

impl Deref for WgpuAllocator {
    type Target = Allocator<Wgpu>;

    fn deref(&self) -> &Allocator<Wgpu> {
        &self.shared.core
    }
}

impl fmt::Debug for WgpuAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WgpuAllocator")
            .field("device", &self.shared.core.backend().describe())
            .field("memory_allocated", &self.memory_allocated())
            .field("memory_reserved", &self.memory_reserved())
            .finish_non_exhaustive()
    }
}
