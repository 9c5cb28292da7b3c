//! Streams, and the order in which work is done.
//!
//! ```text
//!   stream A   [1 done][2 done] 3:copy  4:record e         issued 4, done 2
//!   stream B   [1 done] 2:wait (A,4)  3:kernel             issued 3, done 1: blocked by A
//!   legacy      1:memset (A,4) (B,3)                       waits for blocking streams, they for it
//! ```
//!
//! Asynchronous, work stays queued until the test moves it on or the program waits; otherwise each
//! submission is followed by doing it.
//!
//! T1: `queue.len() == issued - done`, one more while a host function of the stream runs.
//! T2: what work waits for was submitted before it, so waiting always ends.
//! T3: identities are never given twice; handles of streams are, as soon as they are free, so that
//! a program that takes a handle for an identity is found out.

use std::collections::{BTreeMap, VecDeque};

use crate::abi::{Answer, Code};
use crate::capture::Capture;
use crate::entry::Driver;
use crate::events::Event;
use crate::state::State;
use crate::thread;
use crate::work::Work;

/// `CU_STREAM_NON_BLOCKING`.
pub(crate) const NON_BLOCKING: u32 = 1;

/// `CU_STREAM_PER_THREAD`; 0 and 1 are the legacy default stream.
const PER_THREAD: u64 = 2;

#[derive(Debug, Default)]
pub(crate) struct Timeline {
    pub(crate) is_asynchronous: bool,
    /// By identity.
    pub(crate) streams: BTreeMap<u64, Stream>,
    handles: BTreeMap<u64, u64>,
    free_handles: Vec<u64>,
    /// Of each device.
    legacy: Vec<u64>,
    /// By thread and device.
    per_thread: BTreeMap<(u64, usize), u64>,
    pub(crate) events: BTreeMap<u64, Event>,
    pub(crate) captures: BTreeMap<u64, Capture>,
    identities: u64,
    stream_handles: u64,
    submitted: u64,
    pub(crate) executed: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) device: usize,
    pub(crate) flags: u32,
    pub(crate) is_legacy: bool,
    pub(crate) capture: Option<u64>,
    queue: VecDeque<Queued>,
    pub(crate) issued: u64,
    done: u64,
    is_running_host_function: bool,
    is_destroyed: bool,
}

#[derive(Debug)]
struct Queued {
    work: Work,
    /// Streams and how far they have to be.
    after: Vec<(u64, u64)>,
    number: u64,
}

/// What a stream needs in order to get somewhere.
#[derive(Debug)]
enum Next {
    Done,
    Ready,
    After(u64, u64),
    HostFunction,
}

impl Timeline {
    /// An empty one that goes on counting where another one stopped.
    pub(crate) fn after(other: &Self, is_asynchronous: bool) -> Self {
        let (identities, submitted) = (other.identities, other.submitted);
        Self { is_asynchronous, identities, submitted, ..Self::default() }
    }

    pub(crate) fn new_identity(&mut self) -> u64 {
        self.identities += 1;
        self.identities
    }

    pub(crate) fn add_legacy(&mut self, device: usize) {
        let id = self.new_identity();
        self.streams.insert(id, Stream { device, is_legacy: true, ..Stream::default() });
        self.legacy.push(id);
    }

    /// A new stream: its handle.
    pub(crate) fn create(&mut self, device: usize, flags: u32) -> u64 {
        let id = self.new_identity();
        self.streams.insert(id, Stream { device, flags, ..Stream::default() });
        let handle = self.free_handles.pop().unwrap_or_else(|| {
            self.stream_handles += 1;
            0x0500_0000_0000 + self.stream_handles * 16
        });
        self.handles.insert(handle, id);
        handle
    }

