//! Exports: copies and memsets.
//!
//! Pageable memory is treated as the driver treats it: what is copied from it is read before the
//! call returns, and a copy to it has happened when the call returns. Copies from and to pinned
//! memory wait in the stream. A capture takes the addresses as they are.

use std::sync::Arc;

use crate::abi::{Answer, Code};
use crate::entry::Driver;
use crate::memory::Kind;
use crate::os;
use crate::work::{Place, Work};

/// The legacy default stream, where calls without a stream go.
const LEGACY: u64 = 0;

impl Driver {
    /// An address that the program says is memory of the host.
    fn host_place(&mut self, address: u64, len: usize) -> Answer<Place> {
        let block = self.memory.find(address).map(|(_, block)| block.kind);
        let is_device = block.is_some_and(|kind| kind != Kind::Host);
        if is_device || self.space.reservation_at(address).is_some() {
            let text = format!("{address:#x} is device memory, given as memory of the host");
            return Err(self.misuse(Code::INVALID_VALUE, text));
        }
        let is_pinned = self.memory.is_pinned(address, len as u64);
        Ok(if is_pinned { Place::Known(address) } else { Place::Program(address) })
    }

    /// An address of either side.
    fn any_place(&self, address: u64) -> Place {
        let is_known =
            self.memory.find(address).is_some() || self.space.reservation_at(address).is_some();
        if is_known { Place::Known(address) } else { Place::Program(address) }
    }

    fn copy(&mut self, target: Place, source: Place, len: usize, stream: u64) -> Answer {
        let id = self.own_stream(stream)?;
        if len == 0 {
            return Ok(());
        }
        let len = len as u64;
        let work = Work::Copy { target, source, len };
        self.check_submitted(&work)?;
        let is_captured = self.timeline.streams[&id].capture.is_some();
        let is_staged = matches!(source, Place::Program(_)) && self.timeline.is_asynchronous;
        let work = match target {
            Place::Known(target) if is_staged && !is_captured => {
                Work::Store { target, bytes: read(source.address(), len) }
            }
            _ => work,
        };
        self.submit(id, work)?;
        if matches!(target, Place::Program(_)) && !is_captured {
            self.finish_stream(id)?;
        }
        Ok(())
    }

    fn set(&mut self, target: u64, value: u32, unit: u64, count: usize, stream: u64) -> Answer {
        let id = self.own_stream(stream)?;
        let len = (count as u64).checked_mul(unit).ok_or(Code::INVALID_VALUE)?;
        if !target.is_multiple_of(unit) {
            return Err(self.misuse(Code::INVALID_VALUE, format!("{target:#x} is not aligned")));
        }
        if len == 0 {
            return Ok(());
        }
        let work = Work::Set { target, value, unit, len };
        self.check_submitted(&work)?;
        self.submit(id, work)
    }

    /// The driver looks at addresses when it is called, too.
    fn check_submitted(&mut self, work: &Work) -> Answer {
        let checked = self.check_work(self.device, work);
        checked.map_err(|why| self.misuse(Code::INVALID_VALUE, why))
    }

    /// Everything that a synchronisation with a stream waits for.
    pub(crate) fn finish_stream(&mut self, id: u64) -> Answer {
        let goals = self.timeline.goals(id);
        self.finish_all(goals)
    }

    /// A copy that is over when it returns.
    fn copy_now(&mut self, target: Place, source: Place, len: usize) -> Answer {
        self.copy(target, source, len, LEGACY)?;
        let id = self.stream(LEGACY)?;
        self.finish_stream(id)
    }
}

/// Bytes of the program's own memory.
fn read(address: u64, len: u64) -> Arc<[u8]> {
    let mut bytes = vec![0; len as usize];
    // SAFETY: the program vouches for its memory, and the vector has room for all of it.
    unsafe { os::copy(bytes.as_mut_ptr() as u64, address, len) }
    bytes.into()
}

driver! {
    cuMemsetD8_v2(target: u64, value: u8, count: usize) CONTEXT_UNSAFE(target) |driver| {
        driver.set(target, value.into(), 1, count, LEGACY)
    }

    cuMemsetD8Async(target: u64, value: u8, count: usize, stream: u64) CONTEXT(target) |driver| {
        driver.set(target, value.into(), 1, count, stream)
    }

    cuMemsetD32Async(target: u64, value: u32, count: usize, stream: u64) CONTEXT(target) |driver| {
        driver.set(target, value, 4, count, stream)
    }

    cuMemcpyHtoD_v2(target: u64, source: u64, len: usize) CONTEXT_UNSAFE(target) |driver| {
        let source = driver.host_place(source, len)?;
        driver.copy_now(Place::Known(target), source, len)
    }

    cuMemcpyDtoH_v2(target: u64, source: u64, len: usize) CONTEXT_UNSAFE(source) |driver| {
        let target = driver.host_place(target, len)?;
        driver.copy_now(target, Place::Known(source), len)
    }

    cuMemcpyDtoD_v2(target: u64, source: u64, len: usize) CONTEXT_UNSAFE(target) |driver| {
        driver.copy(Place::Known(target), Place::Known(source), len, LEGACY)
    }

    cuMemcpyHtoDAsync_v2(
        target: u64,
        source: u64,
        len: usize,
        stream: u64,
    ) CONTEXT(target) |driver| {
        let source = driver.host_place(source, len)?;
        driver.copy(Place::Known(target), source, len, stream)
    }

    cuMemcpyDtoHAsync_v2(
        target: u64,
        source: u64,
        len: usize,
        stream: u64,
    ) CONTEXT(source) |driver| {
        let target = driver.host_place(target, len)?;
        driver.copy(target, Place::Known(source), len, stream)
    }

    cuMemcpyDtoDAsync_v2(
        target: u64,
        source: u64,
        len: usize,
        stream: u64,
    ) CONTEXT(target) |driver| {
        driver.copy(Place::Known(target), Place::Known(source), len, stream)
    }

    cuMemcpyAsync(target: u64, source: u64, len: usize, stream: u64) CONTEXT(target) |driver| {
        let (target, source) = (driver.any_place(target), driver.any_place(source));
        driver.copy(target, source, len, stream)
    }
}
