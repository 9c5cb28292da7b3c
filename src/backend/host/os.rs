//! Pages from the operating system, and the process's memory figures. The only file that knows one
//! system from another, and with `host.rs` the only place of unsafe code in the host backend.
//!
//! A [`Mapping`] owns whole pages that nothing else in the process has: not `malloc`, whose freed
//! memory stays with the process once its threshold for direct mappings has grown past the size.
//! Dropping the mapping gives the pages, and their addresses, back.
//!
//! - 64-bit Linux, Android, Apple and BSD: `mmap`, `munmap`.
//! - Windows: `VirtualAlloc`, `VirtualFree`.
//! - Anywhere else, and under Miri: `std::alloc`, which gives back as much as the system's `malloc`
//!   chooses to.
//!
//! Alignment costs addresses, never memory: where the system's first answer is not aligned, a
//! mapping larger by [`ALIGNMENT`] is made and its two ends are cut off.
//!
//! ```text
//!   mapped     |---------------- size + ALIGNMENT ----------------|
//!   aligned         A               A               A             A
//!   kept            |------------ size -------------|
//!   cut off    |----|                               |-------------|
//! ```

use std::ptr::NonNull;

use crate::units::{Bytes, KIB};

/// Every mapping starts at a multiple of this. It is the largest page in common use and the step in
/// which Windows hands out addresses, hence the same promise everywhere.
pub(super) const ALIGNMENT: Bytes = 64 * KIB;

/// Pages that belong to this value; readable and writable.
///
/// H1: `base` is a multiple of [`ALIGNMENT`], and `base..base + len` is one live mapping made by
/// `pages::map(len)` that no other value owns.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: by H1 the pages belong to this value alone, and pages are not bound to a thread.
unsafe impl Send for Mapping {}
// SAFETY: a shared `Mapping` yields its base and length only, both plain values.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Pages for `size` bytes, a multiple of [`ALIGNMENT`]; zero on first touch. `None` if the
    /// system has none, or if the size is beyond this process's addresses.
    pub(super) fn new(size: Bytes) -> Option<Self> {
        let len = usize::try_from(size).ok()?;
        let base = pages::map(len)?;
        debug_assert_eq!(base.as_ptr() as usize as Bytes % ALIGNMENT, 0, "H1");
        Some(Self { base, len })
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: by H1 this is a whole live mapping of `pages::map`, and its only owner goes away.
        let unmapped = unsafe { pages::unmap(self.base, self.len) };
        if !unmapped {
            log::warn!("the system did not take {} bytes back; they stay mapped", self.len);
        }
    }
}

#[cfg(all(
    not(miri),
    target_pointer_width = "64",
    not(any(target_arch = "mips64", target_arch = "mips64r6")),
    any(
        target_os = "linux",
        target_os = "android",
        target_vendor = "apple",
        target_os = "freebsd",
        target_os = "netbsd",
        target_os = "openbsd",
        target_os = "dragonfly",
    )
))]
mod pages {
    use std::ffi::{c_int, c_void};
    use std::ptr::{self, NonNull};

    use super::ALIGNMENT;

    const PROT_READ: c_int = 1;
    const PROT_WRITE: c_int = 2;
    const MAP_PRIVATE: c_int = 2;
    const MAP_ANONYMOUS: c_int =
        if cfg!(any(target_os = "linux", target_os = "android")) { 0x20 } else { 0x1000 };
    const MAP_FAILED: usize = usize::MAX;

    // SAFETY: these are the C library's own signatures. The last argument is `off_t`, 64 bits wide
    // on every target this module is compiled for.
    unsafe extern "C" {
        fn mmap(
            hint: *mut c_void,
            len: usize,
            protection: c_int,
            flags: c_int,
            file: c_int,
            offset: i64,
        ) -> *mut c_void;
        fn munmap(base: *mut c_void, len: usize) -> c_int;
    }

    /// The exact size first: Linux then puts multiples of 2 MiB where huge pages fit.
    pub(super) fn map(len: usize) -> Option<NonNull<u8>> {
        let base = map_anywhere(len)?;
        if misalignment(base) == 0 {
            return Some(base);
        }
        // SAFETY: the mapping was made just now, whole, and nobody has seen it.
        unsafe { unmap(base, len) };
        map_and_cut(len)
    }

    fn map_and_cut(len: usize) -> Option<NonNull<u8>> {
        let slack = ALIGNMENT as usize;
        let mapped = map_anywhere(len.checked_add(slack)?)?;
        let head = (slack - misalignment(mapped)) % slack;
        let tail = slack - head;
        // SAFETY: `head < slack`, so the result lies inside the mapping of `len + slack` bytes.
        let base = unsafe { mapped.add(head) };
        // SAFETY: `head + len <= slack + len`, the end of the mapping at most.
        let end = unsafe { base.add(len) };
        if head > 0 {
            // SAFETY: the pages before `base` belong to the new mapping and are not handed out.
            unsafe { unmap(mapped, head) };
        }
        // SAFETY: the pages from `end` on belong to the new mapping and are not handed out; `tail`
        // is at least 1 because `head < slack`.
        unsafe { unmap(end, tail) };
        Some(base)
    }

