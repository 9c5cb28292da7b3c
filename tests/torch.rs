//! What PyTorch's own tests pin down about its CUDA caching allocator, test by test.
//!
//! The ids are letters for PyTorch's test classes and numbers within them; the functions here are
//! named by them. [`ABSENT`] lists those that this crate has nothing to test by, and says why. What
//! an id says is in PyTorch's words at the test: its name in PyTorch stands behind the id.
//!
//! Everything runs [`Config::torch`] over the simulated device. PyTorch runs its file a second time
//! with `expandable_segments:True`; so does [`in_both_modes`], as `fixed::…` and `expandable::…`.
//!
//! | file              | ids                                     |
//! |-------------------|-----------------------------------------|
//! | `torch.rs`        | A, D: basics, limits, settings, OOM     |
//! | `torch/pools.rs`  | G, H, I: captures, private pools        |
//! | `torch/stats.rs`  | J: statistics against the snapshot      |

#[path = "torch/graphs.rs"]
mod graphs;
#[path = "torch/pools.rs"]
mod pools;
#[path = "torch/stats.rs"]
mod stats;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aquifer::backend::{Sim, SimOptions};
use aquifer::config::ConfigError;
use aquifer::report::oom::OomCause;
use aquifer::report::snapshot::{BlockSnapshot, BlockState, SegmentSnapshot};
use aquifer::units::{GIB, MIB};
use aquifer::{AllocError, Allocation, Allocator, Bytes, Config, LimitError};

/// Ids of PyTorch's tests that have no test here, and the reason.
const ABSENT: &[(&[&str], &str)] = &[
    (&["A2"], "a size is unsigned here: the type refuses a negative one"),
    (&["A9"], "cuBLAS and its workspaces"),
    (&["A10"], "kernels: what a matrix product allocates"),
    (&["B1"], "registered memory: not offered, memory is asked of the driver"),
    (&["B2", "B3", "B5", "B6", "B7", "B8", "B12"], "pinned memory: `tests/cuda/pinned.rs`"),
    (&["B4"], "threads in the background: none here"),
    (&["B9", "B10"], "pinned memory in a graph: the program keeps it as long as the graph"),
    (&["B11"], "copies of memory that is not pinned are the driver's to refuse"),
    (&["B13"], "a use is recorded by the buffer, which is of its allocator by type"),
    (
        &["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9"],
        "allocation at an exact address: not offered",
    ),
    (&["D3"], "frames of C++ and TorchScript, Python's pickle"),
    (&["D4"], "frames of the forward pass: autograd"),
    (
        &["D5", "D6", "D7", "D8", "D9", "D10", "D11"],
        "the history of events, and plots of it: a snapshot here is one moment",
    ),
    (&["D21"], "PyTorch's profiler"),
    (&["D22"], "Python's collector of cycles"),
    (&["H1", "H2"], "checkpoints of a pool: not offered"),
    (&["I15"], "the history of events: a snapshot here is one moment"),
    (&["I18"], "managed memory of the CUDA driver"),
    (&["J5"], "PyTorch's profiler"),
    (&["J7"], "memory shared between processes: `tests/cuda/leaving.rs`"),
    (&["J8"], "PyTorch's own ways between processes"),
];

/// How many ids each letter has. (E and F are no letters of the list.)
const IDS: &[(char, usize)] =
    &[('A', 12), ('B', 13), ('C', 9), ('D', 22), ('G', 8), ('H', 5), ('I', 18), ('J', 9)];

