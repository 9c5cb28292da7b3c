//! One stream's lock, and what its allocations keep alive.

use std::sync::{Arc, PoisonError, Weak};

use crate::allocator::places::Places;
use crate::allocator::shared::Shared;
use crate::allocator::sync::{self, AtomicBool, AtomicU32, Mutex, MutexGuard, Ordering};
use crate::backend::{Backend, Lost, VirtualMemory};
use crate::config::Config;
use crate::core::arena::{Arena, Freed};
use crate::core::dismantle::MappedRun;
use crate::core::ledger::{ALL, Gauge};
use crate::id::{AllocationId, ArenaId};

/// Memory as the core carries it: shared with calls that are under way, never with users.
pub(super) type Memory<B> = Arc<Piece<B>>;

/// One segment's memory and the way to its bytes.
pub(super) struct Piece<B: Backend> {
    pub(super) memory: B::Memory,
    pub(super) view: B::View,
}

/// One stream's part of the allocator. Allocations hold it, so that they outlive the allocator.
pub(super) struct Cell<B: Backend> {
    pub(super) id: ArenaId,
    arena: Mutex<Arena<Memory<B>>>,
    places: Arc<Places<B>>,
    /// Counts the streams that had this place: a handle of an earlier one is stale.
    pub(super) incarnation: AtomicU32,
    pub(super) backend: Arc<B>,
    pub(super) config: Arc<Config>,
    pub(super) shared: Weak<Shared<B>>,
    /// The allocator is gone, and done with giving back.
    orphaned: AtomicBool,
}

impl<B: Backend> Cell<B> {
    pub(super) fn new(
        id: ArenaId,
        places: &Arc<Places<B>>,
        backend: &Arc<B>,
        config: &Arc<Config>,
        shared: Weak<Shared<B>>,
    ) -> Self {
        Self {
            id,
            // The first arena is alone until a second one is registered.
            arena: Mutex::new(Arena::new(id, id.0 == 0)),
            places: Arc::clone(places),
            incarnation: AtomicU32::new(0),
            backend: Arc::clone(backend),
            config: Arc::clone(config),
            shared,
            orphaned: AtomicBool::new(false),
        }
    }

    /// The arena.
    ///
    /// # Panics
    /// If an invariant broke while somebody held it: what is in there can no longer be trusted.
    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, Arena<Memory<B>>> {
        self.arena.lock().expect("an invariant of the allocator broke earlier")
    }

    /// Whether an invariant broke while somebody held the arena.
    pub(super) fn is_poisoned(&self) -> bool {
        sync::is_poisoned(&self.arena)
    }

    pub(super) fn stream(&self) -> B::Stream {
        self.places.stream(self.id)
    }

    /// Waits on the host for all that the stream was given: if it is gone, for its last event.
    ///
    /// # Errors
    /// If the device is gone.
    pub(super) fn synchronize(&self) -> Result<(), Lost> {
        self.places.synchronize(self.id, &self.backend)
    }

    pub(super) fn incarnation(&self) -> u32 {
        self.incarnation.load(Ordering::Relaxed)
    }

    /// Frees a block for its owner; `false` if the id is stale.
    #[inline]
    pub(super) fn free(&self, id: AllocationId) -> bool {
        self.free_if(id, |_| true)
    }

    /// Frees a block that has no owner; `false` if the id is stale, or an [`Allocation`] owns it.
    ///
    /// [`Allocation`]: crate::allocator::Allocation
    pub(super) fn free_unowned(&self, id: AllocationId) -> bool {
        self.free_if(id, |arena| arena.is_unowned(id))
    }

    #[inline]
    fn free_if(&self, id: AllocationId, may: impl FnOnce(&Arena<Memory<B>>) -> bool) -> bool {
        let Ok(mut arena) = self.arena.lock() else {
            // An invariant broke earlier. A second panic while the first one unwinds would abort.
            assert!(std::thread::panicking(), "an invariant of the allocator broke earlier");
            return true;
        };
        let freed = if may(&arena) { arena.free(id, &self.config) } else { None };
        drop(arena);
        if let Some(freed) = freed.filter(|&freed| freed != Freed::default()) {
            self.follow_up(freed);
        }
        freed.is_some()
    }

    /// What a free left to be done with everything in hand.
    #[cold]
    fn follow_up(&self, freed: Freed) {
        match self.shared.upgrade() {
            Some(shared) => shared.follow_up(self.id, freed),
            None => self.close(),
        }
    }

    /// The allocator is gone, and has given back what it could.
    pub(super) fn orphan(&self) {
        self.orphaned.store(true, Ordering::Relaxed);
        self.close();
    }

    /// The allocator is gone: with the last allocation of the stream all its memory goes, whoever
    /// keeps a handle. As long as the allocator itself is giving back, its calls may be under way
    /// here; it closes every cell when it is done.
    fn close(&self) {
        let mut arena = self.lock();
        let orphaned = self.orphaned.load(Ordering::Relaxed);
        if orphaned && arena.ledger.now(ALL, Gauge::Allocation as usize) == 0 {
            let (users, pieces) = (arena.users(), arena.dismantle());
            drop(arena);
            self.give_back(users, pieces);
        }
    }

    fn give_back(&self, users: Vec<ArenaId>, pieces: Vec<(Memory<B>, Vec<MappedRun>)>) {
        if pieces.iter().any(|(_, pages)| !pages.is_empty()) {
            // Pages may be taken out only when the work on them is done, whoever's it is.
            for user in users {
                if let Err(lost) = self.places.synchronize(user, &self.backend) {
                    log::warn!("aquifer: while giving memory back: {lost}");
                }
            }
        }
        for (piece, pages) in pieces {
            for (page, run) in pages {
                let memory = &piece.memory;
                let gone = unmap_pages(&*self.backend, memory, page, run.offset, run.size);
                if let Err(lost) = gone {
                    log::warn!("aquifer: while giving memory back: {lost}");
                }
            }
            give_back(&*self.backend, piece);
        }
    }
}

impl<B: Backend> Drop for Cell<B> {
    /// Gives back all that is left: nobody holds an allocation of this stream any more, and the
    /// allocator is gone.
    fn drop(&mut self) {
        let arena = self.arena.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (users, pieces) = (arena.users(), arena.dismantle());
        self.give_back(users, pieces);
    }
}

/// Takes pages out and gives them back to the device.
///
/// # Errors
/// If the device is gone; then all pages are.
pub(super) fn unmap_pages<B: Backend>(
    backend: &B,
    memory: &B::Memory,
    page: u64,
    offset: u64,
    size: u64,
) -> Result<(), Lost> {
    let Some(virtual_memory) = backend.virtual_memory() else { return Ok(()) };
    let mut outcome = Ok(());
    let mut at = offset;
    while at < offset + size {
        match virtual_memory.unmap(memory, at) {
            Ok(chunk) => virtual_memory.release(chunk),
            Err(lost) => outcome = Err(lost),
        }
        at += page;
    }
    outcome
}

/// Gives a segment, or an empty range, back.
///
/// # Panics
/// If a call still borrows it: the core hands out only what nobody uses.
pub(super) fn give_back<B: Backend>(backend: &B, piece: Memory<B>) {
    match Arc::try_unwrap(piece) {
        Ok(piece) => {
            drop(piece.view);
            backend.free(piece.memory);
        }
        Err(_) => panic!("I3 is broken: a segment under a call was handed out for release"),
    }
}
