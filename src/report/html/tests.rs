#![allow(clippy::unwrap_used)] // These are tests, helpers of `#[test]`s among them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::columns::{Column, escape, json_string};
use super::course::Course;
use super::story::{Step, Story};
use super::{Clock, HtmlOptions};
use crate::id::PoolId;
use crate::report::history::{Action, Annotation, Event, Frame, Frames};
use crate::report::snapshot::{BlockSnapshot, BlockState, SegmentSnapshot, Snapshot};

const SLOT: u64 = 4096;
const SLOTS: u64 = 8;
const HOSTILE: &str = "</script><!--<script>alert(\"'&\\\u{2028}\u{0}{{data}}{{script}}]]>";

fn page(snapshot: &Snapshot) -> String {
    let mut page = Vec::new();
    snapshot.write_html(&mut page).expect("memory takes everything");
    String::from_utf8(page).expect("a page is text")
}

/// The object that the page's script reads.
fn data(snapshot: &Snapshot) -> Value {
    let page = page(snapshot);
    let start = page.find("id=\"data\">").expect("there is data") + "id=\"data\">".len();
    let end = start + page[start..].find("</script>").expect("the data ends");
    serde_json::from_str(&page[start..end]).expect("the data is JSON")
}

/// A column, as the page reads it.
fn numbers(data: &Value, name: &str) -> std::vec::IntoIter<u64> {
    let text = data[name].as_str().expect("a column is text");
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes: Vec<u8> = Vec::new();
    for four in text.as_bytes().chunks(4) {
        let used = four.iter().filter(|&&c| c != b'=').count();
        let bits = four.iter().fold(0u32, |bits, &c| bits << 6 | u32::from(digit(c)) & 63);
        bytes.extend(&bits.to_be_bytes()[1..used]);
    }
    let mut values = vec![0];
    let mut shift = 0;
    for byte in bytes {
        *values.last_mut().unwrap() |= u64::from(byte & 127).checked_shl(shift).unwrap_or(0);
        shift += 7;
        if byte < 128 {
            values.push(0);
            shift = 0;
        }
    }
    values.pop();
    values.into_iter()
}

fn change(doubled: u64) -> i128 {
    let doubled = i128::from(doubled);
    if doubled % 2 == 0 { doubled / 2 } else { -(doubled + 1) / 2 }
}

/// Lives, as the page makes them: address, asked for, size, tag, innermost frame.
type Told = (u64, u64, u64, Option<String>, Option<(String, u64)>);

struct Reader<'a> {
    data: &'a Value,
    unit: u64,
}

