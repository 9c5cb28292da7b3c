use std::io;
use std::path::PathBuf;

use super::*;

/// SplitMix64: the same numbers from the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

const LABELS: [&str; 6] =
    ["iter=1", "empty_cache", " two  spaces ", "ü\t💧", "# no: header", "a 1 2 3"];

/// Bytes that mean something to the format, or to nobody.
const NASTY: &[u8] = b"0123456789 \n\r#afum\0\xff";

/// A valid trace of `length` events, with dense, scattered and extreme numbers.
fn generated(seed: u64, length: usize) -> Trace {
    let random = &mut Random(seed);
    let mut trace = Trace::default();
    for number in 0..random.below(5) {
        let value = LABELS[random.below(LABELS.len())].to_owned();
        trace.headers.push((format!("key-{}", number / 2), value));
    }
    let mut live = Vec::new();
    let mut id_next = 0;
    while trace.events.len() < length {
        let stream = [0, 0, 1, 63, 64, 65_535][random.below(6)];
        let event = match random.below(10) {
            0..5 => {
                id_next += if random.below(10) == 0 { 1 + random.next() % (1 << 40) } else { 1 };
                live.push(id_next);
                let size = 1 + random.next() % (1 << random.below(41));
                Event::Allocate { id: id_next, size, stream }
            }
            5..8 if !live.is_empty() => {
                Event::Free { id: live.swap_remove(random.below(live.len())) }
            }
            8 if !live.is_empty() => Event::Use { id: live[random.below(live.len())], stream },
            _ => Event::Marker(LABELS[random.below(LABELS.len())].to_owned()),
        };
        trace.events.push(event);
    }
    trace
}

fn text_of(trace: &Trace) -> Vec<u8> {
    let mut text = Vec::new();
    trace.write(&mut text).expect("a valid trace");
    text
}

/// The peak, by the definition: the sum over all live allocations after every event.
fn naive_peak(trace: &Trace) -> Bytes {
    let mut live = std::collections::BTreeMap::new();
    let mut peak = 0;
    for event in &trace.events {
        match *event {
            Event::Allocate { id, size, .. } => drop(live.insert(id, size)),
            Event::Free { id } => drop(live.remove(&id)),
            Event::Use { .. } | Event::Marker(_) => {}
        }
        peak = peak.max(live.values().sum());
    }
    peak
}

/// Whatever this is, it must not panic; and what reads must write, and read back equal.
fn survives(text: &[u8], context: &str) -> bool {
    let Ok(trace) = Trace::read(text) else { return false };
    let again = Trace::read(text_of(&trace).as_slice()).expect(context);
    assert_eq!(again, trace, "{context}");
    true
}

/// A file of its own for each test, gone at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("aquifer-trace-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn generated_traces_read_back_equal() {
    for seed in 0..300 {
        let trace = generated(seed, 1 + seed as usize);
        let text = text_of(&trace);
        let again = Trace::read(text.as_slice()).expect("what was written reads");
        assert_eq!(again, trace, "seed {seed}");
        assert_eq!(text_of(&again), text, "seed {seed}");
    }
}

#[test]
fn summary_agrees_with_the_definition() {
    for seed in 0..100 {
        let trace = generated(seed, 200);
        let summary = trace.summary();
        assert_eq!(summary.peak_live_bytes, naive_peak(&trace), "seed {seed}");
        let kinds = summary.allocations + summary.frees + summary.uses + summary.markers;
        assert_eq!((summary.events, kinds), (200, 200), "seed {seed}");
        let mut streams = std::collections::BTreeSet::new();
        for event in &trace.events {
            if let Event::Allocate { stream, .. } | Event::Use { stream, .. } = event {
                streams.insert(stream);
            }
        }
        assert_eq!(summary.streams, streams.len() as u64, "seed {seed}");
        let text = text_of(&trace);
        let mut reader = Reader::new(text.as_slice()).expect("valid");
        assert!(reader.all(|event| event.is_ok()), "seed {seed}");
        assert_eq!(reader.summary(), summary, "seed {seed}");
    }
}

#[test]
fn summary_of_a_trace_put_together_wrongly_skips_what_is_wrong() {
    let allocate = |id, size, stream| Event::Allocate { id, size, stream };
    let events = vec![
        allocate(0, 10, 0),
        allocate(0, 10, 0),
        allocate(1, u64::MAX, 0),
        allocate(2, 5, u32::MAX),
        Event::Free { id: 9 },
        allocate(3, 7, 1),
    ];
    let summary = Trace { headers: Vec::new(), events }.summary();
    assert_eq!((summary.events, summary.peak_live_bytes, summary.streams), (2, 17, 2));
}

