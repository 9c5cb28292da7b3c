//! In which order things happen that are recorded, written and submitted.

use std::sync::mpsc;

use wgpu::{Buffer, BufferUsages, CommandBuffer, CommandEncoder};

use super::expect;
use crate::gpu::{Gpu, STORAGE};

/// Where the block under test lies in its buffer.
const BLOCK: std::ops::Range<u64> = 65_536..69_632;
const SIZE: u64 = BLOCK.end - BLOCK.start;

/// What happens to a block, in the order of the program. The reader is an encoder whose owner had
/// the block first.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// The queue writes the byte into the block.
    Write(u8),
    /// The reader records a copy of the block to a place of its own.
    Read,
    /// The reader records an upload: a copy from a buffer that holds the byte already.
    Upload(u8),
    /// Another encoder zeroes the block, and is submitted.
    ClearElsewhere,
    /// The reader is submitted.
    Submit,
}

use Event::*;

/// What happens, what the reader sees, what the block holds in the end.
const ORDERS: &[(&str, &[Event], u8, u8)] = &[
    ("plain", &[Write(0x11), Read, Submit], 0x11, 0x11),
    // These two are the hazard: the reader recorded its copy while the block was its own.
    ("a write passes", &[Write(0x11), Read, Write(0x22), Submit], 0x22, 0x22),
    ("submits count", &[Write(0x11), Read, ClearElsewhere, Submit], 0, 0),
    // And these are the ways out.
    ("no wait after a submit", &[Write(0x11), Read, Submit, Write(0x33)], 0x11, 0x33),
    ("no wait either", &[Write(0x11), Read, Submit, ClearElsewhere], 0x11, 0),
    ("an upload keeps its place", &[Write(0x11), Read, Upload(0x44), Submit], 0x11, 0x44),
];

/// The block, the place that the reader copies it to, and the reader.
struct Scene<'a> {
    gpu: &'a Gpu,
    buffer: Buffer,
    seen: Buffer,
    reader: CommandEncoder,
}

impl Scene<'_> {
    fn play(&mut self, event: Event) {
        let gpu = self.gpu;
        let reader = &mut self.reader;
        match event {
            Write(byte) => {
                gpu.queue.write_buffer(&self.buffer, BLOCK.start, &[byte; SIZE as usize]);
            }
            Read => reader.copy_buffer_to_buffer(&self.buffer, BLOCK.start, &self.seen, 0, SIZE),
            Upload(byte) => {
                let bytes = gpu.buffer(&[byte; SIZE as usize]);
                reader.copy_buffer_to_buffer(&bytes, 0, &self.buffer, BLOCK.start, SIZE);
            }
            ClearElsewhere => {
                let mut encoder = gpu.encoder();
                encoder.clear_buffer(&self.buffer, BLOCK.start, Some(SIZE));
                gpu.queue.submit([encoder.finish()]);
            }
            Submit => {
                let reader = std::mem::replace(reader, gpu.encoder());
                gpu.queue.submit([reader.finish()]);
            }
        }
    }
}

#[test]
fn submits_decide_and_writes_come_first() {
    let Some(gpu) = Gpu::shared() else { return };
    for (what, events, seen, left) in ORDERS {
        let (buffer, copy) = (gpu.zeros(2 * BLOCK.end, STORAGE), gpu.zeros(SIZE, STORAGE));
        let mut scene = Scene { gpu, buffer, seen: copy, reader: gpu.encoder() };
        expect(gpu, what, None, || events.iter().for_each(|event| scene.play(*event)));
        let all = |bytes: &[u8], byte| bytes.iter().all(|other| *other == byte);
        let got: Vec<u8> = gpu.read(&scene.seen);
        assert!(all(&got, *seen), "{what}: the reader saw {:#x}, not {seen:#x}", got[0]);
        let got: Vec<u8> = gpu.read_range(&scene.buffer, BLOCK.start, SIZE);
        assert!(all(&got, *left), "{what}: the block holds {:#x}, not {left:#x}", got[0]);
    }
}

/// A copy of a buffer to another one, recorded and not submitted.
fn recorded(gpu: &Gpu, from: &Buffer, to: &Buffer) -> CommandBuffer {
    let mut encoder = gpu.encoder();
    encoder.copy_buffer_to_buffer(from, 0, to, 0, from.size());
    encoder.finish()
}

#[test]
fn buffers_that_go_before_the_submit() {
    let Some(gpu) = Gpu::shared() else { return };
    for (what, is_destroyed, refused, wanted) in
        [("dropped", false, None, 0x11), ("destroyed", true, Some("destroyed"), 0)]
    {
        let (buffer, copy) = (gpu.buffer(&[0x11_u8; 64]), gpu.zeros(64, STORAGE));
        let commands = recorded(gpu, &buffer, &copy);
        if is_destroyed {
            buffer.destroy();
        }
        drop(buffer);
        expect(gpu, what, refused, || {
            gpu.queue.submit([commands]);
        });
        assert_eq!(gpu.read::<u8>(&copy), [wanted; 64], "{what}");
    }
}

/// What an encoder tells its owner.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Done,
    Gone,
}

/// Tells that it goes, whether it was called or not.
struct Messenger(mpsc::Sender<News>);

impl Drop for Messenger {
    fn drop(&mut self) {
        self.0.send(News::Gone).expect("the owner listens");
    }
}

/// How an encoder can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Submitted,
    DroppedOpen,
    DroppedFinished,
}

/// The callback runs when the work is done, whoever submits it, and is dropped uncalled with an
/// encoder, or a command buffer, that nobody submits.
#[test]
fn encoders_tell_of_their_end() {
    let Some(gpu) = Gpu::shared() else { return };
    for end in [End::Submitted, End::DroppedOpen, End::DroppedFinished] {
        let (sender, receiver) = mpsc::channel();
        let mut encoder = gpu.encoder();
        encoder.clear_buffer(&gpu.zeros(64, STORAGE), 0, None);
        let messenger = Messenger(sender);
        encoder.on_submitted_work_done(move || {
            messenger.0.send(News::Done).expect("the owner listens");
        });
        assert!(receiver.try_recv().is_err(), "{end:?}: nothing has happened");
        match end {
            End::Submitted => {
                gpu.queue.submit([encoder.finish()]);
            }
            End::DroppedOpen => drop(encoder),
            End::DroppedFinished => drop(encoder.finish()),
        }
        gpu.wait();
        let news: Vec<News> = receiver.iter().collect();
        let is_done = end == End::Submitted;
        let wanted = if is_done { vec![News::Done, News::Gone] } else { vec![News::Gone] };
        assert_eq!(news, wanted, "{end:?}");
    }
}

/// A map is where the host must wait: it is answered after the work that was submitted before.
#[test]
fn a_map_waits_for_submitted_work() {
    let Some(gpu) = Gpu::shared() else { return };
    let source = gpu.buffer(&[0x55_u8; 64]);
    let copy = gpu.zeros(64, BufferUsages::MAP_READ | BufferUsages::COPY_DST);
    gpu.queue.submit([recorded(gpu, &source, &copy)]);
    gpu.map(&copy, wgpu::MapMode::Read, 0..64).expect("nothing else is mapped");
    let view = copy.get_mapped_range(..).expect("the buffer was mapped");
    assert_eq!(view[..], [0x55; 64]);
}
