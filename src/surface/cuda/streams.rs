//! Which stream of cudarc is which of ours.
//!
//! ```text
//!   handle ─▶ Stream<Cuda>                found without the driver
//!   2      ─▶ who asks? ─▶ number ─▶ …    a stream for each thread
//! ```
//!
//! - K1: the backend keeps the `Arc` of every handle in the table, so none is destroyed, and no
//!   other stream gets it, while it is there.
//! - K2: a stream that is taken out is forgotten by the allocator before the backend lets it go.
//! - K3: the own stream of a thread is forgotten when the thread is gone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cudarc::driver::{CudaStream, DeviceRepr, DeviceSlice, HostSlice, ValidAsZeroBits};

use super::{CudaAllocator, CudaBuffer, CudaError};
use crate::allocator::{AllocError, Allocation, Allocator, Stream};
use crate::backend::{Cuda, CudaStreamId, Lost};
use crate::id::Tag;
use crate::units::Bytes;

/// `CU_STREAM_PER_THREAD`.
const PER_THREAD: usize = 2;

/// The streams that an allocator knows.
#[derive(Default)]
pub(super) struct Known {
    by_handle: Mutex<Table>,
    /// The own streams of threads by number, each with what goes with the thread (K3).
    of_threads: Mutex<HashMap<u64, (CudaStreamId, Weak<()>)>>,
}

/// By handle: who the stream is, and our handle of it, which may be stale: a stream can be
/// forgotten by hand, and its place be another's.
type Table = HashMap<usize, (CudaStreamId, Stream<Cuda>)>;

thread_local! {
    /// Goes with the thread.
    static ALIVE: Arc<()> = Arc::default();
}

impl Known {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.by_handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a stream known, and keeps it.
    pub(super) fn enter(
        &self,
        core: &Allocator<Cuda>,
        stream: &Arc<CudaStream>,
    ) -> Result<Stream<Cuda>, Lost> {
        let handle = stream.cu_stream() as usize;
        // SAFETY: the handle is of a live stream of cudarc, of the allocator's context as the
        // caller has checked; K1 and K2 keep it alive until it is forgotten.
        let raw = unsafe { core.backend().stream_of(handle) }?;
        let known = core.stream(raw);
        if handle == PER_THREAD {
            // A thread that is about to end has nothing left that goes with it.
            if let Ok(alive) = ALIVE.try_with(Arc::downgrade) {
                self.threads().insert(raw.id(), (raw, alive));
            }
            return Ok(known);
        }
        // Another thread may have been first, with the same stream.
        match self.table().entry(handle) {
            Entry::Occupied(mut entry) => {
                if !entry.get().1.is_current() {
                    entry.insert((raw, known));
                }
                Ok(entry.get().1.clone())
            }
            Entry::Vacant(entry) => {
                core.backend().keep(stream);
                Ok(entry.insert((raw, known)).1.clone())
            }
        }
    }

    fn threads(&self) -> MutexGuard<'_, HashMap<u64, (CudaStreamId, Weak<()>)>> {
        self.of_threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Our handle of a stream that is known, or the default one.
    pub(super) fn lookup(&self, core: &Allocator<Cuda>, handle: usize) -> Option<Stream<Cuda>> {
        if handle == 0 {
            return Some(core.default_stream());
        }
        if handle == PER_THREAD {
            // SAFETY: the thread's own stream lives as long as the thread.
            let raw = unsafe { core.backend().stream_of(handle) }.ok()?;
            return self.threads().contains_key(&raw.id()).then(|| core.stream(raw));
        }
        let table = self.table();
        table.get(&handle).map(|entry| &entry.1).filter(|known| known.is_current()).cloned()
    }

    /// Forgets the streams that nobody else has (K2).
    pub(super) fn sweep(&self, cuda: &Cuda, forget: impl Fn(CudaStreamId)) -> usize {
        let mut table = self.table();
        let idle: Vec<usize> =
            table.keys().copied().filter(|&handle| cuda.is_idle(handle)).collect();
        // Out of the table first: nobody can find them, and the lock is not held across the driver.
        let gone: Vec<_> =
            idle.iter().filter_map(|&handle| Some((handle, table.remove(&handle)?))).collect();
        drop(table);
        for &(handle, (raw, _)) in &gone {
            forget(raw);
            cuda.let_go(handle);
        }
        // A thread's work is reached without it, and its number never comes again.
        let mut ended = Vec::new();
        self.threads().retain(|_, (raw, alive)| {
            let is_over = alive.strong_count() == 0;
            ended.extend(is_over.then_some(*raw));
            !is_over
        });
        ended.iter().for_each(|&raw| forget(raw));
        gone.len() + ended.len()
    }
}

