//! One segment: a run of device memory (or of addresses), tiled by blocks; split and merge.
//!
//! ```text
//!  segment 0 ┌─ first
//!            ▼
//!           [ Allocated | Free | Allocated |        Free         ]     fixed: one allocation
//!
//!  segment 1
//!           [ Allocated |  Free  | Unmapped      | Free | Unmapped …]  virtual: a range
//!             page 0     page 1    page 2 …
//! ```
//!
//! Numbered invariants, checked by `verify()`:
//! - I1: the blocks of a segment tile it exactly: offset(first) = 0, offset(next) = end(block), and
//!   the last one ends at the segment's size; `prev` is the inverse of `next`.
//! - I2: two neighbours are never both Free, nor both Unmapped: what can merge has merged.
//! - I3: `busy` = number of its blocks that are Allocated, Pending, Claimed or Warm.
//! - I4: `mapped` = Σ size of its blocks with memory behind them, or 0 while that is away (A1);
//!   fixed segments: `mapped == size`.
//! - I5: a fixed segment is in its pool's idle list ⇔ `busy == 0`.
//! - I6: Unmapped blocks begin and end at multiples of `page`.
//! - I7: `chunks` cover exactly the mapped blocks of a virtual segment (see `chunks`), which are
//!   away together if one is.
//!
//! A segment carries its memory as an opaque value `M`: it moves with the segment and can be lost
//! only by being handed out for release.

use slab::Slab;

use crate::core::block::{Block, State};
use crate::core::chunks::Chunks;
use crate::core::pause::Presence;
use crate::ds::records::Records;
use crate::id::{BlockId, SegmentId};
use crate::units::{Bytes, to_bytes};

/// One backend allocation, or one range of addresses.
#[derive(Debug)]
pub(crate) struct Segment<M> {
    /// Number of the segment's creation over all arenas: its age.
    pub(crate) number: u64,
    /// Index into the arena's pools.
    pub(crate) pool: usize,
    /// Granules.
    pub(crate) size: u32,
    /// Granules of a page, of which chunks are made, if this is virtual memory; 0 if it is fixed.
    pub(crate) page: u32,
    /// Granules with memory behind them.
    pub(crate) mapped: u32,
    pub(crate) first: BlockId,
    /// Blocks that are Allocated, Pending or Claimed.
    pub(crate) busy: u32,
    /// Device address of the first byte, or 0.
    pub(crate) base: u64,
    pub(crate) idle: Idle,
    /// Its Unmapped blocks, in no order: few, for what is unmapped merges.
    pub(crate) holes: Vec<BlockId>,
    /// What is mapped, if this is virtual memory.
    pub(crate) chunks: Chunks,
    /// Whether these are there now (see `pause`).
    pub(crate) presence: Presence,
    pub(crate) memory: M,
}

/// The place of a wholly free segment in its pool's idle list, and since when it is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Idle {
    pub(crate) prev: SegmentId,
    pub(crate) next: SegmentId,
    /// The count of misses over all arenas when it became idle: orders pools among each other.
    pub(crate) epoch: u64,
    /// The pool's count of searches when it became idle.
    pub(crate) searches: u64,
    /// The time that the user had last told, in microseconds.
    pub(crate) time_us: u64,
}

impl Idle {
    pub(crate) const NEW: Self =
        Self { prev: SegmentId::NONE, next: SegmentId::NONE, epoch: 0, searches: 0, time_us: 0 };
}

impl<M> Segment<M> {
    #[inline]
    pub(crate) fn is_virtual(&self) -> bool {
        self.page != 0
    }

    /// What can be given back of a free run: whole chunks, or all of a fixed segment. Bytes.
    pub(crate) fn whole_bytes(&self, start: u32, end: u32) -> Bytes {
        if self.is_virtual() {
            return self.chunks.within(start, end).iter().map(|chunk| to_bytes(chunk.size)).sum();
        }
        if end - start == self.size { to_bytes(self.size) } else { 0 }
    }
}

/// The order among blocks of one size: older segment first, then lower offset. Whether `a` comes
/// first.
///
/// PyTorch orders by segment age and address likewise (`registration_counter`), so that programs
/// that allocate in the same order get the same blocks whatever addresses the driver hands out.
#[inline]
pub(crate) fn is_older<M>(
    blocks: &Records<Block>,
    segments: &Slab<Segment<M>>,
    a: BlockId,
    b: BlockId,
) -> bool {
    let (a, b) = (&blocks[a.index()], &blocks[b.index()]);
    if a.segment == b.segment {
        return a.offset < b.offset;
    }
    segments[a.segment.index()].number < segments[b.segment.index()].number
}

/// Cuts `size` granules off the front of a block that is in no bin; the rest becomes a new block of
/// state `rest`, also in no bin. Returns the rest.
#[inline]
pub(crate) fn split(blocks: &mut Records<Block>, id: BlockId, size: u32, rest: State) -> BlockId {
    let front = &mut blocks[id.index()];
    debug_assert!(0 < size && size < front.size, "a split leaves two blocks");
    let back = Block {
        offset: front.offset + size,
        size: front.size - size,
        prev: id,
        next: front.next,
        segment: front.segment,
        serial: 0,
        tick: front.tick,
        state: rest,
    };
    let next = front.next;
    front.size = size;
    let back = BlockId::from_index(blocks.insert(back));
    blocks[id.index()].next = back;
    if !next.is_none() {
        blocks[next.index()].prev = back;
    }
    back
}

/// Merges `id` with its next neighbour, which is in no bin and ends to exist.
#[inline]
pub(crate) fn merge_next(blocks: &mut Records<Block>, id: BlockId) {
    let gone_id = blocks[id.index()].next;
    // Read in place: a record that is moved out whole is copied right behind its last writes.
    let Block { offset, size, next, tick, .. } = blocks[gone_id.index()];
    vacate(blocks, gone_id);
    let block = &mut blocks[id.index()];
    debug_assert_eq!(block.end(), offset, "I1: neighbours touch");
    block.size += size;
    block.next = next;
    block.tick = block.tick.max(tick);
    if !next.is_none() {
        blocks[next.index()].prev = id;
    }
}

/// The record of a block that ends to exist may be used again; its id is stale.
#[inline]
pub(crate) fn vacate(blocks: &mut Records<Block>, id: BlockId) {
    blocks[id.index()].state = State::Vacant;
    blocks.vacate(id.index());
}
