//! The C side: result codes, the structs that cross the border, and pointers that callers pass.
//!
//! [`Out`] and [`In`] are raw pointers with a promise attached: a caller of the driver API passes
//! null or a pointer that is valid for the call. All access through such pointers is in this file.

use std::ffi::CStr;

/// What a call comes to; the error is the code that the caller gets.
pub(crate) type Answer<T = ()> = Result<T, Code>;

/// A `CUresult` that is not success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) i32);

macro_rules! codes {
    ($($name:ident = $number:literal $full:literal $text:literal,)*) => {
        impl Code {
            $(pub(crate) const $name: Code = Code($number);)*
        }

        /// Name and text of a code; `None` for a number that the fake never returns by itself.
        pub(crate) fn texts(code: i32) -> Option<(&'static CStr, &'static CStr)> {
            match code {
                0 => Some((c"CUDA_SUCCESS", c"no error")),
                $($number => Some(($full, $text)),)*
                _ => None,
            }
        }
    };
}

codes! {
    INVALID_VALUE = 1 c"CUDA_ERROR_INVALID_VALUE" c"invalid argument",
    OUT_OF_MEMORY = 2 c"CUDA_ERROR_OUT_OF_MEMORY" c"out of memory",
    NOT_INITIALIZED = 3 c"CUDA_ERROR_NOT_INITIALIZED" c"initialization error",
    STUB_LIBRARY = 34 c"CUDA_ERROR_STUB_LIBRARY" c"CUDA driver is a stub library",
    NO_DEVICE = 100 c"CUDA_ERROR_NO_DEVICE" c"no CUDA-capable device is detected",
    INVALID_DEVICE = 101 c"CUDA_ERROR_INVALID_DEVICE" c"invalid device ordinal",
    INVALID_CONTEXT = 201 c"CUDA_ERROR_INVALID_CONTEXT" c"invalid device context",
    INVALID_HANDLE = 400 c"CUDA_ERROR_INVALID_HANDLE" c"invalid resource handle",
    ILLEGAL_STATE = 401 c"CUDA_ERROR_ILLEGAL_STATE" c"the operation cannot be performed now",
    NOT_FOUND = 500 c"CUDA_ERROR_NOT_FOUND" c"named symbol not found",
    NOT_READY = 600 c"CUDA_ERROR_NOT_READY" c"device not ready",
    ILLEGAL_ADDRESS = 700 c"CUDA_ERROR_ILLEGAL_ADDRESS" c"an illegal memory access was encountered",
    NOT_PERMITTED = 800 c"CUDA_ERROR_NOT_PERMITTED" c"operation not permitted",
    NOT_SUPPORTED = 801 c"CUDA_ERROR_NOT_SUPPORTED" c"operation not supported",
    CAPTURE_UNSUPPORTED = 900 c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
        c"operation not permitted when stream is capturing",
    CAPTURE_INVALIDATED = 901 c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
        c"operation failed due to a previous error during capture",
    CAPTURE_MERGE = 902 c"CUDA_ERROR_STREAM_CAPTURE_MERGE"
        c"operation would result in a merge of separate capture sequences",
    CAPTURE_UNMATCHED = 903 c"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED"
        c"capture was not ended in the same stream as it began",
    CAPTURE_UNJOINED = 904 c"CUDA_ERROR_STREAM_CAPTURE_UNJOINED"
        c"capturing stream has unjoined work",
    CAPTURE_ISOLATION = 905 c"CUDA_ERROR_STREAM_CAPTURE_ISOLATION"
        c"dependency created on uncaptured work in another stream",
    CAPTURE_IMPLICIT = 906 c"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"
        c"operation would make the legacy stream depend on a capturing blocking stream",
    CAPTURED_EVENT = 907 c"CUDA_ERROR_CAPTURED_EVENT"
        c"operation not permitted on an event last recorded in a capturing stream",
    CAPTURE_WRONG_THREAD = 908 c"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"
        c"attempt to terminate a thread-local capture sequence from another thread",
    UNKNOWN = 999 c"CUDA_ERROR_UNKNOWN" c"unknown error",
}

