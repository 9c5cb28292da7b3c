//! The demo on a GPU: its figures, what it holds by mistake, and which backend it chooses.

use std::process::{Command, Output};

use serde_json::Value;

use super::gpu::Gpu;
use super::{MODEL_BYTES, demo, json, number};

/// Few and small steps: a CPU may play the GPU, and the reference is not optimised.
const SMALL: [&str; 6] = ["--steps", "3", "--batch", "8", "--format", "json"];

/// What the program says on standard error; drivers may say more.
fn complaints(output: &Output) -> Vec<String> {
    let error = String::from_utf8_lossy(&output.stderr);
    error.lines().filter(|line| line.starts_with("aquifer: ")).map(str::to_owned).collect()
}

/// The object that it printed when all went well.
#[track_caller]
fn object(output: &Output) -> Value {
    assert!(output.status.success(), "{}: {:?}", output.status, complaints(output));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

#[track_caller]
fn json_on_gpu(args: &[&str]) -> Value {
    let output = demo(&[&["--backend", "wgpu"], &SMALL[..], args].concat());
    assert_eq!(complaints(&output), [""; 0]);
    object(&output)
}

/// The demo where no backend of wgpu is tried, so that there is no adapter.
fn demo_without_gpu(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
    command.env("WGPU_BACKEND", "none").env("CUDA_VISIBLE_DEVICES", "-1").arg("demo").args(args);
    command.output().expect("the program runs")
}

#[test]
fn what_was_deleted_is_given_back() {
    let Some(gpu) = Gpu::shared() else { return };
    let report = json_on_gpu(&[]);
    assert_eq!(report["backend"], "wgpu");
    let name = gpu.adapter.get_info().name;
    assert!(report["adapter"].as_str().is_some_and(|text| text.contains(&name)), "{report}");
    let (first, last) = (report["loss_first"].as_f64(), report["loss_last"].as_f64());
    assert!(last < first && last > Some(0.0), "{first:?} -> {last:?}");
    // Far less than the allowed 2.5e-4, and never nothing at all: it has been compared.
    let deviation = report["reference_deviation"].as_f64().expect("a number");
    assert!(deviation > 0.0 && deviation < 1e-4, "{deviation}");
    let deviation = report["reference_loss_deviation"].as_f64().expect("a number");
    assert!(deviation < 1e-5, "{deviation}");

    assert!(number(&report, "before.allocated_bytes") >= MODEL_BYTES);
    let reserved = number(&report, "before.reserved_bytes");
    assert!(reserved >= number(&report, "before.allocated_bytes"));
    assert_eq!(number(&report, "after_delete.allocated_bytes"), 0);
    assert_eq!(number(&report, "after_delete.reserved_bytes"), reserved);
    assert!(number(&report, "after_delete.staging_bytes") > 0);
    for key in ["allocated_bytes", "reserved_bytes", "staging_bytes"] {
        assert_eq!(report["after_empty_cache"][key], 0, "{key}");
    }
    assert_eq!(report["held"], Value::Array(Vec::new()));
}

#[test]
fn the_seed_means_the_same_as_on_the_host() {
    if Gpu::shared().is_none() {
        return;
    }
    let (gpu, host) = (json_on_gpu(&["--seed", "5"]), json(&["--seed", "5"]));
    for key in ["loss_first", "loss_last"] {
        let (gpu, host) = (gpu[key].as_f64(), host[key].as_f64());
        let off = gpu.zip(host).map(|(gpu, host)| (gpu - host).abs());
        assert!(off < Some(1e-5), "{key}: {gpu:?}, {host:?}");
    }
}

#[test]
fn what_is_kept_is_named_with_its_line() {
    if Gpu::shared().is_none() {
        return;
    }
    let report = json_on_gpu(&["--leak"]);
    let allocated = number(&report, "after_empty_cache.allocated_bytes");
    assert_eq!(number(&report, "after_delete.allocated_bytes"), allocated);
    assert!(number(&report, "after_empty_cache.reserved_bytes") >= allocated);
    // Each of 3 steps left 8 × 1000 predictions and a loss.
    assert!(allocated >= 3 * (8 * 1000 + 1) * 4);
    let held = report["held"].as_array().expect("a list");
    assert_eq!(held.len(), 2, "{held:?}");
    assert_eq!(held.iter().map(|holder| number(holder, "bytes")).sum::<u64>(), allocated);
    for (holder, tag) in held.iter().zip(["activations", "loss"]) {
        assert_eq!((number(holder, "count"), &holder["tag"]), (3, &tag.into()));
        let location = holder["location"].as_str().expect("a place");
        let (file, line) = location.rsplit_once(':').expect("file:line");
        assert!(file.ends_with("linear/gpu.rs"), "{location}");
        assert!(line.parse::<u32>().is_ok_and(|line| line > 0), "{location}");
    }
}

#[test]
fn the_text_ends_with_the_check() {
    if Gpu::shared().is_none() {
        return;
    }
    let output = demo(&["--backend", "wgpu", "--steps", "1", "--batch", "2"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    let last = text.lines().last().expect("lines");
    assert!(
        last.starts_with("Check against the CPU passed: 1 steps, parameters off by "),
        "{text}"
    );
    for part in
        ["optimizer", "model", "data", "staging", "linear/gpu.rs:", "to bring data to the GPU"]
    {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn the_gpu_is_the_default() {
    if Gpu::shared().is_none() {
        return;
    }
    let output = demo(&SMALL);
    assert_eq!(complaints(&output), [""; 0]);
    assert_eq!(object(&output)["backend"], "wgpu");
}

#[test]
fn without_a_gpu_the_default_is_the_host_and_says_why() {
    let output = demo_without_gpu(&SMALL);
    let [complaint] = <[String; 1]>::try_from(complaints(&output)).expect("one line");
    for part in ["no GPU was found", "Using memory of this machine", "mesa-vulkan-drivers"] {
        assert!(complaint.contains(part), "no {part:?} in: {complaint}");
    }
    let report = object(&output);
    assert_eq!(
        (&report["backend"], &report["reference_deviation"]),
        (&"host".into(), &Value::Null)
    );
}

#[test]
fn without_a_gpu_asking_for_it_fails() {
    let output = demo_without_gpu(&["--backend", "wgpu"]);
    assert_eq!(output.status.code(), Some(1));
    let [complaint] = <[String; 1]>::try_from(complaints(&output)).expect("one line");
    assert!(complaint.contains("no GPU was found"), "{complaint}");
    assert!(output.stdout.is_empty());
}
