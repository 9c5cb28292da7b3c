//! Upload chunks: mapped buffers that the CPU writes and encoders copy from.
//!
//! ```text
//!   ready (mapped) ── a scope writes into it ──▶ unmapped, copies recorded
//!       ▲                                             │ the scope's work is over
//!       └── mapped again ◀── map_async, one poll ─────┘
//! ```
//!
//! Uploads go through copies in the encoder, never through `queue.write_buffer`: that would
//! overtake what is recorded and not submitted, makes a hidden buffer for every call, and loses the
//! device when there is no memory for it. A chunk is mapped whole, so it belongs to one scope at a
//! time.
//!
//! - S1: `held` = Σ size of all chunks, wherever they are; `held ≤ cap`.
//! - S2: a chunk that a scope holds is mapped; one whose scope has ended is not.
//!
//! Chunks are blocks of the allocator's exclusive upload pool: they count as allocated, and go back
//! by [`Staging::trim`]. The lock is held over no call that allocates, waits or polls.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wgpu::MapMode;

use super::error::UploadError;
use super::lanes::Progress;
use crate::allocator::{AllocError, Allocation, Allocator, PrivatePool};
use crate::backend::{Lost, Wgpu, WgpuSegment};
use crate::id::Tag;
use crate::units::{Bytes, align_down, align_up};

/// Writes into a mapped buffer begin at multiples of this (wgpu's `MAP_ALIGNMENT`).
const ALIGNMENT: Bytes = wgpu::MAP_ALIGNMENT;

/// How often one request tries to make a chunk, where maps fail or other threads are faster.
const MAKE_ATTEMPTS: u32 = 64;

const PENDING: u8 = 0;
const MAPPED: u8 = 1;
const FAILED: u8 = 2;

/// A buffer of the role `Upload`, whole.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Declared, and so dropped, before the block.
    segment: Arc<WgpuSegment>,
    block: Allocation<Wgpu>,
    used: Bytes,
    mapped: bool,
}

impl Chunk {
    fn size(&self) -> Bytes {
        self.block.size()
    }

    /// Bytes that can still be written.
    pub(super) fn room(&self) -> Bytes {
        self.size().saturating_sub(align_up(self.used, ALIGNMENT))
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        self.segment.buffer()
    }

    /// Copies `bytes` in, zero-padded to a multiple of 4; where they begin. There is room for them.
    ///
    /// # Errors
    /// If the device is gone, which shows here first: until it is polled it tells nobody, and
    /// buffers seem to be made and mapped (S2).
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<Bytes, Lost> {
        let at = align_up(self.used, ALIGNMENT);
        let (whole, tail) = bytes.split_at(bytes.len() & !3);
        let padded = align_up(bytes.len() as Bytes, wgpu::COPY_BUFFER_ALIGNMENT);
        let mut view = match self.buffer().get_mapped_range_mut(at..at + padded) {
            Ok(view) => view,
            Err(error) => {
                let backend = self.block.backend();
                backend.report_loss(error.to_string());
                return Err(backend.check().expect_err("the loss was reported"));
            }
        };
        view.slice(..whole.len()).copy_from_slice(whole);
        if !tail.is_empty() {
            let mut last = [0; 4];
            last[..tail.len()].copy_from_slice(tail);
            view.slice(whole.len()..).copy_from_slice(&last);
        }
        drop(view);
        self.used = at + padded;
        Ok(at)
    }

