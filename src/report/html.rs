//! A snapshot and its history as one page of HTML that opens from disk, without a network.
//!
//! ```text
//!   Snapshot ─▶ story: lives of blocks and ranges ─▶ course: sums, peaks, holes
//!                                 └───────┬──────────────┘
//!                                       pack: JSON, columns in base64 ─▶ template + CSS + JS
//! ```
//!
//! The page is drawn by hand on canvases, with no library. It needs two charts and one map, all of
//! them over millions of events, where a general library would be slower and, at a quarter of a MiB
//! and more, larger than most reports; a page that is kept for years depends on nobody, and all of
//! its source can be read here, in `html/*.js`.
//!
//! What comes from the program that is reported on (files, functions, tags, names) is never markup:
//! it is escaped here, and set as text there. The page forbids itself every network access.
//!
//! The same snapshot gives the same bytes. Cost: O(events · log blocks) time, about 5 bytes of
//! HTML and 60 bytes of memory an event; nothing of the allocator is locked.

mod columns;
mod course;
mod pack;
mod story;
// They read the data of a page as JSON.
#[cfg(all(test, feature = "cli"))]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::report::format_bytes;
use crate::report::history::call_site;
use crate::report::holders::Holder;
use crate::report::snapshot::{BlockState, Snapshot};
use crate::units::Bytes;
use columns::escape;
use course::Course;
use story::Story;

const TEMPLATE: &str = include_str!("html/page.html");
const STYLE: &str = include_str!("html/page.css");
const SCRIPT: &[&str] = &[
    include_str!("html/model.js"),
    include_str!("html/chart.js"),
    include_str!("html/map.js"),
    include_str!("html/page.js"),
];

/// So many holders are named in the first sentence.
const NAMED: usize = 3;

/// Where blocks come from of which the history does not say it.
const UNKNOWN: &str = "an unknown place";

/// What a report is called, and what its times mean.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HtmlOptions {
    /// The page's title; what the device is, if it is empty.
    pub title: String,
    /// What [`Event::time_us`](crate::report::history::Event::time_us) counts.
    pub clock: Clock,
}

/// What times count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Clock {
    /// Microseconds.
    #[default]
    Microseconds,
    /// Events of the trace that was replayed: it has no times.
    Events,
}

impl Clock {
    fn name(self) -> &'static str {
        match self {
            Clock::Microseconds => "us",
            Clock::Events => "event",
        }
    }
}

impl Snapshot {
    /// Writes a page that shows who holds memory and how it came to that: the timeline, every
    /// segment at any moment, holders at the peak and at the end. It opens from disk in any
    /// browser, and loads nothing.
    ///
    /// How it came to that is in [`Snapshot::history`]; without one there is the one moment.
    ///
    /// ```
    /// use aquifer::{Allocator, Config, HistoryOptions, backend::Host};
    ///
    /// let allocator = Allocator::new(Host::new(), Config::default());
    /// allocator.record_history(HistoryOptions::default());
    /// let held = allocator.allocate(1000)?;
    /// let mut page = Vec::new();
    /// allocator.memory_snapshot().write_html(&mut page)?;
    /// assert!(page.starts_with(b"<!doctype html>"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// A failure of `output`.
    pub fn write_html(&self, output: impl Write) -> io::Result<()> {
        self.write_html_with(&HtmlOptions::default(), output)
    }

    /// As [`write_html`](Self::write_html), with a title and a clock.
    ///
    /// # Errors
    /// A failure of `output`.
    pub fn write_html_with(&self, options: &HtmlOptions, mut output: impl Write) -> io::Result<()> {
        let story = Story::of(self);
        let course = Course::of(&story);
        let named = if options.title.is_empty() { &self.device_name } else { &options.title };
        let title = if named.is_empty() { "a device" } else { named };
        let device = if named == &self.device_name { "" } else { &self.device_name };
        let data = pack::pack(self, &story, &course, options);
        let script = SCRIPT.concat();
        let texts: &[(&str, &str)] = &[
            ("{{title}}", &escape(title)),
            ("{{style}}", STYLE),
            ("{{name}}", &escape(title)),
            ("{{device}}", &escape(device)),
            ("{{sentence}}", &escape(&self.sentence())),
            ("{{facts}}", &self.facts(&story, &course)),
            ("{{settings}}", &self.settings_rows(options)),
            ("{{data}}", &data),
            ("{{script}}", &script),
        ];
        // What was filled in is not looked at again: a tag may well be called `{{data}}`.
        let mut rest = TEMPLATE;
        for (mark, text) in texts {
            let (before, after) =
                rest.split_once(mark).expect("the template has every mark, in order");
            output.write_all(before.as_bytes())?;
            output.write_all(text.as_bytes())?;
            rest = after;
        }
        output.write_all(rest.as_bytes())?;
        output.flush()
    }

