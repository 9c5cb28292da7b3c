//! The functions of the driver as a program sees them: looked up by name, with their C types.

use std::ffi::{c_char, c_void};
use std::sync::OnceLock;

use crate::cuda::{Fake, Library};

/// Functions that look their symbol up at the first call.
macro_rules! api {
    ($($name:ident($($arg:ident: $kind:ty),*);)*) => {$(
        #[allow(non_snake_case, clippy::too_many_arguments)]
        pub(crate) fn $name($($arg: $kind),*) -> i32 {
            static ADDRESS: OnceLock<usize> = OnceLock::new();
            let address =
                *ADDRESS.get_or_init(|| Library::load().symbol(stringify!($name)) as usize);
            // SAFETY: the driver's function of this name has this type.
            let function = unsafe {
                std::mem::transmute::<usize, unsafe extern "C" fn($($kind),*) -> i32>(address)
            };
            // SAFETY: tests pass null or the addresses of their own variables.
            unsafe { function($($arg),*) }
        }
    )*};
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Properties {
    pub(crate) kind: u32,
    pub(crate) handle_types: u32,
    pub(crate) location: Location,
    pub(crate) windows: u64,
    pub(crate) flags: [u8; 8],
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Location {
    pub(crate) kind: u32,
    pub(crate) id: i32,
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    pub(crate) location: Location,
    pub(crate) flags: u32,
}

/// `CUmemPoolProps`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolProperties {
    pub(crate) kind: u32,
    pub(crate) handle_types: u32,
    pub(crate) location: Location,
    pub(crate) windows: u64,
    pub(crate) bytes_max: usize,
    pub(crate) rest: [u8; 56],
}

type HostFunction = unsafe extern "C" fn(*mut c_void);

api! {
    cuInit(flags: u32);
    cuDriverGetVersion(version: *mut i32);
    cuGetErrorName(code: i32, name: *mut *const c_char);
    cuGetErrorString(code: i32, text: *mut *const c_char);
    cuDeviceGetCount(count: *mut i32);
    cuDeviceGet(device: *mut i32, ordinal: i32);
    cuDeviceGetName(name: *mut u8, len: i32, device: i32);
    cuDeviceGetUuid_v2(uuid: *mut u8, device: i32);
    cuDeviceGetUuid(uuid: *mut u8, device: i32);
    cuDeviceTotalMem_v2(bytes: *mut usize, device: i32);
    cuDeviceGetAttribute(value: *mut i32, attribute: i32, device: i32);
    cuDevicePrimaryCtxRetain(context: *mut u64, device: i32);
    cuDevicePrimaryCtxRelease_v2(device: i32);
    cuCtxGetCurrent(context: *mut u64);
    cuCtxSetCurrent(context: u64);
    cuCtxPushCurrent_v2(context: u64);
    cuCtxPopCurrent_v2(context: *mut u64);
    cuCtxGetDevice(device: *mut i32);
    cuCtxSetFlags(flags: u32);
    cuCtxSynchronize();
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemAlloc_v2(pointer: *mut u64, size: usize);
    cuMemFree_v2(pointer: u64);
    cuMemGetAddressRange_v2(start: *mut u64, size: *mut usize, pointer: u64);
    cuMemHostAlloc(pointer: *mut u64, size: usize, flags: u32);
    cuMemFreeHost(pointer: u64);
    cuMemHostGetDevicePointer_v2(pointer: *mut u64, host: u64, flags: u32);
    cuPointerGetAttribute(data: *mut c_void, attribute: u32, pointer: u64);
    cuMemsetD8_v2(target: u64, value: u8, count: usize);
    cuMemsetD8Async(target: u64, value: u8, count: usize, stream: u64);
    cuMemsetD32Async(target: u64, value: u32, count: usize, stream: u64);
    cuMemcpyHtoD_v2(target: u64, source: u64, len: usize);
    cuMemcpyDtoH_v2(target: u64, source: u64, len: usize);
    cuMemcpyDtoD_v2(target: u64, source: u64, len: usize);
    cuMemcpyHtoDAsync_v2(target: u64, source: u64, len: usize, stream: u64);
    cuMemcpyDtoHAsync_v2(target: u64, source: u64, len: usize, stream: u64);
    cuMemcpyDtoDAsync_v2(target: u64, source: u64, len: usize, stream: u64);
    cuMemcpyAsync(target: u64, source: u64, len: usize, stream: u64);
    cuStreamCreate(stream: *mut u64, flags: u32);
    cuStreamCreateWithPriority(stream: *mut u64, flags: u32, priority: i32);
    cuStreamDestroy_v2(stream: u64);
    cuStreamSynchronize(stream: u64);
    cuStreamQuery(stream: u64);
    cuStreamWaitEvent(stream: u64, event: u64, flags: u32);
    cuStreamGetId(stream: u64, id: *mut u64);
    cuStreamGetCtx(stream: u64, context: *mut u64);
    cuStreamGetFlags(stream: u64, flags: *mut u32);
    cuStreamIsCapturing(stream: u64, status: *mut u32);
    cuStreamGetCaptureInfo_v2(
        stream: u64,
        status: *mut u32,
        id: *mut u64,
        graph: *mut u64,
        dependencies: *mut u64,
        count: *mut usize
    );
    cuStreamBeginCapture_v2(stream: u64, mode: u32);
    cuStreamEndCapture(stream: u64, graph: *mut u64);
    cuThreadExchangeStreamCaptureMode(mode: *mut u32);
    cuGraphInstantiateWithFlags(executable: *mut u64, graph: u64, flags: u64);
    cuGraphInstantiate_v2(
        executable: *mut u64,
        graph: u64,
        node: *mut u64,
        log: *mut u8,
        log_size: usize
    );
    cuGraphUpload(executable: u64, stream: u64);
    cuGraphLaunch(executable: u64, stream: u64);
    cuGraphDestroy(graph: u64);
    cuGraphExecDestroy(executable: u64);
    cuLaunchHostFunc(stream: u64, function: HostFunction, data: *mut c_void);
    cuEventCreate(event: *mut u64, flags: u32);
    cuEventDestroy_v2(event: u64);
    cuEventRecord(event: u64, stream: u64);
    cuEventQuery(event: u64);
    cuEventSynchronize(event: u64);
    cuEventElapsedTime(milliseconds: *mut f32, start: u64, end: u64);
    cuDeviceGetDefaultMemPool(pool: *mut u64, device: i32);
    cuDeviceGetMemPool(pool: *mut u64, device: i32);
    cuDeviceSetMemPool(device: i32, pool: u64);
    cuMemAllocAsync(pointer: *mut u64, size: usize, stream: u64);
    cuMemAllocFromPoolAsync(pointer: *mut u64, size: usize, pool: u64, stream: u64);
    cuMemFreeAsync(pointer: u64, stream: u64);
    cuMemPoolCreate(pool: *mut u64, properties: *const PoolProperties);
    cuMemPoolSetAccess(pool: u64, wanted: *const Access, count: usize);
    cuMemPoolDestroy(pool: u64);
    cuMemPoolTrimTo(pool: u64, keep: usize);
    cuMemPoolGetAttribute(pool: u64, attribute: u32, value: *mut c_void);
    cuMemPoolSetAttribute(pool: u64, attribute: u32, value: *mut c_void);
    cuMemGetAllocationGranularity(size: *mut usize, properties: *const Properties, option: u32);
    cuMemAddressReserve(pointer: *mut u64, size: usize, alignment: usize, hint: u64, flags: u64);
    cuMemAddressFree(pointer: u64, size: usize);
    cuMemCreate(handle: *mut u64, size: usize, properties: *const Properties, flags: u64);
    cuMemRelease(handle: u64);
    cuMemMap(pointer: u64, size: usize, offset: usize, handle: u64, flags: u64);
    cuMemUnmap(pointer: u64, size: usize);
    cuMemSetAccess(pointer: u64, size: usize, wanted: *const Access, count: usize);
    cuMemGetAccess(flags: *mut u64, location: *const Location, pointer: u64);
    cuMemRetainAllocationHandle(handle: *mut u64, pointer: u64);
    cuMemExportToShareableHandle(file: *mut i32, handle: u64, handle_type: u32, flags: u64);
    cuMemImportFromShareableHandle(handle: *mut u64, file: u64, handle_type: u32);
    cuModuleLoadData(module: *mut u64, image: *const u8);
    cuModuleLoadDataEx(
        module: *mut u64,
        image: *const u8,
        count: u32,
        options: *mut u32,
        values: *mut u64
    );
    cuModuleUnload(module: u64);
    cuFuncGetAttribute(value: *mut i32, attribute: u32, function: u64);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut i32,
        function: u64,
        block_size: i32,
        shared: usize
    );
    cuModuleGetFunction(function: *mut u64, module: u64, name: *const c_char);
    cuLaunchKernel(
        function: u64,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: u64,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void
    );
}

