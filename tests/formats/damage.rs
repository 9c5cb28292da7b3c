//! Files that are damaged, cut short, or made to do harm: refused, in bounded time and memory.

use aquifer::HistoryOptions;
use aquifer::report::exchange::{SnapshotError, SnapshotFault};
use aquifer::report::snapshot::Snapshot;

use crate::chance;
use crate::pickles::{json, pickle};
use crate::support::{Context, Rng};
use crate::torch::SMALL;

pub(crate) const MUTATIONS: u64 = if cfg!(debug_assertions) { 1_000 } else { 100_000 };

/// A byte more, less or different, in a few places; or the end cut off.
pub(crate) fn damaged(rng: &mut Rng, bytes: &[u8]) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    for _ in 0..=rng.below(4) {
        let at = rng.below(damaged.len() as u64 + 1) as usize;
        match rng.below(6) {
            0 => damaged.truncate(at),
            1 => damaged.insert(at, rng.next() as u8),
            2 if at < damaged.len() => drop(damaged.remove(at)),
            3 => {
                let from = rng.below(damaged.len() as u64 + 1) as usize;
                let piece = damaged[from.min(at)..at.max(from).min(from.min(at) + 40)].to_vec();
                damaged.splice(at..at, piece);
            }
            _ if at < damaged.len() => damaged[at] = rng.next() as u8,
            _ => {}
        }
    }
    damaged
}

