//! The words of the schema: keys, and values that are one of a few.

use crate::report::history::Action;
use crate::report::snapshot::BlockState;

macro_rules! words {
    ($($name:ident = $text:literal,)*) => {
        /// A word of the schema.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Word {
            $($name,)*
        }

        impl Word {
            pub(super) const TEXTS: &[&str] = &[$($text,)*];
        }
    };
}

// The nine actions come first, in the order of `Action::ALL`.
words! {
    Alloc = "alloc",
    FreeRequested = "free_requested",
    FreeCompleted = "free_completed",
    SegmentAlloc = "segment_alloc",
    SegmentFree = "segment_free",
    SegmentMap = "segment_map",
    SegmentUnmap = "segment_unmap",
    SnapshotTaken = "snapshot",
    Oom = "oom",
    ActiveAllocated = "active_allocated",
    ActivePendingFree = "active_pending_free",
    Inactive = "inactive",
    Large = "large",
    Small = "small",
    Segments = "segments",
    DeviceTraces = "device_traces",
    AllocatorSettings = "allocator_settings",
    ExternalAnnotations = "external_annotations",
    Device = "device",
    Address = "address",
    TotalSize = "total_size",
    AllocatedSize = "allocated_size",
    ActiveSize = "active_size",
    RequestedSize = "requested_size",
    Stream = "stream",
    SegmentType = "segment_type",
    SegmentPoolId = "segment_pool_id",
    IsExpandable = "is_expandable",
    Frames = "frames",
    Blocks = "blocks",
    Size = "size",
    State = "state",
    Action = "action",
    Addr = "addr",
    DeviceFree = "device_free",
    TimeUs = "time_us",
    PoolId = "pool_id",
    UserMetadata = "user_metadata",
    Filename = "filename",
    Line = "line",
    Name = "name",
    Stage = "stage",
    History = "history",
    RealSize = "real_size",
    TorchConf = "PYTORCH_CUDA_ALLOC_CONF",
    MaxSplitSize = "max_split_size",
    GarbageCollection = "garbage_collection_threshold",
    ExpandableSegments = "expandable_segments",
    RegisterThreads = "pinned_num_register_threads",
    ReleaseLock = "release_lock_on_cudamalloc",
    HostRegister = "pinned_use_cuda_host_register",
    Roundup = "roundup_power2_divisions",
    Aquifer = "aquifer",
    Total = "total",
    Limit = "limit",
    HasAddresses = "has_addresses",
}

impl Word {
    pub(super) fn text(self) -> &'static str {
        Self::TEXTS[self as usize]
    }
}

impl From<Action> for Word {
    fn from(action: Action) -> Self {
        match action {
            Action::Alloc => Word::Alloc,
            Action::FreeRequested => Word::FreeRequested,
            Action::FreeCompleted => Word::FreeCompleted,
            Action::SegmentAlloc => Word::SegmentAlloc,
            Action::SegmentFree => Word::SegmentFree,
            Action::SegmentMap => Word::SegmentMap,
            Action::SegmentUnmap => Word::SegmentUnmap,
            Action::Snapshot => Word::SnapshotTaken,
            Action::Oom => Word::Oom,
        }
    }
}

impl From<BlockState> for Word {
    fn from(state: BlockState) -> Self {
        match state {
            BlockState::Allocated => Word::ActiveAllocated,
            BlockState::Pending => Word::ActivePendingFree,
            BlockState::Free | BlockState::Growing => Word::Inactive,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Word;
    use crate::report::history::Action;

    #[test]
    fn actions_have_their_names() {
        for (index, action) in Action::ALL.into_iter().enumerate() {
            assert_eq!((Word::from(action) as usize, Word::TEXTS[index]), (index, action.name()));
        }
    }
}
