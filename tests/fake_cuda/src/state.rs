//! Everything there is, and the books of the devices.
//!
//! S1: `device.used == sum of plain blocks + sum of pools' reserved + sum of chunks`, each in its
//! rounded size; pinned host memory is not in it.
//! S2: `used <= capacity`, unless the capacity was lowered from outside.

use std::fmt::Display;

use crate::abi::{Answer, Code};
use crate::capture::Graphs;
use crate::faults::Faults;
use crate::kernels::Modules;
use crate::memory::Memory;
use crate::options::Options;
use crate::pools::Pools;
use crate::timeline::Timeline;
use crate::vmm::Space;

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) options: Options,
    /// Which reset this is; contexts and threads of an earlier one are stale.
    pub(crate) epoch: u64,
    pub(crate) initialized: bool,
    pub(crate) devices: Vec<Device>,
    pub(crate) faults: Faults,
    /// The call under way, for the text of a violation.
    pub(crate) symbol: &'static str,
    pub(crate) violations: Vec<String>,
    pub(crate) memory: Memory,
    pub(crate) space: Space,
    pub(crate) pools: Pools,
    pub(crate) timeline: Timeline,
    pub(crate) graphs: Graphs,
    pub(crate) modules: Modules,
    /// How often a plain free waited for the device.
    pub(crate) implicit_syncs: u64,
    /// Attributes that the test has set to something else.
    pub(crate) attributes: Vec<(i32, i32)>,
    handles: u64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Device {
    pub(crate) capacity: u64,
    pub(crate) total: u64,
    pub(crate) used: u64,
    pub(crate) peak: u64,
    /// How often the primary context is retained.
    pub(crate) retains: u64,
    pub(crate) default_pool: u64,
    pub(crate) current_pool: u64,
}

/// The first context; devices and resets count upwards from here.
const CONTEXTS: u64 = 0x00C0_DE00_0000;

impl State {
    /// Back to a driver that nobody has used, with new options.
    pub(crate) fn reset(&mut self, options: Options) {
        self.memory.clear();
        self.space.clear();
        let fresh = State {
            options,
            epoch: self.epoch + 1,
            // Identities and handles go on, so that those of an earlier test are never valid.
            handles: self.handles,
            timeline: Timeline::after(&self.timeline, options.asynchronous),
            ..State::default()
        };
        *self = fresh;
        let total = if options.total == 0 { options.capacity } else { options.total };
        for _ in 0..options.devices.min(4) {
            let pool = self.new_handle();
            self.pools.add_default(pool, self.devices.len());
            self.devices.push(Device {
                capacity: options.capacity,
                total,
                used: 0,
                peak: 0,
                retains: 0,
                default_pool: pool,
                current_pool: pool,
            });
            let device = self.devices.len() - 1;
            self.timeline.add_legacy(device);
        }
    }

    /// Notes a misuse and hands back the code that the driver answers it with.
    pub(crate) fn misuse(&mut self, code: Code, what: impl Display) -> Code {
        self.violations.push(format!("{}: {what} ({})", self.symbol, code.0));
        code
    }

    /// A number that was never a handle; handles look like pointers.
    pub(crate) fn new_handle(&mut self) -> u64 {
        self.handles += 1;
        0x0F00_0000_0000 + self.handles * 16
    }

    pub(crate) fn context_of(&self, device: usize) -> u64 {
        CONTEXTS + self.epoch * 64 + device as u64 * 16
    }

    /// The device of a primary context that is retained.
    pub(crate) fn device_of_context(&self, context: u64) -> Option<usize> {
        let is_alive = |device: &usize| {
            self.context_of(*device) == context && self.devices[*device].retains > 0
        };
        (0..self.devices.len()).find(is_alive)
    }

    /// The device of an ordinal, as an index.
    pub(crate) fn ordinal(&self, ordinal: i32) -> Answer<usize> {
        let index = usize::try_from(ordinal).map_err(|_| Code::INVALID_DEVICE)?;
        if index < self.devices.len() { Ok(index) } else { Err(Code::INVALID_DEVICE) }
    }

    /// Takes bytes of a device, or says that there are not so many.
    pub(crate) fn charge(&mut self, device: usize, bytes: u64) -> Answer {
        let device = &mut self.devices[device];
        let used = device.used.checked_add(bytes).ok_or(Code::OUT_OF_MEMORY)?;
        if used > device.capacity {
            return Err(Code::OUT_OF_MEMORY);
        }
        device.used = used;
        device.peak = device.peak.max(used);
        Ok(())
    }

    /// Counts S1 anew from the tables, and notes where the books say something else.
    pub(crate) fn verify(&mut self) {
        for index in 0..self.devices.len() {
            let used = self.devices[index].used;
            let tables = self.memory.plain_bytes(index)
                + self.pools.reserved_bytes(index)
                + self.space.chunk_bytes(index);
            if used != tables {
                let text = format!("S1: device {index} has {used} bytes in use, not {tables}");
                self.violations.push(text);
            }
        }
    }

    pub(crate) fn refund(&mut self, device: usize, bytes: u64) {
        self.devices[device].used -= bytes;
    }
}
