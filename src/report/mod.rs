//! What is shown to people: statistics, summaries, snapshots, holders, scopes, out-of-memory
//! reports. All prose and formatting of the crate is here; it reads the core and changes nothing,
//! and none of it runs on a hit.

pub mod exchange;
pub mod history;
pub mod holders;
pub mod html;
pub(crate) mod lives;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
pub mod oom;
pub(crate) mod ring;
pub mod scope;
pub mod snapshot;
pub mod stats;
pub(crate) mod summary;

use crate::units::{Bytes, GIB, KIB, MIB};

/// Formats bytes with a binary unit and two digits: `20.00 MiB`.
///
/// ```
/// assert_eq!(aquifer::report::format_bytes(20 << 20), "20.00 MiB");
/// assert_eq!(aquifer::report::format_bytes(512), "512 B");
/// ```
pub fn format_bytes(bytes: Bytes) -> String {
    match bytes {
        0..KIB => format!("{bytes} B"),
        KIB..MIB => format!("{:.2} KiB", bytes as f64 / KIB as f64),
        MIB..GIB => format!("{:.2} MiB", bytes as f64 / MIB as f64),
        _ => format!("{:.2} GiB", bytes as f64 / GIB as f64),
    }
}
