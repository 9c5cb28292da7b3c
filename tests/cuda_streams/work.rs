//! Work that writes stamps and checks them, in streams.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use crate::cuda::Fake;

/// The kernels, and where the checks count what is wrong. Given back by [`Stamps::end`].
pub(crate) struct Stamps {
    module: sys::CUmodule,
    stamp: sys::CUfunction,
    check: sys::CUfunction,
    mismatches: u64,
}

/// `words` u32 from `address` on, each `seed` plus its index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) address: u64,
    pub(crate) words: u64,
    pub(crate) seed: u32,
}

impl Stamps {
    pub(crate) fn load(context: &Arc<CudaContext>, fake: &Fake) -> Self {
        context.bind_to_thread().expect("the fake has the context");
        let image = c"any";
        // SAFETY: the fake does not look at it.
        let module = unsafe { result::module::load_data(image.as_ptr().cast::<c_void>()) };
        let module = module.expect("the fake loads anything");
        let function = |name: &str| {
            let name = CString::new(name).expect("no zero inside");
            // SAFETY: the module is loaded.
            let function = unsafe { result::module::get_function(module, name) };
            function.expect("the fake has the kernel")
        };
        let (stamp, check) = (function("stamp_u32"), function("check_u32"));
        // SAFETY: freed at the end.
        let mismatches = unsafe { result::malloc_sync(8) }.expect("room for a number");
        fake.write(mismatches, &[0; 8]);
        Self { module, stamp, check, mismatches }
    }

    /// Writes a stamp in the order of a stream.
    pub(crate) fn stamp(&self, stream: &CudaStream, mut stamp: Stamp) -> Result<(), DriverError> {
        let arguments = [
            (&raw mut stamp.address).cast::<c_void>(),
            (&raw mut stamp.words).cast(),
            (&raw mut stamp.seed).cast(),
        ];
        launch(self.stamp, stream, &arguments)
    }

    /// Counts what differs from a stamp in the order of a stream.
    pub(crate) fn check(&self, stream: &CudaStream, mut stamp: Stamp) -> Result<(), DriverError> {
        let mut mismatches = self.mismatches;
        let arguments = [
            (&raw mut stamp.address).cast::<c_void>(),
            (&raw mut stamp.words).cast(),
            (&raw mut stamp.seed).cast(),
            (&raw mut mismatches).cast(),
        ];
        launch(self.check, stream, &arguments)
    }

    /// How many words were wrong so far.
    pub(crate) fn mismatches(&self, fake: &Fake) -> u64 {
        let bytes = fake.read(self.mismatches, 8);
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    }

    pub(crate) fn end(self) {
        // With a lost device, of which the program has complained, neither is possible.
        // SAFETY: allocated in `load`, and all work is done.
        let _ = unsafe { result::free_sync(self.mismatches) };
        // SAFETY: loaded in `load`, and all work is done.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

fn launch(
    function: sys::CUfunction,
    stream: &CudaStream,
    arguments: &[*mut c_void],
) -> Result<(), DriverError> {
    let mut arguments = arguments.to_vec();
    let one = (1, 1, 1);
    // SAFETY: the arguments are those of the kernel, which is checked against the memory there is.
    unsafe { result::launch_kernel(function, one, one, 0, stream.cu_stream(), &mut arguments) }
}
