//! Taking an arena apart, when nobody uses it any more.

use crate::core::arena::Arena;
use crate::core::expand::Run;
use crate::id::ArenaId;
use crate::units::{Bytes, to_bytes};

/// A page size and a run of mapped pages.
pub(crate) type MappedRun = (Bytes, Run);

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

    /// Takes everything apart: each segment's memory, and the pages that are behind it if it is
    /// virtual. For an arena that nobody uses any more.
    pub(crate) fn dismantle(&mut self) -> Vec<(M, Vec<MappedRun>)> {
        let mut pieces = Vec::new();
        for segment in self.segments.drain() {
            let mut runs: Vec<MappedRun> = Vec::new();
            let mut at = segment.first;
            while let Some(block) = self.blocks.get(at.index()).filter(|_| segment.is_virtual()) {
                if block.is_mapped() {
                    let (offset, end) = (to_bytes(block.offset), to_bytes(block.end()));
                    match runs.last_mut() {
                        Some((_, run)) if run.offset + run.size == offset => {
                            run.size = end - run.offset;
                        }
                        _ => {
                            runs.push((to_bytes(segment.page), Run { offset, size: end - offset }))
                        }
                    }
                }
                at = block.next;
            }
            pieces.push((segment.memory, runs));
        }
        *self = Self::new(self.id, self.ledger.sole, self.terms);
        pieces
    }
}
