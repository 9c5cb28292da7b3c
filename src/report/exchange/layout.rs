//! The schema of PyTorch's snapshots, written once for every format.
//!
//! ```text
//!   segments              [ address, sizes, stream, pool, blocks [ size, state, frames ] ]
//!   device_traces         [ device 0: [ action, addr, size, stream, time_us, frames ], … ]
//!   allocator_settings    what PYTORCH_CUDA_ALLOC_CONF says
//!   external_annotations  [ device, time_us, name ]
//!   aquifer               [ device, name, total, limit, … ]: what PyTorch has no words for
//! ```
//!
//! Segments ascend by address. A range of addresses with pages behind parts of it becomes one
//! segment for each contiguous part, as blocks must tile a segment.

use std::sync::Arc;

use super::undo;
use super::words::Word;
use crate::config::Config;
use crate::report::history::{Action, Event, Frames};
use crate::report::snapshot::{BlockSnapshot, BlockState, SegmentSnapshot, Snapshot};
use crate::units::{Bytes, MIB};

/// The file of the frame that is a tag in truth.
pub(super) const TAG_FILE: &str = "tag";

/// What a format has to be able to write. It remembers failures itself.
pub(super) trait Sink<'a> {
    fn begin_dict(&mut self);
    fn key(&mut self, key: Word);
    fn key_text(&mut self, key: &str);
    fn end_dict(&mut self);
    fn begin_list(&mut self);
    /// Comes before every item.
    fn item(&mut self);
    fn end_list(&mut self);
    fn pair(&mut self, first: u64, second: u64);
    fn number(&mut self, number: u64);
    fn minus_one(&mut self);
    fn float(&mut self, number: f64);
    fn boolean(&mut self, value: bool);
    fn none(&mut self);
    fn word(&mut self, word: Word);
    fn text(&mut self, text: &'a str);
    fn frames(&mut self, frames: &'a Frames, tag: Option<&'a Arc<str>>);

    fn field(&mut self, key: Word, number: u64) {
        self.key(key);
        self.number(number);
    }

    fn optional(&mut self, key: Word, number: Option<u64>) {
        self.key(key);
        match number {
            Some(number) => self.number(number),
            None => self.none(),
        }
    }
}

/// Writes everything.
pub(super) fn write<'a>(sink: &mut impl Sink<'a>, snapshots: &[&'a Snapshot]) {
    sink.begin_dict();
    sink.key(Word::Segments);
    sink.begin_list();
    for snapshot in snapshots {
        for segment in by_address(&snapshot.segments) {
            for run in runs(segment) {
                sink.item();
                write_segment(sink, snapshot.device, segment, run);
            }
        }
    }
    sink.end_list();
    sink.key(Word::DeviceTraces);
    sink.begin_list();
    let devices = snapshots.iter().map(|snapshot| snapshot.device + 1).max().unwrap_or(0);
    for device in 0..devices {
        sink.item();
        sink.begin_list();
        if let Some(snapshot) = snapshots.iter().find(|snapshot| snapshot.device == device) {
            write_events(sink, snapshot);
        }
        sink.end_list();
    }
    sink.end_list();
    sink.key(Word::AllocatorSettings);
    write_settings(sink, snapshots.first().map_or("", |snapshot| &snapshot.settings));
    sink.key(Word::ExternalAnnotations);
    sink.begin_list();
    for snapshot in snapshots {
        for annotation in &snapshot.annotations {
            sink.item();
            sink.begin_dict();
            sink.field(Word::Device, snapshot.device.into());
            sink.field(Word::TimeUs, annotation.time_us);
            sink.key(Word::Name);
            sink.text(&annotation.text);
            sink.end_dict();
        }
    }
    sink.end_list();
    sink.key(Word::Aquifer);
    write_devices(sink, snapshots);
    sink.end_dict();
}

pub(super) fn by_address(segments: &[SegmentSnapshot]) -> Vec<&SegmentSnapshot> {
    let mut sorted: Vec<&SegmentSnapshot> = segments.iter().collect();
    sorted.sort_by_key(|segment| segment.place);
    sorted
}

/// The contiguous parts of a segment; without blocks, none.
pub(super) fn runs(segment: &SegmentSnapshot) -> impl Iterator<Item = &[BlockSnapshot]> {
    segment.blocks.chunk_by(|block, next| block.offset.saturating_add(block.size) == next.offset)
}

/// The address of the first byte of a block.
pub(super) fn place_of(segment: &SegmentSnapshot, block: &BlockSnapshot) -> u64 {
    segment.place.saturating_add(block.offset)
}

