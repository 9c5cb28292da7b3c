//! Memory for other processes: chunks by file descriptor.
//!
//! ```text
//!   exporter   [ chunk | chunk | chunk ]      the chunks that an allocation lies in
//!                  │ descriptor  │
//!   importer   [ chunk | chunk ]              the same bytes, at an address of its own
//!                 ├ allocation ┤
//! ```
//!
//! The descriptors travel as descriptors do (`SCM_RIGHTS`, `pidfd_getfd`); a chunk lives until no
//! process maps it. Whole chunks are shared, and with them what else is in them: give what is
//! shared a pool of its own where that matters.

use std::fmt;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::Cuda;
use super::device::{Device, Holding, grow_error};
use super::memory::{CudaChunk, CudaMemory};
use crate::backend::GrowError;
use crate::units::Bytes;

/// An allocation as another process can have it.
#[derive(Debug)]
pub struct SharedMemory {
    /// The chunks in order, each with its size in bytes.
    pub chunks: Vec<(OwnedFd, Bytes)>,
    /// Bytes from the first chunk's beginning to the allocation's.
    pub offset: Bytes,
    /// Bytes of the allocation.
    pub size: Bytes,
}

/// Why memory cannot be shared.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShareError {
    /// The device was opened without [`CudaOptions::exportable`](super::CudaOptions), or the
    /// allocation is empty.
    NotExportable,
    /// The sizes do not fit together: a chunk is no multiple of the granularity, or the allocation
    /// does not lie in the chunks.
    Malformed,
    /// The driver refused.
    Refused(GrowError),
}

impl fmt::Display for ShareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotExportable => {
                f.write_str("the memory cannot be exported: open the device with `exportable`")
            }
            Self::Malformed => f.write_str("the shared memory's sizes do not fit together"),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ShareError {}

impl From<GrowError> for ShareError {
    fn from(error: GrowError) -> Self {
        Self::Refused(error)
    }
}

/// Memory of another process, mapped here until it is dropped. Work that uses it is the program's
/// to wait for before that.
#[derive(Debug)]
pub struct ImportedMemory {
    cuda: Cuda,
    /// Present until the drop.
    memory: Option<CudaMemory>,
    address: u64,
    size: Bytes,
}

impl ImportedMemory {
    /// The allocation's first byte here, as a `CUdeviceptr`.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes of the allocation.
    pub fn size(&self) -> Bytes {
        self.size
    }
}

impl Drop for ImportedMemory {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            crate::backend::Backend::free(&self.cuda, memory);
        }
    }
}

impl Device {
    /// Descriptors of the chunks that bytes of a range lie in.
    fn export(
        &self,
        memory: &CudaMemory,
        at: Bytes,
        size: Bytes,
    ) -> Result<SharedMemory, ShareError> {
        let range = memory.chunks().filter(|_| self.exportable && size > 0);
        let range = range.ok_or(ShareError::NotExportable)?;
        let (mut chunks, mut first) = (Vec::new(), None);
        for (&start, chunk) in range.range(..at + size) {
            if start + chunk.size <= at {
                continue;
            }
            let descriptor = self.driver.export(chunk.handle);
            let descriptor =
                descriptor.map_err(|code| grow_error("cuMemExportToShareableHandle", code))?;
            // SAFETY: the driver has just made the descriptor, for us alone.
            let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
            first.get_or_insert(start);
            chunks.push((descriptor, chunk.size));
        }
        let first = first.ok_or(ShareError::NotExportable)?;
        Ok(SharedMemory { chunks, offset: at - first, size })
    }

    /// Maps chunks of another process one after the other.
    fn import(&self, shared: &SharedMemory) -> Result<CudaMemory, ShareError> {
        let mut total: Bytes = 0;
        for &(_, size) in &shared.chunks {
            let whole = size > 0 && size.is_multiple_of(self.granularity);
            let sum = total.checked_add(size).filter(|_| whole).ok_or(ShareError::Malformed)?;
            total = sum;
        }
        let end = shared.offset.checked_add(shared.size).filter(|_| shared.size > 0);
        if end.is_none_or(|end| end > total) || total > self.segment_max() {
            return Err(ShareError::Malformed);
        }
        let memory = self.range(total)?;
        match self.fill(&memory, &shared.chunks).and_then(|()| self.open_access(&memory, 0, total))
        {
            Ok(()) => Ok(memory),
            Err(error) => {
                self.take_back(memory);
                Err(error.into())
            }
        }
    }

    fn fill(&self, memory: &CudaMemory, chunks: &[(OwnedFd, Bytes)]) -> Result<(), GrowError> {
        let mut at = 0;
        for (descriptor, size) in chunks {
            let handle = self.driver.import(descriptor.as_raw_fd());
            let handle =
                handle.map_err(|code| grow_error("cuMemImportFromShareableHandle", code))?;
            let chunk = CudaChunk { handle, size: *size };
            self.put(memory, at, chunk).map_err(|(chunk, error)| {
                self.give_back(Holding::Chunk(chunk.handle));
                error
            })?;
            at += size;
        }
        Ok(())
    }
}

impl Cuda {
    /// `size` bytes of a segment, from `offset` on, for other processes.
    pub(crate) fn export(
        &self,
        memory: &CudaMemory,
        offset: Bytes,
        size: Bytes,
    ) -> Result<SharedMemory, ShareError> {
        let entry = self.device.enter().map_err(|code| grow_error("cuCtxSetCurrent", code));
        let _entry = entry?;
        self.device.export(memory, offset, size)
    }

    /// Maps memory that another process, or another device's allocator, has exported. The bytes are
    /// whatever the exporter makes of them; it keeps the allocation as long as they are used.
    ///
    /// # Errors
    /// [`ShareError`]; nothing is held then.
    pub fn import(&self, shared: &SharedMemory) -> Result<ImportedMemory, ShareError> {
        let entry = self.device.enter().map_err(|code| grow_error("cuCtxSetCurrent", code));
        let _entry = entry?;
        self.device.retry();
        let memory = self.device.import(shared)?;
        let address = memory.address + shared.offset;
        Ok(ImportedMemory { cuda: self.clone(), memory: Some(memory), address, size: shared.size })
    }
}
