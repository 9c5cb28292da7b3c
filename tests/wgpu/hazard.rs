//! Four ways to reuse memory while work is recorded, and one workload over all of them: uploads,
//! kernels and frees, of blocks that live on from batch to batch.
//!
//! - Naive: blocks of one buffer, reused at once, written by `queue.write_buffer`. It has to
//!   corrupt blocks, or the workload would prove nothing about the others.
//! - Ordered, quarantined and foreign: the three ways that the surface offers. None may.

use std::collections::BTreeMap;

use aquifer::surface::wgpu::Reuse;
use aquifer::{Scope, WgpuAllocation, WgpuAllocator};
use wgpu::{Buffer, CommandBuffer, CommandEncoder};

use super::kernels::{Kernels, STEP_WORDS, buffer_of};
use super::{allocator, place};
use crate::gpu::{Gpu, STORAGE, range};
use crate::support::{KIB, Rng};

const BLOCK: u64 = 64 * KIB;
const BATCHES: usize = 150;
const OPS: usize = 64;
/// Blocks that live at a time, at most.
const LIVE_MAX: usize = 32;
/// Blocks that batches fill up to before kernels run.
const LIVE_MIN: usize = 24;

/// A way to have blocks and to fill them.
trait Protocol {
    type Block;
    fn begin(&mut self);
    /// A block that begins with these bytes.
    fn upload(&mut self, bytes: &[u8]) -> Self::Block;
    /// A block with the words of another one plus one.
    fn step(&mut self, from: &Self::Block) -> Self::Block;
    fn free(&mut self, block: Self::Block);
    fn end(&mut self);
    /// Nothing that is recorded is left unsubmitted after this.
    fn flush(&mut self) {}
    fn place(block: &Self::Block) -> (Buffer, u64);
}

/// What became of a workload.
#[derive(Debug, Default)]
struct Outcome {
    checked: usize,
    wrong: usize,
    places: BTreeMap<Buffer, Vec<u64>>,
}

impl Outcome {
    /// Different places that blocks had, all told.
    fn place_count(&self) -> usize {
        self.places.values().map(Vec::len).sum()
    }

    fn note(&mut self, (buffer, offset): (Buffer, u64)) {
        let offsets = self.places.entry(buffer).or_default();
        if !offsets.contains(&offset) {
            offsets.push(offset);
        }
    }

    /// Compares all live blocks with what the program means them to hold.
    fn check<P: Protocol>(&mut self, gpu: &Gpu, live: &[(P::Block, u32)]) {
        for (block, value) in live {
            let (buffer, offset) = P::place(block);
            let words: Vec<u32> = gpu.read_range(&buffer, offset, STEP_WORDS as u64 * 4);
            self.checked += 1;
            self.wrong += usize::from(words.iter().any(|word| word != value));
        }
    }
}

fn workload<P: Protocol>(gpu: &Gpu, protocol: &mut P) -> Outcome {
    let mut outcome = Outcome::default();
    let mut random = Rng::new(7);
    let mut live: Vec<(P::Block, u32)> = Vec::new();
    for batch in 1..=BATCHES {
        protocol.begin();
        for _ in 0..OPS {
            let at = random.below(live.len() as u64) as usize;
            let (block, value) = if live.len() < LIVE_MIN || random.below(4) == 0 {
                let value = random.below(1 << 20) as u32;
                (protocol.upload(&value.to_le_bytes().repeat(STEP_WORDS)), value)
            } else {
                let (from, value) = live.swap_remove(at);
                let to = protocol.step(&from);
                protocol.free(from);
                (to, value + 1)
            };
            outcome.note(P::place(&block));
            live.push((block, value));
            if live.len() >= LIVE_MAX {
                protocol.free(live.swap_remove(at).0);
            }
        }
        protocol.end();
        if batch % 10 == 0 {
            protocol.flush();
            outcome.check::<P>(gpu, &live);
        }
    }
    assert!(outcome.checked > 15 * 20, "{} blocks are too few to look at", outcome.checked);
    outcome
}

/// One buffer, a stack of free blocks, and no care.
struct Naive<'a> {
    gpu: &'a Gpu,
    kernels: &'a Kernels,
    buffer: Buffer,
    free: Vec<u64>,
    encoder: CommandEncoder,
}

impl Naive<'_> {
    fn at(&self, block: u64) -> wgpu::BufferBinding<'_> {
        range(&self.buffer, block * BLOCK, BLOCK)
    }
}

impl Protocol for Naive<'_> {
    type Block = (Buffer, u64);

    fn begin(&mut self) {
        self.encoder = self.gpu.encoder();
    }

    fn upload(&mut self, bytes: &[u8]) -> Self::Block {
        let at = self.free.pop().expect("room");
        self.gpu.queue.write_buffer(&self.buffer, at * BLOCK, bytes);
        (self.buffer.clone(), at)
    }

    fn step(&mut self, from: &Self::Block) -> Self::Block {
        let at = self.free.pop().expect("room");
        let mut encoder = std::mem::replace(&mut self.encoder, self.gpu.encoder());
        self.kernels.step(self.gpu, &mut encoder, self.at(from.1), self.at(at));
        self.encoder = encoder;
        (self.buffer.clone(), at)
    }

    fn free(&mut self, block: Self::Block) {
        self.free.push(block.1);
    }

    fn end(&mut self) {
        let encoder = std::mem::replace(&mut self.encoder, self.gpu.encoder());
        self.gpu.queue.submit([encoder.finish()]);
    }

    fn place((buffer, at): &Self::Block) -> (Buffer, u64) {
        (buffer.clone(), at * BLOCK)
    }
}

