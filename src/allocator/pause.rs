//! Pausing of private pools: the shell's part. The books are the core's (see its `pause`).
//!
//! ```text
//!   pause   nothing more is handed out ─▶ growths under way end ─▶ the pool's streams are waited
//!           for ─▶ the contents may be saved ─▶ chunks are unmapped and given back
//!   resume  chunks are made and mapped, all or none ─▶ contents may be restored ─▶ the pool hands
//!           out again
//! ```

use std::fmt;
use std::sync::PoisonError;

use crate::allocator::PrivatePool;
use crate::allocator::cell::{Memory, unmap_chunks};
use crate::allocator::shared::Shared;
use crate::backend::{Backend, GrowError, Lost, VirtualMemory};
use crate::core::chunks::Chunk;
use crate::core::pause::{Move, Moving};
use crate::core::trim::Trim;
use crate::id::OwnerId;
use crate::report::format_bytes;
use crate::units::{Bytes, to_bytes};

/// Why a pool was not paused, or not resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PauseError {
    /// Memory can leave and come back to its addresses only where it is virtual
    /// (`Config::expandable_segments`, on a device that has it).
    NoVirtualMemory,
    /// It is paused.
    Paused,
    /// It is not paused.
    NotPaused,
    /// A capture of a stream is under way: nothing may be asked of the device that could wait.
    Capture,
    /// The device, or the limit, has no room for what is away. The pool is paused as before.
    OutOfMemory {
        /// Bytes that are away.
        needed: Bytes,
        /// What the device says is free, if it can tell.
        device_free: Option<Bytes>,
    },
    /// The device is gone.
    DeviceLost(Lost),
}

impl fmt::Display for PauseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVirtualMemory => f.write_str(
                "only virtual memory can be paused: switch on Config::expandable_segments, on a \
                 device that has it",
            ),
            Self::Paused => f.write_str("the pool is paused: resume it first"),
            Self::NotPaused => f.write_str("the pool is not paused"),
            Self::Capture => f.write_str("a stream is being captured: end the capture first"),
            Self::OutOfMemory { needed, device_free } => {
                write!(f, "no room to resume: {} are needed", format_bytes(*needed))?;
                match device_free {
                    Some(free) => write!(f, ", the device has {}", format_bytes(*free)),
                    None => Ok(()),
                }
            }
            Self::DeviceLost(lost) => lost.fmt(f),
        }
    }
}

impl std::error::Error for PauseError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::DeviceLost(lost) => Some(lost),
            _ => None,
        }
    }
}

impl<B: Backend> PrivatePool<B> {
    /// Gives the pool's memory back to the device, and says how many bytes; its addresses stay, and
    /// so does every allocation, whose contents are lost. Waits for the work of the streams that
    /// the pool's memory was allocated on or recorded for.
    ///
    /// Until [`resume`](Self::resume) nothing of the pool is handed out
    /// ([`OomCause::Paused`](crate::report::oom::OomCause)), allocations may be dropped, and no
    /// work may touch them. What is away counts as allocated and not as reserved.
    ///
    /// Pauses and resumes of one allocator are done one at a time: none may be asked for by a
    /// callback or an observer that runs inside of one.
    ///
    /// For programs that live on while their model sleeps: serving between training steps, two
    /// models that take turns.
    ///
    /// # Errors
    /// [`PauseError`]; the pool works on as before then, unless the device is gone.
    pub fn pause(&self) -> Result<Bytes, PauseError> {
        self.pause_with(|_| Ok(()))
    }

    /// As [`pause`](Self::pause); `save` is called, when nothing uses the memory any more, with the
    /// address and size of every live allocation. If it fails the pool is not paused.
    pub(crate) fn pause_with<E: From<PauseError>>(
        &self,
        save: impl FnOnce(&[(u64, Bytes)]) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        let shared = self.shared();
        let _alone = shared.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        shared.pause(self.owner(), save)
    }

    /// Gives a paused pool memory again, at the addresses it had, and says how many bytes. The
    /// contents of allocations are undefined. Cached memory elsewhere makes room, if that is
    /// needed.
    ///
    /// # Errors
    /// [`PauseError::OutOfMemory`] if there is no room: the pool is paused as before.
    pub fn resume(&self) -> Result<Bytes, PauseError> {
        self.resume_with(|_| Ok(()))
    }

    /// As [`resume`](Self::resume); `restore` is called when the memory is there and before any of
    /// it is handed out, with the address and size of every allocation that is still live: what was
    /// freed meanwhile may have lost its addresses. If it fails the pool is paused as before.
    pub(crate) fn resume_with<E: From<PauseError>>(
        &self,
        restore: impl FnOnce(&[(u64, Bytes)]) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        let shared = self.shared();
        let alone = shared.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = shared.bring_back(self.owner())?;
        if let Err(error) = restore(&shared.world(|world| world.live_of(self.owner()))) {
            // Nothing of it was handed out: it goes again, and can be asked for again.
            shared.leave(self.owner())?;
            return Err(error);
        }
        shared.world(|world| world.end_pause(self.owner()));
        drop(alone);
        shared.look_at_watches();
        Ok(bytes)
    }

    /// Whether the pool is paused.
    pub fn is_paused(&self) -> bool {
        self.shared().world(|world| world.is_paused(self.owner()))
    }

    /// Bytes that are away until the pool is resumed.
    pub fn paused_bytes(&self) -> Bytes {
        self.shared().world(|world| world.away_of(self.owner()))
    }
}

