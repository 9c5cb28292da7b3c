//! Out-of-memory callbacks: the program's own caches give memory back before a request fails.
//!
//! They are asked when growing was refused, not on every miss; highest priority first, each at most
//! once for one request; after each that gave something back the pool is searched and growing tried
//! again. No lock is held: a callback may allocate, free and trim. A callback that panics counts as
//! having freed nothing; the panic is contained and logged. While a thread is inside a callback its
//! own requests ask no callbacks.

use std::cell::Cell;
use std::sync::Arc;

use crate::allocator::Allocator;
use crate::allocator::listeners::{CallbackGuard, Listeners, contain};
use crate::allocator::sync::thread_local;
use crate::backend::Backend;
use crate::units::Bytes;

/// What a callback is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pressure {
    /// Bytes that the request asked for.
    pub requested: Bytes,
}

type Ask = dyn Fn(&Pressure) -> bool + Send + Sync;

/// The registered callbacks.
pub(super) struct Callbacks {
    listeners: Listeners<Ask>,
}

/// One callback that is yet to be asked.
pub(super) struct Callback(Arc<Ask>);

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Callbacks {
    pub(super) fn new() -> Self {
        Self { listeners: Listeners::new() }
    }

    /// The callbacks to ask, the last one first; none for a request from inside a callback.
    pub(super) fn list(&self) -> Vec<Callback> {
        if INSIDE.with(Cell::get) {
            return Vec::new();
        }
        self.listeners.all().into_iter().map(Callback).collect()
    }
}

impl Callback {
    /// Whether it gave something back.
    pub(super) fn call(&self, pressure: &Pressure) -> bool {
        INSIDE.with(|inside| inside.set(true));
        let freed = contain("an out-of-memory callback", || (self.0)(pressure));
        INSIDE.with(|inside| inside.set(false));
        freed.unwrap_or(false)
    }
}

impl<B: Backend> Allocator<B> {
    /// Registers a callback that may give memory back before a request fails: `true` says that it
    /// did. Higher priorities are asked first, and each once for a request, when growing was
    /// refused. No lock is held: it may allocate, free and trim. A panic in it is contained and
    /// logged, and counts as `false`.
    pub fn on_out_of_memory(
        &self,
        priority: i32,
        callback: impl Fn(&Pressure) -> bool + Send + Sync + 'static,
    ) -> CallbackGuard {
        self.shared.callbacks.listeners.register(priority, Arc::new(callback))
    }
}
