//! The free blocks of a pool by size: exact best fit in constant time.
//!
//! ```text
//! granules   octave 0: 0 … 1023   octave k ≥ 1: 2⁹⁺ᵏ … 2¹⁰⁺ᵏ − 1, 1,024 classes of 2ᵏ⁻¹ sizes
//!
//! occupied   ..0 1 0 1               one bit an octave
//!                │   └─▶ Bitmap ─▶ heads[slot] ─▶ (2,930) ⇄ (2,931) ⇄ …  heads of a class, by size
//!                └─────▶ Bitmap        │
//!                                   chain: blocks of that very size, older ones first
//! ```
//!
//! Below 1 MiB every class is one size (octaves 0 and 1), so a search is two bitmap look-ups.
//! Above, a class spans less than 0.1 % of its size, and holds at most (device / size) blocks: the
//! walk over its heads is a few steps in practice and at most some hundred on an 80 GiB device.
//!
//! Numbered invariants, checked by [`Bins::verify`]:
//! - B1: a block is in the bins of its pool ⇔ its state says so (Free in `free`, Pending in
//!   `pending`).
//! - B2: every block reached from a head is in that state, and its size belongs to the head's
//!   class.
//! - B3: heads of a class ascend strictly by size; members of a chain have their head's size.
//! - B4: slot bit set ⇔ its list is not empty; octave bit set ⇔ its bitmap is not empty.
//!
//! The layout is two-level segregated fit (Masmano et al., ECRTS 2004) with classes fine enough
//! that good fit becomes best fit.

use slab::Slab;

use crate::core::block::{Block, Links};
use crate::core::segment::{Segment, is_older};
use crate::ds::bitmap::{Bitmap, SLOTS};
use crate::ds::records::Records;
use crate::id::BlockId;

const SLOT_BITS: u32 = SLOTS.ilog2();
const OCTAVES: usize = (u32::BITS - SLOT_BITS + 1) as usize;

/// Blocks in order of size.
#[derive(Debug)]
pub(crate) struct Bins {
    occupied: u32,
    octaves: [Option<Box<Octave>>; OCTAVES],
}

#[derive(Debug)]
struct Octave {
    slots: Bitmap,
    heads: [BlockId; SLOTS],
}

impl Octave {
    #[cold]
    fn new() -> Box<Self> {
        Box::new(Self { slots: Bitmap::new(), heads: [BlockId::NONE; SLOTS] })
    }
}

/// A class: octave and slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Class {
    octave: usize,
    slot: usize,
}

impl Class {
    #[inline]
    fn of(size: u32) -> Self {
        let bits = u32::BITS - size.leading_zeros();
        if bits <= SLOT_BITS {
            return Self { octave: 0, slot: size as usize };
        }
        let octave = bits - SLOT_BITS;
        let slot = (size >> (octave - 1)) as usize - SLOTS;
        Self { octave: octave as usize, slot }
    }
}

impl Bins {
    pub(crate) fn new() -> Self {
        Self { occupied: 0, octaves: [const { None }; OCTAVES] }
    }

    /// The smallest block of at least `size` granules; among equals the head of the chain.
    #[inline]
    pub(crate) fn best_fit(&self, blocks: &Records<Block>, size: u32) -> Option<BlockId> {
        if self.occupied == 0 {
            return None;
        }
        let class = Class::of(size);
        if let Some(octave) = &self.octaves[class.octave] {
            let mut slot = class.slot;
            // Octaves 0 and 1 have a class for each size: whatever is in there fits.
            if class.octave > 1 && octave.slots.contains(slot) {
                let mut at = octave.heads[slot];
                while !at.is_none() {
                    let block = &blocks[at.index()];
                    if block.size >= size {
                        return Some(at);
                    }
                    at = block.links().next;
                }
                slot += 1;
            }
            if let Some(slot) = octave.slots.first_from(slot) {
                return Some(octave.heads[slot]);
            }
        }
        self.first_of_octaves_after(class.octave)
    }

    /// The smallest block of the octaves above `octave`.
    #[inline]
    fn first_of_octaves_after(&self, octave: usize) -> Option<BlockId> {
        let later = self.occupied & (!0 << 1 << octave);
        if later == 0 {
            return None;
        }
        let octave = self.octaves[later.trailing_zeros() as usize].as_deref();
        let octave = octave.expect("B4: an occupied octave exists");
        octave.slots.first_from(0).map(|slot| octave.heads[slot])
    }

