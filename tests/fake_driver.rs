//! The fake CUDA driver itself: what it does, and that each of its strict checks fires.
//!
//! | file       | what it tries                                                        |
//! |------------|----------------------------------------------------------------------|
//! | `api`      | the driver's functions, looked up by name                            |
//! | `memory`   | devices, contexts, plain and pinned memory, copies                   |
//! | `vmm`      | reserved addresses, chunks, mappings, sharing                        |
//! | `pools`    | stream-ordered memory                                                |
//! | `streams`  | what waits for what, and when work is done                           |
//! | `capture`  | captures, graphs, kernels                                            |
//! | `faults`   | failures on command, counts, leaks, and the client                   |
#![cfg(target_os = "linux")]

#[path = "fake_driver/api.rs"]
mod api;
#[path = "fake_driver/capture.rs"]
mod capture;
#[path = "support/cuda.rs"]
mod cuda;
#[path = "fake_driver/faults.rs"]
mod faults;
#[path = "fake_driver/memory.rs"]
mod memory;
#[path = "fake_driver/pools.rs"]
mod pools;
#[path = "fake_driver/streams.rs"]
mod streams;
#[path = "fake_driver/vmm.rs"]
mod vmm;
