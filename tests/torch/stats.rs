//! J of the list: statistics against what the snapshot says, and the device against both.

use std::collections::BTreeMap;

use aquifer::backend::{Sim, WorkId};
use aquifer::report::snapshot::{BlockState, SegmentSnapshot};
use aquifer::units::{GIB, MIB};
use aquifer::{Allocation, Allocator, Bytes, Config, PoolId, PoolOptions};

use super::{Dice, Lab, address, in_both_modes};

in_both_modes! {
    j1_stats_equal_recomputation,
    j1_stats_equal_recomputation_of_random_programs,
    j2_other_devices_are_unaffected,
    j3_leak_detection,
    j4_one_segment_comes_and_goes,
    j9_streams_never_share,
    every_key_of_memory_stats_is_there,
}

/// Gauges with a number for all blocks, for small ones and for large ones.
const GAUGES: [&str; 9] = [
    "allocation",
    "segment",
    "active",
    "inactive_split",
    "allocated_bytes",
    "reserved_bytes",
    "active_bytes",
    "inactive_split_bytes",
    "requested_bytes",
];
const GROUPS: [&str; 3] = ["all", "small_pool", "large_pool"];
const NUMBERS: [&str; 4] = ["current", "peak", "allocated", "freed"];
/// Gauges without groups.
const OVERSIZE: [&str; 2] = ["oversize_allocations", "oversize_segments"];
const SCALARS: [&str; 7] = [
    "num_alloc_retries",
    "num_ooms",
    "num_oom_rejections",
    "num_sync_all_streams",
    "num_device_alloc",
    "num_device_free",
    "max_split_size",
];
const BY_POOL: &str = "reserved_bytes_by_private_pools";

type Flat = BTreeMap<String, i64>;

/// The keys of `torch.cuda.memory_stats`: all of them, and no other but the private pools'.
fn every_key_of_memory_stats_is_there(expandable: bool) {
    let mut keys: Vec<String> = SCALARS.map(String::from).into();
    for number in NUMBERS {
        keys.extend(OVERSIZE.map(|gauge| format!("{gauge}.{number}")));
        for group in GROUPS {
            keys.extend(GAUGES.map(|gauge| format!("{gauge}.{group}.{number}")));
        }
    }
    keys.sort_unstable();
    assert_eq!(keys.len(), 123);
    let lab = Lab::new(expandable);
    let flat = |lab: &Lab| lab.allocator.memory_stats().flat().into_keys().collect::<Vec<_>>();
    assert_eq!(flat(&lab), keys);

    let pool = lab.allocator.create_pool(PoolOptions::default());
    let PoolId(first, second) = pool.id();
    for number in NUMBERS {
        let of = |group| format!("{BY_POOL}.{first}_{second}.{group}.{number}");
        keys.extend(GROUPS.map(of));
    }
    keys.sort_unstable();
    assert_eq!(flat(&lab), keys);
    let unlimited = lab.stat("max_split_size");
    assert_eq!(unlimited, -1);
}

/// What the statistics must say of now, from the snapshot alone.
fn recompute(segments: &[SegmentSnapshot]) -> Flat {
    let mut flat = Flat::new();
    for gauge in GAUGES {
        flat.extend(GROUPS.map(|group| (format!("{gauge}.{group}.current"), 0)));
    }
    for segment in segments {
        let group = if segment.large { "large_pool" } else { "small_pool" };
        let mut add = |gauge: &str, amount: Bytes| {
            for group in ["all", group] {
                let key = format!("{gauge}.{group}.current");
                *flat.get_mut(&key).expect("a gauge of the list") += amount as i64;
            }
        };
        add("segment", u64::from(!segment.expandable));
        add("allocated_bytes", segment.allocated_size);
        add("reserved_bytes", segment.total_size);
        add("active_bytes", segment.active_size);
        add("requested_bytes", segment.requested_size);
        let is_split = segment.blocks.len() > 1 && !segment.expandable;
        for block in &segment.blocks {
            match block.state {
                BlockState::Allocated => {
                    add("allocation", 1);
                    add("active", 1);
                }
                BlockState::Pending => add("active", 1),
                BlockState::Free if is_split => {
                    add("inactive_split", 1);
                    add("inactive_split_bytes", block.size);
                }
                _ => {}
            }
        }
        check_segment(segment);
    }
    flat
}

