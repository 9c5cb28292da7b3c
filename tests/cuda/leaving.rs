//! Memory that leaves: to other processes, and to the host while a pool is paused.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use aquifer::backend::cuda::{ShareError, SharedMemory};
use aquifer::backend::{Cuda, CudaOptions, CudaSource};
use aquifer::surface::cuda::{Contents, CudaError};
use aquifer::{CudaAllocator, PauseError, PoolOptions};

use crate::cuda::{Fake, Options};
use crate::{KIB, MIB, asynchronous, close, open};

fn exporter() -> CudaAllocator {
    let options = CudaOptions { exportable: true, ..CudaOptions::default() };
    let backend = Cuda::new(0, &options).expect("the fake has it all");
    let config = CudaAllocator::recommended_config(CudaSource::Virtual);
    CudaAllocator::with(backend, config).expect("a valid configuration")
}

#[test]
fn shared_memory_is_the_same_memory() {
    let fake = Fake::fresh(Options::default());
    let memory = exporter();
    let stream = memory.context().default_stream();
    let on = memory.on(&stream).expect("known");
    let values: Vec<u32> = (0..10 << 20).collect();
    let first = on.clone_htod(&[1_u32; 1000]).expect("room");
    let shared = on.clone_htod(&values).expect("room");
    let ticket = memory.share(shared.allocation()).expect("exportable");
    assert_eq!(ticket.size, 40 * MIB);
    assert!(ticket.chunks.len() >= 2, "it lies in several chunks");
    let chunks: u64 = ticket.chunks.iter().map(|chunk| chunk.1).sum();
    assert!(ticket.offset + ticket.size <= chunks);
    let imported = memory.backend().import(&ticket).expect("room");
    drop(ticket);
    let (place, size) = (imported.address(), imported.size());
    assert_eq!(size, 40 * MIB);
    assert_ne!(place, shared.address());
    let bytes = fake.read(place, size as usize);
    assert_eq!(bytemuck::cast_slice::<u8, u32>(&bytes), values);
    // A write on one side is read on the other.
    fake.write(place + 4, &7_u32.to_ne_bytes());
    assert_eq!(stream.clone_dtoh(&shared.view(..3)).expect("a copy"), [0, 7, 2]);
    drop(imported);
    assert_eq!(stream.clone_dtoh(&shared.view(..3)).expect("a copy"), [0, 7, 2]);
    drop((first, shared, on, stream));
    memory.empty_cache();
    assert_eq!(fake.used_bytes(0), 0);
    close(&fake, memory);
}

#[test]
fn what_is_imported_outlives_the_exporter() {
    let fake = Fake::fresh(Options::default());
    let (memory, other) = (exporter(), open(&fake));
    let held = memory.allocate(3 * MIB).expect("room");
    let place = held.address().expect("not empty");
    fake.write(place, &[5; 100]);
    let ticket = memory.share(&held).expect("exportable");
    let imported = other.backend().import(&ticket).expect("room");
    drop((ticket, held, memory));
    assert!(fake.used_bytes(0) >= 3 * MIB, "it lives as long as it is mapped anywhere");
    assert_eq!(fake.read(imported.address(), 100), [5; 100]);
    drop(imported);
    assert_eq!(fake.used_bytes(0), 0);
    close(&fake, other);
}

#[test]
fn what_cannot_be_shared_is_said() {
    let fake = Fake::fresh(Options::default());
    let plain = open(&fake);
    let held = plain.allocate(MIB).expect("room");
    assert_eq!(plain.share(&held).err(), Some(ShareError::NotExportable));
    let memory = exporter();
    let empty = memory.allocate(0).expect("nothing needs no room");
    assert_eq!(memory.share(&empty).err(), Some(ShareError::NotExportable));
    let real = memory.allocate(MIB).expect("room");
    let broken = |change: fn(&mut SharedMemory)| {
        let mut ticket = memory.share(&real).expect("exportable");
        change(&mut ticket);
        memory.backend().import(&ticket).err()
    };
    let malformed = Some(ShareError::Malformed);
    assert_eq!(broken(|ticket| ticket.size = 1 << 50), malformed);
    assert_eq!(broken(|ticket| ticket.offset = u64::MAX), malformed);
    assert_eq!(broken(|ticket| ticket.size = 0), malformed);
    assert_eq!(broken(|ticket| ticket.chunks[0].1 = 3), malformed);
    assert_eq!(broken(|ticket| ticket.chunks[0].1 = 0), malformed);
    assert_eq!(broken(|ticket| ticket.chunks.clear()), malformed);
    // A chunk of another size than it has is the driver's to refuse.
    let wrong = broken(|ticket| ticket.chunks[0].1 += 2 << 20);
    assert!(matches!(wrong, Some(ShareError::Refused(_))), "{wrong:?}");
    assert!(!fake.take_violations().is_empty());
    drop((held, empty, real, plain));
    close(&fake, memory);
}

