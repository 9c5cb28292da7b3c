//! Do two threads on two streams of one allocator get in each other's way?
//!
//! Pairs of allocate and drop of 64 KiB, as in `hit`: by one thread, by two threads with a stream
//! each, and, to show what a shared lock costs, by two threads on the same stream. In turn, over
//! many short windows; the two threads start a window together, and it ends when both are done. A
//! throughput is pairs per second of all threads; ratios are taken window by window.
//!
//! `cargo bench --bench threads`. Needs two cores that are free for the length of a window: on a
//! machine shared with other programs the upper quartile of the ratios tells more than the median,
//! and both are printed.

mod harness;

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use aquifer::{Allocator, Config, Stream};
use harness::void::Void;
use harness::{Run, Series, interleave};

const SIZE: u64 = 64 << 10;

fn main() {
    let run = Run::new("threads: million pairs a second");
    let rounds = run.pick(40, 2);
    let pairs = run.pick(300_000, 10);
    let allocator = Allocator::new(Void::new(), Config::default());
    let streams = [allocator.stream(1), allocator.stream(2)];
    let [one, two] = &streams;
    let [alone, apart, together] = interleave(
        rounds,
        [
            &mut || window(&allocator, &[one], pairs),
            &mut || window(&allocator, &[one, two], pairs),
            &mut || window(&allocator, &[one, one], pairs),
        ],
    );
    run.heading(&["median", "best", "ratio", "ratio, q75"]);
    for (case, series) in [
        ("one thread", &alone),
        ("two threads, two streams", &apart),
        ("two threads, one stream", &together),
    ] {
        let ratio = series.over(&alone);
        let figures = [
            ("median_mps", series.median()),
            ("best_mps", best(series)),
            ("ratio", ratio.median()),
            ("ratio_q75", upper_quartile(&ratio)),
        ];
        run.result(case, &figures);
    }
}

/// One window with a thread for each of `streams`; returns million pairs a second of all together.
fn window(allocator: &Allocator<Void>, streams: &[&Stream<Void>], pairs: usize) -> f64 {
    let start = Barrier::new(streams.len());
    let spans: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let threads: Vec<_> = streams
            .iter()
            .map(|stream| {
                let start = &start;
                scope.spawn(move || {
                    // The first pairs fill caches, and give the second thread time to arrive.
                    work(allocator, stream, pairs / 10);
                    start.wait();
                    let began = Instant::now();
                    work(allocator, stream, pairs);
                    (began, Instant::now())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no pair panics")).collect()
    });
    let began = spans.iter().map(|span| span.0).min().expect("there is a thread");
    let ended = spans.iter().map(|span| span.1).max().expect("there is a thread");
    (pairs * streams.len()) as f64 / (ended - began).as_secs_f64() / 1e6
}

fn work(allocator: &Allocator<Void>, stream: &Stream<Void>, pairs: usize) {
    for _ in 0..pairs {
        black_box(allocator.allocate_on(stream, SIZE).expect("the device has no end"));
    }
}

fn best(series: &Series) -> f64 {
    series.0.iter().copied().fold(0.0, f64::max)
}

fn upper_quartile(series: &Series) -> f64 {
    let mut sorted = series.0.clone();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() * 3 / 4]
}
