//! Histories as traces, logs of RMM, and profiles: the same bytes wherever they go.

use aquifer::backend::Sim;
use aquifer::report::exchange::When;
use aquifer::report::snapshot::Snapshot;
use aquifer::trace::{Event, Fault, Trace};
use aquifer::{Allocator, Config, HistoryOptions};

use crate::chance;
use crate::damage::{MUTATIONS, damaged};
use crate::support::{Context, Rng};
#[cfg(feature = "gz")]
use crate::torch::SMALL;

/// The shipped trace was made from the same snapshot, by Python.
#[cfg(feature = "gz")]
#[test]
fn a_genuine_snapshot_becomes_the_trace_that_it_was() {
    let trace = Trace::from_snapshot(&Snapshot::read_pickle(SMALL).expect("PyTorch wrote it"));
    let trace = trace.expect("a trace");
    let path = "benches/traces/cs336-silmont-small.mtrace.gz";
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let shipped = Trace::open(root.join(path)).expect("shipped");
    assert_eq!(trace.events, shipped.events);
    assert_eq!(trace.summary().peak_live_bytes, 3_249_143_816);
}

/// Whatever a history lacks, its trace obeys the rules, and says what the last state says.
#[test]
fn any_history_becomes_a_trace() {
    for seed in 0..30 {
        let max_entries = [1_000_000, 50][seed as usize % 2];
        let options = HistoryOptions { max_entries, ..HistoryOptions::default() };
        for snapshot in chance::snapshots(seed, 200, &options) {
            let _context = Context(seed);
            let trace = Trace::from_snapshot(&snapshot).expect("a trace");
            let mut text = Vec::new();
            trace.write(&mut text).expect("it obeys the rules");
            assert_eq!(Trace::read(&text[..]).expect("its own text"), trace);
            let live: u64 = live(&trace).iter().sum();
            let held = snapshot.segments.iter().flat_map(|segment| &segment.blocks);
            let held = held
                .filter(|block| block.state == aquifer::report::snapshot::BlockState::Allocated);
            assert_eq!(live, held.map(|block| block.requested_size).sum::<u64>());
            profiles_agree(&snapshot, live, trace.summary().peak_live_bytes);
        }
    }
}

fn live(trace: &Trace) -> Vec<u64> {
    let mut live = std::collections::BTreeMap::new();
    for event in &trace.events {
        match event {
            Event::Allocate { id, size, .. } => drop(live.insert(*id, *size)),
            Event::Free { id } => drop(live.remove(id)),
            _ => {}
        }
    }
    live.into_values().collect()
}

/// Each profile adds up to the live bytes.
fn profiles_agree(snapshot: &Snapshot, live: u64, peak: u64) {
    for (when, bytes) in [(When::Now, live), (When::Peak, peak)] {
        let mut folded = Vec::new();
        snapshot.write_folded(when, &mut folded).expect("a vector takes everything");
        let folded = String::from_utf8(folded).expect("text");
        let weight = |line: &str| -> u64 {
            line.rsplit_once(' ').expect("a weight").1.parse().expect("a number")
        };
        assert_eq!(folded.lines().map(weight).sum::<u64>(), bytes, "{when:?}");
    }
}

#[cfg(feature = "cli")]
#[test]
fn profiles_are_json() {
    use serde_json::Value;
    let sum = |list: &Value, key: &str| -> u64 {
        let items = list.as_array().expect("a list").iter();
        items
            .map(|item| if key.is_empty() { item } else { &item[key] })
            .map(|n| n.as_u64().unwrap())
            .sum()
    };
    let snapshot = Snapshot::read_pickle(SMALL).expect("PyTorch wrote it");
    let mut bytes = Vec::new();
    snapshot.write_speedscope(&mut bytes).expect("written");
    let speedscope: Value = serde_json::from_slice(&bytes).expect("JSON");
    for (profile, live) in [(0, 3_249_143_816), (1, 31_719_428)] {
        let profile = &speedscope["profiles"][profile];
        assert_eq!(
            (sum(&profile["weights"], ""), profile["endValue"].as_u64()),
            (live, Some(live))
        );
    }
    bytes.clear();
    snapshot.write_dhat(&mut bytes).expect("written");
    let dhat: Value = serde_json::from_slice(&bytes).expect("JSON");
    let sums = ["gb", "eb", "tbk"].map(|key| sum(&dhat["pps"], key));
    assert_eq!(sums, [3_249_143_816, 31_719_428, 36]);
    bytes.clear();
    snapshot.write_vma(&mut bytes).expect("written");
    let vma: Value = serde_json::from_slice(&bytes).expect("JSON");
    let total = ["BlockCount", "BlockBytes", "AllocationCount", "UnusedRangeCount"];
    let total = total.map(|key| vma["Total"][key].as_u64().unwrap());
    assert_eq!(total, [9, 3_781_165_056, 10, 10]);
    bytes.clear();
    snapshot.write_perfetto(&mut bytes).expect("written");
    let perfetto: Value = serde_json::from_slice(&bytes).expect("JSON");
    let counters = perfetto["traceEvents"].as_array().expect("a list").iter();
    let mut levels = counters.filter(|event| event["ph"] == "C").map(|event| &event["args"]);
    let highest = levels.clone().map(|level| level["allocated"].as_u64().unwrap()).max();
    assert_eq!(highest, Some(3_249_143_816));
    assert_eq!(levels.next_back().expect("one")["reserved"], 3_781_165_056_u64);
}

