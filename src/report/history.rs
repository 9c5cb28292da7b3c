//! What happened, in order: the events of an allocator, and where they came from.
//!
//! ```text
//!  stream 0  ▮▮▮▮▮▮▮▮▮  a ring of entries, 48 bytes each, under the stream's own lock
//!  stream 1  ▮▮▮▮            │ copied, merged by time, named
//!                            ▼
//!            Event … Event   (Snapshot::history)
//! ```
//!
//! An entry is numbers and pointers; files, tags and names are looked up when somebody looks. So an
//! event costs some tens of nanoseconds and allocates nothing, and nothing at all while recording
//! is off.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use crate::id::PoolId;
use crate::units::Bytes;

/// One call on the way to an event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame {
    /// The source file.
    pub file: Arc<str>,
    /// The line, from 1 on; 0 if it is not known.
    pub line: u32,
    /// The function; empty if it is not known.
    pub name: Arc<str>,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)?;
        if self.name.is_empty() { Ok(()) } else { write!(f, " {}", self.name) }
    }
}

/// The calls on the way to an event, innermost first; shared by all events from there.
pub type Frames = Arc<[Frame]>;

/// The index of the call that names a holder: the innermost that the program's authors wrote.
///
/// Stacks of PyTorch begin with the calls of its runtime. So the first line of a Python file
/// outside of installed packages counts; else the first line of any Python file; else the first
/// call of which the line is known; else the first of all, as in stacks of this crate. `None` for
/// no frames.
///
/// ```
/// use aquifer::report::history::{Frame, call_site};
///
/// let frame = |file: &str, line| Frame { file: file.into(), line, name: "".into() };
/// let stack = [
///     frame("??", 0),
///     frame("/usr/lib/python3/site-packages/torch/nn/functional.py", 12),
///     frame("train.py", 7),
/// ];
/// assert_eq!(call_site(&stack), Some(2));
/// assert_eq!(call_site(&stack[..2]), Some(1));
/// assert_eq!(call_site(&stack[..1]), Some(0));
/// assert_eq!(call_site(&[]), None);
/// ```
pub fn call_site(frames: &[Frame]) -> Option<usize> {
    let is_python = |frame: &Frame| frame.line > 0 && frame.file.ends_with(".py");
    let is_own = |frame: &Frame| {
        is_python(frame) && !["-packages/", "/lib/python"].iter().any(|it| frame.file.contains(it))
    };
    let first = |is: &dyn Fn(&Frame) -> bool| frames.iter().position(is);
    first(&is_own)
        .or_else(|| first(&is_python))
        .or_else(|| first(&|frame| frame.line > 0))
        .or_else(|| first(&|_| true))
}

/// What happened. The names are those of PyTorch's traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Action {
    /// Bytes were handed out.
    Alloc,
    /// The user let go of them.
    FreeRequested,
    /// No stream uses them any more.
    FreeCompleted,
    /// A segment came from the device.
    SegmentAlloc,
    /// A segment went back.
    SegmentFree,
    /// Pages came behind addresses.
    SegmentMap,
    /// Pages went from behind addresses.
    SegmentUnmap,
    /// A snapshot was taken.
    Snapshot,
    /// A request failed for want of memory.
    Oom,
}

impl Action {
    /// All of them.
    pub const ALL: [Action; 9] = [
        Action::Alloc,
        Action::FreeRequested,
        Action::FreeCompleted,
        Action::SegmentAlloc,
        Action::SegmentFree,
        Action::SegmentMap,
        Action::SegmentUnmap,
        Action::Snapshot,
        Action::Oom,
    ];

    /// The name in PyTorch's traces: `alloc`, `free_requested`, ….
    pub const fn name(self) -> &'static str {
        match self {
            Action::Alloc => "alloc",
            Action::FreeRequested => "free_requested",
            Action::FreeCompleted => "free_completed",
            Action::SegmentAlloc => "segment_alloc",
            Action::SegmentFree => "segment_free",
            Action::SegmentMap => "segment_map",
            Action::SegmentUnmap => "segment_unmap",
            Action::Snapshot => "snapshot",
            Action::Oom => "oom",
        }
    }

    /// The action of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// What happened.
    pub action: Action,
    /// The device address of the first byte, or, on devices without addresses, a stand-in that is
    /// unique among what lives at one time. Of [`Action::Oom`]: 0.
    pub address: u64,
    /// Bytes: asked for, of allocations and frees; of the segment or the pages; active in all, of a
    /// snapshot; asked for, of a failed request.
    pub size: Bytes,
    /// Streams are numbered in order of registration.
    pub stream: u32,
    /// Microseconds since 1970, by the system's clock at the start and a steady one from then on.
    pub time_us: u64,
    /// (0, 0) is the default pool.
    pub pool_id: PoolId,
    /// What the device had left, of a failed request, if it tells.
    pub device_free: Option<Bytes>,
    /// Who asked; empty if that is not known.
    pub frames: Frames,
    /// The tag of the request, if any.
    pub tag: Option<Arc<str>>,
}

impl Event {
    /// An event with nothing but numbers.
    pub fn new(action: Action, address: u64, size: Bytes, stream: u32, time_us: u64) -> Self {
        Self {
            action,
            address,
            size,
            stream,
            time_us,
            pool_id: PoolId::default(),
            device_free: None,
            frames: Frames::default(),
            tag: None,
        }
    }
}

/// A remark of the program's, at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// Microseconds since 1970, as events have them.
    pub time_us: u64,
    /// What the program said: "epoch 3".
    pub text: String,
}

/// The frames of a place in our own source, or the caller's.
pub(crate) fn frames_of(location: &'static Location<'static>) -> Frames {
    let frame = Frame { file: location.file().into(), line: location.line(), name: Arc::default() };
    Arc::from([frame])
}
