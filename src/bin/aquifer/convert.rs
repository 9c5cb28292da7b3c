//! `aquifer convert`: a recording in one format in, the same in another out.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aquifer::backend::{Sim, SimOptions};
use aquifer::report::exchange::{self, When};
use aquifer::report::snapshot::Snapshot;
use aquifer::trace::replay::{Outcome, Program};
use aquifer::trace::{Event, Trace};
use aquifer::{Allocator, Config, HistoryOptions};

use crate::input::{Recording, Source, choose};
use crate::{EXIT_FAILED, EXIT_USAGE, output};

/// Converts recordings between formats: PyTorch's snapshots, traces, logs of RMM, profiles.
///
/// What is read is recognised by its first bytes, what is written by the ending of its name, unless
/// --from and --to say it. A trace has neither addresses nor segments: for a format that shows
/// them it is replayed on a simulated device, with this crate's policy.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ConvertArgs {
    /// What IN is
    #[arg(long, value_enum, value_name = "FORMAT")]
    from: Option<Source>,

    /// What OUT is to be
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: Option<Target>,

    /// Of a snapshot of several devices, this one; the first, unless given. Pickles and JSON take
    /// them all
    #[arg(long, value_name = "N")]
    device: Option<u32>,

    /// Folded stacks of the moment with the most live bytes, in place of the end
    #[arg(long)]
    peak: bool,

    /// What is read
    #[arg(value_name = "IN")]
    input: PathBuf,

    /// What is written, in place of what was there
    #[arg(value_name = "OUT")]
    output: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  aquifer convert snapshot.pickle trace.mtrace.gz
      what a PyTorch program asked for, for `aquifer replay`
  aquifer convert trace.mtrace.gz replayed.pickle
      a trace as this crate would serve it, for pytorch.org/memory_viz
  aquifer convert rmm_log.dev0.csv trace.mtrace
  aquifer convert snapshot.pickle memory.perfetto.json
      memory over time, for ui.perfetto.dev

Endings:
  .mtrace .mtrace.gz    trace            .perfetto.json     events, for ui.perfetto.dev
  .pickle .pkl          snapshot         .speedscope.json   live bytes, for speedscope.app
  .json                 the same         .dhat.json         the same, for dh_view.html
  .csv                  log of RMM       .folded            the same, for flamegraph.pl
                                         .vma.json          segments, for GpuMemDumpVis.py

Exit codes: 0 done; 1 OUT could not be written; 2 bad usage or a bad file.";

/// What can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Target {
    /// An mtrace text
    Mtrace,
    /// A snapshot as PyTorch pickles it
    Pickle,
    /// The same as JSON
    Json,
    /// A log of RMM
    Rmm,
    /// Events for ui.perfetto.dev
    Perfetto,
    /// Live bytes by call stack, for speedscope.app
    Speedscope,
    /// The same as lines, for flamegraph.pl
    Folded,
    /// The same for DHAT's viewer
    Dhat,
    /// Segments and blocks as VMA's statistics
    Vma,
}

impl Target {
    fn of(path: &Path) -> Option<Self> {
        const ENDINGS: &[(&str, Target)] = &[
            (".mtrace", Target::Mtrace),
            (".mtrace.gz", Target::Mtrace),
            (".pickle", Target::Pickle),
            (".pkl", Target::Pickle),
            (".csv", Target::Rmm),
            (".perfetto.json", Target::Perfetto),
            (".speedscope.json", Target::Speedscope),
            (".dhat.json", Target::Dhat),
            (".folded", Target::Folded),
            (".vma.json", Target::Vma),
            (".json", Target::Json),
        ];
        let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
        ENDINGS.iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, target)| *target)
    }
}

