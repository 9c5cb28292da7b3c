//! The driver's functions, found by name at run time.
//!
//! They are looked up in the library that cudarc loads too, so that both talk to one driver;
//! cudarc's own bindings are not used, since they panic where a function, or the library, is
//! absent, and their structures change with the version of CUDA they are built for. What is passed
//! here has been the same in every version since 11.2, and is written down as numbers:
//!
//! ```text
//!   location      { type: i32 = 1 (device), id: i32 }                               8 bytes
//!   allocation    { type: i32 = 1 (pinned), handles: i32, location, win32: ptr,     32 bytes
//!                   flags: [u8; 8] }
//!   access        { location, flags: i32 = 3 (read and write) }                     12 bytes
//!   pool          { type: i32 = 1, handles: i32, location, win32: ptr, rest: 64 }   88 bytes
//! ```
//!
//! Invariants:
//!
//! - D1: every handle and address that a wrapper is given came from this driver and was not given
//!   back yet. The types of this folder own them and see to it.
//! - D2: pointers that a wrapper passes for results are its own locals.
//!
//! A wrapper costs its call and a branch. Sources: the CUDA driver API reference, modules "Virtual
//! Memory Management", "Stream Ordered Memory Allocator", "Stream Management".

use std::ffi::{c_char, c_void};
use std::fmt;
use std::sync::OnceLock;

use libloading::Library;

use super::probe::CudaUnavailable;

/// A result code of the driver, never 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(pub i32);

impl Code {
    pub(super) const OUT_OF_MEMORY: Code = Code(2);
    pub(super) const STUB_LIBRARY: Code = Code(34);
    pub(super) const NO_DEVICE: Code = Code(100);
    pub(super) const NOT_SUPPORTED: Code = Code(801);
    pub(super) const NOT_READY: Code = Code(600);
    pub(super) const CAPTURE_UNSUPPORTED: Code = Code(900);
    pub(super) const CAPTURE_IMPLICIT: Code = Code(906);

    /// Whether the context, or the driver, is beyond use from now on: what the driver calls sticky
    /// errors, and the end of the process.
    pub fn is_loss(self) -> bool {
        matches!(
            self.0,
            3 | 4 | 46 | 100 | 201 | 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 999
        )
    }

