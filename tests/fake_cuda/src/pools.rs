//! Stream-ordered pools: books only, as the memory itself comes from the host block by block.
//!
//! ```text
//!   reserved ├───────── used ─────────┼──────── cached ────────┤    taken from the device
//!                live      freeing        ready for anybody
//! ```
//!
//! P1: `reserved` is in the books of the device, and grows by whole granules.
//! P2: bytes whose free has not been executed count as used, but the next allocation in the same
//! stream may have them: that is the order that the stream gives.
//! P3: when the host has waited for something, a pool gives back what is cached above its
//! threshold.

use std::collections::BTreeMap;

use crate::abi::{Answer, Code};
use crate::memory::{ALIGNMENT, Kind};
use crate::state::State;

/// What a pool takes from the device at once.
const GRANULE: u64 = 2 << 20;

#[derive(Debug, Default)]
pub(crate) struct Pools {
    pub(crate) pools: BTreeMap<u64, Pool>,
}

#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub(crate) device: usize,
    pub(crate) is_default: bool,
    threshold: u64,
    bytes_max: u64,
    reserved: u64,
    reserved_high: u64,
    used: u64,
    used_high: u64,
    /// `CU_MEMPOOL_ATTR_REUSE_…` 1, 2 and 3.
    reuse: [i32; 3],
    /// Bytes whose free waits in a stream, by stream.
    freeing: BTreeMap<u64, u64>,
}

impl Pools {
    pub(crate) fn add_default(&mut self, handle: u64, device: usize) {
        self.add(handle, device, 0);
        if let Some(pool) = self.pools.get_mut(&handle) {
            pool.is_default = true;
        }
    }

    pub(crate) fn add(&mut self, handle: u64, device: usize, bytes_max: u64) {
        let pool = Pool { device, bytes_max, reuse: [1; 3], ..Pool::default() };
        self.pools.insert(handle, pool);
    }

    /// A block has left the pool's use; its bytes stay cached.
    pub(crate) fn given_back(&mut self, handle: u64, bytes: u64) {
        if let Some(pool) = self.pools.get_mut(&handle) {
            pool.used -= bytes;
        }
    }

    /// A free of a block has been put into a stream, or has been reached there.
    pub(crate) fn freeing(&mut self, handle: u64, stream: u64, bytes: u64, is_reached: bool) {
        let Some(pool) = self.pools.get_mut(&handle) else { return };
        let waiting = pool.freeing.entry(stream).or_insert(0);
        if is_reached {
            *waiting = waiting.saturating_sub(bytes);
        } else {
            *waiting += bytes;
        }
    }

    /// Bytes that the pools of a device have taken from it.
    pub(crate) fn reserved_bytes(&self, device: usize) -> u64 {
        let of_device = self.pools.values().filter(|pool| pool.device == device);
        of_device.map(|pool| pool.reserved).sum()
    }

    pub(crate) fn count(&self) -> u64 {
        self.pools.values().filter(|pool| !pool.is_default).count() as u64
    }
}

/// What an attribute holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attribute {
    Int(i32),
    Long(u64),
}

impl State {
    pub(crate) fn pool(&mut self, handle: u64) -> Answer<&mut Pool> {
        if !self.pools.pools.contains_key(&handle) {
            return Err(self.misuse(Code::INVALID_VALUE, format!("{handle:#x} is no pool")));
        }
        self.pools.pools.get_mut(&handle).ok_or(Code::INVALID_VALUE)
    }

    /// Memory of a pool in the order of `stream`.
    pub(crate) fn pool_allocate(&mut self, handle: u64, len: u64, stream: u64) -> Answer<u64> {
        if len == 0 {
            return Err(self.misuse(Code::INVALID_VALUE, "an allocation of no bytes"));
        }
        let size = len.checked_next_multiple_of(ALIGNMENT).ok_or(Code::OUT_OF_MEMORY)?;
        let pool = self.pool(handle)?;
        let device = pool.device;
        let own = pool.freeing.get(&stream).copied().unwrap_or(0);
        let needed =
            (pool.used - own.min(pool.used)).checked_add(size).ok_or(Code::OUT_OF_MEMORY)?;
        let growth = needed.saturating_sub(pool.reserved).next_multiple_of(GRANULE);
        if pool.bytes_max > 0 && pool.reserved + growth > pool.bytes_max {
            return Err(Code::OUT_OF_MEMORY);
        }
        self.charge(device, growth)?;
        let start = self
            .add_block(device, len, Kind::Pool(handle))
            .inspect_err(|_| self.refund(device, growth))?;
        let pool = self.pool(handle)?;
        pool.reserved += growth;
        pool.reserved_high = pool.reserved_high.max(pool.reserved);
        pool.used += size;
        pool.used_high = pool.used_high.max(pool.used);
        Ok(start)
    }

    /// Gives back what a pool has cached above `keep` bytes.
    pub(crate) fn trim_pool(&mut self, handle: u64, keep: u64) -> Answer {
        let pool = self.pool(handle)?;
        let floor = pool.used.max(keep.min(pool.reserved)).next_multiple_of(GRANULE);
        let floor = floor.min(pool.reserved);
        let (device, bytes) = (pool.device, pool.reserved - floor);
        pool.reserved = floor;
        self.refund(device, bytes);
        Ok(())
    }

    /// P3: what every synchronisation with the host ends with.
    pub(crate) fn trim_pools(&mut self) {
        let keep: Vec<(u64, u64)> =
            self.pools.pools.iter().map(|(handle, pool)| (*handle, pool.threshold)).collect();
        for (handle, threshold) in keep {
            let trimmed = self.trim_pool(handle, threshold);
            debug_assert_eq!(trimmed, Ok(()));
        }
    }

    pub(crate) fn destroy_pool(&mut self, handle: u64) -> Answer {
        let pool = self.pool(handle)?;
        let (device, reserved, is_default) = (pool.device, pool.reserved, pool.is_default);
        if is_default {
            return Err(self.misuse(Code::INVALID_VALUE, "the default pool stays"));
        }
        if self.memory.blocks.values().any(|block| block.kind == Kind::Pool(handle)) {
            return Err(self.misuse(Code::INVALID_VALUE, "the pool still has allocations"));
        }
        self.pools.pools.remove(&handle);
        self.refund(device, reserved);
        let default = self.devices[device].default_pool;
        if self.devices[device].current_pool == handle {
            self.devices[device].current_pool = default;
        }
        Ok(())
    }
}

impl Pool {
    pub(crate) fn attribute(&self, attribute: u32) -> Answer<Attribute> {
        Ok(match attribute {
            1..=3 => Attribute::Int(self.reuse[attribute as usize - 1]),
            4 => Attribute::Long(self.threshold),
            5 => Attribute::Long(self.reserved),
            6 => Attribute::Long(self.reserved_high),
            7 => Attribute::Long(self.used.min(self.reserved)),
            8 => Attribute::Long(self.used_high),
            _ => return Err(Code::INVALID_VALUE),
        })
    }

    pub(crate) fn set_attribute(&mut self, attribute: u32, value: Attribute) -> Answer {
        match (attribute, value) {
            (1..=3, Attribute::Int(value)) => self.reuse[attribute as usize - 1] = value,
            (4, Attribute::Long(value)) => self.threshold = value,
            (6, Attribute::Long(0)) => self.reserved_high = self.reserved,
            (8, Attribute::Long(0)) => self.used_high = self.used,
            _ => return Err(Code::INVALID_VALUE),
        }
        Ok(())
    }
}
