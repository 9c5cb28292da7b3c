//! The contests that every field of contenders goes through.
//!
//! | scene        | a pair                                     | beside it                       |
//! |--------------|--------------------------------------------|---------------------------------|
//! | `hit`        | allocate 64 KiB and free them              | nothing, or two blocks live     |
//! | `mixed`      | free a random live block, allocate another | 10² to 10⁶ live blocks          |
//! | `fragmented` | allocate up to 128 KiB and free them       | 10² to 10⁵ holes between blocks |

use std::hint::black_box;

use super::contest::{Contender, Field, Needs, Pairs, Scene, Timed, contest, heading};
use super::{Random, Run};

/// Bytes of the block in `hit`.
pub(crate) const HIT_SIZE: u64 = 64 << 10;
/// The most that `mixed` and `fragmented` ask for, and the largest block beside a hole.
const MIXED_MAX: u64 = 16 << 20;
const FRAGMENTED_MAX: u64 = 128 << 10;
const HOLE_MAX: u64 = 64 << 10;
/// The least that they ask for.
const LEAST: u64 = 512;

/// A cached block, with and without others in its segment.
pub(crate) fn hit(run: Run, field: &impl Field) {
    let run = run.section("hit: ns per allocate + free of 64 KiB");
    heading(run);
    let states = [
        ("whole segment", State::WholeSegment),
        ("part of a segment", State::PartOfSegment),
        ("exact block", State::ExactBlock),
    ];
    for (name, state) in states {
        for streams in 1..=2 {
            let case = format!("{name}, {streams} stream{}", if streams > 1 { "s" } else { "" });
            let lanes = field.lanes(&HitScene { state, streams });
            // The others know no streams: once is enough for them.
            let own = if streams > 1 { 2 } else { lanes.len() };
            let lanes = lanes.into_iter().take(own).collect();
            contest(run, &case, run.rounds(200), run.pick(10_000, 10), lanes);
        }
    }
}

/// How the cost grows with the number of live blocks.
pub(crate) fn mixed(run: Run, field: &impl Field, exponent_max: u32) {
    let run = run.section("mixed: ns per free + allocate");
    heading(run);
    for exponent in 2..=run.pick(exponent_max, 3) {
        let lanes = field.lanes(&MixedScene { count: 10_usize.pow(exponent) });
        let case = format!("10^{exponent} live blocks");
        contest(run, &case, run.rounds(40), run.pick(10_000, 100), lanes);
    }
}

/// How the cost grows with the number of holes.
pub(crate) fn fragmented(run: Run, field: &impl Field, exponent_max: u32) {
    let run = run.section("fragmented: ns per allocate + free");
    heading(run);
    for exponent in 2..=run.pick(exponent_max, 3) {
        let lanes = field.lanes(&FragmentedScene { holes: 10_usize.pow(exponent) });
        let case = format!("10^{exponent} holes");
        contest(run, &case, run.rounds(40), run.pick(10_000, 100), lanes);
    }
}

/// What is live besides the block that comes and goes.
#[derive(Debug, Clone, Copy)]
enum State {
    WholeSegment,
    PartOfSegment,
    ExactBlock,
}

struct HitScene {
    state: State,
    streams: u32,
}

impl Scene for HitScene {
    fn set<M: Contender + 'static>(&self, mut memory: M) -> Option<Box<dyn Timed>> {
        let [first, middle, last] = [(); 3].map(|()| memory.allocate(HIT_SIZE));
        let (stays, goes) = match self.state {
            State::WholeSegment => (vec![], vec![first?, middle?, last?]),
            State::PartOfSegment => (vec![first?], vec![middle?, last?]),
            State::ExactBlock => (vec![first?, last?], vec![middle?]),
        };
        goes.into_iter().for_each(|block| memory.free(block));
        Some(Box::new(Hit { memory, live: stays }))
    }

    fn needs(&self) -> Needs {
        // As large as the segment that this crate takes.
        Needs { bytes: 2 << 20, blocks: 3, streams: self.streams }
    }
}

struct Hit<M: Contender> {
    memory: M,
    live: Vec<M::Block>,
}

impl<M: Contender> Pairs for Hit<M> {
    fn pair(&mut self) {
        self.memory.pair(black_box(HIT_SIZE));
    }
}

