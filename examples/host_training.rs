//! Who holds how much after training, and how to get it back: the library on the host backend.
//!
//! `cargo run --example host_training`

use aquifer::{AllocError, Allocator, Config, DeviceVec, backend::Host};

fn main() -> Result<(), AllocError> {
    let memory = Allocator::new(Host::new(), Config::default());
    let (model, history) = (memory.tag("model"), memory.tag("history"));

    // Training: a tensor that stays, temporaries that go, and losses kept by mistake.
    let mut weights = DeviceVec::<f32, _>::request(&memory).tag(model).zeroed(1 << 20)?;
    let mut losses = Vec::new();
    for step in 1..=10 {
        let gradient = DeviceVec::from_slice(&memory, &vec![0.01_f32; weights.len()])?;
        weights.iter_mut().zip(&*gradient).for_each(|(weight, slope)| *weight -= slope);
        losses.push(DeviceVec::request(&memory).tag(history).from_slice(&[1.0 / step as f32])?);
    }

    // Training is done. Deleting the model frees its memory, but only into the cache ...
    drop(weights);
    println!("allocated {}, reserved {}", memory.memory_allocated(), memory.memory_reserved());
    memory.holders().iter().for_each(|holder| println!("still held: {holder}"));

    // ... and empty_cache gives it back, once nobody holds it.
    drop(losses);
    println!("given back {}, reserved {}", memory.empty_cache(), memory.memory_reserved());
    assert_eq!(memory.memory_reserved(), 0);
    Ok(())
}
