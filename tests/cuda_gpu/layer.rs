//! A CUDA device against the CPU, step by step, and what a step costs the allocator.

use aquifer::backend::Host;
use aquifer::{Allocator, Config, CudaAllocator};

use crate::driver::Driver;
use crate::linear::cuda::Training;
use crate::linear::host::{Adam, Batch, Linear, Memory, generate};
use crate::linear::launch::{Download, Kernels};
use crate::linear::{Random, Shape};

/// A layer and its data in memory of the CPU.
fn start(shape: Shape, batch: usize) -> (Memory<Host>, Vec<Batch<Host>>, Linear<Host>) {
    let memory = Memory::new(&Allocator::new(Host::new(), Config::default()));
    let mut random = Random(7);
    let data = generate(&memory, shape, (2, batch), &mut random).expect("room");
    let linear = Linear::new(&memory, shape, &mut random).expect("room");
    (memory, data, linear)
}

/// Shapes below, at and across the edges of blocks.
const SHAPES: [(Shape, usize); 5] = [
    (Shape { inputs: 1, outputs: 1 }, 1),
    (Shape { inputs: 16, outputs: 64 }, 64),
    (Shape { inputs: 37, outputs: 70 }, 6),
    (Shape { inputs: 130, outputs: 3 }, 67),
    (Shape { inputs: 65, outputs: 129 }, 17),
];

/// A hundredth of what a step moves a parameter by.
const NEAR: f32 = 1e-5;

fn training(memory: &CudaAllocator, linear: &Linear<Host>, data: &[Batch<Host>]) -> Training {
    let kernels = Kernels::new(memory).expect("the driver takes the kernels");
    Training::new(kernels, linear, data).expect("room")
}

fn one(loss: &Download) -> f32 {
    loss.slice().expect("the device is there")[0]
}

#[test]
fn every_step_is_that_of_the_cpu() {
    let _driver = Driver::new();
    let device = CudaAllocator::open(0).expect("a device");
    for (shape, batch) in SHAPES {
        let (memory, data, mut linear) = start(shape, batch);
        let mut training = training(&device, &linear, &data);
        let mut adam = Adam::new(&memory, &linear).expect("room");
        for (step, batch) in (1..=6).zip(data.iter().cycle()) {
            let (_, loss) = training.step().expect("room");
            let wanted = adam.train(&memory, &mut linear, batch).expect("room").loss();
            let off = (one(&loss) - wanted).abs();
            assert!(off <= 1e-5 * wanted.max(1.0), "{shape:?}, {step}: off by {off}");
            let got = training.parameters().expect("room");
            for (got, wanted) in got.iter().zip(linear.parameters()) {
                let got = got.slice().expect("the device is there");
                assert_eq!(got.len(), wanted.len());
                let off = got.iter().zip(wanted).map(|(got, wanted)| (got - wanted).abs());
                // Written so that it fails on what is not a number.
                assert!(off.clone().all(|off| off <= NEAR), "{shape:?}, {step}: {off:?}");
            }
        }
        let (loss, wanted) = (training.loss().expect("room"), linear.forward(&memory, &data[0]));
        let (loss, wanted) = (one(&loss), wanted.expect("room").loss());
        assert!((loss - wanted).abs() <= 1e-5 * wanted.max(1.0), "{shape:?}: {loss}, not {wanted}");
    }
    device.verify();
}

#[test]
fn losses_that_are_read_late_are_those_of_their_step() {
    let _driver = Driver::new();
    let device = CudaAllocator::open(0).expect("a device");
    let (memory, data, mut linear) = start(Shape { inputs: 20, outputs: 30 }, 9);
    let mut training = training(&device, &linear, &data);
    let losses: Vec<_> = (0..12).map(|_| training.step().expect("room").1).collect();
    let mut adam = Adam::new(&memory, &linear).expect("room");
    for (loss, batch) in losses.iter().zip(data.iter().cycle()) {
        let (loss, wanted) = (one(loss), adam.train(&memory, &mut linear, batch));
        let wanted = wanted.expect("room").loss();
        assert!((loss - wanted).abs() <= 1e-5 * wanted.max(1.0), "{loss}, not {wanted}");
    }
}

#[test]
fn a_step_leaves_nothing_behind_and_soon_asks_nothing_of_the_backend() {
    let _driver = Driver::new();
    let device = CudaAllocator::open(0).expect("a device");
    let (_, data, linear) = start(Shape { inputs: 300, outputs: 200 }, 16);
    let mut training = training(&device, &linear, &data);
    let mut step = || {
        let (forward, loss) = training.step().expect("room");
        one(&loss);
        drop((forward, loss));
        (device.memory_stats().num_device_alloc, device.memory_allocated())
    };
    // The first makes segments.
    let settled = [step(), step()][1];
    for _ in 0..5 {
        assert_eq!(step(), settled);
    }
    device.verify();
    drop(training);
    device.empty_cache();
    assert_eq!((device.memory_allocated(), device.memory_reserved()), (0, 0));
}