    /// Who holds memory, in one sentence.
    fn sentence(&self) -> String {
        let holders = self.holders();
        if holders.is_empty() {
            return "At the end nothing is held.".to_owned();
        }
        let bytes = holders.iter().map(|holder| holder.bytes).fold(0, Bytes::saturating_add);
        let count: u64 = holders.iter().map(|holder| holder.count).sum();
        let (bytes, verb) = (format_bytes(bytes), if count == 1 { "is" } else { "are" });
        if let [Holder { location, tag: None, .. }] = &holders[..]
            && location == UNKNOWN
        {
            let blocks = if count == 1 { "block" } else { "blocks" };
            let count = grouped(count);
            return format!(
                "At the end {bytes} {verb} held in {count} {blocks}; it is not known by whom."
            );
        }
        let named: Vec<String> = holders.iter().take(NAMED).map(Holder::to_string).collect();
        let others = match holders.len().saturating_sub(NAMED) {
            0 => String::new(),
            1 => "; and 1 other".to_owned(),
            count => format!("; and {count} others"),
        };
        format!("At the end {bytes} {verb} held: {}{others}.", named.join("; "))
    }

    /// What users hold, by the innermost call and the tag; largest first.
    fn holders(&self) -> Vec<Holder> {
        let mut sums: BTreeMap<(String, Option<&str>), (u64, u64)> = BTreeMap::new();
        let blocks = self.segments.iter().flat_map(|segment| &segment.blocks);
        for block in blocks.filter(|block| block.state == BlockState::Allocated) {
            let frame = call_site(&block.frames).map(|at| &block.frames[at]);
            let place =
                frame.map_or(UNKNOWN.to_owned(), |frame| format!("{}:{}", frame.file, frame.line));
            let sum = sums.entry((place, block.tag.as_deref())).or_default();
            *sum = (sum.0.saturating_add(block.size), sum.1 + 1);
        }
        let mut holders: Vec<Holder> = sums
            .into_iter()
            .map(|((location, tag), (bytes, count))| Holder {
                bytes,
                count,
                location,
                tag: tag.map(str::to_owned),
                age: None,
            })
            .collect();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.bytes));
        holders
    }

    /// The figures at the top, as rows of a description list.
    fn facts(&self, story: &Story, course: &Course) -> String {
        let bytes = |bytes: Option<u64>, none: &str| bytes.map_or(none.to_owned(), format_bytes);
        let facts = [
            ("held", "Held at the end", Some(course.end.allocated), ""),
            ("reserved", "Reserved at the end", Some(course.end.reserved), ""),
            ("peak", "Most held", Some(course.allocated_peak.bytes), ""),
            ("peak-reserved", "Most reserved", Some(course.reserved_peak.bytes), ""),
            ("limit", "Limit", self.limit, "none"),
            ("total", "Memory of the device", self.device_total, "not told"),
        ];
        let row = |id: &str, name: &str, text: &str, value: String| {
            format!(
                "<div><dt>{name}</dt>\
                 <dd id=\"fact-{id}\" data-value=\"{value}\">{text}</dd></div>\n"
            )
        };
        let rows = facts.map(|(id, name, value, none)| {
            let number = value.map_or(String::new(), |value| value.to_string());
            row(id, name, &bytes(value, none), number)
        });
        let count = self.history.len();
        let segments = self.segments.len();
        let before = story.blocks.before.len() - story.pending_before.len();
        let mut rows = rows.concat();
        rows += &row("events", "Events", &grouped(count as u64), count.to_string());
        rows += &row("segments", "Segments", &grouped(segments as u64), segments.to_string());
        if before > 0 {
            let text = format!(
                "{} blocks, {}",
                grouped(before as u64),
                format_bytes(course.start.allocated)
            );
            rows += &row("before", "Held before the first event", &text, before.to_string());
        }
        rows
    }

    /// Settings by name, as rows of a table.
    fn settings_rows(&self, options: &HtmlOptions) -> String {
        let clock = match options.clock {
            Clock::Microseconds => "microseconds",
            Clock::Events => "events of the trace, which has no times",
        };
        let mut rows = vec![
            ("device", self.device.to_string()),
            ("device name", self.device_name.clone()),
            ("clock", clock.to_owned()),
        ];
        let settings = self.settings.split(',').filter(|setting| !setting.trim().is_empty());
        for setting in settings {
            let (name, value) = setting.split_once(':').unwrap_or((setting, ""));
            rows.push((name, value.to_owned()));
        }
        let row = |(name, value): (&str, String)| {
            format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", escape(name), escape(&value))
        };
        rows.into_iter().map(row).collect()
    }
}

/// With a comma before every three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
