//! The locks of the shell, all from one place, so that they can be swapped for a test.
//!
//! `RUSTFLAGS="--cfg aquifer_shuttle"` swaps them for those of the crate `shuttle`, which runs a
//! program under many schedules, one thread at a time (`tests/threads.rs`). `Arc` and `Weak` are
//! always those of the standard library: their counts order nothing that the shell rests on.

#[cfg(not(aquifer_shuttle))]
pub(super) use std::sync::{
    Condvar, Mutex, MutexGuard, RwLock,
    atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
};
#[cfg(not(aquifer_shuttle))]
pub(super) use std::thread_local;

#[cfg(aquifer_shuttle)]
pub(super) use shuttle::sync::{
    Condvar, Mutex, MutexGuard, RwLock,
    atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
};
#[cfg(aquifer_shuttle)]
pub(super) use shuttle::thread_local;

/// Whether a thread panicked while it held the lock. Never blocks.
pub(super) fn is_poisoned<T>(mutex: &Mutex<T>) -> bool {
    #[cfg(not(aquifer_shuttle))]
    return mutex.is_poisoned();
    #[cfg(aquifer_shuttle)]
    return matches!(mutex.try_lock(), Err(std::sync::TryLockError::Poisoned(_)));
}
