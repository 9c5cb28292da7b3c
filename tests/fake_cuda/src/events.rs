//! Events: marks in streams that others can wait for.
//!
//! ```text
//!   Fresh ── record ──▶ Recorded (stream, until) ── the stream has done so much ──▶ with a time
//!     │                     ▲         │
//!     │  record in a        │         │ wait: the waiting stream gets (stream, until), and needs
//!     └── capture ──▶ Captured        ▼ the event no more
//! ```
//!
//! N1: only the last record counts; an earlier one that is executed later changes nothing.
//! N2: an event may be destroyed or recorded anew while streams wait for it.

use crate::abi::{Answer, Code};
use crate::capture::Clock;
use crate::entry::Driver;
use crate::timeline::Timeline;
use crate::work::Work;

/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: u32 = 2;

#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) device: usize,
    pub(crate) flags: u32,
    pub(crate) state: EventState,
    /// How often it was recorded.
    records: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum EventState {
    /// Never recorded: counts as complete.
    Fresh,
    /// Complete once the stream has done so much; with the time at which it was.
    Recorded { stream: u64, until: u64, time: Option<u64> },
    /// Recorded in a capture: how far that was.
    Captured { capture: u64, clock: Clock },
}

impl Timeline {
    /// Notes that a record of an event has been executed, unless the event is gone or was recorded
    /// anew.
    pub(crate) fn reached(&mut self, event: u64, record: u64) {
        let now = self.executed;
        if let Some(event) = self.events.get_mut(&event)
            && event.records == record
            && let EventState::Recorded { time, .. } = &mut event.state
        {
            *time = Some(now);
        }
    }
}

impl Driver {
    pub(crate) fn create_event(&mut self, flags: u32) -> u64 {
        let handle = self.new_handle();
        let event = Event { device: self.device, flags, state: EventState::Fresh, records: 0 };
        self.timeline.events.insert(handle, event);
        handle
    }

    pub(crate) fn event(&mut self, handle: u64) -> Answer<&mut Event> {
        if !self.timeline.events.contains_key(&handle) {
            let text = format!("{handle:#x} is no event, or was destroyed");
            return Err(self.misuse(Code::INVALID_HANDLE, text));
        }
        self.timeline.events.get_mut(&handle).ok_or(Code::INVALID_HANDLE)
    }

    pub(crate) fn record(&mut self, handle: u64, id: u64) -> Answer {
        let device = self.timeline.streams[&id].device;
        if self.event(handle)?.device != device {
            let text = "event and stream belong to different devices";
            return Err(self.misuse(Code::INVALID_HANDLE, text));
        }
        if let Some(capture) = self.timeline.streams[&id].capture {
            let clock = self.capture_clock(id, capture)?;
            self.event(handle)?.state = EventState::Captured { capture, clock };
            return Ok(());
        }
        self.check_legacy(id)?;
        let until = self.timeline.streams[&id].issued + 1;
        let event = self.event(handle)?;
        event.records += 1;
        let record = event.records;
        event.state = EventState::Recorded { stream: id, until, time: None };
        self.submit(id, Work::Record { event: handle, record })
    }

    /// Makes a stream wait for an event, or join its capture.
    pub(crate) fn wait_event(&mut self, id: u64, handle: u64) -> Answer {
        let state = self.event(handle)?.state.clone();
        match (state, self.timeline.streams[&id].capture) {
            (EventState::Captured { capture, clock }, _) => self.join_capture(id, capture, clock),
            (EventState::Fresh, _) => Ok(()),
            (EventState::Recorded { .. }, Some(capture)) => {
                self.break_capture(capture);
                let text = "a capturing stream is to wait for what is not captured";
                Err(self.misuse(Code::CAPTURE_ISOLATION, text))
            }
            (EventState::Recorded { stream, until, .. }, None) => {
                self.submit_after(id, Work::Wait, Some((stream, until)))
            }
        }
    }

    /// Where an event stands: the stream and how far it has to be, `None` if never recorded.
    pub(crate) fn event_goal(&mut self, handle: u64) -> Answer<Option<(u64, u64)>> {
        match self.event(handle)?.state {
            EventState::Fresh => Ok(None),
            EventState::Recorded { stream, until, .. } => Ok(Some((stream, until))),
            EventState::Captured { capture, .. } => {
                self.break_capture(capture);
                Err(self.misuse(Code::CAPTURED_EVENT, "the event was recorded in a capture"))
            }
        }
    }

    /// Milliseconds between two events: each operation takes one microsecond.
    pub(crate) fn elapsed(&mut self, start: u64, end: u64) -> Answer<f32> {
        let mut times = [0; 2];
        for (time, handle) in times.iter_mut().zip([start, end]) {
            self.event_goal(handle)?;
            let Event { flags, state, .. } = self.event(handle)?;
            *time = match state {
                _ if *flags & DISABLE_TIMING != 0 => return Err(Code::INVALID_HANDLE),
                EventState::Recorded { time: Some(time), .. } => *time,
                EventState::Recorded { time: None, .. } => return Err(Code::NOT_READY),
                _ => return Err(Code::INVALID_HANDLE),
            };
        }
        Ok((times[1] as f32 - times[0] as f32) / 1000.0)
    }
}
