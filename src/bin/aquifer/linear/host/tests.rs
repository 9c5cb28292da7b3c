//! The layer against a plain one: vectors, triple loops and nothing else.

use super::*;
use aquifer::Config;
use aquifer::backend::Host;

/// The same training without Aquifer, tiles or helpers.
struct Plain {
    shape: Shape,
    /// Weights, then bias.
    parameters: [Vec<f32>; 2],
    first: [Vec<f32>; 2],
    second: [Vec<f32>; 2],
    steps: i32,
}

impl Plain {
    fn like(linear: &Linear<Host>) -> Self {
        let parameters = [linear.weights.to_vec(), linear.bias.to_vec()];
        let zeros = || [vec![0.0; parameters[0].len()], vec![0.0; parameters[1].len()]];
        let (first, second) = (zeros(), zeros());
        Self { shape: linear.shape, parameters, first, second, steps: 0 }
    }

    fn predict(&self, x: &[f32]) -> Vec<f32> {
        let Shape { inputs, outputs } = self.shape;
        let mut prediction = Vec::new();
        for sample in 0..x.len() / inputs {
            for output in 0..outputs {
                let mut sum = self.parameters[1][output];
                for input in 0..inputs {
                    let weight = self.parameters[0][input * outputs + output];
                    sum += x[sample * inputs + input] * weight;
                }
                prediction.push(sum);
            }
        }
        prediction
    }

    fn loss(&self, x: &[f32], target: &[f32]) -> f32 {
        let mut sum = 0.0;
        for (prediction, target) in self.predict(x).iter().zip(target) {
            let difference = f64::from(prediction - target);
            sum += difference * difference;
        }
        (sum / target.len() as f64) as f32
    }

    fn gradients(&self, x: &[f32], target: &[f32]) -> [Vec<f32>; 2] {
        let Shape { inputs, outputs } = self.shape;
        let prediction = self.predict(x);
        let mut gradients = [vec![0.0; inputs * outputs], vec![0.0; outputs]];
        for sample in 0..x.len() / inputs {
            for output in 0..outputs {
                let at = sample * outputs + output;
                let outer = 2.0 / target.len() as f32 * (prediction[at] - target[at]);
                gradients[1][output] += outer;
                for input in 0..inputs {
                    gradients[0][input * outputs + output] += x[sample * inputs + input] * outer;
                }
            }
        }
        gradients
    }

    fn train(&mut self, x: &[f32], target: &[f32]) {
        let gradients = self.gradients(x, target);
        self.steps += 1;
        for (which, gradient) in gradients.iter().enumerate() {
            for (at, &slope) in gradient.iter().enumerate() {
                let first = &mut self.first[which][at];
                *first = 0.9 * *first + (1.0 - 0.9) * slope;
                let second = &mut self.second[which][at];
                *second = 0.999 * *second + (1.0 - 0.999) * slope * slope;
                let rate = 1e-3 / (1.0 - 0.9_f32.powi(self.steps));
                let scale = 1.0 / (1.0 - 0.999_f32.powi(self.steps));
                let step = rate * *first / ((scale * *second).sqrt() + 1e-8);
                self.parameters[which][at] -= step;
            }
        }
    }
}

fn allocator() -> Allocator<Host> {
    Allocator::new(Host::new(), Config::default())
}

/// Shapes below, at and across the edges of tiles and of the four terms.
const SHAPES: [(Shape, usize); 5] = [
    (Shape { inputs: 1, outputs: 1 }, 1),
    (Shape { inputs: 4, outputs: 64 }, 64),
    (Shape { inputs: 37, outputs: 70 }, 6),
    (Shape { inputs: 130, outputs: 3 }, 67),
    (Shape { inputs: 65, outputs: 129 }, 5),
];

#[test]
fn training_equals_the_plain_loops_to_the_last_bit() {
    for (shape, batch) in SHAPES {
        let memory = Memory::new(&allocator());
        let mut random = Random(7);
        let data = generate(&memory, shape, (2, batch), &mut random).unwrap();
        let mut linear = Linear::new(&memory, shape, &mut random).unwrap();
        let mut adam = Adam::new(&memory, &linear).unwrap();
        let mut plain = Plain::like(&linear);
        for batch in data.iter().cycle().take(5) {
            let loss = adam.train(&memory, &mut linear, batch).unwrap().loss();
            assert_eq!(loss, plain.loss(&batch.x, &batch.target), "{shape:?}");
            plain.train(&batch.x, &batch.target);
            assert_eq!(linear.weights[..], plain.parameters[0], "{shape:?}");
            assert_eq!(linear.bias[..], plain.parameters[1], "{shape:?}");
        }
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let shape = Shape { inputs: 5, outputs: 3 };
    let memory = Memory::new(&allocator());
    let mut random = Random(11);
    let data = generate(&memory, shape, (1, 4), &mut random).unwrap();
    let batch = &data[0];
    let mut linear = Linear::new(&memory, shape, &mut random).unwrap();
    let forward = linear.forward(&memory, batch).unwrap();
    let gradients = linear.backward(&memory, batch, &forward).unwrap();
    let step = 1e-2;
    for at in 0..shape.inputs * shape.outputs {
        let weight = linear.weights[at];
        let mut loss_at = |value| {
            linear.weights[at] = value;
            linear.forward(&memory, batch).unwrap().loss()
        };
        let slope = (loss_at(weight + step) - loss_at(weight - step)) / (2.0 * step);
        loss_at(weight);
        assert!((slope - gradients.weights[at]).abs() < 1e-3, "{at}: {slope}");
    }
    for at in 0..shape.outputs {
        let bias = linear.bias[at];
        let mut loss_at = |value| {
            linear.bias[at] = value;
            linear.forward(&memory, batch).unwrap().loss()
        };
        let slope = (loss_at(bias + step) - loss_at(bias - step)) / (2.0 * step);
        loss_at(bias);
        assert!((slope - gradients.bias[at]).abs() < 1e-3, "{at}: {slope}");
    }
}

#[test]
fn a_step_leaves_nothing_behind_and_after_the_first_asks_nothing_of_the_backend() {
    let shape = Shape { inputs: 300, outputs: 200 };
    let allocator = allocator();
    let memory = Memory::new(&allocator);
    let mut random = Random(3);
    let data = generate(&memory, shape, (1, 16), &mut random).unwrap();
    let mut linear = Linear::new(&memory, shape, &mut random).unwrap();
    let mut adam = Adam::new(&memory, &linear).unwrap();
    let allocated = allocator.memory_allocated();
    let parameters = (200 * 300 + 200) * size_of::<f32>() as u64;
    assert!(allocated >= 3 * parameters, "{allocated} B for layer and optimizer");
    drop(adam.train(&memory, &mut linear, &data[0]).unwrap());
    let calls = allocator.memory_stats().num_device_alloc;
    for _ in 0..5 {
        let forward = adam.train(&memory, &mut linear, &data[0]).unwrap();
        assert_eq!(allocator.memory_stats().num_device_alloc, calls);
        drop(forward);
        assert_eq!(allocator.memory_allocated(), allocated);
    }
    allocator.verify();
    drop((linear, adam, data));
    assert_eq!(allocator.memory_allocated(), 0);
}

#[test]
fn the_seed_determines_the_numbers() {
    let draw = |seed| {
        let mut random = Random(seed);
        (0..1000).map(|_| random.symmetric()).collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    let (values, sum) = (draw(1), draw(1).iter().sum::<f32>());
    assert!(values.iter().all(|value| value.abs() <= 1.0) && sum.abs() < 60.0, "{sum}");
}
