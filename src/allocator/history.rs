//! Recording of what happens: switching it, the hooks on the way, and reading it.
//!
//! ```text
//!   allocate ── the stream's lock ── take ── note ── unlock ─▶ observers
//!   a miss   ── all locks ── commit ── the core's notes, the block's too ── unlock ─▶ observers
//! ```
//!
//! Off, a hit and a free look at one pointer each. On, each writes an entry under the lock that it
//! holds anyway: no lock, no allocation, no counter of its own.

use std::panic::Location;
use std::sync::{Arc, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::allocator::Allocator;
use crate::allocator::held::{Held, Inside};
use crate::allocator::listeners::{CallbackGuard, Listeners, contain};
use crate::allocator::shared::{Shared, WorldOf};
use crate::allocator::sync::{FastGuard, Mutex, MutexGuard};
use crate::backend::Backend;
use crate::core::arena::Grant;
use crate::core::ledger::Gauge;
use crate::core::note::{Note, Noted};
use crate::id::{AllocationId, ArenaId, OwnerId, PoolId, Tag};
use crate::report::history::{Action, Annotation, Event};
use crate::report::ring::{Entry, Kind, Ring, bit};
use crate::report::snapshot::{self, Names, Snapshot};
use crate::units::{Bytes, to_bytes};

/// What is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryOptions {
    /// Events; 1,000,000. The newest so many are kept, of each stream and in all.
    pub max_entries: usize,
    /// Actions that are not recorded; none.
    pub skip_actions: Vec<Action>,
}

impl Default for HistoryOptions {
    fn default() -> Self {
        Self { max_entries: 1_000_000, skip_actions: Vec::new() }
    }
}

type Observer = dyn Fn(&Event) + Send + Sync;

/// Whether, and since when, something is recorded.
pub(super) struct Recorder {
    state: Mutex<Recording>,
    observers: Listeners<Observer>,
}

struct Recording {
    /// While recording is on.
    on: Option<On>,
    annotations: Vec<Annotation>,
}

#[derive(Debug, Clone)]
struct On {
    start: Instant,
    /// The system's time at the start.
    start_us: u64,
    options: HistoryOptions,
}

/// The most remarks that are kept.
const ANNOTATIONS_MAX: usize = 100_000;

impl Recorder {
    pub(super) fn new() -> Self {
        let state = Recording { on: None, annotations: Vec::new() };
        Self { state: Mutex::new(state), observers: Listeners::new() }
    }

    fn state(&self) -> MutexGuard<'_, Recording> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ring for another stream, if recording is on.
    pub(super) fn ring(&self) -> Option<Box<Ring>> {
        let observed = !self.observers.is_empty();
        self.state().on.as_ref().map(|on| on.ring(observed))
    }
}

impl On {
    fn ring(&self, observed: bool) -> Box<Ring> {
        let skipped = self.options.skip_actions.iter().fold(0, |bits, &action| bits | bit(action));
        Box::new(Ring::new(self.start, self.options.max_entries, skipped, observed))
    }

    fn now_us(&self) -> u64 {
        self.start_us + self.start.elapsed().as_micros() as u64
    }
}

fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as u64)
}

impl<B: Backend> Inside<B> {
    /// Writes down that a block was handed out.
    #[cold]
    #[inline(never)]
    pub(super) fn note_alloc(
        &mut self,
        grant: &Grant,
        requested: Bytes,
        location: &'static Location<'static>,
        (tag, owner): (Tag, OwnerId),
    ) -> Option<Entry> {
        let place = match grant.address {
            0 => self.arena.place_of_live(grant.id)?,
            address => address,
        };
        let kind = Kind::Event(Action::Alloc);
        let location = Some(location);
        self.add(Entry { time_ns: 0, place, size: requested, location, tag, owner, kind })
    }

