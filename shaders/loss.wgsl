// The mean of squared differences of two arrays of f32, and its gradient.
//
//   group  binding  type                             meaning
//   0      0        uniform Size                     values in each of the arrays
//   0      1        storage, read_write, array<f32>  prediction
//   0      2        storage, read_write, array<f32>  targets
//   0      3        storage, read_write, array<f32>  256 partial sums, for the kernels alone
//   0      4        storage, read_write, f32         the loss
//   0      5        storage, read_write, array<f32>  the gradient, as long as the prediction
//
// Entry points and what they use:
// - `square_sums` (0, 1, 2, 3): overwrites the partial sums. Dispatch [256, 1, 1] whatever the
//   size.
// - `mean` (0, 3, 4): the partial sums into the loss. Dispatch [1, 1, 1] after `square_sums`.
// - `gradient` (0, 1, 2, 5): 2 * (prediction - target) / values. Dispatch ceil(values / 256)
//   workgroups as [x, y, 1] with x * y at least as many and each of them at most 65,535: workgroups
//   count along x, then y, and what goes beyond the arrays does nothing.
//
// Workgroup: 256 invocations.
//
// No atomics of floats: 65,536 invocations sum every 65,536th square, then workgroups add in
// halves, twice. The order hangs on the size alone, so that a run can be repeated to the last bit,
// and no sum is longer than values / 65,536 + 16 terms.

struct Size {
    values: u32,
}

const INVOCATIONS: u32 = 256;
const GROUPS: u32 = 256;

@group(0) @binding(0) var<uniform> size: Size;
@group(0) @binding(1) var<storage, read_write> prediction: array<f32>;
@group(0) @binding(2) var<storage, read_write> targets: array<f32>;
@group(0) @binding(3) var<storage, read_write> partial_sums: array<f32, GROUPS>;
@group(0) @binding(4) var<storage, read_write> loss: f32;
@group(0) @binding(5) var<storage, read_write> gradients: array<f32>;

var<workgroup> sums: array<f32, INVOCATIONS>;

// Every invocation gives a value; the sum of all is in `sums[0]` for the first invocation.
fn sum_workgroup(local: u32, value: f32) {
    sums[local] = value;
    for (var half = INVOCATIONS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (local < half) {
            sums[local] += sums[local + half];
        }
    }
}

@compute @workgroup_size(INVOCATIONS)
fn square_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    var sum = 0.0;
    for (var at = group.x * INVOCATIONS + local; at < size.values; at += GROUPS * INVOCATIONS) {
        let difference = prediction[at] - targets[at];
        sum += difference * difference;
    }
    sum_workgroup(local, sum);
    if (local == 0u) {
        partial_sums[group.x] = sums[0];
    }
}

@compute @workgroup_size(INVOCATIONS)
fn mean(@builtin(local_invocation_index) local: u32) {
    sum_workgroup(local, partial_sums[local]);
    if (local == 0u) {
        loss = sums[0] / f32(size.values);
    }
}

@compute @workgroup_size(INVOCATIONS)
fn gradient(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * INVOCATIONS + local;
    if (index < size.values) {
        let scale = 2.0 / f32(size.values);
        gradients[index] = scale * (prediction[index] - targets[index]);
    }
}
