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
//! ```
//!
//! From both follows Σ current ≤ peak: while every arena stays within its lease there is no new
//! peak, and nobody looks. An arena that is about to exceed its lease goes the slow way, where all
//! arenas are in one hand: the sum is taken, the peak raised if it is one, and leases are dealt out
//! again ([`settle`]). An allocator with one arena just raises its lease. Peaks are exact, because
//! the peak is only ever raised to a sum that was seen with every arena held.

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

/// The counters of one arena.
#[derive(Debug)]
pub(crate) struct Ledger {
    current: [[u64; GAUGES]; GROUPS.len()],
    /// What ever came, since the last reset.
    risen: [[u64; GAUGES]; GROUPS.len()],
    /// What was there without having risen: at the last reset, and by adoption from other arenas.
    brought: [[i64; GAUGES]; GROUPS.len()],
    pub(crate) lease: Table,
    /// Whether this is the only arena, which may raise its lease by itself.
    pub(crate) sole: bool,
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

impl Ledger {
    pub(crate) fn new(sole: bool) -> Self {
        Self {
            current: [[0; GAUGES]; 2],
            risen: [[0; GAUGES]; 2],
            brought: [[0; GAUGES]; 2],
            lease: [[0; GAUGES]; ROWS],
            sole,
            oversize: [Counter::default(); 2],
        }
    }

    /// Books one entry of `group`.
    // Always inline: every caller knows which entry it is, so a hit has no dispatch (25
    // instructions).
    #[inline(always)]
    pub(crate) fn apply(&mut self, group: Group, entry: Entry) {
        match entry {
            Entry::Allocate { size, requested } => {
                let bytes = to_bytes(size);
                self.rise(group, Gauge::Allocation, 1);
                self.rise(group, Gauge::Active, 1);
                self.rise(group, Gauge::AllocatedBytes, bytes);
                self.rise(group, Gauge::ActiveBytes, bytes);
                self.rise(group, Gauge::RequestedBytes, requested);
            }
            Entry::Free { size } => {
                self.fall(group, Gauge::Allocation, 1);
                self.fall(group, Gauge::AllocatedBytes, to_bytes(size));
            }
            Entry::Complete { size, requested } => {
                self.fall(group, Gauge::Active, 1);
                self.fall(group, Gauge::ActiveBytes, to_bytes(size));
                self.fall(group, Gauge::RequestedBytes, requested);
            }
            Entry::Return { size, requested } => {
                let bytes = to_bytes(size);
                self.fall(group, Gauge::Allocation, 1);
                self.fall(group, Gauge::Active, 1);
                self.fall(group, Gauge::AllocatedBytes, bytes);
                self.fall(group, Gauge::ActiveBytes, bytes);
                self.fall(group, Gauge::RequestedBytes, requested);
            }
            Entry::Grow { size } => {
                self.rise(group, Gauge::Segment, 1);
                self.rise(group, Gauge::ReservedBytes, to_bytes(size));
            }
            Entry::Release { size } => {
                self.fall(group, Gauge::Segment, 1);
                self.fall(group, Gauge::ReservedBytes, to_bytes(size));
            }
            Entry::Map { size } => self.rise(group, Gauge::ReservedBytes, to_bytes(size)),
            Entry::Unmap { size } => self.fall(group, Gauge::ReservedBytes, to_bytes(size)),
            Entry::Adopt { size } => {
                self.bring(group, Gauge::Segment, 1);
                self.bring(group, Gauge::ReservedBytes, to_bytes(size) as i64);
            }
            Entry::Surrender { size } => {
                self.bring(group, Gauge::Segment, -1);
                self.bring(group, Gauge::ReservedBytes, -(to_bytes(size) as i64));
            }
            Entry::Split { count, granules } => {
                self.shift(group, Gauge::InactiveSplit, count);
                self.shift(group, Gauge::InactiveSplitBytes, granules * to_bytes(1) as i64);
            }
        }
    }

    #[inline]
    fn rise(&mut self, group: Group, gauge: Gauge, amount: u64) {
        let (row, column) = (group as usize, gauge as usize);
        let now = self.current[row][column] + amount;
        self.current[row][column] = now;
        self.risen[row][column] += amount;
        let all = now + self.current[1 - row][column];
        if self.sole && (now > self.lease[row][column] || all > self.lease[ALL][column]) {
            self.raise(row, column);
        }
    }

