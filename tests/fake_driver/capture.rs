//! Captures and graphs: what they take, what ends them badly, and replays.

use std::ffi::c_void;

use crate::api::*;
use crate::cuda::{Fake, Options, code};

const GLOBAL: u32 = 0;
const THREAD_LOCAL: u32 = 1;
const RELAXED: u32 = 2;

fn begin(mode: u32) -> u64 {
    let stream = stream();
    assert_eq!(cuStreamBeginCapture_v2(stream, mode), 0);
    stream
}

fn status(stream: u64) -> u32 {
    made(|status| cuStreamIsCapturing(stream, status))
}

fn capture_id(stream: u64) -> u64 {
    let (mut state, none) = (0, std::ptr::null_mut());
    made(|id| cuStreamGetCaptureInfo_v2(stream, &mut state, id, none, none, none.cast()))
}

fn exchange(mut mode: u32) -> u32 {
    assert_eq!(cuThreadExchangeStreamCaptureMode(&mut mode), 0);
    mode
}

fn end_fails(stream: u64, wanted: i32) {
    let mut graph = 1;
    assert_eq!(cuStreamEndCapture(stream, &mut graph), wanted);
    assert_eq!(graph, 0);
}

#[test]
fn a_graph_does_its_work_again_at_the_same_addresses() {
    let fake = Fake::fresh(Options { asynchronous: true, ..Options::default() });
    let context = context(0);
    let (memory, other, fork, join) = (memory(16), stream(), event(), event());
    let origin = begin(GLOBAL);
    assert_eq!((status(origin), status(other)), (1, 0));
    assert_ne!(capture_id(origin), 0);
    assert_eq!(capture_id(other), 0);
    assert_eq!(cuMemsetD8Async(memory, 1, 4, origin), 0);
    assert_eq!(cuEventRecord(fork, origin), 0);
    assert_eq!(cuStreamWaitEvent(other, fork, 0), 0);
    assert_eq!(status(other), 1);
    assert_eq!(cuMemcpyDtoDAsync_v2(memory + 8, memory, 4, other), 0);
    assert_eq!(cuEventRecord(join, other), 0);
    assert_eq!(cuStreamWaitEvent(origin, join, 0), 0);
    let graph: u64 = made(|graph| cuStreamEndCapture(origin, graph));
    assert_eq!((status(origin), status(other), fake.executed()), (0, 0, 0));
    let run: u64 = made(|run| cuGraphInstantiateWithFlags(run, graph, 0));
    assert_eq!(cuGraphDestroy(graph), 0);
    assert_eq!(cuGraphUpload(run, origin), 0);
    assert_eq!(cuGraphLaunch(run, origin), 0);
    assert_eq!(fake.complete(context, origin), 2);
    assert_eq!(fake.read(memory + 8, 4), [1; 4]);
    fake.write(memory + 8, &[0; 4]);
    assert_eq!(cuGraphLaunch(run, other), 0);
    assert_eq!(cuGraphExecDestroy(run), 0);
    assert_eq!(cuStreamSynchronize(other), 0);
    assert_eq!(fake.read(memory + 8, 4), [1; 4]);
    assert_eq!(cuGraphLaunch(run, origin), code::INVALID_VALUE);
    noted(&fake, "no graph");
}

#[test]
fn a_replay_over_memory_that_is_gone_is_noted() {
    let fake = Fake::fresh(Options::default());
    context(0);
    let memory = memory(4 << 20);
    let stream = begin(RELAXED);
    assert_eq!(cuMemsetD8Async(memory, 1, 8, stream), 0);
    let graph: u64 = made(|graph| cuStreamEndCapture(stream, graph));
    let run: u64 = made(|run| {
        cuGraphInstantiate_v2(run, graph, std::ptr::null_mut(), std::ptr::null_mut(), 0)
    });
    assert_eq!(cuGraphLaunch(run, stream), 0);
    assert_eq!(cuMemFree_v2(memory), 0);
    assert_eq!(cuGraphLaunch(run, stream), code::ILLEGAL_ADDRESS);
    noted(&fake, "no memory");
    assert_eq!(cuGraphDestroy(graph), code::ILLEGAL_ADDRESS);
    fake.heal();
    assert_eq!((cuGraphDestroy(graph), cuGraphExecDestroy(run)), (0, 0));
}