/// Stamps each test twice: over fixed segments, and over expandable ones.
macro_rules! in_both_modes {
    ($($test:ident,)*) => {
        mod fixed {
            $(#[test] fn $test() { super::$test(false); })*
        }
        mod expandable {
            $(#[test] fn $test() { super::$test(true); })*
        }
    };
}
pub(crate) use in_both_modes;

/// A device, and an allocator over it.
pub(crate) struct Lab {
    pub(crate) sim: Sim,
    pub(crate) allocator: Allocator<Sim>,
}

impl Lab {
    /// The torch preset over a device of 1 TiB on which all work is done at once.
    pub(crate) fn new(expandable: bool) -> Self {
        Self::with(Config::torch(), SimOptions { virtual_memory: expandable, ..Default::default() })
    }

    /// The torch preset over a device of so many bytes.
    pub(crate) fn of(capacity: Bytes, expandable: bool) -> Self {
        let options = SimOptions { capacity, virtual_memory: expandable, ..Default::default() };
        Self::with(Config::torch(), options)
    }

    /// The torch preset over a device whose work goes on until a hand finishes it.
    pub(crate) fn asynchronous(capacity: Bytes, virtual_memory: bool) -> Self {
        let asynchronous = true;
        let options = SimOptions { capacity, virtual_memory, asynchronous, ..Default::default() };
        Self::with(Config::torch(), options)
    }

    /// Segments are expandable where the device has virtual memory.
    pub(crate) fn with(mut config: Config, options: SimOptions) -> Self {
        config.expandable_segments = options.virtual_memory;
        let sim = Sim::new(options);
        Self { allocator: Allocator::new(sim.clone(), config), sim }
    }

    /// `size` bytes on the default stream, which must not fail.
    #[track_caller]
    pub(crate) fn get(&self, size: Bytes) -> Allocation<Sim> {
        match self.allocator.allocate(size) {
            Ok(allocation) => allocation,
            Err(error) => panic!("{size} bytes should have been there: {error}"),
        }
    }

    /// A request on the default stream that must fail for want of memory.
    #[track_caller]
    pub(crate) fn refused(&self, size: Bytes) -> OomCause {
        match self.allocator.allocate(size) {
            Err(AllocError::OutOfMemory(report)) => report.cause,
            other => panic!("{size} bytes should have been too much: {other:?}"),
        }
    }

    /// One of PyTorch's flat statistics.
    #[track_caller]
    pub(crate) fn stat(&self, key: &str) -> i64 {
        self.allocator.memory_stats().flat()[key]
    }

    pub(crate) fn segments(&self) -> Vec<SegmentSnapshot> {
        self.allocator.memory_snapshot().segments
    }

    /// The block that begins at an address.
    pub(crate) fn block_at(&self, address: u64) -> Option<BlockSnapshot> {
        self.segments().into_iter().find_map(|segment| {
            let offset = address.checked_sub(segment.address?)?;
            segment.blocks.into_iter().find(|block| block.offset == offset)
        })
    }
}

#[track_caller]
pub(crate) fn address(allocation: &Allocation<Sim>) -> u64 {
    allocation.address().expect("the simulated device has addresses")
}

/// A generator of numbers that are always the same (xorshift).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `sides`.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % sides
    }
}

in_both_modes! {
    a1_memory_allocation,
    a3_memory_stats,
    a4_out_of_memory,
    a5_out_of_memory_retry,
    a6_set_per_process_memory_fraction,
    a7_get_per_process_memory_fraction,
    a8_record_stream_oom,
    a11_mem_get_info,
    a12_lazy_init,
    d1_memory_snapshot,
    d2_allocation_traceback,
    d12_max_split_expandable,
    d13_garbage_collect_expandable,
    d15_throw_on_cudamalloc_oom,
    d15_throw_on_cudamalloc_oom_without_a_fraction,
    d17_raw_alloc_moves_the_statistics,
    d18_raises_oom,
    d19_notifies_oom,
    d20_allocator_fuzz,
}

