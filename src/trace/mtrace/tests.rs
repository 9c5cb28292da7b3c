use std::io::{self, BufReader};

use super::super::{STREAMS_MAX, Trace};
use super::*;

/// The error of `text`, the version put before it; asserts the line (of `text`) and the message.
fn error(text: impl AsRef<[u8]>, line: u64, message: &str) -> TraceError {
    raw_error([b"# mtrace: 1\n", text.as_ref()].concat(), line + 1, message)
}

fn raw_error(text: impl AsRef<[u8]>, line: u64, message: &str) -> TraceError {
    let shown = String::from_utf8_lossy(&text.as_ref()[..text.as_ref().len().min(80)]).into_owned();
    let error = Trace::read(text.as_ref()).map(drop).expect_err(&shown);
    assert_eq!(error.to_string(), format!("line {line}: {message}"), "{shown:?}");
    assert_eq!(error.line(), line);
    error
}

fn event(line: &str) -> Event {
    parse_event(line).expect(line)
}

#[test]
fn every_kind_of_line_is_understood() {
    let allocation = Event::Allocate { id: u64::MAX, size: 1 << 63, stream: 65_535 };
    assert_eq!(event("a 18446744073709551615 9223372036854775808 65535"), allocation);
    assert_eq!(event("a 00 007 00"), Event::Allocate { id: 0, size: 7, stream: 0 });
    assert_eq!(event("f 12"), Event::Free { id: 12 });
    assert_eq!(event("u 12 3"), Event::Use { id: 12, stream: 3 });
    assert_eq!(event("m phase=a b  c "), Event::Marker("phase=a b  c ".to_owned()));
    assert_eq!(event("m  x"), Event::Marker(" x".to_owned()));
    assert_eq!(event("m süß\t💧"), Event::Marker("süß\t💧".to_owned()));
}

#[test]
fn malformed_events() {
    error("\n", 1, "the line is empty");
    error("m x\n\nm y\n", 2, "the line is empty");
    error("m x\n\n", 2, "the line is empty");
    for (line, tag) in [("x 1", "x"), ("A 1 1 0", "A"), ("alloc 1", "alloc"), (" f 1", "")] {
        error(format!("{line}\n"), 1, &format!("unknown tag {tag:?}: not one of a, f, u, m"));
    }
    let long = error("0123456789abcdefghi\n", 1, UNKNOWN_LONG);
    assert!(matches!(long.fault(), Fault::UnknownTag { tag } if tag.len() == 16));

    for (line, field) in [
        ("a", "ID"),
        ("a ", "ID"),
        ("a  1 0", "ID"),
        ("a 1", "SIZE"),
        ("a 1 ", "SIZE"),
        ("a 1 2", "STREAM"),
        ("a 1 2 ", "STREAM"),
        ("f", "ID"),
        ("f ", "ID"),
        ("f  1", "ID"),
        ("u", "ID"),
        ("u 1", "STREAM"),
        ("u 1 ", "STREAM"),
        ("m", "LABEL"),
        ("m ", "LABEL"),
    ] {
        error(format!("{line}\n"), 1, &format!("the field {field} is missing"));
    }
    for line in ["a 1 2 0 ", "a 1 2 0 4", "f 1 ", "f 1 2", "u 1 2 3", "u 1 2 "] {
        error(format!("{line}\n"), 1, "there is something after the last field");
    }
}

const UNKNOWN_LONG: &str = "unknown tag \"0123456789abcdef\": not one of a, f, u, m";

#[test]
fn malformed_numbers() {
    for (line, field) in [
        ("a x 2 0", "ID"),
        ("a -1 2 0", "ID"),
        ("a +1 2 0", "ID"),
        ("a 1 0x10 0", "SIZE"),
        ("a 1 1e3 0", "SIZE"),
        ("a 1 1_000 0", "SIZE"),
        ("a 1 2.0 0", "SIZE"),
        ("a 1 2\t0", "SIZE"),
        ("a 1 ٣ 0", "SIZE"),
        ("a 1 2 zero", "STREAM"),
        ("f 1a", "ID"),
        ("u 1 -1", "STREAM"),
    ] {
        error(format!("{line}\n"), 1, &format!("the field {field} is not a decimal number"));
    }
    let beyond = "18446744073709551616";
    for (line, field) in [
        (format!("a {beyond} 1 0"), "ID"),
        (format!("a 1 {beyond} 0"), "SIZE"),
        (format!("a 1 1 {beyond}"), "STREAM"),
        (format!("f 99999999999999999999{beyond}"), "ID"),
    ] {
        error(format!("{line}\n"), 1, &format!("the field {field} exceeds 64 bits"));
    }
    for stream in ["65536", "4294967295", "4294967296", "18446744073709551615"] {
        error(format!("a 1 1 {stream}\n"), 1, "the stream number is not below 65536");
        error(format!("a 1 1 0\nu 1 {stream}\n"), 2, "the stream number is not below 65536");
    }
}

