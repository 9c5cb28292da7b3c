//! A CUDA driver without a GPU: the driver API over host memory, for tests.
//!
//! Built as a shared library whose SONAME is `libcuda.so`: once a test has loaded it by its path,
//! everybody who asks the loader for `libcuda.so` gets it. `build.rs` makes it answer to
//! `libcuda.so.1` as well. Memory is real, work is really done, and
//! a chunk that is mapped twice really is the same memory twice.
//!
//! ```text
//!   program ── cu… ──▶ api_*.rs ──▶ entry.rs ── one lock ──▶ state.rs
//!                      (symbols)    counts,                  memory.rs    plain, pinned memory
//!                                   faults,                  vmm.rs       addresses and chunks
//!   test ── fakecuda_… ──▶          context,                 pools.rs     stream-ordered pools
//!            control.rs             capture                  timeline.rs  streams, their queues
//!                                   rules                    events.rs    marks in them
//!                                                            capture.rs   captures and graphs
//!                                                            work.rs      what a queue holds
//!                                                            kernels.rs   kernels by name
//! ```
//!
//! Rules that hold everywhere:
//! - A misuse is answered with the code that the driver would return, and it is a line in the list
//!   of violations too. A shortage (out of memory) or an injected fault is no violation.
//! - A call that fails has changed nothing.
//! - Nothing depends on time, threads or chance; handles and identities count upwards, but for the
//!   handles of streams, which are handed out again as soon as they are free.
//! - No panic leaves an exported function: it is `CUDA_ERROR_UNKNOWN` and a violation.
//!
//! Where the driver's answer is not documented the fake is the stricter one; the modules say so.

#![cfg(target_os = "linux")]

#[macro_use]
mod entry;

mod abi;
mod api_device;
mod api_graph;
mod api_kernel;
mod api_memory;
mod api_pool;
mod api_stream;
mod api_transfer;
mod api_vmm;
mod capture;
mod control;
mod events;
mod faults;
mod kernels;
mod layer;
mod memory;
mod options;
mod os;
mod pools;
mod state;
mod thread;
mod timeline;
mod vmm;
mod work;
