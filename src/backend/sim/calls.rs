//! The calls a simulated device has seen, and the failures it has been told to answer with.
//!
//! Calls that can fail are numbered 1, 2, 3 … in the order they arrive. A plan names numbers, so
//! the same program with the same plan fails at the same place every time.

use std::collections::BTreeMap;

use crate::backend::{GrowError, Lost};

/// How often each method of the backend was called; failed calls count too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallCounts {
    /// [`Backend::allocate`](crate::backend::Backend::allocate).
    pub allocate: u64,
    /// [`Backend::free`](crate::backend::Backend::free) of a segment.
    pub free: u64,
    /// [`Backend::free`](crate::backend::Backend::free) of a range of addresses.
    pub unreserve: u64,
    /// [`VirtualMemory::reserve`](crate::backend::VirtualMemory::reserve).
    pub reserve: u64,
    /// [`VirtualMemory::create`](crate::backend::VirtualMemory::create).
    pub create: u64,
    /// [`VirtualMemory::map`](crate::backend::VirtualMemory::map).
    pub map: u64,
    /// [`VirtualMemory::set_access`](crate::backend::VirtualMemory::set_access).
    pub set_access: u64,
    /// [`VirtualMemory::unmap`](crate::backend::VirtualMemory::unmap).
    pub unmap: u64,
    /// [`VirtualMemory::release`](crate::backend::VirtualMemory::release).
    pub release: u64,
    /// [`Backend::record`](crate::backend::Backend::record).
    pub record: u64,
    /// [`Backend::is_complete`](crate::backend::Backend::is_complete).
    pub query: u64,
    /// [`Backend::wait_on`](crate::backend::Backend::wait_on), the wait on the device.
    pub wait: u64,
    /// [`Backend::wait`](crate::backend::Backend::wait), the wait of the host.
    pub synchronize: u64,
}

impl CallCounts {
    /// Calls that could have failed: all but `free`, `unreserve` and `release`.
    pub fn fallible(&self) -> u64 {
        self.total() - self.free - self.unreserve - self.release
    }

    /// All calls.
    pub fn total(&self) -> u64 {
        let memory = self.allocate + self.free + self.unreserve + self.reserve;
        let pages = self.create + self.map + self.set_access + self.unmap + self.release;
        memory + pages + self.record + self.query + self.wait + self.synchronize
    }
}

/// How a call is made to fail.
///
/// A call that can only return [`Lost`] (`unmap` and the four of streams) returns that, once, for
/// [`OutOfMemory`](Self::OutOfMemory) and [`TooLarge`](Self::TooLarge) too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// [`GrowError::OutOfMemory`].
    OutOfMemory,
    /// [`GrowError::TooLarge`].
    TooLarge,
    /// [`Lost`] from this call; the next one works again.
    Lost,
    /// [`Lost`] from this call and from every fallible call after it.
    LostForever,
}

impl Fault {
    pub(super) fn lost(self) -> Lost {
        Lost::new(format!("simulated fault {self:?}"))
    }

    pub(super) fn grow_error(self) -> GrowError {
        match self {
            Fault::OutOfMemory => GrowError::OutOfMemory,
            Fault::TooLarge => GrowError::TooLarge,
            Fault::Lost | Fault::LostForever => GrowError::Lost(self.lost()),
        }
    }
}

/// The call log with the plan of failures.
///
/// C1: `made` is the number of fallible calls ever made; numbers in the plan are larger than it.
#[derive(Debug, Default)]
pub(super) struct Calls {
    pub(super) counts: CallCounts,
    made: u64,
    planned: BTreeMap<u64, Fault>,
    /// Every call from this number on fails.
    from: Option<(u64, Fault)>,
    lost: bool,
}

impl Calls {
    /// Numbers one fallible call and says whether, and how, it has to fail.
    pub(super) fn enter(
        &mut self,
        field: impl FnOnce(&mut CallCounts) -> &mut u64,
    ) -> Option<Fault> {
        *field(&mut self.counts) += 1;
        self.made += 1;
        if self.lost {
            return Some(Fault::LostForever);
        }
        let always = self.from.filter(|&(first, _)| self.made >= first).map(|(_, fault)| fault);
        let fault = self.planned.remove(&self.made).or(always);
        self.lost = fault == Some(Fault::LostForever);
        fault
    }

    pub(super) fn plan(&mut self, nth: u64, fault: Fault) {
        self.planned.insert(self.number(nth), fault);
    }

    pub(super) fn plan_from(&mut self, nth: u64, fault: Fault) {
        self.from = Some((self.number(nth), fault));
    }

    pub(super) fn forget_plan(&mut self) {
        self.planned.clear();
        self.from = None;
        self.lost = false;
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    fn number(&self, nth: u64) -> u64 {
        assert!(nth > 0, "sim: the next call is number 1; there is no call number 0");
        self.made.saturating_add(nth)
    }
}
