//! Moving bytes outside of scopes, and reading them back.
//!
//! A write outside of scopes is a submission of its own, so it happens before everything that is
//! recorded and not submitted. That is what the program means only if none of that touches the
//! bytes: else the write is refused ([`UploadError::Unordered`]).
//!
//! A download is a copy into a buffer that the CPU can map. It is mapped when somebody wants to
//! read it, and not before: a buffer that is mapped must not be in use.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytemuck::Pod;
use wgpu::{CommandEncoder, CommandEncoderDescriptor, MapMode};

use super::Shared;
use super::allocation::WgpuAllocation;
use super::error::{DownloadError, UploadError};
use super::lanes::Progress;
use crate::backend::WgpuSegment;
use crate::backend::wgpu::wait::Signal;
use crate::units::{Bytes, MIB, align_up};

/// Writes are cut into pieces of so many bytes, so that few chunks serve large ones.
const PIECE: Bytes = 16 * MIB;

impl Shared {
    pub(super) fn encoder(&self, label: &str) -> CommandEncoder {
        let descriptor = CommandEncoderDescriptor { label: Some(label) };
        self.core.backend().device().create_command_encoder(&descriptor)
    }

    /// Copies `bytes` to `to` in submissions of their own.
    pub(super) fn write(
        &self,
        to: &WgpuAllocation,
        offset: Bytes,
        bytes: &[u8],
    ) -> Result<(), UploadError> {
        to.check_range(offset, bytes.len() as Bytes);
        if !to.is_settled() {
            return Err(UploadError::Unordered);
        }
        // No piece is empty, nor ends between words; where the cap has room for not even one, the
        // first piece says so.
        let piece = PIECE.min(self.staging.upload_max()).max(wgpu::MAP_ALIGNMENT) as usize;
        let mut at = to.offset() + offset;
        for bytes in bytes.chunks(piece) {
            let mut chunk = self.staging.acquire(&self.core, bytes.len() as Bytes)?;
            let from = match chunk.write(bytes) {
                Ok(from) => from,
                Err(lost) => {
                    self.staging.discard(chunk);
                    return Err(lost.into());
                }
            };
            let len = align_up(bytes.len() as Bytes, wgpu::COPY_BUFFER_ALIGNMENT);
            let mut encoder = self.encoder("aquifer write");
            let target = to.segment().buffer();
            encoder.copy_buffer_to_buffer(chunk.buffer(), from, target, at, Some(len));
            let progress = Progress::of(&encoder);
            // The copy must not be submitted while its source is mapped.
            self.staging.spend(vec![chunk], &progress);
            self.core.backend().queue().submit([encoder.finish()]);
            progress.note_submitted(None);
            at += len;
        }
        Ok(())
    }

    /// Clears all bytes of `allocation` in a submission of its own. It was just handed out outside
    /// of scopes, so nothing that is recorded can touch it.
    pub(super) fn clear(&self, allocation: &WgpuAllocation) {
        if allocation.size() == 0 {
            return;
        }
        let mut encoder = self.encoder("aquifer clear");
        let (at, len) = (allocation.offset(), allocation.capacity());
        encoder.clear_buffer(allocation.segment().buffer(), at, Some(len));
        self.core.backend().queue().submit([encoder.finish()]);
    }

    /// All bytes of `from`, as they are after everything that was submitted.
    pub(super) fn read(self: &Arc<Self>, from: &WgpuAllocation) -> Result<Vec<u8>, DownloadError> {
        let mut encoder = self.encoder("aquifer read");
        let progress = Progress::of(&encoder);
        let download = Download::record(self, &mut encoder, from, (None, &progress))?;
        let index = self.core.backend().queue().submit([encoder.finish()]);
        progress.note_submitted(Some(index));
        download.wait()
    }

    /// Takes `size` bytes of what may be on its way back, if the cap allows it.
    fn charge_readback(self: &Arc<Self>, size: Bytes) -> Result<Charge, DownloadError> {
        let cap = self.options.readback_cap;
        let fits = |held: Bytes| held.checked_add(size).filter(|&sum| sum <= cap);
        match self.readback.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(Charge { shared: Arc::clone(self), size }),
            Err(_) => Err(DownloadError::ReadbackFull { requested: size, cap }),
        }
    }
}

/// The part of the readback cap that one download holds.
struct Charge {
    shared: Arc<Shared>,
    size: Bytes,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shared.readback.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// Bytes on their way back to the CPU.
///
/// Recorded by [`Scope::download`](super::Scope::download); readable when that scope was submitted.
/// It can be read more than once.
pub struct Download {
    /// `None` if there is nothing to read. Dropped before the copy was submitted, its bytes wait
    /// for that: a buffer that another download maps must not be written.
    buffer: Option<WgpuAllocation>,
    size: Bytes,
    progress: Arc<Progress>,
    /// Asked for by the first reader, and shared by all: it ends with the download, since a reader
    /// may be given up half way while others read.
    map: OnceLock<Map>,
    charge: Charge,
}

/// A map of a download's buffer: whether it was mapped, once that is known.
struct Map {
    mapped: Arc<AtomicBool>,
    known: Signal,
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download")
            .field("size", &self.size)
            .field("is_ready", &self.is_ready())
            .finish_non_exhaustive()
    }
}

