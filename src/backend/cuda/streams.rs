//! Streams and the marks on them.
//!
//! **Identity.** The driver hands the handle of a destroyed stream out again, so a stream is known
//! by the number that the driver gives it and to no other ever after (`cuStreamGetId`, CUDA 12.0;
//! before that by its handle: forget a stream before it is destroyed). The handle 2 is a stream for
//! each thread, and has a number of ours for each.
//!
//! ```text
//!  record ─▶ an event of the pool, recorded               the usual case
//!       ├──▶ refused: wait for the stream ─▶ Complete      nothing is lost but time
//!       └──▶ the stream is captured and nobody said so ─▶ Open: recorded when the capture ends
//! ```
//!
//! - S1: no event is recorded or waited for on a stream that is captured, and none that is captured
//!   is ever asked: each would break the capture.
//! - S2: an event goes back to the pool when the last mark that it stands for is dropped, so no
//!   driver call is made by a drop, and none is created once a program is warm.
//! - S3: another thread's per-thread stream can only be reached through the legacy stream, which
//!   comes after all work of it.

use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::device::{Device, lost};
use super::driver::{Code, Handle};
use crate::backend::Lost;

/// `CU_STREAM_LEGACY`.
const LEGACY: Handle = 1;
/// `CU_STREAM_PER_THREAD`.
const PER_THREAD: Handle = 2;

/// A stream of a CUDA context. Copying it keeps nothing alive; see
/// [`CudaAllocator::on`](crate::CudaAllocator::on) for one that does.
#[derive(Clone, Copy)]
pub struct CudaStreamId {
    pub(super) handle: Handle,
    id: u64,
}

impl CudaStreamId {
    /// The legacy default stream, the null handle.
    pub(super) const DEFAULT: Self = Self { handle: 0, id: u64::MAX };

    /// The timeline of the CPU, on which nothing is ever under way.
    pub(super) const HOST: Self = Self { handle: 0, id: u64::MAX - 1 };

    /// The number by which the stream is known.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The driver's handle, a `CUstream`.
    pub fn handle(&self) -> usize {
        self.handle
    }

    /// Whether it is the own stream of another thread than the calling one.
    pub(crate) fn is_of_other_thread(&self) -> bool {
        self.handle == PER_THREAD && self.id != thread_number()
    }
}

impl PartialEq for CudaStreamId {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for CudaStreamId {}

impl Hash for CudaStreamId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl fmt::Debug for CudaStreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.handle {
            _ if *self == Self::HOST => f.write_str("the host"),
            0 | LEGACY => f.write_str("default stream"),
            PER_THREAD => write!(f, "per-thread stream {}", self.id),
            handle => write!(f, "stream {} at {handle:#x}", self.id),
        }
    }
}

/// A mark on a stream.
pub struct CudaEvent {
    state: Mutex<State>,
    device: Arc<Device>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// An event of the driver stands for it.
    Recorded(Handle),
    /// The work before it was waited for.
    Complete,
    /// The stream is being captured: its end is marked when the capture has ended.
    Open(CudaStreamId),
}

impl fmt::Debug for CudaEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CudaEvent").field(&self.state()).finish()
    }
}

impl CudaEvent {
    fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        if let State::Recorded(event) = self.state() {
            self.device.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        }
    }
}

impl Device {
    /// Who the stream behind a handle is. Inside an entry.
    pub(super) fn identify(&self, handle: Handle) -> Result<CudaStreamId, Code> {
        if handle == 0 || handle == LEGACY {
            return Ok(CudaStreamId::DEFAULT);
        }
        // One handle for all threads: who asks is what tells these streams apart.
        if handle == PER_THREAD {
            return Ok(CudaStreamId { handle, id: thread_number() });
        }
        let id = self.driver.stream_id(handle)?.unwrap_or(handle as u64);
        Ok(CudaStreamId { handle, id })
    }

    /// The handle by which the calling thread reaches a stream; none for another thread's
    /// per-thread stream.
    fn handle_here(&self, stream: CudaStreamId) -> Result<Option<Handle>, Code> {
        let reachable = stream.handle != PER_THREAD || self.identify(PER_THREAD)? == stream;
        Ok(reachable.then_some(stream.handle))
    }

    /// Marks the end of a stream. Inside an entry.
    pub(super) fn record(self: &Arc<Self>, stream: CudaStreamId) -> Result<CudaEvent, Lost> {
        let state = self.mark(stream)?;
        Ok(CudaEvent { state: Mutex::new(state), device: Arc::clone(self) })
    }

    fn mark(&self, stream: CudaStreamId) -> Result<State, Lost> {
        if stream == CudaStreamId::HOST {
            return Ok(State::Complete);
        }
        let outcome = self.handle_here(stream).and_then(|handle| {
            let handle = handle.unwrap_or(LEGACY); // S3
            match self.is_capturing(handle)? {
                true => Ok(State::Open(stream)),
                false => self.record_event(handle).map(State::Recorded),
            }
        });
        match outcome {
            Ok(state) => Ok(state),
            Err(code) if code.is_loss() => Err(lost("cuEventRecord", code)),
            Err(_) => {
                let handle = if stream.handle == PER_THREAD { LEGACY } else { stream.handle };
                self.insist(|| self.driver.synchronize_stream(handle)).map(|()| State::Complete)
            }
        }
    }

