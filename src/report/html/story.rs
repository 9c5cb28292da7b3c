//! The events of a history made into lives: when each block and each range of memory came and went.
//!
//! ```text
//!   events    alloc A   alloc B   free_requested A   free_completed A   free_… C     end: B
//!   lives A   ├──────────────────────────╌╌╌╌╌╌╌╌╌╌╌╌┤
//!         B             ├──────────────────────────────────────────────────────────────▶
//!         C ├──────────────────────────────────────────────────────────────┤
//! ```
//!
//! A window of history begins in the middle: what is freed though nobody allocated it (C), and what
//! the snapshot has though no event told of it, was there before. The snapshot has the last word:
//! at the end exactly its blocks and segments live.
//!
//! - H1: a life begins once, ends at most once, and is let go of in between at most once.
//! - H2: times of steps never fall.
//!
//! O(events · log segments).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::id::PoolId;
use crate::report::history::{Action, Event, Frames};
use crate::report::snapshot::{BlockSnapshot, BlockState, SegmentSnapshot, Snapshot};
use crate::units::{Bytes, GRANULE, align_up};

/// Which life: one that began in the window, or before it. Each kind is numbered from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Life {
    Born(u32),
    Before(u32),
}

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The next block is born.
    Alloc,
    Requested(Life),
    Completed(Life),
    /// Both at once.
    Freed(Life),
    /// The next range is born.
    Came,
    Went(Life),
    Oom {
        size: Bytes,
        device_free: Option<Bytes>,
    },
    Snapshot,
}

/// A block for as long as somebody holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) address: u64,
    pub(super) requested: Bytes,
    /// As the snapshot has it; of those that it does not have, what was asked for in granules.
    pub(super) size: Bytes,
    /// Index into [`Story::sites`].
    pub(super) site: u32,
}

/// Memory of the device that is held from `address` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) address: u64,
    pub(super) size: Bytes,
    pub(super) owner: Owner,
}

/// Whose a range is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub(super) stream: u32,
    pub(super) pool_id: PoolId,
    /// Whether they are pages of a larger range of addresses, and go on into their neighbours.
    pub(super) is_paged: bool,
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Site {
    pub(super) frames: Frames,
    pub(super) tag: Option<Arc<str>>,
    pub(super) stream: u32,
    pub(super) pool_id: PoolId,
}

/// Everything that is born in the window, and everything that was there before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lives<T> {
    pub(super) born: Vec<T>,
    pub(super) before: Vec<T>,
}

impl<T> Lives<T> {
    fn new() -> Self {
        Self { born: Vec::new(), before: Vec::new() }
    }

    pub(super) fn of(&self, life: Life) -> &T {
        match life {
            Life::Born(index) => &self.born[index as usize],
            Life::Before(index) => &self.before[index as usize],
        }
    }

    fn of_mut(&mut self, life: Life) -> &mut T {
        match life {
            Life::Born(index) => &mut self.born[index as usize],
            Life::Before(index) => &mut self.before[index as usize],
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.born.iter().chain(&self.before)
    }

    fn bear(&mut self, value: T) -> Life {
        self.born.push(value);
        Life::Born(self.born.len() as u32 - 1)
    }

    fn find_before(&mut self, value: T) -> Life {
        self.before.push(value);
        Life::Before(self.before.len() as u32 - 1)
    }
}

/// The whole history.
#[derive(Debug)]
pub(super) struct Story {
    /// Each with the time of its event.
    pub(super) steps: Vec<(u64, Step)>,
    pub(super) blocks: Lives<Block>,
    /// Those among [`Lives::before`] that had been let go of already.
    pub(super) pending_before: Vec<u32>,
    pub(super) ranges: Lives<Range>,
    pub(super) sites: Vec<Site>,
}

/// What is known of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Allocated(Life),
    Pending(Life),
    /// It was somebody's.
    Gone,
}

#[derive(Debug)]
struct Teller {
    story: Story,
    time_us: u64,
    held: HashMap<u64, Known>,
    /// Live ranges by their first byte, with the byte behind their last; they are disjoint.
    mapped: BTreeMap<u64, (u64, Life)>,
    site_of: HashMap<Site, u32>,
    /// The same by what the event points to, which is quicker to compare.
    site_at: HashMap<(usize, usize, u32, PoolId), u32>,
}

impl Story {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let mut teller = Teller::new();
        for event in &snapshot.history {
            teller.hear(event);
        }
        teller.settle_blocks(&snapshot.segments);
        teller.settle_ranges(&snapshot.segments);
        teller.story
    }
}

impl Teller {
    fn new() -> Self {
        let story = Story {
            steps: Vec::new(),
            blocks: Lives::new(),
            pending_before: Vec::new(),
            ranges: Lives::new(),
            sites: Vec::new(),
        };
        Self {
            story,
            time_us: 0,
            held: HashMap::new(),
            mapped: BTreeMap::new(),
            site_of: HashMap::new(),
            site_at: HashMap::new(),
        }
    }

