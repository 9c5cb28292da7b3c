//! One stream's part of the state: its blocks, segments, pools and books. The hot path is here.
//!
//! An arena is what the shell locks for a hit: [`Arena::take_plain`] and [`Arena::free`] (in
//! [`hit`](crate::core::hit)) touch nothing else, so two streams never share a lock, a counter or a
//! cache line. Whatever needs a second arena, or the backend, is the business of
//! [`state`](crate::core::state), which holds all arenas at once.

use std::panic::Location;

use slab::Slab;

use crate::config::Config;
use crate::core::bins::Bins;
use crate::core::block::{Block, Holder, Links, State};
use crate::core::classes::{GROUPS, Group};
use crate::core::hit::Terms;
use crate::core::ledger::{Entry, Ledger};
use crate::core::lifetime::{Mark, Waiting};
use crate::core::pool::{Pool, Traits};
use crate::core::segment::{Segment, merge_next, split};
use crate::core::warm::Warm;
use crate::ds::records::Records;
use crate::id::{AllocationId, ArenaId, BlockId, OwnerId, SegmentId, SideId, Tag};
use crate::units::{Bytes, to_bytes};

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want<'a> {
    /// Bytes, unrounded.
    pub(crate) requested: Bytes,
    /// Granules, rounded.
    pub(crate) size: u32,
    /// Granules the offset must be a multiple of; 1: anything.
    pub(crate) align: u32,
    pub(crate) group: Group,
    pub(crate) owner: OwnerId,
    pub(crate) location: &'static Location<'static>,
    pub(crate) tag: Tag,
    /// Segments in which the block must not lie.
    pub(crate) avoid: &'a [Place],
}

impl Want<'_> {
    /// Who holds what the request gets; `uses` names other streams that use it.
    #[inline]
    pub(crate) fn holder(&self, uses: SideId) -> Holder {
        let Self { requested, location, tag, .. } = *self;
        Holder { requested, location, tag, uses }
    }
}

/// Names a segment among those of all arenas.
pub(crate) type Place = (ArenaId, SegmentId);

/// A block that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) id: AllocationId,
    /// Granules from the segment's start.
    pub(crate) offset: u32,
    /// Granules of the block.
    pub(crate) size: u32,
    /// Device address, or 0 where there are none.
    pub(crate) address: u64,
}

/// What a look into one arena brought.
#[derive(Debug)]
pub(crate) enum Take {
    Granted(Grant),
    /// Nothing fits.
    Miss,
    /// Something fits, but the peaks must be settled first; nothing has changed.
    Unleased,
}

/// What a free leaves to be done with all arenas in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Freed {
    /// The peaks must be settled.
    pub(crate) settle: bool,
    /// The block waits for other streams.
    pub(crate) waits: bool,
    /// Enough frees wait on other streams for their events to be recorded.
    pub(crate) harvest: bool,
    /// Something in a released pool may be given back, or it was the last block of a stream whose
    /// allocator is gone.
    pub(crate) purge: bool,
}

/// One stream's part of the state.
#[derive(Debug)]
pub(crate) struct Arena<M> {
    pub(crate) id: ArenaId,
    pub(crate) terms: Terms,
    pub(crate) blocks: Records<Block>,
    pub(crate) segments: Slab<Segment<M>>,
    /// 0 and 1 are the default owner's small and large pools.
    pub(crate) pools: Vec<Pool>,
    pub(crate) ledger: Ledger,
    pub(crate) warm: Warm,
    /// Streams that use an allocated block besides its own.
    pub(crate) uses: Slab<Vec<ArenaId>>,
    /// What pending blocks wait for.
    pub(crate) waiting: Slab<Waiting>,
    /// Pending blocks that no event covers yet, in order of their free.
    pub(crate) fresh: Vec<BlockId>,
    /// The tick that the next event of this stream will cover.
    pub(crate) open: u64,
    pub(crate) serial: u32,
    /// Misses over all arenas, and the user's time, as of the last time all were in one hand.
    pub(crate) epoch: u64,
    pub(crate) time_us: u64,
    /// Idle segments may be broken up for much smaller requests: headroom is used up, or growing
    /// was refused, since segments came or went last.
    pub(crate) may_break: bool,
    /// The device is gone: nothing is handed out any more.
    pub(crate) lost: bool,
}