fn write_segment<'a>(
    sink: &mut impl Sink<'a>,
    device: u32,
    segment: &'a SegmentSnapshot,
    run: &'a [BlockSnapshot],
) {
    let sum = |states: &[BlockState], bytes: fn(&BlockSnapshot) -> Bytes| {
        let held = run.iter().filter(|block| states.contains(&block.state));
        held.map(bytes).fold(0, Bytes::saturating_add)
    };
    let active = [BlockState::Allocated, BlockState::Pending];
    let total = run.iter().map(|block| block.size).fold(0, Bytes::saturating_add);
    sink.begin_dict();
    sink.field(Word::Device, device.into());
    sink.field(Word::Address, place_of(segment, &run[0]));
    sink.field(Word::TotalSize, total);
    sink.field(Word::AllocatedSize, sum(&[BlockState::Allocated], |block| block.size));
    sink.field(Word::ActiveSize, sum(&active, |block| block.size));
    sink.field(Word::RequestedSize, sum(&active, |block| block.requested_size));
    sink.field(Word::Stream, segment.stream.into());
    sink.key(Word::SegmentType);
    sink.word(if segment.large { Word::Large } else { Word::Small });
    sink.key(Word::SegmentPoolId);
    sink.pair(segment.pool_id.0.into(), segment.pool_id.1.into());
    sink.key(Word::IsExpandable);
    sink.boolean(segment.expandable);
    sink.key(Word::Frames);
    sink.begin_list();
    sink.end_list();
    sink.key(Word::Blocks);
    sink.begin_list();
    for block in run {
        sink.item();
        sink.begin_dict();
        sink.field(Word::Address, place_of(segment, block));
        sink.field(Word::Size, block.size);
        sink.field(Word::RequestedSize, block.requested_size);
        sink.key(Word::State);
        sink.word(block.state.into());
        sink.key(Word::Frames);
        sink.frames(&block.frames, block.tag.as_ref());
        sink.end_dict();
    }
    sink.end_list();
    sink.end_dict();
}

fn write_events<'a>(sink: &mut impl Sink<'a>, snapshot: &'a Snapshot) {
    let contradict = undo::contradictions(snapshot);
    for (index, event) in snapshot.history.iter().enumerate() {
        if contradict.as_ref().is_none_or(|contradict| !contradict.has(index)) {
            sink.item();
            write_event(sink, event);
        }
    }
}

#[inline]
fn write_event<'a>(sink: &mut impl Sink<'a>, event: &'a Event) {
    sink.begin_dict();
    sink.key(Word::Action);
    sink.word(event.action.into());
    if event.action == Action::Oom {
        sink.key(Word::DeviceFree);
        match event.device_free {
            Some(bytes) => sink.number(bytes),
            None => sink.minus_one(),
        }
    } else {
        sink.field(Word::Addr, event.address);
    }
    sink.field(Word::Size, event.size);
    sink.field(Word::Stream, event.stream.into());
    sink.field(Word::TimeUs, event.time_us);
    if event.pool_id != Default::default() {
        sink.key(Word::PoolId);
        sink.pair(event.pool_id.0.into(), event.pool_id.1.into());
    }
    if let Some(tag) = &event.tag {
        sink.key(Word::UserMetadata);
        sink.text(tag);
    }
    sink.key(Word::Frames);
    sink.frames(&event.frames, event.tag.as_ref());
    sink.end_dict();
}

fn write_settings<'a>(sink: &mut impl Sink<'a>, settings: &'a str) {
    let mut config = Config::torch();
    // A foreign file may have settings that we do not know: they are passed on as they are.
    let _ = config.apply_torch_conf(settings);
    sink.begin_dict();
    sink.key(Word::TorchConf);
    sink.text(settings);
    sink.key(Word::MaxSplitSize);
    match config.max_split_size {
        Some(size) => sink.number(size),
        None => sink.minus_one(),
    }
    sink.key(Word::GarbageCollection);
    sink.float(config.garbage_collection_threshold.unwrap_or(0.0));
    sink.key(Word::ExpandableSegments);
    sink.boolean(config.expandable_segments);
    sink.field(Word::RegisterThreads, 1);
    sink.key(Word::ReleaseLock);
    sink.boolean(false);
    sink.key(Word::HostRegister);
    sink.boolean(false);
    sink.key(Word::Roundup);
    sink.begin_dict();
    for (index, divisions) in config.roundup_power2_divisions.into_iter().enumerate() {
        let bucket = (MIB << index) / MIB;
        sink.key_text(&bucket.to_string());
        sink.number(divisions.into());
    }
    sink.end_dict();
    sink.end_dict();
}

fn write_devices<'a>(sink: &mut impl Sink<'a>, snapshots: &[&'a Snapshot]) {
    sink.begin_list();
    for snapshot in snapshots {
        sink.item();
        sink.begin_dict();
        sink.field(Word::Device, snapshot.device.into());
        sink.key(Word::Name);
        sink.text(&snapshot.device_name);
        sink.optional(Word::Total, snapshot.device_total);
        sink.optional(Word::Limit, snapshot.limit);
        sink.key(Word::HasAddresses);
        let addresses = snapshot.segments.iter().all(|segment| segment.address.is_some());
        sink.boolean(addresses);
        sink.end_dict();
    }
    sink.end_list();
}