/// A segment's sums are those of its blocks, and its blocks tile what is mapped.
fn check_segment(segment: &SegmentSnapshot) {
    let sum = |states: &[BlockState], size: fn(&_) -> Bytes| -> Bytes {
        segment.blocks.iter().filter(|block| states.contains(&block.state)).map(size).sum()
    };
    let active = [BlockState::Allocated, BlockState::Pending];
    assert_eq!(segment.allocated_size, sum(&active[..1], |block| block.size));
    assert_eq!(segment.active_size, sum(&active, |block| block.size));
    assert_eq!(segment.requested_size, sum(&active, |block| block.requested_size));
    assert_eq!(segment.total_size, segment.blocks.iter().map(|block| block.size).sum::<Bytes>());
    let mut end = 0;
    for block in &segment.blocks {
        let touches = if segment.expandable { block.offset >= end } else { block.offset == end };
        assert!(touches, "blocks neither overlap nor leave holes: {segment:?}");
        assert!(block.requested_size <= block.size);
        end = block.offset + block.size;
    }
}

/// Compares the statistics with the snapshot, again and again, and keeps its own peaks.
#[derive(Default)]
struct Oracle {
    peaks: Flat,
    /// What was there when the lifetime totals began.
    start: Flat,
    steps: u64,
}

impl Oracle {
    fn check(&mut self, allocator: &Allocator<Sim>) {
        self.steps += 1;
        let segments = allocator.memory_snapshot().segments;
        let stats = allocator.memory_stats();
        let flat = stats.flat();
        for (key, now) in recompute(&segments) {
            assert_eq!(flat[&key], now, "step {}: {key}", self.steps);
            let of = |number: &str| key.replace("current", number);
            let moved = flat[&of("allocated")] - flat[&of("freed")];
            let start = self.start.get(&key).copied().unwrap_or(0);
            assert_eq!(start + moved, now, "step {}: {key} as allocated - freed", self.steps);
            let peak = self.peaks.entry(key.clone()).or_default();
            *peak = (*peak).max(now);
            // Pieces come and go within one step: their peak may have been in the middle of it.
            let exact = !key.starts_with("inactive_split");
            let told = flat[&of("peak")];
            assert!(told == *peak || !exact && told > *peak, "step {}: {key}: {told}", self.steps);
        }
        for (id, gauges) in &stats.reserved_bytes_by_private_pools {
            let of = |large: Option<bool>| {
                let mine = segments.iter().filter(|segment| segment.pool_id == *id);
                let mine = mine.filter(|segment| large.is_none_or(|large| segment.large == large));
                mine.map(|segment| segment.total_size).sum::<Bytes>()
            };
            let told = [gauges.all, gauges.small_pool, gauges.large_pool].map(|g| g.current);
            assert_eq!(told, [None, Some(false), Some(true)].map(of), "step {}", self.steps);
        }
        let reserved = allocator.memory_reserved();
        assert_eq!(reserved, allocator.backend().used_bytes(), "step {}", self.steps);
        allocator.verify();
    }

    fn reset_peak(&mut self, allocator: &Allocator<Sim>) {
        allocator.reset_peak_memory_stats();
        self.peaks = recompute(&allocator.memory_snapshot().segments);
        self.check(allocator);
    }

    fn reset_accumulated(&mut self, allocator: &Allocator<Sim>) {
        allocator.reset_accumulated_memory_stats();
        self.start = recompute(&allocator.memory_snapshot().segments);
        self.check(allocator);
    }

    /// Emptying the cache is one wait for all streams, and never raises anything.
    fn empty_cache(&mut self, allocator: &Allocator<Sim>) {
        let before = allocator.memory_stats();
        let releasable = allocator.releasable_bytes();
        assert_eq!(allocator.empty_cache(), releasable);
        let after = allocator.memory_stats();
        assert_eq!(after.num_sync_all_streams, before.num_sync_all_streams + 1);
        assert_eq!(
            after.reserved_bytes.all.current + releasable,
            before.reserved_bytes.all.current
        );
        assert_eq!(after.allocated_bytes, before.allocated_bytes);
        self.check(allocator);
    }
}

