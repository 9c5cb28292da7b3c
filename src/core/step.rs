//! What the core asks of the shell: one action at a time, or the end of a request.

use crate::core::arena::Grant;
use crate::core::classes::Group;
use crate::core::expand::{MapPlan, UnmapPlan};
use crate::core::lifetime::Recorded;
use crate::id::{ArenaId, BlockId, OwnerId};
use crate::units::Bytes;

/// What is to be done outside, or the end of it.
#[derive(Debug)]
pub(crate) enum Step<M, E> {
    /// A block was found in this arena.
    Done(ArenaId, Grant),
    /// Ask whether these events are complete; commit each answer.
    Poll(Vec<(ArenaId, Recorded<E>)>),
    /// Record an event on the stream; it covers `tick`.
    Record { stream: ArenaId, tick: u64 },
    /// Make `reader` wait for the event on the device.
    WaitOn { reader: ArenaId, stream: ArenaId, recorded: Recorded<E> },
    /// Wait for the event on the host.
    Wait { stream: ArenaId, recorded: Recorded<E> },
    /// Give these segments back; ranges of addresses have no sizes.
    Release { memories: Vec<M>, sizes: Vec<Bytes> },
    /// Get a segment.
    Grow(Growth),
    /// Get a range of addresses.
    Range(Growth),
    /// Put pages behind addresses.
    Map(MapPlan<M>),
    /// Take pages from behind addresses and give them back.
    Unmap(UnmapPlan<M>),
    /// Ask the out-of-memory callbacks for memory.
    Callbacks,
    /// Ask which of these streams have been joined by the captured one; `blocks`, with their
    /// serials, are what has been freed by now.
    Joins { reader: ArenaId, streams: Vec<ArenaId>, blocks: Vec<(BlockId, u32)> },
    /// Wait until another thread's growth or release has ended.
    Await,
    /// There is nothing left to try.
    Fail(Failure),
}

impl<M, E> Step<M, E> {
    /// Says what is done, for the log.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Step::Done(..) => "found a block",
            Step::Poll(_) => "ask whether events are complete",
            Step::Record { .. } => "record an event",
            Step::WaitOn { .. } => "have the device wait for another stream",
            Step::Wait { .. } => "wait for a stream",
            Step::Release { .. } => "give segments back",
            Step::Grow(_) => "get a segment",
            Step::Range(_) => "get a range of addresses",
            Step::Map(_) => "put pages behind addresses",
            Step::Unmap(_) => "give pages back",
            Step::Callbacks => "ask an out-of-memory callback",
            Step::Joins { .. } => "ask which streams were joined",
            Step::Await => "wait for another thread",
            Step::Fail(_) => "nothing is left to try",
        }
    }

    /// Whether memory comes with it.
    pub(crate) fn is_growth(&self) -> bool {
        matches!(self, Step::Grow(_) | Step::Map(_))
    }

    /// The streams that performing the step concerns.
    pub(crate) fn touches(&self) -> Vec<ArenaId> {
        match self {
            Step::Poll(events) => events.iter().map(|event| event.0).collect(),
            Step::Record { stream, .. } | Step::Wait { stream, .. } => vec![*stream],
            Step::WaitOn { reader, stream, .. } => vec![*reader, *stream],
            _ => Vec::new(),
        }
    }
}

/// A segment, or a range, that is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Growth {
    pub(crate) arena: ArenaId,
    pub(crate) owner: OwnerId,
    pub(crate) group: Group,
    pub(crate) size: Bytes,
    pub(crate) kind: u8,
}

/// Why a request came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The device, or the limit, has no room.
    OutOfMemory,
    /// Refused before the driver was asked, as configured.
    Rejected,
    /// The stream is being captured and its pool has no room; no backend call may be made.
    Capture,
    /// The pool is paused: its memory is away.
    Paused,
    /// The device is gone.
    Lost,
}
