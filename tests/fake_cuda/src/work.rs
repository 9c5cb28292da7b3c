//! What a stream is given to do, and doing it.
//!
//! W1: addresses are checked when the work is done, not only when it is submitted: memory that went
//! in between is a violation then, and the device is lost, as after any illegal access.
//! W2: work that is still queued can tell what it is going to touch.

use std::ffi::c_void;
use std::sync::Arc;

use crate::kernels::Launch;
use crate::os;
use crate::state::State;

/// A function that a stream calls when it gets there.
pub(crate) type HostFunction = unsafe extern "C" fn(*mut c_void);

#[derive(Debug, Clone)]
pub(crate) enum Work {
    Copy {
        target: Place,
        source: Place,
        len: u64,
    },
    /// Bytes that were read from pageable memory when the copy was submitted.
    Store {
        target: u64,
        bytes: Arc<[u8]>,
    },
    /// `value` over and over, in units of 1 or 4 bytes.
    Set {
        target: u64,
        value: u32,
        unit: u64,
        len: u64,
    },
    Kernel(Launch),
    /// The record of an event, and which of its records it is.
    Record {
        event: u64,
        record: u64,
    },
    /// Nothing but what it waits for.
    Wait,
    Host {
        function: HostFunction,
        data: u64,
    },
    /// A stream-ordered free; `stream` is where it was submitted.
    Free {
        start: u64,
        stream: u64,
    },
}

/// One end of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the tables of the fake: device memory or pinned memory.
    Known(u64),
    /// Pageable memory of the program, which vouches for it.
    Program(u64),
}

impl Place {
    pub(crate) fn address(self) -> u64 {
        match self {
            Place::Known(address) | Place::Program(address) => address,
        }
    }

    fn known(self) -> Option<u64> {
        match self {
            Place::Known(address) => Some(address),
            Place::Program(_) => None,
        }
    }
}

impl Work {
    /// The ranges that it reads or writes, as far as the fake knows them.
    pub(crate) fn touches(&self) -> Vec<(u64, u64)> {
        match self {
            Work::Copy { target, source, len } => {
                let known = [target, source].into_iter().filter_map(|place| place.known());
                known.map(|start| (start, *len)).collect()
            }
            Work::Store { target, bytes } => vec![(*target, bytes.len() as u64)],
            Work::Set { target, len, .. } => vec![(*target, *len)],
            Work::Kernel(launch) => launch.touches(),
            Work::Record { .. } | Work::Wait | Work::Host { .. } | Work::Free { .. } => Vec::new(),
        }
    }

    /// In a word, for the text of a violation.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Work::Copy { .. } | Work::Store { .. } => "a copy",
            Work::Set { .. } => "a memset",
            Work::Kernel(_) => "a kernel",
            Work::Record { .. } => "an event",
            Work::Wait => "a wait",
            Work::Host { .. } => "a host function",
            Work::Free { .. } => "a free",
        }
    }
}

impl State {
    /// Checks all that the work touches; the error says what is wrong.
    pub(crate) fn check_work(&self, device: usize, work: &Work) -> Result<(), String> {
        let touched = work.touches();
        touched.into_iter().try_for_each(|(start, len)| self.reach(Some(device), start, len))
    }

    /// Does the work; host functions are the timeline's business. `number`: when it was submitted.
    pub(crate) fn perform(
        &mut self,
        device: usize,
        work: &Work,
        number: u64,
    ) -> Result<(), String> {
        self.check_work(device, work)?;
        match work {
            Work::Copy { target, source, len } => {
                // SAFETY: known places were checked above, the program vouches for its own.
                unsafe { os::copy(target.address(), source.address(), *len) }
            }
            Work::Store { target, bytes } => {
                // SAFETY: the target was checked above, the source is a slice.
                unsafe { os::copy(*target, bytes.as_ptr() as u64, bytes.len() as u64) }
            }
            Work::Set { target, value, unit: 1, len } => {
                // SAFETY: the range was checked above.
                unsafe { os::fill(*target, *value as u8, *len) }
            }
            Work::Set { target, value, unit, len } => {
                for at in (*target..*target + *len).step_by(*unit as usize) {
                    // SAFETY: the range was checked above, and is a multiple of the unit.
                    unsafe { os::store(at, *value) }
                }
            }
            Work::Kernel(launch) => launch.run(),
            Work::Record { event, record } => self.timeline.reached(*event, *record),
            Work::Free { start, stream } => self.reach_free(*start, *stream, number)?,
            Work::Wait | Work::Host { .. } => {}
        }
        Ok(())
    }

    /// A stream-ordered free takes effect. What was submitted before it to other streams, and waits
    /// there still, was in no order with it.
    fn reach_free(&mut self, start: u64, stream: u64, number: u64) -> Result<(), String> {
        let Some(block) = self.memory.blocks.get(&start).copied() else {
            return Err(format!("free of {start:#x}: no memory"));
        };
        if let crate::memory::Kind::Pool(pool) = block.kind {
            self.pools.freeing(pool, stream, block.size(), true);
        }
        let pending = self.timeline.pending(start, block.len, Some(number));
        self.remove_block(start);
        match pending {
            Some(work) => Err(format!("free of {start:#x} overtakes {work} that touches it")),
            None => Ok(()),
        }
    }
}
