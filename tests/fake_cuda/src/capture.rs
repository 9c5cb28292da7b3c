//! Captures of streams, and the graphs that come out of them.
//!
//! ```text
//!   origin   begin ─ copy ─ record e1 ───────────────────── wait e2 ─ end     one list of work, in
//!   other                        └─ wait e1 ─ kernel ─ record e2 ─┘           the order of capture
//! ```
//!
//! Who has joined is known by clocks: for each stream of the capture, how much captured work of
//! each other one it comes after.
//!
//! G1: a stream is in at most one capture, and the capture's clocks are keyed by its streams.
//! G2: at the end the origin comes after all work of all other streams, or the capture is unjoined.
//! G3: a graph holds its work with the addresses as they were; a launch is that work, again.
//!
//! Not here: memory nodes (stream-ordered allocation in a capture is answered with 801).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::abi::{Answer, Code};
use crate::entry::Driver;
use crate::state::State;
use crate::thread;
use crate::work::Work;

/// `CU_STREAM_CAPTURE_MODE_…`.
const GLOBAL: u32 = 0;
const RELAXED: u32 = 2;

/// How much captured work of each stream comes before.
pub(crate) type Clock = BTreeMap<u64, u64>;

#[derive(Debug)]
pub(crate) struct Capture {
    mode: u32,
    thread: u64,
    origin: u64,
    pub(crate) is_valid: bool,
    work: Vec<Work>,
    clocks: BTreeMap<u64, Clock>,
    nodes: Nodes,
}

/// The graph as it grows: one node for each piece of work.
#[derive(Debug, Default)]
struct Nodes {
    /// The node of the so-manieth work of a stream, from 1 on.
    handles: BTreeMap<(u64, u64), u64>,
    /// What each node comes after.
    dependencies: BTreeMap<u64, Vec<u64>>,
    /// What the next work of each stream will come after.
    ends: BTreeMap<u64, Vec<u64>>,
}

impl Nodes {
    fn add(&mut self, stream: u64, count: u64, node: u64) {
        let before = self.ends.insert(stream, vec![node]).unwrap_or_default();
        self.dependencies.insert(node, before);
        self.handles.insert((stream, count), node);
    }