    fn misalignment(base: NonNull<u8>) -> usize {
        base.as_ptr() as usize % ALIGNMENT as usize
    }

    fn map_anywhere(len: usize) -> Option<NonNull<u8>> {
        let protection = PROT_READ | PROT_WRITE;
        let flags = MAP_PRIVATE | MAP_ANONYMOUS;
        // SAFETY: a new private mapping without a file, at an address of the system's choice,
        // overlaps nothing; `mmap` reports what it cannot do.
        let base = unsafe { mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        if base as usize == MAP_FAILED { None } else { NonNull::new(base.cast()) }
    }

    /// Whether the system took the pages back; it may refuse when its table of mappings is full.
    ///
    /// # Safety
    /// - `base..base + len` is mapped by this module, and whole pages of it.
    /// - Nobody uses these pages any more.
    pub(super) unsafe fn unmap(base: NonNull<u8>, len: usize) -> bool {
        // SAFETY: as the caller promises.
        let result = unsafe { munmap(base.as_ptr().cast(), len) };
        result == 0
    }
}

#[cfg(all(not(miri), windows))]
mod pages {
    use std::ffi::c_void;
    use std::ptr::{self, NonNull};

    const MEM_COMMIT: u32 = 0x1000;
    const MEM_RESERVE: u32 = 0x2000;
    const MEM_RELEASE: u32 = 0x8000;
    const PAGE_READWRITE: u32 = 0x04;

    // SAFETY: these are the signatures of kernel32, as the Windows API documents them.
    #[link(name = "kernel32")]
    unsafe extern "system" {
        fn VirtualAlloc(
            address: *mut c_void,
            size: usize,
            kind: u32,
            protection: u32,
        ) -> *mut c_void;
        fn VirtualFree(address: *mut c_void, size: usize, kind: u32) -> i32;
    }

    /// Windows aligns every reservation to its allocation granularity, 64 KiB.
    pub(super) fn map(len: usize) -> Option<NonNull<u8>> {
        let kind = MEM_RESERVE | MEM_COMMIT;
        // SAFETY: new pages at an address of the system's choice overlap nothing.
        let base = unsafe { VirtualAlloc(ptr::null_mut(), len, kind, PAGE_READWRITE) };
        NonNull::new(base.cast())
    }

    /// Whether the system took the pages back.
    ///
    /// # Safety
    /// - `base` came from `map`, and was not unmapped before.
    /// - Nobody uses these pages any more.
    pub(super) unsafe fn unmap(base: NonNull<u8>, _: usize) -> bool {
        // SAFETY: as the caller promises; a release takes the whole reservation and size 0.
        let result = unsafe { VirtualFree(base.as_ptr().cast(), 0, MEM_RELEASE) };
        result != 0
    }
}

#[cfg(not(any(
    all(not(miri), windows),
    all(
        not(miri),
        target_pointer_width = "64",
        not(any(target_arch = "mips64", target_arch = "mips64r6")),
        any(
            target_os = "linux",
            target_os = "android",
            target_vendor = "apple",
            target_os = "freebsd",
            target_os = "netbsd",
            target_os = "openbsd",
            target_os = "dragonfly",
        )
    )
)))]
mod pages {
    use std::alloc::{self, Layout};
    use std::ptr::NonNull;

    use super::ALIGNMENT;

    fn layout(len: usize) -> Option<Layout> {
        Layout::from_size_align(len, ALIGNMENT as usize).ok().filter(|layout| layout.size() > 0)
    }

    pub(super) fn map(len: usize) -> Option<NonNull<u8>> {
        let layout = layout(len)?;
        // SAFETY: the layout's size is not zero.
        NonNull::new(unsafe { alloc::alloc_zeroed(layout) })
    }

    /// Whether the memory was given back.
    ///
    /// # Safety
    /// - `base` came from `map(len)`, and was not unmapped before.
    /// - Nobody uses this memory any more.
    pub(super) unsafe fn unmap(base: NonNull<u8>, len: usize) -> bool {
        let Some(layout) = layout(len) else { return false };
        // SAFETY: as the caller promises: same pointer, same layout.
        unsafe { alloc::dealloc(base.as_ptr(), layout) };
        true
    }
}

/// Memory of the machine in bytes: `MemTotal` on Linux, unknown elsewhere.
pub(super) fn machine_total() -> Option<Bytes> {
    proc_field("/proc/meminfo", "MemTotal:")
}

/// Memory the machine could give without swapping: `MemAvailable` on Linux, unknown elsewhere.
pub(super) fn machine_available() -> Option<Bytes> {
    proc_field("/proc/meminfo", "MemAvailable:")
}

/// Resident memory of this process: `VmRSS` on Linux, unknown elsewhere.
pub(super) fn resident() -> Option<Bytes> {
    proc_field("/proc/self/status", "VmRSS:")
}

/// The value of one `name: 123 kB` line, in bytes.
fn proc_field(path: &str, name: &str) -> Option<Bytes> {
    if !cfg!(any(target_os = "linux", target_os = "android")) {
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: Bytes = rest.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(KIB)
}
