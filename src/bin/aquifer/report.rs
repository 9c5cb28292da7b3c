//! `aquifer report`: a page of HTML that shows who holds memory, and how it came to that.
//!
//! A snapshot is shown as it was. A trace is replayed on a simulated device, event by event, and
//! what the allocator tells of it becomes the history. It has no times, so an event's time is its
//! number: the same trace gives the same page, byte for byte.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aquifer::backend::{Backend, Sim, SimOptions};
use aquifer::report::history::Annotation;
use aquifer::report::html::{Clock, HtmlOptions};
use aquifer::report::snapshot::Snapshot;
use aquifer::trace::{Event, Trace};
use aquifer::{Allocator, Bytes, Config, HistoryOptions};

use crate::input::{Recording, choose};
use crate::policy::PolicyArgs;
use crate::{EXIT_FAILED, EXIT_USAGE, bytes, output};

/// Bytes of the simulated device, unless other are asked for: more than any trace needs.
const SIM_CAPACITY: Bytes = 1 << 40;

/// Makes a page of HTML that shows who holds memory, and when.
///
/// The page opens from disk in any browser and needs no network: memory over time, every segment at
/// any moment, holders at the peak and at the end, fragmentation.
///
/// IN is a snapshot of PyTorch or of this crate, pickle or JSON; or an allocation trace or a log of
/// RMM, which is replayed on a simulated device, to which the options below belong. Each may be
/// gzip'd.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    policy: PolicyArgs,

    /// The simulated device's memory, in bytes or with KiB, MiB, GiB, TiB
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse, default_value_t = SIM_CAPACITY)]
    capacity: Bytes,

    /// Grow segments page by page in virtual memory (expandable_segments)
    #[arg(long)]
    expandable: bool,

    /// Of a snapshot of several devices, this one; the first, unless given
    #[arg(long, value_name = "N")]
    device: Option<u32>,

    /// Where the page goes; `-` is standard output
    #[arg(short, long, value_name = "FILE.html")]
    output: PathBuf,

    /// What to report on
    #[arg(value_name = "IN")]
    input: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  aquifer report snapshot.pickle -o memory.html
      what a PyTorch program dumped, with the lines of Python that ask for memory
  aquifer report benches/traces/article-linear-adam.mtrace.gz -o memory.html
      who holds memory while a small model is trained
  aquifer report --policy torch --expandable --capacity 24GiB TRACE -o memory.html
      what PyTorch would do with it on a device of 24 GiB
  aquifer demo --leak --report memory.html
      the history of the demonstration, with the lines of code that ask for memory

Exit codes: 0 done, also if the trace runs out of memory: the page shows it; 1 the page could not be
written; 2 bad usage or a bad file.";

/// What is reported on, and how it is called.
#[derive(Debug)]
struct Source {
    snapshot: Snapshot,
    options: HtmlOptions,
}

/// Reads, replays, and writes the page.
pub(crate) fn run(args: &ReportArgs) -> ExitCode {
    let source = match read(args) {
        Ok(source) => source,
        Err(error) => {
            output::complain(&error);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match write(&source.snapshot, &source.options, &args.output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if args.output == Path::new("-") => ExitCode::from(output::give_up(&error, 0)),
        Err(error) => {
            output::complain(&format!("{}: {error}", args.output.display()));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Writes a page to a file, or to standard output for `-`.
///
/// # Errors
/// If it could not be written.
pub(crate) fn write(snapshot: &Snapshot, options: &HtmlOptions, path: &Path) -> io::Result<()> {
    if path == Path::new("-") {
        return snapshot.write_html_with(options, io::stdout().lock());
    }
    let mut file = BufWriter::new(File::create(path)?);
    snapshot.write_html_with(options, &mut file)?;
    file.flush()
}

/// The snapshot that a file holds or leads to.
fn read(args: &ReportArgs) -> Result<Source, String> {
    let mut config = args.policy.configuration()?;
    config.expandable_segments |= args.expandable;
    config.validate().map_err(|error| format!("--expandable: {error}"))?;
    let path = args.input.display();
    let bar = output::progress(0, &path.to_string());
    let read = Recording::open(&args.input, None, &bar);
    bar.finish_and_clear();
    let shown = read.and_then(|recording| match recording {
        Recording::Trace(trace) => Ok((replay(&trace, config, args.capacity)?, Clock::Events)),
        Recording::Snapshots(all) => Ok((choose(all, args.device)?, Clock::Microseconds)),
    });
    let (snapshot, clock) = shown.map_err(|error| format!("{path}: {error}"))?;
    let name = args.input.file_name().unwrap_or(args.input.as_os_str()).to_string_lossy();
    Ok(Source { snapshot, options: HtmlOptions { title: name.into_owned(), clock } })
}

/// The history of a trace on a simulated device, up to its end or to the first failure.
fn replay(trace: &Trace, config: Config, capacity: Bytes) -> Result<Snapshot, String> {
    let virtual_memory = config.expandable_segments;
    let sim = Sim::new(SimOptions { capacity, virtual_memory, ..SimOptions::default() });
    let allocator = Allocator::new(sim, config);
    // The history is what the observer hears: it knows to which event of the trace it belongs.
    allocator.record_history(HistoryOptions { max_entries: 1, ..HistoryOptions::default() });
    let (history, now) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
    let (heard, clock) = (Arc::clone(&history), Arc::clone(&now));
    let guard = allocator.on_event(move |event| {
        let mut event = event.clone();
        event.time_us = clock.load(Ordering::Relaxed);
        heard.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    });
    let mut annotations = Vec::new();
    let mut streams = HashMap::from([(0, allocator.stream(allocator.backend().default_stream()))]);
    let mut live = HashMap::new();
    for (index, event) in trace.events.iter().enumerate() {
        now.store(index as u64, Ordering::Relaxed);
        let wanted = match event {
            Event::Allocate { stream, .. } | Event::Use { stream, .. } => *stream,
            Event::Free { .. } | Event::Marker(_) => 0,
        };
        if !streams.contains_key(&wanted) && streams.len() == Allocator::<Sim>::STREAMS_MAX {
            return Err(format!("more than {} streams", Allocator::<Sim>::STREAMS_MAX));
        }
        let stream = streams.entry(wanted).or_insert_with(|| allocator.stream(wanted));
        match event {
            Event::Allocate { id, size, .. } => match allocator.allocate_on(stream, *size) {
                Ok(allocation) => drop(live.insert(*id, allocation)),
                // The page shows it.
                Err(_) => break,
            },
            Event::Free { id } => drop(live.remove(id)),
            Event::Use { id, .. } => {
                if let Some(allocation) = live.get(id) {
                    allocator.record_stream(allocation, stream);
                }
            }
            Event::Marker(label) => {
                annotations.push(Annotation { time_us: index as u64, text: label.clone() });
                if label == "empty_cache" {
                    allocator.empty_cache();
                }
            }
        }
    }
    drop(guard);
    let mut snapshot = allocator.memory_snapshot();
    snapshot.history = std::mem::take(&mut *history.lock().unwrap_or_else(PoisonError::into_inner));
    snapshot.annotations = annotations;
    unplace(&mut snapshot);
    Ok(snapshot)
}

/// A trace does not say where it asked for memory; the line of this file says nothing.
fn unplace(snapshot: &mut Snapshot) {
    for event in &mut snapshot.history {
        event.frames = Arc::default();
    }
    for block in snapshot.segments.iter_mut().flat_map(|segment| &mut segment.blocks) {
        block.frames = Arc::default();
    }
}
