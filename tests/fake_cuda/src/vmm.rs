//! Virtual memory: reserved addresses, chunks of physical memory, and mappings between them.
//!
//! ```text
//!   reservation  ├───────────────────────────────────────────────────┤   no pages at all
//!   mappings       ├── chunk A ──┼── chunk B ──┤   ├── chunk A ──┤         A is there twice
//!                        │              │                │
//!   file of the device   └── offset ────┴── offset       │                 one, sparse: pages come
//!   own file (exportable) ───────────────────────────────┘                 with the first touch
//! ```
//!
//! V1: mappings do not overlap, and each lies within one reservation.
//! V2: a chunk lives as long as a handle or a mapping refers to it; its bytes are in the books of
//! its device as long as it lives.
//! V3: a mapping has no access until it is set, and access is only ever set for whole mappings.
//!
//! Stricter than documented: a chunk is mapped whole, and setting access over part of a mapping is
//! an error.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::abi::{Access, Answer, ChunkProperties, Code};
use crate::abi::{HANDLE_POSIX, LOCATION_DEVICE, TYPE_PINNED};
use crate::entry::Driver;
use crate::os::{self, Protection};
use crate::state::State;

#[derive(Debug, Default)]
pub(crate) struct Space {
    pub(crate) reservations: BTreeMap<u64, u64>,
    pub(crate) mappings: BTreeMap<u64, Mapping>,
    pub(crate) chunks: BTreeMap<u64, Chunk>,
    /// One per device, once it is needed.
    files: BTreeMap<usize, SparseFile>,
    retired: Vec<(u64, u64)>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Mapping {
    pub(crate) len: u64,
    pub(crate) chunk: u64,
    /// `CUmemAccess_flags` of each device.
    pub(crate) access: [u32; 4],
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk {
    pub(crate) len: u64,
    pub(crate) device: usize,
    pub(crate) handles: u64,
    pub(crate) mappings: u64,
    backing: Backing,
    /// Whether the bytes are in the books: those of another process are in the books there.
    is_ours: bool,
}

#[derive(Debug, Clone, Copy)]
enum Backing {
    /// Offset in the file of the device.
    Shared(u64),
    Own(i32),
}

#[derive(Debug)]
struct SparseFile {
    file: i32,
    end: u64,
    /// Holes by offset.
    free: BTreeMap<u64, u64>,
}

/// Read and write: what `CU_MEM_ACCESS_FLAGS_PROT_READWRITE` is.
const READ_WRITE: u32 = 3;

impl Space {
    /// Whether a range is mapped without a hole and accessible; the error says why not.
    pub(crate) fn reach(
        &self,
        device: Option<usize>,
        address: u64,
        end: u64,
    ) -> Result<(), String> {
        let mut at = address;
        while at < end {
            let Some((start, mapping)) = self.mapping_at(at) else {
                return Err(self.why_not(at));
            };
            let has_access = match device {
                Some(device) => mapping.access[device] == READ_WRITE,
                None => mapping.access.contains(&READ_WRITE),
            };
            if !has_access {
                return Err("mapped without access".into());
            }
            at = start + mapping.len;
        }
        Ok(())
    }

    fn why_not(&self, address: u64) -> String {
        match self.reservation_at(address) {
            Some(_) => "reserved, but nothing is mapped there".into(),
            None => "no memory".into(),
        }
    }

    pub(crate) fn mapping_at(&self, address: u64) -> Option<(u64, Mapping)> {
        let (start, mapping) = self.mappings.range(..=address).next_back()?;
        (address - start < mapping.len).then_some((*start, *mapping))
    }

    pub(crate) fn reservation_at(&self, address: u64) -> Option<(u64, u64)> {
        let (start, len) = self.reservations.range(..=address).next_back()?;
        (address - start < *len).then_some((*start, *len))
    }

    /// The mappings that make up exactly `start..start + len`; `None` if they do not.
    fn whole(&self, start: u64, len: u64) -> Option<Vec<u64>> {
        let end = start.checked_add(len)?;
        let mut starts = Vec::new();
        let mut at = start;
        while at < end {
            let mapping = self.mappings.get(&at)?;
            starts.push(at);
            at += mapping.len;
        }
        (at == end && len > 0).then_some(starts)
    }

    fn is_free(&self, start: u64, len: u64) -> bool {
        let before = self.mappings.range(..start + len).next_back();
        before.is_none_or(|(at, mapping)| at + mapping.len <= start)
    }

    fn backing(&self, chunk: &Chunk) -> (i32, u64) {
        match chunk.backing {
            Backing::Shared(offset) => (self.files[&chunk.device].file, offset),
            Backing::Own(file) => (file, 0),
        }
    }

    /// A place of so many bytes in the file of the device.
    fn take_offset(&mut self, device: usize, len: u64) -> Option<u64> {
        let sparse = match self.files.entry(device) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let file = os::memory_file()?;
                entry.insert(SparseFile { file, end: 0, free: BTreeMap::new() })
            }
        };
        let hole = sparse.free.iter().find(|(_, room)| **room >= len);
        if let Some((&offset, &room)) = hole {
            sparse.free.remove(&offset);
            if room > len {
                sparse.free.insert(offset + len, room - len);
            }
            return Some(offset);
        }
        let offset = sparse.end;
        sparse.end += len;
        os::set_file_size(sparse.file, sparse.end);
        Some(offset)
    }

