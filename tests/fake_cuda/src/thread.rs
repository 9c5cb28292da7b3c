//! What belongs to one thread: its stack of contexts, its capture mode, and whether it is inside a
//! host function.
//!
//! T1: everything here belongs to one epoch (one reset of the fake); a thread that comes back in a
//! later one starts afresh.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

/// `CU_STREAM_CAPTURE_MODE_GLOBAL`: what a thread starts with.
const MODE_GLOBAL: u32 = 0;

#[derive(Debug)]
pub(crate) struct Thread {
    /// Which thread this is; never given twice.
    pub(crate) number: u64,
    epoch: u64,
    /// The last one is current; a null context is 0.
    pub(crate) contexts: Vec<u64>,
    pub(crate) capture_mode: u32,
    in_host_function: bool,
}

thread_local! {
    static THREAD: RefCell<Thread> = RefCell::new(Thread {
        number: next_number(),
        epoch: 0,
        contexts: Vec::new(),
        capture_mode: MODE_GLOBAL,
        in_host_function: false,
    });
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Looks at the calling thread as it is in `epoch`.
pub(crate) fn with<R>(epoch: u64, look: impl FnOnce(&mut Thread) -> R) -> R {
    THREAD.with(|thread| {
        let mut thread = thread.borrow_mut();
        if thread.epoch != epoch {
            thread.epoch = epoch;
            thread.contexts.clear();
            thread.capture_mode = MODE_GLOBAL;
        }
        look(&mut thread)
    })
}

/// Runs a function that the stream has reached. Calls of the driver in it are refused.
pub(crate) fn host_function(run: impl FnOnce()) {
    THREAD.with(|thread| thread.borrow_mut().in_host_function = true);
    run();
    THREAD.with(|thread| thread.borrow_mut().in_host_function = false);
}

pub(crate) fn is_in_host_function() -> bool {
    THREAD.with(|thread| thread.borrow().in_host_function)
}
