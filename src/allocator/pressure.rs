//! Out-of-memory callbacks: the program's own caches give memory back before a request fails.
//!
//! They are asked when growing was refused, not on every miss; highest priority first, each at most
//! once for one request; after each that gave something back the pool is searched and growing tried
//! again. No lock is held: a callback may allocate, free and trim. A callback that panics counts as
//! having freed nothing; the panic is contained and logged. While a thread is inside a callback its
//! own requests ask no callbacks.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, Weak};

use crate::allocator::sync::{Mutex, thread_local};
use crate::units::Bytes;

/// What a callback is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pressure {
    /// Bytes that the request asked for.
    pub requested: Bytes,
}

type Ask = dyn Fn(&Pressure) -> bool + Send + Sync;

struct Entry {
    priority: i32,
    ask: Arc<Ask>,
    serial: u64,
}

#[derive(Default)]
struct List {
    entries: Vec<Entry>,
    registered: u64,
}

/// The registered callbacks, in ascending order of priority.
pub(super) struct Callbacks {
    list: Arc<Mutex<List>>,
}

/// One callback that is yet to be asked.
pub(super) struct Callback(Arc<Ask>);

/// Keeps a callback registered; dropping it removes the callback.
#[must_use = "dropping the guard removes the callback"]
pub struct CallbackGuard {
    list: Weak<Mutex<List>>,
    serial: u64,
}

impl std::fmt::Debug for CallbackGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallbackGuard").finish_non_exhaustive()
    }
}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Callbacks {
    pub(super) fn new() -> Self {
        Self { list: Arc::default() }
    }

    pub(super) fn register(&self, priority: i32, ask: Arc<Ask>) -> CallbackGuard {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.registered += 1;
        let serial = list.registered;
        // Among equals the earlier one is asked first, so it stands behind.
        let at = list.entries.partition_point(|entry| entry.priority < priority);
        list.entries.insert(at, Entry { priority, ask, serial });
        CallbackGuard { list: Arc::downgrade(&self.list), serial }
    }

    /// The callbacks to ask, the last one first; none for a request from inside a callback.
    pub(super) fn list(&self) -> Vec<Callback> {
        if INSIDE.with(Cell::get) {
            return Vec::new();
        }
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.entries.iter().map(|entry| Callback(Arc::clone(&entry.ask))).collect()
    }
}

impl Callback {
    /// Whether it gave something back.
    pub(super) fn call(&self, pressure: &Pressure) -> bool {
        INSIDE.with(|inside| inside.set(true));
        let freed = catch_unwind(AssertUnwindSafe(|| (self.0)(pressure)));
        INSIDE.with(|inside| inside.set(false));
        freed.unwrap_or_else(|_| {
            log::error!(
                "aquifer: an out-of-memory callback panicked; it counts as having freed nothing"
            );
            false
        })
    }
}

impl Drop for CallbackGuard {
    fn drop(&mut self) {
        if let Some(list) = self.list.upgrade() {
            let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
            let at = list.entries.iter().position(|entry| entry.serial == self.serial);
            let entry = at.map(|at| list.entries.remove(at));
            // What the callback owns is dropped with nothing locked: it may be a guard itself.
            drop(list);
            drop(entry);
        }
    }
}