#[test]
fn every_prefix_is_refused_or_ends_at_a_line() {
    for seed in 0..20 {
        let text = text_of(&generated(seed, 12));
        for length in 0..text.len() {
            let whole_line = text[..length].ends_with(b"\n");
            let reads = survives(&text[..length], &format!("seed {seed}, length {length}"));
            assert_eq!(reads, whole_line, "seed {seed}, length {length}");
        }
    }
}

#[test]
fn mutations_of_a_valid_trace_do_no_harm() {
    let text = text_of(&generated(7, 12));
    for at in 0..text.len() {
        for byte in 0..=255 {
            let mut mutant = text.clone();
            mutant[at] = byte;
            survives(&mutant, &format!("byte {at} set to {byte}"));
        }
        let mut mutant = text.clone();
        mutant.remove(at);
        survives(&mutant, &format!("byte {at} removed"));
    }
    for seed in 0..5_000 {
        let random = &mut Random(seed);
        let mut mutant = text.clone();
        for _ in 0..1 + random.below(8) {
            let (from, to) = (random.below(mutant.len()), random.below(mutant.len()));
            match random.below(4) {
                0 => mutant[from] = mutant[to],
                1 => mutant.insert(from, NASTY[random.below(NASTY.len())]),
                2 => mutant.truncate(from.max(1)),
                _ => mutant.extend_from_within(from.min(to)..from.max(to)),
            }
        }
        survives(&mutant, &format!("seed {seed}"));
    }
}

#[test]
fn a_header_reserves_nothing() {
    let text = "# mtrace: 1\n# events: 1000000000000\n# allocs: 18446744073709551616\nm x\n";
    let trace = Trace::read(text.as_bytes()).expect("headers are not believed");
    assert!(trace.events.capacity() < 100, "{}", trace.events.capacity());
}

#[test]
fn a_trace_in_memory_is_limited() {
    let text = b"# mtrace: 1\nm 1\nm 2\nm 3\n";
    let collect = |events_max, text_max| {
        Trace::collect(Reader::new(&text[..]).expect("valid"), events_max, text_max)
    };
    assert_eq!(collect(3, 24).expect("fits").events.len(), 3);
    for (events_max, text_max, line) in [(2, 24, 4), (3, 23, 4), (0, 24, 2), (3, 12, 2)] {
        let error = collect(events_max, text_max).expect_err("does not fit");
        assert!(matches!(error.fault(), Fault::TraceTooLarge), "{error}");
        assert_eq!(error.line(), line);
    }
}

/// Gives one byte at a time.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(1);
        self.0.read(&mut buffer[..count])
    }
}

#[test]
fn input_may_come_byte_by_byte() {
    let trace = generated(1, 50);
    assert_eq!(Trace::read(Trickle(&text_of(&trace))).expect("valid"), trace);
}

#[test]
fn files_are_saved_and_opened() {
    let file = Scratch::new("plain.mtrace");
    let trace = generated(3, 100);
    trace.save(&file.0).expect("a writable directory");
    assert!(std::fs::read(&file.0).expect("saved") == text_of(&trace));
    assert_eq!(Trace::open(&file.0).expect("valid"), trace);
    let streamed: Result<Vec<_>, _> = Reader::open(&file.0).expect("valid").collect();
    assert_eq!(streamed.expect("valid"), trace.events);

    // A broken trace does not cost what was there before.
    let mut broken = trace.clone();
    broken.events.insert(1, Event::Free { id: u64::MAX });
    broken.save(&file.0).expect_err("an unknown id");
    assert_eq!(Trace::open(&file.0).expect("untouched"), trace);
}

#[test]
fn files_that_are_not_there() {
    let file = Scratch::new("absent.mtrace");
    let error = Trace::open(&file.0).expect_err("no such file");
    assert_eq!(error.line(), 0);
    assert!(matches!(error.fault(), Fault::Io(e) if e.kind() == io::ErrorKind::NotFound));
    assert!(!error.to_string().contains("line"), "{error}");
    let error = Trace::default().save(file.0.join("below")).expect_err("no such directory");
    assert!(matches!(error.fault(), Fault::Io(_)), "{error}");
}

#[cfg(not(feature = "gz"))]
#[test]
fn without_the_feature_gzip_is_refused_by_name() {
    let message = "this is a gzip'd trace: build with the cargo feature `gz`";
    let error = Trace::read(&b"\x1f\x8b\x08\x00"[..]).expect_err("gzip");
    assert_eq!(error.to_string(), message);
    let error = Trace::read(Trickle(b"\x1f\x8b")).expect_err("gzip");
    assert_eq!(error.to_string(), message);
    let file = Scratch::new("disabled.mtrace.gz");
    let error = Trace::default().save(&file.0).expect_err("gzip");
    assert_eq!(error.to_string(), message);
    assert!(!file.0.exists());
}

