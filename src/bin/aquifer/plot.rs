//! A picture of one replay: memory over time, as an SVG that any browser shows.
//!
//! ```text
//!   GiB ▲           ┌───────────┐            PyTorch's policy, reserved
//!       │     ┌─────┘ ┌─────────┴───┐        this policy, reserved
//!       │ ┌───┘ ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒        live: what the program asked for
//!       └─┴──────────────────────────▶ events
//! ```
//!
//! A curve has at most [`STEPS_MAX`] steps. Each stands for as many events as any other, and is as
//! high as the highest point among them: peaks are never averaged away. Colours follow the
//! reader's light or dark scheme.

#[cfg(test)]
mod tests;

use std::fmt::Write;

use aquifer::Bytes;

/// The most steps of a curve: more than the picture has pixels would show nothing more.
const STEPS_MAX: usize = 1000;

/// The picture, in pixels, and the frame of the curves in it.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 846.0;
const TOP: f64 = 58.0;
const BOTTOM: f64 = 292.0;

/// Pixels from one entry of the legend to the next: the mark, a gap, and a character's width.
const MARK: f64 = 26.0;
const CHARACTER: f64 = 7.0;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1f2328}
.title{font-weight:600}
.grid{stroke:#d1d9e0;stroke-width:1}
.line{fill:none;stroke-width:1.6}
.live{fill:#c8cdd3;stroke:none}
.own{stroke:#0969da}
.rival{stroke:#bc4c00;stroke-dasharray:5 2}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#3d444d}
.live{fill:#4b535d}.own{stroke:#58a6ff}.rival{stroke:#f0883e}}";

/// A step curve over the events of a trace.
#[derive(Debug)]
pub(crate) struct Curve {
    /// The class that colours it: `live`, `own` or `rival`.
    class: &'static str,
    label: String,
    events: usize,
    /// The highest point of each stretch of events, as far as the run got.
    steps: Vec<Bytes>,
}

impl Curve {
    /// A curve without a point yet, over a trace of so many events.
    pub(crate) fn new(class: &'static str, label: &str, events: usize) -> Self {
        Self { class, label: label.to_owned(), events, steps: Vec::new() }
    }

    /// The value after the event of this index; indices ascend.
    pub(crate) fn add(&mut self, index: usize, value: Bytes) {
        let step = index * self.count() / self.events;
        match self.steps.get_mut(step) {
            Some(highest) => *highest = value.max(*highest),
            None => self.steps.resize(step + 1, value),
        }
    }

    /// How many steps it has when it is complete.
    fn count(&self) -> usize {
        self.events.min(STEPS_MAX)
    }

    fn highest(&self) -> Bytes {
        self.steps.iter().copied().max().unwrap_or(0)
    }

    /// It as a path, with `height` bytes at the top of the frame; an area goes down to the axis.
    fn path(&self, height: f64) -> String {
        let x = |step: usize| LEFT + (RIGHT - LEFT) * step as f64 / self.count().max(1) as f64;
        let y = |value: Bytes| BOTTOM - (BOTTOM - TOP) * value as f64 / height;
        let is_area = self.class == "live";
        let mut path = format!("M{LEFT} {BOTTOM}");
        let mut last = None;
        for (step, &value) in self.steps.iter().enumerate() {
            if last == Some(value) {
                continue;
            }
            if last.is_none() && !is_area {
                path = format!("M{LEFT} {:.1}", y(value));
            } else {
                let _ = write!(path, "H{:.1}V{:.1}", x(step), y(value));
            }
            last = Some(value);
        }
        let _ = write!(path, "H{:.1}", x(self.steps.len()));
        if is_area {
            let _ = write!(path, "V{BOTTOM}Z");
        }
        path
    }
}

/// The whole picture; curves lie over those before them.
pub(crate) fn svg(title: &str, curves: &[Curve]) -> String {
    let events = curves.iter().map(|curve| curve.events).max().unwrap_or(0);
    let highest = curves.iter().map(Curve::highest).max().unwrap_or(0).max(1) as f64;
    let (unit, unit_bytes) = unit(highest);
    let step = tick(highest / unit_bytes);
    let height = (highest / unit_bytes / step).ceil() * step;
    let title = escape(title);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n\
         <text class=\"title\" x=\"{LEFT}\" y=\"20\">{title}</text>\n"
    );
    legend(&mut out, curves);
    for value in ticks(height, step) {
        let y = BOTTOM - (BOTTOM - TOP) * value / height;
        let _ = writeln!(
            out,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 4.5,
            number(value)
        );
    }
    events_axis(&mut out, events);
    let _ = writeln!(out, "<text x=\"8\" y=\"{:.0}\">{unit}</text>", TOP - 14.0);
    for curve in curves {
        let class = if curve.class == "live" { "live" } else { &format!("line {}", curve.class) };
        let _ =
            writeln!(out, "<path class=\"{class}\" d=\"{}\"/>", curve.path(height * unit_bytes));
    }
    out.push_str("</svg>\n");
    out
}

/// Names of the curves, in one row, each with its peak.
fn legend(out: &mut String, curves: &[Curve]) {
    let mut x = LEFT;
    for curve in curves {
        let peak = aquifer::report::format_bytes(curve.highest());
        let label = format!("{}, peak {peak}", curve.label);
        let mark = match curve.class {
            "live" => format!("<path class=\"live\" d=\"M{x:.0} 33h20v10h-20z\"/>"),
            class => format!("<path class=\"line {class}\" d=\"M{x:.0} 38h20\"/>"),
        };
        let text = x + MARK;
        let _ = writeln!(out, "{mark}<text x=\"{text:.0}\" y=\"42\">{}</text>", escape(&label));
        x += MARK + CHARACTER * (label.chars().count() + 2) as f64;
    }
}

/// Ticks and the name of the horizontal axis.
fn events_axis(out: &mut String, events: usize) {
    let (scale, name) = if events >= 10_000 { (1e3, "thousand events") } else { (1.0, "events") };
    let total = (events as f64 / scale).max(1.0);
    for value in ticks(total, tick(total)) {
        let x = LEFT + (RIGHT - LEFT) * value / total;
        let _ = writeln!(
            out,
            "<path class=\"grid\" d=\"M{x:.1} {BOTTOM}v5\"/>\
             <text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
            BOTTOM + 20.0,
            number(value)
        );
    }
    let middle = LEFT.midpoint(RIGHT);
    let y = HEIGHT - 8.0;
    let _ = writeln!(
        out,
        "<text x=\"{middle:.0}\" y=\"{y:.0}\" text-anchor=\"middle\">{name}: allocations, frees, \
         uses</text>"
    );
}

/// The binary unit in which so many bytes read well.
fn unit(bytes: f64) -> (&'static str, f64) {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let units = units.map(|(name, shift)| (name, (1u64 << shift) as f64));
    units.into_iter().find(|(_, size)| bytes >= *size).unwrap_or(("bytes", 1.0))
}

/// A round distance between ticks, of which about six reach up to `most`.
fn tick(most: f64) -> f64 {
    let rough = most / 6.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|part| part * power);
    step.into_iter().find(|step| *step >= rough * 0.999).unwrap_or(10.0 * power)
}

/// 0, `step`, twice that … up to `most`.
fn ticks(most: f64, step: f64) -> impl Iterator<Item = f64> {
    (0..=(most / step + 1e-6) as u32).map(move |count| f64::from(count) * step)
}

/// Without digits that say nothing.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
