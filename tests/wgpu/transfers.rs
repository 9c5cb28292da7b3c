//! Uploads, downloads and copies: odd lengths, ranges, caps, and nothing at all.

use std::panic::{AssertUnwindSafe, catch_unwind};

use aquifer::surface::wgpu::{DownloadError, Upload, UploadError};
use aquifer::{GpuVec, WgpuAllocator};

use super::{allocator, allocator_with, place};
use crate::support::{KIB, MIB};

/// Bytes of which no two neighbours, and no two quarters of a word, are equal.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| ((at + seed) % 251) as u8).collect()
}

#[test]
fn odd_tails_arrive_whole_and_alone() {
    let Some((gpu, memory)) = allocator() else { return };
    for len in [1, 2, 3, 4, 5, 7, 251, 4097, 65_535] {
        let bytes = pattern(len, len);
        let block = memory.allocate(len as u64).expect("room");
        memory.write_now(&block, 0, &bytes).expect("nothing is open");
        assert_eq!(memory.read(&block), Ok(bytes), "{len} bytes by a write");
        let (bytes, mut encoder) = (pattern(len, 1), gpu.encoder());
        let mut scope = memory.begin(&mut encoder);
        scope.upload(&mut encoder, &block, 0, &bytes).expect("room");
        scope.submit(encoder);
        assert_eq!(memory.read(&block), Ok(bytes), "{len} bytes by an upload");
    }
}

#[test]
fn ranges_are_written_and_nothing_else() {
    let Some((_, memory)) = allocator() else { return };
    let block = memory.allocate_zeroed(1001).expect("room");
    memory.write_now(&block, 8, &[1; 4]).expect("nothing is open");
    memory.write_now(&block, 1000, &[2]).expect("up to the end");
    memory.write_now(&block, 500, &[3; 12]).expect("nothing is open");
    let bytes = memory.read(&block).expect("there");
    let expected = |at: usize| match at {
        8..12 => 1,
        500..512 => 3,
        1000 => 2,
        _ => 0,
    };
    assert!(bytes.iter().enumerate().all(|(at, &byte)| byte == expected(at)), "{bytes:?}");
}

#[test]
fn a_large_write_goes_in_pieces() {
    let small_cap = allocator_with(|_, options| {
        (options.upload_cap, options.upload_chunk) = (2 * MIB, 256 * KIB);
    });
    let Some((_, memory)) = small_cap else { return };
    let bytes = pattern(7 * MIB as usize + 3, 0);
    let block = memory.allocate(bytes.len() as u64).expect("room");
    memory.write_now(&block, 0, &bytes).expect("pieces fit below the cap");
    assert!(memory.read(&block) == Ok(bytes));
    assert!(memory.staging_bytes() <= 2 * MIB);
}

/// Caps that are smaller than a chunk, between words, or nothing.
#[test]
fn any_cap_is_a_cap() {
    for cap in [512 * KIB, 300 * KIB + 3, 8, 7, 0] {
        let Some((gpu, memory)) = allocator_with(|_, options| options.upload_cap = cap) else {
            return;
        };
        let block = memory.allocate(MIB).expect("room");
        let bytes = pattern(if cap < KIB { 20 } else { MIB as usize }, 0);
        let full = |requested| UploadError::StagingFull { requested, cap };
        let mut encoder = gpu.encoder();
        let mut scope = memory.begin(&mut encoder);
        let upload = scope.upload(&mut encoder, &block, 0, &bytes[..8]);
        scope.submit(encoder);
        let write = memory.write_now(&block, 0, &bytes);
        if cap < 8 {
            assert_eq!((upload, write), (Err(full(8)), Err(full(8))));
            continue;
        }
        assert_eq!((upload, write), (Ok(()), Ok(())), "a cap of {cap} bytes");
        assert!(memory.read(&block).expect("there")[..bytes.len()] == bytes);
        assert!(memory.staging_bytes() <= cap);
    }
}

