//! A recording scope: one encoder from its beginning to its submission.
//!
//! ```text
//!   begin(&mut encoder) ─▶ Scope ─ allocate, bind, upload, download, drop ─▶ submit(encoder),
//!                            │                                              or finish(encoder),
//!                            │ a block that is freed here is free at once   and the program
//!                            ▼ for what is recorded here later              submits
//! ```
//!
//! The encoder is a stream: what is recorded in it happens in that order, whenever it is submitted.
//! So the scope's own memory is reused while it records, and uploads are copies recorded in order:
//! nothing waits, nothing is flushed, and no more memory is needed than lives at a time.

use std::sync::Arc;

use wgpu::{BindingResource, BufferSlice, CommandBuffer, CommandEncoder, SubmissionIndex};

use super::allocation::WgpuAllocation;
use super::error::{DownloadError, UploadError};
use super::lanes::Berth;
use super::request::WgpuRequest;
use super::staging::Chunk;
use super::transfer::Download;
use super::{Reuse, Shared};
use crate::allocator::AllocError;
use crate::backend::Lost;
use crate::units::{Bytes, align_up};

/// An encoder that is being recorded; made by
/// [`WgpuAllocator::begin`](super::WgpuAllocator::begin).
///
/// Ends with [`submit`](Self::submit), or with [`finish`](Self::finish) if the program submits.
/// Dropped otherwise, it is taken for what its encoder turns out to be: the memory that it used
/// waits until that was dropped, or its work is complete.
///
/// It may be sent to another thread; several may be open at a time, on any threads.
#[derive(Debug)]
pub struct Scope {
    shared: Arc<Shared>,
    berth: Berth,
    chunks: Vec<Chunk>,
    reuse: Reuse,
}

/// One upload among several: the allocation, where in it the bytes go, and the bytes.
#[derive(Debug, Clone, Copy)]
pub struct Upload<'a> {
    /// Where to.
    pub to: &'a WgpuAllocation,
    /// Bytes from its start: a multiple of 4.
    pub offset: Bytes,
    /// What: a multiple of 4 bytes, or up to the end of the allocation.
    pub bytes: &'a [u8],
}

impl Scope {
    pub(super) fn new(shared: &Arc<Shared>, berth: Berth, reuse: Reuse) -> Self {
        Self { shared: Arc::clone(shared), berth, chunks: Vec::new(), reuse }
    }

    /// The number of the place that the scope's work has among the streams.
    pub fn stream_index(&self) -> u32 {
        self.berth.stream.index()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn berth(&self) -> &Berth {
        &self.berth
    }

    /// A request for memory of this scope.
    pub fn request(&self, size: Bytes) -> WgpuRequest<'_> {
        let request = WgpuRequest::new(&self.shared, size);
        match self.reuse {
            Reuse::Ordered => request.on(&self.berth.stream),
            Reuse::Quarantine => request,
        }
    }

    /// `size` bytes of the role `Storage`, with whatever an earlier owner left in them.
    ///
    /// What it lives in is this scope's: when it is dropped, what is recorded here later may have
    /// it at once.
    ///
    /// # Errors
    /// As [`WgpuAllocator::allocate`](super::WgpuAllocator::allocate).
    #[track_caller]
    #[inline]
    pub fn allocate(&self, size: Bytes) -> Result<WgpuAllocation, AllocError> {
        match self.reuse {
            Reuse::Ordered => self.shared.allocate(Some(&self.berth.stream), size),
            Reuse::Quarantine => self.shared.allocate(None, size),
        }
    }

    /// As [`allocate`](Self::allocate), cleared by `encoder` at this point.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    #[track_caller]
    pub fn allocate_zeroed(
        &self,
        encoder: &mut CommandEncoder,
        size: Bytes,
    ) -> Result<WgpuAllocation, AllocError> {
        let allocation = self.allocate(size)?;
        self.clear(encoder, &allocation);
        Ok(allocation)
    }

