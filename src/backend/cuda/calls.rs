//! One safe method for each function of the driver; see [`driver`](super::driver) for the rules D1
//! and D2 that make them so.

use std::ffi::{CStr, c_char, c_void};

use super::driver::{
    AccessDesc, Address, AllocationProp, CAPTURE_ACTIVE, Code, DISABLE_TIMING, Driver, Handle,
    NON_BLOCKING, PORTABLE, POSIX_FD, PoolProps, RELEASE_THRESHOLD, check,
};
use crate::units::Bytes;

/// Calls a function of a table.
macro_rules! call {
    ($table:expr, $function:ident($($arg:expr),*)) => {
        // SAFETY: D1 and D2: handles are live, results go to locals.
        check(unsafe { ($table.$function)($($arg),*) })
    };
}

/// Calls a function that writes one value, and returns that.
macro_rules! read {
    ($table:expr, $function:ident($out:ident: $kind:ty = $start:expr; $($arg:expr),*)) => {{
        let mut $out: $kind = $start;
        call!($table, $function($($arg),*)).map(|()| $out)
    }};
}

/// Devices and contexts.
impl Driver {
    pub(super) fn init(&self) -> Result<(), Code> {
        call!(self.base, init(0))
    }

    /// 12040 for CUDA 12.4.
    pub(super) fn version(&self) -> Result<i32, Code> {
        read!(self.base, version(out: i32 = 0; &mut out))
    }

    pub(super) fn device_count(&self) -> Result<i32, Code> {
        read!(self.base, device_count(out: i32 = 0; &mut out))
    }

    pub(super) fn device(&self, ordinal: i32) -> Result<i32, Code> {
        read!(self.base, device(out: i32 = 0; &mut out, ordinal))
    }

    pub(super) fn attribute(&self, device: i32, attribute: i32) -> Result<i32, Code> {
        read!(self.base, attribute(out: i32 = 0; &mut out, attribute, device))
    }

    pub(super) fn total(&self, device: i32) -> Result<Bytes, Code> {
        read!(self.base, total(out: usize = 0; &mut out, device)).map(|total| total as Bytes)
    }

    pub(super) fn name(&self, device: i32) -> Result<String, Code> {
        let mut name: [c_char; 256] = [0; 256];
        // The last byte stays 0 whatever the driver writes.
        call!(self.base, device_name(name.as_mut_ptr(), 255, device))?;
        let bytes: [u8; 256] = bytemuck::cast(name);
        let name = CStr::from_bytes_until_nul(&bytes).unwrap_or(c"");
        Ok(name.to_string_lossy().into_owned())
    }

    pub(super) fn context_current(&self) -> Result<Handle, Code> {
        read!(self.base, context_current(out: Handle = 0; &mut out))
    }

    pub(super) fn set_context(&self, context: Handle) -> Result<(), Code> {
        call!(self.base, context_set(context))
    }

    /// Whether the current context lives: one that was released stays current.
    pub(super) fn is_context_live(&self) -> bool {
        read!(self.base, context_device(out: i32 = 0; &mut out)).is_ok()
    }

    pub(super) fn synchronize_context(&self) -> Result<(), Code> {
        call!(self.base, context_synchronize())
    }

    /// Sets how strict the thread is about other threads' captures; returns how strict it was.
    pub(super) fn exchange_capture_mode(&self, mode: i32) -> Result<i32, Code> {
        read!(self.base, capture_mode(out: i32 = mode; &mut out))
    }

    /// Free and total bytes of the current context's device.
    pub(super) fn mem_info(&self) -> Result<(Bytes, Bytes), Code> {
        let (mut free, mut total) = (0_usize, 0_usize);
        call!(self.base, mem_info(&mut free, &mut total))?;
        Ok((free as Bytes, total as Bytes))
    }
}

/// Memory in one piece.
impl Driver {
    pub(super) fn mem_alloc(&self, size: Bytes) -> Result<Address, Code> {
        read!(self.base, mem_alloc(out: Address = 0; &mut out, size as usize))
    }

    /// Waits for the work of the whole device.
    pub(super) fn mem_free(&self, address: Address) -> Result<(), Code> {
        call!(self.base, mem_free(address))
    }

    pub(super) fn host_alloc(&self, size: Bytes) -> Result<*mut c_void, Code> {
        let start = std::ptr::null_mut();
        read!(self.base, host_alloc(out: *mut c_void = start; &mut out, size as usize, PORTABLE))
    }

