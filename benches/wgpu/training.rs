//! A training step of the demo (a linear layer with Adam) over this crate's memory, and the very
//! same code over buffers that every step makes for itself.
//!
//! The rival's buffers are of wgpu's own caching, with its default hints: temporaries, parameters
//! of kernels and the buffer that the loss comes back in are made and dropped in each step;
//! weights, moments and data stay. A turn is some steps and the wait for the last loss.

use std::sync::mpsc::channel;

use aquifer::backend::Host;
use aquifer::{Allocator, Config};
use wgpu::util::{BufferInitDescriptor, DeviceExt};
use wgpu::{
    BindingResource, Buffer, BufferDescriptor, BufferUsages, CommandEncoder, Device, MapMode, Queue,
};

use crate::gpu::{Gpu, buffer, wait};
use crate::harness::{Bar, Run, interleave, nanoseconds_each};
use crate::linear::Failure;
use crate::linear::gpu::Training;
use crate::linear::host::{Linear, Memory, generate};
use crate::linear::source::{Aquifer, Source};
use crate::linear::{Purpose, Random, Shape};

/// Width of the layer, and samples in a batch: the demo's, and one whose kernels are short.
const CASES: [(usize, usize); 2] = [(1000, 64), (1000, 1)];

pub(crate) fn run(run: Run, gpu: &Gpu) {
    let run = run.section("training: ms per step");
    run.heading(&["median", "buffers median", "ratio"]);
    for (width, batch) in run.pick(&CASES[..], &[(40, 4)]) {
        let (width, batch) = (*width, *batch);
        let shape = Shape { inputs: width, outputs: width };
        let steps = run.pick(8, 1);
        let memory = gpu.allocator();
        let mut own = turns(Aquifer::new(&memory), shape, batch, steps);
        let (device, queue) = gpu.with_default_hints();
        let mut rival = turns(Buffers { device, queue }, shape, batch, steps);
        let [own, rival] = interleave(run.pick(15, 1), [&mut own, &mut rival]);
        let figures = [
            ("median_ms", own.median() / 1e6),
            ("buffers_ms", rival.median() / 1e6),
            ("ratio", own.over(&rival).median()),
        ];
        let case = format!("{width} x {width}, batch {batch}");
        run.judge(&case, &figures, Bar::AtMost(0.9));
    }
}

/// Turns of one contender: the same layer and the same data for each.
fn turns<S: Source + Clone>(
    source: S,
    shape: Shape,
    batch: usize,
    steps: usize,
) -> impl FnMut() -> f64 {
    let host = Memory::new(&Allocator::new(Host::new(), Config::default()));
    let mut random = Random(0);
    let data = generate(&host, shape, (4, batch), &mut random).expect("room on the host");
    let linear = Linear::new(&host, shape, &mut random).expect("room on the host");
    let training = Training::new(source.clone(), &linear, &data);
    let mut training = training.expect("room on the device");
    move || {
        nanoseconds_each(steps, || {
            let mut last = None;
            for _ in 0..steps {
                last = Some(training.step().expect("room on the device").1);
            }
            let loss = last.map(|loss| source.read(&loss).expect("it was submitted"));
            assert!(loss.is_some_and(|loss| loss[0].is_finite()));
        })
    }
}

/// Every tensor is a buffer of its own, made when it is asked for.
#[derive(Clone)]
struct Buffers {
    device: Device,
    queue: Queue,
}

impl Source for Buffers {
    type Tensor = Buffer;
    type Scope = ();
    type Download = Buffer;

    fn device(&self) -> &Device {
        &self.device
    }

    fn filled(&self, _: Purpose, values: &[f32]) -> Result<Buffer, Failure> {
        let tensor = buffer(&self.device, size_of_val(values) as u64);
        self.queue.write_buffer(&tensor, 0, bytemuck::cast_slice(values));
        Ok(tensor)
    }

    fn zeros(&self, _: Purpose, len: usize) -> Result<Buffer, Failure> {
        Ok(buffer(&self.device, (len * size_of::<f32>()) as u64))
    }

    fn begin(&self, _: &mut CommandEncoder) {}

    fn blank(&self, (): &(), _: Purpose, len: usize) -> Result<Buffer, Failure> {
        Ok(buffer(&self.device, (len * size_of::<f32>()) as u64))
    }

    fn uniforms<const N: usize>(
        &self,
        (): &mut (),
        _: &mut CommandEncoder,
        words: [&[u32]; N],
    ) -> Result<[Buffer; N], Failure> {
        Ok(words.map(|words| {
            self.device.create_buffer_init(&BufferInitDescriptor {
                label: None,
                contents: bytemuck::cast_slice(words),
                usage: BufferUsages::UNIFORM,
            })
        }))
    }

    fn binding<'a>(&self, (): &(), tensor: &'a Buffer) -> BindingResource<'a> {
        tensor.as_entire_binding()
    }

    fn download(
        &self,
        (): &mut (),
        encoder: &mut CommandEncoder,
        tensor: &Buffer,
    ) -> Result<Buffer, Failure> {
        let back = self.device.create_buffer(&BufferDescriptor {
            label: None,
            size: tensor.size(),
            usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        encoder.copy_buffer_to_buffer(tensor, 0, &back, 0, None);
        Ok(back)
    }

    fn submit(&self, (): (), encoder: CommandEncoder) {
        self.queue.submit([encoder.finish()]);
    }

    fn read(&self, download: &Buffer) -> Result<Vec<f32>, Failure> {
        let (send, receive) = channel();
        download.map_async(MapMode::Read, .., move |outcome| {
            let _ = send.send(outcome);
        });
        wait(&self.device);
        receive.recv()??;
        let values = bytemuck::pod_collect_to_vec(&download.get_mapped_range(..)?);
        download.unmap();
        Ok(values)
    }
}
