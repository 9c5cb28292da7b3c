//! What the allocator and the system say while things are deleted.

use aquifer::backend::{Host, resident_bytes};
use aquifer::report::holders::Holder;
use aquifer::{Allocator, Bytes};
use serde_json::{Value, json};

/// What the allocator says at one moment, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// What tensors hold.
    pub(super) allocated: Bytes,
    pub(super) reserved: Bytes,
    /// Upload chunks, which the allocator counts as allocated though no tensor holds them.
    pub(super) staging: Bytes,
}

impl Moment {
    pub(super) fn to_json(self) -> Value {
        json!({
            "allocated_bytes": self.allocated,
            "reserved_bytes": self.reserved,
            "staging_bytes": self.staging,
        })
    }
}

/// Whom the demo asks.
pub(super) trait Answers {
    fn moment(&self) -> Moment;
    fn holders(&self) -> Vec<Holder>;
    fn empty_cache(&self);
    /// A remark for the history, if there is one.
    fn annotate(&self, text: &str);
    /// Bytes that the device's driver has free, if it tells that itself.
    fn driver_free(&self) -> Option<Bytes>;
    /// Whether the memory is the process's own, so that its resident size tells of it.
    fn is_resident(&self) -> bool;
}

impl Answers for Allocator<Host> {
    fn moment(&self) -> Moment {
        let (allocated, reserved) = (self.memory_allocated(), self.memory_reserved());
        Moment { allocated, reserved, staging: 0 }
    }

    fn holders(&self) -> Vec<Holder> {
        Self::holders(self)
    }

    fn empty_cache(&self) {
        Self::empty_cache(self);
    }

    fn annotate(&self, text: &str) {
        Self::annotate(self, text);
    }

    fn driver_free(&self) -> Option<Bytes> {
        None
    }

    fn is_resident(&self) -> bool {
        true
    }
}

/// What was seen while everything was deleted that is not held by mistake.
#[derive(Debug)]
pub(super) struct Aftermath {
    pub(super) before: Moment,
    pub(super) after_delete: Moment,
    pub(super) after_empty_cache: Moment,
    /// Who held memory before anything was deleted.
    pub(super) holders: Vec<Holder>,
    /// Who holds memory at the end.
    pub(super) held: Vec<Holder>,
    /// Resident size of the process around `empty_cache`; `None` where the system does not tell.
    pub(super) resident: Option<(Bytes, Bytes)>,
    /// What the driver had free around `empty_cache`; `None` where it does not tell.
    pub(super) driver_free: Option<(Bytes, Bytes)>,
    /// Whether the resident size tells of the memory.
    pub(super) is_resident: bool,
}

impl Aftermath {
    /// Asks before, between and after `delete` and `empty_cache`.
    pub(super) fn of(memory: &impl Answers, delete: impl FnOnce()) -> Self {
        let (before, holders) = (memory.moment(), memory.holders());
        memory.annotate("deleting the model");
        delete();
        let after_delete = memory.moment();
        let (resident, free) = (resident_bytes(), memory.driver_free());
        memory.annotate("empty_cache");
        memory.empty_cache();
        Self {
            before,
            after_delete,
            after_empty_cache: memory.moment(),
            holders,
            held: memory.holders(),
            resident: resident.zip(resident_bytes()),
            driver_free: free.zip(memory.driver_free()),
            is_resident: memory.is_resident(),
        }
    }

    /// By which the resident size fell.
    pub(super) fn process_bytes_returned(&self) -> Option<Bytes> {
        self.resident.map(|(before, after)| before.saturating_sub(after))
    }

    /// By which the driver's free memory rose.
    pub(super) fn device_bytes_returned(&self) -> Option<Bytes> {
        self.driver_free.map(|(before, after)| after.saturating_sub(before))
    }
}
