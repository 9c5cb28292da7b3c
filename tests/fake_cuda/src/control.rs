//! Exports for the test: `fakecuda_…`. None of them is a call of the driver; nothing is counted.
//!
//! They have plain C signatures, as the client finds them by name, and no structs but
//! [`Options`], which both sides compile from one file.

use std::ffi::c_void;

use crate::abi::In;
use crate::entry::{Driver, control};
use crate::options::{Lines, Number, Options};
use crate::os;

/// Where lines go: what the client passed, text, its length, and a number that belongs to it.
type Sink = unsafe extern "C" fn(*mut c_void, *const u8, usize, u64);

impl Driver {
    fn number(&self, which: u32, device: usize) -> u64 {
        let of_device = self.devices.get(device);
        let is = |number: Number| which == number as u32;
        let graphs = &self.graphs;
        let chunks = self.space.chunks.values();
        match which {
            _ if is(Number::FallibleCalls) => self.faults.made(),
            _ if is(Number::Used) => of_device.map_or(0, |device| device.used),
            _ if is(Number::Peak) => of_device.map_or(0, |device| device.peak),
            _ if is(Number::ImplicitSyncs) => self.implicit_syncs,
            _ if is(Number::Executed) => self.timeline.executed,
            _ if is(Number::Pending) => self.timeline.queued_count(),
            _ if is(Number::Files) => self.space.open_files(),
            _ if is(Number::Contexts) => self.devices.iter().map(|device| device.retains).sum(),
            _ if is(Number::Allocations) => self.memory.count(false),
            _ if is(Number::HostAllocations) => self.memory.count(true),
            _ if is(Number::Chunks) => chunks.map(|chunk| chunk.handles).sum(),
            _ if is(Number::Mappings) => self.space.mappings.len() as u64,
            _ if is(Number::Reservations) => self.space.reservations.len() as u64,
            _ if is(Number::Pools) => self.pools.count(),
            _ if is(Number::Streams) => self.timeline.stream_count(),
            _ if is(Number::Events) => self.timeline.events.len() as u64,
            _ if is(Number::Graphs) => (graphs.graphs.len() + graphs.executables.len()) as u64,
            _ if is(Number::Modules) => self.modules.modules.len() as u64,
            _ if is(Number::Captures) => self.timeline.captures.len() as u64,
            _ => u64::MAX,
        }
    }

    fn take_lines(&mut self, which: u32) -> Vec<(String, u64)> {
        let is = |lines: Lines| which == lines as u32;
        let named = |(name, number): (&str, u64)| (name.to_string(), number);
        if is(Lines::Violations) {
            self.verify();
            std::mem::take(&mut self.violations).into_iter().map(|text| (text, 0)).collect()
        } else if is(Lines::Log) {
            self.faults.take_log().into_iter().map(named).collect()
        } else if is(Lines::Calls) {
            self.faults.table().into_iter().map(named).collect()
        } else {
            Vec::new()
        }
    }

    /// Until nothing moves any more; then nothing is queued.
    fn complete_all(&mut self) {
        for device in 0..self.devices.len() {
            // A violation is in the list already.
            let _ = self.finish_device(device);
        }
    }

    /// Copies between the fake's memory and the test's; whether the fake's is accessible at all.
    fn access(&mut self, fake: u64, test: u64, len: u64, is_write: bool) -> bool {
        if self.reach(None, fake, len).is_err() {
            return false;
        }
        let (target, source) = if is_write { (fake, test) } else { (test, fake) };
        // SAFETY: the fake's side was checked just now, the client passes a slice.
        unsafe { os::copy(target, source, len) }
        true
    }
}

/// Exports functions for the test.
macro_rules! control {
    ($(
        $name:ident($($arg:ident: $kind:ty),*) -> $answer:ty, or $otherwise:expr;
        |$driver:ident| $body:block
    )*) => {$(
        /// # Safety
        /// Pointers are valid for what the client passes them for.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $kind),*) -> $answer {
            control($otherwise, |$driver| $body)
        }
    )*};
}

control! {
    fakecuda_reset(options: In<Options>) -> bool, or false; |driver| {
        options.get().map(|options| driver.reset(options)).is_ok()
    }

    fakecuda_number(which: u32, device: u32) -> u64, or u64::MAX; |driver| {
        driver.number(which, device as usize)
    }

    fakecuda_set_capacity(device: u32, bytes: u64) -> bool, or false; |driver| {
        driver.devices.get_mut(device as usize).map(|device| device.capacity = bytes).is_some()
    }

    fakecuda_set_attribute(attribute: i32, value: i32) -> bool, or false; |driver| {
        driver.attributes.push((attribute, value));
        true
    }

    fakecuda_fail_at(nth: u64, code: i32) -> bool, or false; |driver| {
        driver.faults.fail_at(nth, code);
        true
    }

    fakecuda_fail_from(nth: u64, code: i32) -> bool, or false; |driver| {
        driver.faults.fail_from(nth, code);
        true
    }

    fakecuda_fail_call(symbol: In<i8>, nth: u64, code: i32) -> bool, or false; |driver| {
        symbol.text().map(|symbol| driver.faults.fail_call(symbol, nth, code)).is_ok()
    }

    fakecuda_count_call(symbol: In<i8>, counted: bool) -> bool, or false; |driver| {
        symbol.text().map(|symbol| driver.faults.count_symbol(symbol, counted)).is_ok()
    }

    fakecuda_lose_at(nth: u64) -> bool, or false; |driver| {
        driver.faults.lose_at(nth);
        true
    }

    fakecuda_heal() -> bool, or false; |driver| {
        driver.faults.heal();
        true
    }

    fakecuda_calls(symbol: In<i8>) -> u64, or u64::MAX; |driver| {
        symbol.text().map_or(u64::MAX, |symbol| driver.faults.calls(&symbol))
    }

    fakecuda_stream_id(context: u64, stream: u64) -> u64, or 0; |driver| {
        let Some(device) = driver.device_of_context(context) else { return 0 };
        driver.device = device;
        driver.stream(stream).unwrap_or(0)
    }

    fakecuda_advance(id: u64, count: u64) -> u64, or 0; |driver| {
        driver.advance(id, count)
    }

    fakecuda_complete_all() -> bool, or false; |driver| {
        driver.complete_all();
        true
    }

    fakecuda_read(fake: u64, test: u64, len: u64) -> bool, or false; |driver| {
        driver.access(fake, test, len, false)
    }

    fakecuda_write(fake: u64, test: u64, len: u64) -> bool, or false; |driver| {
        driver.access(fake, test, len, true)
    }
}

/// The path of the empty library through which the driver is `libcuda.so.1` too.
///
/// # Safety
/// None needed: a constant that ends with a zero.
#[unsafe(no_mangle)]
unsafe extern "C" fn fakecuda_second_name() -> *const u8 {
    concat!(env!("OUT_DIR"), "/libcuda.so.1\0").as_ptr()
}

/// Hands out lines, one after the other, without the lock.
///
/// # Safety
/// `sink` may be called with `context`.
#[unsafe(no_mangle)]
unsafe extern "C" fn fakecuda_lines(which: u32, sink: Sink, context: *mut c_void) {
    let lines = control(Vec::new(), |driver| driver.take_lines(which));
    for (text, number) in lines {
        // SAFETY: the client's promise; the text lives for the call.
        unsafe { sink(context, text.as_ptr(), text.len(), number) }
    }
}
