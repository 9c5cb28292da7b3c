//! A block as users of wgpu hold it: a range of a buffer.
//!
//! ```text
//!   buffer   ├──── others ────┼──────── capacity ────────┼──── others ────┤
//!                             ├─ size, as asked ─┤
//!                             ▲ offset: a multiple of 512
//! ```
//!
//! A free must not hand the bytes to anyone while an encoder that is not submitted may use them. So
//! an allocation remembers where it may have been used: on streams that it was given to through
//! their scope ([`Scope::binding`](super::Scope::binding) and its like), or anywhere, once its
//! buffer was handed out without naming a scope. When it is dropped, the scopes that are open and
//! among these are recorded as its users.
//!
//! - U1: a stream that may have used the bytes, other than their own, is in `uses`, or `uses` says
//!   anywhere.
//! - U2: work of an earlier owner can be open only on `stream`, which asked for the bytes: others
//!   get nothing that an open recording may use (R2 of the core).
//!
//! A drop costs one load and the free while no scope but the own is open.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::RangeBounds;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use wgpu::{BindingResource, Buffer, BufferBinding, BufferSlice, COPY_BUFFER_ALIGNMENT};

use super::scrub::Scrubber;
use crate::allocator::Allocation;
use crate::backend::wgpu::recordings::Recording;
use crate::backend::{Role, Wgpu, WgpuSegment};
use crate::id::AllocationId;
use crate::units::{Bytes, align_up};

/// Says: may have been used on any stream.
const ANYWHERE: u64 = 1 << 63;

/// The streams on which an allocation may have been used, by the number of their place.
#[derive(Debug, Default)]
struct Uses(AtomicU64);

impl Uses {
    fn bit(stream: u32) -> u64 {
        if stream < 63 { 1 << stream } else { ANYWHERE }
    }

    fn note(&self, bits: u64) {
        // A store for every binding would be a shared cache line for every binding.
        if self.0.load(Ordering::Relaxed) & bits != bits {
            self.0.fetch_or(bits, Ordering::Relaxed);
        }
    }

    fn bits(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Device memory in a user's hands, as a range of a buffer; dropping it frees it.
///
/// The bytes are what an earlier owner left there: memory that is handed out again is not cleared.
/// Ask for [zeroed](super::WgpuAllocator::allocate_zeroed) memory, or have everything
/// [scrubbed](super::WgpuOptions::scrub_on_free), where that matters.
///
/// It may be dropped while encoders that use it are still being recorded, if they were begun with
/// [`WgpuAllocator::begin`](super::WgpuAllocator::begin): its bytes wait for them.
pub struct WgpuAllocation {
    /// Declared, and so dropped, before the block: a segment that goes has no user left.
    segment: OnceLock<Arc<WgpuSegment>>,
    uses: Uses,
    /// The place of the stream that asked for it; the bytes may be lent from another one's.
    stream: u32,
    block: Option<Allocation<Wgpu>>,
    scrubber: Option<Arc<Scrubber>>,
}

impl WgpuAllocation {
    /// An allocation for the stream at a place.
    pub(super) fn new(
        block: Allocation<Wgpu>,
        stream: u32,
        scrubber: Option<Arc<Scrubber>>,
    ) -> Self {
        let (segment, uses) = (OnceLock::new(), Uses::default());
        Self { segment, uses, stream, block: Some(block), scrubber }
    }

    pub(super) fn block(&self) -> &Allocation<Wgpu> {
        self.block.as_ref().expect("an allocation has its block until it is dropped")
    }

    /// Names it among the live ones.
    pub fn id(&self) -> AllocationId {
        self.block().id()
    }

    /// Bytes asked for.
    pub fn size(&self) -> Bytes {
        self.block().size()
    }

    /// Bytes of the block: at least [`size`](Self::size). All of them are this allocation's.
    pub fn capacity(&self) -> Bytes {
        self.block().capacity()
    }

    /// Bytes from the start of the buffer: a multiple of 512.
    pub fn offset(&self) -> Bytes {
        self.block().offset()
    }

    /// The segment that it lies in; takes the stream's lock the first time.
    ///
    /// # Panics
    /// If its size is 0: then it lies nowhere.
    pub fn segment(&self) -> &Arc<WgpuSegment> {
        self.segment.get_or_init(|| {
            self.block().view().expect("an allocation of 0 bytes has no buffer: ask for some")
        })
    }

    /// What its buffer is for.
    ///
    /// # Panics
    /// If its size is 0.
    pub fn role(&self) -> Role {
        self.segment().role()
    }

    /// The buffer, which it may share with others: stay within [`offset`](Self::offset) and
    /// [`capacity`](Self::capacity). Whoever takes it may use it in any encoder, so the free waits
    /// for every scope that is open then; [`Scope::binding`](super::Scope::binding) and its like
    /// wait for theirs alone.
    ///
    /// # Panics
    /// If its size is 0.
    pub fn buffer(&self) -> &Buffer {
        self.uses.note(ANYWHERE);
        self.segment().buffer()
    }

    /// Its bytes as a binding, the size rounded up to a multiple of 4; as [`buffer`](Self::buffer).
    ///
    /// # Panics
    /// If its size is 0.
    pub fn binding(&self) -> BindingResource<'_> {
        self.uses.note(ANYWHERE);
        self.binding_of()
    }

    /// A range of its bytes, for vertices, indices and the like; as [`buffer`](Self::buffer).
    ///
    /// # Panics
    /// If its size is 0, or the range is empty or beyond it.
    pub fn slice(&self, bounds: impl RangeBounds<Bytes>) -> BufferSlice<'_> {
        self.uses.note(ANYWHERE);
        let whole = self.segment().buffer().slice(self.offset()..self.offset() + self.padded());
        whole.slice(bounds)
    }