impl Reader<'_> {
    fn new(data: &Value) -> Reader<'_> {
        Reader { data, unit: data["unit"].as_u64().unwrap() }
    }

    fn address(&self, place: u64) -> u64 {
        let extents = self.data["extents"].as_array().unwrap();
        let of = |extent: &Value| {
            let start = u64::from_str_radix(extent[1].as_str().unwrap(), 16).unwrap();
            (extent[0].as_u64().unwrap() * self.unit, start)
        };
        let (first, start) =
            extents.iter().map(of).take_while(|extent| extent.0 <= place).last().unwrap();
        start + place - first
    }

    fn blocks(&self) -> Vec<Told> {
        let mut shapes = numbers(self.data, "shapes");
        let mut shape = || shapes.next().unwrap();
        let count = self.data["shapeCount"].as_u64().unwrap();
        let shapes: Vec<_> = (0..count).map(|_| [shape(), shape(), shape()]).collect();
        let mut place = 0;
        let columns = numbers(self.data, "blockAt").zip(numbers(self.data, "blockShape"));
        let blocks = columns.map(|(at, shape)| {
            place += change(at);
            let [requested, size, site] = shapes[shape as usize];
            let (tag, frame) = self.site(site);
            let place = u64::try_from(place).unwrap() * self.unit;
            (self.address(place), requested, size, tag, frame)
        });
        blocks.collect()
    }

    fn site(&self, site: u64) -> (Option<String>, Option<(String, u64)>) {
        let string = |number: &Value| {
            let number = number.as_u64()? as usize;
            Some(self.data["strings"][number].as_str().unwrap().to_owned())
        };
        let site = &self.data["sites"][site as usize];
        let frame = &self.data["stacks"][site[1].as_u64().unwrap() as usize][0];
        let frame = string(&frame[0]).map(|file| (file, frame[1].as_u64().unwrap()));
        (string(&site[0]), frame)
    }

    fn ranges(&self) -> Vec<(u64, u64)> {
        let mut column = numbers(self.data, "ranges");
        let mut place = 0;
        let mut ranges = Vec::new();
        while let Some(at) = column.next() {
            place += change(at);
            let size = column.next().unwrap() * self.unit;
            column.next().expect("an owner");
            ranges.push((self.address(u64::try_from(place).unwrap() * self.unit), size));
        }
        ranges
    }

    /// The history that the page knows: action, address, bytes, time, tag and place of each event.
    fn history(&self) -> Vec<Event> {
        let (blocks, ranges) = (self.blocks(), self.ranges());
        let (mut args, mut time) =
            (numbers(self.data, "args"), self.data["start"].as_u64().unwrap());
        let (mut blocks_born, mut ranges_born) = (0, 0);
        let find = |born: usize, all: &Value, distance: u64| match distance % 2 {
            0 => born - 1 - (distance / 2) as usize,
            _ => all.as_u64().unwrap() as usize + (distance / 2) as usize,
        };
        let mut history = Vec::new();
        for word in numbers(self.data, "steps") {
            time += word >> 3;
            let mut tell = |action, (address, size, tag, frame)| {
                let tag: Option<&String> = tag;
                let frame: &Option<(String, u64)> = frame;
                let mut event = Event::new(action, address, size, 0, time);
                event.tag = tag.map(|tag| tag.as_str().into());
                event.frames = frame.iter().map(|(file, line)| at(file, *line as u32)).collect();
                history.push(event);
            };
            let actions: &[Action] = match word & 7 {
                0 => &[Action::Alloc],
                1 => &[Action::FreeRequested],
                2 => &[Action::FreeCompleted],
                3 => &[Action::FreeRequested, Action::FreeCompleted],
                4 => &[Action::SegmentAlloc],
                5 => &[Action::SegmentFree],
                6 => &[Action::Oom],
                _ => &[Action::Snapshot],
            };
            let told = match word & 7 {
                0 => {
                    blocks_born += 1;
                    Some(blocks_born - 1)
                }
                1..=3 => {
                    let all = &self.data["blockCounts"][0];
                    Some(find(blocks_born, all, args.next().unwrap()))
                }
                _ => None,
            };
            for &action in actions {
                if let Some(index) = told {
                    let (address, requested, _, tag, frame) = &blocks[index];
                    tell(action, (*address, *requested, tag.as_ref(), frame));
                } else if word & 7 == 6 {
                    let size = args.next().unwrap();
                    args.next().expect("what was left");
                    tell(action, (0, size, None, &None));
                } else if word & 7 == 7 {
                    tell(action, (0, 0, None, &None));
                } else {
                    let index = if word & 7 == 4 {
                        ranges_born += 1;
                        ranges_born - 1
                    } else {
                        let all = &self.data["rangeCounts"][0];
                        find(ranges_born, all, args.next().unwrap())
                    };
                    tell(action, (ranges[index].0, ranges[index].1, None, &None));
                }
            }
        }
        history
    }
}

fn at(file: &str, line: u32) -> Frame {
    Frame { file: file.into(), line, name: Arc::default() }
}

fn frames(file: &str, line: u32) -> Frames {
    Arc::from([at(file, line)])
}

/// A device that does something at random, and the truth about it.
struct Random {
    seed: u64,
    history: Vec<Event>,
    /// Segments by address.
    segments: BTreeSet<u64>,
    /// Asked for, kind, pending, by address.
    blocks: BTreeMap<u64, (u64, u64, bool)>,
    time: u64,
}

impl Random {
    fn new(seed: u64) -> Self {
        let (segments, blocks) = (BTreeSet::new(), BTreeMap::new());
        Self { seed, history: Vec::new(), segments, blocks, time: 1_700_000_000_000_000 }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % end
    }

    fn pick(&mut self, from: &[u64]) -> Option<u64> {
        (!from.is_empty()).then(|| from[self.below(from.len() as u64) as usize])
    }

    fn event(&mut self, action: Action, address: u64, size: u64, kind: Option<u64>) {
        let mut event = Event::new(action, address, size, 0, self.time);
        if let Some(kind) = kind {
            event.tag = (kind > 0).then(|| format!("tag {kind}").into());
            event.frames = frames("src/train.rs", kind as u32 + 1);
        }
        self.history.push(event);
    }

