//! What users of one API hold: allocations that speak its language, and the rules of its streams.
//!
//! The core and the shell know blocks and streams; a surface knows buffers, encoders and bindings.
//! It makes no policy and keeps no books: every byte is in the [`Allocator`](crate::Allocator)
//! below.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "wgpu")]
pub mod wgpu;
