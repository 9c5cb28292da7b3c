//! The log of RMM's logging adaptor, read and written: what RAPIDS programs leave.
//!
//! ```text
//!   Thread,Time,Action,Pointer,Size,Stream
//!   4137,12:00:00.000123,allocate,0x7f0000000000,1024,0x0
//!   4137,12:00:00.000456,free,0x7f0000000000,1024,0x0
//!   4137,12:00:00.000789,allocate failure,(nil),99999999999,0x0
//! ```
//!
//! Pointers come again and again, so each allocation gets an id of its own; streams are numbered as
//! they appear, 0 stays 0. A failure becomes the marker `allocate failure SIZE`. Threads and times
//! have no place in a trace; what is written has thread 0, and a microsecond an event.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{BufRead, BufWriter, Read, Write};

use super::check::Checker;
use super::{EVENTS_MAX, Event, Fault, LINE_MAX, Trace, TraceError, gz};
use crate::units::{Bytes, GRANULE};

/// The first line.
const HEADER: &str = "Thread,Time,Action,Pointer,Size,Stream";

/// Where the pointers that are written begin.
const BASE: u64 = 0x7f00_0000_0000;

impl Trace {
    /// Reads a log of RMM, gzip'd or not.
    ///
    /// # Errors
    /// The first line that is not what RMM writes, a free of what is not live, a pointer that is
    /// handed out twice, a failure of `input`.
    ///
    /// # Examples
    /// ```
    /// use aquifer::trace::{Event, Trace};
    ///
    /// let log = "Thread,Time,Action,Pointer,Size,Stream\n\
    ///            7,12:00:00.000123,allocate,0x7f00,1024,0x0\n";
    /// let trace = Trace::read_rmm(log.as_bytes())?;
    /// assert_eq!(trace.events, [Event::Allocate { id: 0, size: 1024, stream: 0 }]);
    /// # Ok::<(), aquifer::trace::TraceError>(())
    /// ```
    pub fn read_rmm(input: impl Read) -> Result<Self, TraceError> {
        let mut input = gz::unpack(input)?;
        let mut log = Log::default();
        let (mut line, mut number) = (Vec::new(), 0);
        loop {
            number += 1;
            line.clear();
            let limit = LINE_MAX as u64 + 2;
            let read = input.by_ref().take(limit).read_until(b'\n', &mut line);
            let read = read.map_err(|error| Fault::from(error).at(number))?;
            if read == 0 {
                break;
            }
            log.line(number, &line).map_err(|fault| fault.at(number))?;
        }
        if number == 1 {
            return Err(Fault::NotRmm.at(1));
        }
        let headers = vec![("converted-from".to_owned(), "an RMM log".to_owned())];
        Ok(Trace { headers, events: log.events })
    }

    /// Writes the trace as RMM would have logged it. Uses on other streams and markers, but those
    /// of failures, have no words there and are left out.
    ///
    /// # Errors
    /// A failure of `output`.
    pub fn write_rmm(&self, output: impl Write) -> Result<(), TraceError> {
        let mut output = BufWriter::new(output);
        let mut written = Log::write(self, &mut output);
        if written.is_ok() {
            written = output.flush();
        }
        written.map_err(|error| Fault::Io(error).at(0))
    }
}

/// A log on its way to a trace.
#[derive(Default)]
struct Log {
    events: Vec<Event>,
    checker: Checker,
    /// Ids by pointer; `None` for an allocation of 0 bytes.
    live: HashMap<u64, Option<u64>>,
    streams: HashMap<u64, u32>,
    next: u64,
}

