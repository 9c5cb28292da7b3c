//! What memory holds before anybody writes to it.

use wgpu::Buffer;

use crate::gpu::{Dispatch, Gpu, STORAGE, range, whole};

const SIZE: u64 = 65_536;
const SECRET: &[u8; 16] = b"SECRET-KEY-12345";

/// The first 16 bytes of a range, as a kernel sees them.
fn seen(gpu: &Gpu, buffer: &Buffer, offset: u64) -> Vec<u8> {
    let text = "@group(0) @binding(0) var<storage, read_write> block: vec4<u32>;
                @group(0) @binding(1) var<storage, read_write> out: vec4<u32>;
                @compute @workgroup_size(1) fn main() { out = block; }";
    let pipeline = &gpu.pipeline(text, "main");
    let out = gpu.buffer(&[0xEE_u8; 16]);
    let bindings = vec![(0, range(buffer, offset, 16)), (1, whole(&out))];
    gpu.run(&[Dispatch { pipeline, bindings, groups: [1, 1, 1] }]);
    gpu.read(&out)
}

/// The next tenant of a range reads what the last one left: wgpu clears bytes before their first
/// use, not before each tenant's.
#[test]
fn a_reused_range_shows_what_was_there() {
    let Some(gpu) = Gpu::shared() else { return };
    let buffer = gpu.zeros(SIZE, STORAGE);
    gpu.queue.write_buffer(&buffer, 4_096, SECRET);
    assert_eq!(seen(gpu, &buffer, 4_096), SECRET);
    assert_eq!(seen(gpu, &buffer, 8_192), [0; 16], "what was never used is zero");
    let mut encoder = gpu.encoder();
    encoder.clear_buffer(&buffer, 4_096, Some(16));
    gpu.queue.submit([encoder.finish()]);
    assert_eq!(seen(gpu, &buffer, 4_096), [0; 16], "a clear scrubs it");
}

/// A fresh buffer reads as zeros, even where it lies in the memory of one that has just gone.
#[test]
fn a_fresh_buffer_is_zero() {
    // A device of its own: nobody else takes the memory between the two.
    let Some(gpu) = Gpu::open(wgpu::Features::empty()) else { return };
    for round in 0..8 {
        let buffer = gpu.zeros(SIZE, STORAGE);
        assert_eq!(seen(&gpu, &buffer, 0), [0; 16], "round {round}");
        let bytes: Vec<u8> = gpu.read(&buffer);
        assert!(bytes.iter().all(|byte| *byte == 0), "round {round}");
        gpu.queue.write_buffer(&buffer, 0, &[0xAA; SIZE as usize]);
        gpu.queue.submit([]);
        gpu.wait();
        drop(buffer);
        gpu.wait();
    }
}
