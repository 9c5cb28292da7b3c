//! The contract with the core, answered from the simulated state: [`Backend`] and
//! [`VirtualMemory`], one short method for each call.
//!
//! A method counts itself, asks the plan of failures, and lets `space.rs` or `timeline.rs` do it.

use std::sync::{Arc, MutexGuard};

use super::memory::Receipt;
use super::{CallCounts, Fault, Sim, SimChunk, SimEvent, SimMemory, SimView, State};
use crate::backend::{Backend, GrowError, Limits, Lost, MemoryKind, VirtualMemory};
use crate::units::{Bytes, align_down};
impl Backend for Sim {
    type Memory = SimMemory;
    type View = SimView;
    type Stream = u32;
    type Event = SimEvent;
    type Virtual = Sim;

    fn describe(&self) -> String {
        format!("simulated device, {} bytes", self.shared.options.capacity)
    }

    fn limits(&self) -> Limits {
        let options = &self.shared.options;
        Limits {
            total: Some(options.capacity),
            granularity: options.granularity,
            alignment: options.granularity,
            segment_max: align_down(options.segment_max, options.granularity),
            device_wait: options.device_wait,
            one_queue: !options.asynchronous,
        }
    }

    fn default_stream(&self) -> u32 {
        0
    }

    /// All kinds of memory are the same here.
    fn allocate(&self, size: Bytes, _kind: MemoryKind) -> Result<SimMemory, GrowError> {
        let mut state = self.enter_growing(|counts| &mut counts.allocate)?;
        if size > self.shared.options.segment_max {
            return Err(GrowError::TooLarge);
        }
        let address = state.space.allocate(size).ok_or(GrowError::OutOfMemory)?;
        Ok(SimMemory { address, size, segment: true, receipt: self.receipt() })
    }

    /// Takes memory of a lost device too, so that an allocator can still be taken down in order.
    fn free(&self, memory: SimMemory) {
        self.check_owner(&memory.receipt);
        let mut state = self.state();
        let counts = &mut state.calls.counts;
        *(if memory.segment { &mut counts.free } else { &mut counts.unreserve }) += 1;
        let device_lost = state.calls.is_lost();
        state.space.free(memory.address, device_lost);
        memory.receipt.settle();
    }

    fn view(&self, memory: &SimMemory) -> SimView {
        SimView { address: memory.address, size: memory.size }
    }

    fn address(&self, memory: &SimMemory) -> Option<u64> {
        Some(memory.address)
    }

    fn record(&self, stream: u32) -> Result<SimEvent, Lost> {
        let mut state = self.enter(|counts| &mut counts.record)?;
        Ok(state.timeline.record(stream))
    }

    fn is_complete(&self, event: &SimEvent) -> Result<bool, Lost> {
        let state = self.enter(|counts| &mut counts.query)?;
        Ok(state.timeline.is_complete(event))
    }

    /// Finishes what the event waits for, as a device would in the end.
    fn wait(&self, event: &SimEvent) -> Result<(), Lost> {
        let mut state = self.enter(|counts| &mut counts.synchronize)?;
        state.timeline.complete_event(event);
        Ok(())
    }

    fn wait_on(&self, stream: u32, event: &SimEvent) -> Result<(), Lost> {
        let allowed = self.shared.options.device_wait;
        assert!(allowed, "sim: wait_on, although Limits::device_wait is false");
        let mut state = self.enter(|counts| &mut counts.wait)?;
        state.timeline.wait_on(stream, event);
        Ok(())
    }

    /// A capture is the program's word for it here: what counts is who waits for whom.
    fn is_joined(&self, earlier: u32, later: u32) -> bool {
        self.state().timeline.is_joined(earlier, later)
    }

    fn free_bytes(&self) -> Option<Bytes> {
        let state = self.state();
        Some(state.space.capacity.saturating_sub(state.space.used))
    }

    fn virtual_memory(&self) -> Option<&Sim> {
        self.shared.options.virtual_memory.then_some(self)
    }
}