impl Download {
    pub(super) fn record(
        shared: &Arc<Shared>,
        encoder: &mut CommandEncoder,
        from: &WgpuAllocation,
        (stream, progress): (Option<u32>, &Arc<Progress>),
    ) -> Result<Self, DownloadError> {
        let (size, padded) = (from.size(), from.padded());
        let charge = shared.charge_readback(padded)?;
        let (progress, map) = (Arc::clone(progress), OnceLock::new());
        if size == 0 {
            return Ok(Self { buffer: None, size, progress, map, charge });
        }
        let request = shared.core.request(padded).pool(&shared.downloads);
        let to = shared.wrap(request.tag(shared.staging_tag).allocate()?, None);
        if let Some(stream) = stream {
            to.note_use(stream);
        }
        let (source, target) = (from.segment().buffer(), to.segment().buffer());
        encoder.copy_buffer_to_buffer(source, from.offset(), target, 0, Some(padded));
        Ok(Self { buffer: Some(to), size, progress, map, charge })
    }

    /// Bytes that will be read.
    pub fn size(&self) -> Bytes {
        self.size
    }

    /// Whether the work is complete, so that reading waits for nothing. Polls nothing: see
    /// [`Wgpu::poll`](crate::backend::Wgpu::poll).
    pub fn is_ready(&self) -> bool {
        self.progress.is_done()
    }

    /// Waits for the bytes. On the web nothing can wait: use [`read`](Self::read).
    ///
    /// # Errors
    /// If the scope was not submitted, or the device is gone.
    pub fn wait(&self) -> Result<Vec<u8>, DownloadError> {
        let backend = self.charge.shared.core.backend();
        if !self.progress.is_done() {
            let over = || self.progress.is_over();
            // For its own work, if that is known; else for all that was submitted.
            match self.progress.is_submitted() {
                true => backend.wait_until(self.progress.submission(), over)?,
                false => backend.wait_a_while(over)?,
            }
            self.check_done()?;
        }
        let Some(segment) = self.segment() else { return Ok(Vec::new()) };
        let map = self.map(segment);
        // Nothing uses the buffer any more, so the next poll maps it; another thread's, perhaps.
        backend.poll();
        backend.wait_until(self.progress.submission(), || map.known.is_set())?;
        self.take(segment, map)
    }

    /// As [`wait`](Self::wait), for programs that must not block. Natively somebody has to poll the
    /// device meanwhile.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub async fn read(&self) -> Result<Vec<u8>, DownloadError> {
        if !self.progress.is_done() {
            let completion = || self.charge.shared.core.backend().completion();
            completion().await;
            while self.progress.is_submitted() && !self.progress.is_over() {
                // Another thread is about to tell.
                completion().await;
            }
            self.check_done()?;
        }
        let Some(segment) = self.segment() else { return Ok(Vec::new()) };
        let map = self.map(segment);
        map.known.clone().await;
        self.take(segment, map)
    }

    fn segment(&self) -> Option<&WgpuSegment> {
        self.buffer.as_ref().map(|buffer| &**buffer.segment())
    }

    /// All that was submitted is complete; whether that was this.
    fn check_done(&self) -> Result<(), DownloadError> {
        self.charge.shared.core.backend().check()?;
        if self.progress.is_done() { Ok(()) } else { Err(DownloadError::Unsubmitted) }
    }

    /// The map of the buffer, asked for now if nobody has read before.
    fn map(&self, segment: &WgpuSegment) -> &Map {
        self.map.get_or_init(|| {
            let (mapped, known) = (Arc::new(AtomicBool::new(false)), Signal::default());
            let (tell, done) = (Arc::clone(&mapped), known.clone());
            segment.buffer().map_async(MapMode::Read, .., move |outcome| {
                tell.store(outcome.is_ok(), Ordering::Release);
                done.set();
            });
            Map { mapped, known }
        })
    }

    fn take(&self, segment: &WgpuSegment, map: &Map) -> Result<Vec<u8>, DownloadError> {
        // A device that is destroyed takes its maps along.
        self.charge.shared.core.backend().check()?;
        if !map.mapped.load(Ordering::Acquire) {
            return Err(DownloadError::Unsubmitted);
        }
        let view = segment.buffer().get_mapped_range(..align_up(self.size, 4));
        let view = view.expect("the buffer is mapped, and has that many bytes");
        Ok(view[..self.size as usize].to_vec())
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(segment) = self.segment().filter(|_| self.map.get().is_some()) {
            // Who gets the buffer next must not find it mapped.
            self.charge.shared.core.backend().unmap(segment.buffer());
        }
    }
}

/// The first bytes as so many values, which may have no bytes.
pub(super) fn to_values<T: Pod>(bytes: &[u8], len: usize) -> Vec<T> {
    match size_of::<T>() {
        0 => vec![T::zeroed(); len],
        size => bytemuck::pod_collect_to_vec(&bytes[..len * size]),
    }
}
