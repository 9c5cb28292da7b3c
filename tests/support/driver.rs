//! Which CUDA driver a test runs on: the fake one of `cuda.rs`, or, with `AQUIFER_CUDA=real`, that
//! of the machine.
//!
//! Tests that have one run one at a time: they look at what a device has free, and fill it.

// Each test needs only some of it.
#![allow(dead_code)]

use std::sync::{Condvar, Mutex, Once, PoisonError};

use super::cuda::{Fake, Options};

/// The driver, for as long as a test runs.
#[derive(Debug)]
pub(crate) enum Driver {
    /// Checks when it is dropped that nobody misused it.
    Fake(Fake),
    /// With the turn of the test.
    Real(Turn),
}

/// The machine's driver is one test's at a time.
#[derive(Debug)]
pub(crate) struct Turn(());

static TAKEN: Mutex<bool> = Mutex::new(false);
static GIVEN_BACK: Condvar = Condvar::new();

impl Turn {
    fn take() -> Self {
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let free = GIVEN_BACK.wait_while(taken, |taken| *taken);
        *free.unwrap_or_else(PoisonError::into_inner) = true;
        Self(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) = false;
        GIVEN_BACK.notify_one();
    }
}

/// Whether it is the machine's.
pub(crate) fn is_real() -> bool {
    std::env::var("AQUIFER_CUDA").is_ok_and(|kind| kind == "real")
}

impl Driver {
    /// The fake one is reset to these options. To be held until everything of the test is dropped.
    pub(crate) fn with(options: Options) -> Self {
        static TOLD: Once = Once::new();
        let name = if is_real() { "real" } else { "fake" };
        TOLD.call_once(|| println!("CUDA driver: {name}"));
        match is_real() {
            true => Self::Real(Turn::take()),
            false => Self::Fake(Fake::fresh(options)),
        }
    }

    /// The fake one is a device of 1 GiB.
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn fake(&self) -> Option<&Fake> {
        match self {
            Self::Fake(fake) => Some(fake),
            Self::Real(_) => None,
        }
    }
}
