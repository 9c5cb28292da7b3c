//! What the benches share: arguments, interleaved rounds, figures, a table or JSON lines.
//!
//! | file       | what it owns                                                             |
//! |------------|--------------------------------------------------------------------------|
//! | `contest`  | what a contender can do, and a contest of several in the same rounds      |
//! | `scenes`   | the contests: a hit, a mixed load, free memory in holes                   |
//! | `steps`    | a trace as plain steps, for contenders that know sizes only               |
//! | `own`      | this crate as a contender                                                 |
//! | `rivals`   | the others; a bench that wants them declares it, for it needs their crates |
//! | `traces`   | which traces there are                                                    |
//! | `void`     | a device that costs nothing                                               |
//!
//! Timings come from machines that do other things too. So every figure comes from many short
//! rounds, all contenders take turns within a round, and a ratio is taken round by round before its
//! median is: what disturbs one contender most likely disturbs the other.
//!
//! Every bench takes these arguments after `--`: `--json` (lines of JSON) or `--markdown` (tables
//! for a page) instead of a table, `--json-file FILE` (lines of JSON into a file as well, behind
//! what it holds), `--short` (a tenth of the rounds), `--traces PATH` (more traces, see `traces`).

// Each bench uses what it needs of these.
#![allow(dead_code)]

pub(crate) mod contest;
pub(crate) mod own;
pub(crate) mod scenes;
#[path = "../../src/bin/aquifer/singles/mod.rs"]
#[allow(unused_imports)] // Its tests are the program's.
pub(crate) mod singles;
pub(crate) mod steps;
pub(crate) mod traces;
pub(crate) mod void;

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Instant;

use cpu_time::ThreadTime;

/// How the bench was called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// Only to see that it works: `cargo test --benches`, or `--test`.
    pub(crate) quick: bool,
    short: bool,
    format: Format,
    json_file: Option<&'static str>,
    bench: &'static str,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Table,
    Json,
    Markdown,
}

/// The value behind each occurrence of an argument.
fn values<'a>(args: &'a [String], name: &str) -> impl Iterator<Item = &'a String> {
    args.windows(2).filter(move |pair| pair[0] == name).map(|pair| &pair[1])
}

impl Run {
    /// Reads the arguments. `cargo bench` passes `--bench`; without it a run is quick.
    pub(crate) fn new(bench: &'static str) -> Self {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let has = |name: &str| args.iter().any(|arg| arg == name);
        let format = match (has("--json"), has("--markdown")) {
            (true, _) => Format::Json,
            (_, true) => Format::Markdown,
            _ => Format::Table,
        };
        // Once in the life of the process.
        let json_file = values(&args, "--json-file").next();
        let json_file = json_file.map(|path| &*Box::leak(path.clone().into_boxed_str()));
        let quick = has("--test") || !has("--bench");
        Self { quick, short: has("--short"), format, json_file, bench }
    }

    /// One number for a real run, another for a quick one.
    pub(crate) fn pick<T>(self, real: T, quick: T) -> T {
        if self.quick { quick } else { real }
    }

    /// So many rounds, a tenth of them in a short run, two in a quick one.
    pub(crate) fn rounds(self, real: usize) -> usize {
        let rounds = if self.short { real.div_ceil(10) } else { real };
        self.pick(rounds, 2)
    }

    /// The same run, under the name of one of several questions of a bench.
    pub(crate) fn section(self, bench: &'static str) -> Self {
        Self { bench, ..self }
    }

    /// Prints the names of the columns.
    pub(crate) fn heading(self, columns: &[&str]) {
        let first = self.bench;
        match self.format {
            Format::Json => {}
            Format::Markdown => {
                let rule = "---:|".repeat(columns.len());
                println!("\n| {first} | {} |\n|---|{rule}", columns.join(" | "));
            }
            Format::Table => {
                let line = columns.iter().fold(format!("{first:<40}"), |mut line, column| {
                    let _ = write!(line, " {column:>12}");
                    line
                });
                println!("{line}");
            }
        }
    }

    /// Prints one result: a row of the table, or a line of JSON. A figure that is not a number is
    /// one that could not be had.
    pub(crate) fn result(self, case: &str, figures: &[(&str, f64)]) {
        self.tell(case, figures, None);
    }

    /// As [`result`](Self::result), and says whether the last figure reaches its bar. A quick run
    /// measures nothing, so it says nothing.
    pub(crate) fn judge(self, case: &str, figures: &[(&str, f64)], bar: Bar) {
        self.tell(case, figures, (!self.quick).then_some(bar));
    }

