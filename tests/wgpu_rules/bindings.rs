//! What one dispatch may bind of one buffer.

use wgpu::{Buffer, BufferBinding, BufferUsages, ComputePipeline};

use super::expect;
use crate::gpu::{Dispatch, Gpu, STORAGE, range, whole};

/// Bytes of a range; half of it is the largest alignment there is.
const RANGE: u64 = 512;

/// Words of a buffer of the tests: four ranges and a bit.
const WORDS: u32 = 600;

const EXCLUSIVE: Option<&str> = Some("exclusive usage");

/// Word i holds 1,000 + i.
fn counted(gpu: &Gpu) -> Buffer {
    gpu.buffer(&(1_000..1_000 + WORDS).collect::<Vec<_>>())
}

/// One invocation, which touches the first word of each range alone, so that ranges may overlap
/// without a race: `second = first + 1` if the second range is written, and the sum of both into
/// `out`, which lies elsewhere.
fn kernel(gpu: &Gpu, first: &str, second: &str) -> ComputePipeline {
    let step = if second == "read_write" { "second[0] = first[0] + 1u;" } else { "" };
    let text = format!(
        "@group(0) @binding(0) var<storage, {first}> first: array<u32>;
         @group(0) @binding(1) var<storage, {second}> second: array<u32>;
         @group(0) @binding(2) var<storage, read_write> out: u32;
         @compute @workgroup_size(1) fn main() {{ {step} out = first[0] + second[0]; }}"
    );
    gpu.pipeline(&text, "main")
}