/// Every id of the list has a test, or a reason why not.
#[test]
fn every_id_is_accounted_for() {
    let sources = [
        include_str!("torch.rs"),
        include_str!("torch/graphs.rs"),
        include_str!("torch/pools.rs"),
        include_str!("torch/stats.rs"),
    ];
    let lines = sources.iter().flat_map(|source| source.lines());
    let tested: Vec<String> = lines.filter_map(id_of_test).collect();
    let excused: Vec<&str> = ABSENT.iter().flat_map(|row| row.0).copied().collect();
    let ids: Vec<String> = IDS
        .iter()
        .flat_map(|&(letter, count)| (1..=count).map(move |number| format!("{letter}{number}")))
        .collect();
    for id in &ids {
        let (is_tested, excuses) = (tested.contains(id), excused.iter().filter(|it| *it == id));
        match (is_tested, excuses.count()) {
            (true, 0) | (false, 1) => {}
            (true, _) => panic!("{id} has a test and an excuse"),
            (false, 0) => panic!("{id} has neither a test nor an excuse"),
            (false, _) => panic!("{id} is excused twice"),
        }
    }
    let unknown = tested.iter().map(String::as_str).chain(excused).find(|id| !is_in(&ids, id));
    assert_eq!(unknown, None, "an id that is not in the list");
}

fn is_in(ids: &[String], id: &str) -> bool {
    ids.iter().any(|known| known == id)
}

/// `fn a1_memory_allocation(…)` is a test of A1.
fn id_of_test(line: &str) -> Option<String> {
    let name = line.strip_prefix("fn ")?;
    let id = name.split_once('_')?.0;
    let number = id.strip_prefix(|letter: char| letter.is_ascii_lowercase())?;
    number.parse::<u32>().ok()?;
    Some(id.to_ascii_uppercase())
}

/// A1 `test_memory_allocation`: a raw allocation of 1 byte is seen, its delete restores the number.
fn a1_memory_allocation(expandable: bool) {
    let lab = Lab::new(expandable);
    let before = lab.allocator.memory_allocated();
    let raw = lab.allocator.request(1).allocate_raw().expect("one byte");
    assert!(lab.allocator.memory_allocated() > before);
    lab.allocator.free_raw(raw.id).expect("it is live");
    assert_eq!(lab.allocator.memory_allocated(), before);
}

/// A3 `test_memory_stats`: 256 floats are 1024 active bytes; they are freed when they are deleted.
fn a3_memory_stats(expandable: bool) {
    let lab = Lab::new(expandable);
    lab.allocator.reset_accumulated_memory_stats();
    lab.allocator.reset_peak_memory_stats();
    let before = lab.stat("active_bytes.all.current");
    let tensor = lab.get(256 * 4);
    assert_eq!(lab.stat("active_bytes.all.current"), before + 1024);
    assert_eq!(lab.stat("active_bytes.all.peak"), before + 1024);
    assert_eq!(lab.stat("active_bytes.all.allocated"), 1024);
    assert_eq!(lab.stat("active_bytes.all.freed"), 0);
    drop(tensor);
    assert_eq!(lab.stat("active_bytes.all.current"), before);
    assert_eq!(lab.stat("active_bytes.all.freed"), 1024);
    assert_eq!(lab.stat("active_bytes.all.peak"), before + 1024);
    lab.allocator.reset_peak_memory_stats();
    assert_eq!(lab.stat("active_bytes.all.peak"), before);
    assert_eq!(lab.allocator.max_memory_allocated(), before as u64);
}

