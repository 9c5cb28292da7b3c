//! A hit: 64 KiB from the cache and back, as `benches/hit.rs` has it, through [`WgpuAllocator`].
//!
//! The rival is [`Allocator`] on host memory with as many streams: the same core, and nothing of
//! wgpu. *Touched* asks for the binding too, which looks the segment up.

use std::hint::black_box;

use aquifer::backend::Host;
use aquifer::{Allocator, Config, WgpuAllocator};

use crate::gpu::{Gpu, encoder};
use crate::harness::{Bar, Run, interleave, nanoseconds_each};

const SIZE: u64 = 64 << 10;

/// The most that the surface and the backend may add.
const BAR: Bar = Bar::AtMost(1.5);

/// What else is live, and where the block comes from.
#[derive(Debug, Clone, Copy)]
struct Scene {
    alone: bool,
    in_scope: bool,
    pairs: usize,
}

pub(crate) fn run(run: Run, gpu: &Gpu) {
    let run = run.section("hit: ns per allocate + drop");
    run.heading(&["median", "host median", "ratio"]);
    let (rounds, pairs) = (run.pick(100, 2), run.pick(20_000, 10));
    for (place, in_scope) in [("outside of scopes", false), ("in a scope", true)] {
        for (state, alone) in [("whole segment", true), ("part of one", false)] {
            let scene = Scene { alone, in_scope, pairs };
            let series = interleave(
                rounds,
                [&mut own(gpu, scene, false), &mut own(gpu, scene, true), &mut host(scene)],
            );
            let [plain, touched, rival] = &series;
            let figures = |own: &crate::harness::Series| {
                let ratio = own.over(rival).median();
                [("median_ns", own.median()), ("host_ns", rival.median()), ("ratio", ratio)]
            };
            run.judge(&format!("{place}, {state}"), &figures(plain), BAR);
            run.result("  touched", &figures(touched));
        }
    }
}

/// One turn of this crate.
fn own(gpu: &Gpu, scene: Scene, touched: bool) -> impl FnMut() -> f64 {
    let memory = gpu.allocator();
    let mut encoder = encoder(memory.device());
    let scope = scene.in_scope.then(|| memory.begin(&mut encoder));
    let other = (!scene.alone).then(|| allocate(&memory, scope.as_ref()));
    drop(allocate(&memory, scope.as_ref()));
    move || {
        black_box((&encoder, &other));
        nanoseconds_each(scene.pairs, || match (&scope, touched) {
            (None, false) => (0..scene.pairs).for_each(|_| {
                black_box(allocate(&memory, None));
            }),
            (None, true) => (0..scene.pairs).for_each(|_| {
                black_box(allocate(&memory, None).binding());
            }),
            (Some(scope), false) => (0..scene.pairs).for_each(|_| {
                black_box(allocate(&memory, Some(scope)));
            }),
            (Some(scope), true) => (0..scene.pairs).for_each(|_| {
                black_box(scope.binding(&allocate(&memory, Some(scope))));
            }),
        })
    }
}

#[inline]
fn allocate(memory: &WgpuAllocator, scope: Option<&aquifer::Scope>) -> aquifer::WgpuAllocation {
    let block = match scope {
        Some(scope) => scope.allocate(SIZE),
        None => memory.allocate(SIZE),
    };
    block.expect("there is room for one block")
}

/// One turn of the core over host memory.
fn host(scene: Scene) -> impl FnMut() -> f64 {
    let allocator = Allocator::new(Host::new(), Config::default());
    let stream = allocator.stream(u32::from(scene.in_scope));
    let allocate = move || {
        let block = if scene.in_scope {
            allocator.allocate_on(&stream, SIZE)
        } else {
            allocator.allocate(SIZE)
        };
        block.expect("there is room for one block")
    };
    let other = (!scene.alone).then(&allocate);
    drop(allocate());
    move || {
        black_box(&other);
        nanoseconds_each(scene.pairs, || {
            for _ in 0..scene.pairs {
                black_box(allocate());
            }
        })
    }
}
