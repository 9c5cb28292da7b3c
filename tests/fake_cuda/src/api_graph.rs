//! Exports: captures of streams, and graphs.

use crate::abi::{Answer, Code, Out};
use crate::entry::Driver;
use crate::thread;

/// `CU_STREAM_CAPTURE_STATUS_…`.
const STATUS_NONE: u32 = 0;
const STATUS_ACTIVE: u32 = 1;
const STATUS_INVALIDATED: u32 = 2;

impl Driver {
    /// Status of a stream's capture, and its identity, 0 if there is none. Asking harms nothing.
    fn capture_status(&mut self, handle: u64) -> Answer<(u32, u64)> {
        let id = self.stream(handle)?;
        let stream = &self.timeline.streams[&id];
        if stream.is_legacy && self.timeline.blocking_capture(stream.device).is_some() {
            return Err(Code::CAPTURE_IMPLICIT);
        }
        let Some(capture) = stream.capture else { return Ok((STATUS_NONE, 0)) };
        let is_valid = self.timeline.captures[&capture].is_valid;
        Ok((if is_valid { STATUS_ACTIVE } else { STATUS_INVALIDATED }, capture))
    }
}

driver! {
    cuStreamIsCapturing(stream: u64, status: Out<u32>) CONTEXT(stream) |driver| {
        status.set(driver.capture_status(stream)?.0)
    }

    cuStreamGetCaptureInfo_v2(
        stream: u64,
        status: Out<u32>,
        id: Out<u64>,
        graph: Out<u64>,
        dependencies: Out<u64>,
        dependency_count: Out<usize>,
    ) CONTEXT(stream) |driver| {
        let (state, capture) = driver.capture_status(stream)?;
        status.set(state)?;
        if state == STATUS_ACTIVE {
            id.set_if_asked(capture);
            graph.set_if_asked(capture);
            let id = driver.stream(stream)?;
            let ends = driver.capture_ends(id, capture);
            dependencies.set_if_asked(ends.as_ptr() as u64);
            dependency_count.set_if_asked(ends.len());
        }
        Ok(())
    }

    cuGraphNodeGetDependencies(node: u64, dependencies: *mut u64, count: *mut usize)
    DRIVER(node) |driver| {
        let before = driver.node_dependencies(node)?;
        // SAFETY: the caller has one number there: how many it has room for.
        let room = unsafe { count.read() };
        if !dependencies.is_null() {
            for (at, &node) in before.iter().enumerate().take(room) {
                // SAFETY: the caller has room for so many.
                let place = unsafe { dependencies.add(at) };
                // SAFETY: as above.
                unsafe { place.write(node) };
            }
        }
        // SAFETY: the caller's own number.
        unsafe { count.write(before.len()) };
        Ok(())
    }

    cuStreamBeginCapture_v2(stream: u64, mode: u32) CONTEXT(stream) |driver| {
        let id = driver.own_stream(stream)?;
        driver.begin_capture(id, mode)
    }

    cuStreamEndCapture(stream: u64, graph: Out<u64>) CONTEXT(stream) |driver| {
        graph.needed()?;
        let id = driver.stream(stream)?;
        let ended = driver.end_capture(id);
        graph.set(ended.unwrap_or(0))?;
        ended.map(drop)
    }

    cuThreadExchangeStreamCaptureMode(mode: Out<u32>) DRIVER(0) |driver| {
        let new = mode.read()?;
        if new > 2 {
            return Err(driver.misuse(Code::INVALID_VALUE, format!("capture mode {new}")));
        }
        let old = thread::with(driver.epoch, |thread| {
            std::mem::replace(&mut thread.capture_mode, new)
        });
        mode.set(old)
    }

    cuGraphInstantiateWithFlags(
        executable: Out<u64>,
        graph: u64,
        flags: u64,
    ) CONTEXT(flags) |driver| {
        executable.needed()?;
        executable.set(driver.instantiate(graph)?)
    }

    cuGraphInstantiate_v2(
        executable: Out<u64>,
        graph: u64,
        error_node: Out<u64>,
        log: Out<u8>,
        log_size: usize,
    ) CONTEXT(graph) |driver| {
        executable.needed()?;
        error_node.set_if_asked(0);
        if log_size > 0 {
            log.set_if_asked(0);
        }
        executable.set(driver.instantiate(graph)?)
    }

    cuGraphUpload(executable: u64, stream: u64) CONTEXT(executable) |driver| {
        driver.own_stream(stream)?;
        driver.executable(executable).map(drop)
    }

    cuGraphLaunch(executable: u64, stream: u64) CONTEXT(executable) |driver| {
        let id = driver.own_stream(stream)?;
        driver.launch_graph(executable, id)
    }

    cuGraphDestroy(graph: u64) DRIVER(graph) |driver| {
        driver.destroy_graph(graph)
    }

    cuGraphExecDestroy(executable: u64) DRIVER(executable) |driver| {
        driver.destroy_executable(executable)
    }
}
