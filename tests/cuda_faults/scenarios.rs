//! Programs that memory of every source has to stand: growth, trims, streams, and their ends.

use std::time::Duration;

use cudarc::driver::sys;

use crate::MIB;
use crate::stage::{Held, Stage};

pub(crate) const KIB: u64 = 1 << 10;

/// Small and large requests, up to and beyond what the device has.
pub(crate) fn grow(stage: &Stage<'_>) -> Held {
    let mut held = Held::new();
    for size in [1, 700 * KIB, 3 * MIB, 12 * MIB, 21 * MIB, 30 * MIB] {
        stage.attempt(0, size, &mut held);
    }
    held.drain(..held.len() / 2);
    stage.memory.empty_cache();
    stage.verify();
    // Every rung of the ladder is tried.
    for size in [40 * MIB, 30 * MIB, 90 * MIB, 25 * MIB] {
        stage.attempt(0, size, &mut held);
    }
    held.clear();
    stage.attempt(1, 80 * MIB, &mut held);
    Held::new()
}

/// Memory goes back piece by piece, and is grown again.
pub(crate) fn trims(stage: &Stage<'_>) -> Held {
    let mut held = Held::new();
    for round in 0..2 {
        for size in [3 * MIB, 25 * MIB, 22 * MIB, 2 * KIB] {
            stage.attempt(round, size, &mut held);
        }
        stage.lend(2, &held);
        while held.pop().is_some() {
            stage.memory.trim_to(30 * MIB);
            stage.verify();
        }
        for size in [18 * MIB, 40 * MIB] {
            stage.attempt(round, size, &mut held);
        }
        held.truncate(1);
        stage.memory.trim_to(0);
        stage.verify();
        held.clear();
    }
    Held::new()
}

/// The same without work, which would be the program's own calls.
pub(crate) fn trims_alone(stage: &Stage<'_>) -> Held {
    let mut held = Held::new();
    for stream in 0..3 {
        for size in [3 * MIB, 25 * MIB, 700 * KIB] {
            stage.attempt(stream, size, &mut held);
        }
        held.truncate(2);
        stage.memory.trim_to(30 * MIB);
        stage.verify();
    }
    Held::new()
}

/// Blocks that several streams use, freed and taken with their work under way.
pub(crate) fn streams(stage: &Stage<'_>) -> Held {
    let mut held = Held::new();
    for round in 0..3 {
        for (stream, size) in [(0, 3 * MIB), (1, 12 * MIB), (2, 18 * MIB), (1, 2 * KIB)] {
            let before = held.len();
            stage.attempt(stream, size, &mut held);
            held[before..].iter().for_each(|new| stage.work(stream, new));
        }
        stage.lend((round + 1) % 3, &held);
        held.drain(..held.len() - held.len() / 3);
        stage.verify();
        if round == 1 {
            stage.complete(1);
            stage.memory.maintain(Duration::from_secs(1));
            stage.verify();
        }
    }
    // Waits for everybody.
    stage.attempt(2, 70 * MIB, &mut held);
    held.clear();
    stage.memory.empty_cache();
    stage.verify();
    Held::new()
}

/// cudarc's copies between buffers of several streams, one of which the allocator never saw.
pub(crate) fn foreign_copies(stage: &Stage<'_>) -> Held {
    for round in 0..2 {
        let Some(on) = stage.on(1) else { continue };
        let values: Vec<u32> = (0..1000).map(|value| value + round).collect();
        let Some(from) = stage.note(on.clone_htod(&values)) else { continue };
        let Some(mut to) = stage.note(on.alloc_zeros::<u32>(values.len())) else { continue };
        let user = stage.on(2);
        if user.is_some() {
            // The stream's work comes after the buffers' own.
            stage.note(stage.streams[1].synchronize());
            stage.note(stage.streams[2].memcpy_dtod(&from, &mut to));
            stage.note(stage.streams[2].synchronize());
        }
        // Unknown: cudarc waits for it when the copy has been submitted. If that is refused it says
        // so afterwards only, and it is for the program to wait.
        stage.note(stage.streams[3].memcpy_dtod(&from, &mut to));
        if stage.memory.context().check_err().is_err() {
            stage.insist(|| stage.streams[3].synchronize());
        }
        // As before a kernel's launch.
        let recorded = stage.insist(|| from.record_on(&stage.streams[3]));
        if let Some(start) = from.allocation().address().filter(|_| recorded.is_some()) {
            // SAFETY: the buffer's, and kept until the stream is past this.
            let set = unsafe { sys::cuMemsetD8Async(start, 1, 4, stage.raw(3)) };
            stage.hear(set.result());
        }
        drop(from);
        let failed = stage.failures();
        let copied = stage.note(stage.streams[1].clone_dtoh(&to));
        stage.note(stage.streams[1].synchronize());
        if failed == 0 && stage.failures() == 0 {
            assert_eq!(copied.as_deref(), Some(&values[..]));
        }
        drop(to);
        // Whoever gets the bytes next.
        let mut held = Held::new();
        stage.attempt(2, 2 * KIB, &mut held);
        held.iter().for_each(|next| stage.work(2, next));
        stage.memory.trim_to(0);
        stage.verify();
    }
    Held::new()
}

/// Streams come and go, with work under way.
pub(crate) fn forgets(stage: &Stage<'_>) -> Held {
    let mut held = Held::new();
    for _ in 0..3 {
        let Some(stream) = stage.insist(|| stage.memory.context().new_stream()) else { continue };
        let Some(on) = stage.insist(|| stage.memory.on(&stream)) else { continue };
        for size in [12 * MIB, 3 * MIB] {
            held.extend(stage.note(on.allocate(size)));
        }
        for allocation in &held {
            stage.memory.record_stream(allocation, on.stream());
        }
        stage.lend(1, &held);
        held.truncate(1);
        drop((on, stream));
        stage.memory.forget_idle_streams();
        stage.verify();
    }
    stage.attempt(0, 60 * MIB, &mut held);
    held.clear();
    Held::new()
}

/// Something is cached, something is held, and something waits when the allocator goes.
pub(crate) fn teardown(stage: &Stage<'_>) -> Held {
    let mut held = Held::new();
    for (stream, size) in [(0, 3 * MIB), (1, 12 * MIB), (0, 22 * MIB), (1, 2 * KIB)] {
        let before = held.len();
        stage.attempt(stream, size, &mut held);
        held[before..].iter().for_each(|new| stage.work(stream, new));
    }
    stage.lend(0, &held);
    held.truncate(2);
    held
}
