//! Histories as traces: what a program did, from the snapshot that it left.
//!
//! ```text
//!   m …                    what lived before the first event, by address, then
//!   a 0 … a 1 …            the marker preexisting-end
//!   a f a f f              the events: alloc and free_requested
//!   m oom 4096             failures, and the program's remarks
//! ```
//!
//! Sizes are as asked for. When a block was handed out before the first event is not known, nor on
//! which other streams blocks were used.
#![forbid(unsafe_code)]

use super::check::Checker;
use super::{Event, LINE_MAX, Trace, TraceError};
use crate::report::history::Action;
use crate::report::lives::lives;
use crate::report::snapshot::Snapshot;

/// One line of the trace: the event that it comes from, what comes first at that event, the life.
type Step = (usize, u8, usize);

const ENDS: u8 = 0;
const BEGINS: u8 = 1;

impl Trace {
    /// What the program asked for, as the history and the state of a snapshot have it.
    ///
    /// # Errors
    /// A snapshot of another program may hold what no trace can: stream numbers that are too
    /// large, sizes that do not add up within 64 bits.
    ///
    /// # Examples
    /// ```
    /// use aquifer::{Allocator, Config, HistoryOptions, backend::Host};
    /// use aquifer::trace::Trace;
    ///
    /// let allocator = Allocator::new(Host::new(), Config::default());
    /// let old = allocator.allocate(700)?;
    /// allocator.record_history(HistoryOptions::default());
    /// let new = allocator.allocate(1000)?;
    /// drop(old);
    /// let trace = Trace::from_snapshot(&allocator.memory_snapshot())?;
    /// assert_eq!(trace.summary().peak_live_bytes, 1700);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_snapshot(snapshot: &Snapshot) -> Result<Self, TraceError> {
        let mut lives = lives(snapshot);
        // mtrace has no allocations of nothing.
        lives.retain(|life| life.size > 0);
        let mut older: Vec<usize> =
            (0..lives.len()).filter(|&index| lives[index].begin.is_none()).collect();
        older.sort_by_key(|&index| lives[index].address);
        let mut trace = Trace { headers: headers(snapshot, older.len()), events: Vec::new() };
        let mut next = 0;
        let mut begin = |index: usize, events: &mut Vec<Event>| {
            let (id, size, stream) = (next, lives[index].size, lives[index].stream);
            next += 1;
            events.push(Event::Allocate { id, size, stream });
            id
        };
        let mut id_of = vec![u64::MAX; lives.len()];
        for &index in &older {
            id_of[index] = begin(index, &mut trace.events);
        }
        if !older.is_empty() {
            trace.events.push(Event::Marker("preexisting-end".to_owned()));
        }
        let mut steps: Vec<Step> = Vec::with_capacity(2 * lives.len());
        for (index, life) in lives.iter().enumerate() {
            steps.extend(life.begin.map(|event| (event, BEGINS, index)));
            steps.extend(life.end.map(|event| (event, ENDS, index)));
        }
        steps.sort_unstable();
        let mut words = words(snapshot).into_iter().peekable();
        for (event, kind, index) in steps {
            while let Some((_, word)) = words.next_if(|(before, _)| *before <= event) {
                trace.events.push(word);
            }
            if kind == BEGINS {
                id_of[index] = begin(index, &mut trace.events);
            } else {
                trace.events.push(Event::Free { id: id_of[index] });
            }
        }
        trace.events.extend(words.map(|(_, word)| word));
        let mut checker = Checker::default();
        for (index, event) in trace.events.iter().enumerate() {
            let line = (1 + trace.headers.len() + index + 1) as u64;
            checker.apply(event).map_err(|fault| fault.at(line))?;
        }
        Ok(trace)
    }
}

fn headers(snapshot: &Snapshot, older: usize) -> Vec<(String, String)> {
    let reserved: u64 =
        snapshot.segments.iter().fold(0, |sum, segment| segment.total_size.saturating_add(sum));
    let headers = [
        ("converted-from", "a snapshot; sizes are as asked for, f is free_requested".to_owned()),
        ("device", snapshot.device.to_string()),
        ("preexisting", older.to_string()),
        ("reserved-bytes-end", reserved.to_string()),
    ];
    headers.map(|(key, value)| (key.to_owned(), value)).to_vec()
}

/// Failures and remarks as markers, each with the event that it comes before.
fn words(snapshot: &Snapshot) -> Vec<(usize, Event)> {
    let history = &snapshot.history;
    let mut words: Vec<(usize, Event)> = Vec::new();
    for (index, event) in history.iter().enumerate() {
        if event.action == Action::Oom {
            words.push((index, Event::Marker(format!("oom {}", event.size))));
        }
    }
    for annotation in &snapshot.annotations {
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let mut text: String = annotation.text.chars().map(plain).collect();
        while text.len() > LINE_MAX / 2 {
            text.pop();
        }
        if text.is_empty() {
            continue;
        }
        let index = history.partition_point(|event| event.time_us < annotation.time_us);
        words.push((index, Event::Marker(text)));
    }
    words.sort_by_key(|(index, _)| *index);
    words
}
