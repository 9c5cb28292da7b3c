//! A scope from its beginning to its submission, and small uploads through it.
//!
//! The rival of an empty scope is an encoder without one. Uploads: 64 blocks of 4 KiB, recorded,
//! submitted and waited for, by `Scope::upload` one by one, by `Scope::upload_all`, and by
//! `queue.write_buffer`, which is allowed here, since nothing else is being recorded.

use aquifer::surface::wgpu::Upload;
use aquifer::{WgpuAllocation, WgpuAllocator};

use crate::gpu::{Gpu, encoder, wait};
use crate::harness::{Run, interleave, nanoseconds_each};

const BLOCKS: usize = 64;
const SIZE: u64 = 4 << 10;

pub(crate) fn run(run: Run, gpu: &Gpu) {
    let memory = gpu.allocator();
    empty(run.section("scopes: us per submission"), &memory);
    uploads(run.section("scopes: us per 64 uploads"), &memory);
}

fn empty(run: Run, memory: &WgpuAllocator) {
    let (device, queue) = (memory.device(), memory.queue());
    let turns = run.pick(200, 2);
    let mut scope = || {
        nanoseconds_each(turns, || {
            for _ in 0..turns {
                let mut encoder = encoder(device);
                let scope = memory.begin(&mut encoder);
                scope.submit(encoder);
            }
            wait(device);
        })
    };
    let mut bare = || {
        nanoseconds_each(turns, || {
            for _ in 0..turns {
                queue.submit([encoder(device).finish()]);
            }
            wait(device);
        })
    };
    let [scope, bare] = interleave(run.pick(50, 2), [&mut scope, &mut bare]);
    run.heading(&["median", "bare median", "ratio"]);
    let figures = [
        ("median_us", scope.median() / 1e3),
        ("bare_us", bare.median() / 1e3),
        ("ratio", scope.over(&bare).median()),
    ];
    run.result("an empty scope", &figures);
}

fn uploads(run: Run, memory: &WgpuAllocator) {
    let blocks: Vec<WgpuAllocation> =
        (0..BLOCKS).map(|_| memory.allocate(SIZE).expect("it is small")).collect();
    let bytes = vec![7; SIZE as usize];
    let turns = run.pick(10, 1);
    let turn = |record: &dyn Fn()| {
        nanoseconds_each(turns, || {
            for _ in 0..turns {
                record();
                wait(memory.device());
            }
        })
    };
    let one_by_one = || {
        let mut encoder = encoder(memory.device());
        let mut scope = memory.begin(&mut encoder);
        for block in &blocks {
            scope.upload(&mut encoder, block, 0, &bytes).expect("there is room");
        }
        scope.submit(encoder);
    };
    let all = || {
        let mut encoder = encoder(memory.device());
        let mut scope = memory.begin(&mut encoder);
        let uploads: Vec<_> =
            blocks.iter().map(|to| Upload { to, offset: 0, bytes: &bytes }).collect();
        scope.upload_all(&mut encoder, &uploads).expect("there is room");
        scope.submit(encoder);
    };
    let write = || {
        for block in &blocks {
            memory.queue().write_buffer(block.buffer(), block.offset(), &bytes);
        }
        memory.queue().submit([encoder(memory.device()).finish()]);
    };
    let series = interleave(
        run.pick(50, 2),
        [&mut || turn(&one_by_one), &mut || turn(&all), &mut || turn(&write)],
    );
    run.heading(&["median", "ratio"]);
    for (name, own) in
        ["Scope::upload", "Scope::upload_all", "queue.write_buffer"].iter().zip(&series)
    {
        let figures = [("median_us", own.median() / 1e3), ("ratio", own.over(&series[2]).median())];
        run.result(name, &figures);
    }
}
