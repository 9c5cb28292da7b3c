//! Kernels by name: what the test kernels of the crate do, over the fake's memory.
//!
//! | name        | arguments                                | what it does                     |
//! |-------------|------------------------------------------|----------------------------------|
//! | `fill_u32`  | words, count u64, value u32              | `words[i] = value`               |
//! | `stamp_u32` | words, count u64, seed u32               | `words[i] = seed + i`, wrapping  |
//! | `check_u32` | words, count u64, seed u32, mismatches   | adds how many differ to a u64    |
//! | `adam_f32`  | param, grad, m, v, count u64, lr, beta1, | one step of Adam with bias       |
//! |             | beta2, eps f32, step u32                 | correction; steps count from 1   |
//!
//! The image of a module is not looked at. A name that is not in the table is not found.

use std::collections::BTreeMap;

use crate::abi::{Answer, Code, In};
use crate::layer::{Layer, LayerKernel};
use crate::os;
use crate::state::State;

#[derive(Debug, Default)]
pub(crate) struct Modules {
    pub(crate) modules: Vec<u64>,
    functions: BTreeMap<u64, Function>,
}

#[derive(Debug, Clone, Copy)]
struct Function {
    module: u64,
    kernel: Kernel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    Fill,
    Stamp,
    Check,
    Adam,
    Layer(LayerKernel),
}

/// A kernel with its arguments.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Launch {
    Fill { words: u64, count: u64, value: u32 },
    Stamp { words: u64, count: u64, seed: u32 },
    Check { words: u64, count: u64, seed: u32, mismatches: u64 },
    Adam(Adam),
    Layer(Layer),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Adam {
    /// Parameters, gradients, first and second moments.
    tensors: [u64; 4],
    count: u64,
    rate: f32,
    scale: f32,
    decays: [f32; 2],
    epsilon: f32,
}

impl State {
    pub(crate) fn add_module(&mut self) -> u64 {
        let module = self.new_handle();
        self.modules.modules.push(module);
        module
    }

    pub(crate) fn remove_module(&mut self, module: u64) -> Answer {
        self.module(module)?;
        self.modules.modules.retain(|other| *other != module);
        self.modules.functions.retain(|_, function| function.module != module);
        Ok(())
    }

    fn module(&mut self, module: u64) -> Answer {
        if self.modules.modules.contains(&module) {
            return Ok(());
        }
        Err(self.misuse(Code::INVALID_HANDLE, format!("{module:#x} is no module")))
    }

    pub(crate) fn add_function(&mut self, module: u64, name: &str) -> Answer<u64> {
        self.module(module)?;
        let kernel = match name {
            "fill_u32" => Kernel::Fill,
            "stamp_u32" => Kernel::Stamp,
            "check_u32" => Kernel::Check,
            "adam_f32" => Kernel::Adam,
            _ => Kernel::Layer(LayerKernel::of(name).ok_or(Code::NOT_FOUND)?),
        };
        let is_same = |function: &Function| function.module == module && function.kernel == kernel;
        let known = self.modules.functions.iter().find(|(_, function)| is_same(function));
        if let Some((handle, _)) = known {
            return Ok(*handle);
        }
        let handle = self.new_handle();
        self.modules.functions.insert(handle, Function { module, kernel });
        Ok(handle)
    }

    pub(crate) fn kernel(&mut self, function: u64) -> Answer<Kernel> {
        match self.modules.functions.get(&function) {
            Some(function) => Ok(function.kernel),
            None => {
                let text = format!("{function:#x} is no function, or its module is gone");
                Err(self.misuse(Code::INVALID_HANDLE, text))
            }
        }
    }
}

/// Argument `index` of a launch: a pointer in an array of pointers.
pub(crate) fn argument<T: Copy>(arguments: &In<u64>, index: usize) -> Answer<T> {
    In::<T>::from_address(arguments.at(index)?).get()
}

