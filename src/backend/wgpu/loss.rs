//! Whether the device is gone. wgpu tells that once, by a callback: after it, error scopes catch
//! nothing, buffers seem to be made, and polling says that all is done. So it is remembered.

use std::sync::OnceLock;

use crate::backend::Lost;

/// Set at most once.
#[derive(Debug, Default)]
pub(super) struct Loss(OnceLock<Lost>);

impl Loss {
    /// The device is gone; the first reason stays.
    pub(super) fn set(&self, detail: String) {
        // A second loss has nothing to add.
        let _ = self.0.set(Lost::new(detail));
    }

    /// # Errors
    /// If the device is gone.
    pub(super) fn check(&self) -> Result<(), Lost> {
        self.0.get().map_or(Ok(()), |lost| Err(lost.clone()))
    }
}
