//! Programs over what is special to CUDA: graphs, pinned memory, pauses, memory of others.

use std::sync::Arc;

use aquifer::backend::Cuda;
use aquifer::surface::cuda::Contents;
use aquifer::{CudaBuffer, OnStream, PoolOptions, PrivatePool};
use cudarc::driver::{CudaGraph, CudaStream, sys};

use crate::MIB;
use crate::scenarios::KIB;
use crate::stage::{Held, Stage};

const GLOBAL: sys::CUstreamCaptureMode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
const RELAXED: sys::CUstreamCaptureMode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;

/// Ends a capture that has begun, whatever fails; the graph, if there is one.
fn end_capture(stage: &Stage<'_>, stream: &Arc<CudaStream>) -> Option<CudaGraph> {
    let flags = sys::CUgraphInstantiate_flags(0);
    let graph = stage.note(stream.end_capture(flags)).flatten();
    let status = stage.insist(|| stream.capture_status());
    let none = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    if graph.is_none() && status.is_some_and(|status| status != none) {
        return stage.note(stream.end_capture(flags)).flatten();
    }
    graph
}

/// What a program does while its stream is captured: memory of the pool comes and goes.
fn captured_program(stage: &Stage<'_>, on: &OnStream) -> Option<CudaBuffer<u32>> {
    let mut held = Held::new();
    let result = stage.note(on.alloc_zeros::<u32>(3000));
    let scratch = stage.note(on.alloc_zeros::<u32>(1000));
    drop(scratch);
    stage.attempt(1, 5 * MIB, &mut held);
    held.clear();
    stage.attempt(1, 5 * MIB, &mut held);
    // Others grow and give back meanwhile.
    let mut others = Held::new();
    for size in [700 * KIB, 12 * MIB, 25 * MIB] {
        stage.attempt(2, size, &mut others);
    }
    others.iter().for_each(|other| stage.work(2, other));
    others.truncate(1);
    stage.memory.trim_to(0);
    stage.verify();
    // A free that has to wait for the capture's end.
    if let Some(other) = stage.on(2) {
        held.iter().for_each(|held| stage.memory.record_stream(held, other.stream()));
    }
    held.clear();
    stage.verify();
    result
}

/// Twice: where the device seems to have no room, what one request has got may go for the next.
fn prime(stage: &Stage<'_>, pool: &PrivatePool<Cuda>, on: &OnStream) {
    for size in [64 * KIB, 12 * MIB, 64 * KIB, 12 * MIB] {
        stage.insist(|| pool.prime(on.stream(), size));
    }
}

/// A graph over memory of a private pool, launched twice.
pub(crate) fn graphs(stage: &Stage<'_>) -> Held {
    let pool = stage.memory.create_pool(PoolOptions::default());
    let Some(on) = stage.on(1) else { return Held::new() };
    let stream = &stage.streams[1];
    stage.on(2);
    prime(stage, &pool, &on);
    let capture = stage.memory.begin_capture(&on, &pool);
    let begun = stage.note(stream.begin_capture(GLOBAL)).is_some();
    let result = captured_program(stage, &on);
    let graph = if begun { end_capture(stage, stream) } else { None };
    drop(capture);
    stage.verify();
    for _ in 0..2 {
        if let Some(graph) = &graph {
            stage.note(graph.launch());
        }
    }
    let mut held = Held::new();
    stage.attempt(1, 12 * MIB, &mut held);
    stage.note(stream.synchronize());
    pool.trim();
    stage.verify();
    drop((graph, result));
    drop(pool);
    held.clear();
    stage.memory.trim_to(0);
    stage.verify();
    Held::new()
}

/// The program captures a stream and tells nobody: what the stream may still use is kept for the
/// time after the capture, and nothing is asked of it before.
pub(crate) fn unannounced_graphs(stage: &Stage<'_>) -> Held {
    let stream = &stage.streams[1];
    let mut held = Held::new();
    stage.attempt(2, 3 * MIB, &mut held);
    stage.attempt(2, 700 * KIB, &mut held);
    stage.on(1);
    let begun = stage.note(stream.begin_capture(RELAXED)).is_some();
    if begun {
        stage.lend(1, &held);
    }
    held.clear();
    stage.attempt(2, 3 * MIB, &mut held);
    held.clear();
    stage.memory.maintain(std::time::Duration::from_secs(1));
    stage.verify();
    drop(begun.then(|| end_capture(stage, stream)));
    stage.attempt(2, 3 * MIB, &mut held);
    held.clear();
    stage.memory.trim_to(0);
    stage.verify();
    Held::new()
}

