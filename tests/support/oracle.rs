//! The oracle: a simulated device that knows which bytes are used by which unfinished work.
//!
//! ```text
//!   program ── use_on(bytes, stream) ──▶ Book: (bytes, work)
//!   allocator ── bytes for stream S ──▶ every use of these bytes ordered before S?      R1
//!   allocator ── unmap(page) ─────────▶ every use of that page complete?                R2
//!   allocator ── record, query, wait ─▶ the stream alive, and not under capture?    R3, R4
//! ```
//!
//! - R1: memory reaches a stream only when all earlier work on it is ordered before that stream.
//! - R2: pages are taken out only when all work on them is complete. (A fixed segment may be freed
//!   under running work: by the contract the backend sees to that.)
//! - R3: nothing is asked of a stream, or of its events, while it is under capture.
//! - R4: a stream that was forgotten is not touched again; its events may be.
//! - R5: live allocations never overlap, and the device can reach all their bytes.
//!
//! A breach is noted, not a panic: a panic inside a backend call would end in the allocator, and
//! the test that keeps an unsafe protocol around has to see that it is caught.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aquifer::backend::{
    Backend, GrowError, Limits, Lost, MemoryKind, Sim, SimChunk, SimEvent, SimMemory, SimOptions,
    SimView, VirtualMemory, WorkId,
};
use aquifer::{Allocation, Bytes};

/// No program uses this stream, so work is ordered before it only when it is complete.
const NOBODY: u32 = u32::MAX;

/// A simulated device under watch. Clones are the same device.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    pub(crate) sim: Sim,
    /// Called at both ends of every call: lets a scheduler switch threads there.
    pause: fn(),
    book: Arc<Mutex<Book>>,
}

#[derive(Debug, Default)]
struct Book {
    uses: Vec<Use>,
    live: Vec<(u64, u64)>,
    captured: Vec<u32>,
    gone: BTreeSet<u32>,
    breaches: Vec<String>,
}

/// Work on the bytes from `start` to `end`.
#[derive(Debug, Clone, Copy)]
struct Use {
    start: u64,
    end: u64,
    work: WorkId,
}

impl Use {
    fn overlaps(&self, start: u64, end: u64) -> bool {
        self.start < end && start < self.end
    }
}

/// First and last address of an allocation's block; `None` if it has no bytes.
fn span(allocation: &Allocation<Watched>) -> Option<(u64, u64)> {
    let start = allocation.address()?;
    Some((start, start + allocation.capacity()))
}

impl Watched {
    pub(crate) fn new(options: SimOptions) -> Self {
        Self { sim: Sim::new(options), pause: || (), book: Arc::default() }
    }

    // Only the tests of threads have a use for it.
    #[allow(dead_code)]
    /// As [`new`](Self::new); `pause` is called at both ends of every call.
    pub(crate) fn pausing(options: SimOptions, pause: fn()) -> Self {
        Self { pause, ..Self::new(options) }
    }

    /// Panics with everything the oracle has found.
    #[track_caller]
    pub(crate) fn assert_safe(&self) {
        let breaches = self.breaches();
        assert!(breaches.is_empty(), "the oracle found:\n{}", breaches.join("\n"));
    }

    pub(crate) fn breaches(&self) -> Vec<String> {
        self.book().breaches.clone()
    }

    /// The program got `allocation` for work on `stream`: R1 and R5.
    pub(crate) fn handed(&self, allocation: &Allocation<Watched>, stream: u32) {
        let Some((start, end)) = span(allocation) else { return };
        let mut book = self.book();
        let done = |at: &Use| self.sim.is_ordered(at.work, NOBODY);
        book.uses.retain(|at| !done(at));
        for at in book.uses.clone() {
            if at.overlaps(start, end) && !self.sim.is_ordered(at.work, stream) {
                book.breaches.push(format!(
                    "R1: {start:#x}..{end:#x} went to stream {stream}, and {:?} still uses it",
                    at.work
                ));
            }
        }
        if book.live.iter().any(|live| live.0 < end && start < live.1) {
            book.breaches.push(format!("R5: {start:#x}..{end:#x} is handed out twice"));
        }
        if !self.sim.is_accessible(start, end - start) {
            book.breaches.push(format!("R5: {start:#x}..{end:#x} is not accessible"));
        }
        book.live.push((start, end));
    }

    /// One kernel on `stream` that touches the allocation's bytes.
    pub(crate) fn use_on(&self, allocation: &Allocation<Watched>, stream: u32) {
        let Some((start, end)) = span(allocation) else { return };
        let work = self.sim.submit(stream);
        self.book().uses.push(Use { start, end, work });
    }

    /// The program is about to drop the allocation.
    pub(crate) fn let_go(&self, allocation: &Allocation<Watched>) {
        let Some(span) = span(allocation) else { return };
        self.book().live.retain(|&live| live != span);
    }

