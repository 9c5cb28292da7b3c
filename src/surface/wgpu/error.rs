//! What can go wrong with moving bytes between the CPU and the GPU.

use std::fmt;

use crate::allocator::{AllocError, MaybeOutOfMemory, is_out_of_memory};
use crate::backend::Lost;
use crate::report::format_bytes;
use crate::units::Bytes;

/// Why an upload failed. Nothing was recorded. A write outside of scopes goes in pieces of up to
/// 16 MiB: those before the one that failed may have been written, unless it was
/// [`Unordered`](Self::Unordered).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UploadError {
    /// There is no memory for what is to be uploaded, or for its way there.
    Alloc(AllocError),
    /// All that may be used for uploads on their way is in use by work that is recorded and not
    /// submitted, or the upload alone is larger.
    StagingFull {
        /// Bytes to be uploaded.
        requested: Bytes,
        /// The cap, [`WgpuOptions::upload_cap`](super::WgpuOptions::upload_cap), in bytes.
        cap: Bytes,
    },
    /// A write outside of scopes would overtake work that is recorded and not submitted, and may
    /// use the same bytes: upload through that scope, or submit it first.
    Unordered,
    /// The device is gone.
    DeviceLost(Lost),
}

impl fmt::Display for UploadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UploadError::Alloc(error) => error.fmt(f),
            UploadError::StagingFull { requested, cap } => {
                let (requested, cap) = (format_bytes(*requested), format_bytes(*cap));
                write!(
                    f,
                    "no room to stage {requested}: at most {cap} may be on their way. Submit the \
                     open scopes, upload in smaller pieces, or raise WgpuOptions::upload_cap"
                )
            }
            UploadError::Unordered => f.write_str(
                "the write would overtake work that is recorded and not submitted, and may use the \
                 same bytes: upload through that scope, or submit it first",
            ),
            UploadError::DeviceLost(lost) => lost.fmt(f),
        }
    }
}

impl std::error::Error for UploadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            UploadError::Alloc(error) => Some(error),
            UploadError::DeviceLost(lost) => Some(lost),
            UploadError::StagingFull { .. } | UploadError::Unordered => None,
        }
    }
}

impl MaybeOutOfMemory for UploadError {
    fn is_out_of_memory(&self) -> bool {
        is_out_of_memory(self)
    }
}

impl From<AllocError> for UploadError {
    fn from(error: AllocError) -> Self {
        UploadError::Alloc(error)
    }
}

impl From<Lost> for UploadError {
    fn from(lost: Lost) -> Self {
        UploadError::DeviceLost(lost)
    }
}

/// Why bytes could not be read back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DownloadError {
    /// There is no memory for the way back.
    Alloc(AllocError),
    /// As many bytes as [`WgpuOptions::readback_cap`](super::WgpuOptions::readback_cap) allows are
    /// on their way back already, or asked for at once.
    ReadbackFull {
        /// Bytes to be read.
        requested: Bytes,
        /// The cap in bytes.
        cap: Bytes,
    },
    /// The scope that recorded the copy was not submitted: waiting would never end.
    Unsubmitted,
    /// The device is gone.
    DeviceLost(Lost),
}

impl fmt::Display for DownloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DownloadError::Alloc(error) => error.fmt(f),
            DownloadError::ReadbackFull { requested, cap } => {
                let (requested, cap) = (format_bytes(*requested), format_bytes(*cap));
                write!(
                    f,
                    "no room to read {requested} back: at most {cap} may be on their way. Read \
                     what was downloaded, ask for less at once, or raise WgpuOptions::readback_cap"
                )
            }
            DownloadError::Unsubmitted => {
                f.write_str("the scope that recorded the download was not submitted")
            }
            DownloadError::DeviceLost(lost) => lost.fmt(f),
        }
    }
}

impl std::error::Error for DownloadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            DownloadError::Alloc(error) => Some(error),
            DownloadError::DeviceLost(lost) => Some(lost),
            DownloadError::ReadbackFull { .. } | DownloadError::Unsubmitted => None,
        }
    }
}

impl MaybeOutOfMemory for DownloadError {
    fn is_out_of_memory(&self) -> bool {
        is_out_of_memory(self)
    }
}

impl From<AllocError> for DownloadError {
    fn from(error: AllocError) -> Self {
        DownloadError::Alloc(error)
    }
}

impl From<Lost> for DownloadError {
    fn from(lost: Lost) -> Self {
        DownloadError::DeviceLost(lost)
    }
}
