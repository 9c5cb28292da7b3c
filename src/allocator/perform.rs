//! Performing steps: everything that calls the backend, with nothing locked.
//!
//! The core names one action at a time; it is carried out here and its outcome committed. A lost
//! device is remembered at the first call that says so, and every later request answers with it.

use crate::allocator::allocation::{AllocError, Allocation};
use crate::allocator::cell::{Memory, Piece, give_back, unmap_chunks};
use crate::allocator::pressure::Pressure;
use crate::allocator::shared::{Event, Shared, StepOf};
use crate::allocator::sync::Ordering;
use crate::backend::{Backend, GrowError, Lost, MemoryKind, VirtualMemory};
use crate::core::arena::{Grant, Want};
use crate::core::chunks::Run;
use crate::core::expand::{MapPlan, UnmapPlan};
use crate::core::miss::Miss;
use crate::core::step::{Growth, Step};
use crate::id::{ArenaId, BlockId};
use crate::units::{Bytes, to_bytes};
use std::sync::{Arc, PoisonError};

impl<B: Backend> Shared<B> {
    /// The ladder: asks the core what to do, does it, until there is a block or nothing left to
    /// try.
    #[cold]
    pub(super) fn climb(
        &self,
        arena: ArenaId,
        want: Want,
        harvest: bool,
    ) -> Result<Allocation<B>, AllocError> {
        let mut grew = false;
        let outcome = self.try_all(arena, want, harvest, &mut grew);
        if grew {
            self.look_at_watches();
        }
        outcome
    }

    fn try_all(
        &self,
        arena: ArenaId,
        want: Want,
        harvest: bool,
        grew: &mut bool,
    ) -> Result<Allocation<B>, AllocError> {
        let mut callbacks = self.callbacks.list();
        let mut miss = Miss::new(arena, want, harvest, !callbacks.is_empty());
        if harvest {
            self.waits.store(false, Ordering::Relaxed);
        }
        loop {
            let step = self.world(|world| {
                let step = world.advance(&mut miss);
                if let Step::Done(arena, grant) = &step {
                    world.note_grant(*arena, grant, &want);
                }
                if harvest && world.has_waiting() {
                    self.waits.store(true, Ordering::Relaxed);
                }
                step
            });
            log::trace!("aquifer: for {} bytes: {}", want.requested, step.name());
            *grew |= step.is_growth();
            let grant = match step {
                Step::Done(arena, grant) => Some((arena, grant)),
                Step::Fail(failure) => return Err(self.failure(failure, &want)),
                Step::Callbacks => {
                    let pressure = Pressure { requested: want.requested };
                    let freed = callbacks.pop().is_some_and(|callback| callback.call(&pressure));
                    miss.called_back(freed, !callbacks.is_empty());
                    None
                }
                Step::Grow(growth) => self.grow(&mut miss, growth).map(|grant| (arena, grant)),
                Step::Map(plan) => self.map(&mut miss, plan).map(|grant| (arena, grant)),
                Step::Range(growth) => {
                    self.range(&mut miss, growth);
                    None
                }
                Step::Joins { reader, streams, blocks } => {
                    self.ask_joins(reader, streams, &blocks);
                    None
                }
                Step::Await => {
                    self.await_progress();
                    None
                }
                step @ Step::Release { .. } => {
                    self.perform(step);
                    miss.relieve();
                    None
                }
                step => {
                    self.perform(step);
                    None
                }
            };
            if let Some((arena, grant)) = grant {
                self.purge_for(miss.arena);
                let cell = self.cells.get(arena).expect("an arena that granted has its cell");
                return Ok(Allocation::new(cell.lock().hold(), grant, want.requested));
            }
        }
    }

    pub(super) fn grow(&self, miss: &mut Miss, growth: Growth) -> Option<Grant> {
        let outcome = self.backend.allocate(growth.size, MemoryKind(growth.kind));
        let outcome = self.piece(outcome);
        if outcome.is_ok() {
            log::debug!("aquifer: grew by a segment of {} bytes", growth.size);
        }
        let grant = self.world(|world| {
            let grant = world.commit_grow(miss, growth, outcome);
            grant.iter().for_each(|grant| world.note_grant(miss.arena, grant, &miss.want));
            grant
        });
        self.progress.notify_all();
        grant
    }

    /// Packs new memory for the core, or finds out why there is none.
    fn piece(
        &self,
        outcome: Result<B::Memory, GrowError>,
    ) -> Result<(Memory<B>, u64), Option<Bytes>> {
        match outcome {
            Ok(memory) => {
                let base = self.backend.address(&memory).unwrap_or(0);
                let view = self.backend.view(&memory);
                Ok((Arc::new(Piece { memory, view }), base))
            }
            Err(error) => Err(self.refusal(&error)),
        }
    }

