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
#[non_exhaustive]
pub struct MemoryInfo {
    /// What this process can still have.
    pub free: Bytes,
    /// In all, for every program.
    pub total: Bytes,
    /// What this process should have at most: the driver's budget, if it tells one, else the total.
    pub budget: Bytes,
    /// Who says so.
    pub source: MemorySource,
}

impl MemoryInfo {
    /// What one process should take at most, in bytes: real drivers page to the host's memory long
    /// before they refuse. 90 % of a budget or of the machine, 80 % of a bare heap, as VMA does.
    pub fn cap(&self) -> Bytes {
        match self.source {
            MemorySource::VulkanBudget | MemorySource::Machine => self.budget / 10 * 9,
            MemorySource::VulkanHeap => self.budget / 10 * 8,
        }
    }
}

/// What is known of the device's memory, of which this allocator has `used` bytes.
pub(super) fn memory_info(device: &Device, used: Bytes) -> Option<MemoryInfo> {
    if device.adapter_info().device_type == DeviceType::Cpu {
        let machine = Host::new();
        let (free, total) = machine.free_bytes().zip(machine.limits().total)?;
        return Some(MemoryInfo { free, total, budget: total, source: MemorySource::Machine });
    }
    vulkan::largest_heap(device).map(|heap| of_heap(heap, used))
}

/// What a heap means, of which this allocator has `used` bytes.
fn of_heap(heap: Heap, used: Bytes) -> MemoryInfo {
    let (used, budget, source) = match heap.budget {
        Some(budget) => (heap.used, budget.min(heap.size), MemorySource::VulkanBudget),
        None => (used, heap.size, MemorySource::VulkanHeap),
    };
    MemoryInfo { free: budget.saturating_sub(used), total: heap.size, budget, source }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::GIB;

    #[test]
    fn a_budget_is_believed_before_a_size() {
        let heap = Heap { size: 80 * GIB, used: 10 * GIB, budget: Some(70 * GIB) };
        let info = of_heap(heap, 3 * GIB);
        assert_eq!((info.free, info.total, info.budget), (60 * GIB, 80 * GIB, 70 * GIB));
        assert_eq!((info.cap(), info.source), (63 * GIB, MemorySource::VulkanBudget));
        // Other programs may have pressed the budget below what this one has already.
        let pressed = Heap { budget: Some(8 * GIB), ..heap };
        assert_eq!(of_heap(pressed, 3 * GIB).free, 0);
    }

    #[test]
    fn without_a_budget_the_own_books_count() {
        let heap = Heap { size: 80 * GIB, used: 0, budget: None };
        let info = of_heap(heap, 30 * GIB);
        assert_eq!((info.free, info.total, info.budget), (50 * GIB, 80 * GIB, 80 * GIB));
        assert_eq!((info.cap(), info.source), (64 * GIB, MemorySource::VulkanHeap));
    }
}
