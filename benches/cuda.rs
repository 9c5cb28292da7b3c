//! What does memory of a CUDA device cost, beside what the driver offers itself?
//!
//! | file     | question                                           | rivals                      |
//! |----------|----------------------------------------------------|-----------------------------|
//! | `hit`    | an allocation and its free, from a warm cache      | host memory, the driver's   |
//! | `stalls` | the same while a kernel runs: how long the CPU is held up | the driver's         |
//! | `replay` | a program's trace: time, memory, calls             | the driver's                |
//! | `growth` | a chunk of physical memory: made, mapped, opened   | a piece of the driver's     |
//!
//! The driver's are (`rivals`):
//!
//! - *cuMemAlloc*: `cuMemAlloc` and `cuMemFree`, which waits for the device;
//! - *async*: `cuMemAllocAsync` and `cuMemFreeAsync`, as cudarc has it: the default pool gives all
//!   that is free back whenever somebody waits for the device;
//! - *async, tuned*: the same with a release threshold that keeps everything.
//!
//! All take turns within a round, and ratios are taken round by round. Times are on the wall, since
//! a driver may well sleep.
//!
//! With `AQUIFER_CUDA=real`, on the first device of this machine. Without, on the fake driver of
//! the tests: there the driver's own times are those of a mutex and a map, so they say nothing, and
//! ours are what this crate adds to any driver.
//!
//! `cargo bench --bench cuda --no-default-features --features cuda,cli`; add `-- --json` for lines
//! of JSON.

#[cfg(target_os = "linux")]
#[path = "../tests/support/cuda.rs"]
mod cuda;
#[cfg(target_os = "linux")]
#[path = "cuda/driver.rs"]
mod driver;
#[cfg(target_os = "linux")]
#[path = "cuda/growth.rs"]
mod growth;
#[cfg(target_os = "linux")]
mod harness;
#[cfg(target_os = "linux")]
#[path = "cuda/hit.rs"]
mod hit;
#[cfg(target_os = "linux")]
#[path = "cuda/replay.rs"]
mod replay;
#[cfg(target_os = "linux")]
#[path = "cuda/rivals.rs"]
mod rivals;
#[cfg(target_os = "linux")]
#[path = "cuda/stalls.rs"]
mod stalls;

#[cfg(target_os = "linux")]
fn main() {
    let run = harness::Run::new("cuda");
    let driver = driver::Driver::open();
    eprintln!("cuda: {}", driver.describe());
    for question in [hit::run, stalls::run, replay::run, growth::run] {
        question(run, &driver);
    }
}

/// The fake driver is for Linux, and so is the rest.
#[cfg(not(target_os = "linux"))]
fn main() {
    println!("cuda: only on Linux, so nothing was measured");
}
