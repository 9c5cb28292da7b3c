//! Live bytes by call stack, for viewers of profiles: folded stacks, speedscope, DHAT.
//!
//! ```text
//!   folded       main (main.rs:3);layer (net.rs:9);[weights] 67108864      a line for each stack
//!   speedscope   the same as samples weighted in bytes: one profile at the peak, one at the end
//!   DHAT         bytes and blocks of each stack: in all, at the peak, at the end
//! ```
//!
//! The outermost call comes first; a tag is the innermost frame. Sizes are as asked for.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::json::write_text;
use super::out::Out;
use crate::report::history::Frame;
use crate::report::lives::{Life, at_peak, lives};
use crate::report::snapshot::Snapshot;
use crate::units::Bytes;

/// When a profile is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum When {
    /// At the end: now, when the snapshot was taken.
    #[default]
    Now,
    /// When the most bytes were live, as far back as the history goes.
    Peak,
}

/// Bytes and blocks.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    bytes: Bytes,
    blocks: u64,
}

impl Sum {
    fn add(&mut self, life: &Life<'_>) {
        self.bytes = self.bytes.saturating_add(life.size);
        self.blocks += 1;
    }
}

/// What is known of one stack.
#[derive(Debug, Default)]
struct Site {
    /// Of all lives.
    total: Sum,
    /// Microseconds that its blocks lived, together.
    lived_us: u64,
    peak: Sum,
    now: Sum,
}

struct Sites {
    /// By frames, the outermost first.
    sites: BTreeMap<Vec<String>, Site>,
    start_us: u64,
    peak_us: u64,
    end_us: u64,
}

impl Sites {
    fn of(snapshot: &Snapshot) -> Self {
        let lives = lives(snapshot);
        let (alive, _) = at_peak(&lives);
        let history = &snapshot.history;
        let start_us = history.first().map_or(0, |event| event.time_us);
        let end_us = history.last().map_or(0, |event| event.time_us);
        let mut sites: BTreeMap<Vec<String>, Site> = BTreeMap::new();
        let time = |index: usize| history[index].time_us;
        for life in &lives {
            let site = sites.entry(stack(life)).or_default();
            site.total.add(life);
            let (from, to) = (life.begin.map_or(start_us, time), life.end.map_or(end_us, time));
            site.lived_us = site.lived_us.saturating_add(to.saturating_sub(from));
            if life.end.is_none() {
                site.now.add(life);
            }
        }
        for &index in &alive {
            sites.entry(stack(&lives[index])).or_default().peak.add(&lives[index]);
        }
        let peak_us = alive.iter().filter_map(|&index| lives[index].begin).max();
        Self { sites, start_us, peak_us: peak_us.map_or(start_us, time), end_us }
    }

    fn at(&self, when: When) -> impl Iterator<Item = (&[String], Bytes)> {
        let sums = self.sites.iter().map(move |(stack, site)| {
            (&stack[..], if when == When::Now { site.now.bytes } else { site.peak.bytes })
        });
        sums.filter(|(_, bytes)| *bytes > 0)
    }
}

/// The names of a stack's frames, the outermost first.
fn stack(life: &Life<'_>) -> Vec<String> {
    let name = |frame: &Frame| match frame.name.is_empty() {
        true => format!("{}:{}", frame.file, frame.line),
        false => format!("{} ({}:{})", frame.name, frame.file, frame.line),
    };
    let mut names: Vec<String> = life.frames.iter().rev().map(name).collect();
    names.extend(life.tag.map(|tag| format!("[{tag}]")));
    if names.is_empty() {
        names.push("(unknown)".to_owned());
    }
    names
}

impl Snapshot {
    /// Writes live bytes as folded stacks, `outer;inner bytes` a line: what flamegraph tools read.
    ///
    /// # Errors
    /// A failure of `output`.
    pub fn write_folded(&self, when: When, output: impl Write) -> io::Result<()> {
        let mut out = Out::new(output);
        for (stack, bytes) in Sites::of(self).at(when) {
            for (depth, name) in stack.iter().enumerate() {
                let separator = if depth > 0 { ";" } else { "" };
                let plain = |c: char| if c == ';' || c.is_control() { '_' } else { c };
                let name: String = name.chars().map(plain).collect();
                out.format(format_args!("{separator}{name}"));
            }
            out.format(format_args!(" {bytes}\n"));
        }
        out.finish()
    }

