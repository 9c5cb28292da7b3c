//! Everything that may block, or that differs between native programs and the web.
//!
//! On the web nothing may block, polling does nothing, and what an error scope caught is known only
//! after the browser has run: [`caught`] answers "no error" there (it comes later, through the
//! device's handler of uncaptured errors), and completion is known from callbacks alone, which
//! [`completion`] turns into a future. The same future works natively, if somebody polls the
//! device. This is the one file that was written for the web; it was never compiled for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use wgpu::{Device, Queue, SubmissionIndex};

use super::loss::Loss;
use crate::backend::Lost;

/// How long one wait lasts before the loss of the device is looked for: a device that hangs never
/// completes.
#[cfg(not(target_family = "wasm"))]
const SLICE: std::time::Duration = std::time::Duration::from_secs(1);

/// Ends an error scope; what it caught. Never blocks.
#[cfg(not(target_family = "wasm"))]
pub(super) fn caught(scope: wgpu::ErrorScopeGuard) -> Option<wgpu::Error> {
    // The answer is ready at once.
    pollster::block_on(scope.pop())
}

/// Ends an error scope. What it caught is known too late to be told.
#[cfg(target_family = "wasm")]
pub(super) fn caught(scope: wgpu::ErrorScopeGuard) -> Option<wgpu::Error> {
    drop(scope.pop());
    None
}

/// Lets callbacks of what is complete run, and memory of what was dropped go back to the driver.
pub(super) fn poll(device: &Device) {
    // The only errors are those of waits.
    let _ = device.poll(wgpu::PollType::Poll);
}

/// Waits until a submission, or all if none is named, is complete and its callbacks have run.
///
/// # Errors
/// If the device is gone.
#[cfg(not(target_family = "wasm"))]
pub(super) fn wait_for(
    device: &Device,
    loss: &Loss,
    submission: Option<&SubmissionIndex>,
) -> Result<(), Lost> {
    let mut submission = submission;
    loop {
        loss.check()?;
        let submission_index = submission.cloned();
        let wait = wgpu::PollType::Wait { submission_index, timeout: Some(SLICE) };
        match device.poll(wait) {
            Err(wgpu::PollError::Timeout) => {}
            // A submission with an error in it never was: then no callback has run yet.
            Err(wgpu::PollError::WrongSubmissionIndex(..)) if submission.is_some() => {
                submission = None;
            }
            _ => return loss.check(),
        }
    }
}

/// Nothing can be waited for on the web: see [`completion`].
///
/// # Errors
/// If the device is gone.
#[cfg(target_family = "wasm")]
pub(super) fn wait_for(_: &Device, loss: &Loss, _: Option<&SubmissionIndex>) -> Result<(), Lost> {
    loss.check()
}

/// Waits until `done` says so, which a callback of a submission, or of any if none is named, brings
/// about. When the work is complete, another thread may have taken the callback over and be about
/// to run it.
///
/// # Errors
/// If the device is gone.
#[cfg(not(target_family = "wasm"))]
pub(super) fn until(
    device: &Device,
    loss: &Loss,
    submission: Option<&SubmissionIndex>,
    done: impl Fn() -> bool,
) -> Result<(), Lost> {
    while !done() {
        wait_for(device, loss, submission)?;
        std::thread::yield_now();
    }
    Ok(())
}

/// As [`until`], where the work may not have been submitted, so that the callback would never come:
/// gives up when another thread has had [`LINGER_MS`] milliseconds to run it.
///
/// # Errors
/// If the device is gone.
#[cfg(not(target_family = "wasm"))]
pub(super) fn a_while(device: &Device, loss: &Loss, done: impl Fn() -> bool) -> Result<(), Lost> {
    for _ in 0..LINGER_MS {
        wait_for(device, loss, None)?;
        if done() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Ok(())
}

/// How long a callback may take that another thread has taken over.
#[cfg(not(target_family = "wasm"))]
const LINGER_MS: u32 = 50;

/// Nothing can be waited for on the web: see [`completion`].
///
/// # Errors
/// If the device is gone.
#[cfg(target_family = "wasm")]
pub(super) fn until(
    _: &Device,
    loss: &Loss,
    _: Option<&SubmissionIndex>,
    _: impl Fn() -> bool,
) -> Result<(), Lost> {
    loss.check()
}

/// As [`until`].
///
/// # Errors
/// If the device is gone.
#[cfg(target_family = "wasm")]
pub(super) fn a_while(_: &Device, loss: &Loss, _: impl Fn() -> bool) -> Result<(), Lost> {
    loss.check()
}

/// Resolves when all that was submitted before is complete. Natively somebody has to poll the
/// device meanwhile.
pub(super) fn completion(queue: &Queue) -> impl Future<Output = ()> + Send + use<> {
    let signal = Signal::default();
    let done = signal.clone();
    queue.on_submitted_work_done(move || done.set());
    signal
}

/// Set once, by a callback; a future of that moment. Clones are the same signal.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signal(Arc<Mutex<(bool, Vec<Waker>)>>);

impl Signal {
    pub(crate) fn is_set(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    pub(crate) fn set(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = true;
        let wakers = std::mem::take(&mut state.1);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Future for Signal {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 {
            return Poll::Ready(());
        }
        // Several may wait, each with a waker of its own.
        if !state.1.iter().any(|waker| waker.will_wake(context.waker())) {
            state.1.push(context.waker().clone());
        }
        Poll::Pending
    }
}
