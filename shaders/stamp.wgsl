// Marks every word of a block, and counts the words that lost their mark.
//
// The mark is a hash of the block's seed and of the word's index, so that a word of another block,
// of another place, or of zeros passes for the right one with a chance of one in 2^32 only. Both
// are hashed before they meet: with a plain sum, two blocks could hold the same marks shifted.
//
//   group  binding  type                              meaning
//   0      0        uniform Block                     words of the block, its seed
//   0      1        storage, read_write, array<u32>   the block
//   0      2        storage, read_write, atomic<u32>  `check` alone: grows by the mismatches
//
// Entry points: `stamp` writes the marks; `check` writes nothing but the counter, which the caller
// zeroes before.
//
// Workgroup: 256 invocations, a word each. Dispatch ceil(words / 256) workgroups as [x, y, 1] with
// x * y at least as many and each of them at most 65,535: workgroups count along x, then y, and
// what goes beyond the block does nothing.

struct Block {
    words: u32,
    seed: u32,
}

const INVOCATIONS: u32 = 256;

@group(0) @binding(0) var<uniform> params: Block;
@group(0) @binding(1) var<storage, read_write> block: array<u32>;
@group(0) @binding(2) var<storage, read_write> mismatches: atomic<u32>;

// A bijection of 32 bits by Chris Wellons ("lowbias32" of his hash prospector): a flipped bit
// flips each bit of the result with a chance of about one half.
fn mix(word: u32) -> u32 {
    var x = word;
    x = (x ^ (x >> 16u)) * 0x7feb352du;
    x = (x ^ (x >> 15u)) * 0x846ca68bu;
    return x ^ (x >> 16u);
}

// The constants keep index 0 of seed 0 from being zero: `mix` leaves zero alone.
fn mark(seed: u32, index: u32) -> u32 {
    return mix(mix(index + 0x9e3779b9u) ^ mix(seed + 0x85ebca6bu));
}

fn word_index(group: vec3<u32>, groups: vec3<u32>, local: u32) -> u32 {
    return (group.y * groups.x + group.x) * INVOCATIONS + local;
}

@compute @workgroup_size(INVOCATIONS)
fn stamp(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = word_index(group, groups, local);
    if (index < params.words) {
        block[index] = mark(params.seed, index);
    }
}

// One atomic for each wrong word: there are none in a run that is worth its time.
@compute @workgroup_size(INVOCATIONS)
fn check(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = word_index(group, groups, local);
    if (index < params.words && block[index] != mark(params.seed, index)) {
        atomicAdd(&mismatches, 1u);
    }
}
