//! The raw streams behind the arenas: which stream has which place now, and the last event of one
//! that is gone. Cells keep the table beyond the allocator, for what they give back last.

use std::sync::{Arc, PoisonError};

use crate::allocator::shared::Event;
use crate::allocator::sync::Mutex;
use crate::backend::{Backend, Lost};
use crate::id::ArenaId;

/// What stands behind an arena.
enum Place<B: Backend> {
    /// A stream of the program.
    Live(B::Stream),
    /// A stream that is gone, and the event that covers all it did; none if the device is lost.
    Gone(B::Stream, Option<Event<B>>),
}

/// The places, in order of registration.
pub(super) struct Places<B: Backend> {
    table: Mutex<Vec<Place<B>>>,
}

impl<B: Backend> Places<B> {
    pub(super) fn new(default: B::Stream) -> Self {
        Self { table: Mutex::new(vec![Place::Live(default)]) }
    }

    fn with<R>(&self, look: impl FnOnce(&mut Vec<Place<B>>) -> R) -> R {
        look(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The stream at a place; a gone one is only good for showing.
    pub(super) fn stream(&self, id: ArenaId) -> B::Stream {
        self.with(|table| match table[id.index()] {
            Place::Live(stream) | Place::Gone(stream, _) => stream,
        })
    }

    /// A new place at the end.
    pub(super) fn add(&self, stream: B::Stream) {
        self.with(|table| table.push(Place::Live(stream)));
    }

    /// Another stream takes the place.
    pub(super) fn set(&self, id: ArenaId, stream: B::Stream) {
        self.with(|table| table[id.index()] = Place::Live(stream));
    }

    /// The stream is gone; `last` covers all it did.
    pub(super) fn close(&self, id: ArenaId, last: Option<Event<B>>) {
        let stream = self.stream(id);
        self.with(|table| table[id.index()] = Place::Gone(stream, last));
    }

    /// Waits on the host until everything is done that the stream at a place was given.
    ///
    /// # Errors
    /// If the device is gone: then nothing runs any more either.
    pub(super) fn synchronize(&self, id: ArenaId, backend: &B) -> Result<(), Lost> {
        self.end(id, backend)?.map_or(Ok(()), |event| backend.wait(&event))
    }

    /// What marks the end of all that the stream at a place was given; nothing if nothing runs.
    ///
    /// # Errors
    /// If the device is gone.
    pub(super) fn end(&self, id: ArenaId, backend: &B) -> Result<Option<Event<B>>, Lost> {
        let live = self.with(|table| match &table[id.index()] {
            Place::Live(stream) => Ok(*stream),
            Place::Gone(_, last) => Err(last.clone()),
        });
        match live {
            Ok(stream) => backend.record(stream).map(|event| Some(Arc::new(event))),
            Err(last) => Ok(last),
        }
    }
}
