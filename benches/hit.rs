//! What does a cached allocation and its free cost, through the public API?
//!
//! One pair of [`Allocator::allocate`] and drop of 64 KiB, with all that is always on: statistics,
//! the stream's bookkeeping, the lock, the caller's source line. Three states of the cache:
//!
//! - *whole segment*: nothing else is live, so each pair cuts a 2 MiB segment, merges it again, and
//!   takes it out of the idle list and back. The most that a hit does.
//! - *part of a segment*: something else lives in the segment: a cut and a merge, no idle list.
//! - *exact block*: a gap of just that size between two live blocks: no cut, no merge.
//!
//! Each once with one stream and once with a second one registered (when peaks are leased).
//!
//! Rivals, in turn within every round: `offset-allocator`, one arena without streams, statistics or
//! lock, in the same three states; and for the whole arena `rlsf`, TLSF over host memory.
//!
//! `cargo bench --bench hit`. Two cores shared with other programs: minima repeat within 3 %,
//! medians within 10 %, ratios within 5 %.

mod harness;

use std::alloc::Layout;
use std::hint::black_box;
use std::mem::MaybeUninit;

use aquifer::{Allocator, Config};
use harness::void::Void;
use harness::{Run, interleave, nanoseconds_each};

const SIZE: u64 = 64 << 10;
const GRANULE: u64 = 512;

/// What is live besides the block that comes and goes.
#[derive(Debug, Clone, Copy)]
enum Scene {
    WholeSegment,
    PartOfSegment,
    ExactBlock,
}

fn main() {
    let run = Run::new("hit: ns per allocate + free");
    let rounds = run.pick(200, 2);
    let pairs = run.pick(20_000, 10);
    run.heading(&["min", "median", "rival min", "rival median", "ratio"]);
    for (name, scene) in [
        ("whole segment", Scene::WholeSegment),
        ("part of a segment", Scene::PartOfSegment),
        ("exact block", Scene::ExactBlock),
    ] {
        for streams in 1..=2 {
            let case = format!("{name}, {streams} stream{}", if streams > 1 { "s" } else { "" });
            let mut own = aquifer(scene, streams, pairs);
            let mut rival = offset_allocator(scene, pairs);
            let [own, rival] = interleave(rounds, [&mut own, &mut rival]);
            let ratio = own.over(&rival).median();
            let figures = [
                ("min_ns", own.min()),
                ("median_ns", own.median()),
                ("rival_min_ns", rival.min()),
                ("rival_median_ns", rival.median()),
                ("ratio", ratio),
            ];
            run.result(&case, &figures);
        }
    }
    let mut arena = vec![MaybeUninit::<u8>::uninit(); 2 << 20];
    let [rlsf] = interleave(rounds, [&mut rlsf(&mut arena, pairs)]);
    run.result("(rlsf, whole arena)", &[("min_ns", rlsf.min()), ("median_ns", rlsf.median())]);
}

/// One turn of this crate.
fn aquifer(scene: Scene, streams: u32, pairs: usize) -> impl FnMut() -> f64 {
    let allocator = Allocator::new(Void::new(), Config::default());
    for stream in 1..streams {
        drop(allocator.allocate_on(&allocator.stream(stream), SIZE));
    }
    let allocate = move || allocator.allocate(SIZE).expect("the device has no end");
    let blocks = [(); 3].map(|()| allocate());
    let [first, middle, last] = blocks.map(Some);
    drop(middle);
    let live = match scene {
        Scene::WholeSegment => [None, None],
        Scene::PartOfSegment => [first, None],
        Scene::ExactBlock => [first, last],
    };
    move || {
        black_box(&live);
        nanoseconds_each(pairs, || {
            for _ in 0..pairs {
                black_box(allocate());
            }
        })
    }
}

/// One turn of `offset-allocator`, over an arena of the segment's size.
fn offset_allocator(scene: Scene, pairs: usize) -> impl FnMut() -> f64 {
    let mut arena: offset_allocator::Allocator<u32> =
        offset_allocator::Allocator::new(((2 << 20) / GRANULE) as u32);
    let granules = (SIZE / GRANULE) as u32;
    let blocks = [(); 3].map(|()| arena.allocate(granules).expect("the arena is large enough"));
    let free: &[usize] = match scene {
        Scene::WholeSegment => &[0, 1, 2],
        Scene::PartOfSegment => &[1, 2],
        Scene::ExactBlock => &[1],
    };
    free.iter().for_each(|&index| arena.free(blocks[index]));
    move || {
        nanoseconds_each(pairs, || {
            for _ in 0..pairs {
                let block = arena.allocate(black_box(granules)).expect("it was free before");
                arena.free(black_box(block));
            }
        })
    }
}

/// One turn of `rlsf`.
fn rlsf(arena: &mut [MaybeUninit<u8>], pairs: usize) -> impl FnMut() -> f64 {
    let mut tlsf: rlsf::Tlsf<'_, u32, u32, 20, 32> = rlsf::Tlsf::new();
    tlsf.insert_free_block(arena);
    let layout = Layout::from_size_align(SIZE as usize, 512).expect("512 is a power of two");
    move || {
        nanoseconds_each(pairs, || {
            for _ in 0..pairs {
                let block = tlsf.allocate(black_box(layout)).expect("it was free before");
                // SAFETY: the block is live, of this allocator, and has this alignment.
                unsafe { tlsf.deallocate(black_box(block), layout.align()) };
            }
        })
    }
}