    fn give_backing_back(&mut self, chunk: &Chunk) {
        match chunk.backing {
            Backing::Own(file) => os::close(file),
            Backing::Shared(offset) => {
                if let Some(sparse) = self.files.get_mut(&chunk.device) {
                    os::punch_hole(sparse.file, offset, chunk.len);
                    sparse.add_hole(offset, chunk.len);
                }
            }
        }
    }

    pub(crate) fn open_files(&self) -> u64 {
        let own = |chunk: &&Chunk| matches!(chunk.backing, Backing::Own(_));
        (self.files.len() + self.chunks.values().filter(own).count()) as u64
    }

    /// Bytes of chunks in the books of a device.
    pub(crate) fn chunk_bytes(&self, device: usize) -> u64 {
        let is_booked = |chunk: &&Chunk| chunk.is_ours && chunk.device == device;
        self.chunks.values().filter(is_booked).map(|chunk| chunk.len).sum()
    }

    /// Gives addresses and files back.
    pub(crate) fn clear(&mut self) {
        let old = std::mem::take(self);
        for (start, len) in old.reservations.into_iter().chain(old.retired) {
            os::give_back(start, len);
        }
        for chunk in old.chunks.values() {
            if let Backing::Own(file) = chunk.backing {
                os::close(file);
            }
        }
        for sparse in old.files.values() {
            os::close(sparse.file);
        }
    }
}

impl SparseFile {
    fn add_hole(&mut self, mut offset: u64, mut len: u64) {
        if let Some((&before, &room)) = self.free.range(..offset).next_back()
            && before + room == offset
        {
            self.free.remove(&before);
            offset = before;
            len += room;
        }
        if let Some(room) = self.free.remove(&(offset + len)) {
            len += room;
        }
        self.free.insert(offset, len);
    }
}

/// Addresses and chunks.
impl State {
    pub(crate) fn is_granular(&self, number: u64) -> bool {
        number.is_multiple_of(self.options.granularity)
    }

    pub(crate) fn reserve(&mut self, len: u64, alignment: u64) -> Answer<u64> {
        let is_power = alignment == 0 || alignment.is_power_of_two();
        if len == 0 || !self.is_granular(len) || !is_power {
            let text = format!("{len} bytes aligned to {alignment}: no sound range");
            return Err(self.misuse(Code::INVALID_VALUE, text));
        }
        let alignment = alignment.max(self.options.granularity);
        let start = os::pages(len, alignment, Protection::None).ok_or(Code::OUT_OF_MEMORY)?;
        self.space.reservations.insert(start, len);
        Ok(start)
    }

