//! What waits for which scope, and what does not.

use aquifer::surface::wgpu::{DownloadError, Reuse, UploadError};
use aquifer::{Scope, WgpuAllocation, WgpuAllocator};
use wgpu::CommandEncoder;

use super::kernels::{Kernels, Marks};
use super::{allocator, place};
use crate::support::{KIB, MIB};

const SIZE: u64 = 64 * KIB;

fn begin(memory: &WgpuAllocator) -> (CommandEncoder, Scope) {
    let mut encoder = memory.device().create_command_encoder(&Default::default());
    let scope = memory.begin(&mut encoder);
    (encoder, scope)
}

fn take(memory: &WgpuAllocator) -> WgpuAllocation {
    memory.allocate(SIZE).expect("room")
}

#[test]
fn a_write_does_not_overtake_its_scope() {
    let Some((_, memory)) = allocator() else { return };
    let (mut encoder, mut scope) = begin(&memory);
    let own = scope.allocate(SIZE).expect("room");
    assert_eq!(memory.write_now(&own, 0, &[1; 4]), Err(UploadError::Unordered));
    // The scope's own uploads are in order.
    scope.upload(&mut encoder, &own, 0, &[2; 4]).expect("room");
    scope.submit(encoder);
    memory.write_now(&own, 0, &[3; 4]).expect("nothing is recorded that could be overtaken");
    assert_eq!(memory.read(&own).expect("there")[..4], [3; 4]);
}

#[test]
fn a_write_does_not_overtake_a_scope_that_uses_the_bytes() {
    let Some((_, memory)) = allocator() else { return };
    let (used, plain, unused) = (take(&memory), take(&memory), take(&memory));
    let _ = plain.binding();
    for allocation in [&used, &plain, &unused] {
        memory.write_now(allocation, 0, &[1; 4]).expect("nothing is open");
    }
    let (mut encoder, mut scope) = begin(&memory);
    let before = scope.download(&mut encoder, &used).expect("room");
    assert_eq!(memory.write_now(&used, 0, &[2; 4]), Err(UploadError::Unordered));
    assert_eq!(memory.write_now(&plain, 0, &[2; 4]), Err(UploadError::Unordered));
    memory.write_now(&unused, 0, &[2; 4]).expect("the scope has not used it");
    scope.submit(encoder);
    memory.write_now(&used, 0, &[3; 4]).expect("submitted");
    assert_eq!(before.wait().expect("submitted")[..4], [1; 4]);
    assert_eq!(memory.read(&used).expect("there")[..4], [3; 4]);
}

#[test]
fn a_download_is_there_once_it_was_submitted() {
    let Some((_, memory)) = allocator() else { return };
    let block = take(&memory);
    memory.write_now(&block, 0, &[5; SIZE as usize]).expect("nothing is open");
    let (mut encoder, mut scope) = begin(&memory);
    let download = scope.download(&mut encoder, &block).expect("room");
    assert!(!download.is_ready());
    assert_eq!(download.wait(), Err(DownloadError::Unsubmitted));
    let (commands, finished) = scope.finish(encoder);
    assert_eq!(download.wait(), Err(DownloadError::Unsubmitted), "finished is not submitted");
    memory.queue().submit([commands]);
    assert_eq!(download.wait(), Ok(vec![5; SIZE as usize]), "whoever submitted it");
    assert!(download.is_ready());
    assert_eq!(download.wait(), Ok(vec![5; SIZE as usize]), "and again");
    finished.submitted();
}

#[test]
fn a_download_can_be_awaited() {
    let Some((_, memory)) = allocator() else { return };
    let block = take(&memory);
    memory.write_now(&block, 0, &[6; SIZE as usize]).expect("nothing is open");
    let (mut encoder, mut scope) = begin(&memory);
    let download = scope.download(&mut encoder, &block).expect("room");
    scope.submit(encoder);
    let polls = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while polls.load(std::sync::atomic::Ordering::Relaxed) {
                memory.backend().poll();
                std::thread::yield_now();
            }
        });
        let bytes = pollster::block_on(download.read());
        polls.store(false, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(bytes, Ok(vec![6; SIZE as usize]));
    });
}

/// A download that nobody wants is still written, by a scope that is still open: nobody else may
/// read with its buffer before that.
#[test]
fn a_dropped_download_lands_in_nobodys_bytes() {
    let Some((_, memory)) = allocator() else { return };
    let (ones, twos) = (take(&memory), take(&memory));
    memory.write_now(&ones, 0, &[1; SIZE as usize]).expect("nothing is open");
    memory.write_now(&twos, 0, &[2; SIZE as usize]).expect("nothing is open");
    let (mut late, mut scope) = begin(&memory);
    drop(scope.download(&mut late, &ones).expect("room"));
    let (mut encoder, mut other) = begin(&memory);
    let wanted = other.download(&mut encoder, &twos).expect("room");
    other.submit(encoder);
    scope.submit(late);
    assert!(wanted.wait().expect("submitted").iter().all(|&byte| byte == 2));
}