    /// The only arena has a new peak.
    #[cold]
    fn raise(&mut self, row: usize, column: usize) {
        for row in [row, ALL] {
            self.lease[row][column] = self.lease[row][column].max(self.now(row, column));
        }
    }

    #[inline]
    fn fall(&mut self, group: Group, gauge: Gauge, amount: u64) {
        let current = &mut self.current[group as usize][gauge as usize];
        debug_assert!(*current >= amount, "{gauge:?} of {group:?} would fall below zero");
        *current -= amount;
    }

    /// Moves between arenas: neither rises nor falls in the lifetime totals.
    fn bring(&mut self, group: Group, gauge: Gauge, amount: i64) {
        let (row, column) = (group as usize, gauge as usize);
        self.current[row][column] = self.current[row][column].wrapping_add_signed(amount);
        self.brought[row][column] += amount;
    }

    #[inline]
    fn shift(&mut self, group: Group, gauge: Gauge, amount: i64) {
        if amount >= 0 {
            self.rise(group, gauge, amount as u64);
        } else {
            self.fall(group, gauge, amount.unsigned_abs());
        }
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
        if self.sole {
            return true;
        }
        let bytes = to_bytes(size);
        let amounts = [
            (Gauge::Allocation, 1),
            (Gauge::Active, 1),
            (Gauge::AllocatedBytes, bytes),
            (Gauge::ActiveBytes, bytes),
            (Gauge::RequestedBytes, requested),
            (Gauge::InactiveSplit, pieces.0),
            (Gauge::InactiveSplitBytes, to_bytes(pieces.1)),
        ];
        let (row, other) = (group as usize, 1 - group as usize);
        // All at once, without a branch for each: hardly ever is one beyond its lease.
        amounts.into_iter().fold(true, |within, (gauge, amount)| {
            let column = gauge as usize;
            let now = self.current[row][column] + amount;
            within
                & (now <= self.lease[row][column])
                & (now + self.current[other][column] <= self.lease[ALL][column])
        })
    }

    /// Whether the gauges that a free can raise are within their leases (L2).
    #[inline]
    pub(crate) fn splits_are_within_lease(&self) -> bool {
        self.sole
            || [Gauge::InactiveSplit as usize, Gauge::InactiveSplitBytes as usize].iter().all(
                |&column| (0..ROWS).all(|row| self.now(row, column) <= self.lease[row][column]),
            )
    }

    /// What a gauge shows now; `row` may be [`ALL`].
    #[inline]
    pub(crate) fn now(&self, row: usize, column: usize) -> u64 {
        match row {
            ALL => self.current[0][column] + self.current[1][column],
            row => self.current[row][column],
        }
    }

    /// What ever came, and what ever left, since the last reset.
    pub(crate) fn moved(&self, row: usize, column: usize) -> (u64, u64) {
        let of = |row: usize| {
            let risen = self.risen[row][column];
            // Everything that came, or was brought, and is not there has left.
            let came = risen.wrapping_add_signed(self.brought[row][column]);
            (risen, came.wrapping_sub(self.current[row][column]))
        };
        match row {
            ALL => (of(0).0 + of(1).0, of(0).1 + of(1).1),
            row => of(row),
        }
    }

    /// Starts the lifetime totals anew.
    pub(crate) fn reset_accumulated(&mut self) {
        self.brought = self.current.map(|row| row.map(|now| now as i64));
        self.risen = [[0; GAUGES]; 2];
        for counter in &mut self.oversize {
            (counter.risen, counter.fallen) = (0, 0);
        }
    }

    pub(crate) fn bytes(&self, gauge: Gauge) -> Bytes {
        self.now(ALL, gauge as usize)
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
    for (row, spares) in spare.iter_mut().enumerate() {
        for (column, spare) in spares.iter_mut().enumerate() {
            let within =
                |ledger: &&mut Ledger| ledger.now(row, column) <= ledger.lease[row][column];
            if !ledgers.iter().all(within) {
                deal(ledgers, spare, row, column);
            }
        }
    }
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

/// Lets every peak start at what is there now.
pub(crate) fn reset_peaks(ledgers: &mut [&mut Ledger], spare: &mut Spare) {
    *spare = [[0; GAUGES]; ROWS];
    for ledger in ledgers.iter_mut() {
        for row in 0..ROWS {
            for column in 0..GAUGES {
                ledger.lease[row][column] = ledger.now(row, column);
            }
        }
        for counter in &mut ledger.oversize {
            counter.peak = counter.current;
        }
    }
}

#[cfg(test)]
mod tests;
