//! PyTorch's viewer as a judge: which pickles it opens, and which contents it can show.
//!
//! Its unpickler knows 30 opcodes and throws at any other; its views place blocks by the sizes
//! before them, and get to the state at an earlier event by undoing the events after it. Whatever
//! would throw there, or silently show nonsense, panics here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A value as the viewer's unpickler makes it: lists and dicts are shared by reference.
#[derive(Debug, Clone)]
#[allow(dead_code)] // Some are only shown.
pub(crate) enum Py {
    None,
    Boolean(bool),
    Number(i64),
    Float(f64),
    Text(Rc<str>),
    List(Rc<RefCell<Vec<Py>>>),
    Dict(Rc<RefCell<Vec<(Py, Py)>>>),
}

impl Py {
    #[track_caller]
    pub(crate) fn get(&self, key: &str) -> Py {
        self.find(key).unwrap_or_else(|| panic!("no {key} in {self:?}"))
    }

    pub(crate) fn find(&self, key: &str) -> Option<Py> {
        let Py::Dict(pairs) = self else { panic!("no dict: {self:?}") };
        let pairs = pairs.borrow();
        let pair = pairs.iter().find(|(name, _)| matches!(name, Py::Text(name) if **name == *key));
        pair.map(|(_, value)| value.clone())
    }

    #[track_caller]
    pub(crate) fn number(&self) -> i64 {
        if let Py::Number(number) = self { *number } else { panic!("no number: {self:?}") }
    }

    #[track_caller]
    pub(crate) fn text(&self) -> Rc<str> {
        if let Py::Text(text) = self { Rc::clone(text) } else { panic!("no text: {self:?}") }
    }

    #[track_caller]
    pub(crate) fn items(&self) -> Vec<Py> {
        if let Py::List(list) = self { list.borrow().clone() } else { panic!("no list: {self:?}") }
    }
}

/// Reads a pickle as the viewer does. `counts` gets the number of each opcode.
pub(crate) fn unpickle(bytes: &[u8], counts: &mut BTreeMap<u8, usize>) -> Py {
    let mut reader = Reader { bytes, at: 0, stack: Vec::new(), marks: Vec::new() };
    let mut memo: BTreeMap<u64, Py> = BTreeMap::new();
    loop {
        let opcode = reader.take(1)[0];
        *counts.entry(opcode).or_default() += 1;
        match opcode {
            0x80 => assert!((2..=4).contains(&reader.take(1)[0]), "the viewer reads 2 to 4"),
            b'.' => return reader.pop(),
            b'q' => drop(memo.insert(reader.unsigned(1), reader.top())),
            b'r' => drop(memo.insert(reader.unsigned(4), reader.top())),
            b'h' | b'j' => {
                let place = reader.unsigned(if opcode == b'h' { 1 } else { 4 });
                reader.stack.push(memo[&place].clone());
            }
            0x94 => drop(memo.insert(memo.len() as u64, reader.top())),
            _ => reader.step(opcode),
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Py>,
    marks: Vec<usize>,
}

impl Reader<'_> {
    fn take(&mut self, len: usize) -> &[u8] {
        self.at += len;
        &self.bytes[self.at - len..self.at]
    }

    fn unsigned(&mut self, len: usize) -> u64 {
        let bytes = self.take(len).iter().rev();
        bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn pop(&mut self) -> Py {
        self.stack.pop().expect("a value")
    }

    fn top(&self) -> Py {
        self.stack.last().expect("a value").clone()
    }

    /// What lies above the last mark.
    fn above(&mut self) -> Vec<Py> {
        let mark = self.marks.pop().expect("a mark");
        self.stack.split_off(mark)
    }

    fn list(&mut self, items: Vec<Py>) {
        self.stack.push(Py::List(Rc::new(RefCell::new(items))));
    }

    fn set(&mut self, items: Vec<Py>) {
        let Py::Dict(dict) = self.top() else { panic!("SETITEMS without a dict") };
        assert_eq!(items.len() % 2, 0, "a value for each key");
        let pairs = items.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        dict.borrow_mut().extend(pairs);
    }

    fn step(&mut self, opcode: u8) {
        match opcode {
            0x95 => drop(self.take(8)),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Py::None),
            0x88 | 0x89 => self.stack.push(Py::Boolean(opcode == 0x88)),
            b'K' | b'M' => {
                let number = self.unsigned(if opcode == b'K' { 1 } else { 2 });
                self.stack.push(Py::Number(number as i64));
            }
            b'J' => {
                let number = self.unsigned(4) as u32 as i32;
                self.stack.push(Py::Number(number.into()));
            }
            0x8a => {
                let len = self.unsigned(1) as usize;
                assert!((1..=8).contains(&len), "the viewer makes a BigInt of {len} bytes");
                let number = self.unsigned(len) << (64 - 8 * len);
                self.stack.push(Py::Number(number as i64 >> (64 - 8 * len)));
            }
            b'G' => {
                let bytes = self.take(8).try_into().expect("eight");
                self.stack.push(Py::Float(f64::from_be_bytes(bytes)));
            }
            0x8c | b'X' => {
                let len = self.unsigned(if opcode == b'X' { 4 } else { 1 }) as usize;
                let text = std::str::from_utf8(self.take(len)).expect("UTF-8").into();
                self.stack.push(Py::Text(text));
            }
            b']' | b')' => self.list(Vec::new()),
            b'}' => self.stack.push(Py::Dict(Rc::default())),
            b'a' | b'e' => {
                let items = if opcode == b'a' { vec![self.pop()] } else { self.above() };
                assert!(items.len() <= 1000, "{} arguments of one call", items.len());
                let Py::List(list) = self.top() else { panic!("APPENDS without a list") };
                list.borrow_mut().extend(items);
            }
            b's' => {
                let value = self.pop();
                let key = self.pop();
                self.set(vec![key, value]);
            }
            b'u' => {
                let items = self.above();
                self.set(items);
            }
            b't' | b'l' => {
                let items = self.above();
                self.list(items);
            }
            0x85..=0x87 => {
                let items = self.stack.split_off(self.stack.len() - usize::from(opcode - 0x84));
                self.list(items);
            }
            _ => panic!("UNKNOWN OPCODE: {opcode:#04x} at byte {}", self.at - 1),
        }
    }
}

#[derive(Debug, Clone)]
struct Event {
    action: Rc<str>,
    addr: i64,
    size: i64,
    stream: i64,
}

#[derive(Debug, Clone)]
struct Segment {
    addr: i64,
    size: i64,
    stream: i64,
}

/// What the viewer found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) segments: usize,
    pub(crate) reserved: i64,
    /// Live blocks at the end, pending ones among them.
    pub(crate) live: usize,
    pub(crate) requested: i64,
    /// Events as written, before frees are folded.
    pub(crate) events: usize,
    /// The most requested bytes that were live after any event.
    pub(crate) peak: i64,
}

