//! The programs: lists of steps that can be run again and again.

use std::collections::HashMap;
use std::path::Path;

use aquifer::trace::{Event, Trace};

use crate::harness::Random;

/// Frees what is in the slot, if anything is, and allocates so many bytes into it, unless 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replace {
    pub(crate) slot: usize,
    pub(crate) size: u64,
}

#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) slots: usize,
    /// Once, before everything else.
    pub(crate) fill: Vec<Replace>,
    pub(crate) body: Vec<Replace>,
    /// Whether the time is to be lower than the rival's: with 1,000 and more live blocks.
    pub(crate) has_bar: bool,
}

impl Program {
    pub(crate) fn allocations(&self) -> usize {
        self.body.iter().filter(|step| step.size > 0).count()
    }

    /// The most bytes that are live at a time.
    pub(crate) fn live_peak(&self) -> u64 {
        let mut sizes = vec![0; self.slots];
        let (mut live, mut peak) = (0, 0);
        for &Replace { slot, size } in self.fill.iter().chain(&self.body) {
            live = live - std::mem::replace(&mut sizes[slot], size) + size;
            peak = peak.max(live);
        }
        peak
    }
}

/// `count` live blocks, of which a random one is replaced at each step.
pub(crate) fn random(count: usize, steps: usize) -> Program {
    let mut random = Random::new(0x5eed);
    let mut size = || random.size(512, 16 << 20);
    let fill = (0..count).map(|slot| Replace { slot, size: size() }).collect();
    let sizes: Vec<u64> = (0..steps).map(|_| size()).collect();
    let body = sizes.into_iter().map(|size| Replace { slot: random.below(count), size }).collect();
    Program {
        name: format!("random, {count} live"),
        slots: count,
        fill,
        body,
        has_bar: count >= 1_000,
    }
}

/// Steps of a training of 24 layers: forwards each layer makes activations that stay and a
/// workspace that does not; backwards each makes gradients and drops its activations; then the
/// optimizer takes a temporary for each weight and drops the gradients. `tokens` says how many each
/// batch has.
pub(crate) fn training(name: &str, steps: usize, tokens: impl Fn(&mut Random) -> u64) -> Program {
    const LAYERS: usize = 24;
    const WIDTH: u64 = 1024;
    let weight = |part: usize| [4, 1, 4, 4][part] * WIDTH * WIDTH / 2;
    let (weights, gradients, activations) = (0, 4 * LAYERS, 8 * LAYERS);
    let scratch = 12 * LAYERS;
    let fill = (0..4 * LAYERS)
        .map(|slot| Replace { slot: weights + slot, size: weight(slot % 4) })
        .collect();
    let mut random = Random::new(3);
    let mut body = Vec::new();
    for _ in 0..steps {
        let tokens = tokens(&mut random);
        let activation = |part: usize| [2, 6, 1, 8][part] * tokens * WIDTH / 2;
        for layer in 0..LAYERS {
            for part in 0..4 {
                let slot = activations + 4 * layer + part;
                body.push(Replace { slot, size: activation(part) });
                body.push(Replace { slot: scratch + part % 2, size: tokens * 256 + 4096 });
            }
        }
        for layer in (0..LAYERS).rev() {
            for part in (0..4).rev() {
                body.push(Replace { slot: scratch, size: activation(part) });
                body.push(Replace { slot: gradients + 4 * layer + part, size: weight(part) });
                body.push(Replace { slot: activations + 4 * layer + part, size: 0 });
            }
        }
        for at in 0..4 * LAYERS {
            body.push(Replace { slot: scratch + 1, size: weight(at % 4) });
            body.push(Replace { slot: gradients + at, size: 0 });
        }
        body.extend([0, 1].map(|part| Replace { slot: scratch + part, size: 0 }));
    }
    Program { name: name.to_owned(), slots: scratch + 2, fill, body, has_bar: false }
}

/// A trace as sizes; what is larger than `limit` is left out, and counted in the name.
pub(crate) fn trace(name: &str, limit: u64) -> Program {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../traces");
    let trace = Trace::open(folder.join(format!("{name}.mtrace.gz")));
    let trace = trace.expect("the traces are beside this package");
    let (mut slots, mut vacant, mut count) = (HashMap::new(), Vec::new(), 0);
    let (mut body, mut left_out) = (Vec::new(), 0);
    for event in &trace.events {
        match *event {
            Event::Allocate { size, .. } if size > limit => left_out += 1,
            Event::Allocate { id, size, .. } => {
                let slot = vacant.pop().unwrap_or_else(|| {
                    count += 1;
                    count - 1
                });
                slots.insert(id, slot);
                body.push(Replace { slot, size });
            }
            Event::Free { id } => {
                if let Some(slot) = slots.remove(&id) {
                    vacant.push(slot);
                    body.push(Replace { slot, size: 0 });
                }
            }
            Event::Use { .. } | Event::Marker(_) => {}
        }
    }
    // What the trace left live goes at its end, so that it can begin again.
    body.extend((0..count).map(|slot| Replace { slot, size: 0 }));
    let short: String = name.chars().take(22).collect();
    let name = format!("{short} ({left_out} left out)");
    Program { name, slots: count, fill: Vec::new(), body, has_bar: false }
}
