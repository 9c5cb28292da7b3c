//! Exports: streams, events and host functions.

use crate::abi::{Answer, Code, Out};
use crate::entry::Driver;
use crate::timeline::NON_BLOCKING;
use crate::work::{HostFunction, Work};

/// All flags that events have.
const EVENT_FLAGS: u32 = 7;

impl Driver {
    fn create_stream(&mut self, stream: &Out<u64>, flags: u32) -> Answer {
        stream.needed()?;
        if flags > NON_BLOCKING {
            return Err(self.misuse(Code::INVALID_VALUE, format!("flags {flags}")));
        }
        let device = self.device;
        stream.set(self.timeline.create(device, flags))
    }

    /// Whether all of a stream's work is done, without waiting.
    fn query(&mut self, goals: &[(u64, u64)]) -> Answer {
        let is_done = goals.iter().all(|(id, until)| self.timeline.has_done(*id, *until));
        if is_done { Ok(()) } else { Err(Code::NOT_READY) }
    }
}

driver! {
    cuStreamCreate(stream: Out<u64>, flags: u32) CONTEXT(flags) |driver| {
        driver.create_stream(&stream, flags)
    }

    cuStreamCreateWithPriority(
        stream: Out<u64>,
        flags: u32,
        priority: i32,
    ) CONTEXT(priority) |driver| {
        driver.create_stream(&stream, flags)
    }

    cuStreamDestroy_v2(stream: u64) CONTEXT(stream) |driver| {
        let id = driver.stream(stream)?;
        driver.destroy_stream(stream, id)
    }

    cuStreamSynchronize(stream: u64) CONTEXT(stream) |driver| {
        let id = driver.stream(stream)?;
        driver.forbid_on_capturing(id)?;
        driver.forbid_in_capture()?;
        driver.finish_stream(id)?;
        driver.trim_pools();
        Ok(())
    }

    cuStreamQuery(stream: u64) CONTEXT(stream) |driver| {
        let id = driver.stream(stream)?;
        driver.forbid_on_capturing(id)?;
        driver.forbid_in_capture()?;
        let goals = driver.timeline.goals(id);
        driver.query(&goals)
    }

    cuStreamWaitEvent(stream: u64, event: u64, flags: u32) CONTEXT(event) |driver| {
        if flags > 1 {
            return Err(driver.misuse(Code::INVALID_VALUE, format!("flags {flags}")));
        }
        let id = driver.stream(stream)?;
        driver.wait_event(id, event)
    }

    cuStreamGetId(stream: u64, id: Out<u64>) CONTEXT(stream) |driver| {
        if !driver.options.stream_ids {
            return Err(Code::NOT_SUPPORTED);
        }
        id.set(driver.stream(stream)?)
    }

    cuStreamGetCtx(stream: u64, context: Out<u64>) CONTEXT(stream) |driver| {
        let id = driver.stream(stream)?;
        context.set(driver.context_of(driver.timeline.streams[&id].device))
    }

    cuStreamGetFlags(stream: u64, flags: Out<u32>) CONTEXT(stream) |driver| {
        let id = driver.stream(stream)?;
        flags.set(driver.timeline.streams[&id].flags)
    }

    cuLaunchHostFunc(stream: u64, function: HostFunction, data: u64) CONTEXT(stream) |driver| {
        let id = driver.own_stream(stream)?;
        driver.submit(id, Work::Host { function, data })
    }

    cuEventCreate(event: Out<u64>, flags: u32) CONTEXT(flags) |driver| {
        event.needed()?;
        if flags > EVENT_FLAGS {
            return Err(driver.misuse(Code::INVALID_VALUE, format!("flags {flags}")));
        }
        event.set(driver.create_event(flags))
    }

    cuEventDestroy_v2(event: u64) CONTEXT(event) |driver| {
        driver.event(event)?;
        driver.timeline.events.remove(&event);
        Ok(())
    }

    cuEventRecord(event: u64, stream: u64) CONTEXT(event) |driver| {
        let id = driver.stream(stream)?;
        driver.record(event, id)
    }

    cuEventQuery(event: u64) CONTEXT(event) |driver| {
        let goal = driver.event_goal(event)?;
        driver.forbid_in_capture()?;
        driver.query(goal.as_slice())
    }

    cuEventSynchronize(event: u64) CONTEXT(event) |driver| {
        let goal = driver.event_goal(event)?;
        driver.forbid_in_capture()?;
        if let Some((id, until)) = goal {
            driver.finish(id, until)?;
        }
        driver.trim_pools();
        Ok(())
    }

    cuEventElapsedTime(milliseconds: Out<f32>, start: u64, end: u64) CONTEXT(start) |driver| {
        milliseconds.set(driver.elapsed(start, end)?)
    }
}
