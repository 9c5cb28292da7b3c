//! Typed buffers and views of them, with cudarc's traits.
//!
//! ```text
//!   segment  ├──── others ────┼──── CudaBuffer<T>, multiple of 512 ────┼──── others ────┤
//!                             ▲ address = a CUdeviceptr
//!                             ├─ view(2..5) ─┤   shared: DevicePtr
//!                                  ├─ view_mut(7..) ─┤   exclusive: DevicePtrMut
//! ```
//!
//! No event belongs to a buffer (a `CudaSlice` makes two): the allocator records one for a batch of
//! frees, and only for what another stream has used. An allocation and its drop therefore cost what
//! the allocator's own do.
//!
//! - B1: `len * size_of::<T>()` is at most the allocation's size.
//! - B2: whom cudarc gives the address for work on a stream has that stream recorded first, unless
//!   it is the buffer's own.

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Bound, Deref, DerefMut, RangeBounds};
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, LaunchArgs, PushKernelArg,
    SyncOnDrop,
};

use super::{CudaAllocator, OnStream};
use crate::allocator::{Allocation, Stream};
use crate::backend::{Cuda, Lost};
use crate::units::Bytes;

/// `CU_STREAM_PER_THREAD`, which is another stream on each thread.
const PER_THREAD: usize = 2;

/// `len` values of type `T` on the device; dropping it frees them.
///
/// It goes wherever a `CudaSlice` goes that takes cudarc's traits: copies, cuBLAS, kernel
/// arguments.
pub struct CudaBuffer<T> {
    allocation: Allocation<Cuda>,
    /// As kernels are given it: a reference to it is what is pushed.
    address: CUdeviceptr,
    len: usize,
    stream: Arc<CudaStream>,
    memory: CudaAllocator,
    values: PhantomData<T>,
}

// SAFETY: the values are on the device; what a thread can do with the buffer is to name them in
// work that it submits, for which the driver may be called from any thread.
unsafe impl<T: Send> Send for CudaBuffer<T> {}
// SAFETY: as for `Send`; a shared buffer can only be read.
unsafe impl<T: Sync> Sync for CudaBuffer<T> {}

impl<T> CudaBuffer<T> {
    pub(super) fn new(allocation: Allocation<Cuda>, len: usize, on: &OnStream) -> Self {
        let address = allocation.address().unwrap_or(0);
        debug_assert!((len * size_of::<T>()) as Bytes <= allocation.size(), "B1");
        let (stream, memory) = (Arc::clone(on.cuda_stream()), on.memory().clone());
        Self { allocation, address, len, stream, memory, values: PhantomData }
    }

    /// The memory it lives in.
    pub fn allocation(&self) -> &Allocation<Cuda> {
        &self.allocation
    }

    /// The address of the first value; 0 if there are none. For use on the buffer's own stream:
    /// nothing is recorded.
    pub fn address(&self) -> CUdeviceptr {
        self.address
    }

    /// Tells that work submitted to `stream` uses the buffer: nobody gets its bytes before that
    /// stream is past it, too. Needless for the buffer's own stream, and where cudarc hands the
    /// stream on (copies, cuBLAS); a *kernel* on another stream needs it, as its arguments do not
    /// know where they go.
    ///
    /// # Errors
    /// If the driver does not say which stream it is, as after its loss: nothing is recorded.
    ///
    /// # Panics
    /// If the stream is another context's.
    pub fn record_on(&self, stream: &Arc<CudaStream>) -> Result<(), Lost> {
        self.record(self.memory.on(stream)?.stream());
        Ok(())
    }

    fn record(&self, known: &Stream<Cuda>) {
        if known.index() != self.allocation.stream_index() {
            self.memory.record_stream(&self.allocation, known);
        }
    }

    /// Use on a stream of which there is no `Arc` to keep it: it is the own one, or one that is
    /// known; another is waited for when the use has been submitted. That wait is cudarc's: where
    /// it is refused, the context's `check_err` and cudarc's next call say so, and nobody has
    /// waited.
    fn note_use<'a>(&self, stream: &'a CudaStream) -> SyncOnDrop<'a> {
        // Handles are of a context: the default streams of all devices have the same one.
        if stream.context() != self.stream.context() {
            return SyncOnDrop::sync_stream(stream);
        }
        let handle = stream.cu_stream();
        if handle == self.stream.cu_stream() && handle as usize != PER_THREAD {
            return SyncOnDrop::Record(None);
        }
        match self.memory.known_stream(handle as usize) {
            Some(known) => {
                self.record(&known);
                SyncOnDrop::Record(None)
            }
            None => SyncOnDrop::sync_stream(stream),
        }
    }

    /// Some of the values.
    ///
    /// # Panics
    /// If the range is not within the buffer.
    pub fn view(&self, range: impl RangeBounds<usize>) -> CudaBufferView<'_, T> {
        let (start, len) = bounds(range, self.len);
        let address = self.address + (start * size_of::<T>()) as CUdeviceptr;
        CudaBufferView { buffer: self, address, len }
    }

    /// Some of the values, to be changed.
    ///
    /// # Panics
    /// If the range is not within the buffer.
    pub fn view_mut(&mut self, range: impl RangeBounds<usize>) -> CudaBufferViewMut<'_, T> {
        let (start, len) = bounds(range, self.len);
        let address = self.address + (start * size_of::<T>()) as CUdeviceptr;
        CudaBufferViewMut { buffer: self, address, len }
    }

    /// The same values as a `CudaSlice`, for functions that take nothing else. cudarc makes two
    /// events for it, where it tracks events.
    ///
    /// # Panics
    /// If the driver has no event left (cudarc's doing).
    ///
    /// # Safety
    /// - The slice stays where it is: swapped for another, as by `std::mem::swap`, it would give
    ///   memory of the allocator's to the driver when it is dropped.
    /// - If cudarc does not track events: work on other streams than the buffer's own is waited for
    ///   by that one before the buffer is dropped.
    pub unsafe fn as_cuda_slice(&mut self) -> BorrowedSlice<'_, T> {
        // SAFETY: the address is of `len` values of `T` that live as long as the borrow, and the
        // slice never frees them: it is leaked at the end.
        let slice = unsafe { self.stream.upgrade_device_ptr::<T>(self.address, self.len) };
        BorrowedSlice { slice: ManuallyDrop::new(slice), _buffer: PhantomData }
    }
}

