//! Serves an allocator's gauges and counters to Prometheus, with nothing but the standard library.
//!
//! `cargo run --example metrics_prometheus --features metrics`, then `curl localhost:9184`
//!
//! A program that has an exporter installed (`metrics-exporter-prometheus`, say) needs one line of
//! all this: `allocator.publish_metrics()`, now and then.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aquifer::backend::{Backend, Host};
use aquifer::{Allocator, Config};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString,
    Unit,
};

/// Keeps the last value of everything that is published.
#[derive(Default)]
pub(crate) struct Prometheus {
    /// By name: the kind, what it means, and the values by labels.
    families: Mutex<BTreeMap<String, Family>>,
}

#[derive(Default)]
struct Family {
    kind: &'static str,
    help: String,
    values: BTreeMap<String, Arc<Value>>,
}

/// A counter, or the bits of a gauge.
#[derive(Default)]
struct Value(AtomicU64);

impl CounterFn for Value {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }
}

impl GaugeFn for Value {
    fn increment(&self, value: f64) {
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    fn decrement(&self, value: f64) {
        GaugeFn::increment(self, -value);
    }

    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }
}

impl Prometheus {
    fn family<R>(&self, name: &str, change: impl FnOnce(&mut Family) -> R) -> R {
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        change(families.entry(name.to_owned()).or_default())
    }

    fn value(&self, kind: &'static str, key: &Key) -> Arc<Value> {
        let labels = key.labels().map(|label| format!("{}={:?}", label.key(), label.value()));
        let labels = labels.collect::<Vec<_>>().join(",");
        self.family(key.name(), |family| {
            family.kind = kind;
            Arc::clone(family.values.entry(labels).or_default())
        })
    }

    /// The text format of Prometheus.
    pub(crate) fn render(&self) -> String {
        let families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (name, Family { kind, help, values }) in &*families {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in values {
                let bits = value.0.load(Ordering::Relaxed);
                let number = if *kind == "gauge" { f64::from_bits(bits) } else { bits as f64 };
                let _ = writeln!(text, "{name}{{{labels}}} {number}");
            }
        }
        text
    }
}

impl Recorder for Prometheus {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.family(name.as_str(), |family| family.help = help.into_owned());
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.family(name.as_str(), |family| family.help = help.into_owned());
    }

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.value("counter", key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.value("gauge", key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// Answers one scrape with what the allocator has just then.
pub(crate) fn answer<B: Backend>(
    mut stream: TcpStream,
    allocator: &Allocator<B>,
    recorder: &Prometheus,
) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    // The request's head ends with an empty line; whatever it asks for, there is one answer.
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    metrics::with_local_recorder(recorder, || allocator.publish_metrics());
    let text = recorder.render();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{text}", text.len())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let allocator = Allocator::new(Host::new(), Config::default());
    let _weights = allocator.allocate(64 << 20)?;
    let listener = TcpListener::bind("127.0.0.1:9184")?;
    println!("serving metrics on http://{}", listener.local_addr()?);
    let recorder = Prometheus::default();
    for stream in listener.incoming() {
        answer(stream?, &allocator, &recorder)?;
    }
    Ok(())
}
