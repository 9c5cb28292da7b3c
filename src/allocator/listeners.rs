//! Callbacks that programs register, and the guards that keep them registered.
//!
//! The list is copied before anything in it is called: nothing is locked then, and a callback may
//! register others, drop guards (its own among them), allocate, free and trim.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, Weak};

use crate::allocator::sync::{Mutex, MutexGuard};

struct Entry<F: ?Sized> {
    priority: i32,
    callback: Arc<F>,
    serial: u64,
}

struct List<F: ?Sized> {
    entries: Vec<Entry<F>>,
    registered: u64,
}

/// Callbacks of one sort, in ascending order of priority.
pub(super) struct Listeners<F: ?Sized> {
    list: Arc<Mutex<List<F>>>,
}

/// A list that a guard can take its callback out of.
trait Forget: Send + Sync {
    fn forget(&self, serial: u64);
}

/// Keeps a callback registered; dropping it removes the callback.
#[must_use = "dropping the guard removes the callback"]
pub struct CallbackGuard {
    list: Weak<dyn Forget>,
    serial: u64,
}

impl std::fmt::Debug for CallbackGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallbackGuard").finish_non_exhaustive()
    }
}

impl Drop for CallbackGuard {
    fn drop(&mut self) {
        if let Some(list) = self.list.upgrade() {
            list.forget(self.serial);
        }
    }
}

impl<F: ?Sized + Send + Sync + 'static> Listeners<F> {
    pub(super) fn new() -> Self {
        Self { list: Arc::new(Mutex::new(List { entries: Vec::new(), registered: 0 })) }
    }

    /// Among equal priorities the earlier one stands behind.
    pub(super) fn register(&self, priority: i32, callback: Arc<F>) -> CallbackGuard {
        let mut list = lock(&self.list);
        list.registered += 1;
        let serial = list.registered;
        let at = list.entries.partition_point(|entry| entry.priority < priority);
        list.entries.insert(at, Entry { priority, callback, serial });
        drop(list);
        let list: Weak<Mutex<List<F>>> = Arc::downgrade(&self.list);
        CallbackGuard { list, serial }
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.list).entries.is_empty()
    }

    /// All of them, the highest priority last.
    pub(super) fn all(&self) -> Vec<Arc<F>> {
        lock(&self.list).entries.iter().map(|entry| Arc::clone(&entry.callback)).collect()
    }
}

impl<F: ?Sized + Send + Sync> Forget for Mutex<List<F>> {
    fn forget(&self, serial: u64) {
        let mut list = lock(self);
        let at = list.entries.iter().position(|entry| entry.serial == serial);
        let entry = at.map(|at| list.entries.remove(at));
        // What the callback owns is dropped with nothing locked: it may be a guard itself.
        drop(list);
        drop(entry);
    }
}

fn lock<F: ?Sized>(list: &Mutex<List<F>>) -> MutexGuard<'_, List<F>> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls what a program registered; `None` if it panicked, which ends there, and is logged.
pub(super) fn contain<R>(what: &str, call: impl FnOnce() -> R) -> Option<R> {
    let outcome = catch_unwind(AssertUnwindSafe(call));
    outcome.inspect_err(|_| log::error!("aquifer: {what} panicked; the panic ends here")).ok()
}
