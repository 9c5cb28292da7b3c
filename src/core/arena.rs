//! One stream's part of the state: its blocks, segments, pools and books. The hot path is here.
//!
//! An arena is what the shell locks for a hit: [`Arena::take`] and [`Arena::free`] touch nothing
//! else, so two streams never share a lock, a counter or a cache line. Whatever needs a second
//! arena, or the backend, is the business of [`state`](crate::core::state), which holds all arenas
//! at once.
//!
//! ```text
//!  take:  one of the size that is warm ─ or best fit in the pool's bins ─▶ cut ─▶ Allocated
//!                                        no fit: Miss (the ladder)
//!  free:  Allocated ─▶ small: Warm ─ large: merge with free neighbours ─▶ Free
//!                                        used by other streams: Pending
//! ```
//!
//! What a hit costs (release build, one arena, counters on): through the front cache one block
//! record and 5 gauges each way; through the bins take ≈ 2 bitmap look-ups, 1–2 block records, 5
//! gauges, free ≈ 1–3 block records, 5 gauges. No allocation of node memory: records come from
//! slabs that only grow. O(1).

use std::panic::Location;

use slab::Slab;

use crate::config::Config;
use crate::core::block::{Block, Holder, Links, State};
use crate::core::classes::{GROUPS, Group};
use crate::core::ledger::{Entry, Ledger};
use crate::core::lifetime::{Mark, Waiting};
use crate::core::pool::{Pool, Traits};
use crate::core::segment::{Segment, merge_next, split};
use crate::core::warm::Warm;
use crate::id::{AllocationId, ArenaId, BlockId, OwnerId, SegmentId, SideId, Tag};
use crate::units::{Bytes, to_bytes};

/// Blocks of at most so small a part of the largest small one may wait in the front cache.
const WARM_PARTS: Bytes = 8;

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

/// Names a segment among those of all arenas.
pub(crate) type Place = (ArenaId, SegmentId);

/// A block that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) id: AllocationId,
    pub(crate) segment: SegmentId,
    /// Bytes from the segment's start.
    pub(crate) offset: Bytes,
    /// Bytes of the block.
    pub(crate) size: Bytes,
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
    pub(crate) blocks: Slab<Block>,
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
    /// The device is gone: nothing is handed out any more.
    pub(crate) lost: bool,
}

