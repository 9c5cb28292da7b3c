//! The system calls, and raw access to memory that the tables say is there.
//!
//! ```text
//!   fresh      anonymous pages, committed when touched         plain, pinned and pool memory
//!   reserve    no access, no commitment                        address ranges
//!   map_file   pages of a file (memfd) over reserved ones      chunks: the same pages at n places
//!   blank      back to reserved                                what is unmapped
//! ```

use std::io::Error;

use libc::{MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED};
use libc::{PROT_NONE, PROT_READ, PROT_WRITE, c_int, off_t};

/// Size of the pages that `mmap` works in.
pub(crate) const PAGE: u64 = 4096;

/// Whether pages can be touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protection {
    None,
    ReadWrite,
}

impl Protection {
    fn bits(self) -> c_int {
        match self {
            Protection::None => PROT_NONE,
            Protection::ReadWrite => PROT_READ | PROT_WRITE,
        }
    }
}

/// So many bytes of addresses, aligned; `None` if the system has none left.
pub(crate) fn pages(len: u64, alignment: u64, protection: Protection) -> Option<u64> {
    let slack = alignment.saturating_sub(PAGE);
    let room = len.checked_add(slack)?;
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    // SAFETY: a new mapping at a place of the kernel's choice touches nothing that exists.
    let raw =
        unsafe { libc::mmap(std::ptr::null_mut(), room as usize, protection.bits(), flags, -1, 0) };
    if raw == libc::MAP_FAILED {
        return None;
    }
    let start = (raw as u64).next_multiple_of(alignment);
    give_back(raw as u64, start - raw as u64);
    give_back(start + len, raw as u64 + room - start - len);
    Some(start)
}

/// Unmaps pages that the fake mapped.
pub(crate) fn give_back(start: u64, len: u64) {
    if len > 0 {
        // SAFETY: the range is the fake's own, and its tables no longer hold it.
        let rc = unsafe { libc::munmap(start as *mut _, len as usize) };
        assert_eq!(rc, 0, "munmap: {}", Error::last_os_error());
    }
}

/// Takes away what is mapped and keeps the addresses.
pub(crate) fn blank(start: u64, len: u64) {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    map_over(start, len, PROT_NONE, flags, -1, 0);
}

/// Puts pages of a file over reserved addresses, without access.
pub(crate) fn map_file(start: u64, len: u64, file: c_int, offset: u64) {
    map_over(start, len, PROT_NONE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, file, offset);
}

fn map_over(start: u64, len: u64, bits: c_int, flags: c_int, file: c_int, offset: u64) {
    let place = start as *mut libc::c_void;
    // SAFETY: the range lies in a range that the fake has reserved; nobody else maps there.
    let got = unsafe { libc::mmap(place, len as usize, bits, flags, file, offset as off_t) };
    assert_eq!(got, place, "mmap: {}", Error::last_os_error());
}

pub(crate) fn protect(start: u64, len: u64, protection: Protection) {
    // SAFETY: the range is mapped by the fake.
    let rc = unsafe { libc::mprotect(start as *mut _, len as usize, protection.bits()) };
    assert_eq!(rc, 0, "mprotect: {}", Error::last_os_error());
}

/// A file in memory; its name shows in the list of open files.
pub(crate) fn memory_file() -> Option<c_int> {
    // SAFETY: the name is a constant that ends with a zero.
    let file = unsafe { libc::memfd_create(c"fakecuda".as_ptr(), libc::MFD_CLOEXEC) };
    (file >= 0).then_some(file)
}

pub(crate) fn set_file_size(file: c_int, len: u64) {
    // SAFETY: the file is open and the fake's own.
    let rc = unsafe { libc::ftruncate(file, len as off_t) };
    assert_eq!(rc, 0, "ftruncate: {}", Error::last_os_error());
}

/// Gives the pages of a part of a file back; it reads as zeros.
pub(crate) fn punch_hole(file: c_int, offset: u64, len: u64) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the file is open and the fake's own, and nothing maps this part of it.
    let rc = unsafe { libc::fallocate(file, mode, offset as off_t, len as off_t) };
    assert_eq!(rc, 0, "fallocate: {}", Error::last_os_error());
}

pub(crate) fn close(file: c_int) {
    // SAFETY: the file is open and the fake's own.
    let rc = unsafe { libc::close(file) };
    assert_eq!(rc, 0, "close: {}", Error::last_os_error());
}

pub(crate) fn duplicate(file: c_int) -> Option<c_int> {
    // SAFETY: duplicating touches no memory; a bad number is an error.
    let file = unsafe { libc::fcntl(file, libc::F_DUPFD_CLOEXEC, 0) };
    (file >= 0).then_some(file)
}

/// Inode and size of an open file.
pub(crate) fn identity(file: c_int) -> Option<(u64, u64)> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: there is room for the answer.
    let rc = unsafe { libc::fstat(file, stat.as_mut_ptr()) };
    // SAFETY: all zeros are a value of this struct, and the call at most wrote over them.
    let stat = unsafe { stat.assume_init() };
    (rc == 0).then_some((stat.st_ino, stat.st_size as u64))
}

/// Copies bytes; the ranges may overlap.
///
/// # Safety
/// Both ranges are mapped and accessible, the target for writing.
pub(crate) unsafe fn copy(target: u64, source: u64, len: u64) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy(source as *const u8, target as *mut u8, len as usize) }
}

/// Writes one value, aligned or not.
///
/// # Safety
/// The address is mapped and writable for a `T`.
pub(crate) unsafe fn store<T: Copy>(address: u64, value: T) {
    // SAFETY: the caller's promise.
    unsafe { (address as *mut T).write_unaligned(value) }
}

/// Reads one value, aligned or not.
///
/// # Safety
/// The address is mapped and holds a `T` for which all bytes are values.
pub(crate) unsafe fn load<T: Copy>(address: u64) -> T {
    // SAFETY: the caller's promise.
    unsafe { (address as *const T).read_unaligned() }
}

/// Fills a range with one byte.
///
/// # Safety
/// The range is mapped and writable.
pub(crate) unsafe fn fill(address: u64, byte: u8, len: u64) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::write_bytes(address as *mut u8, byte, len as usize) }
}
