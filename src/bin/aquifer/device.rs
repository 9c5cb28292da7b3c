//! The backends that a replay can run on, with their calls counted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aquifer::Bytes;
use aquifer::backend::{
    Backend, CallCounts, GrowError, Host, HostEvent, HostMemory, HostView, Limits, Lost,
    MemoryKind, NoVirtual, Sim,
};

/// A backend that can be asked what happened to it. Clones are the same device.
pub(crate) trait Device: Backend<Stream = u32> + Clone {
    /// Bytes that the device has given and not got back.
    fn used_bytes(&self) -> Bytes;
    /// The most that [`used_bytes`](Self::used_bytes) ever was, if the device knows.
    fn peak_used_bytes(&self) -> Option<Bytes>;
    /// Calls so far.
    fn calls(&self) -> CallCounts;
}

impl Device for Sim {
    fn used_bytes(&self) -> Bytes {
        Sim::used_bytes(self)
    }

    fn peak_used_bytes(&self) -> Option<Bytes> {
        Some(Sim::peak_used_bytes(self))
    }

    fn calls(&self) -> CallCounts {
        Sim::calls(self)
    }
}

/// Memory of this machine, with the calls counted.
#[derive(Debug, Clone)]
pub(crate) struct CountedHost {
    host: Host,
    calls: Arc<Mutex<CallCounts>>,
}

impl CountedHost {
    /// At most `capacity` bytes at any time.
    pub(crate) fn with_capacity(capacity: Bytes) -> Self {
        Self { host: Host::with_capacity(capacity), calls: Arc::default() }
    }

    /// What this machine has, in bytes; all there can be if it does not say.
    pub(crate) fn machine_bytes() -> Bytes {
        Host::new().limits().total.unwrap_or(Bytes::MAX)
    }

    fn count(&self) -> MutexGuard<'_, CallCounts> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for CountedHost {
    fn used_bytes(&self) -> Bytes {
        self.host.used_bytes()
    }

    fn peak_used_bytes(&self) -> Option<Bytes> {
        None
    }

    fn calls(&self) -> CallCounts {
        *self.count()
    }
}

impl Backend for CountedHost {
    type Memory = HostMemory;
    type View = HostView;
    type Stream = u32;
    type Event = HostEvent;
    type Virtual = NoVirtual<HostMemory>;

    fn describe(&self) -> String {
        self.host.describe()
    }

    fn limits(&self) -> Limits {
        self.host.limits()
    }

    fn default_stream(&self) -> u32 {
        self.host.default_stream()
    }

    fn allocate(&self, size: Bytes, kind: MemoryKind) -> Result<HostMemory, GrowError> {
        self.count().allocate += 1;
        self.host.allocate(size, kind)
    }

    fn free(&self, memory: HostMemory) {
        self.count().free += 1;
        self.host.free(memory);
    }

    fn view(&self, memory: &HostMemory) -> HostView {
        self.host.view(memory)
    }

    fn address(&self, memory: &HostMemory) -> Option<u64> {
        self.host.address(memory)
    }

    fn record(&self, stream: u32) -> Result<HostEvent, Lost> {
        self.count().record += 1;
        self.host.record(stream)
    }

    fn is_complete(&self, event: &HostEvent) -> Result<bool, Lost> {
        self.count().query += 1;
        self.host.is_complete(event)
    }

    fn wait(&self, event: &HostEvent) -> Result<(), Lost> {
        self.count().synchronize += 1;
        self.host.wait(event)
    }

    fn wait_on(&self, stream: u32, event: &HostEvent) -> Result<(), Lost> {
        self.count().wait += 1;
        self.host.wait_on(stream, event)
    }

    fn is_joined(&self, earlier: u32, later: u32) -> bool {
        self.host.is_joined(earlier, later)
    }

    fn free_bytes(&self) -> Option<Bytes> {
        self.host.free_bytes()
    }

    fn virtual_memory(&self) -> Option<&NoVirtual<HostMemory>> {
        None
    }
}