    /// Takes the handle; the stream itself goes when its work is done.
    pub(crate) fn destroy(&mut self, handle: u64) {
        let Some(id) = self.handles.remove(&handle) else { return };
        self.free_handles.push(handle);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.is_destroyed = true;
        }
        self.forget_if_over(id);
    }

    fn forget_if_over(&mut self, id: u64) {
        let is_over = |stream: &Stream| {
            stream.is_destroyed && stream.queue.is_empty() && !stream.is_running_host_function
        };
        if self.streams.get(&id).is_some_and(is_over) {
            self.streams.remove(&id);
        }
    }

    pub(crate) fn stream_count(&self) -> u64 {
        self.handles.len() as u64
    }

    pub(crate) fn queued_count(&self) -> u64 {
        self.streams.values().map(|stream| stream.queue.len() as u64).sum()
    }

    pub(crate) fn is_capturing(&self) -> bool {
        !self.captures.is_empty()
    }

    /// Whether a stream has got so far. One that is gone has done everything.
    pub(crate) fn has_done(&self, id: u64, until: u64) -> bool {
        self.streams.get(&id).is_none_or(|stream| stream.done >= until)
    }

    /// What a synchronisation with a stream waits for: for the legacy one, all blocking ones too.
    pub(crate) fn goals(&self, id: u64) -> Vec<(u64, u64)> {
        let Some(stream) = self.streams.get(&id) else { return Vec::new() };
        let mut goals = vec![(id, stream.issued)];
        if stream.is_legacy {
            goals.extend(self.blocking(stream.device));
        }
        goals
    }

    fn blocking(&self, device: usize) -> impl Iterator<Item = (u64, u64)> {
        let is_blocking = move |stream: &Stream| {
            stream.device == device && !stream.is_legacy && stream.flags & NON_BLOCKING == 0
        };
        let streams = self.streams.iter().filter(move |(_, stream)| is_blocking(stream));
        streams.map(|(id, stream)| (*id, stream.issued))
    }

    /// A blocking stream of the device that captures.
    pub(crate) fn blocking_capture(&self, device: usize) -> Option<u64> {
        self.blocking(device).find_map(|(id, _)| self.streams[&id].capture)
    }

    /// The rule of the legacy default stream: it waits for the blocking ones, and they for it.
    fn implied(&self, id: u64) -> Vec<(u64, u64)> {
        let stream = &self.streams[&id];
        if stream.is_legacy {
            let waits = |(id, until): &(u64, u64)| !self.has_done(*id, *until);
            return self.blocking(stream.device).filter(waits).collect();
        }
        let legacy = self.legacy[stream.device];
        let until = self.streams[&legacy].issued;
        let waits = stream.flags & NON_BLOCKING == 0 && !self.has_done(legacy, until);
        if waits { vec![(legacy, until)] } else { Vec::new() }
    }

    /// Puts work at the end of a stream: how far the stream has to be when it is done.
    fn push(&mut self, id: u64, work: Work, after: Option<(u64, u64)>) -> u64 {
        let mut waits = self.implied(id);
        waits.extend(after);
        self.submitted += 1;
        let queued = Queued { work, after: waits, number: self.submitted };
        let stream = self.streams.get_mut(&id).expect("T3: resolved under this lock");
        stream.queue.push_back(queued);
        stream.issued += 1;
        stream.issued
    }

    fn next(&self, id: u64, until: u64) -> Next {
        if self.has_done(id, until) {
            return Next::Done;
        }
        let stream = &self.streams[&id];
        if stream.is_running_host_function {
            return Next::HostFunction;
        }
        let Some(head) = stream.queue.front() else { return Next::Done };
        let blocked = head.after.iter().find(|(id, until)| !self.has_done(*id, *until));
        blocked.map_or(Next::Ready, |&(id, until)| Next::After(id, until))
    }

    /// Queued work that touches a range and was submitted before `before`, in words.
    pub(crate) fn pending(&self, start: u64, len: u64, before: Option<u64>) -> Option<String> {
        let overlaps = |&(at, room): &(u64, u64)| at < start + len && start < at + room;
        for (id, stream) in &self.streams {
            for queued in &stream.queue {
                let is_early = before.is_none_or(|before| queued.number < before);
                if is_early && queued.work.touches().iter().any(overlaps) {
                    return Some(format!("{} queued in stream {id}", queued.work.name()));
                }
            }
        }
        None
    }
}

/// Handles.
impl Driver {
    /// The identity of a stream that the program names.
    pub(crate) fn stream(&mut self, handle: u64) -> Answer<u64> {
        let device = self.device;
        match handle {
            0 | 1 => Ok(self.timeline.legacy[device]),
            PER_THREAD => {
                let number = thread::with(self.epoch, |thread| thread.number);
                if let Some(id) = self.timeline.per_thread.get(&(number, device)) {
                    return Ok(*id);
                }
                let id = self.timeline.new_identity();
                self.timeline.streams.insert(id, Stream { device, ..Stream::default() });
                self.timeline.per_thread.insert((number, device), id);
                Ok(id)
            }
            _ => match self.timeline.handles.get(&handle) {
                Some(id) => Ok(*id),
                None => {
                    let text = format!("{handle:#x} is no stream, or was destroyed");
                    Err(self.misuse(Code::INVALID_HANDLE, text))
                }
            },
        }
    }

    /// The same for work: the stream has to belong to the current context.
    pub(crate) fn own_stream(&mut self, handle: u64) -> Answer<u64> {
        let id = self.stream(handle)?;
        if self.timeline.streams[&id].device != self.device {
            let text = "a stream of another device than the current one";
            return Err(self.misuse(Code::INVALID_HANDLE, text));
        }
        Ok(id)
    }
}

/// Doing work.
impl Driver {
    /// Gives a stream work, or its capture.
    pub(crate) fn submit(&mut self, id: u64, work: Work) -> Answer {
        self.submit_after(id, work, None)
    }

