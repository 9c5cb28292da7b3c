//! Aquifer in a program that was there before: it owns the device, the queue and the encoders,
//! writes its own buffers by `queue.write_buffer`, and submits by itself.
//!
//! `cargo run --example wgpu_existing_app`. Without a GPU it says so and ends.
//!
//! Three lines are new in a frame: `begin` where its encoder is made, `finish` instead of
//! `encoder.finish()`, and `submitted` after the submission. The rule is: bytes of Aquifer's come
//! by `scope.upload`, in the order of the encoder. `queue.write_buffer` overtakes the encoder, so
//! it is for the program's own buffers.

use aquifer::WgpuAllocator;
use wgpu::{Buffer, BufferUsages, CommandBuffer, CommandEncoder, Device, Queue};

const VALUES: usize = 1 << 16;

/// The program as it was: a device that it opened its way, and a buffer of its own.
struct App {
    device: Device,
    queue: Queue,
    frame_number: Buffer,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(app) = pollster::block_on(App::open()) else { return Ok(()) };

    // The device was asked for as ever, without `recommended_device_descriptor`. So wgpu caches
    // memory below Aquifer, too, and what is given back may stay with it. The log says so, if the
    // program made buffers before:
    //
    //   aquifer: the wgpu device caches memory itself, in blocks of 64 MiB: what is given back may
    //   stay with it. Ask for the device with recommended_device_descriptor.
    let memory = WgpuAllocator::new(app.device.clone(), app.queue.clone());

    for frame in 0..5u32 {
        app.queue.write_buffer(&app.frame_number, 0, &frame.to_le_bytes());

        let mut encoder = app.device.create_command_encoder(&Default::default());
        let mut scope = memory.begin(&mut encoder);
        let values = scope.allocate((VALUES * 4) as u64)?;
        scope.upload(&mut encoder, &values, 0, bytemuck::cast_slice(&vec![frame; VALUES]))?;
        app.record(&mut encoder, scope.slice(&values));
        let back = scope.download(&mut encoder, &values)?;
        drop(values); // The next frame has the same bytes, whenever this one runs.
        let (commands, finished) = scope.finish(encoder);

        app.submit(commands);
        finished.submitted(); // Without it, Aquifer notices when the work is complete.

        let bytes = back.wait()?;
        let first: u32 = *bytemuck::from_bytes(&bytes[..4]);
        println!("frame {first}: {} bytes reserved", memory.memory_reserved());
        assert_eq!(first, frame);
    }
    println!("{} bytes given back", memory.empty_cache());
    Ok(())
}

impl App {
    async fn open() -> Option<Self> {
        let descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
        let adapter = wgpu::Instance::new(descriptor).request_adapter(&Default::default()).await;
        let adapter =
            adapter.inspect_err(|error| println!("nothing to show here: {error}")).ok()?;
        let opened = adapter.request_device(&Default::default()).await;
        let opened = opened.inspect_err(|error| println!("nothing to show here: {error}"));
        let (device, queue) = opened.ok()?;
        let frame_number = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("frame number"),
            size: 4,
            usage: BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Some(Self { device, queue, frame_number })
    }

    /// What the program does with memory: here, it puts the number of the frame in front.
    fn record(&self, encoder: &mut CommandEncoder, into: wgpu::BufferSlice<'_>) {
        let (buffer, offset) = (into.buffer(), into.offset());
        encoder.copy_buffer_to_buffer(&self.frame_number, 0, buffer, offset, 4);
    }

    fn submit(&self, commands: CommandBuffer) {
        self.queue.submit([commands]);
    }
}
