//! How long a large snapshot takes, and how large its file is: run with `--release -- --ignored`.

use std::time::Instant;

use aquifer::report::snapshot::Snapshot;
use aquifer::{Allocator, Config, HistoryOptions};

use crate::pickles::{json, pickle};
use crate::support::{MIB, Rng, sim};

/// 100,000 live blocks, and at least 100,000 events before.
#[test]
#[ignore = "a stopwatch"]
fn a_large_snapshot() {
    let allocator = Allocator::new(sim(1 << 40), Config::default());
    let mut rng = Rng::new(1);
    let tags = ["model", "optimizer", "cache"].map(|tag| allocator.tag(tag));
    let mut held: Vec<_> = (0..100_000)
        .map(|_| {
            let request = allocator.request(rng.size(MIB)).tag(tags[rng.below(3) as usize]);
            request.allocate().expect("room")
        })
        .collect();
    allocator.record_history(HistoryOptions::default());
    for _ in 0..34_000 {
        let one = rng.below(100_000) as usize;
        held[one] = allocator.allocate(rng.size(MIB)).expect("room");
    }
    for round in 0..7 {
        let start = Instant::now();
        let snapshot = allocator.memory_snapshot();
        let taken = start.elapsed();
        let mut bytes = Vec::with_capacity(16 << 20);
        snapshot.write_pickle(&mut bytes).expect("written");
        let written = start.elapsed();
        let read = Snapshot::read_pickle(&bytes[..]).expect("read");
        let whole = start.elapsed();
        println!(
            "{round}: {} blocks, {} events: snapshot {taken:.1?}, write {:.1?}, \
             both {written:.1?}, {} bytes, read {:.1?}",
            held.len(),
            snapshot.history.len(),
            written - taken,
            bytes.len(),
            whole - written
        );
        assert_eq!(read.history.len(), snapshot.history.len());
    }
    if let Ok(path) = std::env::var("AQUIFER_PICKLE") {
        std::fs::write(&path, pickle(&allocator.memory_snapshot())).expect("written");
    }
    println!("{} bytes as JSON", json(&allocator.memory_snapshot()).len());
}
