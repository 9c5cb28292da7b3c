//! What the benches share: arguments, interleaved rounds, figures, a table or JSON lines.
//!
//! Timings come from machines that do other things too. So every figure comes from many short
//! rounds, all contenders take turns within a round, and a ratio is taken round by round before its
//! median is: what disturbs one contender most likely disturbs the other.

// Each bench uses what it needs of these.
#![allow(dead_code)]

pub(crate) mod void;

use std::fmt::Write;
use std::time::Instant;

/// How the bench was called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// Only to see that it works: `cargo test --benches`, or `--test`.
    pub(crate) quick: bool,
    json: bool,
    bench: &'static str,
}

impl Run {
    /// Reads the arguments. `cargo bench` passes `--bench`; without it a run is quick.
    pub(crate) fn new(bench: &'static str) -> Self {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let has = |name: &str| args.iter().any(|arg| arg == name);
        Self { quick: has("--test") || !has("--bench"), json: has("--json"), bench }
    }

    /// One number for a real run, another for a quick one.
    pub(crate) fn pick<T>(self, real: T, quick: T) -> T {
        if self.quick { quick } else { real }
    }

    /// The same run, under the name of one of several questions of a bench.
    pub(crate) fn section(self, bench: &'static str) -> Self {
        Self { bench, ..self }
    }

    /// Prints the names of the columns.
    pub(crate) fn heading(self, columns: &[&str]) {
        if !self.json {
            let first = self.bench;
            println!(
                "{}",
                columns.iter().fold(format!("{first:<34}"), |mut line, column| {
                    let _ = write!(line, " {column:>14}");
                    line
                })
            );
        }
    }

    /// Prints one result: a row of the table, or a line of JSON.
    pub(crate) fn result(self, case: &str, figures: &[(&str, f64)]) {
        println!("{}", self.line(case, figures, None));
    }

    /// As [`result`](Self::result), and says whether the last figure reaches its bar. A quick run
    /// measures nothing, so it says nothing.
    pub(crate) fn judge(self, case: &str, figures: &[(&str, f64)], bar: Bar) {
        println!("{}", self.line(case, figures, (!self.quick).then_some(bar)));
    }

    fn line(self, case: &str, figures: &[(&str, f64)], bar: Option<Bar>) -> String {
        let verdict = bar.zip(figures.last().map(|&(_, value)| value));
        let mut line = String::new();
        if self.json {
            let _ = write!(line, "{{\"bench\":{:?},\"case\":{case:?}", self.bench);
            for (name, value) in figures {
                let _ = write!(line, ",{name:?}:{value:.3}");
            }
            if let Some((bar, value)) = verdict {
                let _ = write!(line, ",\"bar\":\"{bar}\",\"met\":{}", bar.is_met_by(value));
            }
            line.push('}');
        } else {
            let _ = write!(line, "{case:<34}");
            for (_, value) in figures {
                let digits = if value.fract() == 0.0 { 0 } else { 2 };
                let _ = write!(line, " {value:>14.digits$}");
            }
            if let Some((bar, value)) = verdict {
                let word = if bar.is_met_by(value) { "met" } else { "MISSED" };
                let _ = write!(line, "   bar {bar}: {word}");
            }
        }
        line
    }
}

/// What a figure is to reach.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

impl Bar {
    pub(crate) fn is_met_by(self, figure: f64) -> bool {
        match self {
            Bar::AtMost(limit) => figure <= limit,
            Bar::AtLeast(limit) => figure >= limit,
        }
    }
}

impl std::fmt::Display for Bar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bar::AtMost(limit) => write!(f, "<= {limit}"),
            Bar::AtLeast(limit) => write!(f, ">= {limit}"),
        }
    }
}

/// Runs `work` and returns its nanoseconds for each of `count` operations.
pub(crate) fn nanoseconds_each(count: usize, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / count as f64
}

/// Lets the contenders take turns, `rounds` times, after one round that does not count. Each
/// returns what it measured in its turn.
pub(crate) fn interleave<const N: usize>(
    rounds: usize,
    mut contenders: [&mut dyn FnMut() -> f64; N],
) -> [Series; N] {
    let mut series = [const { Series(Vec::new()) }; N];
    for contender in &mut contenders {
        contender();
    }
    for _ in 0..rounds {
        for (series, contender) in series.iter_mut().zip(&mut contenders) {
            series.0.push(contender());
        }
    }
    series
}

/// What one contender measured, round by round.
#[derive(Debug, Clone)]
pub(crate) struct Series(pub(crate) Vec<f64>);

impl Series {
    pub(crate) fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    /// This one's figures as multiples of the rival's of the same rounds.
    pub(crate) fn over(&self, rival: &Series) -> Series {
        Series(self.0.iter().zip(&rival.0).map(|(own, rival)| own / rival).collect())
    }
}

/// Numbers that look random, the same in every run (xorshift64).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

    /// A size with an evenly spread logarithm.
    pub(crate) fn size(&mut self, min: u64, max: u64) -> u64 {
        let fraction = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        (min as f64 * (max as f64 / min as f64).powf(fraction)) as u64
    }
}
