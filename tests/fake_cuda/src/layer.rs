//! Kernels of a linear layer by name, over the fake's memory.
//!
//! | name              | arguments                                 | what it does               |
//! |-------------------|-------------------------------------------|----------------------------|
//! | `matmul_f32`      | left, right, start, product, rows, depth, | `start + left · right`,    |
//! |                   | columns, left_row, left_column u32        | left by its strides        |
//! | `column_sums_f32` | matrix, sums, rows, columns u32           | the sums of the columns    |
//! | `mean_square_f32` | prediction, targets, loss, count u64      | the mean squared error     |
//! | `gradient_f32`    | prediction, targets, gradient, count u64, | its gradient               |
//! |                   | scale f32                                 |                            |
//!
//! Sums are in the order of the depth; products are rounded before they are added, where the real
//! kernel rounds once.

use crate::abi::{Answer, In};
use crate::kernels::{argument, load, store};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerKernel {
    Matmul,
    ColumnSums,
    MeanSquare,
    Gradient,
}

/// One of them with its arguments.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Layer {
    Matmul { tensors: [u64; 4], rows: u32, depth: u32, columns: u32, strides: [u32; 2] },
    ColumnSums { matrix: u64, sums: u64, rows: u32, columns: u32 },
    MeanSquare { prediction: u64, targets: u64, loss: u64, count: u64 },
    Gradient { tensors: [u64; 3], count: u64, scale: f32 },
}

impl LayerKernel {
    pub(crate) fn of(name: &str) -> Option<Self> {
        match name {
            "matmul_f32" => Some(Self::Matmul),
            "column_sums_f32" => Some(Self::ColumnSums),
            "mean_square_f32" => Some(Self::MeanSquare),
            "gradient_f32" => Some(Self::Gradient),
            _ => None,
        }
    }

    pub(crate) fn launch(self, arguments: &In<u64>) -> Answer<Layer> {
        let address = |index| argument::<u64>(arguments, index);
        let number = |index| argument::<u32>(arguments, index);
        Ok(match self {
            Self::Matmul => Layer::Matmul {
                tensors: [address(0)?, address(1)?, address(2)?, address(3)?],
                rows: number(4)?,
                depth: number(5)?,
                columns: number(6)?,
                strides: [number(7)?, number(8)?],
            },
            Self::ColumnSums => Layer::ColumnSums {
                matrix: address(0)?,
                sums: address(1)?,
                rows: number(2)?,
                columns: number(3)?,
            },
            Self::MeanSquare => Layer::MeanSquare {
                prediction: address(0)?,
                targets: address(1)?,
                loss: address(2)?,
                count: address(3)?,
            },
            Self::Gradient => Layer::Gradient {
                tensors: [address(0)?, address(1)?, address(2)?],
                count: address(3)?,
                scale: argument(arguments, 4)?,
            },
        })
    }
}

impl Layer {
    /// Start and bytes of what the kernel reads or writes.
    pub(crate) fn touches(&self) -> Vec<(u64, u64)> {
        let matrix = |start, rows: u32, columns: u32| {
            (start, u64::from(rows).saturating_mul(columns.into()).saturating_mul(4))
        };
        match *self {
            Self::Matmul {
                tensors: [left, right, start, product], rows, depth, columns, ..
            } => {
                let mut ranges = vec![
                    matrix(left, rows, depth),
                    matrix(right, depth, columns),
                    matrix(product, rows, columns),
                ];
                if start != 0 {
                    ranges.push(matrix(start, 1, columns));
                }
                ranges
            }
            Self::ColumnSums { matrix: start, sums, rows, columns } => {
                vec![matrix(start, rows, columns), matrix(sums, 1, columns)]
            }
            Self::MeanSquare { prediction, targets, loss, count } => {
                let bytes = count.saturating_mul(4);
                vec![(prediction, bytes), (targets, bytes), (loss, 4)]
            }
            Self::Gradient { tensors, count, .. } => {
                tensors.map(|start| (start, count.saturating_mul(4))).to_vec()
            }
        }
    }

    /// Runs over memory that [`Self::touches`] names and somebody has checked.
    pub(crate) fn run(&self) {
        match *self {
            Self::Matmul { tensors, rows, depth, columns, strides } => {
                let [rows, depth, columns] = [rows, depth, columns].map(u64::from);
                matmul(tensors, [rows, depth, columns], strides.map(u64::from));
            }
            Self::ColumnSums { matrix, sums, rows, columns } => {
                let (rows, columns) = (u64::from(rows), u64::from(columns));
                for column in 0..columns {
                    let values = (0..rows).map(|row| load::<f32>(matrix, row * columns + column));
                    store(sums, column, values.fold(0.0, |sum, value| sum + value));
                }
            }
            Self::MeanSquare { prediction, targets, loss, count } => {
                let difference =
                    |index| f64::from(load::<f32>(prediction, index) - load::<f32>(targets, index));
                let sum: f64 = (0..count).map(|index| difference(index).powi(2)).sum();
                store(loss, 0, (sum / count as f64) as f32);
            }
            Self::Gradient { tensors: [prediction, targets, gradient], count, scale } => {
                for index in 0..count {
                    let difference = load::<f32>(prediction, index) - load::<f32>(targets, index);
                    store(gradient, index, scale * difference);
                }
            }
        }
    }
}

/// Row by row, a row of `right` at a time.
fn matmul(tensors: [u64; 4], [rows, depth, columns]: [u64; 3], strides: [u64; 2]) {
    let [left, right, start, product] = tensors;
    let mut sums = vec![0.0_f32; columns as usize];
    for row in 0..rows {
        for (column, sum) in (0..).zip(&mut sums) {
            *sum = if start == 0 { 0.0 } else { load(start, column) };
        }
        for at in 0..depth {
            let factor: f32 = load(left, row * strides[0] + at * strides[1]);
            for (column, sum) in (0..).zip(&mut sums) {
                *sum += factor * load::<f32>(right, at * columns + column);
            }
        }
        for (column, sum) in (0..).zip(&sums) {
            store(product, row * columns + column, *sum);
        }
    }
}
