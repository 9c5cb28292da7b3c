//! The books of one arena: one [`Ledger::apply`] moves every counter; statistics come from nowhere
//! else.
//!
//! Nine gauges, each for the small and for the large group (`all` is their sum). A gauge holds what
//! is there now and what ever came; what left is the difference.
//!
//! **Peaks over several arenas.** The peak of a sum is not the sum of peaks, and a shared counter
//! would make every hit a shared cache line. So a peak is *leased out*:
//!
//! ```text
//!   peak(g) = Σ_arenas lease(g) + spare(g)          L1
//!   current(g) ≤ lease(g) in every arena            L2   (whenever no operation is under way)
//!   span = min(lease(active), lease(allocated) + waiting)        L3
//! ```
//!
//! From both follows Σ current ≤ peak: while every arena stays within its lease there is no new
//! peak, and nobody looks. An arena that is about to exceed its lease goes the slow way, where all
//! arenas are in one hand: the sum is taken, the peak raised if it is one, and leases are dealt out
//! again ([`settle`]). An allocator with one arena just raises its lease. Peaks are exact, because
//! the peak is only ever raised to a sum that was seen with every arena held.
//!
//! **What a hit moves.** What is allocated is active too, until it waits for other streams; so a
//! hit moves three numbers (blocks, bytes, bytes asked for), and one comparison each with the span
//! stands for both leases (L3: active ≤ lease(active) and active − waiting ≤ lease(allocated)).
//! Everything else is worked out when it is read. 47 instructions a warm pair, of 138 before.

use crate::core::classes::{GROUPS, Group};
use crate::units::{Bytes, to_bytes};

/// What is counted. The names and meanings are those of `torch.cuda.memory_stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gauge {
    Allocation = 0,
    Segment,
    Active,
    InactiveSplit,
    AllocatedBytes,
    ReservedBytes,
    ActiveBytes,
    InactiveSplitBytes,
    RequestedBytes,
}

pub(crate) const GAUGES: usize = 9;

/// The gauges by column.
const COLUMNS: [Gauge; GAUGES] = [
    Gauge::Allocation,
    Gauge::Segment,
    Gauge::Active,
    Gauge::InactiveSplit,
    Gauge::AllocatedBytes,
    Gauge::ReservedBytes,
    Gauge::ActiveBytes,
    Gauge::InactiveSplitBytes,
    Gauge::RequestedBytes,
];

/// Rows of a lease: small group, large group, and both together.
pub(crate) const ROWS: usize = 3;
pub(crate) const ALL: usize = 2;

/// One number for each gauge of each row.
pub(crate) type Table = [[u64; GAUGES]; ROWS];

/// Something that moves counters.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Entry {
    /// A block was handed out.
    Allocate { size: u32, requested: Bytes },
    /// Its user let go of it.
    Free { size: u32 },
    /// No stream uses it any more.
    Complete { size: u32, requested: Bytes },
    /// Both at once.
    Return { size: u32, requested: Bytes },
    /// A fixed segment came.
    Grow { size: u32 },
    /// A fixed segment went.
    Release { size: u32 },
    /// Pages of a virtual segment came.
    Map { size: u32 },
    /// Pages of a virtual segment went.
    Unmap { size: u32 },
    /// A fixed segment, idle, came from another arena.
    Adopt { size: u32 },
    /// A fixed segment, idle, went to another arena.
    Surrender { size: u32 },
    /// The free pieces of partly used fixed segments changed.
    Split { count: i64, granules: i64 },
}

/// What one size group of one arena has now, and what ever came.
#[derive(Debug, Clone, Copy, Default)]
struct Side {
    /// Active blocks, their bytes, and the bytes that were asked for.
    active: [u64; 3],
    active_came: [u64; 3],
    /// Those of them that their users let go of: blocks and bytes.
    waiting: [u64; 2],
    /// Free pieces of partly used fixed segments, and their bytes.
    pieces: [u64; 2],
    pieces_came: [u64; 2],
    /// Fixed segments, and reserved bytes.
    segments: [u64; 2],
    segments_came: [u64; 2],
}

/// Columns of [`Ledger::span`]: what a hit moves.
const SPANS: usize = 5;

/// The counters of one arena.
#[derive(Debug)]
pub(crate) struct Ledger {
    sides: [Side; GROUPS.len()],
    /// By row: how far the active blocks, their bytes, the bytes asked for, the free pieces and
    /// their bytes may rise within the leases (L3).
    span: [[u64; SPANS]; ROWS],
    /// Whether this is the only arena, which may raise its lease by itself.
    pub(crate) sole: bool,
    pub(crate) lease: Table,
    /// What had come at the last reset of the totals.
    came_before: [[u64; GAUGES]; GROUPS.len()],
    /// What was there without having risen: at the last reset, and by adoption from other arenas.
    brought: [[i64; GAUGES]; GROUPS.len()],
    /// Blocks and segments of at least the largest size that is split: `[blocks, segments]`.
    pub(crate) oversize: [Counter; 2],
}