    pub(super) fn binding_of(&self) -> BindingResource<'_> {
        BindingResource::Buffer(BufferBinding {
            buffer: self.segment().buffer(),
            offset: self.offset(),
            size: NonZeroU64::new(self.padded()),
        })
    }

    /// The size, rounded up to what copies and bindings take; the block has that much.
    pub(super) fn padded(&self) -> Bytes {
        align_up(self.size(), COPY_BUFFER_ALIGNMENT)
    }

    /// Work of this stream's open scope uses it.
    pub(super) fn note_use(&self, stream: u32) {
        self.uses.note(Uses::bit(stream));
    }

    /// Whether nothing that is recorded and not submitted can touch the bytes: neither this owner's
    /// work, nor an earlier one's.
    pub(super) fn is_settled(&self) -> bool {
        self.unsettled().is_empty()
    }

    /// The open recordings that can touch the bytes: work of this owner (U1), or of an earlier one
    /// (U2).
    pub(super) fn unsettled(&self) -> Vec<Recording> {
        let recordings = self.block().backend().recordings();
        if recordings.is_empty() {
            return Vec::new();
        }
        let uses = self.uses.bits();
        let mut open = recordings.snapshot();
        open.retain(|&Recording { stream, .. }| {
            stream == self.stream || uses & (ANYWHERE | Uses::bit(stream)) != 0
        });
        open
    }

    /// What used the bytes was submitted, and they were cleared after that.
    pub(super) fn forget_uses(&mut self) {
        self.uses = Uses::default();
    }

    /// Whether work of another open scope than that of the stream `own` may use the bytes.
    pub(super) fn is_used_beside(&self, own: u32) -> bool {
        let recordings = self.block().backend().recordings();
        let uses = self.uses.bits();
        let open = recordings.snapshot().into_iter().map(|recording| recording.stream);
        let mut others = open.filter(|&stream| stream != own);
        others.any(|stream| uses & (ANYWHERE | Uses::bit(stream)) != 0)
    }

    /// Records the open scopes that may use the bytes as their users (U1).
    fn mark_users(&self) {
        let block = self.block();
        let home = block.stream_index();
        let uses = self.uses.bits();
        let recordings = block.backend().recordings();
        // The bit of a home that has none of its own says nothing about the home.
        let own = Uses::bit(home) & !ANYWHERE;
        if uses & !own == 0 || recordings.none_but(home) {
            return;
        }
        for Recording { stream, .. } in recordings.snapshot() {
            if stream != home && uses & (ANYWHERE | Uses::bit(stream)) != 0 {
                block.record_use(stream);
            }
        }
    }

    /// Asserts that bytes from `offset` on are inside, and at places that copies take.
    pub(super) fn check_range(&self, offset: Bytes, len: Bytes) {
        let size = self.size();
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= size),
            "{len} bytes from {offset} on are not inside of {size} bytes"
        );
        assert!(
            offset.is_multiple_of(COPY_BUFFER_ALIGNMENT)
                && (len.is_multiple_of(COPY_BUFFER_ALIGNMENT) || offset + len == size),
            "copies begin at multiples of 4 bytes, and end there or at the end of the allocation"
        );
    }
}

impl Drop for WgpuAllocation {
    fn drop(&mut self) {
        if self.block.as_ref().is_none_or(|block| block.size() == 0) {
            return;
        }
        match self.scrubber.take() {
            Some(scrubber) => {
                let (segment, uses) =
                    (std::mem::take(&mut self.segment), std::mem::take(&mut self.uses));
                let (stream, block) = (self.stream, self.block.take());
                scrubber.push(Self { segment, uses, stream, block, scrubber: None });
            }
            None => self.mark_users(),
        }
    }
}

impl fmt::Debug for WgpuAllocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WgpuAllocation").field("block", self.block()).finish_non_exhaustive()
    }
}
