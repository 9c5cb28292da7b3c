//! Peaks of several stretches of time at once: since the user reset them, and in every open scope.
//!
//! ```text
//!   the user's  ──────────────────────────────────────────────▶   a mark: the most before the cut
//!   scope A            ├───────────────────────┤
//!   scope B                   ├────────────────────────┤          overlap as they like
//!   ledgers     │······│······│················│·······│······    peaks since the last cut
//! ```
//!
//! The ledgers know one peak of each gauge. Where a stretch begins there is a *cut*: what the
//! ledgers have is folded into the mark of every stretch that is open, and they start at what is
//! there now. So at any time, for every stretch
//!
//! - M1: its peak = max(its mark, the ledgers' peak).
//!
//! A stretch that ends is no cut: the ledgers are raised to the lowest peak of those that go on,
//! which changes none of them (M1) and gives the arenas their leases back. No hit does anything for
//! it; after a cut the arenas of several streams must have their leases dealt out anew as they
//! reach the height they had before (one look at all arenas each).
//!
//! O(open scopes) to begin and to end, beside O(blocks) for [`Opening`].

use crate::core::block::{Block, State};
use crate::core::ledger::{self, ALL, Counter, GAUGES, Gauge, Ledger, ROWS, Table};
use crate::core::state::World;
use crate::id::AllocationId;
use crate::units::Bytes;

const NOTHING: Table = [[0; GAUGES]; ROWS];

/// The most before the last cut, of each stretch that is under way.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    user: Table,
    scopes: Vec<(u64, Table)>,
    opened: u64,
}

/// What was there when a scope began.
#[derive(Debug)]
pub(crate) struct Opening {
    key: u64,
    totals: Totals,
    arenas: Vec<Before>,
}

/// One arena when a scope began.
#[derive(Debug, Default)]
struct Before {
    /// How many allocations it had made.
    came: u64,
    /// By block: the serial of its allocation, or [`Before::FREE`].
    serials: Vec<u32>,
}

/// Sums over all arenas, whoever resets statistics meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) allocations: Flow,
    pub(crate) allocated_bytes: Flow,
    pub(crate) reserved_bytes: Flow,
}

/// One gauge: what is there, and what ever came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) now: u64,
    pub(crate) came: u64,
}

impl Flow {
    /// What came and what left since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> (u64, u64) {
        let came = self.came - earlier.came;
        (came, earlier.now + came - self.now)
    }
}

impl Before {
    /// Serials have 24 bits.
    const FREE: u32 = u32::MAX;
}

impl Opening {
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// Whether the allocation in that block, live now, was made since. A record that was given to
    /// another allocation exactly a multiple of 2²⁴ allocations later goes for the same.
    pub(crate) fn is_since(&self, arena: usize, block: usize, serial: u32) -> bool {
        let before = self.arenas.get(arena).and_then(|before| before.serials.get(block));
        before != Some(&(serial & AllocationId::SERIAL_MASK))
    }

    /// How many allocations the arena had made.
    pub(crate) fn came(&self, arena: usize) -> u64 {
        self.arenas.get(arena).map_or(0, |before| before.came)
    }
}

