//! Who holds memory: live allocations by the line of code that asked for them, and their tag.

use std::collections::BTreeMap;
use std::fmt;

use crate::core::block::State;
use crate::core::state::World;
use crate::id::Tag;
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
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, count, location, tag } = self;
        write!(f, "{} in {count} by {location}", format_bytes(*bytes))?;
        match tag {
            Some(tag) => write!(f, " [{tag}]"),
            None => Ok(()),
        }
    }
}

/// Live allocations by place and tag, largest first. O(blocks).
pub(crate) fn collect<M, E: Clone>(
    world: &World<'_, M, E>,
    name_of: &dyn Fn(Tag) -> Option<String>,
) -> Vec<Holder> {
    let mut sums: BTreeMap<_, (Bytes, u64)> = BTreeMap::new();
    for arena in &world.arenas {
        for block in arena.blocks.iter() {
            if let State::Allocated(holder) = &block.state {
                let place = holder.location;
                let sum = sums.entry((place.file(), place.line(), holder.tag)).or_default();
                sum.0 += to_bytes(block.size);
                sum.1 += 1;
            }
        }
    }
    let mut holders: Vec<Holder> = sums
        .into_iter()
        .map(|((file, line, tag), (bytes, count))| Holder {
            bytes,
            count,
            location: format!("{file}:{line}"),
            tag: name_of(tag),
        })
        .collect();
    holders.sort_by_key(|holder| std::cmp::Reverse(holder.bytes));
    holders
}
