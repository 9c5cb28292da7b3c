//! The GPU against the CPU, step by step, and what a step costs the allocator.

#[path = "../../../../../tests/support/gpu.rs"]
mod support;

use super::super::Random;
use super::super::host::{Adam, Batch, Linear, Memory, generate};
use super::super::source::Aquifer;
use super::*;
use aquifer::backend::Host;
use aquifer::{Allocator, Config, WgpuAllocator};
use support::Gpu;

/// An allocator over a device of its own; nothing where there is no adapter.
fn gpu() -> Option<WgpuAllocator> {
    let adapter = &Gpu::shared()?.adapter;
    let descriptor = aquifer::recommended_device_descriptor(adapter);
    let opened = pollster::block_on(adapter.request_device(&descriptor));
    let (device, queue) = opened.expect("the adapter opens another device");
    Some(WgpuAllocator::new(device, queue))
}

/// A layer and its data in memory of the CPU.
fn start(shape: Shape, batch: usize) -> (Memory<Host>, Vec<Batch<Host>>, Linear<Host>) {
    let memory = Memory::new(&Allocator::new(Host::new(), Config::default()));
    let mut random = Random(7);
    let data = generate(&memory, shape, (2, batch), &mut random).expect("room");
    let linear = Linear::new(&memory, shape, &mut random).expect("room");
    (memory, data, linear)
}

/// Shapes below, at and across the edges of tiles and workgroups.
const SHAPES: [(Shape, usize); 5] = [
    (Shape { inputs: 1, outputs: 1 }, 1),
    (Shape { inputs: 16, outputs: 64 }, 64),
    (Shape { inputs: 37, outputs: 70 }, 6),
    (Shape { inputs: 130, outputs: 3 }, 67),
    (Shape { inputs: 65, outputs: 129 }, 17),
];

/// A hundredth of what a step moves a parameter by.
const NEAR: f32 = 1e-5;

#[test]
fn every_step_is_that_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for (shape, batch) in SHAPES {
        let (memory, data, mut linear) = start(shape, batch);
        let source = Aquifer::new(&gpu);
        let mut training = Training::new(source.clone(), &linear, &data).expect("room");
        let mut adam = Adam::new(&memory, &linear).expect("room");
        for (step, batch) in (1..=6).zip(data.iter().cycle()) {
            let (_, loss) = training.step().expect("room");
            let loss = source.read(&loss).expect("it was submitted")[0];
            let wanted = adam.train(&memory, &mut linear, batch).expect("room").loss();
            let off = (loss - wanted).abs();
            assert!(off <= 1e-5 * wanted.max(1.0), "{shape:?}, {step}: {loss}, not {wanted}");
            let got = training.parameters().expect("room");
            for (got, wanted) in got.iter().zip(linear.parameters()) {
                let got = source.read(got).expect("it was submitted");
                assert_eq!(got.len(), wanted.len());
                let off = got.iter().zip(wanted).map(|(got, wanted)| (got - wanted).abs());
                // Written so that it fails on what is not a number.
                assert!(off.clone().all(|off| off <= NEAR), "{shape:?}, {step}: {off:?}");
            }
        }
        let loss = source.read(&training.loss().expect("room")).expect("submitted")[0];
        let wanted = linear.forward(&memory, &data[0]).expect("room").loss();
        assert!((loss - wanted).abs() <= 1e-5 * wanted.max(1.0), "{shape:?}: {loss}, not {wanted}");
    }
    gpu.verify();
}

#[test]
fn losses_that_are_read_late_are_those_of_their_step() {
    let Some(gpu) = gpu() else { return };
    let (memory, data, mut linear) = start(Shape { inputs: 20, outputs: 30 }, 9);
    let source = Aquifer::new(&gpu);
    let mut training = Training::new(source.clone(), &linear, &data).expect("room");
    let losses: Vec<_> = (0..12).map(|_| training.step().expect("room").1).collect();
    let mut adam = Adam::new(&memory, &linear).expect("room");
    for (loss, batch) in losses.iter().zip(data.iter().cycle()) {
        let loss = source.read(loss).expect("it was submitted")[0];
        let wanted = adam.train(&memory, &mut linear, batch).expect("room").loss();
        assert!((loss - wanted).abs() <= 1e-5 * wanted.max(1.0), "{loss}, not {wanted}");
    }
}

#[test]
fn a_step_leaves_nothing_behind_and_soon_asks_nothing_of_the_backend() {
    let Some(gpu) = gpu() else { return };
    let (_, data, linear) = start(Shape { inputs: 300, outputs: 200 }, 16);
    let source = Aquifer::new(&gpu);
    let mut training = Training::new(source.clone(), &linear, &data).expect("room");
    let mut step = || {
        let (forward, loss) = training.step().expect("room");
        source.read(&loss).expect("it was submitted");
        drop((forward, loss));
        (gpu.memory_stats().num_device_alloc, gpu.memory_allocated())
    };
    // The first makes segments, the second has its upload chunk made ready again.
    let settled = [step(), step()][1];
    for _ in 0..5 {
        assert_eq!(step(), settled);
    }
    gpu.verify();
    drop((training, source));
    gpu.empty_cache();
    assert_eq!((gpu.memory_allocated(), gpu.memory_reserved()), (0, 0));
}
