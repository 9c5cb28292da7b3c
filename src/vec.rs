//! Typed vectors over memory that the program can reach itself.
//!
//! A [`DeviceVec`] owns one [`Allocation`] of a [`HostVisible`] backend and shows its bytes as a
//! slice of `T`. It is fixed in length: it has what `Vec` has less everything that grows.
//!
//! ```text
//!   segment   ├──── others ────┼── capacity (multiple of 512) ──┼──── others ────┤
//!                              ├ [0] ┬ [1] ┬ ... ┬ [len - 1] ┤  ·
//!                              ▲ offset: a multiple of align_of::<T>()
//! ```
//!
//! Invariants, on which all `unsafe` of this file rests:
//!
//! - V1: `len * size_of::<T>()` is at most the allocation's size and at most `isize::MAX`.
//! - V2: the first byte is aligned for `T`.
//! - V3: the allocation is live, and no device work of an earlier owner is under way on its bytes.
//! - V4: nobody but this vector hands out references to its bytes, and the allocator frees what an
//!   `Allocation` owns at its drop only, never by id.
//!
//! Cost of making one: the allocation, one record and wait on the stream (nothing at all on
//! [`Host`](crate::backend::Host)), and the writing of the contents. Access costs an addition.

#[cfg(test)]
mod tests;

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytemuck::Pod;

use crate::allocator::{AllocError, Allocation, Allocator, Stream};
use crate::backend::{HostVisible, Lost};
use crate::id::Tag;
use crate::report::format_bytes;
use crate::units::{Bytes, GRANULE};

/// `len` values of type `T` in the allocator's memory; dropping it frees them.
///
/// Types without a size are fine: such a vector holds no memory, as one of length 0.
///
/// # Examples
/// ```
/// use aquifer::{Allocator, Config, DeviceVec, backend::Host};
///
/// let memory = Allocator::new(Host::new(), Config::default());
/// let mut sums = DeviceVec::<f32, _>::zeroed(&memory, 1000)?;
/// sums[7] += 0.5;
/// assert_eq!(sums.iter().sum::<f32>(), 0.5);
/// assert_eq!(memory.memory_allocated(), 4096);
/// # Ok::<(), aquifer::AllocError>(())
/// ```
pub struct DeviceVec<T: Pod, B: HostVisible> {
    /// Of the allocation's segment; `None` if the allocation is empty.
    view: Option<B::View>,
    allocation: Allocation<B>,
    len: usize,
    values: PhantomData<T>,
}

/// Where a [`DeviceVec`] is to live, and under which name. Made by [`DeviceVec::request`].
///
/// # Examples
/// ```
/// # use aquifer::{Allocator, Config, DeviceVec, backend::Host};
/// # let memory = Allocator::new(Host::new(), Config::default());
/// let optimizer = memory.tag("optimizer");
/// let moments = DeviceVec::<f32, _>::request(&memory).tag(optimizer).zeroed(1000)?;
/// assert_eq!(memory.holders()[0].tag.as_deref(), Some("optimizer"));
/// # drop(moments);
/// # Ok::<(), aquifer::AllocError>(())
/// ```
pub struct VecRequest<'a, T: Pod, B: HostVisible> {
    allocator: &'a Allocator<B>,
    stream: Option<&'a Stream<B>>,
    tag: Tag,
    values: PhantomData<T>,
}

/// Why an allocation cannot become a [`DeviceVec`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FromAllocationError {
    /// The values need more bytes than were asked for.
    TooSmall {
        /// Bytes of the values; `Bytes::MAX` if they are beyond 64 bits.
        needed: Bytes,
        /// Bytes of the allocation.
        size: Bytes,
    },
    /// The first byte is not aligned for the values.
    Misaligned {
        /// In bytes; ask for it with [`Request::align`](crate::Request::align).
        needed: Bytes,
    },
    /// The device is gone.
    DeviceLost(Lost),
}

impl fmt::Display for FromAllocationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { needed, size } => {
                let (needed, size) = (format_bytes(*needed), format_bytes(*size));
                write!(f, "the values need {needed}, the allocation has {size}")
            }
            Self::Misaligned { needed } => {
                write!(f, "the allocation does not begin at a multiple of {needed} bytes")
            }
            Self::DeviceLost(lost) => lost.fmt(f),
        }
    }
}

impl std::error::Error for FromAllocationError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::DeviceLost(lost) => Some(lost),
            _ => None,
        }
    }
}

impl<T: Pod, B: HostVisible> DeviceVec<T, B> {
    /// `len` zeros on the default stream.
    ///
    /// # Errors
    /// As [`Allocator::allocate`]; [`AllocError::TooLarge`] if the bytes cannot be counted.
    #[track_caller]
    pub fn zeroed(allocator: &Allocator<B>, len: usize) -> Result<Self, AllocError> {
        Self::request(allocator).zeroed(len)
    }

    /// A copy of `values` on the default stream.
    ///
    /// # Errors
    /// As [`zeroed`](Self::zeroed).
    #[track_caller]
    pub fn from_slice(allocator: &Allocator<B>, values: &[T]) -> Result<Self, AllocError> {
        Self::request(allocator).from_slice(values)
    }

    /// `len` values that are whatever an earlier owner of the memory wrote, reinterpreted: for
    /// those who write everything before they read anything. Saves the zeroing.
    ///
    /// # Errors
    /// As [`zeroed`](Self::zeroed).
    #[track_caller]
    pub fn recycled(allocator: &Allocator<B>, len: usize) -> Result<Self, AllocError> {
        Self::request(allocator).recycled(len)
    }