    /// Whether the stream is captured, or may not be used before others have ended their capture.
    /// Asked twice: not to know would be to wait for the stream, which breaks its capture (S1).
    pub(super) fn is_capturing(&self, stream: Handle) -> Result<bool, Code> {
        let asked = self.driver.is_capturing(stream);
        match asked.or_else(|code| match code {
            Code::CAPTURE_IMPLICIT => Err(code),
            _ => self.driver.is_capturing(stream),
        }) {
            // The default stream, while one that waits for it is captured.
            Err(Code::CAPTURE_IMPLICIT) => Ok(true),
            answer => answer,
        }
    }

    fn record_event(&self, stream: Handle) -> Result<Handle, Code> {
        let idle = self.events.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let event = idle.map_or_else(|| self.driver.create_event(), Ok)?;
        match self.driver.record(event, stream) {
            Ok(()) => Ok(event),
            Err(code) => {
                self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                Err(code)
            }
        }
    }

    /// Waits as `wait` says, or for everything; if the driver refuses that too, nothing can be
    /// known any more.
    fn insist(&self, wait: impl Fn() -> Result<(), Code>) -> Result<(), Lost> {
        let outcome = wait().or_else(|_| wait()).or_else(|_| self.quiesce());
        outcome.map_err(|code| lost("waiting for the device", code))
    }

    /// The state of a mark, which is set now if its stream's capture has ended.
    fn settle(&self, event: &CudaEvent) -> Result<State, Lost> {
        let mut state = event.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Open(stream) = *state {
            *state = self.mark(stream)?;
        }
        Ok(*state)
    }

    pub(super) fn is_event_complete(&self, event: &CudaEvent) -> Result<bool, Lost> {
        match self.settle(event)? {
            State::Complete => Ok(true),
            State::Open(_) => Ok(false),
            State::Recorded(handle) => match self.driver.is_complete(handle) {
                Err(code) if code.is_loss() => Err(lost("cuEventQuery", code)),
                // Not known to be complete is not complete.
                outcome => Ok(outcome.unwrap_or(false)),
            },
        }
    }

    /// Whether the mark can be waited for, or tells why not when that is tried.
    pub(super) fn is_waitable(&self, event: &CudaEvent) -> bool {
        if !matches!(event.state(), State::Open(_)) {
            return true;
        }
        let settle = |_entry| self.settle(event);
        !matches!(self.enter().map(settle), Ok(Ok(State::Open(_))))
    }

    pub(super) fn wait_event(&self, event: &CudaEvent) -> Result<(), Lost> {
        match self.settle(event)? {
            State::Complete => Ok(()),
            State::Open(stream) => Err(Lost::new(format!(
                "{stream:?} is captured, and its work was waited for: announce captures with \
                 CudaAllocator::begin_capture"
            ))),
            State::Recorded(handle) => match self.driver.synchronize_event(handle) {
                Ok(()) => Ok(()),
                Err(code) if code.is_loss() => Err(lost("cuEventSynchronize", code)),
                Err(_) => self.insist(|| self.driver.synchronize_event(handle)),
            },
        }
    }

    /// Whether all that was captured on `earlier` comes before what `later` captures next: every
    /// node at the end of the one is an ancestor of those at the end of the other. O(nodes).
    pub(super) fn is_joined(
        &self,
        earlier: CudaStreamId,
        later: CudaStreamId,
    ) -> Result<bool, Code> {
        let Some(earlier) = self.handle_here(earlier)? else { return Ok(false) };
        let Some(later) = self.handle_here(later)? else { return Ok(false) };
        let ends = |stream| self.driver.capture_ends(stream);
        let (Some((first, sought)), Some((second, ends))) = (ends(earlier)?, ends(later)?) else {
            return Ok(false);
        };
        if first != second {
            return Ok(false);
        }
        let mut sought: HashSet<Handle> = sought.into_iter().collect();
        let mut seen: HashSet<Handle> = ends.iter().copied().collect();
        let mut nodes = ends;
        while let Some(node) = nodes.pop() {
            sought.remove(&node);
            if sought.is_empty() {
                break;
            }
            let before = self.driver.node_dependencies(node)?;
            nodes.extend(before.into_iter().filter(|&node| seen.insert(node)));
        }
        Ok(sought.is_empty())
    }

    /// Makes later work on `stream` wait for the mark.
    pub(super) fn order(&self, stream: CudaStreamId, event: &CudaEvent) -> Result<(), Lost> {
        let State::Recorded(mark) = self.settle(event)? else { return self.wait_event(event) };
        let ordered = self.handle_here(stream).and_then(|handle| match handle {
            Some(handle) if !self.is_capturing(handle)? => {
                self.driver.stream_wait(handle, mark).map(|()| true)
            }
            _ => Ok(false),
        });
        match ordered {
            Ok(true) => Ok(()),
            Err(code) if code.is_loss() => Err(lost("cuStreamWaitEvent", code)),
            // The host waits instead of the stream.
            Ok(false) | Err(_) => self.wait_event(event),
        }
    }
}

/// A number for the calling thread's own stream: no other thread ever has it, nor does the driver
/// give such numbers.
fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1 << 63);
    thread_local! {
        static NUMBER: u64 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}
