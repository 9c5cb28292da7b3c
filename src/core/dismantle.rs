//! Taking an arena apart, when nobody uses it any more.

use crate::core::arena::Arena;
use crate::core::chunks::Chunk;
use crate::core::pause::Presence;
use crate::id::ArenaId;

impl<M> Arena<M> {
    /// All streams that may still touch memory of this arena: its own, and those that pending
    /// blocks wait for.
    pub(crate) fn users(&self) -> Vec<ArenaId> {
        let marks = self.waiting.iter().flat_map(|(_, waiting)| &waiting.marks);
        let mut users: Vec<_> = marks.map(|mark| mark.stream).chain([self.id]).collect();
        users.sort_unstable();
        users.dedup();
        users
    }

    /// Takes everything apart: each segment's memory, and the chunks that are behind it if it is
    /// virtual. For an arena that nobody uses any more.
    pub(crate) fn dismantle(&mut self) -> Vec<(M, Vec<Chunk>)> {
        let segments = self.segments.drain();
        let pieces = segments.map(|segment| {
            let here = segment.presence == Presence::Here;
            let chunks = if here { segment.chunks.all() } else { &[] };
            (segment.memory, chunks.to_vec())
        });
        let pieces = pieces.collect();
        *self = Self::new(self.id, self.ledger.sole, self.terms);
        pieces
    }
}