/// The allocator's memory on one stream. Cheap to clone.
///
/// On the per-thread default stream it is the memory of whichever thread allocates, as work goes to
/// that thread's stream.
#[derive(Clone)]
pub struct OnStream {
    memory: CudaAllocator,
    known: Stream<Cuda>,
    raw: CudaStreamId,
    stream: Arc<CudaStream>,
}

impl fmt::Debug for OnStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnStream").field(&self.known).finish()
    }
}

impl OnStream {
    pub(super) fn new(
        memory: &CudaAllocator,
        known: Stream<Cuda>,
        stream: &Arc<CudaStream>,
    ) -> Self {
        let raw = known.raw();
        Self { memory: memory.clone(), known, raw, stream: Arc::clone(stream) }
    }

    /// The same on the calling thread, if that is another stream: work goes to the stream of the
    /// thread that submits it, and so must its memory.
    #[inline]
    fn moved(&self) -> Result<Option<Self>, AllocError> {
        if !self.raw.is_of_other_thread() {
            return Ok(None);
        }
        self.memory.on(&self.stream).map(Some).map_err(AllocError::DeviceLost)
    }

    /// The allocator.
    pub fn memory(&self) -> &CudaAllocator {
        &self.memory
    }

    /// The stream as the allocator knows it, for its requests. Of the per-thread stream: that of
    /// the thread that asked for it.
    pub fn stream(&self) -> &Stream<Cuda> {
        &self.known
    }

    /// The stream as cudarc knows it.
    pub fn cuda_stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// `size` bytes, uninitialised.
    ///
    /// # Errors
    /// [`AllocError`], when everything that could free memory has been tried.
    #[track_caller]
    #[inline]
    pub fn allocate(&self, size: Bytes) -> Result<Allocation<Cuda>, AllocError> {
        match self.moved()? {
            Some(here) => self.memory.allocate_on(&here.known, size),
            None => self.memory.allocate_on(&self.known, size),
        }
    }

    /// Room for `len` values, uninitialised.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate); [`AllocError::TooLarge`] if the bytes cannot be counted.
    ///
    /// # Safety
    /// - Nothing is read from it, as values of `T`, before it was written.
    #[track_caller]
    pub unsafe fn alloc<T: DeviceRepr>(&self, len: usize) -> Result<CudaBuffer<T>, AllocError> {
        // SAFETY: as the caller promises.
        unsafe { self.alloc_tagged(len, Tag::default()) }
    }

    /// As [`alloc`](Self::alloc), with a tag for reports.
    ///
    /// # Errors
    /// As [`alloc`](Self::alloc).
    ///
    /// # Safety
    /// - As [`alloc`](Self::alloc).
    #[track_caller]
    pub unsafe fn alloc_tagged<T: DeviceRepr>(
        &self,
        len: usize,
        tag: Tag,
    ) -> Result<CudaBuffer<T>, AllocError> {
        let size = (len as Bytes).checked_mul(size_of::<T>() as Bytes).ok_or_else(|| {
            let limit = crate::backend::Backend::limits(self.memory.backend()).segment_max;
            AllocError::TooLarge { requested: Bytes::MAX, limit }
        })?;
        if tag == Tag::default() {
            return Ok(CudaBuffer::new(self.allocate(size)?, len, self));
        }
        let pool = self.memory.pool_of_tag(tag);
        let moved = self.moved()?;
        let known = moved.as_ref().map_or(&self.known, |here| &here.known);
        let mut request = self.memory.request(size).on(known).tag(tag);
        if let Some(pool) = &pool {
            request = request.pool(pool);
        }
        let allocation = request.allocate()?;
        Ok(CudaBuffer::new(allocation, len, self))
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// [`CudaError::Alloc`] if there is no memory, [`CudaError::Driver`] if it could not be
    /// cleared.
    #[track_caller]
    pub fn alloc_zeros<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        len: usize,
    ) -> Result<CudaBuffer<T>, CudaError> {
        // SAFETY: it is cleared on the stream before anything else can be done with it there.
        let mut buffer = unsafe { self.alloc(len) }?;
        if !buffer.is_empty() {
            self.stream.memset_zeros(&mut buffer)?;
        }
        Ok(buffer)
    }

    /// A copy of values of the host.
    ///
    /// # Errors
    /// As [`alloc_zeros`](Self::alloc_zeros).
    #[track_caller]
    pub fn clone_htod<T: DeviceRepr, S: HostSlice<T> + ?Sized>(
        &self,
        values: &S,
    ) -> Result<CudaBuffer<T>, CudaError> {
        // SAFETY: all of it is written on the stream before anything else can be done with it
        // there.
        let mut buffer = unsafe { self.alloc(values.len()) }?;
        if !buffer.is_empty() {
            self.stream.memcpy_htod(values, &mut buffer)?;
        }
        Ok(buffer)
    }
}
