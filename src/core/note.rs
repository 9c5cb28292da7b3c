//! What the core tells about segments and late frees, for whoever writes a history.
//!
//! Handing out and letting go are seen by the shell itself; what happens to segments and pages, and
//! when a free completes that had to wait, only the core knows. It notes it, if it is asked to, and
//! the shell puts a time to it when it has everything in one hand anyway.

use std::panic::Location;

use crate::core::block::{Holder, State};
use crate::core::state::World;
use crate::id::{ArenaId, BlockId, OwnerId, Tag};
use crate::units::{Bytes, to_bytes};

/// What was noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noted {
    SegmentCame,
    SegmentWent,
    PagesCame,
    PagesWent,
    FreeCompleted,
}

/// One note. The place is that of [`Segment::place`](crate::core::segment::Segment::place).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Note {
    pub(crate) what: Noted,
    pub(crate) arena: ArenaId,
    pub(crate) owner: OwnerId,
    pub(crate) place: u64,
    pub(crate) size: Bytes,
    /// Who had asked for what is free now.
    pub(crate) location: Option<&'static Location<'static>>,
    pub(crate) tag: Tag,
}

impl<M, E> World<'_, M, E> {
    /// Notes that `granules` from `start` on of a segment came or went.
    pub(crate) fn note_range(
        &mut self,
        what: Noted,
        arena: ArenaId,
        segment: usize,
        run: (u32, u32),
    ) {
        if self.global.notes.is_none() {
            return;
        }
        let home = &self.arenas[arena.index()];
        let segment = &home.segments[segment];
        let owner = home.pools[segment.pool].owner;
        let (start, granules) = run;
        let place = segment.place() + to_bytes(start);
        let (size, location, tag) = (to_bytes(granules), None, Tag::default());
        self.note(Note { what, arena, owner, place, size, location, tag });
    }

    /// Notes that a pending block is about to complete.
    pub(crate) fn note_completion(&mut self, arena: ArenaId, block: BlockId) {
        if self.global.notes.is_none() {
            return;
        }
        let home = &self.arenas[arena.index()];
        let block = &home.blocks[block.index()];
        let State::Pending { side, .. } = block.state else { return };
        let segment = &home.segments[block.segment.index()];
        let Holder { requested, location, tag, .. } = home.waiting[side.index()].holder;
        let owner = home.pools[segment.pool].owner;
        let place = segment.place() + to_bytes(block.offset);
        let (what, location) = (Noted::FreeCompleted, Some(location));
        self.note(Note { what, arena, owner, place, size: requested, location, tag });
    }

    fn note(&mut self, note: Note) {
        if let Some(notes) = &mut self.global.notes {
            notes.push(note);
        }
    }
}