/// Start and length of a range within `len` values.
fn bounds(range: impl RangeBounds<usize>, len: usize) -> (usize, usize) {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&end) => end + 1,
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    assert!(start <= end && end <= len, "values {start}..{end} of a buffer of {len}");
    (start, end - start)
}

impl<T> fmt::Debug for CudaBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaBuffer")
            .field("type", &std::any::type_name::<T>())
            .field("len", &self.len)
            .field("allocation", &self.allocation)
            .finish()
    }
}

/// Some values of a [`CudaBuffer`], shared.
#[derive(Debug)]
pub struct CudaBufferView<'a, T> {
    buffer: &'a CudaBuffer<T>,
    address: CUdeviceptr,
    len: usize,
}

/// Some values of a [`CudaBuffer`], exclusive.
#[derive(Debug)]
pub struct CudaBufferViewMut<'a, T> {
    buffer: &'a mut CudaBuffer<T>,
    address: CUdeviceptr,
    len: usize,
}

/// A [`CudaBuffer`] as a `CudaSlice`, while it is borrowed.
#[derive(Debug)]
pub struct BorrowedSlice<'a, T> {
    slice: ManuallyDrop<CudaSlice<T>>,
    _buffer: PhantomData<&'a mut CudaBuffer<T>>,
}

impl<T> Deref for BorrowedSlice<'_, T> {
    type Target = CudaSlice<T>;

    fn deref(&self) -> &CudaSlice<T> {
        &self.slice
    }
}

impl<T> DerefMut for BorrowedSlice<'_, T> {
    fn deref_mut(&mut self) -> &mut CudaSlice<T> {
        &mut self.slice
    }
}

impl<T> Drop for BorrowedSlice<'_, T> {
    fn drop(&mut self) {
        // SAFETY: it is not used again.
        let slice = unsafe { ManuallyDrop::take(&mut self.slice) };
        // Orders its own stream behind the other uses that cudarc knows of, and frees nothing.
        slice.leak();
    }
}

/// Implements cudarc's traits for one type: who the buffer is, and how shared and exclusive
/// references of it become kernel arguments.
macro_rules! cudarc_traits {
    ([$($life:lifetime)?] $name:ty, $self:ident => $buffer:expr) => {
        impl<$($life,)? T> DeviceSlice<T> for $name {
            fn len(&self) -> usize {
                self.len
            }

            fn stream(&$self) -> &Arc<CudaStream> {
                &$buffer.stream
            }
        }

        impl<$($life,)? T> DevicePtr<T> for $name {
            fn device_ptr<'b>(&'b $self, stream: &'b CudaStream) -> (CUdeviceptr, SyncOnDrop<'b>) {
                ($self.address, $buffer.note_use(stream))
            }
        }

        // SAFETY: what is pushed is the address of a `u64` that outlives the launch's arguments.
        unsafe impl<'x, 'y: 'x, $($life,)? T> PushKernelArg<&'y $name> for LaunchArgs<'x> {
            fn arg(&mut self, argument: &'y $name) -> &mut Self {
                self.arg(&argument.address)
            }
        }
    };
    (exclusive [$($life:lifetime)?] $name:ty, $self:ident => $buffer:expr) => {
        cudarc_traits!([$($life)?] $name, $self => $buffer);

        impl<$($life,)? T> DevicePtrMut<T> for $name {
            fn device_ptr_mut<'b>(
                &'b mut $self,
                stream: &'b CudaStream,
            ) -> (CUdeviceptr, SyncOnDrop<'b>) {
                ($self.address, $buffer.note_use(stream))
            }
        }

        // SAFETY: as for the shared reference.
        unsafe impl<'x, 'y: 'x, $($life,)? T> PushKernelArg<&'y mut $name> for LaunchArgs<'x> {
            fn arg(&mut self, argument: &'y mut $name) -> &mut Self {
                self.arg(&argument.address)
            }
        }
    };
}

cudarc_traits!(exclusive [] CudaBuffer<T>, self => self);
cudarc_traits!(['a] CudaBufferView<'a, T>, self => self.buffer);
cudarc_traits!(exclusive ['a] CudaBufferViewMut<'a, T>, self => self.buffer);