#[cfg(feature = "gz")]
mod gzip {
    use super::*;

    fn packed(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text).expect("a vector");
        encoder.finish().expect("a vector")
    }

    #[test]
    fn files_are_saved_and_opened() {
        for name in ["packed.mtrace.gz", "packed.GZ"] {
            let file = Scratch::new(name);
            let trace = generated(4, 500);
            trace.save(&file.0).expect("a writable directory");
            let bytes = std::fs::read(&file.0).expect("saved");
            assert_eq!(bytes[..2], [0x1f, 0x8b]);
            assert_eq!(Trace::open(&file.0).expect("valid"), trace);
            assert_eq!(Trace::read(Trickle(&bytes)).expect("valid"), trace);
            // The magic decides, not the name; and equal traces give equal files.
            let other = Scratch::new("packed-without-a-name");
            std::fs::write(&other.0, &bytes).expect("a writable directory");
            assert_eq!(Trace::open(&other.0).expect("valid"), trace);
            trace.save(&file.0).expect("a writable directory");
            assert!(std::fs::read(&file.0).expect("saved") == bytes);
        }
    }

    #[test]
    fn several_members_are_one_text() {
        let trace = generated(5, 50);
        let text = text_of(&trace);
        let (head, tail) = text.split_at(text.len() / 3);
        let members = [packed(head), packed(b""), packed(tail)].concat();
        assert_eq!(Trace::read(members.as_slice()).expect("valid"), trace);
    }

    #[test]
    fn every_prefix_is_refused() {
        let bytes = packed(&text_of(&generated(6, 20)));
        for length in 0..bytes.len() {
            let error = Trace::read(&bytes[..length]).expect_err("cut short");
            if length >= 2 {
                assert!(matches!(error.fault(), Fault::CutShort), "length {length}: {error}");
            }
        }
    }

    #[test]
    fn what_comes_after_the_last_member_is_refused() {
        let bytes = packed(&text_of(&generated(6, 20)));
        for garbage in [&b"\0"[..], b"m x\n", b"\0\0\0\0\0\0\0\0\0\0\0\0", b"\x1f", b"\x1f\x8b"] {
            let error = Trace::read([&bytes, garbage].concat().as_slice()).expect_err("garbage");
            assert!(matches!(error.fault(), Fault::CutShort | Fault::Io(_)), "{error}");
        }
    }

    #[test]
    fn a_changed_bit_is_noticed_or_harmless() {
        let trace = generated(8, 20);
        let bytes = packed(&text_of(&trace));
        for bit in 0..8 * bytes.len() {
            let mut mutant = bytes.clone();
            mutant[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = Trace::read(mutant.as_slice()) {
                // Time, system and flags in the ten bytes of the member's head say nothing of the
                // text; all the rest is under the checksum.
                assert_eq!(read, trace, "bit {bit}");
                assert!(bit / 8 < 10, "bit {bit}");
            }
        }
    }

    #[test]
    fn random_members_do_no_harm() {
        let bytes = packed(&text_of(&generated(9, 20)));
        for seed in 0..5_000 {
            let random = &mut Random(seed);
            let mut mutant = bytes.clone();
            for _ in 0..1 + random.below(6) {
                let at = random.below(mutant.len());
                mutant[at] = random.next() as u8;
            }
            survives(&mutant, &format!("seed {seed}"));
        }
    }

    #[test]
    fn an_unpacked_flood_is_stopped_by_the_limits() {
        // 64 MiB without a line end, in 64 KiB of gzip.
        let flood = packed(&[b"# mtrace: 1\nm ".to_vec(), vec![b'x'; 64 << 20]].concat());
        let error = Trace::read(flood.as_slice()).expect_err("a line too long");
        assert!(matches!(error.fault(), Fault::LineTooLong), "{error}");
        assert_eq!(error.line(), 2);
    }

    /// The traces that the benches replay are what their headers say.
    #[test]
    fn traces_of_the_benches_agree_with_their_headers() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/traces");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).expect("benches/traces") {
            let path = entry.expect("an entry").path();
            if path.extension().is_none_or(|extension| extension != "gz") {
                continue;
            }
            let trace = Trace::open(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            let summary = trace.summary();
            let number = |key: &str| trace.header(key).and_then(|value| value.parse().ok());
            let peak = number("peak_live_bytes").or(number("peak-live-bytes"));
            assert_eq!(Some(summary.peak_live_bytes), peak, "{path:?}");
            assert_eq!(Some(summary.allocations), number("allocs"), "{path:?}");
            assert_eq!(Some(summary.frees), number("frees"), "{path:?}");
            assert_eq!(Some(summary.streams), number("streams"), "{path:?}");
            count += 1;
        }
        assert!(count >= 5, "only {count} traces");
    }
}