/// Neighbours, gaps, one place twice, and another buffer: what is written last is there.
#[test]
fn uploads_together_are_uploads_in_order() {
    let Some((gpu, memory)) = allocator() else { return };
    let small = [(); 4].map(|()| memory.allocate(512).expect("room"));
    let far = memory.allocate(3 * MIB).expect("room");
    assert_eq!(small[1].offset(), small[0].offset() + 512, "neighbours can become one copy");
    let zeros = vec![0; 512];
    for block in &small {
        memory.write_now(block, 0, &zeros).expect("nothing is open");
    }
    let [a, b, c, d] = [1, 2, 3, 4].map(|seed| pattern(512, seed));
    let uploads = [
        Upload { to: &small[0], offset: 0, bytes: &a },
        Upload { to: &small[1], offset: 0, bytes: &b },
        Upload { to: &small[1], offset: 256, bytes: &[] },
        Upload { to: &small[3], offset: 256, bytes: &c[..256] },
        Upload { to: &far, offset: 4096, bytes: &d },
        Upload { to: &far, offset: 4608, bytes: &d },
        Upload { to: &small[0], offset: 0, bytes: &d[..8] },
    ];
    let mut encoder = gpu.encoder();
    let mut scope = memory.begin(&mut encoder);
    scope.upload_all(&mut encoder, &uploads).expect("room");
    scope.submit(encoder);
    let read = |at: usize| memory.read(&small[at]).expect("there");
    assert_eq!(read(0), [&d[..8], &a[8..]].concat(), "the last one wins");
    assert_eq!(read(1), b);
    assert_eq!(read(2), zeros, "nobody's");
    assert_eq!(read(3), [&zeros[..256], &c[..256]].concat());
    assert_eq!(memory.read(&far).expect("there")[4096..5120], [&d[..], &d[..]].concat());
}

#[test]
fn staging_has_a_cap_and_recovers() {
    let small_cap = allocator_with(|_, options| {
        (options.upload_cap, options.upload_chunk) = (MIB, 256 * KIB);
    });
    let Some((gpu, memory)) = small_cap else { return };
    let block = memory.allocate(2 * MIB).expect("room");
    let bytes = pattern(200 << 10, 0);
    let mut open: Vec<_> = (0..4)
        .map(|_| {
            let mut encoder = gpu.encoder();
            let mut scope = memory.begin(&mut encoder);
            scope.upload(&mut encoder, &block, 0, &bytes).expect("below the cap");
            (encoder, scope)
        })
        .collect();
    assert_eq!(memory.staging_bytes(), MIB);
    let full = |requested| UploadError::StagingFull { requested, cap: MIB };
    let other = memory.allocate(200 << 10).expect("room");
    let mut encoder = gpu.encoder();
    let mut scope = memory.begin(&mut encoder);
    assert_eq!(scope.upload(&mut encoder, &other, 0, &bytes), Err(full(200 << 10)));
    assert_eq!(memory.write_now(&other, 0, &bytes), Err(full(200 << 10)));
    let (first, submitted) = open.remove(0);
    submitted.submit(first);
    scope.upload(&mut encoder, &other, 0, &bytes).expect("one chunk is back");
    scope.submit(encoder);
    assert_eq!(memory.read(&other), Ok(bytes.clone()));
    // A scope that is given up gives its chunk back too.
    drop(open);
    memory.write_now(&other, 0, &bytes[..1000]).expect("three chunks are back");
    let error =
        memory.begin(&mut gpu.encoder()).upload(&mut gpu.encoder(), &block, 0, &[0; 2 << 20]);
    assert_eq!(error, Err(full(2 * MIB)), "larger than the cap alone");
    assert!(memory.staging_bytes() <= MIB);
    memory.empty_cache();
    assert_eq!(memory.staging_bytes(), 0);
}

#[test]
fn chunks_are_used_again() {
    let Some((gpu, memory)) = allocator() else { return };
    let block = memory.allocate(600 * KIB).expect("room");
    for round in 0..100 {
        let mut encoder = gpu.encoder();
        let mut scope = memory.begin(&mut encoder);
        scope.upload(&mut encoder, &block, 0, &pattern(600 << 10, round)).expect("room");
        scope.submit(encoder);
        memory.synchronize().expect("the device is there");
        assert_eq!(memory.staging_bytes(), MIB, "one chunk does, in round {round}");
    }
    let made = memory.memory_stats().num_device_alloc;
    assert!(made <= 2, "{made} buffers for a block and a chunk");
}

#[test]
fn readback_has_a_cap_and_recovers() {
    let small_cap = allocator_with(|_, options| options.readback_cap = 128 * KIB);
    let Some((gpu, memory)) = small_cap else { return };
    let block = memory.allocate(64 * KIB).expect("room");
    let mut encoder = gpu.encoder();
    let mut scope = memory.begin(&mut encoder);
    let downloads = [(); 2].map(|()| scope.download(&mut encoder, &block).expect("below the cap"));
    let full = DownloadError::ReadbackFull { requested: 64 * KIB, cap: 128 * KIB };
    assert_eq!(scope.download(&mut encoder, &block).err(), Some(full.clone()));
    scope.submit(encoder);
    assert_eq!(memory.read(&block), Err(full), "one's own downloads are read first");
    let [first, second] = downloads;
    drop(first);
    assert!(memory.read(&block).is_ok(), "one was dropped");
    assert!(second.wait().is_ok());
    let large = memory.allocate(256 * KIB).expect("room");
    assert!(memory.read(&large).is_err(), "larger than the cap alone");
}

