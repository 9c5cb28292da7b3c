//! All that was seen, as text and as JSON.

use aquifer::report::format_bytes;
use aquifer::report::holders::Holder;
use serde_json::{Value, json};

use super::moments::Aftermath;
use super::{DemoArgs, SHAPE};
use crate::linear::Shape;
use crate::output;

/// The columns and the call, for those who know them from PyTorch.
const MEANINGS: &str = "
allocated    what tensors hold (PyTorch: memory_allocated)
reserved     what the process has from the device, cache included; other programs
             cannot use it (PyTorch: memory_reserved)
empty_cache  gives back what no tensor holds (PyTorch: empty_cache)
";

/// All that was seen.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) backend: &'static str,
    pub(super) adapter: String,
    /// Of the first batch, before the first step and after the last.
    pub(super) loss: (f32, f32),
    pub(super) ms_per_step: f64,
    pub(super) aftermath: Aftermath,
    /// How far the GPU was off; `None` where the CPU trained.
    pub(super) deviation: Option<Deviation>,
}

/// How far a training was off its reference at most, and how far it may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deviation {
    /// Steps that were compared.
    pub(super) steps: u32,
    /// Of a weight or bias after these steps.
    pub(super) parameter: f32,
    /// Of the loss of a step, as a part of the first step's.
    pub(super) loss: f32,
    /// What is allowed of each.
    pub(super) tolerance: (f32, f32),
}

impl Deviation {
    /// Whether it is what rounding explains; never, if a number is none.
    pub(super) fn is_allowed(&self) -> bool {
        self.parameter <= self.tolerance.0 && self.loss <= self.tolerance.1
    }

    pub(super) fn figures(self) -> String {
        let Self { steps, parameter, loss, .. } = self;
        format!("{steps} steps, parameters off by {parameter:.1e} at most, losses by {loss:.1e}")
    }

    /// Ends with the line that says whether it passed.
    fn to_text(self) -> String {
        let (parameter, loss) = self.tolerance;
        let verdict = if self.is_allowed() { "passed" } else { "FAILED" };
        let figures = self.figures();
        format!(
            "The CPU has trained the same layer. Allowed: parameters off by {parameter:.1e}, \
             losses by {loss:.0e}.\nCheck against the CPU {verdict}: {figures}.\n"
        )
    }
}

impl Report {
    pub(super) fn to_json(&self, args: &DemoArgs) -> Value {
        let held = |holder: &Holder| {
            let Holder { bytes, count, location, tag, .. } = holder;
            json!({ "bytes": bytes, "count": count, "location": location, "tag": tag })
        };
        let Aftermath { before, after_delete, after_empty_cache, .. } = &self.aftermath;
        json!({
            "backend": self.backend,
            "adapter": self.adapter,
            "steps": args.steps,
            "ms_per_step": output::rounded(Some(self.ms_per_step), 3),
            "loss_first": self.loss.0,
            "loss_last": self.loss.1,
            "reference_deviation": self.deviation.map(|deviation| deviation.parameter),
            "reference_loss_deviation": self.deviation.map(|deviation| deviation.loss),
            "before": before.to_json(),
            "after_delete": after_delete.to_json(),
            "after_empty_cache": after_empty_cache.to_json(),
            "process_bytes_returned": self.aftermath.process_bytes_returned(),
            "device_bytes_returned": self.aftermath.device_bytes_returned(),
            "held": self.aftermath.held.iter().map(held).collect::<Vec<_>>(),
        })
    }

    pub(super) fn to_text(&self, args: &DemoArgs) -> String {
        let Shape { inputs, outputs } = SHAPE;
        let DemoArgs { steps, batch, seed, .. } = args;
        let (Self { adapter, ms_per_step, aftermath, .. }, (first, last)) = (self, self.loss);
        let mut text = format!(
            "Training is done, the process lives on. Where is its memory?\n\n\
             memory    {adapter}\n\
             model     linear layer {inputs} x {outputs} with Adam, seed {seed}\n\
             training  {steps} steps of {batch} samples, {ms_per_step:.1} ms each, \
             loss {first:.4} -> {last:.4}\n\n",
        );
        text += &table(aftermath, args.leak);
        text += MEANINGS;
        text += "\nWho held it before deleting, by the line of code that asked\n";
        text += &list(&aftermath.holders);
        text += "\nWho holds it still\n";
        text += &list(&aftermath.held);
        if !aftermath.held.is_empty() {
            text += "  To get it back: drop what these lines allocated, then call empty_cache.\n";
            text += "  (With --leak the demo keeps it in a list, as losses.append(loss) does.)\n";
        }
        text += "\n";
        text += &returned(aftermath);
        if let Some(deviation) = self.deviation {
            text += "\n";
            text += &deviation.to_text();
        }
        text
    }
}

/// The three moments.
fn table(aftermath: &Aftermath, leak: bool) -> String {
    let kept = if leak { "the rest is still held, see below" } else { "nobody holds anything" };
    let rows = [
        ("before deleting", aftermath.before, "model, optimizer and data are alive"),
        ("after deleting them", aftermath.after_delete, "their memory is cached, for the next one"),
        ("after empty_cache", aftermath.after_empty_cache, kept),
    ];
    let mut text = format!("{:<20} {:>12} {:>12}\n", "", "allocated", "reserved");
    for (name, moment, meaning) in rows {
        let allocated = format_bytes(moment.allocated);
        let reserved = format_bytes(moment.reserved);
        text += &format!("{name:<20} {allocated:>12} {reserved:>12}   {meaning}\n");
        if moment.staging > 0 {
            let (staging, meaning) =
                (format_bytes(moment.staging), "of it to bring data to the GPU");
            text += &format!("{:<20} {:>12} {staging:>12}   {meaning}\n", "", "");
        }
    }
    text
}

/// What the operating system or the driver says about it.
fn returned(aftermath: &Aftermath) -> String {
    let Aftermath { resident, driver_free, is_resident, .. } = aftermath;
    let line = |what: &str, (before, after): (u64, u64)| {
        let returned = format_bytes(before.abs_diff(after));
        let (before, after) = (format_bytes(before), format_bytes(after));
        format!("empty_cache {what} from {before} to {after}:\n{returned} really went back")
    };
    match (driver_free, resident) {
        (&Some(free), _) if free.1 >= free.0 => {
            line("raised what the driver has free", free) + " to the driver.\n"
        }
        (_, &Some(resident)) if *is_resident && resident.0 >= resident.1 => {
            line("lowered the resident size of the process", resident) + " to the system.\n"
        }
        _ if *is_resident => "The system does not tell what went back to it.\n".to_owned(),
        _ => "The driver does not tell what went back to it.\n".to_owned(),
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
        format!("  {bytes:>12} in {count:>4}   {tag:<13} {location}\n")
    };
    holders.iter().map(line).collect()
}
