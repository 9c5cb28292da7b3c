//! Requests, allocations, and what can go wrong with them.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use crate::allocator::Allocator;
use crate::allocator::cell::Cell;
use crate::allocator::held::Held;
use crate::allocator::pools::PrivatePool;
use crate::allocator::streams::Stream;
use crate::backend::{Backend, Lost};
use crate::core::arena::{Grant, Place};
use crate::id::{AllocationId, OwnerId, Tag};
use crate::report::format_bytes;
use crate::report::oom::OomReport;
use crate::units::{Bytes, to_bytes};

/// Device memory in a user's hands; dropping it frees it. `Send`, so it may be dropped anywhere.
///
/// The bytes are free for other work **of the same stream** as soon as it is dropped; tell with
/// [`Allocator::record_stream`] if other streams use them.
pub struct Allocation<B: Backend> {
    held: Held<B>,
    id: AllocationId,
    /// Or 0.
    address: u64,
    requested: Bytes,
    /// Granules.
    offset: u32,
    size: u32,
}

/// An allocation without an owner: it lives until it is freed by id or by address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RawAllocation {
    /// Names it; [`Allocator::free_raw`] takes it.
    pub id: AllocationId,
    /// Device address of its first byte, where the backend has addresses.
    pub address: Option<u64>,
    /// Bytes from the start of its segment.
    pub offset: Bytes,
    /// Bytes asked for.
    pub size: Bytes,
}

/// What is asked for, before routing and rounding.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) size: Bytes,
    /// In bytes; 0 and 1 ask for nothing beyond what every block has.
    pub(super) align: Bytes,
    pub(super) tag: Tag,
    /// The pool that is named, whatever the routes say.
    pub(super) owner: Option<OwnerId>,
    pub(super) avoid: &'a [Place],
}

impl Ask<'_> {
    #[inline]
    pub(super) fn new(size: Bytes) -> Self {
        Self { size, align: 0, tag: Tag::default(), owner: None, avoid: &[] }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AllocError {
    /// No memory, after everything was tried. The report says what there is and what would help.
    OutOfMemory(Box<OomReport>),
    /// Larger than anything the device can give, whatever is freed.
    TooLarge {
        /// What was asked for, in bytes.
        requested: Bytes,
        /// The most that could be had, in bytes.
        limit: Bytes,
    },
    /// The alignment is no power of two, or beyond what the backend's segments have.
    Alignment {
        /// What was asked for, in bytes.
        requested: Bytes,
        /// The most that can be had, in bytes.
        limit: Bytes,
    },
    /// The device is gone; nothing can be allocated any more.
    DeviceLost(Lost),
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AllocError::OutOfMemory(report) => report.fmt(f),
            AllocError::TooLarge { requested, limit } => {
                let (requested, limit) = (format_bytes(*requested), format_bytes(*limit));
                write!(f, "{requested} in one piece are beyond the backend's limit of {limit}")
            }
            AllocError::Alignment { requested, limit } => {
                write!(f, "alignment {requested} is no power of two of at most {limit} bytes")
            }
            AllocError::DeviceLost(lost) => lost.fmt(f),
        }
    }
}

impl std::error::Error for AllocError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AllocError::DeviceLost(lost) => Some(lost),
            _ => None,
        }
    }
}

/// Why a raw free failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FreeError {
    /// No live allocation has that id, or begins at that address: freed before, or never ours.
    Unknown,
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "no live allocation is known by that name: freed before, or never allocated here",
        )
    }
}

impl std::error::Error for FreeError {}

/// Why a limit was refused.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum LimitError {
    /// Not in 0 … 1.
    Fraction(f64),
    /// The backend does not know how much memory the device has, so a fraction of it means nothing.
    UnknownTotal,
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LimitError::Fraction(fraction) => {
                write!(f, "invalid fraction value: {fraction}; allowed is 0 to 1")
            }
            LimitError::UnknownTotal => f.write_str(
                "the backend does not tell how much memory the device has; use set_memory_limit",
            ),
        }
    }
}

impl std::error::Error for LimitError {}

impl RawAllocation {
    #[inline]
    pub(super) fn new(grant: Grant, requested: Bytes) -> Self {
        let Grant { id, offset, address, .. } = grant;
        let address = (address != 0).then_some(address);
        Self { id, address, offset: to_bytes(offset), size: requested }
    }
}

impl<B: Backend> Allocation<B> {
    #[inline]
    pub(super) fn new(held: Held<B>, grant: Grant, requested: Bytes) -> Self {
        let Grant { id, address, offset, size } = grant;
        Self { held, id, address, requested, offset, size }
    }

    /// The allocation of 0 bytes.
    pub(super) fn empty(held: Held<B>) -> Self {
        let id = AllocationId::EMPTY;
        Self { held, id, address: 0, requested: 0, offset: 0, size: 0 }
    }

    /// Names it among the live ones.
    pub fn id(&self) -> AllocationId {
        self.id
    }

