//! What is known of a device, what it really holds, and what happens when it is gone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use aquifer::backend::{MemorySource, Role, Wgpu};
use aquifer::surface::wgpu::{DownloadError, UploadError};
use aquifer::{AllocError, Config, PoolOptions, WgpuAllocator, WgpuOptions};

use super::{allocator, allocator_with, opened};
use crate::gpu::Gpu;
use crate::support::{KIB, MIB};

fn is_lost<T>(outcome: &Result<T, AllocError>) -> bool {
    matches!(outcome, Err(AllocError::DeviceLost(_)))
}

/// Everything that could be asked of an allocator whose device is gone: all fails, nothing hangs.
/// Then the same on another device, which works.
fn assert_lost_and_rebuilt(gpu: &Gpu, memory: WgpuAllocator, lose: impl FnOnce()) {
    let held = memory.allocate(3 * MIB).expect("room");
    memory.write_now(&held, 0, &[1; 4096]).expect("nothing is open");
    let cached = memory.allocate(5000).expect("room");
    let mut encoder = gpu.encoder();
    let mut scope = memory.begin(&mut encoder);
    let own = scope.allocate(64 * KIB).expect("room");
    scope.upload(&mut encoder, &own, 0, &[1; 4096]).expect("room");
    let download = scope.download(&mut encoder, &own).expect("room");
    let mut late = gpu.encoder();
    let mut submitted = memory.begin(&mut late);
    submitted.upload(&mut late, &held, 0, &[1; 4096]).expect("room");
    drop(cached);
    lose();
    assert!(is_lost(&memory.allocate(5000)), "a hit");
    assert!(is_lost(&memory.allocate(30 * MIB)), "a miss");
    assert!(is_lost(&scope.allocate(64 * KIB)), "in a scope");
    assert!(is_lost(&memory.allocate_avoiding(64 * KIB, [&held])));
    assert!(is_lost(&memory.request(64).role(Role::Uniform).allocate()));
    assert!(matches!(download.wait(), Err(DownloadError::DeviceLost(_))));
    for bytes in [4096, 3 << 20] {
        let upload = scope.upload(&mut encoder, &own, 0, &vec![1; bytes.min(64 << 10)]);
        assert!(matches!(upload, Err(UploadError::DeviceLost(_))), "{upload:?}");
    }
    submitted.submit(late);
    assert!(memory.read(&held).is_err() && memory.synchronize().is_err());
    let write = memory.write_now(&held, 0, &vec![1; 3 << 20]);
    assert!(matches!(write, Err(UploadError::DeviceLost(_))), "{write:?}");
    memory.verify();
    drop((scope, own, download, held));
    drop(encoder);
    memory.empty_cache();
    assert_eq!(memory.backend().used_bytes(), memory.memory_reserved(), "it is given up");
    let other = opened(gpu.adapter.clone(), &aquifer::recommended_device_descriptor(&gpu.adapter));
    let rebuilt = memory.rebuild(other.device, other.queue);
    assert_eq!(rebuilt.options(), memory.options());
    assert_eq!(rebuilt.config(), memory.config());
    drop(memory);
    let block = rebuilt.allocate(3 * MIB).expect("the new device is there");
    rebuilt.write_now(&block, 0, &[5; 4096]).expect("nothing is open");
    assert_eq!(rebuilt.read(&block).expect("there")[..4096], [5; 4096]);
}

#[test]
fn a_loss_that_is_reported_ends_everything() {
    let custom = allocator_with(|config, options| {
        config.small_segment = 4 * MIB;
        options.upload_chunk = 128 * KIB;
    });
    let Some((gpu, memory)) = custom else { return };
    let backend = memory.backend().clone();
    assert_lost_and_rebuilt(&gpu, memory, || backend.report_loss("part of the test"));
    let lost = backend.check().expect_err("it was reported");
    assert_eq!(lost.detail(), "part of the test");
    backend.report_loss("again");
    assert_eq!(backend.check().expect_err("it was reported").detail(), "part of the test");
}

#[test]
fn a_device_that_is_destroyed_is_lost() {
    let Some((gpu, memory)) = allocator() else { return };
    let backend = memory.backend().clone();
    let device = gpu.device.clone();
    assert_lost_and_rebuilt(&gpu, memory, || {
        device.destroy();
        // The device tells when what was submitted is done.
        let _ = backend.synchronize();
    });
    assert!(backend.check().is_err(), "the device's own callback told of it");
}

