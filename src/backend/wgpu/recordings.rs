//! Which streams have an open recording: what a free asks before it gives a block back.
//!
//! ```text
//!  word    count ─┬─ sole     count = 1: `sole` is the one open stream
//!          32 bit │ 32 bit    else: see the list
//! ```
//!
//! I: the word is that of the list, under the list's lock. A free reads the word alone: one load,
//! no lock, while at most its own stream records.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The streams with an open recording, by the number of their place.
#[derive(Debug, Default)]
pub(crate) struct Recordings {
    word: AtomicU64,
    list: Mutex<Vec<u32>>,
}

impl Recordings {
    fn list(&self) -> MutexGuard<'_, Vec<u32>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, list: &[u32]) {
        let sole = u64::from(list.first().copied().unwrap_or(0));
        self.word.store((list.len() as u64) << 32 | sole, Ordering::Release);
    }

    /// A recording of the stream begins; it has none.
    pub(crate) fn open(&self, stream: u32) {
        let mut list = self.list();
        list.push(stream);
        self.publish(&list);
    }

    /// It was submitted, or thrown away.
    pub(crate) fn close(&self, stream: u32) {
        let mut list = self.list();
        list.retain(|&open| open != stream);
        self.publish(&list);
    }

    /// Whether no stream but `own` records.
    #[inline]
    pub(crate) fn none_but(&self, own: u32) -> bool {
        let word = self.word.load(Ordering::Acquire);
        word >> 32 == 0 || word == 1 << 32 | u64::from(own)
    }

    /// Whether no stream records.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.word.load(Ordering::Acquire) >> 32 == 0
    }

    /// The streams that record now.
    pub(crate) fn snapshot(&self) -> Vec<u32> {
        self.list().clone()
    }
}
