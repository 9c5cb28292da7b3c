//! How do memory and time compare with CubeCL's memory management, for the same requests?
//!
//! CubeCL is what burn computes on. Its `MemoryManagement` is the real one, as published
//! (0.12.0-pre.1), over its real wgpu storage (`WgpuStorage`), set up as its wgpu runtime does: see
//! `cubecl.rs`. This crate is [`aquifer::WgpuAllocator`] with its defaults. Each has a device of
//! the same adapter, asked for as each would ask; both make real buffers, none of which is used.
//!
//! | program       | requests                                                                |
//! |---------------|-------------------------------------------------------------------------|
//! | `random, n`   | n live blocks; each step frees a random one and allocates another       |
//! |               | of 512 B to 16 MiB, with an evenly spread logarithm                     |
//! | `training`    | weights stay; activations, gradients and workspaces come and go; every  |
//! |               | step alike, or with another length of the batch                         |
//! | traces        | those of `benches/traces` that CubeCL's pages have room for, as sizes:  |
//! |               | streams and markers ignored, and what a device cannot bind left out     |
//!
//! *Live* is the most bytes that the program has at a time, *peak* the most bytes of buffers held,
//! by each one's own books, sampled after every request of a first pass. *ns* is the time of an
//! allocation and a free, in turn round by round, when the caches are warm. What is measured of
//! CubeCL is `reserve` and the drop of its handle, with the check for relocation that its server
//! makes before; its client, channel and server come on top for its users, and are not counted.
//!
//! `cargo bench --manifest-path benches/cubecl/Cargo.toml`; add `-- --json` for lines of JSON.

mod cubecl;
#[path = "../../harness/mod.rs"]
mod harness;
mod program;

use aquifer::{WgpuAllocation, WgpuAllocator};
use cubecl_wgpu::wgpu;
use harness::{Bar, Run, interleave, nanoseconds_each};
use program::{Program, Replace};

/// What both can do.
trait Memory {
    type Block;
    fn allocate(&mut self, size: u64) -> Self::Block;
    fn reserved_bytes(&self) -> u64;
}

impl Memory for WgpuAllocator {
    type Block = WgpuAllocation;

    fn allocate(&mut self, size: u64) -> WgpuAllocation {
        WgpuAllocator::allocate(self, size).expect("there is room")
    }

    fn reserved_bytes(&self) -> u64 {
        self.memory_reserved()
    }
}

fn main() {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor { backends, ..descriptor });
    let request = instance.request_adapter(&wgpu::RequestAdapterOptions::default());
    let Ok(adapter) = pollster::block_on(request) else {
        println!("beside: there is no Vulkan, Metal or DX12 adapter here; nothing was measured");
        return;
    };
    let run = Run::new("beside CubeCL 0.12.0-pre.1");
    run.heading(&["live MiB", "peak MiB", "CubeCL MiB", "peak ratio"]);
    let programs = programs(run, adapter.limits().max_storage_buffer_binding_size);
    for program in &programs {
        let own = peak(&mut own(&adapter), program);
        let rival = peak(&mut cubecl::Rival::new(&adapter), program);
        let figures = [
            ("live_mib", program.live_peak() as f64 / f64::from(1 << 20)),
            ("peak_mib", own as f64 / f64::from(1 << 20)),
            ("cubecl_mib", rival as f64 / f64::from(1 << 20)),
            ("peak_ratio", own as f64 / rival as f64),
        ];
        run.judge(&program.name, &figures, Bar::AtMost(1.0));
    }
    run.heading(&["ns", "CubeCL ns", "ratio"]);
    for program in &programs {
        let mut own = Turn::new(own(&adapter), program);
        let mut rival = Turn::new(cubecl::Rival::new(&adapter), program);
        let rounds = run.pick(20, 1);
        let [own, rival] = interleave(rounds, [&mut || own.run(), &mut || rival.run()]);
        let ratio = own.over(&rival).median();
        let figures = [("ns", own.median()), ("cubecl_ns", rival.median()), ("ratio", ratio)];
        if program.has_bar {
            run.judge(&program.name, &figures, Bar::AtMost(1.0));
        } else {
            run.result(&program.name, &figures);
        }
    }
}

fn programs(run: Run, limit: u64) -> Vec<Program> {
    let steps = run.pick(5_000, 50);
    let counts = if run.quick { vec![100] } else { vec![100, 1_000, 5_000] };
    let mut programs: Vec<_> =
        counts.into_iter().map(|count| program::random(count, steps)).collect();
    programs.push(program::training("training, alike", run.pick(10, 1), |_| 1024));
    programs.push(program::training("training, lengths", run.pick(10, 1), |random| {
        512 + 64 * random.below(16) as u64
    }));
    for name in ["cs336-wedsonlin-medium512-infer", "hta-v100-ddp-rank1"] {
        programs.push(program::trace(name, limit));
    }
    programs
}

fn own(adapter: &wgpu::Adapter) -> WgpuAllocator {
    let descriptor = aquifer::recommended_device_descriptor(adapter);
    let opened = pollster::block_on(adapter.request_device(&descriptor));
    let (device, queue) = opened.expect("the adapter has a device");
    WgpuAllocator::new(device, queue)
}

/// The most bytes held while the program runs twice.
fn peak<M: Memory>(memory: &mut M, program: &Program) -> u64 {
    let mut live: Vec<Option<M::Block>> = (0..program.slots).map(|_| None).collect();
    let mut peak = 0;
    for &Replace { slot, size } in program.fill.iter().chain(&program.body).chain(&program.body) {
        live[slot] = None;
        if size > 0 {
            live[slot] = Some(memory.allocate(size));
            peak = peak.max(memory.reserved_bytes());
        }
    }
    peak
}

/// One contender, with what it has live.
struct Turn<'a, M: Memory> {
    memory: M,
    live: Vec<Option<M::Block>>,
    program: &'a Program,
}

impl<'a, M: Memory> Turn<'a, M> {
    fn new(memory: M, program: &'a Program) -> Self {
        let live = (0..program.slots).map(|_| None).collect();
        let mut turn = Self { memory, live, program };
        turn.play(&program.fill);
        turn
    }

    fn play(&mut self, steps: &[Replace]) {
        for &Replace { slot, size } in steps {
            self.live[slot] = None;
            if size > 0 {
                self.live[slot] = Some(self.memory.allocate(size));
            }
        }
    }

    fn run(&mut self) -> f64 {
        nanoseconds_each(self.program.allocations(), || self.play(&self.program.body))
    }
}
