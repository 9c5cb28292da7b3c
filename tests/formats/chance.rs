//! Allocators with a past, for the writers: programs by chance over every kind of device.

use aquifer::backend::{Backend, Host};
use aquifer::report::snapshot::Snapshot;
use aquifer::{Allocation, Allocator, Config, HistoryOptions, PoolOptions};

use crate::support::{
    MIB, Rng, asynchronous_sim, asynchronous_virtual_sim, configured, expandable, sim, virtual_sim,
};

/// A program of so many steps: its snapshot at the end.
pub(crate) fn run<B: Backend<Stream = u32>>(
    allocator: &Allocator<B>,
    options: HistoryOptions,
    (seed, steps): (u64, u64),
) -> Snapshot {
    let mut rng = Rng::new(seed);
    let tags = ["model", "optimizer", "a \"quoted\"\n name\u{1f30a}"].map(|tag| allocator.tag(tag));
    let streams = [0, 1, 2].map(|raw| allocator.stream(raw));
    let pool = allocator.create_pool(PoolOptions::default());
    let mut held: Vec<Allocation<B>> = Vec::new();
    // What is there before the history begins has no events.
    held.extend((0..rng.below(20)).filter_map(|_| allocator.allocate(rng.size(4 * MIB)).ok()));
    allocator.record_history(options);
    for step in 0..steps {
        match rng.below(20) {
            0..9 => {
                let mut request = allocator.request(rng.size(8 * MIB));
                request = request.on(&streams[rng.below(3) as usize]);
                if let Some(&tag) = tags.get(rng.below(6) as usize) {
                    request = request.tag(tag);
                }
                if rng.below(5) == 0 {
                    request = request.pool(&pool);
                }
                held.extend(request.allocate());
            }
            9 => {
                let _ = allocator.allocate(1 << 40);
            }
            10 if !held.is_empty() => {
                let one = rng.below(held.len() as u64) as usize;
                allocator.record_stream(&held[one], &streams[rng.below(3) as usize]);
            }
            11 => drop(allocator.empty_cache()),
            12 => allocator.annotate(format!("step {step}")),
            13 => drop(allocator.memory_snapshot()),
            _ if !held.is_empty() => {
                held.swap_remove(rng.below(held.len() as u64) as usize);
            }
            _ => {}
        }
    }
    let snapshot = allocator.memory_snapshot();
    allocator.stop_history();
    snapshot
}

/// Snapshots of programs over all kinds of devices.
pub(crate) fn snapshots(seed: u64, steps: u64, options: &HistoryOptions) -> Vec<Snapshot> {
    let still = configured(|config| {
        config.expandable_segments = true;
        config.page_recycling = false;
    });
    let (program, options) = ((seed, steps), || options.clone());
    vec![
        run(&Allocator::new(sim(64 * MIB), Config::default()), options(), program),
        run(&Allocator::new(virtual_sim(64 * MIB), expandable()), options(), program),
        run(&Allocator::new(virtual_sim(64 * MIB), still), options(), program),
        run(&Allocator::new(asynchronous_virtual_sim(64 * MIB), expandable()), options(), program),
        run(&Allocator::new(asynchronous_sim(64 * MIB), Config::torch()), options(), program),
        run(&Allocator::new(Host::new(), Config::torch()), options(), program),
    ]
}
