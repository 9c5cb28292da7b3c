//! Private pools: memory apart from the rest; routes that lead requests there; captures.
//!
//! A pool is searched by the requests that are routed to it, and by nobody else (unless it was made
//! to help out when memory is out). Routes are looked up newest first, so the innermost wins.
//!
//! A capture records a stream's work to be replayed later, at the same addresses. So while it runs
//! no backend call is made for requests of that stream (they are served from what the pool holds:
//! prime it), and a pool that a capture went through is never trimmed while it lives.

use std::sync::{Arc, PoisonError, Weak};
use std::thread::ThreadId;

use crate::allocator::Allocator;
use crate::allocator::allocation::AllocError;
use crate::allocator::shared::Shared;
use crate::allocator::streams::Stream;
use crate::allocator::sync::{AtomicUsize, Mutex, Ordering};
use crate::backend::{Backend, MemoryKind};
use crate::core::pool::Traits;
use crate::core::trim::Trim;
use crate::id::{ArenaId, OwnerId, PoolId};
use crate::units::Bytes;

/// What is special about a private pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolOptions {
    /// Its free blocks serve everyone's requests before those fail, if its memory is of the default
    /// kind.
    pub use_on_oom: bool,
    /// Every allocation gets a segment of its own.
    pub no_split: bool,
    /// Every allocation gets a segment of its own, made to measure (at most 12.5 % too large, the
    /// device's granularity aside), and freed ones are cached by size. `no_split` alone hands out
    /// whole segments of the usual sizes.
    pub exclusive: bool,
    /// The sort of memory its segments are made of.
    pub kind: MemoryKind,
}

/// A handle of a private pool; clones are the same pool. When the last one, and the last route to
/// it, is dropped, what is free in it goes back to the device, and the rest as it is freed.
pub struct PrivatePool<B: Backend> {
    inner: Arc<Inner<B>>,
}

struct Inner<B: Backend> {
    shared: Arc<Shared<B>>,
    owner: OwnerId,
    id: PoolId,
}

impl<B: Backend> Clone for PrivatePool<B> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<B: Backend> std::fmt::Debug for PrivatePool<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PrivatePool").field(&self.inner.id).finish()
    }
}

impl<B: Backend> Drop for Inner<B> {
    fn drop(&mut self) {
        if self.shared.is_poisoned() {
            return;
        }
        self.shared.world(|world| world.release_owner(self.owner));
        self.shared.trim(Trim::of_gone(self.owner));
    }
}

/// Whose requests a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Thread(ThreadId),
    Stream(ArenaId),
}

struct Route<B: Backend> {
    of: Of,
    /// The guard keeps it.
    pool: Weak<Inner<B>>,
    serial: u64,
}

/// The routes in force. A hit reads one counter that hardly ever changes.
pub(super) struct Routes<B: Backend> {
    active: AtomicUsize,
    list: Mutex<(Vec<Route<B>>, u64)>,
}

impl<B: Backend> Routes<B> {
    pub(super) fn new() -> Self {
        Self { active: AtomicUsize::new(0), list: Mutex::new((Vec::new(), 0)) }
    }

    #[inline]
    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire) != 0
    }

    /// The pool that a request of the calling thread on `stream` is led to. Who holds it keeps it
    /// from being released, and its entry from being taken over, while the request is under way.
    #[cold]
    pub(super) fn find(&self, stream: ArenaId) -> Option<PrivatePool<B>> {
        let here = [Of::Thread(std::thread::current().id()), Of::Stream(stream)];
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = list.0.iter().rev().find(|route| here.contains(&route.of))?;
        newest.pool.upgrade().map(|inner| PrivatePool { inner })
    }

    fn add(&self, of: Of, pool: &PrivatePool<B>) -> u64 {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.1 += 1;
        let serial = list.1;
        list.0.push(Route { of, pool: Arc::downgrade(&pool.inner), serial });
        self.active.store(list.0.len(), Ordering::Release);
        serial
    }

    fn remove(&self, serial: u64) {
        self.retain(|route| route.serial != serial);
    }

    /// The stream is gone, and so are its routes: its place may be another stream's.
    pub(super) fn forget(&self, stream: ArenaId) {
        self.retain(|route| route.of != Of::Stream(stream));
    }

    fn retain(&self, keep: impl Fn(&Route<B>) -> bool) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.0.retain(keep);
        self.active.store(list.0.len(), Ordering::Release);
    }
}

/// Leads requests to a private pool until it is dropped.
#[must_use = "dropping the guard ends the route"]
pub struct RouteGuard<B: Backend> {
    pool: PrivatePool<B>,
    serial: u64,
}

impl<B: Backend> std::fmt::Debug for RouteGuard<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RouteGuard").field(&self.pool.inner.id).finish()
    }
}

impl<B: Backend> Drop for RouteGuard<B> {
    fn drop(&mut self) {
        self.pool.inner.shared.routes.remove(self.serial);
    }
}

