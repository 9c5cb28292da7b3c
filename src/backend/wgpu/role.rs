//! What a buffer is for: the roles, their usages, and the kinds of memory that the core sees.
//!
//! wgpu looks at whole buffers when it checks what may be done together, and mapping one range
//! locks all of it. So blocks share a buffer only where that is harmless:
//!
//! | role               | a block is          | usages                                      |
//! |--------------------|---------------------|---------------------------------------------|
//! | `Storage`          | a part of a buffer  | STORAGE, COPY_SRC, COPY_DST                 |
//! | `StorageExclusive` | a buffer of its own | the same                                    |
//! | `Upload`           | a buffer of its own | MAP_WRITE, COPY_SRC                         |
//! | `Readback`         | a buffer of its own | MAP_READ, COPY_DST                          |
//! | `Uniform`          | a part of a buffer  | UNIFORM, COPY_SRC, COPY_DST                 |
//! | `Geometry`         | a part of a buffer  | VERTEX, INDEX, STORAGE, COPY_SRC, COPY_DST  |
//! | `Indirect`         | a part of a buffer  | INDIRECT, STORAGE, COPY_SRC, COPY_DST       |
//!
//! INDIRECT has a role of its own: it doubles the cost of making a buffer, and an argument buffer
//! must not be bound for writing in the dispatch that reads it.

use wgpu::BufferUsages;

use crate::backend::MemoryKind;

/// What a buffer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Role {
    /// Tensors: blocks share buffers. Shaders declare them `read_write`, since a dispatch must not
    /// bind one buffer as `read` and as `read_write`.
    #[default]
    Storage,
    /// Tensors with a buffer each, cached by size: for `read` bindings, and for dispatches that are
    /// to overlap.
    StorageExclusive,
    /// What the CPU writes and the GPU copies from.
    Upload,
    /// What the GPU copies to and the CPU reads.
    Readback,
    /// Small parameters of shaders.
    Uniform,
    /// Vertices and indices.
    Geometry,
    /// Arguments of indirect dispatches and draws.
    Indirect,
}

impl Role {
    /// All of them, in the order of their kinds of memory.
    pub const ALL: [Role; 7] = [
        Role::Storage,
        Role::StorageExclusive,
        Role::Upload,
        Role::Readback,
        Role::Uniform,
        Role::Geometry,
        Role::Indirect,
    ];

    /// What buffers of this role may be used for.
    pub fn usages(self) -> BufferUsages {
        let copies = BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        match self {
            Role::Storage | Role::StorageExclusive => BufferUsages::STORAGE | copies,
            Role::Upload => BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC,
            Role::Readback => BufferUsages::MAP_READ | BufferUsages::COPY_DST,
            Role::Uniform => BufferUsages::UNIFORM | copies,
            Role::Geometry => {
                let geometry = BufferUsages::VERTEX | BufferUsages::INDEX;
                geometry | BufferUsages::STORAGE | copies
            }
            Role::Indirect => BufferUsages::INDIRECT | BufferUsages::STORAGE | copies,
        }
    }

    /// The first role whose buffers may be used for all of `usages`; `None` if no role has them
    /// all. So a few pools serve every mix of usages.
    pub fn for_usages(usages: BufferUsages) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.usages().contains(usages))
    }

    /// Whether every block is a buffer of its own.
    pub fn is_exclusive(self) -> bool {
        matches!(self, Role::StorageExclusive | Role::Upload | Role::Readback)
    }

    /// The sort of memory under which the core knows the role.
    pub fn kind(self) -> MemoryKind {
        MemoryKind(self as u8)
    }

    /// The role of a sort of memory; numbers that no role has are the default one.
    pub(super) fn of_kind(kind: MemoryKind) -> Role {
        Role::ALL.get(usize::from(kind.0)).copied().unwrap_or_default()
    }

    pub(super) fn label(self) -> &'static str {
        match self {
            Role::Storage => "aquifer storage",
            Role::StorageExclusive => "aquifer storage, exclusive",
            Role::Upload => "aquifer upload",
            Role::Readback => "aquifer readback",
            Role::Uniform => "aquifer uniform",
            Role::Geometry => "aquifer geometry",
            Role::Indirect => "aquifer indirect",
        }
    }
}
