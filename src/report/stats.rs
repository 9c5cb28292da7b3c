//! Statistics under PyTorch's names: every key of `torch.cuda.memory_stats`.
//!
//! A gauge has four numbers: what is there now, the most there ever was since the last
//! `reset_peak_memory_stats`, and what came (`allocated`) and left (`freed`) since the last
//! `reset_accumulated_memory_stats`. Peaks of `all` are peaks of the sum, not sums of peaks.

use std::collections::BTreeMap;

use crate::core::ledger::{ALL, Counter, GAUGES, Gauge as Column, Table};
use crate::core::state::World;
use crate::id::PoolId;

/// One gauge: bytes or counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gauge {
    /// Now.
    pub current: u64,
    /// The most since the last reset of the peaks.
    pub peak: u64,
    /// What came since the last reset of the totals.
    pub allocated: u64,
    /// What left since the last reset of the totals.
    pub freed: u64,
}

/// A gauge over all pools, and apart for the small and the large ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolGauges {
    /// Both together.
    pub all: Gauge,
    /// Blocks of at most 1 MiB (`Config::small_max`).
    pub small_pool: Gauge,
    /// Larger blocks.
    pub large_pool: Gauge,
}

/// All statistics of an allocator, taken at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Blocks in users' hands.
    pub allocation: PoolGauges,
    /// Fixed segments from the backend (virtual ones are not counted, as in PyTorch).
    pub segment: PoolGauges,
    /// Blocks in users' hands, or freed and still used by a stream.
    pub active: PoolGauges,
    /// Free pieces of partly used fixed segments.
    pub inactive_split: PoolGauges,
    /// Bytes of blocks in users' hands.
    pub allocated_bytes: PoolGauges,
    /// Bytes held from the backend.
    pub reserved_bytes: PoolGauges,
    /// Bytes of active blocks.
    pub active_bytes: PoolGauges,
    /// Bytes of the free pieces of partly used fixed segments.
    pub inactive_split_bytes: PoolGauges,
    /// Bytes that users asked for, of active blocks.
    pub requested_bytes: PoolGauges,
    /// Blocks of at least `max_split_size`.
    pub oversize_allocations: Gauge,
    /// Segments of at least `max_split_size`.
    pub oversize_segments: Gauge,
    /// Requests that had to give the whole cache back first.
    pub num_alloc_retries: u64,
    /// Requests that failed for want of memory.
    pub num_ooms: u64,
    /// Requests refused before the backend was asked (`Config::reject_before_driver`).
    pub num_oom_rejections: u64,
    /// Times that all streams with pending blocks were waited for.
    pub num_sync_all_streams: u64,
    /// Segments got from the backend.
    pub num_device_alloc: u64,
    /// Segments given back to it.
    pub num_device_free: u64,
    /// In bytes, or −1 for unlimited.
    pub max_split_size: i64,
    /// Reserved bytes of each private pool, by [`PoolId`]; pools that are gone stay, with `current`
    /// 0.
    pub reserved_bytes_by_private_pools: BTreeMap<PoolId, PoolGauges>,
}

/// A node of [`MemoryStats::nested`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nested {
    /// A number.
    Number(i64),
    /// More, by name.
    Map(BTreeMap<String, Nested>),
}

impl Gauge {
    fn of(counter: Counter) -> Self {
        Self {
            current: counter.current,
            peak: counter.peak,
            allocated: counter.risen,
            freed: counter.fallen,
        }
    }

    fn each(&self) -> [(&'static str, u64); 4] {
        [
            ("current", self.current),
            ("peak", self.peak),
            ("allocated", self.allocated),
            ("freed", self.freed),
        ]
    }
}

impl PoolGauges {
    fn of(counters: [Counter; 3]) -> Self {
        let [small_pool, large_pool, all] = counters.map(Gauge::of);
        Self { all, small_pool, large_pool }
    }

