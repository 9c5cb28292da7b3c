//! The text format, mtrace v1: one event a line, read and written one line at a time.
//!
//! Fields are separated by one space; numbers are decimal and fit in 64 bits; a line is UTF-8
//! without control characters but the tab, at most [`LINE_MAX`] bytes, and ends in LF or CR LF, the
//! last one too.
//!
//! ```text
//!   # key: value       a header; all of them come before the first event, `# mtrace: 1` among them
//!   a ID SIZE STREAM   allocate SIZE > 0 bytes under ID, never used again, for stream STREAM
//!   f ID               the program lets go of ID
//!   u ID STREAM        ID is used on another stream
//!   m LABEL            a marker; LABEL runs to the end of the line
//! ```
//!
//! Because the last line has an end, a text that has been cut is noticed unless the cut is exactly
//! between two lines (gzip'd text: always).
//!
//! Every rule exists once: the writer formats a line, then lets the reader's own parser judge it.
//!
//! Cost: a line is looked at three times (line end, text, fields) in a buffer that is reused; only
//! markers and headers allocate. The events themselves cost what `check` says.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufRead, BufWriter, Read, Write};
use std::path::Path;

use super::check::Checker;
use super::{Event, Fault, Summary, TraceError, gz};
use crate::units::{Bytes, KIB, MIB};

/// The longest line, in bytes, its end not counted.
pub const LINE_MAX: usize = 64 * KIB as usize;

/// The most text that all headers of a trace have together, in bytes.
const HEADERS_MAX: Bytes = MIB;

/// The header that names the version of the format, and the only version there is.
const VERSION: (&str, &str) = ("mtrace", "1");

/// Reads a trace event by event, and checks it on the way.
///
/// After an error, and after the end, it gives `None` for ever. It holds one line, the headers (at
/// most 1 MiB of text), and what it takes to check the events: at most 5 bits for each id seen, if
/// they are dense, and 40 bytes for each live one.
///
/// # Examples
/// ```
/// use aquifer::trace::{Event, Reader};
///
/// let text = "# mtrace: 1\n# name: one\na 0 4096 0\nm iter=1\nf 0\n";
/// let mut reader = Reader::new(text.as_bytes())?;
/// assert_eq!(reader.headers(), [("name".to_owned(), "one".to_owned())]);
/// assert_eq!(reader.next().transpose()?, Some(Event::Allocate { id: 0, size: 4096, stream: 0 }));
/// assert_eq!(reader.next().transpose()?, Some(Event::Marker("iter=1".to_owned())));
/// # Ok::<(), aquifer::trace::TraceError>(())
/// ```
#[derive(Debug)]
pub struct Reader<R: BufRead> {
    lines: Lines<R>,
    headers: Vec<(String, String)>,
    checker: Checker,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The line of the first event has been read already, in search of headers.
    Begun,
    Reading,
    /// At the end, or behind an error.
    Done,
}

impl Reader<Box<dyn BufRead>> {
    /// A reader of the file at `path`, gzip'd (recognised by its first two bytes) or not.
    ///
    /// # Errors
    /// As for [`Reader::new`], if the file cannot be opened, and for a gzip'd file without the
    /// cargo feature `gz`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TraceError> {
        let file = File::open(path).map_err(|error| Fault::Io(error).at(0))?;
        Self::new(gz::unpack(file)?)
    }
}

impl<R: BufRead> Reader<R> {
    /// A reader of plain text, which reads the headers at once.
    ///
    /// # Errors
    /// A header that breaks a rule of the format, none that says `# mtrace: 1`, or a failure of
    /// `input`.
    pub fn new(input: R) -> Result<Self, TraceError> {
        let lines = Lines { input, line: Vec::new(), number: 0, bytes: 0 };
        let mut reader =
            Self { lines, headers: Vec::new(), checker: Checker::default(), state: State::Done };
        match reader.read_headers() {
            Ok(()) => Ok(reader),
            Err(fault) => Err(fault.at(reader.lines.number)),
        }
    }

    /// Keys and values in the order of the file, all but the version of the format.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// The same, given away.
    pub fn into_headers(self) -> Vec<(String, String)> {
        self.headers
    }

    /// The line, counted from 1, that was read last; at the end, the one that is not there.
    pub fn line(&self) -> u64 {
        self.lines.number
    }

    /// How much text has been read, unpacked, in bytes.
    pub fn text_bytes(&self) -> Bytes {
        self.lines.bytes
    }

    /// The facts about the events read so far.
    pub fn summary(&self) -> Summary {
        self.checker.summary()
    }

    fn read_headers(&mut self) -> Result<(), Fault> {
        let mut versions = 0;
        while self.lines.advance()? {
            let line = text(&self.lines.line)?;
            if !line.starts_with('#') {
                self.state = State::Begun;
                break;
            }
            if self.lines.bytes > HEADERS_MAX {
                return Err(Fault::HeadersTooLarge);
            }
            let (key, value) = parse_header(line)?;
            if key != VERSION.0 {
                self.headers.push((key.to_owned(), value.to_owned()));
                continue;
            }
            versions += 1;
            if versions > 1 {
                return Err(Fault::RepeatedVersion);
            }
            if value != VERSION.1 {
                return Err(Fault::UnknownVersion);
            }
        }
        if versions == 0 { Err(Fault::MissingVersion) } else { Ok(()) }
    }

