//! Everything in one hand, and the performing of steps.
//!
//! Lock order: pauses, then global, then arenas in order of registration, then the book of
//! addresses. Nothing else is locked inside.

use std::panic::Location;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::allocator::addresses::Addresses;
use crate::allocator::allocation::{AllocError, Allocation, Ask, LimitError, RawAllocation};
use crate::allocator::cell::{Cell, Memory};
use crate::allocator::held::Inside;
use crate::allocator::history::Recorder;
use crate::allocator::listeners::Listeners;
use crate::allocator::oom::{self, Observer};
use crate::allocator::places::Places;
use crate::allocator::pools::Routes;
use crate::allocator::pressure::Callbacks;
use crate::allocator::roster::Roster;
use crate::allocator::streams::Streams;
use crate::allocator::sync::{self, AtomicBool, Condvar, FastGuard, Mutex, MutexGuard, Ordering};
use crate::allocator::tags::Tags;
use crate::allocator::watches::Watches;
use crate::backend::{Backend, Lost};
use crate::config::Config;
use crate::core::arena::{Freed, Take, Want};
use crate::core::classes::{self, Group};
use crate::core::harvest::Harvest;
use crate::core::hit::Terms;
use crate::core::state::{Device, Global, World};
use crate::core::step::Step;
use crate::core::trim::Trim;
use crate::id::{ArenaId, OwnerId, Tag};
use crate::report::holders::{self, Outlived};
use crate::report::oom::OomCause;
use crate::units::{Bytes, GRANULE, REQUEST_MAX, SEGMENT_MAX, align_down, to_granules};

/// The backend's event as the core carries it.
pub(super) type Event<B> = Arc<<B as Backend>::Event>;
pub(super) type WorldOf<'a, B> = World<'a, Memory<B>, Event<B>>;
pub(super) type StepOf<B> = Step<Memory<B>, Event<B>>;

/// What all handles of one allocator share.
pub(crate) struct Shared<B: Backend> {
    pub(super) backend: Arc<B>,
    pub(super) config: Arc<Config>,
    pub(super) device: Device,
    pub(super) terms: Terms,
    /// Every block begins at a multiple of so many bytes, if asked.
    align_max: Bytes,
    pub(super) default_cell: Arc<Cell<B>>,
    /// All cells, in order of registration; grows only, under the global lock.
    pub(super) cells: Roster<B>,
    global: Mutex<Global<Event<B>>>,
    /// Signalled when a growth or a release has ended.
    pub(super) progress: Condvar,
    pub(super) streams: Streams<B>,
    pub(super) places: Arc<Places<B>>,
    pub(super) routes: Routes<B>,
    pub(super) callbacks: Callbacks,
    pub(super) observers: Listeners<Observer>,
    pub(super) watches: Watches,
    pub(super) tags: Tags,
    limits: Mutex<UserLimits>,
    /// What is recorded.
    pub(super) recorder: Recorder,
    /// Held through a pause and a resume: one at a time.
    pub(super) pauses: Mutex<()>,
    pub(super) lost: Mutex<Option<Lost>>,
    /// Blocks wait for other streams (only looked at with `harvest_every_allocate`).
    pub(super) waits: AtomicBool,
    pub(super) addresses: Addresses,
}

/// The limits as the user set them.
#[derive(Debug, Clone, Copy)]
pub(super) struct UserLimits {
    pub(super) fraction: f64,
    pub(super) limit: Option<Bytes>,
}

impl UserLimits {
    /// The lower of both, in bytes; a fraction of 1 limits nothing.
    fn effective(&self, total: Option<Bytes>) -> Option<Bytes> {
        [self.by_fraction(total), self.limit].into_iter().flatten().min()
    }

    fn by_fraction(&self, total: Option<Bytes>) -> Option<Bytes> {
        let total = total.filter(|_| self.fraction < 1.0)?;
        Some((total as f64 * self.fraction).round() as Bytes)
    }

    /// Whether the fraction is the lower of both.
    pub(super) fn is_by_fraction(&self, total: Option<Bytes>) -> bool {
        let by_fraction = self.by_fraction(total);
        by_fraction.is_some_and(|bytes| self.limit.is_none_or(|limit| bytes < limit))
    }
}

