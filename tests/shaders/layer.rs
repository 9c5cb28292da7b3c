//! The linear layer: products of matrices, the bias, and the sums of columns.

use super::near::{Near, Sum, assert_near};
use super::{Guarded, LINEAR, MATMUL, PERIOD, Rng, cycle, groups_of, numbers, operand, run};
use crate::gpu::Gpu;

/// Rows and columns of a product for each workgroup.
const TILE: usize = 64;

/// Lanes of a column in `column_sums`, and the steps in which they are added.
const LANES: usize = 16;
const LANE_STEPS: usize = 4;

/// Of a product: rows and columns of the result, and the length of its sums.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) depth: usize,
    pub(crate) columns: usize,
}

impl Shape {
    pub(crate) fn params(self) -> [u32; 3] {
        [self.rows, self.depth, self.columns].map(|length| length as u32)
    }

    pub(crate) fn groups(self) -> [u32; 3] {
        [self.columns.div_ceil(TILE) as u32, self.rows.div_ceil(TILE) as u32, 1]
    }
}

/// `left` is `[rows][depth]`, or `[depth][rows]` if it is taken transposed.
pub(crate) fn product(
    shape: Shape,
    left: &[Near],
    is_transposed: bool,
    right: &[Near],
) -> Vec<Near> {
    let Shape { rows, depth, columns } = shape;
    assert_eq!((left.len(), right.len()), (rows * depth, depth * columns), "{shape:?}");
    let (row_stride, depth_stride) = if is_transposed { (1, rows) } else { (depth, 1) };
    let mut product = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        let mut sums = vec![Sum::default(); columns];
        for at in 0..depth {
            let factor = left[row * row_stride + at * depth_stride];
            let terms = &right[at * columns..][..columns];
            sums.iter_mut().zip(terms).for_each(|(sum, term)| sum.add_product(factor, *term));
        }
        // A product is rounded once, then it is in at most `depth` additions.
        product.extend(sums.iter().map(|sum| sum.end(depth + 1)));
    }
    product
}

pub(crate) fn column_sums(rows: usize, matrix: &[Near]) -> Vec<Near> {
    let columns = matrix.len() / rows;
    let column = |column: usize| matrix[column..].iter().step_by(columns).copied();
    let depth = rows.div_ceil(LANES) + LANE_STEPS;
    (0..columns).map(|at| Near::sum(depth, column(at))).collect()
}

/// Every mixture of lengths around a tile, which is 16 deep and 64 wide, and one shape of a layer.
fn shapes() -> Vec<Shape> {
    let mut shapes = vec![Shape { rows: 1_000, depth: 64, columns: 1_000 }];
    let lengths = [1, 15, 16, 17, 63, 65];
    for rows in lengths {
        for depth in lengths {
            shapes.extend(lengths.map(|columns| Shape { rows, depth, columns }));
        }
    }
    shapes
}

fn products_are_right(entry_point: &str, is_transposed: bool) {
    let Some(gpu) = Gpu::shared() else { return };
    let kernel = gpu.pipeline(MATMUL, entry_point);
    let mut random = Rng::new(3);
    for shape in shapes() {
        let Shape { rows, depth, columns } = shape;
        let left = numbers(&mut random, rows * depth);
        let right = numbers(&mut random, depth * columns);
        let out = Guarded::new(gpu, &vec![f32::NAN; rows * columns]);
        let (params, a, b) =
            (gpu.uniform(&shape.params()), operand(gpu, &left), operand(gpu, &right));
        let bindings = [(0, &params), (1, &a), (2, &b), (3, &out.buffer)];
        run(gpu, &kernel, &bindings, shape.groups());
        let wanted = product(shape, &Near::all(&left), is_transposed, &Near::all(&right));
        assert_near(&format!("{entry_point} {shape:?}"), &out.read::<f32>(gpu), &wanted);
    }
}

#[test]
fn matmul_multiplies() {
    products_are_right("matmul", false);
}

#[test]
fn matmul_transposed_multiplies() {
    products_are_right("matmul_transposed", true);
}

/// Rows and columns; the last ones need more workgroups than one dimension has, of `column_sums`
/// and of `add_bias`.
const MATRICES: &[(usize, usize)] = &[
    (1, 1),
    (15, 17),
    (16, 16),
    (17, 15),
    (1_000, 64),
    (64, 1_000),
    (257, 255),
    (3, 65_536 * LANES + 1),
    (65_536, 257),
];

#[test]
fn add_bias_adds() {
    let Some(gpu) = Gpu::shared() else { return };
    let kernel = gpu.pipeline(LINEAR, "add_bias");
    let mut random = Rng::new(5);
    for &(rows, columns) in MATRICES {
        let values = cycle(&numbers(&mut random, PERIOD), rows * columns);
        let bias = numbers(&mut random, columns);
        let params = gpu.uniform(&[rows as u32, columns as u32]);
        let (matrix, row) = (Guarded::new(gpu, &values), operand(gpu, &bias));
        let bindings = [(0, &params), (1, &matrix.buffer), (2, &row)];
        run(gpu, &kernel, &bindings, groups_of(gpu, rows * columns));
        let got = matrix.read::<f32>(gpu);
        let bias = Near::all(&bias);
        for (got, values) in got.chunks_exact(columns).zip(values.chunks_exact(columns)) {
            let pairs = values.iter().zip(&bias);
            let wanted: Vec<Near> = pairs.map(|(a, b)| Near::exact(*a) + *b).collect();
            assert_near(&format!("a row of {rows} x {columns}"), got, &wanted);
        }
    }
}

#[test]
fn column_sums_sum() {
    let Some(gpu) = Gpu::shared() else { return };
    let kernel = gpu.pipeline(LINEAR, "column_sums");
    let mut random = Rng::new(9);
    for &(rows, columns) in MATRICES {
        let values = cycle(&numbers(&mut random, PERIOD), rows * columns);
        let params = gpu.uniform(&[rows as u32, columns as u32]);
        let matrix = operand(gpu, &values);
        let sums = Guarded::new(gpu, &vec![f32::NAN; columns]);
        let groups = gpu.fold(columns.div_ceil(LANES) as u64);
        run(gpu, &kernel, &[(0, &params), (1, &matrix), (2, &sums.buffer)], groups);
        let wanted = column_sums(rows, &Near::all(&values));
        assert_near(&format!("columns of {rows} x {columns}"), &sums.read::<f32>(gpu), &wanted);
    }
}