    /// Bytes asked for.
    pub fn size(&self) -> Bytes {
        self.requested
    }

    /// Bytes of the block: at least [`size`](Self::size). All of them are this allocation's.
    pub fn capacity(&self) -> Bytes {
        to_bytes(self.size)
    }

    /// Device address of the first byte; `None` if the backend has no addresses, or the size is 0.
    pub fn address(&self) -> Option<u64> {
        (self.address != 0).then_some(self.address)
    }

    /// The [index](Stream::index) of the stream that has the bytes back at once when they are
    /// freed.
    pub fn stream_index(&self) -> u32 {
        self.held.cell().id.0
    }

    /// Bytes from the start of the segment.
    pub fn offset(&self) -> Bytes {
        to_bytes(self.offset)
    }

    /// The way to the bytes of the segment, which this allocation shares with others: stay within
    /// [`offset`](Self::offset) and [`capacity`](Self::capacity). `None` if the size is 0. Takes
    /// the stream's lock.
    pub fn view(&self) -> Option<B::View> {
        let inside = self.held.cell().lock();
        let segment = inside.arena.segment_of_live(self.id)?;
        Some(inside.arena.segments[segment.index()].memory.view.clone())
    }

    /// Calls `look` with the segment's memory, which stays as long as that takes; `None` if the
    /// size is 0.
    #[cfg(feature = "cuda")]
    pub(crate) fn with_memory<T>(&self, look: impl FnOnce(&B::Memory) -> T) -> Option<T> {
        let inside = self.held.cell().lock();
        let segment = inside.arena.segment_of_live(self.id)?;
        // The segment is not released while the allocation lives; its pages may be moved by a step
        // that borrows them as this does.
        let memory = Arc::clone(&inside.arena.segments[segment.index()].memory);
        drop(inside);
        Some(look(&memory.memory))
    }

    pub(crate) fn backend(&self) -> &B {
        &self.held.cell().backend
    }

    /// Waits until no device work of an earlier owner is left on the bytes. The stream is enough:
    /// it was made to wait for every other one that used them.
    pub(crate) fn settle(&self) -> Result<(), Lost> {
        if self.id == AllocationId::EMPTY {
            return Ok(());
        }
        self.held.cell().synchronize()
    }

    /// Work of the stream at this place uses the bytes; as [`Allocator::record_stream`].
    #[cfg(feature = "wgpu")]
    pub(crate) fn record_use(&self, stream: u32) {
        // A drop that unwinds past a broken invariant has nothing to record: a second panic would
        // abort.
        let is_over = std::thread::panicking() && self.held.cell().is_poisoned();
        if self.id != AllocationId::EMPTY && !is_over {
            let live =
                self.held.cell().lock().arena.record_stream(self.id, crate::id::ArenaId(stream));
            live.expect("a live allocation has a live id");
        }
    }

    /// Catches allocations of other allocators, whose ids mean nothing here.
    pub(super) fn assert_of(&self, backend: &Arc<B>) {
        assert!(
            Arc::ptr_eq(&self.held.cell().backend, backend),
            "the allocation belongs to another allocator; tell that one"
        );
    }

    /// Gives up ownership: the memory lives until [`Allocator::free_raw`] or `free_address`.
    pub fn into_raw(self) -> RawAllocation {
        let raw = RawAllocation {
            id: self.id,
            address: self.address(),
            offset: self.offset(),
            size: self.requested,
        };
        if raw.id != AllocationId::EMPTY {
            let shared = self.held.cell().shared.upgrade();
            let mut inside = self.held.cell().lock();
            inside.arena.disown(raw.id);
            if let Some((address, shared)) = raw.address.zip(shared.as_ref())
                && shared.addresses.are_kept()
            {
                shared.addresses.enter(address, raw.id);
            }
            // The last allocator may go with this, and takes locks then.
            drop(inside);
            drop(shared);
        }
        let mut this = self;
        this.id = AllocationId::EMPTY;
        raw
    }
}

impl<B: Backend> Drop for Allocation<B> {
    #[inline]
    fn drop(&mut self) {
        Cell::drop_owned(&self.held, self.id);
    }
}

impl<B: Backend> fmt::Debug for Allocation<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allocation")
            .field("size", &self.requested)
            .field("capacity", &self.capacity())
            .field("offset", &self.offset())
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

/// A request with more to say. Ends with [`allocate`](Self::allocate) or
/// [`allocate_raw`](Self::allocate_raw).
///
/// ```
/// # use aquifer::{Allocator, Config, backend::Host};
/// # let allocator = Allocator::new(Host::new(), Config::default());
/// let optimizer = allocator.tag("optimizer");
/// let state = allocator.request(1 << 20).align(4096).tag(optimizer).allocate()?;
/// assert_eq!(state.address().map(|address| address % 4096), Some(0));
/// # Ok::<(), aquifer::AllocError>(())
/// ```
pub struct Request<'a, B: Backend> {
    allocator: &'a Allocator<B>,
    stream: Option<&'a Stream<B>>,
    ask: Ask<'static>,
    avoid: Vec<Place>,
    location: Option<&'static Location<'static>>,
}

