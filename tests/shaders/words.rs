//! `stamp`, `check` and `fill`: whole words, right or wrong.

use super::{FILL, Guarded, HUGE, Rng, SIZES, STAMP, groups_of, run};
use crate::gpu::Gpu;

fn mix(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
    x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
    x ^ (x >> 16)
}

fn marks(seed: u32, words: usize) -> Vec<u32> {
    let seed = mix(seed.wrapping_add(0x85EB_CA6B));
    (0..words as u32).map(|index| mix(mix(index.wrapping_add(0x9E37_79B9)) ^ seed)).collect()
}

/// What `check` adds to a counter that starts at 1,000.
fn count(gpu: &Gpu, block: &Guarded, seed: u32) -> u32 {
    let check = gpu.pipeline(STAMP, "check");
    let params = gpu.uniform(&[block.words as u32, seed]);
    let counter = Guarded::new(gpu, &[1_000_u32]);
    let bindings = [(0, &params), (1, &block.buffer), (2, &counter.buffer)];
    run(gpu, &check, &bindings, groups_of(gpu, block.words));
    counter.read::<u32>(gpu)[0] - 1_000
}

#[test]
fn stamp_writes_every_mark() {
    let Some(gpu) = Gpu::shared() else { return };
    let stamp = gpu.pipeline(STAMP, "stamp");
    for (&words, seed) in SIZES.iter().zip(40..) {
        let block = Guarded::new(gpu, &vec![0_u32; words]);
        let params = gpu.uniform(&[words as u32, seed]);
        run(gpu, &stamp, &[(0, &params), (1, &block.buffer)], groups_of(gpu, words));
        assert!(block.read::<u32>(gpu) == marks(seed, words), "{words} words");
        assert_eq!(count(gpu, &block, seed), 0, "{words} words, none is wrong");
    }
}

/// None, one at either end or inside, some, all: exactly these are counted. Words behind the block
/// are wrong too, and not counted.
#[test]
fn check_counts_what_is_wrong() {
    let Some(gpu) = Gpu::shared() else { return };
    let seed = 7;
    let mut random = Rng::new(11);
    for &words in SIZES {
        let right = marks(seed, words);
        let inside = random.below(words as u64) as usize;
        for wrong in [&[0][..], &[words - 1], &[inside]] {
            let mut marks = right.clone();
            wrong.iter().for_each(|at| marks[*at] ^= 1 << 31);
            let count = count(gpu, &Guarded::new(gpu, &marks), seed);
            assert_eq!(count, 1, "{words} words, wrong at {wrong:?}");
        }
        let mut some = right.clone();
        let scattered = some.iter_mut().step_by(7);
        let put_in = scattered.map(|word| *word ^= 1).count();
        assert_eq!(count(gpu, &Guarded::new(gpu, &some), seed), put_in as u32, "{words} words");
        let none: Vec<u32> = right.iter().map(|word| !word).collect();
        assert_eq!(count(gpu, &Guarded::new(gpu, &none), seed), words as u32, "all are wrong");
    }
}

/// What a block may hold by accident: zeros, another block's marks, its own but shifted. Chance
/// lets one word in 2^32 pass, and the seeds are fixed, so it never does.
#[test]
fn no_accident_passes() {
    let Some(gpu) = Gpu::shared() else { return };
    let words = 64_000;
    let shifted = marks(0, words + 1).split_off(1);
    let accidents = [
        ("zeros", vec![0; words]),
        ("the next seed", marks(1, words)),
        ("shifted by a word", shifted),
    ];
    for (name, contents) in accidents {
        let count = count(gpu, &Guarded::new(gpu, &contents), 0);
        assert_eq!(count, words as u32, "{name}");
    }
}

#[test]
fn fill_fills() {
    let Some(gpu) = Gpu::shared() else { return };
    let fill = gpu.pipeline(FILL, "fill");
    for &words in SIZES {
        for value in [0_u32, 0xA5A5_A5A5, 1.5_f32.to_bits()] {
            let block = Guarded::new(gpu, &vec![!value; words]);
            let params = gpu.uniform(&[words as u32, value]);
            run(gpu, &fill, &[(0, &params), (1, &block.buffer)], groups_of(gpu, words));
            let filled = block.read::<u32>(gpu).iter().all(|word| *word == value);
            assert!(filled, "{words} words of {value:#x}");
        }
    }
}

/// The largest size is what it is for: it does not fit in one dimension.
#[test]
fn huge_blocks_are_folded() {
    let Some(gpu) = Gpu::shared() else { return };
    let [x, y, z] = groups_of(gpu, HUGE);
    assert!(x <= 65_535 && y > 1 && z == 1, "{x} x {y} x {z} workgroups");
    assert!(u64::from(x) * u64::from(y) * 256 >= HUGE as u64, "{x} x {y} workgroups are too few");
}