/// J1 `TestCudaMultiGPU.test_memory_stats`: PyTorch's own sequence of small and large tensors,
/// moved and freed in a random order; after every step everything is recomputed from the snapshot.
fn j1_stats_equal_recomputation(expandable: bool) {
    const N: u64 = 35;
    let lab = Lab::new(expandable);
    let allocator = &lab.allocator;
    let mut oracle = Oracle::default();
    let mut dice = Dice::new(11);
    let tensor = |dimensions: &[u64]| lab.get(4 * dimensions.iter().product::<u64>());
    oracle.check(allocator);
    oracle.reset_peak(allocator);
    oracle.empty_cache(allocator);
    let first = [tensor(&[1]), tensor(&[10, 20]), tensor(&[200, 300, 2000])];
    let held = allocator.memory_allocated();
    oracle.check(allocator);
    let mut tensors = Vec::new();
    for i in 1..=N / 2 {
        tensors.push(tensor(&[i, i * 4]));
        oracle.check(allocator);
    }
    for i in 5..N / 2 + 5 {
        tensors.push(tensor(&[i, i * 7, i * 9, i * 11]));
        oracle.check(allocator);
        if i % 2 == 0 {
            oracle.reset_peak(allocator);
        }
    }
    let full = allocator.memory_allocated();
    tensors.push(tensor(&[0, 0, 0]));
    oracle.check(allocator);
    for at in (1..tensors.len()).rev() {
        tensors.swap(at, dice.roll(at as u64 + 1) as usize);
    }
    assert_eq!(allocator.memory_allocated(), full, "neither nothing nor a move costs anything");
    oracle.reset_peak(allocator);
    for i in 0..N / 2 {
        let (before, size) = (allocator.memory_allocated(), tensors[i as usize].size());
        tensors.remove(i as usize);
        assert_eq!(allocator.memory_allocated() < before, size > 0);
        oracle.check(allocator);
    }
    for i in 2..2 * N / 3 + 2 {
        tensors.push(tensor(&[i, i * 3, i * 8]));
        oracle.check(allocator);
    }
    drop(tensors);
    oracle.reset_peak(allocator);
    assert_eq!(allocator.memory_allocated(), held);
    drop(first);
    oracle.check(allocator);
    assert_eq!(allocator.memory_allocated(), 0);
    oracle.empty_cache(allocator);
    oracle.reset_peak(allocator);
    assert_eq!(lab.sim.used_bytes(), 0);
}

/// J1 again, with all that PyTorch's sequence has not: streams, frees that wait, private pools, a
/// device that is too small, limits, and resets of the totals.
fn j1_stats_equal_recomputation_of_random_programs(expandable: bool) {
    for seed in 0..12 {
        let lab = Lab::asynchronous(600 * MIB, expandable);
        random_program(&lab, seed);
        assert_eq!((lab.sim.used_bytes(), lab.sim.leaked()), (0, 0), "seed {seed}");
    }
}