/// Asserts success, and hands back what the call wrote.
#[track_caller]
pub(crate) fn made<T: Default>(call: impl FnOnce(*mut T) -> i32) -> T {
    let mut value = T::default();
    assert_eq!(call(&mut value), 0);
    value
}

/// Initializes the driver and makes the context of a device current.
#[track_caller]
pub(crate) fn context(device: i32) -> u64 {
    assert_eq!(cuInit(0), 0);
    let context = made(|context| cuDevicePrimaryCtxRetain(context, device));
    assert_eq!(cuCtxSetCurrent(context), 0);
    context
}

/// Device memory.
#[track_caller]
pub(crate) fn memory(size: usize) -> u64 {
    made(|pointer| cuMemAlloc_v2(pointer, size))
}

/// A stream that does not synchronise with the legacy one.
#[track_caller]
pub(crate) fn stream() -> u64 {
    made(|stream| cuStreamCreate(stream, 1))
}

#[track_caller]
pub(crate) fn event() -> u64 {
    made(|event| cuEventCreate(event, 2))
}

/// Asserts that the fake has noted exactly one misuse, which says this.
#[track_caller]
pub(crate) fn noted(fake: &Fake, about: &str) {
    let violations = fake.take_violations();
    assert_eq!(violations.len(), 1, "{about}: {violations:?}");
    assert!(violations[0].contains(about), "{violations:?} says nothing about {about:?}");
}

/// Asserts that a call was a misuse: the code that it got, and what the fake noted.
#[track_caller]
pub(crate) fn misuse(fake: &Fake, wanted: i32, got: i32, about: &str) {
    assert_eq!(got, wanted, "{about}");
    noted(fake, about);
}