/// A gauge that is kept for statistics alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counter {
    pub(crate) current: u64,
    pub(crate) peak: u64,
    pub(crate) risen: u64,
    pub(crate) fallen: u64,
}

impl Counter {
    pub(crate) fn rise(&mut self, amount: u64) {
        self.current += amount;
        self.risen += amount;
        self.peak = self.peak.max(self.current);
    }

    pub(crate) fn fall(&mut self, amount: u64) {
        self.current -= amount;
        self.fallen += amount;
    }
}

impl Side {
    /// What a gauge shows now.
    fn now(&self, column: usize) -> u64 {
        match COLUMNS[column] {
            Gauge::Allocation => self.active[0] - self.waiting[0],
            Gauge::AllocatedBytes => self.active[1] - self.waiting[1],
            Gauge::Active => self.active[0],
            Gauge::ActiveBytes => self.active[1],
            Gauge::RequestedBytes => self.active[2],
            Gauge::InactiveSplit => self.pieces[0],
            Gauge::InactiveSplitBytes => self.pieces[1],
            Gauge::Segment => self.segments[0],
            Gauge::ReservedBytes => self.segments[1],
        }
    }

    /// What ever came: what is allocated becomes active with it.
    fn came(&self, column: usize) -> u64 {
        match COLUMNS[column] {
            Gauge::Allocation | Gauge::Active => self.active_came[0],
            Gauge::AllocatedBytes | Gauge::ActiveBytes => self.active_came[1],
            Gauge::RequestedBytes => self.active_came[2],
            Gauge::InactiveSplit => self.pieces_came[0],
            Gauge::InactiveSplitBytes => self.pieces_came[1],
            Gauge::Segment => self.segments_came[0],
            Gauge::ReservedBytes => self.segments_came[1],
        }
    }
}

impl Ledger {
    pub(crate) fn new(sole: bool) -> Self {
        Self {
            sides: [Side::default(); 2],
            span: [[0; SPANS]; ROWS],
            sole,
            lease: [[0; GAUGES]; ROWS],
            came_before: [[0; GAUGES]; 2],
            brought: [[0; GAUGES]; 2],
            oversize: [Counter::default(); 2],
        }
    }

    /// Books one entry of `group`.
    // Always inline: every caller knows which entry it is, so a hit has no dispatch (25
    // instructions).
    #[inline(always)]
    pub(crate) fn apply(&mut self, group: Group, entry: Entry) {
        match entry {
            Entry::Allocate { size, requested } => self.hand_out(group, size, requested),
            Entry::Free { size } => {
                let side = &mut self.sides[group as usize];
                add(&mut side.waiting, [1, to_bytes(size)]);
                self.respan();
            }
            Entry::Complete { size, requested } => {
                let side = &mut self.sides[group as usize];
                take(&mut side.waiting, [1, to_bytes(size)]);
                take(&mut side.active, [1, to_bytes(size), requested]);
                self.respan();
            }
            Entry::Return { size, requested } => {
                let side = &mut self.sides[group as usize];
                take(&mut side.active, [1, to_bytes(size), requested]);
            }
            Entry::Split { count, granules } => self.split(group, count, granules),
            Entry::Grow { size } => self.book_segments(group, 1, size),
            Entry::Map { size } => self.book_segments(group, 0, size),
            Entry::Release { size } => {
                take(&mut self.sides[group as usize].segments, [1, to_bytes(size)]);
            }
            Entry::Unmap { size } => {
                take(&mut self.sides[group as usize].segments, [0, to_bytes(size)]);
            }
            Entry::Adopt { size } => {
                add(&mut self.sides[group as usize].segments, [1, to_bytes(size)]);
                self.bring(group, 1, to_bytes(size) as i64);
            }
            Entry::Surrender { size } => {
                take(&mut self.sides[group as usize].segments, [1, to_bytes(size)]);
                self.bring(group, -1, -(to_bytes(size) as i64));
            }
        }
    }

    #[inline(always)]
    fn hand_out(&mut self, group: Group, size: u32, requested: Bytes) {
        let amounts = [1, to_bytes(size), requested];
        let side = &mut self.sides[group as usize];
        add(&mut side.active, amounts);
        add(&mut side.active_came, amounts);
        if self.sole && self.exceeds(group, [0; 3], [0; 2]) {
            self.raise();
        }
    }

