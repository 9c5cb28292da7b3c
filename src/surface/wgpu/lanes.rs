//! Lanes: the streams that scopes record on.
//!
//! ```text
//!  lane 1   ▕ scope a ▏submitted ▕ scope c ▏ …      one open scope at a time, so a lane's memory
//!  lane 2        ▕ scope b … open                   is reused from scope to scope with no event
//! ```
//!
//! A scope takes the first lane that is free, or a new one, so a program that records one encoder
//! at a time has one lane, and all memory of its scopes is in one place. A lane is free again when
//! its scope was submitted. If the program submits by itself, that is seen when the work completes:
//! a notice rides in the encoder, and wgpu calls it on completion, or drops it with the encoder.
//!
//! - N1: a lane is open ⇔ its stream is among the backend's open recordings ⇔ the core has a
//!   recording of it.
//!
//! Lock order: lanes, then the core. A notice takes no lock: it may be called inside of any submit.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use wgpu::{CommandEncoder, SubmissionIndex};

use super::staging::Chunk;
use crate::allocator::{Allocator, RecordingGuard, Stream};
use crate::backend::Wgpu;

/// Numbers of the lanes' streams begin here: far from those that a program may name by itself,
/// which must not be one of these.
const LANES_FROM: u32 = 1 << 31;

/// How far the work of a scope is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Recorded, and not known to be submitted.
    Recorded = 0,
    /// Submitted, and not known to be complete.
    Submitted = 1,
    /// Complete.
    Done = 2,
    /// Thrown away with its encoder.
    Abandoned = 3,
}

/// What is known of one scope's work; and its upload chunks, which wait for its end.
#[derive(Debug, Default)]
pub(super) struct Progress {
    phase: AtomicU8,
    /// The submission that the work is part of, once it is known.
    submission: OnceLock<SubmissionIndex>,
    chunks: Mutex<Vec<Chunk>>,
}

impl Progress {
    /// The progress of what is about to be recorded into `encoder`.
    pub(super) fn of(encoder: &CommandEncoder) -> Arc<Self> {
        let progress = Arc::new(Self::default());
        let mut notice = Notice(Some(Arc::clone(&progress)));
        encoder.on_submitted_work_done(move || notice.tell(Phase::Done));
        progress
    }

    /// The work was handed to the device, in a submission that may be known: it will be over,
    /// without anybody's doing.
    pub(super) fn note_submitted(&self, submission: Option<SubmissionIndex>) {
        if let Some(submission) = submission {
            // A scope is submitted once.
            let _ = self.submission.set(submission);
        }
        let (from, to) = (Phase::Recorded as u8, Phase::Submitted as u8);
        // It may be over already.
        let _ = self.phase.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// The submission that the work is part of, if it is known.
    pub(super) fn submission(&self) -> Option<&SubmissionIndex> {
        self.submission.get()
    }

    /// Whether it is known that the device has the work, or was done with it.
    pub(super) fn is_submitted(&self) -> bool {
        self.phase.load(Ordering::Acquire) != Phase::Recorded as u8
    }

    /// Whether the device is done with the work, or never had it.
    pub(super) fn is_over(&self) -> bool {
        let phase = self.phase.load(Ordering::Acquire);
        phase == Phase::Done as u8 || phase == Phase::Abandoned as u8
    }

    /// Whether the device has done the work.
    pub(super) fn is_done(&self) -> bool {
        self.phase.load(Ordering::Acquire) == Phase::Done as u8
    }

    pub(super) fn keep(&self, chunks: Vec<Chunk>) {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).extend(chunks);
    }

    pub(super) fn take_chunks(&self) -> Vec<Chunk> {
        std::mem::take(&mut self.chunks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Rides in an encoder. Called when the work is complete; dropped uncalled if it never will be.
struct Notice(Option<Arc<Progress>>);

impl Notice {
    fn tell(&mut self, phase: Phase) {
        if let Some(progress) = self.0.take() {
            progress.phase.store(phase as u8, Ordering::Release);
        }
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        self.tell(Phase::Abandoned);
    }
}

/// All lanes, in order of their making.
pub(super) struct Lanes {
    list: Mutex<Vec<Lane>>,
}

struct Lane {
    stream: Stream<Wgpu>,
    open: Option<Open>,
}

struct Open {
    progress: Arc<Progress>,
    recording: RecordingGuard<Wgpu>,
}

/// A scope's place on a lane.
#[derive(Debug)]
pub(super) struct Berth {
    lane: usize,
    pub(super) stream: Stream<Wgpu>,
    pub(super) progress: Arc<Progress>,
}

impl Lane {
    /// Ends the recording (N1). Memory of released pools that waited for it goes back with a purge,
    /// which calls hooks of the program: when the lanes are not locked any more.
    fn close(&mut self, core: &Allocator<Wgpu>) {
        if let Some(open) = self.open.take() {
            open.recording.end();
            core.backend().recordings().close(self.stream.index());
        }
    }
}

impl Lanes {
    pub(super) fn new() -> Self {
        Self { list: Mutex::new(Vec::new()) }
    }

    fn list(&self) -> MutexGuard<'_, Vec<Lane>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a recording into `encoder` on a lane that is free.
    pub(super) fn begin(&self, core: &Allocator<Wgpu>, encoder: &CommandEncoder) -> Berth {
        let mut list = self.list();
        let freed = sweep(&mut list, core);
        let free = list.iter().position(|lane| lane.open.is_none());
        let lane = free.unwrap_or_else(|| {
            let stream = core.stream(LANES_FROM + list.len() as u32);
            list.push(Lane { stream, open: None });
            list.len() - 1
        });
        let stream = list[lane].stream.clone();
        let progress = Progress::of(encoder);
        core.backend().recordings().open(stream.index());
        let recording = core.begin_recording(&stream);
        list[lane].open = Some(Open { progress: Arc::clone(&progress), recording });
        drop(list);
        if freed {
            core.purge();
        }
        Berth { lane, stream, progress }
    }

    /// The scope of this berth was submitted.
    pub(super) fn submitted(&self, core: &Allocator<Wgpu>, berth: &Berth) {
        let mut list = self.list();
        let lane = &mut list[berth.lane];
        // A sweep may have been faster, and the lane may have its next scope already.
        let own = |open: &Open| Arc::ptr_eq(&open.progress, &berth.progress);
        if lane.open.as_ref().is_some_and(own) {
            lane.close(core);
            drop(list);
            core.purge();
        }
    }

    /// Frees the lanes whose work is over; whether there was one.
    pub(super) fn sweep(&self, core: &Allocator<Wgpu>) -> bool {
        let freed = sweep(&mut self.list(), core);
        if freed {
            core.purge();
        }
        freed
    }
}

fn sweep(list: &mut [Lane], core: &Allocator<Wgpu>) -> bool {
    let mut freed = false;
    for lane in list {
        if lane.open.as_ref().is_some_and(|open| open.progress.is_over()) {
            lane.close(core);
            freed = true;
        }
    }
    freed
}
