//! `aquifer summary`: what a snapshot holds, in a screen of text.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use aquifer::Bytes;
use aquifer::report::format_bytes;
use aquifer::report::history::call_site;
use aquifer::report::snapshot::{BlockSnapshot, BlockState, Snapshot};
use aquifer::trace::Trace;

use crate::input::{Recording, choose};
use crate::{EXIT_USAGE, output};

/// Says what a snapshot holds: segments, blocks, who holds most, the peak, what lies idle.
///
/// FILE is a snapshot as PyTorch or this crate writes it, pickle or JSON, or a trace.
#[derive(Debug, clap::Args)]
pub(crate) struct SummaryArgs {
    /// Of a snapshot of several devices, this one; the first, unless given
    #[arg(long, value_name = "N")]
    device: Option<u32>,

    /// How many holders are named
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,

    /// A snapshot or a trace
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(crate) fn run(args: &SummaryArgs) -> ExitCode {
    let bar = output::progress(0, &args.file.display().to_string());
    let read = Recording::open(&args.file, None, &bar);
    bar.finish_and_clear();
    let said = read.and_then(|recording| match recording {
        Recording::Trace(trace) => Ok(of_trace(&trace)),
        Recording::Snapshots(snapshots) => of_snapshot(&choose(snapshots, args.device)?, args.top),
    });
    match said {
        Ok(text) => match output::print(&text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => ExitCode::from(output::give_up(&error, 0)),
        },
        Err(error) => {
            output::complain(&format!("{}: {error}", args.file.display()));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn of_trace(trace: &Trace) -> String {
    let summary = trace.summary();
    let rows = [
        ("events", summary.events.to_string()),
        ("allocations", summary.allocations.to_string()),
        ("frees", summary.frees.to_string()),
        ("streams", summary.streams.to_string()),
        ("peak live", format_bytes(summary.peak_live_bytes)),
    ];
    lines(&rows)
}

fn of_snapshot(snapshot: &Snapshot, top: usize) -> Result<String, String> {
    let segments = &snapshot.segments;
    let blocks: Vec<&BlockSnapshot> = segments.iter().flat_map(|it| &it.blocks).collect();
    let sum = |state: BlockState, bytes: fn(&BlockSnapshot) -> Bytes| -> (usize, Bytes) {
        let held = || blocks.iter().filter(|block| block.state == state);
        (held().count(), held().map(|block| bytes(block)).fold(0, Bytes::saturating_add))
    };
    let (live, allocated) = sum(BlockState::Allocated, |block| block.size);
    let (_, requested) = sum(BlockState::Allocated, |block| block.requested_size);
    let (pending, waiting) = sum(BlockState::Pending, |block| block.size);
    let (free, idle) = sum(BlockState::Free, |block| block.size);
    let totals = segments.iter().map(|segment| segment.total_size);
    let reserved = totals.fold(0, Bytes::saturating_add);
    let largest = blocks.iter().filter(|block| block.state == BlockState::Free);
    let largest = largest.map(|block| block.size).max().unwrap_or(0);
    let peak = Trace::from_snapshot(snapshot).map_err(|error| error.to_string())?;
    let peak = peak.summary().peak_live_bytes;
    let counted = |count: usize, bytes| format!("{} in {count}", format_bytes(bytes));
    let of_idle = if idle > 0 { 100.0 * (1.0 - largest as f64 / idle as f64) } else { 0.0 };
    let mut text = lines(&[
        ("device", format!("{} {}", snapshot.device, snapshot.device_name)),
        ("segments", counted(segments.len(), reserved)),
        ("allocated", counted(live, allocated)),
        ("pending", counted(pending, waiting)),
        ("free", counted(free, idle)),
        ("lost to rounding", format_bytes(allocated.saturating_sub(requested))),
        ("largest free block", format_bytes(largest)),
        ("fragmentation", format!("{of_idle:.1} % of what is free is not in that block")),
        ("peak live", format!("{} as asked for, since the oldest event", format_bytes(peak))),
        ("events", snapshot.history.len().to_string()),
    ]);
    text.push_str(&holders(&blocks, top));
    Ok(text)
}

/// Live bytes by call site, largest first.
fn holders(blocks: &[&BlockSnapshot], top: usize) -> String {
    let mut sums: BTreeMap<String, (Bytes, u64)> = BTreeMap::new();
    for block in blocks.iter().filter(|block| block.state == BlockState::Allocated) {
        let frame = call_site(&block.frames).map(|at| &block.frames[at]);
        let mut place = frame.map_or_else(|| "(unknown)".to_owned(), |frame| frame.to_string());
        if let Some(tag) = &block.tag {
            place.push_str(&format!(" [{tag}]"));
        }
        let sum = sums.entry(place).or_default();
        sum.0 = sum.0.saturating_add(block.requested_size);
        sum.1 += 1;
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|(_, (bytes, _))| std::cmp::Reverse(*bytes));
    let line = |(place, (bytes, count)): &(String, (Bytes, u64))| {
        format!("\nheld: {} in {count} by {place}", format_bytes(*bytes))
    };
    sums.iter().take(top).map(line).collect()
}

fn lines(rows: &[(&str, String)]) -> String {
    let line = |(name, value): &(&str, String)| format!("{name:<20}{value}").trim_end().to_owned();
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
