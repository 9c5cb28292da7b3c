//! What a failed request says: what was asked, what there is, who holds it, and what would help.

use std::fmt;
use std::panic::Location;

use crate::report::format_bytes;
use crate::report::holders::Holder;
use crate::units::Bytes;

/// Why the memory could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OomCause {
    /// The device has no room, or the limit leaves none, even with the whole cache given back.
    NoRoom,
    /// Refused before the driver was asked (`Config::reject_before_driver`).
    Rejected,
    /// The stream is under capture: only what its pool already holds can be handed out.
    Capture,
    /// The pool is paused: its memory was given back, until it is resumed.
    Paused,
}

/// Everything known at the moment of the failure. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OomReport {
    /// Why.
    pub cause: OomCause,
    /// What was asked for.
    pub requested: Bytes,
    /// Who asked.
    pub location: &'static Location<'static>,
    /// The tag of the request, if any.
    pub tag: Option<String>,
    /// The limit on reserved memory in force, if any.
    pub limit: Option<Bytes>,
    /// The device's memory, if known.
    pub device_total: Option<Bytes>,
    /// Free memory of the device as its driver sees it, if known.
    pub device_free: Option<Bytes>,
    /// Bytes in users' hands.
    pub allocated: Bytes,
    /// Bytes freed, but still used by a stream.
    pub pending: Bytes,
    /// Bytes held from the device.
    pub reserved: Bytes,
    /// Bytes that `empty_cache` would give back.
    pub releasable: Bytes,
    /// The largest free block that the request could have used.
    pub largest_free: Bytes,
    /// The largest holders, at most five.
    pub holders: Vec<Holder>,
    /// Whether virtual memory could be switched on and is not.
    pub could_expand: bool,
}

impl OomReport {
    /// The one thing that would help most.
    fn hint(&self) -> String {
        let cached = self.reserved.saturating_sub(self.allocated + self.pending);
        match self.cause {
            OomCause::Capture => {
                "prime the private pool before the capture (PrivatePool::prime): no backend call \
                 may be made during it"
                    .into()
            }
            OomCause::Paused => "resume the pool first (PrivatePool::resume)".into(),
            OomCause::Rejected => {
                "the request exceeds the memory limit; raise it (set_memory_limit, \
                 set_memory_fraction) or hold less"
                    .into()
            }
            OomCause::NoRoom if self.limit.is_some_and(|limit| self.requested > limit) => {
                "the request alone exceeds the memory limit; raise it (set_memory_limit, \
                 set_memory_fraction) or ask for less"
                    .into()
            }
            OomCause::NoRoom if self.device_total.is_some_and(|total| self.requested > total) => {
                "the request alone exceeds the device; ask for less at once".into()
            }
            // What could be waited for was waited for.
            OomCause::NoRoom if self.pending >= self.requested => {
                "freed memory waits for work that is recorded and not submitted; submit it".into()
            }
            OomCause::NoRoom if cached >= self.requested && self.could_expand => {
                "free memory is in pieces that cannot be joined; switch on \
                 Config::expandable_segments"
                    .into()
            }
            OomCause::NoRoom if cached >= self.requested => {
                "free memory is in pieces that cannot be joined; keep long-lived allocations apart \
                 in a private pool (create_pool)"
                    .into()
            }
            OomCause::NoRoom => match self.holders.first() {
                Some(holder) => format!("hold less: most is {holder}"),
                None => "the device's memory is in use outside this allocator".into(),
            },
        }
    }
}

impl fmt::Display for OomReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "out of memory: tried to allocate {}", format_bytes(self.requested))?;
        write!(f, " at {}:{}", self.location.file(), self.location.line())?;
        if let Some(tag) = &self.tag {
            write!(f, " [{tag}]")?;
        }
        if let (Some(total), Some(free)) = (self.device_total, self.device_free) {
            let (total, free) = (format_bytes(total), format_bytes(free));
            write!(f, "; the device has {total}, of which {free} are free")?;
        }
        if let Some(limit) = self.limit {
            write!(f, "; limit {}", format_bytes(limit))?;
        }
        write!(
            f,
            "; reserved {} = allocated {} + pending {} + cached {} \
             (releasable {}, largest piece {})",
            format_bytes(self.reserved),
            format_bytes(self.allocated),
            format_bytes(self.pending),
            format_bytes(self.reserved.saturating_sub(self.allocated + self.pending)),
            format_bytes(self.releasable),
            format_bytes(self.largest_free),
        )?;
        for (index, holder) in self.holders.iter().enumerate() {
            write!(f, "{} {holder}", if index == 0 { "; held:" } else { "," })?;
        }
        write!(f, ". What would help: {}.", self.hint())
    }
}
