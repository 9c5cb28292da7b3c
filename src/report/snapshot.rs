//! What is where: every segment and every block, at one moment.

use std::panic::Location;

use crate::core::arena::Arena;
use crate::core::block::{Block, State};
use crate::core::classes::Group;
use crate::core::segment::Segment;
use crate::core::state::World;
use crate::id::{PoolId, Tag};
use crate::units::{Bytes, to_bytes};

/// All segments, by stream and age.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Snapshot {
    /// One entry for each backend allocation or range of addresses.
    pub segments: Vec<SegmentSnapshot>,
}

/// One segment. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentSnapshot {
    /// Device address of the first byte, where the backend has addresses.
    pub address: Option<u64>,
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
    /// Who asked for it.
    pub location: Option<&'static Location<'static>>,
    /// The tag it was given.
    pub tag: Option<String>,
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

/// Walks everything: O(blocks).
pub(crate) fn collect<M, E: Clone>(
    world: &World<'_, M, E>,
    name_of: &dyn Fn(Tag) -> Option<String>,
) -> Snapshot {
    let mut segments = Vec::new();
    for arena in &world.arenas {
        let mut ages: Vec<_> = arena.segments.iter().map(|(_, segment)| segment).collect();
        ages.sort_by_key(|segment| segment.number);
        for segment in ages {
            let owner = arena.pools[segment.pool].owner;
            let pool_id = world.global.owners[owner.index()].pool_id;
            segments.push(segment_snapshot(arena, segment, pool_id, name_of));
        }
    }
    Snapshot { segments }
}

fn segment_snapshot<M>(
    arena: &Arena<M>,
    segment: &Segment<M>,
    pool_id: PoolId,
    name_of: &dyn Fn(Tag) -> Option<String>,
) -> SegmentSnapshot {
    let mut blocks = Vec::new();
    let mut at = segment.first;
    while let Some(block) = arena.blocks.get(at.index()) {
        if block.is_mapped() {
            blocks.push(block_snapshot(arena, block, name_of));
        }
        at = block.next;
    }
    let sum = |states: &[BlockState], size: fn(&BlockSnapshot) -> Bytes| {
        blocks.iter().filter(|block| states.contains(&block.state)).map(size).sum()
    };
    let active = [BlockState::Allocated, BlockState::Pending];
    SegmentSnapshot {
        address: (segment.base != 0).then_some(segment.base),
        total_size: to_bytes(segment.mapped),
        allocated_size: sum(&[BlockState::Allocated], |block| block.size),
        active_size: sum(&active, |block| block.size),
        requested_size: sum(&active, |block| block.requested_size),
        stream: arena.id.0,
        pool_id,
        large: arena.pools[segment.pool].group == Group::Large,
        expandable: segment.is_virtual(),
        blocks,
    }
}

fn block_snapshot<M>(
    arena: &Arena<M>,
    block: &Block,
    name_of: &dyn Fn(Tag) -> Option<String>,
) -> BlockSnapshot {
    let (state, holder) = match &block.state {
        State::Allocated(holder) => (BlockState::Allocated, Some(holder)),
        State::Pending { side, .. } => {
            (BlockState::Pending, Some(&arena.waiting[side.index()].holder))
        }
        State::Free(_) | State::Warm | State::Unmapped | State::Vacant => (BlockState::Free, None),
        State::Claimed { .. } => (BlockState::Growing, None),
    };
    BlockSnapshot {
        offset: to_bytes(block.offset),
        size: to_bytes(block.size),
        requested_size: holder.map_or(0, |holder| holder.requested),
        state,
        location: holder.map(|holder| holder.location),
        tag: holder.and_then(|holder| name_of(holder.tag)),
    }
}