impl<M> Arena<M> {
    pub(crate) fn new(id: ArenaId, sole: bool) -> Self {
        Self {
            id,
            blocks: Slab::new(),
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

    /// A block for `want` out of this arena's own pool, if one fits. O(1).
    #[inline]
    pub(crate) fn take(&mut self, want: &Want, config: &Config) -> Take {
        let Some(pool) = self.pool_of(want.owner, want.group) else { return Take::Miss };
        self.pools[pool].searches += 1;
        if let Some(taken) = self.take_warm(pool, want, config) {
            return taken;
        }
        if let Some(id) = self.fit(pool, want, config).filter(|_| !self.lost) {
            return self.take_free(id, want, config);
        }
        if self.warm.is_empty() { Take::Miss } else { self.take_merged(pool, want, config) }
    }

    /// The last look before a miss: what is warm may fit when it has merged.
    #[cold]
    fn take_merged(&mut self, pool: usize, want: &Want, config: &Config) -> Take {
        self.settle_warm(config);
        if !self.ledger.splits_are_within_lease() {
            return Take::Unleased;
        }
        match self.fit(pool, want, config).filter(|_| !self.lost) {
            Some(id) => self.take_free(id, want, config),
            None => Take::Miss,
        }
    }

    /// Takes (part of) a free block, if the peaks allow it.
    #[inline]
    fn take_free(&mut self, id: BlockId, want: &Want, config: &Config) -> Take {
        let cut = self.cut_size(id, want, config);
        if !self.ledger.sole && !self.is_leased(id, cut, want) {
            return Take::Unleased;
        }
        Take::Granted(self.carve_cut(id, cut, want, SideId::NONE, config))
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
    #[inline]
    fn carve_cut(
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
    // Always inline: a hit that is handed through memory waits for its own writes (13 ns).
    #[inline(always)]
    pub(crate) fn assign(
        &mut self,
        id: BlockId,
        want: &Want,
        uses: SideId,
        config: &Config,
    ) -> Grant {
        self.serial = self.serial.wrapping_add(1);
        let serial = self.serial;
        let Want { requested, location, tag, .. } = *want;
        let block = &mut self.blocks[id.index()];
        block.state = State::Allocated(Holder { requested, location, tag, uses });
        block.serial = serial | Block::OWNED;
        let (offset, size, segment) = (to_bytes(block.offset), block.size, block.segment);
        let base = self.segments[segment.index()].base;
        self.ledger.apply(want.group, Entry::Allocate { size, requested });
        if config.max_split_size.is_some_and(|max| to_bytes(size) >= max) {
            self.ledger.oversize[0].rise(1);
        }
        Grant {
            id: AllocationId::new(self.id, id, serial),
            segment,
            offset,
            size: to_bytes(size),
            address: if base == 0 { 0 } else { base + offset },
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

    /// The device address of a live block, where there are addresses.
    pub(crate) fn address_of(&self, id: AllocationId) -> Option<u64> {
        let block = &self.blocks[self.live(id)?.0.index()];
        let base = self.segments[block.segment.index()].base;
        (base != 0).then(|| base + to_bytes(block.offset))
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

    /// The user lets go of a block; `None` if the id is stale, and nothing has changed. O(1).
    #[inline]
    pub(crate) fn free(&mut self, id: AllocationId, config: &Config) -> Option<Freed> {
        let (id, holder) = self.live(id)?;
        let (requested, is_used) = (holder.requested, !holder.uses.is_none());
        let block = &mut self.blocks[id.index()];
        block.tick = self.open;
        let size = block.size;
        if config.max_split_size.is_some_and(|max| to_bytes(size) >= max) {
            self.ledger.oversize[0].fall(1);
        }
        if is_used {
            return Some(self.suspend(id, config));
        }
        let entry = Entry::Return { size, requested };
        if config.front_cache && to_bytes(size) <= config.small_max / WARM_PARTS {
            return Some(self.keep_warm(id, entry, config));
        }
        Some(self.vacate(id, entry, config))
    }

    /// A block that other streams use becomes Pending.
    fn suspend(&mut self, id: BlockId, config: &Config) -> Freed {
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
    #[inline]
    fn vacate(&mut self, id: BlockId, entry: Entry, config: &Config) -> Freed {
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
        let (pool, is_virtual) = (segment.pool, segment.is_virtual());
        let becomes_idle = segment.busy == 0 && !is_virtual;
        let Pool { group, traits, .. } = self.pools[pool];
        let (_, pieces) = self.make_free(id, config);
        if !is_virtual && pieces != Pieces::default() {
            self.ledger.apply(group, pieces.entry());
        }
        if becomes_idle {
            let pool = &mut self.pools[pool];
            pool.link_idle(&mut self.segments, segment_id, self.epoch, self.time_us);
        }
        Freed {
            settle: !self.ledger.splits_are_within_lease(),
            waits: false,
            harvest: false,
            purge: traits.released,
        }
    }

    /// Makes a block that is in no bin Free: merges it with its free neighbours and puts it in the
    /// bins. Returns the merged block and what changed among the free pieces of its segment.
    #[inline]
    pub(crate) fn make_free(&mut self, id: BlockId, config: &Config) -> (BlockId, Pieces) {
        let mut pieces = Pieces::default();
        let Block { segment, prev, next, .. } = self.blocks[id.index()];
        let pool = self.segments[segment.index()].pool;
        self.blocks[id.index()].state = State::Free(Links::NONE);
        let bins = &mut self.pools[pool].free;
        if self.blocks.get(next.index()).is_some_and(Block::is_free) {
            bins.remove(&mut self.blocks, next);
            pieces.take(self.blocks[next.index()].size);
            merge_next(&mut self.blocks, id);
        }
        let mut id = id;
        if self.blocks.get(prev.index()).is_some_and(Block::is_free) {
            bins.remove(&mut self.blocks, prev);
            pieces.take(self.blocks[prev.index()].size);
            merge_next(&mut self.blocks, prev);
            id = prev;
        }
        let size = self.blocks[id.index()].size;
        if size != self.segments[segment.index()].size {
            pieces.add(size);
        }
        self.insert_free(pool, id, config);
        (id, pieces)
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
