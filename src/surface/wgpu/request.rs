//! A request for memory of wgpu, with more to say than its size.

use std::fmt;
use std::sync::Arc;

use super::Shared;
use super::allocation::WgpuAllocation;
use crate::allocator::{AllocError, Request, Stream};
use crate::backend::{Role, Wgpu};
use crate::id::Tag;
use crate::units::Bytes;

/// A request with more to say. Ends with [`allocate`](Self::allocate).
pub struct WgpuRequest<'a> {
    shared: &'a Arc<Shared>,
    request: Request<'a, Wgpu>,
    size: Bytes,
    role: Role,
    bound: bool,
    avoid: Vec<&'a WgpuAllocation>,
    tag: Tag,
    stream: Option<&'a Stream<Wgpu>>,
}

impl fmt::Debug for WgpuRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WgpuRequest")
            .field("size", &self.size)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl<'a> WgpuRequest<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, size: Bytes) -> Self {
        Self {
            shared,
            request: shared.core.request(size),
            size,
            role: Role::Storage,
            bound: true,
            avoid: Vec::new(),
            tag: Tag::default(),
            stream: None,
        }
    }

    pub(super) fn on(mut self, stream: &'a Stream<Wgpu>) -> Self {
        self.stream = Some(stream);
        self
    }

    /// What the bytes are for; `Storage` unless said otherwise. Buffers that can be mapped come
    /// unmapped, and are to be dropped unmapped.
    #[must_use]
    pub fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// For reports.
    #[must_use]
    pub fn tag(mut self, tag: Tag) -> Self {
        self.tag = tag;
        self
    }

    /// The offset is to be a multiple of so many bytes, a power of two. Every block has 512 anyway.
    #[must_use]
    pub fn align(mut self, bytes: Bytes) -> Self {
        self.request = self.request.align(bytes);
        self
    }

    /// In a buffer that holds none of `others`: then a dispatch may bind them as `read` and this as
    /// `read_write`. If no such segment can be had, it gets a buffer of its own.
    #[must_use]
    pub fn avoiding(mut self, others: impl IntoIterator<Item = &'a WgpuAllocation>) -> Self {
        self.avoid.extend(others);
        self
    }

    /// It is never bound whole, so it may be larger than a binding can be.
    #[must_use]
    pub fn unbound(mut self) -> Self {
        self.bound = false;
        self
    }

    /// Allocates.
    ///
    /// # Errors
    /// As [`WgpuAllocator::allocate`](super::WgpuAllocator::allocate).
    #[track_caller]
    pub fn allocate(self) -> Result<WgpuAllocation, AllocError> {
        let Self { shared, request, size, role, bound, avoid, tag, stream } = self;
        // A hit would not ask the backend: one load.
        shared.core.backend().check().map_err(AllocError::DeviceLost)?;
        if bound && let Some(limit) = shared.binding_max(role).filter(|&limit| size > limit) {
            return Err(AllocError::TooLarge { requested: size, limit });
        }
        let mut request = request.tag(tag).avoiding(avoid.iter().map(|other| other.block()));
        if let Some(stream) = stream {
            request = request.on(stream);
        }
        if let Some(pool) = shared.pool(role) {
            request = request.pool(pool);
        }
        match request.allocate() {
            Ok(block) => {
                let allocation = shared.wrap(block, stream);
                if role == Role::Upload && size > 0 && allocation.segment().take_fresh() {
                    // It was made mapped; what is handed out never is, new or not.
                    shared.core.backend().unmap(allocation.segment().buffer());
                }
                Ok(allocation)
            }
            Err(AllocError::OutOfMemory(report)) if !avoid.is_empty() && role == Role::Storage => {
                // A whole segment was too much; a buffer of just the size may be had.
                let alone = shared.core.request(size).tag(tag);
                let alone = alone.pool(shared.exclusive_pool());
                let alone = match stream {
                    Some(stream) => alone.on(stream).allocate(),
                    None => alone.allocate(),
                };
                let alone = alone.map(|block| shared.wrap(block, stream));
                alone.map_err(|_| AllocError::OutOfMemory(report))
            }
            Err(error) => Err(error),
        }
    }
}
