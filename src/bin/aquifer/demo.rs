//! `aquifer demo`: training is done and the process lives on. Where is its memory, who holds it,
//! and how does one get it back?
//!
//! A linear layer of 1000 × 1000 with Adam is trained for some steps, then deleted; the allocator
//! is asked before, between and after. Nothing here keeps books of its own: every number is the
//! allocator's, except the loss, the time, and what the system says of the process.
//!
//! | file      | what it owns |
//! |-----------|--------------|
//! | `moments` | what is asked, and when |
//! | `host`    | the experiment on memory of this machine |
//! | `gpu`     | the experiment on a GPU by Vulkan, Metal or DX12 |
//! | `cuda`    | the experiment on a CUDA device |
//! | `check`   | a GPU's results against those of the CPU |
//! | `report`  | what was seen, as text and as JSON |

#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod check;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "wgpu")]
mod gpu;
mod host;
mod moments;
mod report;

use std::error::Error;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use aquifer::backend::Backend;
use aquifer::report::html::HtmlOptions;
use aquifer::{Allocator, HistoryOptions};
use indicatif::{ProgressBar, ProgressStyle};

use crate::linear::Shape;
use crate::{output, report as report_file};
use report::Report;

const SHAPE: Shape = Shape { inputs: 1000, outputs: 1000 };

/// Batches of data; training goes round.
const BATCHES: usize = 4;

/// The job failed.
const EXIT_FAILED: u8 = 1;

/// What helps where there is no GPU.
#[cfg(feature = "wgpu")]
const ADVICE: &str = "Install the Vulkan driver of the GPU (mesa-vulkan-drivers on Debian and \
                      Ubuntu; it has one for the CPU, too)";

/// What helps where there is no NVIDIA GPU to be had.
#[cfg(feature = "cuda")]
const CUDA_ADVICE: &str = "Install NVIDIA's driver for the GPU; nothing else of CUDA is needed";

/// What helps where there is no GPU of any kind that was built.
const WHAT_HELPS: &str = {
    #[cfg(feature = "wgpu")]
    let advice = ADVICE;
    #[cfg(all(feature = "cuda", not(feature = "wgpu")))]
    let advice = CUDA_ADVICE;
    #[cfg(not(any(feature = "cuda", feature = "wgpu")))]
    let advice = "Build with the feature wgpu or cuda";
    advice
};

/// How to train, and how to tell.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Training steps.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Samples in a batch.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Keep the losses and activations of all steps, as `losses.append(loss)` does in PyTorch.
    #[arg(long)]
    leak: bool,
    /// Record all that happens to memory, and write a page of HTML that shows it.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Whose memory to use; that of the first that there is, in this order, unless given.
    #[arg(long, value_enum)]
    backend: Option<BackendChoice>,
    /// Of the data and of the layer's first weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A table with explanations.
    Text,
    /// One object.
    Json,
}

/// The backends that the demo can run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum BackendChoice {
    /// An NVIDIA GPU's, by CUDA; CUDA_VISIBLE_DEVICES says which.
    #[cfg(feature = "cuda")]
    Cuda,
    /// The GPU's, by Vulkan, Metal or DX12; WGPU_BACKEND says which of them are tried.
    #[cfg(feature = "wgpu")]
    Wgpu,
    /// This machine's.
    Host,
}

/// Trains, deletes, and prints what became of the memory. Fails if the loss did not fall, or if the
/// GPU's results are not those of the CPU.
pub(crate) fn run(args: DemoArgs) -> ExitCode {
    let report = match observe(&args) {
        Ok(report) => report,
        Err(error) => {
            output::complain(&error.to_string());
            return ExitCode::from(EXIT_FAILED);
        }
    };
    let text = match args.format {
        Format::Text => report.to_text(&args),
        Format::Json => format!("{:#}", report.to_json(&args)),
    };
    let failures = failures(&report, args.steps);
    let status = if failures.is_empty() { 0 } else { EXIT_FAILED };
    if let Err(error) = output::print(text.trim_end()) {
        return ExitCode::from(output::give_up(&error, status));
    }
    failures.iter().for_each(|failure| output::complain(failure));
    ExitCode::from(status)
}

/// Records from now on, if a page is wanted.
fn record<B: Backend>(args: &DemoArgs, memory: &Allocator<B>) {
    if args.report.is_some() {
        memory.record_history(HistoryOptions::default());
    }
}

/// Writes the page, if one is wanted: what was recorded, up to now.
///
/// # Errors
/// If the file could not be written.
fn write_report<B: Backend>(args: &DemoArgs, memory: &Allocator<B>) -> Result<(), Box<dyn Error>> {
    let Some(path) = &args.report else { return Ok(()) };
    let title = if args.leak { "aquifer demo --leak" } else { "aquifer demo" };
    let options = HtmlOptions { title: title.to_owned(), ..HtmlOptions::default() };
    let written = report_file::write(&memory.memory_snapshot(), &options, path);
    written.map_err(|error| format!("--report: {}: {error}", path.display()).into())
}

/// What is not as it must be.
fn failures(report: &Report, steps: u32) -> Vec<String> {
    let mut failures = Vec::new();
    let (first, last) = report.loss;
    let has_fallen = last < first;
    if !has_fallen {
        failures
            .push(format!("the loss did not fall: {first} at first, {last} after {steps} steps"));
    }
    if let Some(off) = report.deviation.filter(|deviation| !deviation.is_allowed()) {
        failures.push(format!("the GPU's results are not those of the CPU: {}", off.figures()));
    }
    failures
}

/// The experiment where the arguments want it.
fn observe(args: &DemoArgs) -> Result<Report, Box<dyn Error>> {
    match args.backend {
        Some(BackendChoice::Host) => host::observe(args),
        #[cfg(feature = "cuda")]
        Some(BackendChoice::Cuda) => {
            let device = cuda::open().map_err(|error| format!("{error}. {CUDA_ADVICE}"))?;
            cuda::observe(device, args)
        }
        #[cfg(feature = "wgpu")]
        Some(BackendChoice::Wgpu) => {
            let memory = gpu::open().map_err(|error| format!("{error}. {ADVICE}"))?;
            gpu::observe(&memory, args)
        }
        None => observe_best(args),
    }
}

/// The experiment on a GPU if there is one, and else on memory of this machine. An NVIDIA GPU is
/// used by CUDA, which knows more of its memory than Vulkan does.
fn observe_best(args: &DemoArgs) -> Result<Report, Box<dyn Error>> {
    let mut missing: Vec<String> = Vec::new();
    #[cfg(feature = "cuda")]
    match cuda::open() {
        Ok(device) => return cuda::observe(device, args),
        Err(reason) if cfg!(feature = "wgpu") && reason.is_usual() => {}
        Err(reason) => missing.push(format!("{reason}. ")),
    }
    #[cfg(feature = "wgpu")]
    match gpu::open() {
        Ok(memory) => {
            // There is an NVIDIA GPU, say, and its driver is too old.
            missing.iter().for_each(|reason| output::complain(&format!("{reason}Using wgpu")));
            return gpu::observe(&memory, args);
        }
        Err(reason) => missing.push(format!("{reason}. ")),
    }
    if missing.is_empty() {
        missing.push("built without GPUs. ".to_owned());
    }
    let missing = missing.concat();
    output::complain(&format!("{missing}Using memory of this machine instead. {WHAT_HELPS}"));
    host::observe(args)
}

/// On the terminal, if there is one to look at it.
fn progress(steps: u32, name: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps.into());
    let template = format!("{name} {{bar:40}} {{pos}}/{{len}} {{msg}}");
    match ProgressStyle::with_template(&template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
