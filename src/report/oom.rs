//! What a failed request says: what was asked, what there is, who holds it, why the free bytes do
//! not do, and the one thing that would help most.

use std::fmt;
use std::panic::Location;

use crate::core::arena::Want;
use crate::core::block::State;
use crate::core::classes::Group;
use crate::core::ledger::Gauge;
use crate::core::state::World;
use crate::id::{OwnerId, Tag};
use crate::report::format_bytes;
use crate::report::holders::{self, Holder, TagTotal};
use crate::units::{Bytes, to_bytes};

/// How many holders, and how many tags, are named.
const NAMED_MAX: usize = 5;

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
    /// Whether the limit was set as a fraction of the device's memory.
    pub limit_is_fraction: bool,
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
    /// Free bytes in the pools that the request could have used.
    pub usable_free: Bytes,
    /// In how many pieces these are.
    pub usable_count: u64,
    /// The largest of them.
    pub largest_free: Bytes,
    /// Free bytes in private pools that the request may not use.
    pub private_free: Bytes,
    /// The largest holders by line of code and tag, at most five.
    pub holders: Vec<Holder>,
    /// The largest holders by tag, at most five; empty if nothing has a tag.
    pub tags: Vec<TagTotal>,
    /// Whether virtual memory could be switched on, would serve the request's pool, and is not.
    pub could_expand: bool,
    /// Whether a private pool has a block that would do, and only lacks `PoolOptions::use_on_oom`.
    pub could_be_lent: bool,
}

impl OomReport {
    /// Bytes held and free, whoever may use them.
    pub fn cached(&self) -> Bytes {
        self.reserved.saturating_sub(self.allocated + self.pending)
    }

    /// Bytes of the device that are in use outside this allocator: by other programs, by other
    /// allocators, and by the driver itself; if known.
    pub fn used_outside(&self) -> Option<Bytes> {
        let used = self.device_total?.checked_sub(self.device_free?)?;
        Some(used.saturating_sub(self.reserved))
    }

    /// The one thing that would help most.
    pub fn hint(&self) -> String {
        match self.cause {
            OomCause::Capture => {
                "prime the private pool before the capture (PrivatePool::prime): no backend call \
                 may be made during it"
                    .into()
            }
            OomCause::Paused => "resume the pool first (PrivatePool::resume)".into(),
            OomCause::Rejected => self.hint_alone().unwrap_or_else(|| self.hint_of_rejection()),
            OomCause::NoRoom => self
                .hint_alone()
                .or_else(|| self.hint_of_pieces())
                .or_else(|| self.hint_of_room())
                .unwrap_or_else(|| self.hint_of_holders()),
        }
    }

    /// The call that raises the limit in force.
    fn raising(&self) -> &'static str {
        if self.limit_is_fraction { "set_memory_fraction" } else { "set_memory_limit" }
    }

    /// What is too much even for an empty device.
    fn hint_alone(&self) -> Option<String> {
        let exceeds = |bound: Option<Bytes>| bound.is_some_and(|bound| self.requested > bound);
        if exceeds(self.device_total) {
            return Some("the request alone exceeds the device; ask for less at once".into());
        }
        exceeds(self.limit).then(|| {
            format!(
                "the request alone exceeds the memory limit; raise it ({}) or ask for less",
                self.raising()
            )
        })
    }

    /// Nothing was given back for it, and the driver was not asked.
    fn hint_of_rejection(&self) -> String {
        let bound = [self.limit, self.device_total].into_iter().flatten().min();
        let without_cache = self.reserved - self.releasable.min(self.reserved) + self.requested;
        if bound.is_some_and(|bound| without_cache <= bound) {
            let releasable = format_bytes(self.releasable);
            return format!(
                "give the cache back first (empty_cache: {releasable}), or let requests do so \
                 (Config::reject_before_driver = false)"
            );
        }
        let is_limit = self.limit.is_some() && self.limit == bound && bound != self.device_total;
        if is_limit {
            return format!(
                "it would exceed the memory limit; raise it ({}) or hold less",
                self.raising()
            );
        }
        self.hint_of_holders()
    }

    /// Enough is free, and none of it can be had. What could be waited for was waited for.
    fn hint_of_pieces(&self) -> Option<String> {
        if self.pending >= self.requested {
            return Some(
                "freed memory waits for work that is recorded and not submitted; submit it (or \
                 end the capture that it is part of)"
                    .into(),
            );
        }
        if self.could_be_lent {
            return Some(
                "a private pool has a free block that would do; make it with \
                 PoolOptions::use_on_oom, or drop it"
                    .into(),
            );
        }
        if self.could_expand && self.usable_free >= self.requested {
            return Some(
                "free memory is in pieces that cannot be joined; switch on \
                 Config::expandable_segments"
                    .into(),
            );
        }
        if self.is_limited() && self.device_free.is_none_or(|free| free >= self.requested) {
            return Some(format!(
                "the memory limit is in the way, not the device; raise it ({}) or hold less",
                self.raising()
            ));
        }
        (self.usable_free >= self.requested).then(|| {
            "free memory is in pieces that cannot be joined; keep long-lived allocations apart in \
             a private pool (create_pool)"
                .into()
        })
    }

    /// Whether the limit leaves less room than was asked for.
    fn is_limited(&self) -> bool {
        self.limit.is_some_and(|limit| self.reserved.saturating_add(self.requested) > limit)
    }

    /// The device has it, or others have it.
    fn hint_of_room(&self) -> Option<String> {
        let free = self.device_free?;
        if !self.is_limited() && free >= self.requested {
            let pieces = "the device has as much free, but refuses it in one piece; ";
            let way = match self.could_expand {
                true => "switch on Config::expandable_segments, which takes it in pieces",
                false => "ask for it in smaller pieces",
            };
            return Some(format!("{pieces}{way}"));
        }
        let outside = self.used_outside().filter(|&outside| outside >= self.requested)?;
        (outside > self.allocated).then(|| {
            let outside = format_bytes(outside);
            format!(
                "most of the device ({outside}) is in use outside this allocator; free it there"
            )
        })
    }

    fn hint_of_holders(&self) -> String {
        match self.holders.first() {
            Some(holder) => format!("hold less: most is {holder}"),
            None => "the device's memory is in use outside this allocator".into(),
        }
    }

    fn fmt_device(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(total), Some(free)) = (self.device_total, self.device_free) {
            let (total, free) = (format_bytes(total), format_bytes(free));
            write!(f, "; the device has {total}, of which {free} are free")?;
            if let Some(outside) = self.used_outside().filter(|&outside| outside > 0) {
                write!(f, " and {} used outside this allocator", format_bytes(outside))?;
            }
        }
        if let Some(limit) = self.limit {
            let rest = format_bytes(limit.saturating_sub(self.reserved));
            write!(f, "; limit {}, which leaves {rest}", format_bytes(limit))?;
        }
        Ok(())
    }

    fn fmt_cached(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.usable_count > 0 {
            let (free, largest) = (format_bytes(self.usable_free), format_bytes(self.largest_free));
            let count = self.usable_count;
            write!(
                f,
                "; this request could use {free} of it, in {count} pieces of at most {largest}"
            )?;
        }
        if self.private_free > 0 {
            write!(f, "; {} of it are in private pools", format_bytes(self.private_free))?;
        }
        Ok(())
    }
}