#[test]
fn events_that_do_not_go_together() {
    error("a 1 0 0\n", 1, "allocation 1 has size 0");
    error("a 1 5 0\na 1 5 0\n", 2, "the id 1 has been used before");
    error("a 1 5 0\nf 1\na 1 5 0\n", 3, "the id 1 has been used before");
    error("f 1\n", 1, "no allocation has the id 1");
    error("u 1 0\n", 1, "no allocation has the id 1");
    error("a 1 5 0\nf 1\nf 1\n", 3, "allocation 1 has been freed before");
    error("a 1 5 0\nf 1\nu 1 0\n", 3, "allocation 1 has been freed before");
    error("a 1 18446744073709551615 0\na 2 1 0\n", 2, "the live bytes exceed 64 bits");
}

#[test]
fn headers() {
    let text =
        "# name: a: b\n# mtrace: 1\n# note: one\n# note: two\n# empty: \n# bare:\n# k:  v \n";
    let trace = Trace::read(text.as_bytes()).expect("valid");
    let expected = [
        ("name", "a: b"),
        ("note", "one"),
        ("note", "two"),
        ("empty", ""),
        ("bare", ""),
        ("k", " v "),
    ];
    let found: Vec<_> = trace.headers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(found, expected);
    assert_eq!(trace.header("note"), Some("one"));
    assert_eq!(trace.header("mtrace"), None);

    let missing = "no header `# mtrace: 1` before the first event";
    raw_error("", 1, missing);
    raw_error("m x\n", 1, missing);
    raw_error("hello\n", 1, missing);
    raw_error("# name: x\n", 2, missing);
    raw_error("# name: x\n# Mtrace: 1\nm x\n", 3, missing);
    raw_error("# mtrace: 2\nm x\n", 1, "the version of the format is not 1");
    raw_error("# mtrace: 01\n", 1, "the version of the format is not 1");
    raw_error("# mtrace:\n", 1, "the version of the format is not 1");
    error("# mtrace: 1\n", 1, "the header `mtrace` occurs twice");
    for header in ["#", "# ", "#name: x", "# name", "# a comment", "# : x", "#  k: v", "# k : v"] {
        error(format!("{header}\n"), 1, "the header does not read `# key: value`");
    }
    error("# k:v\n", 1, "the header does not read `# key: value`");
    for header in ["# late: 1", "# mtrace: 1", "#", "#comment"] {
        error(format!("m x\n{header}\n"), 2, "a line with `#` after the first event");
    }
}

#[test]
fn binary_input() {
    error(b"m \0\n", 1, "byte 0x00 in the line: this is no text");
    error(b"m x\n\0\0\0\0", 2, "the trace ends too early: it has been cut short");
    error(b"\0\n", 1, "byte 0x00 in the line: this is no text");
    error(b"m \x1b[31m\n", 1, "byte 0x1b in the line: this is no text");
    error(b"m \x7f\n", 1, "byte 0x7f in the line: this is no text");
    error(b"m a\rb\n", 1, "byte 0x0d in the line: this is no text");
    error(b"m a\r\r\n", 1, "byte 0x0d in the line: this is no text");
    error(b"m \xff\n", 1, "the line is not UTF-8");
    error(b"# k: \xc3\n", 1, "the line is not UTF-8");
    error(b"f \xed\xa0\x80\n", 1, "the line is not UTF-8");
    raw_error(b"\x80\x95\n", 1, "the line is not UTF-8");
    raw_error(b"\x80\x04\x95\n", 1, "byte 0x04 in the line: this is no text");
}

#[test]
fn a_last_line_without_end_is_cut_short() {
    // `f 12` might have been `f 123`: a number that was cut is still a number.
    let cut = "the trace ends too early: it has been cut short";
    error("a 1 5 0\nf 1", 2, cut);
    raw_error("# mtrace: 1", 1, cut);
    raw_error("#", 1, cut);
    error("f 1\r", 1, cut);
}

