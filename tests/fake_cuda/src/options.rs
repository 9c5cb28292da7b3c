//! What the fake device is like. The fake and its client compile this same file: it is the contract
//! between them, so it uses nothing but the language.

/// Bytes of one MiB.
pub(crate) const MIB: u64 = 1 << 20;

/// What the driver and its devices are like; [`Options::default`] is a sound H100 of 1 GiB.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    /// How many devices there are, 0 to 4; 1. None: `cuInit` answers 100.
    pub(crate) devices: u32,
    /// What `cuDriverGetVersion` tells; 13000.
    pub(crate) driver_version: i32,
    /// Compute capability; 9.0.
    pub(crate) compute_major: i32,
    /// See `compute_major`.
    pub(crate) compute_minor: i32,
    /// Bytes that each device can hand out; 1 GiB. Pages that nobody touches cost nothing.
    pub(crate) capacity: u64,
    /// Bytes that each device says it has; 0: the same as `capacity`.
    pub(crate) total: u64,
    /// Granularity of chunks and of reserved addresses, a power of two; 2 MiB.
    pub(crate) granularity: u64,
    /// Whether work waits in its stream until the test moves it on; no.
    pub(crate) asynchronous: bool,
    /// Attribute 102, and whether the calls work; yes.
    pub(crate) virtual_memory: bool,
    /// Attribute 103, and whether chunks can be exported; yes.
    pub(crate) posix_handles: bool,
    /// Attribute 115, and whether the calls work; yes.
    pub(crate) pools: bool,
    /// Attribute 18; no.
    pub(crate) integrated: bool,
    /// Whether `cuStreamGetId` works; yes. Otherwise it answers 801: a symbol cannot disappear.
    pub(crate) stream_ids: bool,
    /// Whether this is the stub that the toolkit ships to link against: all calls answer 34; no.
    pub(crate) stub: bool,
    /// Whether addresses that were given back stay unused, so that stale ones are always caught;
    /// no: as with the real driver, the next allocation may get them.
    pub(crate) fresh_addresses: bool,
    /// Whether the order of calls is written down; yes.
    pub(crate) log: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            devices: 1,
            driver_version: 13000,
            compute_major: 9,
            compute_minor: 0,
            capacity: 1024 * MIB,
            total: 0,
            granularity: 2 * MIB,
            asynchronous: false,
            virtual_memory: true,
            posix_handles: true,
            pools: true,
            integrated: false,
            stream_ids: true,
            stub: false,
            fresh_addresses: false,
            log: true,
        }
    }
}

/// What the test can ask a number of; the second argument is the device where it says so.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Number {
    /// Fallible calls since the reset.
    FallibleCalls = 0,
    /// Bytes in use on a device.
    Used = 1,
    /// The most bytes ever in use on a device.
    Peak = 2,
    /// How often a plain free waited for the device.
    ImplicitSyncs = 3,
    /// Operations that have been executed.
    Executed = 4,
    /// Operations that wait in any stream.
    Pending = 5,
    /// File descriptors that the fake itself holds.
    Files = 6,
    /// Retained primary contexts.
    Contexts = 7,
    /// Plain device allocations and those from pools.
    Allocations = 8,
    /// Pinned host allocations.
    HostAllocations = 9,
    /// References to chunks by handle.
    Chunks = 10,
    /// Mappings.
    Mappings = 11,
    /// Reserved address ranges.
    Reservations = 12,
    /// Pools, default ones apart.
    Pools = 13,
    /// Streams, default ones apart.
    Streams = 14,
    /// Events.
    Events = 15,
    /// Graphs and executable graphs.
    Graphs = 16,
    /// Modules.
    Modules = 17,
    /// Captures under way.
    Captures = 18,
}

/// What the test can ask lines of.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lines {
    /// The violations; they are taken.
    Violations = 0,
    /// The calls in order, each with its main argument; they are taken.
    Log = 1,
    /// How often each symbol was called since the reset.
    Calls = 2,
}
