//! What the driver still holds when a program has given its memory back: 64 tensors of 20 MiB live,
//! four of them stay.
//!
//! Counted by the device's own report, with all that wgpu needs for itself in it; so it is bytes of
//! the driver, not this crate's word. The rivals are plain buffers, dropped.

use wgpu::{Device, Queue};

use crate::gpu::{Gpu, allocator_of, buffer, wait};
use crate::harness::{Bar, Run};

const TENSOR: u64 = 20 << 20;
const STAY_EVERY: usize = 16;

pub(crate) fn run(run: Run, gpu: &Gpu) {
    let run = run.section("giving back: MiB of the driver");
    let probe = gpu.recommended().0;
    if probe.generate_allocator_report().is_none() {
        println!("giving back: this backend does not report its memory");
        return;
    }
    run.heading(&["all live", "one in 16 live"]);
    let count = run.pick(64, 16);
    // 80 MiB that live, wgpu's own block of 4 MiB, and as much again.
    let bar = Bar::AtMost((count / STAY_EVERY) as f64 * 20.0 + 8.0);
    run.judge("aquifer, as recommended", &own(gpu.recommended(), count), bar);
    run.result("aquifer, wgpu's default hints", &own(gpu.with_default_hints(), count));
    run.result("buffers, as recommended", &rival(gpu.recommended(), count));
    run.result("buffers, wgpu's default hints", &rival(gpu.with_default_hints(), count));
}

type Figures = [(&'static str, f64); 2];

fn own((device, queue): (Device, Queue), count: usize) -> Figures {
    let memory = allocator_of(device.clone(), queue);
    let mut tensors: Vec<_> = (0..count).map(|_| memory.allocate(TENSOR).ok()).collect();
    let all = held(&device);
    leave_some(&mut tensors);
    memory.empty_cache();
    [("all_live_mib", all), ("few_live_mib", held(&device))]
}

fn rival((device, _queue): (Device, Queue), count: usize) -> Figures {
    let mut tensors: Vec<_> = (0..count).map(|_| Some(buffer(&device, TENSOR))).collect();
    let all = held(&device);
    leave_some(&mut tensors);
    wait(&device);
    [("all_live_mib", all), ("few_live_mib", held(&device))]
}

fn leave_some<T>(tensors: &mut [Option<T>]) {
    for (at, tensor) in tensors.iter_mut().enumerate() {
        assert!(tensor.is_some(), "tensor {at} had no room");
        if at % STAY_EVERY > 0 {
            *tensor = None;
        }
    }
}

fn held(device: &Device) -> f64 {
    let report = device.generate_allocator_report().expect("it was there before");
    report.total_reserved_bytes as f64 / f64::from(1 << 20)
}