    fn read_event(&mut self) -> Result<Option<Event>, Fault> {
        if self.state == State::Begun {
            self.state = State::Reading;
        } else if !self.lines.advance()? {
            return Ok(None);
        }
        let event = parse_event(text(&self.lines.line)?)?;
        self.checker.apply(&event)?;
        Ok(Some(event))
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Event, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Done {
            return None;
        }
        let item = self.read_event().map_err(|fault| fault.at(self.lines.number)).transpose();
        if !matches!(item, Some(Ok(_))) {
            self.state = State::Done;
        }
        item
    }
}

impl<R: BufRead> std::iter::FusedIterator for Reader<R> {}

/// Writes a trace event by event, and lets nothing pass that would not read back equal.
///
/// # Examples
/// ```
/// use aquifer::trace::{Event, Writer};
///
/// let headers = [("name".to_owned(), "one".to_owned())];
/// let mut writer = Writer::new(Vec::new(), &headers)?;
/// writer.event(&Event::Allocate { id: 0, size: 4096, stream: 0 })?;
/// assert_eq!(writer.finish()?, b"# mtrace: 1\n# name: one\na 0 4096 0\n");
/// # Ok::<(), aquifer::trace::TraceError>(())
/// ```
#[derive(Debug)]
pub struct Writer<W: Write> {
    output: BufWriter<W>,
    checker: Checker,
    line: Vec<u8>,
    number: u64,
}

impl<W: Write> Writer<W> {
    /// A writer of plain text, which writes the version of the format and then `headers`.
    ///
    /// `output` need not be buffered.
    ///
    /// # Errors
    /// A header that breaks a rule of the format (a key that is empty, begins or ends with a space,
    /// or has a colon in it; a line end or other control character; more than 1 MiB in all; the key
    /// `mtrace`), or a failure of `output`.
    pub fn new(output: W, headers: &[(String, String)]) -> Result<Self, TraceError> {
        let mut writer = Self {
            output: BufWriter::new(output),
            checker: Checker::default(),
            line: Vec::new(),
            number: 0,
        };
        match writer.write_headers(headers) {
            Ok(()) => Ok(writer),
            Err(fault) => Err(fault.at(writer.number)),
        }
    }

    /// Writes one event.
    ///
    /// # Errors
    /// An event that breaks a rule of the format, or a failure of `output`. A broken event writes
    /// nothing, and the writer may be used on.
    pub fn event(&mut self, event: &Event) -> Result<(), TraceError> {
        let line = self.number + 1;
        self.write_event(event).map_err(|fault| fault.at(line))?;
        self.number = line;
        Ok(())
    }

    /// Hands everything to `output` and gives it back. A writer that is dropped instead does the
    /// same, but has no way to tell of a failure.
    ///
    /// # Errors
    /// A failure of `output`.
    pub fn finish(self) -> Result<W, TraceError> {
        let line = self.number;
        let output = self.output.into_inner().map_err(|error| error.into_error());
        let mut output = output.map_err(|error| Fault::Io(error).at(line))?;
        output.flush().map_err(|error| Fault::Io(error).at(line))?;
        Ok(output)
    }

    fn write_headers(&mut self, headers: &[(String, String)]) -> Result<(), Fault> {
        let mut bytes = 0;
        let version = std::iter::once(VERSION);
        let others = headers.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        for (key, value) in version.chain(others) {
            self.number += 1;
            if key == VERSION.0 && self.number > 1 {
                return Err(Fault::RepeatedVersion);
            }
            self.line.clear();
            writeln!(self.line, "# {key}: {value}").map_err(Fault::Io)?;
            let line = checked(&self.line)?;
            if parse_header(line)? != (key, value) {
                return Err(Fault::MalformedHeader);
            }
            bytes += self.line.len() as Bytes;
            if bytes > HEADERS_MAX {
                return Err(Fault::HeadersTooLarge);
            }
            self.output.write_all(&self.line).map_err(Fault::Io)?;
        }
        Ok(())
    }

    fn write_event(&mut self, event: &Event) -> Result<(), Fault> {
        self.line.clear();
        match event {
            Event::Allocate { id, size, stream } => {
                writeln!(self.line, "a {id} {size} {stream}")
            }
            Event::Free { id } => writeln!(self.line, "f {id}"),
            Event::Use { id, stream } => writeln!(self.line, "u {id} {stream}"),
            Event::Marker(label) => writeln!(self.line, "m {label}"),
        }
        .map_err(Fault::Io)?;
        let reads_as = parse_event(checked(&self.line)?)?;
        debug_assert_eq!(reads_as, *event);
        self.checker.apply(event)?;
        self.output.write_all(&self.line).map_err(Fault::Io)
    }
}

