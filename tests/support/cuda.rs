//! The test's side of the fake CUDA driver in `tests/fake_cuda`: loading it, and driving it.
//!
//! A [`Fake`] is the whole driver: there is one at a time in a process, and making it is a reset.
//! Dropping it fails the test if the driver was misused and nobody has taken note of it.
//!
//! Cargo builds the library with every `cargo test`, as a dependency that nothing links.

// Each test needs only some of it.
#![allow(dead_code, unused_imports)]

#[path = "cuda/library.rs"]
mod library;
#[path = "../fake_cuda/src/options.rs"]
mod options;

use std::ffi::{CString, c_char, c_void};
use std::fs;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

#[allow(unused_imports)]
pub(crate) use library::{Library, library_path};
#[allow(unused_imports)]
pub(crate) use options::{Lines, MIB, Number, Options};

/// Codes that tests plan or expect.
pub(crate) mod code {
    pub(crate) const SUCCESS: i32 = 0;
    pub(crate) const INVALID_VALUE: i32 = 1;
    pub(crate) const OUT_OF_MEMORY: i32 = 2;
    pub(crate) const NOT_INITIALIZED: i32 = 3;
    pub(crate) const STUB_LIBRARY: i32 = 34;
    pub(crate) const NO_DEVICE: i32 = 100;
    pub(crate) const INVALID_DEVICE: i32 = 101;
    pub(crate) const INVALID_CONTEXT: i32 = 201;
    pub(crate) const INVALID_HANDLE: i32 = 400;
    pub(crate) const ILLEGAL_STATE: i32 = 401;
    pub(crate) const NOT_FOUND: i32 = 500;
    pub(crate) const NOT_READY: i32 = 600;
    pub(crate) const ILLEGAL_ADDRESS: i32 = 700;
    pub(crate) const NOT_PERMITTED: i32 = 800;
    pub(crate) const NOT_SUPPORTED: i32 = 801;
    pub(crate) const CAPTURE_UNSUPPORTED: i32 = 900;
    pub(crate) const CAPTURE_INVALIDATED: i32 = 901;
    pub(crate) const CAPTURE_MERGE: i32 = 902;
    pub(crate) const CAPTURE_UNMATCHED: i32 = 903;
    pub(crate) const CAPTURE_UNJOINED: i32 = 904;
    pub(crate) const CAPTURE_ISOLATION: i32 = 905;
    pub(crate) const CAPTURE_IMPLICIT: i32 = 906;
    pub(crate) const CAPTURED_EVENT: i32 = 907;
    pub(crate) const CAPTURE_WRONG_THREAD: i32 = 908;
    pub(crate) const UNKNOWN: i32 = 999;
}

/// What is alive, by kind; see [`Fake::live`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Live {
    /// Retains of primary contexts.
    pub(crate) contexts: u64,
    /// Device memory, plain and of pools.
    pub(crate) allocations: u64,
    pub(crate) host_allocations: u64,
    /// References by handle.
    pub(crate) chunks: u64,
    pub(crate) mappings: u64,
    pub(crate) reservations: u64,
    pub(crate) pools: u64,
    pub(crate) streams: u64,
    pub(crate) events: u64,
    /// Graphs and executable graphs.
    pub(crate) graphs: u64,
    pub(crate) modules: u64,
    pub(crate) captures: u64,
    /// Descriptors of exported chunks that are still open.
    pub(crate) files: u64,
}

/// One call of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) symbol: String,
    /// The main argument: a size for what allocates, an address or a handle for the rest.
    pub(crate) subject: u64,
}

/// The functions that the library exports for tests.
macro_rules! control {
    ($($name:ident: fn($($kind:ty),*) -> $answer:ty,)*) => {
        /// The control functions by name.
        #[derive(Debug, Clone, Copy)]
        struct Control {
            $($name: unsafe extern "C" fn($($kind),*) -> $answer,)*
        }

        impl Control {
            fn load(library: Library) -> Self {
                Self {$(
                    $name: {
                        let address = library.symbol(concat!("fakecuda_", stringify!($name)));
                        // SAFETY: the library exports this name with this type.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($kind),*) -> $answer,
                            >(address)
                        }
                    },
                )*}
            }
        }
    };
}