    /// Writes down that the user lets go of a block.
    #[cold]
    #[inline(never)]
    pub(super) fn note_free(&mut self, id: AllocationId) -> Option<Entry> {
        let (block, holder) = self.arena.live(id)?;
        let holder = *holder;
        let block = &self.arena.blocks[block.index()];
        let segment = &self.arena.segments[block.segment.index()];
        let place = segment.place() + to_bytes(block.offset);
        let owner = self.arena.pools[segment.pool].owner;
        // What other streams use completes later; the core notes that.
        let kind = match holder.uses.is_none() {
            true => Kind::Freed,
            false => Kind::Event(Action::FreeRequested),
        };
        let (size, location, tag) = (holder.requested, Some(holder.location), holder.tag);
        self.add(Entry { time_ns: 0, place, size, location, tag, owner, kind })
    }

    fn note(&mut self, note: &Note) -> Option<Entry> {
        let action = match note.what {
            Noted::Granted => Action::Alloc,
            Noted::SegmentCame => Action::SegmentAlloc,
            Noted::SegmentWent => Action::SegmentFree,
            Noted::PagesCame => Action::SegmentMap,
            Noted::PagesWent => Action::SegmentUnmap,
            Noted::FreeCompleted => Action::FreeCompleted,
        };
        let &Note { owner, place, size, location, tag, .. } = note;
        let kind = Kind::Event(action);
        self.add(Entry { time_ns: 0, place, size, location, tag, owner, kind })
    }

    /// Adds an entry; it comes back if somebody observes.
    fn add(&mut self, entry: Entry) -> Option<Entry> {
        let ring = self.history.as_mut()?;
        let observed = ring.observed;
        ring.add(entry).filter(|_| observed)
    }
}

impl<B: Backend> Shared<B> {
    /// Holds the cell of a block that was just handed out, and writes that down if that is wanted.
    #[inline]
    pub(super) fn hold(
        &self,
        mut inside: FastGuard<'_, Inside<B>>,
        grant: &Grant,
        requested: Bytes,
        location: &'static Location<'static>,
        words: (Tag, OwnerId),
    ) -> Held<B> {
        let held = inside.hold();
        if inside.history.is_some() {
            self.note_grant(inside, grant, requested, location, words);
        }
        held
    }

    /// Writes down that a block was handed out, and tells observers.
    #[cold]
    #[inline(never)]
    pub(super) fn note_grant(
        &self,
        mut inside: FastGuard<'_, Inside<B>>,
        grant: &Grant,
        requested: Bytes,
        location: &'static Location<'static>,
        words: (Tag, OwnerId),
    ) {
        let heard = inside.note_alloc(grant, requested, location, words);
        let stream = inside.arena.id;
        drop(inside);
        if let Some(entry) = heard {
            self.tell(&[(stream, entry)]);
        }
    }

