//! What is where: every segment and every block, at one moment, and what led there.
//!
//! Numbers are copied with all streams stopped (`collect`); names, files and tags are put to them
//! afterwards (`Draft::finish`), when the allocator works on.

use std::collections::HashMap;
use std::panic::Location;
use std::sync::Arc;

use crate::core::arena::Arena;
use crate::core::block::{Block, State};
use crate::core::classes::Group;
use crate::core::segment::Segment;
use crate::core::state::World;
use crate::id::{PoolId, Tag};
use crate::report::history::{Annotation, Event, Frames, frames_of};
use crate::units::{Bytes, to_bytes};

/// All segments, by stream and age.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Snapshot {
    /// One entry for each backend allocation or range of addresses.
    pub segments: Vec<SegmentSnapshot>,
    /// What happened, oldest first, as far as it was recorded ([`Allocator::record_history`]).
    ///
    /// [`Allocator::record_history`]: crate::Allocator::record_history
    pub history: Vec<Event>,
    /// What the program remarked ([`Allocator::annotate`](crate::Allocator::annotate)).
    pub annotations: Vec<Annotation>,
    /// The number of the device among those of a machine; 0 where there are no numbers.
    pub device: u32,
    /// What the device is, in words.
    pub device_name: String,
    /// The device's memory in bytes, if it is known.
    pub device_total: Option<Bytes>,
    /// The limit on reserved memory in force, if any.
    pub limit: Option<Bytes>,
    /// Settings by name, as PyTorch's `PYTORCH_CUDA_ALLOC_CONF` spells them.
    pub settings: String,
}

/// One segment. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentSnapshot {
    /// Device address of the first byte, where the backend has addresses.
    pub address: Option<u64>,
    /// The same, or a stand-in where there are none: what events of the history name.
    pub place: u64,
    /// Bytes that the device really gave: of a virtual segment its mapped pages.
    pub total_size: Bytes,
    /// Bytes of blocks in users' hands.
    pub allocated_size: Bytes,
    /// Bytes of blocks that are allocated or pending.
    pub active_size: Bytes,
    /// Bytes that users asked for, of active blocks.
    pub requested_size: Bytes,
    /// Streams are numbered in order of registration.
    pub stream: u32,
    /// (0, 0) is the default pool.
    pub pool_id: PoolId,
    /// Whether it belongs to the pool of large blocks.
    pub large: bool,
    /// Whether it is a range of addresses with pages behind parts of it.
    pub expandable: bool,
    /// Its blocks in address order; ranges with nothing behind them are left out.
    pub blocks: Vec<BlockSnapshot>,
}

/// One block of a segment. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockSnapshot {
    /// From the start of the segment.
    pub offset: Bytes,
    /// Of the block.
    pub size: Bytes,
    /// What the user asked for; 0 if the block is free.
    pub requested_size: Bytes,
    /// Who holds it.
    pub state: BlockState,
    /// Who asked for it, innermost call first; empty if nobody holds it, or it is not known.
    pub frames: Frames,
    /// The tag it was given.
    pub tag: Option<Arc<str>>,
}

/// Who holds a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlockState {
    /// Nobody: it is cached.
    Free,
    /// A user.
    Allocated,
    /// Nobody, but a stream may still touch it.
    Pending,
    /// Nobody: it is part of a growth that is under way.
    Growing,
}

/// A snapshot whose names are still to be looked up.
#[derive(Debug)]
pub(crate) struct Draft {
    segments: Vec<(SegmentSnapshot, Vec<Held>)>,
}

/// Who asked for a block.
#[derive(Debug, Clone, Copy)]
struct Held {
    location: Option<&'static Location<'static>>,
    tag: Tag,
}

/// Files, lines and tags by what stands for them, each made once.
pub(crate) struct Names<'a> {
    frames: HashMap<*const Location<'static>, Frames>,
    tags: HashMap<Tag, Option<Arc<str>>>,
    name_of: &'a dyn Fn(Tag) -> Option<String>,
}

impl std::fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").field("frames", &self.frames.len()).finish_non_exhaustive()
    }
}

