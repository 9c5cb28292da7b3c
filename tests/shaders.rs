//! The kernels in `shaders/` against plain loops on the CPU, on the Vulkan adapter.
//!
//! Two kinds of comparison:
//! - Words (`shaders/words.rs`) are equal or wrong.
//! - Numbers (`shaders/layer.rs`, `shaders/training.rs`) lie within a bound that is computed along
//!   with each of them (`shaders/near.rs`): what rounding may do in any order of the sums and with
//!   or without fused multiply-add, and no more. There is no tolerance to tune.
//!
//! Sizes are those where kernels go wrong: one value, one off a tile, not a multiple of anything,
//! and more workgroups than fit in one dimension. Operands and outputs are followed by words that
//! belong to nobody, inside the binding, so that only the kernel's own bounds keep it off them.
#![cfg(feature = "wgpu")]

#[path = "support/gpu.rs"]
mod gpu;
#[path = "shaders/layer.rs"]
mod layer;
#[path = "shaders/near.rs"]
mod near;
mod support;
#[path = "shaders/training.rs"]
mod training;
#[path = "shaders/words.rs"]
mod words;

use std::path::Path;

use bytemuck::Pod;
use gpu::{Dispatch, Gpu, whole};
use support::Rng;
use wgpu::Buffer;

/// Name, text.
const SHADERS: &[(&str, &str)] = &[
    ("adam.wgsl", ADAM),
    ("fill.wgsl", FILL),
    ("linear.wgsl", LINEAR),
    ("loss.wgsl", LOSS),
    ("matmul.wgsl", MATMUL),
    ("stamp.wgsl", STAMP),
];

const ADAM: &str = include_str!("../shaders/adam.wgsl");
const FILL: &str = include_str!("../shaders/fill.wgsl");
const LINEAR: &str = include_str!("../shaders/linear.wgsl");
const LOSS: &str = include_str!("../shaders/loss.wgsl");
const MATMUL: &str = include_str!("../shaders/matmul.wgsl");
const STAMP: &str = include_str!("../shaders/stamp.wgsl");

/// Invocations of a workgroup of the one-dimensional kernels.
const INVOCATIONS: u64 = 256;

/// Needs 65,537 workgroups of 256, which is more than one dimension has.
const HUGE: usize = 65_536 * 256 + 3;

/// Sizes of arrays.
const SIZES: &[usize] = &[1, 15, 16, 17, 255, 256, 257, 64_000, HUGE];

/// What stands behind an output: as a number about 1.5, which any addition to it would change.
const NOBODYS: u32 = 0x3FC0_BEEF;

/// How many words of it: more than a workgroup, so that a workgroup too many is seen.
const NOBODYS_WORDS: usize = 300;

/// The contents of a block, and words behind it that belong to nobody.
struct Guarded {
    buffer: Buffer,
    words: usize,
}

impl Guarded {
    fn new<T: Pod>(gpu: &Gpu, contents: &[T]) -> Self {
        let mut words: Vec<u32> = bytemuck::cast_slice(contents).to_vec();
        words.resize(contents.len() + NOBODYS_WORDS, NOBODYS);
        Self { buffer: gpu.buffer(&words), words: contents.len() }
    }

    /// The block, after a look at what stands behind it.
    #[track_caller]
    fn read<T: Pod>(&self, gpu: &Gpu) -> Vec<T> {
        let mut words: Vec<u32> = gpu.read(&self.buffer);
        let behind = words.split_off(self.words);
        assert!(behind.iter().all(|word| *word == NOBODYS), "written behind the block");
        bytemuck::cast_vec(words)
    }
}

/// Numbers that a kernel only reads. Behind them is what is not a number, and makes so whatever it
/// gets into.
fn operand(gpu: &Gpu, values: &[f32]) -> Buffer {
    let mut values = values.to_vec();
    values.resize(values.len() + NOBODYS_WORDS, f32::NAN);
    gpu.buffer(&values)
}

/// One kernel over whole buffers, in the order of `bindings`.
fn run(gpu: &Gpu, kernel: &wgpu::ComputePipeline, bindings: &[(u32, &Buffer)], groups: [u32; 3]) {
    let bindings = bindings.iter().map(|(at, buffer)| (*at, whole(buffer))).collect();
    gpu.run(&[Dispatch { pipeline: kernel, bindings, groups }]);
}

/// Workgroups of 256 for so many values.
fn groups_of(gpu: &Gpu, values: usize) -> [u32; 3] {
    gpu.fold((values as u64).div_ceil(INVOCATIONS))
}

/// Uniform in -1 ... 1.
fn symmetric(random: &mut Rng) -> f32 {
    (random.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
}

fn numbers(random: &mut Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| symmetric(random)).collect()
}

/// `values` over and over, up to `len`. A length of `values` that is prime to all sizes of tiles
/// and workgroups keeps a wrong index from finding the right value.
fn cycle<T: Copy>(values: &[T], len: usize) -> Vec<T> {
    let mut cycled = values.repeat(len.div_ceil(values.len()));
    cycled.truncate(len);
    cycled
}

/// The length of what is cycled: a prime.
const PERIOD: usize = 4_099;

#[test]
fn every_shader_is_known_here() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let entries = std::fs::read_dir(dir).expect("the shaders");
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.expect("an entry of the directory").file_name().to_string_lossy().into_owned()
    };
    // The kernels for CUDA have a folder and tests of their own.
    let mut found: Vec<String> = entries.map(name).filter(|name| name != "cuda").collect();
    found.sort();
    let known: Vec<&str> = SHADERS.iter().map(|(name, _)| *name).collect();
    assert_eq!(found, known, "a shader without a test, or the other way round");
}

/// Operands lie in one buffer, where `read` beside `read_write` is an error of the dispatch.
#[test]
fn storage_is_read_write_everywhere() {
    for (name, text) in SHADERS {
        let mut declarations = text.split("var<storage").skip(1);
        let other = declarations.find(|rest| !rest.starts_with(", read_write>"));
        assert!(other.is_none(), "{name}: a storage binding that is not read_write: {other:?}");
    }
}
