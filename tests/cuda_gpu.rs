//! A CUDA device with real work on it: whether bytes are ever in two hands, what graphs keep, what
//! comes back.
//!
//! Runs on the fake driver, and with `AQUIFER_CUDA=real` on the machine's first device, more of
//! everything. Nothing else should use the device then: one test fills it. Which driver it is
//! stands on the standard output (`--nocapture`).
//!
//! | file       | what it owns                                                       |
//! |------------|--------------------------------------------------------------------|
//! | `fixture`  | the device under test, its kernels, how much of everything         |
//! | `program`  | random programs over several streams, for each source of memory    |
//! | `directed` | growth and trims, foreign streams, threads, pinned copies, kernels |
//! | `graphs`   | captures into a primed pool, and their replays                     |
//! | `full`     | a device without room                                              |
//! | `layer`    | the demo's training against the CPU's                              |
#![cfg(all(feature = "cuda", target_os = "linux"))]

#[path = "support/cuda.rs"]
mod cuda;
#[path = "support/driver.rs"]
mod driver;
#[allow(dead_code, unused_imports)] // Its own tests are the program's.
#[path = "../src/bin/aquifer/linear/mod.rs"]
mod linear;
#[path = "support/mod.rs"]
mod support;

#[path = "cuda_gpu/directed.rs"]
mod directed;
#[path = "cuda_gpu/fixture.rs"]
mod fixture;
#[path = "cuda_gpu/full.rs"]
mod full;
#[path = "cuda_gpu/graphs.rs"]
mod graphs;
#[path = "cuda_gpu/layer.rs"]
mod layer;
#[path = "cuda_gpu/program.rs"]
mod program;
