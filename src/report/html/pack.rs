//! A story as the page reads it: one JSON object with columns in base64.
//!
//! ```text
//!   steps    time since the last step · 8 + kind     1 varint
//!   args     of a free: which life, counted back from the youngest; of others see `args`
//!   blocks   place, as a change from the last one's; shape     2 varints
//!   shapes   requested, size, site: each combination once
//! ```
//!
//! Places are not addresses, which may be too large for a browser's numbers: all memory that is
//! ever spoken of is laid end to end, and a table of *extents* tells where each part really was.
//! They are counted in the largest power of two that divides them all.
//!
//! About 5 bytes an event. O(events + strings).

use std::collections::HashMap;
use std::sync::Arc;

use super::HtmlOptions;
use super::columns::{Column, json_list, json_number, json_object, json_string};
use super::course::{Course, Peak, Sums};
use super::story::{Life, Range, Step, Story};
use crate::id::PoolId;
use crate::report::history::{Frames, call_site};
use crate::report::snapshot::Snapshot;
use crate::units::{Bytes, GRANULE};

/// Longer pauses between steps, of 35 years, are cut: a browser's numbers have 53 bits, and the
/// kind of a step takes three.
const PAUSE_MAX: u64 = (1 << 50) - 1;

/// The numbers that the kinds of steps have in the page.
fn kind(step: Step) -> u64 {
    match step {
        Step::Alloc => 0,
        Step::Requested(_) => 1,
        Step::Completed(_) => 2,
        Step::Freed(_) => 3,
        Step::Came => 4,
        Step::Went(_) => 5,
        Step::Oom { .. } => 6,
        Step::Snapshot => 7,
    }
}

/// The numbers of strings, in order of first use.
#[derive(Debug, Default)]
struct Strings<'a> {
    number_of: HashMap<&'a str, usize>,
    all: Vec<&'a str>,
}

impl<'a> Strings<'a> {
    fn number(&mut self, text: &'a str) -> usize {
        let next = self.all.len();
        let number = *self.number_of.entry(text).or_insert(next);
        if number == next {
            self.all.push(text);
        }
        number
    }
}

/// All memory that is spoken of, end to end.
#[derive(Debug)]
struct Places {
    /// First address, bytes, and place of the first byte; ascending.
    extents: Vec<(u64, Bytes, u64)>,
    unit: Bytes,
}

impl Places {
    fn of(story: &Story) -> Self {
        let mut parts: Vec<(u64, u64)> =
            story.ranges.all().map(|range| part(range.address, range.size)).collect();
        unite(&mut parts);
        let known = parts.clone();
        let is_outside = |&(start, end): &(u64, u64)| {
            let at = known.partition_point(|part| part.0 <= start);
            at.checked_sub(1).is_none_or(|at| known[at].1 < end)
        };
        let blocks = story.blocks.all().map(|block| part(block.address, block.size));
        parts.extend(blocks.filter(is_outside));
        unite(&mut parts);
        let mut place = 0;
        let extent = |(start, end): (u64, u64)| {
            let extent = (start, end - start, place);
            place += end - start;
            extent
        };
        let mut places = Self { extents: parts.into_iter().map(extent).collect(), unit: 1 };
        let all = places.all_of(story);
        let bits = all.fold(GRANULE, |bits, place| bits | place);
        places.unit = 1 << bits.trailing_zeros();
        places
    }

    /// Every number that is to be told.
    fn all_of(&self, story: &Story) -> impl Iterator<Item = u64> {
        let ranges = story.ranges.all().flat_map(|range| [self.place(range.address), range.size]);
        let blocks = story.blocks.all().map(|block| self.place(block.address));
        let extents = self.extents.iter().flat_map(|&(_, size, place)| [size, place]);
        ranges.chain(blocks).chain(extents)
    }

    fn place(&self, address: u64) -> u64 {
        let at = self.extents.partition_point(|extent| extent.0 <= address);
        // Of nothing, an address may be in none.
        let Some(&(start, _, place)) = at.checked_sub(1).and_then(|at| self.extents.get(at)) else {
            return 0;
        };
        place.saturating_add(address - start)
    }

