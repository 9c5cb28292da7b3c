//! Graph captures: while a stream is captured nothing is asked of the driver on its behalf.
//!
//! ```text
//!   begin_capture(&on, &pool) ─▶ stream.begin_capture ── work, allocations ── end_capture ─▶ drop
//!        │ requests of the stream are led to the pool,                         │
//!        │ which is primed, and makes no call                                  ▼
//!        └── frees that wait for other streams are put off ──────────────▶ recovered
//! ```
//!
//! The graph's kernels have the pool's addresses baked in, so a pool that a capture went through
//! keeps its memory until the last handle of it is dropped: keep one as long as the graph.
//!
//! A broken capture breaks no allocator: what was allocated in it is freed as ever.

use std::fmt;

use super::{CudaAllocator, OnStream};
use crate::allocator::{CaptureGuard, PrivatePool};
use crate::backend::Cuda;

/// Captures a stream, as the allocator sees it, until it is dropped.
#[must_use = "dropping it ends the capture"]
pub struct CudaCapture {
    /// Present until the drop.
    guard: Option<CaptureGuard<Cuda>>,
    cuda: Cuda,
}

impl fmt::Debug for CudaCapture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CudaCapture").field(&self.guard).finish()
    }
}

impl Drop for CudaCapture {
    fn drop(&mut self) {
        // What the end recovers may ask the driver again.
        self.cuda.end_capture();
        self.guard = None;
    }
}

impl CudaAllocator {
    /// Announces the capture of a stream into `pool`: to be called before the stream's own
    /// `begin_capture`, and dropped after its `end_capture`. Until then requests on the stream are
    /// served by what the pool holds ([`PrivatePool::prime`] fills it), or fail.
    ///
    /// # Panics
    /// If the pool belongs to another allocator, or the stream was forgotten.
    pub fn begin_capture(&self, on: &OnStream, pool: &PrivatePool<Cuda>) -> CudaCapture {
        let cuda = self.backend().clone();
        let guard = self.shared.core.begin_capture(on.stream(), pool);
        // Only now: what was under way for the stream may still have waited for the device.
        cuda.announce_capture();
        CudaCapture { guard: Some(guard), cuda }
    }
}
