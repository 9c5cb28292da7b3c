//! Raw allocations by device address, for programs that free by address.
//!
//! ```text
//!   nobody frees by address   nothing is kept: a raw allocation costs what any other does
//!   the first such free       every live raw allocation is entered, with everything in one hand
//!   from then on              entered when it is made, taken out when it is freed, both under the
//!                             lock of its stream
//! ```
//!
//! - A1: once kept, an address is in the book ⇔ a live raw allocation begins there.
//!
//! The hash is one multiplication: addresses of blocks are multiples of 512 and nobody's to choose.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::PoisonError;

use crate::allocator::shared::WorldOf;
use crate::allocator::sync::{AtomicBool, Mutex, MutexGuard, Ordering};
use crate::backend::Backend;
use crate::id::AllocationId;

/// Hashes one address.
#[derive(Default)]
pub(super) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, address: u64) {
        // The multiplier of Fibonacci hashing; the table looks at both ends of the number.
        let hash = address.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = hash ^ hash >> 32;
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(self.0 << 8 | u64::from(byte)));
    }
}

type Map = HashMap<u64, AllocationId, BuildHasherDefault<AddressHasher>>;

/// The book.
pub(super) struct Addresses {
    /// Whether addresses are kept: somebody freed by address.
    kept: AtomicBool,
    map: Mutex<Map>,
}

impl Addresses {
    pub(super) fn new() -> Self {
        Self { kept: AtomicBool::new(false), map: Mutex::new(Map::default()) }
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether addresses are kept. Asked under the lock of a stream, the answer holds as long as
    /// that is locked.
    #[inline]
    pub(super) fn are_kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    /// A raw allocation was made, or given up by its owner, at an address. Under its stream's lock.
    #[cold]
    pub(super) fn enter(&self, address: u64, id: AllocationId) {
        self.map().insert(address, id);
    }

    /// A raw allocation is about to be freed. Under its stream's lock.
    #[cold]
    pub(super) fn forget(&self, address: u64) {
        self.map().remove(&address);
    }

    pub(super) fn find(&self, address: u64) -> Option<AllocationId> {
        self.map().get(&address).copied()
    }

    /// Enters every raw allocation that lives, and keeps addresses from now on. O(blocks), once.
    #[cold]
    pub(super) fn keep<B: Backend>(&self, world: &WorldOf<'_, B>) {
        let mut map = self.map();
        for arena in &world.arenas {
            map.extend(arena.raw_allocations());
        }
        self.kept.store(true, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.map().len()
    }
}
