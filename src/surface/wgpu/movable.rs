//! Allocations that may be moved, and moving them together.
//!
//! ```text
//!   segment A  [ m · · · · · m · ]   few bytes, all movable      ─▶ [ · · · · · · · · ]  goes back
//!   segment B  [ x x · x x · x x ]   has room in its holes       ─▶ [ x x m x x m x x ]
//! ```
//!
//! Long-lived blocks between short-lived ones keep segments that are nearly empty. What is movable
//! is copied into holes elsewhere, by an encoder like any other work, and its old place is freed by
//! the rules of every free: it waits for the scopes that may use it. Nothing waits for the device.
//!
//! wgpu copies between buffers only, so moving inside of a segment is out of the question; and a
//! segment is emptied whole or not touched, since nothing is won before it is empty.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use wgpu::CommandEncoder;

use super::allocation::WgpuAllocation;
use super::scope::Scope;
use super::{Shared, WgpuAllocator};
use crate::allocator::Stream;
use crate::backend::{Wgpu, WgpuSegment};
use crate::units::Bytes;

/// Where a movable allocation is now.
#[derive(Debug)]
pub(super) struct Slot {
    allocation: RwLock<WgpuAllocation>,
    generation: AtomicU64,
}

/// An allocation that [`Scope::defragment`] may move. Whoever keeps bindings of it compares its
/// [`generation`](Self::generation), and makes them again when it has changed.
#[derive(Debug, Clone)]
pub struct Movable {
    slot: Arc<Slot>,
}

/// What a defragmentation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Defragmented {
    /// Allocations that were moved.
    pub moved_count: usize,
    /// Their bytes.
    pub moved_bytes: Bytes,
    /// Segments that hold nothing any more: the next trim gives them back, once the scope was
    /// submitted.
    pub emptied_count: usize,
    /// Their bytes.
    pub emptied_bytes: Bytes,
}

impl Movable {
    /// Counts its moves.
    pub fn generation(&self) -> u64 {
        self.slot.generation.load(Ordering::Acquire)
    }

    /// Lets `look` see it where it is now. It is not moved meanwhile; do not defragment in there.
    pub fn with<R>(&self, look: impl FnOnce(&WgpuAllocation) -> R) -> R {
        look(&self.slot.allocation.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The allocation, which stays where it is from now on; or this again, if other handles of it
    /// are alive.
    ///
    /// # Errors
    /// The handle comes back.
    pub fn into_allocation(self) -> Result<WgpuAllocation, Movable> {
        match Arc::try_unwrap(self.slot) {
            Ok(slot) => Ok(slot.allocation.into_inner().unwrap_or_else(PoisonError::into_inner)),
            Err(slot) => Err(Movable { slot }),
        }
    }
}

impl WgpuAllocator {
    /// Lets an allocation be moved from now on.
    pub fn movable(&self, allocation: WgpuAllocation) -> Movable {
        let generation = AtomicU64::new(0);
        let slot = Arc::new(Slot { allocation: RwLock::new(allocation), generation });
        let mut slots = self.shared.movables.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|slot| slot.strong_count() > 0);
        slots.push(Arc::downgrade(&slot));
        Movable { slot }
    }
}

type Guard<'a> = RwLockWriteGuard<'a, WgpuAllocation>;

/// A segment that may be emptied: what lives in it, all of it movable.
struct Sparse<'a> {
    live: Vec<(&'a Slot, Guard<'a>)>,
    live_bytes: Bytes,
    size: Bytes,
}

impl Scope {
    /// Empties segments in which little lives, all of it movable, by moving that into holes of
    /// other segments: the emptiest first, at most `budget` bytes of live data in all. The copies
    /// are recorded in `encoder`, outside of a pass.
    ///
    /// It grows nothing, and waits for nothing. Allocations of other open scopes, and those that
    /// these may use, stay where they are. What is moved is at its new place for this scope, and
    /// for work that is submitted after it. So the scope has to be submitted: if its encoder is
    /// thrown away, the contents of what it moved are lost. O(blocks), with all streams stopped for
    /// a moment.
    pub fn defragment(&self, encoder: &mut CommandEncoder, budget: Bytes) -> Defragmented {
        let shared = self.shared();
        let slots = slots(shared);
        let mut done = Defragmented::default();
        let mut retired: Vec<WgpuAllocation> = Vec::new();
        // Segments that took something in are not to be emptied any more.
        let mut filled: Vec<Arc<WgpuSegment>> = Vec::new();
        for mut sparse in self.sparse_segments(&slots) {
            let segment = sparse.live[0].1.segment();
            if filled.iter().any(|filled| Arc::ptr_eq(filled, segment)) {
                continue;
            }
            if done.moved_bytes + sparse.live_bytes > budget {
                break;
            }
            let Some(places) = self.places_for(&sparse, &retired) else { continue };
            filled.extend(places.iter().map(|place| Arc::clone(place.segment())));
            for ((slot, guard), place) in sparse.live.iter_mut().zip(places) {
                self.uses(guard);
                self.uses(&place);
                super::scope::record_copy(encoder, guard, &place);
                done.moved_count += 1;
                retired.push(std::mem::replace(&mut **guard, place));
                slot.generation.fetch_add(1, Ordering::Release);
            }
            done.moved_bytes += sparse.live_bytes;
            done.emptied_count += 1;
            done.emptied_bytes += sparse.size;
        }
        done
    }

