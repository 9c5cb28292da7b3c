//! `aquifer demo`: training is done and the process lives on. Where is its memory, who holds it,
//! and how does one get it back?
//!
//! A linear layer of 1000 × 1000 with Adam is trained for some steps, then deleted; the allocator
//! is asked before, between and after. Nothing here keeps books of its own: every number is the
//! allocator's, except the loss and the resident size of the process, which is the system's.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use aquifer::backend::{Backend, Host, HostVisible, resident_bytes};
use aquifer::report::format_bytes;
use aquifer::report::holders::Holder;
use aquifer::{AllocError, Allocator, Bytes, Config};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::linear::{Adam, Forward, Linear, Memory, Random, Shape, generate};
use crate::output;

const SHAPE: Shape = Shape { inputs: 1000, outputs: 1000 };

/// Batches of data; training goes round.
const BATCHES: usize = 4;

/// The columns and the call, for those who know them from PyTorch.
const MEANINGS: &str = "
allocated    what tensors hold (PyTorch: memory_allocated)
reserved     what the process has from the device, cache included; other programs
             cannot use it (PyTorch: memory_reserved)
empty_cache  gives back what no tensor holds (PyTorch: empty_cache)
";

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
    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Whose memory to use.
    #[arg(long, value_enum, default_value_t = BackendChoice::Host)]
    backend: BackendChoice,
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
    /// Memory of this machine.
    Host,
}

impl BackendChoice {
    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
        }
    }
}

/// What the allocator says at one moment, in bytes.
#[derive(Debug, Clone, Copy)]
struct Moment {
    allocated: Bytes,
    reserved: Bytes,
}

impl Moment {
    fn of<B: Backend>(allocator: &Allocator<B>) -> Self {
        Self { allocated: allocator.memory_allocated(), reserved: allocator.memory_reserved() }
    }

    fn to_json(self) -> Value {
        json!({ "allocated_bytes": self.allocated, "reserved_bytes": self.reserved })
    }
}

/// All that was seen.
#[derive(Debug)]
struct Report {
    adapter: String,
    /// Of the first batch, before the first step and after the last.
    loss: (f32, f32),
    before: Moment,
    after_delete: Moment,
    after_empty_cache: Moment,
    /// Who held memory before anything was deleted.
    holders: Vec<Holder>,
    /// Who holds memory at the end.
    held: Vec<Holder>,
    /// Resident size of the process around `empty_cache`; `None` where the system does not tell.
    resident: Option<(Bytes, Bytes)>,
}

/// Trains, deletes, and prints what became of the memory. Fails if the loss did not fall.
pub(crate) fn run(args: DemoArgs) -> ExitCode {
    let observed = match args.backend {
        BackendChoice::Host => observe(&Allocator::new(Host::new(), Config::default()), &args),
    };
    let report = match observed {
        Ok(report) => report,
        Err(error) => {
            output::complain(&error.to_string());
            return ExitCode::FAILURE;
        }
    };
    let text = match args.format {
        Format::Text => report.to_text(&args),
        Format::Json => format!("{:#}", report.to_json(&args)),
    };
    let (first, last) = report.loss;
    let fell = last < first;
    if let Err(error) = output::print(text.trim_end()) {
        return ExitCode::from(output::give_up(&error, u8::from(!fell)));
    }
    if fell {
        return ExitCode::SUCCESS;
    }
    let steps = args.steps;
    output::complain(&format!("the loss did not fall: {first} before {steps} steps, {last} after"));
    ExitCode::FAILURE
}

/// The experiment itself: training, then the allocator's answers while things are deleted.
fn observe<B: HostVisible>(
    allocator: &Allocator<B>,
    args: &DemoArgs,
) -> Result<Report, AllocError> {
    let memory = Memory::new(allocator);
    let mut random = Random(args.seed);
    let data = generate(&memory, SHAPE, (BATCHES, args.batch as usize), &mut random)?;
    let mut model = Linear::new(&memory, SHAPE, &mut random)?;
    let mut optimizer = Adam::new(&memory, &model)?;
    let loss_first = model.forward(&memory, &data[0])?.loss();

    // The classic mistake: a list of losses that keeps what they were computed from.
    let mut history: Vec<Forward<B>> = Vec::new();
    let bar = progress(args.steps);
    for (_, batch) in (0..args.steps).zip(data.iter().cycle()) {
        let forward = optimizer.train(&memory, &mut model, batch)?;
        bar.set_message(format!("loss {:.4}", forward.loss()));
        bar.inc(1);
        if args.leak {
            history.push(forward);
        }
    }
    bar.finish_and_clear();
    let loss_last = model.forward(&memory, &data[0])?.loss();

    let (before, holders) = (Moment::of(allocator), allocator.holders());
    drop((model, optimizer, data));
    let after_delete = Moment::of(allocator);
    let resident_before = resident_bytes();
    allocator.empty_cache();
    let resident = resident_before.zip(resident_bytes());
    let report = Report {
        adapter: allocator.backend().describe(),
        loss: (loss_first, loss_last),
        before,
        after_delete,
        after_empty_cache: Moment::of(allocator),
        holders,
        held: allocator.holders(),
        resident,
    };
    drop(history);
    Ok(report)
}

