//! Requests that fail for want of memory: what they say, and who is told.
//!
//! Observers are told of every such request once, after all that could help was tried and before
//! the error is returned. No lock is held; a panic in one is contained and logged. Requests that
//! fail inside an observer are told to nobody.

use std::cell::Cell;
use std::sync::{Arc, PoisonError};

use crate::allocator::Allocator;
use crate::allocator::allocation::AllocError;
use crate::allocator::listeners::{CallbackGuard, Listeners, contain};
use crate::allocator::shared::Shared;
use crate::allocator::sync::thread_local;
use crate::backend::{Backend, Lost};
use crate::core::arena::Want;
use crate::core::step::Failure;
use crate::report::oom::{self, Asked, OomCause, OomReport};

/// What is told of requests that fail.
pub(super) type Observer = dyn Fn(&OomReport) + Send + Sync;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

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
        let limit_is_fraction = self.limits().is_by_fraction(self.device.total);
        let asked = Asked { want, cause, device_free, limit_is_fraction };
        let report = self.world(|world| oom::collect(world, asked, &|tag| self.tags.name(tag)));
        self.note_oom(want.requested, device_free);
        log::warn!("aquifer: {report}");
        self.tell_failure(&report);
        AllocError::OutOfMemory(Box::new(report))
    }

    fn tell_failure(&self, report: &OomReport) {
        if INSIDE.with(Cell::get) {
            return;
        }
        INSIDE.with(|inside| inside.set(true));
        for observer in self.observers.all().iter().rev() {
            contain("an observer of out-of-memory errors", || observer(report));
        }
        INSIDE.with(|inside| inside.set(false));
    }
}

/// An empty list of observers.
pub(super) fn observers() -> Listeners<Observer> {
    Listeners::new()
}

impl<B: Backend> Allocator<B> {
    /// Registers an observer that is told of every request that fails for want of memory, once,
    /// before the error is returned; the earlier ones first. To make room instead, see
    /// [`on_out_of_memory`](Self::on_out_of_memory).
    ///
    /// No lock is held: it may look at everything, write a snapshot, allocate and free. Requests
    /// that fail inside it are told to nobody. A panic in it is contained and logged.
    ///
    /// ```
    /// use aquifer::{Allocator, Config, backend::Host};
    ///
    /// let allocator = Allocator::new(Host::with_capacity(1 << 20), Config::default());
    /// let observer = allocator.observe_out_of_memory(|report| {
    ///     eprintln!("{} bytes could not be had: {report}", report.requested);
    /// });
    /// assert!(allocator.allocate(2 << 20).is_err());
    /// drop(observer); // told no more
    /// ```
    pub fn observe_out_of_memory(
        &self,
        observer: impl Fn(&OomReport) + Send + Sync + 'static,
    ) -> CallbackGuard {
        self.shared.observers.register(0, Arc::new(observer))
    }
}
