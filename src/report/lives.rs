//! The lives of blocks in a history: when each was handed out, and when its user let go of it.
//!
//! ```text
//!   before the window │ events                            │ the state at the end
//!   ──────────────────┼───────────────────────────────────┼─────────────────────
//!         ▮▮▮▮▮▮▮▮▮▮▮▮│▮▮▮▮▮▮▮▮ free_requested            │
//!                     │      alloc ▮▮▮▮▮▮▮ free_requested │
//!                     │            alloc ▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮│▮▮ active_allocated
//!         ▮▮▮▮▮▮▮▮▮▮▮▮│▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮▮│▮▮ active_allocated
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use crate::report::history::{Action, Frames};
use crate::report::snapshot::{BlockState, Snapshot};
use crate::units::Bytes;

/// One block in its user's hands.
#[derive(Debug, Clone)]
pub(crate) struct Life<'a> {
    pub(crate) address: u64,
    /// As asked for.
    pub(crate) size: Bytes,
    pub(crate) stream: u32,
    pub(crate) frames: &'a Frames,
    pub(crate) tag: Option<&'a Arc<str>>,
    /// The event that began it; `None` if that was before the first one.
    pub(crate) begin: Option<usize>,
    /// The event that ended it; `None` if it lives on.
    pub(crate) end: Option<usize>,
}

/// All lives: in order of the events that tell of them, and then by address of what no event names.
pub(crate) fn lives(snapshot: &Snapshot) -> Vec<Life<'_>> {
    let mut lives: Vec<Life<'_>> = Vec::new();
    let mut live: HashMap<u64, usize> = HashMap::new();
    for (index, event) in snapshot.history.iter().enumerate() {
        let life = Life {
            address: event.address,
            size: event.size,
            stream: event.stream,
            frames: &event.frames,
            tag: event.tag.as_ref(),
            begin: None,
            end: None,
        };
        match event.action {
            Action::Alloc => {
                // Where a block lives no other is handed out: its free was not recorded.
                if let Some(last) = live.insert(event.address, lives.len()) {
                    lives[last].end = Some(index);
                }
                lives.push(Life { begin: Some(index), ..life });
            }
            Action::FreeRequested => match live.remove(&event.address) {
                Some(known) => lives[known].end = Some(index),
                None => lives.push(Life { end: Some(index), ..life }),
            },
            // Frees are requested before, unless that was not recorded.
            Action::FreeCompleted => {
                if let Some(known) = live.remove(&event.address) {
                    lives[known].end = Some(index);
                }
            }
            _ => {}
        }
    }
    let mut older = Vec::new();
    for segment in &snapshot.segments {
        for block in segment.blocks.iter().filter(|it| it.state == BlockState::Allocated) {
            let address = segment.place.saturating_add(block.offset);
            if !live.contains_key(&address) {
                let (size, stream) = (block.requested_size, segment.stream);
                let (frames, tag) = (&block.frames, block.tag.as_ref());
                older.push(Life { address, size, stream, frames, tag, begin: None, end: None });
            }
        }
    }
    older.sort_by_key(|life| life.address);
    lives.extend(older);
    lives
}

/// What lived at the end, or when the most bytes did, by index into `lives`; and these bytes.
pub(crate) fn at_peak(lives: &[Life<'_>]) -> (Vec<usize>, Bytes) {
    let mut steps: Vec<(usize, bool, usize)> = Vec::with_capacity(lives.len() * 2);
    for (index, life) in lives.iter().enumerate() {
        // What is older begins before event 0; at one event, frees come first.
        steps.push((life.begin.map_or(0, |begin| begin + 1), true, index));
        steps.extend(life.end.map(|end| (end + 1, false, index)));
    }
    steps.sort_unstable();
    let (mut bytes, mut peak, mut when) = (0_u64, 0, 0);
    for (at, step) in steps.iter().enumerate() {
        let size = lives[step.2].size;
        bytes = if step.1 { bytes.saturating_add(size) } else { bytes.saturating_sub(size) };
        if bytes > peak {
            (peak, when) = (bytes, at + 1);
        }
    }
    let mut alive = vec![false; lives.len()];
    steps[..when].iter().for_each(|&(_, begins, index)| alive[index] = begins);
    ((0..lives.len()).filter(|&index| alive[index]).collect(), peak)
}
