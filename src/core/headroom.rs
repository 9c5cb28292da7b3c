//! How much may be reserved while a miss is served, and what experience adds to that.
//!
//! ```text
//!   target = (1 + h) · high-water of active bytes + learned
//!
//!   a miss that would push reserved above the target ─▶ idle segments go back first (`trim`)
//! ```
//!
//! A segment that was given back for that, and then grown again at the same size, had better been
//! kept: a sixteenth of its size is added to `learned`, up to a share of the high-water mark. So a
//! program that repeats itself comes to rest, with no backend calls at all, after some
//! repetitions, unless that would need more than may be learned; and one that asks for ever new
//! sizes teaches nothing. (Of 23 traces, repeated without what they say about `empty_cache`, 17
//! made no call the 12th time, 21 the 40th.) The list of what was given up is the idea of ARC
//! (Megiddo and Modha, FAST 2003).
//!
//! The bound on thrashing: a size can be released and grown again at most 16 · learned_max / size
//! times before either it stays, or learning has reached its limit; and a miss makes at most one
//! growth that is not refused, and there are no more releases than growths, so where nothing is
//! refused calls ≤ 2 · growths ≤ 2 · misses.
//!
//! Headroom also decides about idle segments that are vast for a request (`Config::
//! spare_idle_ratio`), and about the sizes of new ones:
//!
//! ```text
//!   reserved + need ≤ target ─▶ grow: idle segments stay whole
//!                   > target ─▶ break one up, until a segment comes or goes (`Arena::may_break`)
//!   new segment              ─▶ up to (1 + h) · active − reserved, several blocks of the size
//! ```
//!
//! One long-lived crumb in a vast idle segment would keep all of it from the next large request,
//! and from being given back; beside that a segment for the crumb is small. What may be broken is
//! known before the pool is searched, so that a program at rest hits at once.
//!
//! O(1) for a miss: the list is bounded. With the torch preset all of this is off.

use std::collections::VecDeque;

use crate::core::arena::Want;
use crate::core::classes::{self, Demand, Group};
use crate::core::ledger::Gauge;
use crate::core::miss::Miss;
use crate::core::state::{Device, World};
use crate::units::{Bytes, align_up, to_bytes};

/// What headroom learned from being wrong.
#[derive(Debug, Default)]
pub(crate) struct Regret {
    /// Sizes given back lately, oldest first; at most [`GHOSTS_MAX`].
    ghosts: VecDeque<Bytes>,
    /// What may be reserved beyond headroom, in bytes.
    pub(crate) learned: Bytes,
}

const GHOSTS_MAX: usize = 512;

/// Usual segments that a device must have room for, to be told from one that is small.
const USUAL_MIN: Bytes = 16;

/// One part in so many of a segment that was given back too early is what is learned from that.
const LESSON_PARTS: Bytes = 16;

impl Regret {
    pub(crate) fn released(&mut self, size: Bytes) {
        if self.ghosts.len() == GHOSTS_MAX {
            self.ghosts.pop_front();
        }
        self.ghosts.push_back(size);
    }

    /// A segment was grown. O(1): the list is bounded.
    pub(crate) fn grown(&mut self, size: Bytes, learned_max: Bytes) {
        if let Some(at) = self.ghosts.iter().position(|&ghost| ghost == size) {
            self.ghosts.remove(at);
            self.learned = self.learned.saturating_add(size / LESSON_PARTS).min(learned_max);
        }
    }
}