    /// Waits for the work of the whole device.
    pub(super) fn host_free(&self, start: *mut c_void) -> Result<(), Code> {
        call!(self.base, host_free(start))
    }

    /// A copy between any two places, in order on `stream`.
    pub(super) fn copy(
        &self,
        to: Address,
        from: Address,
        size: Bytes,
        stream: Handle,
    ) -> Result<(), Code> {
        call!(self.base, copy(to, from, size as usize, stream))
    }
}

/// Streams and events.
impl Driver {
    /// A stream that waits for no other.
    pub(super) fn create_stream(&self) -> Result<Handle, Code> {
        read!(self.base, stream_create(out: Handle = 0; &mut out, NON_BLOCKING))
    }

    pub(super) fn destroy_stream(&self, stream: Handle) -> Result<(), Code> {
        call!(self.base, stream_destroy(stream))
    }

    pub(super) fn synchronize_stream(&self, stream: Handle) -> Result<(), Code> {
        call!(self.base, stream_synchronize(stream))
    }

    /// Makes later work on `stream` wait for `event`, on the device.
    pub(super) fn stream_wait(&self, stream: Handle, event: Handle) -> Result<(), Code> {
        call!(self.base, stream_wait(stream, event, 0))
    }

    pub(super) fn is_capturing(&self, stream: Handle) -> Result<bool, Code> {
        read!(self.base, stream_capturing(out: i32 = 0; stream, &mut out)).map(|status| status != 0)
    }

    /// A number that no other stream of this process ever has; none before CUDA 12.0.
    pub(super) fn stream_id(&self, stream: Handle) -> Result<Option<u64>, Code> {
        match &self.ids {
            Some(ids) => match read!(ids, stream_id(out: u64 = 0; stream, &mut out)) {
                Err(Code::NOT_SUPPORTED) => Ok(None),
                outcome => outcome.map(Some),
            },
            None => Ok(None),
        }
    }

    pub(super) fn create_event(&self) -> Result<Handle, Code> {
        read!(self.base, event_create(out: Handle = 0; &mut out, DISABLE_TIMING))
    }

    pub(super) fn destroy_event(&self, event: Handle) -> Result<(), Code> {
        call!(self.base, event_destroy(event))
    }

    pub(super) fn record(&self, event: Handle, stream: Handle) -> Result<(), Code> {
        call!(self.base, event_record(event, stream))
    }

    pub(super) fn is_complete(&self, event: Handle) -> Result<bool, Code> {
        match call!(self.base, event_query(event)) {
            Ok(()) => Ok(true),
            Err(Code::NOT_READY) => Ok(false),
            Err(code) => Err(code),
        }
    }

    pub(super) fn synchronize_event(&self, event: Handle) -> Result<(), Code> {
        call!(self.base, event_synchronize(event))
    }
}

/// Virtual memory. Sizes and addresses are multiples of the granularity.
impl Driver {
    /// The smallest piece that can be mapped, in bytes.
    pub(super) fn granularity(&self, device: i32, exportable: bool) -> Result<Bytes, Code> {
        let prop = AllocationProp::of(device, exportable);
        let pages = self.pages()?;
        read!(pages, granularity(out: usize = 0; &mut out, &prop, 0)).map(|size| size as Bytes)
    }

    pub(super) fn reserve(&self, size: Bytes, alignment: Bytes) -> Result<Address, Code> {
        let (size, alignment) = (size as usize, alignment as usize);
        read!(self.pages()?, address_reserve(out: Address = 0; &mut out, size, alignment, 0, 0))
    }

    pub(super) fn address_free(&self, address: Address, size: Bytes) -> Result<(), Code> {
        call!(self.pages()?, address_free(address, size as usize))
    }

    pub(super) fn create(&self, size: Bytes, device: i32, exportable: bool) -> Result<u64, Code> {
        let prop = AllocationProp::of(device, exportable);
        read!(self.pages()?, create(out: u64 = 0; &mut out, size as usize, &prop, 0))
    }

    pub(super) fn release(&self, chunk: u64) -> Result<(), Code> {
        call!(self.pages()?, release(chunk))
    }

    pub(super) fn map(&self, address: Address, size: Bytes, chunk: u64) -> Result<(), Code> {
        call!(self.pages()?, map(address, size as usize, 0, chunk, 0))
    }

    pub(super) fn unmap(&self, address: Address, size: Bytes) -> Result<(), Code> {
        call!(self.pages()?, unmap(address, size as usize))
    }

