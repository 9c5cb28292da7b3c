//! The driver that is measured: the machine's or the fake one, and what both let be counted.

use std::sync::Arc;

use aquifer::CudaAllocator;
use aquifer::backend::{Backend, Cuda, CudaOptions, CudaSource};
use cudarc::driver::CudaContext;

use crate::cuda::{Fake, MIB, Options};

/// The fake device is large enough for every trace; nobody touches its pages.
const CAPACITY: u64 = 256 * 1024 * MIB;

/// A driver with one context.
pub(crate) struct Driver {
    /// Declared, and so dropped, before the fake driver.
    pub(crate) context: Arc<CudaContext>,
    fake: Option<Fake>,
}

impl Driver {
    /// The machine's, if `AQUIFER_CUDA=real` says so.
    pub(crate) fn open() -> Self {
        let is_real = std::env::var("AQUIFER_CUDA").is_ok_and(|kind| kind == "real");
        let options = Options { capacity: CAPACITY, log: false, ..Options::default() };
        let fake = (!is_real).then(|| Fake::fresh(options));
        let cuda = Cuda::new(0, &CudaOptions::default());
        let cuda = cuda.unwrap_or_else(|error| {
            eprintln!("cuda: {error}");
            std::process::exit(1);
        });
        Self { context: Arc::clone(cuda.context()), fake }
    }

    pub(crate) fn describe(&self) -> String {
        match &self.fake {
            None => self.allocator(None).map_or_else(String::new, |own| own.backend().describe()),
            Some(_) => "the fake driver, so times are of this crate's own work alone".to_owned(),
        }
    }

    /// One number for a real device, another for the fake one.
    pub(crate) fn pick<T>(&self, real: T, fake: T) -> T {
        if self.fake.is_none() { real } else { fake }
    }

    /// A new allocator with the defaults for memory from such a source; none, if the device lacks
    /// it.
    pub(crate) fn allocator(&self, source: Option<CudaSource>) -> Option<CudaAllocator> {
        let options = CudaOptions { source, ..CudaOptions::default() };
        let cuda = Cuda::with_context(&self.context, &options).ok()?;
        let config = CudaAllocator::recommended_config(cuda.source());
        Some(CudaAllocator::with(cuda, config).expect("the configuration is valid"))
    }

    /// Calls of the driver so far, where they can be counted.
    pub(crate) fn calls(&self) -> Option<u64> {
        self.fake.as_ref().map(Fake::fallible_calls)
    }
}
