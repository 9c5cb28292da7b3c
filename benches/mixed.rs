//! How does the cost of a step grow with the number of live blocks?
//!
//! Each step frees a random live block and allocates a new one, of 512 B to 16 MiB with an evenly
//! spread logarithm. The rival is `offset-allocator` over one arena of 2 TiB, with the very same
//! steps, in turn. It has no segments, streams, statistics or lock, and takes a size class that
//! fits, not the best fit.
//!
//! At 10⁵ blocks and beyond nearly every record touched is a cache miss, for both; so the curve
//! counts as much as the figures. The last row counts what the bookkeeping takes: growth of the
//! resident set while the blocks are made, per live block, with everything (segments, free blocks,
//! bins) in it.
//!
//! `cargo bench --bench mixed`. Two cores shared with other programs: medians repeat within 10 %,
//! at 10⁶ (other programs share the cache) within 25 %, ratios within 10 %.

mod harness;

use std::hint::black_box;

use aquifer::{Allocation, Allocator, Config};
use harness::void::Void;
use harness::{Random, Run, interleave, nanoseconds_each};

const GRANULE: u64 = 512;

/// A block to be replaced, and the size of the new one.
#[derive(Debug, Clone, Copy)]
struct Step {
    index: usize,
    size: u64,
}

fn main() {
    let run = Run::new("mixed: ns per free + allocate");
    run.heading(&["min", "median", "rival min", "rival median", "ratio"]);
    for exponent in 2..=run.pick(6, 3) {
        let count = 10_usize.pow(exponent);
        let mut steps = Steps::new(count, run.pick(10_000, 100));
        let mut own = Own::new(count);
        let mut rival = Rival::new(count);
        // Until the free space has the shape that the steps give it.
        for _ in 0..(2 * count).div_ceil(steps.batch) {
            let batch = steps.next_batch();
            own.turn(&batch);
            rival.turn(&batch);
        }
        let (mut own_steps, mut rival_steps) = (steps.clone(), steps);
        let [own, rival] = interleave(
            run.pick(40, 2),
            [&mut || own.turn(&own_steps.next_batch()), &mut || {
                rival.turn(&rival_steps.next_batch())
            }],
        );
        let figures = [
            ("min_ns", own.min()),
            ("median_ns", own.median()),
            ("rival_min_ns", rival.min()),
            ("rival_median_ns", rival.median()),
            ("ratio", own.over(&rival).median()),
        ];
        run.result(&format!("10^{exponent} live blocks"), &figures);
    }
    let count = run.pick(1_000_000, 1_000);
    if let Some(bytes) = bookkeeping_bytes(count) {
        run.heading(&["bytes a block"]);
        run.result(&format!("bookkeeping of {count}"), &[("bytes_per_block", bytes)]);
    }
}

/// The steps, the same for all contenders.
#[derive(Debug, Clone)]
struct Steps {
    random: Random,
    count: usize,
    batch: usize,
}

impl Steps {
    fn new(count: usize, batch: usize) -> Self {
        Self { random: Random::new(0x5eed), count, batch }
    }

    fn next_batch(&mut self) -> Vec<Step> {
        let random = &mut self.random;
        (0..self.batch)
            .map(|_| Step { index: random.below(self.count), size: size(random) })
            .collect()
    }
}

fn size(random: &mut Random) -> u64 {
    random.size(512, 16 << 20)
}

/// This crate, with its live blocks.
struct Own {
    allocator: Allocator<Void>,
    live: Vec<Option<Allocation<Void>>>,
}

impl Own {
    fn new(count: usize) -> Self {
        let allocator = Allocator::new(Void::new(), Config::default());
        let mut random = Random::new(1);
        let live = (0..count).map(|_| allocator.allocate(size(&mut random)).ok()).collect();
        Self { allocator, live }
    }

    fn turn(&mut self, steps: &[Step]) -> f64 {
        nanoseconds_each(steps.len(), || {
            for step in steps {
                self.live[step.index] = None;
                let block = self.allocator.allocate(step.size).expect("the device has no end");
                self.live[step.index] = Some(black_box(block));
            }
        })
    }
}

/// `offset-allocator`, with its live blocks.
struct Rival {
    arena: offset_allocator::Allocator<u32>,
    live: Vec<offset_allocator::Allocation<u32>>,
}

impl Rival {
    fn new(count: usize) -> Self {
        let nodes = 4 * count as u32 + 1024;
        let mut arena = offset_allocator::Allocator::with_max_allocs(u32::MAX, nodes);
        let mut random = Random::new(1);
        let live = (0..count)
            .map(|_| arena.allocate(granules(size(&mut random))).expect("2 TiB are enough"))
            .collect();
        Self { arena, live }
    }

    fn turn(&mut self, steps: &[Step]) -> f64 {
        nanoseconds_each(steps.len(), || {
            for step in steps {
                self.arena.free(self.live[step.index]);
                let block = self.arena.allocate(granules(step.size)).expect("2 TiB are enough");
                self.live[step.index] = black_box(block);
            }
        })
    }
}

fn granules(size: u64) -> u32 {
    size.div_ceil(GRANULE) as u32
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
