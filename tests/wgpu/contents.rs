//! What bytes are in memory that is handed out: whatever was there, zeros where they were asked
//! for, and never another owner's where scrubbing is on.

use aquifer::backend::Role;
use aquifer::{GpuVec, WgpuAllocation, WgpuAllocator};

use super::kernels::{Kernels, Marks};
use super::{allocator, allocator_with, place};
use crate::gpu::Gpu;
use crate::support::{KIB, MIB};

/// All bytes of the block, beyond what was asked for too.
fn raw(gpu: &Gpu, allocation: &WgpuAllocation) -> Vec<u8> {
    let buffer = allocation.segment().buffer();
    gpu.read_range(buffer, allocation.offset(), allocation.capacity())
}

/// Leaves bytes that are not zero in a block of so many bytes, all of it, and says where that was.
fn dirty(memory: &WgpuAllocator, size: u64) -> (wgpu::Buffer, u64) {
    let block = memory.allocate(size).expect("room");
    let bytes = vec![0xAB; block.capacity() as usize];
    memory.queue().write_buffer(block.buffer(), block.offset(), &bytes);
    place(&block)
}

/// A scope begins and ends: what was dropped is looked through.
fn scrub(gpu: &Gpu, memory: &WgpuAllocator) {
    let mut encoder = gpu.encoder();
    memory.begin(&mut encoder).submit(encoder);
}

const SIZES: [u64; 4] = [3, 5000, 64 * KIB, 3 * MIB + 1];

#[test]
fn memory_comes_as_it_was_left() {
    let Some((gpu, memory)) = allocator() else { return };
    for size in SIZES {
        let home = dirty(&memory, size);
        let block = memory.allocate(size).expect("room");
        assert_eq!(place(&block), home);
        assert!(raw(&gpu, &block).iter().all(|&byte| byte == 0xAB), "the default clears nothing");
    }
}

#[test]
fn zeroed_memory_is_zero() {
    let Some((gpu, memory)) = allocator() else { return };
    for size in SIZES {
        let home = dirty(&memory, size);
        let block = memory.allocate_zeroed(size).expect("room");
        assert_eq!(place(&block), home, "else this proves nothing");
        assert!(raw(&gpu, &block).iter().all(|&byte| byte == 0), "{size} bytes");
        drop(block);
        let home = dirty(&memory, size);
        let vec = GpuVec::<u8>::zeroed(&memory, size as usize).expect("room");
        assert_eq!(place(&vec), home);
        assert!(vec.download().expect("there").iter().all(|&byte| byte == 0), "{size} bytes");
    }
}

#[test]
fn zeroed_memory_of_a_scope_is_zero_at_that_point() {
    let Some((gpu, memory)) = allocator() else { return };
    for size in SIZES {
        let mut encoder = gpu.encoder();
        let mut scope = memory.begin(&mut encoder);
        let owner = scope.allocate(size).expect("room");
        let home = place(&owner);
        let bytes = vec![0xCD; size as usize];
        scope.upload(&mut encoder, &owner, 0, &bytes).expect("room");
        let before = scope.download(&mut encoder, &owner).expect("room");
        drop(owner);
        let block = scope.allocate_zeroed(&mut encoder, size).expect("room");
        assert_eq!(place(&block), home);
        scope.submit(encoder);
        assert_eq!(before.wait(), Ok(bytes), "the clear comes after it");
        assert!(raw(&gpu, &block).iter().all(|&byte| byte == 0), "{size} bytes");
    }
}

#[test]
fn scrubbed_memory_shows_nothing_of_its_last_owner() {
    let scrubs = allocator_with(|_, options| options.scrub_on_free = true);
    let Some((gpu, memory)) = scrubs else { return };
    for size in SIZES {
        let home = dirty(&memory, size);
        scrub(&gpu, &memory);
        let block = memory.allocate(size).expect("room");
        assert_eq!(place(&block), home, "else this proves nothing");
        assert!(raw(&gpu, &block).iter().all(|&byte| byte == 0), "{size} bytes");
        drop(block);
        scrub(&gpu, &memory);
    }
    for role in [Role::StorageExclusive, Role::Uniform, Role::Geometry, Role::Indirect] {
        let take = || memory.request(4 * KIB).role(role).allocate().expect("room");
        let block = take();
        memory.write_now(&block, 0, &[0xAB; 4096]).expect("nothing is open");
        let home = place(&block);
        drop(block);
        scrub(&gpu, &memory);
        let block = take();
        assert_eq!(place(&block), home);
        assert!(raw(&gpu, &block).iter().all(|&byte| byte == 0), "{role:?}");
    }
}

/// What moves bytes to and from the CPU is memory too.
#[test]
fn scrubbed_memory_shows_nothing_of_what_was_moved() {
    let scrubs = allocator_with(|_, options| {
        options.scrub_on_free = true;
        options.upload_chunk = 64 * KIB;
    });
    let Some((gpu, memory)) = scrubs else { return };
    let secret = memory.allocate(64 * KIB).expect("room");
    memory.write_now(&secret, 0, &[0xAB; 64 << 10]).expect("nothing is open");
    assert_eq!(memory.read(&secret).expect("there")[..4], [0xAB; 4]);
    memory.backend().poll();
    let readback = memory.request(64 * KIB).role(Role::Readback).allocate().expect("room");
    gpu.map(readback.buffer(), wgpu::MapMode::Read, 0..64 << 10).expect("it is not in use");
    let view = readback.buffer().get_mapped_range(..).expect("mapped");
    assert!(view.iter().all(|&byte| byte == 0), "a download of somebody else");
    drop(view);
    readback.buffer().unmap();
    // Memory is wanted, so that chunks of uploads go back to their pool.
    memory.set_memory_limit(Some(memory.memory_reserved()));
    assert!(memory.allocate(64 * MIB).is_err());
    memory.set_memory_limit(None);
    let upload = memory.request(64 * KIB).role(Role::Upload).allocate().expect("room");
    let mut encoder = gpu.encoder();
    let scope = memory.begin(&mut encoder);
    scope.copy(&mut encoder, &upload, &secret).expect("two buffers");
    scope.submit(encoder);
    let bytes = memory.read(&secret).expect("there");
    assert!(bytes.iter().all(|&byte| byte == 0), "an upload of somebody else");
}

