//! Who holds memory: live allocations by the line of code that asked for them, and their tag.

use std::collections::BTreeMap;
use std::fmt;

use crate::core::block::{Block, State};
use crate::core::ledger::Gauge;
use crate::core::scopes::Opening;
use crate::core::state::World;
use crate::id::{AllocationId, Tag};
use crate::report::format_bytes;
use crate::units::{Bytes, to_bytes};

/// What one line of code, under one tag, holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Bytes of its blocks.
    pub bytes: Bytes,
    /// Number of its live allocations.
    pub count: u64,
    /// `file:line` of the call that asked.
    pub location: String,
    /// The tag given to the allocations, if any.
    pub tag: Option<String>,
    /// How many allocations its stream has made since the oldest of them; `None` where that is not
    /// known: 2²⁴ allocations ago every age looks like a younger one.
    pub age: Option<u64>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, count, location, tag, .. } = self;
        write!(f, "{} in {count} by {location}", format_bytes(*bytes))?;
        match tag {
            Some(tag) => write!(f, " [{tag}]"),
            None => Ok(()),
        }
    }
}

/// What one entry sums up.
#[derive(Debug)]
struct Sum {
    bytes: Bytes,
    count: u64,
    age: Option<u64>,
}

/// Live allocations by place and tag, largest first. O(blocks).
pub(crate) fn collect<M, E: Clone>(
    world: &World<'_, M, E>,
    name_of: &dyn Fn(Tag) -> Option<String>,
) -> Vec<Holder> {
    sum_up(world, &|_, _, _| true, &|_| 0, name_of)
}

/// As [`collect`], of what was allocated since a scope began.
pub(crate) fn collect_since<M, E: Clone>(
    world: &World<'_, M, E>,
    opening: &Opening,
    name_of: &dyn Fn(Tag) -> Option<String>,
) -> Vec<Holder> {
    let is_since =
        |arena: usize, at: usize, block: &Block| opening.is_since(arena, at, block.serial);
    sum_up(world, &is_since, &|arena| opening.came(arena), name_of)
}

/// Sums up the blocks that `counts` is true of, by arena and number; none of an arena is older than
/// the allocations that it has made since `earlier`.
fn sum_up<M, E: Clone>(
    world: &World<'_, M, E>,
    counts: &dyn Fn(usize, usize, &Block) -> bool,
    earlier: &dyn Fn(usize) -> u64,
    name_of: &dyn Fn(Tag) -> Option<String>,
) -> Vec<Holder> {
    let mut sums: BTreeMap<_, Sum> = BTreeMap::new();
    for (index, arena) in world.arenas.iter().enumerate() {
        let oldest = arena.ledger.came(Gauge::Allocation) - earlier(index);
        let is_known = oldest <= u64::from(AllocationId::SERIAL_MASK);
        for (at, block) in arena.blocks.iter().enumerate() {
            let State::Allocated(holder) = &block.state else { continue };
            if !counts(index, at, block) {
                continue;
            }
            let age = arena.serial.wrapping_sub(block.serial) & AllocationId::SERIAL_MASK;
            let age = is_known.then_some(u64::from(age));
            let place = holder.location;
            let sum = sums.entry((place.file(), place.line(), holder.tag));
            let sum = sum.or_insert(Sum { bytes: 0, count: 0, age });
            sum.bytes += to_bytes(block.size);
            sum.count += 1;
            sum.age = sum.age.zip(age).map(|(one, other)| one.max(other));
        }
    }
    let mut holders: Vec<Holder> = sums
        .into_iter()
        .map(|((file, line, tag), Sum { bytes, count, age })| Holder {
            bytes,
            count,
            location: format!("{file}:{line}"),
            tag: name_of(tag),
            age,
        })
        .collect();
    holders.sort_by_key(|holder| std::cmp::Reverse(holder.bytes));
    holders
}

/// How many places are named of what outlives its allocator.
const NAMED_MAX: usize = 20;

/// Says that the last handle of an allocator is gone, and who holds what.
pub(crate) struct Outlived<'a>(pub(crate) &'a [Holder]);

impl fmt::Display for Outlived<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Bytes = self.0.iter().map(|holder| holder.bytes).sum();
        let count: u64 = self.0.iter().map(|holder| holder.count).sum();
        write!(
            f,
            "the allocator was dropped while {} in {count} are held; they stay valid, and go back \
             as they are dropped:",
            format_bytes(bytes)
        )?;
        for holder in self.0.iter().take(NAMED_MAX) {
            write!(f, "\n  {holder}")?;
        }
        match self.0.len().checked_sub(NAMED_MAX) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "\n  and {more} more places"),
        }
    }
}

/// What one tag holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TagTotal {
    /// The tag; `None` for allocations without one.
    pub tag: Option<String>,
    /// Bytes of their blocks.
    pub bytes: Bytes,
    /// Number of live allocations.
    pub count: u64,
}

impl fmt::Display for TagTotal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tag = self.tag.as_deref().unwrap_or("no tag");
        write!(f, "[{tag}] {} in {}", format_bytes(self.bytes), self.count)
    }
}

/// Holders by tag alone, largest first; none if nothing has a tag.
pub(crate) fn by_tag(holders: &[Holder]) -> Vec<TagTotal> {
    if holders.iter().all(|holder| holder.tag.is_none()) {
        return Vec::new();
    }
    let mut sums: BTreeMap<&Option<String>, (Bytes, u64)> = BTreeMap::new();
    for holder in holders {
        let sum = sums.entry(&holder.tag).or_default();
        sum.0 += holder.bytes;
        sum.1 += holder.count;
    }
    let mut totals: Vec<TagTotal> = sums
        .into_iter()
        .map(|(tag, (bytes, count))| TagTotal { tag: tag.clone(), bytes, count })
        .collect();
    totals.sort_by_key(|total| std::cmp::Reverse(total.bytes));
    totals
}

#[cfg(test)]
mod tests;
