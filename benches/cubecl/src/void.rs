//! The questions of the crate's own benches (`hit`, `mixed`, `fragmented`, `replay`) with CubeCL's
//! memory management as the rival, over a device that is nothing but addresses: neither needs a
//! GPU, and what is measured is the policy alone.
//!
//! `MemoryManagement` is the real one, as published (0.12.0-pre.1), with its default configuration
//! (`Adaptive`), pages of up to a quarter of 80 GiB, as its CUDA runtime has on such a device, and
//! an alignment of 512 B. A request checks for relocation first, as its server does; copies cost
//! nothing here. Its client, channel and server come on top for its users, and are not counted; it
//! has no lock, no streams and no statistics.
//!
//! Traces are told as sizes: streams, uses and markers are left out for both. *Peak / live* is the
//! most bytes held of the device over the most that were live.
//!
//! `cargo bench --manifest-path benches/cubecl/Cargo.toml --bench void`; arguments and
//! `AQUIFER_TRACES` as for all benches. Two cores shared with other programs: ratios repeat within
//! 10 %.

#[path = "../../harness/mod.rs"]
mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aquifer::trace::Trace;
use cubecl_ir::MemoryDeviceProperties;
use cubecl_server::logging::ServerLogger;
use cubecl_server::memory_management::relocation::{CopyQueue, StorageCopy};
use cubecl_server::memory_management::{
    ErrorGraph, ManagedMemoryHandle, MemoryConfiguration, MemoryManagement,
    MemoryManagementOptions, PageUpdate,
};
use cubecl_server::server::{IoError, ServerError};
use cubecl_server::storage::{ComputeStorage, StorageHandle, StorageId, StorageUtilization};
use harness::contest::{Contender, Field, Lane, Needs, Scene};
use harness::own::{self, Own};
use harness::steps::Steps;
use harness::{Run, scenes, take_double_turns};

const ALIGNMENT: u64 = 512;
const PAGE_MAX: u64 = 20 << 30;

/// The most live blocks and holes, as powers of ten: its searches are linear, and take their time
/// beyond.
const LIVE_EXPONENT_MAX: u32 = 4;
const HOLES_EXPONENT_MAX: u32 = 3;

/// The most rounds of a trace, for the same reason.
const ROUNDS_MAX: usize = 3;

fn main() {
    let run = Run::new("beside CubeCL 0.12.0-pre.1");
    scenes::hit(run, &BesideCubecl);
    scenes::mixed(run, &BesideCubecl, LIVE_EXPONENT_MAX);
    scenes::fragmented(run, &BesideCubecl, HOLES_EXPONENT_MAX);
    replay(run.section("replay, sizes only"));
}

/// This crate and CubeCL.
struct BesideCubecl;

impl Field for BesideCubecl {
    fn lanes(&self, scene: &impl Scene) -> Vec<Lane> {
        let mut lanes = own::lanes(scene);
        lanes.push(Lane { who: "CubeCL", timed: scene.set(Cubecl::new()) });
        lanes
    }
}