    /// Takes note of a refusal; returns what the device says is free.
    fn refusal(&self, error: &GrowError) -> Option<Bytes> {
        match error {
            GrowError::Lost(lost) => {
                self.lose(lost);
                None
            }
            GrowError::OutOfMemory | GrowError::TooLarge => self.backend.free_bytes(),
        }
    }

    fn range(&self, miss: &mut Miss, growth: Growth) {
        let reserved = match self.backend.virtual_memory() {
            Some(virtual_memory) => virtual_memory.reserve(growth.size),
            None => Err(GrowError::TooLarge),
        };
        let piece = self.piece(reserved).ok();
        self.world(|world| world.commit_range(miss, growth, piece));
        self.progress.notify_all();
    }

    fn map(&self, miss: &mut Miss, mut plan: MapPlan<Memory<B>>) -> Option<Grant> {
        let outcome = self.map_pages(&plan).map_err(|error| self.refusal(&error));
        if outcome.is_ok() {
            let bytes: Bytes = plan.pieces.iter().map(|piece| piece.size).sum();
            log::debug!("aquifer: put {bytes} bytes of pages behind a range");
        }
        // The core hands memory out for release only when no call borrows it any more.
        let grant = self.world(|world| {
            plan.unborrow();
            let grant = world.commit_map(miss, plan, outcome);
            grant.iter().for_each(|grant| world.note_grant(miss.arena, grant, &miss.want));
            grant
        });
        self.progress.notify_all();
        grant
    }

    /// Puts pages behind the plan's runs: all of them, or none, and then the donors' are given
    /// back.
    fn map_pages(&self, plan: &MapPlan<Memory<B>>) -> Result<(), GrowError> {
        let Some(virtual_memory) = self.backend.virtual_memory() else {
            return Err(GrowError::TooLarge);
        };
        let mut chunks = self.gather_chunks(virtual_memory, plan)?.into_iter();
        let memory = &plan.memory_ref().memory;
        let mut mapped = Vec::new();
        let mut failed = None;
        for (piece, chunk) in plan.pieces.iter().zip(&mut chunks) {
            if let Err((chunk, error)) = virtual_memory.map(memory, piece.offset, chunk) {
                virtual_memory.release(chunk);
                failed = Some(error);
                break;
            }
            mapped.push(piece.chunk());
        }
        if failed.is_none() {
            let access = |run: &Run| virtual_memory.set_access(memory, run.offset, run.size);
            failed = plan.runs.iter().find_map(|run| access(run).err());
        }
        let Some(error) = failed else { return Ok(()) };
        if let Err(lost) = unmap_chunks(&*self.backend, memory, &mapped) {
            self.lose(&lost);
        }
        chunks.for_each(|chunk| virtual_memory.release(chunk));
        Err(error)
    }

    /// One chunk for each piece: of the donors, which give the rest of theirs back, or a new one.
    fn gather_chunks(
        &self,
        virtual_memory: &B::Virtual,
        plan: &MapPlan<Memory<B>>,
    ) -> Result<Vec<<B::Virtual as VirtualMemory>::Chunk>, GrowError> {
        let mut taken = Vec::new();
        let mut failed: Option<GrowError> = None;
        for pages in &plan.donors {
            for chunk in &pages.chunks {
                let memory = &pages.memory_ref().memory;
                let outcome = virtual_memory.unmap(memory, to_bytes(chunk.start));
                taken.push(outcome.map_err(|lost| failed = Some(lost.into())).ok());
            }
        }
        let used: Vec<usize> = plan.pieces.iter().filter_map(|piece| piece.taken).collect();
        // What is given back makes room for what is new.
        for (at, chunk) in taken.iter_mut().enumerate() {
            if let Some(chunk) = chunk.take_if(|_| failed.is_some() || !used.contains(&at)) {
                virtual_memory.release(chunk);
            }
        }
        let mut chunks = Vec::new();
        for piece in &plan.pieces {
            if failed.is_some() {
                break;
            }
            match piece.taken.and_then(|at| taken[at].take()) {
                Some(chunk) => chunks.push(chunk),
                None => match virtual_memory.create(piece.size) {
                    Ok(chunk) => chunks.push(chunk),
                    Err(error) => failed = Some(error),
                },
            }
        }
        let Some(error) = failed else { return Ok(chunks) };
        let rest = taken.into_iter().flatten();
        chunks.into_iter().chain(rest).for_each(|chunk| virtual_memory.release(chunk));
        Err(error)
    }

