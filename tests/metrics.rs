//! What is published, read as Prometheus would read it: from the example's own server.

#[path = "../examples/metrics_prometheus.rs"]
#[allow(dead_code)] // Its `main` never ends.
mod example;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use aquifer::backend::{Sim, SimOptions};
use aquifer::{Allocator, Config};
use example::{Prometheus, answer};

const MIB: u64 = 1 << 20;

fn sim() -> Allocator<Sim> {
    let options = SimOptions { capacity: 128 * MIB, ..SimOptions::default() };
    Allocator::new(Sim::new(options), Config::default())
}

fn published(allocator: &Allocator<Sim>, recorder: &Prometheus) -> String {
    metrics::with_local_recorder(recorder, || allocator.publish_metrics());
    recorder.render()
}

/// The value of a metric with the one label that there is.
#[track_caller]
fn value(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    let label = "{device=\"simulated device, 134217728 bytes\"} ";
    let (_, number) = line.split_once(label).expect("labelled with the device");
    number.parse().expect("a whole number")
}

#[test]
fn gauges_say_what_the_statistics_say() {
    let (allocator, recorder) = (sim(), Prometheus::default());
    allocator.set_memory_limit(Some(100 * MIB));
    let held = allocator.allocate(30 * MIB).expect("room");
    drop(allocator.allocate(10 * MIB).expect("room"));
    let text = published(&allocator, &recorder);
    let stats = allocator.memory_stats();
    for (name, expected) in [
        ("aquifer_requested_bytes", 30 * MIB),
        ("aquifer_allocated_bytes", 30 * MIB),
        ("aquifer_active_bytes", 30 * MIB),
        ("aquifer_pending_bytes", 0),
        ("aquifer_reserved_bytes", stats.reserved_bytes.all.current),
        ("aquifer_inactive_split_bytes", stats.inactive_split_bytes.all.current),
        ("aquifer_allocated_peak_bytes", 40 * MIB),
        ("aquifer_reserved_peak_bytes", stats.reserved_bytes.all.peak),
        ("aquifer_allocations", 1),
        ("aquifer_segments", stats.segment.all.current),
        ("aquifer_limit_bytes", 100 * MIB),
        ("aquifer_device_bytes", 128 * MIB),
    ] {
        assert_eq!(value(&text, name), expected, "{name}");
    }
    assert!(text.contains("# TYPE aquifer_allocated_bytes gauge\n"), "{text}");
    assert!(text.contains("# HELP aquifer_reserved_bytes Held from the device.\n"), "{text}");
    drop(held);
    assert_eq!(value(&published(&allocator, &recorder), "aquifer_allocated_bytes"), 0);
}

#[test]
fn counters_only_rise() {
    let (allocator, recorder) = (sim(), Prometheus::default());
    let held = allocator.allocate(30 * MIB).expect("room");
    drop(allocator.allocate(10 * MIB).expect("room"));
    assert!(allocator.allocate(110 * MIB).is_err());
    published(&allocator, &recorder);
    // Statistics that start anew are no reason for a counter to do so.
    allocator.reset_accumulated_memory_stats();
    allocator.empty_cache();
    assert!(allocator.allocate(110 * MIB).is_err());
    drop(held);
    let text = published(&allocator, &recorder);
    let stats = allocator.memory_stats();
    assert_eq!((stats.num_ooms, stats.allocation.all.allocated), (1, 0));
    let reserved = allocator.memory_reserved();
    for (name, expected) in [
        ("aquifer_allocations_total", 2),
        ("aquifer_frees_total", 2),
        ("aquifer_allocated_bytes_total", 40 * MIB),
        ("aquifer_freed_bytes_total", 40 * MIB),
        ("aquifer_ooms_total", 2),
        ("aquifer_oom_rejections_total", 0),
        ("aquifer_alloc_retries_total", 2),
    ] {
        assert_eq!(value(&text, name), expected, "{name}");
    }
    let grown = value(&text, "aquifer_grown_bytes_total");
    assert_eq!(grown - value(&text, "aquifer_returned_bytes_total"), reserved);
    let segments = value(&text, "aquifer_device_allocs_total");
    let back = value(&text, "aquifer_device_frees_total");
    assert!(segments > back && back > 0, "{text}");
    assert!(value(&text, "aquifer_sync_all_streams_total") > 0);
    assert!(text.contains("# TYPE aquifer_ooms_total counter\n"), "{text}");
}

#[test]
fn two_allocators_have_names_of_their_own() {
    let (first, second, recorder) = (sim(), sim(), Prometheus::default());
    let _held = first.allocate(4 * MIB).expect("room");
    metrics::with_local_recorder(&recorder, || {
        first.publish_metrics_as("first");
        second.publish_metrics_as("second");
    });
    let text = recorder.render();
    assert!(text.contains("aquifer_allocated_bytes{device=\"first\"} 4194304\n"), "{text}");
    assert!(text.contains("aquifer_allocated_bytes{device=\"second\"} 0\n"), "{text}");
}

#[test]
fn a_scrape_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (allocator, recorder) = (sim(), Prometheus::default());
    let _held = allocator.allocate(8 * MIB).expect("room");
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("the test connects");
        answer(stream, &allocator, &recorder)
    });
    let mut stream = TcpStream::connect(address).expect("the server listens");
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer, and its end");
    server.join().expect("no panic there").expect("answered");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert_eq!(value(&text, "aquifer_allocated_bytes"), 8 * MIB);
}