    fn each(&self) -> [(&'static str, Gauge); 3] {
        [("all", self.all), ("large_pool", self.large_pool), ("small_pool", self.small_pool)]
    }
}

impl MemoryStats {
    fn gauges(&self) -> [(&'static str, &PoolGauges); GAUGES] {
        [
            ("allocation", &self.allocation),
            ("segment", &self.segment),
            ("active", &self.active),
            ("inactive_split", &self.inactive_split),
            ("allocated_bytes", &self.allocated_bytes),
            ("reserved_bytes", &self.reserved_bytes),
            ("active_bytes", &self.active_bytes),
            ("inactive_split_bytes", &self.inactive_split_bytes),
            ("requested_bytes", &self.requested_bytes),
        ]
    }

    /// PyTorch's flat keys (`allocated_bytes.all.current`, …), sorted.
    pub fn flat(&self) -> BTreeMap<String, i64> {
        let mut flat = BTreeMap::new();
        flatten(&mut flat, "", &self.nested());
        flat
    }

    /// The same as nested maps, as `memory_stats_as_nested_dict` gives them. A private pool's key
    /// is `a_b` for its id (a, b).
    pub fn nested(&self) -> Nested {
        let mut map = BTreeMap::new();
        for (name, gauges) in self.gauges() {
            map.insert(name.into(), nest_pools(gauges));
        }
        map.insert("oversize_allocations".into(), nest_gauge(&self.oversize_allocations));
        map.insert("oversize_segments".into(), nest_gauge(&self.oversize_segments));
        for (name, count) in [
            ("num_alloc_retries", self.num_alloc_retries),
            ("num_ooms", self.num_ooms),
            ("num_oom_rejections", self.num_oom_rejections),
            ("num_sync_all_streams", self.num_sync_all_streams),
            ("num_device_alloc", self.num_device_alloc),
            ("num_device_free", self.num_device_free),
        ] {
            map.insert(name.into(), Nested::Number(count as i64));
        }
        map.insert("max_split_size".into(), Nested::Number(self.max_split_size));
        let pools = &self.reserved_bytes_by_private_pools;
        let pools =
            pools.iter().map(|(id, gauges)| (format!("{}_{}", id.0, id.1), nest_pools(gauges)));
        map.insert("reserved_bytes_by_private_pools".into(), Nested::Map(pools.collect()));
        Nested::Map(map)
    }
}

fn nest_gauge(gauge: &Gauge) -> Nested {
    let numbers = gauge.each().map(|(name, value)| (name.into(), Nested::Number(value as i64)));
    Nested::Map(numbers.into())
}

fn nest_pools(gauges: &PoolGauges) -> Nested {
    Nested::Map(gauges.each().map(|(name, gauge)| (name.into(), nest_gauge(&gauge))).into())
}

fn flatten(flat: &mut BTreeMap<String, i64>, prefix: &str, node: &Nested) {
    match node {
        Nested::Number(number) => {
            flat.insert(prefix.to_owned(), *number);
        }
        Nested::Map(map) => {
            for (name, node) in map {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(flat, &key, node);
            }
        }
    }
}

/// Reads all counters with every arena in hand: one moment, exact sums.
pub(crate) fn collect<M, E: Clone>(world: &World<'_, M, E>) -> MemoryStats {
    let peaks = world.peaks();
    let pools = |column: Column| pool_gauges(world, &peaks, column as usize);
    let counts = world.global.counts;
    let owners = world.global.owners.iter().skip(1).map(|owner| (owner.pool_id, owner.reserved));
    let gone = world.global.gone_pools.iter().copied();
    MemoryStats {
        allocation: pools(Column::Allocation),
        segment: pools(Column::Segment),
        active: pools(Column::Active),
        inactive_split: pools(Column::InactiveSplit),
        allocated_bytes: pools(Column::AllocatedBytes),
        reserved_bytes: pools(Column::ReservedBytes),
        active_bytes: pools(Column::ActiveBytes),
        inactive_split_bytes: pools(Column::InactiveSplitBytes),
        requested_bytes: pools(Column::RequestedBytes),
        oversize_allocations: oversize(world, 0),
        oversize_segments: oversize(world, 1),
        num_alloc_retries: counts.alloc_retries,
        num_ooms: counts.ooms,
        num_oom_rejections: counts.oom_rejections,
        num_sync_all_streams: counts.sync_all_streams,
        num_device_alloc: counts.device_alloc,
        num_device_free: counts.device_free,
        max_split_size: world.config.max_split_size.map_or(-1, |size| size as i64),
        reserved_bytes_by_private_pools: gone
            .chain(owners)
            .map(|(id, counters)| (id, PoolGauges::of(counters)))
            .collect(),
    }
}

fn pool_gauges<M, E: Clone>(world: &World<'_, M, E>, peaks: &Table, column: usize) -> PoolGauges {
    let gauge = |row: usize| {
        let mut gauge = Gauge { peak: peaks[row][column], ..Gauge::default() };
        for arena in &world.arenas {
            let (allocated, freed) = arena.ledger.moved(row, column);
            gauge.current += arena.ledger.now(row, column);
            gauge.allocated += allocated;
            gauge.freed += freed;
        }
        gauge
    };
    PoolGauges { all: gauge(ALL), small_pool: gauge(0), large_pool: gauge(1) }
}

fn oversize<M, E: Clone>(world: &World<'_, M, E>, which: usize) -> Gauge {
    let mut sum = Gauge::default();
    for arena in &world.arenas {
        let gauge = Gauge::of(arena.ledger.oversize[which]);
        // Kept for each stream alone, so the peak over several streams is an upper bound.
        sum.current += gauge.current;
        sum.peak += gauge.peak;
        sum.allocated += gauge.allocated;
        sum.freed += gauge.freed;
    }
    sum
}
