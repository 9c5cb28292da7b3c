//! What a tree means: the snapshots in it, one for each device.
//!
//! Old files are read as viewers read them: a bare list is a list of segments, a block may have its
//! `requested_size` and `frames` in `history`. Keys and actions that are not known are passed over.
//! Numbers that follow from others (`allocated_size`, addresses of blocks) are computed, as viewers
//! do, not believed.
//!
//! A file may refer to one thing many times. A stack of calls is read once, however often; blocks
//! and events are counted, and more than one for every 8 bytes of the file is refused: the shortest
//! has 30.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::DEVICES_MAX;
use super::error::{SnapshotError, SnapshotFault as Fault};
use super::layout::TAG_FILE;
use super::tree::{Tree, Value};
use super::words::Word;
use crate::id::PoolId;
use crate::report::history::{Action, Annotation, Event, Frame, Frames};
use crate::report::snapshot::{BlockSnapshot, BlockState, SegmentSnapshot, Snapshot};
use crate::units::Bytes;

/// Streams below this are numbers, as this crate writes them; others are pointers.
const STREAM_NUMBERS: u64 = 1 << 16;

/// All snapshots of a file, by device; at least one.
pub(super) fn snapshots(tree: &Tree) -> Result<Vec<Snapshot>, SnapshotError> {
    let mut model = Model {
        tree,
        devices: BTreeMap::new(),
        stacks: HashMap::new(),
        tags: HashMap::new(),
        equal: HashSet::new(),
        left: 1024 + tree.bytes / 8,
    };
    match tree.root {
        Value::Dict(root) => model.root(root)?,
        Value::List(_) => model.segments(tree.root)?,
        _ => return Err(Fault::Expected { what: "a dict with segments" }.at(0)),
    }
    let devices = model.devices.into_values();
    let mut snapshots: Vec<Snapshot> = devices.map(Device::finish).collect();
    if snapshots.is_empty() {
        snapshots.push(Snapshot::default());
    }
    Ok(snapshots)
}

#[derive(Default)]
struct Device {
    snapshot: Snapshot,
    /// Streams as the file has them, in order of appearance; until the end, what is read says its
    /// index.
    streams: Vec<u64>,
    by_stream: HashMap<u64, u32>,
}

impl Device {
    fn stream(&mut self, stream: u64) -> u32 {
        *self.by_stream.entry(stream).or_insert_with(|| {
            self.streams.push(stream);
            (self.streams.len() - 1) as u32
        })
    }

    /// Numbers stay; pointers get the numbers from 1 on that are left.
    fn finish(mut self) -> Snapshot {
        let taken: HashSet<u64> =
            self.streams.iter().copied().filter(|stream| *stream < STREAM_NUMBERS).collect();
        let mut vacant = (1..).filter(|number| !taken.contains(number));
        let numbers: Vec<u32> = self
            .streams
            .iter()
            .map(|&stream| match stream {
                0..STREAM_NUMBERS => stream as u32,
                _ => vacant.next().unwrap_or(0) as u32,
            })
            .collect();
        for event in &mut self.snapshot.history {
            event.stream = numbers[event.stream as usize];
        }
        for segment in &mut self.snapshot.segments {
            segment.stream = numbers[segment.stream as usize];
        }
        self.snapshot
    }
}

struct Model<'t> {
    tree: &'t Tree,
    devices: BTreeMap<u32, Device>,
    /// Stacks by node.
    stacks: HashMap<u32, (Frames, Option<Arc<str>>)>,
    tags: HashMap<u32, Arc<str>>,
    /// All stacks, so that equal ones are one.
    equal: HashSet<Frames>,
    /// How many more blocks and events are believed.
    left: u64,
}

impl<'t> Model<'t> {
    fn root(&mut self, root: u32) -> Result<(), SnapshotError> {
        // Events come first, so that streams are numbered in the order in which they were used.
        if let Some(traces) = self.tree.find(root, Word::DeviceTraces) {
            for (device, trace) in self.list(traces, root, Word::DeviceTraces)?.iter().enumerate() {
                self.trace(root, device, *trace)?;
            }
        }
        let segments = self.tree.find(root, Word::Segments);
        let missing = Fault::MissingKey { key: Word::Segments.text() };
        self.segments(segments.ok_or_else(|| missing.at(self.offset(root)))?)?;
        if let Some(annotations) = self.tree.find(root, Word::ExternalAnnotations) {
            for value in self.list(annotations, root, Word::ExternalAnnotations)? {
                let dict = self.dict(*value, root, Word::ExternalAnnotations)?;
                self.annotation(dict)?;
            }
        }
        if let Some(devices) = self.tree.find(root, Word::Aquifer) {
            for value in self.list(devices, root, Word::Aquifer)? {
                let dict = self.dict(*value, root, Word::Aquifer)?;
                self.device_words(dict)?;
            }
        }
        if let Some(Value::Dict(settings)) = self.tree.find(root, Word::AllocatorSettings)
            && let Some(conf) = self.tree.find(settings, Word::TorchConf)
        {
            let conf = self.text(conf).unwrap_or_default();
            for device in self.devices.values_mut() {
                device.snapshot.settings = conf.to_string();
            }
        }
        Ok(())
    }

