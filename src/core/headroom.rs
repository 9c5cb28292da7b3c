//! How much may be reserved while a miss is served, and what experience adds to that.
//!
//! ```text
//!   target = (1 + h) · high-water of active bytes + learned
//!
//!   a miss that would push reserved above the target ─▶ idle segments go back first (`trim`)
//! ```
//!
//! A segment that was given back for that, and then grown again at the same size, had better been
//! kept: a quarter of its size is added to `learned`, up to a share of the high-water mark. So a
//! program that repeats itself comes to rest, with no backend calls at all, after a few
//! repetitions, and one that asks for ever new sizes teaches nothing. The bound on thrashing: a
//! size can be released and grown again at most 4 · learned_max / size times before either it
//! stays, or learning has reached its limit. (The list of what was given up is the idea of ARC:
//! Megiddo and Modha, FAST 2003.)
//!
//! O(1) for a miss: the list is bounded. With the torch preset all of this is off.

use std::collections::VecDeque;

use crate::core::arena::Want;
use crate::core::ledger::Gauge;
use crate::core::state::World;
use crate::units::{Bytes, to_bytes};

/// What headroom learned from being wrong.
#[derive(Debug, Default)]
pub(crate) struct Regret {
    /// Sizes given back lately, oldest first; at most [`GHOSTS_MAX`].
    ghosts: VecDeque<Bytes>,
    /// What may be reserved beyond headroom, in bytes.
    pub(crate) learned: Bytes,
}

const GHOSTS_MAX: usize = 512;

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
            self.learned = self.learned.saturating_add(size / 4).min(learned_max);
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

    /// The most that headroom may learn, in bytes: a share of the high-water mark, and one segment,
    /// so that small programs can learn at all.
    pub(crate) fn learned_max(&self) -> Bytes {
        let share = (self.active_peak() as f64 * self.config.headroom_learned_max) as Bytes;
        share.saturating_add(self.config.large_segment)
    }
}

#[cfg(test)]
mod tests;