#[test]
fn unsafe_calls_end_a_global_capture_unless_the_thread_is_relaxed() {
    let fake = Fake::fresh(Options::default());
    context(0);
    let pointer = memory(8);
    let fresh = event();
    let calls: [(&str, &dyn Fn() -> i32); 8] = [
        ("cuMemAlloc_v2", &|| cuMemAlloc_v2(&mut 0, 8)),
        ("cuMemFree_v2", &|| cuMemFree_v2(pointer)),
        ("cuMemHostAlloc", &|| cuMemHostAlloc(&mut 0, 8, 0)),
        ("cuEventQuery", &|| cuEventQuery(fresh)),
        ("cuMemUnmap", &|| cuMemUnmap(0, 0)),
        ("cuStreamSynchronize", &|| cuStreamSynchronize(0)),
        ("cuMemsetD8_v2", &|| cuMemsetD8_v2(pointer, 0, 1)),
        ("cuMemRelease", &|| cuMemRelease(0)),
    ];
    for (name, call) in calls {
        let stream = begin(GLOBAL);
        assert_eq!(call(), code::CAPTURE_UNSUPPORTED, "{name}");
        noted(&fake, name);
        assert_eq!(status(stream), 2);
        assert_eq!(cuMemsetD8Async(pointer, 0, 1, stream), code::CAPTURE_INVALIDATED);
        end_fails(stream, code::CAPTURE_INVALIDATED);
    }
    let stream = begin(GLOBAL);
    assert_eq!(exchange(RELAXED), GLOBAL);
    let more = memory(8);
    assert_eq!((cuMemFree_v2(more), exchange(GLOBAL)), (0, RELAXED));
    let graph: u64 = made(|graph| cuStreamEndCapture(stream, graph));
    assert_ne!(graph, 0);
}

#[test]
fn modes_say_which_threads_are_bound() {
    let fake = Fake::fresh(Options::default());
    let context = context(0);
    let elsewhere = |mode: u32| {
        std::thread::scope(|scope| {
            let ask = || {
                assert_eq!(cuCtxSetCurrent(context), 0);
                exchange(mode);
                cuMemGetInfo_v2(&mut 0, &mut 0);
                cuMemAlloc_v2(&mut 0, 8)
            };
            scope.spawn(ask).join().expect("the other thread")
        })
    };
    let stream = begin(THREAD_LOCAL);
    assert_eq!(elsewhere(GLOBAL), 0);
    assert_eq!(cuMemAlloc_v2(&mut 0, 8), code::CAPTURE_UNSUPPORTED);
    noted(&fake, "during a capture");
    end_fails(stream, code::CAPTURE_INVALIDATED);
    let stream = begin(GLOBAL);
    assert_eq!((elsewhere(THREAD_LOCAL), elsewhere(RELAXED)), (0, 0));
    assert_eq!(elsewhere(GLOBAL), code::CAPTURE_UNSUPPORTED);
    noted(&fake, "during a capture");
    end_fails(stream, code::CAPTURE_INVALIDATED);
    let stream = begin(RELAXED);
    assert_eq!((cuMemAlloc_v2(&mut 0, 8), elsewhere(GLOBAL)), (0, 0));
    assert_ne!(made(|graph| cuStreamEndCapture(stream, graph)), 0u64);
}

#[test]
fn waiting_for_what_is_captured_ends_the_capture() {
    let fake = Fake::fresh(Options::default());
    context(0);
    let event = event();
    let calls: [(&dyn Fn(u64) -> i32, i32); 5] = [
        (&|_| cuCtxSynchronize(), code::CAPTURE_UNSUPPORTED),
        (&|stream| cuStreamSynchronize(stream), code::CAPTURE_UNSUPPORTED),
        (&|stream| cuStreamQuery(stream), code::CAPTURE_UNSUPPORTED),
        (&|_| cuEventQuery(event), code::CAPTURED_EVENT),
        (&|_| cuEventSynchronize(event), code::CAPTURED_EVENT),
    ];
    for (call, wanted) in calls {
        let stream = begin(RELAXED);
        assert_eq!(cuEventRecord(event, stream), 0);
        assert_eq!(call(stream), wanted);
        assert_eq!(fake.take_violations().len(), 1);
        end_fails(stream, code::CAPTURE_INVALIDATED);
        assert_eq!(cuCtxSynchronize(), 0);
    }
    assert_eq!(cuEventQuery(event), code::CAPTURED_EVENT);
    noted(&fake, "recorded in a capture");
}