    fn name(self) -> &'static str {
        match self.0 {
            1 => "invalid value",
            2 => "out of memory",
            3 => "not initialized",
            4 => "deinitialized",
            34 => "stub library",
            46 => "device unavailable",
            100 => "no device",
            101 => "invalid device",
            201 => "invalid context",
            214 => "uncorrectable ECC error",
            400 => "invalid handle",
            600 => "not ready",
            700 => "illegal address",
            702 => "launch timeout",
            709 => "context is destroyed",
            719 => "launch failed",
            801 => "not supported",
            900..=908 => "stream capture",
            999 => "unknown error",
            _ => "see CUresult",
        }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CUDA error {} ({})", self.0, self.name())
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Code {}

/// Turns a returned number into a result.
pub(super) fn check(code: i32) -> Result<(), Code> {
    if code == 0 { Ok(()) } else { Err(Code(code)) }
}

/// A handle of the driver: a pointer to what only it knows.
pub(super) type Handle = usize;
/// An address on the device.
pub(super) type Address = u64;

/// Defines a table of functions, and how it is looked up: all of it, or the first name that is
/// missing.
macro_rules! table {
    ($(#[$attribute:meta])* $name:ident { $($field:ident: $symbol:literal ($($arg:ty),*);)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy)]
        pub(super) struct $name { $(pub(super) $field: unsafe extern "C" fn($($arg),*) -> i32,)* }

        impl $name {
            fn find(library: &Library) -> Result<Self, &'static str> {
                Ok(Self { $($field: {
                    let name = concat!($symbol, "\0").as_bytes();
                    // SAFETY: the driver's function of this name has this signature.
                    let found = unsafe {
                        library.get::<unsafe extern "C" fn($($arg),*) -> i32>(name)
                    };
                    *found.map_err(|_| $symbol)?
                },)* })
            }
        }
    };
}

table! {
    /// What every driver since CUDA 11.2 has.
    Base {
        init: "cuInit"(u32);
        version: "cuDriverGetVersion"(*mut i32);
        device_count: "cuDeviceGetCount"(*mut i32);
        device: "cuDeviceGet"(*mut i32, i32);
        attribute: "cuDeviceGetAttribute"(*mut i32, i32, i32);
        total: "cuDeviceTotalMem_v2"(*mut usize, i32);
        device_name: "cuDeviceGetName"(*mut c_char, i32, i32);
        context_current: "cuCtxGetCurrent"(*mut Handle);
        context_set: "cuCtxSetCurrent"(Handle);
        context_device: "cuCtxGetDevice"(*mut i32);
        context_synchronize: "cuCtxSynchronize"();
        capture_mode: "cuThreadExchangeStreamCaptureMode"(*mut i32);
        mem_info: "cuMemGetInfo_v2"(*mut usize, *mut usize);
        mem_alloc: "cuMemAlloc_v2"(*mut Address, usize);
        mem_free: "cuMemFree_v2"(Address);
        host_alloc: "cuMemHostAlloc"(*mut *mut c_void, usize, u32);
        host_free: "cuMemFreeHost"(*mut c_void);
        copy: "cuMemcpyAsync"(Address, Address, usize, Handle);
        stream_create: "cuStreamCreate"(*mut Handle, u32);
        stream_destroy: "cuStreamDestroy_v2"(Handle);
        stream_synchronize: "cuStreamSynchronize"(Handle);
        stream_wait: "cuStreamWaitEvent"(Handle, Handle, u32);
        stream_capturing: "cuStreamIsCapturing"(Handle, *mut i32);
        event_create: "cuEventCreate"(*mut Handle, u32);
        event_destroy: "cuEventDestroy_v2"(Handle);
        event_record: "cuEventRecord"(Handle, Handle);
        event_query: "cuEventQuery"(Handle);
        event_synchronize: "cuEventSynchronize"(Handle);
    }
}

table! {
    /// Virtual memory, since CUDA 10.2.
    Pages {
        granularity: "cuMemGetAllocationGranularity"(*mut usize, *const AllocationProp, i32);
        address_reserve: "cuMemAddressReserve"(*mut Address, usize, usize, Address, u64);
        address_free: "cuMemAddressFree"(Address, usize);
        create: "cuMemCreate"(*mut u64, usize, *const AllocationProp, u64);
        release: "cuMemRelease"(u64);
        map: "cuMemMap"(Address, usize, usize, u64, u64);
        unmap: "cuMemUnmap"(Address, usize);
        set_access: "cuMemSetAccess"(Address, usize, *const AccessDesc, usize);
        export: "cuMemExportToShareableHandle"(*mut c_void, u64, i32, u64);
        import: "cuMemImportFromShareableHandle"(*mut u64, *mut c_void, i32);
    }
}

table! {
    /// Stream-ordered pools, since CUDA 11.2.
    Pools {
        pool_create: "cuMemPoolCreate"(*mut Handle, *const PoolProps);
        pool_destroy: "cuMemPoolDestroy"(Handle);
        pool_trim: "cuMemPoolTrimTo"(Handle, usize);
        pool_set: "cuMemPoolSetAttribute"(Handle, i32, *mut c_void);
        pool_of: "cuDeviceGetMemPool"(*mut Handle, i32);
        pool_alloc: "cuMemAllocFromPoolAsync"(*mut Address, usize, Handle, Handle);
        pool_free: "cuMemFreeAsync"(Address, Handle);
    }
}

table! {
    /// Since CUDA 12.0.
    StreamIds {
        stream_id: "cuStreamGetId"(Handle, *mut u64);
    }
}

table! {
    /// The graph of a capture under way, since CUDA 11.3.
    Graphs {
        capture_info: "cuStreamGetCaptureInfo_v2"(
            Handle, *mut i32, *mut u64, *mut Handle, *mut *const Handle, *mut usize
        );
        node_dependencies: "cuGraphNodeGetDependencies"(Handle, *mut Handle, *mut usize);
    }
}

/// Where memory is: on a device.
#[repr(C)]
#[derive(Clone, Copy)]
struct Location {
    kind: i32,
    id: i32,
}

/// `CUmemAllocationProp`.
#[repr(C)]
pub(super) struct AllocationProp {
    kind: i32,
    handles: i32,
    location: Location,
    win32: usize,
    flags: [u8; 8],
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct AccessDesc {
    location: Location,
    flags: i32,
}

/// `CUmemPoolProps`.
#[repr(C)]
pub(super) struct PoolProps {
    kind: i32,
    handles: i32,
    location: Location,
    win32: usize,
    rest: [u8; 64],
}

// A structure of another size would be read beyond its end.
const _: () = assert!(size_of::<AllocationProp>() == 32 && size_of::<AccessDesc>() == 12);
const _: () = assert!(size_of::<PoolProps>() == 88 && size_of::<usize>() == 8);

/// `CU_MEM_ALLOCATION_TYPE_PINNED`, of memory on a device.
const PINNED: i32 = 1;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const ON_DEVICE: i32 = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const READ_WRITE: i32 = 3;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
pub(super) const POSIX_FD: i32 = 1;
/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
pub(super) const RELEASE_THRESHOLD: i32 = 4;
/// `CU_STREAM_NON_BLOCKING`.
pub(super) const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`.
pub(super) const DISABLE_TIMING: u32 = 2;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
pub(super) const RELAXED: i32 = 2;
/// `CU_STREAM_CAPTURE_STATUS_ACTIVE`.
pub(super) const CAPTURE_ACTIVE: i32 = 1;
/// `CU_MEMHOSTALLOC_PORTABLE`: pinned for all contexts.
pub(super) const PORTABLE: u32 = 1;

fn on(device: i32) -> Location {
    Location { kind: ON_DEVICE, id: device }
}

impl AccessDesc {
    /// Reading and writing by `device`.
    pub(super) fn of(device: i32) -> Self {
        Self { location: on(device), flags: READ_WRITE }
    }
}

impl AllocationProp {
    pub(super) fn of(device: i32, exportable: bool) -> Self {
        let handles = if exportable { POSIX_FD } else { 0 };
        Self { kind: PINNED, handles, location: on(device), win32: 0, flags: [0; 8] }
    }
}

impl PoolProps {
    pub(super) fn of(device: i32) -> Self {
        Self { kind: PINNED, handles: 0, location: on(device), win32: 0, rest: [0; 64] }
    }
}

/// The driver of this process.
pub(super) struct Driver {
    pub(super) base: Base,
    pages: Option<Pages>,
    pools: Option<Pools>,
    pub(super) ids: Option<StreamIds>,
    pub(super) graphs: Option<Graphs>,
    /// Keeps the functions where they are.
    _library: Library,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

/// The names of the library in the order in which cudarc tries them, the first two that matter.
const LIBRARIES: &[&str] = match cfg!(windows) {
    true => &["nvcuda.dll"],
    false => &["libcuda.so", "libcuda.so.1"],
};

impl Driver {
    /// The driver, loaded and initialised once; a failure is tried again.
    pub(super) fn get() -> Result<&'static Driver, CudaUnavailable> {
        static DRIVER: OnceLock<Driver> = OnceLock::new();
        if let Some(driver) = DRIVER.get() {
            return Ok(driver);
        }
        let driver = Driver::load()?;
        Ok(DRIVER.get_or_init(|| driver))
    }

    fn load() -> Result<Driver, CudaUnavailable> {
        let library = open()?;
        let missing = |symbol| CudaUnavailable::TooOld { missing: symbol };
        let base = Base::find(&library).map_err(missing)?;
        Ok(Driver {
            base,
            pages: Pages::find(&library).ok(),
            pools: Pools::find(&library).ok(),
            ids: StreamIds::find(&library).ok(),
            graphs: Graphs::find(&library).ok(),
            _library: library,
        })
    }

    pub(super) fn pages(&self) -> Result<&Pages, Code> {
        self.pages.as_ref().ok_or(Code::NOT_SUPPORTED)
    }

    pub(super) fn pools(&self) -> Result<&Pools, Code> {
        self.pools.as_ref().ok_or(Code::NOT_SUPPORTED)
    }

    pub(super) fn has_pages(&self) -> bool {
        self.pages.is_some()
    }

    pub(super) fn has_pools(&self) -> bool {
        self.pools.is_some()
    }
}

fn open() -> Result<Library, CudaUnavailable> {
    let mut detail = String::new();
    for &name in LIBRARIES {
        // SAFETY: loading the driver runs its initialisers, which are the vendor's.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(library),
            Err(error) => detail = error.to_string(),
        }
    }
    Err(CudaUnavailable::NoLibrary { detail })
}
