//! Many threads on one allocator: a stress test on real threads and real memory, and, with
//! `RUSTFLAGS="--cfg aquifer_shuttle" cargo test --test threads --target-dir target/shuttle`,
//! small scenarios under thousands of schedules of a scheduler that switches threads at every lock,
//! every atomic and every call of the backend (crate `shuttle`).
//!
//! The schedules come from seeds, which are printed; a failure prints its schedule as well, for
//! `shuttle::replay`. With the cfg on, run this test alone: elsewhere no scheduler is in force.

#[cfg(aquifer_shuttle)]
#[path = "support/oracle.rs"]
#[allow(dead_code)] // The schedules use a part of it.
mod oracle;
#[cfg(aquifer_shuttle)]
#[path = "threads/schedules.rs"]
mod schedules;
#[cfg(not(aquifer_shuttle))]
#[path = "threads/stress.rs"]
mod stress;