type Sink = unsafe extern "C" fn(*mut c_void, *const u8, usize, u64);

control! {
    reset: fn(*const Options) -> bool,
    number: fn(u32, u32) -> u64,
    set_capacity: fn(u32, u64) -> bool,
    set_attribute: fn(i32, i32) -> bool,
    fail_at: fn(u64, i32) -> bool,
    fail_from: fn(u64, i32) -> bool,
    fail_call: fn(*const c_char, u64, i32) -> bool,
    count_call: fn(*const c_char, bool) -> bool,
    lose_at: fn(u64) -> bool,
    heal: fn() -> bool,
    calls: fn(*const c_char) -> u64,
    stream_id: fn(u64, u64) -> u64,
    advance: fn(u64, u64) -> u64,
    complete_all: fn() -> bool,
    read: fn(u64, *mut u8, u64) -> bool,
    write: fn(u64, *const u8, u64) -> bool,
    lines: fn(u32, Sink, *mut c_void) -> (),
}

/// The fake driver, reset. Tests that hold one run one at a time.
#[derive(Debug)]
pub(crate) struct Fake {
    control: Control,
    library: Library,
    _alone: Alone,
}

/// The right to be the only one, which any thread may give back.
#[derive(Debug)]
struct Alone;

static TAKEN: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

impl Alone {
    fn wait() -> Self {
        let (taken, returned) = &TAKEN;
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken {
            taken = returned.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken = true;
        Self
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        *TAKEN.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
        TAKEN.1.notify_one();
    }
}

impl Fake {
    /// A driver that nobody has used: all memory of an earlier test is gone, all handles invalid.
    /// Waits until the `Fake` of another thread is dropped; a second one in one thread never comes.
    pub(crate) fn fresh(options: Options) -> Self {
        static CONTROL: OnceLock<Control> = OnceLock::new();
        let alone = Alone::wait();
        let library = Library::load();
        let control = *CONTROL.get_or_init(|| Control::load(library));
        let fake = Self { control, library, _alone: alone };
        fake.reset(options);
        fake
    }

    /// The same again, without letting another test in between. Violations are forgotten too.
    pub(crate) fn reset(&self, options: Options) {
        assert!(options.devices <= 4, "the fake has at most 4 devices");
        // SAFETY: both sides compile the same struct.
        let is_reset = unsafe { (self.control.reset)(&options) };
        assert!(is_reset, "the fake cannot be reset");
    }

    /// The library, for its symbols.
    pub(crate) fn library(&self) -> Library {
        self.library
    }
}

/// Faults.
impl Fake {
    /// The `nth` fallible call from now, 1 being the next one, answers `code` and does nothing.
    /// Plans add up. All calls are fallible but `cuGetError…` and `cuCtx{Get,Set}Current`.
    pub(crate) fn fail_at(&self, nth: u64, code: i32) {
        // SAFETY: no pointers.
        unsafe { (self.control.fail_at)(nth, code) };
    }

    /// The same for every call from the `nth` on.
    pub(crate) fn fail_from(&self, nth: u64, code: i32) {
        // SAFETY: no pointers.
        unsafe { (self.control.fail_from)(nth, code) };
    }

    /// The `nth` call of one symbol from now, whether it is among the fallible ones or not.
    pub(crate) fn fail_call(&self, symbol: &str, nth: u64, code: i32) {
        let symbol = text(symbol);
        // SAFETY: the text lives for the call.
        unsafe { (self.control.fail_call)(symbol.as_ptr(), nth, code) };
    }

    /// Takes a symbol out of the fallible calls, or puts it back: what is not counted does not
    /// fail by number. With a lost device it fails all the same.
    pub(crate) fn count_call(&self, symbol: &str, is_counted: bool) {
        let symbol = text(symbol);
        // SAFETY: the text lives for the call.
        unsafe { (self.control.count_call)(symbol.as_ptr(), is_counted) };
    }