    fn join(&mut self, stream: u64, clock: &Clock) {
        let nodes = clock.iter().filter_map(|(&other, &count)| self.handles.get(&(other, count)));
        let ends = self.ends.entry(stream).or_default();
        for &node in nodes {
            if !ends.contains(&node) {
                ends.push(node);
            }
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Graphs {
    pub(crate) graphs: BTreeMap<u64, Arc<Vec<Work>>>,
    pub(crate) executables: BTreeMap<u64, Arc<Vec<Work>>>,
}

/// The rules.
impl State {
    pub(crate) fn break_capture(&mut self, capture: u64) {
        if let Some(capture) = self.timeline.captures.get_mut(&capture) {
            capture.is_valid = false;
        }
    }

    /// Refuses a call that is potentially unsafe, if the calling thread's mode and the captures
    /// under way say so.
    pub(crate) fn forbid_in_capture(&mut self) -> Answer {
        let (number, mode) = thread::with(self.epoch, |own| (own.number, own.capture_mode));
        let forbids = |capture: &Capture| match mode {
            RELAXED => false,
            _ if capture.thread == number => capture.mode != RELAXED,
            GLOBAL => capture.mode == GLOBAL,
            _ => false,
        };
        let mut is_forbidden = false;
        for capture in self.timeline.captures.values_mut().filter(|capture| forbids(capture)) {
            capture.is_valid = false;
            is_forbidden = true;
        }
        if is_forbidden {
            return Err(self.misuse(Code::CAPTURE_UNSUPPORTED, "called during a capture"));
        }
        Ok(())
    }

    /// Refuses a call that would wait for a stream that captures.
    pub(crate) fn forbid_on_capturing(&mut self, id: u64) -> Answer {
        let stream = self.timeline.streams.get(&id);
        let own = stream.and_then(|stream| stream.capture);
        if let Some(capture) = own {
            self.break_capture(capture);
            return Err(self.misuse(Code::CAPTURE_UNSUPPORTED, "the stream is capturing"));
        }
        let legacy = stream.filter(|stream| stream.is_legacy).map(|stream| stream.device);
        if let Some(capture) = legacy.and_then(|device| self.timeline.blocking_capture(device)) {
            self.break_capture(capture);
            let text = "the legacy stream is waited for while a blocking stream captures";
            return Err(self.misuse(Code::CAPTURE_IMPLICIT, text));
        }
        Ok(())
    }

    /// The same for a whole device.
    pub(crate) fn forbid_on_device(&mut self, device: usize) -> Answer {
        let of_device = self.timeline.streams.values().filter(|stream| stream.device == device);
        match of_device.filter_map(|stream| stream.capture).next() {
            None => Ok(()),
            Some(capture) => {
                self.break_capture(capture);
                let text = "the device is waited for while one of its streams captures";
                Err(self.misuse(Code::CAPTURE_UNSUPPORTED, text))
            }
        }
    }
}

/// Captures.
impl Driver {
    pub(crate) fn begin_capture(&mut self, id: u64, mode: u32) -> Answer {
        if mode > RELAXED {
            return Err(self.misuse(Code::INVALID_VALUE, format!("capture mode {mode}")));
        }
        let stream = &self.timeline.streams[&id];
        if stream.is_legacy {
            let text = "the legacy stream cannot be captured";
            return Err(self.misuse(Code::CAPTURE_UNSUPPORTED, text));
        }
        if stream.capture.is_some() {
            return Err(self.misuse(Code::ILLEGAL_STATE, "the stream is capturing already"));
        }
        let number = thread::with(self.epoch, |thread| thread.number);
        let capture = self.timeline.new_identity();
        let clocks = BTreeMap::from([(id, Clock::new())]);
        let begun = Capture {
            mode,
            thread: number,
            origin: id,
            is_valid: true,
            work: Vec::new(),
            clocks,
            nodes: Nodes::default(),
        };
        self.timeline.captures.insert(capture, begun);
        self.set_capture(id, Some(capture));
        Ok(())
    }

    fn set_capture(&mut self, id: u64, capture: Option<u64>) {
        if let Some(stream) = self.timeline.streams.get_mut(&id) {
            stream.capture = capture;
        }
    }

    /// A capture that can still take something.
    fn valid_capture(&mut self, capture: u64) -> Answer<&mut Capture> {
        let found = self.timeline.captures.get_mut(&capture).filter(|capture| capture.is_valid);
        found.ok_or(Code::CAPTURE_INVALIDATED)
    }

    pub(crate) fn capture_work(&mut self, id: u64, capture: u64, work: Work) -> Answer {
        let is_free = matches!(work, Work::Free { .. });
        let capture_now = self.valid_capture(capture)?;
        if is_free {
            return Err(self.no_memory_nodes(capture));
        }
        capture_now.work.push(work);
        let count = capture_now.clocks.entry(id).or_default().entry(id).or_insert(0);
        *count += 1;
        let count = *count;
        let node = self.new_handle();
        self.valid_capture(capture)?.nodes.add(id, count, node);
        Ok(())
    }

    /// The nodes that the next work of a stream will come after. They stay where they are until the
    /// stream's next work.
    pub(crate) fn capture_ends(&self, id: u64, capture: u64) -> &[u64] {
        let nodes = &self.timeline.captures[&capture].nodes;
        nodes.ends.get(&id).map_or(&[], Vec::as_slice)
    }

    /// What a node of a capture under way comes after.
    pub(crate) fn node_dependencies(&mut self, node: u64) -> Answer<Vec<u64>> {
        let mut captures = self.timeline.captures.values();
        let found = captures.find_map(|capture| capture.nodes.dependencies.get(&node).cloned());
        found.ok_or_else(|| self.misuse(Code::INVALID_VALUE, format!("{node:#x} is no node")))
    }

    /// Stream-ordered memory in a capture becomes nodes of the graph; the fake has none.
    pub(crate) fn no_memory_nodes(&mut self, capture: u64) -> Code {
        self.break_capture(capture);
        self.misuse(Code::NOT_SUPPORTED, "stream-ordered memory in a capture")
    }

    pub(crate) fn capture_clock(&mut self, id: u64, capture: u64) -> Answer<Clock> {
        let capture = self.valid_capture(capture)?;
        Ok(capture.clocks.entry(id).or_default().clone())
    }

    /// A stream waits for an event of a capture: it joins that, or comes after more of it.
    pub(crate) fn join_capture(&mut self, id: u64, capture: u64, clock: Clock) -> Answer {
        if !self.timeline.captures.contains_key(&capture) {
            let text = "the event was recorded in a capture that is over";
            return Err(self.misuse(Code::CAPTURED_EVENT, text));
        }
        let own = self.timeline.streams[&id].capture;
        if let Some(own) = own.filter(|own| *own != capture) {
            self.break_capture(own);
            self.break_capture(capture);
            return Err(self.misuse(Code::CAPTURE_MERGE, "two captures would become one"));
        }
        if self.timeline.streams[&id].is_legacy {
            self.break_capture(capture);
            let text = "the legacy stream would join a capture";
            return Err(self.misuse(Code::CAPTURE_IMPLICIT, text));
        }
        let joined = self.valid_capture(capture)?;
        joined.nodes.join(id, &clock);
        let merged = joined.clocks.entry(id).or_default();
        for (stream, count) in clock {
            let known = merged.entry(stream).or_insert(0);
            *known = (*known).max(count);
        }
        self.set_capture(id, Some(capture));
        Ok(())
    }

    /// Ends a capture: the handle of its graph.
    pub(crate) fn end_capture(&mut self, id: u64) -> Answer<u64> {
        let Some(capture) = self.timeline.streams[&id].capture else {
            return Err(self.misuse(Code::ILLEGAL_STATE, "the stream is not capturing"));
        };
        let number = thread::with(self.epoch, |thread| thread.number);
        let Capture { origin, thread, mode, .. } = self.timeline.captures[&capture];
        if origin != id {
            self.break_capture(capture);
            let text = "the capture began in another stream";
            return Err(self.misuse(Code::CAPTURE_UNMATCHED, text));
        }
        if thread != number && mode != RELAXED {
            self.break_capture(capture);
            let text = "the capture began in another thread";
            return Err(self.misuse(Code::CAPTURE_WRONG_THREAD, text));
        }
        let ended = self.timeline.captures.remove(&capture).expect("G1");
        for stream in ended.clocks.keys() {
            self.set_capture(*stream, None);
        }
        if !ended.is_valid {
            return Err(Code::CAPTURE_INVALIDATED);
        }
        let joined = &ended.clocks[&id];
        let known = |stream: &u64| joined.get(stream).copied().unwrap_or(0);
        let own = |stream: &u64, clock: &Clock| clock.get(stream).copied().unwrap_or(0);
        let is_joined = ended.clocks.iter().all(|(at, clock)| own(at, clock) <= known(at));
        if !is_joined {
            let text = "work of another stream is not joined";
            return Err(self.misuse(Code::CAPTURE_UNJOINED, text));
        }
        let graph = self.new_handle();
        self.graphs.graphs.insert(graph, Arc::new(ended.work));
        Ok(graph)
    }
}

/// Graphs.
impl Driver {
    fn no_graph(&mut self, handle: u64) -> Code {
        self.misuse(Code::INVALID_VALUE, format!("{handle:#x} is no graph, or was destroyed"))
    }

    pub(crate) fn instantiate(&mut self, graph: u64) -> Answer<u64> {
        let Some(work) = self.graphs.graphs.get(&graph).cloned() else {
            return Err(self.no_graph(graph));
        };
        let executable = self.new_handle();
        self.graphs.executables.insert(executable, work);
        Ok(executable)
    }

    pub(crate) fn executable(&mut self, handle: u64) -> Answer<Arc<Vec<Work>>> {
        match self.graphs.executables.get(&handle).cloned() {
            Some(work) => Ok(work),
            None => Err(self.no_graph(handle)),
        }
    }

    pub(crate) fn launch_graph(&mut self, handle: u64, id: u64) -> Answer {
        let work = self.executable(handle)?;
        work.iter().try_for_each(|work| self.submit(id, work.clone()))
    }

    pub(crate) fn destroy_graph(&mut self, handle: u64) -> Answer {
        let gone = self.graphs.graphs.remove(&handle);
        gone.map(drop).ok_or_else(|| self.no_graph(handle))
    }

    pub(crate) fn destroy_executable(&mut self, handle: u64) -> Answer {
        let gone = self.graphs.executables.remove(&handle);
        gone.map(drop).ok_or_else(|| self.no_graph(handle))
    }
}
