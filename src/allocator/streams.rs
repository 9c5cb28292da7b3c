//! Registration, adoption and retirement of streams.
//!
//! ```text
//!  stream(raw) ─▶ known? ─▶ its handle
//!                   │ no
//!                   ├─▶ a place that a forgotten stream left: wait for its last event, take it
//!                   │   with everything that is cached there
//!                   └─▶ a new place
//! ```
//!
//! A stream has one place at a time: of several threads that name a new one the first registers
//! it, and the others wait for that.
//!
//! A forgotten stream strands nothing: its last event covers all it did, its cached memory serves
//! other streams and the next new one, and allocations that are still live are freed as ever.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use crate::allocator::Allocator;
use crate::allocator::cell::Cell;
use crate::allocator::shared::Shared;
use crate::allocator::sync::{Condvar, Mutex, MutexGuard, Ordering};
use crate::backend::Backend;
use crate::core::lifetime::Clock;
use crate::id::{AllocationId, ArenaId};

/// A registered stream: what requests name. Cheap to clone.
pub struct Stream<B: Backend> {
    pub(super) cell: Arc<Cell<B>>,
    pub(super) incarnation: u32,
}

impl<B: Backend> Clone for Stream<B> {
    fn clone(&self) -> Self {
        Self { cell: Arc::clone(&self.cell), incarnation: self.incarnation }
    }
}

impl<B: Backend> std::fmt::Debug for Stream<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stream").field(&self.cell.stream()).finish()
    }
}

impl<B: Backend> Stream<B> {
    /// The backend's own stream.
    pub fn raw(&self) -> B::Stream {
        self.cell.stream()
    }

    /// Whether the stream was not forgotten since.
    #[cfg(feature = "cuda")]
    pub(crate) fn is_current(&self) -> bool {
        self.cell.incarnation() == self.incarnation
    }

    /// The number of its place, in order of registration; a later stream may get it again.
    pub fn index(&self) -> u32 {
        self.cell.id.0
    }
}

/// Known streams and their places; none for one that a thread is about to register.
type Known<B> = HashMap<<B as Backend>::Stream, Option<ArenaId>>;

/// The registered streams.
pub(super) struct Streams<B: Backend> {
    known: Mutex<Known<B>>,
    /// Signalled when a registration has ended.
    registered: Condvar,
}

impl<B: Backend> Streams<B> {
    pub(super) fn new(default: B::Stream) -> Self {
        let known = HashMap::from([(default, Some(ArenaId(0)))]);
        Self { known: Mutex::new(known), registered: Condvar::new() }
    }

    fn known(&self) -> MutexGuard<'_, Known<B>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A registration under way. Dropped before it is done, as by a panic, the stream is unknown again.
struct Registration<'a, B: Backend> {
    streams: &'a Streams<B>,
    raw: B::Stream,
    place: Option<ArenaId>,
}

impl<B: Backend> Drop for Registration<'_, B> {
    fn drop(&mut self) {
        let mut known = self.streams.known();
        match self.place {
            Some(id) => drop(known.insert(self.raw, Some(id))),
            None => drop(known.remove(&self.raw)),
        }
        drop(known);
        self.streams.registered.notify_all();
    }
}

