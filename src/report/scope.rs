//! What a scope did with memory: what came and went in it, its peaks, and what of it is still held.

use std::fmt;

use crate::core::ledger::Gauge;
use crate::core::scopes::Opening;
use crate::core::state::World;
use crate::id::Tag;
use crate::report::format_bytes;
use crate::report::holders::{self, Holder};
use crate::units::Bytes;

/// What happened from a scope's beginning on, by every thread and on every stream. Sizes in bytes,
/// blocks counted whole.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScopeReport {
    /// The scope's name.
    pub name: String,
    /// Number of allocations made in it.
    pub allocated_count: u64,
    /// Their bytes.
    pub allocated_bytes: Bytes,
    /// Number of allocations freed in it, whenever they were made.
    pub freed_count: u64,
    /// Their bytes.
    pub freed_bytes: Bytes,
    /// Bytes in users' hands when it began.
    pub allocated_before: Bytes,
    /// Bytes in users' hands at its end.
    pub allocated_after: Bytes,
    /// The most bytes in users' hands during it.
    pub allocated_peak: Bytes,
    /// The most bytes in users' hands, or freed and still used by a stream, during it.
    pub active_peak: Bytes,
    /// Bytes held from the device when it began.
    pub reserved_before: Bytes,
    /// Bytes held from the device at its end.
    pub reserved_after: Bytes,
    /// The most bytes held from the device during it.
    pub reserved_peak: Bytes,
    /// Bytes got from the device in it.
    pub grown_bytes: Bytes,
    /// Bytes given back to the device in it.
    pub returned_bytes: Bytes,
    /// What was allocated in it and is held at its end, by line of code and tag, largest first.
    pub held: Vec<Holder>,
}

impl ScopeReport {
    /// Bytes that were allocated in the scope and are held at its end.
    pub fn held_bytes(&self) -> Bytes {
        self.held.iter().map(|holder| holder.bytes).sum()
    }

    /// How many allocations that are.
    pub fn held_count(&self) -> u64 {
        self.held.iter().map(|holder| holder.count).sum()
    }
}

impl fmt::Display for ScopeReport {
    /// Several lines: one for what came and went, one for the device, one for each holder.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |bytes| format_bytes(bytes);
        writeln!(
            f,
            "scope \"{}\": allocated {} in {}, freed {} in {}; peak {} (from {} to {})",
            self.name,
            bytes(self.allocated_bytes),
            self.allocated_count,
            bytes(self.freed_bytes),
            self.freed_count,
            bytes(self.allocated_peak),
            bytes(self.allocated_before),
            bytes(self.allocated_after),
        )?;
        write!(
            f,
            "  device: got {}, gave {} back; reserved peak {} (from {} to {})",
            bytes(self.grown_bytes),
            bytes(self.returned_bytes),
            bytes(self.reserved_peak),
            bytes(self.reserved_before),
            bytes(self.reserved_after),
        )?;
        if self.held.is_empty() {
            return write!(f, "\n  nothing of it is still held");
        }
        let (held, count) = (bytes(self.held_bytes()), self.held_count());
        write!(f, "\n  still held of it: {held} in {count}")?;
        for holder in &self.held {
            write!(f, "\n    {holder}")?;
            if let Some(age) = holder.age {
                write!(f, ", the oldest {age} allocations ago")?;
            }
        }
        Ok(())
    }
}

/// What happened since the scope began. O(blocks).
pub(crate) fn collect<M, E: Clone>(
    world: &mut World<'_, M, E>,
    name: &str,
    opening: &Opening,
    name_of: &dyn Fn(Tag) -> Option<String>,
) -> ScopeReport {
    let peaks = world.scope_peaks(opening);
    let (before, after) = (opening.totals(), world.totals());
    let (allocated_count, freed_count) = after.allocations.since(before.allocations);
    let (allocated_bytes, freed_bytes) = after.allocated_bytes.since(before.allocated_bytes);
    let (grown_bytes, returned_bytes) = after.reserved_bytes.since(before.reserved_bytes);
    ScopeReport {
        name: name.to_owned(),
        allocated_count,
        allocated_bytes,
        freed_count,
        freed_bytes,
        allocated_before: before.allocated_bytes.now,
        allocated_after: after.allocated_bytes.now,
        allocated_peak: peaks[Gauge::AllocatedBytes as usize],
        active_peak: peaks[Gauge::ActiveBytes as usize],
        reserved_before: before.reserved_bytes.now,
        reserved_after: after.reserved_bytes.now,
        reserved_peak: peaks[Gauge::ReservedBytes as usize],
        grown_bytes,
        returned_bytes,
        held: holders::collect_since(world, opening, name_of),
    }
}
