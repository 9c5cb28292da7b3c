use super::*;
use crate::backend::Host;
use crate::config::Config;

fn memory() -> Allocator<Host> {
    Allocator::new(Host::new(), Config::default())
}

/// A page of bytes that wants to begin at a page.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

// SAFETY: it is all bytes, so all zeros are a value.
unsafe impl bytemuck::Zeroable for Page {}
// SAFETY: size equals alignment, so there is no padding, and every bit pattern is a value.
unsafe impl Pod for Page {}

#[test]
fn contents_of_many_live_vectors_stay_apart() {
    let memory = memory();
    let mut live: Vec<(u64, DeviceVec<u64, Host>)> = Vec::new();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..3000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        if !live.is_empty() && random.is_multiple_of(3) {
            let (stamp, vec) = live.swap_remove(random as usize % live.len());
            assert!(vec.iter().all(|&value| value == stamp), "{stamp} was overwritten");
        } else {
            let len = (random >> 20) as usize % 5000;
            let mut vec = DeviceVec::recycled(&memory, len).expect("host memory");
            vec.fill(round);
            live.push((round, vec));
        }
    }
    assert!(live.len() > 500, "{} live", live.len());
    for (stamp, vec) in &live {
        assert!(vec.iter().all(|value| value == stamp), "{stamp} was overwritten");
    }
    memory.verify();
    drop(live);
    assert_eq!(memory.memory_allocated(), 0);
}

#[test]
fn zeroed_is_zero_where_recycled_is_not() {
    let memory = memory();
    drop(DeviceVec::from_slice(&memory, &[7_u32; 1000]).unwrap());
    let recycled = DeviceVec::<u32, _>::recycled(&memory, 1000).unwrap();
    assert_eq!(recycled.as_slice(), [7; 1000]);
    let address = recycled.allocation().address();
    drop(recycled);
    let zeroed = DeviceVec::<u32, _>::zeroed(&memory, 1000).unwrap();
    assert_eq!(zeroed.allocation().address(), address, "the same block");
    assert_eq!(zeroed.as_slice(), [0; 1000]);
}

#[test]
fn a_slice_is_copied_and_can_be_changed() {
    let memory = memory();
    let mut vec = DeviceVec::from_slice(&memory, &[1.5_f32, -2.0, 0.25]).unwrap();
    assert_eq!((vec.len(), vec.is_empty()), (3, false));
    vec[1] = 4.0;
    vec.as_mut_slice()[2] = 8.0;
    assert_eq!(vec[..], [1.5, 4.0, 8.0]);
    assert_eq!(vec.allocation().size(), 12);
    let text = format!("{vec:?}");
    assert!(text.contains("f32") && text.contains("len: 3"), "{text}");
}

#[test]
fn no_values_and_values_without_size_hold_nothing() {
    let memory = memory();
    let mut none = DeviceVec::<Page, _>::zeroed(&memory, 0).unwrap();
    assert!(none.is_empty() && none.as_mut_slice().is_empty());
    let units = DeviceVec::<(), _>::from_slice(&memory, &[(); 9]).unwrap();
    assert_eq!(units.iter().count(), 9);
    let many = DeviceVec::<[u64; 0], _>::recycled(&memory, usize::MAX).unwrap();
    assert_eq!(many.len(), usize::MAX);
    assert_eq!(memory.memory_reserved(), 0, "the backend was not asked");
}

#[test]
fn alignment_beyond_that_of_blocks_is_asked_for() {
    let memory = memory();
    // Blocks of 512 bytes around it, so that a page does not fall on a page by chance.
    let mut crumbs = Vec::new();
    for round in 0..20_u8 {
        crumbs.push(DeviceVec::from_slice(&memory, &[round]).unwrap());
        let pages = DeviceVec::from_slice(&memory, &[Page([round; 4096]); 2]).unwrap();
        assert!(pages.as_ptr().is_aligned());
        assert!(pages.iter().all(|page| page.0 == [round; 4096]));
        crumbs.push(DeviceVec::zeroed(&memory, usize::from(round)).unwrap());
    }
    memory.verify();
}

