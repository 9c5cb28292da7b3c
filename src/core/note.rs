//! What the core tells about segments and late frees, for whoever writes a history.
//!
//! What a stream hands out by itself and what users let go of is seen by the shell; what happens to
//! segments and pages, and when a free completes that had to wait, only the core knows. It notes
//! it, if it is asked to, and the shell puts a time to it when it has everything in one hand
//! anyway. Blocks that were found with everything in one hand are noted too, so that no snapshot
//! sees one before its event.

use std::panic::Location;

use crate::core::arena::{Grant, Want};
use crate::core::block::{Holder, State};
use crate::core::state::World;
use crate::id::{ArenaId, BlockId, OwnerId, Tag};
use crate::units::{Bytes, to_bytes};

/// What was noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noted {
    Granted,
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
    /// Who has asked for what was handed out, or is free now.
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

    /// Notes that a block was handed out.
    pub(crate) fn note_grant(&mut self, arena: ArenaId, grant: &Grant, want: &Want) {
        if self.global.notes.is_none() {
            return;
        }
        let Some(place) = self.arenas[arena.index()].place_of_live(grant.id) else { return };
        let &Want { owner, tag, requested: size, location, .. } = want;
        let (what, location) = (Noted::Granted, Some(location));
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
