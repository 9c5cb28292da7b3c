//! One run of a scenario: the allocator, its streams, and a judgement of each operation's outcome.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::sync::Arc;

use aquifer::backend::cuda::ShareError;
use aquifer::backend::{Cuda, Lost};
use aquifer::surface::cuda::CudaError;
use aquifer::{AllocError, Allocation, CudaAllocator, OnStream, PauseError};
use cudarc::driver::{CudaStream, DriverError, sys};

use crate::Setup;
use crate::cuda::{Fake, code};

/// What outlives the allocator.
pub(crate) type Held = Vec<Allocation<Cuda>>;

/// A program; it goes on after failures, and returns what it holds at its end.
pub(crate) type Scenario = fn(&Stage<'_>) -> Held;

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Once, with this code.
    Refused(i32),
    /// And all later ones.
    Lost,
}

/// What an operation's error says of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There was no memory.
    NoMemory,
    /// The driver's own answer.
    Code(i32),
    /// The device is gone.
    Lost,
}

/// Errors that are judged.
pub(crate) trait Judged: Debug {
    fn verdict(&self) -> Verdict;
}

impl Judged for AllocError {
    fn verdict(&self) -> Verdict {
        match self {
            AllocError::OutOfMemory(_) => Verdict::NoMemory,
            AllocError::DeviceLost(_) => Verdict::Lost,
            other => panic!("no fault explains {other}"),
        }
    }
}

impl Judged for Lost {
    fn verdict(&self) -> Verdict {
        Verdict::Lost
    }
}

impl Judged for DriverError {
    fn verdict(&self) -> Verdict {
        Verdict::Code(self.0 as i32)
    }
}

impl Judged for PauseError {
    fn verdict(&self) -> Verdict {
        match self {
            PauseError::OutOfMemory { .. } => Verdict::NoMemory,
            PauseError::DeviceLost(_) => Verdict::Lost,
            other => panic!("no fault explains {other}"),
        }
    }
}

impl Judged for CudaError {
    fn verdict(&self) -> Verdict {
        match self {
            CudaError::Alloc(error) => error.verdict(),
            CudaError::Driver(code) => Verdict::Code(code.0),
            CudaError::Pause(error) => error.verdict(),
            CudaError::Lost(_) => Verdict::Lost,
            other => panic!("no fault explains {other}"),
        }
    }
}

impl Judged for ShareError {
    fn verdict(&self) -> Verdict {
        match self {
            ShareError::Refused(aquifer::backend::GrowError::OutOfMemory) => Verdict::NoMemory,
            ShareError::Refused(aquifer::backend::GrowError::Lost(_)) => Verdict::Lost,
            other => panic!("no fault explains {other}"),
        }
    }
}

/// The allocator and four streams, the default one first.
pub(crate) struct Stage<'a> {
    pub(crate) fake: &'a Fake,
    pub(crate) memory: CudaAllocator,
    pub(crate) streams: Vec<Arc<CudaStream>>,
    fault: Option<Fault>,
    /// The call that fails, by the fake's count; 0 undisturbed.
    strikes_at: Cell<u64>,
    failures: RefCell<Vec<String>>,
}

impl<'a> Stage<'a> {
    /// Nothing fails while it is set.
    pub(crate) fn new(fake: &'a Fake, setup: &Setup, fault: Option<Fault>) -> Self {
        let backend = Cuda::new(0, &setup.options).expect("the fake has the device");
        let memory = CudaAllocator::with(backend, setup.config.clone()).expect("a sound config");
        let mut streams = vec![memory.context().default_stream()];
        for _ in 0..3 {
            streams.push(memory.context().new_stream().expect("the fake makes streams"));
        }
        let failures = RefCell::default();
        Self { fake, memory, streams, fault, strikes_at: Cell::new(0), failures }
    }

    /// Lets the `nth` call from now fail.
    pub(crate) fn plan(&self, nth: u64) {
        self.strikes_at.set(self.fake.fallible_calls() + nth);
        match self.fault {
            Some(Fault::Refused(code)) => self.fake.fail_at(nth, code),
            Some(Fault::Lost) => self.fake.lose_at(nth),
            None => {}
        }
    }

    /// How many operations have failed.
    pub(crate) fn failures(&self) -> usize {
        self.failures.borrow().len()
    }

    /// What they said.
    pub(crate) fn complaints(&self) -> String {
        self.failures.borrow().join("\n")
    }

