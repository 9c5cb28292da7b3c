//! The one door: every exported function of the driver comes in here.
//!
//! ```text
//!   cu… ─▶ lock ─▶ in a host function? stub? ─▶ faults ─▶ initialized? context? capture? ─▶ body
//!                        800            34      planned        3         201      900
//! ```
//!
//! E1: the lock is held from the first check to the last effect, except while a host function runs
//! or another thread's host function is waited for ([`Driver::unlocked`], [`Driver::wait`]).
//! E2: no panic gets out; it is `CUDA_ERROR_UNKNOWN` and a violation.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::abi::{Answer, Code};
use crate::options::Options;
use crate::state::State;
use crate::thread;

static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| {
    let mut state = State::default();
    state.reset(Options::default());
    Mutex::new(state)
});

/// Told whenever a host function has returned.
static RETURNED: Condvar = Condvar::new();

/// What has to hold before a call does anything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    /// Whether it is numbered, and fails by number and with a lost device.
    counted: bool,
    initialized: bool,
    context: bool,
    /// Whether a capture may forbid it ("potentially unsafe" in the documentation of
    /// `cuThreadExchangeStreamCaptureMode`, which has no full list: calls that allocate, free, map
    /// or wait are in ours).
    unsafe_in_capture: bool,
}

/// Error texts, and the current context.
pub(crate) const FREE: Rule =
    Rule { counted: false, initialized: false, context: false, unsafe_in_capture: false };
/// Before `cuInit` too.
pub(crate) const ANYTIME: Rule = Rule { counted: true, ..FREE };
/// After `cuInit`, with or without a context.
pub(crate) const DRIVER: Rule = Rule { initialized: true, ..ANYTIME };
pub(crate) const DRIVER_UNSAFE: Rule = Rule { unsafe_in_capture: true, ..DRIVER };
/// With a current context.
pub(crate) const CONTEXT: Rule = Rule { context: true, ..DRIVER };
pub(crate) const CONTEXT_UNSAFE: Rule = Rule { unsafe_in_capture: true, ..CONTEXT };

/// Exports functions of the driver: `name(arguments) RULE(what the log shows) |driver| { body }`.
macro_rules! driver {
    ($(
        $name:ident($($arg:ident: $kind:ty),* $(,)?) $rule:ident($subject:expr)
        |$driver:ident| $body:block
    )*) => {$(
        /// The function of the driver API of this name.
        ///
        /// # Safety
        /// Pointers are null or valid for what the driver API does with them.
        #[allow(non_snake_case)]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $kind),*) -> i32 {
            let subject = ($subject) as u64;
            $crate::entry::call(stringify!($name), $crate::entry::$rule, subject, |$driver| $body)
        }
    )*};
}

/// The state, locked.
#[derive(Debug)]
pub(crate) struct Driver {
    /// `None` only inside of [`Self::unlocked`].
    state: Option<MutexGuard<'static, State>>,
    /// The device of the current context; 0 where the call needs none.
    pub(crate) device: usize,
}

impl Deref for Driver {
    type Target = State;

    fn deref(&self) -> &State {
        self.state.as_ref().expect("locked outside of `unlocked`")
    }
}

impl DerefMut for Driver {
    fn deref_mut(&mut self) -> &mut State {
        self.state.as_mut().expect("locked outside of `unlocked`")
    }
}

impl Driver {
    pub(crate) fn lock() -> Self {
        let state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { state: Some(state), device: 0 }
    }

    /// Runs a host function without the lock, as the driver's own thread would.
    pub(crate) fn unlocked(&mut self, run: impl FnOnce()) {
        self.state = None;
        thread::host_function(run);
        self.state = Self::lock().state;
        RETURNED.notify_all();
    }

    /// Waits until the host function of another thread has returned.
    pub(crate) fn wait(&mut self) {
        let state = self.state.take().expect("locked outside of `unlocked`");
        self.state = Some(RETURNED.wait(state).unwrap_or_else(PoisonError::into_inner));
    }

    fn enter(&mut self, symbol: &'static str, rule: Rule, subject: u64) -> Answer {
        if thread::is_in_host_function() {
            let text = format!("{symbol}: called from within a host function");
            self.violations.push(text);
            return Err(Code::NOT_PERMITTED);
        }
        self.symbol = symbol;
        if self.options.stub && rule.counted {
            return Err(Code::STUB_LIBRARY);
        }
        let log = self.options.log.then_some(subject);
        self.faults.enter(symbol, rule.counted, log)?;
        if rule.initialized && !self.initialized {
            return Err(self.misuse(Code::NOT_INITIALIZED, "before cuInit"));
        }
        if rule.context {
            match self.current_device() {
                Some(device) => self.device = device,
                None => return Err(self.misuse(Code::INVALID_CONTEXT, "no current context")),
            }
        }
        if rule.unsafe_in_capture && self.timeline.is_capturing() {
            self.forbid_in_capture()?;
        }
        Ok(())
    }

    /// The device of the calling thread's context, if that is alive.
    pub(crate) fn current_device(&self) -> Option<usize> {
        let current = thread::with(self.epoch, |thread| thread.contexts.last().copied());
        self.device_of_context(current?)
    }
}

/// One call of the driver from the first check to the code that the caller gets.
pub(crate) fn call(
    symbol: &'static str,
    rule: Rule,
    subject: u64,
    body: impl FnOnce(&mut Driver) -> Answer,
) -> i32 {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut driver = Driver::lock();
        driver.enter(symbol, rule, subject)?;
        body(&mut driver)
    }));
    match outcome {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code.0,
        Err(_) => {
            note(format!("{symbol}: the fake itself panicked"));
            Code::UNKNOWN.0
        }
    }
}

/// One call of the test. A panic in it is a violation and the answer is `otherwise`.
pub(crate) fn control<R>(otherwise: R, body: impl FnOnce(&mut Driver) -> R) -> R {
    catch_unwind(AssertUnwindSafe(|| body(&mut Driver::lock()))).unwrap_or_else(|_| {
        note("control: the fake itself panicked".into());
        otherwise
    })
}

fn note(text: String) {
    Driver::lock().violations.push(text);
}