    /// As [`allocate`](Self::allocate), in a buffer that holds none of `inputs`.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    #[track_caller]
    pub fn allocate_avoiding<'a>(
        &'a self,
        size: Bytes,
        inputs: impl IntoIterator<Item = &'a WgpuAllocation>,
    ) -> Result<WgpuAllocation, AllocError> {
        self.request(size).avoiding(inputs).allocate()
    }

    /// Tells that work recorded here uses `allocation`, by whatever way.
    pub fn uses(&self, allocation: &WgpuAllocation) {
        allocation.note_use(self.stream_index());
    }

    /// The bytes as a binding for work recorded here: the free waits for this scope, and for no
    /// other that is open.
    ///
    /// # Panics
    /// If the size is 0.
    pub fn binding<'a>(&self, allocation: &'a WgpuAllocation) -> BindingResource<'a> {
        self.uses(allocation);
        allocation.binding_of()
    }

    /// The bytes as vertices, indices or the like, for work recorded here; as
    /// [`binding`](Self::binding).
    ///
    /// # Panics
    /// If the size is 0.
    pub fn slice<'a>(&self, allocation: &'a WgpuAllocation) -> BufferSlice<'a> {
        self.uses(allocation);
        let (from, to) = (allocation.offset(), allocation.offset() + allocation.padded());
        allocation.segment().buffer().slice(from..to)
    }

    /// Clears all bytes of `allocation` at this point of `encoder`. Nothing, if it has none.
    pub fn clear(&self, encoder: &mut CommandEncoder, allocation: &WgpuAllocation) {
        if allocation.size() > 0 {
            self.uses(allocation);
            let (at, len) = (allocation.offset(), allocation.capacity());
            encoder.clear_buffer(allocation.segment().buffer(), at, Some(len));
        }
    }

    /// Copies all bytes of `from` to the beginning of `to` at this point of `encoder`. Both may lie
    /// in one buffer: then the copy goes by way of a third place, since wgpu copies between buffers
    /// only.
    ///
    /// # Errors
    /// If there is no memory for the third place.
    ///
    /// # Panics
    /// If `to` is smaller than `from`.
    pub fn copy(
        &self,
        encoder: &mut CommandEncoder,
        from: &WgpuAllocation,
        to: &WgpuAllocation,
    ) -> Result<(), AllocError> {
        assert!(to.capacity() >= from.padded(), "{} bytes into {}", from.size(), to.size());
        if from.size() == 0 {
            return Ok(());
        }
        self.uses(from);
        self.uses(to);
        if !Arc::ptr_eq(from.segment(), to.segment()) {
            record_copy(encoder, from, to);
            return Ok(());
        }
        let between = self.request(from.size()).avoiding([from]).unbound().allocate()?;
        self.uses(&between);
        record_copy(encoder, from, &between);
        record_copy(encoder, &between, to);
        Ok(())
    }

    /// Copies `bytes` to `to`, from `offset` bytes on, at this point of `encoder`, outside of a
    /// pass.
    ///
    /// # Errors
    /// If there is no room for the bytes on their way; nothing was recorded then.
    ///
    /// # Panics
    /// If the bytes are not inside of `to`, or begin at no multiple of 4, or end at none before the
    /// end of `to`.
    pub fn upload(
        &mut self,
        encoder: &mut CommandEncoder,
        to: &WgpuAllocation,
        offset: Bytes,
        bytes: &[u8],
    ) -> Result<(), UploadError> {
        self.upload_all(encoder, &[Upload { to, offset, bytes }])
    }

    /// Several uploads at once, staged side by side: what also lies side by side in one buffer
    /// becomes one copy.
    ///
    /// # Errors
    /// As [`upload`](Self::upload); nothing was recorded then.
    ///
    /// # Panics
    /// As [`upload`](Self::upload).
    pub fn upload_all(
        &mut self,
        encoder: &mut CommandEncoder,
        uploads: &[Upload<'_>],
    ) -> Result<(), UploadError> {
        let mut room = 0;
        for upload in uploads {
            upload.to.check_range(upload.offset, upload.bytes.len() as Bytes);
            room += align_up(upload.bytes.len() as Bytes, wgpu::MAP_ALIGNMENT);
        }
        if room == 0 {
            return Ok(());
        }
        self.chunk_with(room)?;
        let staged = self.stage(encoder, uploads);
        if staged.is_err() {
            self.chunks.drain(..).for_each(|chunk| self.shared.staging.discard(chunk));
        }
        staged.map_err(UploadError::from)
    }

    /// Writes the bytes to the last chunk, which has room for them, and records their copies.
    fn stage(&mut self, encoder: &mut CommandEncoder, uploads: &[Upload<'_>]) -> Result<(), Lost> {
        let stream = self.stream_index();
        let chunk = self.chunks.last_mut().expect("it was found or has been added");
        let mut run: Option<Run<'_>> = None;
        for &Upload { to, offset, bytes } in
            uploads.iter().filter(|upload| !upload.bytes.is_empty())
        {
            to.note_use(stream);
            let from = chunk.write(bytes)?;
            let len = align_up(bytes.len() as Bytes, wgpu::COPY_BUFFER_ALIGNMENT);
            let next = Run { from, to, at: to.offset() + offset, len };
            run = match run {
                Some(run) if run.reaches(&next) => Some(Run { len: run.len + next.len, ..run }),
                Some(run) => {
                    run.record(chunk, encoder);
                    Some(next)
                }
                None => Some(next),
            };
        }
        if let Some(run) = run {
            run.record(chunk, encoder);
        }
        Ok(())
    }

    /// Sees to it that the last chunk, the one that is being written, has room.
    fn chunk_with(&mut self, room: Bytes) -> Result<(), UploadError> {
        self.shared.core.backend().check()?;
        if self.chunks.last().is_none_or(|chunk| chunk.room() < room) {
            self.chunks.push(self.shared.staging.acquire(&self.shared.core, room)?);
        }
        Ok(())
    }

    /// Copies the bytes of `from`, as they are at this point of `encoder`, to where the CPU can
    /// read them once the scope was submitted.
    ///
    /// # Errors
    /// If there is no room for the bytes on their way.
    pub fn download(
        &mut self,
        encoder: &mut CommandEncoder,
        from: &WgpuAllocation,
    ) -> Result<Download, DownloadError> {
        self.uses(from);
        let work = (Some(self.stream_index()), &self.berth.progress);
        Download::record(&self.shared, encoder, from, work)
    }

    /// Finishes the encoder and submits it. From here on its memory is everyone's, in the order of
    /// the queue.
    pub fn submit(mut self, encoder: CommandEncoder) -> SubmissionIndex {
        self.end();
        let index = self.shared.core.backend().queue().submit([encoder.finish()]);
        self.berth.progress.note_submitted(Some(index.clone()));
        self.shared.lanes.submitted(&self.shared.core, &self.berth);
        self.shared.scrub();
        index
    }

    /// Finishes the encoder, for the program to submit by itself. What it used comes free when the
    /// work is complete, or the command buffer is dropped; or at once, by
    /// [`Finished::submitted`].
    pub fn finish(mut self, encoder: CommandEncoder) -> (CommandBuffer, Finished) {
        self.end();
        (encoder.finish(), Finished { scope: self })
    }

    /// Upload chunks must not be mapped when their copies are submitted.
    fn end(&mut self) {
        self.shared.staging.spend(std::mem::take(&mut self.chunks), &self.berth.progress);
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        self.end();
    }
}

/// A scope whose command buffer the program submits.
#[derive(Debug)]
pub struct Finished {
    scope: Scope,
}

impl Finished {
    /// Tells that the command buffer was submitted. Without that it is known only when the work is
    /// complete.
    pub fn submitted(self) {
        let Scope { shared, berth, .. } = &self.scope;
        berth.progress.note_submitted(None);
        shared.lanes.submitted(&shared.core, berth);
        shared.scrub();
    }
}

/// Bytes that one copy moves from a chunk to a buffer.
#[derive(Clone, Copy)]
struct Run<'a> {
    from: Bytes,
    to: &'a WgpuAllocation,
    at: Bytes,
    len: Bytes,
}

impl Run<'_> {
    /// Whether `next` goes on where this one ends, on both sides.
    fn reaches(&self, next: &Run<'_>) -> bool {
        Arc::ptr_eq(self.to.segment(), next.to.segment())
            && self.from + self.len == next.from
            && self.at + self.len == next.at
    }

    fn record(&self, chunk: &Chunk, encoder: &mut CommandEncoder) {
        let to = self.to.segment().buffer();
        encoder.copy_buffer_to_buffer(chunk.buffer(), self.from, to, self.at, Some(self.len));
    }
}

pub(super) fn record_copy(
    encoder: &mut CommandEncoder,
    from: &WgpuAllocation,
    to: &WgpuAllocation,
) {
    let (source, target) = (from.segment().buffer(), to.segment().buffer());
    let len = from.padded();
    encoder.copy_buffer_to_buffer(source, from.offset(), target, to.offset(), Some(len));
}
