//! The program `aquifer` from outside: its help, its figures, and what it says of bad input.
#![cfg(feature = "cli")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const ARTICLE: &str = "benches/traces/article-linear-adam.mtrace.gz";
const SMALL: &str = "benches/traces/cs336-silmont-small.mtrace.gz";

/// Every key of a replay's object, in order.
const KEYS: [&str; 22] = [
    "trace",
    "policy",
    "backend",
    "events",
    "allocations",
    "peak_live_bytes",
    "peak_allocated_bytes",
    "peak_active_bytes",
    "peak_reserved_bytes",
    "mean_reserved_over_mean_live",
    "min_capacity_bytes",
    "reserved_over_live",
    "min_capacity_over_live",
    "backend_calls",
    "calls_per_1000",
    "maps_unmaps_per_1000",
    "calls_per_1000_warm",
    "calls_per_1000_min_capacity",
    "oom",
    "oom_event",
    "ns_per_event_cold",
    "ns_per_event_warm",
];

const CALLS: [&str; 9] =
    ["allocate", "free", "map", "unmap", "set_access", "record", "wait", "query", "synchronize"];

fn aquifer(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    command.output().expect("the program starts")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("standard output is text")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("standard error is text")
}

/// The objects that a replay printed, after it ended with `code`.
fn objects(code: i32, args: &[&str]) -> Vec<Value> {
    let output = aquifer(&[&["replay", "--format", "json", "--rounds", "1"], args].concat());
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
    let parse = |line| serde_json::from_str(line).expect("a line is an object");
    stdout(&output).lines().map(parse).collect()
}

fn object(code: i32, args: &[&str]) -> Value {
    let [object] = <[Value; 1]>::try_from(objects(code, args)).expect("one file, one object");
    object
}

/// Runs it, and wants the exit code 2, nothing on standard output, and one line on standard error
/// with `reason` in it.
fn refused(args: &[&str], reason: &str) {
    let output = aquifer(args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
    assert_eq!(stdout(&output), "", "{args:?}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    assert!(said.starts_with("aquifer: ") && said.ends_with('\n'), "{args:?}: {said}");
    assert!(said.contains(reason), "{args:?}: {said}");
}

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A file of the tests' own, with these bytes.
fn file(name: &str, bytes: &[u8]) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, bytes).expect("the file can be written");
    path.to_str().expect("the path is text").to_owned()
}

