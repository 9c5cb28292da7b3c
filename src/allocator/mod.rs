//! The shell: locks, calls the backend, and gives the core a face.
//!
//! ```text
//!  allocate ─▶ lock the stream's arena ─▶ take ─▶ unlock                              a hit
//!                                           │ nothing fits
//!              lock everything ─▶ Step ─▶ unlock ─▶ backend ─▶ lock ─▶ commit ─┐      a miss
//!                     ▲────────────────────────────────────────────────────────┘
//! ```
//!
//! **Locks.** Each stream has a lock of its own; a hit takes that one and nothing else that is
//! shared and written. A miss takes the global lock and then all streams' locks in order of
//! registration. No lock is held across a call of the backend or of a callback.
//!
//! **Lifetimes.** An [`Allocation`] keeps its stream's part of the state alive, not the
//! [`Allocator`]: if the last allocator is dropped first, all that is free goes back at once, and
//! the rest when the last allocation of each stream is dropped.
//!
//! | file | what it owns |
//! |------|--------------|
//! | `addresses`  | raw allocations by device address |
//! | `roster`     | all cells by number |
//! | `cell`       | one stream's lock and what its allocations keep alive |
//! | `held`       | an allocation's hold on its cell |
//! | `places`     | which stream has which place |
//! | `shared`     | everything in one hand; hits, limits, trims |
//! | `perform`    | performing steps: all calls of the backend |
//! | `allocation` | requests, allocations, ids, errors |
//! | `streams`    | registration, adoption and retirement of streams |
//! | `pools`      | private pools, routes, captures |
//! | `pause`      | private pools whose memory goes back while they stay |
//! | `recording`  | work that is written down and not submitted |
//! | `scopes`     | stretches of the program, and what they did with memory |
//! | `listeners`  | what programs register, and its guards |
//! | `pressure`   | out-of-memory callbacks |
//! | `oom`        | requests that fail for want of memory, and their observers |
//! | `watches`    | thresholds that programs are told of |
//! | `publish`    | gauges and counters for monitoring (feature `metrics`) |
//! | `batch`      | the largest batch that fits |
//! | `sync`       | where the locks come from |
//! | `tags`       | interned names |

mod addresses;
mod allocation;
mod batch;
mod cell;
mod held;
mod listeners;
mod oom;
mod pause;
mod perform;
mod places;
mod pools;
mod pressure;
#[cfg(feature = "metrics")]
mod publish;
mod recording;
mod roster;
mod scopes;
mod shared;
mod streams;
mod sync;
mod tags;
#[cfg(test)]
mod tests;
mod watches;

pub use allocation::{AllocError, Allocation, FreeError, LimitError, RawAllocation, Request};
pub use batch::{
    MaybeOutOfMemory, find_executable_batch_size, find_executable_batch_size_with, is_out_of_memory,
};
pub use listeners::CallbackGuard;
pub use pause::PauseError;
pub use pools::{CaptureGuard, PoolOptions, PrivatePool, RouteGuard};
pub use pressure::Pressure;
pub use recording::RecordingGuard;
pub use scopes::ScopeGuard;
pub use streams::Stream;
pub use watches::{Crossing, Threshold};

use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::Backend;
use crate::config::{Config, ConfigError};
use crate::core::ledger::Gauge;
use crate::core::trim::Trim;
use crate::id::{AllocationId, Tag};
use crate::report::holders::{self, Holder};
use crate::report::snapshot::{self, Snapshot};
use crate::report::stats::{self, MemoryStats};
use crate::report::summary::Summary;
use crate::units::Bytes;
use shared::Shared;

