//! Our own pickles and JSON: judged by the viewer's rules, read back, read by Python.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use aquifer::backend::Host;
use aquifer::report::exchange;
use aquifer::report::history::Action;
use aquifer::report::snapshot::{BlockState, Snapshot};
use aquifer::{Allocator, Config, HistoryOptions};

use crate::chance;
use crate::support::{Context, MIB};
use crate::viewer::{self, Seen};

pub(crate) fn pickle(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = Vec::new();
    snapshot.write_pickle(&mut bytes).expect("a vector takes everything");
    bytes
}

pub(crate) fn json(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = Vec::new();
    snapshot.write_json(&mut bytes).expect("a vector takes everything");
    bytes
}

/// What the viewer must find at the end.
fn expected(snapshot: &Snapshot) -> Seen {
    let blocks = || snapshot.segments.iter().flat_map(|segment| &segment.blocks);
    let live = || blocks().filter(|block| block.requested_size > 0);
    Seen {
        reserved: snapshot.segments.iter().map(|segment| segment.total_size as i64).sum(),
        live: live().count(),
        requested: live().map(|block| block.requested_size as i64).sum(),
        ..Seen::default()
    }
}

#[track_caller]
fn judged(snapshot: &Snapshot) -> Seen {
    let seen = viewer::open(&pickle(snapshot)).remove(snapshot.device as usize);
    let wanted = expected(snapshot);
    let found = (seen.reserved, seen.live, seen.requested);
    assert_eq!(found, (wanted.reserved, wanted.live, wanted.requested));
    seen
}

#[test]
fn the_viewer_opens_what_any_program_leaves() {
    for seed in 0..if cfg!(debug_assertions) { 8 } else { 100 } {
        for (device, snapshot) in
            chance::snapshots(seed, 400, &HistoryOptions::default()).iter().enumerate()
        {
            let _context = Context((seed, device));
            let seen = judged(snapshot);
            assert_eq!(seen.events, snapshot.history.len(), "nothing contradicts: nothing is lost");
        }
    }
}

/// Whatever the oldest events are that were lost, the rest can be played backwards.
#[test]
fn short_histories_lose_nothing_more() {
    for seed in 100..if cfg!(debug_assertions) { 104 } else { 140 } {
        let options =
            HistoryOptions { max_entries: 5 + seed as usize % 60, ..HistoryOptions::default() };
        for (device, snapshot) in chance::snapshots(seed, 300, &options).iter().enumerate() {
            let _context = Context((seed, device));
            assert_eq!(judged(snapshot).events, snapshot.history.len());
        }
    }
}

/// What others skipped makes no viewer stumble.
#[test]
fn histories_with_gaps_open_too() {
    for (index, skipped) in Action::ALL.into_iter().enumerate() {
        for also in &Action::ALL[index..] {
            let skip_actions = vec![skipped, *also];
            let options = HistoryOptions { skip_actions, ..HistoryOptions::default() };
            for snapshot in chance::snapshots(7 + index as u64, 120, &options) {
                let _context = Context((skipped, also));
                judged(&snapshot);
            }
        }
    }
}

