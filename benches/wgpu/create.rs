//! The same hit beside what it replaces: `create_buffer` and drop, 64 KiB.
//!
//! wgpu looks through all free ranges of a block of memory for the best one, so its cost grows with
//! the holes in its heap. Here every second one of 20,000 small buffers, or blocks, was dropped.
//! The rival has the device that a program without this crate would ask for.

use std::hint::black_box;

use crate::gpu::{Gpu, buffer};
use crate::harness::{Bar, Run, interleave, nanoseconds_each};

const SIZE: u64 = 64 << 10;
const SMALL: u64 = 4 << 10;

pub(crate) fn run(run: Run, gpu: &Gpu) {
    let run = run.section("create: ns per 64 KiB");
    run.heading(&["median", "create median", "times faster"]);
    let rounds = run.pick(100, 2);
    for (holes, bar) in [(0, 1.0), (run.pick(10_000, 100), 10.0)] {
        let mut own = own(gpu, holes, run.pick(5_000, 10));
        let mut rival = wgpu_alone(gpu, holes, run.pick(200, 10));
        let [own, rival] = interleave(rounds, [&mut own, &mut rival]);
        let figures = [
            ("median_ns", own.median()),
            ("create_ns", rival.median()),
            ("times_faster", rival.over(&own).median()),
        ];
        run.judge(&format!("{holes} holes"), &figures, Bar::AtLeast(bar));
    }
}

/// What is left of `2 * holes` things when every second one is gone.
fn every_second<T>(holes: usize, mut make: impl FnMut() -> T) -> Vec<T> {
    let all: Vec<T> = (0..2 * holes).map(|_| make()).collect();
    all.into_iter().step_by(2).collect()
}

fn own(gpu: &Gpu, holes: usize, pairs: usize) -> impl FnMut() -> f64 {
    let memory = gpu.allocator();
    let kept = every_second(holes, || memory.allocate(SMALL).expect("it is small"));
    drop(memory.allocate(SIZE));
    move || {
        black_box(&kept);
        nanoseconds_each(pairs, || {
            for _ in 0..pairs {
                black_box(memory.allocate(SIZE).expect("it was free before"));
            }
        })
    }
}

fn wgpu_alone(gpu: &Gpu, holes: usize, pairs: usize) -> impl FnMut() -> f64 {
    let (device, queue) = gpu.with_default_hints();
    let kept = every_second(holes, || buffer(&device, SMALL));
    move || {
        black_box((&kept, &queue));
        nanoseconds_each(pairs, || {
            for _ in 0..pairs {
                black_box(buffer(&device, SIZE));
            }
        })
    }
}
