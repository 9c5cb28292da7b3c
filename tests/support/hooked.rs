//! A simulated device that asks a closure at every call: what another thread does just then, or a
//! driver that refuses.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aquifer::Bytes;
use aquifer::backend::{
    Backend, GrowError, Limits, Lost, MemoryKind, Sim, SimChunk, SimEvent, SimMemory, SimOptions,
    SimView, VirtualMemory,
};

type Hook = dyn FnMut(&'static str) -> bool + Send;

/// The device. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Hooked {
    pub(crate) sim: Sim,
    /// Gets the name of the call; where it says `false`, calls that give memory are refused.
    hook: Arc<Mutex<Option<Box<Hook>>>>,
    /// How often every call lets other threads go first: a driver takes its time.
    pub(crate) yields: Arc<AtomicU64>,
}

impl Hooked {
    pub(crate) fn new(options: SimOptions) -> Self {
        Self { sim: Sim::new(options), hook: Arc::default(), yields: Arc::default() }
    }

    pub(crate) fn set(&self, hook: impl FnMut(&'static str) -> bool + Send + 'static) {
        *self.place() = Some(Box::new(hook));
    }

    pub(crate) fn clear(&self) {
        let hook = self.place().take();
        drop(hook);
    }

    fn ask(&self, call: &'static str) -> bool {
        (0..self.yields.load(Ordering::Relaxed)).for_each(|_| std::thread::yield_now());
        // Taken out while it runs: what it does to the allocator may call the device.
        let Some(mut hook) = self.place().take() else { return true };
        let goes_on = hook(call);
        self.place().get_or_insert(hook);
        goes_on
    }

    fn place(&self) -> MutexGuard<'_, Option<Box<Hook>>> {
        self.hook.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Hooked {
    type Memory = SimMemory;
    type View = SimView;
    type Stream = u32;
    type Event = SimEvent;
    type Virtual = Hooked;

    fn describe(&self) -> String {
        self.sim.describe()
    }

    fn limits(&self) -> Limits {
        self.sim.limits()
    }

    fn default_stream(&self) -> u32 {
        0
    }

    fn allocate(&self, size: Bytes, kind: MemoryKind) -> Result<SimMemory, GrowError> {
        if !self.ask("allocate") {
            return Err(GrowError::OutOfMemory);
        }
        self.sim.allocate(size, kind)
    }

    fn free(&self, memory: SimMemory) {
        self.ask("free");
        self.sim.free(memory);
    }

    fn view(&self, memory: &SimMemory) -> SimView {
        self.sim.view(memory)
    }

    fn address(&self, memory: &SimMemory) -> Option<u64> {
        self.sim.address(memory)
    }

    fn record(&self, stream: u32) -> Result<SimEvent, Lost> {
        self.ask("record");
        self.sim.record(stream)
    }

    fn is_complete(&self, event: &SimEvent) -> Result<bool, Lost> {
        self.ask("query");
        self.sim.is_complete(event)
    }

    fn wait(&self, event: &SimEvent) -> Result<(), Lost> {
        self.ask("wait");
        self.sim.wait(event)
    }

    fn wait_on(&self, stream: u32, event: &SimEvent) -> Result<(), Lost> {
        self.ask("wait_on");
        self.sim.wait_on(stream, event)
    }

    fn free_bytes(&self) -> Option<Bytes> {
        self.sim.free_bytes()
    }

    fn virtual_memory(&self) -> Option<&Hooked> {
        self.sim.virtual_memory().is_some().then_some(self)
    }
}

impl VirtualMemory for Hooked {
    type Memory = SimMemory;
    type Chunk = SimChunk;

    fn reserve(&self, size: Bytes) -> Result<SimMemory, GrowError> {
        if !self.ask("reserve") {
            return Err(GrowError::OutOfMemory);
        }
        self.sim.reserve(size)
    }

    fn create(&self, size: Bytes) -> Result<SimChunk, GrowError> {
        if !self.ask("create") {
            return Err(GrowError::OutOfMemory);
        }
        self.sim.create(size)
    }

    fn map(
        &self,
        memory: &SimMemory,
        offset: Bytes,
        chunk: SimChunk,
    ) -> Result<(), (SimChunk, GrowError)> {
        self.sim.map(memory, offset, chunk)
    }

    fn set_access(&self, memory: &SimMemory, offset: Bytes, size: Bytes) -> Result<(), GrowError> {
        self.sim.set_access(memory, offset, size)
    }

    fn unmap(&self, memory: &SimMemory, offset: Bytes) -> Result<SimChunk, Lost> {
        self.sim.unmap(memory, offset)
    }

    fn release(&self, chunk: SimChunk) {
        self.sim.release(chunk);
    }
}