    /// Finds out which streams' captured work the captured stream comes after.
    fn ask_joins(&self, reader: ArenaId, mut streams: Vec<ArenaId>, blocks: &[(BlockId, u32)]) {
        let later = self.places.stream(reader);
        streams.retain(|&stream| self.backend.is_joined(self.places.stream(stream), later));
        self.world(|world| world.commit_joins(reader, &streams, blocks));
    }

    /// Does a step that belongs to no single request.
    pub(super) fn perform(&self, step: StepOf<B>) {
        let touched = step.touches();
        self.call(step);
        if !touched.is_empty() {
            self.world(|world| world.end_calls(&touched));
            self.progress.notify_all();
        }
    }

    fn call(&self, step: StepOf<B>) {
        match step {
            Step::Poll(events) => {
                for (stream, recorded) in events {
                    match self.backend.is_complete(&recorded.event) {
                        Ok(true) => self.world(|w| w.complete_through(stream, recorded.tick)),
                        Ok(false) => {}
                        Err(lost) => self.lose(&lost),
                    }
                }
            }
            Step::Record { stream, tick } => {
                self.record(stream, tick);
            }
            Step::WaitOn { stream, recorded, .. } | Step::Wait { stream, recorded }
                if !self.backend.is_waitable(&recorded.event) =>
            {
                self.world(|world| world.global.clocks[stream.index()].mute = true);
            }
            Step::WaitOn { reader, stream, recorded } => {
                match self.backend.wait_on(self.places.stream(reader), &recorded.event) {
                    Ok(()) => {
                        self.world(|world| world.commit_wait_on(reader, stream, recorded.tick));
                    }
                    Err(lost) => self.lose(&lost),
                }
            }
            Step::Wait { stream, recorded } => match self.backend.wait(&recorded.event) {
                Ok(()) => self.world(|world| world.complete_through(stream, recorded.tick)),
                Err(lost) => self.lose(&lost),
            },
            Step::Release { memories, sizes } => {
                let bytes = sizes.iter().sum();
                let count = memories.len();
                memories.into_iter().for_each(|memory| give_back(&*self.backend, memory));
                log::debug!("aquifer: gave {bytes} bytes in {count} segments back");
                self.world(|world| world.commit_release(count, bytes));
                self.progress.notify_all();
                self.rearm_watches();
            }
            Step::Unmap(plan) => self.unmap(plan),
            Step::Done(..)
            | Step::Grow(_)
            | Step::Range(_)
            | Step::Map(_)
            | Step::Callbacks
            | Step::Joins { .. }
            | Step::Await
            | Step::Fail(_) => unreachable!("a step of a request is done by its ladder"),
        }
    }

    /// Records an event that covers a tick which was closed for it; `None` if the device is lost.
    pub(super) fn record(&self, stream: ArenaId, tick: u64) -> Option<Event<B>> {
        match self.backend.record(self.places.stream(stream)) {
            Ok(event) => {
                let event = Arc::new(event);
                self.world(|world| world.commit_record(stream, tick, Arc::clone(&event)));
                Some(event)
            }
            Err(lost) => {
                self.lose(&lost);
                None
            }
        }
    }

    fn unmap(&self, mut plan: UnmapPlan<Memory<B>>) {
        let chunks = plan.pages.iter().flat_map(|pages| &pages.chunks);
        let bytes: Bytes = chunks.map(|chunk| to_bytes(chunk.size)).sum();
        for pages in &plan.pages {
            let memory = &pages.memory_ref().memory;
            let gone = unmap_chunks(&*self.backend, memory, &pages.chunks);
            if let Err(lost) = gone {
                self.lose(&lost);
            }
        }
        self.world(|world| {
            plan.unborrow();
            world.commit_unmap(plan);
        });
        self.progress.notify_all();
        log::debug!("aquifer: gave {bytes} bytes of pages back");
        self.rearm_watches();
    }

    /// Waits until no backend call that concerns the stream is under way.
    pub(super) fn await_quiet(&self, stream: ArenaId) {
        let mut global = self.lock_global();
        while global.clocks[stream.index()].calls > 0 {
            global =
                self.progress.wait(global).expect("an invariant of the allocator broke earlier");
        }
    }

    /// Wakes those who wait for growths, releases and calls of others.
    pub(super) fn notify_progress(&self) {
        self.progress.notify_all();
    }

    /// Waits until another thread's growth or release has ended.
    pub(super) fn await_progress(&self) {
        let global = self.lock_global();
        if global.in_flight > 0 {
            // A wake-up for no reason costs one more look, nothing else.
            drop(self.progress.wait(global));
        }
    }

    /// The device is gone: remembered for every later request.
    pub(super) fn lose(&self, lost: &Lost) {
        let mut memory = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.is_none() {
            log::error!("aquifer: {lost}");
            *memory = Some(lost.clone());
        }
        drop(memory);
        self.world(|world| world.lose());
    }
}
