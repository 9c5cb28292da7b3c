//! Thresholds that a program is told of when they are crossed; no thread of their own.
//!
//! ```text
//!   threshold ┄┄┄┄┄┄┄┄┄┄┄╱▔╲┄╱▔▔┄┄┄┄┄┄┄┄┄┄┄┄╱▔▔   fires where ↑ says: once a crossing
//!   rearmed   ┄┄┄┄┄┄┄┄┄╱┄┄┄┄V┄┄┄┄┄┄┄╲┄┄┄┄┄┄╱┄┄┄   and again after the level fell below this
//!                     ↑               rearmed ↑
//! ```
//!
//! Looked at after every growth and every release (a backend call was made just then) and by
//! [`maintain`](Allocator::maintain); never on a hit. So a threshold of reserved bytes misses
//! nothing, while allocated bytes that rise within what is cached are noticed at the next growth,
//! or when the program tells the time.

use std::sync::{Arc, PoisonError};

use crate::allocator::Allocator;
use crate::allocator::listeners::{CallbackGuard, Listeners, contain};
use crate::allocator::shared::{Shared, WorldOf};
use crate::allocator::sync::{AtomicBool, Mutex, Ordering};
use crate::backend::Backend;
use crate::core::ledger::Gauge;
use crate::units::Bytes;

/// Below so much of its threshold a watch is armed again, if nothing else is said.
const REARM: f64 = 0.95;

/// What is watched, and from where on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    gauge: Watched,
    level: Level,
    rearm: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    Allocated,
    Reserved,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Level {
    Bytes(Bytes),
    Fraction(f64),
}

/// What a watch is told. Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Crossing {
    /// The threshold that was reached.
    pub threshold: Bytes,
    /// Bytes in users' hands.
    pub allocated: Bytes,
    /// Bytes held from the device.
    pub reserved: Bytes,
    /// The limit in force, or else the device's memory, if either is known.
    pub bound: Option<Bytes>,
}

impl Threshold {
    /// So many bytes in users' hands.
    pub fn allocated(bytes: Bytes) -> Self {
        Self { gauge: Watched::Allocated, level: Level::Bytes(bytes), rearm: REARM }
    }

    /// So many bytes held from the device.
    pub fn reserved(bytes: Bytes) -> Self {
        Self { gauge: Watched::Reserved, level: Level::Bytes(bytes), rearm: REARM }
    }

    /// Such a part of the limit in force, or else of the device's memory, in users' hands. Never
    /// reached where neither is known.
    ///
    /// # Panics
    /// If the fraction is not in 0 … 1.
    pub fn allocated_fraction(fraction: f64) -> Self {
        Self { gauge: Watched::Allocated, level: Level::of(fraction), rearm: REARM }
    }

    /// Such a part of the limit in force, or else of the device's memory, held from the device.
    /// Never reached where neither is known.
    ///
    /// # Panics
    /// If the fraction is not in 0 … 1.
    pub fn reserved_fraction(fraction: f64) -> Self {
        Self { gauge: Watched::Reserved, level: Level::of(fraction), rearm: REARM }
    }

    /// The watch is armed again when the level has fallen below such a part of the threshold; 0.95
    /// if nothing is said.
    ///
    /// # Panics
    /// If the part is not in 0 … 1.
    pub fn rearmed_below(self, part: f64) -> Self {
        assert!((0.0..=1.0).contains(&part), "a part of the threshold is in 0 … 1, not {part}");
        Self { rearm: part, ..self }
    }
}

impl Level {
    fn of(fraction: f64) -> Self {
        let is_fraction = (0.0..=1.0).contains(&fraction);
        assert!(is_fraction, "a fraction of the memory is in 0 … 1, not {fraction}");
        Level::Fraction(fraction)
    }
}

/// One registered threshold.
pub(super) struct Watch {
    threshold: Threshold,
    is_armed: AtomicBool,
    tell: Box<dyn Fn(&Crossing) + Send + Sync>,
}

/// All that is watched.
pub(super) struct Watches {
    listeners: Listeners<Watch>,
    /// Held while levels are read and compared: an older look must not undo a newer one.
    looking: Mutex<()>,
}