impl<B: Backend> Shared<B> {
    /// The cell of a handle.
    ///
    /// # Panics
    /// If the stream was forgotten, or belongs to another allocator.
    #[inline]
    pub(super) fn cell_of<'a>(&self, stream: &'a Stream<B>) -> &'a Arc<Cell<B>> {
        let cell = &stream.cell;
        assert!(
            cell.incarnation() == stream.incarnation && Arc::ptr_eq(&cell.backend, &self.backend),
            "the stream was forgotten or belongs to another allocator; call Allocator::stream again"
        );
        cell
    }

    fn handle(&self, id: ArenaId) -> Stream<B> {
        let cell = self.cells.get(id).expect("a known stream has its cell");
        Stream { cell: Arc::clone(cell), incarnation: cell.incarnation() }
    }

    fn register(self: &Arc<Self>, raw: B::Stream) -> Stream<B> {
        let mut known = self.streams.known();
        loop {
            match known.get(&raw) {
                // Made with the table locked: the stream cannot be forgotten before.
                Some(Some(id)) => return self.handle(*id),
                Some(None) => {
                    let waited = self.streams.registered.wait(known);
                    known = waited.unwrap_or_else(PoisonError::into_inner);
                }
                None => break,
            }
        }
        known.insert(raw, None);
        drop(known);
        let mut registration = Registration { streams: &self.streams, raw, place: None };
        let id = self.adopt(raw).unwrap_or_else(|| self.add(raw));
        registration.place = Some(id);
        // Nobody can forget the stream before the registration is dropped.
        self.handle(id)
    }

    /// Takes over the place of a forgotten stream, if there is one and `raw` can be ordered after
    /// it.
    fn adopt(&self, raw: B::Stream) -> Option<ArenaId> {
        let (id, event) = self.world(|world| world.claim_place())?;
        self.places.set(id, raw);
        if let Some(recorded) = event
            && let Err(lost) = self.backend.wait_on(raw, &recorded.event)
        {
            self.lose(&lost);
        }
        self.world(|world| world.commit_adopt(id));
        Some(id)
    }

    fn add(self: &Arc<Self>, raw: B::Stream) -> ArenaId {
        let mut global = self.lock_global();
        let id = ArenaId::from_index(self.cells.len());
        if id.0 >= AllocationId::ARENA_MAX - 1 {
            // It is the caller's mistake alone: a panic with the locks held would poison them.
            drop(global);
            panic!("more than 4094 streams at a time: forget those that are gone (forget_stream)");
        }
        let weak = Arc::downgrade(self);
        let cell = Cell::new(id, &self.places, &self.backend, &self.config, self.terms, weak);
        self.places.add(raw);
        // With a second arena nobody may raise the peaks alone any more. The arenas there are stop
        // before the new one begins.
        self.cells.iter().for_each(|cell| cell.lock().arena.ledger.sole = false);
        cell.lock().arena.lost = global.lost;
        cell.lock().history = self.recorder.ring();
        self.cells.push(cell);
        global.clocks.push(Clock::new());
        id
    }

    fn forget(&self, raw: B::Stream) {
        let mut known = self.streams.known();
        let Some(&Some(id)) = known.get(&raw) else { return };
        if id == ArenaId(0) {
            drop(known);
            log::warn!("aquifer: the default stream cannot be forgotten: {raw:?}");
            return;
        }
        if self.lock_global().is_recording(id) {
            drop(known);
            panic!("the stream has an open recording: submit it, or throw it away, first");
        }
        known.remove(&raw);
        let cell = self.cells.get(id).expect("a known stream has its cell");
        cell.incarnation.fetch_add(1, Ordering::Relaxed);
        drop(known);
        self.routes.forget(id);
        self.retire(id);
    }

    /// Lets a stream go: leaves it alone, waits until everyone else does, and records what it did.
    fn retire(&self, id: ArenaId) {
        self.world(|world| world.begin_retire(id));
        self.await_quiet(id);
        loop {
            let tick = self.world(|world| {
                world.absorb();
                (!world.global.lost).then(|| world.close_tick(id))
            });
            let last = tick.and_then(|tick| self.record(id, tick));
            self.places.close(id, last);
            if self.world(|world| world.retire(id)) {
                self.notify_progress();
                return;
            }
        }
    }
}

impl<B: Backend> Allocator<B> {
    /// The most streams that can be registered at a time, beside the default one.
    pub const STREAMS_MAX: usize = AllocationId::ARENA_MAX as usize - 2;

    /// The handle of the default stream.
    pub fn default_stream(&self) -> Stream<B> {
        self.shared.handle(ArenaId(0))
    }

    /// The handle of a stream, which is registered at first sight. Keep it: looking it up takes a
    /// lock, using it does not.
    ///
    /// # Panics
    /// If more than 4094 streams are registered at a time.
    pub fn stream(&self, raw: B::Stream) -> Stream<B> {
        self.shared.register(raw)
    }

    /// Tells that the program is about to destroy a stream: an event is recorded that covers all it
    /// did. Its cached memory goes on to serve other streams; its live allocations stay valid.
    /// Handles of it must not be used any more. The default stream cannot be forgotten; unknown
    /// streams are ignored.
    ///
    /// # Panics
    /// If the stream has an open recording.
    pub fn forget_stream(&self, raw: B::Stream) {
        self.shared.forget(raw);
    }
}