impl fmt::Display for OomReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "out of memory: tried to allocate {}", format_bytes(self.requested))?;
        write!(f, " at {}:{}", self.location.file(), self.location.line())?;
        if let Some(tag) = &self.tag {
            write!(f, " [{tag}]")?;
        }
        self.fmt_device(f)?;
        write!(
            f,
            "; reserved {} = allocated {} + pending {} + cached {} (releasable {})",
            format_bytes(self.reserved),
            format_bytes(self.allocated),
            format_bytes(self.pending),
            format_bytes(self.cached()),
            format_bytes(self.releasable),
        )?;
        self.fmt_cached(f)?;
        for (index, holder) in self.holders.iter().enumerate() {
            write!(f, "{} {holder}", if index == 0 { "; held:" } else { "," })?;
        }
        for (index, tag) in self.tags.iter().enumerate() {
            write!(f, "{} {tag}", if index == 0 { "; by tag:" } else { "," })?;
        }
        write!(f, ". What would help: {}.", self.hint())
    }
}

/// What failed, and what only the shell knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) want: &'a Want<'a>,
    pub(crate) cause: OomCause,
    pub(crate) device_free: Option<Bytes>,
    pub(crate) limit_is_fraction: bool,
}

/// Takes stock. O(blocks).
pub(crate) fn collect<M: Clone, E: Clone>(
    world: &World<'_, M, E>,
    asked: Asked<'_>,
    name_of: &dyn Fn(Tag) -> Option<String>,
) -> OomReport {
    let Asked { want, cause, device_free, limit_is_fraction } = asked;
    let allocated = world.total(Gauge::AllocatedBytes);
    let active = world.total(Gauge::ActiveBytes);
    let mut holders = holders::collect(world, name_of);
    let mut tags = holders::by_tag(&holders);
    tags.truncate(NAMED_MAX);
    holders.truncate(NAMED_MAX);
    let Free { usable, usable_count, private, lendable } = free_bytes(world, want);
    let traits = world.global.owners[want.owner.index()].traits;
    OomReport {
        cause,
        requested: want.requested,
        location: want.location,
        tag: name_of(want.tag),
        limit: world.global.limit,
        limit_is_fraction,
        device_total: world.device.total,
        device_free,
        allocated,
        pending: active - allocated,
        reserved: world.total(Gauge::ReservedBytes),
        releasable: world.releasable(),
        usable_free: usable,
        usable_count,
        largest_free: world.largest_free(want.owner, want.group),
        private_free: private,
        holders,
        tags,
        // Pages have no kind, and what is not split has no use for them.
        could_expand: world.device.virtual_memory
            && !world.config.expandable_segments
            && (traits.kind, traits.no_split, want.group) == (0, false, Group::Large),
        could_be_lent: lendable >= to_bytes(want.size),
    }
}

/// Free bytes by who may use them.
#[derive(Debug, Default)]
struct Free {
    usable: Bytes,
    usable_count: u64,
    private: Bytes,
    /// The largest free block of private pools that could help out and do not.
    lendable: Bytes,
}

fn free_bytes<M, E: Clone>(world: &World<'_, M, E>, want: &Want<'_>) -> Free {
    let kind = world.global.owners[want.owner.index()].traits.kind;
    let mut free = Free::default();
    for arena in &world.arenas {
        for block in arena.blocks.iter().filter(|block| matches!(block.state, State::Free(_))) {
            let pool = &arena.pools[arena.segments[block.segment.index()].pool];
            let (size, owner) = (to_bytes(block.size), pool.owner);
            if (owner, pool.group) == (want.owner, want.group) {
                free.usable += size;
                free.usable_count += 1;
            } else if owner != want.owner && owner != OwnerId::DEFAULT {
                free.private += size;
                let traits = pool.traits;
                let stays = traits.released || traits.captured || traits.paused;
                let helps = world.global.owners[owner.index()].use_on_oom;
                let suits = traits.kind == kind && pool.group == want.group;
                if want.owner == OwnerId::DEFAULT && suits && !helps && !stays {
                    free.lendable = free.lendable.max(size);
                }
            }
        }
    }
    free
}

#[cfg(test)]
mod tests;