/// Captures a stream until it is dropped.
#[must_use = "dropping the guard ends the capture"]
pub struct CaptureGuard<B: Backend> {
    route: RouteGuard<B>,
    stream: ArenaId,
}

impl<B: Backend> std::fmt::Debug for CaptureGuard<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CaptureGuard").field(&self.route).finish()
    }
}

impl<B: Backend> Drop for CaptureGuard<B> {
    fn drop(&mut self) {
        let pool = &self.route.pool.inner;
        if pool.shared.is_poisoned() {
            return;
        }
        pool.shared.world(|world| world.end_capture(self.stream, pool.owner));
        // What was put off while the stream was captured.
        pool.shared.purge_for(self.stream);
    }
}

impl<B: Backend> PrivatePool<B> {
    pub(super) fn owner(&self) -> OwnerId {
        self.inner.owner
    }

    pub(super) fn shared(&self) -> &Arc<Shared<B>> {
        &self.inner.shared
    }

    /// Names the pool in snapshots and statistics.
    pub fn id(&self) -> PoolId {
        self.inner.id
    }

    /// The owner that requests of `shared` name to be served from here.
    pub(super) fn owner_in(&self, shared: &Arc<Shared<B>>) -> OwnerId {
        let own = Arc::ptr_eq(&self.inner.shared, shared);
        assert!(own, "the pool belongs to another allocator; create one there");
        self.inner.owner
    }

    /// Handles and routes that keep the pool.
    pub fn use_count(&self) -> usize {
        Arc::strong_count(&self.inner)
    }

    /// Leads the calling thread's requests here until the guard is dropped, on whatever stream.
    pub fn route_thread(&self) -> RouteGuard<B> {
        self.route(Of::Thread(std::thread::current().id()))
    }

    /// Leads requests on `stream` here until the guard is dropped, or the stream forgotten, from
    /// whatever thread.
    ///
    /// # Panics
    /// If the stream was forgotten, or belongs to another allocator.
    pub fn route_stream(&self, stream: &Stream<B>) -> RouteGuard<B> {
        self.route(Of::Stream(self.inner.shared.cell_of(stream).id))
    }

    fn route(&self, of: Of) -> RouteGuard<B> {
        let serial = self.inner.shared.routes.add(of, self);
        RouteGuard { pool: self.clone(), serial }
    }

    /// Gives back what is free in the pool, and says how many bytes that were; nothing, if a
    /// capture went through it, or with the torch preset.
    pub fn trim(&self) -> Bytes {
        self.inner.shared.trim(Trim::of(self.inner.owner))
    }

    /// Gets a segment of at least `size` bytes for requests on `stream`: small ones (at most
    /// `Config::small_max`) if `size` is, else large ones.
    ///
    /// # Errors
    /// As an allocation.
    ///
    /// # Panics
    /// If the stream was forgotten, or belongs to another allocator.
    #[track_caller]
    pub fn prime(&self, stream: &Stream<B>, size: Bytes) -> Result<(), AllocError> {
        let shared = &self.inner.shared;
        let cell = shared.cell_of(stream);
        let route = self.route_thread();
        // A block of that size comes from a segment of at least that size, and its free leaves it
        // there.
        let outcome = shared.allocate(
            cell,
            crate::allocator::allocation::Ask::new(size),
            std::panic::Location::caller(),
        );
        drop(route);
        outcome.map(drop)
    }
}

impl<B: Backend> Allocator<B> {
    /// A new private pool.
    pub fn create_pool(&self, options: PoolOptions) -> PrivatePool<B> {
        let PoolOptions { use_on_oom, no_split, exclusive, kind } = options;
        let no_split = no_split || exclusive;
        let granularity = self.shared.device.granularity;
        let kind = kind.0;
        let traits = Traits { kind, no_split, exclusive, granularity, ..Traits::default() };
        let (owner, id) = self.shared.world(|world| {
            let owner = world.create_owner(traits, use_on_oom);
            (owner, world.global.owners[owner.index()].pool_id)
        });
        PrivatePool { inner: Arc::new(Inner { shared: Arc::clone(&self.shared), owner, id }) }
    }

    /// Begins the capture of `stream` into `pool`: until the guard is dropped its requests are led
    /// there, no backend call is made for them, and frees that wait for other streams are put off.
    ///
    /// # Panics
    /// If the stream was forgotten, or belongs to another allocator.
    pub fn begin_capture(&self, stream: &Stream<B>, pool: &PrivatePool<B>) -> CaptureGuard<B> {
        let id = self.shared.cell_of(stream).id;
        // The route first: no request of the stream is to miss the pool once the capture has begun.
        let route = pool.route_stream(stream);
        self.shared.world(|world| world.begin_capture(id, pool.inner.owner));
        self.shared.await_quiet(id);
        CaptureGuard { route, stream: id }
    }
}