/// How [`Careful`] fills blocks and submits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Uploads of the scope; the scope submits.
    Ordered,
    /// `queue.write_buffer` into what the scope has just allocated.
    Quarantined,
    /// Writes outside of scopes, which are submitted a batch late, without a word to the allocator.
    Foreign,
}

/// The surface.
struct Careful<'a> {
    gpu: &'a Gpu,
    kernels: &'a Kernels,
    memory: &'a WgpuAllocator,
    way: Way,
    open: Option<(CommandEncoder, Scope)>,
    late: Vec<CommandBuffer>,
    active_peak: u64,
}

impl Careful<'_> {
    fn note_peak(&mut self) {
        let active = self.memory.memory_active() - self.memory.staging_bytes();
        self.active_peak = self.active_peak.max(active);
    }
}

impl Protocol for Careful<'_> {
    type Block = WgpuAllocation;

    fn begin(&mut self) {
        let mut encoder = self.gpu.encoder();
        let quarantined = self.way == Way::Quarantined;
        let reuse = if quarantined { Reuse::Quarantine } else { Reuse::Ordered };
        let scope = self.memory.begin_with(&mut encoder, reuse);
        self.open = Some((encoder, scope));
    }

    fn upload(&mut self, bytes: &[u8]) -> WgpuAllocation {
        let (encoder, scope) = self.open.as_mut().expect("a batch is open");
        let block = match self.way {
            Way::Foreign => self.memory.allocate(BLOCK).expect("room"),
            Way::Ordered | Way::Quarantined => scope.allocate(BLOCK).expect("room"),
        };
        let outcome = match self.way {
            Way::Ordered => scope.upload(encoder, &block, 0, bytes),
            Way::Foreign => self.memory.write_now(&block, 0, bytes),
            Way::Quarantined => {
                let buffer = block.segment().buffer();
                self.gpu.queue.write_buffer(buffer, block.offset(), bytes);
                Ok(())
            }
        };
        outcome.expect("nobody uses a new block");
        self.note_peak();
        block
    }

    fn step(&mut self, from: &WgpuAllocation) -> WgpuAllocation {
        let (encoder, scope) = self.open.as_mut().expect("a batch is open");
        let to = scope.allocate(BLOCK).expect("room");
        let [x, y] = [from, &to].map(|block| buffer_of(scope.binding(block)));
        self.kernels.step(self.gpu, encoder, x, y);
        self.note_peak();
        to
    }

    fn free(&mut self, block: WgpuAllocation) {
        drop(block);
    }

    fn end(&mut self) {
        let (encoder, scope) = self.open.take().expect("a batch is open");
        if self.way != Way::Foreign {
            scope.submit(encoder);
            return;
        }
        let (commands, finished) = scope.finish(encoder);
        drop(finished);
        self.gpu.queue.submit(self.late.drain(..));
        self.late.push(commands);
    }

    fn flush(&mut self) {
        self.gpu.queue.submit(self.late.drain(..));
    }

    fn place(block: &WgpuAllocation) -> (Buffer, u64) {
        place(block)
    }
}

fn careful(way: Way) -> Option<(Outcome, u64, WgpuAllocator)> {
    let (gpu, memory) = allocator()?;
    let kernels = Kernels::new(&gpu);
    let mut protocol = Careful {
        gpu: &gpu,
        kernels: &kernels,
        memory: &memory,
        way,
        open: None,
        late: Vec::new(),
        active_peak: 0,
    };
    let outcome = workload(&gpu, &mut protocol);
    let active_peak = protocol.active_peak;
    drop(protocol);
    memory.verify();
    Some((outcome, active_peak, memory))
}

/// The canary: if it lives, the other three tests of this file prove nothing.
#[test]
fn reuse_without_care_corrupts() {
    let Some((gpu, _)) = allocator() else { return };
    let kernels = Kernels::new(&gpu);
    let blocks = 2 * LIVE_MAX as u64;
    let mut protocol = Naive {
        gpu: &gpu,
        kernels: &kernels,
        buffer: gpu.zeros(blocks * BLOCK, STORAGE),
        free: (0..blocks).rev().collect(),
        encoder: gpu.encoder(),
    };
    let outcome = workload(&gpu, &mut protocol);
    assert!(
        outcome.wrong * 4 > outcome.checked,
        "the naive protocol corrupts too little for the workload to prove anything: {} of {}",
        outcome.wrong,
        outcome.checked
    );
}

#[test]
fn a_scope_reuses_at_once_and_corrupts_nothing() {
    let Some((outcome, active_peak, memory)) = careful(Way::Ordered) else { return };
    assert_eq!(outcome.wrong, 0, "of {}", outcome.checked);
    let most = LIVE_MAX * 11 / 10;
    assert!(outcome.place_count() <= most, "{} places, {most} do", outcome.place_count());
    assert!(active_peak <= most as u64 * BLOCK, "{active_peak} bytes, {most} blocks do");
    memory.empty_cache();
    assert_eq!((memory.memory_reserved(), memory.staging_bytes()), (0, 0));
}

#[test]
fn a_quarantine_lets_the_queue_write() {
    let Some((outcome, active_peak, _)) = careful(Way::Quarantined) else { return };
    assert_eq!(outcome.wrong, 0, "of {}", outcome.checked);
    // What a batch frees waits for its end: a block for each of its kernels, at most.
    let most = (LIVE_MAX + OPS) as u64;
    assert!(active_peak <= most * BLOCK, "{active_peak} bytes, {most} blocks do");
}

#[test]
fn a_foreign_submission_is_waited_for() {
    let Some((outcome, ..)) = careful(Way::Foreign) else { return };
    assert_eq!(outcome.wrong, 0, "of {}", outcome.checked);
}