    /// A request with more to say: stream, tag.
    pub fn request(allocator: &Allocator<B>) -> VecRequest<'_, T, B> {
        VecRequest { allocator, stream: None, tag: Tag::default(), values: PhantomData }
    }

    /// The first bytes of `allocation` as `len` values, with the contents they have. Waits for the
    /// allocation's stream.
    ///
    /// # Errors
    /// [`FromAllocationError`] if it is too small or not aligned for `T`, or the device is gone;
    /// the allocation is freed then.
    pub fn from_allocation(
        allocation: Allocation<B>,
        len: usize,
    ) -> Result<Self, FromAllocationError> {
        let needed = byte_len::<T>(len).unwrap_or(Bytes::MAX);
        if needed > allocation.size() {
            return Err(FromAllocationError::TooSmall { needed, size: allocation.size() });
        }
        let vec = Self { view: allocation.view(), allocation, len, values: PhantomData };
        if !vec.start().is_aligned() {
            return Err(FromAllocationError::Misaligned { needed: align_of::<T>() as Bytes });
        }
        vec.allocation.settle().map_err(FromAllocationError::DeviceLost)?;
        Ok(vec)
    }

    /// The memory, with the bytes as they are.
    pub fn into_allocation(self) -> Allocation<B> {
        self.allocation
    }

    /// The memory it lives in. Empty if the values have no bytes.
    pub fn allocation(&self) -> &Allocation<B> {
        &self.allocation
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: V1 to V3: aligned, live and `len` values long; every bit pattern is a `T`, and a
        // backend's bytes are initialised. V4: only a `&mut` of this vector could write them.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }

    /// The values, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`; by V4 the `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }

    /// The first value; dangling but aligned if the allocation is empty.
    fn start(&self) -> *mut T {
        let Some(view) = &self.view else {
            return NonNull::dangling().as_ptr();
        };
        let (offset, len) = (self.allocation.offset(), self.allocation.size());
        // SAFETY: the view is that of the allocation's own segment, which is not freed before the
        // allocation (V3), and the segment holds the allocation whole. V4 covers writes.
        let first = unsafe { self.allocation.backend().bytes(view, offset, len) };
        first.cast()
    }
}

impl<'a, T: Pod, B: HostVisible> VecRequest<'a, T, B> {
    /// On this stream instead of the default one.
    #[must_use]
    pub fn on(mut self, stream: &'a Stream<B>) -> Self {
        self.stream = Some(stream);
        self
    }

    /// For reports.
    #[must_use]
    pub fn tag(mut self, tag: Tag) -> Self {
        self.tag = tag;
        self
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// As [`DeviceVec::zeroed`].
    #[track_caller]
    pub fn zeroed(self, len: usize) -> Result<DeviceVec<T, B>, AllocError> {
        let mut vec = self.recycled(len)?;
        bytemuck::fill_zeroes(vec.as_mut_slice());
        Ok(vec)
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// As [`DeviceVec::zeroed`].
    #[track_caller]
    pub fn from_slice(self, values: &[T]) -> Result<DeviceVec<T, B>, AllocError> {
        let mut vec = self.recycled(values.len())?;
        vec.as_mut_slice().copy_from_slice(values);
        Ok(vec)
    }

    /// `len` values that are whatever an earlier owner wrote; see [`DeviceVec::recycled`].
    ///
    /// # Errors
    /// As [`DeviceVec::zeroed`].
    ///
    /// # Panics
    /// If the stream was forgotten, or belongs to another allocator.
    #[track_caller]
    pub fn recycled(self, len: usize) -> Result<DeviceVec<T, B>, AllocError> {
        let Some(bytes) = byte_len::<T>(len) else {
            let requested = (len as Bytes).saturating_mul(size_of::<T>() as Bytes);
            let limit = self.allocator.backend().limits().segment_max;
            return Err(AllocError::TooLarge { requested, limit: limit.min(isize::MAX as Bytes) });
        };
        let mut request = self.allocator.request(bytes).tag(self.tag);
        if align_of::<T>() as Bytes > GRANULE {
            request = request.align(align_of::<T>() as Bytes);
        }
        if let Some(stream) = self.stream {
            request = request.on(stream);
        }
        let allocation = request.allocate()?;
        let vec =
            DeviceVec::<T, B> { view: allocation.view(), allocation, len, values: PhantomData };
        assert!(vec.start().is_aligned(), "V2 is broken: a block is not aligned as it was asked");
        vec.allocation.settle().map_err(AllocError::DeviceLost)?;
        Ok(vec)
    }
}

/// Bytes of `len` values; `None` beyond what a slice may have (V1).
fn byte_len<T>(len: usize) -> Option<Bytes> {
    let bytes = len.checked_mul(size_of::<T>())?;
    isize::try_from(bytes).ok().map(|_| bytes as Bytes)
}

impl<T: Pod, B: HostVisible> Deref for DeviceVec<T, B> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.as_slice()
    }
}

impl<T: Pod, B: HostVisible> DerefMut for DeviceVec<T, B> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.as_mut_slice()
    }
}

impl<T: Pod, B: HostVisible> fmt::Debug for DeviceVec<T, B> {
    /// What it is and where, not the values: there may be millions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceVec")
            .field("type", &std::any::type_name::<T>())
            .field("len", &self.len)
            .field("allocation", &self.allocation)
            .finish()
    }
}

impl<T: Pod, B: HostVisible> fmt::Debug for VecRequest<'_, T, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VecRequest")
            .field("type", &std::any::type_name::<T>())
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}
