//! Exports: the driver, its devices, contexts and error texts.

use std::ffi::c_char;

use crate::abi::{Answer, Code, Out, texts};
use crate::entry::Driver;
use crate::options::Options;
use crate::thread;

/// The first attribute that no driver knows.
const ATTRIBUTES_END: i32 = 160;

impl Driver {
    fn attribute(&self, attribute: i32, device: usize) -> Answer<i32> {
        let set = self.attributes.iter().rev().find(|(number, _)| *number == attribute);
        if let Some((_, value)) = set {
            return Ok(*value);
        }
        let options = &self.options;
        Ok(match attribute {
            1 => 1024,     // threads per block
            2..=4 => 1024, // block dimensions
            5 => i32::MAX, // grid dimensions
            6 | 7 => 65535,
            8 => 48 << 10, // shared memory per block
            10 => 32,      // warp
            16 => 132,     // multiprocessors
            18 => i32::from(options.integrated),
            19 | 31 | 41 | 78 | 83 | 89 => 1, // host mapping, kernels, addressing, …
            33 => device as i32 + 1,          // PCI bus
            38 => 50 << 20,                   // L2
            39 => 2048,                       // threads per multiprocessor
            75 => options.compute_major,
            76 => options.compute_minor,
            102 => i32::from(options.virtual_memory),
            103 => i32::from(options.virtual_memory && options.posix_handles),
            115 => i32::from(options.pools),
            119 => i32::from(options.pools && options.posix_handles),
            ..=0 | ATTRIBUTES_END.. => return Err(Code::INVALID_VALUE),
            _ => 0,
        })
    }

    fn uuid(&mut self, uuid: &Out<u8>, ordinal: i32) -> Answer {
        let device = self.ordinal(ordinal)?;
        let mut bytes = *b"FakeCuda\0\0\0\0\0\0\0\0";
        bytes[15] = device as u8;
        uuid.write_all(&bytes)
    }

    fn set_current(&mut self, context: u64, is_pushed: bool) -> Answer {
        if context != 0 && self.device_of_context(context).is_none() {
            let text = format!("{context:#x} is no context, or was released");
            return Err(self.misuse(Code::INVALID_CONTEXT, text));
        }
        thread::with(self.epoch, |thread| {
            if !is_pushed {
                thread.contexts.pop();
            }
            if is_pushed || context != 0 {
                thread.contexts.push(context);
            }
        });
        Ok(())
    }
}

driver! {
    cuInit(flags: u32) ANYTIME(flags) |driver| {
        if driver.epoch == 0 {
            // Nobody here knows of the fake: a program that a test has started.
            driver.reset(Options::default());
        }
        if driver.devices.is_empty() {
            return Err(Code::NO_DEVICE);
        }
        driver.initialized = true;
        Ok(())
    }

    cuDriverGetVersion(version: Out<i32>) ANYTIME(0) |driver| {
        version.set(driver.options.driver_version)
    }

    cuGetErrorName(code: i32, name: Out<*const c_char>) FREE(code) |driver| {
        let _ = driver;
        let (text, _) = texts(code).ok_or(Code::INVALID_VALUE)?;
        name.set(text.as_ptr())
    }

    cuGetErrorString(code: i32, text: Out<*const c_char>) FREE(code) |driver| {
        let _ = driver;
        let (_, words) = texts(code).ok_or(Code::INVALID_VALUE)?;
        text.set(words.as_ptr())
    }

    cuDeviceGetCount(count: Out<i32>) DRIVER(0) |driver| {
        count.set(driver.devices.len() as i32)
    }

    cuDeviceGet(device: Out<i32>, ordinal: i32) DRIVER(ordinal) |driver| {
        driver.ordinal(ordinal)?;
        device.set(ordinal)
    }

    cuDeviceGetName(name: Out<u8>, len: i32, device: i32) DRIVER(device) |driver| {
        let device = driver.ordinal(device)?;
        let mut text = format!("Fake device {device}").into_bytes();
        text.truncate((len.max(1) - 1) as usize);
        text.push(0);
        if len < 1 { Err(Code::INVALID_VALUE) } else { name.write_all(&text) }
    }

    cuDeviceGetUuid(uuid: Out<u8>, device: i32) DRIVER(device) |driver| {
        driver.uuid(&uuid, device)
    }

    cuDeviceGetUuid_v2(uuid: Out<u8>, device: i32) DRIVER(device) |driver| {
        driver.uuid(&uuid, device)
    }

    cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) DRIVER(device) |driver| {
        let device = driver.ordinal(device)?;
        bytes.set(driver.devices[device].total as usize)
    }

    cuDeviceGetAttribute(value: Out<i32>, attribute: i32, device: i32) DRIVER(attribute) |driver| {
        let device = driver.ordinal(device)?;
        value.set(driver.attribute(attribute, device)?)
    }

    cuDevicePrimaryCtxRetain(context: Out<u64>, device: i32) DRIVER(device) |driver| {
        context.needed()?;
        let device = driver.ordinal(device)?;
        driver.devices[device].retains += 1;
        context.set(driver.context_of(device))
    }

    cuDevicePrimaryCtxRelease_v2(device: i32) DRIVER(device) |driver| {
        let device = driver.ordinal(device)?;
        if driver.devices[device].retains == 0 {
            return Err(driver.misuse(Code::INVALID_CONTEXT, "released more often than retained"));
        }
        driver.devices[device].retains -= 1;
        Ok(())
    }

    cuCtxGetCurrent(context: Out<u64>) FREE(0) |driver| {
        let current = thread::with(driver.epoch, |thread| thread.contexts.last().copied());
        context.set(current.unwrap_or(0))
    }

    cuCtxSetCurrent(context: u64) FREE(context) |driver| {
        driver.set_current(context, false)
    }

    cuCtxPushCurrent_v2(context: u64) DRIVER(context) |driver| {
        driver.set_current(context, true)
    }

    cuCtxPopCurrent_v2(context: Out<u64>) DRIVER(0) |driver| {
        match thread::with(driver.epoch, |thread| thread.contexts.pop()) {
            Some(popped) => {
                context.set_if_asked(popped);
                Ok(())
            }
            None => Err(driver.misuse(Code::INVALID_CONTEXT, "no context to pop")),
        }
    }

    // To ask whether the current context lives is no misuse.
    cuCtxGetDevice(device: Out<i32>) FREE(0) |driver| {
        device.set(driver.current_device().ok_or(Code::INVALID_CONTEXT)? as i32)
    }

    cuCtxSetFlags(flags: u32) CONTEXT(flags) |driver| {
        let _ = driver;
        Ok(())
    }

    cuCtxSynchronize() CONTEXT(0) |driver| {
        let device = driver.device;
        driver.forbid_on_device(device)?;
        driver.forbid_in_capture()?;
        driver.finish_device(device)?;
        driver.trim_pools();
        Ok(())
    }

    cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) CONTEXT(0) |driver| {
        let device = driver.devices[driver.device];
        free.set(device.capacity.saturating_sub(device.used) as usize)?;
        total.set(device.total as usize)
    }
}
