//! The fake CUDA driver itself: what it does, and that each of its strict checks fires.
//!
//! | file       | what it tries                                                        |
//! |------------|----------------------------------------------------------------------|
//! | `api`      | the driver's functions, looked up by name                            |
//! | `memory`   | devices, contexts, plain and pinned memory, copies                   |
#![cfg(target_os = "linux")]

#[path = "fake_driver/api.rs"]
mod api;
#[path = "support/cuda.rs"]
mod cuda;
#[path = "fake_driver/memory.rs"]
mod memory;