#[test]
fn a_paused_model_comes_back_as_it_was() {
    let fake = Fake::fresh(asynchronous());
    let memory = open(&fake);
    let stream = memory.context().new_stream().expect("the fake works");
    let on = memory.on(&stream).expect("known");
    let tag = memory.tag("weights");
    let pool = memory.pausable(tag);
    let values: Vec<u32> = (0..3 << 20).collect();
    // SAFETY: written before it is read, on the same stream.
    let mut weights = unsafe { on.alloc_tagged::<u32>(values.len(), tag) }.expect("room");
    stream.memcpy_htod(&values, &mut weights).expect("submitted");
    // SAFETY: as above.
    let mut small = unsafe { on.alloc_tagged::<u8>(1000, tag) }.expect("room");
    stream.memset_zeros(&mut small).expect("submitted");
    let others = on.clone_htod(&[1_u8; 1000]).expect("room");
    let (place, used) = (weights.address(), fake.used_bytes(0));
    assert!(fake.pending() > 0);

    let bytes = memory.pause(tag, Contents::Keep).expect("it can be paused");
    assert!(bytes >= 12 * MIB);
    assert_eq!(fake.used_bytes(0), used - bytes);
    assert!(memory.pinned().memory_allocated() >= 12 * MIB, "the contents are on the host");
    let again = memory.pause(tag, Contents::Keep);
    assert_eq!(again, Err(CudaError::Pause(PauseError::Paused)));
    memory.verify();

    assert_eq!(memory.resume(tag), Ok(bytes));
    assert_eq!(weights.address(), place);
    assert_eq!(memory.pinned().memory_allocated(), 0, "they have come back");
    assert_eq!(stream.clone_dtoh(&weights).expect("a copy"), values);
    assert_eq!(stream.clone_dtoh(&small).expect("a copy"), [0; 1000]);
    assert_eq!(stream.clone_dtoh(&others).expect("a copy"), [1; 1000]);
    assert_eq!(memory.resume(tag), Err(CudaError::Pause(PauseError::NotPaused)));

    // What need not be kept costs no copy.
    memory.pinned().empty_cache();
    memory.pause(tag, Contents::Discard).expect("it can be paused");
    assert_eq!(memory.pinned().memory_reserved(), 0);
    drop(small);
    memory.resume(tag).expect("room");
    memory.forget_pausable(tag);
    drop(pool);
    drop((weights, others, on, stream));
    memory.empty_cache();
    assert_eq!(fake.used_bytes(0), 0);
    close(&fake, memory);
}

#[test]
fn a_pause_that_cannot_save_changes_nothing() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    let on = memory.on(&memory.context().default_stream()).expect("known");
    let tag = memory.tag("weights");
    memory.pausable(tag);
    // SAFETY: nothing is read.
    let held = unsafe { on.alloc_tagged::<u8>(30 << 20, tag) }.expect("room");
    memory.pinned().set_memory_limit(Some(10 * MIB));
    let error = memory.pause(tag, Contents::Keep).expect_err("no room on the host");
    assert!(matches!(error, CudaError::Alloc(_)), "{error}");
    assert!(!memory.pausable(tag).is_paused());
    // SAFETY: nothing is read.
    drop(unsafe { on.alloc_tagged::<u8>(1000, tag) }.expect("it works on"));
    let unknown = memory.pause(memory.tag("nobody"), Contents::Keep);
    assert_eq!(unknown, Err(CudaError::Pause(PauseError::NotPaused)));
    memory.verify();
    drop((held, on));
    close(&fake, memory);
}

