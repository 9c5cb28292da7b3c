//! What is published of an allocator: names, units, meanings and values.
//!
//! Names follow Prometheus: a unit at the end, and `_total` for what only rises. Totals are over
//! the allocator's life, whoever resets the statistics.

use crate::core::ledger::{ALL, Gauge};
use crate::core::scopes::{Flow, Totals};
use crate::core::state::World;
use crate::units::Bytes;

/// One number with its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    /// Bytes, or a count.
    pub(crate) is_bytes: bool,
    pub(crate) value: u64,
}

/// What rises and falls, and what only rises.
#[derive(Debug)]
pub(crate) struct Samples {
    pub(crate) gauges: Vec<Sample>,
    pub(crate) counters: Vec<Sample>,
}

fn bytes(name: &'static str, value: Bytes, help: &'static str) -> Sample {
    Sample { name, help, is_bytes: true, value }
}

fn count(name: &'static str, value: u64, help: &'static str) -> Sample {
    Sample { name, help, is_bytes: false, value }
}

/// What ever left.
fn left(flow: Flow) -> u64 {
    flow.came - flow.now
}

/// All samples at one moment. O(streams).
pub(crate) fn collect<M, E: Clone>(world: &mut World<'_, M, E>) -> Samples {
    world.settle();
    Samples { gauges: gauges(world), counters: counters(world) }
}

fn gauges<M, E: Clone>(world: &World<'_, M, E>) -> Vec<Sample> {
    let peaks = world.peaks()[ALL];
    let now = |gauge| world.total(gauge);
    let peak = |gauge: Gauge| peaks[gauge as usize];
    let (allocated, active) = (now(Gauge::AllocatedBytes), now(Gauge::ActiveBytes));
    let mut gauges = vec![
        bytes("aquifer_requested_bytes", now(Gauge::RequestedBytes), "Asked for by users."),
        bytes("aquifer_allocated_bytes", allocated, "In users' hands, blocks counted whole."),
        bytes("aquifer_active_bytes", active, "In users' hands, or freed and still in use."),
        bytes("aquifer_pending_bytes", active - allocated, "Freed and still used by a stream."),
        bytes("aquifer_reserved_bytes", now(Gauge::ReservedBytes), "Held from the device."),
        bytes(
            "aquifer_inactive_split_bytes",
            now(Gauge::InactiveSplitBytes),
            "Free pieces of partly used segments.",
        ),
        bytes(
            "aquifer_allocated_peak_bytes",
            peak(Gauge::AllocatedBytes),
            "The most in users' hands since the last reset of the peaks.",
        ),
        bytes(
            "aquifer_reserved_peak_bytes",
            peak(Gauge::ReservedBytes),
            "The most held from the device since the last reset of the peaks.",
        ),
        count("aquifer_allocations", now(Gauge::Allocation), "Blocks in users' hands."),
        count("aquifer_segments", now(Gauge::Segment), "Fixed segments held from the device."),
    ];
    if let Some(limit) = world.global.limit {
        gauges.push(bytes("aquifer_limit_bytes", limit, "Limit on what is held."));
    }
    if let Some(total) = world.device.total {
        gauges.push(bytes("aquifer_device_bytes", total, "The device's memory."));
    }
    gauges
}

fn counters<M, E: Clone>(world: &World<'_, M, E>) -> Vec<Sample> {
    let Totals { allocations, allocated_bytes, reserved_bytes } = world.totals();
    let counts = world.global.lifetime_counts();
    vec![
        count("aquifer_allocations_total", allocations.came, "Allocations made."),
        count("aquifer_frees_total", left(allocations), "Allocations freed."),
        bytes("aquifer_allocated_bytes_total", allocated_bytes.came, "Bytes allocated."),
        bytes("aquifer_freed_bytes_total", left(allocated_bytes), "Bytes freed."),
        bytes("aquifer_grown_bytes_total", reserved_bytes.came, "Bytes got from the device."),
        bytes("aquifer_returned_bytes_total", left(reserved_bytes), "Bytes given back to it."),
        count("aquifer_device_allocs_total", counts.device_alloc, "Segments got from the device."),
        count("aquifer_device_frees_total", counts.device_free, "Segments given back to it."),
        count(
            "aquifer_alloc_retries_total",
            counts.alloc_retries,
            "Requests that had to give the whole cache back first.",
        ),
        count("aquifer_ooms_total", counts.ooms, "Requests that failed for want of memory."),
        count(
            "aquifer_oom_rejections_total",
            counts.oom_rejections,
            "Requests refused before the device was asked.",
        ),
        count(
            "aquifer_sync_all_streams_total",
            counts.sync_all_streams,
            "Times that all streams with pending blocks were waited for.",
        ),
    ]
}
