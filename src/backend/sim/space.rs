//! The simulated device's addresses and bytes: what is allocated, reserved and mapped where.
//!
//! Addresses are unbounded and go to the lowest gap that fits, as a runtime does that hands out its
//! lowest free range: a run is the same every time, and a freed address comes back. Capacity counts
//! bytes only; physical memory has no fragmentation.
//!
//! ```text
//!   BASE      segment                 range of addresses
//!    |=====================|.........|▒▒▒▒▒▒▒▒|........|▒▒▒▒|...........|
//!                            gap      mapping   hole    mapping
//! ```
//!
//! Invariants:
//!
//! - P1: ranges do not overlap; mappings lie inside their range and do not overlap.
//! - P2: `used == sum(segments) + sum(chunks, mapped or not)`; only `create` and `allocate` look at
//!   the capacity.
//! - P3: `mapped == sum(mappings)`.
//!
//! Whoever breaks the rules of the contract gets a panic with the rule in it: the caller is the
//! allocator's core, and a wrong call is a bug there.

use std::collections::BTreeMap;

use crate::units::Bytes;

/// The first address: not zero, and a multiple of every sensible granularity.
const BASE: u64 = 1 << 40;

/// Addresses in use.
#[derive(Debug)]
struct Range {
    size: Bytes,
    /// `None` for a segment: all of it is backed. Else what is mapped, by offset.
    mappings: Option<BTreeMap<Bytes, Mapping>>,
}

#[derive(Debug)]
struct Mapping {
    size: Bytes,
    accessible: bool,
}

#[derive(Debug)]
pub(super) struct Space {
    ranges: BTreeMap<u64, Range>,
    granularity: Bytes,
    pub(super) capacity: Bytes,
    pub(super) used: Bytes,
    pub(super) peak: Bytes,
    pub(super) mapped: Bytes,
    /// Chunks that exist, mapped or not.
    pub(super) chunks: u64,
}

impl Space {
    pub(super) fn new(capacity: Bytes, granularity: Bytes) -> Self {
        let ranges = BTreeMap::new();
        Self { ranges, granularity, capacity, used: 0, peak: 0, mapped: 0, chunks: 0 }
    }

    /// A backed segment; `None` if the device is full.
    pub(super) fn allocate(&mut self, size: Bytes) -> Option<u64> {
        self.check_size("allocate", size);
        self.charge(size)?;
        Some(self.place(Range { size, mappings: None }))
    }

    /// Addresses without memory.
    pub(super) fn reserve(&mut self, size: Bytes) -> u64 {
        self.check_size("reserve", size);
        self.place(Range { size, mappings: Some(BTreeMap::new()) })
    }

    /// Gives a segment or a range of addresses back. After a loss, mappings vanish with the device.
    pub(super) fn free(&mut self, address: u64, device_lost: bool) {
        let mapped = self.ranges.get(&address).and_then(|range| range.mappings.as_ref());
        let mapped_count = mapped.map_or(0, BTreeMap::len);
        assert!(
            mapped_count == 0 || device_lost,
            "sim: free of the range at {address:#x} with {mapped_count} chunks still mapped in it; \
             unmap them first"
        );
        let Some(range) = self.ranges.remove(&address) else {
            panic!("sim: free of {address:#x}, where nothing is allocated");
        };
        let Some(mappings) = range.mappings else {
            self.used -= range.size;
            return;
        };
        for mapping in mappings.into_values() {
            self.mapped -= mapping.size;
            self.release(mapping.size);
        }
    }

    /// Memory for a chunk; `None` if the device is full.
    pub(super) fn create(&mut self, size: Bytes) -> Option<()> {
        self.check_size("create", size);
        self.charge(size)?;
        self.chunks += 1;
        Some(())
    }

    /// Gives the memory of one chunk back.
    pub(super) fn release(&mut self, size: Bytes) {
        self.chunks -= 1;
        self.used -= size;
    }

    pub(super) fn map(&mut self, address: u64, offset: Bytes, size: Bytes) {
        self.check_span("map", address, offset, size);
        let mappings = self.mappings("map", address);
        let before = mappings.range(..=offset).next_back();
        let clash = before.is_some_and(|(&at, mapping)| at + mapping.size > offset)
            || mappings.range(offset..offset + size).next().is_some();
        assert!(
            !clash,
            "sim: map of {size} bytes at {address:#x} + {offset}: mapped twice, there is a chunk \
             already"
        );
        mappings.insert(offset, Mapping { size, accessible: false });
        self.mapped += size;
    }

