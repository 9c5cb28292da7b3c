//! CubeCL's main memory, as its wgpu runtime makes it.
//!
//! | what              | as in cubecl-wgpu 0.12.0-pre.1                                        |
//! |-------------------|-----------------------------------------------------------------------|
//! | device            | all limits of the adapter, `MemoryHints::MemoryUsage` (`wgsl.rs`)     |
//! | largest page      | the smaller one of the limits of bindings and buffers (`runtime.rs`)  |
//! | alignment         | the larger one of those of uniform and storage bindings               |
//! | capacity          | not known, as without its SPIR-V feature                              |
//! | usages            | STORAGE, COPY_SRC, COPY_DST, INDIRECT (`mem_manager.rs`)              |
//! | configuration     | its default, `Adaptive`                                               |
//! | request           | relocate if wanted, then `reserve` with `PageUpdate::Allow`           |
//!
//! A relocation really copies, and waits for the device, as its server does.

use std::sync::Arc;

use cubecl_ir::MemoryDeviceProperties;
use cubecl_server::logging::ServerLogger;
use cubecl_server::memory_management::relocation::{CopyQueue, StorageCopy};
use cubecl_server::memory_management::{
    ErrorGraph, ManagedMemoryHandle, MemoryConfiguration, MemoryManagement,
    MemoryManagementOptions, PageUpdate,
};
use cubecl_server::server::{IoError, ServerError};
use cubecl_server::storage::ComputeStorage;
use cubecl_wgpu::{WgpuStorage, wgpu};
use wgpu::{BufferUsages, CommandEncoder, Device, Queue};

use crate::Memory;

pub(crate) struct Rival {
    memory: MemoryManagement<WgpuStorage>,
    failures: ErrorGraph,
    copies: Copies,
}

impl Rival {
    pub(crate) fn new(adapter: &wgpu::Adapter) -> Self {
        let descriptor = wgpu::DeviceDescriptor {
            required_limits: adapter.limits(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let opened = pollster::block_on(adapter.request_device(&descriptor));
        let (device, queue) = opened.expect("the adapter has a device");
        let limits = device.limits();
        let alignment = limits
            .min_uniform_buffer_offset_alignment
            .max(limits.min_storage_buffer_offset_alignment);
        let page = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let usages = BufferUsages::STORAGE
            | BufferUsages::COPY_SRC
            | BufferUsages::COPY_DST
            | BufferUsages::INDIRECT;
        let memory = MemoryManagement::from_configuration(
            WgpuStorage::new(alignment as usize, device.clone(), usages, false),
            &MemoryDeviceProperties::new(page, u64::from(alignment)),
            MemoryConfiguration::default(),
            Arc::new(ServerLogger::default()),
            MemoryManagementOptions::new("Main GPU Memory"),
        );
        let copies = Copies { device, queue, encoder: None };
        Self { memory, failures: ErrorGraph::default(), copies }
    }
}

impl Memory for Rival {
    type Block = ManagedMemoryHandle;

    fn allocate(&mut self, size: u64) -> ManagedMemoryHandle {
        let memory = &mut self.memory;
        if let Some(reason) = memory.relocation_need().reason(|| memory.bytes_allocated()) {
            memory.relocate(&mut self.copies, reason, &mut self.failures);
        }
        memory.reserve(size, PageUpdate::Allow, &mut self.failures).expect("there is room")
    }

    fn reserved_bytes(&self) -> u64 {
        self.memory.bytes_allocated()
    }
}

/// The copies of a relocation, in one submission.
struct Copies {
    device: Device,
    queue: Queue,
    encoder: Option<CommandEncoder>,
}

impl Copies {
    fn wait(&self) {
        self.device.poll(wgpu::PollType::wait_indefinitely()).expect("the device answers");
    }
}

impl CopyQueue<WgpuStorage> for Copies {
    fn wait_device(&mut self) -> Result<(), ServerError> {
        self.wait();
        Ok(())
    }

    fn copy(&mut self, storage: &mut WgpuStorage, copy: &StorageCopy) -> Result<(), IoError> {
        let (source, target) = (storage.get(&copy.source)?, storage.get(&copy.target)?);
        let device = &self.device;
        let encoder =
            self.encoder.get_or_insert_with(|| device.create_command_encoder(&Default::default()));
        encoder.copy_buffer_to_buffer(
            &source.buffer,
            source.offset,
            &target.buffer,
            target.offset,
            source.size.next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT),
        );
        Ok(())
    }

    fn wait_copies(&mut self) -> Result<(), ServerError> {
        if let Some(encoder) = self.encoder.take() {
            self.queue.submit([encoder.finish()]);
            self.wait();
        }
        Ok(())
    }
}