/// Opens a pickle, looks at the state at every event of each device, and panics where the viewer
/// would throw.
#[track_caller]
pub(crate) fn open(bytes: &[u8]) -> Vec<Seen> {
    show(&unpickle(bytes, &mut BTreeMap::new()))
}

#[track_caller]
pub(crate) fn show(snapshot: &Py) -> Vec<Seen> {
    let traces = snapshot.get("device_traces").items();
    for segment in snapshot.get("segments").items() {
        let device = segment.get("device").number();
        assert!((0..traces.len() as i64).contains(&device), "no device_traces[{device}]");
    }
    let device = |(device, trace): (usize, &Py)| show_device(snapshot, device as i64, trace);
    traces.iter().enumerate().map(device).collect()
}

fn show_device(snapshot: &Py, device: i64, trace: &Py) -> Seen {
    let mut seen = Seen { events: trace.items().len(), ..Seen::default() };
    let mut segments = Vec::new();
    // Address to requested bytes and whether a free was requested.
    let mut blocks: BTreeMap<i64, (i64, bool)> = BTreeMap::new();
    for segment in snapshot.get("segments").items() {
        if segment.get("device").number() != device {
            continue;
        }
        let total = place_blocks(&segment, &mut blocks);
        seen.segments += 1;
        seen.reserved += total;
        let (addr, stream) = (segment.get("address").number(), segment.get("stream").number());
        segments.push(Segment { addr, size: total, stream });
    }
    seen.live = blocks.len();
    seen.requested = blocks.values().map(|block| block.0).sum();
    segments.sort_by_key(|segment| segment.addr);
    let mut last = 0;
    for segment in &segments {
        assert!(segment.addr >= last, "segments overlap: {segment:?}");
        last = segment.addr + segment.size;
    }
    let events = folded(trace);
    let every = events.len() / 3000 + 1;
    for (index, event) in events.iter().enumerate().rev() {
        if index % every == 0 {
            place_all(&segments, &blocks, event);
        }
        let live = blocks.values().map(|block| block.0).sum::<i64>();
        seen.peak = if index % every == 0 { seen.peak.max(live) } else { seen.peak };
        undo(&mut segments, &mut blocks, event);
    }
    seen
}

/// Blocks tile their segment; live ones are added at the addresses that the viewer computes.
fn place_blocks(segment: &Py, blocks: &mut BTreeMap<i64, (i64, bool)>) -> i64 {
    let start = segment.get("address").number();
    let mut addr = start;
    let sums = ["allocated_size", "active_size", "requested_size"];
    let mut found = [0; 3];
    for block in segment.get("blocks").items() {
        assert_eq!(block.get("address").number(), addr, "the viewer goes by sizes");
        let (size, requested) = (block.get("size").number(), block.get("requested_size").number());
        let state = block.get("state").text();
        assert!(["active_allocated", "active_pending_free", "inactive"].contains(&&*state));
        assert!(size > 0);
        if &*state != "inactive" {
            assert!(requested <= size);
            let pending = &*state == "active_pending_free";
            assert!(blocks.insert(addr, (requested, pending)).is_none(), "a block twice");
            let allocated = if pending { 0 } else { size };
            for (sum, more) in found.iter_mut().zip([allocated, size, requested]) {
                *sum += more;
            }
        }
        frames(&block);
        addr += size;
    }
    let total = segment.get("total_size").number();
    assert_eq!(addr - start, total, "blocks tile their segment");
    assert_eq!(sums.map(|sum| segment.get(sum).number()), found);
    assert_eq!(segment.get("segment_pool_id").items().len(), 2);
    assert!(["large", "small"].contains(&&*segment.get("segment_type").text()));
    assert!(matches!(segment.get("is_expandable"), Py::Boolean(_)));
    total
}