/// A read that is given up half way leaves its buffer for the next one.
#[test]
fn a_read_that_is_given_up_locks_nothing() {
    let Some((_, memory)) = allocator() else { return };
    let block = take(&memory);
    memory.write_now(&block, 0, &[7; SIZE as usize]).expect("nothing is open");
    let (mut encoder, mut scope) = begin(&memory);
    let download = scope.download(&mut encoder, &block).expect("room");
    scope.submit(encoder);
    memory.synchronize().expect("the device is there");
    {
        // The first look asks for the map; nobody waits for the answer.
        let mut read = std::pin::pin!(download.read());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(read.as_mut().poll(&mut context).is_pending());
    }
    drop(download);
    assert_eq!(memory.read(&block), Ok(vec![7; SIZE as usize]));
}

/// Whoever catches the error of a submission does not wait for ever for what was in it.
#[test]
fn a_submission_with_an_error_is_over() {
    let Some((gpu, memory)) = allocator() else { return };
    let block = take(&memory);
    let (mut encoder, mut scope) = begin(&memory);
    let download = scope.download(&mut encoder, &block).expect("room");
    let error = gpu.error_of(|| {
        let buffer = block.buffer();
        encoder.copy_buffer_to_buffer(buffer, 0, buffer, 4096, Some(64));
        scope.submit(encoder);
    });
    assert!(error.is_some(), "a copy inside of one buffer");
    // What comes of it wgpu does not tell; but something does.
    let _ = download.wait();
    drop(download);
    assert!(memory.read(&block).is_ok());
}

/// Whoever reads a download after that, or while others read it, has all of it.
#[test]
fn a_download_may_have_many_readers() {
    let Some((_, memory)) = allocator() else { return };
    let block = take(&memory);
    let bytes = vec![8; SIZE as usize];
    memory.write_now(&block, 0, &bytes).expect("nothing is open");
    let (mut encoder, mut scope) = begin(&memory);
    let download = scope.download(&mut encoder, &block).expect("room");
    scope.submit(encoder);
    memory.synchronize().expect("the device is there");
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(std::pin::pin!(download.read()).as_mut().poll(&mut context).is_pending());
    assert!(download.wait() == Ok(bytes.clone()), "the first reader was given up");
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| (0..50).for_each(|_| assert!(download.wait() == Ok(bytes.clone()))));
        }
    });
    drop(download);
    assert!(memory.read(&block) == Ok(bytes), "the buffer is not mapped any more");
}

#[test]
fn a_scope_that_is_given_up_frees_its_memory() {
    let Some((_, memory)) = allocator() else { return };
    for scope_goes_first in [true, false] {
        let kept = take(&memory);
        let home = place(&kept);
        let (mut encoder, mut scope) = begin(&memory);
        let own = scope.allocate(SIZE).expect("room");
        scope.upload(&mut encoder, &own, 0, &[1; 4]).expect("room");
        scope.uses(&kept);
        drop((own, kept));
        let waits = take(&memory);
        assert_ne!(place(&waits), home, "the encoder may still be submitted");
        if scope_goes_first {
            drop(scope);
            let others = [take(&memory), take(&memory)];
            assert!(others.iter().all(|other| place(other) != home), "the encoder is alive");
            drop((encoder, others));
        } else {
            drop((encoder, scope));
        }
        // Seen when the next scope begins.
        let (encoder, scope) = begin(&memory);
        assert_eq!(place(&take(&memory)), home);
        scope.submit(encoder);
        drop(waits);
        assert_eq!(memory.memory_active(), memory.staging_bytes());
        memory.empty_cache();
        assert_eq!((memory.memory_reserved(), memory.staging_bytes()), (0, 0));
    }
}

#[test]
fn a_finished_scope_frees_when_it_is_told_or_complete() {
    let Some((_, memory)) = allocator() else { return };
    for told in [true, false] {
        let kept = take(&memory);
        let home = place(&kept);
        let (encoder, scope) = begin(&memory);
        scope.uses(&kept);
        let (commands, finished) = scope.finish(encoder);
        drop(kept);
        assert_ne!(place(&take(&memory)), home, "not submitted");
        memory.queue().submit([commands]);
        if told {
            finished.submitted();
        } else {
            drop(finished);
            memory.synchronize().expect("the device is there");
            // Seen when the next scope begins.
            let (encoder, scope) = begin(&memory);
            scope.submit(encoder);
        }
        assert_eq!(place(&take(&memory)), home);
        assert_eq!(memory.memory_active(), 0);
    }
}

/// Whether memory freed while two scopes are open is back when the first one, or the second one,
/// was submitted.
fn comes_back(memory: &WgpuAllocator, use_it: impl Fn([&Scope; 2], &WgpuAllocation)) -> [bool; 2] {
    [0, 1].map(|first| {
        let block = take(memory);
        let home = place(&block);
        let mut open = vec![begin(memory), begin(memory)];
        use_it([&open[0].1, &open[1].1], &block);
        drop(block);
        let (encoder, scope) = open.remove(first);
        scope.submit(encoder);
        let is_back = place(&take(memory)) == home;
        let (encoder, scope) = open.remove(0);
        scope.submit(encoder);
        assert_eq!(place(&take(memory)), home, "nothing is open");
        is_back
    })
}

