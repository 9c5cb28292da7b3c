// Fills a block with one word: zeros, a poison, a number's bits.
//
//   group  binding  type                             meaning
//   0      0        uniform Block                    words of the block, the word
//   0      1        storage, read_write, array<u32>  the block
//
// Entry point: `fill`.
//
// Workgroup: 256 invocations, a word each. Dispatch ceil(words / 256) workgroups as [x, y, 1] with
// x * y at least as many and each of them at most 65,535: workgroups count along x, then y, and
// what goes beyond the block does nothing.

struct Block {
    words: u32,
    value: u32,
}

const INVOCATIONS: u32 = 256;

@group(0) @binding(0) var<uniform> params: Block;
@group(0) @binding(1) var<storage, read_write> block: array<u32>;

@compute @workgroup_size(INVOCATIONS)
fn fill(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * INVOCATIONS + local;
    if (index < params.words) {
        block[index] = params.value;
    }
}
