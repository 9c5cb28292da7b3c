//! What fails without harm, and who is told.

use std::panic::{AssertUnwindSafe, catch_unwind};

use wgpu::{Buffer, Features};

use super::expect;
use crate::gpu::{Gpu, STORAGE};

fn too_large(gpu: &Gpu) -> Buffer {
    gpu.zeros(gpu.device.limits().max_buffer_size + 1, STORAGE)
}

/// The device still does what it is told.
#[track_caller]
fn assert_alive(gpu: &Gpu) {
    let buffer = gpu.buffer(&[1_u32, 2, 3]);
    assert_eq!(gpu.read::<u32>(&buffer), [1, 2, 3], "the device goes on");
}

#[test]
fn a_buffer_too_large_is_refused() {
    let Some(gpu) = Gpu::shared() else { return };
    let size = gpu.device.limits().max_buffer_size + 1;
    expect(gpu, "one byte too much", Some("maximum buffer size"), || {
        assert_eq!(too_large(gpu).size(), size, "the handle answers nevertheless");
    });
    assert_alive(gpu);
}

#[test]
fn an_invalid_buffer_cannot_be_used() {
    let Some(gpu) = Gpu::shared() else { return };
    let mut invalid = None;
    expect(gpu, "too large", Some("maximum"), || invalid = Some(too_large(gpu)));
    let buffer = invalid.expect("a handle comes back whatever happens");
    let invalid = Some("invalid");
    expect(gpu, "write_buffer", invalid, || gpu.queue.write_buffer(&buffer, 0, &[0; 16]));
    expect(gpu, "clear_buffer", invalid, || {
        let mut encoder = gpu.encoder();
        encoder.clear_buffer(&buffer, 0, Some(16));
        gpu.queue.submit([encoder.finish()]);
    });
    expect(gpu, "a copy", invalid, || {
        let mut encoder = gpu.encoder();
        encoder.copy_buffer_to_buffer(&buffer, 0, &gpu.zeros(16, STORAGE), 0, 16);
        gpu.queue.submit([encoder.finish()]);
    });
    expect(gpu, "destroy and drop", None, || {
        buffer.destroy();
        drop(buffer);
    });
    assert_alive(gpu);
}

/// Whoever forgets the scopes is told the hard way.
#[test]
fn an_error_outside_of_scopes_panics() {
    let Some(gpu) = Gpu::open(Features::empty()) else { return };
    let result = catch_unwind(AssertUnwindSafe(|| too_large(&gpu)));
    assert!(result.is_err(), "wgpu's default is a panic");
    assert_alive(&gpu);
}

/// A scope neither sees nor swallows what another thread does.
#[test]
fn scopes_belong_to_their_thread() {
    let Some(gpu) = Gpu::open(Features::empty()) else { return };
    let (there, here) = {
        let mut there = None;
        let here = gpu.error_of(|| {
            let other = || {
                there = gpu.error_of(|| drop(too_large(&gpu)));
            };
            std::thread::scope(|scope| scope.spawn(other).join()).expect("no panic");
        });
        (there, here)
    };
    assert!(there.is_some() && here.is_none(), "there {there:?}, here {here:?}");
}
