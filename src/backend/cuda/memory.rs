//! Segments of device memory, and ranges of addresses with chunks behind parts of them.
//!
//! ```text
//!  Virtual   range    [ chunk | chunk |      | chunk |            ]   grows and shrinks by chunks
//!            segment  [ one chunk, as long as the range           ]
//!  Pool, Plain        [ one piece of the driver's own making      ]
//! ```
//!
//! - P1: `chunks` of a range are exactly its mappings, by offset; each was mapped whole, from its
//!   beginning, and is unmapped whole.
//! - P2: a chunk's handle is kept while it is mapped. Given up after mapping, as is usual, it would
//!   have to be asked for again before the chunk can go elsewhere: one call more for each.
//!
//! A chunk costs the driver much the same whatever its size (some 70 µs to make, map and open, 57
//! µs to take down: vAttention, ASPLOS 2025), so sizes are the core's: see
//! [`CudaAllocator::recommended_config`](crate::CudaAllocator::recommended_config).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::{Device, Holding, grow_error, lost};
use super::driver::Address;
use crate::backend::{GrowError, Lost, VirtualMemory};
use crate::units::Bytes;

/// One segment, or one range of addresses, of a CUDA device.
pub struct CudaMemory {
    pub(super) address: Address,
    pub(super) size: Bytes,
    body: Body,
}

enum Body {
    /// In one piece, of the driver's making.
    Whole(Holding),
    /// Addresses, and the chunks mapped there by offset (P1).
    Range(Mutex<BTreeMap<Bytes, CudaChunk>>),
}

impl fmt::Debug for CudaMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaMemory({:#x}, {} bytes)", self.address, self.size)
    }
}

/// Physical memory of a device that can be mapped.
#[derive(Debug)]
pub struct CudaChunk {
    pub(super) handle: u64,
    pub(super) size: Bytes,
}

/// Where a segment is on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaView {
    pub(super) address: Address,
    pub(super) size: Bytes,
}

impl CudaView {
    /// The segment's first byte, as a `CUdeviceptr`.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes of the segment; of a range, all its addresses.
    pub fn size(&self) -> Bytes {
        self.size
    }
}

type Chunks<'a> = MutexGuard<'a, BTreeMap<Bytes, CudaChunk>>;

impl CudaMemory {
    /// The mapped chunks by offset; none are kept for memory in one piece.
    pub(super) fn chunks(&self) -> Option<Chunks<'_>> {
        match &self.body {
            Body::Whole(_) => None,
            Body::Range(chunks) => Some(chunks.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn range_chunks(&self) -> Chunks<'_> {
        self.chunks().expect("pages are put behind ranges only, by the contract")
    }
}

impl Device {
    /// A segment.
    pub(super) fn segment(&self, size: Bytes) -> Result<CudaMemory, GrowError> {
        if size > self.segment_max() {
            return Err(GrowError::TooLarge);
        }
        let _entry = self.enter().map_err(|code| grow_error("cuCtxSetCurrent", code))?;
        self.retry();
        if self.source == super::CudaSource::Virtual {
            return self.virtual_segment(size);
        }
        let holding = self.allocate(size).map_err(|code| grow_error("cuMemAlloc", code))?;
        let (Holding::Plain(address) | Holding::Pooled(address)) = holding else {
            unreachable!("memory in one piece has an address")
        };
        Ok(CudaMemory { address, size, body: Body::Whole(holding) })
    }

    /// A range with one chunk in all of it: aligned, exportable and open to peers as ranges are.
    fn virtual_segment(&self, size: Bytes) -> Result<CudaMemory, GrowError> {
        let memory = self.range(size)?;
        let made = self.chunk(size).and_then(|chunk| {
            let mapped = self.put(&memory, 0, chunk);
            mapped.map_err(|(chunk, error)| {
                self.give_back(Holding::Chunk(chunk.handle));
                error
            })?;
            self.open_access(&memory, 0, size)
        });
        match made {
            Ok(()) => Ok(memory),
            Err(error) => {
                self.take_back(memory);
                Err(error)
            }
        }
    }

