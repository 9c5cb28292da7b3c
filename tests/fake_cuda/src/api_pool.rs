//! Exports: stream-ordered pools.

use crate::abi::{Access, Answer, Code, In, Out, PoolProperties};
use crate::abi::{LOCATION_DEVICE, TYPE_PINNED};
use crate::entry::Driver;
use crate::memory::Kind;
use crate::pools::Attribute;
use crate::work::Work;

impl Driver {
    fn supported(&self) -> Answer {
        if self.options.pools { Ok(()) } else { Err(Code::NOT_SUPPORTED) }
    }

    /// Memory of a pool, the current one of the stream's device if none is named.
    fn allocate_async(
        &mut self,
        pointer: &Out<u64>,
        size: usize,
        pool: Option<u64>,
        stream: u64,
    ) -> Answer {
        pointer.needed()?;
        self.supported()?;
        let id = self.own_stream(stream)?;
        if let Some(capture) = self.timeline.streams[&id].capture {
            return Err(self.no_memory_nodes(capture));
        }
        let current = self.devices[self.device].current_pool;
        pointer.set(self.pool_allocate(pool.unwrap_or(current), size as u64, id)?)
    }

    fn free_async(&mut self, pointer: u64, stream: u64) -> Answer {
        self.supported()?;
        let id = self.own_stream(stream)?;
        if let Some(capture) = self.timeline.streams[&id].capture {
            return Err(self.no_memory_nodes(capture));
        }
        let device = self.device;
        let block = self.freeable(device, pointer)?;
        if let Some(block) = self.memory.blocks.get_mut(&pointer) {
            block.is_freeing = true;
        }
        if let Kind::Pool(pool) = block.kind {
            self.pools.freeing(pool, id, block.size(), false);
        }
        self.submit(id, Work::Free { start: pointer, stream: id })
    }
}

driver! {
    cuDeviceGetDefaultMemPool(pool: Out<u64>, device: i32) DRIVER(device) |driver| {
        driver.supported()?;
        let device = driver.ordinal(device)?;
        pool.set(driver.devices[device].default_pool)
    }

    cuDeviceGetMemPool(pool: Out<u64>, device: i32) DRIVER(device) |driver| {
        driver.supported()?;
        let device = driver.ordinal(device)?;
        pool.set(driver.devices[device].current_pool)
    }

    cuDeviceSetMemPool(device: i32, pool: u64) DRIVER(pool) |driver| {
        driver.supported()?;
        let device = driver.ordinal(device)?;
        if driver.pool(pool)?.device != device {
            return Err(driver.misuse(Code::INVALID_VALUE, "a pool of another device"));
        }
        driver.devices[device].current_pool = pool;
        Ok(())
    }

    cuMemAllocAsync(pointer: Out<u64>, size: usize, stream: u64) CONTEXT(size) |driver| {
        driver.allocate_async(&pointer, size, None, stream)
    }

    cuMemAllocFromPoolAsync(
        pointer: Out<u64>,
        size: usize,
        pool: u64,
        stream: u64,
    ) CONTEXT(size) |driver| {
        driver.allocate_async(&pointer, size, Some(pool), stream)
    }

    cuMemFreeAsync(pointer: u64, stream: u64) CONTEXT(pointer) |driver| {
        driver.free_async(pointer, stream)
    }

    cuMemPoolCreate(pool: Out<u64>, properties: In<PoolProperties>) DRIVER(0) |driver| {
        pool.needed()?;
        driver.supported()?;
        let PoolProperties { kind, location, bytes_max, .. } = properties.get()?;
        if kind != TYPE_PINNED || location.kind != LOCATION_DEVICE {
            return Err(driver.misuse(Code::INVALID_VALUE, "properties of no device pool"));
        }
        let device = driver.ordinal(location.id)?;
        let handle = driver.new_handle();
        driver.pools.add(handle, device, bytes_max);
        pool.set(handle)
    }

    cuMemPoolDestroy(pool: u64) DRIVER(pool) |driver| {
        driver.destroy_pool(pool)
    }

    cuMemPoolTrimTo(pool: u64, keep: usize) DRIVER_UNSAFE(keep) |driver| {
        driver.trim_pool(pool, keep as u64)
    }

    cuMemPoolGetAttribute(pool: u64, attribute: u32, value: Out<u64>) DRIVER(attribute) |driver| {
        match driver.pool(pool)?.attribute(attribute)? {
            Attribute::Int(number) => value.cast().set(number),
            Attribute::Long(number) => value.set(number),
        }
    }

    cuMemPoolSetAttribute(pool: u64, attribute: u32, value: Out<u64>) DRIVER(attribute) |driver| {
        let is_int = matches!(attribute, 1..=3);
        let value = if is_int {
            Attribute::Int(value.cast().read()?)
        } else {
            Attribute::Long(value.read()?)
        };
        driver.pool(pool)?.set_attribute(attribute, value)
    }

    cuMemPoolSetAccess(pool: u64, wanted: In<Access>, count: usize) DRIVER(count) |driver| {
        driver.pool(pool)?;
        for index in 0..count {
            driver.ordinal(wanted.at(index)?.location.id)?;
        }
        Ok(())
    }
}