    #[inline(always)]
    fn split(&mut self, group: Group, count: i64, granules: i64) {
        let side = &mut self.sides[group as usize];
        for (at, amount) in [count, granules * to_bytes(1) as i64].into_iter().enumerate() {
            debug_assert!(side.pieces[at].checked_add_signed(amount).is_some(), "pieces below 0");
            side.pieces[at] = side.pieces[at].wrapping_add_signed(amount);
            side.pieces_came[at] += amount.max(0) as u64;
        }
        if self.sole && !self.has_room_for_pieces(group, [0; 2]) {
            self.raise();
        }
    }

    /// Segments came, or pages of them.
    fn book_segments(&mut self, group: Group, count: u64, size: u32) {
        let side = &mut self.sides[group as usize];
        add(&mut side.segments, [count, to_bytes(size)]);
        add(&mut side.segments_came, [count, to_bytes(size)]);
        if self.sole {
            self.raise();
        }
    }

    /// Whether so many more active blocks and free pieces would leave the leases.
    #[inline(always)]
    fn exceeds(&self, group: Group, active: [u64; 3], pieces: [u64; 2]) -> bool {
        let (row, other) = (group as usize, 1 - group as usize);
        let (side, sibling) = (&self.sides[row], &self.sides[other]);
        // All at once, without a branch for each: hardly ever is one beyond its lease.
        let mut beyond = false;
        for (at, more) in active.into_iter().enumerate() {
            let now = side.active[at] + more;
            beyond |= now > self.span[row][at];
            beyond |= now + sibling.active[at] > self.span[ALL][at];
        }
        beyond | (pieces != [0; 2] && !self.has_room_for_pieces(group, pieces))
    }

    #[inline(always)]
    fn has_room_for_pieces(&self, group: Group, pieces: [u64; 2]) -> bool {
        let (row, other) = (group as usize, 1 - group as usize);
        let (side, sibling) = (&self.sides[row], &self.sides[other]);
        let mut within = true;
        for (at, more) in pieces.into_iter().enumerate() {
            let now = side.pieces[at] + more;
            within &= now <= self.span[row][3 + at];
            within &= now + sibling.pieces[at] <= self.span[ALL][3 + at];
        }
        within
    }

    /// The only arena has a new peak.
    #[cold]
    fn raise(&mut self) {
        for row in 0..ROWS {
            for column in 0..GAUGES {
                self.lease[row][column] = self.lease[row][column].max(self.now(row, column));
            }
        }
        self.respan();
    }

    /// The leases changed, or what waits did (L3).
    pub(crate) fn respan(&mut self) {
        let [small, large] = self.sides.map(|side| side.waiting);
        let waiting = [small, large, [small[0] + large[0], small[1] + large[1]]];
        for (row, (lease, waiting)) in self.lease.iter().zip(waiting).enumerate() {
            let lease = |gauge: Gauge| lease[gauge as usize];
            self.span[row] = [
                lease(Gauge::Active).min(lease(Gauge::Allocation) + waiting[0]),
                lease(Gauge::ActiveBytes).min(lease(Gauge::AllocatedBytes) + waiting[1]),
                lease(Gauge::RequestedBytes),
                lease(Gauge::InactiveSplit),
                lease(Gauge::InactiveSplitBytes),
            ];
        }
    }

    /// Moves between arenas: neither rises nor falls in the lifetime totals.
    fn bring(&mut self, group: Group, count: i64, bytes: i64) {
        self.brought[group as usize][Gauge::Segment as usize] += count;
        self.brought[group as usize][Gauge::ReservedBytes as usize] += bytes;
    }

    /// Whether an allocation of `size` granules, which leaves so many more free pieces and granules
    /// in them, stays within the lease (always, for a sole arena).
    #[inline]
    pub(crate) fn admits(
        &self,
        group: Group,
        size: u32,
        requested: Bytes,
        pieces: (u64, u32),
    ) -> bool {
        let active = [1, to_bytes(size), requested];
        self.sole || !self.exceeds(group, active, [pieces.0, to_bytes(pieces.1)])
    }

    /// Whether the gauges that a free of `group` can raise are within their leases (L2).
    #[inline]
    pub(crate) fn splits_are_within_lease(&self, group: Group) -> bool {
        self.sole || self.has_room_for_pieces(group, [0; 2])
    }

    /// As [`splits_are_within_lease`](Self::splits_are_within_lease), of both groups.
    pub(crate) fn splits_are_within_leases(&self) -> bool {
        GROUPS.into_iter().all(|group| self.splits_are_within_lease(group))
    }

    /// L2, of all gauges.
    fn is_within_leases(&self) -> bool {
        let hot =
            |group| !self.exceeds(group, [0; 3], [0; 2]) && self.has_room_for_pieces(group, [0; 2]);
        let within = |row: usize, gauge: Gauge| {
            self.now(row, gauge as usize) <= self.lease[row][gauge as usize]
        };
        let segments = |row| within(row, Gauge::Segment) && within(row, Gauge::ReservedBytes);
        GROUPS.into_iter().all(hot) && (0..ROWS).all(segments)
    }