    fn tell(self, case: &str, figures: &[(&str, f64)], bar: Option<Bar>) {
        let verdict = bar.zip(figures.last().map(|&(_, value)| value));
        let json = self.json(case, figures, verdict);
        match self.format {
            Format::Table => println!("{}", row(case, figures, verdict)),
            Format::Markdown => println!("{}", markdown(case, figures, verdict)),
            Format::Json => println!("{json}"),
        }
        if let Some(path) = self.json_file {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let written = file.and_then(|mut file| writeln!(file, "{json}"));
            written.unwrap_or_else(|error| panic!("--json-file {path}: {error}"));
        }
    }

    fn json(self, case: &str, figures: &[(&str, f64)], verdict: Option<(Bar, f64)>) -> String {
        let mut line = format!("{{\"bench\":{:?},\"case\":{case:?}", self.bench);
        for (name, value) in figures {
            let _ = match value.is_finite() {
                true => write!(line, ",{name:?}:{value:.4}"),
                false => write!(line, ",{name:?}:null"),
            };
        }
        if let Some((bar, value)) = verdict {
            let _ = write!(line, ",\"bar\":\"{bar}\",\"met\":{}", bar.is_met_by(value));
        }
        line.push('}');
        line
    }
}

fn row(case: &str, figures: &[(&str, f64)], verdict: Option<(Bar, f64)>) -> String {
    let mut line = format!("{case:<40}");
    for &(_, value) in figures {
        let _ = write!(line, " {:>12}", number(value));
    }
    if let Some((bar, value)) = verdict {
        let word = if bar.is_met_by(value) { "met" } else { "MISSED" };
        let _ = write!(line, "   bar {bar}: {word}");
    }
    line
}

fn markdown(case: &str, figures: &[(&str, f64)], verdict: Option<(Bar, f64)>) -> String {
    let mut line = format!("| {case} |");
    for &(_, value) in figures {
        let _ = write!(line, " {} |", number(value));
    }
    if let Some((bar, value)) = verdict {
        let word = if bar.is_met_by(value) { "met" } else { "missed" };
        // In the last cell, so that rows with and without a bar have the same number of them.
        line.truncate(line.len() - 1);
        let _ = write!(line, "(bar {bar}: {word}) |");
    }
    line
}

/// With as many digits as mean something.
fn number(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    let digits = match value.abs() {
        _ if value.fract() == 0.0 => 0,
        small if small < 10.0 => 3,
        middle if middle < 1000.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
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

/// As [`nanoseconds_each`], by the CPU time of this thread: what other programs do meanwhile on the
/// same core is not in it. For work that waits for nobody.
pub(crate) fn cpu_nanoseconds_each(count: usize, work: impl FnOnce()) -> f64 {
    let start = ThreadTime::now();
    work();
    start.elapsed().as_nanos() as f64 / count as f64
}

/// Lets the contenders take turns, `rounds` times, after one round that does not count. Each
/// returns what it measured in its turn.
pub(crate) fn interleave<const N: usize>(
    rounds: usize,
    mut contenders: [&mut dyn FnMut() -> f64; N],
) -> [Series; N] {
    let series = take_turns(rounds, &mut contenders);
    series.try_into().expect("a series for each contender")
}

/// As [`interleave`], for any number of them.
pub(crate) fn take_turns(rounds: usize, contenders: &mut [&mut dyn FnMut() -> f64]) -> Vec<Series> {
    let mut series = vec![Series(Vec::new()); contenders.len()];
    for contender in contenders.iter_mut() {
        contender();
    }
    for _ in 0..rounds {
        for (series, contender) in series.iter_mut().zip(contenders.iter_mut()) {
            series.0.push(contender());
        }
    }
    series
}

/// As [`take_turns`], for contenders that measure two things in a turn.
pub(crate) fn take_double_turns(
    rounds: usize,
    contenders: &mut [impl FnMut() -> [f64; 2]],
) -> [Vec<Series>; 2] {
    let mut second = vec![Series(Vec::new()); contenders.len()];
    let mut turns: Vec<_> = contenders
        .iter_mut()
        .zip(&mut second)
        .map(|(contender, second)| {
            move || {
                let both = contender();
                second.0.push(both[1]);
                both[0]
            }
        })
        .collect();
    let mut turns: Vec<&mut dyn FnMut() -> f64> =
        turns.iter_mut().map(|turn| turn as &mut dyn FnMut() -> f64).collect();
    let first = take_turns(rounds, &mut turns);
    // Of the round that does not count.
    for series in &mut second {
        series.0.remove(0);
    }
    [first, second]
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

    pub(crate) fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Not a number if one of them is not.
    pub(crate) fn geometric_mean(&self) -> f64 {
        (self.0.iter().map(|value| value.ln()).sum::<f64>() / self.0.len() as f64).exp()
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