impl<'a> Names<'a> {
    pub(crate) fn new(name_of: &'a dyn Fn(Tag) -> Option<String>) -> Self {
        Self { frames: HashMap::new(), tags: HashMap::new(), name_of }
    }

    pub(crate) fn frames(&mut self, location: Option<&'static Location<'static>>) -> Frames {
        let Some(location) = location else { return Frames::default() };
        let frames = self.frames.entry(std::ptr::from_ref(location));
        Arc::clone(frames.or_insert_with(|| frames_of(location)))
    }

    pub(crate) fn tag(&mut self, tag: Tag) -> Option<Arc<str>> {
        if tag == Tag::default() {
            return None;
        }
        let name_of = self.name_of;
        self.tags.entry(tag).or_insert_with(|| name_of(tag).map(Arc::from)).clone()
    }
}

impl Draft {
    /// Puts names to the blocks.
    pub(crate) fn finish(self, names: &mut Names<'_>) -> Vec<SegmentSnapshot> {
        let named = self.segments.into_iter().map(|(mut segment, held)| {
            for (block, Held { location, tag }) in segment.blocks.iter_mut().zip(held) {
                block.frames = names.frames(location);
                block.tag = names.tag(tag);
            }
            segment
        });
        named.collect()
    }
}

/// Walks everything: O(blocks).
pub(crate) fn collect<M, E: Clone>(world: &World<'_, M, E>) -> Draft {
    let mut segments = Vec::new();
    for arena in &world.arenas {
        let mut ages: Vec<_> = arena.segments.iter().map(|(_, segment)| segment).collect();
        ages.sort_by_key(|segment| segment.number);
        for segment in ages {
            let owner = arena.pools[segment.pool].owner;
            let pool_id = world.global.owners[owner.index()].pool_id;
            segments.push(segment_snapshot(arena, segment, pool_id));
        }
    }
    Draft { segments }
}

fn segment_snapshot<M>(
    arena: &Arena<M>,
    segment: &Segment<M>,
    pool_id: PoolId,
) -> (SegmentSnapshot, Vec<Held>) {
    let (mut blocks, mut held) = (Vec::new(), Vec::new());
    for block in arena.blocks_of(segment).filter(|block| block.is_mapped()) {
        let (block, holder) = block_snapshot(arena, block);
        blocks.push(block);
        held.push(holder);
    }
    let sum = |states: &[BlockState], size: fn(&BlockSnapshot) -> Bytes| {
        blocks.iter().filter(|block| states.contains(&block.state)).map(size).sum()
    };
    let active = [BlockState::Allocated, BlockState::Pending];
    let snapshot = SegmentSnapshot {
        address: (segment.base != 0).then_some(segment.base),
        place: segment.place(),
        total_size: to_bytes(segment.mapped),
        allocated_size: sum(&[BlockState::Allocated], |block| block.size),
        active_size: sum(&active, |block| block.size),
        requested_size: sum(&active, |block| block.requested_size),
        stream: arena.id.0,
        pool_id,
        large: arena.pools[segment.pool].group == Group::Large,
        expandable: segment.is_virtual(),
        blocks,
    };
    (snapshot, held)
}

fn block_snapshot<M>(arena: &Arena<M>, block: &Block) -> (BlockSnapshot, Held) {
    let (state, holder) = match &block.state {
        State::Allocated(holder) => (BlockState::Allocated, Some(holder)),
        State::Pending { side, .. } => {
            (BlockState::Pending, Some(&arena.waiting[side.index()].holder))
        }
        State::Free(_) | State::Warm | State::Unmapped | State::Vacant => (BlockState::Free, None),
        State::Claimed { .. } => (BlockState::Growing, None),
    };
    let snapshot = BlockSnapshot {
        offset: to_bytes(block.offset),
        size: to_bytes(block.size),
        requested_size: holder.map_or(0, |holder| holder.requested),
        state,
        frames: Frames::default(),
        tag: None,
    };
    let (location, tag) = holder.map(|holder| (holder.location, holder.tag)).unzip();
    (snapshot, Held { location, tag: tag.unwrap_or_default() })
}
