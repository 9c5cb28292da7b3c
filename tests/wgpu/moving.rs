//! Defragmentation: what is moved, what stays, and what comes of it.

use aquifer::surface::wgpu::{Defragmented, Movable};
use aquifer::{WgpuAllocation, WgpuAllocator};

use super::kernels::{Kernels, Marks};
use super::{allocator, place};
use crate::gpu::Gpu;
use crate::support::{KIB, MIB};

const BLOCK: u64 = 64 * KIB;
/// Blocks of a segment.
const FULL: usize = 32;

/// A full segment, and one with two blocks that may be moved.
struct Sparse {
    full: Vec<WgpuAllocation>,
    movables: Vec<Movable>,
    homes: Vec<(wgpu::Buffer, u64)>,
    marks: Vec<Marks>,
}

/// Stamps what is to be moved.
fn sparse(gpu: &Gpu, memory: &WgpuAllocator, kernels: &Kernels) -> Sparse {
    let full = (0..FULL).map(|_| memory.allocate(BLOCK).expect("room")).collect();
    let tag = memory.tag("weights");
    let (mut movables, mut homes, mut marks) = (Vec::new(), Vec::new(), Vec::new());
    let mut encoder = gpu.encoder();
    let scope = memory.begin(&mut encoder);
    for seed in 0..2 {
        let block = memory.request(BLOCK).tag(tag).allocate().expect("room");
        marks.push(Marks::of(&block, seed));
        kernels.stamp(gpu, &mut encoder, scope.binding(&block), marks[seed as usize]);
        homes.push(place(&block));
        movables.push(memory.movable(block));
    }
    scope.submit(encoder);
    assert_eq!(memory.memory_reserved(), 4 * MIB);
    Sparse { full, movables, homes, marks }
}

fn defragment(gpu: &Gpu, memory: &WgpuAllocator, budget: u64) -> Defragmented {
    let mut encoder = gpu.encoder();
    let scope = memory.begin(&mut encoder);
    let done = scope.defragment(&mut encoder, budget);
    scope.submit(encoder);
    memory.verify();
    done
}

/// All of it is where it was.
fn assert_unmoved(sparse: &Sparse) {
    for (movable, home) in sparse.movables.iter().zip(&sparse.homes) {
        assert_eq!((movable.generation(), movable.with(place)), (0, home.clone()));
    }
}

fn assert_intact(gpu: &Gpu, kernels: &Kernels, sparse: &Sparse) {
    let mut encoder = gpu.encoder();
    for (movable, marks) in sparse.movables.iter().zip(&sparse.marks) {
        movable.with(|block| kernels.check(gpu, &mut encoder, block.binding(), *marks));
    }
    gpu.queue.submit([encoder.finish()]);
    assert_eq!(kernels.wrong(gpu), 0, "contents went lost on the way");
}

#[test]
fn a_sparse_segment_is_emptied_and_goes_back() {
    let Some((gpu, memory)) = allocator() else { return };
    let kernels = Kernels::new(&gpu);
    let mut sparse = sparse(&gpu, &memory, &kernels);
    sparse.full.truncate(FULL - 4);
    let holders = |memory: &WgpuAllocator| {
        let mut holders = memory.holders().into_iter();
        holders.find(|holder| holder.tag.as_deref() == Some("weights")).expect("two of them")
    };
    let before = holders(&memory);
    let done = defragment(&gpu, &memory, 2 * BLOCK);
    let expected = Defragmented {
        moved_count: 2,
        moved_bytes: 2 * BLOCK,
        emptied_count: 1,
        emptied_bytes: 2 * MIB,
    };
    assert_eq!(done, expected);
    for (movable, home) in sparse.movables.iter().zip(&sparse.homes) {
        assert_eq!(movable.generation(), 1);
        assert_ne!(movable.with(place).0, home.0);
    }
    assert_eq!(holders(&memory), before, "whoever asked for them holds them still");
    assert_intact(&gpu, &kernels, &sparse);
    assert_eq!(memory.empty_cache(), 2 * MIB);
    assert_eq!((memory.memory_reserved(), memory.backend().used_bytes()), (2 * MIB, 2 * MIB));
    assert_intact(&gpu, &kernels, &sparse);
    assert_eq!(defragment(&gpu, &memory, MIB), Defragmented::default(), "nothing to be won");
}

