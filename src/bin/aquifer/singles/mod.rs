//! The times of single pairs of an allocation and a free: what the slow ones take, which a mean
//! hides.
//!
//! ```text
//!   a round   clock ─ pair ─ clock ─ clock ─ pair ─ clock ─ clock ─ pair ─ clock …
//!                    time            empty          time            time
//! ```
//!
//! Reading the clock takes about as long as a hit. So it is read once more after each pair, with
//! nothing in between, and the median of these empty times of the round is taken off each time of
//! the round. Percentiles are those of a round, and then the median over the rounds: other programs
//! spoil some rounds, and not the figures. A single pair cannot overlap with the next one as in a
//! loop, so half of them take longer than the mean of a loop says.

use std::time::Instant;

/// Pairs of a round: the 99.9th percentile is the tenth of the slowest.
pub(crate) const ROUND_PAIRS: u64 = 10_000;

/// Nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
}

/// The rounds so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Singles {
    rounds: Vec<Percentiles>,
}

impl Singles {
    /// Times `pairs` of them, at least one, one by one.
    ///
    /// # Errors
    /// That of the first pair that fails.
    pub(crate) fn round<E>(
        &mut self,
        pairs: u64,
        mut pair: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut times, mut empty) = (Vec::new(), Vec::new());
        times.reserve_exact(pairs as usize);
        empty.reserve_exact(pairs as usize);
        for _ in 0..pairs {
            let begin = Instant::now();
            pair()?;
            let end = Instant::now();
            let idle = Instant::now();
            times.push((end - begin).as_nanos() as u64);
            empty.push((idle - end).as_nanos() as u64);
        }
        self.rounds.push(percentiles(&mut times, &mut empty));
        Ok(())
    }

    /// Takes over the rounds of another thread.
    pub(crate) fn append(&mut self, other: Singles) {
        self.rounds.extend(other.rounds);
    }

    /// The median of each percentile over the rounds.
    ///
    /// # Panics
    /// If there was none.
    pub(crate) fn percentiles(&self) -> Percentiles {
        let median = |of: fn(&Percentiles) -> f64| {
            let mut sorted: Vec<f64> = self.rounds.iter().map(of).collect();
            sorted.sort_by(f64::total_cmp);
            sorted[sorted.len() / 2]
        };
        Percentiles { p50: median(|r| r.p50), p99: median(|r| r.p99), p99_9: median(|r| r.p99_9) }
    }
}

/// Those of one round: `times` less the median of `empty`.
fn percentiles(times: &mut [u64], empty: &mut [u64]) -> Percentiles {
    times.sort_unstable();
    empty.sort_unstable();
    let overhead = at(empty, 500);
    let time = |thousandths| at(times, thousandths).saturating_sub(overhead) as f64;
    Percentiles { p50: time(500), p99: time(990), p99_9: time(999) }
}

/// The one that so many thousandths of the sorted times lie below.
fn at(sorted: &[u64], thousandths: usize) -> u64 {
    sorted[sorted.len() * thousandths / 1000]
}

#[cfg(test)]
mod tests;