impl<M, E: Clone> World<'_, M, E> {
    /// What headroom allows to be reserved while `want` is served, if it is on.
    pub(crate) fn headroom_target(&self, want: &Want) -> Option<Bytes> {
        let headroom = self.config.headroom?;
        let high_water = self.high_water(want);
        // Any finite factor is allowed; what is beyond 64 bits saturates.
        let share = (high_water as f64 * headroom) as Bytes;
        Some(high_water.saturating_add(share).saturating_add(self.global.regret.learned))
    }

    /// The most bytes that were ever active, `want` counted as if it were served.
    pub(crate) fn high_water(&self, want: &Want) -> Bytes {
        let active = self.total(Gauge::ActiveBytes);
        self.active_peak().max(active + to_bytes(want.size))
    }

    /// Whether growing by what is needed would exceed headroom.
    pub(crate) fn headroom_is_spent(&self, miss: &Miss, needed: Bytes) -> bool {
        let target = self.headroom_target(&miss.want).unwrap_or(Bytes::MAX);
        self.global.reserved.saturating_add(needed) > target
    }

    /// Whether idle segments may be broken up from now on; `true` if that is new.
    pub(crate) fn allow_breaking(&mut self, may: bool) -> bool {
        let changes = self.arenas.iter().any(|arena| arena.may_break != may);
        self.arenas.iter_mut().for_each(|arena| arena.may_break = may);
        changes
    }

    /// Whether `size` is more than the usual segment, and less may be asked for instead.
    pub(crate) fn is_ambitious(&self, miss: &Miss, size: Bytes) -> bool {
        !miss.modest && size > self.segment_sizes(&miss.want, true).0
    }

    /// A growth by `size` was refused: the next one asks for less, if that was more than usual.
    pub(crate) fn refused(&self, miss: &mut Miss, size: Bytes, device_free: Option<Bytes>) {
        if self.is_ambitious(miss, size) {
            miss.ask_for_less();
        } else {
            miss.refuse(device_free);
        }
    }

    /// The segment size that the policy likes for a request, and the one that it needs. A `modest`
    /// one is for a request whose first growth was refused.
    pub(crate) fn segment_sizes(&self, want: &Want, modest: bool) -> (Bytes, Bytes) {
        let room = to_bytes(want.size);
        let granularity = self.device.granularity;
        let needed = align_up(room, granularity);
        let liked = match self.global.owners[want.owner.index()].traits.exclusive {
            true => classes::exclusive_size(room),
            false if self.follows_demand(want, modest) => {
                classes::shared_size(room, &self.demand(room), self.config)
            }
            false => classes::segment_size(room, self.config),
        };
        let liked = align_up(liked, granularity);
        if liked > self.device.segment_max { (needed, needed) } else { (liked.max(needed), needed) }
    }

    /// Whether with `size` bytes more over three quarters of what the device has, or the limit
    /// allows, is reserved: then segments of many blocks would be in one another's way (the
    /// smallest devices for 23 traces: 1.024 times what is live, and 3 instead of 6 above
    /// PyTorch's).
    fn is_scarce(&self, size: Bytes) -> bool {
        let known = self.global.limit.into_iter().chain(self.device.total).min();
        // Where a few of the usual segments would be all there is, they are no smaller.
        let known = known.filter(|known| known / USUAL_MIN >= self.config.large_segment);
        known.is_some_and(|known| self.global.reserved.saturating_add(size) > known / 4 * 3)
    }

    fn follows_demand(&self, want: &Want, modest: bool) -> bool {
        let by_pages = self.config.expandable_segments && self.device.virtual_memory;
        let follows = want.group == Group::Large && self.config.segment_share > 0.0 && !by_pages;
        // What is not split would serve nothing but the first of its blocks.
        let no_split = self.global.owners[want.owner.index()].traits.no_split;
        let splits = self.config.max_split_size.is_none() && !no_split;
        follows && splits && !modest && !self.is_scarce(to_bytes(want.size))
    }

    /// What a growth for `size` bytes goes by.
    fn demand(&self, size: Bytes) -> Demand {
        let active = self.total(Gauge::ActiveBytes).saturating_add(size);
        let Device { granularity, segment_max, .. } = *self.device;
        let room = self.config.headroom.map_or(Bytes::MAX, |headroom| {
            let share = (active as f64 * headroom) as Bytes;
            active.saturating_add(share).saturating_sub(self.global.reserved)
        });
        Demand { active, room, granularity, segment_max }
    }

    /// The most that headroom may learn, in bytes.
    pub(crate) fn learned_max(&self) -> Bytes {
        (self.active_peak() as f64 * self.config.headroom_learned_max) as Bytes
    }
}

#[cfg(test)]
mod tests;
