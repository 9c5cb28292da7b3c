//! Reports of HTML in a real browser: they open without a complaint and without a network, show the
//! snapshot's numbers, and can be worked with by keys and pointer.
//!
//! Needs Chromium. Where there is none the tests say so and do nothing; with `CI` set they fail.
//! Debian, Ubuntu: `apt-get install chromium`; the variable `CHROMIUM` names another place.
#![cfg(feature = "cli")]

#[path = "html/browser.rs"]
mod browser;

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use aquifer::backend::{Host, Sim, SimOptions};
use aquifer::report::format_bytes;
use aquifer::report::history::{Action, Event, Frame};
use aquifer::report::snapshot::{SegmentSnapshot, Snapshot};
use aquifer::{Allocator, Config, HistoryOptions};
use browser::Browser;

const MIB: u64 = 1 << 20;

fn page_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn write(snapshot: &Snapshot, name: &str) -> PathBuf {
    let path = page_path(name);
    let file = File::create(&path).expect("the page can be created");
    snapshot.write_html(BufWriter::new(file)).expect("the page can be written");
    path
}

fn is_local(url: &str) -> bool {
    url.starts_with("file://") || url == "about:blank"
}

/// The page is as it should be: nothing complained, nothing was loaded but itself.
fn assert_quiet(browser: &Browser) {
    assert!(browser.complaints.is_empty(), "{:#?}", browser.complaints);
    let strangers: Vec<String> =
        browser.requests().into_iter().filter(|url| !is_local(url)).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}

/// A number that an element keeps beside its text.
fn number(browser: &mut Browser, selector: &str, key: &str) -> u64 {
    let text = browser.text(&format!("document.querySelector('{selector}').dataset.{key}"));
    text.parse().unwrap_or_else(|_| panic!("{selector} has {key} = {text}"))
}

/// To the moment at this part of the history.
fn scrub_to(browser: &mut Browser, part: u32) {
    browser.value(&format!(
        "scrub.value = Math.floor(scrub.max / {part}); scrub.dispatchEvent(new Event('input'))"
    ));
    browser.settle();
}

fn sum(snapshot: &Snapshot, size: fn(&SegmentSnapshot) -> u64) -> u64 {
    snapshot.segments.iter().map(size).sum()
}

/// Some layers come and go, some stay, one request fails.
fn training() -> Snapshot {
    let options = SimOptions { capacity: 200 * MIB, ..SimOptions::default() };
    let allocator = Allocator::new(Sim::new(options), Config::default());
    allocator.set_memory_limit(Some(160 * MIB));
    allocator.record_history(HistoryOptions::default());
    let tag = allocator.tag("optimizer");
    let kept: Vec<_> = (0..3)
        .map(|_| allocator.request(4 * MIB).tag(tag).allocate().expect("there is room"))
        .collect();
    for epoch in 0..20 {
        allocator.annotate(format!("epoch {epoch}"));
        let layers: Vec<_> = (1..=8)
            .map(|layer| allocator.allocate(layer * MIB / 3).expect("there is room"))
            .collect();
        drop(layers);
    }
    assert!(allocator.allocate(512 * MIB).is_err());
    // It is cached: something is free at the end.
    drop(allocator.allocate(6 * MIB));
    let snapshot = allocator.memory_snapshot();
    drop(kept);
    snapshot
}