fn random_program(lab: &Lab, seed: u64) {
    let allocator = &lab.allocator;
    let mut dice = Dice::new(seed);
    let mut oracle = Oracle::default();
    let streams = [0, 1, 2].map(|raw| allocator.stream(raw));
    let mut pools = vec![allocator.create_pool(PoolOptions::default())];
    let mut live: Vec<Allocation<Sim>> = Vec::new();
    for _ in 0..250 {
        match dice.roll(40) {
            0..16 => {
                let group = dice.roll(3) as usize;
                let size = 1 + dice.roll([4000, 3 * MIB, 40 * MIB][group]);
                let led = dice.roll(4) == 0;
                let route = pools.first().filter(|_| led).map(|pool| pool.route_thread());
                let stream = &streams[dice.roll(3) as usize];
                match allocator.allocate_on(stream, size) {
                    Ok(tensor) => live.push(tensor),
                    Err(_) => live.truncate(live.len() / 2),
                }
                drop(route);
            }
            16..30 if !live.is_empty() => {
                live.swap_remove(dice.roll(live.len() as u64) as usize);
            }
            30..34 if !live.is_empty() => {
                let tensor = &live[dice.roll(live.len() as u64) as usize];
                let user = dice.roll(3) as u32;
                lab.sim.submit(user);
                allocator.record_stream(tensor, &streams[user as usize]);
            }
            34 => drop(lab.sim.advance(dice.roll(3) as u32, 1 + dice.roll(4))),
            35 => oracle.empty_cache(allocator),
            36 => oracle.reset_peak(allocator),
            37 => oracle.reset_accumulated(allocator),
            38 => {
                pools.clear();
                oracle.check(allocator);
                pools.push(allocator.create_pool(PoolOptions::default()));
            }
            _ => allocator.set_memory_limit([None, Some(400 * MIB)][dice.roll(2) as usize]),
        }
        oracle.check(allocator);
    }
    drop((live, pools));
    oracle.empty_cache(allocator);
    assert_eq!(allocator.memory_reserved(), 0, "seed {seed}");
}

/// J2 `test_cuda_device_memory_allocated`: other devices are unaffected.
fn j2_other_devices_are_unaffected(expandable: bool) {
    let labs = [Lab::new(expandable), Lab::new(expandable)];
    let before = labs[1].allocator.memory_stats();
    let _tensor = labs[0].get(10);
    assert!(labs[0].allocator.memory_allocated() > 0);
    assert_eq!(labs[1].allocator.memory_stats(), before);
    assert_eq!(labs[1].sim.calls().total(), 0);
}

/// J3 `test_cuda_memory_leak_detection`: allocator and driver agree, and a leak shows in both.
fn j3_leak_detection(expandable: bool) {
    let lab = Lab::of(GIB, expandable);
    let free = || lab.allocator.mem_get_info().expect("the simulated device knows").free;
    drop([lab.get(LEAK), lab.get(1000)]);
    lab.allocator.empty_cache();
    assert_eq!((lab.allocator.memory_allocated(), free()), (0, GIB), "no leak");

    let leaked = lab.get(LEAK).into_raw();
    lab.allocator.empty_cache();
    assert_eq!(lab.allocator.memory_allocated(), LEAK);
    assert_eq!(GIB - free(), lab.allocator.memory_reserved());
    let holders = lab.allocator.holders();
    assert_eq!((holders.len(), holders[0].bytes), (1, LEAK));
    lab.allocator.free_raw(leaked.id).expect("it is live");
    lab.allocator.empty_cache();
    assert_eq!(free(), GIB);
}

const LEAK: Bytes = 20 * MIB;

/// J4 `AllocatorTraceTracker`: 500 MB come as one segment, and go as one.
fn j4_one_segment_comes_and_goes(expandable: bool) {
    let lab = Lab::new(expandable);
    drop(lab.get(500 * MIB));
    assert_eq!(lab.allocator.empty_cache(), 500 * MIB);
    let calls = lab.sim.calls();
    let fixed = (calls.allocate, calls.free);
    let pages = (calls.reserve, calls.set_access, calls.map, calls.unmap, calls.unreserve);
    if expandable {
        assert_eq!((fixed, pages), ((0, 0), (1, 1, 25, 25, 1)));
    } else {
        assert_eq!((fixed, pages), ((1, 1), (0, 0, 0, 0, 0)));
    }
    let stats = lab.allocator.memory_stats();
    assert_eq!((stats.num_device_alloc, stats.num_device_free), (1, 1));
}