    /// Writes the core's notes down; what observers are to hear.
    pub(super) fn take_notes(
        notes: &mut Vec<Note>,
        insides: &mut [FastGuard<'_, Inside<B>>],
    ) -> Vec<(ArenaId, Entry)> {
        let mut heard = Vec::new();
        for note in notes.drain(..) {
            let entry = insides.get_mut(note.arena.index()).and_then(|inside| inside.note(&note));
            heard.extend(entry.map(|entry| (note.arena, entry)));
        }
        heard
    }

    /// Tells observers, with nothing locked.
    #[cold]
    pub(super) fn tell(&self, heard: &[(ArenaId, Entry)]) {
        let observers = self.recorder.observers.all();
        if observers.is_empty() {
            // The last one has gone: nobody is told any more.
            return self.spread_observed();
        }
        let Some(on) = self.recorder.state().on.clone() else { return };
        let name_of = |tag| self.tags.name(tag);
        let mut names = Names::new(&name_of);
        let owners: Vec<PoolId> =
            self.lock_global().owners.iter().map(|owner| owner.pool_id).collect();
        let pools = |owner: OwnerId| owners.get(owner.index()).copied().unwrap_or_default();
        for &(stream, entry) in heard {
            for event in events_of(entry, stream, &on, &mut names, &pools) {
                for observer in observers.iter().rev() {
                    contain("an observer of events", || observer(&event));
                }
            }
        }
    }

    /// Writes down a request that failed.
    #[cold]
    pub(super) fn note_oom(&self, requested: Bytes, device_free: Option<Bytes>) {
        let kind = Kind::Event(Action::Oom);
        let (place, owner) = (device_free.unwrap_or(u64::MAX), OwnerId::DEFAULT);
        let (location, tag) = (None, Tag::default());
        let entry = Entry { time_ns: 0, place, size: requested, location, tag, owner, kind };
        let heard = self.default_cell.lock().add(entry);
        if let Some(entry) = heard {
            self.tell(&[(ArenaId(0), entry)]);
        }
    }

    /// Lets every stream know whether somebody observes. One at a time, so that the last one to
    /// come or go has the last word.
    fn spread_observed(&self) {
        let _alone = self.lock_global();
        let observed = !self.recorder.observers.is_empty();
        for cell in self.cells.iter() {
            if let Some(ring) = &mut cell.lock().history {
                ring.observed = observed;
            }
        }
    }

    fn switch_history(&self, options: Option<HistoryOptions>) {
        // All of it under one lock: two that switch at a time do not mix.
        let mut global = self.lock_global();
        let observed = !self.recorder.observers.is_empty();
        let mut state = self.recorder.state();
        state.on =
            options.map(|options| On { start: Instant::now(), start_us: unix_us(), options });
        state.annotations.clear();
        let on = state.on.clone();
        drop(state);
        global.notes = on.is_some().then(Vec::new);
        for cell in self.cells.iter() {
            cell.lock().history = on.as_ref().map(|on| on.ring(observed));
        }
        drop(global);
    }

    /// Everything there is, and what led there.
    pub(super) fn snapshot(&self) -> Snapshot {
        let on = self.recorder.state().on.clone();
        let state = |world: &mut WorldOf<'_, B>| {
            let owners = &world.global.owners;
            let pools: Vec<PoolId> = owners.iter().map(|owner| owner.pool_id).collect();
            let active = world.total(Gauge::ActiveBytes);
            (snapshot::collect(world), active, world.global.limit, pools)
        };
        // What has a later time has happened to a later state.
        let time = || on.as_ref().map_or(0, |on| on.start.elapsed().as_nanos() as u64);
        let ((draft, active, limit, pools), until) = self.world_then(state, time);
        let mut raw: Vec<(ArenaId, Entry)> = Vec::new();
        if let Some(on) = &on {
            let kind = Kind::Event(Action::Snapshot);
            let (location, tag, owner) = (None, Tag::default(), OwnerId::DEFAULT);
            let mut since = 0;
            for cell in self.cells.iter() {
                let inside = cell.lock();
                let Some(ring) = &inside.history else { continue };
                since = since.max(ring.since_ns());
                let entries = ring.entries().filter(|entry| entry.time_ns <= until);
                raw.extend(entries.map(|&entry| (cell.id, entry)));
            }
            // What one stream did before it overwrote is gone, and with it what came of that.
            raw.retain(|(_, entry)| entry.time_ns >= since);
            let entry = Entry { time_ns: 0, place: 0, size: active, location, tag, owner, kind };
            let added = self.default_cell.lock().history.as_mut().and_then(|ring| ring.add(entry));
            raw.extend(added.map(|entry| (ArenaId(0), entry)));
            // By time; what one stream did stays in order.
            raw.sort_by_key(|(_, entry)| entry.time_ns);
            let surplus = raw.len().saturating_sub(on.options.max_entries);
            raw.drain(..surplus);
        }
        let name_of = |tag| self.tags.name(tag);
        let mut names = Names::new(&name_of);
        let pool_of = |owner: OwnerId| pools.get(owner.index()).copied().unwrap_or_default();
        let mut history = Vec::with_capacity(raw.len() * 2);
        if let Some(on) = &on {
            for (stream, entry) in raw {
                history.extend(events_of(entry, stream, on, &mut names, &pool_of));
            }
        }
        Snapshot {
            segments: draft.finish(&mut names),
            history,
            annotations: self.recorder.state().annotations.clone(),
            device: 0,
            device_name: self.backend.describe(),
            device_total: self.device.total,
            limit,
            settings: self.config.to_torch_conf(),
        }
    }
}