    /// From the `nth` fallible call on the device is lost: everything answers 700.
    pub(crate) fn lose_at(&self, nth: u64) {
        // SAFETY: no pointers.
        unsafe { (self.control.lose_at)(nth) };
    }

    /// Forgets all planned faults, and the loss.
    pub(crate) fn heal(&self) {
        // SAFETY: no pointers.
        unsafe { (self.control.heal)() };
    }

    /// Changes what a device can hand out, as other programs on it would.
    pub(crate) fn set_capacity(&self, device: u32, bytes: u64) {
        // SAFETY: no pointers.
        let is_set = unsafe { (self.control.set_capacity)(device, bytes) };
        assert!(is_set, "the fake has no device {device}");
    }

    /// Makes an attribute of all devices something else. Only what is told changes.
    pub(crate) fn set_attribute(&self, attribute: i32, value: i32) {
        // SAFETY: no pointers.
        unsafe { (self.control.set_attribute)(attribute, value) };
    }
}

/// Counts.
impl Fake {
    fn number(&self, number: Number, device: u32) -> u64 {
        // SAFETY: no pointers.
        let value = unsafe { (self.control.number)(number as u32, device) };
        assert_ne!(value, u64::MAX, "the fake does not know {number:?}");
        value
    }

    /// Fallible calls since the reset.
    pub(crate) fn fallible_calls(&self) -> u64 {
        self.number(Number::FallibleCalls, 0)
    }

    /// How often a symbol was called since the reset, failed calls included.
    pub(crate) fn calls(&self, symbol: &str) -> u64 {
        let symbol = text(symbol);
        // SAFETY: the text lives for the call.
        unsafe { (self.control.calls)(symbol.as_ptr()) }
    }

    /// All symbols that were called since the reset, by name.
    pub(crate) fn call_table(&self) -> Vec<(String, u64)> {
        self.lines(Lines::Calls)
    }

    /// The calls in order since the reset or the last time, and forgets them.
    pub(crate) fn take_log(&self) -> Vec<Call> {
        let lines = self.lines(Lines::Log);
        lines.into_iter().map(|(symbol, subject)| Call { symbol, subject }).collect()
    }

    /// The names in [`Self::take_log`], joined by spaces.
    pub(crate) fn take_order(&self) -> String {
        let names: Vec<String> = self.take_log().into_iter().map(|call| call.symbol).collect();
        names.join(" ")
    }

    /// Bytes of a device in use: plain memory, chunks, and what pools have reserved.
    pub(crate) fn used_bytes(&self, device: u32) -> u64 {
        self.number(Number::Used, device)
    }

    /// The most bytes of a device that were ever in use.
    pub(crate) fn peak_used_bytes(&self, device: u32) -> u64 {
        self.number(Number::Peak, device)
    }

    /// How often a free of plain or pinned memory has waited for the device.
    pub(crate) fn implicit_syncs(&self) -> u64 {
        self.number(Number::ImplicitSyncs, 0)
    }

    /// Operations that streams have executed.
    pub(crate) fn executed(&self) -> u64 {
        self.number(Number::Executed, 0)
    }

    /// Operations that wait in streams.
    pub(crate) fn pending(&self) -> u64 {
        self.number(Number::Pending, 0)
    }

    /// What is alive.
    pub(crate) fn live(&self) -> Live {
        let count = |number| self.number(number, 0);
        Live {
            contexts: count(Number::Contexts),
            allocations: count(Number::Allocations),
            host_allocations: count(Number::HostAllocations),
            chunks: count(Number::Chunks),
            mappings: count(Number::Mappings),
            reservations: count(Number::Reservations),
            pools: count(Number::Pools),
            streams: count(Number::Streams),
            events: count(Number::Events),
            graphs: count(Number::Graphs),
            modules: count(Number::Modules),
            captures: count(Number::Captures),
            files: open_files().saturating_sub(count(Number::Files)),
        }
    }

