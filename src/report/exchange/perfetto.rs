//! The history as a trace of events: what ui.perfetto.dev and chrome://tracing open.
//!
//! ```text
//!   process = device    counter   allocated, pending, reserved          after every event
//!     thread = stream   async     a block from alloc to free_requested
//!                       instant   segments and pages that come and go, failures, remarks
//! ```

use std::io::{self, Write};

use super::json::write_text;
use super::out::Out;
use crate::report::format_bytes;
use crate::report::history::{Action, Event, call_site};
use crate::report::snapshot::Snapshot;

/// Bytes at one time. They may be anything in a foreign file, so they are wide.
#[derive(Debug, Clone, Copy, Default)]
struct Level {
    allocated: i128,
    pending: i128,
    reserved: i128,
}

impl Level {
    fn add(&mut self, event: &Event) {
        let size = i128::from(event.size);
        match event.action {
            Action::Alloc => self.allocated += size,
            Action::FreeRequested => {
                self.allocated -= size;
                self.pending += size;
            }
            Action::FreeCompleted => self.pending -= size,
            Action::SegmentAlloc | Action::SegmentMap => self.reserved += size,
            Action::SegmentFree | Action::SegmentUnmap => self.reserved -= size,
            Action::Snapshot | Action::Oom => {}
        }
    }

    /// Before the first event: what there is at the end, less what the events brought.
    fn before(snapshot: &Snapshot) -> Self {
        let mut change = Level::default();
        snapshot.history.iter().for_each(|event| change.add(event));
        let mut end = Level::default();
        for segment in &snapshot.segments {
            end.reserved += i128::from(segment.total_size);
            for block in &segment.blocks {
                use crate::report::snapshot::BlockState;
                let size = i128::from(block.requested_size);
                match block.state {
                    BlockState::Allocated => end.allocated += size,
                    BlockState::Pending => end.pending += size,
                    BlockState::Free | BlockState::Growing => {}
                }
            }
        }
        Level {
            allocated: (end.allocated - change.allocated).max(0),
            pending: (end.pending - change.pending).max(0),
            reserved: (end.reserved - change.reserved).max(0),
        }
    }
}

impl Snapshot {
    /// Writes the history as JSON in the trace event format. Times are in microseconds since the
    /// oldest event.
    ///
    /// # Errors
    /// A failure of `output`.
    pub fn write_perfetto(&self, output: impl Write) -> io::Result<()> {
        let mut out = Out::new(output);
        let device = self.device;
        out.format(format_args!(
            "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n{{\"ph\":\"M\",\"pid\":{device},\
             \"name\":\"process_name\",\"args\":{{\"name\":"
        ));
        write_text(&mut out, &format!("device {device} {}", self.device_name));
        out.bytes(b"}}");
        let start = self.history.first().map_or(0, |event| event.time_us);
        let mut level = Level::before(self);
        for event in &self.history {
            level.add(event);
            let ts = event.time_us.saturating_sub(start);
            write_event(&mut out, device, ts, event);
            let Level { allocated, pending, reserved } = level;
            out.format(format_args!(
                ",\n{{\"ph\":\"C\",\"name\":\"memory\",\"pid\":{device},\"ts\":{ts},\"args\":\
                 {{\"allocated\":{allocated},\"pending\":{pending},\"reserved\":{reserved}}}}}"
            ));
        }
        for annotation in &self.annotations {
            let ts = annotation.time_us.saturating_sub(start);
            out.format(format_args!(
                ",\n{{\"ph\":\"i\",\"s\":\"p\",\"cat\":\"remark\",\"pid\":{device},\"ts\":{ts},\
                 \"name\":"
            ));
            write_text(&mut out, &annotation.text);
            out.byte(b'}');
        }
        out.bytes(b"\n]}\n");
        out.finish()
    }
}

fn write_event<W: Write>(out: &mut Out<W>, device: u32, ts: u64, event: &Event) {
    let Event { address, size, stream, .. } = *event;
    let place = format_args!("\"pid\":{device},\"tid\":{stream},\"ts\":{ts}");
    let phase = match event.action {
        Action::Alloc => "b",
        Action::FreeRequested => "e",
        Action::FreeCompleted | Action::Snapshot => return,
        action => {
            let name = action.name();
            return out.format(format_args!(
                ",\n{{\"ph\":\"i\",\"s\":\"t\",\"cat\":\"segment\",{place},\"name\":\"{name}\",\
                 \"args\":{{\"addr\":\"{address:#x}\",\"bytes\":{size}}}}}"
            ));
        }
    };
    out.format(format_args!(
        ",\n{{\"ph\":\"{phase}\",\"cat\":\"alloc\",\"id\":\"{address:#x}\",{place},\"name\":"
    ));
    let tag = event.tag.as_deref().unwrap_or("");
    write_text(out, format!("{tag} {}", format_bytes(size)).trim_start());
    out.format(format_args!(",\"args\":{{\"bytes\":{size},\"by\":"));
    let by = call_site(&event.frames).map_or_else(String::new, |at| event.frames[at].to_string());
    write_text(out, &by);
    out.bytes(b"}}");
}