    /// Writes live bytes for speedscope.app: one profile at the peak and one now.
    ///
    /// # Errors
    /// A failure of `output`.
    pub fn write_speedscope(&self, output: impl Write) -> io::Result<()> {
        let sites = Sites::of(self);
        let mut out = Out::new(output);
        let frames = frame_table(
            &mut out,
            &sites,
            &[
                "{\"$schema\":\"https://www.speedscope.app/file-format-schema.json\",\
             \"exporter\":\"aquifer\",\"shared\":{\"frames\":[",
                "{\"name\":",
                "}",
            ],
        );
        out.bytes(b"]},\"profiles\":[");
        for (when, name) in [(When::Peak, "live bytes at the peak"), (When::Now, "live bytes now")]
        {
            let total = sites.at(when).fold(0, |sum: Bytes, it| sum.saturating_add(it.1));
            let comma = if when == When::Now { "," } else { "" };
            out.format(format_args!(
                "{comma}{{\"type\":\"sampled\",\"name\":\"{name}\",\"unit\":\"bytes\",\
                 \"startValue\":0,\"endValue\":{total},\"samples\":["
            ));
            for (index, (stack, _)) in sites.at(when).enumerate() {
                out.bytes(if index > 0 { b",[" } else { b"[" });
                numbers(&mut out, stack.iter().map(|name| frames[name.as_str()]));
                out.byte(b']');
            }
            out.bytes(b"],\"weights\":[");
            numbers(&mut out, sites.at(when).map(|it| it.1));
            out.bytes(b"]}");
        }
        out.bytes(b"]}\n");
        out.finish()
    }

    /// Writes bytes and blocks by call stack for DHAT's viewer (file version 2): in all, at the
    /// peak, and at the end. Times are in microseconds since the oldest event.
    ///
    /// # Errors
    /// A failure of `output`.
    pub fn write_dhat(&self, output: impl Write) -> io::Result<()> {
        let sites = Sites::of(self);
        let mut out = Out::new(output);
        out.format(format_args!(
            "{{\"dhatFileVersion\":2,\"mode\":\"heap\",\"verb\":\"Allocated\",\"bklt\":true,\
             \"bkacc\":false,\"tu\":\"us\",\"Mtu\":\"s\",\"tuth\":10,\"cmd\":"
        ));
        write_text(&mut out, &self.device_name);
        let (peak, end) = (sites.peak_us - sites.start_us, sites.end_us - sites.start_us);
        out.format(format_args!(",\"pid\":0,\"tg\":{peak},\"te\":{end}"));
        let frames = frame_table(&mut out, &sites, &[",\"ftbl\":[\"[root]\"", "", ""]);
        out.bytes(b"],\"pps\":[");
        for (index, (stack, site)) in sites.sites.iter().enumerate() {
            let Site { total, lived_us, peak, now } = site;
            // The most that one stack held is not followed: at the peak of all, or now.
            let most = if peak.bytes > now.bytes { peak } else { now };
            let comma = if index > 0 { "," } else { "" };
            out.format(format_args!(
                "{comma}{{\"tb\":{},\"tbk\":{},\"tl\":{lived_us},\"mb\":{},\"mbk\":{},\"gb\":{},\
                 \"gbk\":{},\"eb\":{},\"ebk\":{},\"fs\":[",
                total.bytes,
                total.blocks,
                most.bytes,
                most.blocks,
                peak.bytes,
                peak.blocks,
                now.bytes,
                now.blocks,
            ));
            // Innermost first, and entry 0 of the table is the root.
            numbers(&mut out, stack.iter().rev().map(|name| frames[name.as_str()] + 1));
            out.bytes(b"]}");
        }
        out.bytes(b"]}\n");
        out.finish()
    }
}

/// Writes each name once, with text before all, before each and after each; their indices.
fn frame_table<'a, W: Write>(
    out: &mut Out<W>,
    sites: &'a Sites,
    [head, before, after]: &[&str; 3],
) -> BTreeMap<&'a str, u64> {
    let mut frames = BTreeMap::new();
    out.bytes(head.as_bytes());
    for name in sites.sites.keys().flatten() {
        let next = frames.len() as u64;
        if let std::collections::btree_map::Entry::Vacant(entry) = frames.entry(name.as_str()) {
            entry.insert(next);
            // Something may stand in the table already.
            let follows = next > 0 || head.ends_with('"');
            out.bytes(if follows { b"," } else { b"" });
            out.bytes(before.as_bytes());
            write_text(out, name);
            out.bytes(after.as_bytes());
        }
    }
    frames
}

fn numbers<W: Write>(out: &mut Out<W>, numbers: impl Iterator<Item = u64>) {
    for (index, number) in numbers.enumerate() {
        let comma = if index > 0 { "," } else { "" };
        out.format(format_args!("{comma}{number}"));
    }
}