    pub(crate) fn capture_begins(&self, stream: u32) {
        self.book().captured.push(stream);
    }

    pub(crate) fn capture_ends(&self, stream: u32) {
        self.book().captured.retain(|&captured| captured != stream);
    }

    /// The program has destroyed the stream.
    pub(crate) fn stream_ends(&self, stream: u32) {
        self.book().gone.insert(stream);
    }

    /// The driver gave the number of a destroyed stream to a new one.
    pub(crate) fn stream_begins(&self, stream: u32) {
        self.book().gone.remove(&stream);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paused<R>(&self, call: impl FnOnce() -> R) -> R {
        (self.pause)();
        let result = call();
        (self.pause)();
        result
    }

    /// R3, and R4 if the stream itself is touched.
    fn touch(&self, call: &str, stream: u32, itself: bool) {
        let mut book = self.book();
        if book.captured.contains(&stream) {
            book.breaches.push(format!("R3: {call} of stream {stream}, which is under capture"));
        }
        if itself && book.gone.contains(&stream) {
            book.breaches.push(format!("R4: {call} of stream {stream}, which is gone"));
        }
    }
}

impl Backend for Watched {
    type Memory = SimMemory;
    type View = SimView;
    type Stream = u32;
    type Event = SimEvent;
    type Virtual = Watched;

    fn describe(&self) -> String {
        self.sim.describe()
    }

    fn limits(&self) -> Limits {
        self.sim.limits()
    }

    fn default_stream(&self) -> u32 {
        self.sim.default_stream()
    }

    fn allocate(&self, size: Bytes, kind: MemoryKind) -> Result<SimMemory, GrowError> {
        self.paused(|| self.sim.allocate(size, kind))
    }

    fn free(&self, memory: SimMemory) {
        // The addresses may come back as another segment, for which this work means nothing.
        let SimView { address, size } = self.sim.view(&memory);
        self.book().uses.retain(|at| !at.overlaps(address, address + size));
        self.paused(|| self.sim.free(memory));
    }

    fn view(&self, memory: &SimMemory) -> SimView {
        self.sim.view(memory)
    }

    fn address(&self, memory: &SimMemory) -> Option<u64> {
        self.sim.address(memory)
    }

    fn record(&self, stream: u32) -> Result<SimEvent, Lost> {
        self.paused(|| {
            self.touch("record", stream, true);
            self.sim.record(stream)
        })
    }

    fn is_complete(&self, event: &SimEvent) -> Result<bool, Lost> {
        self.paused(|| {
            self.touch("query", event.last().stream, false);
            self.sim.is_complete(event)
        })
    }

    fn wait(&self, event: &SimEvent) -> Result<(), Lost> {
        self.paused(|| {
            self.touch("wait", event.last().stream, false);
            self.sim.wait(event)
        })
    }

    fn wait_on(&self, stream: u32, event: &SimEvent) -> Result<(), Lost> {
        self.paused(|| {
            self.touch("wait_on", stream, true);
            self.sim.wait_on(stream, event)
        })
    }

    fn is_joined(&self, earlier: u32, later: u32) -> bool {
        self.sim.is_joined(earlier, later)
    }

    fn free_bytes(&self) -> Option<Bytes> {
        self.sim.free_bytes()
    }

    fn virtual_memory(&self) -> Option<&Watched> {
        self.sim.virtual_memory().is_some().then_some(self)
    }
}

impl VirtualMemory for Watched {
    type Memory = SimMemory;
    type Chunk = SimChunk;

    fn reserve(&self, size: Bytes) -> Result<SimMemory, GrowError> {
        self.sim.reserve(size)
    }

    fn create(&self, size: Bytes) -> Result<SimChunk, GrowError> {
        self.paused(|| self.sim.create(size))
    }

    fn map(
        &self,
        memory: &SimMemory,
        offset: Bytes,
        chunk: SimChunk,
    ) -> Result<(), (SimChunk, GrowError)> {
        self.paused(|| self.sim.map(memory, offset, chunk))
    }

    fn set_access(&self, memory: &SimMemory, offset: Bytes, size: Bytes) -> Result<(), GrowError> {
        self.sim.set_access(memory, offset, size)
    }

    /// R2.
    fn unmap(&self, memory: &SimMemory, offset: Bytes) -> Result<SimChunk, Lost> {
        let start = self.sim.view(memory).address + offset;
        let chunk = self.paused(|| self.sim.unmap(memory, offset))?;
        let end = start + chunk.size();
        let mut book = self.book();
        let used = |at: &&Use| at.overlaps(start, end) && !self.sim.is_ordered(at.work, NOBODY);
        if let Some(at) = book.uses.iter().find(used) {
            let work = at.work;
            book.breaches.push(format!("R2: {start:#x}..{end:#x} unmapped under {work:?}"));
        }
        Ok(chunk)
    }

    fn release(&self, chunk: SimChunk) {
        self.paused(|| self.sim.release(chunk));
    }
}