    pub(crate) fn is_lossy(&self) -> bool {
        self.fault == Some(Fault::Lost)
    }

    /// Whether an error is one that the fault explains.
    #[track_caller]
    pub(crate) fn expect_explained(&self, error: &impl Judged) {
        let is_explained = match (error.verdict(), self.fault) {
            (Verdict::NoMemory, _) => true,
            (Verdict::Code(code), Some(Fault::Refused(refused))) => code == refused,
            (Verdict::Code(code), Some(Fault::Lost)) => code == code::ILLEGAL_ADDRESS,
            (Verdict::Lost, fault) => fault == Some(Fault::Lost),
            (Verdict::Code(_), None) => false,
        };
        assert!(is_explained, "{error:?} with {:?}", self.fault);
    }

    /// The outcome of an operation, if it has one. The books are checked either way.
    #[track_caller]
    pub(crate) fn note<T, E: Judged>(&self, outcome: Result<T, E>) -> Option<T> {
        self.verify();
        self.hear(outcome)
    }

    /// The same for what cannot touch the books.
    #[track_caller]
    pub(crate) fn hear<T, E: Judged>(&self, outcome: Result<T, E>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                self.expect_explained(&error);
                let place = std::panic::Location::caller();
                self.failures.borrow_mut().push(format!("{place}: {error:?}"));
                None
            }
        }
    }

    /// An operation that is asked for again where it was refused: nothing refuses twice.
    #[track_caller]
    pub(crate) fn insist<T, E: Judged>(&self, mut ask: impl FnMut() -> Result<T, E>) -> Option<T> {
        let first = self.note(ask());
        if first.is_some() || self.is_lossy() { first } else { self.note(ask()) }
    }

    /// Checks the books. Before the fault all is as it was undisturbed, when this was checked.
    #[track_caller]
    pub(crate) fn verify(&self) {
        if self.fake.fallible_calls() >= self.strikes_at.get() {
            self.memory.verify();
        }
    }

    pub(crate) fn raw(&self, stream: usize) -> sys::CUstream {
        self.streams[stream].cu_stream()
    }

    /// The allocator on one of the streams.
    #[track_caller]
    pub(crate) fn on(&self, stream: usize) -> Option<OnStream> {
        self.insist(|| self.memory.on(&self.streams[stream]))
    }

    /// Allocates if it can.
    #[track_caller]
    pub(crate) fn attempt(&self, stream: usize, size: u64, held: &mut Held) {
        let Some(on) = self.on(stream) else { return };
        held.extend(self.note(on.allocate(size)));
    }

    /// Work on both ends of an allocation's bytes.
    #[track_caller]
    pub(crate) fn work(&self, stream: usize, allocation: &Allocation<Cuda>) {
        let Some(start) = allocation.address() else { return };
        let size = allocation.size();
        let len = size.min(4096);
        for at in [start, start + size - len] {
            // SAFETY: the allocation is alive, and keeps its memory until the stream is past this:
            // the scenario has recorded the stream, or it is the allocation's own.
            let set = unsafe { sys::cuMemsetD8Async(at, 1, len as usize, self.raw(stream)) };
            self.hear(set.result());
        }
    }

    /// Records that a stream uses the allocations, and lets it.
    #[track_caller]
    pub(crate) fn lend(&self, stream: usize, held: &Held) {
        let Some(on) = self.on(stream) else { return };
        for allocation in held {
            self.memory.record_stream(allocation, on.stream());
            self.work(stream, allocation);
        }
    }

    /// Executes what a stream has been given.
    pub(crate) fn complete(&self, stream: usize) {
        let context = self.memory.context().cu_ctx() as u64;
        self.fake.complete(context, self.raw(stream) as u64);
    }
}

/// How strict the calling thread is about captures of others, and what is current there: what a
/// call of ours has to leave as it was.
pub(crate) fn thread_state() -> (u32, usize) {
    let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the mode lives for the call, which swaps it with the thread's.
    let asked = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) };
    asked.result().expect("nothing fails now");
    let was = mode as u32;
    // SAFETY: as above; gives the thread its mode again.
    let asked = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) };
    asked.result().expect("nothing fails now");
    let mut context = std::ptr::null_mut();
    // SAFETY: the handle lives for the call.
    let asked = unsafe { sys::cuCtxGetCurrent(&raw mut context) };
    asked.result().expect("nothing fails now");
    (was, context as usize)
}
