//! Pages of one range: where it can grow, claiming blocks for a growth, unmapped blocks and their
//! merging. What happens between claim and commit is the business of
//! [`expand`](crate::core::expand).

use crate::core::arena::{Arena, Want};
use crate::core::block::{Block, State};
use crate::core::chunks::Run;
use crate::core::segment::{Segment, merge_next, split, vacate};
use crate::id::{BlockId, SegmentId};
use crate::units::{Bytes, to_bytes};

/// Where a range can grow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) segment: SegmentId,
    /// The first of the blocks, free or unmapped, that will hold the request.
    pub(crate) start: BlockId,
}

impl<M> Arena<M> {
    /// The lowest place in a pool's ranges where free and unmapped blocks together hold `needed`
    /// granules: the oldest segment, then the lowest offset.
    pub(crate) fn growable_place(&self, pool: usize, needed: u32, want: &Want) -> Option<Place> {
        let ranges = self.segments.iter().filter(|(id, segment)| {
            let avoided = self.is_avoided(SegmentId::from_index(*id), want);
            segment.is_virtual() && segment.pool == pool && !avoided
        });
        let places = ranges.flat_map(|(id, segment)| {
            let at = move |&hole: &BlockId| (segment, SegmentId::from_index(id), hole);
            segment.holes.iter().map(at)
        });
        let fitting = places.filter_map(|(range, segment, hole)| {
            let prev = self.blocks[hole.index()].prev;
            let start = match self.blocks.get(prev.index()) {
                Some(block) if block.is_free() => prev,
                _ => hole,
            };
            let offset = self.blocks[start.index()].offset;
            let key = (range.number, offset);
            self.has_run(start, needed).then_some((key, Place { segment, start }))
        });
        fitting.min_by_key(|place| place.0).map(|place| place.1)
    }

    /// The blocks from `start` on that hold `needed` granules.
    pub(crate) fn run_blocks(&self, start: BlockId, needed: u32) -> Vec<BlockId> {
        let (mut run, mut at, mut found) = (Vec::new(), start, 0_u32);
        while let Some(block) = self.blocks.get(at.index()).filter(|_| found < needed) {
            run.push(at);
            found = found.saturating_add(block.size);
            at = block.next;
        }
        run
    }

    /// Bytes of pages that a run of `needed` granules from `start` on lacks.
    pub(crate) fn lacking(&self, start: BlockId, needed: u32, page: u32) -> Bytes {
        let (mut found, mut lacking) = (0, 0);
        for at in self.run_blocks(start, needed) {
            let block = &self.blocks[at.index()];
            if block.is_unmapped() {
                let pages = (needed - found).min(block.size).div_ceil(page);
                lacking += to_bytes(page) * Bytes::from(pages);
            }
            found = found.saturating_add(block.size);
        }
        lacking
    }

    /// Whether free and unmapped blocks from `at` on hold `needed` granules.
    pub(crate) fn has_run(&self, at: BlockId, needed: u32) -> bool {
        let (mut at, mut found) = (at, 0_u32);
        while let Some(block) = self.blocks.get(at.index()) {
            if !block.is_free() && !block.is_unmapped() {
                return false;
            }
            found = found.saturating_add(block.size);
            if found >= needed {
                return true;
            }
            at = block.next;
        }
        false
    }

    /// Claims blocks from `start` on until they hold `needed` granules; of unmapped ones only as
    /// many pages as are needed. Returns them in order, and the runs that lack pages.
    pub(crate) fn claim(
        &mut self,
        start: BlockId,
        needed: u32,
        page: u32,
    ) -> (Vec<BlockId>, Vec<Run>) {
        let (mut claimed, mut runs) = (Vec::new(), Vec::new());
        let (mut at, mut found) = (start, 0);
        while found < needed {
            let Block { segment, offset, size, .. } = self.blocks[at.index()];
            let mapped = self.blocks[at.index()].is_free();
            let segment = &mut self.segments[segment.index()];
            if mapped {
                self.pools[segment.pool].free.remove(&mut self.blocks, at);
                found += size;
            } else {
                segment.holes.retain(|&hole| hole != at);
                // Holes are whole pages (I6), so the rounded size never exceeds the hole.
                let pages = (needed - found).min(size).div_ceil(page) * page;
                if pages < size {
                    let rest = split(&mut self.blocks, at, pages, State::Unmapped);
                    segment.holes.push(rest);
                }
                runs.push(Run { offset: to_bytes(offset), size: to_bytes(pages) });
                found += pages;
            }
            segment.busy += 1;
            self.blocks[at.index()].state = State::Claimed { mapped };
            claimed.push(at);
            at = self.blocks[at.index()].next;
        }
        (claimed, runs)
    }

    /// Takes a range that nobody uses out, with all its blocks; returns its memory.
    pub(crate) fn remove_range(&mut self, id: usize) -> M {
        let segment = self.segments.remove(id);
        let mut at = segment.first;
        while let Some(block) = self.blocks.get(at.index()) {
            let next = block.next;
            // Free ones are those of memory that is away.
            if block.is_free() {
                self.pools[segment.pool].free.remove(&mut self.blocks, at);
            }
            vacate(&mut self.blocks, at);
            at = next;
        }
        segment.memory
    }

    /// The blocks of a segment in order of address.
    pub(crate) fn blocks_of(&self, segment: &Segment<M>) -> impl Iterator<Item = &Block> {
        let mut at = segment.first;
        std::iter::from_fn(move || {
            let block = self.blocks.get(at.index())?;
            at = block.next;
            Some(block)
        })
    }

    /// A claimed block without pages is unmapped again, and merges with its unmapped neighbours.
    pub(crate) fn make_unmapped(&mut self, id: BlockId) {
        let Block { segment, prev, next, .. } = self.blocks[id.index()];
        let segment = &mut self.segments[segment.index()];
        segment.busy -= 1;
        self.blocks[id.index()].state = State::Unmapped;
        if self.blocks.get(next.index()).is_some_and(Block::is_unmapped) {
            segment.holes.retain(|&hole| hole != next);
            merge_next(&mut self.blocks, id);
        }
        if self.blocks.get(prev.index()).is_some_and(Block::is_unmapped) {
            merge_next(&mut self.blocks, prev);
        } else {
            segment.holes.push(id);
        }
    }
}