    fn step(&mut self, step: Step) {
        self.story.steps.push((self.time_us, step));
    }

    fn hear(&mut self, event: &Event) {
        self.time_us = event.time_us.max(self.time_us);
        let (start, end) = (event.address, event.address.saturating_add(event.size));
        let owner = |is_paged| Owner { stream: event.stream, pool_id: event.pool_id, is_paged };
        match event.action {
            Action::Alloc => self.alloc(event),
            Action::FreeRequested => self.free_requested(event),
            Action::FreeCompleted => self.free_completed(event),
            Action::SegmentAlloc => self.came(start, end, owner(false)),
            Action::SegmentMap => self.came(start, end, owner(true)),
            Action::SegmentFree => self.went(start, end, owner(false)),
            Action::SegmentUnmap => self.went(start, end, owner(true)),
            Action::Snapshot => self.step(Step::Snapshot),
            Action::Oom => {
                self.step(Step::Oom { size: event.size, device_free: event.device_free });
            }
        }
    }

    fn alloc(&mut self, event: &Event) {
        let block = self.block_of(event);
        self.bear(block);
    }

    /// A block is handed out; whoever had the address has lost it without an event.
    fn bear(&mut self, block: Block) {
        self.end(block.address);
        let life = self.story.blocks.bear(block);
        self.held.insert(block.address, Known::Allocated(life));
        self.step(Step::Alloc);
    }

    fn end(&mut self, address: u64) {
        match self.held.insert(address, Known::Gone) {
            Some(Known::Allocated(life)) => self.step(Step::Freed(life)),
            Some(Known::Pending(life)) => self.step(Step::Completed(life)),
            Some(Known::Gone) | None => {}
        }
    }

    fn free_requested(&mut self, event: &Event) {
        let life = match self.held.get(&event.address) {
            Some(&Known::Allocated(life)) => life,
            Some(Known::Pending(_) | Known::Gone) => return,
            None => {
                let block = self.block_of(event);
                self.story.blocks.find_before(block)
            }
        };
        self.held.insert(event.address, Known::Pending(life));
        self.step(Step::Requested(life));
    }

    fn free_completed(&mut self, event: &Event) {
        let last = self.story.steps.last();
        match self.held.get(&event.address) {
            Some(Known::Gone) => return,
            Some(&Known::Pending(life)) if last == Some(&(self.time_us, Step::Requested(life))) => {
                // A free that nobody had to wait for is one step.
                self.story.steps.pop();
                self.held.insert(event.address, Known::Allocated(life));
            }
            Some(_) => {}
            None => {
                let block = self.block_of(event);
                self.wait_from_before(block);
            }
        }
        self.end(event.address);
    }

    fn wait_from_before(&mut self, block: Block) {
        self.story.pending_before.push(self.story.blocks.before.len() as u32);
        let life = self.story.blocks.find_before(block);
        self.held.insert(block.address, Known::Pending(life));
    }

    /// In `start..end` is memory now, all of it new.
    fn came(&mut self, start: u64, end: u64, owner: Owner) {
        self.cut(start, end);
        if start < end {
            let range = Range { address: start, size: end - start, owner };
            let life = self.story.ranges.bear(range);
            self.mapped.insert(start, (end, life));
            self.step(Step::Came);
        }
    }

    /// In `start..end` is none any more. What nobody knew of was there before.
    fn went(&mut self, start: u64, end: u64, owner: Owner) {
        self.find(start, end, owner);
        self.cut(start, end);
    }

    /// The live ranges that have bytes in `start..end`, as their own bounds.
    fn overlaps(&self, start: u64, end: u64) -> Vec<(u64, u64, Life)> {
        if start >= end {
            return Vec::new();
        }
        let before = self.mapped.range(..=start).next_back();
        let first = before.filter(|(_, range)| range.0 > start).map_or(start, |(&at, _)| at);
        let found = self.mapped.range(first..end);
        found.map(|(&at, &(to, life))| (at, to, life)).collect()
    }

    /// Ends what is in `start..end`; what is left of a range that goes on outside lives on.
    fn cut(&mut self, start: u64, end: u64) {
        for (from, to, life) in self.overlaps(start, end) {
            self.mapped.remove(&from);
            self.step(Step::Went(life));
            let owner = self.story.ranges.of(life).owner;
            for (from, to) in [(from, start.min(to)), (end.max(from), to)] {
                if from < to {
                    let life =
                        self.story.ranges.bear(Range { address: from, size: to - from, owner });
                    self.mapped.insert(from, (to, life));
                    self.step(Step::Came);
                }
            }
        }
    }