/// A device tells of its loss when it is polled; until then it seems to make buffers.
#[test]
fn a_loss_that_nobody_told_of_yet_is_an_error() {
    let Some((gpu, memory)) = allocator() else { return };
    let block = memory.allocate(64 * KIB).expect("room");
    let mut encoder = gpu.encoder();
    let mut scope = memory.begin(&mut encoder);
    gpu.device.destroy();
    let write = memory.write_now(&block, 0, &[1; 4096]);
    assert!(matches!(write, Err(UploadError::DeviceLost(_))), "{write:?}");
    assert!(is_lost(&memory.allocate(64 * KIB)), "it is known from now on");
    let upload = scope.upload(&mut encoder, &block, 0, &[1; 4096]);
    assert!(matches!(upload, Err(UploadError::DeviceLost(_))), "{upload:?}");
    assert_eq!(memory.staging_bytes(), 0);
}

/// As before, in a scope.
#[test]
fn a_loss_may_show_first_in_a_scope() {
    let Some((gpu, memory)) = allocator() else { return };
    let block = memory.allocate(64 * KIB).expect("room");
    let mut encoder = gpu.encoder();
    let mut scope = memory.begin(&mut encoder);
    gpu.device.destroy();
    let upload = scope.upload(&mut encoder, &block, 0, &[1; 4096]);
    assert!(matches!(upload, Err(UploadError::DeviceLost(_))), "{upload:?}");
    drop((scope, encoder, block));
    memory.empty_cache();
    assert_eq!((memory.staging_bytes(), memory.memory_reserved()), (0, 0));
}

#[test]
fn memory_of_the_machine_is_known() {
    let Some((_, memory)) = allocator() else { return };
    let info = memory.memory_info().expect("somebody knows");
    assert!(info.free <= info.total && info.total > 256 * MIB, "{info:?}");
    assert!(info.cap() < info.total && info.cap() > info.total / 2, "{info:?}");
    let plain = memory.mem_get_info().expect("somebody knows");
    assert_eq!(plain.total, info.total);
    if memory.device().adapter_info().device_type == wgpu::DeviceType::Cpu {
        assert_eq!(info.source, MemorySource::Machine);
    }
    assert_eq!(memory.memory_limit(), Some(info.cap()), "one process takes no more");
    assert_eq!(memory.backend().device_block_bytes(), None);
}

#[test]
fn a_limit_of_ones_own_stays() {
    let uncapped = allocator_with(|_, options| options.cap_memory = false);
    let Some((_, memory)) = uncapped else { return };
    assert_eq!(memory.memory_limit(), None);
    let limit = |config: &mut Config| config.memory_limit = Some(64 * MIB);
    let Some((_, memory)) = allocator_with(|config, _| limit(config)) else { return };
    assert_eq!(memory.memory_limit(), Some(64 * MIB));
    assert!(matches!(memory.allocate(65 * MIB), Err(AllocError::OutOfMemory(_))));
    drop(memory.allocate(60 * MIB).expect("below the limit"));
}

/// What the driver has of this device, if it tells.
fn driver_bytes(gpu: &Gpu) -> Option<u64> {
    Some(gpu.device.generate_allocator_report()?.total_allocated_bytes)
}

/// With the recommended device a segment is memory of the driver, and nothing is kept of it.
#[test]
fn the_driver_has_what_is_reserved() {
    let Some((gpu, memory)) = allocator() else { return };
    let Some(before) = driver_bytes(&gpu) else { return };
    let grown = || driver_bytes(&gpu).expect("it told before") - before;
    let held: Vec<_> = [20, 12, 33, 64].map(|size| memory.allocate(size * MIB)).into();
    assert!(memory.memory_reserved() >= 129 * MIB);
    assert_eq!(grown(), memory.memory_reserved());
    assert_eq!(memory.backend().used_bytes(), memory.memory_reserved());
    assert_eq!(memory.backend().device_block_bytes(), None, "no block is shared");
    drop(held);
    memory.empty_cache();
    assert_eq!((grown(), memory.memory_reserved()), (0, 0));
    let report = gpu.device.generate_allocator_report().expect("it told before");
    assert!(report.total_reserved_bytes <= 8 * MIB, "{}", report.total_reserved_bytes);
}

/// Also where the end of a scope is what lets a buffer go: the hook may begin a scope itself.
#[test]
fn a_hook_may_do_everything() {
    let Some((gpu, memory)) = allocator() else { return };
    let calls = Arc::new(AtomicU32::new(0));
    let (count, inner, device) = (Arc::clone(&calls), memory.clone(), gpu.device.clone());
    memory.on_segment_release(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        let mut encoder = device.create_command_encoder(&Default::default());
        inner.begin(&mut encoder).submit(encoder);
    });
    for told in [true, false] {
        let pool = memory.create_pool(PoolOptions::default());
        let route = pool.route_thread();
        let block = memory.allocate(64 * KIB).expect("room");
        drop((route, pool));
        let mut encoder = gpu.encoder();
        let scope = memory.begin(&mut encoder);
        scope.uses(&block);
        drop(block);
        if told {
            scope.submit(encoder);
        } else {
            // Seen when the next scope begins.
            drop((scope, encoder));
            let mut encoder = gpu.encoder();
            memory.begin(&mut encoder).submit(encoder);
        }
        assert_eq!(calls.swap(0, Ordering::Relaxed), 1, "the pool is gone, and so is its block");
    }
}

