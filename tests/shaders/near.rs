//! Numbers with a bound of what rounding did to them (running error analysis, Wilkinson): the same
//! formulas in 64 bits, and beside each result how far the same steps in 32 bits can be off.
//!
//! WGSL demands of `+`, `-` and `*` that the result is a neighbour of the exact one, not the
//! nearer; of `/` 2.5 units in the last place; of `sqrt` what `1 / inverseSqrt` gives, which is 2
//! units and a division. A fused multiply-add rounds once less and stays inside. Numbers that are
//! smaller than the smallest normal one may be taken for zero.

use std::ops::{Add, Div, Mul, Sub};

/// One unit in the last place, relative to the number, at most.
const UNIT: f64 = 1.0 / (1_u32 << 23) as f64;

/// Below it, a number may be taken for zero.
const SMALLEST: f64 = f32::MIN_POSITIVE as f64;

/// What an exact calculation gives, and the most that one in 32 bits can be off it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Near {
    pub(crate) value: f64,
    pub(crate) error: f64,
}

impl Near {
    pub(crate) fn exact(value: f32) -> Self {
        Self { value: f64::from(value), error: 0.0 }
    }

    pub(crate) fn all(values: &[f32]) -> Vec<Self> {
        values.iter().copied().map(Self::exact).collect()
    }

    /// A result whose operands account for `error`, rounded by so many units.
    fn rounded(value: f64, error: f64, units: f64) -> Self {
        Self { value, error: error + units * UNIT * (value.abs() + error) + SMALLEST }
    }

    pub(crate) fn sqrt(self) -> Self {
        let (low, high) = ((self.value - self.error).max(0.0), self.value + self.error);
        let value = self.value.sqrt();
        let error = (high.sqrt() - value).max(value - low.sqrt());
        Self::rounded(value, error, 4.5)
    }

    /// The sum of `terms` in any order where no term is in more than `depth` additions.
    pub(crate) fn sum(depth: usize, terms: impl IntoIterator<Item = Self>) -> Self {
        let mut sum = Sum::default();
        terms.into_iter().for_each(|term| sum.add(term));
        sum.end(depth)
    }
}

impl Add for Near {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self::rounded(self.value + other.value, self.error + other.error, 1.0)
    }
}

impl Sub for Near {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self::rounded(self.value - other.value, self.error + other.error, 1.0)
    }
}

impl Mul for Near {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        let (value, error) = product(self, other);
        Self::rounded(value, error, 1.0)
    }
}

impl Div for Near {
    type Output = Self;

    /// By what is not zero, whatever its error.
    fn div(self, other: Self) -> Self {
        let least = other.value.abs() - other.error;
        assert!(least > 0.0, "division by {other:?}");
        let value = self.value / other.value;
        Self::rounded(value, (self.error + value.abs() * other.error) / least, 2.5)
    }
}

/// The exact product, and its error before it is rounded.
fn product(left: Near, right: Near) -> (f64, f64) {
    let (a, b) = (left.value.abs(), right.value.abs());
    (left.value * right.value, a * right.error + left.error * (b + right.error))
}

/// A sum under way.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Sum {
    value: f64,
    /// Of the terms' absolute values, each as large as its error allows.
    magnitude: f64,
    error: f64,
    terms: usize,
}

impl Sum {
    fn add(&mut self, term: Near) {
        self.value += term.value;
        self.magnitude += term.value.abs() + term.error;
        self.error += term.error;
        self.terms += 1;
    }

    /// Adds a product that is not rounded on its own: that is one more step for each term.
    pub(crate) fn add_product(&mut self, left: Near, right: Near) {
        let (value, error) = product(left, right);
        self.add(Near { value, error });
    }

    /// Every step multiplies what came in by at most 1 + [`UNIT`] (Higham, *Accuracy and Stability
    /// of Numerical Algorithms*, 4.2).
    pub(crate) fn end(self, depth: usize) -> Near {
        let growth = (1.0 + UNIT).powi(depth as i32) - 1.0;
        let lost = self.terms as f64 * 2.0 * SMALLEST;
        Near { value: self.value, error: self.error + growth * self.magnitude + lost }
    }
}

/// Whether each of `got` is as near as its number in `wanted`, which repeats if it is shorter.
#[track_caller]
pub(crate) fn assert_near(what: &str, got: &[f32], wanted: &[Near]) {
    let pairs = got.iter().zip(wanted.iter().cycle()).enumerate();
    for (at, (got, wanted)) in pairs {
        let difference = (f64::from(*got) - wanted.value).abs();
        // Written so that it fails on what is not a number.
        assert!(difference <= wanted.error, "{what}[{at}]: {got} is not {wanted:?}");
    }
}

/// The bound says nothing where it is as large as what it bounds.
#[track_caller]
pub(crate) fn assert_meaningful(what: &str, wanted: &[Near], limit: f64) {
    let mean = wanted.iter().map(|near| near.error).sum::<f64>() / wanted.len() as f64;
    assert!(mean <= limit, "{what}: errors of {mean:e} would pass, on average");
}

/// The bound is right for numbers that 32 bits hold exactly, and catches one unit too much.
#[test]
fn bounds_bind() {
    let third = Near::exact(1.0) / Near::exact(3.0);
    assert_near("a third", &[1.0 / 3.0], &[third]);
    assert!(third.error < 3.5 * UNIT / 3.0, "{third:?}");
    let four = Near::sum(2, Near::all(&[1.0; 4]));
    assert_near("four", &[4.0], &[four]);
    assert!(four.error < 10.0 * UNIT, "{four:?}");
    let two = Near::exact(4.0).sqrt();
    assert!((two.value, two.error < 10.0 * UNIT) == (2.0, true), "{two:?}");
    let wrong = std::panic::catch_unwind(|| assert_near("four", &[4.000_002], &[four]));
    assert!(wrong.is_err(), "an error beyond the bound passes");
}
