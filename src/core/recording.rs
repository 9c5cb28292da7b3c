//! Recordings: work that the program has written down for a stream, and not handed to the device.
//!
//! ```text
//!  stream S   ── begin ── work, frees, work, frees ── end ──▶ time
//!                │                                     │
//!                │ S itself: has its blocks back at once, for work recorded later
//!                │ others:   not before the end; what S freed before the beginning they may have
//!                open tick: no event covers it          everything up to here is ordered
//! ```
//!
//! A command buffer is executed where the program submits it, which may be after work that was
//! recorded later on another stream. So nothing can be known of a recording while it is open, no
//! event can stand for it, and waiting for it would never end. At its end it is in the device's
//! queue, or thrown away; and whatever is recorded from then on comes after it.
//!
//! - R1: while a stream has an open recording, no event is recorded, asked or waited for on it.
//! - R2: a block that an open recording may use is handed to its own stream only, and its segment
//!   is not given back.
//!
//! With backends whose streams take work at once (CUDA, the host) there are no recordings. O(1),
//! but for the blocks that complete at the end.

use crate::core::lifetime::Mark;
use crate::core::state::{Global, World};
use crate::id::{ArenaId, BlockId};

impl<E> Global<E> {
    /// Whether the stream has an open recording.
    pub(crate) fn is_recording(&self, stream: ArenaId) -> bool {
        self.clocks[stream.index()].recordings > 0
    }
}

impl<M, E: Clone> World<'_, M, E> {
    /// A recording begins. What the stream did before is in the device's queue.
    pub(crate) fn begin_recording(&mut self, stream: ArenaId) {
        if !self.global.is_recording(stream) {
            self.pass(stream);
        }
        self.global.clocks[stream.index()].recordings += 1;
    }

    /// A recording was submitted, or thrown away.
    pub(crate) fn end_recording(&mut self, stream: ArenaId) {
        let clock = &mut self.global.clocks[stream.index()];
        clock.recordings -= 1;
        if clock.recordings == 0 {
            self.pass(stream);
        }
    }

    /// Everything that the stream did so far comes before whatever is submitted from now on.
    fn pass(&mut self, stream: ArenaId) {
        self.absorb();
        let tick = self.close_tick(stream);
        self.complete_through(stream, tick);
    }

    /// Whether an open recording may use the free block `id` of `home` (R2).
    pub(crate) fn is_in_recording(&self, home: ArenaId, id: BlockId) -> bool {
        let tick = self.arenas[home.index()].blocks[id.index()].tick;
        self.global.is_recording(home) && !self.is_completed(&Mark { stream: home, tick })
    }
}
