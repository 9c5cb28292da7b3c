//! How much memory the device has, and who says so.
//!
//! wgpu has no call for it. In order of trust:
//!
//! - Vulkan with `VK_EXT_memory_budget`: the driver's budget and usage of the largest heap that is
//!   local to the device. (wgpu leaves the extension off on RADV, whose numbers are wrong.)
//! - Vulkan without it: the size of that heap; what is used is only known of ourselves.
//! - A CPU that plays the device: the memory of the machine.
//! - Anything else: unknown. (Metal and DX12 could tell; nobody has tested that here.)
//!
//! A driver call: some microseconds, never made on a hit.

use wgpu::{Device, DeviceType};

use crate::backend::{Backend, Host};
use crate::units::Bytes;

/// Who told how much memory there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemorySource {
    /// The driver's budget for this process (`VK_EXT_memory_budget`).
    VulkanBudget,
    /// The size of the device's heap; free is what this allocator has not taken of it.
    VulkanHeap,
    /// The operating system: the device is the CPU.
    Machine,
}

/// Memory of the device in bytes, and who told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// What can still be had.
    pub free: Bytes,
    /// In all, for every program.
    pub total: Bytes,
    /// Who says so.
    pub source: MemorySource,
}

impl MemoryInfo {
    /// What one process should take at most, in bytes: real drivers page to the host's memory long
    /// before they refuse. 90 % of a budget or of the machine, 80 % of a bare heap, as VMA does.
    pub fn cap(&self) -> Bytes {
        match self.source {
            MemorySource::VulkanBudget | MemorySource::Machine => self.total / 10 * 9,
            MemorySource::VulkanHeap => self.total / 10 * 8,
        }
    }
}

/// What is known of the device's memory, of which this allocator has `used` bytes.
pub(super) fn memory_info(device: &Device, used: Bytes) -> Option<MemoryInfo> {
    if device.adapter_info().device_type == DeviceType::Cpu {
        let machine = Host::new();
        let (free, total) = machine.free_bytes().zip(machine.limits().total)?;
        return Some(MemoryInfo { free, total, source: MemorySource::Machine });
    }
    let heap = vulkan::largest_heap(device)?;
    Some(match heap.budget {
        Some(budget) => MemoryInfo {
            free: budget.saturating_sub(heap.used),
            total: heap.size.min(budget),
            source: MemorySource::VulkanBudget,
        },
        None => MemoryInfo {
            free: heap.size.saturating_sub(used),
            total: heap.size,
            source: MemorySource::VulkanHeap,
        },
    })
}

/// What Vulkan says of a heap, in bytes.
#[derive(Debug, Clone, Copy)]
struct Heap {
    size: Bytes,
    /// Used by this process, if the driver tells; else 0.
    used: Bytes,
    budget: Option<Bytes>,
}

#[cfg(not(any(target_family = "wasm", target_vendor = "apple")))]
mod vulkan {
    use ash::vk;
    use wgpu::hal::api::Vulkan;

    use super::{Device, Heap};

    /// The largest heap that is local to the device; `None` if that is no Vulkan device.
    pub(super) fn largest_heap(device: &Device) -> Option<Heap> {
        // SAFETY: the guard is used for queries alone, and the device outlives it.
        let hal = unsafe { device.as_hal::<Vulkan>() }?;
        let told = hal.enabled_device_extensions().contains(&ash::ext::memory_budget::NAME);
        let (instance, physical) =
            (hal.shared_instance().raw_instance(), hal.raw_physical_device());
        let mut budgets = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
        let mut properties = vk::PhysicalDeviceMemoryProperties2::default();
        if told {
            properties = properties.push_next(&mut budgets);
            // SAFETY: wgpu asks for Vulkan 1.1 or the extension that has this call before it
            // enables memory_budget; the chain holds one structure that the extension defines.
            unsafe { instance.get_physical_device_memory_properties2(physical, &mut properties) };
        } else {
            // SAFETY: the physical device is one of this instance.
            let plain = unsafe { instance.get_physical_device_memory_properties(physical) };
            properties.memory_properties = plain;
        }
        let heaps = properties.memory_properties;
        let largest = (0..heaps.memory_heap_count as usize)
            .filter(|&at| heaps.memory_heaps[at].flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL))
            .max_by_key(|&at| heaps.memory_heaps[at].size)?;
        Some(Heap {
            size: heaps.memory_heaps[largest].size,
            used: budgets.heap_usage[largest],
            budget: told.then_some(budgets.heap_budget[largest]),
        })
    }
}

#[cfg(any(target_family = "wasm", target_vendor = "apple"))]
mod vulkan {
    use super::{Device, Heap};

    /// There is no Vulkan here.
    pub(super) fn largest_heap(_: &Device) -> Option<Heap> {
        None
    }
}