#[test]
fn the_page_has_the_snapshots_numbers() {
    let Some(mut browser) = Browser::start("numbers") else { return };
    let snapshot = training();
    browser.open(&write(&snapshot, "numbers.html"));
    let sentence = browser.text("document.getElementById('sentence').textContent");
    assert!(
        sentence.starts_with("At the end 12.00 MiB are held: 12.00 MiB in 3 by tests/html.rs:")
    );
    assert!(sentence.ends_with(" [optimizer]."), "{sentence}");

    let allocated = sum(&snapshot, |segment| segment.allocated_size);
    let reserved = sum(&snapshot, |segment| segment.total_size);
    for (key, expected) in [
        ("allocated", allocated),
        ("active", sum(&snapshot, |segment| segment.active_size)),
        ("requested", sum(&snapshot, |segment| segment.requested_size)),
        ("reserved", reserved),
    ] {
        assert_eq!(number(&mut browser, "#moment", key), expected, "{key}");
    }
    assert_eq!(number(&mut browser, "#fact-held", "value"), allocated);
    assert_eq!(number(&mut browser, "#fact-reserved", "value"), reserved);
    assert_eq!(number(&mut browser, "#fact-limit", "value"), 160 * MIB);
    assert_eq!(number(&mut browser, "#fact-events", "value"), snapshot.history.len() as u64);
    assert_eq!(number(&mut browser, ".total [data-column=endBytes]", "value"), allocated);
    assert_eq!(number(&mut browser, ".total [data-column=endBlocks]", "value"), 3);
    let shown = browser.text("document.getElementById('fact-reserved').textContent");
    assert_eq!(shown, format_bytes(reserved));
    let map = browser.text("document.getElementById('map-summary').textContent");
    let segments = snapshot.segments.len();
    assert!(map.starts_with(&format!("{segments} segment")), "{map}");
    assert!(map.contains(&format!("{} free", format_bytes(reserved - allocated))), "{map}");
    assert_quiet(&browser);
}

#[test]
fn keys_and_buttons_go_through_time() {
    let Some(mut browser) = Browser::start("keys") else { return };
    let snapshot = training();
    browser.open(&write(&snapshot, "keys.html"));
    let last = number(&mut browser, "#moment", "moment");
    assert!(last > 100, "{last}");
    browser.value("document.getElementById('timeline').focus()");
    let press = |browser: &mut Browser, key: &str| {
        browser.key(key);
        browser.settle();
        number(browser, "#moment", "moment")
    };
    assert_eq!(press(&mut browser, "Home"), 0);
    assert_eq!(number(&mut browser, "#moment", "allocated"), 0);
    assert_eq!(
        browser.text("document.getElementById('map-summary').textContent").chars().next(),
        Some('0')
    );
    let one_on = press(&mut browser, "ArrowRight");
    assert!(0 < one_on && one_on < last, "{one_on}");
    assert!(number(&mut browser, "#moment", "reserved") > 0);
    let peak = press(&mut browser, "p");
    assert!(one_on < peak && peak < last, "{peak}");
    let allocated = number(&mut browser, "#moment", "allocated");
    assert_eq!(number(&mut browser, "#fact-peak", "value"), allocated);
    assert_eq!(number(&mut browser, ".total [data-column=nowBytes]", "value"), allocated);
    assert_eq!(number(&mut browser, ".total [data-column=peakBytes]", "value"), allocated);
    assert!(number(&mut browser, ".total [data-column=endBytes]", "value") < allocated);
    let told = browser.text("document.getElementById('timeline').getAttribute('aria-valuenow')");
    assert_eq!(told, peak.to_string());

    // The slider is the browser's own, and moves by one step.
    browser.value("document.getElementById('scrub').focus()");
    assert_eq!(press(&mut browser, "ArrowLeft"), peak - 1);
    assert!(number(&mut browser, "#moment", "allocated") < allocated);
    browser.value("document.getElementById('go-oom').click()");
    browser.settle();
    let oom = number(&mut browser, "#moment", "moment");
    assert!(peak < oom && oom < last, "{oom}");
    browser.value("document.getElementById('go-end').click()");
    browser.settle();
    assert_eq!(number(&mut browser, "#moment", "moment"), last);

    // From block to block.
    browser.value("document.getElementById('map').focus()");
    press(&mut browser, "ArrowRight");
    let block = browser.text("document.getElementById('map-status').textContent");
    assert!(block.starts_with("4.00 MiB; tests/html.rs:"), "{block}");
    assert!(block.contains("tag optimizer"), "{block}");
    assert_quiet(&browser);
}