#[test]
fn both_line_ends_are_understood() {
    let unix = "# mtrace: 1\n# name: x\na 0 5 0\nm label\nf 0\n";
    let expected = Trace::read(unix.as_bytes()).expect("valid");
    let windows = unix.replace('\n', "\r\n");
    assert_eq!(Trace::read(windows.as_bytes()).expect("valid"), expected);
    let mixed = unix.replacen('\n', "\r\n", 2);
    assert_eq!(Trace::read(mixed.as_bytes()).expect("valid"), expected);
    error("\r\n", 1, "the line is empty");
}

#[test]
fn a_line_may_be_long_but_not_too_long() {
    let label = "x".repeat(LINE_MAX - 2);
    for end in ["\n", "\r\n"] {
        let text = format!("# mtrace: 1\nm {label}{end}f 1\n");
        let mut reader = Reader::new(text.as_bytes()).expect("valid headers");
        let marker = reader.next().expect("an event").expect("a valid one");
        assert_eq!(marker, Event::Marker(label.clone()));
        assert_eq!(reader.next().expect("an event").expect_err("not live").line(), 3);
        error(format!("m {label}y{end}"), 1, "the line is longer than 65536 bytes");
        error(format!("m {label}yyy{end}"), 1, "the line is longer than 65536 bytes");
    }
    error("a".repeat(LINE_MAX + 2), 1, "the line is longer than 65536 bytes");
    error("a".repeat(LINE_MAX + 1), 1, "the trace ends too early: it has been cut short");
}

#[test]
fn an_endless_line_is_given_up_at_once() {
    let input = BufReader::new(b"# mtrace: 1\nm ".chain(io::repeat(b'x')));
    let mut reader = Reader::new(input).expect_err("a line too long");
    assert!(matches!(reader.fault(), Fault::LineTooLong), "{reader}");
    let input = BufReader::new(b"# mtrace: 1\nm 1\nm ".chain(io::repeat(b'x')));
    let mut lines = Reader::new(input).expect("valid so far");
    assert!(lines.next().is_some_and(|event| event.is_ok()));
    reader = lines.next().expect("an item").expect_err("a line too long");
    assert!(matches!(reader.fault(), Fault::LineTooLong), "{reader}");
    assert!(lines.lines.line.capacity() < 4 * LINE_MAX, "{}", lines.lines.line.capacity());
}

#[test]
fn endless_headers_are_given_up() {
    let header = format!("# k: {}\n", "v".repeat(1000));
    let count = HEADERS_MAX as usize / header.len();
    let head = "# mtrace: 1\n".len();
    assert!(count * header.len() + head <= HEADERS_MAX as usize);
    let fits = format!("# mtrace: 1\n{}", header.repeat(count));
    assert_eq!(Trace::read(fits.as_bytes()).expect("fits").headers.len(), count);
    let message = "the headers are larger than 1 MiB together";
    error(header.repeat(count + 1), count as u64 + 1, message);
    // Nor does a first event reset the count: it is the headers' own.
    let mut text = fits;
    text.push_str("m x\n");
    assert_eq!(Trace::read(text.as_bytes()).expect("fits").events.len(), 1);
}

#[test]
fn a_reader_stops_for_ever_at_the_first_error() {
    let mut reader = Reader::new(&b"# mtrace: 1\nm 1\nf 0\nm 2\n"[..]).expect("valid headers");
    assert!(matches!(reader.next(), Some(Ok(Event::Marker(_)))));
    assert_eq!(reader.summary().markers, 1);
    assert!(matches!(reader.next(), Some(Err(_))));
    assert!(reader.next().is_none());
    assert!(reader.next().is_none());
    assert_eq!(reader.summary().events, 1);

    let mut reader = Reader::new(&b"# mtrace: 1\n"[..]).expect("valid headers");
    assert!(reader.next().is_none());
    assert!(reader.next().is_none());
    assert_eq!(reader.line(), 2);
    assert_eq!(reader.text_bytes(), 12);
}

/// Gives what it has, then fails.
struct Failing<'a>(&'a [u8]);

impl Read for Failing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::Error::other("the disk is on fire")),
            count => Ok(count),
        }
    }
}

