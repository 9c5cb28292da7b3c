//! Host memory that takes note of the streams it is asked about.

use std::sync::{Arc, Mutex, PoisonError};

use aquifer::Bytes;
use aquifer::backend::{
    Backend, GrowError, Host, HostEvent, HostMemory, HostView, HostVisible, Limits, Lost,
    MemoryKind, NoVirtual,
};

/// The device. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Streamed {
    host: Host,
    recorded: Arc<Mutex<Vec<u32>>>,
}

impl Streamed {
    /// The streams on which events were recorded, in order; the list begins anew.
    pub(crate) fn recorded(&self) -> Vec<u32> {
        std::mem::take(&mut *self.recorded.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Backend for Streamed {
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
        self.host.allocate(size, kind)
    }

    fn free(&self, memory: HostMemory) {
        self.host.free(memory);
    }

    fn view(&self, memory: &HostMemory) -> HostView {
        self.host.view(memory)
    }

    fn address(&self, memory: &HostMemory) -> Option<u64> {
        self.host.address(memory)
    }

    fn record(&self, stream: u32) -> Result<HostEvent, Lost> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
        self.host.record(stream)
    }

    fn is_complete(&self, event: &HostEvent) -> Result<bool, Lost> {
        self.host.is_complete(event)
    }

    fn wait(&self, event: &HostEvent) -> Result<(), Lost> {
        self.host.wait(event)
    }

    fn wait_on(&self, stream: u32, event: &HostEvent) -> Result<(), Lost> {
        self.host.wait_on(stream, event)
    }

    /// Nothing is captured here.
    fn is_joined(&self, _earlier: u32, _later: u32) -> bool {
        false
    }

    fn free_bytes(&self) -> Option<Bytes> {
        self.host.free_bytes()
    }

    fn virtual_memory(&self) -> Option<&NoVirtual<HostMemory>> {
        None
    }
}

// SAFETY: all memory is the host backend's, which keeps these promises.
unsafe impl HostVisible for Streamed {
    // SAFETY: as the trait says.
    unsafe fn bytes(&self, view: &HostView, offset: Bytes, len: Bytes) -> *mut u8 {
        // SAFETY: the caller promises the same to the host backend.
        unsafe { self.host.bytes(view, offset, len) }
    }
}