    /// What a gauge shows now; `row` may be [`ALL`].
    pub(crate) fn now(&self, row: usize, column: usize) -> u64 {
        match row {
            ALL => self.sides[0].now(column) + self.sides[1].now(column),
            row => self.sides[row].now(column),
        }
    }

    /// What ever came, and what ever left, since the last reset.
    pub(crate) fn moved(&self, row: usize, column: usize) -> (u64, u64) {
        let of = |row: usize| {
            let risen = self.sides[row].came(column) - self.came_before[row][column];
            // Everything that came, or was brought, and is not there has left.
            let came = risen.wrapping_add_signed(self.brought[row][column]);
            (risen, came.wrapping_sub(self.sides[row].now(column)))
        };
        match row {
            ALL => (of(0).0 + of(1).0, of(0).1 + of(1).1),
            row => of(row),
        }
    }

    /// What ever came, whoever reset the totals.
    pub(crate) fn came(&self, gauge: Gauge) -> u64 {
        self.sides.iter().map(|side| side.came(gauge as usize)).sum()
    }

    /// Starts the lifetime totals anew.
    pub(crate) fn reset_accumulated(&mut self) {
        for (row, side) in self.sides.iter().enumerate() {
            for column in 0..GAUGES {
                self.came_before[row][column] = side.came(column);
                self.brought[row][column] = side.now(column) as i64;
            }
        }
        for counter in &mut self.oversize {
            (counter.risen, counter.fallen) = (0, 0);
        }
    }

    pub(crate) fn bytes(&self, gauge: Gauge) -> Bytes {
        self.now(ALL, gauge as usize)
    }
}

#[inline(always)]
fn add<const N: usize>(counters: &mut [u64; N], amounts: [u64; N]) {
    for (counter, amount) in counters.iter_mut().zip(amounts) {
        *counter += amount;
    }
}

#[inline(always)]
fn take<const N: usize>(counters: &mut [u64; N], amounts: [u64; N]) {
    for (counter, amount) in counters.iter_mut().zip(amounts) {
        debug_assert!(*counter >= amount, "a counter would fall below zero");
        *counter -= amount;
    }
}

/// The part of the peaks that no arena holds.
pub(crate) type Spare = Table;

/// Deals the leases out anew so that L1 and L2 hold; raises peaks to the present sums where those
/// are higher. Called whenever all arenas are in one hand; O(arenas).
pub(crate) fn settle(ledgers: &mut [&mut Ledger], spare: &mut Spare) {
    if let [sole] = ledgers
        && sole.sole
    {
        return;
    }
    if ledgers.iter().all(|ledger| ledger.is_within_leases()) {
        return;
    }
    for (row, spares) in spare.iter_mut().enumerate() {
        for (column, spare) in spares.iter_mut().enumerate() {
            let within =
                |ledger: &&mut Ledger| ledger.now(row, column) <= ledger.lease[row][column];
            if !ledgers.iter().all(within) {
                deal(ledgers, spare, row, column);
            }
        }
    }
    ledgers.iter_mut().for_each(|ledger| ledger.respan());
}

/// Raises one peak if the sum asks for it, and gives each arena what it has plus a share of the
/// rest.
fn deal(ledgers: &mut [&mut Ledger], spare: &mut u64, row: usize, column: usize) {
    let sum: u64 = ledgers.iter().map(|ledger| ledger.now(row, column)).sum();
    let peak: u64 = ledgers.iter().map(|ledger| ledger.lease[row][column]).sum::<u64>() + *spare;
    let rest = peak.saturating_sub(sum);
    // Half of the rest stays spare, so that the next arena in need finds some without a new deal of
    // all.
    let share = rest / (2 * ledgers.len() as u64);
    for ledger in ledgers.iter_mut() {
        ledger.lease[row][column] = ledger.now(row, column) + share;
    }
    *spare = rest - share * ledgers.len() as u64;
}

/// The peaks: L1.
pub(crate) fn peaks(ledgers: &[&Ledger], spare: &Spare) -> Table {
    let mut peaks = *spare;
    for ledger in ledgers {
        for (peak, lease) in peaks.iter_mut().flatten().zip(ledger.lease.iter().flatten()) {
            *peak += lease;
        }
    }
    peaks
}

/// Lets the peaks start at what is there now.
pub(crate) fn reset_peaks(ledgers: &mut [&mut Ledger], spare: &mut Spare) {
    *spare = [[0; GAUGES]; ROWS];
    for ledger in ledgers.iter_mut() {
        for row in 0..ROWS {
            for column in 0..GAUGES {
                ledger.lease[row][column] = ledger.now(row, column);
            }
        }
        ledger.respan();
    }
}

#[cfg(test)]
mod tests;
