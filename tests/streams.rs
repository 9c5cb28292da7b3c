//! No block reaches another stream before its last use is ordered: directed cases, and seeded
//! random programs over the simulated device, judged by the oracle of `support/oracle.rs`.
//!
//! The programs break no rule themselves: an allocation is used on its own stream, and on streams
//! it was recorded for. One test breaks that rule on purpose and proves that the oracle sees it.
//! A failing program prints its seed; `AQUIFER_SEEDS=500` runs more of them than by default.

#[path = "streams/directed.rs"]
mod directed;
#[path = "support/oracle.rs"]
mod oracle;
#[path = "streams/programs.rs"]
mod programs;
