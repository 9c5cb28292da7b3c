//! `aquifer replay`: traces in, one line of figures out for each.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aquifer::backend::{Sim, SimOptions};
use aquifer::report::format_bytes;
use aquifer::trace::Trace;
use aquifer::{Allocator, Bytes, Config};
use indicatif::ProgressBar;
use serde_json::Value;

use crate::device::{CountedHost, Device};
use crate::input::Recording;
use crate::measure::{self, Bench, Figures, Setup, call_count, call_counts};
use crate::output::{self, Format};
use crate::plot::{self, Curve};
use crate::policy::PolicyArgs;
use crate::{EXIT_FAILED, EXIT_USAGE, bytes};

/// Bytes of the simulated device, unless other are asked for: more than any trace needs.
const SIM_CAPACITY: Bytes = 1 << 40;

/// Replays allocation traces and says what memory and time they took.
///
/// A trace is a snapshot of PyTorch's with its history (pickle or JSON), a log of RMM, or a text of
/// one event a line (`a ID SIZE STREAM`, `f ID`, `u ID STREAM`, `m LABEL`
/// under a header `# mtrace: 1`), plain or gzip'd. Each runs through the allocator's public API as
/// often as --rounds says, cold (an empty cache) and warm (after a run, nothing given back); then
/// one line of figures is printed for it.
///
/// Figures: live is what the program asked for, allocated what it was given, active that plus what
/// it freed while a stream still used it, reserved what the device gave. Peaks, means and backend
/// calls are those of a cold run; calls/1000 and maps/1000 (maps and unmaps) are for 1000
/// allocations, warm is the same for the run after it, in min for the smallest device. Times are
/// CPU time of the thread for each allocation, free and use, the median over the rounds; reading
/// the trace is not counted.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    policy: PolicyArgs,

    /// Where memory comes from: `sim` is a simulated device that hands out granules of 2 MiB and no
    /// bytes at all; `host` takes memory of this machine from the system, in whole segments, and
    /// touches none of it
    #[arg(long, value_enum, default_value_t = Place::Sim)]
    backend: Place,

    /// The device's memory, in bytes or with KiB, MiB, GiB, TiB (K, M, G, T mean the same); 1 TiB
    /// for `sim` and what the machine has for `host`, unless given
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    capacity: Option<Bytes>,

    /// Grow segments page by page in virtual memory (expandable_segments), which `sim` then has
    #[arg(long)]
    expandable: bool,

    /// How many cold and warm runs are timed; the figures are their medians
    #[arg(long, value_name = "N", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,

    /// Look for the smallest device on which the trace runs to its end, by bisection to 0.1 % (or
    /// one granule, if that is more); takes some ten runs. A device just below it fails; one that
    /// is smaller still may serve by chance, as blocks come to lie elsewhere
    #[arg(long)]
    min_capacity: bool,

    /// Do not call `empty_cache` where the trace says `m empty_cache`
    #[arg(long)]
    ignore_markers: bool,

    /// Draw memory over time into this file, as SVG: what is live, what this policy has reserved,
    /// and what PyTorch's policy would have, on the same device; takes one trace
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,

    /// `table` for people, `json` for programs: one object a line, sizes in bytes
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// Traces, snapshots or logs, plain or gzip'd
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  aquifer replay benches/traces/*.mtrace.gz
      the policy of this crate on a device that is large enough for anything
  aquifer replay --policy torch --expandable --format json TRACE
      what PyTorch would need with expandable_segments, for a program to read
  aquifer replay --policy torch --config max_split_size_mb:128 --capacity 24GiB TRACE
      whether a setting keeps a program within 24 GiB
  aquifer replay --min-capacity TRACE
      how small a device would do
  aquifer replay --plot memory.svg TRACE
      a picture of it

Keys of a JSON object:
  trace, policy, backend        the file's name without .mtrace.gz, and what it ran on
  events, allocations           of the trace; events counts all kinds, markers too
  peak_live_bytes               as the program asked; no allocator can do with less
  peak_allocated_bytes, peak_active_bytes, peak_reserved_bytes
  mean_reserved_over_mean_live  means over all events but markers; up to the failure, if one
  min_capacity_bytes            null unless asked for; null too if 1 TiB is not enough
  reserved_over_live, min_capacity_over_live
                                peak reserved, and that device, as multiples of peak live
  backend_calls                 of one cold run; wait is the device's, synchronize the host's
  calls_per_1000                their sum, for each 1000 allocations
  maps_unmaps_per_1000          maps and unmaps among them
  calls_per_1000_warm           all calls of the run after it
  calls_per_1000_min_capacity   all calls of a cold run on the smallest device
  oom, oom_event                whether an allocation failed, and which event (from 0) that was
  ns_per_event_cold, ns_per_event_warm
                                for each event but markers; null if the run failed

Exit codes: 0 done; 1 a run ended early for want of memory; 2 bad usage or a bad file. The other
files are replayed all the same.";

/// Where memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Place {
    /// A simulated device
    Sim,
    /// Memory of this machine
    Host,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Place::Sim => "sim",
            Place::Host => "host",
        }
    }
}

/// Replays all files; a bad one does not stop the others.
pub(crate) fn run(args: &ReplayArgs) -> ExitCode {
    let setup = match setup(args) {
        Ok(setup) => setup,
        Err(error) => {
            output::complain(&error);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if setup.config.expandable_segments && args.backend == Place::Host {
        output::complain("expandable segments need --backend sim: host has no virtual memory");
        return ExitCode::from(EXIT_USAGE);
    }
    if args.plot.is_some() && args.files.len() > 1 {
        output::complain("--plot draws one trace: name one FILE");
        return ExitCode::from(EXIT_USAGE);
    }
    let mut status = 0;
    let mut rows = vec![heading()];
    for path in &args.files {
        let (line, file_status) = replay(args, &setup, path, &mut rows);
        status = status.max(file_status);
        if let Err(error) = line.map_or(Ok(()), |line| output::print(&line)) {
            return ExitCode::from(output::give_up(&error, status));
        }
    }
    if args.format == Format::Table && rows.len() > 1 {
        let device = format!("{}, {}", args.backend.name(), format_bytes(setup.capacity));
        let title = format!("policy {}; device {device}", args.policy.policy.name());
        if let Err(error) = output::print(&format!("{title}\n\n{}", output::table(&rows))) {
            status = output::give_up(&error, status);
        }
    }
    ExitCode::from(status)
}

fn setup(args: &ReplayArgs) -> Result<Setup, String> {
    let mut config = args.policy.configuration()?;
    config.expandable_segments |= args.expandable;
    config.validate().map_err(|error| format!("--expandable: {error}"))?;
    let capacity = args.capacity.unwrap_or_else(|| match args.backend {
        Place::Sim => SIM_CAPACITY,
        Place::Host => CountedHost::machine_bytes(),
    });
    Ok(Setup {
        config,
        capacity,
        rounds: args.rounds,
        obey_markers: !args.ignore_markers,
        min_capacity: args.min_capacity,
    })
}

/// One file: the JSON line, or a row more, and the exit code it stands for.
fn replay(
    args: &ReplayArgs,
    setup: &Setup,
    path: &Path,
    rows: &mut Vec<Vec<String>>,
) -> (Option<String>, u8) {
    let reading = output::progress(0, &path.display().to_string());
    let read = Recording::open(path, None, &reading);
    reading.finish_and_clear();
    let trace = match read.and_then(|recording| recording.into_trace(None)) {
        Ok(trace) => trace,
        Err(error) => {
            output::complain(&format!("{}: {error}", path.display()));
            return (None, EXIT_USAGE);
        }
    };
    let name = trace_name(path);
    let bar = output::progress(measure::run_count(setup.rounds), &name);
    let virtual_memory = setup.config.expandable_segments;
    let sim = |capacity| Sim::new(SimOptions { capacity, virtual_memory, ..SimOptions::default() });
    let done = match args.backend {
        Place::Sim => run_and_draw(args, setup, &trace, &name, sim, &bar),
        Place::Host => run_and_draw(args, setup, &trace, &name, CountedHost::with_capacity, &bar),
    };
    bar.finish_and_clear();
    let (figures, picture) = match done {
        Ok(done) => done,
        Err(streams) => {
            let most = Allocator::<Sim>::STREAMS_MAX;
            let path = path.display();
            output::complain(&format!("{path}: {streams} streams; at most {most} can be replayed"));
            return (None, EXIT_USAGE);
        }
    };
    if let Some((event, error)) = &figures.failure {
        output::complain(&format!("{}: event {event}: {error}", path.display()));
    }
    let mut status = if figures.failure.is_some() { EXIT_FAILED } else { 0 };
    if let Some((path, picture)) = args.plot.as_ref().zip(picture)
        && let Err(error) = std::fs::write(path, picture)
    {
        output::complain(&format!("--plot: {}: {error}", path.display()));
        status = EXIT_FAILED;
    }
    if args.format == Format::Json {
        return (Some(output::json_line(&object(args, &name, &figures))), status);
    }
    rows.push(row(&name, &figures));
    (None, status)
}

/// The figures of a trace, and its picture if there is to be one.
///
/// # Errors
/// As [`measure::measure`].
fn run_and_draw<D: Device>(
    args: &ReplayArgs,
    setup: &Setup,
    trace: &Trace,
    name: &str,
    make: impl Fn(Bytes) -> D,
    bar: &ProgressBar,
) -> Result<(Figures, Option<String>), usize> {
    let figures = measure::measure(trace, setup, &make, bar)?;
    if args.plot.is_none() {
        return Ok((figures, None));
    }
    let events = trace.events.len();
    let mut live = Curve::new("live", "live", events);
    let after = measure::live_bytes(&trace.events);
    after.enumerate().for_each(|(index, bytes)| live.add(index, bytes));
    let mut torch = Config::torch();
    torch.expandable_segments = setup.config.expandable_segments;
    let reserved = |class, label: &str, config: &Config| {
        let mut curve = Curve::new(class, label, events);
        let setup = Setup { config: config.clone(), ..*setup };
        let bench = Bench::new(trace, &setup, &make, bar)?;
        bench.observe(|index, bytes| curve.add(index, bytes));
        Ok::<_, usize>(curve)
    };
    let mut curves = vec![live];
    if setup.config != torch {
        curves.push(reserved("rival", "PyTorch's policy", &torch)?);
    }
    let label = format!("policy {}", args.policy.policy.name());
    curves.push(reserved("own", &label, &setup.config)?);
    let title = format!("{name}: memory reserved from the device");
    Ok((figures, Some(plot::svg(&title, &curves))))
}

/// The file's name without the endings of a trace.
fn trace_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let endings = [".mtrace", ".pickle", ".json", ".csv"];
    endings.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
}

/// The figures as a JSON object.
fn object(args: &ReplayArgs, name: &str, figures: &Figures) -> [(&'static str, Value); 22] {
    let calls = call_counts(&figures.calls).map(|(name, count)| (name.to_owned(), count.into()));
    let failed = figures.failure.as_ref().map(|(event, _)| *event);
    let over_live =
        |bytes: Option<Bytes>| output::rounded(bytes.and_then(|bytes| figures.over_live(bytes)), 4);
    let per_1000 =
        |calls: Option<u64>| output::rounded(calls.and_then(|calls| figures.per_1000(calls)), 3);
    [
        ("trace", name.into()),
        ("policy", args.policy.policy.name().into()),
        ("backend", args.backend.name().into()),
        ("events", figures.events.into()),
        ("allocations", figures.allocations.into()),
        ("peak_live_bytes", figures.peak_live.into()),
        ("peak_allocated_bytes", figures.peak_allocated.into()),
        ("peak_active_bytes", figures.peak_active.into()),
        ("peak_reserved_bytes", figures.peak_reserved.into()),
        ("mean_reserved_over_mean_live", output::rounded(figures.mean_ratio, 4)),
        ("min_capacity_bytes", figures.min_capacity.into()),
        ("reserved_over_live", over_live(Some(figures.peak_reserved))),
        ("min_capacity_over_live", over_live(figures.min_capacity)),
        ("backend_calls", Value::Object(calls.into_iter().collect())),
        ("calls_per_1000", per_1000(Some(call_count(&figures.calls)))),
        ("maps_unmaps_per_1000", per_1000(Some(figures.calls.map + figures.calls.unmap))),
        ("calls_per_1000_warm", per_1000(figures.calls_warm)),
        ("calls_per_1000_min_capacity", per_1000(figures.calls_min_capacity)),
        ("oom", failed.is_some().into()),
        ("oom_event", failed.into()),
        ("ns_per_event_cold", output::rounded(figures.cold, 1)),
        ("ns_per_event_warm", output::rounded(figures.warm, 1)),
    ]
}

fn heading() -> Vec<String> {
    let titles = [
        "trace",
        "events",
        "allocations",
        "live",
        "allocated",
        "active",
        "reserved",
        "/live",
        "mean/mean",
        "min device",
        "/live",
        "ns cold",
        "ns warm",
        "calls/1000",
        "maps/1000",
        "warm",
        "in min",
        "result",
        "backend calls",
    ];
    titles.map(str::to_owned).to_vec()
}

/// The figures as a row of the table.
fn row(name: &str, figures: &Figures) -> Vec<String> {
    let per_1000 = |calls: Option<u64>| calls.and_then(|calls| figures.per_1000(calls));
    let number = |number: Option<f64>, digits: usize| {
        number.map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
    };
    let calls = call_counts(&figures.calls);
    let calls = calls.iter().filter(|(_, count)| *count > 0);
    let calls: Vec<_> = calls.map(|(name, count)| format!("{name} {count}")).collect();
    let result = match &figures.failure {
        Some((event, _)) => format!("OOM at {event}"),
        None => "done".to_owned(),
    };
    vec![
        name.to_owned(),
        figures.events.to_string(),
        figures.allocations.to_string(),
        format_bytes(figures.peak_live),
        format_bytes(figures.peak_allocated),
        format_bytes(figures.peak_active),
        format_bytes(figures.peak_reserved),
        number(figures.over_live(figures.peak_reserved), 4),
        number(figures.mean_ratio, 4),
        figures.min_capacity.map_or_else(|| "-".to_owned(), format_bytes),
        number(figures.min_capacity.and_then(|bytes| figures.over_live(bytes)), 4),
        number(figures.cold, 1),
        number(figures.warm, 1),
        number(per_1000(Some(call_count(&figures.calls))), 2),
        number(per_1000(Some(figures.calls.map + figures.calls.unmap)), 2),
        number(per_1000(figures.calls_warm), 2),
        number(per_1000(figures.calls_min_capacity), 2),
        result,
        if calls.is_empty() { "-".to_owned() } else { calls.join(", ") },
    ]
}