/// A caching allocator over one backend. Cheap to clone; clones are the same allocator.
///
/// ```
/// use aquifer::{Allocator, Config, backend::Host};
///
/// let allocator = Allocator::new(Host::new(), Config::default());
/// let weights = allocator.allocate(4 << 20)?;
/// assert_eq!(allocator.memory_allocated(), 4 << 20);
/// drop(weights); // cached, not given back
/// assert_eq!(allocator.memory_allocated(), 0);
/// assert!(allocator.memory_reserved() > 0);
/// let returned = allocator.empty_cache();
/// assert!(returned > 0 && allocator.memory_reserved() == 0);
/// # Ok::<(), aquifer::AllocError>(())
/// ```
pub struct Allocator<B: Backend> {
    shared: Arc<Shared<B>>,
}

impl<B: Backend> Clone for Allocator<B> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<B: Backend> std::fmt::Debug for Allocator<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Allocator")
            .field("backend", &self.backend().describe())
            .field("memory_allocated", &self.memory_allocated())
            .field("memory_reserved", &self.memory_reserved())
            .finish_non_exhaustive()
    }
}

/// Memory of the device in bytes, as its driver sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemInfo {
    /// Free, for every program on the machine.
    pub free: Bytes,
    /// In all.
    pub total: Bytes,
}

impl<B: Backend> Allocator<B> {
    /// An allocator over `backend`. Nothing is asked of the backend yet.
    ///
    /// # Panics
    /// If the configuration is not valid; [`try_new`](Self::try_new) returns the error instead.
    pub fn new(backend: B, config: Config) -> Self {
        match Self::try_new(backend, config) {
            Ok(allocator) => allocator,
            Err(error) => panic!("the configuration is not valid: {error}"),
        }
    }

