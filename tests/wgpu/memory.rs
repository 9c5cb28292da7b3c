//! Memory that goes back to the system, memory that runs out and comes again, and many threads.
//!
//! What the system says of a process, and limits of a process, are of all its tests together: such
//! tests run in a process of their own, this program called again for one test.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aquifer::backend::resident_bytes;
use aquifer::surface::wgpu::UploadError;
use aquifer::{AllocError, WgpuAllocator};

use super::kernels::{Kernels, STEP_WORDS, buffer_of};
use super::{allocator, allocator_with};
use crate::gpu::Gpu;
use crate::support::{KIB, MIB};

/// Set for a process that is to do the work of a test itself.
const CHILD: &str = "AQUIFER_TEST_CHILD";

/// Whether this process is the one for the work; else runs the test `name` in one that is.
fn is_child(name: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    if Gpu::shared().is_none() {
        return false;
    }
    let program = std::env::current_exe().expect("the name of this program");
    let mut command = Command::new(program);
    let output = command.args([name, "--exact", "--nocapture"]).env(CHILD, "1").output();
    let output = output.expect("this program runs again");
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{name} in a process of its own:\n{}\n{}", text[0], text[1]);
    assert!(text[0].contains("1 passed"), "{name} was not run:\n{}", text[0]);
    false
}

#[test]
fn empty_cache_returns_memory_to_the_system() {
    if !is_child("memory::empty_cache_returns_memory_to_the_system") {
        return;
    }
    let Some((_, memory)) = allocator() else { return };
    let Some(before) = resident_bytes() else { return };
    // In this order: a driver on the CPU has its memory from the C library, which keeps what is
    // freed if it is smaller than what was freed before.
    for size in [64 * KIB, 20 * MIB, 64 * MIB] {
        let count = 256 * MIB / size;
        let zeroed = || memory.allocate_zeroed(size).expect("the machine has 256 MiB");
        let held: Vec<_> = (0..count).map(|_| zeroed()).collect();
        memory.synchronize().expect("the device is there");
        let grown = resident_bytes().expect("it told before") - before;
        assert!(grown > 200 * MIB, "{grown} bytes: the device does not touch what it clears");
        drop(held);
        assert!(memory.memory_reserved() >= 240 * MIB, "it is cached");
        assert!(memory.empty_cache() >= 240 * MIB);
        let left = resident_bytes().expect("it told before").saturating_sub(before);
        assert!(left < grown / 8, "{left} of {grown} bytes stayed, in blocks of {size}");
    }
}

/// Ends the addresses of this process, so that the driver refuses memory.
#[cfg(target_os = "linux")]
fn limit_addresses(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the call reads the structure, which lives.
    let outcome = unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) };
    assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
}