#[test]
fn the_pointer_reads_zooms_and_chooses() {
    let Some(mut browser) = Browser::start("pointer") else { return };
    let snapshot = training();
    browser.open(&write(&snapshot, "pointer.html"));
    browser.value("document.getElementById('axis').value = 'event'");
    browser.value("document.getElementById('axis').dispatchEvent(new Event('change'))");
    browser.settle();
    let last = number(&mut browser, "#moment", "moment");
    let place = |browser: &mut Browser, id: &str, side: &str| {
        let edge = format!("document.getElementById('{id}').getBoundingClientRect().{side}");
        browser.value(&edge).as_f64().expect("a coordinate")
    };
    let (left, right) =
        (place(&mut browser, "timeline", "left"), place(&mut browser, "timeline", "right"));
    let y = place(&mut browser, "timeline", "top") + 100.0;
    let at = |part: f64| (left + 72.0 + (right - left - 84.0) * part, y);
    browser.pointer(&[at(0.4), at(0.5)], false);
    let tip = browser.text("document.querySelector('#timeline .tip').textContent");
    assert!(tip.contains("reserved ") && tip.contains("MiB"), "{tip}");

    browser.pointer(&[at(0.5), at(0.5)], true);
    let middle = number(&mut browser, "#moment", "moment");
    assert!(middle.abs_diff(last / 2) <= last / 100 + 1, "{middle} of {last}");
    // A quarter of what is shown: the same place is then another moment.
    browser.pointer(&[at(0.5), at(0.6), at(0.75)], true);
    assert_eq!(number(&mut browser, "#moment", "moment"), middle);
    browser.pointer(&[at(0.5), at(0.5)], true);
    let zoomed = number(&mut browser, "#moment", "moment");
    assert!(zoomed.abs_diff(last * 5 / 8) <= last / 50 + 1, "{zoomed} of {last}");

    browser.value("document.getElementById('map').scrollIntoView({ block: 'center' })");
    browser.settle();
    let (x, y) = (place(&mut browser, "map", "left"), place(&mut browser, "map", "top"));
    browser.pointer(&[(x + 270.0, y + 10.0), (x + 275.0, y + 14.0)], false);
    let tip = browser.text("document.querySelector('#map .tip').textContent");
    assert!(tip.contains("4.00 MiB") && tip.contains("tag optimizer"), "{tip}");
    assert_quiet(&browser);
}

#[test]
fn light_and_dark_small_and_large() {
    let Some(mut browser) = Browser::start("sizes") else { return };
    let snapshot = training();
    let page = write(&snapshot, "sizes.html");
    // A laptop, the same at 200 %, and a telephone.
    for (width, height, scale) in [(1280, 800, 1.0), (640, 400, 2.0), (360, 740, 3.0)] {
        browser.size(width, height, scale);
        browser.open(&page);
        let overflow =
            "document.documentElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(browser.value(overflow), 0, "{width} pixels");
    }
    let colour = "getComputedStyle(document.body).backgroundColor";
    let light = browser.text(colour);
    let picture = browser.picture();
    browser.value("document.getElementById('theme').click()");
    assert_ne!(browser.text(colour), light);
    assert_ne!(browser.picture(), picture);
    // Whatever can be pressed has a name.
    let nameless = "[...document.querySelectorAll('button, input, select')].filter(it => \
                    !(it.textContent.trim() || it.ariaLabel || it.labels?.length)).length";
    assert_eq!(browser.value(nameless), 0);
    assert_quiet(&browser);
}

#[test]
fn names_are_never_markup() {
    let Some(mut browser) = Browser::start("names") else { return };
    let hostile = "</script><script>window.broken = 1</script><img src=x onerror='broken=1'>";
    let mut snapshot = Snapshot::default();
    snapshot.device_name = hostile.to_owned();
    snapshot.settings = format!("{hostile}:{hostile}");
    let mut event = Event::new(Action::Alloc, 4096, 100, 0, 3);
    event.tag = Some(hostile.into());
    let frame = Frame { file: hostile.into(), line: 7, name: hostile.into() };
    event.frames = [frame].into();
    snapshot.history.push(Event::new(Action::SegmentAlloc, 4096, 4096, 0, 2));
    snapshot.history.push(event);
    snapshot.history.push(Event::new(Action::Oom, 0, 100, 0, 4));
    browser.open(&write(&snapshot, "names.html"));
    browser.value("document.getElementById('go-peak').click()");
    browser.settle();
    assert_eq!(browser.value("typeof window.broken"), "undefined");
    assert_eq!(browser.value("document.images.length"), 0);
    assert_eq!(browser.value("document.scripts.length"), 2);
    let row = browser.text("document.querySelector('#holders tbody td').textContent");
    assert_eq!(row, format!("{hostile}:7 {hostile} [{hostile}]"));
    assert_quiet(&browser);
}