    /// An allocator over `backend`. Nothing is asked of the backend yet.
    ///
    /// # Errors
    /// If the configuration is not valid.
    pub fn try_new(backend: B, config: Config) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self { shared: Shared::new(backend, config) })
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.shared.backend
    }

    /// The configuration, as given.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// `size` bytes on the default stream, uninitialised: they may hold what an earlier user wrote.
    ///
    /// A hit costs some tens of nanoseconds and no backend call. Size 0 succeeds and holds nothing.
    ///
    /// # Errors
    /// [`AllocError`], when everything that could free memory has been tried.
    #[track_caller]
    #[inline]
    pub fn allocate(&self, size: Bytes) -> Result<Allocation<B>, AllocError> {
        self.shared.allocate_plain(&self.shared.default_cell, size, Location::caller())
    }

    /// `size` bytes on `stream`; as [`allocate`](Self::allocate).
    ///
    /// # Errors
    /// [`AllocError`], when everything that could free memory has been tried.
    ///
    /// # Panics
    /// If the stream was forgotten, or belongs to another allocator.
    #[track_caller]
    #[inline]
    pub fn allocate_on(
        &self,
        stream: &Stream<B>,
        size: Bytes,
    ) -> Result<Allocation<B>, AllocError> {
        self.shared.allocate_plain(self.shared.cell_of(stream), size, Location::caller())
    }

    /// A request with more to say: stream, alignment, tag, raw result.
    pub fn request(&self, size: Bytes) -> Request<'_, B> {
        Request::new(self, size)
    }

    /// The tag of that name; the same name gives the same tag. Takes a lock: keep the tag, not the
    /// name.
    pub fn tag(&self, name: &str) -> Tag {
        self.shared.tags.intern(name)
    }

    /// Marks `allocation` as used by work on `stream`: after its free, other work gets it only once
    /// that stream has passed this point. Needless for the stream it was allocated on.
    ///
    /// # Panics
    /// If either belongs to another allocator, or the stream was forgotten.
    pub fn record_stream(&self, allocation: &Allocation<B>, stream: &Stream<B>) {
        allocation.assert_of(&self.shared.backend);
        let outcome = self.record_stream_raw(allocation.id(), stream);
        outcome.expect("a live allocation of this allocator has a live id");
    }

    /// As [`record_stream`](Self::record_stream), by id.
    ///
    /// # Errors
    /// [`FreeError::Unknown`] if the id is stale.
    ///
    /// # Panics
    /// If the stream was forgotten, or belongs to another allocator.
    pub fn record_stream_raw(&self, id: AllocationId, stream: &Stream<B>) -> Result<(), FreeError> {
        let user = self.shared.cell_of(stream).id;
        if id == AllocationId::EMPTY {
            return Ok(());
        }
        let cell = self.shared.cells.get(id.arena()).ok_or(FreeError::Unknown)?;
        cell.lock().arena.record_stream(id, user).ok_or(FreeError::Unknown)
    }

    /// Frees a raw allocation by its id. What an [`Allocation`] owns is freed by dropping that, and
    /// by nothing else: references into it may exist.
    ///
    /// # Errors
    /// [`FreeError::Unknown`] if the id is stale, foreign, or of something owned; nothing has
    /// changed then.
    pub fn free_raw(&self, id: AllocationId) -> Result<(), FreeError> {
        if id == AllocationId::EMPTY {
            return Ok(());
        }
        let cell = self.shared.cells.get(id.arena()).ok_or(FreeError::Unknown)?;
        let is_live = cell.free_unowned(id, &self.shared.addresses);
        if is_live { Ok(()) } else { Err(FreeError::Unknown) }
    }

    /// Frees a raw allocation by its device address. The first such free looks at every block; from
    /// then on addresses are kept, some 30 ns for each raw allocation and its free.
    ///
    /// # Errors
    /// [`FreeError::Unknown`] if no live raw allocation begins there; nothing has changed then.
    pub fn free_address(&self, address: u64) -> Result<(), FreeError> {
        let addresses = &self.shared.addresses;
        if !addresses.are_kept() {
            if std::thread::panicking() && self.shared.is_poisoned() {
                // A free that unwinds past a broken invariant: a second panic would abort.
                return Ok(());
            }
            self.shared.world(|world| addresses.keep::<B>(world));
        }
        self.free_raw(addresses.find(address).ok_or(FreeError::Unknown)?)
    }

    /// Gives every byte back that can be given back, and says how many that were. Waits for streams
    /// that still use freed blocks. What others do meanwhile is kept.
    pub fn empty_cache(&self) -> Bytes {
        self.shared.world(|world| world.global.counts.sync_all_streams += 1);
        self.shared.trim(Trim::all(0))
    }

    /// Gives cached memory back while at least `floor` bytes stay reserved, coldest first; returns
    /// how many bytes went.
    pub fn trim_to(&self, floor: Bytes) -> Bytes {
        self.shared.trim(Trim::all(floor))
    }

    /// Exactly what [`empty_cache`](Self::empty_cache) would return now, in bytes. O(blocks).
    pub fn releasable_bytes(&self) -> Bytes {
        self.shared.world(|world| {
            world.absorb();
            world.releasable()
        })
    }

    /// Tells the time, by the caller's own clock, and gives back what has been idle for longer than
    /// `Config::trim_age`; returns how many bytes went. To be called now and then, from anywhere.
    pub fn maintain(&self, now: Duration) -> Bytes {
        self.shared.maintain(now)
    }

    /// Limits reserved memory to a fraction of the device's; 1 lifts the limit. Gives nothing back
    /// by itself.
    ///
    /// # Errors
    /// [`LimitError`] if the fraction is not in 0 … 1, or the device's memory is not known.
    pub fn set_memory_fraction(&self, fraction: f64) -> Result<(), LimitError> {
        self.shared.set_fraction(fraction)
    }

    /// The fraction in force.
    pub fn memory_fraction(&self) -> f64 {
        self.shared.limits().fraction
    }

    /// Limits reserved memory to so many bytes, or lifts that limit. Gives nothing back by itself.
    pub fn set_memory_limit(&self, limit: Option<Bytes>) {
        self.shared.set_limit(limit);
    }

    /// The limit on reserved memory in force, in bytes: the lower of limit and fraction.
    pub fn memory_limit(&self) -> Option<Bytes> {
        self.shared.world(|world| world.global.limit)
    }

    /// Free and total memory of the device, if the backend can tell. A driver call.
    pub fn mem_get_info(&self) -> Option<MemInfo> {
        let total = self.shared.device.total?;
        self.backend().free_bytes().map(|free| MemInfo { free, total })
    }

    /// Bytes in users' hands, blocks counted whole.
    pub fn memory_allocated(&self) -> Bytes {
        self.shared.world(|world| world.total(Gauge::AllocatedBytes))
    }

    /// Bytes in users' hands, or freed and still used by a stream.
    pub fn memory_active(&self) -> Bytes {
        self.shared.world(|world| world.total(Gauge::ActiveBytes))
    }

    /// Bytes held from the device.
    pub fn memory_reserved(&self) -> Bytes {
        self.shared.world(|world| world.total(Gauge::ReservedBytes))
    }

    /// The most bytes in users' hands since the last
    /// [`reset_peak_memory_stats`](Self::reset_peak_memory_stats).
    pub fn max_memory_allocated(&self) -> Bytes {
        self.memory_stats().allocated_bytes.all.peak
    }

    /// The most bytes held since the last
    /// [`reset_peak_memory_stats`](Self::reset_peak_memory_stats).
    pub fn max_memory_reserved(&self) -> Bytes {
        self.memory_stats().reserved_bytes.all.peak
    }

    /// All statistics at one moment, exact.
    pub fn memory_stats(&self) -> MemoryStats {
        self.shared.world(|world| {
            // Another thread's free may be about to have its pieces settled with the peaks.
            world.settle();
            stats::collect(world)
        })
    }

    /// The statistics as a table, laid out as `torch.cuda.memory_summary` lays it out, with the
    /// device's name in the title. 47 lines of 77 columns; ends with a line feed.
    ///
    /// ```
    /// use aquifer::{Allocator, Config, backend::Host};
    ///
    /// let allocator = Allocator::new(Host::new(), Config::default());
    /// let weights = allocator.allocate(512)?;
    /// let row = "| Allocated memory      |    512 B   |    512 B   |    512 B   |      0 B   |\n";
    /// assert!(allocator.memory_summary().contains(row));
    /// # Ok::<(), aquifer::AllocError>(())
    /// ```
    pub fn memory_summary(&self) -> String {
        self.summary(false)
    }

    /// As [`memory_summary`](Self::memory_summary), without the rows of small and large pools.
    pub fn memory_summary_abbreviated(&self) -> String {
        self.summary(true)
    }

    fn summary(&self, abbreviated: bool) -> String {
        let (stats, device) = (self.memory_stats(), self.backend().describe());
        format!("{}\n", Summary { stats: &stats, device: Some(&device), abbreviated })
    }

    /// Lets every peak start at what is there now.
    pub fn reset_peak_memory_stats(&self) {
        self.shared.world(|world| world.reset_peaks());
    }

    /// Lets the lifetime totals and counts start at 0.
    pub fn reset_accumulated_memory_stats(&self) {
        self.shared.world(|world| world.reset_accumulated());
    }

    /// Every segment and block at one moment. O(blocks), with all streams stopped.
    pub fn memory_snapshot(&self) -> Snapshot {
        let tags = &self.shared.tags;
        self.shared.world(|world| snapshot::collect(world, &|tag| tags.name(tag)))
    }

    /// Who holds memory: live allocations by line of code and tag, largest first. O(blocks).
    pub fn holders(&self) -> Vec<Holder> {
        let tags = &self.shared.tags;
        self.shared.world(|world| holders::collect(world, &|tag| tags.name(tag)))
    }

    /// Checks every invariant of the bookkeeping, and every statistic against its recomputation.
    /// O(blocks).
    ///
    /// # Panics
    /// If one is broken, naming it.
    pub fn verify(&self) {
        self.shared.world(|world| {
            // Another thread's free may be about to have its pieces settled with the peaks.
            world.settle();
            world.verify();
        });
    }
}
