//! Segments as VMA's statistics have them: what its `GpuMemDumpVis.py` draws.
//!
//! The script goes by sizes alone, so free ranges are listed in their places too.

use std::io::{self, Write};

use super::json::write_text;
use super::out::Out;
use crate::report::snapshot::{BlockSnapshot, BlockState, SegmentSnapshot, Snapshot};
use crate::units::Bytes;

/// Blocks and bytes of some segments.
#[derive(Debug, Default)]
struct Totals {
    used: (u64, Bytes),
    unused: (u64, Bytes),
    bytes: Bytes,
}

impl Totals {
    fn add(&mut self, segment: &SegmentSnapshot) {
        for block in &segment.blocks {
            let sum = if is_free(block) { &mut self.unused } else { &mut self.used };
            *sum = (sum.0 + 1, sum.1.saturating_add(block.size));
            self.bytes = self.bytes.saturating_add(block.size);
        }
    }
}

fn is_free(block: &BlockSnapshot) -> bool {
    matches!(block.state, BlockState::Free | BlockState::Growing)
}

impl Snapshot {
    /// Writes all segments and blocks as JSON in the form of `vmaBuildStatsString`.
    ///
    /// # Errors
    /// A failure of `output`.
    pub fn write_vma(&self, output: impl Write) -> io::Result<()> {
        let mut out = Out::new(output);
        let mut totals = Totals::default();
        self.segments.iter().for_each(|segment| totals.add(segment));
        out.bytes(b"{\"General\":{\"API\":\"Vulkan\",\"GPU\":");
        write_text(&mut out, &self.device_name);
        let Totals { used, unused, bytes } = totals;
        out.format(format_args!(
            "}},\"Total\":{{\"BlockCount\":{},\"BlockBytes\":{bytes},\"AllocationCount\":{},\
             \"AllocationBytes\":{},\"UnusedRangeCount\":{}}},\"MemoryInfo\":{{}},\
             \"DefaultPools\":{{\"Type 0\":{{\"PreferredBlockSize\":0,\"Blocks\":{{",
            self.segments.len(),
            used.0,
            used.1,
            unused.0,
        ));
        for (index, segment) in self.segments.iter().enumerate() {
            out.bytes(if index > 0 { b"," } else { b"" });
            write_segment(&mut out, index, segment);
        }
        out.bytes(b"},\"DedicatedAllocations\":[]}},\"CustomPools\":{}}\n");
        out.finish()
    }
}

fn write_segment<W: Write>(out: &mut Out<W>, index: usize, segment: &SegmentSnapshot) {
    let mut totals = Totals::default();
    totals.add(segment);
    let Totals { used, unused, bytes } = totals;
    out.format(format_args!(
        "\"{index}\":{{\"MapRefCount\":0,\"TotalBytes\":{bytes},\"UnusedBytes\":{},\
         \"Allocations\":{},\"UnusedRanges\":{},\"Suballocations\":[",
        unused.1, used.0, unused.0,
    ));
    for (index, block) in segment.blocks.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let kind = if is_free(block) { "FREE" } else { "BUFFER" };
        let BlockSnapshot { offset, size, .. } = block;
        out.format(format_args!(
            "{comma}{{\"Offset\":{offset},\"Type\":\"{kind}\",\"Size\":{size}"
        ));
        if let Some(tag) = &block.tag {
            out.bytes(b",\"Name\":");
            write_text(out, tag);
        }
        out.byte(b'}');
    }
    out.bytes(b"]}");
}