    fn segments(&mut self, segments: Value) -> Result<(), SnapshotError> {
        let Value::List(list) = segments else {
            return Err(wrong(Word::Segments, "a list").at(0));
        };
        let tree = self.tree;
        for value in &tree.nodes[list as usize].items {
            let dict = self.dict(*value, list, Word::Segments)?;
            let (device, stream, segment) = self.segment(dict)?;
            let device = self.device(device, dict)?;
            let stream = device.stream(stream);
            device.snapshot.segments.push(SegmentSnapshot { stream, ..segment });
        }
        Ok(())
    }

    /// Device, stream as the file has it, and the segment.
    fn segment(&mut self, dict: u32) -> Result<(u64, u64, SegmentSnapshot), SnapshotError> {
        let tree = self.tree;
        let number = |key| self.number(dict, key);
        let (device, stream) = (number(Word::Device)?, number(Word::Stream)?);
        let (address, total) = (number(Word::Address)?, number(Word::TotalSize)?);
        let is = |key, value| tree.find(dict, key) == Some(value);
        let mut segment = SegmentSnapshot {
            address: Some(address),
            place: address,
            total_size: total,
            allocated_size: 0,
            active_size: 0,
            requested_size: 0,
            stream: 0,
            pool_id: self.pool_id(dict, Word::SegmentPoolId)?,
            large: is(Word::SegmentType, Value::Text(Word::Large as u32)),
            expandable: is(Word::IsExpandable, Value::Boolean(true)),
            blocks: Vec::new(),
        };
        let blocks = tree.find(dict, Word::Blocks);
        let missing = Fault::MissingKey { key: Word::Blocks.text() };
        let blocks = blocks.ok_or_else(|| missing.at(self.offset(dict)))?;
        let mut offset: Bytes = 0;
        for value in self.list(blocks, dict, Word::Blocks)? {
            self.count(dict)?;
            let block = self.dict(*value, dict, Word::Blocks)?;
            let block = self.block(block, offset)?;
            let size = |held| if held { block.size } else { 0 };
            // None of these exceeds the sum of the sizes, which is checked.
            let end = offset.checked_add(block.size);
            offset = end.ok_or_else(|| wrong(Word::Size, "less").at(self.offset(dict)))?;
            segment.allocated_size += size(block.state == BlockState::Allocated);
            segment.active_size += size(block.state != BlockState::Free);
            segment.requested_size = segment.requested_size.saturating_add(block.requested_size);
            segment.blocks.push(block);
        }
        if offset != total || address.checked_add(total).is_none() {
            let fault = Fault::NotTiled { blocks: offset, segment: total };
            return Err(fault.at(self.offset(dict)));
        }
        Ok((device, stream, segment))
    }

    fn block(&mut self, dict: u32, offset: Bytes) -> Result<BlockSnapshot, SnapshotError> {
        let size = self.number(dict, Word::Size)?;
        let state = match self.tree.find(dict, Word::State) {
            Some(Value::Text(word)) if word == Word::ActiveAllocated as u32 => {
                BlockState::Allocated
            }
            Some(Value::Text(word)) if word == Word::ActivePendingFree as u32 => {
                BlockState::Pending
            }
            // PyTorch's own documents call pending blocks `active_awaiting_free`, its files do not.
            Some(Value::Text(_)) => BlockState::Free,
            _ => return Err(self.wrong(dict, Word::State, "a text")),
        };
        let mut block = BlockSnapshot {
            offset,
            size,
            requested_size: 0,
            state,
            frames: Frames::default(),
            tag: None,
        };
        // What a free block once was is no longer of interest.
        if state == BlockState::Free {
            return Ok(block);
        }
        let mut from = (dict, Word::RequestedSize);
        if self.tree.find(dict, Word::RequestedSize).is_none()
            && let Some(Value::List(history)) = self.tree.find(dict, Word::History)
            && let Some(Value::Dict(last)) = self.tree.nodes[history as usize].items.first()
        {
            from = (*last, Word::RealSize);
        }
        let (holder, key) = from;
        let requested = self.tree.find(holder, key).map(|_| self.number(holder, key));
        block.requested_size = requested.transpose()?.unwrap_or(size);
        (block.frames, block.tag) = self.frames(holder)?;
        Ok(block)
    }

