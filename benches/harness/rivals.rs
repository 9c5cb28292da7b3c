//! The contenders from other crates. None has streams, segments, statistics or growth.
//!
//! | who                | what it is                                   | memory                   |
//! |--------------------|----------------------------------------------|--------------------------|
//! | `offset-allocator` | two-level bitmap, offsets of 512 B, good fit | none: numbers            |
//! | `rlsf`             | TLSF, headers inside the memory, good fit    | addresses, untouched     |
//! | `malloc`           | the system's, by `std::alloc::System`        | what it takes, untouched |
//! | `mimalloc`         | Microsoft's, called directly                 | the same                 |
//!
//! A bench that wants them declares this file as a module of its own, since it needs their crates.
//!
//! The last two are general allocators for the CPU with a cache for each thread: a floor, and no
//! rivals. Aligned are `rlsf`'s blocks to 512 B and theirs to 16.

// Each bench uses what it needs of these.
#![allow(dead_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use mimalloc::MiMalloc;

use crate::harness::contest::{Contender, Field, Lane, Needs, Scene};
use crate::harness::own;

const GRANULE: u64 = 512;

/// The most bytes for which the last two are asked. Beyond, they ask the system for pages at every
/// step, and what is measured is the system.
const HEAP_BYTES_MAX: u64 = 2 << 30;

/// This crate and all of them.
#[derive(Debug)]
pub(crate) struct Everyone;

impl Field for Everyone {
    fn lanes(&self, scene: &impl Scene) -> Vec<Lane> {
        let needs = scene.needs();
        let mut lanes = own::lanes(scene);
        lanes.extend([
            Lane { who: "offset-allocator", timed: scene.set(Offset::new(needs)) },
            Lane { who: "rlsf", timed: Rlsf::new(needs).and_then(|rlsf| scene.set(rlsf)) },
            Lane { who: "malloc", timed: Heap::new(System, needs).and_then(|h| scene.set(h)) },
            Lane { who: "mimalloc", timed: Heap::new(MiMalloc, needs).and_then(|h| scene.set(h)) },
        ]);
        lanes
    }
}

/// `offset-allocator` over one arena.
pub(crate) struct Offset {
    arena: offset_allocator::Allocator<u32>,
}

impl Offset {
    pub(crate) fn new(needs: Needs) -> Self {
        // A free block between any two live ones, at most.
        let nodes = u32::try_from(2 * needs.blocks + 16).expect("blocks can be counted");
        let granules = u32::try_from(needs.bytes / GRANULE).unwrap_or(u32::MAX);
        Self { arena: offset_allocator::Allocator::with_max_allocs(granules, nodes) }
    }
}

impl Contender for Offset {
    type Block = offset_allocator::Allocation<u32>;

    fn allocate(&mut self, size: u64) -> Option<Self::Block> {
        self.arena.allocate(size.div_ceil(GRANULE) as u32)
    }

    fn free(&mut self, block: Self::Block) {
        self.arena.free(block);
    }
}

/// `rlsf` over one arena of addresses, of which only its headers are ever touched.
pub(crate) struct Rlsf {
    tlsf: rlsf::Tlsf<'static, u64, u32, 36, 32>,
    _arena: Arena,
}

// SAFETY: the arena is this one's alone, and goes where it goes.
unsafe impl Send for Rlsf {}

impl Rlsf {
    /// `None` where there are not so many addresses to be had.
    pub(crate) fn new(needs: Needs) -> Option<Self> {
        let arena = Arena::new(needs.bytes)?;
        let mut tlsf = rlsf::Tlsf::new();
        // SAFETY: the memory is nobody else's and outlives `tlsf`, which is dropped before it.
        let bytes: &'static mut [MaybeUninit<u8>] =
            unsafe { std::slice::from_raw_parts_mut(arena.start.as_ptr(), arena.bytes) };
        tlsf.insert_free_block(bytes);
        Some(Self { tlsf, _arena: arena })
    }
}

impl Contender for Rlsf {
    type Block = NonNull<u8>;

    fn allocate(&mut self, size: u64) -> Option<NonNull<u8>> {
        let layout = Layout::from_size_align(size as usize, GRANULE as usize).ok()?;
        self.tlsf.allocate(layout)
    }

    fn free(&mut self, block: NonNull<u8>) {
        // SAFETY: the block is live, of this allocator, and has this alignment.
        unsafe { self.tlsf.deallocate(block, GRANULE as usize) };
    }
}

/// Addresses whose pages come when they are touched.
#[derive(Debug)]
struct Arena {
    start: NonNull<MaybeUninit<u8>>,
    bytes: usize,
}

#[cfg(target_os = "linux")]
impl Arena {
    fn new(bytes: u64) -> Option<Self> {
        let bytes = usize::try_from(bytes).ok()?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, wherever the system likes, touches no memory of anyone.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        NonNull::new(start.cast()).map(|start| Self { start, bytes })
    }
}

#[cfg(target_os = "linux")]
impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this start and length, and nothing in it is used on.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(not(target_os = "linux"))]
impl Arena {
    /// Other systems have other ways; `rlsf` is measured on Linux only.
    fn new(_: u64) -> Option<Self> {
        None
    }
}

/// A general allocator of this machine's memory.
#[derive(Debug)]
pub(crate) struct Heap<A>(A);

impl<A: GlobalAlloc> Heap<A> {
    /// `None` for more bytes than it is asked for here.
    pub(crate) fn new(heap: A, needs: Needs) -> Option<Self> {
        (needs.bytes <= HEAP_BYTES_MAX).then_some(Self(heap))
    }

    fn layout(size: u64) -> Layout {
        Layout::from_size_align(size as usize, 16).expect("16 is a power of two")
    }

    pub(crate) fn take(&self, size: u64) -> Option<HeapBlock> {
        // SAFETY: no size here is 0.
        let start = unsafe { self.0.alloc(Self::layout(size)) };
        NonNull::new(start).map(|start| HeapBlock { start, size })
    }

    pub(crate) fn give(&self, block: HeapBlock) {
        // SAFETY: the block is live, of this allocator, and this is its layout.
        unsafe { self.0.dealloc(block.start.as_ptr(), Self::layout(block.size)) };
    }
}

/// A block of a [`Heap`].
#[derive(Debug)]
pub(crate) struct HeapBlock {
    start: NonNull<u8>,
    size: u64,
}

// SAFETY: whoever has it owns it; general allocators take blocks back from any thread.
unsafe impl Send for HeapBlock {}

impl<A: GlobalAlloc> Contender for Heap<A> {
    type Block = HeapBlock;

    fn allocate(&mut self, size: u64) -> Option<HeapBlock> {
        self.take(size)
    }

    fn free(&mut self, block: HeapBlock) {
        self.give(block);
    }
}
