//! `aquifer demo` on a CUDA device: its figures, what it holds by mistake, and which backend it
//! chooses.
//!
//! The program finds the fake driver in a folder of its own; with `AQUIFER_CUDA=real` the one of
//! the machine.
#![cfg(all(feature = "cli", feature = "cuda", target_os = "linux"))]

#[path = "support/cuda.rs"]
mod cuda;
#[path = "support/driver.rs"]
mod driver;

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

use cuda::library_path;
use driver::is_real;

/// Weights, bias, and Adam's two moments of each.
const MODEL_BYTES: u64 = 3 * 1_001_000 * 4;

/// Few and small steps: the reference is not optimised.
const SMALL: [&str; 6] = ["--steps", "3", "--batch", "8", "--format", "json"];

/// A folder with the fake driver under the name of the real one.
fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fake-cuda");
        std::fs::create_dir_all(&folder).expect("a folder");
        let link = folder.join("libcuda.so");
        let _ = std::fs::remove_file(&link); // Of an earlier run.
        symlink(library_path(), link).expect("a link");
        folder
    })
}

/// The demo where CUDA finds no device, whether there is one or not.
fn demo(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
    command.env("CUDA_VISIBLE_DEVICES", "-1");
    command.arg("demo").args(args).output().expect("the program runs")
}

fn demo_on_cuda(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
    if !is_real() {
        command.env("LD_LIBRARY_PATH", folder());
    }
    command.arg("demo").args(args).output().expect("the program runs")
}

/// What the program says on standard error; drivers may say more.
fn complaints(output: &Output) -> Vec<String> {
    let error = String::from_utf8_lossy(&output.stderr);
    error.lines().filter(|line| line.starts_with("aquifer: ")).map(str::to_owned).collect()
}

/// The object that it printed when all went well.
#[track_caller]
fn object(output: &Output) -> Value {
    assert_eq!(complaints(output), [""; 0]);
    assert!(output.status.success(), "{}", output.status);
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

#[track_caller]
fn json_on_cuda(args: &[&str]) -> Value {
    object(&demo_on_cuda(&[&["--backend", "cuda"], &SMALL[..], args].concat()))
}

/// The number at a path of keys with dots between them.
fn number(value: &Value, path: &str) -> u64 {
    let found = path.split('.').try_fold(value, |value, key| value.get(key));
    let number = found.and_then(Value::as_u64);
    number.unwrap_or_else(|| panic!("no number at {path} in {value}"))
}

#[test]
fn what_was_deleted_is_given_back() {
    let report = json_on_cuda(&[]);
    assert_eq!(report["backend"], "cuda");
    assert!(report["adapter"].as_str().is_some_and(|text| text.contains("CUDA device 0")));
    let (first, last) = (report["loss_first"].as_f64(), report["loss_last"].as_f64());
    assert!(last < first && last > Some(0.0), "{first:?} -> {last:?}");
    // Far less than the allowed 2.5e-4.
    let deviation = report["reference_deviation"].as_f64().expect("a number");
    assert!((0.0..1e-4).contains(&deviation), "{deviation}");
    let deviation = report["reference_loss_deviation"].as_f64().expect("a number");
    assert!((0.0..1e-5).contains(&deviation), "{deviation}");

    assert!(number(&report, "before.allocated_bytes") >= MODEL_BYTES);
    let reserved = number(&report, "before.reserved_bytes");
    assert!(reserved >= number(&report, "before.allocated_bytes"));
    assert_eq!(number(&report, "after_delete.allocated_bytes"), 0);
    assert_eq!(number(&report, "after_delete.reserved_bytes"), reserved);
    for key in ["allocated_bytes", "reserved_bytes", "staging_bytes"] {
        assert_eq!(report["after_empty_cache"][key], 0, "{key}");
    }
    assert_eq!(report["held"], Value::Array(Vec::new()));
    // Others may have taken some of it meanwhile from a real device.
    if !is_real() {
        assert_eq!(number(&report, "device_bytes_returned"), reserved);
    }
}

#[test]
fn the_seed_means_the_same_as_on_the_host() {
    let host = object(&demo(&[&["--backend", "host", "--seed", "5"], &SMALL[..]].concat()));
    let cuda = json_on_cuda(&["--seed", "5"]);
    for key in ["loss_first", "loss_last"] {
        let (cuda, host) = (cuda[key].as_f64(), host[key].as_f64());
        let off = cuda.zip(host).map(|(cuda, host)| (cuda - host).abs());
        assert!(off < Some(1e-5), "{key}: {cuda:?}, {host:?}");
    }
}

#[test]
fn what_is_kept_is_named_with_its_line() {
    let report = json_on_cuda(&["--leak"]);
    let allocated = number(&report, "after_empty_cache.allocated_bytes");
    assert_eq!(number(&report, "after_delete.allocated_bytes"), allocated);
    assert!(number(&report, "after_empty_cache.reserved_bytes") >= allocated);
    // Each of 3 steps left 8 × 1000 predictions and a loss.
    assert!(allocated >= 3 * (8 * 1000 + 1) * 4);
    let held = report["held"].as_array().expect("a list");
    assert_eq!(held.len(), 2, "{held:?}");
    for (holder, tag) in held.iter().zip(["activations", "loss"]) {
        assert_eq!((number(holder, "count"), &holder["tag"]), (3, &tag.into()));
        let location = holder["location"].as_str().expect("a place");
        let (file, line) = location.rsplit_once(':').expect("file:line");
        assert!(file.ends_with("linear/cuda.rs"), "{location}");
        assert!(line.parse::<u32>().is_ok_and(|line| line > 0), "{location}");
    }
}

#[test]
fn the_text_ends_with_the_check() {
    let output = demo_on_cuda(&["--backend", "cuda", "--steps", "1", "--batch", "2"]);
    assert!(output.status.success(), "{:?}", complaints(&output));
    let text = String::from_utf8(output.stdout).expect("text");
    let last = text.lines().last().expect("lines");
    let passed = "Check against the CPU passed: 1 steps, parameters off by ";
    assert!(last.starts_with(passed), "{text}");
    for part in ["optimizer", "model", "data", "linear/cuda.rs:", "to the driver"] {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn cuda_is_the_default() {
    assert_eq!(object(&demo_on_cuda(&SMALL))["backend"], "cuda");
}

#[test]
fn without_a_device_asking_for_it_fails() {
    let output = demo(&["--backend", "cuda"]);
    assert_eq!(output.status.code(), Some(1));
    let [complaint] = <[String; 1]>::try_from(complaints(&output)).expect("one line");
    assert!(complaint.contains("NVIDIA"), "{complaint}");
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    assert!(output.stdout.is_empty());
}

/// With wgpu in the build, `demo/gpu.rs` looks at what the default is then.
#[cfg(not(feature = "wgpu"))]
#[test]
fn without_a_device_the_default_is_the_host_and_says_why() {
    let output = demo(&SMALL);
    let [complaint] = <[String; 1]>::try_from(complaints(&output)).expect("one line");
    for part in ["NVIDIA", "Using memory of this machine"] {
        assert!(complaint.contains(part), "no {part:?} in: {complaint}");
    }
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((output.status.code(), &report["backend"]), (Some(0), &"host".into()));
}