/// Copies between pinned and device memory, freed while they run.
pub(crate) fn pinned(stage: &Stage<'_>) -> Held {
    let Some(on) = stage.on(1) else { return Held::new() };
    for round in 0..2 {
        let len = [3000, 200_000][round];
        let before = stage.failures();
        let Some(mut source) = stage.note(stage.memory.alloc_pinned::<u32>(len)) else { continue };
        let Some(mut target) = stage.note(stage.memory.alloc_pinned::<u32>(len)) else { continue };
        let values = stage.note(source.slice_mut());
        values.into_iter().flatten().zip(7..).for_each(|(value, number)| *value = number);
        let Some(mut there) = stage.note(on.alloc_zeros::<u32>(len)) else { continue };
        stage.note(on.copy_to_device(&mut source, &mut there));
        stage.note(on.copy_to_host(&there, &mut target));
        stage.note(target.is_settled());
        drop(source);
        // The copy out of the first one runs; whoever comes now has other bytes.
        let next = stage.note(stage.memory.alloc_pinned::<u32>(len));
        let all = stage
            .note(target.slice())
            .is_some_and(|values| values.iter().copied().eq(7..7 + len as u32));
        assert!(all || stage.failures() > before, "the copies did not keep the values");
        let copy = stage.note(on.clone_htod(&target));
        drop((there, next, copy));
        stage.memory.pinned().verify();
        stage.memory.pinned().empty_cache();
        stage.memory.maintain(std::time::Duration::from_secs(100 * (round as u64 + 1)));
        stage.verify();
    }
    stage.note(stage.memory.synchronize());
    Held::new()
}

/// Memory leaves the device with its contents, and comes back to its addresses.
pub(crate) fn pauses(stage: &Stage<'_>) -> Held {
    let tag = stage.memory.tag("weights");
    let pool = stage.memory.pausable(tag);
    let Some(on) = stage.on(1) else { return Held::new() };
    let mut weights = Vec::new();
    for len in [100, 300_000, 900_000] {
        // SAFETY: the values are written below, and read only if that was done.
        let Some(mut buffer) = stage.insist(|| unsafe { on.alloc_tagged::<u32>(len, tag) }) else {
            return Held::new();
        };
        let values: Vec<u32> = (0..100).map(|value| value + len as u32).collect();
        let mut view = buffer.view_mut(len - 100..);
        stage.insist(|| stage.streams[1].memcpy_htod(&values, &mut view));
        weights.push((buffer, values));
    }
    for contents in [Contents::Keep, Contents::Discard] {
        let paused = stage.insist(|| stage.memory.pause(tag, contents));
        if paused.is_none() && stage.is_lossy() {
            break;
        }
        assert!(pool.is_paused() && pool.paused_bytes() > 0);
        let mut held = Held::new();
        stage.attempt(0, 60 * MIB, &mut held);
        held.clear();
        let resumed = paused.and_then(|_| stage.insist(|| stage.memory.resume(tag)));
        if resumed.is_none() && stage.is_lossy() {
            break;
        }
        assert!(!pool.is_paused(), "asked again it is resumed");
        if contents == Contents::Keep && resumed.is_some() {
            for (buffer, values) in &weights {
                let at = buffer.address() + 4 * (buffer.allocation().size() / 4 - 100);
                let bytes = stage.fake.read(at, 400);
                assert_eq!(bytes, bytemuck::cast_slice::<u32, u8>(values), "contents were kept");
            }
        }
        if weights.len() > 2 {
            weights.pop();
        }
    }
    drop((weights, pool));
    stage.memory.forget_pausable(tag);
    stage.verify();
    Held::new()
}

/// Memory is exported, mapped a second time, and let go in the middle of a capture.
pub(crate) fn shares(stage: &Stage<'_>) -> Held {
    let mut held = Held::new();
    stage.attempt(0, 3 * MIB, &mut held);
    stage.attempt(0, 40 * MIB, &mut held);
    let pool = stage.memory.create_pool(PoolOptions::default());
    for allocation in &held {
        let Some(shared) = stage.insist(|| stage.memory.share(allocation)) else { continue };
        let Some(there) = stage.insist(|| stage.memory.backend().import(&shared)) else { continue };
        let address = allocation.address().expect("it has bytes");
        stage.fake.write(address + allocation.size() - 8, b"the same");
        assert_eq!(stage.fake.read(there.address() + there.size() - 8, 8), b"the same");
        drop(shared);
        let capture = stage.on(1).map(|on| stage.memory.begin_capture(&on, &pool));
        drop(there);
        drop(capture);
        stage.attempt(2, 700 * KIB, &mut Held::new());
    }
    held.clear();
    drop(pool);
    stage.memory.trim_to(0);
    stage.verify();
    Held::new()
}