    fn units(&self, address: u64) -> u64 {
        self.place(address) / self.unit
    }
}

fn part(address: u64, size: Bytes) -> (u64, u64) {
    (address, address.saturating_add(size))
}

/// Sorts parts, and makes those that touch one.
fn unite(parts: &mut Vec<(u64, u64)>) {
    parts.sort_unstable();
    let mut united: Vec<(u64, u64)> = Vec::new();
    for &(start, end) in parts.iter() {
        match united.last_mut() {
            Some(last) if last.1 >= start => last.1 = last.1.max(end),
            _ => united.push((start, end)),
        }
    }
    *parts = united;
}

/// Everything that the page is made from.
pub(super) fn pack(
    snapshot: &Snapshot,
    story: &Story,
    course: &Course,
    options: &HtmlOptions,
) -> String {
    let start = story.steps.first().map(|step| step.0);
    let noted = snapshot.annotations.iter().map(|note| note.time_us);
    let start = noted.chain(start).min().unwrap_or(0);
    let places = Places::of(story);
    let notes = snapshot
        .annotations
        .iter()
        .map(|note| json_list([json_number(Some(note.time_us - start)), json_string(&note.text)]));
    let mut fields = vec![
        ("clock", json_string(options.clock.name())),
        ("device", json_string(&snapshot.device_name)),
        ("limit", json_number(snapshot.limit)),
        ("start", json_number(Some(start))),
        ("granule", json_number(Some(GRANULE))),
        ("annotations", json_list(notes)),
        ("sums", json_list([course.start, course.end].map(sums))),
        ("allocatedPeak", peak(course.allocated_peak)),
        ("reservedPeak", peak(course.reserved_peak)),
    ];
    fields.extend(steps(story, start));
    fields.extend(blocks(story, &places));
    fields.extend(ranges(story, &places));
    fields.extend(sites(story));
    fields.extend(broken(course));
    json_object(&fields)
}

fn sums(sums: Sums) -> String {
    let Sums { requested, allocated, active, reserved } = sums;
    json_list([requested, allocated, active, reserved].map(|bytes| json_number(Some(bytes))))
}

fn peak(peak: Peak) -> String {
    json_list([json_number(Some(peak.bytes)), json_number(Some(peak.moment as u64))])
}

/// Which life, counted back from the youngest; doubled, and odd if it was there before.
fn distance(life: Life, born: u32) -> u64 {
    match life {
        Life::Born(index) => u64::from(born - 1 - index) * 2,
        Life::Before(index) => u64::from(index) * 2 + 1,
    }
}

