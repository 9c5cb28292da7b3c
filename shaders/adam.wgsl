// One step of Adam on one parameter: https://arxiv.org/abs/1412.6980, algorithm 1.
//
//   group  binding  type                             meaning
//   0      0        uniform Step                     size and constants, below
//   0      1        storage, read_write, array<f32>  the parameter's values, updated
//   0      2        storage, read_write, array<f32>  their gradient
//   0      3        storage, read_write, array<f32>  the first moment, updated
//   0      4        storage, read_write, array<f32>  the second moment, updated
//
// Entry point: `adam`. All arrays are equally long. What hangs on the number t of the step comes
// from the host: `rate` is rate / (1 - decay_first^t), `scale` is 1 / (1 - decay_second^t). PyTorch
// has rate 1e-3, decays 0.9 and 0.999, epsilon 1e-8.
//
// Workgroup: 256 invocations, a value each. Dispatch ceil(values / 256) workgroups as [x, y, 1]
// with x * y at least as many and each of them at most 65,535: workgroups count along x, then y,
// and what goes beyond the arrays does nothing.

struct Step {
    values: u32,
    rate: f32,
    scale: f32,
    decay_first: f32,
    decay_second: f32,
    epsilon: f32,
}

const INVOCATIONS: u32 = 256;

@group(0) @binding(0) var<uniform> params: Step;
@group(0) @binding(1) var<storage, read_write> values: array<f32>;
@group(0) @binding(2) var<storage, read_write> gradients: array<f32>;
@group(0) @binding(3) var<storage, read_write> first_moments: array<f32>;
@group(0) @binding(4) var<storage, read_write> second_moments: array<f32>;

@compute @workgroup_size(INVOCATIONS)
fn adam(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * INVOCATIONS + local;
    if (index >= params.values) {
        return;
    }
    let gradient = gradients[index];
    let first = params.decay_first * first_moments[index] + (1.0 - params.decay_first) * gradient;
    let second = params.decay_second * second_moments[index]
        + (1.0 - params.decay_second) * gradient * gradient;
    first_moments[index] = first;
    second_moments[index] = second;
    values[index] -= params.rate * first / (sqrt(params.scale * second) + params.epsilon);
}
