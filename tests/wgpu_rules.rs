//! The rules of wgpu that the backend over it rests on, each tried directly on wgpu, so that an
//! upgrade which changes one is noticed here and not as wrong numbers. What is allowed must work
//! and give the right result; what is refused must be refused by an error that names the rule.
//!
//! Each rule, and what rests on it:
//!
//! - A dispatch may bind ranges of one buffer as often as it likes, all `read` or all `read_write`;
//!   a mixture is refused, and so are a uniform or indirect arguments beside what is written
//!   (`bindings.rs`). So blocks can be ranges of one buffer if kernels declare `read_write`
//!   everywhere, and parameters and indirect arguments have buffers of their own.
//! - The scope of that rule is one dispatch, and the next one sees what it wrote (`bindings.rs`).
//!   So kernels over one segment need neither barriers nor a pass each.
//! - Ranges begin at the device's alignment, lengths are multiples of 4, and a binding has a limit
//!   (`bindings.rs`, `copies.rs`). So blocks are aligned and rounded, and the largest block that a
//!   kernel can take is smaller than the largest segment.
//! - No copy inside one buffer (`copies.rs`). So blocks move between segments, never inside one.
//! - A map of a range locks the whole buffer (`copies.rs`). So what is mapped, for uploads and for
//!   reading back, is never in a buffer with anything else.
//! - Usages go together or not, and VERTEX costs a word (`copies.rs`). So there are pools by usage,
//!   and a segment of vertices leaves room for that word.
//! - `write_buffer` comes before all that is submitted next, and submits count, not recordings
//!   (`order.rs`). So the encoder is the stream: a block that is freed while an encoder is open
//!   goes to that encoder's own later work or waits for its submit, and uploads are copies that are
//!   recorded where they belong.
//! - What is submitted keeps its order (`order.rs`). So reuse by submitted work waits for nothing.
//! - Recorded work keeps a dropped buffer alive and dies with a destroyed one (`order.rs`). So
//!   segments go back by drop.
//! - An encoder tells when its work is done, and when it never will be (`order.rs`). So an encoder
//!   that is given up strands no block.
//! - A fresh buffer reads as zeros, a reused range as what was there (`contents.rs`). So zeroed
//!   memory is free in a fresh segment and takes a clear in an old one.
//! - A buffer that is too large, or invalid, is an error and nothing more (`errors.rs`). So growth
//!   may fail, and the device goes on.
//! - A scope catches what its thread does, and nothing else; without one, wgpu panics
//!   (`errors.rs`). So growth opens its scopes on the thread that grows, always.
#![cfg(feature = "wgpu")]

#[path = "wgpu_rules/bindings.rs"]
mod bindings;
#[path = "wgpu_rules/contents.rs"]
mod contents;
#[path = "wgpu_rules/copies.rs"]
mod copies;
#[path = "wgpu_rules/errors.rs"]
mod errors;
#[path = "support/gpu.rs"]
mod gpu;
#[path = "wgpu_rules/order.rs"]
mod order;

use gpu::{Gpu, chain};

/// `run` is allowed, or refused with an error of validation that says `refused` somewhere.
#[track_caller]
fn expect(gpu: &Gpu, what: &str, refused: Option<&str>, run: impl FnOnce()) {
    let error = gpu.error_of(run);
    match (&error, refused) {
        (None, None) => {}
        (None, Some(rule)) => panic!("{what}: allowed, though {rule:?} forbade it"),
        (Some(error), None) => panic!("{what}: refused: {}", chain(error)),
        (Some(error), Some(rule)) => {
            let is_validation = matches!(error, wgpu::Error::Validation { .. });
            let text = chain(error);
            assert!(is_validation && text.contains(rule), "{what}: not for {rule:?}: {text}");
        }
    }
}