impl<B: Backend> Shared<B> {
    pub(super) fn new(backend: B, config: Config) -> Arc<Self> {
        let backend = Arc::new(backend);
        let limits = backend.limits();
        let device = Device {
            total: limits.total,
            granularity: limits.granularity.max(GRANULE),
            segment_max: align_down(limits.segment_max.min(SEGMENT_MAX), limits.granularity),
            device_wait: limits.device_wait,
            virtual_memory: backend.virtual_memory().is_some(),
        };
        let user = UserLimits { fraction: config.memory_fraction, limit: config.memory_limit };
        let stream = backend.default_stream();
        let terms = Terms::of(&config, device.segment_max);
        let config = Arc::new(config);
        Arc::new_cyclic(|weak| {
            let places = Arc::new(Places::new(stream));
            let cell = Cell::new(ArenaId(0), &places, &backend, &config, terms, weak.clone());
            let mut global = Global::new(user.effective(device.total));
            global.clocks.push(crate::core::lifetime::Clock::new());
            let cells = Roster::new();
            cells.push(Arc::clone(&cell));
            Self {
                default_cell: cell,
                cells,
                global: Mutex::new(global),
                progress: Condvar::new(),
                streams: Streams::new(stream),
                places,
                routes: Routes::new(),
                callbacks: Callbacks::new(),
                observers: oom::observers(),
                watches: Watches::new(),
                tags: Tags::new(),
                limits: Mutex::new(user),
                recorder: Recorder::new(),
                pauses: Mutex::new(()),
                lost: Mutex::new(None),
                waits: AtomicBool::new(false),
                addresses: Addresses::new(),
                align_max: limits.alignment,
                terms,
                backend,
                config,
                device,
            }
        })
    }

    /// Runs `decide` with everything in one hand; then the books are settled.
    pub(super) fn world<R>(&self, decide: impl FnOnce(&mut WorldOf<'_, B>) -> R) -> R {
        self.world_then(decide, || ()).0
    }

    /// As [`world`](Self::world); then, with the books settled and everything still in one hand,
    /// `close`.
    pub(super) fn world_then<R, T>(
        &self,
        decide: impl FnOnce(&mut WorldOf<'_, B>) -> R,
        close: impl FnOnce() -> T,
    ) -> (R, T) {
        let mut global = self.lock_global();
        let mut insides: Vec<_> = self.cells.iter().map(|cell| cell.lock()).collect();
        let merged = |merged, inside: &mut FastGuard<'_, Inside<B>>| {
            inside.arena.settle_warm(&self.config) | merged
        };
        let merged = insides.iter_mut().fold(false, merged);
        let mut world = World {
            config: &self.config,
            device: &self.device,
            global: &mut global,
            arenas: insides.iter_mut().map(|inside| &mut inside.arena).collect(),
        };
        if merged {
            world.settle();
        }
        let result = decide(&mut world);
        world.settle();
        let heard = match &mut global.notes {
            Some(notes) if !notes.is_empty() => Self::take_notes(notes, &mut insides),
            _ => Vec::new(),
        };
        let closed = close();
        drop(insides);
        drop(global);
        if !heard.is_empty() {
            self.tell(&heard);
        }
        (result, closed)
    }

    /// Gives back what became free in released private pools while others were served; returns
    /// how many bytes that were.
    pub(super) fn purge(&self) -> Bytes {
        let purge = self.world(|world| std::mem::take(&mut world.global.purge));
        if purge { self.trim(Trim::released()) } else { 0 }
    }

    /// As [`purge`](Self::purge), on behalf of a stream; put off while that is captured.
    pub(super) fn purge_for(&self, stream: ArenaId) {
        let global = self.lock_global();
        let purges = global.purge && !global.is_captured(stream);
        drop(global);
        if purges {
            self.purge();
        }
    }

    /// Whether an invariant broke: then nothing in here can be trusted, and drops do nothing.
    pub(super) fn is_poisoned(&self) -> bool {
        sync::is_poisoned(&self.global) || self.cells.iter().any(|cell| cell.is_poisoned())
    }

    pub(super) fn lock_global(&self) -> MutexGuard<'_, Global<Event<B>>> {
        self.global.lock().expect("an invariant of the allocator broke earlier")
    }

    /// Serves a request that says nothing but a size.
    #[inline]
    pub(super) fn allocate_plain(
        &self,
        cell: &Arc<Cell<B>>,
        size: Bytes,
        location: &'static Location<'static>,
    ) -> Result<Allocation<B>, AllocError> {
        if let Some(plain) = self.terms.plain(size, location)
            && !self.routes.is_active()
        {
            let mut inside = cell.lock();
            if let Some(grant) = inside.arena.take_plain(plain, &self.config) {
                let words = (Tag::default(), OwnerId::DEFAULT);
                let held = self.hold(inside, &grant, size, location, words);
                return Ok(Allocation::new(held, grant, size));
            }
        }
        self.allocate(cell, Ask::new(size), location)
    }