    fn trace(&mut self, root: u32, index: usize, trace: Value) -> Result<(), SnapshotError> {
        let events = self.list(trace, root, Word::DeviceTraces)?;
        for value in events {
            self.count(root)?;
            let dict = self.dict(*value, root, Word::DeviceTraces)?;
            let Some((stream, event)) = self.event(dict)? else { continue };
            let device = self.device(index as u64, dict)?;
            let stream = device.stream(stream);
            device.snapshot.history.push(Event { stream, ..event });
        }
        Ok(())
    }

    fn event(&mut self, dict: u32) -> Result<Option<(u64, Event)>, SnapshotError> {
        let action = match self.tree.find(dict, Word::Action) {
            Some(Value::Text(text)) => Action::ALL.get(text as usize).copied(),
            _ => return Err(self.wrong(dict, Word::Action, "a text")),
        };
        let Some(action) = action else { return Ok(None) };
        let (frames, mut tag) = self.frames(dict)?;
        if tag.is_none()
            && let Some(metadata) = self.tree.find(dict, Word::UserMetadata)
        {
            tag = self.text(metadata).filter(|text| !text.is_empty());
        }
        let (mut address, mut device_free) = (0, None);
        match action {
            Action::Oom => {
                device_free = match self.tree.find(dict, Word::DeviceFree) {
                    Some(Value::Integer(bytes)) => u64::try_from(bytes).ok(),
                    _ => None,
                }
            }
            _ => address = self.number(dict, Word::Addr)?,
        }
        let time = self.tree.find(dict, Word::TimeUs).map(|_| self.number(dict, Word::TimeUs));
        let event = Event {
            action,
            address,
            size: self.number(dict, Word::Size)?,
            stream: 0,
            time_us: time.transpose()?.unwrap_or(0),
            pool_id: self.pool_id(dict, Word::PoolId)?,
            device_free,
            frames,
            tag,
        };
        Ok(Some((self.number(dict, Word::Stream)?, event)))
    }

    fn annotation(&mut self, dict: u32) -> Result<(), SnapshotError> {
        self.count(dict)?;
        let (device, time_us) =
            (self.number(dict, Word::Device)?, self.number(dict, Word::TimeUs)?);
        let words = [Word::Name, Word::Stage].map(|key| self.tree.find(dict, key));
        let words = words.into_iter().flatten().filter_map(|value| self.text(value));
        let text = words.map(|word| word.to_string()).collect::<Vec<_>>().join(" ");
        let annotation = Annotation { time_us, text };
        self.device(device, dict)?.snapshot.annotations.push(annotation);
        Ok(())
    }

    fn device_words(&mut self, dict: u32) -> Result<(), SnapshotError> {
        let number = self.number(dict, Word::Device)?;
        let optional = |key| match self.tree.find(dict, key) {
            None | Some(Value::None) => Ok(None),
            Some(_) => self.number(dict, key).map(Some),
        };
        let (total, limit) = (optional(Word::Total)?, optional(Word::Limit)?);
        let name = self.tree.find(dict, Word::Name).and_then(|name| self.text(name));
        let addresses = self.tree.find(dict, Word::HasAddresses);
        let snapshot = &mut self.device(number, dict)?.snapshot;
        (snapshot.device_total, snapshot.limit) = (total, limit);
        snapshot.device_name = name.map_or_else(String::new, |name| name.to_string());
        if addresses == Some(Value::Boolean(false)) {
            snapshot.segments.iter_mut().for_each(|segment| segment.address = None);
        }
        Ok(())
    }

    fn device(&mut self, number: u64, dict: u32) -> Result<&mut Device, SnapshotError> {
        let fits = u32::try_from(number).ok().filter(|number| *number < DEVICES_MAX);
        let too_much = Fault::TooMuch { what: "devices" };
        let number = fits.ok_or_else(|| too_much.at(self.offset(dict)))?;
        let device = self.devices.entry(number).or_default();
        device.snapshot.device = number;
        Ok(device)
    }

