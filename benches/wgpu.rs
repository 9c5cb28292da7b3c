//! What does the wgpu backend cost, and what does it save?
//!
//! Each question has its own file in `benches/wgpu`, with its rival beside it in every round:
//!
//! | file          | question                                  | rival                     |
//! |---------------|-------------------------------------------|---------------------------|
//! | `hit`         | an allocation from the cache and its free | the same on host memory   |
//! | `create`      | the same                                  | `create_buffer` and drop  |
//! | `fresh`       | an iteration with a large temporary       | a new buffer every time   |
//! | `reuse`       | memory and time of a random program       | waiting for completion    |
//! | `giving_back` | what the driver holds after `empty_cache` | buffers, dropped          |
//! | `avoiding`    | outputs that avoid their inputs' segments | a buffer for every tensor |
//! | `scopes`      | a scope, and uploads through it           | a bare encoder            |
//! | `training`    | a training step of the demo               | buffers made in each step |
//!
//! On a CPU driver (Mesa's lavapipe) the CPU's side of everything is real, and what a GPU's driver
//! takes to allocate is missing: there the rivals are cheaper than anywhere else.
//!
//! `cargo bench --bench wgpu`; add `-- --json` for lines of JSON. Two cores shared with other
//! programs: ratios repeat within 15 %, times within 30 %; counts and bytes are the same in every
//! run, but those of the rival that waits. `reuse` depends on how fast the device is.

mod harness;

#[path = "wgpu/avoiding.rs"]
mod avoiding;
#[path = "wgpu/create.rs"]
mod create;
#[path = "wgpu/fresh.rs"]
mod fresh;
#[path = "wgpu/giving_back.rs"]
mod giving_back;
#[path = "wgpu/gpu.rs"]
mod gpu;
#[path = "wgpu/hit.rs"]
mod hit;
#[allow(dead_code, unused_imports)] // Of what the demo trains the bench uses its part.
#[path = "../src/bin/aquifer/linear/mod.rs"]
mod linear;
#[path = "wgpu/reuse.rs"]
mod reuse;
#[path = "wgpu/scopes.rs"]
mod scopes;
#[path = "wgpu/training.rs"]
mod training;

use gpu::Gpu;
use harness::Run;

fn main() {
    let Some(gpu) = Gpu::find() else {
        println!("wgpu: there is no Vulkan, Metal or DX12 adapter here, so nothing was measured");
        return;
    };
    let run = Run::new("wgpu");
    for question in [
        hit::run,
        create::run,
        fresh::run,
        reuse::run,
        giving_back::run,
        avoiding::run,
        scopes::run,
        training::run,
    ] {
        question(run, &gpu);
    }
}
