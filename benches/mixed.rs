//! How does the cost of a step grow with the number of live blocks?
//!
//! Each step frees a random live block and allocates a new one, of 512 B to 16 MiB with an evenly
//! spread logarithm. The rivals do the very same steps, in turn: see `harness/rivals.rs`. They have
//! no segments, streams, statistics or lock, and take a size class that fits, not the best fit.
//! The allocators of the CPU are asked for 10² blocks only: with more they ask the system for pages
//! at nearly every step, and what is measured is the system.
//!
//! At 10⁵ blocks and beyond nearly every record touched is a cache miss, for all; so the curve
//! counts as much as the figures. The last row counts what the bookkeeping takes: growth of the
//! resident set while the blocks are made, per live block, with everything (segments, free blocks,
//! bins) in it.
//!
//! `cargo bench --bench mixed`. Two cores shared with other programs: medians repeat within 10 %,
//! at 10⁶ (other programs share the cache) within 25 %, ratios within 10 %.

mod harness;
#[path = "harness/rivals.rs"]
mod rivals;

use aquifer::{Allocation, Allocator, Config};
use harness::void::Void;
use harness::{Random, Run, scenes};

fn main() {
    let run = Run::new("mixed");
    scenes::mixed(run, &rivals::Everyone, 6);
    let count = run.pick(1_000_000, 1_000);
    if let Some(bytes) = bookkeeping_bytes(count) {
        let run = run.section("mixed: bookkeeping");
        run.heading(&["bytes a block"]);
        run.result(&format!("{count} live blocks"), &[("bytes_per_block", bytes)]);
    }
}

fn size(random: &mut Random) -> u64 {
    random.size(512, 16 << 20)
}

/// Growth of the resident set for each of `count` live blocks, after as many steps again; `None`
/// where the system does not tell.
fn bookkeeping_bytes(count: usize) -> Option<f64> {
    let mut random = Random::new(2);
    let allocator = Allocator::new(Void::new(), Config::default());
    let mut live: Vec<Option<Allocation<Void>>> = Vec::new();
    // The handles are the user's, not bookkeeping: their pages are touched before.
    live.resize_with(count, || Some(allocator.allocate(512).expect("the device has no end")));
    live.iter_mut().for_each(|handle| *handle = None);
    drop(allocator);
    let allocator = Allocator::new(Void::new(), Config::default());
    let before = resident_bytes()?;
    for handle in &mut live {
        *handle = allocator.allocate(size(&mut random)).ok();
    }
    for _ in 0..count {
        let index = random.below(count);
        live[index] = None;
        live[index] = allocator.allocate(size(&mut random)).ok();
    }
    Some(resident_bytes()?.saturating_sub(before) as f64 / count as f64)
}

fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}