impl<M: Contender> Drop for Hit<M> {
    fn drop(&mut self) {
        self.live.drain(..).for_each(|block| self.memory.free(block));
    }
}

struct MixedScene {
    count: usize,
}

impl Scene for MixedScene {
    fn set<M: Contender + 'static>(&self, memory: M) -> Option<Box<dyn Timed>> {
        let mut mixed = Mixed {
            memory,
            live: Vec::with_capacity(self.count),
            random: Random::new(1),
            steps: Vec::new(),
        };
        for _ in 0..self.count {
            let size = mixed.random.size(LEAST, MIXED_MAX);
            let block = mixed.memory.allocate(size)?;
            mixed.live.push(Some(block));
        }
        // Until the free space has the shape that the steps give it.
        mixed.draw(2 * self.count);
        (0..2 * self.count).for_each(|_| mixed.pair());
        Some(Box::new(mixed))
    }

    fn needs(&self) -> Needs {
        // The mean of these sizes is 1.6 MiB; twice that leaves room for fragments.
        Needs { bytes: self.count as u64 * (7 << 19), blocks: self.count, streams: 1 }
    }
}

/// A block to be replaced, and the size of the new one.
#[derive(Debug, Clone, Copy)]
struct Step {
    index: usize,
    size: u64,
}

struct Mixed<M: Contender> {
    memory: M,
    live: Vec<Option<M::Block>>,
    random: Random,
    /// Those to come, the next one last.
    steps: Vec<Step>,
}

impl<M: Contender> Pairs for Mixed<M> {
    fn draw(&mut self, count: usize) {
        let (random, blocks) = (&mut self.random, self.live.len());
        let step = |_| Step { index: random.below(blocks), size: random.size(LEAST, MIXED_MAX) };
        self.steps.extend((0..count).map(step));
    }

    fn pair(&mut self) {
        let step = self.steps.pop().expect("it was drawn");
        if let Some(block) = self.live[step.index].take() {
            self.memory.free(block);
        }
        self.live[step.index] = black_box(self.memory.allocate(step.size));
    }
}

impl<M: Contender> Drop for Mixed<M> {
    fn drop(&mut self) {
        self.live.drain(..).flatten().for_each(|block| self.memory.free(block));
    }
}

struct FragmentedScene {
    holes: usize,
}

impl Scene for FragmentedScene {
    fn set<M: Contender + 'static>(&self, memory: M) -> Option<Box<dyn Timed>> {
        let random = Random::new(1);
        let live = Vec::with_capacity(self.holes);
        let mut scene = Fragmented { memory, live, random, sizes: Vec::new() };
        let mut holes = Vec::with_capacity(self.holes);
        for _ in 0..self.holes {
            let sizes = [(); 2].map(|()| scene.random.size(LEAST, HOLE_MAX));
            let [hole, block] = sizes.map(|size| scene.memory.allocate(size));
            holes.extend(hole);
            scene.live.push(block?);
        }
        holes.into_iter().for_each(|hole| scene.memory.free(hole));
        // What the holes are too small for is cached too before the clock starts.
        scene.draw(1_000);
        (0..1_000).for_each(|_| scene.pair());
        Some(Box::new(scene))
    }

    fn needs(&self) -> Needs {
        let bytes = 2 * self.holes as u64 * HOLE_MAX + (2 << 20);
        Needs { bytes, blocks: 2 * self.holes, streams: 1 }
    }
}

struct Fragmented<M: Contender> {
    memory: M,
    live: Vec<M::Block>,
    random: Random,
    /// Those to come, the next one last.
    sizes: Vec<u64>,
}

impl<M: Contender> Pairs for Fragmented<M> {
    fn draw(&mut self, count: usize) {
        let random = &mut self.random;
        self.sizes.extend((0..count).map(|_| random.size(LEAST, FRAGMENTED_MAX)));
    }

    fn pair(&mut self) {
        let size = self.sizes.pop().expect("it was drawn");
        self.memory.pair(size);
    }
}

impl<M: Contender> Drop for Fragmented<M> {
    fn drop(&mut self) {
        self.live.drain(..).for_each(|block| self.memory.free(block));
    }
}
