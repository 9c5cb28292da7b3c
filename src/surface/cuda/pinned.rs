//! Typed pinned buffers, and copies between them and the device.
//!
//! ```text
//!   CPU      write ─▶ copy_to_device ─▶ … ─▶ slice_mut: waits for the copy, not for the stream
//!   stream             [copy]●                ● the mark that is waited for
//! ```
//!
//! - N1: the CPU reads and writes the values only when every copy that it was told of is done; so a
//!   buffer can be given to the next copy while the last runs, and read as soon as that is over.
//! - N2: dropped with copies under way, the memory is cached, and nobody has it before they are
//!   done.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use bytemuck::Pod;
use cudarc::driver::{
    CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, DriverError, HostSlice, SyncOnDrop,
};

use super::{CudaAllocator, CudaError, OnStream};
use crate::allocator::{AllocError, PoolOptions};
use crate::backend::{Backend, CudaEvent, CudaPinned, Lost};
use crate::units::Bytes;
use crate::vec::{DeviceVec, FromAllocationError};

/// `len` values in pinned memory of the host; dropping it caches the memory.
///
/// [`OnStream::copy_to_device`] and [`OnStream::copy_to_host`] run beside the CPU. cudarc's own
/// copies take it too (`HostSlice`), and wait for their end.
pub struct PinnedBuffer<T: Pod> {
    values: DeviceVec<T, CudaPinned>,
    memory: CudaAllocator,
    /// The ends of copies that may be under way.
    copies: Mutex<Vec<CudaEvent>>,
}

impl<T: Pod> fmt::Debug for PinnedBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PinnedBuffer").field(&self.values).finish()
    }
}

impl CudaAllocator {
    /// `len` zeros in pinned memory of the host. A copy that is *captured* uses the buffer again
    /// with every replay: keep it as long as the
    /// graph, and leave its values alone while one runs.
    ///
    /// [`PinnedConfig`](crate::config::PinnedConfig) of this allocator's configuration says what is
    /// rounded and what is not cached.
    ///
    /// # Errors
    /// As [`Allocator::allocate`](crate::Allocator::allocate), of [`pinned`](Self::pinned).
    #[track_caller]
    pub fn alloc_pinned<T: Pod>(&self, len: usize) -> Result<PinnedBuffer<T>, AllocError> {
        let (pinned, config) = (self.pinned(), &self.config().pinned);
        let bytes = (len as Bytes).saturating_mul(size_of::<T>() as Bytes);
        let is_cached = config.max_cached_size.is_none_or(|largest| bytes <= largest);
        let rounds = config.max_round_threshold.is_none_or(|largest| bytes <= largest);
        let rounded = bytes.checked_next_power_of_two().filter(|_| rounds && is_cached);
        let size = rounded.filter(|_| bytes > 0).unwrap_or(bytes);
        // What is not cached has a pool that nobody keeps: freed, it goes, when its copies are
        // done.
        let options = PoolOptions { exclusive: true, ..PoolOptions::default() };
        let pool = (!is_cached).then(|| pinned.create_pool(options));
        let mut request = pinned.request(size).align(align_of::<T>() as Bytes);
        if let Some(pool) = &pool {
            request = request.pool(pool);
        }
        let allocation = request.allocate()?;
        drop(pool);
        let values = DeviceVec::from_allocation(allocation, len);
        let mut values = values.map_err(|error| match error {
            FromAllocationError::DeviceLost(lost) => AllocError::DeviceLost(lost),
            FromAllocationError::TooSmall { needed, size } => {
                AllocError::TooLarge { requested: needed, limit: size }
            }
            FromAllocationError::Misaligned { needed } => {
                AllocError::Alignment { requested: needed, limit: 1 }
            }
        })?;
        bytemuck::fill_zeroes(values.as_mut_slice());
        Ok(PinnedBuffer { values, memory: self.clone(), copies: Mutex::default() })
    }
}

