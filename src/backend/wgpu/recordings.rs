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
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    open: Vec<Recording>,
    begun: u64,
}

/// One open recording: the stream may have another one later, under another serial number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recording {
    pub(crate) stream: u32,
    serial: u64,
}

impl Recordings {
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, open: &[Recording]) {
        let sole = u64::from(open.first().map_or(0, |first| first.stream));
        self.word.store((open.len() as u64) << 32 | sole, Ordering::Release);
    }

    /// A recording of the stream begins; it has none.
    pub(crate) fn open(&self, stream: u32) {
        let mut list = self.list();
        list.begun += 1;
        let serial = list.begun;
        list.open.push(Recording { stream, serial });
        self.publish(&list.open);
    }

    /// It was submitted, or thrown away.
    pub(crate) fn close(&self, stream: u32) {
        let mut list = self.list();
        list.open.retain(|open| open.stream != stream);
        self.publish(&list.open);
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

    /// What is recorded now.
    pub(crate) fn snapshot(&self) -> Vec<Recording> {
        self.list().open.clone()
    }

    /// Whether one of these is still open.
    pub(crate) fn is_any_open(&self, recordings: &[Recording]) -> bool {
        let list = self.list();
        let is_open = |serial: u64| list.open.iter().any(|open| open.serial == serial);
        recordings.iter().any(|recording| is_open(recording.serial))
    }
}
