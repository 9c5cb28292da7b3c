//! Exports: plain and pinned memory, and what an address belongs to.

use crate::abi::{Answer, Code, Out};
use crate::entry::Driver;
use crate::memory::Kind;

/// `CU_MEMORYTYPE_…`.
const TYPE_HOST: u32 = 1;
const TYPE_DEVICE: u32 = 2;

/// What the fake knows about an address.
struct Owner {
    start: u64,
    len: u64,
    device: usize,
    is_host: bool,
}

impl Driver {
    /// The block or the mapping that holds an address.
    fn owner(&self, address: u64) -> Option<Owner> {
        if let Some((start, block)) = self.memory.find(address) {
            let is_host = block.kind == Kind::Host;
            return Some(Owner { start, len: block.len, device: block.device, is_host });
        }
        let (start, mapping) = self.space.mapping_at(address)?;
        let device = self.space.chunks[&mapping.chunk].device;
        Some(Owner { start, len: mapping.len, device, is_host: false })
    }

    fn pointer_attribute(&self, data: &Out<u64>, attribute: u32, address: u64) -> Answer {
        let owner = self.owner(address).ok_or(Code::INVALID_VALUE)?;
        match attribute {
            1 => data.set(self.context_of(owner.device)),
            2 => data.cast().set(if owner.is_host { TYPE_HOST } else { TYPE_DEVICE }),
            3 => data.set(address),
            4 if owner.is_host => data.set(address),
            9 => data.cast().set(owner.device as i32),
            11 => data.set(owner.start),
            12 => data.set(owner.len),
            _ => Err(Code::INVALID_VALUE),
        }
    }
}

driver! {
    cuMemAlloc_v2(pointer: Out<u64>, size: usize) CONTEXT_UNSAFE(size) |driver| {
        pointer.needed()?;
        let device = driver.device;
        pointer.set(driver.allocate(device, size as u64)?)
    }

    cuMemFree_v2(pointer: u64) CONTEXT_UNSAFE(pointer) |driver| {
        driver.free(pointer)
    }

    cuMemHostAlloc(pointer: Out<u64>, size: usize, flags: u32) CONTEXT_UNSAFE(size) |driver| {
        pointer.needed()?;
        if size == 0 || flags > 7 {
            return Err(driver.misuse(Code::INVALID_VALUE, format!("{size} bytes, {flags}")));
        }
        let device = driver.device;
        pointer.set(driver.add_block(device, size as u64, Kind::Host)?)
    }

    cuMemFreeHost(pointer: u64) CONTEXT_UNSAFE(pointer) |driver| {
        driver.free_host(pointer)
    }

    cuMemHostGetDevicePointer_v2(pointer: Out<u64>, host: u64, flags: u32) CONTEXT(host) |driver| {
        if flags != 0 || !driver.memory.is_pinned(host, 1) {
            return Err(driver.misuse(Code::INVALID_VALUE, format!("{host:#x} is not pinned")));
        }
        pointer.set(host)
    }

    cuMemGetAddressRange_v2(
        start: Out<u64>,
        size: Out<usize>,
        pointer: u64,
    ) CONTEXT(pointer) |driver| {
        let owner = driver.owner(pointer).ok_or(Code::NOT_FOUND)?;
        start.set_if_asked(owner.start);
        size.set_if_asked(owner.len as usize);
        Ok(())
    }

    cuPointerGetAttribute(
        data: Out<u64>,
        attribute: u32,
        pointer: u64,
    ) DRIVER(pointer) |driver| {
        driver.pointer_attribute(&data, attribute, pointer)
    }
}
