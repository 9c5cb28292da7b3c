//! No byte of CUDA memory is in two hands while work on it is pending: seeded random programs over
//! the fake driver's streams, whose own work proves it.
//!
//! ```text
//!   stream A   stamp(bytes, 17) ──────────┐           free ─▶ stamp(bytes, 42)   whoever is next
//!   stream B                   wait A ─ check(bytes, 17)          │
//!                                             ╰── moved on in any order: no check may see 42
//! ```
//!
//! Every live buffer is stamped by queued work and checked by queued work. The test moves single
//! streams on at random, so that what is not ordered happens in the wrong order sooner or later: an
//! early reuse is a mismatch, pages that go too early are a violation. The programs break no rule
//! themselves; one test breaks it on purpose, and has to find corruption.
#![cfg(all(feature = "cuda", target_os = "linux"))]

#[path = "support/cuda.rs"]
mod cuda;
#[path = "cuda_streams/program.rs"]
mod program;
#[path = "cuda_streams/work.rs"]
mod work;

use aquifer::backend::CudaSource;
use aquifer::{Config, CudaAllocator};

use cuda::Options;
use program::{Plan, Rules, run};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SEEDS: u64 = if cfg!(debug_assertions) { 12 } else { 200 };

/// Small segments and pages, so that many come and go.
fn tiny(expandable: bool) -> Config {
    let mut config = Config::default();
    config.small_max = 16 * KIB;
    config.small_segment = 64 * KIB;
    config.large_segment = 256 * KIB;
    config.large_min = 128 * KIB;
    config.large_round = 64 * KIB;
    config.expandable_segments = expandable;
    config
}

fn plan(source: CudaSource, config: Config, capacity: u64, size_max: u64) -> Plan {
    let granularity = if capacity < 32 * MIB { 64 * KIB } else { 2 * MIB };
    let options = Options { capacity, granularity, asynchronous: true, ..Options::default() };
    Plan { source, config, options, size_max, rules: Rules::Kept }
}

/// The plans by name.
fn tiny_pages() -> Plan {
    plan(CudaSource::Virtual, tiny(true), 4 * MIB, 600 * KIB)
}

fn tiny_whole_pages() -> Plan {
    plan(CudaSource::Virtual, tiny(false), 4 * MIB, 600 * KIB)
}

fn pages() -> Plan {
    let config = CudaAllocator::recommended_config(CudaSource::Virtual);
    plan(CudaSource::Virtual, config, 96 * MIB, 6 * MIB)
}

fn pool() -> Plan {
    plan(CudaSource::Pool, Config::default(), 48 * MIB, 3 * MIB)
}

fn plain() -> Plan {
    plan(CudaSource::Plain, Config::default(), 48 * MIB, 3 * MIB)
}

fn torch() -> Plan {
    plan(CudaSource::Plain, Config::torch(), 48 * MIB, 3 * MIB)
}

/// All seeds of a plan whose rules are kept: nothing is ever wrong.
fn keeps(plan: &Plan) {
    let mut reused = 0;
    for seed in 0..SEEDS {
        let outcome = run(plan, seed);
        assert!(outcome.complaints.is_empty(), "seed {seed}: {:#?}", outcome.complaints);
        reused += outcome.reused;
    }
    assert!(reused > 10 * SEEDS, "{reused} allocations of bytes that somebody had: too few");
}

/// Stamps one test for each plan.
macro_rules! keeps {
    ($($name:ident: $plan:expr;)*) => {$(
        #[test]
        fn $name() {
            keeps(&$plan);
        }
    )*};
}

keeps! {
    nothing_is_reused_early_in_tiny_pages: tiny_pages();
    nothing_is_reused_early_in_tiny_segments_of_pages: tiny_whole_pages();
    nothing_is_reused_early_in_pages: pages();
    nothing_is_reused_early_in_a_pool: pool();
    nothing_is_reused_early_in_plain_memory: plain();
    nothing_is_reused_early_with_the_torch_preset: torch();
    nothing_is_reused_early_without_cross_stream_reuse: {
        let mut plan = tiny_pages();
        plan.config.cross_stream = false;
        plan
    };
    nothing_is_reused_early_by_handles_for_identities: {
        let mut plan = tiny_pages();
        // A driver before CUDA 12.0: streams are known by their handles, and forgotten in time.
        plan.options.stream_ids = false;
        plan
    };
}

/// Programs that do not tell of their uses on other streams: the stamps see that.
#[test]
fn uses_that_are_not_recorded_are_found() {
    for (name, plan) in [("pages", tiny_pages()), ("pool", pool()), ("plain", plain())] {
        let plan = Plan { rules: Rules::UsesUntold, ..plan };
        let found = (0..SEEDS).filter(|&seed| !run(&plan, seed).complaints.is_empty()).count();
        assert!(found > 0, "{name}: the test sees nothing of what it is there for");
    }
}

/// Programs that forget streams and go on using them.
#[test]
fn streams_that_are_used_after_they_were_forgotten_are_found() {
    let plan = Plan { rules: Rules::ForgottenUsed, ..tiny_pages() };
    let found = (0..SEEDS).filter(|&seed| !run(&plan, seed).complaints.is_empty()).count();
    assert!(found > 0, "the test sees nothing of what it is there for");
}
