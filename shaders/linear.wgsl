// The bias of a linear layer: added to every row of a matrix, and its gradient, the sums of the
// columns. Rows lie one after the other.
//
//   group  binding  type                             meaning
//   0      0        uniform Shape                    rows and columns of the matrix
//   0      1        storage, read_write, array<f32>  the matrix: [rows][columns]
//   0      2        storage, read_write, array<f32>  a row: [columns]
//
// Entry points: `add_bias` adds the row to each row of the matrix, in place; `column_sums`
// overwrites the row with the sums of the matrix's columns.
//
// `add_bias`: 256 invocations, a value each. Dispatch ceil(rows * columns / 256) workgroups.
// `column_sums`: 16 columns x 16 invocations each. Dispatch ceil(columns / 16) workgroups.
// Either as [x, y, 1] with x * y at least as many and each of them at most 65,535: workgroups count
// along x, then y, and what goes beyond the matrix does nothing.

struct Shape {
    rows: u32,
    columns: u32,
}

const INVOCATIONS: u32 = 256;
const LANES: u32 = 16;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read_write> matrix: array<f32>;
@group(0) @binding(2) var<storage, read_write> row: array<f32>;

var<workgroup> sums: array<f32, INVOCATIONS>;

@compute @workgroup_size(INVOCATIONS)
fn add_bias(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * INVOCATIONS + local;
    if (index < shape.rows * shape.columns) {
        matrix[index] += row[index % shape.columns];
    }
}

// Lane i of a column sums rows i, i + 16, i + 32 and so on; then the lanes are added in halves. The
// order hangs on the shape alone, so that a run can be repeated to the last bit.
@compute @workgroup_size(LANES, LANES)
fn column_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let column = (group.y * groups.x + group.x) * LANES + local.x;
    var sum = 0.0;
    if (column < shape.columns) {
        for (var at = local.y; at < shape.rows; at += LANES) {
            sum += matrix[at * shape.columns + column];
        }
    }
    let own = local.y * LANES + local.x;
    sums[own] = sum;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (local.y < half) {
            sums[own] += sums[own + half * LANES];
        }
    }
    if (local.y == 0u && column < shape.columns) {
        row[column] = sums[own];
    }
}
