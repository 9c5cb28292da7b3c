//! What does an allocation cost when free memory lies in very many holes?
//!
//! Blocks of 512 B to 64 KiB fill memory, and every second one is freed: so many holes, none beside
//! another. Then pairs of an allocation of 512 B to 128 KiB and its free: most fit a hole, which is
//! cut and becomes one again; some fit none.
//!
//! The rivals, in turn within every round: see `harness/rivals.rs`. All but the system's allocators
//! take the first hole of a class that surely fits; this crate looks for the smallest one.
//!
//! `cargo bench --bench fragmented`. Two cores shared with other programs: medians repeat within
//! 10 %, ratios within 10 %.

mod harness;
#[path = "harness/rivals.rs"]
mod rivals;

use harness::{Run, scenes};

fn main() {
    scenes::fragmented(Run::new("fragmented"), &rivals::Everyone, 5);
}
