//! What a story adds up to: sums after every step, peaks, and how broken up free memory is.
//!
//! ```text
//!   reserved   |AAAA....BB..|CCCC........|      two segments; free: 4 + 2 + 8
//!   holes           └──┘  └┘     └──────┘       the largest of them is what still fits at once
//! ```
//!
//! Holes are kept by address and by size, so that a step costs O(log blocks). They end where a
//! segment ends, though the next may follow at once: no block spans both.

use std::collections::BTreeMap;

use super::story::{Block, Life, Range, Step, Story};
use crate::units::Bytes;

/// The free memory is looked at in so many stretches of the history: more than a screen has pixels.
pub(super) const STRETCHES: usize = 1024;

/// Bytes at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sums {
    /// Of active blocks, as [`SegmentSnapshot`](crate::report::snapshot::SegmentSnapshot) has it.
    pub(super) requested: Bytes,
    pub(super) allocated: Bytes,
    pub(super) active: Bytes,
    pub(super) reserved: Bytes,
}

/// A value at its highest, and the number of steps before that; the earliest, if there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Peak {
    pub(super) bytes: Bytes,
    pub(super) moment: usize,
}

/// Free memory at the worst moment of a stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Broken {
    pub(super) free: Bytes,
    pub(super) largest: Bytes,
}

/// The whole course.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Course {
    pub(super) start: Sums,
    pub(super) end: Sums,
    pub(super) allocated_peak: Peak,
    pub(super) reserved_peak: Peak,
    /// Of each stretch of steps, all of about the same length.
    pub(super) broken: Vec<Broken>,
}

/// Free runs of reserved memory.
#[derive(Debug, Default)]
struct Holes {
    /// First byte to the byte behind the last.
    runs: BTreeMap<u64, u64>,
    sizes: BTreeMap<Bytes, u32>,
    /// Ends of segments, where runs stay apart, with how many segments end there.
    bounds: BTreeMap<u64, u32>,
}

/// The sums and the holes while the story goes on.
#[derive(Debug)]
struct Walk<'a> {
    story: &'a Story,
    sums: Sums,
    holes: Holes,
    /// First byte to the byte behind the last, of active blocks.
    active: BTreeMap<u64, u64>,
    blocks_born: u32,
    ranges_born: u32,
}

impl Course {
    pub(super) fn of(story: &Story) -> Self {
        let mut walk = Walk::new(story);
        let start = walk.sums;
        let peak = |bytes| Peak { bytes, moment: 0 };
        let (mut allocated, mut reserved) = (peak(start.allocated), peak(start.reserved));
        let stretches = STRETCHES.min(story.steps.len());
        let mut broken: Vec<Broken> = Vec::with_capacity(stretches);
        for (index, &(_, step)) in story.steps.iter().enumerate() {
            walk.take(step);
            for (peak, bytes) in
                [(&mut allocated, walk.sums.allocated), (&mut reserved, walk.sums.reserved)]
            {
                if bytes > peak.bytes {
                    *peak = Peak { bytes, moment: index + 1 };
                }
            }
            let now = walk.broken();
            let stretch = (index as u128 * stretches as u128 / story.steps.len() as u128) as usize;
            match broken.get_mut(stretch) {
                Some(worst) if now.is_worse(*worst) => *worst = now,
                Some(_) => {}
                None => broken.push(now),
            }
        }
        Self { start, end: walk.sums, allocated_peak: allocated, reserved_peak: reserved, broken }
    }
}

impl Broken {
    fn is_worse(self, other: Self) -> bool {
        let product = |a: Bytes, b: Bytes| u128::from(a) * u128::from(b);
        self.free > 0
            && (other.free == 0
                || product(self.largest, other.free) < product(other.largest, self.free))
    }
}

impl<'a> Walk<'a> {
    fn new(story: &'a Story) -> Self {
        let mut walk = Self {
            story,
            sums: Sums::default(),
            holes: Holes::default(),
            active: BTreeMap::new(),
            blocks_born: 0,
            ranges_born: 0,
        };
        story.ranges.before.iter().for_each(|range| walk.came(range));
        for (index, block) in story.blocks.before.iter().enumerate() {
            walk.allocate(block);
            if story.pending_before.binary_search(&(index as u32)).is_ok() {
                walk.let_go(block);
            }
        }
        walk
    }