    /// The same for work that waits for another stream to have got so far.
    pub(crate) fn submit_after(
        &mut self,
        id: u64,
        work: Work,
        after: Option<(u64, u64)>,
    ) -> Answer {
        if let Some(capture) = self.timeline.streams[&id].capture {
            return self.capture_work(id, capture, work);
        }
        self.check_legacy(id)?;
        let until = self.timeline.push(id, work, after);
        if self.timeline.is_asynchronous { Ok(()) } else { self.finish(id, until) }
    }

    /// Work in the legacy stream would wait for a capture, if a blocking stream captures.
    pub(crate) fn check_legacy(&mut self, id: u64) -> Answer {
        let Stream { is_legacy, device, .. } = self.timeline.streams[&id];
        match self.timeline.blocking_capture(device) {
            Some(capture) if is_legacy => {
                self.break_capture(capture);
                let text = "the legacy stream is used while a blocking stream captures";
                Err(self.misuse(Code::CAPTURE_IMPLICIT, text))
            }
            _ => Ok(()),
        }
    }

    /// Does all that is needed for a stream to get so far.
    pub(crate) fn finish(&mut self, id: u64, until: u64) -> Answer {
        let mut goals = vec![(id, until)];
        let mut outcome = Ok(());
        while let Some(&(id, until)) = goals.last() {
            match self.timeline.next(id, until) {
                Next::Done => drop(goals.pop()),
                Next::Ready => outcome = outcome.and(self.step(id)),
                Next::After(id, until) => goals.push((id, until)),
                Next::HostFunction => self.wait(),
            }
        }
        outcome
    }

    /// Everything that any stream of a device has been given.
    pub(crate) fn finish_device(&mut self, device: usize) -> Answer {
        let of_device = |(_, stream): &(&u64, &Stream)| stream.device == device;
        let streams = self.timeline.streams.iter().filter(of_device);
        let goals: Vec<_> = streams.map(|(id, stream)| (*id, stream.issued)).collect();
        self.finish_all(goals)
    }

    /// All of them, even if one ends badly; then the first error.
    pub(crate) fn finish_all(&mut self, goals: Vec<(u64, u64)>) -> Answer {
        let mut outcome = Ok(());
        for (id, until) in goals {
            outcome = outcome.and(self.finish(id, until));
        }
        outcome
    }

    /// Up to `count` operations of a stream, as far as nothing blocks it: how many they were.
    pub(crate) fn advance(&mut self, id: u64, count: u64) -> u64 {
        let mut done = 0;
        while done < count && matches!(self.timeline.next(id, u64::MAX), Next::Ready) {
            // A violation is in the list already; the test asks only how many were done.
            let _ = self.step(id);
            done += 1;
        }
        done
    }

    /// The first operation of a stream, which is ready. After a loss nothing is done any more.
    fn step(&mut self, id: u64) -> Answer {
        let timeline = &mut self.timeline;
        let stream = timeline.streams.get_mut(&id).expect("ready streams are there");
        let Queued { work, number, .. } =
            stream.queue.pop_front().expect("ready streams have work");
        let device = stream.device;
        timeline.executed += 1;
        let outcome = if self.faults.is_lost() {
            Ok(())
        } else if let Work::Host { function, data } = work {
            self.run_host_function(id, move || {
                // SAFETY: the program passed a function and what it is to be called with.
                unsafe { function(data as *mut _) }
            });
            Ok(())
        } else {
            self.perform(device, &work, number)
        };
        if let Some(stream) = self.timeline.streams.get_mut(&id) {
            stream.done += 1;
        }
        self.timeline.forget_if_over(id);
        outcome.map_err(|why| {
            self.faults.lose();
            self.misuse(Code::ILLEGAL_ADDRESS, format!("in stream {id}, {}: {why}", work.name()))
        })
    }

    fn run_host_function(&mut self, id: u64, run: impl FnOnce()) {
        self.set_running(id, true);
        self.unlocked(run);
        self.set_running(id, false);
    }

    fn set_running(&mut self, id: u64, is_running: bool) {
        if let Some(stream) = self.timeline.streams.get_mut(&id) {
            stream.is_running_host_function = is_running;
        }
    }
}

impl State {
    /// Destroying a stream that captures ends the capture badly.
    pub(crate) fn destroy_stream(&mut self, handle: u64, id: u64) -> Answer {
        if let Some(capture) = self.timeline.streams[&id].capture {
            self.break_capture(capture);
            return Err(self.misuse(Code::CAPTURE_UNSUPPORTED, "the stream is capturing"));
        }
        if handle <= PER_THREAD {
            return Err(self.misuse(Code::INVALID_HANDLE, "a default stream stays"));
        }
        self.timeline.destroy(handle);
        Ok(())
    }
}
