//! The host backend against the real system: resident size, alignment, exact capacity.

use std::thread;

use super::os::Mapping;
use super::*;
use crate::units::MIB;

const KIND: MemoryKind = MemoryKind(0);

/// Writes one byte to each 4 KiB of the segment, which makes all of it resident.
fn touch(host: &Host, memory: &HostMemory) {
    let view = host.view(memory);
    for offset in (0..view.len()).step_by(4096) {
        // SAFETY: the segment is live and this thread alone knows it; `offset + 1 <= len`.
        let byte = unsafe { host.bytes(&view, offset, 1) };
        // SAFETY: as above; the pointer was made for one byte.
        unsafe { byte.write(0xAB) };
    }
}

fn read(host: &Host, memory: &HostMemory, offset: Bytes) -> u8 {
    // SAFETY: the segment is live, nobody writes to it, and the callers stay inside.
    let byte = unsafe { host.bytes(&host.view(memory), offset, 1) };
    // SAFETY: as above; the pointer was made for one byte.
    unsafe { byte.read() }
}

#[test]
#[cfg(all(target_os = "linux", not(miri)))]
fn resident_size_falls_when_a_segment_is_freed() {
    const SIZE: Bytes = 256 * MIB;
    const NOISE: Bytes = 48 * MIB;
    let host = Host::new();
    let round = || {
        let before = resident_bytes().unwrap();
        let memory = host.allocate(SIZE, KIND).unwrap();
        let untouched = resident_bytes().unwrap();
        touch(&host, &memory);
        let touched = resident_bytes().unwrap();
        host.free(memory);
        let freed = resident_bytes().unwrap();
        let rises = untouched < before + NOISE && touched + NOISE >= before + SIZE;
        let falls = freed <= before + NOISE;
        if rises && falls { Ok(()) } else { Err([before, untouched, touched, freed]) }
    };
    // The tests beside this one touch memory too, so one quiet round is enough.
    let rounds: Vec<_> = (0..10).map_while(|_| round().err()).collect();
    assert!(rounds.len() < 10, "before, allocated, touched, freed: {rounds:?}");
}

#[test]
fn segments_are_aligned_zeroed_and_writable_to_the_last_byte() {
    let host = Host::new();
    let limits = host.limits();
    let sizes = [1, 3, 16, 17, 32, 33, 64].map(|count| count * limits.granularity);
    let segments = sizes.map(|size| host.allocate(size, KIND).unwrap());
    for (memory, size) in segments.iter().zip(sizes) {
        let address = host.address(memory).unwrap();
        assert!(address.is_multiple_of(limits.alignment) && address != 0);
        assert_eq!((host.view(memory).address(), host.view(memory).len()), (address, size));
        assert_eq!((read(&host, memory, 0), read(&host, memory, size - 1)), (0, 0));
        touch(&host, memory);
        assert_eq!(read(&host, memory, size - 4096), 0xAB);
    }
    assert_eq!(host.used_bytes(), sizes.iter().sum::<Bytes>());
    let mut spans = segments.iter().map(|memory| host.view(memory)).collect::<Vec<_>>();
    spans.sort_by_key(HostView::address);
    let apart = |pair: &[HostView]| pair[0].address() + pair[0].len() <= pair[1].address();
    assert!(spans.windows(2).all(apart), "{spans:?}");
    segments.into_iter().for_each(|memory| host.free(memory));
    assert_eq!(host.used_bytes(), 0);
}

#[test]
fn bytes_points_into_the_segment() {
    let host = Host::new();
    let memory = host.allocate(GRANULARITY, KIND).unwrap();
    let view = host.view(&memory);
    // SAFETY: the segment is live and 512 + 16 is inside of it.
    let bytes = unsafe { host.bytes(&view, 512, 16) };
    assert_eq!(bytes as usize as u64, view.address() + 512);
    assert_eq!(view.as_ptr() as usize as u64, view.address());
    assert!(!view.is_empty());
    host.free(memory);
}

#[test]
fn capacity_is_exact_with_four_threads() {
    const SLOTS: Bytes = 64;
    let host = Host::with_capacity(SLOTS * GRANULARITY);
    for _ in 0..20 {
        let fill = || {
            let mut held = Vec::new();
            while let Ok(memory) = host.allocate(GRANULARITY, KIND) {
                assert!(host.used_bytes() <= SLOTS * GRANULARITY);
                held.push(memory);
            }
            held
        };
        let held = thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(fill));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(held.iter().map(Vec::len).sum::<usize>() as Bytes, SLOTS);
        assert_eq!((host.used_bytes(), host.free_bytes()), (SLOTS * GRANULARITY, Some(0)));
        thread::scope(|scope| {
            for memory in held {
                scope.spawn(|| memory.into_iter().for_each(|memory| host.free(memory)));
            }
        });
        assert_eq!((host.used_bytes(), host.free_bytes()), (0, Some(SLOTS * GRANULARITY)));
    }
}

#[test]
fn a_refused_request_holds_nothing() {
    let host = Host::with_capacity(4 * GRANULARITY);
    let memory = host.allocate(3 * GRANULARITY, KIND).unwrap();
    let refused = host.allocate(2 * GRANULARITY, KIND);
    assert_eq!(refused.err(), Some(GrowError::OutOfMemory));
    assert_eq!(host.used_bytes(), 3 * GRANULARITY);
    let last = host.allocate(GRANULARITY, KIND).unwrap();
    host.free(memory);
    drop(last); // Memory that is only dropped goes back as well.
    assert_eq!(host.clone().used_bytes(), 0);
}

#[test]
fn what_the_system_cannot_give_is_an_error() {
    assert!(Mapping::new(1 << 62).is_none());
    assert!(Mapping::new(u64::MAX - (GRANULARITY - 1)).is_none());
    let host = Host::new();
    let too_large = host.limits().segment_max + GRANULARITY;
    assert_eq!(host.allocate(too_large, KIND).err(), Some(GrowError::TooLarge));
    assert_eq!(host.used_bytes(), 0);
}

#[test]
#[should_panic(expected = "no multiple of the granularity")]
fn a_size_off_the_granularity_is_a_bug_of_the_caller() {
    let _ = Host::new().allocate(GRANULARITY + 512, KIND);
}

#[test]
fn limits_are_true_and_constant() {
    let host = Host::with_capacity(10 * MIB);
    assert_eq!((host.limits(), host.limits().total), (host.clone().limits(), Some(10 * MIB)));
    let limits = Host::default().limits();
    assert!(limits.alignment.is_power_of_two() && limits.alignment >= 512);
    assert!(limits.segment_max.is_multiple_of(limits.granularity));
    assert_eq!(limits.total.is_some(), Host::new().free_bytes().is_some());
    assert_eq!(limits.total.is_some(), cfg!(any(target_os = "linux", target_os = "android")));
    assert_eq!(limits.total.is_some(), resident_bytes().is_some());
    assert!(limits.total.unwrap_or(Bytes::MAX) >= Host::new().free_bytes().unwrap_or(0));
    assert!(Host::new().describe().starts_with("host memory"));
}

#[test]
fn streams_are_numbers_and_events_are_complete() {
    let host = Host::new();
    assert_eq!(host.default_stream(), 0);
    let event = host.record(7).unwrap();
    assert_eq!(host.is_complete(&event), Ok(true));
    assert_eq!((host.wait(&event), host.wait_on(1, &event)), (Ok(()), Ok(())));
    assert!(host.virtual_memory().is_none());
}