impl<T: Pod> PinnedBuffer<T> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The values, when all copies are done.
    ///
    /// # Errors
    /// If the device is gone.
    pub fn slice(&self) -> Result<&[T], Lost> {
        self.settle()?;
        Ok(self.values.as_slice())
    }

    /// The values, to be changed, when all copies are done.
    ///
    /// # Errors
    /// If the device is gone.
    pub fn slice_mut(&mut self) -> Result<&mut [T], Lost> {
        self.settle()?;
        Ok(self.values.as_mut_slice())
    }

    /// Whether all copies are done, without waiting for them.
    ///
    /// # Errors
    /// If the device is gone.
    pub fn is_settled(&self) -> Result<bool, Lost> {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let backend = self.memory.pinned().backend();
        while let Some(copy) = copies.last() {
            if !backend.is_complete(copy)? {
                return Ok(false);
            }
            copies.pop();
        }
        Ok(true)
    }

    /// Waits for the copies (N1).
    fn settle(&self) -> Result<(), Lost> {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let backend = self.memory.pinned().backend();
        while let Some(copy) = copies.last() {
            backend.wait(copy)?;
            copies.pop();
        }
        Ok(())
    }

    /// Submits a copy on a stream (N2), and marks its end (N1). Another device's stream is waited
    /// for: no mark of ours can be on it.
    fn copy(
        &mut self,
        on: &OnStream,
        submit: impl FnOnce(&mut Self) -> Result<(), DriverError>,
    ) -> Result<(), CudaError> {
        let stream = on.cuda_stream();
        if stream.context() != self.memory.context() {
            let submitted = submit(self);
            let waited = stream.synchronize();
            return submitted.and(waited).map_err(CudaError::from);
        }
        let pinned = self.memory.pinned().clone();
        // Known here, whoever's `on` it is: the stream must not go before its mark.
        let raw = self.memory.on(stream)?.stream().raw();
        pinned.record_stream(self.values.allocation(), &pinned.stream(raw));
        submit(self)?;
        let done = match pinned.backend().record(raw) {
            Ok(done) => done,
            Err(lost) => {
                // Nobody can say when it ends; the driver can, if it still lives.
                let _ = on.cuda_stream().synchronize();
                return Err(lost.into());
            }
        };
        self.copies.get_mut().unwrap_or_else(PoisonError::into_inner).push(done);
        Ok(())
    }
}

impl<T: Pod> HostSlice<T> for PinnedBuffer<T> {
    fn len(&self) -> usize {
        self.values.len()
    }

    // SAFETY: the slice is used by a copy on `stream` alone, whose end is waited for.
    unsafe fn stream_synced_slice<'a>(
        &'a self,
        stream: &'a CudaStream,
    ) -> (&'a [T], SyncOnDrop<'a>) {
        // A lost device copies nothing.
        let _ = self.settle();
        (self.values.as_slice(), SyncOnDrop::sync_stream(stream))
    }

    // SAFETY: as above.
    unsafe fn stream_synced_mut_slice<'a>(
        &'a mut self,
        stream: &'a CudaStream,
    ) -> (&'a mut [T], SyncOnDrop<'a>) {
        let _ = self.settle();
        (self.values.as_mut_slice(), SyncOnDrop::sync_stream(stream))
    }
}

impl OnStream {
    /// Copies all values of `from` to the beginning of `to`, beside the CPU.
    ///
    /// # Errors
    /// [`CudaError::Driver`] if the driver refuses, [`CudaError::Lost`] if the device is gone.
    ///
    /// # Panics
    /// If `to` is shorter.
    pub fn copy_to_device<T: Pod + DeviceRepr>(
        &self,
        from: &mut PinnedBuffer<T>,
        to: &mut impl DevicePtrMut<T>,
    ) -> Result<(), CudaError> {
        from.copy(self, |from| self.cuda_stream().memcpy_htod(from.values.as_slice(), to))
    }

    /// Copies all values of `from` to the beginning of `to`, beside the CPU:
    /// [`PinnedBuffer::slice`] has them when the copy is done.
    ///
    /// # Errors
    /// As [`copy_to_device`](Self::copy_to_device).
    ///
    /// # Panics
    /// If `to` is shorter.
    pub fn copy_to_host<T: Pod + DeviceRepr>(
        &self,
        from: &impl DevicePtr<T>,
        to: &mut PinnedBuffer<T>,
    ) -> Result<(), CudaError> {
        to.copy(self, |to| self.cuda_stream().memcpy_dtoh(from, to.values.as_mut_slice()))
    }
}
