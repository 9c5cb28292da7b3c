// Products of matrices of f32, rows one after the other: C = A · B and C = Aᵀ · B.
//
//   group  binding  type                             meaning
//   0      0        uniform Shape                    rows of C, depth of the sums, columns of C
//   0      1        storage, read_write, array<f32>  A: [rows][depth], or [depth][rows] (below)
//   0      2        storage, read_write, array<f32>  B: [depth][columns]
//   0      3        storage, read_write, array<f32>  C: [rows][columns], overwritten
//
// Entry points: `matmul` takes A as [rows][depth]; `matmul_transposed` takes A as [depth][rows] and
// multiplies by its transpose, which is the weights' gradient xᵀ · g of a layer x · w. A and B are
// declared read_write only because they may lie in the buffer of C; C must not overlap them.
//
// Workgroup: 16 x 16 invocations, 4 x 4 values of C each. Dispatch
// [ceil(columns / 64), ceil(rows / 64), 1] workgroups, at most 65,535 of each.
//
// Each value is the sum of its products in the order of the depth. Tiles of A and B, 16 deep, pass
// through workgroup memory; where one hangs over the edge it is filled with zeros. Tiles hold
// vectors, of 4 rows of A and of 4 columns of B, so that two loads feed 16 products.

struct Shape {
    rows: u32,
    depth: u32,
    columns: u32,
}

const LANES: u32 = 16;
// Rows and columns of C for each invocation: the length of a vector.
const WIDTH: u32 = 4;
const DEPTH: u32 = 16;
// A stride that is odd spreads a column of the tile over the banks of workgroup memory.
const STRIDE: u32 = LANES + 1;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read_write> left: array<f32>;
@group(0) @binding(2) var<storage, read_write> right: array<f32>;
@group(0) @binding(3) var<storage, read_write> product: array<f32>;

var<workgroup> left_tile: array<vec4<f32>, DEPTH * STRIDE>;
var<workgroup> right_tile: array<vec4<f32>, DEPTH * LANES>;

// Of A as [rows][depth].
fn left_value(row: u32, at: u32) -> f32 {
    if (row < shape.rows && at < shape.depth) {
        return left[row * shape.depth + at];
    }
    return 0.0;
}

// Of A as [depth][rows].
fn left_value_transposed(row: u32, at: u32) -> f32 {
    if (row < shape.rows && at < shape.depth) {
        return left[at * shape.rows + row];
    }
    return 0.0;
}

fn right_value(at: u32, column: u32) -> f32 {
    if (at < shape.depth && column < shape.columns) {
        return right[at * shape.columns + column];
    }
    return 0.0;
}

fn load_right(local: vec3<u32>, start: u32, first: u32) {
    let at = start + local.y;
    right_tile[local.y * LANES + local.x] = vec4<f32>(
        right_value(at, first),
        right_value(at, first + 1u),
        right_value(at, first + 2u),
        right_value(at, first + 3u),
    );
}

// `sums` holds a row in each of its vectors.
fn add_tiles(local: vec3<u32>, before: mat4x4<f32>) -> mat4x4<f32> {
    var sums = before;
    for (var at = 0u; at < DEPTH; at++) {
        let rows = left_tile[at * STRIDE + local.y];
        let columns = right_tile[at * LANES + local.x];
        sums[0] += rows.x * columns;
        sums[1] += rows.y * columns;
        sums[2] += rows.z * columns;
        sums[3] += rows.w * columns;
    }
    return sums;
}

fn store(first_row: u32, first_column: u32, sums: mat4x4<f32>) {
    // What is indexed by a variable is a variable.
    var values = sums;
    for (var i = 0u; i < WIDTH; i++) {
        for (var j = 0u; j < WIDTH; j++) {
            let row = first_row + i;
            let column = first_column + j;
            if (row < shape.rows && column < shape.columns) {
                product[row * shape.columns + column] = values[i][j];
            }
        }
    }
}

@compute @workgroup_size(LANES, LANES)
fn matmul(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = (group.y * LANES + local.y) * WIDTH;
    let column = (group.x * LANES + local.x) * WIDTH;
    var sums = mat4x4<f32>();
    for (var start = 0u; start < shape.depth; start += DEPTH) {
        // Neighbours along x read neighbours in memory, which lie along the depth.
        let at = start + local.x;
        left_tile[local.x * STRIDE + local.y] = vec4<f32>(
            left_value(row, at),
            left_value(row + 1u, at),
            left_value(row + 2u, at),
            left_value(row + 3u, at),
        );
        load_right(local, start, column);
        workgroupBarrier();
        sums = add_tiles(local, sums);
        workgroupBarrier();
    }
    store(row, column, sums);
}

@compute @workgroup_size(LANES, LANES)
fn matmul_transposed(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = (group.y * LANES + local.y) * WIDTH;
    let column = (group.x * LANES + local.x) * WIDTH;
    // Here neighbours in memory are rows: each invocation loads what another one multiplies.
    let loaded = (group.y * LANES + local.x) * WIDTH;
    var sums = mat4x4<f32>();
    for (var start = 0u; start < shape.depth; start += DEPTH) {
        let at = start + local.y;
        left_tile[local.y * STRIDE + local.x] = vec4<f32>(
            left_value_transposed(loaded, at),
            left_value_transposed(loaded + 1u, at),
            left_value_transposed(loaded + 2u, at),
            left_value_transposed(loaded + 3u, at),
        );
        load_right(local, start, column);
        workgroupBarrier();
        sums = add_tiles(local, sums);
        workgroupBarrier();
    }
    store(row, column, sums);
}