    /// Notes that all of `start..end` has been there before, where nothing is known of it.
    fn find(&mut self, start: u64, end: u64, owner: Owner) {
        let mut from = start;
        let known = self.overlaps(start, end);
        for (next, behind) in known.iter().map(|&(at, to, _)| (at, to)).chain([(end, end)]) {
            if from < next.min(end) {
                let to = next.min(end);
                let range = Range { address: from, size: to - from, owner };
                let life = self.story.ranges.find_before(range);
                self.mapped.insert(from, (to, life));
            }
            from = behind.max(from);
        }
    }

    /// At the end, the blocks of the snapshot live, and no others.
    fn settle_blocks(&mut self, segments: &[SegmentSnapshot]) {
        let mut left: BTreeMap<u64, Known> =
            self.held.iter().map(|(&at, &known)| (at, known)).collect();
        left.retain(|_, known| *known != Known::Gone);
        let mut found = Vec::new();
        for segment in segments {
            let held = [BlockState::Allocated, BlockState::Pending];
            for block in segment.blocks.iter().filter(|block| held.contains(&block.state)) {
                let address = segment.place.saturating_add(block.offset);
                let known = left.remove(&address);
                found.push((segment, block, address, known));
            }
        }
        for address in left.into_keys() {
            self.end(address);
        }
        for (segment, block, address, known) in found {
            let site = self.site(&block.frames, &block.tag, segment.stream, segment.pool_id);
            let &BlockSnapshot { size, requested_size: requested, state, .. } = block;
            let block = Block { address, requested, size, site };
            self.settle_block(block, state == BlockState::Pending, known);
        }
    }

    fn settle_block(&mut self, block: Block, is_pending: bool, known: Option<Known>) {
        let address = block.address;
        match known {
            Some(Known::Allocated(life) | Known::Pending(life)) => {
                let site = self.story.blocks.of(life).site;
                *self.story.blocks.of_mut(life) = Block { site, ..block };
                if is_pending && known == Some(Known::Allocated(life)) {
                    self.held.insert(address, Known::Pending(life));
                    self.step(Step::Requested(life));
                }
            }
            // It came after the events were read.
            Some(Known::Gone) => self.bear(block),
            None if self.held.contains_key(&address) => self.bear(block),
            None if is_pending => self.wait_from_before(block),
            None => {
                let life = self.story.blocks.find_before(block);
                self.held.insert(address, Known::Allocated(life));
            }
        }
    }

    /// At the end, the memory of the snapshot is there, and no other.
    fn settle_ranges(&mut self, segments: &[SegmentSnapshot]) {
        let mut wanted = Vec::new();
        for segment in segments {
            let owner = Owner {
                stream: segment.stream,
                pool_id: segment.pool_id,
                is_paged: segment.expandable,
            };
            wanted.extend(runs(segment).into_iter().map(|(start, end)| (start, end, owner)));
        }
        wanted.sort_by_key(|&(start, end, _)| (start, end));
        let mut from = 0;
        for &(start, end, owner) in &wanted {
            self.cut(from, start);
            self.find(start, end, owner);
            from = end.max(from);
        }
        self.cut(from, u64::MAX);
    }

    fn block_of(&mut self, event: &Event) -> Block {
        let site = self.site(&event.frames, &event.tag, event.stream, event.pool_id);
        let (address, requested) = (event.address, event.size);
        Block { address, requested, size: align_up(requested, GRANULE), site }
    }

    fn site(
        &mut self,
        frames: &Frames,
        tag: &Option<Arc<str>>,
        stream: u32,
        pool_id: PoolId,
    ) -> u32 {
        let tag_at = tag.as_ref().map_or(0, |tag| Arc::as_ptr(tag).cast::<u8>() as usize);
        // Zero is no address of a tag, and an empty tag has one.
        let at = (Arc::as_ptr(frames).cast::<u8>() as usize, tag_at, stream, pool_id);
        if let Some(&site) = self.site_at.get(&at) {
            return site;
        }
        let site = Site { frames: Arc::clone(frames), tag: tag.clone(), stream, pool_id };
        let next = self.story.sites.len() as u32;
        let number = *self.site_of.entry(site.clone()).or_insert(next);
        if number == next {
            self.story.sites.push(site);
        }
        self.site_at.insert(at, number);
        number
    }
}

/// Where a segment has memory: all of it, or the runs of its blocks.
fn runs(segment: &SegmentSnapshot) -> Vec<(u64, u64)> {
    let place = segment.place;
    if !segment.expandable {
        return vec![(place, place.saturating_add(segment.total_size))];
    }
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for block in &segment.blocks {
        let start = place.saturating_add(block.offset);
        let end = start.saturating_add(block.size);
        match runs.last_mut() {
            Some(run) if run.1 == start => run.1 = end,
            _ => runs.push((start, end)),
        }
    }
    runs
}
