//! What does a cached allocation and its free cost, through the public API?
//!
//! One pair of 64 KiB (which the compiler is not told), with all that is always on: statistics, the
//! stream's bookkeeping, the lock, the caller's source line. Once by owning handles
//! ([`aquifer::Allocator::allocate`] and drop), once by the raw interface (`allocate_raw` and
//! `free_raw`). Three states of the cache:
//!
//! - *whole segment*: nothing else is live, so each pair cuts a 2 MiB segment, merges it again, and
//!   takes it out of the idle list and back. The most that a hit does.
//! - *part of a segment*: something else lives in the segment: a cut and a merge, no idle list.
//! - *exact block*: a gap of just that size between two live blocks: no cut, no merge.
//!
//! Each once with one stream and once with a second one registered (when peaks are leased). The
//! rivals, in turn within every round, have no streams: see `harness/rivals.rs`.
//!
//! *p50* to *p99.9* are times of single pairs, the clock's own time taken off: see
//! `src/bin/aquifer/singles`. They are no finer than the clock, 10 ns on some machines, and single
//! pairs do not overlap as those of a loop do.
//!
//! `cargo bench --bench hit`. Two cores shared with other programs: minima repeat within 3 %,
//! medians within 10 %, ratios within 5 %.

mod harness;
#[path = "harness/rivals.rs"]
mod rivals;

use harness::{Run, scenes};

fn main() {
    scenes::hit(Run::new("hit"), &rivals::Everyone);
}