#[test]
fn a_device_that_caches_is_found_out() {
    let Some(gpu) = Gpu::shared() else { return };
    let plain = opened(gpu.adapter.clone(), &wgpu::DeviceDescriptor::default());
    if driver_bytes(&plain).is_none() {
        return; // Nobody tells here.
    }
    let caching = Wgpu::new(plain.device, plain.queue);
    let block = caching.device_block_bytes().expect("wgpu's own blocks are large by default");
    assert!(block > 4 * MIB, "{block}");
    // It works all the same, with the alignment and the limits that it has.
    let memory = WgpuAllocator::new(caching.device().clone(), caching.queue().clone());
    let block = memory.allocate(3 * MIB).expect("room");
    memory.write_now(&block, 0, &[5; 4096]).expect("nothing is open");
    assert_eq!(memory.read(&block).expect("there")[..4096], [5; 4096]);
    let limit = memory.device().limits().max_buffer_size;
    let beyond = memory.request(limit + MIB).unbound().allocate();
    assert!(matches!(beyond, Err(AllocError::TooLarge { .. })), "{beyond:?}");
}

/// Work that is under way, and that nobody waits for, keeps nothing alive.
#[test]
fn a_device_goes_with_its_last_handle() {
    let Some((gpu, memory)) = allocator() else { return };
    let alive = Arc::new(());
    let token = Arc::clone(&alive);
    memory.on_segment_release(move |_| drop(Arc::clone(&token)));
    let block = memory.allocate(64 * KIB).expect("room");
    memory.write_now(&block, 0, &[1; 4096]).expect("nothing is open");
    let mut encoder = gpu.encoder();
    let mut scope = memory.begin(&mut encoder);
    scope.upload(&mut encoder, &block, 0, &[2; 4096]).expect("room");
    scope.submit(encoder);
    drop((block, memory, gpu));
    assert_eq!(Arc::strong_count(&alive), 1, "the backend and its device live on");
}

#[test]
fn a_device_is_opened_as_recommended() {
    if Gpu::shared().is_none() {
        return;
    }
    let memory = pollster::block_on(WgpuAllocator::open(wgpu::Backends::VULKAN));
    let memory = memory.expect("an adapter was found before");
    assert_eq!(*memory.options(), WgpuOptions::default());
    let block = memory.allocate_zeroed(4096).expect("room");
    assert_eq!(memory.read(&block), Ok(vec![0; 4096]));
    let none = pollster::block_on(WgpuAllocator::open(wgpu::Backends::empty()));
    assert!(none.expect_err("no backend, no adapter").to_string().contains("no GPU"));
}

#[test]
fn what_goes_back_is_announced_once() {
    let Some((_, memory)) = allocator() else { return };
    let seen: Arc<Mutex<BTreeMap<wgpu::Buffer, u64>>> = Arc::default();
    let (theirs, inner) = (Arc::clone(&seen), memory.clone());
    memory.on_segment_release(move |buffer| {
        *theirs.lock().expect("no panic here").entry(buffer.clone()).or_default() += 1;
        // No lock of the allocator is held.
        let _ = inner.memory_reserved();
        drop(inner.allocate(0));
    });
    let blocks = [5000, 3 * MIB, 20 * MIB].map(|size| memory.allocate(size).expect("room"));
    let exclusive = memory.request(5000).role(Role::StorageExclusive).allocate().expect("room");
    let held = memory.allocate(5000).expect("room");
    let mut gone: Vec<_> =
        blocks[1..].iter().map(|block| block.segment().buffer().clone()).collect();
    gone.push(exclusive.segment().buffer().clone());
    gone.sort();
    drop((blocks, exclusive));
    assert!(seen.lock().expect("no panic here").is_empty(), "it is cached");
    memory.empty_cache();
    memory.empty_cache();
    let announced: Vec<_> = seen.lock().expect("no panic here").clone().into_iter().collect();
    let expected: Vec<_> = gone.into_iter().map(|buffer| (buffer, 1)).collect();
    assert_eq!(announced, expected, "what is held stays");
    drop(held);
}
