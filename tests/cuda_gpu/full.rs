//! A device without room: what is said, and that all of it comes back.

use aquifer::AllocError;
use aquifer::backend::CudaSource;

use crate::fixture::{Counter, Device, blank, pick};
use crate::support::MIB;

/// What the driver may keep for itself of a device that was full: page tables, and whatever other
/// programs take meanwhile.
const TOLERANCE: u64 = 64 * MIB;

fn fill_up(source: CudaSource) {
    let Some(device) = Device::with_source(Some(source)) else { return };
    let on = device.stream();
    let mut counter = Counter::new(&on);
    let free = |device: &Device| device.memory.mem_get_info().expect("the driver tells").free;
    let before = free(&device);
    let words = pick(256, 32) * MIB as usize / 4;
    // All of a real one; pages of the fake one are the machine's memory.
    let touched = pick(usize::MAX, 1000);
    let mut held = Vec::new();
    let error = loop {
        // SAFETY: it is written before it is read.
        match unsafe { on.alloc::<u32>(words) } {
            Ok(mut buffer) => {
                device.words.stamp_first(&on, &mut buffer, touched, held.len() as u32);
                held.push(buffer);
            }
            Err(error) => break error,
        }
    };
    let bytes = held.len() as u64 * words as u64 * 4;
    println!("{source:?}: {bytes} of {before} bytes were had; then: {error}");
    assert!(bytes >= before / 10 * 8, "{bytes} of {before} bytes");
    assert!(matches!(error, AllocError::OutOfMemory(_)), "{error:?}");
    assert!(error.to_string().contains("256.00 MiB") || error.to_string().contains("32.00 MiB"));
    for (seed, buffer) in held.iter().enumerate() {
        device.words.check_first(&on, buffer, touched, seed as u32, &mut counter);
    }
    assert_eq!(counter.wrong(), 0);

    // What is dropped serves the next one at once, and refusals have broken nothing.
    held.truncate(held.len() / 2);
    held.push(blank(&on, words));
    on.allocate(1 << 50).expect_err("nobody has so much");
    device.memory.verify();
    drop((held, counter, on));
    device.memory.synchronize().expect("the device is there");
    device.memory.empty_cache();
    let after = free(&device);
    assert!(after + TOLERANCE >= before, "{after} bytes are free, {before} were");
    device.finish();
}

#[test]
fn a_full_device_of_virtual_memory_is_told_and_given_back() {
    fill_up(CudaSource::Virtual);
}

#[test]
fn a_full_device_of_a_pool_is_told_and_given_back() {
    fill_up(CudaSource::Pool);
}

#[test]
fn a_full_device_of_plain_memory_is_told_and_given_back() {
    fill_up(CudaSource::Plain);
}
