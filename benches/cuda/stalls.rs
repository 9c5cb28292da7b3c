//! How long the CPU is held up by an allocation and its free while kernels are under way: the calls
//! alone are timed, the launch between them is not.

use std::time::Instant;

use cudarc::driver::{CudaFunction, DeviceSlice, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

use crate::driver::Driver;
use crate::harness::{Run, take_turns};
use crate::hit::figures;
use crate::rivals::{Async, OnDevice, Own, Plain};

const MIB: u64 = 1 << 20;

/// A kernel, and words for it to write.
struct Work {
    kernel: CudaFunction,
    words: aquifer::CudaBuffer<u32>,
}

impl Work {
    /// Some tens of microseconds of a large device.
    fn new(driver: &Driver, own: &Own) -> Self {
        let text = include_str!("../../shaders/cuda/words.ptx");
        let module = driver.context.load_module(Ptx::from_src(text)).expect("valid PTX");
        let kernel = module.load_function("stamp_u32").expect("a kernel of that name");
        let here = own.memory().on(own.stream()).expect("the driver knows it");
        let words = driver.pick(64, 1) * MIB as usize / 4;
        // SAFETY: it is only ever written.
        let words = unsafe { here.alloc(words) }.expect("there is room");
        own.stream().synchronize().expect("the device is there");
        Self { kernel, words }
    }

    /// Nobody waits for it, and its contents are nobody's business.
    fn submit(&mut self, lane: &impl OnDevice) {
        let (count, seed) = (self.words.len() as u64, 1_u32);
        let mut launch = lane.stream().launch_builder(&self.kernel);
        launch.arg(&mut self.words).arg(&count).arg(&seed);
        // SAFETY: the buffer has so many words, and lives until all streams were waited for.
        unsafe { launch.launch(LaunchConfig::for_num_elems(1 << 20)) }.expect("a launch");
    }
}

/// A contender of any kind.
trait Lane {
    /// Nanoseconds of each pair, launches apart.
    fn turn(&mut self, size: u64, pairs: usize, work: &mut Work, times: &mut Vec<u64>) -> f64;
}

impl<T: OnDevice> Lane for T {
    fn turn(&mut self, size: u64, pairs: usize, work: &mut Work, times: &mut Vec<u64>) -> f64 {
        self.reset();
        self.pair(size);
        let mut sum = 0;
        for number in 1..=pairs {
            let began = Instant::now();
            let block = self.allocate(size).expect("there is room");
            let allocated = began.elapsed();
            work.submit(self);
            let began = Instant::now();
            self.free(block);
            let time = (allocated + began.elapsed()).as_nanos() as u64;
            times.push(time);
            sum += time;
            if number % 64 == 0 {
                self.stream().synchronize().expect("the device is there");
            }
        }
        self.stream().synchronize().expect("the device is there");
        sum as f64 / pairs as f64
    }
}

pub(crate) fn run(run: Run, driver: &Driver) {
    let run = run.section("cuda: ns of CPU per allocate + free beside kernels");
    run.heading(&["mean ns", "p50 ns", "p99 ns", "p99.9 ns", "max ns", "ours / it"]);
    let own = Own::new(driver, None).expect("the default is there");
    let work = &std::cell::RefCell::new(Work::new(driver, &own));
    for (name, size) in [("1 MiB", MIB), ("64 MiB", 64 * MIB)] {
        let lanes: [(&str, Box<dyn Lane>); 4] = [
            ("aquifer", Box::new(Own::new(driver, None).expect("the default is there"))),
            ("async", Box::new(Async::new(driver, 0))),
            ("async, tuned", Box::new(Async::new(driver, u64::MAX))),
            ("cuMemAlloc", Box::new(Plain::new(driver))),
        ];
        let (names, lanes): (Vec<_>, Vec<_>) = lanes.into_iter().unzip();
        let pairs = run.pick(256, 5);
        let mut singles = vec![Vec::new(); names.len()];
        let mut turns: Vec<_> = lanes
            .into_iter()
            .zip(&mut singles)
            .map(|(mut lane, times)| move || lane.turn(size, pairs, &mut work.borrow_mut(), times))
            .collect();
        let mut turns: Vec<&mut dyn FnMut() -> f64> =
            turns.iter_mut().map(|turn| turn as &mut dyn FnMut() -> f64).collect();
        let series = take_turns(run.rounds(20), &mut turns);
        for ((who, each), times) in names.iter().zip(&series).zip(&mut singles) {
            let ratio = series[0].over(each).median();
            run.result(&format!("{name}: {who}"), &figures(each, times, ratio));
        }
    }
}