    /// The stack of calls of a block or event, and the tag in front of it.
    fn frames(&mut self, dict: u32) -> Result<(Frames, Option<Arc<str>>), SnapshotError> {
        let list = match self.tree.find(dict, Word::Frames) {
            None | Some(Value::None) => return Ok(Default::default()),
            Some(Value::List(list)) => list,
            Some(_) => return Err(self.wrong(dict, Word::Frames, "a list")),
        };
        if let Some((frames, tag)) = self.stacks.get(&list) {
            return Ok((Arc::clone(frames), tag.clone()));
        }
        let mut tag = None;
        let mut frames = Vec::new();
        for (index, value) in self.tree.nodes[list as usize].items.iter().enumerate() {
            let (frame, name) = self.frame(self.dict(*value, list, Word::Frames)?)?;
            let inner = frame.name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
            match inner.filter(|_| index == 0 && frame.line == 0 && *frame.file == *TAG_FILE) {
                Some(inner) => {
                    let known = self.tags.entry(name).or_insert_with(|| Arc::from(inner));
                    tag = Some(Arc::clone(known));
                }
                None => frames.push(frame),
            }
        }
        let frames: Frames = frames.into();
        let frames = match self.equal.get(&frames) {
            Some(equal) => Arc::clone(equal),
            None => {
                self.equal.insert(Arc::clone(&frames));
                frames
            }
        };
        self.stacks.insert(list, (Arc::clone(&frames), tag.clone()));
        Ok((frames, tag))
    }

    /// A frame, and the index of its name.
    fn frame(&self, dict: u32) -> Result<(Frame, u32), SnapshotError> {
        let (Some(Value::Text(file)), Some(Value::Text(name))) =
            (self.tree.find(dict, Word::Filename), self.tree.find(dict, Word::Name))
        else {
            return Err(self.wrong(dict, Word::Filename, "a text, and another as \"name\","));
        };
        // Symbols without a line have 0, and some files -1.
        let line = match self.tree.find(dict, Word::Line) {
            Some(Value::Integer(line)) => u32::try_from(line).unwrap_or(0),
            _ => 0,
        };
        let text = |index: u32| Arc::clone(&self.tree.texts[index as usize]);
        Ok((Frame { file: text(file), line, name: text(name) }, name))
    }

    fn pool_id(&self, dict: u32, key: Word) -> Result<PoolId, SnapshotError> {
        let Some(value) = self.tree.find(dict, key) else { return Ok(PoolId::default()) };
        let pair = self.list(value, dict, key)?;
        let part = |value: &Value| match *value {
            Value::Integer(part) => u32::try_from(part).unwrap_or(u32::MAX),
            _ => u32::MAX,
        };
        match pair {
            [first, second] => Ok(PoolId(part(first), part(second))),
            _ => Err(self.wrong(dict, key, "a pair of numbers")),
        }
    }

    fn number(&self, dict: u32, key: Word) -> Result<u64, SnapshotError> {
        let number = match self.tree.find(dict, key) {
            Some(Value::Integer(number)) => u64::try_from(number).ok(),
            Some(Value::Large(number)) => Some(number),
            None => {
                return Err(Fault::MissingKey { key: key.text() }.at(self.offset(dict)));
            }
            Some(_) => None,
        };
        number.ok_or_else(|| self.wrong(dict, key, "a number from 0 on"))
    }

    fn list(&self, value: Value, holder: u32, key: Word) -> Result<&'t [Value], SnapshotError> {
        match value {
            Value::List(list) => Ok(&self.tree.nodes[list as usize].items),
            _ => Err(self.wrong(holder, key, "a list")),
        }
    }

    fn dict(&self, value: Value, holder: u32, key: Word) -> Result<u32, SnapshotError> {
        match value {
            Value::Dict(dict) => Ok(dict),
            _ => Err(self.wrong(holder, key, "a list of dicts")),
        }
    }

    fn text(&self, value: Value) -> Option<Arc<str>> {
        match value {
            Value::Text(text) => Some(Arc::clone(&self.tree.texts[text as usize])),
            _ => None,
        }
    }

    fn offset(&self, node: u32) -> u64 {
        self.tree.nodes[node as usize].offset
    }

    fn wrong(&self, node: u32, key: Word, what: &'static str) -> SnapshotError {
        wrong(key, what).at(self.offset(node))
    }

    /// One block or event more.
    fn count(&mut self, node: u32) -> Result<(), SnapshotError> {
        let too_much = Fault::TooMuch { what: "blocks and events for a file of this size" };
        self.left = self.left.checked_sub(1).ok_or_else(|| too_much.at(self.offset(node)))?;
        Ok(())
    }
}

fn wrong(key: Word, what: &'static str) -> Fault {
    Fault::WrongValue { key: key.text(), what }
}