    fn step(&mut self) {
        self.time += self.below(50);
        let live: Vec<u64> = self.blocks.keys().copied().collect();
        match self.below(20) {
            0 if self.segments.len() < 6 => {
                let address = 0x7f00_0000_0000 + self.below(12) * SLOT * SLOTS;
                if self.segments.insert(address) {
                    self.event(Action::SegmentAlloc, address, SLOT * SLOTS, None);
                }
            }
            1 => {
                let empty = |at: &u64| self.blocks.range(*at..at + SLOT * SLOTS).next().is_none();
                let empty: Vec<u64> = self.segments.iter().copied().filter(empty).collect();
                if let Some(address) = self.pick(&empty) {
                    self.segments.remove(&address);
                    self.event(Action::SegmentFree, address, SLOT * SLOTS, None);
                }
            }
            2 => self.event(Action::Oom, 0, 12345, None),
            3..=10 => {
                let segments: Vec<u64> = self.segments.iter().copied().collect();
                let Some(segment) = self.pick(&segments) else { return };
                let address = segment + self.below(SLOTS) * SLOT;
                if !self.blocks.contains_key(&address) {
                    let (size, kind) = (self.below(SLOT) + 1, self.below(4));
                    self.blocks.insert(address, (size, kind, false));
                    self.event(Action::Alloc, address, size, Some(kind));
                }
            }
            other => {
                let Some(address) = self.pick(&live) else { return };
                let (size, kind, pending) = self.blocks[&address];
                if !pending {
                    self.event(Action::FreeRequested, address, size, Some(kind));
                }
                if pending || other < 18 {
                    self.blocks.remove(&address);
                    self.event(Action::FreeCompleted, address, size, Some(kind));
                } else {
                    self.blocks.insert(address, (size, kind, true));
                }
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let segment = |&place: &u64| {
            let blocks = self.blocks.range(place..place + SLOT * SLOTS);
            let block =
                |(at, &(requested_size, kind, pending)): (&u64, &(u64, u64, bool))| BlockSnapshot {
                    offset: at - place,
                    size: SLOT,
                    requested_size,
                    state: if pending { BlockState::Pending } else { BlockState::Allocated },
                    frames: frames("src/train.rs", kind as u32 + 1),
                    tag: (kind > 0).then(|| format!("tag {kind}").into()),
                };
            segment(place, SLOT * SLOTS, blocks.map(block).collect())
        };
        let segments = self.segments.iter().map(segment).collect();
        Snapshot { segments, history: self.history.clone(), ..Snapshot::default() }
    }
}

fn segment(place: u64, total_size: u64, blocks: Vec<BlockSnapshot>) -> SegmentSnapshot {
    let sum = |state: BlockState| {
        blocks.iter().filter(|block| block.state == state).map(|block| block.size).sum::<u64>()
    };
    let allocated_size = sum(BlockState::Allocated);
    SegmentSnapshot {
        address: Some(place),
        place,
        total_size,
        allocated_size,
        active_size: allocated_size + sum(BlockState::Pending),
        requested_size: blocks.iter().map(|block| block.requested_size).sum(),
        stream: 0,
        pool_id: PoolId::default(),
        large: false,
        expandable: false,
        blocks,
    }
}

fn assert_ends_as(snapshot: &Snapshot, course: &Course) {
    let sum = |size: fn(&SegmentSnapshot) -> u64| snapshot.segments.iter().map(size).sum::<u64>();
    assert_eq!(course.end.reserved, sum(|segment| segment.total_size));
    assert_eq!(course.end.allocated, sum(|segment| segment.allocated_size));
    assert_eq!(course.end.active, sum(|segment| segment.active_size));
    assert_eq!(course.end.requested, sum(|segment| segment.requested_size));
}

#[test]
fn a_history_reads_back_equal() {
    for seed in 1..=30 {
        let mut random = Random::new(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        (0..400).for_each(|_| random.step());
        let snapshot = random.snapshot();
        let data = data(&snapshot);
        assert_eq!(Reader::new(&data).history(), snapshot.history, "seed {seed}");
        assert_eq!(page(&snapshot), page(&snapshot));
        assert_ends_as(&snapshot, &Course::of(&Story::of(&snapshot)));
    }
}

#[test]
fn a_window_that_began_in_the_middle_knows_what_was_there() {
    for seed in 1..=30 {
        let mut random = Random::new(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        (0..150).for_each(|_| random.step());
        let (blocks, segments) = (random.blocks.clone(), random.segments.clone());
        random.history.clear();
        (0..150).for_each(|_| random.step());
        let snapshot = random.snapshot();
        let story = Story::of(&snapshot);
        let before: BTreeSet<_> =
            story.blocks.before.iter().map(|block| (block.address, block.requested)).collect();
        let expected: BTreeSet<_> = blocks.iter().map(|(&at, block)| (at, block.0)).collect();
        assert_eq!(before, expected, "seed {seed}");
        assert_eq!(before.len(), story.blocks.before.len());
        let pending = story.pending_before.iter();
        let pending: BTreeSet<_> =
            pending.map(|&index| story.blocks.before[index as usize].address).collect();
        let expected = blocks.iter().filter(|(_, block)| block.2).map(|(&at, _)| at);
        assert_eq!(pending, expected.collect(), "seed {seed}");
        let ranges = story.ranges.before.iter().map(|range| range.address);
        assert_eq!(ranges.collect::<BTreeSet<_>>(), segments, "seed {seed}");
        assert_ends_as(&snapshot, &Course::of(&story));
        assert_eq!(Reader::new(&data(&snapshot)).history(), snapshot.history, "seed {seed}");
    }
}

/// Free bytes and the largest hole, counted slot by slot.
#[test]
fn holes_are_what_is_left() {
    let mut random = Random::new(77);
    for _ in 0..300 {
        random.step();
        random.history.retain(|event| event.action != Action::Oom);
        let snapshot = random.snapshot();
        let mut story = Story::of(&snapshot);
        // Blocks that are gone are as large as was asked for; here all of them fill their slots.
        story.blocks.born.iter_mut().for_each(|block| block.size = SLOT);
        let course = Course::of(&story);
        let (mut free, mut largest) = (0, 0);
        for &place in &random.segments {
            let mut run = 0;
            for slot in 0..SLOTS {
                let is_free = !random.blocks.contains_key(&(place + slot * SLOT));
                run = if is_free { run + SLOT } else { 0 };
                free += if is_free { SLOT } else { 0 };
                largest = run.max(largest);
            }
        }
        // As long as there are no more steps than stretches, each has its own.
        let Some(last) = course.broken.last() else { continue };
        assert_eq!((last.free, last.largest), (free, largest));
    }
}

#[test]
fn pages_that_go_in_parts_leave_the_rest() {
    let mut snapshot = Snapshot::default();
    let mut add = |action, address, size| {
        let time = snapshot.history.len() as u64;
        snapshot.history.push(Event::new(action, address, size, 0, time));
    };
    add(Action::SegmentMap, 0x1000_0000, 8 << 20);
    add(Action::Alloc, 0x1000_0000, 1 << 20);
    add(Action::SegmentUnmap, 0x1000_0000 + (4 << 20), 2 << 20);
    let block = BlockSnapshot {
        offset: 0,
        size: 1 << 20,
        requested_size: 1 << 20,
        state: BlockState::Allocated,
        frames: Frames::default(),
        tag: None,
    };
    let hole = |offset: u64, size: u64| BlockSnapshot {
        offset: offset << 20,
        size: size << 20,
        requested_size: 0,
        state: BlockState::Free,
        ..block.clone()
    };
    let mut last = segment(0x1000_0000, 6 << 20, vec![block.clone(), hole(1, 3), hole(6, 2)]);
    last.expandable = true;
    snapshot.segments.push(last);
    let story = Story::of(&snapshot);
    let course = Course::of(&story);
    assert_ends_as(&snapshot, &course);
    assert_eq!(course.reserved_peak.bytes, 8 << 20);
    let last = course.broken.last().expect("there are steps");
    assert_eq!((last.free, last.largest), (5 << 20, 3 << 20));
    // The pages went as one range and came back as two.
    let came = story.steps.iter().filter(|(_, step)| *step == Step::Came).count();
    assert_eq!(came, 3);
}

#[test]
fn nothing_and_one_event_are_pages_too() {
    let empty = page(&Snapshot::default());
    assert!(empty.contains("At the end nothing is held."));
    assert_eq!(data(&Snapshot::default())["stepCount"], 0);
    let mut one = Snapshot::default();
    one.history.push(Event::new(Action::SegmentAlloc, 0, u64::MAX, u32::MAX, u64::MAX));
    assert_eq!(data(&one)["stepCount"], 2, "what the snapshot does not have is gone at the end");
    assert_ends_as(&one, &Course::of(&Story::of(&one)));
}

#[test]
fn numbers_of_any_size_and_order_are_no_trouble() {
    let mut random = Random::new(5);
    let mut snapshot = random.snapshot();
    let edges = [0, 1, 511, 512, 1 << 36, (1 << 53) + 1, u64::MAX - 1, u64::MAX];
    for _ in 0..2000 {
        let action = Action::ALL[random.below(9) as usize];
        let mut edge = || edges[random.below(8) as usize];
        let (address, size, time) = (edge(), edge(), edge());
        let mut event = Event::new(action, address, size, random.below(3) as u32, time);
        event.device_free = Some(size);
        snapshot.history.push(event);
    }
    snapshot.segments = vec![segment(u64::MAX - 4, 512, Vec::new()), segment(0, 0, Vec::new())];
    snapshot.segments[0].blocks.push(BlockSnapshot {
        offset: u64::MAX,
        size: u64::MAX,
        requested_size: 3,
        state: BlockState::Allocated,
        frames: Frames::default(),
        tag: None,
    });
    data(&snapshot);
}

#[test]
fn hostile_names_stay_text() {
    let mut snapshot = Snapshot {
        device_name: HOSTILE.to_owned(),
        settings: format!("{HOSTILE}:{HOSTILE}"),
        annotations: vec![Annotation { time_us: 3, text: HOSTILE.to_owned() }],
        ..Snapshot::default()
    };
    let mut event = Event::new(Action::Alloc, 4096, 100, 0, 3);
    event.tag = Some(HOSTILE.into());
    event.frames = frames(HOSTILE, 7);
    snapshot.history.push(event.clone());
    let block = BlockSnapshot {
        offset: 0,
        size: 512,
        requested_size: 100,
        state: BlockState::Allocated,
        frames: event.frames.clone(),
        tag: event.tag.clone(),
    };
    snapshot.segments.push(segment(4096, 4096, vec![block]));
    let harmless = page(&Snapshot::default());
    let hostile = page(&snapshot);
    for mark in ["<script", "</script", "<!--", "alert("] {
        let count = |page: &str| page.matches(mark).count();
        let allowed = if mark == "alert(" { usize::MAX } else { count(&harmless) };
        assert!(count(&hostile) <= allowed, "{mark}");
    }
    let data = data(&snapshot);
    assert_eq!(Reader::new(&data).history()[0].tag.as_deref(), Some(HOSTILE));
    assert_eq!(data["annotations"][0][1], HOSTILE);
    assert_eq!(data["device"], HOSTILE);
}

#[test]
fn columns_hold_every_number() {
    let mut column = Column::default();
    let values = [0, 1, 127, 128, 16383, 16384, 1 << 32, (1 << 53) - 1, u64::MAX];
    values.iter().for_each(|&value| column.push(value));
    column.push_change(7, 5);
    column.push_change(5, 7);
    let data = serde_json::json!({ "column": column.text() });
    let read: Vec<u64> = numbers(&data, "column").collect();
    assert_eq!(read[..values.len()], values);
    assert_eq!([change(read[values.len()]), change(read[values.len() + 1])], [-2, 2]);
}

#[test]
fn strings_are_quoted() {
    let quoted = json_string(HOSTILE);
    assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), HOSTILE);
    assert!(!quoted.contains(['<', '>', '&', '\u{2028}', '\0']));
    assert_eq!(escape("<a href='x'>&\"\u{1}"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\u{fffd}");
}

#[test]
fn the_first_sentence_names_the_holders() {
    let block = |offset: u64, line, tag: &str, state| BlockSnapshot {
        offset: offset << 20,
        size: 1 << 20,
        requested_size: 1 << 20,
        state,
        frames: frames("src/main.rs", line),
        tag: (!tag.is_empty()).then(|| tag.into()),
    };
    let held = |offset: u64, line, tag: &str| block(offset, line, tag, BlockState::Allocated);
    let sentence = |blocks: Vec<BlockSnapshot>| {
        let segments = vec![segment(0, 64 << 20, blocks)];
        Snapshot { segments, ..Snapshot::default() }.sentence()
    };
    let three = (0..3).map(|offset| held(offset, 6, "optimizer")).collect();
    let expected = "At the end 3.00 MiB are held: 3.00 MiB in 3 by src/main.rs:6 [optimizer].";
    assert_eq!(sentence(three), expected);
    let five = (0..5).map(|offset| held(offset, offset as u32, "")).collect();
    assert!(sentence(five).ends_with("1.00 MiB in 1 by src/main.rs:2; and 2 others."));
    assert_eq!(sentence(vec![block(0, 1, "", BlockState::Pending)]), "At the end nothing is held.");
    let nobody = BlockSnapshot { frames: Frames::default(), ..held(0, 0, "") };
    let expected = "At the end 1.00 MiB is held in 1 block; it is not known by whom.";
    assert_eq!(sentence(vec![nobody]), expected);
}

#[test]
fn a_trace_says_that_it_has_no_times() {
    let options = HtmlOptions { title: "a trace".to_owned(), clock: Clock::Events };
    let mut page = Vec::new();
    Snapshot::default().write_html_with(&options, &mut page).unwrap();
    let page = String::from_utf8(page).unwrap();
    assert!(page.contains("<h1>a trace ") && page.contains("\"clock\":\"event\""));
}