    /// The GPU may read it from now on.
    pub(super) fn unmap(&mut self) {
        if std::mem::replace(&mut self.mapped, false) {
            self.block.backend().unmap(self.buffer());
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // Who gets the buffer next finds it as it was made known: not fresh, not mapped.
        self.unmap();
    }
}

/// The chunks of one allocator.
pub(super) struct Staging {
    pool: PrivatePool<Wgpu>,
    tag: Tag,
    cap: Bytes,
    chunk_size: Bytes,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ready: Vec<Chunk>,
    mapping: Vec<(Chunk, Arc<AtomicU8>)>,
    /// Scopes whose chunks wait for their work to be over.
    waiting: Vec<Arc<Progress>>,
    held: Bytes,
}

impl Staging {
    pub(super) fn new(
        pool: PrivatePool<Wgpu>,
        tag: Tag,
        (chunk_size, cap): (Bytes, Bytes),
    ) -> Self {
        // Below a cap that is smaller than a chunk uploads share smaller ones.
        let chunk_size = chunk_size.min(align_down(cap, ALIGNMENT));
        Self { pool, tag, cap, chunk_size, state: Mutex::new(State::default()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A mapped chunk with room for `len` bytes.
    ///
    /// # Errors
    /// If the cap, or the device, has no room for it, after all submitted work was waited for.
    pub(super) fn acquire(&self, core: &Allocator<Wgpu>, len: Bytes) -> Result<Chunk, UploadError> {
        core.backend().check()?;
        let size = align_up(len, ALIGNMENT).max(self.chunk_size);
        let full = UploadError::StagingFull { requested: len, cap: self.cap };
        if size > self.cap {
            return Err(full);
        }
        let mut refused = None;
        for attempt in 0_u32.. {
            if let Some(chunk) = self.recycle(core, len) {
                return Ok(chunk);
            }
            let mut makes = false;
            if attempt < MAKE_ATTEMPTS && self.charge(size) {
                match self.make(core, size) {
                    Ok(Some(chunk)) => return Ok(chunk),
                    // Another thread may take it once it is mapped; then the next one.
                    Ok(None) => makes = true,
                    Err(error) => {
                        self.state().held -= size;
                        refused = Some(error);
                    }
                }
            }
            // Waiting once may help with what the program submitted without a word.
            let comes = makes || self.expects();
            let helps = attempt == 0 || comes && !cfg!(target_family = "wasm");
            if !helps {
                break;
            }
            core.backend().synchronize()?;
            std::thread::yield_now();
        }
        Err(refused.map_or(full, UploadError::Alloc))
    }

    /// Whether chunks will come back by themselves. When all work is done, another thread may be
    /// about to run the callback that tells.
    fn expects(&self) -> bool {
        let state = self.state();
        !state.mapping.is_empty() || state.waiting.iter().any(|progress| progress.is_submitted())
    }

    /// A chunk that was used before and is mapped again, or can be with one poll.
    fn recycle(&self, core: &Allocator<Wgpu>, len: Bytes) -> Option<Chunk> {
        let mut state = self.state();
        state.collect();
        if let Some(chunk) = state.pick(len) {
            return Some(chunk);
        }
        if state.mapping.is_empty() {
            return None;
        }
        drop(state);
        core.backend().poll();
        let mut state = self.state();
        state.collect();
        state.pick(len)
    }

    /// Counts a new chunk, if the cap allows it; chunks that are too small make room (S1).
    fn charge(&self, size: Bytes) -> bool {
        let mut state = self.state();
        let mut dropped = Vec::new();
        while state.held + size > self.cap {
            let Some(chunk) = state.ready.pop() else { break };
            state.held -= chunk.size();
            dropped.push(chunk);
        }
        let fits = state.held + size <= self.cap;
        state.held += if fits { size } else { 0 };
        drop(state);
        if !dropped.is_empty() {
            drop(dropped);
            self.pool.trim();
        }
        fits
    }

    /// A new chunk; `None` if its buffer was used before, and has to be mapped first.
    fn make(&self, core: &Allocator<Wgpu>, size: Bytes) -> Result<Option<Chunk>, AllocError> {
        let block = core.request(size).pool(&self.pool).tag(self.tag).allocate()?;
        let segment = block.view().expect("a chunk has bytes");
        let mapped = segment.take_fresh();
        let chunk = Chunk { segment, block, used: 0, mapped };
        if mapped {
            return Ok(Some(chunk));
        }
        self.state().map(chunk);
        Ok(None)
    }

    /// Takes the chunks of a scope that ends: they come back when its work is over.
    pub(super) fn spend(&self, mut chunks: Vec<Chunk>, progress: &Arc<Progress>) {
        if chunks.is_empty() {
            return;
        }
        chunks.iter_mut().for_each(Chunk::unmap);
        progress.keep(chunks);
        self.state().waiting.push(Arc::clone(progress));
    }

    /// Lets go of a chunk that could not be written: the device is gone (S1).
    pub(super) fn discard(&self, chunk: Chunk) {
        self.state().held -= chunk.size();
    }

    /// Lets go of all chunks that nobody uses; what they held is in the pool, for the next trim.
    pub(super) fn trim(&self, core: &Allocator<Wgpu>) {
        self.state().collect();
        // What was just asked for is mapped by the next poll, if the device is done with it.
        core.backend().poll();
        let mut state = self.state();
        state.collect();
        let ready = std::mem::take(&mut state.ready);
        state.held -= ready.iter().map(Chunk::size).sum::<Bytes>();
        drop(state);
        drop(ready);
    }

    /// The most bytes that one upload can have: a chunk of the whole cap has so many.
    pub(super) fn upload_max(&self) -> Bytes {
        align_down(self.cap, ALIGNMENT)
    }

    /// Bytes of all chunks.
    pub(super) fn held_bytes(&self) -> Bytes {
        self.state().held
    }
}

impl Drop for Staging {
    /// A notice keeps the chunks of its scope, and chunks keep the device, which keeps the notice
    /// until somebody polls it: nobody may ever again.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for progress in &state.waiting {
            drop(progress.take_chunks());
        }
    }
}

impl State {
    /// Maps the chunks of scopes that are over, and takes those that are mapped.
    fn collect(&mut self) {
        let (over, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|p| p.is_over());
        self.waiting = waiting;
        let over: Vec<Arc<Progress>> = over;
        for chunk in over.iter().flat_map(|progress| progress.take_chunks()) {
            self.map(chunk);
        }
        let (settled, mapping) = std::mem::take(&mut self.mapping)
            .into_iter()
            .partition(|(_, outcome)| outcome.load(Ordering::Acquire) != PENDING);
        self.mapping = mapping;
        let settled: Vec<(Chunk, Arc<AtomicU8>)> = settled;
        for (mut chunk, outcome) in settled {
            if outcome.load(Ordering::Acquire) == MAPPED {
                (chunk.used, chunk.mapped) = (0, true);
                self.ready.push(chunk);
            } else {
                // The device is gone, most likely; the next call will say so.
                self.held -= chunk.size();
            }
        }
    }

    fn map(&mut self, chunk: Chunk) {
        let outcome = Arc::new(AtomicU8::new(PENDING));
        let tell = Arc::clone(&outcome);
        chunk.buffer().map_async(MapMode::Write, .., move |result| {
            tell.store(if result.is_ok() { MAPPED } else { FAILED }, Ordering::Release);
        });
        self.mapping.push((chunk, outcome));
    }

    /// The smallest ready chunk with room for `len` bytes.
    fn pick(&mut self, len: Bytes) -> Option<Chunk> {
        let fitting = self.ready.iter().enumerate().filter(|(_, chunk)| chunk.room() >= len);
        let at = fitting.min_by_key(|(_, chunk)| chunk.size())?.0;
        Some(self.ready.swap_remove(at))
    }
}
