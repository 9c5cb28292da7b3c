//! What is written to the log, and at which level.

use std::cell::RefCell;
use std::sync::Once;

use aquifer::backend::{Host, Sim, SimOptions};
use aquifer::{Allocator, Config};
use log::{Level, LevelFilter, Log, Metadata, Record};

const MIB: u64 = 1 << 20;

thread_local! {
    /// What this thread logged: tests run side by side.
    static RECORDS: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
}

struct Capture;

impl Log for Capture {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let entry = (record.level(), record.args().to_string());
        RECORDS.with_borrow_mut(|records| records.push(entry));
    }

    fn flush(&self) {}
}

/// What `run` logs.
fn logged(run: impl FnOnce()) -> Vec<(Level, String)> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Capture).expect("no other logger is set");
        log::set_max_level(LevelFilter::Trace);
    });
    RECORDS.take();
    run();
    RECORDS.take()
}

fn at(records: &[(Level, String)], level: Level) -> Vec<&str> {
    let of_level = records.iter().filter(|(of, _)| *of == level);
    of_level.map(|(_, text)| text.as_str()).collect()
}

#[test]
fn what_outlives_its_allocator_is_one_message() {
    let allocator = Allocator::new(Host::new(), Config::default());
    let other = allocator.clone();
    let weights = allocator.tag("weights");
    let line = line!() + 1;
    let layer = || allocator.request(2 * MIB).tag(weights).allocate().expect("room");
    let layers = [layer(), layer(), layer()];
    let raw = allocator.request(512).allocate_raw().expect("room");
    let records = logged(|| drop(allocator));
    assert!(records.is_empty(), "there is another handle: {records:?}");
    let records = logged(|| drop(other));
    let warnings = at(&records, Level::Warn);
    let [text] = warnings[..] else { panic!("{warnings:?}") };
    let first = format!("\n  6.00 MiB in 3 by {}:{line} [weights]", file!());
    let second = format!("\n  512 B in 1 by {}:{}", file!(), line + 2);
    assert!(text.contains("dropped while 6.00 MiB in 4 are held"), "{text}");
    assert!(text.ends_with(&(first + &second)), "{text}");
    let records = logged(|| drop(layers));
    assert!(at(&records, Level::Warn).is_empty(), "once is enough: {records:?}");
    assert_eq!(raw.size, 512);
}

#[test]
fn nothing_is_said_of_what_came_back() {
    let records = logged(|| {
        let allocator = Allocator::new(Host::new(), Config::default());
        drop(allocator.allocate(MIB).expect("room"));
    });
    assert!(at(&records, Level::Warn).is_empty(), "{records:?}");
}

#[test]
fn growths_and_trims_are_for_debugging() {
    for virtual_memory in [false, true] {
        let options = SimOptions { capacity: 64 * MIB, virtual_memory, ..SimOptions::default() };
        let mut config = Config::default();
        config.expandable_segments = virtual_memory;
        let allocator = Allocator::new(Sim::new(options), config);
        let records = logged(|| drop(allocator.allocate(20 * MIB).expect("room")));
        assert_eq!(at(&records, Level::Debug).len(), 1, "{records:?}");
        let rungs = at(&records, Level::Trace);
        assert!(rungs.iter().all(|text| text.contains("for 20971520 bytes: ")), "{rungs:?}");
        assert!(!rungs.is_empty(), "{records:?}");
        let records = logged(|| drop(allocator.allocate(20 * MIB).expect("cached")));
        assert!(records.is_empty(), "a hit says nothing: {records:?}");
        let records = logged(|| assert!(allocator.empty_cache() > 0));
        assert!(!at(&records, Level::Debug).is_empty(), "{records:?}");
        let records = logged(|| assert!(allocator.allocate(65 * MIB).is_err()));
        let warnings = at(&records, Level::Warn);
        assert!(warnings.len() == 1 && warnings[0].contains("out of memory"), "{records:?}");
    }
}

#[test]
fn a_scope_that_is_dropped_leaves_its_report() {
    let allocator = Allocator::new(Host::new(), Config::default());
    let records = logged(|| drop(allocator.scope("step")));
    let told = at(&records, Level::Debug);
    assert!(told.len() == 1 && told[0].contains("scope \"step\""), "{records:?}");
    let records = logged(|| drop(allocator.scope("step").end()));
    assert!(records.is_empty(), "it was told already: {records:?}");
}

#[test]
fn a_panic_of_a_callback_is_an_error() {
    let allocator = Allocator::new(Host::with_capacity(4 * MIB), Config::default());
    let _guard = allocator.observe_out_of_memory(|_| panic!("this panic is part of the test"));
    let records = logged(|| assert!(allocator.allocate(5 * MIB).is_err()));
    let errors = at(&records, Level::Error);
    assert!(errors.len() == 1 && errors[0].contains("observer"), "{records:?}");
}