    fn take(&mut self, step: Step) {
        let story = self.story;
        match step {
            Step::Alloc => {
                let block = story.blocks.of(Life::Born(self.blocks_born));
                self.blocks_born += 1;
                self.allocate(block);
            }
            Step::Requested(life) => self.let_go(story.blocks.of(life)),
            Step::Completed(life) => self.complete(story.blocks.of(life)),
            Step::Freed(life) => {
                self.let_go(story.blocks.of(life));
                self.complete(story.blocks.of(life));
            }
            Step::Came => {
                let range = story.ranges.of(Life::Born(self.ranges_born));
                self.ranges_born += 1;
                self.came(range);
            }
            Step::Went(life) => self.went(story.ranges.of(life)),
            Step::Oom { .. } | Step::Snapshot => {}
        }
    }

    // Only sums of hostile numbers saturate.
    fn allocate(&mut self, block: &Block) {
        let sums = &mut self.sums;
        sums.requested = sums.requested.saturating_add(block.requested);
        sums.allocated = sums.allocated.saturating_add(block.size);
        sums.active = sums.active.saturating_add(block.size);
        let end = block.address.saturating_add(block.size);
        self.active.insert(block.address, end);
        self.holes.fill(block.address, end);
    }

    fn let_go(&mut self, block: &Block) {
        self.sums.allocated = self.sums.allocated.saturating_sub(block.size);
    }

    fn complete(&mut self, block: &Block) {
        let sums = &mut self.sums;
        sums.requested = sums.requested.saturating_sub(block.requested);
        sums.active = sums.active.saturating_sub(block.size);
        self.active.remove(&block.address);
        self.holes.open(block.address, block.address.saturating_add(block.size));
    }

    fn came(&mut self, range: &Range) {
        self.sums.reserved = self.sums.reserved.saturating_add(range.size);
        let end = range.address.saturating_add(range.size);
        if !range.owner.is_paged {
            self.holes.bind(range.address);
            self.holes.bind(end);
        }
        self.holes.open(range.address, end);
        // What is left of a range that lost a part is new, but its blocks are not.
        for (&from, &to) in self.active.range(range.address..end.max(range.address)) {
            self.holes.fill(from, to.min(end));
        }
    }

    fn went(&mut self, range: &Range) {
        self.sums.reserved = self.sums.reserved.saturating_sub(range.size);
        let end = range.address.saturating_add(range.size);
        self.holes.fill(range.address, end);
        if !range.owner.is_paged {
            self.holes.unbind(range.address);
            self.holes.unbind(end);
        }
    }

    fn broken(&self) -> Broken {
        let free = self.sums.reserved.saturating_sub(self.sums.active);
        let largest = self.holes.sizes.last_key_value().map_or(0, |(&size, _)| size);
        Broken { free, largest: largest.min(free) }
    }
}

impl Holes {
    fn add(&mut self, start: u64, end: u64) {
        if start < end {
            self.runs.insert(start, end);
            *self.sizes.entry(end - start).or_default() += 1;
        }
    }

    fn remove(&mut self, start: u64, end: u64) {
        self.runs.remove(&start);
        let size = end - start;
        if let Some(count) = self.sizes.get_mut(&size) {
            *count -= 1;
            if *count == 0 {
                self.sizes.remove(&size);
            }
        }
    }

    /// Nothing in `start..end` is free any more.
    fn fill(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let left = self.runs.range(..start).next_back().map(|(&from, &to)| (from, to));
        if let Some((from, to)) = left.filter(|&(_, to)| to > start) {
            self.remove(from, to);
            self.add(from, start);
            self.add(end, to);
        }
        while let Some((&from, &to)) = self.runs.range(start..end).next() {
            self.remove(from, to);
            self.add(end, to);
        }
    }

    /// All of `start..end` is free, and one run with what is free beside it.
    fn open(&mut self, mut start: u64, mut end: u64) {
        self.fill(start, end);
        let is_bound = |at: u64| self.bounds.contains_key(&at);
        let left = self.runs.range(..start).next_back().map(|(&from, &to)| (from, to));
        let left = left.filter(|&(_, to)| to == start && !is_bound(start));
        let right = self.runs.get(&end).map(|&to| (end, to)).filter(|_| !is_bound(end));
        if let Some((from, to)) = left {
            self.remove(from, to);
            start = from;
        }
        if let Some((from, to)) = right {
            self.remove(from, to);
            end = to;
        }
        self.add(start, end);
    }

    fn bind(&mut self, at: u64) {
        *self.bounds.entry(at).or_default() += 1;
    }

    fn unbind(&mut self, at: u64) {
        if let Some(count) = self.bounds.get_mut(&at) {
            *count -= 1;
            if *count == 0 {
                self.bounds.remove(&at);
            }
        }
    }
}