impl<B: Backend> fmt::Debug for Request<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("ask", &self.ask).finish_non_exhaustive()
    }
}

impl<'a, B: Backend> Request<'a, B> {
    #[inline]
    pub(super) fn new(allocator: &'a Allocator<B>, size: Bytes) -> Self {
        Self { allocator, stream: None, ask: Ask::new(size), avoid: Vec::new(), location: None }
    }

    /// For this stream instead of the default one.
    #[must_use]
    pub fn on(mut self, stream: &'a Stream<B>) -> Self {
        self.stream = Some(stream);
        self
    }

    /// The address (or offset, where there are no addresses) is to be a multiple of so many bytes,
    /// a power of two. Every block has 512 anyway.
    #[must_use]
    pub fn align(mut self, bytes: Bytes) -> Self {
        self.ask.align = bytes;
        self
    }

    /// For reports.
    #[must_use]
    pub fn tag(mut self, tag: Tag) -> Self {
        self.ask.tag = tag;
        self
    }

    /// From this private pool, whatever routes are in force.
    ///
    /// # Panics
    /// If the pool belongs to another allocator.
    #[must_use]
    pub fn pool(mut self, pool: &'a PrivatePool<B>) -> Self {
        self.ask.owner = Some(pool.owner_in(&self.allocator.shared));
        self
    }

    /// In a segment that holds none of `others`: for APIs that look at whole segments when they
    /// check what may be used together. Walks the free blocks of the segments that it avoids.
    ///
    /// # Panics
    /// If one of them belongs to another allocator.
    #[must_use]
    pub fn avoiding<'b>(mut self, others: impl IntoIterator<Item = &'b Allocation<B>>) -> Self {
        for other in others {
            other.assert_of(&self.allocator.shared.backend);
            let cell = other.held.cell();
            let segment = cell.lock().arena.segment_of_live(other.id);
            let place = segment.map(|segment| (cell.id, segment));
            self.avoid.extend(place.filter(|place| !self.avoid.contains(place)));
        }
        self
    }

    /// In the name of whoever asked for `other`: its line of code, and its tag.
    ///
    /// # Panics
    /// If it belongs to another allocator.
    #[must_use]
    pub fn in_place_of(mut self, other: &Allocation<B>) -> Self {
        other.assert_of(&self.allocator.shared.backend);
        if let Some((_, holder)) = other.held.cell().lock().arena.live(other.id) {
            (self.ask.tag, self.location) = (holder.tag, Some(holder.location));
        }
        self
    }

    /// Allocates, if the stream's own cached memory has room: without any backend call, and without
    /// memory of other streams. `None` if it has none.
    ///
    /// # Panics
    /// If the stream was forgotten, or belongs to another allocator.
    #[track_caller]
    pub fn allocate_cached(self) -> Option<Allocation<B>> {
        let shared = &self.allocator.shared;
        let cell = self.stream.map_or(&shared.default_cell, |stream| shared.cell_of(stream));
        let ask = Ask { avoid: &self.avoid, ..self.ask };
        shared.allocate_cached(cell, ask, self.location.unwrap_or(Location::caller()))
    }

    /// Allocates.
    ///
    /// # Errors
    /// [`AllocError`], when everything that could free memory has been tried.
    ///
    /// # Panics
    /// If the stream was forgotten, or belongs to another allocator.
    #[track_caller]
    pub fn allocate(self) -> Result<Allocation<B>, AllocError> {
        let shared = &self.allocator.shared;
        let cell = self.stream.map_or(&shared.default_cell, |stream| shared.cell_of(stream));
        let ask = Ask { avoid: &self.avoid, ..self.ask };
        shared.allocate(cell, ask, self.location.unwrap_or(Location::caller()))
    }

    /// Allocates without an owner, for foreign callers.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    ///
    /// # Panics
    /// As [`allocate`](Self::allocate).
    #[track_caller]
    #[inline]
    pub fn allocate_raw(self) -> Result<RawAllocation, AllocError> {
        if !self.is_plain() {
            return self.allocate().map(Allocation::into_raw);
        }
        let shared = &self.allocator.shared;
        let cell = self.stream.map_or(&shared.default_cell, |stream| shared.cell_of(stream));
        shared.allocate_plain_raw(cell, self.ask.size, Location::caller())
    }

    /// Whether nothing but a size and a stream is said.
    #[inline]
    fn is_plain(&self) -> bool {
        let Ask { align, tag, owner, .. } = self.ask;
        let has_words = tag != Tag::default() || owner.is_some() || self.location.is_some();
        align <= 1 && !has_words && self.avoid.is_empty()
    }
}

// An id is one word, so that foreign callers can keep it as a pointer-sized number.
const _: () = assert!(size_of::<AllocationId>() == 8);