    /// # Panics
    /// If anything is alive, with the list of it.
    #[track_caller]
    pub(crate) fn assert_no_leaks(&self) {
        let live = self.live();
        assert_eq!(live, Live::default(), "leaked, and {:?} bytes with it", self.used_bytes(0));
    }

    /// The misuses so far, and forgets them: the test expects them.
    pub(crate) fn take_violations(&self) -> Vec<String> {
        self.lines(Lines::Violations).into_iter().map(|(text, _)| text).collect()
    }

    fn lines(&self, lines: Lines) -> Vec<(String, u64)> {
        // SAFETY: called by the library with the list that it was given, and a text.
        unsafe extern "C" fn collect(list: *mut c_void, at: *const u8, len: usize, number: u64) {
            // SAFETY: the list below, which lives for the call.
            let list = unsafe { &mut *list.cast::<Vec<(String, u64)>>() };
            // SAFETY: a text of the library, which lives for the call.
            let bytes = unsafe { std::slice::from_raw_parts(at, len) };
            list.push((String::from_utf8_lossy(bytes).into_owned(), number));
        }
        let mut list: Vec<(String, u64)> = Vec::new();
        // SAFETY: `collect` takes the list for what it is.
        unsafe { (self.control.lines)(lines as u32, collect, (&raw mut list).cast()) };
        list
    }
}

/// Time. A stream is named by its context and its handle; 0 and 1 are the legacy default stream, 2
/// is that of the calling thread.
impl Fake {
    fn stream_id(&self, context: u64, stream: u64) -> u64 {
        // SAFETY: no pointers.
        let id = unsafe { (self.control.stream_id)(context, stream) };
        assert_ne!(id, 0, "{stream:#x} is no stream of context {context:#x}");
        id
    }

    /// Executes up to `count` operations of a stream, as far as nothing it waits for is
    /// outstanding: how many they were.
    pub(crate) fn advance(&self, context: u64, stream: u64, count: u64) -> u64 {
        let id = self.stream_id(context, stream);
        // SAFETY: no pointers; host functions of the test run here.
        unsafe { (self.control.advance)(id, count) }
    }

    /// Executes all operations of a stream up to the first one that waits for another stream.
    pub(crate) fn complete(&self, context: u64, stream: u64) -> u64 {
        self.advance(context, stream, u64::MAX)
    }

    /// Executes everything.
    pub(crate) fn complete_all(&self) {
        // SAFETY: no pointers; host functions of the test run here.
        unsafe { (self.control.complete_all)() };
    }
}

/// Memory, past all streams.
impl Fake {
    /// Bytes at an address that the fake knows, as they are now.
    ///
    /// # Panics
    /// If they are not accessible.
    #[track_caller]
    pub(crate) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: there is room for so many bytes.
        let is_read = unsafe { (self.control.read)(address, bytes.as_mut_ptr(), len as u64) };
        assert!(is_read, "{len} bytes at {address:#x} are not accessible");
        bytes
    }

    /// Writes bytes at an address that the fake knows.
    ///
    /// # Panics
    /// If they are not accessible.
    #[track_caller]
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        let len = bytes.len() as u64;
        // SAFETY: a slice has as many bytes as it says.
        let is_written = unsafe { (self.control.write)(address, bytes.as_ptr(), len) };
        assert!(is_written, "{len} bytes at {address:#x} are not accessible");
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let violations = self.take_violations();
        if !std::thread::panicking() {
            assert!(violations.is_empty(), "the driver was misused:\n{}", violations.join("\n"));
        } else if !violations.is_empty() {
            eprintln!("the driver was misused too:\n{}", violations.join("\n"));
        }
    }
}

fn text(text: &str) -> CString {
    CString::new(text).expect("a name without zeros")
}

/// Open descriptors of files that the fake has made.
fn open_files() -> u64 {
    let entries = fs::read_dir("/proc/self/fd").expect("the list of open files");
    let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    targets.filter(|path| path.to_string_lossy().contains("memfd:fakecuda")).count() as u64
}
