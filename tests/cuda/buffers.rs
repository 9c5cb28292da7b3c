//! Typed buffers where cudarc takes slices.

use aquifer::backend::{Cuda, CudaOptions};
use aquifer::{AllocError, CudaAllocator};
use cudarc::driver::DeviceSlice;

use crate::cuda::{Fake, Options};
use crate::{MIB, close, open};

#[test]
fn buffers_go_where_slices_go() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    let stream = memory.context().new_stream().expect("the fake works");
    let on = memory.on(&stream).expect("known");
    let values: Vec<u32> = (0..5000).collect();
    let source = on.clone_htod(&values).expect("room");
    let mut target = on.alloc_zeros::<u32>(5000).expect("room");
    assert_eq!(stream.clone_dtoh(&target).expect("a copy"), vec![0; 5000]);
    stream.memcpy_dtod(&source, &mut target).expect("a copy");
    assert_eq!(stream.clone_dtoh(&target).expect("a copy"), values);
    stream.memcpy_htod(&[1, 2, 3], &mut target.view_mut(10..)).expect("a copy");
    assert_eq!(stream.clone_dtoh(&target.view(9..14)).expect("a copy"), [9, 1, 2, 3, 13]);
    stream.memset_zeros(&mut target.view_mut(..2)).expect("cleared");
    assert_eq!(stream.clone_dtoh(&target.view(..=2)).expect("a copy"), [0, 0, 2]);
    assert_eq!((source.len(), source.num_bytes(), target.view(5..9).len()), (5000, 20_000, 4));
    assert_eq!(fake.calls("cuEventCreate"), 0, "no buffer has events of its own");
    drop((source, target, on, stream));
    close(&fake, memory);
}

#[test]
fn empty_buffers_hold_nothing() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    let stream = memory.context().default_stream();
    let on = memory.on(&stream).expect("known");
    let none = on.alloc_zeros::<u64>(0).expect("nothing needs no room");
    let copied = on.clone_htod::<u32, [u32]>(&[]).expect("nothing needs no room");
    assert_eq!((none.address(), none.len(), copied.len()), (0, 0, 0));
    assert_eq!(memory.memory_reserved(), 0);
    drop((none, copied, on, stream));
    close(&fake, memory);
}

#[test]
fn what_cannot_be_counted_is_too_large() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    let on = memory.on(&memory.context().default_stream()).expect("known");
    // SAFETY: nothing is read.
    let error = unsafe { on.alloc::<u64>(usize::MAX) }.expect_err("more than there is");
    assert!(matches!(error, AllocError::TooLarge { .. }), "{error}");
    // SAFETY: nothing is read.
    let error = unsafe { on.alloc::<u8>(1 << 40) }.expect_err("more than there is");
    assert!(matches!(error, AllocError::OutOfMemory(_)), "{error}");
    drop(on);
    close(&fake, memory);
}

#[test]
#[should_panic(expected = "values 3..9 of a buffer of 8")]
fn views_stay_inside() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    let on = memory.on(&memory.context().default_stream()).expect("known");
    let buffer = on.alloc_zeros::<u32>(8).expect("room");
    let _ = buffer.view(3..9);
}

#[test]
fn a_borrowed_slice_frees_nothing() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    let stream = memory.context().new_stream().expect("the fake works");
    let on = memory.on(&stream).expect("known");
    let mut buffer = on.clone_htod(&[3_u32; 100]).expect("room");
    {
        // SAFETY: it stays where it is.
        let mut slice = unsafe { buffer.as_cuda_slice() };
        assert_eq!(stream.clone_dtoh(&*slice).expect("a copy"), [3; 100]);
        stream.memset_zeros(&mut *slice).expect("cleared");
    }
    assert_eq!(fake.calls("cuMemFreeAsync") + fake.calls("cuMemFree_v2"), 0);
    assert_eq!(stream.clone_dtoh(&buffer).expect("a copy"), [0; 100]);
    assert_eq!(memory.memory_allocated(), 512);
    drop((buffer, on, stream));
    memory.context().check_err().expect("cudarc has nothing to complain of");
    close(&fake, memory);
}

#[test]
fn holders_are_named() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    let on = memory.on(&memory.context().default_stream()).expect("known");
    let tag = memory.tag("optimizer");
    // SAFETY: nothing is read.
    let tagged = unsafe { on.alloc_tagged::<f32>(1 << 20, tag) }.expect("room");
    let plain = on.alloc_zeros::<f32>(100).expect("room");
    let line = line!() - 1;
    let holders = memory.holders();
    assert_eq!(holders[0].tag.as_deref(), Some("optimizer"));
    assert!(holders[1].to_string().contains(&format!("buffers.rs:{line}")), "{}", holders[1]);
    drop((tagged, plain, on));
    close(&fake, memory);
}

#[test]
fn a_buffer_may_be_dropped_anywhere() {
    let fake = Fake::fresh(Options::default());
    let memory = open(&fake);
    let on = memory.on(&memory.context().default_stream()).expect("known");
    let buffers: Vec<_> = (0..10).map(|_| on.alloc_zeros::<u8>(3 << 20).expect("room")).collect();
    std::thread::spawn(move || drop(buffers)).join().expect("no panic");
    assert_eq!(memory.memory_allocated(), 0);
    assert!(memory.empty_cache() >= 30 * MIB);
    drop(on);
    close(&fake, memory);
}

/// The default streams of all devices have one handle.
#[test]
fn a_stream_of_another_device_is_waited_for() {
    let fake = Fake::fresh(Options { devices: 2, asynchronous: true, ..Options::default() });
    let options = CudaOptions { peers: vec![1], ..CudaOptions::default() };
    let backend = Cuda::new(0, &options).expect("the fake has two");
    let config = CudaAllocator::recommended_config(backend.source());
    let memory = CudaAllocator::with(backend, config).expect("a valid configuration");
    let second = CudaAllocator::open(1).expect("the fake has two");
    let (stream, far) = (memory.context().default_stream(), second.context().default_stream());
    let (on, on_far) = (memory.on(&stream).expect("known"), second.on(&far).expect("known"));
    let mut target = on.alloc_zeros::<u8>(1000).expect("room");
    let source = on_far.clone_htod(&[7_u8; 1000]).expect("room");
    fake.complete_all();
    far.memcpy_dtod(&source, &mut target).expect("submitted");
    drop(target);
    // The own stream has the bytes back at once, and nobody writes to them any more.
    let next = on.clone_htod(&[9_u8; 1000]).expect("room");
    fake.complete_all();
    assert_eq!(stream.clone_dtoh(&next).expect("a copy"), [9; 1000]);
    drop((next, source, on, on_far, stream, far, second));
    close(&fake, memory);
}