    /// As [`allocate_plain`](Self::allocate_plain), without an owner.
    #[inline]
    pub(super) fn allocate_plain_raw(
        &self,
        cell: &Arc<Cell<B>>,
        size: Bytes,
        location: &'static Location<'static>,
    ) -> Result<RawAllocation, AllocError> {
        if let Some(plain) = self.terms.plain(size, location)
            && !self.routes.is_active()
        {
            let mut inside = cell.lock();
            if let Some(grant) = inside.arena.take_plain(plain.unowned(), &self.config) {
                let raw = RawAllocation::new(grant, size);
                if self.addresses.are_kept() {
                    raw.address.iter().for_each(|&address| self.addresses.enter(address, raw.id));
                }
                if inside.history.is_some() {
                    let words = (Tag::default(), OwnerId::DEFAULT);
                    self.note_grant(inside, &grant, size, location, words);
                }
                return Ok(raw);
            }
        }
        self.allocate(cell, Ask::new(size), location).map(Allocation::into_raw)
    }

    /// Serves a request: from the stream's own pools if it can, else by the ladder.
    #[inline(never)]
    pub(super) fn allocate(
        &self,
        cell: &Arc<Cell<B>>,
        ask: Ask,
        location: &'static Location<'static>,
    ) -> Result<Allocation<B>, AllocError> {
        if ask.owner.is_none() && self.routes.is_active() {
            return self.allocate_routed(cell, ask, location);
        }
        self.allocate_from(ask.owner.unwrap_or(OwnerId::DEFAULT), cell, ask, location)
    }

    #[cold]
    fn allocate_routed(
        &self,
        cell: &Arc<Cell<B>>,
        ask: Ask,
        location: &'static Location<'static>,
    ) -> Result<Allocation<B>, AllocError> {
        let pool = self.routes.find(cell.id);
        let owner = pool.as_ref().map_or(OwnerId::DEFAULT, |pool| pool.owner());
        self.allocate_from(owner, cell, ask, location)
    }

    #[inline]
    fn allocate_from(
        &self,
        owner: OwnerId,
        cell: &Arc<Cell<B>>,
        ask: Ask,
        location: &'static Location<'static>,
    ) -> Result<Allocation<B>, AllocError> {
        if ask.size == 0 {
            return Ok(Allocation::empty(cell.lock().hold()));
        }
        let rounded = classes::round(ask.size.min(REQUEST_MAX), &self.config);
        if rounded > self.device.segment_max || ask.align > GRANULE || ask.align.count_ones() > 1 {
            self.check_extremes(ask, rounded, location)?;
        }
        let want = self.want(owner, ask, rounded, location);
        let harvest = self.config.harvest_every_allocate && self.waits.load(Ordering::Relaxed);
        if !harvest {
            let mut inside = cell.lock();
            if let Take::Granted(grant) = inside.arena.take(&want, &self.config) {
                let words = (want.tag, want.owner);
                let held = self.hold(inside, &grant, want.requested, location, words);
                return Ok(Allocation::new(held, grant, want.requested));
            }
        }
        self.climb(cell.id, want, harvest)
    }