impl<B: Backend> Shared<B> {
    fn pause<E: From<PauseError>>(
        &self,
        owner: OwnerId,
        save: impl FnOnce(&[(u64, Bytes)]) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        if !self.config.expandable_segments || self.backend.virtual_memory().is_none() {
            return Err(PauseError::NoVirtualMemory.into());
        }
        if self.world(|world| !world.global.captures.is_empty()) {
            return Err(PauseError::Capture.into());
        }
        self.trim(Trim::of(owner));
        if !self.world(|world| world.begin_pause(owner)) {
            return Err(PauseError::Paused.into());
        }
        let mut resumes = Resumes { shared: Some(self), owner };
        self.await_growths(owner);
        for user in self.world(|world| world.users_of(owner)) {
            let gone = |lost: Lost| {
                self.lose(&lost);
                PauseError::DeviceLost(lost)
            };
            let Some(end) = self.places.end(user, &self.backend).map_err(gone)? else { continue };
            if !self.backend.is_waitable(&end) {
                return Err(PauseError::Capture.into());
            }
            self.backend.wait(&end).map_err(gone)?;
        }
        save(&self.world(|world| world.live_of(owner)))?;
        resumes.shared = None;
        Ok(self.leave(owner)?)
    }

    /// Takes a paused pool's chunks out and gives them back; nothing uses them any more.
    fn leave(&self, owner: OwnerId) -> Result<Bytes, PauseError> {
        let plan = self.world(|world| world.plan_leave(owner));
        let mut lost = None;
        for range in &plan.ranges {
            let gone = unmap_chunks(&*self.backend, &range.memory.memory, &range.chunks);
            lost = gone.err().or(lost);
        }
        let bytes = plan.bytes;
        let places = plan.into_places();
        self.world(|world| world.commit_leave(places));
        self.rearm_watches();
        self.notify_progress();
        match lost {
            None => Ok(bytes),
            Some(lost) => {
                self.lose(&lost);
                Err(PauseError::DeviceLost(lost))
            }
        }
    }

    /// Waits until no growth of the pool's ranges is under way.
    fn await_growths(&self, owner: OwnerId) {
        while self.world(|world| world.is_growing(owner)) {
            self.await_progress();
        }
    }

    fn bring_back(&self, owner: OwnerId) -> Result<Bytes, PauseError> {
        if !self.world(|world| world.is_paused(owner)) {
            return Err(PauseError::NotPaused);
        }
        let first = self.map_again(owner);
        let Err(PauseError::OutOfMemory { .. }) = first else { return first };
        // What is cached elsewhere makes room.
        self.trim(Trim::all(0));
        self.map_again(owner)
    }

    fn map_again(&self, owner: OwnerId) -> Result<Bytes, PauseError> {
        let needed = self.world(|world| world.away_of(owner));
        let lacking = |device_free| PauseError::OutOfMemory { needed, device_free };
        let plan = self.world(|world| world.plan_return(owner)).ok_or_else(|| lacking(None))?;
        let outcome = self.map_all(&plan);
        let bytes = plan.bytes;
        let places = plan.into_places();
        self.world(|world| world.commit_return(places, outcome.is_ok()));
        self.notify_progress();
        match outcome {
            Ok(()) => Ok(bytes),
            Err(GrowError::Lost(lost)) => {
                self.lose(&lost);
                Err(PauseError::DeviceLost(lost))
            }
            Err(_) => Err(lacking(self.backend.free_bytes())),
        }
    }

    /// Makes and maps the chunks of all ranges, or of none.
    fn map_all(&self, plan: &Move<Memory<B>>) -> Result<(), GrowError> {
        let mut done: Vec<(&Moving<Memory<B>>, Vec<Chunk>)> = Vec::new();
        let mut failed = None;
        for range in &plan.ranges {
            let mut mapped = Vec::new();
            failed = self.map_range(range, &mut mapped).err();
            done.push((range, mapped));
            if failed.is_some() {
                break;
            }
        }
        let Some(error) = failed else { return Ok(()) };
        for (range, mapped) in done {
            if let Err(lost) = unmap_chunks(&*self.backend, &range.memory.memory, &mapped) {
                self.lose(&lost);
            }
        }
        Err(error)
    }

    fn map_range(
        &self,
        range: &Moving<Memory<B>>,
        mapped: &mut Vec<Chunk>,
    ) -> Result<(), GrowError> {
        let virtual_memory = self.backend.virtual_memory().ok_or(GrowError::TooLarge)?;
        let memory = &range.memory.memory;
        for &chunk in &range.chunks {
            let made = virtual_memory.create(to_bytes(chunk.size))?;
            if let Err((made, error)) = virtual_memory.map(memory, to_bytes(chunk.start), made) {
                virtual_memory.release(made);
                return Err(error);
            }
            mapped.push(chunk);
        }
        for run in range.runs() {
            virtual_memory.set_access(memory, run.offset, run.size)?;
        }
        Ok(())
    }
}

/// Lets the pool hand out again if the pause fails before anything has gone.
struct Resumes<'a, B: Backend> {
    shared: Option<&'a Shared<B>>,
    owner: OwnerId,
}

impl<B: Backend> Drop for Resumes<'_, B> {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.filter(|shared| !shared.is_poisoned()) {
            shared.world(|world| world.end_pause(self.owner));
        }
    }
}