    pub(crate) fn unreserve(&mut self, start: u64, len: u64) -> Answer {
        if self.space.reservations.get(&start) != Some(&len) {
            let text = format!("{len} bytes at {start:#x}: not what was reserved");
            return Err(self.misuse(Code::INVALID_VALUE, text));
        }
        if !self.space.is_free(start, len) {
            let text = format!("the range at {start:#x} still has mappings");
            return Err(self.misuse(Code::INVALID_VALUE, text));
        }
        self.space.reservations.remove(&start);
        if self.options.fresh_addresses {
            self.space.retired.push((start, len));
        } else {
            os::give_back(start, len);
        }
        Ok(())
    }

    /// The device that properties of a chunk name, if they are sound.
    pub(crate) fn chunk_device(&mut self, properties: &ChunkProperties) -> Answer<usize> {
        let ChunkProperties { kind, handle_types, location, windows, flags } = *properties;
        if kind != TYPE_PINNED || location.kind != LOCATION_DEVICE || windows != 0 {
            return Err(self.misuse(Code::INVALID_VALUE, "properties of no device memory"));
        }
        let is_posix = handle_types == HANDLE_POSIX;
        if handle_types > HANDLE_POSIX || is_posix && !self.options.posix_handles || flags[0] != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        self.ordinal(location.id)
    }

    pub(crate) fn create(&mut self, len: u64, properties: &ChunkProperties) -> Answer<u64> {
        let device = self.chunk_device(properties)?;
        if len == 0 || !self.is_granular(len) {
            let text = format!("{len} bytes: no multiple of the granularity");
            return Err(self.misuse(Code::INVALID_VALUE, text));
        }
        self.charge(device, len)?;
        let backing = if properties.handle_types == HANDLE_POSIX {
            os::memory_file().map(|file| {
                os::set_file_size(file, len);
                Backing::Own(file)
            })
        } else {
            self.space.take_offset(device, len).map(Backing::Shared)
        };
        let Some(backing) = backing else {
            self.refund(device, len);
            return Err(Code::OUT_OF_MEMORY);
        };
        let handle = self.new_handle();
        let chunk = Chunk { len, device, handles: 1, mappings: 0, backing, is_ours: true };
        self.space.chunks.insert(handle, chunk);
        Ok(handle)
    }

    /// The chunk behind a handle that has not been released.
    pub(crate) fn chunk(&mut self, handle: u64) -> Answer<Chunk> {
        let chunk = self.space.chunks.get(&handle).copied();
        match chunk.filter(|chunk| chunk.handles > 0) {
            Some(chunk) => Ok(chunk),
            None => {
                let text = format!("{handle:#x} is no handle of a chunk, or was released");
                Err(self.misuse(Code::INVALID_VALUE, text))
            }
        }
    }

    /// Adds to, or takes from, what refers to a chunk; the last one ends it.
    fn refer(&mut self, handle: u64, change: impl FnOnce(&mut Chunk)) {
        let chunk = self.space.chunks.get_mut(&handle).expect("V2: mappings keep chunks alive");
        change(chunk);
        let chunk = *chunk;
        if chunk.handles == 0 && chunk.mappings == 0 {
            self.space.chunks.remove(&handle);
            self.space.give_backing_back(&chunk);
            if chunk.is_ours {
                self.refund(chunk.device, chunk.len);
            }
        }
    }

    pub(crate) fn release_chunk(&mut self, handle: u64) -> Answer {
        self.chunk(handle)?;
        self.refer(handle, |chunk| chunk.handles -= 1);
        Ok(())
    }

    pub(crate) fn retain_chunk_at(&mut self, address: u64) -> Answer<u64> {
        let Some((_, mapping)) = self.space.mapping_at(address) else {
            let text = format!("{address:#x}: nothing is mapped there");
            return Err(self.misuse(Code::INVALID_VALUE, text));
        };
        self.refer(mapping.chunk, |chunk| chunk.handles += 1);
        Ok(mapping.chunk)
    }

    /// A new file descriptor of the chunk's file; closing it is the caller's business.
    pub(crate) fn export_chunk(&mut self, handle: u64) -> Answer<i32> {
        let chunk = self.chunk(handle)?;
        match chunk.backing {
            Backing::Own(file) => os::duplicate(file).ok_or(Code::UNKNOWN),
            Backing::Shared(_) => {
                let text = "the chunk was not created to be exported";
                Err(self.misuse(Code::INVALID_VALUE, text))
            }
        }
    }

