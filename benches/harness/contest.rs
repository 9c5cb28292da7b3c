//! What a contender can do, and a contest of several of them in the same rounds.
//!
//! ```text
//!   a round    contender 1: a loop of pairs, then single pairs │ contender 2: the same │ …
//! ```
//!
//! The loop gives nanoseconds a pair, in CPU time of the thread; single pairs give their
//! percentiles, on the wall (`singles` says how the clock's own time is taken off). What a
//! contender does in a pair is compiled for it alone; only a turn is called through a pointer.

use std::convert::Infallible;
use std::hint::black_box;

use super::singles::Singles;
use super::{Run, cpu_nanoseconds_each, take_turns};

/// Single pairs of a round; the 99.9th percentile is the fifth of the slowest.
const SINGLE_PAIRS: usize = 5_000;

/// Hands out blocks of so many bytes.
pub(crate) trait Contender {
    type Block;

    /// `None` if there is no room.
    fn allocate(&mut self, size: u64) -> Option<Self::Block>;

    fn free(&mut self, block: Self::Block);

    /// Both, one after the other, as a program would write it; there is room.
    fn pair(&mut self, size: u64) {
        let block = self.allocate(size).expect("there is room");
        black_box(&block);
        self.free(block);
    }
}

/// Something that can be done over and over again: allocate and free a block.
pub(crate) trait Pairs {
    /// Draws what the next `count` pairs need, before the clock starts.
    fn draw(&mut self, _count: usize) {}

    fn pair(&mut self);
}

/// [`Pairs`] of any kind, a turn at a time.
pub(crate) trait Timed {
    /// Nanoseconds of each of so many pairs.
    fn turn(&mut self, pairs: usize) -> f64;

    /// Times so many pairs one by one.
    fn singles(&mut self, pairs: usize, singles: &mut Singles);
}

impl<T: Pairs> Timed for T {
    fn turn(&mut self, pairs: usize) -> f64 {
        self.draw(pairs);
        cpu_nanoseconds_each(pairs, || {
            for _ in 0..pairs {
                self.pair();
            }
        })
    }

    fn singles(&mut self, pairs: usize, singles: &mut Singles) {
        self.draw(pairs);
        let done = singles.round(pairs as u64, || {
            self.pair();
            Ok::<_, Infallible>(())
        });
        let Ok(()) = done;
    }
}

/// Makes what a contender is to do.
pub(crate) trait Scene {
    /// `None` if the contender has no room for it.
    fn set<M: Contender + 'static>(&self, memory: M) -> Option<Box<dyn Timed>>;

    /// What it needs of a contender.
    fn needs(&self) -> Needs;
}

/// How large an arena has to be, for those that have one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs {
    /// Bytes that are live at a time, and room for fragments.
    pub(crate) bytes: u64,
    /// Blocks that are live at a time.
    pub(crate) blocks: usize,
    /// Streams that this crate's allocator has registered.
    pub(crate) streams: u32,
}

/// A contender in a scene, by name.
pub(crate) struct Lane {
    pub(crate) who: &'static str,
    /// `None` if there is no room for the scene on this machine.
    pub(crate) timed: Option<Box<dyn Timed>>,
}

/// Who takes part.
pub(crate) trait Field {
    /// All contenders in the scene; the first is this crate.
    fn lanes(&self, scene: &impl Scene) -> Vec<Lane>;
}

/// Prints the names of the columns that [`contest`] fills.
pub(crate) fn heading(run: Run) {
    run.heading(&["min ns", "median ns", "ours / it", "p50 ns", "p99 ns", "p99.9 ns"]);
}

/// Runs the scene with everyone and prints a row for each.
pub(crate) fn contest(run: Run, case: &str, rounds: usize, pairs: usize, lanes: Vec<Lane>) {
    let (names, timed): (Vec<_>, Vec<_>) =
        lanes.into_iter().map(|lane| (lane.who, lane.timed)).unzip();
    let single_pairs = run.pick(SINGLE_PAIRS, 10);
    let mut singles = vec![Singles::default(); names.len()];
    let mut turns: Vec<_> = timed
        .into_iter()
        .zip(&mut singles)
        .map(|(mut timed, singles)| {
            move || {
                let Some(timed) = &mut timed else { return f64::NAN };
                let each = timed.turn(pairs);
                timed.singles(single_pairs, singles);
                each
            }
        })
        .collect();
    let mut turns: Vec<&mut dyn FnMut() -> f64> =
        turns.iter_mut().map(|turn| turn as &mut dyn FnMut() -> f64).collect();
    let series = take_turns(rounds, &mut turns);
    for ((who, own), singles) in names.iter().zip(&series).zip(&singles) {
        let mut figures = [
            ("min_ns", own.min()),
            ("median_ns", own.median()),
            ("ours_over_it", series[0].over(own).median()),
            ("p50_ns", f64::NAN),
            ("p99_ns", f64::NAN),
            ("p99_9_ns", f64::NAN),
        ];
        if own.median().is_finite() {
            let percentiles = singles.percentiles();
            figures[3].1 = percentiles.p50;
            figures[4].1 = percentiles.p99;
            figures[5].1 = percentiles.p99_9;
        }
        run.result(&format!("{case}: {who}"), &figures);
    }
}
