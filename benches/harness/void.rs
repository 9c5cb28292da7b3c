//! A device that is nothing but ascending addresses: what it costs is next to nothing, so that what
//! a bench measures is the allocator.

use std::sync::atomic::{AtomicU64, Ordering};

use aquifer::Bytes;
use aquifer::backend::{Backend, GrowError, Limits, Lost, MemoryKind, NoVirtual};

/// Addresses without end, streams that are always done.
#[derive(Debug)]
pub(crate) struct Void {
    next: AtomicU64,
}

impl Void {
    pub(crate) fn new() -> Self {
        Self { next: AtomicU64::new(1 << 40) }
    }
}

impl Backend for Void {
    type Memory = u64;
    type View = u64;
    type Stream = u32;
    type Event = ();
    type Virtual = NoVirtual<u64>;

    fn describe(&self) -> String {
        "addresses without memory".to_owned()
    }

    fn limits(&self) -> Limits {
        Limits::new()
    }

    fn default_stream(&self) -> u32 {
        0
    }

    fn allocate(&self, size: Bytes, _: MemoryKind) -> Result<u64, GrowError> {
        Ok(self.next.fetch_add(size, Ordering::Relaxed))
    }

    fn free(&self, _: u64) {}

    fn view(&self, memory: &u64) -> u64 {
        *memory
    }

    fn address(&self, memory: &u64) -> Option<u64> {
        Some(*memory)
    }

    fn record(&self, _: u32) -> Result<(), Lost> {
        Ok(())
    }

    fn is_complete(&self, (): &()) -> Result<bool, Lost> {
        Ok(true)
    }

    fn wait(&self, (): &()) -> Result<(), Lost> {
        Ok(())
    }

    fn wait_on(&self, _: u32, (): &()) -> Result<(), Lost> {
        Ok(())
    }

    /// Nothing is captured here.
    fn is_joined(&self, _earlier: u32, _later: u32) -> bool {
        false
    }

    fn free_bytes(&self) -> Option<Bytes> {
        None
    }

    fn virtual_memory(&self) -> Option<&NoVirtual<u64>> {
        None
    }
}