fn steps(story: &Story, start: u64) -> [(&'static str, String); 3] {
    let (mut steps, mut args) = (Column::default(), Column::default());
    let (mut blocks_born, mut ranges_born) = (0, 0);
    let mut last = start;
    for &(time, step) in &story.steps {
        let pause = (time - last).min(PAUSE_MAX);
        steps.push(pause << 3 | kind(step));
        last = time;
        match step {
            Step::Alloc => blocks_born += 1,
            Step::Came => ranges_born += 1,
            Step::Requested(life) | Step::Completed(life) | Step::Freed(life) => {
                args.push(distance(life, blocks_born));
            }
            Step::Went(life) => args.push(distance(life, ranges_born)),
            Step::Oom { size, device_free } => {
                args.push(size);
                args.push(device_free.map_or(0, |free| free.saturating_add(1)));
            }
            Step::Snapshot => {}
        }
    }
    let count = json_number(Some(story.steps.len() as u64));
    [
        ("stepCount", count),
        ("steps", json_string(&steps.text())),
        ("args", json_string(&args.text())),
    ]
}

fn blocks(story: &Story, places: &Places) -> [(&'static str, String); 6] {
    let (mut at, mut shape_of, mut shapes) =
        (Column::default(), Column::default(), Column::default());
    let mut known: HashMap<(Bytes, Bytes, u32), u64> = HashMap::new();
    let mut last = 0;
    for block in story.blocks.all() {
        let place = places.units(block.address);
        at.push_change(last, place);
        last = place;
        let next = known.len() as u64;
        let shape = *known.entry((block.requested, block.size, block.site)).or_insert(next);
        shape_of.push(shape);
        if shape == next {
            shapes.push(block.requested);
            shapes.push(block.size);
            shapes.push(block.site.into());
        }
    }
    let pending = story.pending_before.iter().map(u32::to_string);
    let counts = [story.blocks.born.len(), story.blocks.before.len()];
    [
        ("blockCounts", json_list(counts.map(|count| count.to_string()))),
        ("pendingBefore", json_list(pending)),
        ("blockAt", json_string(&at.text())),
        ("blockShape", json_string(&shape_of.text())),
        ("shapeCount", known.len().to_string()),
        ("shapes", json_string(&shapes.text())),
    ]
}

fn ranges(story: &Story, places: &Places) -> [(&'static str, String); 5] {
    let mut column = Column::default();
    let mut owners = Vec::new();
    let mut number_of = HashMap::new();
    let mut last = 0;
    for &Range { address, size, owner } in story.ranges.all() {
        let place = places.units(address);
        column.push_change(last, place);
        last = place;
        column.push(size / places.unit);
        let next = owners.len() as u64;
        let number = *number_of.entry(owner).or_insert(next);
        if number == next {
            owners.push(json_list([
                owner.stream.to_string(),
                json_string(&pool(owner.pool_id)),
                owner.is_paged.to_string(),
            ]));
        }
        column.push(number);
    }
    let counts = [story.ranges.born.len(), story.ranges.before.len()];
    let extents = places.extents.iter().map(|&(address, _, place)| {
        json_list([(place / places.unit).to_string(), json_string(&format!("{address:x}"))])
    });
    [
        ("rangeCounts", json_list(counts.map(|count| count.to_string()))),
        ("ranges", json_string(&column.text())),
        ("owners", json_list(owners)),
        ("extents", json_list(extents)),
        ("unit", places.unit.to_string()),
    ]
}

/// As people write it; empty for the default pool.
fn pool(id: PoolId) -> String {
    if id == PoolId::default() { String::new() } else { format!("({}, {})", id.0, id.1) }
}

fn sites(story: &Story) -> [(&'static str, String); 4] {
    let mut strings = Strings::default();
    let mut stacks: Vec<String> = Vec::new();
    let mut places: Vec<String> = Vec::new();
    let mut stack_of: HashMap<&Frames, usize> = HashMap::new();
    let mut sites = Vec::new();
    for site in &story.sites {
        let next = stacks.len();
        let stack = *stack_of.entry(&site.frames).or_insert(next);
        if stack == next {
            let frames = site.frames.iter().map(|frame| {
                let (file, name) = (strings.number(&frame.file), strings.number(&frame.name));
                format!("[{file},{},{name}]", frame.line)
            });
            stacks.push(json_list(frames));
            places.push(call_site(&site.frames).unwrap_or(0).to_string());
        }
        let tag = site.tag.as_ref().map(Arc::as_ref).map(|tag| strings.number(tag) as u64);
        let pool = json_string(&pool(site.pool_id));
        sites.push(format!("[{},{stack},{},{pool}]", json_number(tag), site.stream));
    }
    let strings = strings.all.iter().map(|text| json_string(text));
    [
        ("strings", json_list(strings)),
        ("stacks", json_list(stacks)),
        ("places", json_list(places)),
        ("sites", json_list(sites)),
    ]
}

fn broken(course: &Course) -> [(&'static str, String); 2] {
    let mut column = Column::default();
    for stretch in &course.broken {
        column.push(stretch.free);
        column.push(stretch.largest);
    }
    [("brokenCount", course.broken.len().to_string()), ("broken", json_string(&column.text()))]
}