/// On the terminal, if there is one to look at it.
fn progress(steps: u32) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps.into());
    match ProgressStyle::with_template("training {bar:40} {pos}/{len} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

impl Report {
    fn bytes_returned(&self) -> Option<Bytes> {
        self.resident.map(|(before, after)| before.saturating_sub(after))
    }

    fn to_json(&self, args: &DemoArgs) -> Value {
        let held = |holder: &Holder| {
            let Holder { bytes, count, location, tag, .. } = holder;
            json!({ "bytes": bytes, "count": count, "location": location, "tag": tag })
        };
        json!({
            "backend": args.backend.name(),
            "adapter": self.adapter,
            "steps": args.steps,
            "loss_first": self.loss.0,
            "loss_last": self.loss.1,
            "before": self.before.to_json(),
            "after_delete": self.after_delete.to_json(),
            "after_empty_cache": self.after_empty_cache.to_json(),
            "process_bytes_returned": self.bytes_returned(),
            "held": self.held.iter().map(held).collect::<Vec<_>>(),
        })
    }

    fn to_text(&self, args: &DemoArgs) -> String {
        let Shape { inputs, outputs } = SHAPE;
        let DemoArgs { steps, batch, seed, .. } = args;
        let (first, last) = self.loss;
        let mut text = format!(
            "Training is done, the process lives on. Where is its memory?\n\n\
             memory    {}\n\
             model     linear layer {inputs} x {outputs} with Adam, seed {seed}\n\
             training  {steps} steps of {batch} samples, loss {first:.4} -> {last:.4}\n\n",
            self.adapter,
        );
        text += &self.table(args.leak);
        text += MEANINGS;
        text += "\nWho held it before deleting, by the line of code that asked\n";
        text += &list(&self.holders);
        text += "\nWho holds it still\n";
        text += &list(&self.held);
        if !self.held.is_empty() {
            text += "  To get it back: drop what these lines allocated, then call empty_cache.\n";
            text += "  (With --leak the demo keeps it in a list, as losses.append(loss) does.)\n";
        }
        text += "\n";
        text += &self.resident_line();
        text
    }

    /// The three moments.
    fn table(&self, leak: bool) -> String {
        let kept = if leak { "the rest is still held, see below" } else { "nobody holds anything" };
        let rows = [
            ("before deleting", self.before, "model, optimizer and data are alive"),
            ("after deleting them", self.after_delete, "their memory is cached, for the next one"),
            ("after empty_cache", self.after_empty_cache, kept),
        ];
        let mut text = format!("{:<20} {:>12} {:>12}\n", "", "allocated", "reserved");
        for (name, moment, meaning) in rows {
            let allocated = format_bytes(moment.allocated);
            let reserved = format_bytes(moment.reserved);
            text += &format!("{name:<20} {allocated:>12} {reserved:>12}   {meaning}\n");
        }
        text
    }

    /// What the operating system says about it.
    fn resident_line(&self) -> String {
        let Some((before, after)) = self.resident else {
            return "The system does not tell the resident size of the process.\n".to_owned();
        };
        let returned = format_bytes(before.saturating_sub(after));
        let (before, after) = (format_bytes(before), format_bytes(after));
        format!(
            "empty_cache lowered the resident size of the process from {before} to {after}:\n\
             {returned} really went back to the system.\n"
        )
    }
}

/// One line for each holder.
fn list(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "  nobody\n".to_owned();
    }
    let line = |holder: &Holder| {
        let bytes = format_bytes(holder.bytes);
        let (count, location) = (holder.count, &holder.location);
        let tag = holder.tag.as_deref().unwrap_or("-");
        format!("  {bytes:>12} in {count:>4}   {tag:<12} {location}\n")
    };
    holders.iter().map(line).collect()
}