    pub(super) fn set_access(&mut self, address: u64, offset: Bytes, size: Bytes) {
        self.check_span("set_access", address, offset, size);
        let mappings = self.mappings("set_access", address);
        let mut at = offset;
        while at < offset + size {
            let Some(mapping) = mappings.get(&at) else {
                panic!(
                    "sim: set_access to {size} bytes at {address:#x} + {offset}: not fully mapped, \
                     no chunk begins at offset {at}"
                );
            };
            at += mapping.size;
        }
        assert!(
            at == offset + size,
            "sim: set_access to {size} bytes at {address:#x} + {offset} ends inside a chunk, which \
             goes on until offset {at}"
        );
        for mapping in mappings.range_mut(offset..at).map(|(_, mapping)| mapping) {
            mapping.accessible = true;
        }
    }

    /// Takes a mapping out and returns the size of its chunk.
    pub(super) fn unmap(&mut self, address: u64, offset: Bytes) -> Bytes {
        let mappings = self.mappings("unmap", address);
        let Some(mapping) = mappings.remove(&offset) else {
            let before = mappings.range(..offset).next_back();
            let inside = before.is_some_and(|(&at, mapping)| at + mapping.size > offset);
            let fact =
                if inside { "that is the inside of a chunk" } else { "nothing is mapped there" };
            panic!("sim: unmap at {address:#x} + {offset}: {fact}; name the start of a mapping");
        };
        self.mapped -= mapping.size;
        mapping.size
    }

    /// Whether all of `address..address + size` is backed, and open to the device.
    pub(super) fn is_accessible(&self, address: u64, size: Bytes) -> bool {
        let Some((&start, range)) = self.ranges.range(..=address).next_back() else {
            return false;
        };
        let end = (address - start).saturating_add(size);
        let Some(mappings) = &range.mappings else { return end <= range.size };
        let first = mappings.range(..=address - start).next_back();
        let mut at = first.map_or(address - start, |(&offset, _)| offset);
        while at < end {
            match mappings.get(&at) {
                Some(mapping) if mapping.accessible => at += mapping.size,
                _ => return false,
            }
        }
        true
    }

    /// Live segments, without ranges of addresses.
    pub(super) fn segment_count(&self) -> u64 {
        self.ranges.values().filter(|range| range.mappings.is_none()).count() as u64
    }

    /// Live ranges of addresses.
    pub(super) fn range_count(&self) -> u64 {
        self.ranges.len() as u64 - self.segment_count()
    }

    fn charge(&mut self, size: Bytes) -> Option<()> {
        let used = self.used.checked_add(size).filter(|&used| used <= self.capacity)?;
        self.used = used;
        self.peak = self.peak.max(used);
        Some(())
    }

    /// First fit, ascending: O(live ranges).
    fn place(&mut self, range: Range) -> u64 {
        let mut address = BASE;
        for (&start, taken) in &self.ranges {
            if start - address >= range.size {
                break;
            }
            address = start + taken.size;
        }
        self.ranges.insert(address, range);
        address
    }

    fn mappings(&mut self, call: &str, address: u64) -> &mut BTreeMap<Bytes, Mapping> {
        let range = self.ranges.get_mut(&address);
        let Some(mappings) = range.and_then(|range| range.mappings.as_mut()) else {
            panic!("sim: {call} in {address:#x}, which is no range of addresses but a segment");
        };
        mappings
    }

    fn check_span(&self, call: &str, address: u64, offset: Bytes, size: Bytes) {
        self.check_size(call, size);
        let granularity = self.granularity;
        assert!(
            offset.is_multiple_of(granularity),
            "sim: {call} at offset {offset}, no multiple of the granularity, {granularity}"
        );
        let range = self.ranges.get(&address).map_or(0, |range| range.size);
        let end = offset.checked_add(size);
        assert!(
            end.is_some_and(|end| end <= range),
            "sim: {call} of {size} bytes at offset {offset} ends behind the range of {range} bytes"
        );
    }

    fn check_size(&self, call: &str, size: Bytes) {
        let granularity = self.granularity;
        assert!(
            size > 0 && size.is_multiple_of(granularity),
            "sim: {call} of {size} bytes, no multiple of the granularity, {granularity}, or zero"
        );
    }
}