#[test]
fn captures_that_are_not_sound_end_badly() {
    let fake = Fake::fresh(Options { asynchronous: true, ..Options::default() });
    context(0);
    let (memory, other, event) = (memory(8), stream(), event());
    // Unjoined.
    let origin = begin(RELAXED);
    assert_eq!(cuEventRecord(event, origin), 0);
    assert_eq!(cuStreamWaitEvent(other, event, 0), 0);
    assert_eq!(cuMemsetD8Async(memory, 1, 1, other), 0);
    end_fails(origin, code::CAPTURE_UNJOINED);
    noted(&fake, "not joined");
    // Work that is not captured is waited for.
    assert_eq!(cuEventRecord(event, other), 0);
    let origin = begin(RELAXED);
    assert_eq!(cuStreamWaitEvent(origin, event, 0), code::CAPTURE_ISOLATION);
    noted(&fake, "not captured");
    end_fails(origin, code::CAPTURE_INVALIDATED);
    // Two captures would become one.
    let (first, second) = (begin(RELAXED), begin(RELAXED));
    assert_eq!(cuEventRecord(event, first), 0);
    assert_eq!(cuStreamWaitEvent(second, event, 0), code::CAPTURE_MERGE);
    noted(&fake, "two captures");
    end_fails(first, code::CAPTURE_INVALIDATED);
    end_fails(second, code::CAPTURE_INVALIDATED);
    // Ended where it did not begin, or in no capture at all.
    end_fails(other, code::ILLEGAL_STATE);
    noted(&fake, "not capturing");
    let origin = begin(RELAXED);
    assert_eq!(cuEventRecord(event, origin), 0);
    assert_eq!(cuStreamWaitEvent(other, event, 0), 0);
    end_fails(other, code::CAPTURE_UNMATCHED);
    noted(&fake, "another stream");
    end_fails(origin, code::CAPTURE_INVALIDATED);
    // Ended by another thread.
    let origin = begin(THREAD_LOCAL);
    let context: u64 = made(cuCtxGetCurrent);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(cuCtxSetCurrent(context), 0);
            end_fails(origin, code::CAPTURE_WRONG_THREAD);
        });
    });
    noted(&fake, "another thread");
    end_fails(origin, code::CAPTURE_INVALIDATED);
    // An event of a capture that is over.
    let origin = begin(RELAXED);
    assert_eq!(cuEventRecord(event, origin), 0);
    assert_ne!(made(|graph| cuStreamEndCapture(origin, graph)), 0u64);
    misuse(&fake, code::CAPTURED_EVENT, cuStreamWaitEvent(other, event, 0), "that is over");
    // No modes.
    misuse(&fake, code::INVALID_VALUE, cuStreamBeginCapture_v2(other, 3), "capture mode");
    let wrong = cuThreadExchangeStreamCaptureMode(&mut 3);
    misuse(&fake, code::INVALID_VALUE, wrong, "capture mode");
    // Streams that cannot be captured.
    assert_eq!(cuStreamBeginCapture_v2(0, RELAXED), code::CAPTURE_UNSUPPORTED);
    noted(&fake, "legacy");
    let origin = begin(RELAXED);
    assert_eq!(cuStreamBeginCapture_v2(origin, RELAXED), code::ILLEGAL_STATE);
    noted(&fake, "already");
    assert_eq!(cuStreamDestroy_v2(origin), code::CAPTURE_UNSUPPORTED);
    noted(&fake, "capturing");
    end_fails(origin, code::CAPTURE_INVALIDATED);
}

#[test]
fn the_legacy_stream_disturbs_the_capture_of_a_blocking_stream() {
    let fake = Fake::fresh(Options::default());
    context(0);
    let memory = memory(8);
    let stream: u64 = made(|stream| cuStreamCreate(stream, 0));
    assert_eq!(cuStreamBeginCapture_v2(stream, RELAXED), 0);
    assert_eq!(cuStreamIsCapturing(0, &mut 0), code::CAPTURE_IMPLICIT);
    assert_eq!(status(stream), 1);
    assert_eq!(cuMemsetD8Async(memory, 0, 1, 0), code::CAPTURE_IMPLICIT);
    noted(&fake, "legacy stream");
    end_fails(stream, code::CAPTURE_INVALIDATED);
}

#[test]
fn stream_ordered_memory_has_no_place_in_a_capture() {
    let fake = Fake::fresh(Options::default());
    context(0);
    let stream = begin(RELAXED);
    assert_eq!(cuMemAllocAsync(&mut 0, 8, stream), code::NOT_SUPPORTED);
    noted(&fake, "stream-ordered");
    end_fails(stream, code::CAPTURE_INVALIDATED);
}

