//! The wgpu surface on a real adapter: allocations, scopes, transfers, trims.
#![cfg(feature = "wgpu")]

#[path = "wgpu/basics.rs"]
mod basics;
#[path = "support/gpu.rs"]
mod gpu;

use aquifer::{Config, WgpuAllocator, WgpuOptions};
use gpu::Gpu;

/// An allocator over a device of its own, and that device for the test's own work; nothing where
/// there is no adapter.
fn allocator_with(
    change: impl FnOnce(&mut Config, &mut WgpuOptions),
) -> Option<(Gpu, WgpuAllocator)> {
    let adapter = Gpu::shared()?.adapter.clone();
    let (mut config, mut options) = (Config::default(), WgpuOptions::default());
    change(&mut config, &mut options);
    let descriptor = aquifer::recommended_device_descriptor(&adapter);
    let opened = pollster::block_on(adapter.request_device(&descriptor));
    let (device, queue) = opened.expect("the adapter opens another device");
    let memory = WgpuAllocator::with(device.clone(), queue.clone(), config, options);
    Some((Gpu { adapter, device, queue }, memory.expect("a valid configuration")))
}

/// As [`allocator_with`], with the defaults.
fn allocator() -> Option<(Gpu, WgpuAllocator)> {
    allocator_with(|_, _| {})
}