#[test]
fn a_free_waits_for_the_scopes_that_may_use_the_bytes() {
    let Some((_, memory)) = allocator() else { return };
    let unused = comes_back(&memory, |_, _| {});
    assert_eq!(unused, [true, true], "no scope has it");
    let first = comes_back(&memory, |[first, _], block| {
        let _ = first.binding(block);
    });
    assert_eq!(first, [true, false], "a binding through a scope waits for that one");
    let second = comes_back(&memory, |[_, second], block| {
        let _ = second.slice(block);
    });
    assert_eq!(second, [false, true], "and so does a slice");
    let both =
        comes_back(&memory, |scopes, block| scopes.into_iter().for_each(|scope| scope.uses(block)));
    assert_eq!(both, [false, false], "both use it");
    let binding = comes_back(&memory, |_, block| {
        let _ = block.binding();
    });
    assert_eq!(binding, [false, false], "a plain binding may be used in any scope");
    let slice = comes_back(&memory, |_, block| {
        let _ = block.slice(..);
    });
    assert_eq!(slice, [false, false], "and so may a plain slice");
    let buffer = comes_back(&memory, |_, block| drop(block.buffer().clone()));
    assert_eq!(buffer, [false, false], "and so may a buffer");
}

#[test]
fn a_quarantined_scope_keeps_what_it_used_until_its_end() {
    let Some((gpu, memory)) = allocator() else { return };
    let kernels = Kernels::new(&gpu);
    let mut encoder = gpu.encoder();
    let scope = memory.begin_with(&mut encoder, Reuse::Quarantine);
    let used = scope.allocate(SIZE).expect("room");
    let home = place(&used);
    let marks = Marks::of(&used, 1);
    gpu.queue.write_buffer(&home.0, home.1, &marks.bytes());
    kernels.check(&gpu, &mut encoder, scope.binding(&used), marks);
    drop(used);
    let next = scope.allocate(SIZE).expect("room");
    assert_ne!(place(&next), home);
    memory.write_now(&next, 0, &[1; 4]).expect("it is new and clean");
    scope.submit(encoder);
    assert_eq!(place(&take(&memory)), home);
    assert_eq!(kernels.wrong(&gpu), 0);
}

/// Blocks of so many bytes are lent from stream to stream, but not from an open scope.
#[test]
fn memory_of_an_open_scope_is_lent_to_nobody() {
    let Some((_, memory)) = allocator() else { return };
    let size = 12 * MIB;
    let (mut late, mut open) = begin(&memory);
    let own = open.allocate(size).expect("room");
    let home = place(&own);
    open.upload(&mut late, &own, 0, &[1; 4096]).expect("room");
    drop(own);
    let outside = memory.allocate(size).expect("room");
    memory.write_now(&outside, 0, &[2; 4096]).expect("it is new");
    let (mut encoder, mut scope) = begin(&memory);
    let inside = scope.allocate(size).expect("room");
    scope.upload(&mut encoder, &inside, 0, &[3; 4096]).expect("room");
    scope.submit(encoder);
    assert!(place(&outside) != home && place(&inside) != home);
    open.submit(late);
    assert_eq!(memory.read(&outside).expect("there")[..4096], [2; 4096]);
    assert_eq!(memory.read(&inside).expect("there")[..4096], [3; 4096]);
}

/// Far more scopes than have a place of their own in the record of uses.
#[test]
fn hundreds_of_scopes_may_be_open() {
    let Some((_, memory)) = allocator() else { return };
    let block = take(&memory);
    let home = place(&block);
    let mut open: Vec<_> = (0..150).map(|_| begin(&memory)).collect();
    open[140].1.uses(&block);
    assert_eq!(memory.write_now(&block, 0, &[1; 4]), Err(UploadError::Unordered));
    drop(block);
    let (encoder, scope) = open.swap_remove(140);
    let waits = take(&memory);
    assert_ne!(place(&waits), home);
    drop(waits);
    scope.submit(encoder);
    for (encoder, scope) in open {
        scope.submit(encoder);
    }
    assert_eq!(place(&take(&memory)), home);
    memory.verify();
}

/// Nor do the blocks of such scopes have one.
#[test]
fn blocks_of_the_hundredth_scope_wait_for_others() {
    let Some((_, memory)) = allocator() else { return };
    let mut open: Vec<_> = (0..100).map(|_| begin(&memory)).collect();
    let block = open[90].1.allocate(SIZE).expect("room");
    let home = place(&block);
    open[95].1.uses(&block);
    drop(block);
    let next = open[90].1.allocate(SIZE).expect("room");
    assert_ne!(place(&next), home, "another open scope may use it");
    drop(next);
    for (encoder, scope) in open.drain(..) {
        scope.submit(encoder);
    }
    memory.verify();
}