impl<M> Arena<M> {
    pub(crate) fn new(id: ArenaId, sole: bool, terms: Terms) -> Self {
        Self {
            id,
            terms,
            blocks: Records::new(),
            segments: Slab::new(),
            pools: GROUPS.map(|g| Pool::new(g, OwnerId::DEFAULT, Traits::default())).into(),
            ledger: Ledger::new(sole),
            warm: Warm::new(),
            uses: Slab::new(),
            waiting: Slab::new(),
            fresh: Vec::new(),
            open: 1,
            serial: 0,
            epoch: 0,
            time_us: 0,
            may_break: false,
            lost: false,
        }
    }

    /// The pool of an owner, if this arena has one already.
    #[inline]
    pub(crate) fn pool_of(&self, owner: OwnerId, group: Group) -> Option<usize> {
        if owner == OwnerId::DEFAULT {
            return Some(group as usize);
        }
        self.pools.iter().position(|pool| pool.owner == owner && pool.group == group)
    }

    /// Hands out (part of) the free block `id` of this arena; `uses` names the stream that borrows
    /// it.
    #[inline]
    pub(crate) fn carve(
        &mut self,
        id: BlockId,
        want: &Want,
        uses: SideId,
        config: &Config,
    ) -> Grant {
        self.carve_cut(id, self.cut_size(id, want, config), want, uses, config)
    }

    /// As [`carve`](Self::carve), of a size that is known already.
    pub(crate) fn carve_cut(
        &mut self,
        id: BlockId,
        cut: u32,
        want: &Want,
        uses: SideId,
        config: &Config,
    ) -> Grant {
        let Block { segment, size: whole, .. } = self.blocks[id.index()];
        let segment = &self.segments[segment.index()];
        let (pool, is_virtual, is_whole) =
            (segment.pool, segment.is_virtual(), whole == segment.size);
        self.pools[pool].free.remove(&mut self.blocks, id);
        let mut id = id;
        let mut rest = whole - cut;
        let mut pieces = Pieces::default();
        if want.align > 1 {
            let start = self.aligned_start(id, want).expect("fit() checked the alignment");
            let pad = start - self.blocks[id.index()].offset;
            if pad > 0 {
                let back = split(&mut self.blocks, id, pad, State::Free(Links::NONE));
                self.insert_free(pool, id, config);
                pieces.add(pad);
                rest -= pad;
                id = back;
            }
        }
        if rest > 0 {
            let back = split(&mut self.blocks, id, cut, State::Free(Links::NONE));
            self.insert_free(pool, back, config);
            pieces.add(rest);
        }
        if !is_virtual {
            if !is_whole {
                pieces.take(whole);
            }
            if pieces != Pieces::default() {
                self.ledger.apply(want.group, pieces.entry());
            }
        }
        self.hand_out(id, want, uses, config)
    }

    /// Marks a block that is in no bin as held by the user.
    #[inline]
    pub(crate) fn hand_out(
        &mut self,
        id: BlockId,
        want: &Want,
        uses: SideId,
        config: &Config,
    ) -> Grant {
        let segment_id = self.blocks[id.index()].segment;
        let segment = &mut self.segments[segment_id.index()];
        let pool = segment.pool;
        segment.busy += 1;
        if segment.busy == 1 && !segment.is_virtual() {
            self.pools[pool].unlink_idle(&mut self.segments, segment_id);
        }
        self.assign(id, want, uses, config)
    }

    /// Makes a block whose segment is busy with it already the user's.
    pub(crate) fn assign(
        &mut self,
        id: BlockId,
        want: &Want,
        uses: SideId,
        config: &Config,
    ) -> Grant {
        let Block { size, segment, .. } = self.blocks[id.index()];
        if config.max_split_size.is_some_and(|max| to_bytes(size) >= max) {
            self.ledger.oversize[0].rise(1);
        }
        let base = self.segments[segment.index()].base;
        self.grant(id, base, want.group, want.holder(uses), Block::OWNED)
    }

    /// As [`assign`](Self::assign), in a segment that begins at `base`, where nothing counts
    /// oversize blocks.
    // Always inline: a hit that is handed through memory waits for its own writes (13 ns).
    #[inline(always)]
    pub(crate) fn grant(
        &mut self,
        id: BlockId,
        base: u64,
        group: Group,
        holder: Holder,
        owned: u32,
    ) -> Grant {
        let serial = self.serial.wrapping_add(1);
        self.serial = serial;
        let requested = holder.requested;
        let block = &mut self.blocks[id.index()];
        block.state = State::Allocated(holder);
        block.serial = serial & AllocationId::SERIAL_MASK | owned;
        let (offset, size) = (block.offset, block.size);
        self.ledger.apply(group, Entry::Allocate { size, requested });
        Grant {
            id: AllocationId::new(self.id, id, serial),
            offset,
            size,
            address: if base == 0 { 0 } else { base + to_bytes(offset) },
        }
    }