fn dispatch<'a>(pipeline: &'a ComputePipeline, ranges: [BufferBinding<'a>; 3]) -> Dispatch<'a> {
    Dispatch { pipeline, bindings: (0..).zip(ranges).collect(), groups: [1, 1, 1] }
}

/// Two ranges of one buffer at one dispatch: how each is declared, where the second begins (the
/// first is at 0), and what is said against it.
const ONE_DISPATCH: &[(&str, [&str; 2], u64, Option<&str>)] = &[
    ("disjoint", ["read_write", "read_write"], RANGE, None),
    // Native wgpu looks at buffers, not at ranges. WebGPU in a browser refuses these two.
    ("overlapping", ["read_write", "read_write"], RANGE / 2, None),
    ("identical", ["read_write", "read_write"], 0, None),
    ("disjoint", ["read", "read"], RANGE, None),
    ("overlapping", ["read", "read"], RANGE / 2, None),
    ("identical", ["read", "read"], 0, None),
    ("disjoint", ["read", "read_write"], RANGE, EXCLUSIVE),
    ("overlapping", ["read", "read_write"], RANGE / 2, EXCLUSIVE),
    ("identical", ["read", "read_write"], 0, EXCLUSIVE),
    ("disjoint", ["read_write", "read"], RANGE, EXCLUSIVE),
];

#[test]
fn ranges_of_one_buffer_in_one_dispatch() {
    let Some(gpu) = Gpu::shared() else { return };
    for (place, [first, second], offset, refused) in ONE_DISPATCH {
        let what = format!("{place} {first} + {second}");
        let (buffer, out) = (counted(gpu), gpu.buffer(&[0_u32]));
        let kernel = kernel(gpu, first, second);
        let ranges = [range(&buffer, 0, RANGE), range(&buffer, *offset, RANGE), whole(&out)];
        expect(gpu, &what, *refused, || gpu.run(&[dispatch(&kernel, ranges)]));
        let at = *offset as usize / 4;
        let mut wanted: Vec<u32> = (1_000..1_000 + WORDS).collect();
        if refused.is_none() && *second == "read_write" {
            wanted[at] = wanted[0] + 1;
        }
        let sum = if refused.is_none() { wanted[0] + wanted[at] } else { 0 };
        assert_eq!(gpu.read::<u32>(&out), [sum], "{what}");
        assert_eq!(gpu.read::<u32>(&buffer), wanted, "{what}");
    }
}

/// `read` beside `read_write` is a matter of the buffer: segments that differ are free to mix.
#[test]
fn ranges_of_two_buffers_mix() {
    let Some(gpu) = Gpu::shared() else { return };
    let (from, to, out) = (counted(gpu), counted(gpu), gpu.buffer(&[0_u32]));
    let kernel = kernel(gpu, "read", "read_write");
    let ranges = [range(&from, 0, RANGE), range(&to, RANGE, RANGE), whole(&out)];
    expect(gpu, "two buffers", None, || gpu.run(&[dispatch(&kernel, ranges)]));
    assert_eq!(gpu.read::<u32>(&to)[RANGE as usize / 4], 1_001);
}

/// The rule is one of a dispatch: the same ranges may be read in the dispatches before and after
/// the one that writes them, in one pass, and each sees what the one before it wrote.
#[test]
fn the_scope_is_one_dispatch() {
    let Some(gpu) = Gpu::shared() else { return };
    let buffer = counted(gpu);
    let [before, between, after] = [0, 1, 2].map(|_| gpu.buffer(&[0_u32]));
    let reads = kernel(gpu, "read", "read");
    let writes = kernel(gpu, "read_write", "read_write");
    let ranges = |out| [range(&buffer, 0, RANGE), range(&buffer, RANGE, RANGE), whole(out)];
    expect(gpu, "three dispatches of one pass", None, || {
        gpu.run(&[
            dispatch(&reads, ranges(&before)),
            dispatch(&writes, ranges(&between)),
            dispatch(&reads, ranges(&after)),
        ]);
    });
    let sums = [before, between, after].map(|out| gpu.read::<u32>(&out)[0]);
    let second = 1_000 + RANGE as u32 / 4;
    assert_eq!(sums, [1_000 + second, 1_000 + 1_001, 1_000 + 1_001]);
}

/// Nine neighbours in one buffer, each one more than the one before: every dispatch waits for the
/// last one without being told.
#[test]
fn a_chain_through_one_buffer() {
    const LINKS: u64 = 8;
    let Some(gpu) = Gpu::shared() else { return };
    let (buffer, out) = (gpu.zeros((LINKS + 1) * RANGE, STORAGE), gpu.buffer(&[0_u32]));
    let kernel = kernel(gpu, "read_write", "read_write");
    let links: Vec<_> = (0..LINKS)
        .map(|at| {
            let (from, to) = (at * RANGE, (at + 1) * RANGE);
            let ranges = [range(&buffer, from, RANGE), range(&buffer, to, RANGE), whole(&out)];
            dispatch(&kernel, ranges)
        })
        .collect();
    expect(gpu, "a chain", None, || gpu.run(&links));
    let words: Vec<u32> = gpu.read(&buffer);
    let starts: Vec<u32> = words.into_iter().step_by(RANGE as usize / 4).collect();
    assert_eq!(starts, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

/// Parameters cannot lie beside what a kernel writes.
#[test]
fn a_uniform_has_its_own_buffer() {
    let Some(gpu) = Gpu::shared() else { return };
    let text = "@group(0) @binding(0) var<uniform> given: u32;
                @group(0) @binding(1) var<storage, read_write> taken: u32;
                @compute @workgroup_size(1) fn main() { taken = given; }";
    let kernel = gpu.pipeline(text, "main");
    let usage = STORAGE | BufferUsages::UNIFORM;
    let (one, other) = (gpu.zeros(2 * RANGE, usage), gpu.zeros(RANGE, usage));
    gpu.queue.write_buffer(&one, 0, &7_u32.to_le_bytes());
    let run = |to| {
        let bindings = vec![(0, range(&one, 0, 4)), (1, to)];
        gpu.run(&[Dispatch { pipeline: &kernel, bindings, groups: [1, 1, 1] }]);
    };
    expect(gpu, "the same buffer", EXCLUSIVE, || run(range(&one, RANGE, 4)));
    expect(gpu, "two buffers", None, || run(range(&other, 0, 4)));
    assert_eq!(gpu.read::<u32>(&other)[0], 7);
}

/// Nor can the arguments of an indirect dispatch.
#[test]
fn indirect_arguments_have_their_own_buffer() {
    let Some(gpu) = Gpu::shared() else { return };
    let text = "@group(0) @binding(0) var<storage, read_write> count: atomic<u32>;
                @compute @workgroup_size(1) fn main() { atomicAdd(&count, 1u); }";
    let kernel = gpu.pipeline(text, "main");
    let usage = STORAGE | BufferUsages::INDIRECT;
    let (one, other) = (gpu.zeros(2 * RANGE, usage), gpu.zeros(2 * RANGE, usage));
    let arguments: Vec<u8> = [3_u32, 2, 1].iter().flat_map(|word| word.to_le_bytes()).collect();
    gpu.queue.write_buffer(&one, RANGE, &arguments);
    let run = |count: &Buffer| {
        let mut encoder = gpu.encoder();
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&kernel);
        pass.set_bind_group(0, &gpu.bind_group(&kernel, &[(0, range(count, 0, RANGE))]), &[]);
        pass.dispatch_workgroups_indirect(&one, RANGE);
        drop(pass);
        gpu.queue.submit([encoder.finish()]);
    };
    expect(gpu, "the same buffer", EXCLUSIVE, || run(&one));
    expect(gpu, "two buffers", None, || run(&other));
    assert_eq!(gpu.read::<u32>(&other)[0], 6);
}

#[test]
fn where_a_range_may_lie() {
    let Some(gpu) = Gpu::shared() else { return };
    let limits = gpu.device.limits();
    let alignment = u64::from(limits.min_storage_buffer_offset_alignment);
    assert!(RANGE.is_multiple_of(2 * alignment), "ranges of these tests are aligned");
    let kernel = kernel(gpu, "read_write", "read_write");
    let (buffer, out) = (counted(gpu), gpu.buffer(&[0_u32]));
    let rows = [
        ("at the alignment", alignment, 4, None),
        ("at half of it", alignment / 2, 4, Some("align")),
        ("a length that is no multiple of 4", 0, 6, Some("align to 4")),
        ("beyond the end", RANGE, u64::from(WORDS) * 4, Some("overflow")),
    ];
    for (what, offset, size, refused) in rows {
        let ranges = [whole(&buffer), range(&buffer, offset, size), whole(&out)];
        let bindings: Vec<_> = (0..).zip(ranges).collect();
        expect(gpu, what, refused, || drop(gpu.bind_group(&kernel, &bindings)));
    }
}

/// What lies beyond this limit can be copied but not bound.
#[test]
fn a_binding_has_a_limit() {
    let Some(gpu) = Gpu::shared() else { return };
    let limits = gpu.device.limits();
    let limit = limits.max_storage_buffer_binding_size & !3;
    if limit + 4 > limits.max_buffer_size {
        return; // No buffer is larger than a binding here.
    }
    let kernel = kernel(gpu, "read_write", "read_write");
    let (large, out) = (gpu.zeros(limit + 4, STORAGE), gpu.buffer(&[0_u32]));
    for (size, refused) in [(limit, None), (limit + 4, Some("exceeds"))] {
        let bindings: Vec<_> =
            (0..).zip([range(&large, 0, size), range(&large, 0, 4), whole(&out)]).collect();
        let bind = || drop(gpu.bind_group(&kernel, &bindings));
        expect(gpu, &format!("{size} bytes"), refused, bind);
    }
}