impl Log {
    fn line(&mut self, number: u64, line: &[u8]) -> Result<(), Fault> {
        if line.len() > LINE_MAX {
            return Err(Fault::LineTooLong);
        }
        // A line without an end was cut while it was written.
        let line = line.strip_suffix(b"\n").ok_or(Fault::CutShort)?;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = std::str::from_utf8(line).map_err(|_| Fault::NotUtf8)?;
        if number == 1 {
            return if line == HEADER { Ok(()) } else { Err(Fault::NotRmm) };
        }
        let mut fields = line.split(',');
        let mut field = |name| fields.next().ok_or(Fault::MissingField { field: name });
        let (_, _) = (field("Thread")?, field("Time")?);
        let (action, pointer) = (field("Action")?, field("Pointer")?);
        let (size, stream) = (field("Size")?, field("Stream")?);
        if fields.next().is_some() {
            return Err(Fault::ExtraField);
        }
        let digits = size.bytes().all(|byte| byte.is_ascii_digit()) && !size.is_empty();
        let not_decimal = Fault::NotDecimal { field: "Size" };
        let size: Bytes = size.parse().ok().filter(|_| digits).ok_or(not_decimal)?;
        let (pointer, stream) = (handle(pointer, "Pointer")?, handle(stream, "Stream")?);
        match action {
            "allocate" => self.allocate(pointer, size, stream),
            "free" => match self.live.remove(&pointer) {
                Some(Some(id)) => self.push(Event::Free { id }),
                // RMM frees nothing at no place.
                Some(None) => Ok(()),
                None if pointer == 0 => Ok(()),
                None => Err(Fault::UnknownPointer { pointer }),
            },
            "allocate failure" => self.push(Event::Marker(format!("allocate failure {size}"))),
            _ => Err(Fault::UnknownTag { tag: action.chars().take(16).collect() }),
        }
    }

    fn allocate(&mut self, pointer: u64, size: Bytes, stream: u64) -> Result<(), Fault> {
        let id = (size > 0).then_some(self.next);
        if self.live.insert(pointer, id).is_some_and(|before| before.is_some()) {
            return Err(Fault::LivePointer { pointer });
        }
        let Some(id) = id else { return Ok(()) };
        self.next += 1;
        let known = self.streams.len() as u32 + u32::from(!self.streams.contains_key(&0));
        let stream = match stream {
            0 => *self.streams.entry(0).or_insert(0),
            _ => *self.streams.entry(stream).or_insert(known),
        };
        self.push(Event::Allocate { id, size, stream })
    }

    fn push(&mut self, event: Event) -> Result<(), Fault> {
        if self.events.len() == EVENTS_MAX {
            return Err(Fault::TraceTooLarge);
        }
        self.checker.apply(&event)?;
        self.events.push(event);
        Ok(())
    }

    fn write(trace: &Trace, output: &mut impl Write) -> std::io::Result<()> {
        writeln!(output, "{HEADER}")?;
        let mut live: HashMap<u64, (u64, Bytes, u32)> = HashMap::new();
        let mut vacant: Vec<u64> = Vec::new();
        let mut slots = 0;
        for (index, event) in trace.events.iter().enumerate() {
            let second = index / 1_000_000;
            let clock = (second / 3600 % 24, second / 60 % 60, second % 60, index % 1_000_000);
            let time = format!("{:02}:{:02}:{:02}.{:06}", clock.0, clock.1, clock.2, clock.3);
            match event {
                Event::Allocate { id, size, stream } => {
                    let slot = vacant.pop().unwrap_or_else(|| {
                        slots += 1;
                        slots - 1
                    });
                    live.insert(*id, (slot, *size, *stream));
                    let pointer = BASE + slot * GRANULE;
                    writeln!(output, "0,{time},allocate,{pointer:#x},{size},{stream:#x}")?;
                }
                Event::Free { id } => {
                    let Some((slot, size, stream)) = live.remove(id) else { continue };
                    vacant.push(slot);
                    let pointer = BASE + slot * GRANULE;
                    writeln!(output, "0,{time},free,{pointer:#x},{size},{stream:#x}")?;
                }
                Event::Marker(label) => {
                    if let Some(size) = label.strip_prefix("allocate failure ") {
                        writeln!(output, "0,{time},allocate failure,(nil),{size},0x0")?;
                    }
                }
                Event::Use { .. } => {}
            }
        }
        Ok(())
    }
}

/// A pointer or a stream: `0x7f00`, `0`, or what glibc prints for none.
fn handle(text: &str, field: &'static str) -> Result<u64, Fault> {
    if text == "(nil)" {
        return Ok(0);
    }
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.is_empty() || digits.starts_with('+') {
        return Err(Fault::NotHexadecimal { field });
    }
    u64::from_str_radix(digits, 16).map_err(|_| Fault::NotHexadecimal { field })
}
