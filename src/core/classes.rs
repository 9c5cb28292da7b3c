//! Request size → block size → segment size: the arithmetic that decides how large things are.
//!
//! ```text
//! request 1,500,000 B ─round─▶ block 1,500,160 B (2,930 granules) ─▶ large group, segment 20 MiB
//! request     4,000 B ─round─▶ block     4,096 B (    8 granules) ─▶ small group, segment  2 MiB
//! ```
//!
//! Pure functions of the [`Config`]; constant time. The rules and constants are PyTorch's
//! (`c10/cuda/CUDACachingAllocator.cpp`: `round_size`, `get_allocation_size`, `should_split`), so
//! that the torch preset makes the same segments. Our default preset sizes the segments of the
//! large group by the program instead ([`Demand`]):
//!
//! ```text
//!  active 10 GiB, headroom for 130 MiB more, request 9 MiB    14 blocks, 126 MiB
//!  the same, headroom used up                                  2 blocks,  18 MiB
//!  the same, request 10.08 MiB (12 MiB of the device alone)   12 blocks, 122 MiB
//!  active 24 MiB, request 1.3 MiB                              4 blocks,   6 MiB
//! ```

use crate::config::Config;
use crate::units::{Bytes, GRANULE, MIB, align_up, to_granules};

/// Which of the two size groups a block lives in; each has pools of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Small = 0,
    Large = 1,
}

pub(crate) const GROUPS: [Group; 2] = [Group::Small, Group::Large];

impl Group {
    #[inline]
    pub(crate) fn of(rounded: Bytes, config: &Config) -> Self {
        if rounded <= config.small_max { Group::Small } else { Group::Large }
    }
}

/// The block size for a request of `size` bytes (not 0, at most `REQUEST_MAX`).
#[inline]
pub(crate) fn round(size: Bytes, config: &Config) -> Bytes {
    // The first bucket's divisions cover every size below 2 MiB, so one look tells that the option
    // is off for small requests; large ones look up their bucket.
    let divisions = Bytes::from(divisions_for(size, config));
    if divisions > 1 && size > GRANULE * divisions {
        return round_to_division(size, divisions);
    }
    align_up(size, GRANULE)
}

/// Bucket of `roundup_power2_divisions`: 1 MiB·2ᵏ ≤ size < 2 MiB·2ᵏ, the ends open.
#[inline]
fn divisions_for(size: Bytes, config: &Config) -> u8 {
    let megabytes = (size / MIB).max(1);
    let bucket = megabytes.ilog2().min(config.roundup_power2_divisions.len() as u32 - 1);
    config.roundup_power2_divisions[bucket as usize]
}

/// The next multiple of (the power of two below `size`) / `divisions`.
fn round_to_division(size: Bytes, divisions: Bytes) -> Bytes {
    if size.is_power_of_two() {
        return size;
    }
    let floor = 1 << size.ilog2();
    align_up(align_up(size, floor / divisions), GRANULE)
}

/// The size of the segment that PyTorch's rule makes for a block of `rounded` bytes.
pub(crate) fn segment_size(rounded: Bytes, config: &Config) -> Bytes {
    if rounded <= config.small_max {
        config.small_segment
    } else if rounded < config.large_min {
        config.large_segment
    } else {
        align_up(rounded, config.large_round)
    }
}

/// What the program is like at the moment of a growth, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand {
    /// In use, with the request that needs the segment.
    pub(crate) active: Bytes,
    /// How much more headroom lets the program reserve.
    pub(crate) room: Bytes,
    /// The device's: segments are multiples of it.
    pub(crate) granularity: Bytes,
    pub(crate) segment_max: Bytes,
}

/// Growing programs are small first: a segment is no larger than this part of what they use.
const SMALL_PARTS: Bytes = 4;
/// A segment is for one block or for at least so many: in between, a block of a slightly larger
/// size, as in caches that grow, would leave half of it unused.
const BATCH_MIN: Bytes = 8;
/// One part in so many of a segment may be lost to the device's granularity.
const LOSS_PARTS: Bytes = 100;
/// So many numbers of blocks are tried: more make no difference to the loss.
const TRIES: Bytes = 64;

/// The size of a segment of the large group for blocks of `rounded` bytes, in a program of which
/// the next requests are likely to be as this one. O(1).
pub(crate) fn shared_size(rounded: Bytes, demand: &Demand, config: &Config) -> Bytes {
    let Demand { active, room, granularity, segment_max } = *demand;
    let small = active / SMALL_PARTS;
    let share = (active as f64 * config.segment_share) as Bytes;
    let most = share.max(config.segment_batch.min(small)).min(segment_max);
    let least = config.large_segment.min(small).min(segment_max);
    let wished = room.min(most).max(least);
    let count = if most.max(wished) / rounded < BATCH_MIN && rounded >= config.large_min {
        1
    } else {
        least_loss((wished / rounded).max(1), rounded, most, granularity)
    };
    align_up(count * rounded, granularity)
}

/// The first number of blocks from `count` on of which the device's granularity wastes little, or
/// the one that it wastes least of, as long as they are within `most` bytes.
fn least_loss(count: Bytes, rounded: Bytes, most: Bytes, granularity: Bytes) -> Bytes {
    let loss = |count: Bytes| align_up(count * rounded, granularity) - count * rounded;
    let last = (most / rounded).clamp(count, count + TRIES - 1);
    let is_little = |&count: &Bytes| loss(count) <= count * rounded / LOSS_PARTS;
    (count..=last).find(is_little).unwrap_or_else(|| {
        let per_block = |count: Bytes| loss(count) as f64 / count as f64;
        let counts = (count..=last).min_by(|&a, &b| per_block(a).total_cmp(&per_block(b)));
        counts.unwrap_or(count)
    })
}

/// The size of a segment that a block of `rounded` bytes has for itself: the next eighth of a power
/// of two, so that segments of few sizes serve requests of many; at most 12.5 % too large.
pub(crate) fn exclusive_size(rounded: Bytes) -> Bytes {
    align_up(rounded, (1 << rounded.ilog2()) / 8)
}

/// The smallest remainder, in granules, that is cut off a block of `group`.
#[inline]
pub(crate) fn split_remainder(group: Group, virtual_memory: bool, config: &Config) -> u32 {
    match group {
        Group::Small => to_granules(config.split_remainder_small),
        Group::Large if virtual_memory => 1,
        Group::Large => to_granules(config.split_remainder_large),
    }
}

#[cfg(test)]
mod tests;
