//! How to ask for a device, what its limits mean for the core, and whether it caches memory itself.

use wgpu::{Adapter, Device, DeviceDescriptor, Features, MemoryHints};

use super::{GRANULARITY, info, segment_max};
use crate::backend::Limits;
use crate::units::{Bytes, GRANULE, KIB, MIB};

/// wgpu's own blocks, where it is told to keep them small: the least that it accepts.
const BLOCK: Bytes = 4 * MIB;

/// A device that suits a caching allocator: all limits that the adapter has, so that tensors may be
/// as large as it allows and blocks as close as it allows; and memory hints that make every segment
/// above 4 MiB a driver allocation of its own, so that what is given back really goes (by default
/// wgpu keeps it in blocks of up to 256 MiB: 448 MiB for 80 MiB that live, measured with wgpu 30).
///
/// # Examples
/// ```no_run
/// # async fn open(adapter: wgpu::Adapter) -> Result<(), wgpu::RequestDeviceError> {
/// let descriptor = aquifer::recommended_device_descriptor(&adapter);
/// let (device, queue) = adapter.request_device(&descriptor).await?;
/// # Ok(())
/// # }
/// ```
pub fn recommended_device_descriptor(adapter: &Adapter) -> DeviceDescriptor<'static> {
    DeviceDescriptor {
        label: Some("aquifer"),
        required_features: Features::empty(),
        required_limits: adapter.limits(),
        memory_hints: MemoryHints::Manual { suballocated_device_memory_block_size: BLOCK..BLOCK },
        ..DeviceDescriptor::default()
    }
}

/// What the core has to know of the device.
///
/// # Panics
/// If the device wants bindings to begin at multiples of more than a granule: WebGPU's own limit is
/// 256 bytes, so no device does.
pub(super) fn limits(device: &Device) -> Limits {
    let limits = device.limits();
    let alignment =
        limits.min_storage_buffer_offset_alignment.max(limits.min_uniform_buffer_offset_alignment);
    assert!(
        Bytes::from(alignment) <= GRANULE,
        "the device wants bindings at multiples of {alignment} bytes, blocks have {GRANULE}"
    );
    Limits {
        total: info::memory_info(device, 0).map(|info| info.total),
        granularity: GRANULARITY,
        alignment: 64 * KIB,
        segment_max: segment_max(&limits),
        device_wait: true,
        one_queue: true,
    }
}

/// The largest block above [`BLOCK`] that the device shares between buffers: it caches memory
/// itself. `None` if it does not, or does not tell.
pub(super) fn shared_block(device: &Device) -> Option<Bytes> {
    let report = device.generate_allocator_report()?;
    let shared = report.blocks.iter().filter(|block| {
        // A block with one allocation of its size belongs to one large buffer.
        let mut inside = report.allocations[block.allocations.clone()].iter();
        block.size > BLOCK && !inside.any(|allocation| allocation.size == block.size)
    });
    shared.map(|block| block.size).max()
}
