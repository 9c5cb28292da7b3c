//! Copies, maps, and which usages a buffer can have.

use wgpu::{Buffer, BufferUsages, Features, MapMode};

use super::expect;
use crate::gpu::{Dispatch, Gpu, STORAGE, range};

/// Bytes that move.
const BLOCK: u64 = 4_096;

/// A buffer of four blocks, filled with the block's number from 1.
fn blocks(gpu: &Gpu) -> Buffer {
    gpu.buffer(&numbered(&[1, 2, 3, 4]))
}

fn numbered(blocks: &[u32]) -> Vec<u32> {
    blocks.iter().flat_map(|number| vec![*number; BLOCK as usize / 4]).collect()
}

fn copy(gpu: &Gpu, (from, offset): (&Buffer, u64), (to, at): (&Buffer, u64), size: u64) {
    let mut encoder = gpu.encoder();
    encoder.copy_buffer_to_buffer(from, offset, to, at, size);
    gpu.queue.submit([encoder.finish()]);
}

#[test]
fn no_copy_inside_a_buffer() {
    let Some(gpu) = Gpu::shared() else { return };
    let buffer = blocks(gpu);
    let same = Some("cannot be the same buffer");
    let rows = [
        ("disjoint", 0, 2 * BLOCK, BLOCK),
        ("neighbours", BLOCK, 0, BLOCK),
        ("overlapping", 0, BLOCK / 2, BLOCK),
        ("identical", 0, 0, BLOCK),
        ("nothing", 0, BLOCK, 0),
    ];
    for (what, from, to, size) in rows {
        expect(gpu, what, same, || copy(gpu, (&buffer, from), (&buffer, to), size));
    }
    assert_eq!(gpu.read::<u32>(&buffer), numbered(&[1, 2, 3, 4]));
}

/// What takes the place of it: a kernel over two ranges, a detour, or a move to another buffer.
#[test]
fn ways_to_move_a_block() {
    let Some(gpu) = Gpu::shared() else { return };
    let text = "@group(0) @binding(0) var<storage, read_write> source: array<u32>;
                @group(0) @binding(1) var<storage, read_write> copy: array<u32>;
                @compute @workgroup_size(64)
                fn main(@builtin(global_invocation_id) id: vec3<u32>) {
                    copy[id.x] = source[id.x];
                }";
    let pipeline = &gpu.pipeline(text, "main");
    let buffer = blocks(gpu);
    let bindings = vec![(0, range(&buffer, 0, BLOCK)), (1, range(&buffer, 2 * BLOCK, BLOCK))];
    expect(gpu, "a kernel", None, || {
        gpu.run(&[Dispatch { pipeline, bindings, groups: [BLOCK as u32 / 256, 1, 1] }]);
    });
    assert_eq!(gpu.read::<u32>(&buffer), numbered(&[1, 2, 1, 4]));

    let other = gpu.zeros(BLOCK, STORAGE);
    expect(gpu, "to another buffer", None, || copy(gpu, (&buffer, 3 * BLOCK), (&other, 0), BLOCK));
    expect(gpu, "and back", None, || copy(gpu, (&other, 0), (&buffer, 0), BLOCK));
    assert_eq!(gpu.read::<u32>(&buffer), numbered(&[4, 2, 1, 4]));
}

#[test]
fn lengths_and_offsets_are_multiples_of_4() {
    let Some(gpu) = Gpu::shared() else { return };
    let (from, to) = (blocks(gpu), blocks(gpu));
    for (offset, size, is_allowed) in [(0_u64, 3_u64, false), (2, 4, false), (4, 4, true)] {
        let what = |verb: &str| format!("{verb} {size} bytes at {offset}");
        // Each message puts it its own way.
        let refused = (!is_allowed).then_some("");
        expect(gpu, &what("copy"), refused, || copy(gpu, (&from, 0), (&to, offset), size));
        expect(gpu, &what("write"), refused, || {
            gpu.queue.write_buffer(&to, offset, &vec![0; size as usize]);
        });
        expect(gpu, &what("clear"), refused, || {
            let mut encoder = gpu.encoder();
            encoder.clear_buffer(&to, offset, Some(size));
            gpu.queue.submit([encoder.finish()]);
        });
    }
}