/// Whoever had it before, and whether anybody had.
#[test]
fn what_can_be_mapped_comes_unmapped() {
    let Some((gpu, memory)) = allocator_with(|_, options| options.upload_chunk = 64 * KIB) else {
        return;
    };
    let target = memory.allocate(64 * KIB).expect("room");
    for round in 1..=3_u8 {
        let upload = memory.request(64 * KIB).role(Role::Upload).allocate().expect("room");
        gpu.map(upload.buffer(), wgpu::MapMode::Write, 0..64 << 10).expect("unmapped");
        let mut view = upload.buffer().get_mapped_range_mut(..).expect("mapped");
        view.copy_from_slice(&[round; 64 << 10]);
        drop(view);
        upload.buffer().unmap();
        let mut encoder = gpu.encoder();
        let scope = memory.begin(&mut encoder);
        scope.copy(&mut encoder, &upload, &target).expect("two buffers");
        scope.submit(encoder);
        drop(upload);
        assert!(memory.read(&target).expect("there").iter().all(|&byte| byte == round));
        // The chunks of the allocator's own uploads are others.
        memory.write_now(&target, 0, &[9; 64 << 10]).expect("nothing is open");
        assert!(memory.read(&target).expect("there").iter().all(|&byte| byte == 9));
    }
}

#[test]
fn scrubbing_waits_for_open_scopes() {
    let scrubs = allocator_with(|_, options| options.scrub_on_free = true);
    let Some((gpu, memory)) = scrubs else { return };
    let kernels = Kernels::new(&gpu);
    let block = memory.allocate(64 * KIB).expect("room");
    let (home, marks) = (place(&block), Marks::of(&block, 1));
    memory.write_now(&block, 0, &marks.bytes()).expect("nothing is open");
    let mut late = gpu.encoder();
    let open = memory.begin(&mut late);
    kernels.check(&gpu, &mut late, open.binding(&block), marks);
    drop(block);
    scrub(&gpu, &memory);
    memory.empty_cache();
    let held = memory.memory_allocated() - memory.staging_bytes();
    assert_eq!(held, 64 * KIB, "it is not free before it is cleared");
    let other = memory.allocate(64 * KIB).expect("room");
    assert_ne!(place(&other), home);
    open.submit(late);
    assert_eq!(kernels.wrong(&gpu), 0, "it was cleared under a scope that was open");
    let again = memory.allocate(64 * KIB).expect("room");
    assert_eq!(place(&again), home, "the scope is submitted");
    assert!(raw(&gpu, &again).iter().all(|&byte| byte == 0));
    drop((again, other));
    memory.empty_cache();
    assert_eq!((memory.memory_allocated(), memory.memory_reserved()), (0, 0));
}

/// A scope that was thrown away reads nothing any more; what it had is cleared all the same.
#[test]
fn scrubbing_outlives_a_scope_that_is_given_up() {
    let scrubs = allocator_with(|_, options| options.scrub_on_free = true);
    let Some((gpu, memory)) = scrubs else { return };
    let mut encoder = gpu.encoder();
    let scope = memory.begin(&mut encoder);
    let block = memory.allocate(64 * KIB).expect("room");
    scope.uses(&block);
    drop((block, scope, encoder));
    memory.empty_cache();
    assert_eq!((memory.memory_allocated(), memory.memory_reserved()), (0, 0));
    drop(memory);
}

/// The bytes on the list of what is to be cleared do not grow where scopes are always open, or
/// where the program submits by itself and does not tell.
#[test]
fn scrubbing_waits_for_no_scope_that_began_later() {
    let scrubs = allocator_with(|_, options| options.scrub_on_free = true);
    let Some((gpu, memory)) = scrubs else { return };
    let mut open = None;
    for round in 0..20 {
        let mut encoder = gpu.encoder();
        let scope = memory.begin(&mut encoder);
        let block = memory.allocate(64 * KIB).expect("room");
        let _ = block.binding();
        drop(block);
        if let Some((encoder, scope)) = open.replace((encoder, scope)) {
            aquifer::Scope::submit(scope, encoder);
        }
        let held = memory.memory_allocated();
        assert!(held <= 4 * 64 * KIB, "{held} bytes in round {round} of scopes that overlap");
    }
    if let Some((encoder, scope)) = open {
        scope.submit(encoder);
    }
    for round in 0..20 {
        let mut encoder = gpu.encoder();
        let scope = memory.begin(&mut encoder);
        drop(scope.allocate(64 * KIB).expect("room"));
        let (commands, _) = scope.finish(encoder);
        gpu.queue.submit([commands]);
        memory.synchronize().expect("the device is there");
        let held = memory.memory_allocated();
        assert!(held <= 4 * 64 * KIB, "{held} bytes in round {round} of foreign submissions");
    }
}