    /// The live block that an id names, or `None` if the id is stale.
    #[inline]
    pub(crate) fn live(&self, id: AllocationId) -> Option<(BlockId, &Holder)> {
        let block = self.blocks.get(id.block().index())?;
        match &block.state {
            State::Allocated(holder) if block.serial & AllocationId::SERIAL_MASK == id.serial() => {
                Some((id.block(), holder))
            }
            _ => None,
        }
    }

    /// The segment that a live block lies in.
    pub(crate) fn segment_of_live(&self, id: AllocationId) -> Option<SegmentId> {
        Some(self.blocks[self.live(id)?.0.index()].segment)
    }

    /// The device address of a live block, where there are addresses.
    pub(crate) fn address_of(&self, id: AllocationId) -> Option<u64> {
        let block = &self.blocks[self.live(id)?.0.index()];
        let base = self.segments[block.segment.index()].base;
        (base != 0).then(|| base + to_bytes(block.offset))
    }

    /// Where a live block is, for people (see [`Segment::place`]).
    pub(crate) fn place_of_live(&self, id: AllocationId) -> Option<u64> {
        let block = &self.blocks[self.live(id)?.0.index()];
        Some(self.segments[block.segment.index()].place() + to_bytes(block.offset))
    }

    /// Address and id of every live block without an owner, where there are addresses. O(blocks).
    pub(crate) fn raw_allocations(&self) -> impl Iterator<Item = (u64, AllocationId)> {
        self.blocks.iter().enumerate().filter_map(|(at, block)| {
            let is_raw =
                matches!(block.state, State::Allocated(_)) && block.serial & Block::OWNED == 0;
            let id = AllocationId::new(self.id, BlockId::from_index(at), block.serial);
            Some((self.address_of(id).filter(|_| is_raw)?, id))
        })
    }

    /// The block has no owner from now on: it lives until it is freed by id.
    pub(crate) fn disown(&mut self, id: AllocationId) {
        if let Some((block, _)) = self.live(id) {
            self.blocks[block.index()].serial &= !Block::OWNED;
        }
    }

    /// Whether the id names a live block without an owner.
    pub(crate) fn is_unowned(&self, id: AllocationId) -> bool {
        let block = self.live(id).map(|(block, _)| &self.blocks[block.index()]);
        block.is_some_and(|block| block.serial & Block::OWNED == 0)
    }

    /// A block that other streams use becomes Pending.
    pub(crate) fn suspend(&mut self, id: BlockId, config: &Config) -> Freed {
        let block = &self.blocks[id.index()];
        let State::Allocated(holder) = block.state else {
            panic!("B1 is broken: a block that its user frees is {:?}", block.state);
        };
        let (size, pool) = (block.size, self.segments[block.segment.index()].pool);
        let Pool { group, traits, .. } = self.pools[pool];
        self.ledger.apply(group, Entry::Free { size });
        let marks = self.uses.remove(holder.uses.index());
        let marks = marks.into_iter().map(|stream| Mark { stream, tick: Mark::UNSET }).collect();
        let side = SideId::from_index(self.waiting.insert(Waiting { holder, marks }));
        self.blocks[id.index()].state = State::Pending { links: Links::NONE, side };
        self.pools[pool].pending.insert(&mut self.blocks, &self.segments, id, config.tie_walk);
        self.fresh.push(id);
        let harvest = self.fresh.len() >= config.event_batch_count as usize;
        let (waits, purge) = (config.harvest_every_allocate, traits.released);
        Freed { settle: false, waits, harvest, purge }
    }

    /// No stream uses a block any more that was Pending. It is in no bin.
    pub(crate) fn complete(&mut self, id: BlockId, requested: Bytes, config: &Config) -> Freed {
        let size = self.blocks[id.index()].size;
        self.vacate(id, Entry::Complete { size, requested }, config)
    }

