//! Do two threads on two streams of one allocator get in each other's way?
//!
//! | case               | what the threads do                                                    |
//! |--------------------|------------------------------------------------------------------------|
//! | one thread         | pairs of allocate and drop of 64 KiB, as in `hit`                      |
//! | two threads        | the same, a stream each                                                |
//! | two, one stream    | the same on one stream, to show what a shared lock costs               |
//! | producer, consumer | one allocates, the other frees; blocks go over in batches of 256        |
//!
//! The rivals, in turn: general allocators of the CPU, which keep a cache for each thread and know
//! no streams, and `offset-allocator` behind a mutex. Many short windows; the threads start one
//! together, and it ends when both are done. A throughput is pairs per second of all threads;
//! ratios are to one thread of the same allocator, window by window.
//!
//! `cargo bench --bench threads`. Needs two cores that are free for the length of a window: on a
//! machine shared with other programs the upper quartile of the ratios tells more than the median,
//! and both are printed.

mod harness;
#[path = "harness/rivals.rs"]
mod rivals;

use std::alloc::{GlobalAlloc, System};
use std::hint::black_box;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Barrier, Mutex};
use std::time::Instant;

use aquifer::{Allocation, Allocator, Config, Stream};
use harness::contest::{Contender, Needs};
use harness::scenes::HIT_SIZE as SIZE;
use harness::void::Void;
use harness::{Run, Series, take_turns};
use mimalloc::MiMalloc;
use rivals::{Heap, HeapBlock, Offset};

/// Blocks that go from the producer to the consumer at a time.
const BATCH: usize = 256;

/// An allocator that several threads use at once.
trait Shared: Sync {
    type Block: Send;
    /// By the thread of this number; a stream is its own if there are streams.
    fn take(&self, thread: usize) -> Self::Block;
    fn give(&self, block: Self::Block);
}

/// This crate, with a stream for each thread.
struct Own {
    allocator: Allocator<Void>,
    streams: [Stream<Void>; 2],
}

impl Shared for Own {
    type Block = Allocation<Void>;

    fn take(&self, thread: usize) -> Allocation<Void> {
        let stream = &self.streams[thread];
        self.allocator.allocate_on(stream, SIZE).expect("the device has no end")
    }

    fn give(&self, block: Allocation<Void>) {
        drop(block);
    }
}

/// This crate, with one stream for all.
struct OneStream<'a>(&'a Own);

impl Shared for OneStream<'_> {
    type Block = Allocation<Void>;

    fn take(&self, _: usize) -> Allocation<Void> {
        self.0.take(0)
    }

    fn give(&self, block: Allocation<Void>) {
        drop(block);
    }
}

impl<A: GlobalAlloc + Sync> Shared for Heap<A> {
    type Block = HeapBlock;

    fn take(&self, _: usize) -> HeapBlock {
        self.take(SIZE).expect("there is memory")
    }

    fn give(&self, block: HeapBlock) {
        self.give(block);
    }
}

/// A contender that knows no threads.
struct Locked<M>(Mutex<M>);

impl<M: Contender<Block: Send> + Send> Shared for Locked<M> {
    type Block = M::Block;

    fn take(&self, _: usize) -> M::Block {
        self.0.lock().expect("no pair panics").allocate(SIZE).expect("there is room")
    }

    fn give(&self, block: M::Block) {
        self.0.lock().expect("no pair panics").free(block);
    }
}

fn main() {
    let run = Run::new("threads: million pairs a second");
    let rounds = run.rounds(40);
    let pairs = run.pick(200_000, 2 * BATCH);
    let allocator = Allocator::new(Void::new(), Config::default());
    let streams = [allocator.stream(1), allocator.stream(2)];
    let own = Own { allocator, streams };
    let one_stream = OneStream(&own);
    let needs = Needs { bytes: 1 << 30, blocks: 16 * BATCH, streams: 1 };
    let offset = Locked(Mutex::new(Offset::new(needs)));
    let malloc = Heap::new(System, needs).expect("it is little");
    let mimalloc = Heap::new(MiMalloc, needs).expect("it is little");
    run.heading(&["median", "best", "ratio", "ratio, q75"]);
    measure(run, rounds, &mut cases("aquifer", &own, pairs), || window(&one_stream, 2, pairs));
    measure(run, rounds, &mut cases("malloc", &malloc, pairs), || f64::NAN);
    measure(run, rounds, &mut cases("mimalloc", &mimalloc, pairs), || f64::NAN);
    measure(run, rounds, &mut cases("offset-allocator, mutex", &offset, pairs), || f64::NAN);
}