/// The event, or the two events, that an entry stands for.
fn events_of(
    entry: Entry,
    stream: ArenaId,
    on: &On,
    names: &mut Names<'_>,
    pool_of: &dyn Fn(OwnerId) -> PoolId,
) -> impl Iterator<Item = Event> {
    let actions = match entry.kind {
        Kind::Event(action) => [Some(action), None],
        Kind::Freed => [Some(Action::FreeRequested), Some(Action::FreeCompleted)],
    };
    let skipped = on.options.skip_actions.clone();
    let is_oom = entry.kind == Kind::Event(Action::Oom);
    let event = Event {
        action: Action::Alloc,
        address: if is_oom { 0 } else { entry.place },
        size: entry.size,
        stream: stream.0,
        time_us: on.start_us + entry.time_ns / 1000,
        pool_id: pool_of(entry.owner),
        device_free: (is_oom && entry.place != u64::MAX).then_some(entry.place),
        frames: names.frames(entry.location),
        tag: names.tag(entry.tag),
    };
    let wanted = actions.into_iter().flatten().filter(move |action| !skipped.contains(action));
    wanted.map(move |action| Event { action, ..event.clone() })
}

impl<B: Backend> Allocator<B> {
    /// Records what happens from now on, and forgets what was recorded before; see
    /// [`Snapshot::history`](crate::report::snapshot::Snapshot::history).
    ///
    /// Costs some 30 ns an event, and 48 bytes for each that is kept.
    ///
    /// ```
    /// use aquifer::{Allocator, Config, HistoryOptions, backend::Host};
    ///
    /// let allocator = Allocator::new(Host::new(), Config::default());
    /// allocator.record_history(HistoryOptions::default());
    /// drop(allocator.allocate(1000)?);
    /// let actions: Vec<_> =
    ///     allocator.memory_snapshot().history.iter().map(|event| event.action.name()).collect();
    /// assert_eq!(
    ///     actions,
    ///     ["segment_alloc", "alloc", "free_requested", "free_completed", "snapshot"]
    /// );
    /// # Ok::<(), aquifer::AllocError>(())
    /// ```
    pub fn record_history(&self, options: HistoryOptions) {
        self.shared.switch_history(Some(options));
    }

    /// Ends the recording, and forgets what was recorded.
    pub fn stop_history(&self) {
        self.shared.switch_history(None);
    }

    /// Whether something is recorded.
    pub fn is_recording_history(&self) -> bool {
        self.shared.recorder.state().on.is_some()
    }

    /// Forgets what was recorded so far; the recording goes on.
    pub fn clear_history(&self) {
        self.shared.recorder.state().annotations.clear();
        for cell in self.shared.cells.iter() {
            if let Some(ring) = &mut cell.lock().history {
                ring.clear();
            }
        }
    }

    /// A remark at this time, for reports: "epoch 3". Nothing while nothing is recorded; the newest
    /// 100,000 are kept.
    pub fn annotate(&self, text: impl Into<String>) {
        let mut state = self.shared.recorder.state();
        let Some(time_us) = state.on.as_ref().map(On::now_us) else { return };
        if state.annotations.len() == ANNOTATIONS_MAX {
            state.annotations.remove(0);
        }
        state.annotations.push(Annotation { time_us, text: text.into() });
    }

    /// Calls `observer` with every event, as long as something is recorded and the guard lives. No
    /// lock of the allocator is held, so that events of several threads may come out of order;
    /// panics are contained. The observer may use the allocator, and hears of that as well.
    pub fn on_event(&self, observer: impl Fn(&Event) + Send + Sync + 'static) -> CallbackGuard {
        let guard = self.shared.recorder.observers.register(0, Arc::new(observer));
        self.shared.spread_observed();
        guard
    }
}
