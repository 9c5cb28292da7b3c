//! A simulated device that stops in the middle of a call until it is told to go on, so that a test
//! can have another thread do something just then.
#![allow(dead_code)] // Each test program uses its part.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use aquifer::Bytes;
use aquifer::backend::{
    Backend, GrowError, Limits, Lost, MemoryKind, Sim, SimChunk, SimEvent, SimMemory, SimOptions,
    SimView, VirtualMemory,
};

/// What happens at the beginning of a call: its name, and the stream if it has one.
type Hook = dyn Fn(&'static str, Option<u32>) + Send + Sync;

/// The device. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) sim: Sim,
    hook: Arc<Mutex<Arc<Hook>>>,
    refused: Arc<Mutex<Option<&'static str>>>,
    /// Address and kind of every segment.
    kinds: Arc<Mutex<Vec<(u64, MemoryKind)>>>,
}

/// A call that waits behind the gate.
pub(crate) struct Stopped {
    begins: Receiver<()>,
    go: Sender<()>,
}

impl Stopped {
    /// Returns when the call has begun.
    pub(crate) fn arrives(&self) {
        self.begins.recv().expect("the call is made");
    }

    /// Lets the call go on.
    pub(crate) fn goes_on(self) {
        self.go.send(()).expect("the call waits");
    }
}

impl Gate {
    pub(crate) fn new(options: SimOptions) -> Self {
        Self {
            sim: Sim::new(options),
            hook: Arc::new(Mutex::new(Arc::new(|_, _| ()))),
            refused: Arc::default(),
            kinds: Arc::default(),
        }
    }

    /// `hook` is called at the beginning of every call from now on, instead of the one before.
    pub(crate) fn watch(&self, hook: impl Fn(&'static str, Option<u32>) + Send + Sync + 'static) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(hook);
    }

    /// Stops the next call of that name; the others pass.
    pub(crate) fn stop_at(&self, name: &'static str) -> Stopped {
        let (begin, begins) = channel();
        let (go, goes) = channel();
        let waiting = Mutex::new(Some((begin, goes)));
        self.watch(move |call, _| {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((begin, goes)) = (call == name).then(|| waiting.take()).flatten() else {
                return;
            };
            drop(waiting);
            // Either end may be gone if the test has failed meanwhile.
            let _ = begin.send(());
            let _ = goes.recv();
        });
        Stopped { begins, go }
    }

    /// What the segment at an address was made of when it was last allocated.
    pub(crate) fn kind_at(&self, address: u64) -> Option<MemoryKind> {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.iter().rev().find(|segment| segment.0 == address).map(|segment| segment.1)
    }

    /// Nobody watches any more.
    pub(crate) fn open(&self) {
        self.watch(|_, _| ());
    }

    /// Calls of that name give no memory from now on; others do.
    pub(crate) fn refuse(&self, name: Option<&'static str>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }

    fn pass(&self, call: &'static str, stream: Option<u32>) {
        let hook = Arc::clone(&self.hook.lock().unwrap_or_else(PoisonError::into_inner));
        hook(call, stream);
    }

    /// As [`pass`](Self::pass), of a call that gives memory.
    fn pass_growing(&self, call: &'static str) -> Result<(), GrowError> {
        self.pass(call, None);
        let refused = *self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused == Some(call) { Err(GrowError::OutOfMemory) } else { Ok(()) }
    }
}

impl Backend for Gate {
    type Memory = SimMemory;
    type View = SimView;
    type Stream = u32;
    type Event = SimEvent;
    type Virtual = Gate;

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
        self.pass_growing("allocate")?;
        let memory = self.sim.allocate(size, kind)?;
        let segment = (self.sim.view(&memory).address, kind);
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner).push(segment);
        Ok(memory)
    }

    fn free(&self, memory: SimMemory) {
        self.pass("free", None);
        self.sim.free(memory);
    }

    fn view(&self, memory: &SimMemory) -> SimView {
        self.sim.view(memory)
    }

    fn address(&self, memory: &SimMemory) -> Option<u64> {
        self.sim.address(memory)
    }

    fn record(&self, stream: u32) -> Result<SimEvent, Lost> {
        self.pass("record", Some(stream));
        self.sim.record(stream)
    }

    fn is_complete(&self, event: &SimEvent) -> Result<bool, Lost> {
        self.pass("query", Some(event.last().stream));
        self.sim.is_complete(event)
    }

    fn wait(&self, event: &SimEvent) -> Result<(), Lost> {
        self.pass("wait", Some(event.last().stream));
        self.sim.wait(event)
    }

    fn wait_on(&self, stream: u32, event: &SimEvent) -> Result<(), Lost> {
        self.pass("wait_on", Some(stream));
        self.sim.wait_on(stream, event)
    }

    fn is_joined(&self, earlier: u32, later: u32) -> bool {
        self.sim.is_joined(earlier, later)
    }

    fn free_bytes(&self) -> Option<Bytes> {
        self.sim.free_bytes()
    }

    fn virtual_memory(&self) -> Option<&Gate> {
        self.sim.virtual_memory().is_some().then_some(self)
    }
}

impl VirtualMemory for Gate {
    type Memory = SimMemory;
    type Chunk = SimChunk;

    fn reserve(&self, size: Bytes) -> Result<SimMemory, GrowError> {
        self.pass_growing("reserve")?;
        self.sim.reserve(size)
    }

    fn create(&self, size: Bytes) -> Result<SimChunk, GrowError> {
        self.pass_growing("create")?;
        self.sim.create(size)
    }

    fn map(
        &self,
        memory: &SimMemory,
        offset: Bytes,
        chunk: SimChunk,
    ) -> Result<(), (SimChunk, GrowError)> {
        self.pass("map", None);
        self.sim.map(memory, offset, chunk)
    }

    fn set_access(&self, memory: &SimMemory, offset: Bytes, size: Bytes) -> Result<(), GrowError> {
        self.sim.set_access(memory, offset, size)
    }

    fn unmap(&self, memory: &SimMemory, offset: Bytes) -> Result<SimChunk, Lost> {
        self.pass("unmap", None);
        self.sim.unmap(memory, offset)
    }

    fn release(&self, chunk: SimChunk) {
        self.sim.release(chunk);
    }
}