    /// A busy block becomes Free and merges, and `entry` is booked for it. It is in no bin.
    pub(crate) fn vacate(&mut self, id: BlockId, entry: Entry, config: &Config) -> Freed {
        let pool = self.segments[self.blocks[id.index()].segment.index()].pool;
        self.ledger.apply(self.pools[pool].group, entry);
        self.settle_free(id, config)
    }

    /// A block that the books have as free becomes Free and merges.
    #[inline]
    pub(crate) fn settle_free(&mut self, id: BlockId, config: &Config) -> Freed {
        let segment_id = self.blocks[id.index()].segment;
        let segment = &mut self.segments[segment_id.index()];
        segment.busy -= 1;
        let (at, whole, is_virtual) = (segment.pool, segment.size, segment.is_virtual());
        let becomes_idle = segment.busy == 0 && !is_virtual;
        let pool = &mut self.pools[at];
        let (merged, mut pieces) = merge_free(&mut self.blocks, &mut pool.free, id);
        let size = self.blocks[merged.index()].size;
        if size != whole {
            pieces.add(size);
        }
        pool.free.insert(&mut self.blocks, &self.segments, merged, config.tie_walk);
        let (group, released) = (pool.group, pool.traits.released);
        if becomes_idle {
            pool.link_idle(&mut self.segments, segment_id, self.epoch, self.time_us);
        }
        if !is_virtual {
            self.ledger.apply(group, pieces.entry());
        }
        let settle = !self.ledger.splits_are_within_lease(group);
        Freed { settle, waits: false, harvest: false, purge: released }
    }

    /// Makes a block that is in no bin Free: merges it with its free neighbours and puts it in the
    /// bins. Returns the merged block.
    pub(crate) fn make_free(&mut self, id: BlockId, config: &Config) -> BlockId {
        let pool = self.segments[self.blocks[id.index()].segment.index()].pool;
        let bins = &mut self.pools[pool].free;
        let (merged, _) = merge_free(&mut self.blocks, bins, id);
        bins.insert(&mut self.blocks, &self.segments, merged, config.tie_walk);
        merged
    }

    #[inline]
    fn insert_free(&mut self, pool: usize, id: BlockId, config: &Config) {
        self.pools[pool].free.insert(&mut self.blocks, &self.segments, id, config.tie_walk);
    }

    /// Adds a stream to those that use a live block; `None` if the id is stale. The block's own
    /// stream needs no record.
    pub(crate) fn record_stream(&mut self, id: AllocationId, stream: ArenaId) -> Option<()> {
        let (block, holder) = self.live(id)?;
        if stream == self.id {
            return Some(());
        }
        let mut uses = holder.uses;
        if uses.is_none() {
            uses = SideId::from_index(self.uses.insert(Vec::new()));
        }
        let streams = &mut self.uses[uses.index()];
        if !streams.contains(&stream) {
            streams.push(stream);
        }
        if let State::Allocated(holder) = &mut self.blocks[block.index()].state {
            holder.uses = uses;
        }
        Some(())
    }
}

/// A block that is in no bin becomes Free and merges with its free neighbours, which leave the
/// bins. Returns the merged block, in no bin yet, and the pieces that went into it.
#[inline]
fn merge_free(blocks: &mut Records<Block>, bins: &mut Bins, id: BlockId) -> (BlockId, Pieces) {
    let mut pieces = Pieces::default();
    let Block { prev, next, .. } = blocks[id.index()];
    blocks[id.index()].state = State::Free(Links::NONE);
    if let Some(block) = blocks.get(next.index()).filter(|block| block.is_free()) {
        pieces.take(block.size);
        bins.remove(blocks, next);
        merge_next(blocks, id);
    }
    let Some(block) = blocks.get(prev.index()).filter(|block| block.is_free()) else {
        return (id, pieces);
    };
    pieces.take(block.size);
    bins.remove(blocks, prev);
    merge_next(blocks, prev);
    (prev, pieces)
}

/// How the free pieces of partly used segments changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pieces {
    count: i64,
    granules: i64,
}

impl Pieces {
    #[inline]
    pub(crate) fn add(&mut self, size: u32) {
        self.count += 1;
        self.granules += i64::from(size);
    }

    #[inline]
    pub(crate) fn take(&mut self, size: u32) {
        self.count -= 1;
        self.granules -= i64::from(size);
    }

    #[inline]
    pub(crate) fn entry(self) -> Entry {
        Entry::Split { count: self.count, granules: self.granules }
    }
}
