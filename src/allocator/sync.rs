//! The locks of the shell, all from one place, so that they can be swapped for a test.
//!
//! `RUSTFLAGS="--cfg aquifer_shuttle"` swaps them for those of the crate `shuttle`, which runs a
//! program under many schedules, one thread at a time (`tests/threads.rs`). `Arc` and `Weak` are
//! always those of the standard library: their counts order nothing that the shell rests on.
//!
//! A hit takes one lock, twice a pair. It is held for some nanoseconds, hardly ever by two at a
//! time, and never across a call of the backend: so it is a [`FastLock`], one atomic exchange to
//! lock and a plain store to unlock (2.2 ns; `std`'s takes 5.3). Whoever finds it taken looks again
//! a few times, then lets other threads run, then sleeps for 50 µs at a time: with everything in
//! one hand, as for a snapshot of a million blocks, it is held for milliseconds.

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

#[cfg(not(aquifer_shuttle))]
pub(super) use fast::{FastGuard, FastLock};
#[cfg(aquifer_shuttle)]
pub(super) use watched::{FastGuard, FastLock};

/// Whether a thread panicked while it held the lock. Never blocks.
pub(super) fn is_poisoned<T>(mutex: &Mutex<T>) -> bool {
    #[cfg(not(aquifer_shuttle))]
    return mutex.is_poisoned();
    #[cfg(aquifer_shuttle)]
    return matches!(mutex.try_lock(), Err(std::sync::TryLockError::Poisoned(_)));
}

/// A thread panicked while it held the lock.
#[derive(Debug)]
pub(super) struct Poisoned;

#[cfg(not(aquifer_shuttle))]
mod fast {
    use std::ops::{Deref, DerefMut};
    use std::panic::{RefUnwindSafe, UnwindSafe};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;
    use std::{hint, thread};

    use super::Poisoned;

    /// How often a thread that found the lock taken looks again at once, and until when it lets
    /// others run in between; then it sleeps.
    const SPINS: u32 = 64;
    const YIELDS: u32 = 2 * SPINS;
    const NAP: Duration = Duration::from_micros(50);

    /// A lock that costs little while nobody else wants it.
    pub(in super::super) struct FastLock<T> {
        lock: spin::Mutex<T>,
        poisoned: AtomicBool,
    }

    // What a panic left half done inside nobody sees: the lock is poisoned then.
    impl<T> UnwindSafe for FastLock<T> {}
    impl<T> RefUnwindSafe for FastLock<T> {}

    /// Unlocks when it is dropped.
    pub(in super::super) struct FastGuard<'a, T> {
        inner: spin::MutexGuard<'a, T>,
        poisoned: &'a AtomicBool,
        /// The thread panicked already when it came: it may leave again.
        panicking: bool,
    }

    impl<T> FastLock<T> {
        pub(in super::super) const fn new(value: T) -> Self {
            Self { lock: spin::Mutex::new(value), poisoned: AtomicBool::new(false) }
        }

        /// Locks.
        ///
        /// # Errors
        /// If a thread panicked while it held the lock.
        #[inline]
        pub(in super::super) fn lock(&self) -> Result<FastGuard<'_, T>, Poisoned> {
            let inner = self.lock.try_lock().unwrap_or_else(|| self.wait());
            if self.poisoned.load(Ordering::Relaxed) {
                return Err(Poisoned);
            }
            let panicking = thread::panicking();
            Ok(FastGuard { inner, poisoned: &self.poisoned, panicking })
        }

        #[cold]
        fn wait(&self) -> spin::MutexGuard<'_, T> {
            let mut looks = 0_u32;
            loop {
                match looks {
                    0..SPINS => hint::spin_loop(),
                    SPINS..YIELDS => thread::yield_now(),
                    _ => thread::sleep(NAP),
                }
                if !self.lock.is_locked()
                    && let Some(guard) = self.lock.try_lock()
                {
                    return guard;
                }
                looks = looks.saturating_add(1);
            }
        }

        pub(in super::super) fn get_mut(&mut self) -> &mut T {
            self.lock.get_mut()
        }

        pub(in super::super) fn is_poisoned(&self) -> bool {
            self.poisoned.load(Ordering::Relaxed)
        }
    }

    impl<T> Deref for FastGuard<'_, T> {
        type Target = T;

        #[inline]
        fn deref(&self) -> &T {
            &self.inner
        }
    }

    impl<T> DerefMut for FastGuard<'_, T> {
        #[inline]
        fn deref_mut(&mut self) -> &mut T {
            &mut self.inner
        }
    }

    impl<T> Drop for FastGuard<'_, T> {
        // The lock itself opens after this, with one store: nothing is touched behind that.
        #[inline]
        fn drop(&mut self) {
            if thread::panicking() && !self.panicking {
                self.poisoned.store(true, Ordering::Relaxed);
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use std::panic::{AssertUnwindSafe, catch_unwind};
        use std::sync::Barrier;

        use super::*;

        #[test]
        fn threads_take_turns() {
            let (lock, start) = (FastLock::new(0_u64), Barrier::new(4));
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        start.wait();
                        for _ in 0..10_000 {
                            let mut count = lock.lock().expect("nobody panics");
                            let seen = *count;
                            hint::black_box(seen);
                            *count = seen + 1;
                        }
                    });
                }
            });
            assert_eq!(*lock.lock().expect("nobody panicked"), 40_000);
        }

        #[test]
        fn who_waits_for_long_gets_it_in_the_end() {
            let (lock, taken) = (FastLock::new(0_u64), Barrier::new(2));
            thread::scope(|scope| {
                let guard = lock.lock().expect("nobody panics");
                scope.spawn(|| {
                    taken.wait();
                    *lock.lock().expect("nobody panics") += 1;
                });
                taken.wait();
                // Long enough for the other one to have looked so often that it sleeps.
                for _ in 0..1_000 {
                    thread::yield_now();
                }
                drop(guard);
            });
            assert_eq!(*lock.lock().expect("nobody panicked"), 1);
        }

        #[test]
        fn a_panic_inside_poisons_and_a_panic_outside_does_not() {
            let lock = FastLock::new(());
            let outside = catch_unwind(AssertUnwindSafe(|| {
                struct Locks<'a>(&'a FastLock<()>);
                impl Drop for Locks<'_> {
                    fn drop(&mut self) {
                        assert!(self.0.lock().is_ok());
                    }
                }
                let _locks = Locks(&lock);
                panic!("outside");
            }));
            assert!(outside.is_err() && !lock.is_poisoned() && lock.lock().is_ok());
            let inside = catch_unwind(AssertUnwindSafe(|| {
                let _guard = lock.lock();
                panic!("inside");
            }));
            assert!(inside.is_err() && lock.is_poisoned() && lock.lock().is_err());
        }
    }
}

#[cfg(aquifer_shuttle)]
mod watched {
    use super::{Mutex, MutexGuard, Poisoned};

    /// As the fast lock; the scheduler sees it.
    pub(in super::super) struct FastLock<T>(Mutex<T>);

    pub(in super::super) type FastGuard<'a, T> = MutexGuard<'a, T>;

    impl<T> FastLock<T> {
        pub(in super::super) fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }

        pub(in super::super) fn lock(&self) -> Result<FastGuard<'_, T>, Poisoned> {
            self.0.lock().map_err(|_| Poisoned)
        }

        pub(in super::super) fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner)
        }

        pub(in super::super) fn is_poisoned(&self) -> bool {
            super::is_poisoned(&self.0)
        }
    }
}
