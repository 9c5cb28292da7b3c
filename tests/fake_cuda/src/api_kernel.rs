//! Exports: modules, functions and launches.

use crate::abi::{Answer, Code, In, Out};
use crate::entry::Driver;
use crate::work::Work;

/// Threads that a block may have.
const THREADS_MAX: u32 = 1024;

impl Driver {
    fn load(&mut self, module: &Out<u64>, image: &In<u8>) -> Answer {
        module.needed()?;
        if image.is_null() {
            return Err(self.misuse(Code::INVALID_VALUE, "no image"));
        }
        module.set(self.add_module())
    }
}

driver! {
    cuModuleLoadData(module: Out<u64>, image: In<u8>) CONTEXT_UNSAFE(image.address()) |driver| {
        driver.load(&module, &image)
    }

    cuModuleLoadDataEx(
        module: Out<u64>,
        image: In<u8>,
        option_count: u32,
        options: In<u32>,
        values: In<u64>,
    ) CONTEXT_UNSAFE(option_count) |driver| {
        let _ = (options.address(), values.address());
        driver.load(&module, &image)
    }

    cuModuleUnload(module: u64) CONTEXT_UNSAFE(module) |driver| {
        driver.remove_module(module)
    }

    cuModuleGetFunction(function: Out<u64>, module: u64, name: In<i8>) CONTEXT(module) |driver| {
        function.needed()?;
        let name = name.text()?;
        function.set(driver.add_function(module, &name)?)
    }

    cuFuncGetAttribute(value: Out<i32>, attribute: u32, function: u64) CONTEXT(function) |driver| {
        driver.kernel(function)?;
        // Threads per block; nothing is used of all that the other attributes count.
        value.set(if attribute == 0 { THREADS_MAX as i32 } else { 0 })
    }

    cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<i32>,
        function: u64,
        block_size: i32,
        shared: usize,
    ) CONTEXT(shared) |driver| {
        driver.kernel(function)?;
        blocks.set(if block_size > 0 { (2048 / block_size).clamp(1, 32) } else { 0 })
    }

    cuLaunchKernel(
        function: u64,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: u64,
        arguments: In<u64>,
        extra: In<u64>,
    ) CONTEXT(function) |driver| {
        let _ = shared;
        let kernel = driver.kernel(function)?;
        let id = driver.own_stream(stream)?;
        let threads = u64::from(block_x) * u64::from(block_y) * u64::from(block_z);
        let has_grid = [grid_x, grid_y, grid_z].iter().all(|size| *size > 0);
        if !has_grid || threads == 0 || threads > u64::from(THREADS_MAX) {
            return Err(driver.misuse(Code::INVALID_VALUE, "a grid or a block of no size"));
        }
        if !extra.is_null() {
            return Err(Code::NOT_SUPPORTED);
        }
        let launch = kernel.launch(&arguments)?;
        driver.submit(id, Work::Kernel(launch))
    }
}
