//! The wgpu surface on a real adapter: allocations, scopes, transfers, trims.
//!
//! | file           | what it tries                                                     |
//! |----------------|-------------------------------------------------------------------|
//! | `basics`       | one allocation, one scope, one transfer at a time                 |
//! | `hazard`       | four ways to reuse memory, one of which has to corrupt it         |
//! | `model`        | seeded programs over many open scopes, from one thread and four   |
//! | `order`        | what waits for which scope, and what does not                     |
//! | `contents`     | what bytes are in memory that is handed out                       |
//! | `bindings`     | blocks in dispatches: segments to avoid, roles, limits            |
//! | `transfers`    | uploads, downloads, copies, and their caps                        |
//! | `devices`      | loss, what is known of a device, segments as the driver has them  |
//! | `moving`       | defragmentation                                                   |
//! | `memory`       | memory that goes back to the system, runs out, and comes again    |
//! | `kernels`      | the kernels that all of these dispatch                            |
#![cfg(feature = "wgpu")]

#[path = "wgpu/basics.rs"]
mod basics;
#[path = "wgpu/bindings.rs"]
mod bindings;
#[path = "wgpu/contents.rs"]
mod contents;
#[path = "wgpu/devices.rs"]
mod devices;
#[path = "support/gpu.rs"]
mod gpu;
#[path = "wgpu/hazard.rs"]
mod hazard;
#[path = "wgpu/kernels.rs"]
mod kernels;
#[path = "wgpu/memory.rs"]
mod memory;
#[path = "wgpu/model.rs"]
mod model;
#[path = "wgpu/moving.rs"]
mod moving;
#[path = "wgpu/order.rs"]
mod order;
mod support;
#[path = "wgpu/transfers.rs"]
mod transfers;

use aquifer::{Config, WgpuAllocation, WgpuAllocator, WgpuOptions};
use gpu::Gpu;

/// An allocator over a device of its own, and that device for the test's own work; nothing where
/// there is no adapter.
fn allocator_with(
    change: impl FnOnce(&mut Config, &mut WgpuOptions),
) -> Option<(Gpu, WgpuAllocator)> {
    let adapter = Gpu::shared()?.adapter.clone();
    let descriptor = aquifer::recommended_device_descriptor(&adapter);
    let gpu = opened(adapter, &descriptor);
    let (mut config, mut options) = (Config::default(), WgpuOptions::default());
    change(&mut config, &mut options);
    let (device, queue) = (gpu.device.clone(), gpu.queue.clone());
    let memory = WgpuAllocator::with(device, queue, config, options);
    Some((gpu, memory.expect("a valid configuration")))
}

/// A device of one's own, as the descriptor says.
fn opened(adapter: wgpu::Adapter, descriptor: &wgpu::DeviceDescriptor<'_>) -> Gpu {
    let opened = pollster::block_on(adapter.request_device(descriptor));
    let (device, queue) = opened.expect("the adapter opens another device");
    Gpu { adapter, device, queue }
}

/// As [`allocator_with`], with the defaults.
fn allocator() -> Option<(Gpu, WgpuAllocator)> {
    allocator_with(|_, _| {})
}

/// Where an allocation lies: in which buffer, and at which byte of it.
fn place(allocation: &WgpuAllocation) -> (wgpu::Buffer, u64) {
    (allocation.segment().buffer().clone(), allocation.offset())
}