#[test]
fn a_failing_input_is_reported_with_its_line() {
    for (text, line) in [("", 1), ("# mtrace: 1\n", 2), ("# mtrace: 1\nm x\nm", 3)] {
        let error = Trace::read(Failing(text.as_bytes())).expect_err("a failure");
        assert!(matches!(error.fault(), Fault::Io(_)), "{error}");
        assert_eq!(error.to_string(), format!("line {line}: the disk is on fire"));
    }
}

/// Takes some bytes, then fails.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::Error::other("the disk is full"))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_failing_output_is_reported() {
    let mut trace = Trace::default();
    trace.events.extend((0..10_000).map(|id| Event::Allocate { id, size: 512, stream: 0 }));
    let mut text = Vec::new();
    trace.write(&mut text).expect("valid");
    trace.write(Full(text.len())).expect("room enough");
    for room in [0, 1, 11, 12, 8191, 8192, text.len() - 1] {
        let error = trace.write(Full(room)).expect_err("no room");
        assert!(matches!(error.fault(), Fault::Io(_)), "{error}");
    }
}

/// Takes everything, and fails when it has to hand it on.
struct Unflushable;

impl Write for Unflushable {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(io::Error::other("the pipe is broken"))
    }
}

#[test]
fn an_output_that_fails_at_the_very_end_is_reported() {
    let error = Trace::default().write(Unflushable).expect_err("a failure");
    assert_eq!(error.to_string(), "line 1: the pipe is broken");
}

#[test]
fn nothing_is_written_that_would_not_read_back() {
    let mut writer = Writer::new(Vec::new(), &[]).expect("valid headers");
    writer.event(&Event::Allocate { id: 0, size: 1, stream: 0 }).expect("valid");
    let marker = |label: &str| Event::Marker(label.to_owned());
    let long = "x".repeat(LINE_MAX - 1);
    for (event, message) in [
        (marker(""), "the field LABEL is missing"),
        (marker("x\nf 0"), "byte 0x0a in the line: this is no text"),
        (marker("x\r"), "byte 0x0d in the line: this is no text"),
        (marker("\0"), "byte 0x00 in the line: this is no text"),
        (marker(&long), "the line is longer than 65536 bytes"),
        (Event::Allocate { id: 0, size: 1, stream: 0 }, "the id 0 has been used before"),
        (Event::Allocate { id: 1, size: 0, stream: 0 }, "allocation 1 has size 0"),
        (
            Event::Allocate { id: 1, size: 1, stream: STREAMS_MAX },
            "the stream number is not below 65536",
        ),
        (Event::Free { id: 1 }, "no allocation has the id 1"),
        (Event::Use { id: 1, stream: 0 }, "no allocation has the id 1"),
        (Event::Use { id: 0, stream: u32::MAX }, "the stream number is not below 65536"),
    ] {
        let error = writer.event(&event).expect_err(message);
        assert_eq!(error.to_string(), format!("line 3: {message}"));
    }
    writer.event(&Event::Free { id: 0 }).expect("still usable");
    let text = writer.finish().expect("a vector");
    assert_eq!(text, b"# mtrace: 1\na 0 1 0\nf 0\n");
}

#[test]
fn headers_that_would_not_read_back_are_refused() {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    for (key, value, message) in [
        ("", "x", "the header does not read `# key: value`"),
        (" k", "x", "the header does not read `# key: value`"),
        ("k ", "x", "the header does not read `# key: value`"),
        ("k: l", "x", "the header does not read `# key: value`"),
        ("k:", "x", "the header does not read `# key: value`"),
        ("k", "x\na 0 1 0", "byte 0x0a in the line: this is no text"),
        ("k\n", "x", "byte 0x0a in the line: this is no text"),
        ("k", "x\r", "byte 0x0d in the line: this is no text"),
        ("mtrace", "1", "the header `mtrace` occurs twice"),
    ] {
        let headers = [pair("fine", ""), pair(key, value)];
        let error = Writer::new(Vec::new(), &headers).expect_err(message);
        assert_eq!(error.to_string(), format!("line 3: {message}"), "{key:?}");
    }
    let many = vec![pair("k", &"v".repeat(60_000)); 20];
    let error = Writer::new(Vec::new(), &many).expect_err("too many");
    assert!(matches!(error.fault(), Fault::HeadersTooLarge), "{error}");
}