/// Frames are shown with these three.
fn frames(holder: &Py) {
    for frame in holder.get("frames").items() {
        let _ =
            (frame.get("filename").text(), frame.get("line").number(), frame.get("name").text());
    }
}

/// The events of a device; a completion directly after its request is one `free`.
fn folded(trace: &Py) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let mut last_time = 0;
    for entry in trace.items() {
        let action = entry.get("action").text();
        assert!(entry.find("category").is_none(), "a category needs the category unknown");
        frames(&entry);
        let time = entry.get("time_us").number();
        assert!(time >= last_time, "time goes on");
        last_time = time;
        let addr = match &*action {
            "oom" => entry.get("device_free").number().min(0),
            _ => entry.get("addr").number(),
        };
        if let Some(last) = events.last_mut()
            && (&*action, &*last.action, last.addr) == ("free_completed", "free_requested", addr)
        {
            last.action = "free".into();
            continue;
        }
        let (size, stream) = (entry.get("size").number(), entry.get("stream").number());
        events.push(Event { action, addr, size, stream });
    }
    events
}

/// Every live block lies in a segment.
fn place_all(segments: &[Segment], blocks: &BTreeMap<i64, (i64, bool)>, event: &Event) {
    let mut at = 0;
    for (&addr, block) in blocks {
        while at < segments.len() && segments[at].addr + segments[at].size <= addr {
            at += 1;
        }
        let inside = segments.get(at).is_some_and(|segment| segment.addr <= addr);
        assert!(inside, "no segment for {addr:#x} {block:?} at {event:?}");
    }
}

/// One step back, as the viewer takes it, and nothing that it takes for granted is untrue.
fn undo(segments: &mut Vec<Segment>, blocks: &mut BTreeMap<i64, (i64, bool)>, event: &Event) {
    let Event { addr, size, stream, .. } = *event;
    match &*event.action {
        "free" => assert!(blocks.insert(addr, (size, false)).is_none(), "live: {event:?}"),
        "free_completed" => {
            assert!(blocks.insert(addr, (size, true)).is_none(), "live: {event:?}");
        }
        "free_requested" => {
            let block = blocks.get_mut(&addr).unwrap_or_else(|| panic!("not live: {event:?}"));
            assert!(block.1, "not pending: {event:?}");
            block.1 = false;
        }
        "alloc" => assert!(blocks.remove(&addr).is_some(), "not live: {event:?}"),
        "segment_free" | "segment_unmap" => {
            let index = segments.partition_point(|segment| segment.addr < addr);
            segments.insert(index, Segment { addr, size, stream });
            let overlaps = |pair: &[Segment]| pair[0].addr + pair[0].size > pair[1].addr;
            assert!(!segments.windows(2).any(overlaps), "there already: {event:?}");
            if &*event.action == "segment_unmap" {
                merge(segments, index + 1);
                merge(segments, index);
            }
        }
        "segment_alloc" => {
            let index = segments.iter().position(|segment| segment.addr == addr);
            let index = index.unwrap_or_else(|| panic!("no such segment: {event:?}"));
            assert_eq!(segments.remove(index).size, size, "{event:?}");
        }
        "segment_map" => {
            let holds = |it: &Segment| it.addr <= addr && addr + size <= it.addr + it.size;
            let index = segments.iter().position(holds);
            let index = index.unwrap_or_else(|| panic!("no such pages: {event:?}"));
            let whole = segments.remove(index);
            let (end, stop) = (addr + size, whole.addr + whole.size);
            let after = Segment { addr: end, size: stop - end, stream: whole.stream };
            let before = Segment { size: addr - whole.addr, ..whole };
            for part in [after, before] {
                if part.size > 0 {
                    segments.insert(index, part);
                }
            }
        }
        "oom" | "snapshot" => {}
        action => panic!("no action of PyTorch's: {action}"),
    }
}

/// Makes two neighbours one, if they touch and are of one stream.
fn merge(segments: &mut Vec<Segment>, upper: usize) {
    let (Some(low), Some(high)) = (segments.get(upper.wrapping_sub(1)), segments.get(upper)) else {
        return;
    };
    if low.addr + low.size == high.addr && low.stream == high.stream {
        let size = high.size;
        segments.remove(upper);
        segments[upper - 1].size += size;
    }
}