    pub(super) fn set_access(
        &self,
        address: Address,
        size: Bytes,
        access: &[AccessDesc],
    ) -> Result<(), Code> {
        call!(self.pages()?, set_access(address, size as usize, access.as_ptr(), access.len()))
    }

    /// A file descriptor of a chunk that was made to be exported.
    pub(super) fn export(&self, chunk: u64) -> Result<i32, Code> {
        let pages = self.pages()?;
        read!(pages, export(out: i32 = -1; (&raw mut out).cast::<c_void>(), chunk, POSIX_FD, 0))
    }

    /// The chunk behind a file descriptor, which stays the caller's.
    pub(super) fn import(&self, descriptor: i32) -> Result<u64, Code> {
        // The descriptor is passed as the pointer itself.
        let passed = std::ptr::without_provenance_mut::<c_void>(descriptor as usize);
        read!(self.pages()?, import(out: u64 = 0; &mut out, passed, POSIX_FD))
    }
}

/// Stream-ordered pools.
impl Driver {
    /// A pool of its own on the device, which gives nothing back by itself.
    pub(super) fn create_pool(&self, device: i32) -> Result<Handle, Code> {
        let props = PoolProps::of(device);
        let pool = read!(self.pools()?, pool_create(out: Handle = 0; &mut out, &props))?;
        match self.keep_all(pool) {
            Ok(()) => Ok(pool),
            Err(code) => self.destroy_pool(pool).and(Err(code)),
        }
    }

    /// Sets the release threshold: the pool keeps what is freed, whatever is synchronised.
    pub(super) fn keep_all(&self, pool: Handle) -> Result<(), Code> {
        let mut threshold = u64::MAX;
        let value = (&raw mut threshold).cast::<c_void>();
        call!(self.pools()?, pool_set(pool, RELEASE_THRESHOLD, value))
    }

    pub(super) fn destroy_pool(&self, pool: Handle) -> Result<(), Code> {
        call!(self.pools()?, pool_destroy(pool))
    }

    /// The pool that `cuMemAllocAsync` of the device takes from.
    pub(super) fn current_pool(&self, device: i32) -> Result<Handle, Code> {
        read!(self.pools()?, pool_of(out: Handle = 0; &mut out, device))
    }

    pub(super) fn pool_alloc(
        &self,
        size: Bytes,
        pool: Handle,
        stream: Handle,
    ) -> Result<Address, Code> {
        read!(self.pools()?, pool_alloc(out: Address = 0; &mut out, size as usize, pool, stream))
    }

    pub(super) fn pool_free(&self, address: Address, stream: Handle) -> Result<(), Code> {
        call!(self.pools()?, pool_free(address, stream))
    }

    /// Gives back what is free in the pool; what the host has not seen complete is not.
    pub(super) fn trim_pool(&self, pool: Handle) -> Result<(), Code> {
        call!(self.pools()?, pool_trim(pool, 0))
    }
}

/// The graph of a capture under way.
impl Driver {
    /// The number of the capture that a stream is in, and the nodes that its next work will come
    /// after; none if it is in no sound one.
    pub(super) fn capture_ends(&self, stream: Handle) -> Result<Option<(u64, Vec<Handle>)>, Code> {
        let Some(graphs) = &self.graphs else { return Ok(None) };
        let (mut status, mut number, mut graph) = (0_i32, 0_u64, 0 as Handle);
        let (mut nodes, mut count) = (std::ptr::null(), 0_usize);
        call!(
            graphs,
            capture_info(stream, &mut status, &mut number, &mut graph, &mut nodes, &mut count)
        )?;
        if status != CAPTURE_ACTIVE {
            return Ok(None);
        }
        if count == 0 || nodes.is_null() {
            return Ok(Some((number, Vec::new())));
        }
        // SAFETY: the driver's array of so many nodes, valid until the stream is used again, which
        // the program does not do during this call: it is the one who asks for memory on it.
        let nodes = unsafe { std::slice::from_raw_parts(nodes, count) };
        Ok(Some((number, nodes.to_vec())))
    }

    /// The nodes that a node comes after.
    pub(super) fn node_dependencies(&self, node: Handle) -> Result<Vec<Handle>, Code> {
        let graphs = self.graphs.as_ref().ok_or(Code::NOT_SUPPORTED)?;
        let mut count = 0_usize;
        call!(graphs, node_dependencies(node, std::ptr::null_mut(), &mut count))?;
        let mut nodes: Vec<Handle> = vec![0; count];
        call!(graphs, node_dependencies(node, nodes.as_mut_ptr(), &mut count))?;
        nodes.truncate(count);
        Ok(nodes)
    }
}