fn replay(run: Run) {
    run.heading(&[
        "cold ns",
        "warm ns",
        "CubeCL cold",
        "CubeCL warm",
        "ratio, warm",
        "peak/live",
        "CubeCL p/l",
        "peak ratio",
    ]);
    for (name, path) in harness::traces::traces() {
        let trace = match Trace::open(&path) {
            Ok(trace) => trace,
            Err(error) => {
                eprintln!("traces: {}: {error}", path.display());
                continue;
            }
        };
        let steps = Steps::new(&trace);
        let live = trace.summary().peak_live_bytes as f64;
        let (mut peak, mut rival_peak) = (0, 0);
        let mut own = || {
            let mut memory = Own::new(Needs { bytes: 0, blocks: 0, streams: 1 });
            let cold = steps.run(&mut memory);
            peak = memory.reserved_peak();
            [cold, steps.run(&mut memory)].map(|each| each.unwrap_or(f64::NAN))
        };
        let mut rival = || {
            let mut memory = Cubecl::new();
            let cold = steps.run(&mut memory);
            rival_peak = memory.peak.load(Ordering::Relaxed);
            [cold, steps.run(&mut memory)].map(|each| each.unwrap_or(f64::NAN))
        };
        let rounds = harness::traces::rounds(run, trace.events.len()).min(ROUNDS_MAX);
        let turns: [&mut dyn FnMut() -> [f64; 2]; 2] = [&mut own, &mut rival];
        let [cold, warm] = take_double_turns(rounds, &mut turns.map(|turn| move || turn()));
        let figures = [
            ("cold_ns", cold[0].min()),
            ("warm_ns", warm[0].min()),
            ("cubecl_cold_ns", cold[1].min()),
            ("cubecl_warm_ns", warm[1].min()),
            ("ratio_warm", warm[0].over(&warm[1]).median()),
            ("peak_over_live", peak as f64 / live),
            ("cubecl_peak_over_live", rival_peak as f64 / live),
            ("peak_ratio", peak as f64 / rival_peak as f64),
        ];
        run.result(&name, &figures);
    }
}

/// CubeCL's memory management over nothing.
struct Cubecl {
    memory: MemoryManagement<Addresses>,
    failures: ErrorGraph,
    /// The most bytes it ever held.
    peak: Arc<AtomicU64>,
}

impl Cubecl {
    fn new() -> Self {
        let peak = Arc::new(AtomicU64::new(0));
        let storage = Addresses { held: Vec::new(), bytes: 0, peak: peak.clone() };
        let memory = MemoryManagement::from_configuration(
            storage,
            &MemoryDeviceProperties::new(PAGE_MAX, ALIGNMENT),
            MemoryConfiguration::default(),
            Arc::new(ServerLogger::default()),
            MemoryManagementOptions::new("Main GPU Memory"),
        );
        Self { memory, failures: ErrorGraph::default(), peak }
    }
}

impl Contender for Cubecl {
    type Block = ManagedMemoryHandle;

    fn allocate(&mut self, size: u64) -> Option<ManagedMemoryHandle> {
        let memory = &mut self.memory;
        if let Some(reason) = memory.relocation_need().reason(|| memory.bytes_allocated()) {
            memory.relocate(&mut Copies, reason, &mut self.failures);
        }
        memory.reserve(size, PageUpdate::Allow, &mut self.failures).ok()
    }

    fn free(&mut self, block: ManagedMemoryHandle) {
        drop(block);
    }
}

/// Storage without bytes. It has few pages, so that a search among them costs nothing.
struct Addresses {
    held: Vec<(StorageId, u64)>,
    bytes: u64,
    peak: Arc<AtomicU64>,
}

impl ComputeStorage for Addresses {
    type Resource = ();

    fn alignment(&self) -> usize {
        ALIGNMENT as usize
    }

    fn get(&mut self, _: &StorageHandle) -> Result<(), IoError> {
        Ok(())
    }

    fn alloc(&mut self, size: u64) -> Result<StorageHandle, IoError> {
        let id = StorageId::new();
        self.held.push((id, size));
        self.bytes += size;
        self.peak.fetch_max(self.bytes, Ordering::Relaxed);
        Ok(StorageHandle::new(id, StorageUtilization { offset: 0, size }))
    }

    fn dealloc(&mut self, id: StorageId) {
        if let Some(at) = self.held.iter().position(|(held, _)| *held == id) {
            self.bytes -= self.held.swap_remove(at).1;
        }
    }

    fn flush(&mut self) {}

    fn bytes_allocated(&self) -> u64 {
        self.bytes
    }
}

/// Copies of a relocation, done at once.
struct Copies;

impl CopyQueue<Addresses> for Copies {
    fn wait_device(&mut self) -> Result<(), ServerError> {
        Ok(())
    }

    fn copy(&mut self, _: &mut Addresses, _: &StorageCopy) -> Result<(), IoError> {
        Ok(())
    }

    fn wait_copies(&mut self) -> Result<(), ServerError> {
        Ok(())
    }
}
