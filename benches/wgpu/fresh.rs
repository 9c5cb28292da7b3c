//! An iteration of a program that needs a large temporary: record one kernel on it that touches
//! 256 bytes, submit, wait.
//!
//! wgpu clears what was never written before anyone reads it, and the system finds pages for it.
//! Memory that is used again was written already.

use crate::gpu::{Gpu, buffer, dispatch, encoder, kernel, wait};
use crate::harness::{Bar, Run, interleave, nanoseconds_each};

const KERNEL: &str = "
    @group(0) @binding(0) var<storage, read_write> x: array<u32>;
    @compute @workgroup_size(64)
    fn main(@builtin(global_invocation_id) at: vec3<u32>) { x[at.x] = at.x; }
";

pub(crate) fn run(run: Run, gpu: &Gpu) {
    let run = run.section("fresh: us per iteration");
    run.heading(&["median", "fresh median", "times faster"]);
    let size: u64 = run.pick(128 << 20, 1 << 20);
    let mut own = cached(gpu, size, run.pick(10, 1));
    let mut rival = fresh(gpu, size);
    let [own, rival] = interleave(run.pick(30, 2), [&mut own, &mut rival]);
    let figures = [
        ("median_us", own.median() / 1e3),
        ("fresh_us", rival.median() / 1e3),
        ("times_faster", rival.over(&own).median()),
    ];
    run.judge(&format!("{} MiB temporary", size >> 20), &figures, Bar::AtLeast(100.0));
}

fn cached(gpu: &Gpu, size: u64, turns: usize) -> impl FnMut() -> f64 {
    let memory = gpu.allocator();
    let kernel = kernel(memory.device(), KERNEL);
    move || {
        nanoseconds_each(turns, || {
            for _ in 0..turns {
                let mut encoder = encoder(memory.device());
                let scope = memory.begin(&mut encoder);
                let block = scope.allocate(size).expect("there is room");
                dispatch(memory.device(), &mut encoder, &kernel, &[scope.binding(&block)]);
                drop(block);
                scope.submit(encoder);
                wait(memory.device());
            }
        })
    }
}

fn fresh(gpu: &Gpu, size: u64) -> impl FnMut() -> f64 {
    let (device, queue) = gpu.with_default_hints();
    let kernel = kernel(&device, KERNEL);
    move || {
        nanoseconds_each(1, || {
            let mut encoder = encoder(&device);
            let temporary = buffer(&device, size);
            dispatch(&device, &mut encoder, &kernel, &[temporary.as_entire_binding()]);
            drop(temporary);
            queue.submit([encoder.finish()]);
            wait(&device);
        })
    }
}