/// A4 `test_out_of_memory`: a request beyond any device names itself and the device; one beyond an
/// exbibyte is refused as such; the device works on.
fn a4_out_of_memory(expandable: bool) {
    let lab = Lab::of(8 * GIB, expandable);
    let tensor = lab.get(1024);
    let error = lab.allocator.allocate(800_000_000 * GIB).expect_err("there is no such device");
    assert!(matches!(error, AllocError::OutOfMemory(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("tried to allocate 800000000.00 GiB"), "{text}");
    assert!(text.contains("the device has 8.00 GiB"), "{text}");
    assert_eq!(lab.stat("num_ooms"), 1);
    let error = lab.allocator.allocate(1 << 60).expect_err("an exbibyte");
    assert!(matches!(error, AllocError::TooLarge { .. }), "{error:?}");
    let error = lab.allocator.allocate(u64::MAX).expect_err("all there is");
    assert!(matches!(error, AllocError::TooLarge { .. }), "{error:?}");
    drop(tensor);
    lab.get(1 << 20);
    lab.allocator.verify();
}

/// A5 `test_out_of_memory_retry`: half of the device fits once, twice only after the first is
/// freed.
fn a5_out_of_memory_retry(expandable: bool) {
    let lab = Lab::of(GIB, expandable);
    let _small = lab.get(4096);
    let first = lab.get(GIB / 2);
    assert_eq!(lab.refused(GIB / 2), OomCause::NoRoom);
    drop(first);
    lab.get(GIB / 2);
    // The same again with a size that the cached block cannot serve: it is released first.
    let retries = lab.stat("num_alloc_retries");
    lab.get(GIB / 2 + 100 * MIB);
    assert_eq!(lab.stat("num_alloc_retries"), retries + i64::from(!expandable));
    lab.allocator.verify();
}

/// A6 `test_set_per_process_memory_fraction`: a fraction has a range, and binds.
fn a6_set_per_process_memory_fraction(expandable: bool) {
    let total = 1001 * MIB;
    let lab = Lab::of(total, expandable);
    for bad in [-0.1, 2.0, f64::NAN, f64::INFINITY] {
        let error = lab.allocator.set_memory_fraction(bad).expect_err("beyond the range");
        assert!(matches!(error, LimitError::Fraction(_)), "{error:?}");
        assert!(error.to_string().starts_with("invalid fraction value"), "{error}");
    }
    lab.allocator.set_memory_fraction(0.5).expect("half of it");
    assert_eq!(lab.allocator.memory_limit(), Some((total as f64 * 0.5).round() as u64));
    let reserved = lab.allocator.max_memory_reserved();
    drop(lab.get((total as f64 * 0.499) as u64 - reserved));
    lab.allocator.empty_cache();
    assert_eq!(lab.refused(total / 2), OomCause::NoRoom);
    lab.get(1 << 20);
    lab.allocator.verify();
}

/// A7 `test_get_per_process_memory_fraction`: what was set reads back exactly.
fn a7_get_per_process_memory_fraction(expandable: bool) {
    let lab = Lab::new(expandable);
    assert_eq!(lab.allocator.memory_fraction(), 1.0);
    let mut dice = Dice::new(7);
    let random = (0..100).map(|_| dice.roll(1 << 40) as f64 / (1_u64 << 40) as f64);
    for fraction in [0.0, 1.0, 0.1, 1.0 / 3.0].into_iter().chain(random.collect::<Vec<_>>()) {
        lab.allocator.set_memory_fraction(fraction).expect("within the range");
        assert_eq!(lab.allocator.memory_fraction().to_bits(), fraction.to_bits());
    }
}

/// A8 `test_caching_allocator_record_stream_oom`: frees that wait for a busy stream are waited for
/// before a request fails.
fn a8_record_stream_oom(expandable: bool) {
    let lab = Lab::asynchronous(GIB, expandable);
    let busy = lab.allocator.stream(1);
    let _y = lab.allocator.allocate_on(&busy, 160 * MIB).expect("the sum");
    for _ in 0..100 {
        let x = lab.get(160 * MIB);
        lab.sim.submit(1);
        lab.allocator.record_stream(&x, &busy);
    }
    assert_eq!(lab.stat("num_ooms"), 0);
    assert!(lab.sim.calls().synchronize > 0, "the device was never full");
    lab.allocator.empty_cache();
    lab.allocator.verify();
}

/// A11 `test_mem_get_info`: the driver's free memory drops by what is held, the total stays.
fn a11_mem_get_info(expandable: bool) {
    let lab = Lab::of(GIB, expandable);
    let info = || lab.allocator.mem_get_info().expect("the simulated device knows");
    let before = info();
    let tensor = lab.get(32 * MIB);
    let after = info();
    assert_eq!((before.total, after.total), (GIB, GIB));
    assert!(before.free - after.free >= 32 * MIB);
    assert_eq!(before.free - after.free, lab.allocator.memory_reserved());
    drop(tensor);
    lab.allocator.empty_cache();
    assert_eq!(info().free, GIB);
}

/// A12 `test_lazy_init`: making an allocator, and asking it about nothing, calls no driver.
fn a12_lazy_init(expandable: bool) {
    let lab = Lab::new(expandable);
    let _handle = lab.allocator.stream(3);
    assert_eq!(lab.allocator.memory_stats().reserved_bytes.all.current, 0);
    assert_eq!(lab.allocator.memory_snapshot().segments, []);
    assert_eq!(lab.allocator.empty_cache(), 0);
    assert_eq!(lab.sim.calls().total(), 0);
}

/// D1 `test_memory_snapshot`: a live block is found by its size, at its address, with who asked for
/// it; the last thing that happens is that memory goes back; a thousand small blocks tile.
fn d1_memory_snapshot(expandable: bool) {
    let lab = Lab::new(expandable);
    let requested = 311 * 411 * 4;
    let (tensor, line) = (lab.allocator.allocate(requested).expect("a tensor"), line!());
    let holds = |segment: &SegmentSnapshot| {
        segment.blocks.iter().any(|block| block.requested_size == requested)
    };
    let segment = lab.segments().into_iter().find(holds).expect("the block of the tensor");
    let block = segment.blocks.iter().find(|block| block.requested_size == requested);
    let block = block.expect("found above");
    assert_eq!(segment.address.map(|start| start + block.offset), tensor.address());
    let location = block.location.expect("a live block knows who asked for it");
    assert!(location.file().ends_with("torch.rs") && location.line() == line, "{location}");
    drop(tensor);
    lab.allocator.empty_cache();
    assert_eq!(lab.segments(), []);
    let calls = lab.sim.calls();
    assert_eq!((calls.free, calls.unmap), if expandable { (0, 1) } else { (1, 0) });

    let mut tensors: Vec<_> = (0..1000).map(|_| lab.get(128 * 4)).collect();
    let segment = lab.segments().pop().expect("a small segment");
    let sizes: Vec<Bytes> = segment.blocks.iter().map(|block| block.size).collect();
    assert_eq!(sizes[..1000], [512; 1000]);
    assert_eq!(sizes.iter().sum::<Bytes>(), segment.total_size);
    let mut dice = Dice::new(1);
    while !tensors.is_empty() {
        tensors.swap_remove(dice.roll(tensors.len() as u64) as usize);
    }
    assert_eq!(lab.segments().pop().expect("still cached").blocks.len(), 1);
}

/// D2 `test_allocation_traceback`: a live address knows its caller, a freed one does not.
fn d2_allocation_traceback(expandable: bool) {
    let lab = Lab::new(expandable);
    let (tensor, line) = (lab.allocator.allocate(1000).expect("a tensor"), line!());
    let at = address(&tensor);
    let location = lab.block_at(at).and_then(|block| block.location).expect("a live block");
    assert_eq!((location.line(), location.file().ends_with("torch.rs")), (line, true));
    drop(tensor);
    assert_eq!(lab.block_at(at).and_then(|block| block.location), None);
}

/// D12 `test_max_split_expandable`, though a setting cannot be changed at run time here: with a
/// limit of 120 MB three blocks of 40 MB fit, a fourth does not; freed, they become one of 120 MB.
fn d12_max_split_expandable(virtual_memory: bool) {
    let mut config = Config::torch();
    config.apply_torch_conf("max_split_size_mb:40").expect("a legal setting");
    config.memory_limit = Some(120 * MIB);
    let lab = Lab::with(config, SimOptions { virtual_memory, ..Default::default() });
    let blocks = [lab.get(40 * MIB), lab.get(40 * MIB), lab.get(40 * MIB)];
    assert_eq!(lab.refused(40 * MIB), OomCause::NoRoom);
    drop(blocks);
    lab.get(120 * MIB);
    assert_eq!(lab.allocator.memory_reserved(), 120 * MIB);
    lab.allocator.verify();
}

/// D13 `test_garbage_collect_expandable`: collection with free blocks of either sort is safe.
fn d13_garbage_collect_expandable(virtual_memory: bool) {
    let mut config = Config::torch();
    config.apply_torch_conf("garbage_collection_threshold:0.5").expect("a legal setting");
    config.memory_limit = Some(120 * MIB);
    let lab = Lab::with(config, SimOptions { virtual_memory, ..Default::default() });
    let blocks = [lab.get(40 * MIB), lab.get(40 * MIB)];
    drop(blocks);
    lab.get(80 * MIB);
    assert!(lab.allocator.memory_reserved() <= 120 * MIB);
    assert_eq!(lab.stat("num_alloc_retries"), 0, "collection came first");
    lab.allocator.verify();
}

/// The size that PyTorch's test expects of `roundup_power2_divisions`.
fn power2_div(size: Bytes, divisions: Bytes) -> Bytes {
    let power = size.next_power_of_two();
    if power == size {
        return size;
    }
    let mut rounded = power / 2;
    while rounded < size {
        rounded += power / 2 / divisions;
    }
    rounded
}

/// What an allocation of `size` bytes adds to active and requested bytes.
fn deltas(config: Config, size: Bytes) -> (Bytes, Bytes) {
    let lab = Lab::with(config, SimOptions::default());
    let _tensor = lab.get(size);
    let stats = lab.allocator.memory_stats();
    (stats.active_bytes.all.allocated, stats.requested_bytes.all.allocated)
}

/// D14 `test_allocator_settings`: what each setting does to sizes, byte by byte; that each string
/// resets the divisions; and what is refused.
#[test]
fn d14_allocator_settings() {
    let (size, big) = (21 * MIB * 4, 100 * MIB * 4);
    let torch = |text: &str| Config::from_torch_conf(text).expect("a legal string");
    assert_eq!(deltas(torch(""), size), (size, size));
    assert_eq!(deltas(torch("roundup_power2_divisions:4"), size), (power2_div(size, 4), size));
    assert_eq!(power2_div(size, 4), 96 * MIB);

    let mut config = torch("roundup_power2_divisions:4");
    config.apply_torch_conf("garbage_collection_threshold:0.5").expect("legal");
    config
        .apply_torch_conf("garbage_collection_threshold:0.5,max_split_size_mb:40")
        .expect("legal");
    assert_eq!(deltas(config.clone(), size), (size, size), "the divisions were reset");

    let list = "[64:8,128:2,256:2,512:2,1024:1,>:1]";
    let text = format!("garbage_collection_threshold:0.5,roundup_power2_divisions:{list}");
    config.apply_torch_conf(&text).expect("legal");
    assert_eq!(deltas(config.clone(), size), (power2_div(size, 8), size));
    assert_eq!(deltas(config.clone(), big), (power2_div(big, 2), big));
    assert_eq!((power2_div(size, 8), power2_div(big, 2)), (88 * MIB, 512 * MIB));
    config.apply_torch_conf("expandable_segments:True").expect("legal");
    assert!(config.expandable_segments);
    config.apply_torch_conf("").expect("legal");
    assert!(config.expandable_segments, "other keys keep their value");

    let unknown = Config::from_torch_conf("foo:1,bar:2").expect_err("no such key");
    assert!(matches!(unknown, ConfigError::UnknownKey { .. }), "{unknown:?}");
    for text in [
        "garbage_collection_threshold:1.2",
        "max_split_size_mb:2",
        "release_lock_on_cudamalloc:none",
        "pinned_use_cuda_host_register:none",
        "pinned_num_register_threads:none",
        "pinned_num_register_threads:1024",
    ] {
        let error = Config::from_torch_conf(text).expect_err(text);
        assert!(matches!(error, ConfigError::BadValue { .. }), "{text}: {error:?}");
    }
}

/// D15 `test_throw_on_cudamalloc_oom`: refused before the driver is asked, and counted; nothing is
/// released for it. Off unless asked for.
fn d15_throw_on_cudamalloc_oom(virtual_memory: bool) {
    let options = SimOptions { capacity: GIB, virtual_memory, ..Default::default() };
    let half = "per_process_memory_fraction:0.5";
    let text = format!("throw_on_cudamalloc_oom:True,{half}");
    let lab = Lab::with(Config::from_torch_conf(&text).expect("legal"), options);
    let held = lab.get(400 * MIB);
    drop(lab.get(2 * MIB));
    let reserved = lab.allocator.memory_reserved();
    assert_eq!(lab.refused(200 * MIB), OomCause::Rejected);
    assert_eq!((lab.stat("num_oom_rejections"), lab.stat("num_alloc_retries")), (1, 0));
    assert_eq!(lab.allocator.memory_reserved(), reserved, "nothing was released for it");
    drop(held);
    lab.get(400 * MIB);
    lab.allocator.verify();

    let lab = Lab::with(Config::from_torch_conf(half).expect("legal"), options);
    let _held = lab.get(400 * MIB);
    assert_eq!(lab.refused(200 * MIB), OomCause::NoRoom);
    assert_eq!((lab.stat("num_oom_rejections"), lab.stat("num_ooms")), (0, 1));
}

/// D15 again: without a fraction the device's memory is the bound.
fn d15_throw_on_cudamalloc_oom_without_a_fraction(virtual_memory: bool) {
    let options = SimOptions { capacity: GIB, virtual_memory, ..Default::default() };
    let config = Config::from_torch_conf("throw_on_cudamalloc_oom:True").expect("legal");
    let lab = Lab::with(config, options);
    let _held = lab.get(600 * MIB);
    assert_eq!(lab.refused(600 * MIB), OomCause::Rejected);
    assert_eq!((lab.stat("num_oom_rejections"), lab.stat("num_alloc_retries")), (1, 0));
}

/// D16 `test_allocator_backend`, `test_allocator_memory_fraction_setting`: the fraction of a string
/// binds and reads back, and has a range; the backend is a type here, so only the native one
/// parses.
#[test]
fn d16_allocator_memory_fraction_setting() {
    for fraction in ["0", "0.0", "0.5", "1", "1.0"] {
        let text = format!("per_process_memory_fraction:{fraction}");
        let config = Config::from_torch_conf(&text).expect("within the range");
        let allocator = Allocator::new(Sim::new(SimOptions::default()), config);
        assert_eq!(Ok(allocator.memory_fraction()), fraction.parse());
    }
    for fraction in ["-0.1", "1.1", "NaN", "half"] {
        let text = format!("per_process_memory_fraction:{fraction}");
        let error = Config::from_torch_conf(&text).expect_err("beyond the range");
        assert!(error.to_string().starts_with("per_process_memory_fraction"), "{error}");
    }
    assert_eq!(Config::from_torch_conf("backend:native"), Ok(Config::torch()));
    assert!(Config::from_torch_conf("backend:cudaMallocAsync").is_err());
}

/// D17 `test_cachingAllocator_raw_alloc`: a raw allocation of 1 MiB moves the statistics by 1 MiB.
/// (Caching cannot be switched off.)
fn d17_raw_alloc_moves_the_statistics(expandable: bool) {
    let lab = Lab::new(expandable);
    let before = lab.stat("allocated_bytes.all.current");
    let raw = lab.allocator.request(MIB).allocate_raw().expect("a MiB");
    assert_eq!(lab.stat("allocated_bytes.all.current"), before + MIB as i64);
    lab.allocator.free_address(raw.address.expect("an address")).expect("it is live");
    assert_eq!(lab.stat("allocated_bytes.all.current"), before);
}

/// D18 `test_raises_oom`, with and without `max_split_size_mb:1024`: 4 TB are too much.
fn d18_raises_oom(virtual_memory: bool) {
    for text in ["", "max_split_size_mb:1024"] {
        let config = Config::from_torch_conf(text).expect("legal");
        let options = SimOptions { capacity: 24 * GIB, virtual_memory, ..Default::default() };
        let lab = Lab::with(config, options);
        drop(lab.get(GIB));
        assert_eq!(lab.refused(4096 * GIB), OomCause::NoRoom, "{text}");
        assert_eq!(lab.refused(1024 * GIB), OomCause::NoRoom, "{text}");
        lab.get(GIB);
        lab.allocator.verify();
    }
}

/// D19 `test_notifies_oom`: whoever asked is told once, before the error.
fn d19_notifies_oom(expandable: bool) {
    let lab = Lab::of(24 * GIB, expandable);
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let guard = lab.allocator.on_out_of_memory(0, move |pressure| {
        assert_eq!(pressure.requested, 1024 * GIB);
        count.fetch_add(1, Ordering::Relaxed);
        false
    });
    lab.refused(1024 * GIB);
    assert_eq!(told.load(Ordering::Relaxed), 1);
    drop(guard);
    lab.refused(1024 * GIB);
    assert_eq!(told.load(Ordering::Relaxed), 1);
}

/// D20 `test_allocator_fuzz`: 10,000 random steps of 2 to 20 MiB, under 100 MiB live, keep contents
/// intact: no two live blocks ever overlap, and the device has memory behind each.
fn d20_allocator_fuzz(expandable: bool) {
    let lab = Lab::of(300 * MIB, expandable);
    let mut dice = Dice::new(20);
    let mut live: BTreeMap<u64, Allocation<Sim>> = BTreeMap::new();
    let mut held = 0;
    for step in 0..10_000 {
        let choice = dice.roll(100);
        if choice == 0 {
            lab.allocator.empty_cache();
        } else if choice < 50 || live.is_empty() {
            let size = 2 * MIB + dice.roll(18 * MIB);
            while held + size > 100 * MIB {
                held -= live.pop_first().map_or(0, |(_, tensor)| tensor.size());
            }
            let tensor = lab.get(size);
            let at = address(&tensor);
            assert!(lab.sim.is_accessible(at, size), "step {step}: no memory behind {at:#x}");
            let before = live.range(..=at).next_back();
            let clear = before.is_none_or(|(start, other)| start + other.size() <= at);
            let next = live.range(at..).next();
            assert!(
                clear && next.is_none_or(|(start, _)| at + size <= *start),
                "step {step}: {size} bytes at {at:#x} were given out twice"
            );
            held += size;
            live.insert(at, tensor);
        } else {
            let nth = dice.roll(live.len() as u64) as usize;
            let at = *live.keys().nth(nth).expect("a live block");
            held -= live.remove(&at).map_or(0, |tensor| tensor.size());
        }
        if step % 500 == 0 {
            lab.allocator.verify();
        }
    }
    drop(live);
    lab.allocator.empty_cache();
    assert_eq!((lab.sim.used_bytes(), lab.sim.leaked()), (0, 0));
}

/// Blocks of a segment as (size, whether a user holds it).
pub(crate) fn layout(segment: &SegmentSnapshot) -> Vec<(Bytes, bool)> {
    let held = |block: &BlockSnapshot| block.state == BlockState::Allocated;
    segment.blocks.iter().map(|block| (block.size, held(block))).collect()
}
