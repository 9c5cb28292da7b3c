//! A chunk of physical memory: what each call of the driver takes, by the size of the chunk; and a
//! piece of the same size in one call.

use std::time::Instant;

use aquifer::backend::{Backend, Cuda, CudaOptions, CudaSource, VirtualMemory};
use cudarc::driver::result;

use crate::driver::Driver;
use crate::harness::{Run, Series};

const MIB: u64 = 1 << 20;

/// Microseconds of each chunk, call by call.
#[derive(Debug, Default)]
struct Times {
    create: Vec<f64>,
    map: Vec<f64>,
    set_access: Vec<f64>,
    unmap: Vec<f64>,
    release: Vec<f64>,
    plain: Vec<f64>,
    plain_free: Vec<f64>,
}

/// Runs it, and notes its microseconds.
fn timed<T>(times: &mut Vec<f64>, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    times.push(began.elapsed().as_nanos() as f64 / 1e3);
    done
}

pub(crate) fn run(run: Run, driver: &Driver) {
    let run = run.section("cuda: µs per chunk");
    run.heading(&[
        "create",
        "map",
        "set access",
        "all three",
        "unmap",
        "release",
        "cuMemAlloc",
        "cuMemFree",
        "µs / MiB",
    ]);
    let source = Some(CudaSource::Virtual);
    let options = CudaOptions { source, ..CudaOptions::default() };
    let Ok(cuda) = Cuda::with_context(&driver.context, &options) else {
        println!("the device has no virtual memory");
        return;
    };
    for chunk in [2, 32, 128] {
        let mut times = Times::default();
        for _ in 0..run.rounds(20) {
            grow(&cuda, chunk * MIB, &mut times);
        }
        let median = |times: &Vec<f64>| Series(times.clone()).median();
        let [create, map, set_access] = [&times.create, &times.map, &times.set_access].map(median);
        let all = create + map + set_access;
        let figures = [
            ("create_us", create),
            ("map_us", map),
            ("set_access_us", set_access),
            ("all_us", all),
            ("unmap_us", median(&times.unmap)),
            ("release_us", median(&times.release)),
            ("cu_mem_alloc_us", median(&times.plain)),
            ("cu_mem_free_us", median(&times.plain_free)),
            ("us_per_mib", all / chunk as f64),
        ];
        run.result(&format!("{chunk} MiB"), &figures);
    }
}

/// 512 MiB, chunk by chunk, and back; then in pieces.
fn grow(cuda: &Cuda, chunk: u64, times: &mut Times) {
    let ranges = cuda.virtual_memory().expect("it was asked for");
    let count = 512 * MIB / chunk;
    let range = ranges.reserve(count * chunk).expect("there are addresses");
    for offset in (0..count).map(|number| number * chunk) {
        let made = timed(&mut times.create, || ranges.create(chunk)).expect("there is room");
        let mapped = timed(&mut times.map, || ranges.map(&range, offset, made));
        assert!(mapped.is_ok(), "a chunk fits its place");
        timed(&mut times.set_access, || ranges.set_access(&range, offset, chunk))
            .expect("the device may have it");
    }
    for offset in (0..count).map(|number| number * chunk) {
        let made = timed(&mut times.unmap, || ranges.unmap(&range, offset)).expect("it was there");
        timed(&mut times.release, || ranges.release(made));
    }
    cuda.free(range);
    let allocate = || {
        // SAFETY: a context is current.
        unsafe { result::malloc_sync(chunk as usize) }.expect("there is room")
    };
    let pieces: Vec<_> = (0..count).map(|_| timed(&mut times.plain, allocate)).collect();
    for piece in pieces {
        let free = || {
            // SAFETY: it was allocated, and nobody uses it.
            unsafe { result::free_sync(piece) }.expect("it is live");
        };
        timed(&mut times.plain_free, free);
    }
}