impl VirtualMemory for Sim {
    type Memory = SimMemory;
    type Chunk = SimChunk;

    fn reserve(&self, size: Bytes) -> Result<SimMemory, GrowError> {
        self.check_virtual();
        let mut state = self.enter_growing(|counts| &mut counts.reserve)?;
        if size > self.shared.options.segment_max {
            return Err(GrowError::TooLarge);
        }
        let address = state.space.reserve(size);
        Ok(SimMemory { address, size, segment: false, receipt: self.receipt() })
    }

    fn create(&self, size: Bytes) -> Result<SimChunk, GrowError> {
        self.check_virtual();
        let mut state = self.enter_growing(|counts| &mut counts.create)?;
        state.space.create(size).ok_or(GrowError::OutOfMemory)?;
        Ok(SimChunk { size, receipt: self.receipt() })
    }

    fn map(
        &self,
        memory: &SimMemory,
        offset: Bytes,
        chunk: SimChunk,
    ) -> Result<(), (SimChunk, GrowError)> {
        self.check_owner(&memory.receipt);
        self.check_owner(&chunk.receipt);
        let mut state = match self.enter_growing(|counts| &mut counts.map) {
            Ok(state) => state,
            Err(error) => return Err((chunk, error)),
        };
        state.space.map(memory.address, offset, chunk.size);
        chunk.receipt.settle();
        Ok(())
    }

    fn set_access(&self, memory: &SimMemory, offset: Bytes, size: Bytes) -> Result<(), GrowError> {
        self.check_owner(&memory.receipt);
        let mut state = self.enter_growing(|counts| &mut counts.set_access)?;
        state.space.set_access(memory.address, offset, size);
        Ok(())
    }

    fn unmap(&self, memory: &SimMemory, offset: Bytes) -> Result<SimChunk, Lost> {
        self.check_owner(&memory.receipt);
        let (mut state, fault) = self.count(|counts| &mut counts.unmap);
        let size = state.space.unmap(memory.address, offset);
        match fault {
            None => Ok(SimChunk { size, receipt: self.receipt() }),
            Some(fault) => {
                // The chunk is gone with the device, by the contract.
                state.space.release(size);
                Err(fault.lost())
            }
        }
    }

    fn release(&self, chunk: SimChunk) {
        self.check_owner(&chunk.receipt);
        let mut state = self.state();
        state.calls.counts.release += 1;
        state.space.release(chunk.size);
        chunk.receipt.settle();
    }
}

/// What every call begins with.
impl Sim {
    /// Counts a fallible call, and says whether it has to fail.
    fn count(
        &self,
        field: fn(&mut CallCounts) -> &mut u64,
    ) -> (MutexGuard<'_, State>, Option<Fault>) {
        let mut state = self.state();
        let fault = state.calls.enter(field);
        (state, fault)
    }

    fn enter(&self, field: fn(&mut CallCounts) -> &mut u64) -> Result<MutexGuard<'_, State>, Lost> {
        match self.count(field) {
            (state, None) => Ok(state),
            (_, Some(fault)) => Err(fault.lost()),
        }
    }

    fn enter_growing(
        &self,
        field: fn(&mut CallCounts) -> &mut u64,
    ) -> Result<MutexGuard<'_, State>, GrowError> {
        match self.count(field) {
            (state, None) => Ok(state),
            (_, Some(fault)) => Err(fault.grow_error()),
        }
    }

    fn receipt(&self) -> Receipt {
        Receipt::new(Arc::clone(&self.shared))
    }

    fn check_virtual(&self) {
        let allowed = self.shared.options.virtual_memory;
        assert!(allowed, "sim: virtual memory, although SimOptions::virtual_memory is false");
    }

    fn check_owner(&self, receipt: &Receipt) {
        let same = receipt.is_from(&self.shared);
        assert!(same, "sim: memory of another Sim; give it to the one it came from");
    }
}
