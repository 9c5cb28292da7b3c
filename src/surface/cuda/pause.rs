//! Pausing what bears a tag: the device has the memory back, the addresses stay, and the contents
//! too, if they are to.
//!
//! ```text
//!   pausable("weights") ─▶ a private pool     requests with that tag go there
//!   pause("weights", Keep)                    device ──▶ pinned memory, chunks released
//!   resume("weights")                         chunks at the old addresses ◀── pinned memory
//! ```
//!
//! For a model that sleeps while another one works on the device: graphs that were captured over
//! its memory, and pointers in its kernels' arguments, are valid again after the resume.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{CudaAllocator, CudaError};
use crate::allocator::{PauseError, PoolOptions, PrivatePool};
use crate::backend::{Cuda, CudaPinned};
use crate::id::Tag;
use crate::units::Bytes;
use crate::vec::DeviceVec;

/// What becomes of the contents of paused memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Contents {
    /// They are lost: caches, activations.
    Discard,
    /// They are kept in pinned memory of the host, and come back with the resume: weights.
    Keep,
}

/// One block's contents, and where they belong.
type Saved = (u64, DeviceVec<u8, CudaPinned>);

/// The pools of tags that can be paused.
#[derive(Default)]
pub(super) struct Pausable {
    pools: Mutex<HashMap<Tag, Entry>>,
}

#[derive(Clone)]
struct Entry {
    pool: PrivatePool<Cuda>,
    /// Locked through a pause and a resume: one at a time.
    saved: Arc<Mutex<Vec<Saved>>>,
}

impl fmt::Debug for Pausable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pausable").field("tags", &self.pools().len()).finish()
    }
}

impl Pausable {
    fn pools(&self) -> MutexGuard<'_, HashMap<Tag, Entry>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, tag: Tag) -> Option<Entry> {
        self.pools().get(&tag).cloned()
    }
}

impl CudaAllocator {
    /// The pool of what bears the tag, made at first sight: its memory can be paused. Requests that
    /// name the tag through [`OnStream::alloc_tagged`](super::OnStream::alloc_tagged) go there;
    /// others by [`Request::pool`](crate::Request::pool) or a route. The pool lives until
    /// [`forget_pausable`](Self::forget_pausable).
    pub fn pausable(&self, tag: Tag) -> PrivatePool<Cuda> {
        let mut pools = self.shared.pausable.pools();
        let entry = pools.entry(tag).or_insert_with(|| Entry {
            pool: self.create_pool(PoolOptions::default()),
            saved: Arc::default(),
        });
        entry.pool.clone()
    }

    /// The tag's pool is released, as when the last handle of a [`PrivatePool`] is dropped; saved
    /// contents are lost.
    pub fn forget_pausable(&self, tag: Tag) {
        let gone = self.shared.pausable.pools().remove(&tag);
        drop(gone);
    }

    pub(super) fn pool_of_tag(&self, tag: Tag) -> Option<PrivatePool<Cuda>> {
        self.shared.pausable.entry(tag).map(|entry| entry.pool)
    }

    /// Gives the memory of everything with the tag back to the device, and says how many bytes; the
    /// addresses stay. Waits for the streams of that memory. See [`PrivatePool::pause`].
    ///
    /// # Errors
    /// [`CudaError::Pause`] if that cannot be now; [`CudaError::Alloc`] if there is no pinned
    /// memory for the contents, [`CudaError::Driver`] if they could not be copied: then nothing has
    /// changed.
    pub fn pause(&self, tag: Tag, contents: Contents) -> Result<Bytes, CudaError> {
        let entry = self.shared.pausable.entry(tag);
        let entry = entry.ok_or(CudaError::Pause(PauseError::NotPaused))?;
        let mut saved = entry.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = Vec::new();
        let bytes = entry.pool.pause_with(|live| -> Result<(), CudaError> {
            if contents == Contents::Keep {
                kept = self.save(live)?;
            }
            Ok(())
        })?;
        *saved = kept;
        Ok(bytes)
    }

    /// Gives paused memory back to its addresses, with the contents if they were kept; says how
    /// many bytes.
    ///
    /// # Errors
    /// [`CudaError::Pause`] if it is not paused, or the device has no room; [`CudaError::Driver`]
    /// if contents could not be copied. It is paused as before then, with what was kept.
    pub fn resume(&self, tag: Tag) -> Result<Bytes, CudaError> {
        let entry = self.shared.pausable.entry(tag);
        let entry = entry.ok_or(CudaError::Pause(PauseError::NotPaused))?;
        let mut saved = entry.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let backend = self.backend();
        let bytes = entry.pool.resume_with(|live| -> Result<(), CudaError> {
            let live: HashSet<_> = live.iter().copied().collect();
            let copies = saved.iter().map(|(address, bytes)| {
                let from = bytes.as_ptr().expose_provenance() as u64;
                (*address, from, bytes.len() as Bytes)
            });
            let copies = copies.filter(|&(address, _, size)| live.contains(&(address, size)));
            backend.copy_all(copies).map_err(CudaError::Driver)
        })?;
        saved.clear();
        Ok(bytes)
    }

    /// The contents of blocks of the device.
    fn save(&self, live: &[(u64, Bytes)]) -> Result<Vec<Saved>, CudaError> {
        let mut saved = Vec::new();
        for &(address, size) in live {
            let bytes = DeviceVec::<u8, _>::recycled(self.pinned(), size as usize)?;
            saved.push((address, bytes));
        }
        let copies = saved.iter_mut().map(|(address, bytes)| {
            let to = bytes.as_mut_ptr().expose_provenance() as u64;
            (to, *address, bytes.len() as Bytes)
        });
        let copies: Vec<_> = copies.collect();
        self.backend().copy_all(copies.into_iter()).map_err(CudaError::Driver)?;
        Ok(saved)
    }
}