#[test]
fn what_may_not_be_moved_keeps_its_segment() {
    let Some((gpu, memory)) = allocator() else { return };
    let kernels = Kernels::new(&gpu);
    let mut sparse = sparse(&gpu, &memory, &kernels);
    let fixed = memory.allocate(BLOCK).expect("room");
    assert_eq!(place(&fixed).0, sparse.homes[0].0, "beside the movable ones");
    sparse.full.truncate(FULL - 8);
    assert_eq!(defragment(&gpu, &memory, MIB), Defragmented::default());
    assert_unmoved(&sparse);
    drop(fixed);
    // Whoever looks at one of them keeps it where it is.
    let done = sparse.movables[0].with(|_| defragment_elsewhere(&gpu, &memory));
    assert_eq!(done, Defragmented::default());
    assert_unmoved(&sparse);
    assert_eq!(defragment(&gpu, &memory, MIB).moved_count, 2);
    assert_intact(&gpu, &kernels, &sparse);
}

fn defragment_elsewhere(gpu: &Gpu, memory: &WgpuAllocator) -> Defragmented {
    std::thread::scope(|threads| {
        threads.spawn(|| defragment(gpu, memory, MIB)).join().expect("no panic")
    })
}

#[test]
fn a_budget_is_kept() {
    let Some((gpu, memory)) = allocator() else { return };
    let kernels = Kernels::new(&gpu);
    let mut sparse = sparse(&gpu, &memory, &kernels);
    sparse.full.truncate(FULL - 4);
    assert_eq!(defragment(&gpu, &memory, 2 * BLOCK - 1), Defragmented::default());
    assert_unmoved(&sparse);
    assert_eq!(defragment(&gpu, &memory, 2 * BLOCK).moved_bytes, 2 * BLOCK);
    assert_intact(&gpu, &kernels, &sparse);
}

#[test]
fn nothing_grows_for_a_move() {
    let Some((gpu, memory)) = allocator() else { return };
    let kernels = Kernels::new(&gpu);
    let mut sparse = sparse(&gpu, &memory, &kernels);
    for holes in [0, 1] {
        sparse.full.truncate(FULL - holes);
        assert_eq!(defragment(&gpu, &memory, MIB), Defragmented::default(), "{holes} holes");
        assert_eq!(memory.memory_reserved(), 4 * MIB);
        assert_unmoved(&sparse);
    }
    let allocated = memory.memory_allocated();
    assert_eq!(allocated, (FULL as u64 + 1) * BLOCK, "places that were taken are given up again");
}

/// The move is a copy at this point of one encoder. Work of another one that is still open would
/// write to the old place, after it.
#[test]
fn what_another_open_scope_uses_stays() {
    let Some((gpu, memory)) = allocator() else { return };
    let kernels = Kernels::new(&gpu);
    let mut sparse = sparse(&gpu, &memory, &kernels);
    sparse.full.truncate(FULL - 4);
    let mut late = gpu.encoder();
    let open = memory.begin(&mut late);
    sparse.marks[0].seed = 7;
    let marks = sparse.marks[0];
    sparse.movables[0].with(|block| kernels.stamp(&gpu, &mut late, open.binding(block), marks));
    assert_eq!(defragment(&gpu, &memory, MIB), Defragmented::default());
    assert_unmoved(&sparse);
    open.submit(late);
    assert_intact(&gpu, &kernels, &sparse);
    assert_eq!(defragment(&gpu, &memory, MIB).moved_count, 2);
    assert_intact(&gpu, &kernels, &sparse);
}

#[test]
fn a_movable_is_an_allocation_again() {
    let Some((gpu, memory)) = allocator() else { return };
    let kernels = Kernels::new(&gpu);
    let mut sparse = sparse(&gpu, &memory, &kernels);
    sparse.full.truncate(FULL - 4);
    let movable = sparse.movables.pop().expect("two of them");
    let clone = movable.clone();
    let movable = movable.into_allocation().expect_err("a clone is alive");
    drop(clone);
    let fixed = movable.into_allocation().expect("the last handle");
    assert_eq!(place(&fixed), sparse.homes[1]);
    assert_eq!(defragment(&gpu, &memory, MIB), Defragmented::default(), "it stays from now on");
}

/// The emptiest segment goes into a hole of the next one, which is then not emptied as well.
#[test]
fn what_takes_something_in_is_not_emptied() {
    let Some((gpu, memory)) = allocator() else { return };
    let mut full: Vec<_> =
        (0..3 * FULL).map(|_| memory.allocate(BLOCK).expect("room")).map(Some).collect();
    // A hole for four between blocks that stay, one for just one, and a segment with one block.
    full[FULL - 4..FULL].fill_with(|| None);
    let kept = [FULL, FULL + 2, 2 * FULL];
    let blocks = kept.map(|at| full[at].take().expect("taken once"));
    full.truncate(FULL - 4);
    let movables = blocks.map(|block| memory.movable(block));
    let done = defragment(&gpu, &memory, MIB);
    assert_eq!((done.moved_count, done.emptied_count), (1, 1));
    assert_eq!(memory.empty_cache(), done.emptied_bytes);
    drop(movables);
}
