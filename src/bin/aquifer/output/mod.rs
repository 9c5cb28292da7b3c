//! What the program says: JSON lines and tables on standard output, complaints on standard error.

#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// How figures are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns with sizes in binary units, for people
    Table,
    /// One object a line with sizes in bytes, for programs
    Json,
}

/// Writes text and a line break to standard output.
///
/// # Errors
/// If it could not be written; [`give_up`] knows what to do then.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush())
}

/// The exit code after a failed [`print`]: `status` if the reader went away, as `head` does when
/// it has seen enough; 1, with a complaint, for anything else.
pub(crate) fn give_up(error: &io::Error, status: u8) -> u8 {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return status;
    }
    complain(&format!("standard output: {error}"));
    status.max(1)
}

/// One line on standard error; line breaks in it become spaces.
pub(crate) fn complain(message: &str) {
    let line = message.lines().collect::<Vec<_>>().join(" ");
    // Nobody is left to be told if this fails.
    let _ = writeln!(io::stderr(), "aquifer: {line}");
}

/// A progress bar on standard error that is shown only on a terminal.
pub(crate) fn progress(steps: u64, name: &str) -> ProgressBar {
    let bar = ProgressBar::new(steps);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(name.to_owned());
    // Nothing is drawn by a thread of its own: that would show in what is timed.
    bar.tick();
    bar
}

/// An object on one line, with its keys in the given order.
pub(crate) fn json_line(fields: &[(&str, Value)]) -> String {
    let fields = fields.iter().map(|(key, value)| format!("{}:{value}", Value::from(*key)));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

/// A number with so many digits after the point; `null` where there is none.
pub(crate) fn rounded(number: Option<f64>, digits: i32) -> Value {
    let scale = 10f64.powi(digits);
    number.map_or(Value::Null, |number| Value::from((number * scale).round() / scale))
}

/// Nanoseconds for each of `count`; `None` for none.
pub(crate) fn nanoseconds_each(time: Duration, count: usize) -> Option<f64> {
    (count > 0).then(|| time.as_nanos() as f64 / count as f64)
}

/// Rows below each other: the first and the last column start at the left, numbers between them end
/// at the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            let left = column == 0 || column + 1 == columns;
            if left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
