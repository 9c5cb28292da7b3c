//! The program `aquifer`: a demonstration, replays of allocation traces, and a stopwatch.
//!
//! | file | what it owns |
//! |------|--------------|
//! | `convert` | recordings from one format into another |
//! | `summary` | what a snapshot holds, as text |
//! | `input`   | recordings of every format, read |
//! | `demo`    | the main job, end to end |
//! | `report`  | a page of HTML from a recording |
//! | `replay`  | traces in, one line of figures out for each |
//! | `measure` | the runs behind these figures |
//! | `plot`    | a picture of memory over time |
//! | `device`  | the backends a replay can run on, with their calls counted |
//! | `bench`   | the time of one allocate and free |
//! | `singles` | the time of single pairs, for their percentiles |
//! | `policy`  | the options that choose a configuration |
//! | `knobs`   | the fields of a configuration by name |
//! | `bytes`   | sizes as people write them |
//! | `random`  | seeded numbers |
//! | `output`  | standard output, JSON lines, tables, complaints |
//!
//! Exit codes: 0 done; 1 the job failed, as when a replay ran out of memory; 2 bad usage or bad
//! input. Each complaint is one line on standard error that starts with `aquifer: `. A reader who
//! closes standard output early ends the work quietly.
// Launching a kernel is unsafe; `linear/launch.rs` does, and nobody else.
#![deny(unsafe_code)]

mod bench;
mod bytes;
mod convert;
mod demo;
mod device;
mod input;
mod knobs;
mod linear;
mod measure;
mod output;
mod plot;
mod policy;
mod random;
mod replay;
mod report;
mod singles;
mod summary;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

/// Bad usage or bad input, as clap has it too.
const EXIT_USAGE: u8 = 2;

/// The job failed.
const EXIT_FAILED: u8 = 1;

/// A caching GPU memory allocator, tried out.
///
/// `aquifer demo` shows what it is for, on any machine. `aquifer replay` runs recorded allocation
/// traces through it and says how much memory and time they took. `aquifer bench` measures one
/// allocate and free. `aquifer report`, `aquifer summary` and `aquifer convert` read what programs
/// recorded (PyTorch's snapshots, traces, logs of RMM): as a page of HTML that shows who holds
/// memory, and when; as text; as a file of another format.
///
/// Exit codes: 0 done; 1 the job failed (a replay ran out of memory); 2 bad usage or bad input.
#[derive(Debug, Parser)]
#[command(name = "aquifer", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Report(report::ReportArgs),
    Replay(replay::ReplayArgs),
    Bench(bench::BenchArgs),
    Convert(convert::ConvertArgs),
    Summary(summary::SummaryArgs),
}

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return refuse(&error),
    };
    match command {
        Command::Demo(args) => demo::run(args),
        Command::Report(args) => report::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Summary(args) => summary::run(&args),
    }
}

/// Prints help where help was asked for, and otherwise what is wrong, on one line.
fn refuse(error: &clap::Error) -> ExitCode {
    let no_command = ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !error.use_stderr() || error.kind() == no_command {
        // A closed pipe is no reason to fail: there is nothing else to do.
        let _ = error.print();
    } else {
        output::complain(&on_one_line(&error.render().to_string()));
    }
    ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 })
}

/// clap's message without its usage section, its lines joined.
fn on_one_line(message: &str) -> String {
    let said = message.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let said = said.filter(|line| !line.is_empty() && !line.starts_with("For more information"));
    let line = said.collect::<Vec<_>>().join(" ");
    format!("{} (see --help)", line.strip_prefix("error: ").unwrap_or(&line))
}