    /// The next block in order of size: the rest of the chain, then the next head.
    pub(crate) fn after(&self, blocks: &Records<Block>, id: BlockId) -> Option<BlockId> {
        let block = &blocks[id.index()];
        let links = block.links();
        let in_chain = if links.member { links.next } else { links.twin };
        if !in_chain.is_none() {
            return Some(in_chain);
        }
        self.best_fit(blocks, block.size.checked_add(1)?)
    }

    /// The largest block. Walks the heads of the highest class.
    pub(crate) fn largest(&self, blocks: &Records<Block>) -> Option<BlockId> {
        let octave = self.octaves[self.occupied.checked_ilog2()? as usize].as_deref()?;
        let slot = (0..SLOTS).rev().find(|&slot| octave.slots.contains(slot))?;
        let mut at = octave.heads[slot];
        loop {
            let next = blocks[at.index()].links().next;
            if next.is_none() {
                return Some(at);
            }
            at = next;
        }
    }

    /// Puts a block in, whose links are [`Links::NONE`]. Of the chain of its size the first `walk`
    /// members are compared by age, so that older segments and lower offsets are handed out first;
    /// behind them order is by arrival.
    #[inline]
    pub(crate) fn insert<M>(
        &mut self,
        blocks: &mut Records<Block>,
        segments: &Slab<Segment<M>>,
        id: BlockId,
        walk: u32,
    ) {
        let class = Class::of(blocks[id.index()].size);
        self.occupied |= 1 << class.octave;
        let octave = self.octaves[class.octave].get_or_insert_with(Octave::new);
        let head = &mut octave.heads[class.slot];
        if head.is_none() {
            *head = id;
            octave.slots.set(class.slot);
        } else {
            insert_in_class(blocks, segments, head, id, walk);
        }
    }

    /// Takes a block out; its links are [`Links::NONE`] again.
    #[inline]
    pub(crate) fn remove(&mut self, blocks: &mut Records<Block>, id: BlockId) {
        let block = &blocks[id.index()];
        let class = Class::of(block.size);
        let links = block.links();
        let is_alone = links.prev.is_none() && links.next.is_none() && links.twin.is_none();
        if !is_alone {
            let links = std::mem::replace(blocks[id.index()].links_mut(), Links::NONE);
            return self.remove_from_class(blocks, id, class, links);
        }
        let octave = self.octaves[class.octave].as_deref_mut();
        let octave = octave.expect("B4: the octave of a block in the bins exists");
        octave.heads[class.slot] = BlockId::NONE;
        octave.slots.clear(class.slot);
        if octave.slots.is_empty() {
            self.occupied &= !(1 << class.octave);
        }
    }

    /// Takes out a block, known by its old links, that shares its class with others.
    fn remove_from_class(
        &mut self,
        blocks: &mut Records<Block>,
        id: BlockId,
        class: Class,
        links: Links,
    ) {
        if links.member {
            return unlink_member(blocks, id, links);
        }
        let successor = match links.twin {
            BlockId::NONE => links.next,
            twin => {
                promote(blocks, twin, links);
                twin
            }
        };
        if links.twin.is_none() && !links.next.is_none() {
            blocks[links.next.index()].links_mut().prev = links.prev;
        }
        if !links.prev.is_none() {
            blocks[links.prev.index()].links_mut().next = successor;
            return;
        }
        let octave = self.octaves[class.octave].as_deref_mut();
        let octave = octave.expect("B4: the octave of a block in the bins exists");
        octave.heads[class.slot] = successor;
    }

    /// Checks B2 to B4 and returns the number of blocks.
    ///
    /// # Panics
    /// If one is broken, naming it.
    pub(crate) fn verify(&self, blocks: &Records<Block>) -> usize {
        let mut count = 0;
        for (index, octave) in self.octaves.iter().enumerate() {
            let occupied = self.occupied >> index & 1 == 1;
            let Some(octave) = octave else {
                assert!(!occupied, "B4 is broken: octave {index} is marked but absent");
                continue;
            };
            assert_eq!(occupied, !octave.slots.is_empty(), "B4 is broken: octave {index}");
            for slot in 0..SLOTS {
                let head = octave.heads[slot];
                assert_eq!(octave.slots.contains(slot), !head.is_none(), "B4 is broken: {slot}");
                count += verify_class(blocks, head, Class { octave: index, slot });
            }
        }
        count
    }
}

