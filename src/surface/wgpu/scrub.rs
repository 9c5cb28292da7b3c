//! Scrubbing: freed memory is cleared before anyone else can have it.
//!
//! ```text
//!   drop ─▶ list ─ every scope that may use it is submitted ─▶ one encoder clears all ─▶ freed
//! ```
//!
//! A block on the list counts as allocated: it is not free yet. The list is looked through when a
//! scope begins or ends, when memory runs out, and by `empty_cache`; all that can go is cleared in
//! one submission.

use std::sync::{Mutex, PoisonError};

use wgpu::{BufferUsages, CommandEncoderDescriptor};

use super::allocation::WgpuAllocation;
use crate::backend::Wgpu;
use crate::backend::wgpu::recordings::Recording;

/// What was dropped and is not cleared yet.
#[derive(Debug)]
pub(super) struct Scrubber {
    backend: Wgpu,
    list: Mutex<Vec<Dropped>>,
}

/// An allocation, and what was recorded when it was dropped and may use it. What begins later
/// cannot, or an allocation would wait for ever where there is always a scope open.
#[derive(Debug)]
struct Dropped {
    allocation: WgpuAllocation,
    users: Vec<Recording>,
}

impl Scrubber {
    pub(super) fn new(backend: Wgpu) -> Self {
        Self { backend, list: Mutex::new(Vec::new()) }
    }

    pub(super) fn push(&self, allocation: WgpuAllocation) {
        // What the GPU cannot write it has not written either: the CPU fills upload buffers itself.
        if allocation.segment().buffer().usage().contains(BufferUsages::COPY_DST) {
            let users = allocation.unsettled();
            let dropped = Dropped { allocation, users };
            self.list.lock().unwrap_or_else(PoisonError::into_inner).push(dropped);
        }
    }

    /// Clears and frees what no open scope may use; whether there was any.
    pub(super) fn flush(&self) -> bool {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let recordings = self.backend.recordings();
        let is_settled = |dropped: &Dropped| !recordings.is_any_open(&dropped.users);
        let (mut settled, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *list).into_iter().partition(is_settled);
        *list = left;
        drop(list);
        if settled.is_empty() {
            return false;
        }
        let descriptor = CommandEncoderDescriptor { label: Some("aquifer scrub") };
        let mut encoder = self.backend.device().create_command_encoder(&descriptor);
        for Dropped { allocation, .. } in &settled {
            let (at, len) = (allocation.offset(), allocation.capacity());
            encoder.clear_buffer(allocation.segment().buffer(), at, Some(len));
        }
        self.backend.queue().submit([encoder.finish()]);
        settled.iter_mut().for_each(|dropped| dropped.allocation.forget_uses());
        true
    }
}