    /// Gives memory back; what is mapped in it still goes too. Inside an entry.
    pub(super) fn take_back(&self, memory: CudaMemory) {
        let (address, size) = (memory.address, memory.size);
        match memory.body {
            Body::Whole(holding) => self.give_back(holding),
            Body::Range(chunks) => {
                let chunks = chunks.into_inner().unwrap_or_else(PoisonError::into_inner);
                for (offset, chunk) in chunks {
                    // The physical memory goes when it is mapped nowhere any more.
                    self.give_back(Holding::Chunk(chunk.handle));
                    self.give_back(Holding::Mapping(address + offset, chunk.size));
                }
                self.give_back(Holding::Range(address, size));
            }
        }
    }

    pub(super) fn range(&self, size: Bytes) -> Result<CudaMemory, GrowError> {
        let reserved = self.driver.reserve(size, self.granularity);
        let address = reserved.map_err(|code| grow_error("cuMemAddressReserve", code))?;
        Ok(CudaMemory { address, size, body: Body::Range(Mutex::default()) })
    }

    fn chunk(&self, size: Bytes) -> Result<CudaChunk, GrowError> {
        let created = self.driver.create(size, self.number, self.exportable);
        let handle = created.map_err(|code| grow_error("cuMemCreate", code))?;
        Ok(CudaChunk { handle, size })
    }

    pub(super) fn put(
        &self,
        memory: &CudaMemory,
        offset: Bytes,
        chunk: CudaChunk,
    ) -> Result<(), (CudaChunk, GrowError)> {
        match self.driver.map(memory.address + offset, chunk.size, chunk.handle) {
            Ok(()) => {
                let before = memory.range_chunks().insert(offset, chunk);
                assert!(before.is_none(), "P1 broken: two chunks at offset {offset}");
                Ok(())
            }
            Err(code) => Err((chunk, grow_error("cuMemMap", code))),
        }
    }

    pub(super) fn open_access(
        &self,
        memory: &CudaMemory,
        at: Bytes,
        size: Bytes,
    ) -> Result<(), GrowError> {
        let opened = self.driver.set_access(memory.address + at, size, &self.access);
        opened.map_err(|code| grow_error("cuMemSetAccess", code))
    }
}

/// Ranges of a device: the part of the backend that maps.
#[derive(Debug)]
pub struct CudaVirtual {
    pub(super) device: Arc<Device>,
}

impl VirtualMemory for CudaVirtual {
    type Memory = CudaMemory;
    type Chunk = CudaChunk;

    fn reserve(&self, size: Bytes) -> Result<CudaMemory, GrowError> {
        let device = &self.device;
        let _entry = device.enter().map_err(|code| grow_error("cuCtxSetCurrent", code))?;
        device.retry();
        device.range(size)
    }

    fn create(&self, size: Bytes) -> Result<CudaChunk, GrowError> {
        let device = &self.device;
        let _entry = device.enter().map_err(|code| grow_error("cuCtxSetCurrent", code))?;
        device.retry();
        device.chunk(size)
    }

    fn map(
        &self,
        memory: &CudaMemory,
        offset: Bytes,
        chunk: CudaChunk,
    ) -> Result<(), (CudaChunk, GrowError)> {
        match self.device.enter() {
            Ok(_entry) => self.device.put(memory, offset, chunk),
            Err(code) => Err((chunk, grow_error("cuCtxSetCurrent", code))),
        }
    }

    fn set_access(&self, memory: &CudaMemory, offset: Bytes, size: Bytes) -> Result<(), GrowError> {
        let _entry = self.device.enter().map_err(|code| grow_error("cuCtxSetCurrent", code))?;
        self.device.open_access(memory, offset, size)
    }

    fn unmap(&self, memory: &CudaMemory, offset: Bytes) -> Result<CudaChunk, Lost> {
        let device = &self.device;
        let mut chunks = memory.range_chunks();
        let chunk = chunks.remove(&offset).expect("P1 broken: nothing is mapped there");
        let address = memory.address + offset;
        let unmap = || {
            let _entry = device.enter()?;
            device.driver.unmap(address, chunk.size)
        };
        match unmap().or_else(|_| unmap()) {
            Ok(()) => Ok(chunk),
            Err(code) => {
                // Still mapped; it goes with the range.
                chunks.insert(offset, chunk);
                Err(lost("cuMemUnmap", code))
            }
        }
    }

    fn release(&self, chunk: CudaChunk) {
        match self.device.enter().or_else(|_| self.device.enter()) {
            Ok(_entry) => self.device.give_back(Holding::Chunk(chunk.handle)),
            Err(code) => log::warn!("aquifer: a chunk was not given back: {code}"),
        }
    }
}