/// As many blocks as there are, and the error that ended it.
#[cfg(target_os = "linux")]
fn exhaust(memory: &WgpuAllocator, size: u64) -> Vec<aquifer::WgpuAllocation> {
    let mut held = Vec::new();
    loop {
        match memory.allocate(size) {
            Ok(block) => held.push(block),
            Err(AllocError::OutOfMemory(_)) => return held,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The driver's memory ends, and the device does not.
#[cfg(target_os = "linux")]
#[test]
fn running_out_of_memory_is_an_error_and_nothing_more() {
    if !is_child("memory::running_out_of_memory_is_an_error_and_nothing_more") {
        return;
    }
    let Some((gpu, memory)) = allocator_with(|_, options| options.cap_memory = false) else {
        return;
    };
    let kernels = Kernels::new(&gpu);
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let _guard = memory.on_out_of_memory(1, move |pressure| {
        count.fetch_add(1, Ordering::Relaxed);
        assert_eq!(pressure.requested, 100 * MIB);
        false
    });
    let block = memory.allocate(3 * MIB).expect("room");
    memory.write_now(&block, 0, &[1; 4096]).expect("nothing is open");
    limit_addresses(8 << 30);
    let mut held = exhaust(&memory, 100 * MIB);
    assert!(held.len() >= 8, "{} blocks are too few to prove anything", held.len());
    assert_eq!(asked.load(Ordering::Relaxed), 1, "the program is asked before it is refused");
    memory.backend().check().expect("a want of memory is no loss");
    // Bytes still move where there are chunks for them, or it is an error as well.
    let write = memory.write_now(&block, 0, &[2; 4096]);
    assert!(matches!(write, Ok(()) | Err(UploadError::Alloc(_))), "{write:?}");
    for _ in 0..3 {
        let some = held.len() / 2;
        held.truncate(some);
        let again = memory.allocate(100 * MIB).expect("half was freed");
        let [from, to] = [&again, &block];
        memory.write_now(from, 0, &4_u32.to_le_bytes().repeat(STEP_WORDS)).expect("room");
        let mut encoder = gpu.encoder();
        let [x, y] = [from, to].map(|block| buffer_of(block.binding()));
        kernels.step(&gpu, &mut encoder, x, y);
        gpu.queue.submit([encoder.finish()]);
        assert_eq!(memory.read(to).expect("room")[..4], 5_u32.to_le_bytes());
        // What is cached goes for a request that it does not fit.
        drop(again);
        drop(memory.request(120 * MIB).allocate().expect("half was freed"));
        memory.verify();
        held.extend(exhaust(&memory, 100 * MIB));
    }
    memory.backend().check().expect("a want of memory is no loss");
    drop((held, block));
    memory.empty_cache();
    assert_eq!((memory.memory_reserved(), memory.backend().used_bytes()), (0, 0));
}

/// Limits of the allocator end memory in the same way, without the driver's help; what scopes and
/// uploads hold comes free when they end.
#[test]
fn a_limit_is_an_error_and_nothing_more() {
    let limited = allocator_with(|config, options| {
        config.memory_limit = Some(32 * MIB);
        (options.upload_chunk, options.scrub_on_free) = (4 * MIB, true);
    });
    let Some((gpu, memory)) = limited else { return };
    let mut encoder = gpu.encoder();
    let mut scope = memory.begin(&mut encoder);
    let block = memory.allocate(20 * MIB).expect("below the limit");
    scope.upload(&mut encoder, &block, 0, &[3; 4096]).expect("below the limit");
    drop(block);
    let refused = memory.allocate(20 * MIB);
    assert!(matches!(refused, Err(AllocError::OutOfMemory(_))), "the scope may use the rest");
    scope.submit(encoder);
    // The staging chunk is in use by work that is under way; the rest is still to be cleared.
    let whole = memory.allocate(32 * MIB).expect("all came back");
    drop(whole);
    memory.verify();
}

#[test]
fn threads_allocate_record_and_submit() {
    let Some((gpu, memory)) = allocator() else { return };
    let kernels = Kernels::new(&gpu);
    std::thread::scope(|threads| {
        for thread in 0..4_u32 {
            let (gpu, memory, kernels) = (&gpu, &memory, &kernels);
            threads.spawn(move || {
                for round in 0..40 {
                    let value = thread * 1000 + round;
                    let mut encoder = gpu.encoder();
                    let mut scope = memory.begin(&mut encoder);
                    let mut x = scope.allocate(64 * KIB).expect("room");
                    let words = value.to_le_bytes().repeat(STEP_WORDS);
                    scope.upload(&mut encoder, &x, 0, &words).expect("room");
                    for _ in 0..8 {
                        let y = scope.allocate(64 * KIB).expect("room");
                        let [from, to] = [&x, &y].map(|block| buffer_of(scope.binding(block)));
                        kernels.step(gpu, &mut encoder, from, to);
                        x = y;
                    }
                    let result = scope.download(&mut encoder, &x).expect("room");
                    drop(x);
                    scope.submit(encoder);
                    let bytes = result.wait().expect("submitted");
                    let expected = (value + 8).to_le_bytes().repeat(STEP_WORDS);
                    assert!(bytes[..expected.len()] == expected, "thread {thread}, {round}");
                }
            });
        }
    });
    memory.verify();
    memory.empty_cache();
    assert_eq!((memory.memory_allocated(), memory.memory_reserved()), (0, 0));
}
