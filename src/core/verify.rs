//! Checks every numbered invariant by walking everything, and recomputes every statistic from the
//! blocks.
//!
//! O(all blocks): for tests, which call it after every step, and for users who suspect a fault.

use crate::core::arena::Arena;
use crate::core::block::{Block, State};
use crate::core::ledger::{self, GAUGES, Gauge};
use crate::core::lifetime::Mark;
use crate::core::pause::{Presence, away};
use crate::core::pool::idle_segments;
use crate::core::segment::Segment;
use crate::core::state::World;
use crate::id::{BlockId, SegmentId};
use crate::units::{Bytes, to_bytes};

/// What a walk over one arena found: gauges by group, as the ledger should have them.
type Found = [[u64; GAUGES]; 2];

impl<M, E: Clone> World<'_, M, E> {
    /// Checks every invariant.
    ///
    /// # Panics
    /// If one is broken, naming it.
    pub(crate) fn verify(&self) {
        let mut mapped: Bytes = 0;
        for arena in &self.arenas {
            let found = verify_arena(arena);
            verify_ledger(arena, &found);
            mapped += found.iter().map(|row| row[Gauge::ReservedBytes as usize]).sum::<u64>();
        }
        assert!(mapped <= self.global.reserved, "W1 is broken: {mapped} mapped, {} reserved", {
            self.global.reserved
        });
        if self.global.in_flight == 0 {
            assert_eq!(mapped, self.global.reserved, "W1 is broken with nothing in flight");
        }
        self.verify_peaks();
        self.verify_owners();
        self.verify_clocks();
    }

    fn verify_peaks(&self) {
        let peaks = self.leased_peaks();
        for (row, peaks) in peaks.iter().enumerate() {
            for (column, &peak) in peaks.iter().enumerate() {
                let now = self.arenas.iter().map(|arena| arena.ledger.now(row, column));
                assert!(now.sum::<u64>() <= peak, "L1 is broken: gauge {column} of row {row}");
            }
        }
    }

    fn verify_owners(&self) {
        for (index, owner) in self.global.owners.iter().enumerate() {
            let mut found = [0; 3];
            let mut gone = 0;
            for arena in &self.arenas {
                for (_, segment) in &arena.segments {
                    let pool = &arena.pools[segment.pool];
                    if pool.owner.index() == index {
                        assert_eq!(pool.traits, owner.traits, "the traits of owner {index}");
                        found[pool.group as usize] += to_bytes(segment.mapped);
                        found[ledger::ALL] += to_bytes(segment.mapped);
                        gone += to_bytes(away(segment));
                    }
                }
            }
            let booked = owner.reserved.map(|counter| counter.current);
            assert_eq!(booked, found, "reserved bytes of owner {index}");
            assert_eq!(owner.away, gone, "A2 is broken: owner {index}");
        }
    }

    fn verify_clocks(&self) {
        for (index, clock) in self.global.clocks.iter().enumerate() {
            let open = self.arenas[index].open;
            assert!(clock.completed < open, "T1 is broken: stream {index} is done to {open}");
            let mut last = clock.completed;
            for recorded in &clock.events {
                assert!(last < recorded.tick && recorded.tick < open, "T1 is broken: {index}");
                last = recorded.tick;
            }
        }
        for arena in &self.arenas {
            for (_, waiting) in &arena.waiting {
                for mark in &waiting.marks {
                    let open = self.arenas[mark.stream.index()].open;
                    let valid = mark.tick == Mark::UNSET || mark.tick <= open;
                    assert!(valid, "T2 is broken: {mark:?}, open {open}");
                }
            }
        }
    }
}

/// Walks all segments of an arena; checks I1 to I7 and B1 to B4.
fn verify_arena<M>(arena: &Arena<M>) -> Found {
    let mut found: Found = [[0; GAUGES]; 2];
    let (mut blocks, mut pending) = (0, 0);
    let mut free_of = vec![(0, 0, 0); arena.pools.len()];
    for (id, segment) in &arena.segments {
        let id = SegmentId::from_index(id);
        let walk = verify_segment(arena, id, segment);
        blocks += walk.blocks;
        pending += walk.pending;
        let pool = &mut free_of[segment.pool];
        pool.0 += walk.free;
        pool.1 += walk.pending;
        pool.2 += usize::from(segment.busy == 0 && !segment.is_virtual());
        let row = &mut found[arena.pools[segment.pool].group as usize];
        for (sum, part) in row.iter_mut().zip(walk.gauges) {
            *sum += part;
        }
    }
    assert!(arena.warm.is_empty(), "F2 is broken: the front cache is not empty");
    assert_eq!(blocks, arena.blocks.len(), "I1 is broken: a block is in no segment");
    assert_eq!(pending, arena.waiting.len(), "T3 is broken: a side record without its block");
    for (pool, (free, pending, idle)) in arena.pools.iter().zip(free_of) {
        assert_eq!(pool.free.verify(&arena.blocks), free, "B1 is broken: free blocks");
        assert_eq!(pool.pending.verify(&arena.blocks), pending, "B1 is broken: pending blocks");
        let listed = idle_segments(pool, &arena.segments);
        let listed = listed.inspect(|id| {
            let segment = &arena.segments[id.index()];
            assert!(segment.busy == 0 && !segment.is_virtual(), "I5 is broken: {id:?} is not idle");
        });
        assert_eq!(listed.count(), idle, "I5 is broken: the idle list");
    }
    found
}

