//! Named scopes: a stretch of the program, and what it did with memory.
//!
//! A scope sees what every thread does on every stream between its beginning and its end; scopes
//! nest and overlap as they like, each with its own peaks, and disturb neither one another's nor
//! those of [`memory_stats`](Allocator::memory_stats). What was allocated in an inner scope was
//! allocated in the outer one too. To tell two threads apart give their allocations tags.

use std::sync::Arc;

use crate::allocator::Allocator;
use crate::allocator::shared::{Shared, WorldOf};
use crate::backend::Backend;
use crate::core::scopes::Opening;
use crate::report::scope::{self, ScopeReport};

/// A scope that is under way. Ends with [`end`](Self::end), which reports; or dropped, and then its
/// report is logged at level `debug`, if anybody listens to that.
#[must_use = "dropping the guard ends the scope"]
pub struct ScopeGuard<B: Backend> {
    shared: Arc<Shared<B>>,
    name: String,
    /// Until it has ended.
    opening: Option<Opening>,
}

impl<B: Backend> std::fmt::Debug for ScopeGuard<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScopeGuard").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<B: Backend> ScopeGuard<B> {
    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What happened until now; the scope goes on. O(blocks), with all streams stopped.
    pub fn report(&self) -> ScopeReport {
        let opening = self.opening.as_ref().expect("a guard that can be called has not ended");
        self.shared.world(|world| self.shared.report_scope(world, &self.name, opening))
    }

    /// Ends the scope, and says what happened in it. O(blocks), with all streams stopped.
    pub fn end(mut self) -> ScopeReport {
        let opening = self.opening.take().expect("a guard that can be called has not ended");
        self.shared.world(|world| {
            let report = self.shared.report_scope(world, &self.name, &opening);
            world.close_scope(&opening);
            report
        })
    }
}

impl<B: Backend> Drop for ScopeGuard<B> {
    fn drop(&mut self) {
        let Some(opening) = self.opening.take() else { return };
        if self.shared.is_poisoned() {
            return;
        }
        let is_heard = log::log_enabled!(log::Level::Debug);
        let report = self.shared.world(|world| {
            let report = is_heard.then(|| self.shared.report_scope(world, &self.name, &opening));
            world.close_scope(&opening);
            report
        });
        if let Some(report) = report {
            log::debug!("aquifer: {report}");
        }
    }
}

impl<B: Backend> Shared<B> {
    fn report_scope(
        &self,
        world: &mut WorldOf<'_, B>,
        name: &str,
        opening: &Opening,
    ) -> ScopeReport {
        scope::collect(world, name, opening, &|tag| self.tags.name(tag))
    }
}

impl<B: Backend> Allocator<B> {
    /// Begins a scope: until it ends, what is allocated, freed, got from the device and given back
    /// to it is counted, with peaks of its own; at its end it tells what of it is still held, and
    /// by whom.
    ///
    /// Beginning and ending look at every block with all streams stopped (some microseconds for a
    /// thousand, and 4 bytes for each while the scope lasts): for steps and phases, not for single
    /// calls. In between nothing is done for it, but that with several streams new heights after
    /// its beginning are settled among them, as after
    /// [`reset_peak_memory_stats`](Self::reset_peak_memory_stats).
    ///
    /// ```
    /// use aquifer::{Allocator, Config, backend::Host};
    ///
    /// let allocator = Allocator::new(Host::new(), Config::default());
    /// let mut kept = Vec::new();
    /// let scope = allocator.scope("train");
    /// for step in 0..3 {
    ///     let batch = allocator.allocate(1 << 20)?;
    ///     kept.push(allocator.allocate(4096)?); // the losses: one tensor a step too many
    /// }
    /// let report = scope.end();
    /// assert_eq!((report.allocated_count, report.freed_count), (6, 3));
    /// assert_eq!((report.held_count(), report.held_bytes()), (3, 3 * 4096));
    /// println!("{report}");
    /// # Ok::<(), aquifer::AllocError>(())
    /// ```
    pub fn scope(&self, name: impl Into<String>) -> ScopeGuard<B> {
        let opening = Some(self.shared.world(|world| world.open_scope()));
        ScopeGuard { shared: Arc::clone(&self.shared), name: name.into(), opening }
    }
}