/// Where a call writes an answer.
#[repr(transparent)]
#[derive(Debug)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Writes the answer, or says that the pointer is null.
    pub(crate) fn set(&self, value: T) -> Answer {
        self.needed()?;
        self.set_if_asked(value);
        Ok(())
    }

    /// Writes the answer where the caller wants it.
    pub(crate) fn set_if_asked(&self, value: T) {
        if !self.0.is_null() {
            // SAFETY: the caller of the driver API passes null or a pointer to room for a `T`.
            unsafe { self.0.write_unaligned(value) }
        }
    }

    /// An error if the pointer is null: to be asked before anything is changed.
    pub(crate) fn needed(&self) -> Answer {
        if self.0.is_null() { Err(Code::INVALID_VALUE) } else { Ok(()) }
    }

    /// What the caller left there; for arguments that go both ways.
    pub(crate) fn read(&self) -> Answer<T>
    where
        T: Copy,
    {
        self.needed()?;
        // SAFETY: the caller of the driver API passes null or a pointer to a `T`.
        Ok(unsafe { self.0.read_unaligned() })
    }

    /// The same place as one for another type: attributes have several.
    pub(crate) fn cast<U>(&self) -> Out<U> {
        Out(self.0.cast())
    }
}

impl Out<u8> {
    /// Writes bytes one after the other; the caller has said that there is room for them.
    pub(crate) fn write_all(&self, bytes: &[u8]) -> Answer {
        self.needed()?;
        for (at, byte) in bytes.iter().enumerate() {
            // SAFETY: the caller of the driver API said that so many bytes fit.
            let place = unsafe { self.0.add(at) };
            Out(place).set_if_asked(*byte);
        }
        Ok(())
    }
}

/// What a call reads from its caller: null, one value, or so many of them.
#[repr(transparent)]
#[derive(Debug)]
pub(crate) struct In<T>(*const T);

impl<T: Copy> In<T> {
    pub(crate) fn get(&self) -> Answer<T> {
        self.at(0)
    }

    /// The value at `index`; the caller knows how many there are.
    pub(crate) fn at(&self, index: usize) -> Answer<T> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller of the driver API passes as many values as the call's contract says.
        let place = unsafe { self.0.add(index) };
        // SAFETY: as above; unaligned values are fine.
        Ok(unsafe { place.read_unaligned() })
    }

    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    pub(crate) fn address(&self) -> u64 {
        self.0 as u64
    }

    /// An `In` for an address that was read out of another one.
    pub(crate) fn from_address(address: u64) -> Self {
        Self(address as *const T)
    }
}

impl In<i8> {
    /// The text up to its zero.
    pub(crate) fn text(&self) -> Answer<String> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller of the driver API passes null or a text that ends with a zero.
        let text = unsafe { CStr::from_ptr(self.0.cast()) };
        Ok(text.to_string_lossy().into_owned())
    }
}

/// `CUmemLocation`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Location {
    pub(crate) kind: u32,
    pub(crate) id: i32,
}

/// `CU_MEM_LOCATION_TYPE_DEVICE`.
pub(crate) const LOCATION_DEVICE: u32 = 1;

/// `CU_MEM_ALLOCATION_TYPE_PINNED`.
pub(crate) const TYPE_PINNED: u32 = 1;

/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
pub(crate) const HANDLE_POSIX: u32 = 1;

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChunkProperties {
    pub(crate) kind: u32,
    pub(crate) handle_types: u32,
    pub(crate) location: Location,
    pub(crate) windows: u64,
    pub(crate) flags: [u8; 8],
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    pub(crate) location: Location,
    pub(crate) flags: u32,
}

/// `CUmemPoolProps`; the tail is larger than what the fake reads.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolProperties {
    pub(crate) kind: u32,
    pub(crate) handle_types: u32,
    pub(crate) location: Location,
    pub(crate) windows: u64,
    pub(crate) bytes_max: u64,
}