fn refuses<T>(run: impl FnOnce() -> T) -> String {
    let outcome = catch_unwind(AssertUnwindSafe(run));
    let panic = outcome.err().expect("a range that is none was taken");
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default()
}

#[test]
fn ranges_beyond_the_allocation_are_misuse() {
    let Some((gpu, memory)) = allocator() else { return };
    let (block, small) = (memory.allocate(10).expect("room"), memory.allocate(4).expect("room"));
    for (offset, len) in [(0, 11), (8, 3), (12, 0), (u64::MAX, 1), (u64::MAX - 3, 8)] {
        let bytes = vec![0; len];
        let text = refuses(|| memory.write_now(&block, offset, &bytes));
        assert!(text.contains("are not inside of 10 bytes"), "{offset} {len}: {text}");
    }
    for (offset, len) in [(1, 4), (2, 8), (0, 3), (4, 5)] {
        let bytes = vec![0; len];
        let text = refuses(|| memory.write_now(&block, offset, &bytes));
        assert!(text.contains("multiples of 4 bytes"), "{offset} {len}: {text}");
        let (mut encoder, upload) = (gpu.encoder(), Upload { to: &block, offset, bytes: &bytes });
        let mut scope = memory.begin(&mut encoder);
        refuses(|| scope.upload_all(&mut encoder, &[upload]));
    }
    // A copy takes whole blocks: their bytes are all of this allocation.
    let large = memory.allocate(600).expect("room");
    let mut encoder = gpu.encoder();
    let scope = memory.begin(&mut encoder);
    refuses(|| scope.copy(&mut encoder, &large, &small));
    let vecs = [3, 2].map(|len| GpuVec::<u32>::zeroed(&memory, len).expect("room"));
    refuses(|| vecs[0].copy_to(&vecs[1]));
    refuses(|| GpuVec::<u32>::from_allocation(&memory, small, 2));
}

#[test]
fn nothing_is_moved_without_ado() {
    let Some((gpu, memory)) = allocator() else { return };
    let none = memory.allocate(0).expect("nothing is always there");
    let zeroed = memory.allocate_zeroed(0).expect("nothing is always there");
    memory.write_now(&none, 0, &[]).expect("nothing to write");
    assert_eq!(memory.read(&none), Ok(Vec::new()));
    let mut encoder = gpu.encoder();
    let mut scope = memory.begin(&mut encoder);
    scope.upload(&mut encoder, &none, 0, &[]).expect("nothing to write");
    scope.copy(&mut encoder, &none, &zeroed).expect("nothing to copy");
    scope.clear(&mut encoder, &none);
    let own = scope.allocate_zeroed(&mut encoder, 0).expect("nothing is always there");
    let download = scope.download(&mut encoder, &own).expect("nothing to read");
    scope.submit(encoder);
    assert_eq!(download.wait(), Ok(Vec::new()));
    assert!(refuses(|| none.binding()).contains("0 bytes"));
    let vec = GpuVec::<f32>::from_slice(&memory, &[]).expect("nothing is always there");
    assert!(vec.is_empty() && vec.download() == Ok(Vec::new()));
    let units = GpuVec::from_slice(&memory, &[(); 3]).expect("nothing is always there");
    assert_eq!(units.download(), Ok(vec![(); 3]));
    let movable = memory.movable(none);
    drop((movable, zeroed, own, vec, download));
    assert_eq!((memory.memory_reserved(), memory.staging_bytes()), (0, 0));
}

fn copies(memory: &WgpuAllocator, sizes: [u64; 2]) -> bool {
    let [from, to] = sizes.map(|size| memory.allocate(size).expect("room"));
    let bytes = pattern(sizes[0] as usize, 5);
    memory.write_now(&from, 0, &bytes).expect("nothing is open");
    let mut encoder = memory.device().create_command_encoder(&Default::default());
    let scope = memory.begin(&mut encoder);
    scope.copy(&mut encoder, &from, &to).expect("room for the way");
    scope.submit(encoder);
    assert!(memory.read(&to).expect("there")[..bytes.len()] == bytes);
    assert!(memory.read(&from) == Ok(bytes), "the source is as it was");
    place(&from).0 == place(&to).0
}

#[test]
fn copies_go_between_buffers_and_inside_of_one() {
    let Some((_, memory)) = allocator() else { return };
    assert!(copies(&memory, [5000, 5000]), "both in one small segment");
    drop(memory.allocate(16 * MIB).expect("room"));
    assert!(copies(&memory, [3 * MIB, 4 * MIB]), "both in one large segment");
    assert!(copies(&memory, [1001, 1004]), "an odd length");
    assert!(!copies(&memory, [5000, 3 * MIB]), "two segments");
    memory.verify();
}
