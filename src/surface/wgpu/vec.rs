//! Typed vectors in the GPU's memory.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use bytemuck::Pod;
use wgpu::CommandEncoder;

use super::allocation::WgpuAllocation;
use super::error::{DownloadError, UploadError};
use super::scope::Scope;
use super::transfer::to_values;
use super::{Download, WgpuAllocator};
use crate::allocator::AllocError;
use crate::units::Bytes;

/// `len` values of type `T` in the GPU's memory; dropping it frees them. Fixed in length.
///
/// It is an allocation ([`Deref`]): what takes that takes this.
///
/// # Examples
/// ```no_run
/// # fn run(allocator: &aquifer::WgpuAllocator) -> Result<(), Box<dyn std::error::Error>> {
/// use aquifer::GpuVec;
///
/// let squares = GpuVec::from_slice(allocator, &[1.0f32, 4.0, 9.0])?;
/// assert_eq!(squares.download()?, [1.0, 4.0, 9.0]);
/// # Ok(())
/// # }
/// ```
pub struct GpuVec<T: Pod> {
    allocation: WgpuAllocation,
    allocator: WgpuAllocator,
    len: usize,
    values: PhantomData<T>,
}

/// The bytes of `len` values.
fn byte_len<T>(len: usize) -> Result<Bytes, AllocError> {
    let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| isize::try_from(bytes).ok());
    bytes.map(|bytes| bytes as Bytes).ok_or(AllocError::TooLarge {
        requested: (len as Bytes).saturating_mul(size_of::<T>() as Bytes),
        limit: isize::MAX as Bytes,
    })
}

impl<T: Pod> GpuVec<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// As [`WgpuAllocator::allocate`].
    #[track_caller]
    pub fn zeroed(allocator: &WgpuAllocator, len: usize) -> Result<Self, AllocError> {
        let allocation = allocator.allocate_zeroed(byte_len::<T>(len)?)?;
        Ok(Self { allocation, allocator: allocator.clone(), len, values: PhantomData })
    }

    /// `len` values that are whatever an earlier owner of the memory left, for those who write
    /// everything before they read anything.
    ///
    /// # Errors
    /// As [`WgpuAllocator::allocate`].
    #[track_caller]
    pub fn recycled(allocator: &WgpuAllocator, len: usize) -> Result<Self, AllocError> {
        let allocation = allocator.allocate(byte_len::<T>(len)?)?;
        Ok(Self { allocation, allocator: allocator.clone(), len, values: PhantomData })
    }

    /// As [`recycled`](Self::recycled), in the memory of a scope.
    ///
    /// # Errors
    /// As [`Scope::allocate`].
    #[track_caller]
    pub fn recycled_in(scope: &Scope, len: usize) -> Result<Self, AllocError> {
        let allocation = scope.allocate(byte_len::<T>(len)?)?;
        let allocator = WgpuAllocator::of(scope.shared());
        Ok(Self { allocation, allocator, len, values: PhantomData })
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// As [`WgpuAllocator::allocate`] and [`WgpuAllocator::write_now`].
    #[track_caller]
    pub fn from_slice(allocator: &WgpuAllocator, values: &[T]) -> Result<Self, UploadError> {
        let vec = Self::recycled(allocator, values.len())?;
        vec.upload(values)?;
        Ok(vec)
    }

    /// The first bytes of `allocation` as `len` values, with the contents they have.
    ///
    /// # Panics
    /// If they are more bytes than the allocation has.
    pub fn from_allocation(
        allocator: &WgpuAllocator,
        allocation: WgpuAllocation,
        len: usize,
    ) -> Self {
        let bytes = byte_len::<T>(len).unwrap_or(Bytes::MAX);
        let size = allocation.size();
        assert!(bytes <= size, "{len} values need {bytes} bytes, the allocation has {size}");
        Self { allocation, allocator: allocator.clone(), len, values: PhantomData }
    }

    /// The memory, with the bytes as they are.
    pub fn into_allocation(self) -> WgpuAllocation {
        self.allocation
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes `values` to its beginning, in a submission of its own.
    ///
    /// # Errors
    /// As [`WgpuAllocator::write_now`].
    ///
    /// # Panics
    /// If they are more than it has, or end inside of it at no multiple of 4 bytes.
    pub fn upload(&self, values: &[T]) -> Result<(), UploadError> {
        self.allocator.write_now(&self.allocation, 0, bytemuck::cast_slice(values))
    }

    /// Writes `values` to its beginning at this point of a scope's encoder.
    ///
    /// # Errors
    /// As [`Scope::upload`].
    ///
    /// # Panics
    /// As [`upload`](Self::upload).
    pub fn upload_in(
        &self,
        scope: &mut Scope,
        encoder: &mut CommandEncoder,
        values: &[T],
    ) -> Result<(), UploadError> {
        scope.upload(encoder, &self.allocation, 0, bytemuck::cast_slice(values))
    }

    /// The values, as they are after everything that was submitted. Blocks.
    ///
    /// # Errors
    /// As [`WgpuAllocator::read`].
    pub fn download(&self) -> Result<Vec<T>, DownloadError> {
        let bytes = self.allocator.read(&self.allocation)?;
        Ok(to_values(&bytes, self.len))
    }

    /// The values, as they are at this point of a scope's encoder.
    ///
    /// # Errors
    /// As [`Scope::download`].
    pub fn download_in(
        &self,
        scope: &mut Scope,
        encoder: &mut CommandEncoder,
    ) -> Result<VecDownload<T>, DownloadError> {
        let download = scope.download(encoder, &self.allocation)?;
        Ok(VecDownload { download, len: self.len, values: PhantomData })
    }

    /// Copies its values to the beginning of `other`, in a submission of its own.
    ///
    /// # Errors
    /// If there is no memory for the way; [`UploadError::Unordered`] as
    /// [`WgpuAllocator::write_now`].
    ///
    /// # Panics
    /// If `other` is shorter.
    pub fn copy_to(&self, other: &GpuVec<T>) -> Result<(), UploadError> {
        assert!(other.len >= self.len, "{} values into {}", self.len, other.len);
        if !other.allocation.is_settled() || !self.allocation.is_settled() {
            return Err(UploadError::Unordered);
        }
        let mut encoder = self.allocator.shared.encoder("aquifer copy");
        let scope = self.allocator.begin(&mut encoder);
        scope.copy(&mut encoder, &self.allocation, &other.allocation)?;
        scope.submit(encoder);
        Ok(())
    }
}

impl<T: Pod> Deref for GpuVec<T> {
    type Target = WgpuAllocation;

    fn deref(&self) -> &WgpuAllocation {
        &self.allocation
    }
}

impl<T: Pod> fmt::Debug for GpuVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuVec")
            .field("type", &std::any::type_name::<T>())
            .field("len", &self.len)
            .field("allocation", &self.allocation)
            .finish()
    }
}

/// Values on their way back to the CPU; see [`Download`].
#[derive(Debug)]
pub struct VecDownload<T: Pod> {
    download: Download,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Pod> VecDownload<T> {
    /// Waits for the values.
    ///
    /// # Errors
    /// As [`Download::wait`].
    pub fn wait(&self) -> Result<Vec<T>, DownloadError> {
        Ok(self.values(&self.download.wait()?))
    }

    /// As [`wait`](Self::wait), for programs that must not block.
    ///
    /// # Errors
    /// As [`Download::read`].
    pub async fn read(&self) -> Result<Vec<T>, DownloadError> {
        Ok(self.values(&self.download.read().await?))
    }

    fn values(&self, bytes: &[u8]) -> Vec<T> {
        to_values(bytes, self.len)
    }
}