/// The lines of an input, one at a time; never more than one is held, nor one over [`LINE_MAX`].
#[derive(Debug)]
struct Lines<R> {
    input: R,
    /// The line read last, without its end.
    line: Vec<u8>,
    /// Its number, from 1; while a line is being read, the number of that one.
    number: u64,
    /// Bytes of text read so far, line ends included.
    bytes: Bytes,
}

impl<R: BufRead> Lines<R> {
    /// Reads the next line; `false` if there is none.
    fn advance(&mut self) -> Result<bool, Fault> {
        /// The longest line and CR LF: one more byte and the line is too long for certain.
        const LIMIT: usize = LINE_MAX + 2;
        self.number += 1;
        self.line.clear();
        let count = self.input.by_ref().take(LIMIT as u64).read_until(b'\n', &mut self.line)?;
        self.bytes += count as Bytes;
        if count == 0 {
            return Ok(false);
        }
        if self.line.pop_if(|byte| *byte == b'\n').is_none() {
            return Err(if count == LIMIT { Fault::LineTooLong } else { Fault::CutShort });
        }
        self.line.pop_if(|byte| *byte == b'\r');
        if self.line.len() > LINE_MAX { Err(Fault::LineTooLong) } else { Ok(true) }
    }
}

/// The text of a line that was formatted, `\n` at its end, if it would come through [`Lines`].
fn checked(line: &[u8]) -> Result<&str, Fault> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    if line.len() > LINE_MAX {
        return Err(Fault::LineTooLong);
    }
    text(line)
}

/// A line as text.
fn text(line: &[u8]) -> Result<&str, Fault> {
    let control = |byte: &&u8| byte.is_ascii_control() && **byte != b'\t';
    if let Some(&byte) = line.iter().find(control) {
        return Err(Fault::ControlByte { byte });
    }
    std::str::from_utf8(line).map_err(|_| Fault::NotUtf8)
}

/// The key and value of a line that begins with `#`. An empty value may lack its space.
fn parse_header(line: &str) -> Result<(&str, &str), Fault> {
    let header = line.strip_prefix("# ").ok_or(Fault::MalformedHeader)?;
    let (key, rest) = header.split_once(':').ok_or(Fault::MalformedHeader)?;
    if key.is_empty() || key.trim() != key {
        return Err(Fault::MalformedHeader);
    }
    match rest.strip_prefix(' ') {
        Some(value) => Ok((key, value)),
        None if rest.is_empty() => Ok((key, "")),
        None => Err(Fault::MalformedHeader),
    }
}

/// The event on a line; whether it goes with the ones before is not looked at.
fn parse_event(line: &str) -> Result<Event, Fault> {
    let (tag, rest) = match line.split_once(' ') {
        Some((tag, rest)) => (tag, Some(rest)),
        None => (line, None),
    };
    let mut fields = Fields(rest);
    let event = match tag {
        "a" => Event::Allocate {
            id: fields.number("ID")?,
            size: fields.number("SIZE")?,
            stream: fields.stream()?,
        },
        "f" => Event::Free { id: fields.number("ID")? },
        "u" => Event::Use { id: fields.number("ID")?, stream: fields.stream()? },
        "m" => Event::Marker(fields.label()?.to_owned()),
        "" if rest.is_none() => return Err(Fault::EmptyLine),
        _ if line.starts_with('#') => return Err(Fault::LateHeader),
        _ => return Err(Fault::UnknownTag { tag: tag.chars().take(16).collect() }),
    };
    fields.end()?;
    Ok(event)
}

/// What is left of a line after its tag, taken field by field; `None` once nothing is.
struct Fields<'a>(Option<&'a str>);

impl<'a> Fields<'a> {
    fn number(&mut self, field: &'static str) -> Result<u64, Fault> {
        let rest = self.0.ok_or(Fault::MissingField { field })?;
        let digits = match rest.split_once(' ') {
            Some((digits, rest)) => {
                self.0 = Some(rest);
                digits
            }
            None => {
                self.0 = None;
                rest
            }
        };
        if digits.is_empty() {
            return Err(Fault::MissingField { field });
        }
        digits.bytes().try_fold(0_u64, |number, byte| {
            if !byte.is_ascii_digit() {
                return Err(Fault::NotDecimal { field });
            }
            let digit = u64::from(byte - b'0');
            let shifted = number.checked_mul(10).and_then(|number| number.checked_add(digit));
            shifted.ok_or(Fault::NumberTooLarge { field })
        })
    }

    fn stream(&mut self) -> Result<u32, Fault> {
        // The limit on streams is the checker's; here they only have to fit their type.
        u32::try_from(self.number("STREAM")?).map_err(|_| Fault::StreamTooLarge)
    }

    fn label(&mut self) -> Result<&'a str, Fault> {
        match self.0.take() {
            Some(label) if !label.is_empty() => Ok(label),
            _ => Err(Fault::MissingField { field: "LABEL" }),
        }
    }

    fn end(self) -> Result<(), Fault> {
        if self.0.is_none() { Ok(()) } else { Err(Fault::ExtraField) }
    }
}

#[cfg(test)]
mod tests;