/// What was freed while it was away has no place to come back to: its addresses may be another's.
#[test]
fn what_was_freed_meanwhile_is_not_restored() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    let stream = memory.context().default_stream();
    let on = memory.on(&stream).expect("known");
    let tag = memory.tag("weights");
    memory.pausable(tag);
    // SAFETY: written before it is read, on the same stream.
    let mut large = unsafe { on.alloc_tagged::<u8>(30 << 20, tag) }.expect("room");
    // SAFETY: as above.
    let mut small = unsafe { on.alloc_tagged::<u8>(1000, tag) }.expect("room");
    stream.memset_zeros(&mut large).expect("cleared");
    stream.memset_zeros(&mut small).expect("cleared");
    memory.pause(tag, Contents::Keep).expect("it can be paused");
    drop(large);
    memory.empty_cache();
    memory.resume(tag).expect("the rest comes back");
    assert_eq!(stream.clone_dtoh(&small).expect("a copy"), [0; 1000]);
    memory.verify();
    drop((small, on, stream));
    close(&fake, memory);
}

#[test]
fn only_pages_can_be_paused() {
    let fake = Fake::fresh(Options { virtual_memory: false, ..Options::default() });
    let memory = open(&fake);
    let pool = memory.create_pool(PoolOptions::default());
    let held = memory.request(300 * KIB).pool(&pool).allocate().expect("room");
    assert_eq!(pool.pause(), Err(PauseError::NoVirtualMemory));
    drop((held, pool));
    close(&fake, memory);
}

/// What the child below is told: descriptor and size of each chunk, then offset and size.
const TICKET: &str = "AQUIFER_TEST_TICKET";

#[test]
fn another_process_reads_and_writes() {
    let fake = Fake::fresh(Options::default());
    let memory = exporter();
    let held = memory.allocate(40 * MIB).expect("room");
    let place = held.address().expect("not empty");
    fake.write(place, b"from the exporter");
    let ticket = memory.share(&held).expect("exportable");
    let mut words = vec![ticket.offset.to_string(), ticket.size.to_string()];
    for (descriptor, size) in &ticket.chunks {
        let raw = descriptor.as_raw_fd();
        // SAFETY: the descriptor is open; it is to stay so in the child.
        let outcome = unsafe { libc::fcntl(raw, libc::F_SETFD, 0) };
        assert_eq!(outcome, 0, "the descriptor is inherited");
        words.extend([raw.to_string(), size.to_string()]);
    }
    let program = std::env::current_exe().expect("the path of the test");
    let output = Command::new(program)
        .args(["--exact", "leaving::the_other_process", "--ignored", "--nocapture"])
        .env(TICKET, words.join(" "))
        .output()
        .expect("the test starts itself");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert_eq!(fake.read(place, 17), b"from the importer");
    drop((ticket, held));
    close(&fake, memory);
}

/// Started by the test above; without its ticket there is nothing to do.
#[test]
#[ignore = "a part of another_process_reads_and_writes"]
fn the_other_process() {
    let Ok(words) = std::env::var(TICKET) else { return };
    let numbers: Vec<u64> = words.split(' ').map(|word| word.parse().expect("a number")).collect();
    let chunks = numbers[2..].chunks_exact(2).map(|chunk| {
        // SAFETY: the parent left the descriptor open, for this process alone.
        let descriptor = unsafe { OwnedFd::from_raw_fd(chunk[0] as i32) };
        (descriptor, chunk[1])
    });
    let (offset, size) = (numbers[0], numbers[1]);
    let ticket = SharedMemory { chunks: chunks.collect(), offset, size };
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    let imported = memory.backend().import(&ticket).expect("room");
    assert_eq!(fake.read(imported.address(), 17), b"from the exporter");
    fake.write(imported.address(), b"from the importer");
    drop((imported, ticket));
    close(&fake, memory);
}
