//! What the caller holds of a simulated device: segments, ranges of addresses and chunks.
//!
//! Each carries a receipt. Giving the thing back settles it; a receipt that is dropped unsettled is
//! one leak, whatever the reason.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use crate::units::Bytes;

/// A segment, or a range of addresses, of a simulated device.
#[derive(Debug)]
pub struct SimMemory {
    pub(super) address: u64,
    pub(super) size: Bytes,
    /// Whether it is a segment, and not a range of addresses.
    pub(super) segment: bool,
    pub(super) receipt: Receipt,
}

/// Physical memory of a simulated device, mapped nowhere.
#[derive(Debug)]
pub struct SimChunk {
    pub(super) size: Bytes,
    pub(super) receipt: Receipt,
}

impl SimChunk {
    /// Bytes of the chunk.
    pub fn size(&self) -> Bytes {
        self.size
    }
}

/// Where a segment lies. There is nothing to be read there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimView {
    /// The address of its first byte.
    pub address: u64,
    /// Bytes in it.
    pub size: Bytes,
}

/// What stands for one segment, range or chunk in the hands of the caller. Dropped before it is
/// settled, it counts as leaked.
#[derive(Debug)]
pub(super) struct Receipt {
    shared: Arc<Shared>,
    settled: bool,
}

impl Receipt {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, settled: false }
    }

    pub(super) fn settle(mut self) {
        self.settled = true;
    }

    pub(super) fn is_from(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.settled {
            self.shared.leaked.fetch_add(1, Ordering::Relaxed);
        }
    }
}