    /// What a request means to the core. It was checked against the extremes.
    // Always inline: made in place, for a copy right behind the writes waits for them.
    #[inline(always)]
    fn want<'a>(
        &self,
        owner: OwnerId,
        ask: Ask<'a>,
        rounded: Bytes,
        location: &'static Location<'static>,
    ) -> Want<'a> {
        Want {
            requested: ask.size,
            size: to_granules(rounded),
            align: to_granules(ask.align.max(1)),
            group: Group::of(rounded, &self.config),
            owner,
            location,
            tag: ask.tag,
            avoid: ask.avoid,
        }
    }

    /// Serves a request from what the stream's own pools have, or not at all.
    pub(super) fn allocate_cached(
        &self,
        cell: &Arc<Cell<B>>,
        ask: Ask,
        location: &'static Location<'static>,
    ) -> Option<Allocation<B>> {
        let rounded = classes::round(ask.size.min(REQUEST_MAX), &self.config);
        if ask.size == 0 || self.check_extremes(ask, rounded, location).is_err() {
            return None;
        }
        // Held until the request is served: nobody takes the owner's entry over meanwhile.
        let routed = if ask.owner.is_none() { self.routes.find(cell.id) } else { None };
        let owner = ask.owner.or(routed.as_ref().map(|pool| pool.owner()));
        let want = self.want(owner.unwrap_or(OwnerId::DEFAULT), ask, rounded, location);
        let grant = self.world(|world| {
            let grant = world.take_cached(cell.id, &want);
            grant.iter().for_each(|grant| world.note_grant(cell.id, grant, &want));
            grant
        })?;
        Some(Allocation::new(cell.lock().hold(), grant, want.requested))
    }

    /// Requests that no device state could satisfy.
    #[cold]
    fn check_extremes(
        &self,
        ask: Ask,
        rounded: Bytes,
        location: &'static Location<'static>,
    ) -> Result<(), AllocError> {
        let limit = self.align_max;
        if ask.align > limit || ask.align.count_ones() > 1 {
            return Err(AllocError::Alignment { requested: ask.align, limit });
        }
        let limit = self.device.segment_max;
        if rounded <= limit {
            return Ok(());
        }
        // More than the device has is a want of memory; more than one segment can be is a limit of
        // the API.
        if ask.size < REQUEST_MAX && self.device.total.is_some_and(|total| ask.size > total) {
            self.world(|world| world.global.counts.ooms += 1);
            let group = Group::Large;
            let want = Want {
                requested: ask.size,
                size: u32::MAX,
                align: 1,
                group,
                owner: OwnerId::DEFAULT,
                location,
                tag: ask.tag,
                avoid: &[],
            };
            return Err(self.out_of_memory(&want, OomCause::NoRoom));
        }
        Err(AllocError::TooLarge { requested: ask.size, limit })
    }

    pub(super) fn trim(&self, mut trim: Trim) -> Bytes {
        while let Some(step) = self.world(|world| world.advance_trim(&mut trim)) {
            self.perform(step);
        }
        trim.returned
    }

    pub(super) fn maintain(&self, now: Duration) -> Bytes {
        let now_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let purged = self.harvest();
        let step = self.world(|world| {
            world.global.time_us = world.global.time_us.max(now_us);
            world.release_aged()
        });
        let bytes = match &step {
            Some(Step::Release { sizes, .. }) => sizes.iter().sum(),
            _ => 0,
        };
        step.into_iter().for_each(|step| self.perform(step));
        self.look_at_watches();
        purged + bytes
    }

    /// Records and polls events; returns the bytes of released pools that went back with that.
    fn harvest(&self) -> Bytes {
        let mut harvest = Harvest::default();
        while let Some(step) = self.world(|world| world.advance_harvest(&mut harvest)) {
            self.perform(step);
        }
        self.purge()
    }

    /// What a free left to be done.
    pub(super) fn follow_up(&self, stream: ArenaId, freed: Freed) {
        if freed.settle {
            self.world(|_| ());
        }
        if freed.waits {
            self.waits.store(true, Ordering::Relaxed);
        }
        if !freed.harvest && !freed.purge {
            return;
        }
        // While a stream is captured nothing is asked on its behalf, not even about others.
        let mut global = self.lock_global();
        let captured = global.is_captured(stream);
        global.purge |= freed.purge && captured;
        drop(global);
        if freed.harvest && !captured {
            self.harvest();
        }
        if freed.purge && !captured {
            self.trim(Trim::released());
        }
    }

    pub(super) fn limits(&self) -> UserLimits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_limits(&self, change: impl FnOnce(&mut UserLimits)) {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut limits);
        let effective = limits.effective(self.device.total);
        self.world(|world| world.global.limit = effective);
    }

    pub(super) fn set_fraction(&self, fraction: f64) -> Result<(), LimitError> {
        if !(0.0..=1.0).contains(&fraction) {
            return Err(LimitError::Fraction(fraction));
        }
        if self.device.total.is_none() && fraction < 1.0 {
            return Err(LimitError::UnknownTotal);
        }
        self.change_limits(|limits| limits.fraction = fraction);
        Ok(())
    }

    pub(super) fn set_limit(&self, limit: Option<Bytes>) {
        self.change_limits(|limits| limits.limit = limit);
    }
}

impl<B: Backend> Drop for Shared<B> {
    /// The last allocator is gone: what is free goes back now; what users hold goes when they drop
    /// it.
    fn drop(&mut self) {
        if self.is_poisoned() {
            return;
        }
        let live = self.world(|world| holders::collect(world, &|tag| self.tags.name(tag)));
        if !live.is_empty() {
            log::warn!("aquifer: {}", Outlived(&live));
        }
        self.world(|world| world.release_all_owners());
        self.trim(Trim::all(0));
        self.cells.iter().for_each(|cell| cell.orphan());
    }
}
