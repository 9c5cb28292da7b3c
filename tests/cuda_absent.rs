//! On a machine without an NVIDIA driver: an error that says so, and no panic. (With one, nothing
//! is asked here.)
#![cfg(feature = "cuda")]

use aquifer::backend::{Cuda, CudaOptions, CudaUnavailable, cuda};
use aquifer::surface::cuda::CudaOpenError;
use aquifer::{CudaAllocator, tune_default_pool};

#[test]
fn no_driver_is_an_error() {
    let error = match cuda::device_count() {
        Ok(count) => return println!("there is a driver, and {count} devices: nothing to test"),
        Err(error) => error,
    };
    assert!(matches!(error, CudaUnavailable::NoLibrary { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with("no NVIDIA driver is installed"), "{text}");
    assert_eq!(text.lines().count(), 1);
    // The second time, from other doors, it is the same.
    assert_eq!(Cuda::new(0, &CudaOptions::default()).err(), Some(error.clone()));
    assert_eq!(tune_default_pool(0), Err(error.clone()));
    let opened = CudaAllocator::open(0).map(drop);
    assert_eq!(opened, Err(CudaOpenError::Unavailable(error)));
}
