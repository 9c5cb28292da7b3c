//! The experiment on memory of this machine.

use std::error::Error;
use std::time::Instant;

use aquifer::backend::{Backend, Host};
use aquifer::{Allocator, Config};

use super::moments::Aftermath;
use super::report::Report;
use super::{BATCHES, DemoArgs, SHAPE, progress, record, write_report};
use crate::linear::Random;
use crate::linear::host::{Adam, Forward, Linear, Memory, generate};

/// Training, then the allocator's answers while things are deleted.
pub(super) fn observe(args: &DemoArgs) -> Result<Report, Box<dyn Error>> {
    let allocator = Allocator::new(Host::new(), Config::default());
    record(args, &allocator);
    let memory = Memory::new(&allocator);
    let mut random = Random(args.seed);
    let data = generate(&memory, SHAPE, (BATCHES, args.batch as usize), &mut random)?;
    let mut model = Linear::new(&memory, SHAPE, &mut random)?;
    let mut optimizer = Adam::new(&memory, &model)?;
    let loss_first = model.forward(&memory, &data[0])?.loss();

    // The classic mistake: a list of losses that keeps what they were computed from.
    let mut history: Vec<Forward<Host>> = Vec::new();
    let bar = progress(args.steps, "training");
    let began = Instant::now();
    for (_, batch) in (0..args.steps).zip(data.iter().cycle()) {
        let forward = optimizer.train(&memory, &mut model, batch)?;
        bar.set_message(format!("loss {:.4}", forward.loss()));
        bar.inc(1);
        if args.leak {
            history.push(forward);
        }
    }
    let ms_per_step = began.elapsed().as_secs_f64() * 1e3 / f64::from(args.steps);
    bar.finish_and_clear();
    let loss_last = model.forward(&memory, &data[0])?.loss();

    let aftermath = Aftermath::of(&allocator, || drop((model, optimizer, data)));
    write_report(args, &allocator)?;
    drop(history);
    Ok(Report {
        backend: "host",
        adapter: allocator.backend().describe(),
        loss: (loss_first, loss_last),
        ms_per_step,
        aftermath,
        deviation: None,
    })
}