/// Checks one class's lists; returns how many blocks they hold.
fn verify_class(blocks: &Records<Block>, head: BlockId, class: Class) -> usize {
    let (mut count, mut at, mut before) = (0, head, BlockId::NONE);
    while !at.is_none() {
        let block = &blocks[at.index()];
        let links = block.links();
        assert!(!links.member, "B3 is broken: a member {at:?} among the heads");
        assert_eq!(links.prev, before, "B3 is broken: {at:?} does not know its predecessor");
        assert_eq!(Class::of(block.size), class, "B2 is broken: {at:?} is in a foreign class");
        if !before.is_none() {
            assert!(blocks[before.index()].size < block.size, "B3 is broken: heads out of order");
        }
        count += 1;
        let (mut member, mut last) = (links.twin, at);
        while !member.is_none() {
            let twin = blocks[member.index()].links();
            assert!(twin.member && twin.prev == last, "B3 is broken: chain of {at:?}");
            assert_eq!(blocks[member.index()].size, block.size, "B3 is broken: size of {member:?}");
            count += 1;
            (last, member) = (member, twin.next);
        }
        (before, at) = (at, links.next);
    }
    count
}

/// Puts `id` among the blocks of a class that is not empty, whose list begins at `first`.
fn insert_in_class<M>(
    blocks: &mut Records<Block>,
    segments: &Slab<Segment<M>>,
    first: &mut BlockId,
    id: BlockId,
    walk: u32,
) {
    let size = blocks[id.index()].size;
    let (mut before, mut at) = (BlockId::NONE, *first);
    while !at.is_none() && blocks[at.index()].size < size {
        before = at;
        at = blocks[at.index()].links().next;
    }
    if !at.is_none() && blocks[at.index()].size == size {
        if !is_older(blocks, segments, id, at) {
            return insert_member(blocks, segments, at, id, walk);
        }
        replace_head(blocks, at, id);
    } else {
        let links = blocks[id.index()].links_mut();
        (links.prev, links.next) = (before, at);
        if !at.is_none() {
            blocks[at.index()].links_mut().prev = id;
        }
    }
    match before {
        BlockId::NONE => *first = id,
        before => blocks[before.index()].links_mut().next = id,
    }
}

/// Hangs `id` into the chain of `head`, whose size it has.
fn insert_member<M>(
    blocks: &mut Records<Block>,
    segments: &Slab<Segment<M>>,
    head: BlockId,
    id: BlockId,
    walk: u32,
) {
    let mut before = head;
    let mut at = blocks[head.index()].links().twin;
    let mut steps = 1;
    while steps < walk && !at.is_none() && is_older(blocks, segments, at, id) {
        before = at;
        at = blocks[at.index()].links().next;
        steps += 1;
    }
    let links = blocks[id.index()].links_mut();
    (links.prev, links.next, links.twin, links.member) = (before, at, BlockId::NONE, true);
    if !at.is_none() {
        blocks[at.index()].links_mut().prev = id;
    }
    let predecessor = blocks[before.index()].links_mut();
    if before == head {
        predecessor.twin = id;
    } else {
        predecessor.next = id;
    }
}

/// Makes `id` the head of the chain that `head` led; `head` becomes its first member.
fn replace_head(blocks: &mut Records<Block>, head: BlockId, id: BlockId) {
    let old = *blocks[head.index()].links();
    let links = blocks[id.index()].links_mut();
    (links.prev, links.next, links.twin, links.member) = (old.prev, old.next, head, false);
    if !old.next.is_none() {
        blocks[old.next.index()].links_mut().prev = id;
    }
    let links = blocks[head.index()].links_mut();
    (links.prev, links.next, links.twin, links.member) = (id, old.twin, BlockId::NONE, true);
    if !old.twin.is_none() {
        blocks[old.twin.index()].links_mut().prev = head;
    }
}

/// Makes the first member of a chain the head in the place of the one with `links`.
fn promote(blocks: &mut Records<Block>, twin: BlockId, links: Links) {
    let chain = blocks[twin.index()].links().next;
    let head = blocks[twin.index()].links_mut();
    (head.prev, head.next, head.twin, head.member) = (links.prev, links.next, chain, false);
    if !chain.is_none() {
        blocks[chain.index()].links_mut().prev = twin;
    }
    if !links.next.is_none() {
        blocks[links.next.index()].links_mut().prev = twin;
    }
}

/// Takes a member out of its chain.
fn unlink_member(blocks: &mut Records<Block>, id: BlockId, links: Links) {
    if !links.next.is_none() {
        blocks[links.next.index()].links_mut().prev = links.prev;
    }
    let before = blocks[links.prev.index()].links_mut();
    if !before.member && before.twin == id {
        before.twin = links.next;
    } else {
        before.next = links.next;
    }
}

#[cfg(test)]
mod tests;
