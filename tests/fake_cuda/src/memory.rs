//! Plain device memory, pinned host memory, and the blocks of pools; and who may touch what.
//!
//! ```text
//!   mapping of the host:   base                                             base + room
//!                           ├─ 512 ─┼───────── len ──────────┼─── slack ───┤
//!   block:                          start                     start + len
//! ```
//!
//! Small blocks start 512 bytes into a page, so that nobody comes to rely on more alignment than
//! the driver promises; large ones (1 MiB and more) are aligned to 2 MiB.
//!
//! M1: blocks do not overlap each other, nor a reserved range of addresses.
//! M2: an access is good if it lies within one block, or within mappings that follow each other
//! without a hole and that the device may access.

use std::collections::BTreeMap;

use crate::abi::{Answer, Code};
use crate::entry::Driver;
use crate::os::{self, PAGE, Protection};
use crate::state::State;

/// What the driver promises of an address.
pub(crate) const ALIGNMENT: u64 = 512;

/// From here on blocks are aligned like pages of the device.
const LARGE: u64 = 1 << 20;
const LARGE_ALIGNMENT: u64 = 2 << 20;

#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// By first address.
    pub(crate) blocks: BTreeMap<u64, Block>,
    /// Host mappings of what was freed while addresses must stay unused.
    retired: Vec<(u64, u64)>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    /// As asked for: one byte more is out of bounds.
    pub(crate) len: u64,
    pub(crate) kind: Kind,
    pub(crate) device: usize,
    /// Whether a stream-ordered free of it is under way.
    pub(crate) is_freeing: bool,
    base: u64,
    room: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    Host,
    /// With the handle of the pool.
    Pool(u64),
}

impl Block {
    /// Bytes in the books.
    pub(crate) fn size(&self) -> u64 {
        self.len.next_multiple_of(ALIGNMENT)
    }
}

impl Memory {
    /// The block that holds `address`.
    pub(crate) fn find(&self, address: u64) -> Option<(u64, &Block)> {
        let (start, block) = self.blocks.range(..=address).next_back()?;
        (address - start < block.len).then_some((*start, block))
    }

    /// Whether all of a range of the host is pinned.
    pub(crate) fn is_pinned(&self, address: u64, len: u64) -> bool {
        self.find(address).is_some_and(|(start, block)| {
            block.kind == Kind::Host && address - start + len <= block.len
        })
    }

    /// Gives all host pages back.
    pub(crate) fn clear(&mut self) {
        for (_, block) in std::mem::take(&mut self.blocks) {
            os::give_back(block.base, block.room);
        }
        for (start, len) in std::mem::take(&mut self.retired) {
            os::give_back(start, len);
        }
    }

    /// Bytes of plain memory in the books of a device.
    pub(crate) fn plain_bytes(&self, device: usize) -> u64 {
        let is_plain = |block: &&Block| block.kind == Kind::Plain && block.device == device;
        self.blocks.values().filter(is_plain).map(Block::size).sum()
    }

    pub(crate) fn count(&self, is_host: bool) -> u64 {
        self.blocks.values().filter(|block| (block.kind == Kind::Host) == is_host).count() as u64
    }
}

impl State {
    /// Host pages for a block; the books are the caller's business.
    pub(crate) fn add_block(&mut self, device: usize, len: u64, kind: Kind) -> Answer<u64> {
        let (offset, alignment) =
            if len < LARGE { (ALIGNMENT, PAGE) } else { (0, LARGE_ALIGNMENT) };
        let room = len.checked_add(offset).and_then(|room| room.checked_next_multiple_of(PAGE));
        let room = room.ok_or(Code::OUT_OF_MEMORY)?;
        let base = os::pages(room, alignment, Protection::ReadWrite).ok_or(Code::OUT_OF_MEMORY)?;
        let block = Block { len, kind, device, is_freeing: false, base, room };
        self.memory.blocks.insert(base + offset, block);
        Ok(base + offset)
    }