#[test]
fn no_number_is_too_large() {
    let Some(mut browser) = Browser::start("large") else { return };
    let edges = [0, 1, 511, 512, 1 << 36, (1 << 53) + 1, u64::MAX - 1, u64::MAX];
    let mut snapshot = Snapshot::default();
    for index in 0..2000 {
        let edge = |step: usize| edges[index / step % edges.len()];
        let action = Action::ALL[index % Action::ALL.len()];
        snapshot.history.push(Event::new(action, edge(1), edge(3), 0, edge(7)));
    }
    snapshot.limit = Some(u64::MAX);
    browser.open(&write(&snapshot, "large.html"));
    for part in [2, 3, 7] {
        scrub_to(&mut browser, part);
    }
    browser.value("document.getElementById('map').focus()");
    browser.key("ArrowRight");
    browser.settle();
    assert_quiet(&browser);
}

#[test]
fn what_waits_for_a_stream_is_told_apart() {
    let Some(mut browser) = Browser::start("pending") else { return };
    let mut snapshot = Snapshot::default();
    snapshot.history.push(Event::new(Action::SegmentAlloc, 1 << 40, 2 * MIB, 0, 1));
    snapshot.history.push(Event::new(Action::Alloc, 1 << 40, MIB, 0, 2));
    snapshot.history.push(Event::new(Action::FreeRequested, 1 << 40, MIB, 0, 5));
    snapshot.history.push(Event::new(Action::FreeCompleted, 1 << 40, MIB, 0, 9));
    browser.open(&write(&snapshot, "pending.html"));
    browser.value("document.getElementById('go-start').click()");
    for _ in 0..3 {
        browser.value("document.getElementById('go-on').click()");
    }
    browser.settle();
    assert_eq!(number(&mut browser, "#moment", "allocated"), 0);
    assert_eq!(number(&mut browser, "#moment", "active"), MIB);
    browser.value("document.getElementById('map').focus()");
    browser.key("ArrowRight");
    browser.settle();
    let told = browser.text("document.getElementById('map-status').textContent");
    assert!(told.contains("freed, but a stream may still use it"), "{told}");
    assert!(told.contains("for 3 µs, since step 2"), "{told}");
    assert_quiet(&browser);
}

#[test]
fn nothing_is_shown_as_nothing() {
    let Some(mut browser) = Browser::start("nothing") else { return };
    browser.open(&write(&Snapshot::default(), "nothing.html"));
    let sentence = browser.text("document.getElementById('sentence').textContent");
    assert_eq!(sentence, "At the end nothing is held.");
    assert_eq!(number(&mut browser, "#moment", "reserved"), 0);

    // Without a history there is one moment.
    let allocator = Allocator::new(Host::new(), Config::default());
    let _held = allocator.allocate(3 * MIB).expect("there is room");
    browser.open(&write(&allocator.memory_snapshot(), "one.html"));
    assert_eq!(number(&mut browser, "#moment", "moment"), 0);
    assert_eq!(number(&mut browser, "#moment", "allocated"), 3 * MIB);
    assert_quiet(&browser);
}

/// A million events; how long the page takes is told, not judged.
#[test]
fn a_million_events_open() {
    let Some(mut browser) = Browser::start("million") else { return };
    const EVENTS: u64 = 1_000_000;
    const LIVE: u64 = 1000;
    let mut snapshot = Snapshot::default();
    let segment = |address| Event::new(Action::SegmentAlloc, address, LIVE * 4096, 0, 0);
    snapshot.history.push(segment(1 << 40));
    for index in 0..EVENTS / 3 {
        let address = (1 << 40) + index % LIVE * 4096;
        if index >= LIVE {
            for action in [Action::FreeRequested, Action::FreeCompleted] {
                snapshot.history.push(Event::new(action, address, 4000, 0, index * 5));
            }
        }
        snapshot.history.push(Event::new(Action::Alloc, address, 4000, 0, index * 5 + 1));
    }
    let page = write(&snapshot, "million.html");
    browser.open(&page);
    let ms = browser.text("document.documentElement.dataset.readyMs");
    let bytes = fs::metadata(&page).expect("the page is there").len();
    eprintln!(
        "{} events: {} of HTML, ready in {ms} ms",
        snapshot.history.len(),
        format_bytes(bytes)
    );
    assert_eq!(number(&mut browser, "#fact-peak", "value"), LIVE * 4096);
    assert_eq!(number(&mut browser, "#fact-peak-reserved", "value"), LIVE * 4096);
    // In the middle, everything is held; what each moment holds is found from its checkpoint.
    for part in [2, 3, 7] {
        scrub_to(&mut browser, part);
        let held = number(&mut browser, ".total [data-column=nowBytes]", "value");
        assert_eq!(number(&mut browser, "#moment", "allocated"), held);
        assert!(held == LIVE * 4096 || held == (LIVE - 1) * 4096, "{held}");
    }
    assert_quiet(&browser);
}

