//! Requests that failed: what the error says.

use std::sync::PoisonError;

use crate::allocator::allocation::AllocError;
use crate::allocator::shared::Shared;
use crate::backend::{Backend, Lost};
use crate::core::arena::Want;
use crate::core::ledger::Gauge;
use crate::core::step::Failure;
use crate::report::holders;
use crate::report::oom::{OomCause, OomReport};

impl<B: Backend> Shared<B> {
    #[cold]
    pub(super) fn failure(&self, failure: Failure, want: &Want) -> AllocError {
        match failure {
            Failure::OutOfMemory => self.out_of_memory(want, OomCause::NoRoom),
            Failure::Rejected => self.out_of_memory(want, OomCause::Rejected),
            Failure::Capture => self.out_of_memory(want, OomCause::Capture),
            Failure::Paused => self.out_of_memory(want, OomCause::Paused),
            Failure::Lost => {
                let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
                AllocError::DeviceLost(lost.unwrap_or_else(|| Lost::new("no reason was given")))
            }
        }
    }

    #[cold]
    pub(super) fn out_of_memory(&self, want: &Want, cause: OomCause) -> AllocError {
        let device_free = self.backend.free_bytes();
        let name_of = |tag| self.tags.name(tag);
        let report = self.world(|world| {
            let allocated = world.total(Gauge::AllocatedBytes);
            let active = world.total(Gauge::ActiveBytes);
            let mut holders = holders::collect(world, &name_of);
            holders.truncate(5);
            OomReport {
                cause,
                requested: want.requested,
                location: want.location,
                tag: name_of(want.tag),
                limit: world.global.limit,
                device_total: self.device.total,
                device_free,
                allocated,
                pending: active - allocated,
                reserved: world.total(Gauge::ReservedBytes),
                releasable: world.releasable(),
                largest_free: world.largest_free(want.owner, want.group),
                holders,
                could_expand: self.device.virtual_memory && !self.config.expandable_segments,
            }
        });
        self.note_oom(want.requested, device_free);
        log::warn!("aquifer: {report}");
        AllocError::OutOfMemory(Box::new(report))
    }
}