    /// Takes a block out of the table and its bytes out of the books.
    pub(crate) fn remove_block(&mut self, start: u64) -> Option<Block> {
        let block = self.memory.blocks.remove(&start)?;
        if self.options.fresh_addresses {
            os::blank(block.base, block.room);
            self.memory.retired.push((block.base, block.room));
        } else {
            os::give_back(block.base, block.room);
        }
        match block.kind {
            Kind::Plain => self.refund(block.device, block.size()),
            Kind::Pool(pool) => self.pools.given_back(pool, block.size()),
            Kind::Host => {}
        }
        Some(block)
    }

    pub(crate) fn allocate(&mut self, device: usize, len: u64) -> Answer<u64> {
        if len == 0 {
            return Err(self.misuse(Code::INVALID_VALUE, "an allocation of no bytes"));
        }
        let size = len.checked_next_multiple_of(ALIGNMENT).ok_or(Code::OUT_OF_MEMORY)?;
        self.charge(device, size)?;
        self.add_block(device, len, Kind::Plain).inspect_err(|_| self.refund(device, size))
    }

    /// The device memory block that starts at `start` and belongs to `device`, to be freed.
    pub(crate) fn freeable(&mut self, device: usize, start: u64) -> Answer<Block> {
        let Some(block) = self.memory.blocks.get(&start).copied() else {
            let inside = self.memory.find(start).is_some();
            let what = if inside { "an address inside of memory" } else { "no memory" };
            return Err(self.misuse(Code::INVALID_VALUE, format!("free of {start:#x}: {what}")));
        };
        let wrong = match block {
            Block { kind: Kind::Host, .. } => "pinned host memory",
            Block { is_freeing: true, .. } => "freed already",
            _ if block.device != device => "memory of another device than the current one",
            _ => return Ok(block),
        };
        Err(self.misuse(Code::INVALID_VALUE, format!("free of {start:#x}: {wrong}")))
    }

    /// Whether `device` may touch a range now; the error says why not. No device: the host of a
    /// test, which may touch whatever anybody may.
    pub(crate) fn reach(
        &self,
        device: Option<usize>,
        address: u64,
        len: u64,
    ) -> Result<(), String> {
        let fail = |why: &str| Err(format!("{len} bytes at {address:#x}: {why}"));
        let Some(end) = address.checked_add(len) else { return fail("past the end of addresses") };
        let Some((start, block)) = self.memory.find(address) else {
            return self.space.reach(device, address, end).or_else(|why| fail(&why));
        };
        let is_foreign = device.is_some_and(|device| device != block.device);
        match block.kind {
            _ if end - start > block.len => fail("out of bounds"),
            Kind::Plain | Kind::Pool(_) if is_foreign => fail("memory of another device"),
            _ => Ok(()),
        }
    }
}

impl Driver {
    /// `cuMemFree`: waits for the device if the memory is plain, and only for that.
    pub(crate) fn free(&mut self, start: u64) -> Answer {
        let device = self.device;
        let block = self.freeable(device, start)?;
        if block.kind == Kind::Plain {
            self.implicit_syncs += 1;
            self.finish_device(device)?;
        } else {
            self.note_pending(start, block.len, None, "memory of a pool");
        }
        self.remove_block(start);
        Ok(())
    }

    pub(crate) fn free_host(&mut self, start: u64) -> Answer {
        let block = self.memory.blocks.get(&start).copied();
        let Some(Block { kind: Kind::Host, .. }) = block else {
            let text = format!("free of {start:#x}: no pinned memory starts here");
            return Err(self.misuse(Code::INVALID_VALUE, text));
        };
        self.implicit_syncs += 1;
        for device in 0..self.devices.len() {
            self.finish_device(device)?;
        }
        self.remove_block(start);
        Ok(())
    }

    /// A violation if queued work still touches a range that goes away. `before`: work that was
    /// submitted earlier than this counts, all if `None`.
    pub(crate) fn note_pending(&mut self, start: u64, len: u64, before: Option<u64>, what: &str) {
        if let Some(work) = self.timeline.pending(start, len, before) {
            let symbol = self.symbol;
            let text = format!("{symbol}: {what} goes while it is still to be touched by {work}");
            self.violations.push(text);
        }
    }
}