#[test]
fn the_program_makes_the_same_page_of_the_same_trace() {
    let trace = "benches/traces/cs336-silmont-small.mtrace.gz";
    let run = |name: &str| {
        let path = page_path(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
        command.args(["report", trace, "-o"]).arg(&path);
        let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read(path).expect("the page is there")
    };
    assert!(run("same1.html") == run("same2.html"));
}

#[test]
fn a_snapshot_of_pytorch_becomes_a_page() {
    let path = page_path("torch.html");
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
    command.args(["report", "tests/formats/torch_snapshot_small.pickle", "-o"]).arg(&path);
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = fs::read_to_string(&path).expect("the page is there");
    // By the lines of the program, not by the unwinder on top of each stack.
    assert!(page.contains("At the end 30.25 MiB are held: "));
    assert!(page.contains("2.00 MiB in 1 by trace_peak_memory.py:35"));
    let Some(mut browser) = Browser::start("torch") else { return };
    browser.open(&path);
    assert_eq!(number(&mut browser, "#fact-held", "value"), 31_719_936);
    assert_quiet(&browser);
}

#[test]
fn what_cannot_be_reported_is_refused() {
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
        command.arg("report").args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
        let output = command.output().expect("it runs");
        let said = String::from_utf8(output.stderr).expect("complaints are text");
        (output.status.code(), said, output.stdout)
    };
    let trace = "benches/traces/cs336-silmont-small.mtrace.gz";
    for (args, code, reason) in [
        (&["no-such.mtrace", "-o", "-"][..], 2, "no-such.mtrace"),
        (&["README.md", "-o", "-"], 2, "README.md: line 1"),
        (&["Cargo.toml", "-o", "-"], 2, "Cargo.toml: byte "),
        (&[trace], 2, "--output"),
        (&[trace, "--config", "nonsense", "-o", "-"], 2, "--config"),
        (&[trace, "-o", "no-such-folder/report.html"], 1, "no-such-folder/report.html"),
    ] {
        let (status, said, out) = run(args);
        assert_eq!((status, said.lines().count(), out.len()), (Some(code), 1, 0), "{said}");
        assert!(said.starts_with("aquifer: ") && said.contains(reason), "{said}");
    }
    // A device that is too small is no failure: the page shows where it ended.
    let (status, said, out) = run(&[trace, "--capacity", "4MiB", "-o", "-"]);
    assert_eq!((status, said.as_str()), (Some(0), ""));
    assert!(out.starts_with(b"<!doctype html>") && out.ends_with(b"</html>\n"));
}

#[test]
fn the_demonstration_reports_what_it_leaks() {
    let path = page_path("leak.html");
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
    command.args([
        "demo",
        "--backend",
        "host",
        "--steps",
        "3",
        "--batch",
        "8",
        "--leak",
        "--report",
    ]);
    let output = command.arg(&path).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = fs::read_to_string(&path).expect("the page is there");
    assert!(
        page.contains("At the end ") && page.contains(" in 3 by src/bin/aquifer/linear/host.rs:")
    );
    assert!(page.contains(" [activations]"));
    assert!(page.contains("deleting the model"));
    let Some(mut browser) = Browser::start("leak") else { return };
    browser.open(&path);
    assert!(number(&mut browser, "#fact-held", "value") > 0);
    assert_quiet(&browser);
}