/// The levels at one moment.
#[derive(Debug, Clone, Copy)]
struct Levels {
    allocated: Bytes,
    reserved: Bytes,
    bound: Option<Bytes>,
}

impl Levels {
    fn of<B: Backend>(world: &WorldOf<'_, B>) -> Self {
        let bound = [world.global.limit, world.device.total].into_iter().flatten().min();
        let total = |gauge| world.total(gauge);
        let (allocated, reserved) = (total(Gauge::AllocatedBytes), total(Gauge::ReservedBytes));
        Self { allocated, reserved, bound }
    }
}

impl Threshold {
    /// The threshold in bytes, and what it is compared with.
    fn resolve(&self, levels: &Levels) -> Option<(Bytes, Bytes)> {
        let threshold = match self.level {
            Level::Bytes(bytes) => bytes,
            Level::Fraction(fraction) => (levels.bound? as f64 * fraction).ceil() as Bytes,
        };
        let now = match self.gauge {
            Watched::Allocated => levels.allocated,
            Watched::Reserved => levels.reserved,
        };
        Some((threshold, now))
    }
}

impl Watch {
    /// Compares, and arms again; whether it fires.
    fn look(&self, levels: &Levels, fires: bool) -> Option<Crossing> {
        let (threshold, now) = self.threshold.resolve(levels)?;
        if (now as f64) < threshold as f64 * self.threshold.rearm {
            self.is_armed.store(true, Ordering::Relaxed);
        }
        if !fires || now < threshold || !self.is_armed.swap(false, Ordering::Relaxed) {
            return None;
        }
        let Levels { allocated, reserved, bound } = *levels;
        Some(Crossing { threshold, allocated, reserved, bound })
    }
}

impl Watches {
    pub(super) fn new() -> Self {
        Self { listeners: Listeners::new(), looking: Mutex::new(()) }
    }
}

impl<B: Backend> Shared<B> {
    /// Memory came, or time went by: tells whoever watches.
    pub(super) fn look_at_watches(&self) {
        self.look(true);
    }

    /// Memory went: watches are armed again.
    pub(super) fn rearm_watches(&self) {
        self.look(false);
    }

    fn look(&self, fires: bool) {
        let watches = self.watches.listeners.all();
        if watches.is_empty() {
            return;
        }
        let looking = self.watches.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let levels = self.world(|world| Levels::of::<B>(world));
        let crossed = watches.iter().rev();
        let crossed: Vec<_> = crossed.map(|watch| (watch, watch.look(&levels, fires))).collect();
        drop(looking);
        for (watch, crossing) in crossed {
            if let Some(crossing) = crossing {
                contain("a watch", || (watch.tell)(&crossing));
            }
        }
    }
}

impl<B: Backend> Allocator<B> {
    /// Tells `callback` when memory reaches `threshold`: once for each crossing upwards, and again
    /// only after the level has fallen some way below it ([`Threshold::rearmed_below`]). A level
    /// that is above already is no crossing.
    ///
    /// Looked at after growths and in [`maintain`](Self::maintain), with no thread of its own; a
    /// hit does nothing for it. The callback is called by the thread that crossed the threshold, on
    /// its way out of the allocation, with no lock held: it may allocate, free and trim. A panic in
    /// it is contained and logged.
    ///
    /// ```
    /// use aquifer::{Allocator, Config, Threshold, backend::Host};
    ///
    /// let allocator = Allocator::new(Host::with_capacity(64 << 20), Config::default());
    /// let _watch = allocator.watch(Threshold::reserved_fraction(0.8), |crossing| {
    ///     eprintln!("{} of {:?} bytes are reserved", crossing.reserved, crossing.bound);
    /// });
    /// ```
    pub fn watch(
        &self,
        threshold: Threshold,
        callback: impl Fn(&Crossing) + Send + Sync + 'static,
    ) -> CallbackGuard {
        let levels = self.shared.world(|world| Levels::of::<B>(world));
        let is_below = threshold.resolve(&levels).is_none_or(|(threshold, now)| now < threshold);
        let is_armed = AtomicBool::new(is_below);
        let watch = Watch { threshold, is_armed, tell: Box::new(callback) };
        self.shared.watches.listeners.register(0, Arc::new(watch))
    }
}