/// While others allocate and free: the events are those before the state, no later ones.
#[test]
fn snapshots_in_the_middle_of_work_open() {
    let allocator = Allocator::new(Host::new(), Config::default());
    allocator.record_history(HistoryOptions { max_entries: 2000, ..HistoryOptions::default() });
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2_u32 {
            let (allocator, done) = (allocator.clone(), &done);
            scope.spawn(move || {
                let stream = allocator.stream(thread);
                let mut held = Vec::new();
                // A panic of the judge must not leave this at work.
                for _ in 0..2_000_000 {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    held.extend(allocator.allocate_on(&stream, 1000 + held.len() as u64 * 100_000));
                    if held.len() > 30 {
                        held.clear();
                        allocator.empty_cache();
                    }
                }
            });
        }
        for _ in 0..50 {
            let snapshot = allocator.memory_snapshot();
            let seen = viewer::open(&pickle(&snapshot)).remove(0);
            assert_eq!(seen.events, snapshot.history.len(), "nothing was left out");
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// What is read is what was written, in both formats, and both agree.
#[test]
fn files_read_back() {
    for seed in 200..if cfg!(debug_assertions) { 204 } else { 240 } {
        for mut snapshot in chance::snapshots(seed, 300, &HistoryOptions::default()) {
            let (pickle, json) = (pickle(&snapshot), json(&snapshot));
            let read = Snapshot::read_pickle(&pickle[..]).expect("our own pickle");
            assert_eq!(read, Snapshot::read_json(&json[..]).expect("our own JSON"));
            assert_eq!(self::pickle(&read), pickle, "a second time");
            assert_eq!(self::json(&read), json, "a second time");
            assert_eq!(read.history, snapshot.history);
            assert_eq!(read.annotations, snapshot.annotations);
            let words = |it: &Snapshot| {
                let name = it.device_name.clone();
                (it.device, name, it.device_total, it.limit, it.settings.clone())
            };
            assert_eq!(words(&read), words(&snapshot));
            // Ranges of pages come back as one segment for each run; all else is as it was.
            if snapshot.segments.iter().all(|segment| !segment.expandable) {
                snapshot.segments.sort_by_key(|segment| segment.place);
                assert_eq!(read.segments, snapshot.segments);
            }
            let free = |it: &Snapshot| {
                let blocks = it.segments.iter().flat_map(|segment| &segment.blocks);
                let free = blocks.filter(|block| block.state == BlockState::Free);
                free.map(|block| block.size).sum::<u64>()
            };
            assert_eq!(free(&read), free(&snapshot));
        }
    }
}

#[test]
fn several_devices_make_one_file() {
    let mut snapshots = chance::snapshots(1, 100, &HistoryOptions::default());
    snapshots.truncate(2);
    snapshots[0].device = 3;
    snapshots[1].device = 1;
    let mut bytes = Vec::new();
    exchange::write_pickle(&[&snapshots[0], &snapshots[1]], &mut bytes).expect("written");
    let seen = viewer::open(&bytes);
    assert_eq!(seen.len(), 4, "one list for each device up to the highest");
    assert_eq!((&seen[0], &seen[2]), (&Seen::default(), &Seen::default()));
    let read = exchange::read_pickle(&bytes[..]).expect("our own pickle");
    assert_eq!(read.iter().map(|snapshot| snapshot.device).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(read[1].history, snapshots[0].history);
    let twice = exchange::write_pickle(&[&snapshots[0], &snapshots[0]], std::io::sink());
    assert_eq!(twice.expect_err("twice").kind(), std::io::ErrorKind::InvalidInput);
    snapshots[0].device = exchange::DEVICES_MAX;
    assert!(snapshots[0].write_json(std::io::sink()).is_err());
    let empty = viewer::open(&pickle(&Snapshot::default()));
    assert_eq!(empty, [Seen::default()]);
}

/// Protocol 2, a few opcodes, batches of 1000, and equal things said once.
#[test]
fn pickles_are_small_and_plain() {
    let allocator = Allocator::new(Host::new(), Config::default());
    allocator.record_history(HistoryOptions::default());
    let tag = allocator.tag("weights");
    let held: Vec<_> = (0..2500)
        .map(|size| allocator.request(1000 + size).tag(tag).allocate().expect("room"))
        .collect();
    let bytes = pickle(&allocator.memory_snapshot());
    let mut counts = BTreeMap::new();
    viewer::show(&viewer::unpickle(&bytes, &mut counts));
    assert_eq!(bytes[..2], [0x80, 2]);
    let known = b"\x80.}(u]eXqrhjKMJ\x8aGN\x88\x89\x86";
    assert!(counts.keys().all(|opcode| known.contains(opcode)), "{counts:?}");
    let said = |text: &str| bytes.windows(text.len()).filter(|it| *it == text.as_bytes()).count();
    for text in ["requested_size", "[weights]", "active_allocated", file!()] {
        assert_eq!(said(text), 1, "{text}");
    }
    assert!(bytes.len() < 100 * held.len(), "{} bytes", bytes.len());
}

#[test]
fn tags_are_shown_and_come_back() {
    let allocator = Allocator::new(Host::new(), Config::default());
    allocator.record_history(HistoryOptions::default());
    let (tag, line) = (allocator.tag("model"), line!() + 1);
    let _held = allocator.request(3 * MIB).tag(tag).allocate().expect("room");
    let snapshot = allocator.memory_snapshot();
    let py = viewer::unpickle(&pickle(&snapshot), &mut BTreeMap::new());
    let blocks = py.get("segments").items()[0].get("blocks").items();
    let frames = blocks[0].get("frames").items();
    let shown = |frame: &viewer::Py| {
        let parts = (frame.get("filename").text(), frame.get("line").number());
        format!("{}:{}:{}", parts.0, parts.1, frame.get("name").text())
    };
    let shown: Vec<String> = frames.iter().map(shown).collect();
    assert_eq!(shown, ["tag:0:[model]".to_owned(), format!("{}:{line}:", file!())]);
    let events = py.get("device_traces").items()[0].items();
    let alloc = events.iter().find(|event| &*event.get("action").text() == "alloc");
    assert_eq!(&*alloc.expect("there is one").get("user_metadata").text(), "model");
    let read = Snapshot::read_pickle(&pickle(&snapshot)[..]).expect("our own pickle");
    let block = &read.segments[0].blocks[0];
    assert_eq!((block.tag.as_deref(), block.frames.len()), (Some("model"), 1));
}

/// Python itself loads them, and both formats hold the same.
#[test]
fn python_loads_them() {
    const SCRIPT: &str = "import sys, pickle, json\n\
        a = pickle.load(open(sys.argv[1], 'rb')); b = json.load(open(sys.argv[2]))\n\
        a = json.loads(json.dumps(a))\n\
        assert a == b\n\
        print(len(a['segments']), sum(len(t) for t in a['device_traces']))";
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    for (index, snapshot) in
        chance::snapshots(300, 300, &HistoryOptions::default()).iter().enumerate()
    {
        let paths = ["pickle", "json"].map(|end| directory.join(format!("python-{index}.{end}")));
        std::fs::write(&paths[0], pickle(snapshot)).expect("written");
        std::fs::write(&paths[1], json(snapshot)).expect("written");
        let python = Command::new("python3").args(["-c", SCRIPT]).args(&paths).output();
        let Ok(output) = python else {
            let _ = writeln!(std::io::stderr(), "python3 is not there: not checked");
            return;
        };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let counts: Vec<usize> = said.split_whitespace().map(|n| n.parse().unwrap()).collect();
        assert_eq!(counts[1], snapshot.history.len());
    }
}

struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_told() {
    let snapshot = Snapshot::default();
    for written in [snapshot.write_pickle(Full), snapshot.write_json(Full)] {
        assert_eq!(written.expect_err("no room").kind(), std::io::ErrorKind::StorageFull);
    }
}
