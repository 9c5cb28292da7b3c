//! One thing at a time: growth and trims beside live blocks, a foreign stream that is late,
//! threads, pinned copies, and the plain kernels.

use aquifer::CudaBuffer;
use cudarc::driver::DeviceSlice;

use crate::fixture::{Counter, Device, blank, pick};
use crate::support::MIB;

#[test]
fn growth_and_trims_leave_live_words_alone() {
    let device = Device::new();
    let on = device.stream();
    let mut counter = Counter::new(&on);
    let words = pick(64, 4) * MIB as usize / 4;
    let stamped = |count: u32, words: usize, first: u32| -> Vec<(u32, CudaBuffer<u32>)> {
        let stamp = |seed: u32| {
            let mut buffer = blank(&on, words);
            device.words.stamp(&on, &mut buffer, seed);
            (seed, buffer)
        };
        (first..first + count).map(stamp).collect()
    };
    let mut blocks = stamped(24, words, 100);
    for round in 1..4_u32 {
        blocks.drain(..12);
        let returned = device.memory.empty_cache();
        assert!(round > 1 || returned > 0, "half of everything lies free, side by side");
        blocks.extend(stamped(12, words + round as usize * 1000, round * 10_000));
        for (seed, buffer) in &blocks {
            device.words.check(&on, buffer, *seed, &mut counter);
        }
        device.memory.verify();
    }
    assert_eq!(counter.wrong(), 0);
    drop((blocks, counter, on));
    device.finish();
}

#[test]
fn bytes_that_another_stream_still_reads_are_nobodys() {
    let device = Device::new();
    let [home, abroad] = [device.stream(), device.stream()];
    let mut counters = [Counter::new(&home), Counter::new(&abroad)];
    let words = pick(16, 1) * MIB as usize / 4;
    let mut ballast = blank(&abroad, pick(256, 1) * MIB as usize / 4);
    for seed in 0..pick(200, 30_u32) {
        let mut buffer = blank(&home, words);
        device.words.stamp(&home, &mut buffer, seed);
        abroad.cuda_stream().join(home.cuda_stream()).expect("an event");
        buffer.record_on(abroad.cuda_stream()).expect("a stream of the device");
        device.words.stamp(&abroad, &mut ballast, 0);
        device.words.check(&abroad, &buffer, seed, &mut counters[1]);
        // The check has not run yet: who has the bytes next comes after it, on the device.
        drop(buffer);
        let mut next = blank(&home, words);
        device.words.stamp(&home, &mut next, !seed);
        device.words.check(&home, &next, !seed, &mut counters[0]);
        if seed % 4 == 3 {
            device.advance(&abroad);
        }
    }
    assert_eq!(counters.each_ref().map(Counter::wrong), [0, 0]);
    drop((counters, ballast, home, abroad));
    device.finish();
}

#[test]
fn threads_with_streams_of_their_own_do_not_meet() {
    let device = Device::new();
    let wrong: u64 = std::thread::scope(|scope| {
        let work = |first: u32| {
            let device = &device;
            move || {
                let on = device.stream();
                let mut counter = Counter::new(&on);
                for seed in first..first + pick(2000, 200) {
                    let words = 1 + (seed as usize * 7919) % (pick(8, 1) * MIB as usize / 4);
                    let mut buffer = blank(&on, words);
                    device.words.stamp(&on, &mut buffer, seed);
                    device.words.check(&on, &buffer, seed, &mut counter);
                    if seed % 64 == 0 {
                        device.memory.empty_cache();
                    }
                }
                counter.wrong()
            }
        };
        let threads = [scope.spawn(work(0)), scope.spawn(work(1 << 20))];
        threads.map(|thread| thread.join().expect("the thread ends")).iter().sum()
    });
    assert_eq!(wrong, 0);
    device.finish();
}

#[test]
fn pinned_copies_carry_what_was_written() {
    let device = Device::new();
    let on = device.stream();
    let mut counter = Counter::new(&on);
    for round in 0..pick(100, 10_u32) {
        let words = 1 + (round as usize * 104_729) % (pick(32, 1) * MIB as usize / 4);
        let ramp = |seed: u32| (0..words as u32).map(move |word| seed.wrapping_add(word));
        let mut up = device.memory.alloc_pinned::<u32>(words).expect("room");
        let mut down = device.memory.alloc_pinned::<u32>(words).expect("room");
        let mut buffer = blank(&on, words);
        for seed in [round, !round] {
            // Waits for the copy before: the values are the CPU's again.
            let values = up.slice_mut().expect("the device is there");
            values.iter_mut().zip(ramp(seed)).for_each(|(value, word)| *value = word);
            on.copy_to_device(&mut up, &mut buffer).expect("a copy");
            device.words.check(&on, &buffer, seed, &mut counter);
            on.copy_to_host(&buffer, &mut down).expect("a copy");
            assert!(down.slice().expect("the device is there").iter().copied().eq(ramp(seed)));
        }
        // Dropped with a copy under way.
        on.copy_to_device(&mut up, &mut buffer).expect("a copy");
    }
    assert_eq!(counter.wrong(), 0);
    drop((counter, on));
    device.finish();
}

#[test]
fn kernels_write_all_words_and_no_others() {
    let device = Device::new();
    let on = device.stream();
    for words in [1, 2, 255, 256, 1023, 1025, 70_001] {
        let mut buffer = blank(&on, words + 1);
        device.words.fill(&on, &mut buffer, 0xABCD_EF01);
        let read = |buffer: &CudaBuffer<u32>| -> Vec<u32> {
            buffer.stream().clone_dtoh(buffer).expect("the device is there")
        };
        assert_eq!(read(&buffer), vec![0xABCD_EF01; words + 1]);
        let seed = u32::MAX - 100; // The marks wrap.
        device.words.stamp_first(&on, &mut buffer, words, seed);
        let marks = (0..words as u32).map(|word| seed.wrapping_add(word));
        assert!(read(&buffer).into_iter().eq(marks.chain([0xABCD_EF01])), "{words}");
        let mut counter = Counter::new(&on);
        device.words.check_first(&on, &buffer, words, seed, &mut counter);
        assert_eq!(counter.wrong(), 0);
        device.words.check(&on, &buffer, seed, &mut counter);
        assert_eq!(counter.wrong(), 1, "the word behind them is no mark");
        device.words.check(&on, &buffer, seed ^ 1, &mut counter);
        assert!(counter.wrong() > words as u64, "of another seed all are wrong");
    }
    drop(on);
    device.finish();
}
