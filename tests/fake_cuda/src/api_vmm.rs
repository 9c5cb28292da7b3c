//! Exports: virtual memory.

use crate::abi::HANDLE_POSIX;
use crate::abi::{Access, Answer, ChunkProperties, Code, In, Location, Out};
use crate::entry::Driver;

impl Driver {
    fn has_virtual_memory(&self) -> Answer {
        if self.options.virtual_memory { Ok(()) } else { Err(Code::NOT_SUPPORTED) }
    }

    fn no_flags(&mut self, flags: u64) -> Answer {
        if flags == 0 {
            return Ok(());
        }
        Err(self.misuse(Code::INVALID_VALUE, format!("flags {flags}; they have to be 0")))
    }

    fn posix(&mut self, handle_type: u32) -> Answer {
        self.has_virtual_memory()?;
        if handle_type == HANDLE_POSIX && self.options.posix_handles {
            return Ok(());
        }
        Err(Code::NOT_SUPPORTED)
    }
}

driver! {
    cuMemGetAllocationGranularity(
        granularity: Out<usize>,
        properties: In<ChunkProperties>,
        option: u32,
    ) DRIVER(option) |driver| {
        driver.has_virtual_memory()?;
        driver.chunk_device(&properties.get()?)?;
        if option > 1 {
            return Err(driver.misuse(Code::INVALID_VALUE, format!("option {option}")));
        }
        granularity.set(driver.options.granularity as usize)
    }

    cuMemAddressReserve(
        pointer: Out<u64>,
        size: usize,
        alignment: usize,
        hint: u64,
        flags: u64,
    ) DRIVER_UNSAFE(size) |driver| {
        let _ = hint;
        pointer.needed()?;
        driver.has_virtual_memory()?;
        driver.no_flags(flags)?;
        pointer.set(driver.reserve(size as u64, alignment as u64)?)
    }

    cuMemAddressFree(pointer: u64, size: usize) DRIVER_UNSAFE(pointer) |driver| {
        driver.unreserve(pointer, size as u64)
    }

    cuMemCreate(
        handle: Out<u64>,
        size: usize,
        properties: In<ChunkProperties>,
        flags: u64,
    ) DRIVER_UNSAFE(size) |driver| {
        handle.needed()?;
        driver.has_virtual_memory()?;
        driver.no_flags(flags)?;
        handle.set(driver.create(size as u64, &properties.get()?)?)
    }

    cuMemRelease(handle: u64) DRIVER_UNSAFE(handle) |driver| {
        driver.release_chunk(handle)
    }

    cuMemMap(
        pointer: u64,
        size: usize,
        offset: usize,
        handle: u64,
        flags: u64,
    ) DRIVER_UNSAFE(pointer) |driver| {
        driver.no_flags(flags)?;
        driver.map(pointer, size as u64, offset as u64, handle)
    }

    cuMemUnmap(pointer: u64, size: usize) DRIVER_UNSAFE(pointer) |driver| {
        driver.unmap(pointer, size as u64)
    }

    cuMemSetAccess(
        pointer: u64,
        size: usize,
        wanted: In<Access>,
        count: usize,
    ) DRIVER_UNSAFE(pointer) |driver| {
        let wanted = (0..count).map(|index| wanted.at(index)).collect::<Answer<Vec<_>>>()?;
        driver.set_access(pointer, size as u64, &wanted)
    }

    cuMemGetAccess(flags: Out<u64>, location: In<Location>, pointer: u64) DRIVER(pointer) |driver| {
        let device = driver.ordinal(location.get()?.id)?;
        match driver.space.mapping_at(pointer) {
            Some((_, mapping)) => flags.set(mapping.access[device].into()),
            None => Err(driver.misuse(Code::INVALID_VALUE, "nothing is mapped there")),
        }
    }

    cuMemRetainAllocationHandle(handle: Out<u64>, pointer: u64) DRIVER(pointer) |driver| {
        handle.needed()?;
        handle.set(driver.retain_chunk_at(pointer)?)
    }

    cuMemExportToShareableHandle(
        file: Out<i32>,
        handle: u64,
        handle_type: u32,
        flags: u64,
    ) DRIVER(handle) |driver| {
        file.needed()?;
        driver.no_flags(flags)?;
        driver.posix(handle_type)?;
        file.set(driver.export_chunk(handle)?)
    }

    cuMemImportFromShareableHandle(
        handle: Out<u64>,
        file: u64,
        handle_type: u32,
    ) DRIVER(file) |driver| {
        handle.needed()?;
        driver.posix(handle_type)?;
        handle.set(driver.import_chunk(file as i32)?)
    }
}
