//! The rules that the events of a trace obey, and the facts that follow from them.
//!
//! [`Checker::apply`] is given every event in order. It either takes the event into the counts or
//! names the rule that is broken, and is then as it was before.
//!
//! ```text
//!   R1  the size of an allocation is not 0            R4  frees and uses name a live id
//!   R2  an id is allocated once, even if freed        R5  sum(size of live ids) < 2^64
//!   R3  a stream number is below STREAMS_MAX
//! ```
//!
//! Cost: O(1) an event. Ids are dense in practice, so "seen" is a hash map from `id / 64` to a word
//! with one bit for each of 64 ids: at most 5 bits an id when they are dense, 40 bytes an id when
//! they are scattered on purpose. A live id takes 40 bytes more, at most.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::{Event, Fault, STREAMS_MAX, Summary};
use crate::units::Bytes;

/// What has been seen of a trace so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Checker {
    /// `seen[id / 64]` has bit `id % 64` set if and only if `id` was ever allocated.
    seen: HashMap<u64, u64>,
    /// The sizes of the live ids; every key is also in `seen`.
    live: HashMap<u64, Bytes>,
    /// The sum of the values of `live`.
    live_bytes: Bytes,
    /// Bit `stream % 64` of word `stream / 64` is set if the stream was named: at most 8 KiB.
    streams: Vec<u64>,
    summary: Summary,
}

impl Checker {
    /// Takes an event into the counts, or says which rule it breaks.
    pub(super) fn apply(&mut self, event: &Event) -> Result<(), Fault> {
        match *event {
            Event::Allocate { id, size, stream } => self.allocate(id, size, stream)?,
            Event::Free { id } => self.free(id)?,
            Event::Use { id, stream } => self.record_use(id, stream)?,
            Event::Marker(_) => self.summary.markers += 1,
        }
        self.summary.events += 1;
        Ok(())
    }

    /// The facts about the events taken so far.
    pub(super) fn summary(&self) -> Summary {
        self.summary
    }

    fn allocate(&mut self, id: u64, size: Bytes, stream: u32) -> Result<(), Fault> {
        if size == 0 {
            return Err(Fault::ZeroSize { id });
        }
        if stream >= STREAMS_MAX {
            return Err(Fault::StreamTooLarge);
        }
        if self.was_seen(id) {
            return Err(Fault::ReusedId { id });
        }
        let live_bytes = self.live_bytes.checked_add(size).ok_or(Fault::LiveBytesOverflow)?;

        self.live_bytes = live_bytes;
        *self.seen.entry(id / 64).or_default() |= 1 << (id % 64);
        self.live.insert(id, size);
        self.name_stream(stream);
        self.summary.allocations += 1;
        self.summary.peak_live_bytes = self.summary.peak_live_bytes.max(live_bytes);
        Ok(())
    }

    fn free(&mut self, id: u64) -> Result<(), Fault> {
        let size = self.live.remove(&id).ok_or_else(|| self.not_live(id))?;
        self.live_bytes -= size;
        self.summary.frees += 1;
        Ok(())
    }

    fn record_use(&mut self, id: u64, stream: u32) -> Result<(), Fault> {
        if stream >= STREAMS_MAX {
            return Err(Fault::StreamTooLarge);
        }
        if !self.live.contains_key(&id) {
            return Err(self.not_live(id));
        }
        self.name_stream(stream);
        self.summary.uses += 1;
        Ok(())
    }

    fn was_seen(&self, id: u64) -> bool {
        self.seen.get(&(id / 64)).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    /// Why an id that is not live is not.
    fn not_live(&self, id: u64) -> Fault {
        if self.was_seen(id) { Fault::FreedId { id } } else { Fault::UnknownId { id } }
    }

    fn name_stream(&mut self, stream: u32) {
        debug_assert!(stream < STREAMS_MAX);
        let word = (stream / 64) as usize;
        if word >= self.streams.len() {
            self.streams.resize(word + 1, 0);
        }
        let bit = 1 << (stream % 64);
        self.summary.streams += u64::from(self.streams[word] & bit == 0);
        self.streams[word] |= bit;
    }
}

#[cfg(test)]
mod tests;
