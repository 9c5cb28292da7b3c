//! This crate as a contender: by its owning handles, and by its raw interface.

use std::hint::black_box;

use aquifer::{Allocation, Allocator, Config, RawAllocation};

use super::contest::{Contender, Lane, Needs, Scene};
use super::void::Void;

/// [`Allocator::allocate`] and the drop of what it gave.
pub(crate) struct Own {
    allocator: Allocator<Void>,
}

impl Own {
    pub(crate) fn new(needs: Needs) -> Self {
        let allocator = Allocator::new(Void::new(), Config::default());
        for stream in 1..needs.streams {
            drop(allocator.allocate_on(&allocator.stream(stream), 1 << 16));
        }
        Self { allocator }
    }

    /// The most bytes that were reserved at a time.
    pub(crate) fn reserved_peak(&self) -> u64 {
        self.allocator.memory_stats().reserved_bytes.all.peak
    }
}

impl Contender for Own {
    type Block = Allocation<Void>;

    fn allocate(&mut self, size: u64) -> Option<Allocation<Void>> {
        self.allocator.allocate(size).ok()
    }

    fn free(&mut self, block: Allocation<Void>) {
        drop(block);
    }

    // Without a detour through an `Option`, which would copy the handle once more.
    fn pair(&mut self, size: u64) {
        let block = self.allocator.allocate(size).expect("the device has no end");
        black_box(&block);
    }
}

/// The raw interface: what a foreign caller, C for example, goes through.
pub(crate) struct OwnRaw(Own);

impl Contender for OwnRaw {
    type Block = RawAllocation;

    fn allocate(&mut self, size: u64) -> Option<RawAllocation> {
        self.0.allocator.request(size).allocate_raw().ok()
    }

    fn free(&mut self, block: RawAllocation) {
        self.0.allocator.free_raw(block.id).expect("it is live");
    }

    fn pair(&mut self, size: u64) {
        let raw = self.0.allocator.request(size).allocate_raw().expect("the device has no end");
        black_box(&raw);
        self.0.allocator.free_raw(raw.id).expect("it is live");
    }
}

/// Both in a scene.
pub(crate) fn lanes(scene: &impl Scene) -> Vec<Lane> {
    let needs = scene.needs();
    vec![
        Lane { who: "aquifer", timed: scene.set(Own::new(needs)) },
        Lane { who: "aquifer, raw", timed: scene.set(OwnRaw(Own::new(needs))) },
    ]
}