    /// The chunk of a file: the same one, if it is of this process.
    pub(crate) fn import_chunk(&mut self, file: i32) -> Answer<u64> {
        let Some((inode, len)) = os::identity(file).filter(|(_, len)| *len > 0) else {
            return Err(self.misuse(Code::INVALID_VALUE, format!("{file} is no file of a chunk")));
        };
        let is_same = |chunk: &Chunk| match chunk.backing {
            Backing::Own(own) => os::identity(own).is_some_and(|(own, _)| own == inode),
            Backing::Shared(_) => false,
        };
        let same = self.space.chunks.iter().find(|(_, chunk)| is_same(chunk));
        if let Some(handle) = same.map(|(handle, _)| *handle) {
            self.refer(handle, |chunk| chunk.handles += 1);
            return Ok(handle);
        }
        let backing = Backing::Own(os::duplicate(file).ok_or(Code::UNKNOWN)?);
        let handle = self.new_handle();
        let chunk = Chunk { len, device: 0, handles: 1, mappings: 0, backing, is_ours: false };
        self.space.chunks.insert(handle, chunk);
        Ok(handle)
    }

    pub(crate) fn map(&mut self, start: u64, len: u64, offset: u64, handle: u64) -> Answer {
        let chunk = self.chunk(handle)?;
        let reservation = self.space.reservation_at(start);
        let is_inside = reservation.is_some_and(|(at, room)| start - at + len <= room);
        let wrong = if offset != 0 {
            "an offset other than 0"
        } else if len != chunk.len {
            "not the size of the chunk"
        } else if !self.is_granular(start) {
            "no multiple of the granularity"
        } else if !is_inside {
            "not within one reserved range"
        } else if !self.space.is_free(start, len) {
            "something is mapped there"
        } else {
            let (file, at) = self.space.backing(&chunk);
            os::map_file(start, len, file, at);
            let mapping = Mapping { len, chunk: handle, access: [0; 4] };
            self.space.mappings.insert(start, mapping);
            self.refer(handle, |chunk| chunk.mappings += 1);
            return Ok(());
        };
        let text = format!("{len} bytes at {start:#x}: {wrong}");
        Err(self.misuse(Code::INVALID_VALUE, text))
    }

    pub(crate) fn set_access(&mut self, start: u64, len: u64, wanted: &[Access]) -> Answer {
        let Some(starts) = self.space.whole(start, len) else {
            let text = format!("{len} bytes at {start:#x}: not whole mappings without a hole");
            return Err(self.misuse(Code::INVALID_VALUE, text));
        };
        for access in wanted {
            let is_sound = access.location.kind == LOCATION_DEVICE && access.flags != 2;
            if !is_sound || access.flags > READ_WRITE {
                return Err(self.misuse(Code::INVALID_VALUE, format!("{access:?}")));
            }
            self.ordinal(access.location.id)?;
        }
        for at in starts {
            let mapping = self.space.mappings.get_mut(&at).expect("found just now");
            for access in wanted {
                mapping.access[access.location.id as usize] = access.flags;
            }
            let has_access = mapping.access.iter().any(|flags| *flags != 0);
            let protection = if has_access { Protection::ReadWrite } else { Protection::None };
            os::protect(at, mapping.len, protection);
        }
        Ok(())
    }
}

impl Driver {
    /// Does not wait for the device: queued work that touches the range is a violation.
    pub(crate) fn unmap(&mut self, start: u64, len: u64) -> Answer {
        let Some(starts) = self.space.whole(start, len) else {
            let text = format!("{len} bytes at {start:#x}: not whole mappings without a hole");
            return Err(self.misuse(Code::INVALID_VALUE, text));
        };
        self.note_pending(start, len, None, "a mapping");
        os::blank(start, len);
        for at in starts {
            let mapping = self.space.mappings.remove(&at).expect("found just now");
            self.refer(mapping.chunk, |chunk| chunk.mappings -= 1);
        }
        Ok(())
    }
}