#[test]
fn lengths_beyond_an_address_space_are_too_large() {
    let memory = memory();
    for len in [usize::MAX, usize::MAX / 8 + 1, isize::MAX as usize / 8 + 1] {
        let error = DeviceVec::<u64, _>::zeroed(&memory, len).unwrap_err();
        assert!(matches!(error, AllocError::TooLarge { .. }), "{len}: {error}");
    }
}

#[test]
fn an_allocation_becomes_a_vector_only_if_it_fits() {
    let memory = memory();
    let allocation = memory.allocate(40).unwrap();
    let vec = DeviceVec::<u64, _>::from_allocation(allocation, 5).unwrap();
    assert_eq!(vec.len(), 5);
    let allocation = vec.into_allocation();
    let error = DeviceVec::<u64, _>::from_allocation(allocation, 6).unwrap_err();
    assert_eq!(error, FromAllocationError::TooSmall { needed: 48, size: 40 });
    assert_eq!(memory.memory_allocated(), 0, "freed with the error");
    let allocation = memory.allocate(40).unwrap();
    let error = DeviceVec::<u64, _>::from_allocation(allocation, usize::MAX).unwrap_err();
    assert_eq!(error, FromAllocationError::TooSmall { needed: Bytes::MAX, size: 40 });

    let _crumb = memory.allocate(1).unwrap();
    let shifted = memory.allocate(4096).unwrap();
    assert_ne!(shifted.address().unwrap() % 4096, 0, "the crumb shifts it");
    let error = DeviceVec::<Page, _>::from_allocation(shifted, 1).unwrap_err();
    assert_eq!(error, FromAllocationError::Misaligned { needed: 4096 });
}

#[test]
fn the_holder_is_the_line_of_the_user() {
    let memory = memory();
    let tag = memory.tag("named");
    let zeroed = DeviceVec::<u8, _>::zeroed(&memory, 1).unwrap();
    let copied = DeviceVec::from_slice(&memory, &[1_u8]).unwrap();
    let recycled = DeviceVec::<u8, _>::recycled(&memory, 1).unwrap();
    let last = line!() + 1;
    let named = DeviceVec::<u8, _>::request(&memory).tag(tag).zeroed(1).unwrap();
    let mut places: Vec<_> = memory.holders().into_iter().map(|h| (h.location, h.tag)).collect();
    places.sort();
    let place = |line: u32, tag: Option<&str>| (format!("{}:{line}", file!()), tag.map(Into::into));
    let expected = [(3, None), (2, None), (1, None), (0, Some("named"))]
        .map(|(above, tag)| place(last - above - u32::from(above > 0), tag));
    assert_eq!(places, expected);
    drop((zeroed, copied, recycled, named));
}

#[test]
fn a_stream_may_be_named() {
    let memory = memory();
    let stream = memory.stream(3);
    let vec = DeviceVec::<u16, _>::request(&memory).on(&stream).from_slice(&[1, 2]).unwrap();
    let streams: Vec<_> = memory.memory_snapshot().segments.iter().map(|s| s.stream).collect();
    assert_eq!(streams, [1], "the default stream is the first");
    assert_eq!(*vec, [1, 2]);
}

#[test]
fn vectors_outlive_the_allocator_and_cross_threads() {
    let memory = memory();
    let vec = DeviceVec::from_slice(&memory, &[5_u64; 4000]).unwrap();
    let host = memory.backend().clone();
    drop(memory);
    let sum = std::thread::spawn(move || vec.iter().sum::<u64>()).join().unwrap();
    assert_eq!(sum, 20_000);
    assert_eq!(host.used_bytes(), 0, "the last vector gave the segment back");
}

#[test]
fn what_a_vector_owns_is_not_freed_by_id() {
    let memory = memory();
    let vec = DeviceVec::from_slice(&memory, &[1_u64; 4]).unwrap();
    let id = vec.allocation().id();
    assert!(memory.free_raw(id).is_err(), "references into it may exist");
    let other = DeviceVec::from_slice(&memory, &[2_u64; 4]).unwrap();
    assert_ne!(vec.allocation().address(), other.allocation().address());
    assert_eq!(*vec, [1; 4]);
    // Without an owner it is freed by id, once.
    let raw = vec.into_allocation().into_raw();
    assert_eq!(raw.id, id);
    assert!(memory.free_raw(id).is_ok() && memory.free_raw(id).is_err());
    memory.verify();
}
