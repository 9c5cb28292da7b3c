//! The largest batch that fits, found by trying.

use std::error::Error;

use crate::allocator::Allocator;
use crate::allocator::allocation::AllocError;
use crate::backend::Backend;

/// An error that may say that memory was out.
///
/// Of the boxed errors of the standard library whatever is in their chain of sources counts; other
/// types are told apart by [`find_executable_batch_size_with`].
pub trait MaybeOutOfMemory {
    /// Whether less to do at once could help.
    fn is_out_of_memory(&self) -> bool;
}

impl MaybeOutOfMemory for AllocError {
    /// No room, or more in one piece than the device can give.
    fn is_out_of_memory(&self) -> bool {
        matches!(self, AllocError::OutOfMemory(_) | AllocError::TooLarge { .. })
    }
}

impl MaybeOutOfMemory for Box<dyn Error> {
    fn is_out_of_memory(&self) -> bool {
        is_out_of_memory(&**self)
    }
}

impl MaybeOutOfMemory for Box<dyn Error + Send + Sync> {
    fn is_out_of_memory(&self) -> bool {
        is_out_of_memory(&**self)
    }
}

/// Whether an [`AllocError`] that says so is the error, or among its sources.
pub fn is_out_of_memory(error: &(dyn Error + 'static)) -> bool {
    let chain = std::iter::successors(Some(error), |&error| error.source());
    let mut causes = chain.filter_map(|error| error.downcast_ref::<AllocError>());
    causes.any(MaybeOutOfMemory::is_out_of_memory)
}

/// Runs `run` with `start`, and as long as it fails for want of memory with half of what it had
/// before, after [`empty_cache`](Allocator::empty_cache); returns the number that it got by with,
/// and its result.
///
/// What `run` holds when it fails should go with it: what it keeps elsewhere is in the way of the
/// next try.
///
/// ```
/// use aquifer::{Allocator, Config, backend::Host, find_executable_batch_size};
///
/// let allocator = Allocator::new(Host::with_capacity(64 << 20), Config::default());
/// let train = |batch| {
///     let activations = allocator.allocate(batch as u64 * (1 << 20))?;
///     Ok::<_, aquifer::AllocError>(activations.size())
/// };
/// let (batch, _) = find_executable_batch_size(&allocator, 256, train)?;
/// assert_eq!(batch, 64);
/// # Ok::<(), aquifer::AllocError>(())
/// ```
///
/// # Errors
/// The last one, if there is no room for 1 either; any other one at once.
///
/// # Panics
/// If `start` is 0.
pub fn find_executable_batch_size<B: Backend, T, E: MaybeOutOfMemory>(
    allocator: &Allocator<B>,
    start: usize,
    run: impl FnMut(usize) -> Result<T, E>,
) -> Result<(usize, T), E> {
    find_executable_batch_size_with(allocator, start, E::is_out_of_memory, run)
}

/// As [`find_executable_batch_size`], for errors of any type: `is_out_of_memory` tells which of
/// them a smaller batch may avoid.
///
/// # Errors
/// The last one, if there is no room for 1 either; any other one at once.
///
/// # Panics
/// If `start` is 0.
pub fn find_executable_batch_size_with<B: Backend, T, E>(
    allocator: &Allocator<B>,
    start: usize,
    is_out_of_memory: impl Fn(&E) -> bool,
    mut run: impl FnMut(usize) -> Result<T, E>,
) -> Result<(usize, T), E> {
    assert!(start > 0, "a batch has at least 1 element: start with more than 0");
    let mut batch = start;
    loop {
        match run(batch) {
            Ok(result) => return Ok((batch, result)),
            Err(error) if batch > 1 && is_out_of_memory(&error) => {
                // It may hold what was allocated until then.
                drop(error);
                let returned = allocator.empty_cache();
                log::debug!("aquifer: no memory for {batch} at once; {returned} bytes went back");
                batch /= 2;
            }
            Err(error) => return Err(error),
        }
    }
}