/// J6, PyTorch's test of `AllocatorConfig`: each key reads and reads back; unknown ones are errors.
#[test]
fn j6_allocator_config() {
    for text in [
        "max_split_size_mb:40",
        "max_non_split_rounding_mb:40",
        "garbage_collection_threshold:0.5",
        "roundup_power2_divisions:16",
        "roundup_power2_divisions:[64:8,128:2,256:4,512:2,1024:1,2048:1]",
        "large_segment_size_mb:40",
        "expandable_segments:True",
        "throw_on_cudamalloc_oom:True",
        "graph_capture_record_stream_reuse:True",
        "per_process_memory_fraction:0.25",
        "pinned_use_cuda_host_register:True",
        "pinned_num_register_threads:8",
        "pinned_use_background_threads:True",
        "pinned_reserve_segment_size_mb:16",
        "pinned_max_round_threshold_mb:128",
        "pinned_max_cached_size_mb:32",
    ] {
        let config = Config::from_torch_conf(text).expect(text);
        assert_ne!(config, Config::torch(), "{text}");
        let written = config.to_torch_conf();
        assert_eq!(Config::from_torch_conf(&written).as_ref(), Ok(&config), "{text}: {written}");
    }
    let [key, value] = ["max_split_size_mb", "40"];
    assert_eq!(
        Config::from_torch_conf(&format!(" {key} : {value} , ")),
        Config::from_torch_conf(&format!("{key}:{value}")),
    );
    for text in ["device_specific:1", "max_split_size_mb", "Max_Split_Size_MB:40"] {
        assert!(Config::from_torch_conf(text).is_err(), "{text}");
    }
}

/// Where a program worked, and what work that was.
struct Tenant {
    start: u64,
    end: u64,
    work: Vec<WorkId>,
}

/// What lives, and what lived, on three streams.
struct Town {
    lab: Lab,
    dice: Dice,
    live: Vec<(Allocation<Sim>, Tenant)>,
    past: Vec<Tenant>,
    reuses: u32,
}

impl Town {
    /// Takes memory on some stream, and works there: all that was done in its place must be done
    /// then.
    fn move_in(&mut self) {
        let (raw, group) = (self.dice.roll(3) as u32, self.dice.roll(3) as usize);
        let size = 1 + self.dice.roll([2000, 2 * MIB, 30 * MIB][group]);
        let stream = self.lab.allocator.stream(raw);
        let tensor = self.lab.allocator.allocate_on(&stream, size).expect("a device of 1 TiB");
        let (start, end) = (address(&tensor), address(&tensor) + tensor.capacity());
        let before = self.past.iter().filter(|was| was.start < end && start < was.end);
        for work in before.flat_map(|was| &was.work) {
            self.reuses += 1;
            assert!(self.lab.sim.is_ordered(*work, raw), "shared by two streams: {start:#x}");
        }
        let work = vec![self.lab.sim.submit(raw)];
        self.live.push((tensor, Tenant { start, end, work }));
    }

    /// Some stream uses something that lives.
    fn visit(&mut self) {
        let user = self.dice.roll(3) as u32;
        let at = self.dice.roll(self.live.len() as u64) as usize;
        let (tensor, tenant) = &mut self.live[at];
        tenant.work.push(self.lab.sim.submit(user));
        self.lab.allocator.record_stream(tensor, &self.lab.allocator.stream(user));
    }

    fn move_out(&mut self) {
        let at = self.dice.roll(self.live.len() as u64) as usize;
        let (tensor, tenant) = self.live.swap_remove(at);
        drop(tensor);
        self.past.push(tenant);
    }
}

/// J9 `test_streaming_backwards_*`: whoever gets memory gets it after all work of whoever had it.
fn j9_streams_never_share(expandable: bool) {
    for seed in 0..8 {
        let (lab, dice) = (Lab::asynchronous(1 << 40, expandable), Dice::new(seed + 900));
        let mut town = Town { lab, dice, live: Vec::new(), past: Vec::new(), reuses: 0 };
        for _ in 0..400 {
            match town.dice.roll(10) {
                0..5 => town.move_in(),
                5 | 6 if !town.live.is_empty() => town.visit(),
                7 | 8 if !town.live.is_empty() => town.move_out(),
                _ => {
                    let stream = town.dice.roll(3) as u32;
                    town.lab.sim.advance(stream, 1 + town.dice.roll(6));
                }
            }
        }
        assert!(town.reuses > 20, "seed {seed}: hardly anything was used again");
        town.live.clear();
        town.lab.allocator.verify();
    }
}