#[derive(Default)]
struct Walk {
    blocks: usize,
    free: usize,
    pending: usize,
    gauges: [u64; GAUGES],
}

/// Walks one segment; checks I1 to I7.
fn verify_segment<M>(arena: &Arena<M>, id: SegmentId, segment: &Segment<M>) -> Walk {
    let mut walk = Walk::default();
    let (mut at, mut before, mut offset) = (segment.first, BlockId::NONE, 0);
    let (mut mapped, mut busy, mut holes) = (0, 0, 0);
    let mut last: Option<&Block> = None;
    while !at.is_none() {
        let block = &arena.blocks[at.index()];
        assert_eq!(block.segment, id, "I1 is broken: {at:?} belongs to another segment");
        assert_eq!(block.prev, before, "I1 is broken: {at:?} does not know its predecessor");
        assert_eq!(block.offset, offset, "I1 is broken: {at:?} does not touch its predecessor");
        assert!(block.size > 0, "I1 is broken: {at:?} is empty");
        if let Some(last) = last {
            let merges =
                (last.is_free() && block.is_free()) || (last.is_unmapped() && block.is_unmapped());
            assert!(!merges, "I2 is broken: {before:?} and {at:?} have not merged");
        }
        if block.is_unmapped() {
            let whole = segment.is_virtual()
                && block.offset.is_multiple_of(segment.page)
                && block.end().is_multiple_of(segment.page);
            assert!(whole, "I6 is broken: {at:?} is not made of pages");
            assert!(segment.holes.contains(&at), "I6 is broken: {at:?} is not among the holes");
            holes += 1;
        }
        if block.is_mapped() {
            mapped += block.size;
            let covered = segment.chunks.covers(block.offset, block.end());
            assert!(covered || !segment.is_virtual(), "I7 is broken: {at:?} lacks a chunk");
        }
        busy += u32::from(!block.is_free() && !block.is_unmapped());
        count_block(arena, segment, block, &mut walk);
        offset = block.end();
        last = Some(block);
        (before, at) = (at, block.next);
    }
    assert_eq!(offset, segment.size, "I1 is broken: {id:?} is not covered to its end");
    assert_eq!(busy, segment.busy, "I3 is broken: {id:?}");
    let here = segment.presence == Presence::Here;
    let behind_blocks = mapped;
    let mapped = if here { mapped } else { 0 };
    assert_eq!(mapped, segment.mapped, "I4 is broken: {id:?}");
    assert!(here || segment.is_virtual(), "A1 is broken: {id:?} in one piece is away");
    assert_eq!(holes, segment.holes.len(), "I6 is broken: a hole of {id:?} is no block of it");
    let behind: u32 = segment.chunks.all().iter().map(|chunk| chunk.size).sum();
    let behind = if segment.is_virtual() { behind } else { mapped };
    assert_eq!(behind, behind_blocks, "I7 is broken: {id:?} has chunks behind nothing");
    if !segment.is_virtual() {
        assert_eq!(mapped, segment.size, "I4 is broken: {id:?} is fixed");
        walk.gauges[Gauge::Segment as usize] += 1;
    }
    walk.gauges[Gauge::ReservedBytes as usize] += to_bytes(mapped);
    walk
}

fn count_block<M>(arena: &Arena<M>, segment: &Segment<M>, block: &Block, walk: &mut Walk) {
    walk.blocks += 1;
    let bytes = to_bytes(block.size);
    let mut add = |gauge: Gauge, amount: u64| walk.gauges[gauge as usize] += amount;
    let holder = match &block.state {
        State::Allocated(holder) => {
            add(Gauge::Allocation, 1);
            add(Gauge::AllocatedBytes, bytes);
            holder
        }
        State::Pending { side, .. } => {
            walk.pending += 1;
            &arena.waiting[side.index()].holder
        }
        State::Free(_) => {
            walk.free += 1;
            if !segment.is_virtual() && block.size != segment.size {
                add(Gauge::InactiveSplit, 1);
                add(Gauge::InactiveSplitBytes, bytes);
            }
            return;
        }
        State::Warm => panic!("F2 is broken: a block is warm"),
        State::Vacant => panic!("I1 is broken: a vacant record in a segment"),
        State::Unmapped | State::Claimed { .. } => return,
    };
    let mut add = |gauge: Gauge, amount: u64| walk.gauges[gauge as usize] += amount;
    add(Gauge::Active, 1);
    add(Gauge::ActiveBytes, bytes);
    add(Gauge::RequestedBytes, holder.requested);
}

/// Compares an arena's books with what the walk found; checks W3.
fn verify_ledger<M>(arena: &Arena<M>, found: &Found) {
    for (row, expected) in found.iter().enumerate() {
        for (column, &expected) in expected.iter().enumerate() {
            let booked = arena.ledger.now(row, column);
            assert_eq!(booked, expected, "the ledger is wrong: gauge {column} of group {row}");
        }
    }
    let bytes = |gauge: Gauge| arena.ledger.bytes(gauge);
    let (allocated, active) = (bytes(Gauge::AllocatedBytes), bytes(Gauge::ActiveBytes));
    assert!(allocated <= active, "W3 is broken: allocated {allocated}, active {active}");
    let away: u64 = arena.segments.iter().map(|(_, segment)| to_bytes(away(segment))).sum();
    assert!(active <= bytes(Gauge::ReservedBytes) + away, "W3 is broken: active {active}");
    assert!(bytes(Gauge::RequestedBytes) <= active, "W3 is broken: requested");
}