pub(crate) fn run(args: &ConvertArgs) -> ExitCode {
    let Some(target) = args.to.or_else(|| Target::of(&args.output)) else {
        let name = args.output.display();
        output::complain(&format!("{name}: no format has this ending: say one with --to"));
        return ExitCode::from(EXIT_USAGE);
    };
    let bar = output::progress(0, &args.input.display().to_string());
    let read = Recording::open(&args.input, args.from, &bar);
    bar.finish_and_clear();
    let ready = read.and_then(|recording| prepare(recording, target, args.device));
    let ready = match ready {
        Ok(ready) => ready,
        Err(error) => {
            output::complain(&format!("{}: {error}", args.input.display()));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match write(&ready, target, args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format!("{}: {error}", args.output.display()));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// What is about to be written: a trace for the formats of traces, snapshots for the others.
fn prepare(recording: Recording, target: Target, device: Option<u32>) -> Result<Recording, String> {
    if matches!(target, Target::Mtrace | Target::Rmm) {
        return recording.into_trace(device).map(Recording::Trace);
    }
    let snapshots = match recording {
        Recording::Trace(trace) => vec![replayed(&trace)?],
        Recording::Snapshots(snapshots) => snapshots,
    };
    let takes_all = matches!(target, Target::Pickle | Target::Json) && device.is_none();
    let snapshots = if takes_all { snapshots } else { vec![choose(snapshots, device)?] };
    Ok(Recording::Snapshots(snapshots))
}

/// What the trace leaves on a simulated device. What is live at its end stays so.
fn replayed(trace: &Trace) -> Result<Snapshot, String> {
    let device = Sim::new(SimOptions { capacity: 1 << 40, ..SimOptions::default() });
    let allocator = Allocator::new(device, Config::default());
    let program = Program::compile(trace, true);
    let most = Allocator::<Sim>::STREAMS_MAX;
    if program.streams().len() > most {
        return Err(format!("{} streams; at most {most} can be replayed", program.streams().len()));
    }
    let streams: Vec<_> = program.streams().iter().map(|&raw| allocator.stream(raw)).collect();
    let max_entries = 4 * trace.events.len() + 1024;
    allocator.record_history(HistoryOptions { max_entries, ..HistoryOptions::default() });
    let mut last = None;
    let outcome = program.run_observed(&allocator, &streams, |index| {
        if let Some(Event::Marker(label)) = trace.events.get(index) {
            allocator.annotate(label.as_str());
        }
        if index + 1 == trace.events.len() {
            last = Some(allocator.memory_snapshot());
        }
    });
    match outcome {
        Outcome::Failed { event, error } => Err(format!("event {event}: {error}")),
        _ => Ok(last.unwrap_or_else(|| allocator.memory_snapshot())),
    }
}

fn write(ready: &Recording, target: Target, args: &ConvertArgs) -> Result<(), String> {
    let path = &args.output;
    let text = |error: io::Error| error.to_string();
    let snapshots = match ready {
        Recording::Trace(trace) if target == Target::Mtrace => {
            return trace.save(path).map_err(|error| error.to_string());
        }
        Recording::Trace(trace) => {
            let file = File::create(path).map_err(text)?;
            return trace.write_rmm(file).map_err(|error| error.to_string());
        }
        Recording::Snapshots(snapshots) => snapshots,
    };
    let file = File::create(path).map_err(text)?;
    let all: Vec<&Snapshot> = snapshots.iter().collect();
    let Some(first) = snapshots.first() else { return Ok(()) };
    let when = if args.peak { When::Peak } else { When::Now };
    let written = match target {
        Target::Pickle => exchange::write_pickle(&all, file),
        Target::Json => exchange::write_json(&all, file),
        Target::Perfetto => first.write_perfetto(file),
        Target::Speedscope => first.write_speedscope(file),
        Target::Folded => first.write_folded(when, file),
        Target::Dhat => first.write_dhat(file),
        Target::Vma => first.write_vma(file),
        // Written above: they are of traces.
        Target::Mtrace | Target::Rmm => Ok(()),
    };
    written.map_err(text)
}
