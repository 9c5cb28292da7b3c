//! One stream's lock, and what its allocations keep alive.

use std::sync::{Arc, Weak};

use crate::allocator::addresses::Addresses;
use crate::allocator::held::{Held, Inside};
use crate::allocator::places::Places;
use crate::allocator::shared::Shared;
use crate::allocator::sync::{AtomicU32, FastGuard, FastLock, Ordering};
use crate::backend::{Backend, Lost, VirtualMemory};
use crate::config::Config;
use crate::core::arena::{Arena, Freed};
use crate::core::chunks::Chunk;
use crate::core::hit::Terms;
use crate::core::ledger::{ALL, Gauge};
use crate::id::{AllocationId, ArenaId};
use crate::units::to_bytes;

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
    inside: FastLock<Inside<B>>,
    places: Arc<Places<B>>,
    /// Counts the streams that had this place: a handle of an earlier one is stale.
    pub(super) incarnation: AtomicU32,
    pub(super) backend: Arc<B>,
    pub(super) config: Arc<Config>,
    pub(super) shared: Weak<Shared<B>>,
}

impl<B: Backend> Cell<B> {
    pub(super) fn new(
        id: ArenaId,
        places: &Arc<Places<B>>,
        backend: &Arc<B>,
        config: &Arc<Config>,
        terms: Terms,
        shared: Weak<Shared<B>>,
    ) -> Arc<Self> {
        // The first arena is alone until a second one is registered.
        let arena = Arena::new(id, id.0 == 0, terms);
        let cell = Arc::new(Self {
            id,
            inside: FastLock::new(Inside::new(arena)),
            places: Arc::clone(places),
            incarnation: AtomicU32::new(0),
            backend: Arc::clone(backend),
            config: Arc::clone(config),
            shared,
        });
        cell.lock().keep(&cell);
        cell
    }

    /// The arena, and who holds the cell.
    ///
    /// # Panics
    /// If an invariant broke while somebody held it: what is in there can no longer be trusted.
    #[inline]
    pub(super) fn lock(&self) -> FastGuard<'_, Inside<B>> {
        self.inside.lock().expect("an invariant of the allocator broke earlier")
    }

    /// Whether an invariant broke while somebody held the arena.
    pub(super) fn is_poisoned(&self) -> bool {
        self.inside.is_poisoned()
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

    /// As [`lock`](Self::lock), for who frees; `None` while the thread unwinds after an invariant
    /// broke: a second panic would abort.
    #[inline]
    fn lock_to_free(&self) -> Option<FastGuard<'_, Inside<B>>> {
        let inside = self.inside.lock();
        let is_over = inside.is_err() && !std::thread::panicking();
        assert!(!is_over, "an invariant of the allocator broke earlier");
        inside.ok()
    }

    /// Gives up an allocation's hold, and frees its block unless it is [empty]. The cell may be
    /// gone before this returns. So it is no argument: a reference that is one must stay valid as
    /// long as the function runs.
    ///
    /// [empty]: AllocationId::EMPTY
    #[inline]
    pub(super) fn drop_owned(held: &Held<B>, id: AllocationId) {
        let cell = held.cell();
        let Some(mut inside) = cell.lock_to_free() else { return };
        let heard = if inside.history.is_some() { inside.note_free(id) } else { None };
        let freed = match id {
            AllocationId::EMPTY => None,
            id => inside.arena.free(id, &cell.config),
        };
        let last = inside.give_up();
        let freed = freed.unwrap_or_default();
        let is_done = freed == Freed::default() && last.is_none() && heard.is_none();
        if cfg!(not(aquifer_shuttle)) && is_done {
            return;
        }
        // From here on the cell must be kept (H3).
        let keeper = last.or_else(|| inside.keeper());
        drop(inside);
        if let Some((entry, shared)) = heard.zip(cell.shared.upgrade()) {
            shared.tell(&[(cell.id, entry)]);
        }
        if freed != Freed::default() {
            cell.follow_up(freed);
        }
        drop(keeper);
    }

    /// Frees a block that has no owner; `false` if the id is stale, or an [`Allocation`] owns it.
    ///
    /// [`Allocation`]: crate::allocator::Allocation
    pub(super) fn free_unowned(&self, id: AllocationId, addresses: &Addresses) -> bool {
        let Some(mut inside) = self.lock_to_free() else { return true };
        if !inside.arena.is_unowned(id) {
            return false;
        }
        if addresses.are_kept() {
            let address = inside.arena.address_of(id);
            address.iter().for_each(|&address| addresses.forget(address));
        }
        let heard = if inside.history.is_some() { inside.note_free(id) } else { None };
        let freed = inside.arena.free(id, &self.config);
        drop(inside);
        if let Some((entry, shared)) = heard.zip(self.shared.upgrade()) {
            shared.tell(&[(self.id, entry)]);
        }
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
        let keeper = self.lock().orphan();
        self.close();
        drop(keeper);
    }

    /// The allocator is gone: with the last allocation of the stream all its memory goes, whoever
    /// keeps a handle. As long as the allocator itself is giving back, its calls may be under way
    /// here; it closes every cell when it is done.
    fn close(&self) {
        let mut inside = self.lock();
        let live = inside.arena.ledger.now(ALL, Gauge::Allocation as usize);
        if inside.is_orphaned() && live == 0 {
            let (users, pieces) = (inside.arena.users(), inside.arena.dismantle());
            drop(inside);
            self.give_back(users, pieces);
        }
    }

    fn give_back(&self, users: Vec<ArenaId>, pieces: Vec<(Memory<B>, Vec<Chunk>)>) {
        if pieces.iter().any(|(_, chunks)| !chunks.is_empty()) {
            // Pages may be taken out only when the work on them is done, whoever's it is.
            for user in users {
                if let Err(lost) = self.places.synchronize(user, &self.backend) {
                    log::warn!("aquifer: while giving memory back: {lost}");
                }
            }
        }
        for (piece, chunks) in pieces {
            if let Err(lost) = unmap_chunks(&*self.backend, &piece.memory, &chunks) {
                log::warn!("aquifer: while giving memory back: {lost}");
            }
            give_back(&*self.backend, piece);
        }
    }
}

impl<B: Backend> Drop for Cell<B> {
    /// Gives back all that is left: nobody holds an allocation of this stream any more, and the
    /// allocator is gone.
    fn drop(&mut self) {
        let arena = &mut self.inside.get_mut().arena;
        let (users, pieces) = (arena.users(), arena.dismantle());
        self.give_back(users, pieces);
    }
}

/// Takes chunks out and gives them back to the device.
///
/// # Errors
/// If the device is gone; then all chunks are.
pub(super) fn unmap_chunks<B: Backend>(
    backend: &B,
    memory: &B::Memory,
    chunks: &[Chunk],
) -> Result<(), Lost> {
    let Some(virtual_memory) = backend.virtual_memory() else { return Ok(()) };
    let mut outcome = Ok(());
    for chunk in chunks {
        match virtual_memory.unmap(memory, to_bytes(chunk.start)) {
            Ok(chunk) => virtual_memory.release(chunk),
            Err(lost) => outcome = Err(lost),
        }
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
