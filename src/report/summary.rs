//! The statistics as a table for people: the layout of `torch.cuda.memory_summary`, line by line.
//!
//! ```text
//! |===========================================================================|
//! |        Metric         | Cur Usage  | Peak Usage | Tot Alloc  | Tot Freed  |
//! |---------------------------------------------------------------------------|
//! | Allocated memory      |    512 KiB |     40 MiB |    184 MiB |    184 MiB |
//! |       from large pool |      0 KiB | …
//! ```
//!
//! 75 columns between two bars. A number has the unit of its column's first row, so that the parts
//! under it can be compared; it is rounded down, as in PyTorch.

use std::fmt;

use crate::report::stats::{Gauge, MemoryStats, PoolGauges};

const WIDTH: usize = 75;

/// Bytes are shown in the first unit that leaves less than so many of them, counts likewise.
const BYTES_MAX: f64 = (768 * 1024) as f64;
const COUNT_MAX: f64 = (750 * 1000) as f64;

/// What a row counts.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Bytes,
    Count,
}

impl Kind {
    /// A number in 10 columns, in the unit that suits `measure`.
    fn show(self, mut number: u64, measure: u64) -> String {
        let mut measure = measure as f64;
        let (units, step, max): (&[&str], u64, f64) = match self {
            Kind::Bytes => (&["B  ", "KiB", "MiB", "GiB", "TiB", "PiB"], 1024, BYTES_MAX),
            Kind::Count => (&["  ", "K ", "M "], 1000, COUNT_MAX),
        };
        let mut at = 0;
        while at + 1 < units.len() && measure >= max {
            number /= step;
            measure /= step as f64;
            at += 1;
        }
        match self {
            Kind::Bytes => format!("{number:6} {}", units[at]),
            Kind::Count => format!("{number:7} {}", units[at]),
        }
    }
}

/// The four numbers of a gauge in the order of the columns.
fn columns(gauge: &Gauge) -> [u64; 4] {
    [gauge.current, gauge.peak, gauge.allocated, gauge.freed]
}

/// A line between bars.
fn line(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    writeln!(f, "|{text}|")
}

fn rule(f: &mut fmt::Formatter<'_>, mark: &str) -> fmt::Result {
    line(f, &mark.repeat(WIDTH))
}

/// One row, in the units that suit `whole`.
fn row(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    kind: Kind,
    gauge: &Gauge,
    whole: &Gauge,
) -> fmt::Result {
    let numbers = columns(gauge).into_iter().zip(columns(whole));
    let cells: Vec<String> = numbers.map(|(number, measure)| kind.show(number, measure)).collect();
    line(f, &format!(" {name:<21} | {} ", cells.join(" | ")))
}

/// A table of statistics.
pub(crate) struct Summary<'a> {
    pub(crate) stats: &'a MemoryStats,
    /// What the backend says of its device, if there is one to name.
    pub(crate) device: Option<&'a str>,
    /// Whether the parts from large and small pools are left out.
    pub(crate) abbreviated: bool,
}

impl Summary<'_> {
    fn title(&self) -> String {
        let title = match self.device {
            Some(device) => format!("Aquifer memory summary, {device}"),
            None => "Aquifer memory summary".to_owned(),
        };
        // A device with a long name has its end cut off; the bars stay where they are.
        let title: String = title.chars().take(WIDTH - 2).collect();
        format!("{title:^WIDTH$}")
    }

    fn metrics(&self) -> [(&'static str, Kind, &PoolGauges); 9] {
        let stats = self.stats;
        [
            ("Allocated memory", Kind::Bytes, &stats.allocated_bytes),
            ("Active memory", Kind::Bytes, &stats.active_bytes),
            ("Requested memory", Kind::Bytes, &stats.requested_bytes),
            ("GPU reserved memory", Kind::Bytes, &stats.reserved_bytes),
            ("Non-releasable memory", Kind::Bytes, &stats.inactive_split_bytes),
            ("Allocations", Kind::Count, &stats.allocation),
            ("Active allocs", Kind::Count, &stats.active),
            ("GPU reserved segments", Kind::Count, &stats.segment),
            ("Non-releasable allocs", Kind::Count, &stats.inactive_split),
        ]
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryStats { num_ooms, num_alloc_retries, .. } = self.stats;
        rule(f, "=")?;
        line(f, &self.title())?;
        rule(f, "-")?;
        let ooms = format!("  {:9} Device OOMs: {num_ooms:<10} ", "");
        let retries = format!(" {:6} Allocation retries: {num_alloc_retries:<8}  ", "");
        line(f, &format!("{ooms}|{retries}"))?;
        rule(f, "=")?;
        line(f, "        Metric         | Cur Usage  | Peak Usage | Tot Alloc  | Tot Freed  ")?;
        for (name, kind, gauges) in self.metrics() {
            rule(f, "-")?;
            row(f, name, kind, &gauges.all, &gauges.all)?;
            if !self.abbreviated {
                row(f, "      from large pool", kind, &gauges.large_pool, &gauges.all)?;
                row(f, "      from small pool", kind, &gauges.small_pool, &gauges.all)?;
            }
        }
        for (name, gauge) in [
            ("Oversize allocations", &self.stats.oversize_allocations),
            ("Oversize GPU segments", &self.stats.oversize_segments),
        ] {
            rule(f, "-")?;
            row(f, name, Kind::Count, gauge, gauge)?;
        }
        write!(f, "|{}|", "=".repeat(WIDTH))
    }
}

impl fmt::Display for MemoryStats {
    /// The abbreviated table of `memory_summary`, without a device.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Summary { stats: self, device: None, abbreviated: true }.fmt(f)
    }
}

#[cfg(test)]
mod tests;