impl<M, E: Clone> World<'_, M, E> {
    /// The peaks since the user reset them.
    pub(crate) fn peaks(&self) -> Table {
        highest(&self.global.marks.user, &self.leased_peaks())
    }

    /// The peaks since the last cut: L1.
    pub(crate) fn leased_peaks(&self) -> Table {
        let ledgers: Vec<&Ledger> = self.arenas.iter().map(|arena| &arena.ledger).collect();
        ledger::peaks(&ledgers, &self.global.spare)
    }

    /// The most bytes that were ever active.
    pub(crate) fn active_peak(&self) -> Bytes {
        let column = Gauge::ActiveBytes as usize;
        let leased: Bytes = self.arenas.iter().map(|arena| arena.ledger.lease[ALL][column]).sum();
        self.global.active_peak.max(leased + self.global.spare[ALL][column])
    }

    /// Every peak of the user starts at what is there now; those of scopes, and the policy's own
    /// high-water mark, stay.
    pub(crate) fn reset_peaks(&mut self) {
        self.cut();
        self.global.marks.user = NOTHING;
        let reset = |counter: &mut Counter| counter.peak = counter.current;
        self.arenas.iter_mut().flat_map(|arena| &mut arena.ledger.oversize).for_each(reset);
        self.global.owners.iter_mut().flat_map(|owner| &mut owner.reserved).for_each(reset);
    }

    /// A scope begins. O(blocks).
    pub(crate) fn open_scope(&mut self) -> Opening {
        self.cut();
        let marks = &mut self.global.marks;
        marks.opened += 1;
        let key = marks.opened;
        marks.scopes.push((key, NOTHING));
        let serial = |block: &Block| match block.state {
            State::Allocated(_) => block.serial & AllocationId::SERIAL_MASK,
            _ => Before::FREE,
        };
        let arenas = self.arenas.iter().map(|arena| Before {
            came: arena.ledger.came(Gauge::Allocation),
            serials: arena.blocks.iter().map(serial).collect(),
        });
        Opening { key, totals: self.totals(), arenas: arenas.collect() }
    }

    /// The peaks in a scope so far, over all arenas and groups.
    pub(crate) fn scope_peaks(&mut self, opening: &Opening) -> [u64; GAUGES] {
        self.settle();
        let scopes = &self.global.marks.scopes;
        let mark = scopes.iter().find(|(key, _)| *key == opening.key);
        let mark = mark.map_or(NOTHING, |(_, mark)| *mark);
        highest(&mark, &self.leased_peaks())[ALL]
    }

    /// A scope ends.
    pub(crate) fn close_scope(&mut self, opening: &Opening) {
        self.settle();
        let Marks { user, scopes, .. } = &mut self.global.marks;
        scopes.retain(|(key, _)| *key != opening.key);
        let floor = scopes.iter().fold(*user, |floor, (_, mark)| zip(&floor, mark, u64::min));
        let mut ledgers: Vec<_> = self.arenas.iter_mut().map(|arena| &mut arena.ledger).collect();
        raise_peaks(&mut ledgers, &mut self.global.spare, &floor);
    }

    pub(crate) fn totals(&self) -> Totals {
        let flow = |gauge: Gauge| Flow {
            now: self.total(gauge),
            came: self.arenas.iter().map(|arena| arena.ledger.came(gauge)).sum(),
        };
        Totals {
            allocations: flow(Gauge::Allocation),
            allocated_bytes: flow(Gauge::AllocatedBytes),
            reserved_bytes: flow(Gauge::ReservedBytes),
        }
    }

    /// Folds the ledgers' peaks into every mark, and lets them start anew.
    fn cut(&mut self) {
        // Another thread's free may be about to have its pieces settled with the peaks.
        self.settle();
        self.global.active_peak = self.active_peak();
        let peaks = self.leased_peaks();
        let Marks { user, scopes, .. } = &mut self.global.marks;
        for mark in scopes.iter_mut().map(|(_, mark)| mark).chain([user]) {
            *mark = highest(mark, &peaks);
        }
        let mut ledgers: Vec<_> = self.arenas.iter_mut().map(|arena| &mut arena.ledger).collect();
        ledger::reset_peaks(&mut ledgers, &mut self.global.spare);
    }
}

/// Raises every peak to at least `floor`.
fn raise_peaks(ledgers: &mut [&mut Ledger], spare: &mut Table, floor: &Table) {
    let shared: Vec<&Ledger> = ledgers.iter().map(|ledger| &**ledger).collect();
    let peaks = ledger::peaks(&shared, spare);
    for row in 0..ROWS {
        for column in 0..GAUGES {
            let missing = floor[row][column].saturating_sub(peaks[row][column]);
            match ledgers {
                // Alone it raises its lease as it needs, and looks at no spare.
                [sole] if sole.sole => sole.lease[row][column] += missing,
                _ => spare[row][column] += missing,
            }
        }
    }
    ledgers.iter_mut().for_each(|ledger| ledger.respan());
}

fn highest(a: &Table, b: &Table) -> Table {
    zip(a, b, u64::max)
}

fn zip(a: &Table, b: &Table, choose: fn(u64, u64) -> u64) -> Table {
    let mut chosen = *a;
    for (chosen, other) in chosen.iter_mut().flatten().zip(b.iter().flatten()) {
        *chosen = choose(*chosen, *other);
    }
    chosen
}
