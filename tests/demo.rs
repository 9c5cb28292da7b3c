//! The program's main job, from outside: `aquifer demo` tells where memory is, who holds it, and
//! gives it back, and what it says adds up. On memory of this machine; `demo/gpu.rs` and
//! `cuda_demo.rs` have the GPU.
#![cfg(feature = "cli")]

#[cfg(feature = "wgpu")]
#[path = "support/gpu.rs"]
mod gpu;
#[cfg(feature = "wgpu")]
#[path = "demo/gpu.rs"]
mod on_gpu;

use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Weights, bias, and Adam's two moments of each.
const MODEL_BYTES: u64 = 3 * 1_001_000 * 4;

/// The demo where CUDA finds no device, whether there is one or not.
fn demo(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
    command.env("CUDA_VISIBLE_DEVICES", "-1");
    command.arg("demo").args(args).output().expect("the program runs")
}

/// Few and small steps: tests are not optimised.
fn json(args: &[&str]) -> Value {
    let base = ["--backend", "host", "--steps", "3", "--batch", "8", "--format", "json"];
    let output = demo(&[&base, args].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{}: {error}", output.status);
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// The number at a path of keys with dots between them.
fn number(value: &Value, path: &str) -> u64 {
    let found = path.split('.').try_fold(value, |value, key| value.get(key));
    let number = found.and_then(Value::as_u64);
    number.unwrap_or_else(|| panic!("no number at {path} in {value}"))
}

#[test]
fn what_was_deleted_is_given_back() {
    let report = json(&[]);
    let mut keys: Vec<_> = report.as_object().expect("an object").keys().collect();
    keys.sort();
    let expected = [
        "adapter",
        "after_delete",
        "after_empty_cache",
        "backend",
        "before",
        "device_bytes_returned",
        "held",
        "loss_first",
        "loss_last",
        "ms_per_step",
        "process_bytes_returned",
        "reference_deviation",
        "reference_loss_deviation",
        "steps",
    ];
    assert_eq!(keys, expected);
    assert_eq!(report["backend"], "host");
    assert!(report["adapter"].as_str().is_some_and(|text| text.contains("host memory")));
    assert_eq!(report["steps"], 3);
    assert_eq!(report["reference_deviation"], Value::Null);
    let (first, last) = (report["loss_first"].as_f64(), report["loss_last"].as_f64());
    assert!(last < first && last > Some(0.0), "{first:?} -> {last:?}");

    assert!(number(&report, "before.allocated_bytes") >= MODEL_BYTES);
    let reserved = number(&report, "before.reserved_bytes");
    assert!(reserved >= number(&report, "before.allocated_bytes"));
    assert_eq!(number(&report, "after_delete.allocated_bytes"), 0);
    assert_eq!(number(&report, "after_delete.reserved_bytes"), reserved);
    assert_eq!(number(&report, "after_empty_cache.allocated_bytes"), 0);
    assert_eq!(number(&report, "after_empty_cache.reserved_bytes"), 0);
    assert_eq!(report["held"], Value::Array(Vec::new()));
    // Segments have pages that nobody touched, which were never resident.
    if cfg!(target_os = "linux") {
        let returned = number(&report, "process_bytes_returned");
        assert!(returned >= reserved / 2, "{returned} B of {reserved} B");
    }
}

#[test]
fn what_is_kept_is_named_with_its_line() {
    let report = json(&["--leak"]);
    let allocated = number(&report, "after_empty_cache.allocated_bytes");
    assert_eq!(number(&report, "after_delete.allocated_bytes"), allocated);
    assert!(number(&report, "after_empty_cache.reserved_bytes") >= allocated);
    let held = report["held"].as_array().expect("a list");
    assert!(!held.is_empty());
    assert_eq!(held.iter().map(|holder| number(holder, "bytes")).sum::<u64>(), allocated);
    // Each of 3 steps left 8 × 1000 predictions and a loss.
    assert!(allocated >= 3 * (8 * 1000 + 1) * 4);
    for (holder, tag) in held.iter().zip(["activations", "loss"]) {
        assert_eq!(number(holder, "count"), 3);
        assert_eq!(holder["tag"], tag);
        let location = holder["location"].as_str().expect("a place");
        let (file, line) = location.rsplit_once(':').expect("file:line");
        assert!(file.ends_with("linear/host.rs"), "{location}");
        assert!(line.parse::<u32>().is_ok_and(|line| line > 0), "{location}");
    }
}

#[test]
fn the_text_names_moments_and_holders() {
    let output = demo(&["--backend", "host", "--steps", "1", "--batch", "2", "--leak"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    for part in [
        "before deleting",
        "after deleting them",
        "after empty_cache",
        "memory_allocated",
        "memory_reserved",
        "Who holds it still",
        "linear/host.rs:",
        "activations",
    ] {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
    assert!(text.lines().all(|line| line.len() <= 100), "{text}");
}

#[test]
fn equal_seeds_give_equal_losses() {
    let losses = |seed| {
        let report = json(&["--seed", seed]);
        (report["loss_first"].clone(), report["loss_last"].clone())
    };
    assert_eq!(losses("5"), losses("5"));
    assert_ne!(losses("5"), losses("6"));
}

#[test]
fn impossible_arguments_are_refused() {
    for args in [["--steps", "0"], ["--batch", "0"], ["--backend", "abacus"]] {
        let output = demo(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn a_reader_who_goes_away_ends_it_quietly() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
    command.args(["demo", "--backend", "host", "--steps", "3", "--batch", "8"]);
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the program ends");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{}: {error}", output.status);
}

#[test]
fn complaints_are_those_of_the_program() {
    if !cfg!(target_os = "linux") {
        return;
    }
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
    command.args(["demo", "--backend", "host", "--steps", "3", "--batch", "8"]).stdout(full);
    let output = command.output().expect("the program runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.starts_with("aquifer: standard output: "), "{error}");
}

/// With no backend named, and no GPU in the build.
#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
#[test]
fn a_build_without_gpus_says_so() {
    let output = demo(&["--steps", "1", "--batch", "1", "--format", "json"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(error.starts_with("aquifer: ") && error.contains("feature wgpu"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert_eq!(demo(&["--backend", "wgpu"]).status.code(), Some(2));
}