#[test]
fn kernels_compute_and_are_captured() {
    let fake = Fake::fresh(Options::default());
    context(0);
    let module: u64 = made(|module| cuModuleLoadData(module, c"image".as_ptr().cast()));
    let find = |name: &std::ffi::CStr| -> u64 {
        made(|function| cuModuleGetFunction(function, module, name.as_ptr()))
    };
    let missing = cuModuleGetFunction(&mut 0, module, c"no_such".as_ptr());
    assert_eq!(missing, code::NOT_FOUND);
    let (stamp, check) = (find(c"stamp_u32"), find(c"check_u32"));
    let (mut words, mut count, mut seed) = (memory(400), 100u64, u32::MAX - 3);
    let mut wrong = memory(8);
    let pointer = |value: *mut u64| value.cast::<c_void>();
    let mut arguments =
        [pointer(&mut words), pointer(&mut count), (&raw mut seed).cast(), pointer(&mut wrong)];
    let mut launch = |function: u64, stream: u64| {
        let arguments = arguments.as_mut_ptr();
        cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, arguments, std::ptr::null_mut())
    };
    let stream = begin(RELAXED);
    assert_eq!(launch(stamp, stream), 0);
    let graph: u64 = made(|graph| cuStreamEndCapture(stream, graph));
    let run: u64 = made(|run| cuGraphInstantiateWithFlags(run, graph, 0));
    assert_eq!((cuMemsetD8_v2(wrong, 0, 8), cuMemsetD8_v2(words, 7, 400)), (0, 0));
    assert_eq!(launch(check, stream), 0);
    assert_eq!(fake.read(wrong, 8), 100u64.to_le_bytes());
    assert_eq!(cuGraphLaunch(run, stream), 0);
    assert_eq!(launch(check, stream), 0);
    assert_eq!(fake.read(wrong, 8), 100u64.to_le_bytes());
    assert_eq!(fake.read(words + 16, 4), 0u32.to_le_bytes());
    let none = std::ptr::null_mut();
    let empty = cuLaunchKernel(check, 1, 0, 1, 32, 1, 1, 0, stream, none, none);
    misuse(&fake, code::INVALID_VALUE, empty, "a grid or a block");
    let huge = cuLaunchKernel(check, 1, 1, 1, 2048, 1, 1, 0, stream, none, none);
    misuse(&fake, code::INVALID_VALUE, huge, "a grid or a block");
    misuse(&fake, code::INVALID_VALUE, cuModuleLoadData(&mut 0, none.cast()), "no image");
    let most: i32 = made(|value| cuFuncGetAttribute(value, 0, check));
    let blocks: i32 =
        made(|blocks| cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, check, 256, 0));
    assert_eq!((most, blocks), (1024, 8));
    assert_eq!(cuMemFree_v2(wrong), 0);
    misuse(&fake, code::ILLEGAL_ADDRESS, launch(check, stream), "a kernel");
    fake.heal();
    assert_eq!(cuModuleUnload(module), 0);
    misuse(&fake, code::INVALID_HANDLE, launch(check, stream), "its module is gone");
}

#[test]
fn adam_takes_a_step() {
    let fake = Fake::fresh(Options::default());
    context(0);
    let (no_options, no_values) = (std::ptr::null_mut(), std::ptr::null_mut());
    let module: u64 = made(|module| {
        cuModuleLoadDataEx(module, c"image".as_ptr().cast(), 0, no_options, no_values)
    });
    let adam: u64 = made(|adam| cuModuleGetFunction(adam, module, c"adam_f32".as_ptr()));
    let mut tensors = [memory(8), memory(8), memory(8), memory(8)];
    let floats = |values: [f32; 2]| values.map(f32::to_le_bytes).concat();
    for (tensor, values) in tensors.iter().zip([[1.0, 1.0], [0.5, -2.0], [0.0; 2], [0.0; 2]]) {
        fake.write(*tensor, &floats(values));
    }
    // The rate of 0.1 and both moments as the first step corrects them.
    let (mut count, mut numbers) = (2u64, [0.1 / 0.1f32, 1.0 / 0.001, 0.9, 0.999, 1e-8]);
    let tensors = tensors.each_mut().map(|tensor| (&raw mut *tensor).cast::<c_void>());
    let numbers = numbers.each_mut().map(|number| (&raw mut *number).cast::<c_void>());
    let mut arguments: Vec<*mut c_void> = tensors.to_vec();
    arguments.push((&raw mut count).cast());
    arguments.extend(numbers);
    let arguments = arguments.as_mut_ptr();
    let none = std::ptr::null_mut();
    assert_eq!(cuLaunchKernel(adam, 1, 1, 1, 64, 1, 1, 0, 0, arguments, none), 0);
    // The first step of Adam is the rate, against the gradient.
    // SAFETY: the first argument is the address of the parameters.
    let parameters = unsafe { tensors[0].cast::<u64>().read() };
    let bytes = fake.read(parameters, 8);
    let after = [0, 4].map(|at| f32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[at + byte])));
    assert!((after[0] - 0.9).abs() < 1e-5 && (after[1] - 1.1).abs() < 1e-5, "{after:?}");
}