/// What is measured: its name, and a window.
type Case<'a> = (String, Box<dyn FnMut() -> f64 + 'a>);

/// One thread first: the others are compared with it.
fn cases<'a>(who: &str, shared: &'a impl Shared, pairs: usize) -> Vec<Case<'a>> {
    vec![
        (format!("one thread: {who}"), Box::new(move || window(shared, 1, pairs))),
        (format!("two threads: {who}"), Box::new(move || window(shared, 2, pairs))),
        (format!("producer, consumer: {who}"), Box::new(move || passing(shared, pairs))),
    ]
}

/// All windows of one allocator in turn; `one_stream` is one more for it, if it gives a number.
fn measure(run: Run, rounds: usize, cases: &mut [Case], mut one_stream: impl FnMut() -> f64) {
    let (names, mut windows): (Vec<_>, Vec<&mut dyn FnMut() -> f64>) =
        cases.iter_mut().map(|(name, window)| (name.as_str(), &mut **window as _)).unzip();
    let names: Vec<_> = names.into_iter().chain(["two threads, one stream: aquifer"]).collect();
    windows.push(&mut one_stream);
    let series = take_turns(rounds, &mut windows);
    for (name, own) in names.iter().zip(&series).filter(|(_, own)| own.median().is_finite()) {
        let ratio = own.over(&series[0]);
        let figures = [
            ("median_mps", own.median()),
            ("best_mps", own.max()),
            ("ratio", ratio.median()),
            ("ratio_q75", upper_quartile(&ratio)),
        ];
        run.result(name, &figures);
    }
}

/// One window with so many threads; returns million pairs a second of all together.
fn window(shared: &impl Shared, threads: usize, pairs: usize) -> f64 {
    let start = Barrier::new(threads);
    let thread = |number: usize| {
        // The first pairs fill caches, and give the second thread time to arrive.
        work(shared, number, pairs / 10);
        start.wait();
        let began = Instant::now();
        work(shared, number, pairs);
        (began, Instant::now())
    };
    let spans: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let thread = &thread;
        let all: Vec<_> = (0..threads).map(|number| scope.spawn(move || thread(number))).collect();
        all.into_iter().map(|thread| thread.join().expect("no pair panics")).collect()
    });
    let began = spans.iter().map(|span| span.0).min().expect("there is a thread");
    let ended = spans.iter().map(|span| span.1).max().expect("there is a thread");
    (pairs * threads) as f64 / (ended - began).as_secs_f64() / 1e6
}

fn work(shared: &impl Shared, thread: usize, pairs: usize) {
    for _ in 0..pairs {
        shared.give(black_box(shared.take(thread)));
    }
}

/// One window in which one thread allocates and another frees; million blocks a second.
fn passing<S: Shared>(shared: &S, pairs: usize) -> f64 {
    let (full, arriving) = sync_channel::<Vec<S::Block>>(4);
    let (empty, returning) = sync_channel::<Vec<S::Block>>(8);
    let batches = pairs / BATCH;
    for _ in 0..6 {
        empty.send(Vec::with_capacity(BATCH)).expect("the other end is here");
    }
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || produce(shared, batches, &returning, &full));
        consume(shared, &arriving, &empty);
    });
    (batches * BATCH) as f64 / began.elapsed().as_secs_f64() / 1e6
}

fn produce<S: Shared>(
    shared: &S,
    batches: usize,
    empty: &Receiver<Vec<S::Block>>,
    full: &SyncSender<Vec<S::Block>>,
) {
    for _ in 0..batches {
        let mut batch = empty.recv().expect("the consumer gives them back");
        batch.extend((0..BATCH).map(|_| shared.take(0)));
        full.send(batch).expect("the consumer is there to the end");
    }
}

fn consume<S: Shared>(
    shared: &S,
    full: &Receiver<Vec<S::Block>>,
    empty: &SyncSender<Vec<S::Block>>,
) {
    for mut batch in full {
        batch.drain(..).for_each(|block| shared.give(black_box(block)));
        // The producer may be done: then nobody needs it.
        let _ = empty.send(batch);
    }
}

fn upper_quartile(series: &Series) -> f64 {
    let mut sorted = series.0.clone();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() * 3 / 4]
}