    /// A new place outside of the segment, and of those that were emptied already, for everything
    /// that lives there; `None` if there is not room for all.
    fn places_for(
        &self,
        sparse: &Sparse<'_>,
        retired: &[WgpuAllocation],
    ) -> Option<Vec<WgpuAllocation>> {
        let shared = self.shared();
        let core = &shared.core;
        let home = core.default_stream();
        let mut places: Vec<WgpuAllocation> = Vec::new();
        for (_, guard) in &sparse.live {
            let stream: &Stream<Wgpu> = match guard.block().stream_index() {
                0 => &home,
                _ => &self.berth().stream,
            };
            let sources = sparse.live.iter().map(|(_, guard)| guard.block());
            let sources = sources.chain(retired.iter().map(|old| old.block()));
            let mut request = core.request(guard.size()).on(stream).avoiding(sources);
            if let Some(pool) = shared.pool(guard.role()) {
                request = request.pool(pool);
            }
            let block = request.in_place_of(guard.block()).allocate_cached()?;
            places.push(shared.wrap(block, Some(stream)));
        }
        Some(places)
    }

    /// Segments in which everything that lives is movable by this scope, the emptiest first.
    fn sparse_segments<'a>(&self, slots: &'a [Arc<Slot>]) -> Vec<Sparse<'a>> {
        let mut by_segment: BTreeMap<u64, Sparse<'a>> = BTreeMap::new();
        for slot in slots {
            let Ok(guard) = slot.allocation.try_write() else { continue };
            let Some(base) = self.movable_base(&guard) else { continue };
            let sparse = by_segment.entry(base).or_insert_with(|| Sparse {
                live: Vec::new(),
                live_bytes: 0,
                size: guard.segment().buffer().size(),
            });
            sparse.live_bytes += guard.capacity();
            sparse.live.push((slot, guard));
        }
        let snapshot = self.shared().core.memory_snapshot();
        let active = snapshot.segments.iter();
        let active = active.filter_map(|segment| Some((segment.address?, segment.active_size)));
        let active: BTreeMap<u64, Bytes> = active.collect();
        let mut sparse: Vec<_> = by_segment
            .into_iter()
            .filter(|(base, sparse)| active.get(base) == Some(&sparse.live_bytes))
            .map(|(_, sparse)| sparse)
            .collect();
        sparse.sort_by_key(|sparse| sparse.live_bytes);
        sparse
    }

    /// The stand-in address of the segment of an allocation that this scope may move.
    fn movable_base(&self, allocation: &WgpuAllocation) -> Option<u64> {
        let block = allocation.block();
        // Holes of another open scope's stream may be in use by its work.
        let own = [0, self.stream_index()].contains(&block.stream_index());
        // Their work would go on at the old place, after the move.
        let own = own && !allocation.is_used_beside(self.stream_index());
        let shares = allocation.size() > 0 && !allocation.role().is_exclusive();
        let base = block.address()? - block.offset();
        (own && shares).then_some(base)
    }
}

/// The movable allocations that live.
fn slots(shared: &Shared) -> Vec<Arc<Slot>> {
    let slots = shared.movables.lock().unwrap_or_else(PoisonError::into_inner);
    slots.iter().filter_map(|slot| slot.upgrade()).collect()
}

impl fmt::Display for Defragmented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { moved_count, moved_bytes, emptied_count, emptied_bytes } = self;
        write!(
            f,
            "moved {moved_bytes} bytes of {moved_count} allocations, emptied {emptied_count} \
             segments of {emptied_bytes} bytes"
        )
    }
}