#[test]
fn a_mapped_range_locks_its_buffer() {
    let Some(gpu) = Gpu::shared() else { return };
    let source = blocks(gpu);
    let buffer = gpu.zeros(4 * BLOCK, BufferUsages::MAP_READ | BufferUsages::COPY_DST);
    let elsewhere = 2 * BLOCK;
    gpu.map(&buffer, MapMode::Read, 0..BLOCK).expect("nothing else is mapped");
    let mapped = Some("mapped");
    expect(gpu, "a copy elsewhere", mapped, || copy(gpu, (&source, 0), (&buffer, elsewhere), 4));
    expect(gpu, "a write elsewhere", mapped, || {
        gpu.queue.write_buffer(&buffer, elsewhere, &[9; 4]);
    });
    // This refusal goes to the callback, and to no scope.
    expect(gpu, "a second map", None, || {
        let second = gpu.map(&buffer, MapMode::Read, elsewhere..elsewhere + BLOCK);
        assert!(second.is_err(), "a second map of a buffer: {second:?}");
    });
    let view = buffer.get_mapped_range(0..BLOCK).expect("the first map is untouched");
    assert!(view.iter().all(|byte| *byte == 0), "a fresh buffer is zero");
    drop(view);
    buffer.unmap();
    expect(gpu, "a copy after it", None, || copy(gpu, (&source, 0), (&buffer, elsewhere), 4));
    gpu.map(&buffer, MapMode::Read, elsewhere..elsewhere + BLOCK).expect("it is free again");
    let view = buffer.get_mapped_range(elsewhere..elsewhere + 8).expect("the range was mapped");
    assert_eq!(view[..], [1, 0, 0, 0, 0, 0, 0, 0]);
}

const READ: BufferUsages = BufferUsages::MAP_READ;
const WRITE: BufferUsages = BufferUsages::MAP_WRITE;
const FROM: BufferUsages = BufferUsages::COPY_SRC;
const TO: BufferUsages = BufferUsages::COPY_DST;

/// Everything that a kernel, a copy or a draw may want.
const UNMAPPED: BufferUsages =
    BufferUsages::all().difference(READ.union(WRITE)).difference(BufferUsages::BLAS_INPUT.union(
        BufferUsages::TLAS_INPUT, // Both need ray tracing.
    ));

fn create(gpu: &Gpu, usage: BufferUsages) {
    drop(gpu.zeros(BLOCK, usage));
}

#[test]
fn usages_that_go_together() {
    let Some(gpu) = Gpu::shared() else { return };
    let mismatch = Some("usage");
    let rows = [
        (UNMAPPED, None),
        (READ, None),
        (READ | TO, None),
        (WRITE | FROM, None),
        (READ | FROM, mismatch),
        (WRITE | TO, mismatch),
        (READ | WRITE, mismatch),
        (READ | BufferUsages::STORAGE, mismatch),
        (WRITE | BufferUsages::STORAGE, mismatch),
    ];
    for (usage, refused) in rows {
        expect(gpu, &format!("{usage:?}"), refused, || create(gpu, usage));
    }
}

/// Memory that host and device share, where the device has it.
#[test]
fn usages_of_mappable_primary_buffers() {
    let Some(gpu) = Gpu::open(Features::MAPPABLE_PRIMARY_BUFFERS) else { return };
    let storage = BufferUsages::STORAGE;
    for usage in [READ | storage, WRITE | storage, READ | WRITE | storage | FROM | TO] {
        expect(&gpu, &format!("{usage:?}"), None, || create(&gpu, usage));
    }
}

/// A vertex buffer is a word longer than asked for, so a segment of a power of two would spill.
#[test]
fn vertex_buffers_are_longer() {
    let Some(gpu) = Gpu::open(Features::empty()) else { return };
    let cost = |usage| {
        let bytes = || gpu.device.generate_allocator_report().map(|r| r.total_allocated_bytes);
        let before = bytes()?;
        let _buffer = gpu.zeros(1 << 16, usage);
        Some(bytes()? - before)
    };
    let (Some(plain), Some(vertex)) = (cost(STORAGE), cost(STORAGE | BufferUsages::VERTEX)) else {
        return; // This backend of wgpu makes no report.
    };
    assert_eq!(vertex - plain, 4, "a plain buffer costs {plain} bytes");
}