#[test]
fn help_teaches() {
    for (args, words) in [
        (&["--help"][..], &["demo", "replay", "bench", "Exit codes"][..]),
        (
            &["replay", "--help"],
            &["Examples:", "--min-capacity", "oom_event", "TiB", "--plot", "--set", "per_1000"],
        ),
        (&["bench", "--help"], &["Examples:", "--scenario", "fragmented", "p99_9_ns", "--set"]),
        (&["--version"], &[env!("CARGO_PKG_VERSION")]),
    ] {
        let output = aquifer(args);
        assert_eq!(output.status.code(), Some(0));
        for word in words {
            assert!(stdout(&output).contains(word), "{args:?} says nothing of {word}");
        }
        assert_eq!(stderr(&output), "");
    }
    let output = aquifer(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Usage: aquifer"));
}

#[test]
fn an_object_has_its_keys_in_order() {
    let object = object(0, &["--policy", "torch", SMALL]);
    let keys = |value: &Value| -> Vec<String> {
        value.as_object().expect("an object").keys().cloned().collect()
    };
    let sorted = |names: &[&str]| {
        let mut names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
        names.sort();
        names
    };
    assert_eq!(keys(&object), sorted(&KEYS));
    assert_eq!(keys(&object["backend_calls"]), sorted(&CALLS));
    let output = aquifer(&["replay", "--format", "json", "--rounds", "1", SMALL]);
    let at = |key: &str| stdout(&output).find(&format!("\"{key}\":")).expect("the key is there");
    assert!(KEYS.is_sorted_by_key(|key| at(key)), "{}", stdout(&output));

    assert_eq!(object["trace"], "cs336-silmont-small");
    assert_eq!(object["policy"], "torch");
    assert_eq!(object["backend"], "sim");
    assert_eq!(object["oom"], false);
    assert_eq!((&object["oom_event"], &object["min_capacity_bytes"]), (&Value::Null, &Value::Null));
    let bytes = |key: &str| object[key].as_u64().expect("a number of bytes");
    assert!(bytes("peak_live_bytes") <= bytes("peak_allocated_bytes"));
    assert!(bytes("peak_allocated_bytes") <= bytes("peak_active_bytes"));
    assert!(bytes("peak_active_bytes") <= bytes("peak_reserved_bytes"));
    assert!(object["mean_reserved_over_mean_live"].as_f64() >= Some(1.0));
    assert!(object["ns_per_event_cold"].as_f64() > Some(0.0));
    assert!(object["ns_per_event_warm"].as_f64() > Some(0.0));
}

#[test]
fn the_figures_of_pytorch() {
    let torch = ["--policy", "torch", ARTICLE];
    let plain = object(0, &torch);
    assert_eq!(plain["events"], 25_759);
    assert_eq!(plain["allocations"], 12_358);
    assert_eq!(plain["peak_live_bytes"], 1_601_917_364u64);
    assert_eq!(plain["peak_reserved_bytes"], 1_681_915_904u64);
    assert_eq!(plain["backend_calls"]["allocate"], 180);
    assert_eq!(plain["backend_calls"]["free"], 178);

    let expandable = object(0, &[&["--expandable"][..], &torch].concat());
    assert_eq!(expandable["peak_reserved_bytes"], 1_616_904_192u64);
    let calls = &expandable["backend_calls"];
    assert_eq!((&calls["map"], &calls["unmap"]), (&344.into(), &342.into()));
    assert_eq!(calls["set_access"], 174);
    let by_config = object(0, &[&["--config", "expandable_segments:True"][..], &torch].concat());
    assert_eq!(by_config["backend_calls"], *calls);

    let unmarked = object(0, &[&["--ignore-markers"][..], &torch].concat());
    assert_eq!(unmarked["peak_reserved_bytes"], 3_951_034_368u64);
    assert_eq!(unmarked["backend_calls"]["allocate"], 138);
    assert_eq!(unmarked["backend_calls"]["free"], 0);
}

#[test]
fn the_ratios_are_those_of_the_figures() {
    let args = ["--policy", "torch", "--expandable", "--min-capacity", ARTICLE];
    let object = object(0, &args);
    let number = |key: &str| object[key].as_f64().expect(key);
    let near = |key: &str, value: f64| {
        assert!((number(key) - value).abs() < 1e-3, "{key}: {}, not {value}", number(key));
    };
    let live = number("peak_live_bytes");
    near("reserved_over_live", number("peak_reserved_bytes") / live);
    near("min_capacity_over_live", number("min_capacity_bytes") / live);
    // 344 maps, 342 unmaps, 174 times access and 24 waits of the host, for 12,358 allocations.
    let calls = object["backend_calls"].as_object().expect("an object").values();
    let calls: f64 = calls.filter_map(Value::as_f64).sum();
    near("calls_per_1000", calls * 1000.0 / 12_358.0);
    near("maps_unmaps_per_1000", (344.0 + 342.0) * 1000.0 / 12_358.0);
    assert!(number("calls_per_1000_warm") <= number("calls_per_1000"));
    assert!(number("calls_per_1000_min_capacity") > 0.0);
    // Without the search nothing is said of its device; in a trace without one, of no allocation.
    let empty = file("nothing.mtrace", b"# mtrace: 1\nm begin\n");
    let object = self::object(0, &[&empty]);
    for key in ["reserved_over_live", "calls_per_1000", "calls_per_1000_min_capacity"] {
        assert_eq!(object[key], Value::Null, "{key}");
    }
}

#[test]
fn a_trace_that_repeats_itself_calls_less_when_warm() {
    let text = b"# mtrace: 1\na 0 4096 0\na 1 30000000 0\nf 0\nf 1\n";
    let object = object(0, &["--min-capacity", &file("warm.mtrace", text)]);
    assert_eq!(
        (&object["calls_per_1000"], &object["calls_per_1000_warm"]),
        (&1000.0.into(), &0.0.into())
    );
    assert_eq!(object["calls_per_1000_min_capacity"], 1000.0);
}

#[test]
fn knobs_can_be_set() {
    let plain = object(0, &[ARTICLE]);
    let off = object(0, &["--set", "headroom=off", "--set", "headroom_learned_max=0", ARTICLE]);
    assert!(off["peak_reserved_bytes"].as_u64() >= plain["peak_reserved_bytes"].as_u64());
    assert_ne!(off["backend_calls"], plain["backend_calls"]);
    // All that makes the default policy differ, set back: PyTorch's figures.
    let torch = [
        "headroom=off",
        "split_remainder_large=1049088",
        "tie_walk=all",
        "front_cache=false",
        "spare_idle_count=0",
        "spare_idle_ratio=all",
        "whole_fit_parts=all",
        "segment_share=0",
        "segment_batch=0",
        "cross_stream=false",
    ];
    let torch: Vec<&str> = torch.iter().flat_map(|knob| ["--set", knob]).chain([ARTICLE]).collect();
    assert_eq!(object(0, &torch)["backend_calls"]["allocate"], 180);
}

#[test]
fn a_plot_is_drawn() {
    let path = file("plot.svg", b"");
    for (args, curves) in [(&[][..], 3), (&["--policy", "torch"], 2)] {
        let output =
            aquifer(&[&["replay", "--rounds", "1", "--plot", &path, SMALL], args].concat());
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
        let picture = fs::read_to_string(&path).expect("the picture was written");
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        let drawn =
            picture.lines().filter(|line| line.contains(" d=\"M64 ") && line.contains("H846"));
        let drawn = drawn.filter(|line| !line.contains("grid"));
        assert_eq!(drawn.count(), curves, "{picture}");
        assert!(picture.contains("cs336-silmont-small") && picture.contains("policy"));
    }
    // The figures are printed all the same.
    let nowhere = "no/such/folder/plot.svg";
    let output = aquifer(&["replay", "--rounds", "1", "--plot", nowhere, SMALL]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with(&format!("aquifer: --plot: {nowhere}: ")));
    assert!(stdout(&output).contains("cs336-silmont-small"));
    refused(&["replay", "--plot", &path, SMALL, ARTICLE], "--plot draws one trace");
    refused(&["replay", SMALL, "--plot"], "--plot");
}

#[test]
fn running_out_of_memory_is_reported_and_stops_no_other_file() {
    let big = file("big.mtrace", b"# mtrace: 1\nm begin\na 0 4096 0\na 1 8388608 0\nf 0\n");
    let args = ["--capacity", "4MiB", &big, SMALL];
    let objects = objects(1, &args);
    assert_eq!(objects.len(), 2);
    assert_eq!((&objects[0]["oom"], &objects[0]["oom_event"]), (&true.into(), &2.into()));
    assert_eq!(objects[0]["ns_per_event_cold"], Value::Null);
    assert_eq!(objects[0]["peak_reserved_bytes"], 2 << 20);
    let output = aquifer(&[&["replay"][..], &args].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("OOM at 2"), "{}", stdout(&output));
    let first = stderr(&output).lines().next().expect("a complaint").to_owned();
    assert!(first.contains("big.mtrace: event 2: out of memory"), "{first}");
}

#[test]
fn the_smallest_device_fits_and_a_smaller_one_does_not() {
    let args = ["--policy", "torch", "--min-capacity", ARTICLE];
    let object = object(0, &args);
    let least = object["min_capacity_bytes"].as_u64().expect("a number of bytes");
    assert!(Some(least) >= object["peak_live_bytes"].as_u64());
    assert!(Some(least) <= object["peak_reserved_bytes"].as_u64());
    for (capacity, code) in [(least, 0), (least - least / 100, 1)] {
        let capacity = capacity.to_string();
        let object = self::object(code, &["--policy", "torch", "--capacity", &capacity, ARTICLE]);
        assert_eq!(object["oom"], code == 1);
    }
}

#[test]
fn the_host_serves_too() {
    let text = b"# mtrace: 1\na 0 4096 0\na 1 3000000 1\nu 0 1\nf 0\nf 1\nm empty_cache\n";
    let object = object(0, &["--backend", "host", &file("host.mtrace", text)]);
    assert_eq!(object["backend"], "host");
    assert_eq!(object["backend_calls"]["allocate"], 2);
    assert_eq!(object["backend_calls"]["free"], 2);
    // A small segment, and 3,000,000 bytes in pages of 64 KiB.
    assert_eq!(object["peak_reserved_bytes"], (2 << 20) + 46 * (64 << 10));
}

#[test]
fn bad_files_are_refused() {
    let packed = fs::read(in_repository(ARTICLE)).expect("the trace is there");
    let cut = file("cut.mtrace.gz", &packed[..packed.len() / 2]);
    refused(&["replay", &cut], "cut.mtrace.gz: line ");
    refused(&["replay", "missing.mtrace"], "missing.mtrace: ");
    for (name, text, reason) in [
        ("binary", &b"\x7fELF\x02\x01\x01\0\0\0"[..], "line 1: "),
        ("empty", b"", "mtrace: 1"),
        ("huge", b"# mtrace: 1\na 0 99999999999999999999 0\n", "line 2: the field "),
        ("twice", b"# mtrace: 1\na 7 512 0\nf 7\na 7 512 0\n", "line 4: the id 7 "),
        ("unknown", b"# mtrace: 1\na 7 512 0\nf 8\n", "line 3: no allocation has the id 8"),
        ("freed", b"# mtrace: 1\na 7 512 0\nf 7\nf 7\n", "line 4: allocation 7 "),
    ] {
        refused(&["replay", &file(name, text)], reason);
        refused(&["replay", "--format", "json", &file(name, text)], name);
    }
}

#[test]
fn a_bad_file_stops_no_other_file() {
    let objects = objects(2, &["missing.mtrace", SMALL]);
    assert_eq!(objects.len(), 1);
    assert_eq!(objects[0]["trace"], "cs336-silmont-small");
}

#[test]
fn a_trace_of_too_many_streams_is_refused_and_stops_no_other_file() {
    let with_streams = |count: u64| {
        let events = (0..count).map(|number| format!("a {number} 512 {number}\n"));
        format!("# mtrace: 1\n{}", events.collect::<String>())
    };
    let path = file("streams.mtrace", with_streams(4096).as_bytes());
    refused(&["replay", &path], "4095 streams; at most 4094 can be replayed");
    assert_eq!(objects(2, &[&path, ARTICLE]).len(), 1);
}

#[test]
fn bad_options_are_refused() {
    for (args, reason) in [
        (&["--policy", "other"][..], "possible values: default, torch"),
        (&["--backend", "cuda"], "--backend"),
        (&["--format", "xml"], "--format"),
        (&["--rounds", "0"], "--rounds"),
        (&["--rounds", "many"], "--rounds"),
        (&["--capacity", "12XB"], "`XB` is no unit"),
        (&["--capacity", "0"], "0 bytes"),
        (&["--capacity", "99999999TiB"], "64 bits"),
        (&["--config", "max_split:128"], "max_split"),
        (&["--config", "max_split_size_mb:lots"], "max_split_size_mb: lots is not allowed"),
        (&["--config", "nothing"], "nothing"),
        (&["--set", "headroom"], "--set: `headroom` is no setting"),
        (&["--set", "head=1"], "--set: `head` is no knob; the knobs are headroom, "),
        (&["--set", "headroom=-1"], "--set: headroom: -1 is not allowed: a finite number"),
        (&["--set", "front_cache=perhaps"], "--set: front_cache: perhaps is not allowed: true"),
        (&["--set", "small_max=4MiB"], "--set: small_max"),
        (&["--backend", "host", "--expandable"], "virtual memory"),
        (&["--unknown"], "--unknown"),
    ] {
        refused(&[&["replay"], args, &[SMALL]].concat(), reason);
    }
    refused(&["replay"], "<FILE>");
    refused(&["fly"], "fly");
    refused(&["bench", "--scenario", "cold"], "possible values: hit, mixed, fragmented");
    refused(&["bench", "--threads", "0"], "--threads");
    refused(&["bench", "--set", "tie_walk=0"], "--set: tie_walk: 0 is not allowed: at least 1");
    refused(&["bench", "--scenario", "mixed", "--live", "0"], "--live");
}

#[test]
fn a_table_is_aligned() {
    let output = aquifer(&["replay", "--rounds", "1", SMALL, ARTICLE]);
    assert_eq!(output.status.code(), Some(0));
    let lines: Vec<_> = stdout(&output).lines().collect();
    assert_eq!(lines.len(), 5, "{}", stdout(&output));
    assert!(lines[0].contains("policy default; device sim"));
    let end = |line: &str, word: &str| line.find(word).map(|at| at + word.len());
    assert_eq!(end(lines[2], "events"), end(lines[4], "25759"));
    assert_eq!(lines[2].find("backend calls"), lines[4].find("allocate "));
}

#[test]
fn bench_measures_every_scenario() {
    for (scenario, threads) in [("hit", 1), ("hit", 2), ("mixed", 2), ("fragmented", 1)] {
        let args = ["--scenario", scenario, "--threads", &threads.to_string()];
        let size = ["--live", "100", "--pairs", "1000"];
        let output = aquifer(&[&["bench", "--format", "json"], &args[..], &size].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let object: Value = serde_json::from_str(stdout(&output)).expect("one object");
        assert_eq!(object["scenario"], scenario);
        assert_eq!((&object["live"], &object["policy"]), (&100.into(), &"default".into()));
        assert_eq!(object["threads"], threads);
        assert_eq!(object["pairs"], 1000 * threads);
        assert!(object["ns_per_pair"].as_f64() > Some(0.0));
        assert!(object["pairs_per_second"].as_f64() > Some(0.0));
        let [p50, p99, p99_9] = ["p50_ns", "p99_ns", "p99_9_ns"].map(|key| object[key].as_f64());
        assert!(p50.is_some() && p50 <= p99 && p99 <= p99_9, "{object}");
        assert_eq!(object.as_object().map(serde_json::Map::len), Some(10));
    }
    let output = aquifer(&["bench", "--pairs", "1000"]);
    assert!(stdout(&output).contains("ns/pair"), "{}", stdout(&output));
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
    command.args(["replay", "--rounds", "1", "--format", "json", SMALL, SMALL]);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
}

const TORCH: &str = "tests/formats/torch_snapshot_small.pickle";

/// A recording goes through every format that can be read, and stays the same program.
#[test]
fn recordings_are_converted() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for ending in ["pickle", "json", "csv", "mtrace", "mtrace.gz"] {
        let path = directory.join(format!("converted.{ending}"));
        let path = path.to_str().expect("the path is text");
        let output = aquifer(&["convert", TORCH, path]);
        assert_eq!(output.status.code(), Some(0), "{ending}: {}", stderr(&output));
        let replayed = object(0, &[path]);
        assert_eq!(replayed["trace"], "converted");
        assert_eq!(replayed["allocations"], 36);
        assert_eq!(replayed["peak_live_bytes"], 3_249_143_816_u64);
        // Back to a snapshot: of the file itself, or of a replay.
        let again = directory.join("again.pickle");
        let again = again.to_str().expect("the path is text");
        assert_eq!(aquifer(&["convert", path, again]).status.code(), Some(0), "{ending}");
        assert_eq!(object(0, &[again])["peak_live_bytes"], 3_249_143_816_u64);
        let summary = aquifer(&["summary", again]);
        assert!(stdout(&summary).contains("3.03 GiB as asked for"), "{}", stdout(&summary));
    }
    for ending in ["perfetto.json", "speedscope.json", "dhat.json", "vma.json", "folded"] {
        let path = directory.join(format!("viewed.{ending}"));
        let path = path.to_str().expect("the path is text");
        let output = aquifer(&["convert", SMALL, path]);
        assert_eq!(output.status.code(), Some(0), "{ending}: {}", stderr(&output));
    }
}

#[test]
fn bad_recordings_are_refused() {
    let bytes = fs::read(in_repository(TORCH)).expect("the file is there");
    let cut = file("cut.pickle", &bytes[..500]);
    refused(&["summary", &cut], "byte 500: the file ends too early");
    refused(&["convert", &cut, "never.json"], "byte 500: the file ends too early");
    refused(&["replay", &cut], "byte 500: the file ends too early");
    refused(&["convert", TORCH, "never.what"], "say one with --to");
    refused(&["convert", "--device", "3", TORCH, "never.json"], "no device 3 in this file");
    refused(&["convert", "--from", "rmm", TORCH, "never.json"], "line 1");
    let code = file("code.pickle", b"\x80\x02cos\nsystem\n.");
    refused(&["summary", &code], "byte 2: opcode 0x63 (GLOBAL)");
}