impl Kernel {
    pub(crate) fn launch(self, arguments: &In<u64>) -> Answer<Launch> {
        let words = argument(arguments, 0)?;
        Ok(match self {
            Kernel::Fill => Launch::Fill {
                words,
                count: argument(arguments, 1)?,
                value: argument(arguments, 2)?,
            },
            Kernel::Stamp => Launch::Stamp {
                words,
                count: argument(arguments, 1)?,
                seed: argument(arguments, 2)?,
            },
            Kernel::Check => Launch::Check {
                words,
                count: argument(arguments, 1)?,
                seed: argument(arguments, 2)?,
                mismatches: argument(arguments, 3)?,
            },
            Kernel::Adam => Launch::Adam(Adam {
                tensors: [
                    words,
                    argument(arguments, 1)?,
                    argument(arguments, 2)?,
                    argument(arguments, 3)?,
                ],
                count: argument(arguments, 4)?,
                rate: argument(arguments, 5)?,
                scale: argument(arguments, 6)?,
                decays: [argument(arguments, 7)?, argument(arguments, 8)?],
                epsilon: argument(arguments, 9)?,
            }),
            Kernel::Layer(kernel) => Launch::Layer(kernel.launch(arguments)?),
        })
    }
}

impl Launch {
    pub(crate) fn touches(&self) -> Vec<(u64, u64)> {
        let bytes = |count: u64| count.saturating_mul(4);
        let mut ranges = match *self {
            Launch::Fill { words, count, .. } | Launch::Stamp { words, count, .. } => {
                vec![(words, bytes(count))]
            }
            Launch::Check { words, count, mismatches, .. } => {
                vec![(words, bytes(count)), (mismatches, 8)]
            }
            Launch::Adam(adam) => adam.tensors.map(|start| (start, bytes(adam.count))).to_vec(),
            Launch::Layer(layer) => layer.touches(),
        };
        ranges.retain(|(_, len)| *len > 0);
        ranges
    }

    /// Runs over memory that [`Self::touches`] names and somebody has checked.
    pub(crate) fn run(&self) {
        match *self {
            Launch::Fill { words, count, value } => {
                for index in 0..count {
                    store(words, index, value);
                }
            }
            Launch::Stamp { words, count, seed } => {
                for index in 0..count {
                    store(words, index, seed.wrapping_add(index as u32));
                }
            }
            Launch::Check { words, count, seed, mismatches } => {
                let is_wrong =
                    |index: &u64| load::<u32>(words, *index) != seed.wrapping_add(*index as u32);
                let wrong = (0..count).filter(is_wrong).count() as u64;
                store(mismatches, 0, load::<u64>(mismatches, 0).wrapping_add(wrong));
            }
            Launch::Adam(adam) => adam.run(),
            Launch::Layer(layer) => layer.run(),
        }
    }
}

impl Adam {
    fn run(&self) {
        let [values, gradients, firsts, seconds] = self.tensors;
        let [decay_first, decay_second] = self.decays;
        for index in 0..self.count {
            let gradient: f32 = load(gradients, index);
            let first = decay_first * load::<f32>(firsts, index) + (1.0 - decay_first) * gradient;
            let second = decay_second * load::<f32>(seconds, index)
                + (1.0 - decay_second) * gradient * gradient;
            let slope = self.rate * first / ((self.scale * second).sqrt() + self.epsilon);
            store(firsts, index, first);
            store(seconds, index, second);
            store(values, index, load::<f32>(values, index) - slope);
        }
    }
}

pub(crate) fn store<T: Copy>(start: u64, index: u64, value: T) {
    // SAFETY: the range was checked before the kernel ran.
    unsafe { os::store(start + index * size_of::<T>() as u64, value) }
}

pub(crate) fn load<T: Copy>(start: u64, index: u64) -> T {
    // SAFETY: the range was checked before the kernel ran; the types are plain numbers.
    unsafe { os::load(start + index * size_of::<T>() as u64) }
}