const LOG: &str = "Thread,Time,Action,Pointer,Size,Stream\n\
    7,12:00:00.000001,allocate,0x7f00,1024,0x0\n\
    7,12:00:00.000002,allocate,0x8f00,512,0x55d0\n\
    7,12:00:00.000003,free,0x7f00,1024,0x0\n\
    7,12:00:00.000004,allocate failure,(nil),99999999999,0x0\n\
    7,12:00:00.000005,allocate,0x0,0,0x0\n\
    7,12:00:00.000006,free,0x0,0,0x0\n\
    7,12:00:00.000007,allocate,0x7f00,2048,0x55d0\n";

#[test]
fn logs_of_rmm_are_read_and_written() {
    let trace = Trace::read_rmm(LOG.as_bytes()).expect("a log");
    let allocate = |id, size, stream| Event::Allocate { id, size, stream };
    let failure = Event::Marker("allocate failure 99999999999".to_owned());
    let expected = [
        allocate(0, 1024, 0),
        allocate(1, 512, 1),
        Event::Free { id: 0 },
        failure,
        allocate(2, 2048, 1),
    ];
    assert_eq!(trace.events, expected);
    let mut log = Vec::new();
    trace.write_rmm(&mut log).expect("written");
    assert_eq!(Trace::read_rmm(&log[..]).expect("our own log").events, expected);
    for (from, to, says) in [
        ("Thread", "Threat", "line 1: no header of an RMM log"),
        ("free,0x7f00", "free,0x7f01", "line 4: nothing lives at 0x7f01"),
        ("allocate,0x8f00", "allocate,0x7f00", "line 3: what lives at 0x7f00 has not been freed"),
        ("0x55d0", "55x", "line 3: the field Stream is not a hexadecimal number"),
        ("1024", "+1024", "line 2: the field Size is not a decimal number"),
    ] {
        let error = Trace::read_rmm(LOG.replace(from, to).as_bytes()).expect_err(says);
        assert_eq!(error.to_string(), says);
    }
    let cut = Trace::read_rmm(&LOG.as_bytes()[..LOG.len() - 1]).expect_err("cut");
    assert!(matches!(cut.fault(), Fault::CutShort));
}

#[test]
fn damaged_logs_do_no_harm() {
    for seed in 0..MUTATIONS {
        let _context = Context(seed);
        let bytes = damaged(&mut Rng::new(seed), LOG.as_bytes());
        if let Ok(trace) = Trace::read_rmm(&bytes[..]) {
            trace.write(std::io::sink()).expect("it obeys the rules");
        }
    }
}

/// A trace that was replayed tells in its history what it was.
#[test]
fn a_replay_leaves_its_trace() {
    let trace = Trace::read_rmm(LOG.as_bytes()).expect("a log");
    let program = aquifer::trace::replay::Program::compile(&trace, true);
    let allocator = Allocator::new(crate::support::sim(1 << 30), Config::default());
    let streams: Vec<aquifer::Stream<Sim>> =
        program.streams().iter().map(|&raw| allocator.stream(raw)).collect();
    allocator.record_history(HistoryOptions::default());
    program.run(&allocator, &streams);
    let again = Trace::from_snapshot(&allocator.memory_snapshot()).expect("a trace");
    let allocations = |trace: &Trace| -> Vec<Event> {
        let is = |event: &&Event| matches!(event, Event::Allocate { .. });
        trace.events.iter().filter(is).cloned().collect()
    };
    assert_eq!(allocations(&again), allocations(&trace));
}