/// Reads what damage left; what is accepted can be written and read again.
fn survives(bytes: &[u8], read: fn(&[u8]) -> Result<Snapshot, SnapshotError>) -> bool {
    match read(bytes) {
        Ok(snapshot) => {
            let again = pickle(&snapshot);
            Snapshot::read_pickle(&again[..]).expect("what was written");
            true
        }
        Err(error) => {
            assert!(error.offset() <= bytes.len() as u64, "{error}");
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

#[test]
fn damaged_pickles_do_no_harm() {
    let snapshots = chance::snapshots(1, 60, &HistoryOptions::default());
    let mut originals: Vec<Vec<u8>> = snapshots.iter().map(pickle).collect();
    originals.push(SMALL[..].to_vec());
    let mut accepted = 0;
    for seed in 0..MUTATIONS {
        let _context = Context(seed);
        let mut rng = Rng::new(seed);
        // The large one is slow.
        let which = if seed % 64 == 0 { originals.len() - 1 } else { rng.below(6) as usize };
        let bytes = damaged(&mut rng, &originals[which]);
        accepted += u64::from(survives(&bytes, |bytes| Snapshot::read_pickle(bytes)));
    }
    assert!(accepted > MUTATIONS / 100 && accepted < MUTATIONS, "{accepted}");
}

#[test]
fn damaged_json_does_no_harm() {
    let snapshots = chance::snapshots(1, 30, &HistoryOptions::default());
    let originals: Vec<Vec<u8>> = snapshots.iter().map(json).collect();
    let mut accepted = 0;
    for seed in 0..MUTATIONS {
        let _context = Context(seed);
        let mut rng = Rng::new(seed);
        let which = rng.below(6) as usize;
        let bytes = damaged(&mut rng, &originals[which]);
        accepted += u64::from(survives(&bytes, |bytes| Snapshot::read_json(bytes)));
    }
    assert!(accepted > MUTATIONS / 100 && accepted < MUTATIONS, "{accepted}");
}

/// Every file that ends too early says so, at its end.
#[test]
fn cut_files_are_refused() {
    let snapshot = &chance::snapshots(3, 30, &HistoryOptions::default())[0];
    let (pickle, json) = (pickle(snapshot), json(snapshot));
    for len in 0..pickle.len() {
        let error = Snapshot::read_pickle(&pickle[..len]).expect_err("cut");
        assert!(matches!(error.fault(), SnapshotFault::CutShort), "{len}: {error}");
        assert!(error.offset() <= len as u64 && error.offset() + 300 > len as u64, "{len}");
    }
    for len in 0..json.len() - 1 {
        let error = Snapshot::read_json(&json[..len]).expect_err("cut");
        assert!(matches!(error.fault(), SnapshotFault::CutShort), "{len}: {error}");
        assert_eq!(error.offset(), len as u64);
    }
}

fn says(bytes: &[u8], message: &str) {
    let error = Snapshot::read_pickle(bytes).expect_err("harm");
    assert_eq!(error.to_string(), message);
}

#[test]
fn harm_is_refused_by_name() {
    says(
        b"\x80\x02cposix\nsystem\n(X\x02\0\0\0lstR.",
        "byte 2: opcode 0x63 (GLOBAL) has no place \
        in a snapshot: only plain data is read",
    );
    says(
        b"\x80\x04\x93.",
        "byte 2: opcode 0x93 (STACK_GLOBAL) has no place in a snapshot: only \
        plain data is read",
    );
    says(b"\x80\x02\xff.", "byte 2: 0xff is no opcode of a pickle");
    says(b"\x80\x06N.", "byte 0: this is a pickle of protocol 6; 2 to 5 are read");
    says(b"(dp0\n.", "byte 0: a pickle of protocol 2 to 5 expected");
    says(b"\x80\x02N.", "byte 0: a dict with segments expected");
    says(b"\x80\x02}.", "byte 2: the key \"segments\" is missing");
    says(b"\x80\x02](u.", "byte 4: a dict below expected");
    says(b"\x80\x02}(e.", "byte 4: a list below expected");
    says(b"\x80\x02u.", "byte 2: a mark below expected");
    says(b"\x80\x02}(N(a.", "byte 6: a value below expected");
    says(b"\x80\x02}(Nu.", "byte 5: a value for each key expected");
    says(b"\x80\x02h\x07.", "byte 2: something in the memo expected");
    // Claims: 10^12 bytes of text, a memo of 4 billion places, an integer of 255 bytes.
    let mut text = b"\x80\x04\x8d".to_vec();
    text.extend_from_slice(&1_000_000_000_000_u64.to_le_bytes());
    says(&text, "byte 2: too many or too large: bytes of a text");
    says(b"\x80\x04X\xff\xff\xff\0abc", "byte 10: the file ends too early: it has been cut short");
    says(b"\x80\x02Nr\xff\xff\xff\xff.", "byte 3: too many or too large: places of the memo");
    says(b"\x80\x02\x8a\xff.", "byte 2: too many or too large: bits of an integer");
    says(
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff",
        "byte 11: the file ends too early: it \
        has been cut short",
    );
}

/// A segment whose blocks are one block `items` times, `items` times over.
fn bomb(items: usize) -> Vec<u8> {
    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend([b'X', text.len() as u8, 0, 0, 0]);
        bytes.extend_from_slice(text.as_bytes());
    }
    let mut bytes = b"\x80\x02}(".to_vec();
    text(&mut bytes, "segments");
    bytes.extend(b"](}(");
    for key in ["device", "address", "stream", "total_size"] {
        text(&mut bytes, key);
        bytes.extend(b"K\0");
    }
    text(&mut bytes, "blocks");
    bytes.extend(b"](}(");
    text(&mut bytes, "size");
    bytes.extend(b"K\0");
    text(&mut bytes, "state");
    text(&mut bytes, "inactive");
    bytes.extend(b"uq\x01");
    bytes.extend(b"h\x01".repeat(items));
    bytes.extend(b"euq\x02");
    bytes.extend(b"h\x02".repeat(items));
    bytes.extend(b"eu.");
    bytes
}

/// A file of some kilobytes that says 10^8 blocks.
#[test]
fn repetition_is_bounded() {
    assert_eq!(Snapshot::read_pickle(&bomb(3)[..]).expect("a few").segments.len(), 4);
    let error = Snapshot::read_pickle(&bomb(10_000)[..]).expect_err("a bomb");
    let what = "blocks and events for a file of this size";
    assert!(matches!(error.fault(), SnapshotFault::TooMuch { what: it } if *it == what), "{error}");
}

/// Nesting without end, and a list in itself.
#[test]
fn depth_is_no_danger() {
    let mut deep = b"\x80\x02".to_vec();
    deep.extend(b"](".repeat(1_000_000));
    assert!(Snapshot::read_pickle(&deep[..]).is_err());
    deep.extend(b"e".repeat(1_000_000));
    deep.push(b'.');
    assert!(Snapshot::read_pickle(&deep[..]).is_err());
    assert!(Snapshot::read_pickle(&b"\x80\x02]q\0h\0a."[..]).is_err());
    let error = Snapshot::read_json(&b"[".repeat(1_000_000)[..]).expect_err("deep");
    assert_eq!(error.to_string(), "byte 64: too many or too large: arrays within each other");
}

#[test]
fn json_errors_name_the_byte() {
    for (text, message) in [
        ("", "byte 0: the file ends too early: it has been cut short"),
        ("{\"segments\":[]} x", "byte 16: the end of the file expected"),
        ("{\"segments\":[,]}", "byte 13: a value of JSON expected"),
        ("{\"segments\" []}", "byte 12: `:` expected"),
        ("{\"segments\":[1]}", "byte 12: a list of dicts expected as \"segments\""),
        ("{\"segments\":{}}", "byte 0: a list expected as \"segments\""),
        ("{segments:[]}", "byte 1: a key in quotation marks expected"),
        ("[tru]", "byte 4: true, false or null expected"),
        ("[1 2]", "byte 3: `,` or `]` expected"),
        ("[1.5.2]", "byte 6: a number expected"),
        ("[\"\\q\"]", "byte 4: an escape of JSON expected"),
        ("[\"\\ud83c\\udf0a\\ud83c\"]", "byte 0: a list of dicts expected as \"segments\""),
        ("[{}]", "byte 1: the key \"device\" is missing"),
    ] {
        let error = Snapshot::read_json(text.as_bytes()).expect_err(text);
        assert_eq!(error.to_string(), message, "{text}");
    }
}
