//! Recordings: telling the core that the work of a stream is written down and not submitted yet.

use std::sync::Arc;

use crate::allocator::Allocator;
use crate::allocator::shared::Shared;
use crate::allocator::streams::Stream;
use crate::backend::Backend;
use crate::id::ArenaId;

/// An open recording of a stream; see [`Allocator::begin_recording`].
#[must_use = "dropping the guard says that the recording was submitted"]
pub struct RecordingGuard<B: Backend> {
    shared: Arc<Shared<B>>,
    stream: ArenaId,
    /// Whether what is left of released pools goes back with the end.
    purges: bool,
}

#[cfg(feature = "wgpu")]
impl<B: Backend> RecordingGuard<B> {
    /// As dropping it, for whoever holds locks: what released pools left goes back with the next
    /// [`Allocator::purge`], which may call the program.
    pub(crate) fn end(mut self) {
        self.purges = false;
    }
}

impl<B: Backend> std::fmt::Debug for RecordingGuard<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RecordingGuard").field(&self.stream).finish()
    }
}

impl<B: Backend> Drop for RecordingGuard<B> {
    fn drop(&mut self) {
        if !self.shared.is_poisoned() {
            self.shared.world(|world| world.end_recording(self.stream));
            if self.purges {
                self.shared.purge();
            }
        }
    }
}

impl<B: Backend> Allocator<B> {
    /// Begins a recording: from now on the work of `stream` is written down (into a command buffer,
    /// say) and reaches the device's queue only when the guard is dropped. Drop it when the work
    /// was submitted, or thrown away, and not before.
    ///
    /// Meanwhile the stream itself has its memory back at once, as ever, for work that is recorded
    /// later; others get nothing that the recording may use, and nothing of that goes back to the
    /// device. Locks all streams in turn.
    ///
    /// # Panics
    /// If the streams of the backend are more than one queue, or the stream was forgotten or
    /// belongs to another allocator.
    pub fn begin_recording(&self, stream: &Stream<B>) -> RecordingGuard<B> {
        let id = self.shared.cell_of(stream).id;
        let one_queue = self.backend().limits().one_queue;
        assert!(one_queue, "recordings need a backend whose streams are one queue");
        self.shared.world(|world| world.begin_recording(id));
        RecordingGuard { shared: Arc::clone(&self.shared), stream: id, purges: true }
    }

    /// Gives back what recordings that [ended](RecordingGuard::end) left of released pools. Calls
    /// the backend, and so the program perhaps: hold no lock.
    #[cfg(feature = "wgpu")]
    pub(crate) fn purge(&self) {
        if !self.shared.is_poisoned() {
            self.shared.purge();
        }
    }
}
