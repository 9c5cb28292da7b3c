//! Every knob of the allocator, with its unit, its two defaults and the reason for them.
//!
//! A [`Config`] is plain data. Two presets exist:
//!
//! - [`Config::default`] is ours: hardly any slack inside blocks, reuse across streams, segments
//!   and cached memory that follow the program and its high-water mark.
//! - [`Config::torch`] is PyTorch's CUDA caching allocator: the same constants and tie-breaks, so
//!   that a trace replays with PyTorch's own segment counts and reserved bytes.
//!
//! Nothing here reads the environment by itself: [`torch_conf_from_env`] does when it is asked, and
//! [`Config::apply_torch_conf`] takes what it found, or any other `PYTORCH_CUDA_ALLOC_CONF` string.
//!
//! ```text
//!  request, rounded     0 ........ small_max ............ large_min .................. 1 EiB
//!  size group           |  small   |               large                                  |
//!  new segment          |  small_  |  large_segment       |  the request, rounded up to   |
//!                       |  segment |                      |  large_round                  |
//! ```
//!
//! With `segment_share`, new segments of the large group follow the program instead: see there.
//!
//! Invariants, checked by [`Config::validate`]; the core's arithmetic rests on them:
//!
//! - K1: each of `small_max`, `small_segment`, `large_segment`, `large_min`, `large_round`,
//!   `split_remainder_small` and `split_remainder_large` is a multiple of [`GRANULE`], not 0, at
//!   most [`SEGMENT_MAX`].
//! - K2: `small_max <= small_segment` and `large_min <= large_segment`: a new segment holds the
//!   request it was made for.
//! - K3: `max_split_size` is `None` or a multiple of [`GRANULE`], at least `large_segment`: a
//!   segment that was made to be shared can be split again. `max_non_split_rounding` is a multiple
//!   of [`GRANULE`]. Both are at most [`REQUEST_MAX`], so that a request plus either fits in 64
//!   bits.
//! - K4: each of `roundup_power2_divisions` is 0 or a power of two up to 128.
//! - K5: `memory_fraction` and `segment_share` are in [0, 1], `garbage_collection_threshold` in
//!   (0, 1), `headroom`, `headroom_learned_max`, `page_headroom` and `chunk_share` finite and not
//!   negative.
//! - K6: `event_batch_count`, `tie_walk`, `spare_idle_ratio` and `whole_fit_parts` are at least 1.
//! - K7: `pinned.num_register_threads` is a power of two up to 128;
//!   `pinned.reserve_segment_size` is a multiple of [`GRANULE`] (0 allowed), at most
//!   [`SEGMENT_MAX`].
#![forbid(unsafe_code)]

mod torch_conf;

use std::fmt;
use std::time::Duration;

pub use self::torch_conf::torch_conf_from_env;
use crate::units::{Bytes, GRANULE, MIB, REQUEST_MAX, SEGMENT_MAX};

/// The most threads that touch pinned pages, as in PyTorch.
const REGISTER_THREADS_MAX: u32 = 128;

/// How many size buckets [`Config::roundup_power2_divisions`] has: [1 MiB, 2 MiB) to 32 GiB and up.
pub const ROUNDUP_BUCKETS: usize = 16;

/// Every knob of the allocator. Start from a preset and assign the fields that should differ.
///
/// In what each field says, "default" is [`Config::default`] and "torch" is [`Config::torch`].
///
/// # Examples
/// ```
/// use aquifer::config::Config;
///
/// let mut config = Config::default();
/// config.memory_fraction = 0.5;
/// config.validate().expect("half of the device is a legal limit");
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Bytes; 1 MiB in both presets. Rounded requests up to this go to the small group, so that
    /// short-lived crumbs never pin a large segment.
    pub small_max: Bytes,
    /// Bytes; 2 MiB in both presets. Segments of the small group, and the page of which
    /// expandable segments are made: the mapping granularity of CUDA.
    pub small_segment: Bytes,
    /// Bytes; 20 MiB in both presets. Segments that requests between `small_max` and `large_min`
    /// share, and, where `chunk_share` is off, the page of an expandable large segment. PyTorch's
    /// key `large_segment_size_mb`.
    pub large_segment: Bytes,
    /// Bytes; 10 MiB in both presets. Requests from here on get a segment of their own size.
    pub large_min: Bytes,
    /// Bytes; 2 MiB in both presets. Segments of their own size are rounded up to a multiple of
    /// this: what the driver would round to anyway.
    pub large_round: Bytes,
    /// Bytes; 512 in both presets. A block of the small group is split when the remainder has at
    /// least this size.
    pub split_remainder_small: Bytes,
    /// Bytes; default 512, torch 1 MiB + 512 (PyTorch wants *more* than 1 MiB). The same for the
    /// large group. PyTorch's choice leaves up to 1 MiB of silent slack in each block, ours none.
    /// With `expandable_segments` the large group is split as the small one is.
    pub split_remainder_large: Bytes,
    /// A fraction of the active bytes in [0, 1]; default 0.015, torch 0 (off: the fixed sizes). A
    /// new large segment holds several blocks of the size that missed, where that wastes little:
    /// as many as headroom has room for, up to this share (or `segment_batch`, if that is more).
    /// Fewer backend calls while a program grows, and no remainder at the end of each segment. Not
    /// beyond three quarters of the device's memory, or of the limit, nor with `max_split_size`:
    /// then the fixed sizes.
    pub segment_share: f64,
    /// Bytes; default 64 MiB, torch 0 (`segment_share` alone). What a new large segment may hold
    /// while a program is small; at most a quarter of what is active.
    pub segment_batch: Bytes,
    /// Parts, at least 1; default 20, torch `u32::MAX` (never). A request of at least `large_min`
    /// that leaves less than one part in so many of a wholly idle segment gets all of it: what else
    /// came to lie in the remainder would keep the segment from being reused or given back whole.
    pub whole_fit_parts: u32,
    /// Bytes; `None` (no limit) in both presets. Blocks of at least this size are not split, and
    /// smaller requests do not take them. PyTorch's key `max_split_size_mb`.
    pub max_split_size: Option<Bytes>,
    /// Bytes; 20 MiB in both presets. A block that `max_split_size` keeps whole is taken only if it
    /// is less than this much larger than the request. PyTorch's key `max_non_split_rounding_mb`.
    pub max_non_split_rounding: Bytes,
    /// Divisions per power of two, one number for sizes from 1 MiB, 2 MiB, 4 MiB … 32 GiB; all 0
    /// (off) in both presets. With `n > 1` divisions a size between 2ᵏ and 2ᵏ⁺¹ bytes is rounded up
    /// to a multiple of 2ᵏ/n. Sizes below 1 MiB use the first number, sizes of 64 GiB and more the
    /// last.
    pub roundup_power2_divisions: [u8; ROUNDUP_BUCKETS],
    /// A fraction of the memory limit in (0, 1); `None` (off) in both presets. Above it, idle
    /// segments are released before new ones are made. Does nothing without a limit.
    pub garbage_collection_threshold: Option<f64>,
    /// Default `true`, torch `false`. Without a limit, the threshold is of the device's memory;
    /// PyTorch does nothing then.
    pub collect_without_limit: bool,
    /// A fraction of the device's memory in [0, 1]; 1.0 (no limit) in both presets. `reserved`
    /// stays below it. PyTorch's key `per_process_memory_fraction`.
    pub memory_fraction: f64,
    /// Bytes; `None` in both presets. `reserved` stays below it; the smaller of this and
    /// `memory_fraction` counts.
    pub memory_limit: Option<Bytes>,
    /// `false` in both presets. Refuse a request that cannot fit below the limit at once, with no
    /// driver call and nothing released for it. PyTorch's key `throw_on_cudamalloc_oom`.
    pub reject_before_driver: bool,
    /// `false` in both presets. Reserve addresses once and map pages as the pool grows, where the
    /// backend has virtual memory.
    pub expandable_segments: bool,
    /// A fraction, finite and not negative; default `Some(0.03)`, torch `None` (off). When a miss
    /// would push `reserved` above (1 + headroom) times the high-water mark of active bytes, idle
    /// cached segments are released first: cached memory follows the program, with 3 % to spare.
    pub headroom: Option<f64>,
    /// A fraction of the high-water mark of active bytes; default 0.25, torch 0. How far headroom
    /// may learn to keep more: segments that it gave back and that were needed again were given
    /// back too early. 0 learns nothing.
    pub headroom_learned_max: f64,
    /// How long a segment may lie idle before `maintain` returns it; `None` (for ever) in both
    /// presets, since the allocator has no clock of its own.
    pub trim_age: Option<Duration>,
    /// Default `true`, torch `false`. Free memory of other streams may be reused, through an event
    /// that is complete or a wait on the device. Without it memory can run out beside a free block.
    pub cross_stream: bool,
    /// Default `false`, torch `true`. Ask for completed events at every allocation, as PyTorch
    /// does, and not only on a miss: a driver call per stream with frees that wait.
    pub harvest_every_allocate: bool,
    /// Frees, at least 1; default 16, torch 1 (an event for each free). How many frees that wait on
    /// one stream close a batch, which shares one event.
    pub event_batch_count: u32,
    /// Default `true`, torch `false`. Free memory of private pools that are still in use may be
    /// released too; PyTorch keeps it until the pool is dropped.
    pub trim_private_pools: bool,
    /// Default `true`, torch `false`. When a segment of the preferred size does not fit below the
    /// limit, grow by what the request needs, instead of failing.
    pub exact_growth: bool,
    /// Blocks, at least 1; default 1, torch `u32::MAX` (all). How many free blocks of equal size
    /// are compared by (age of the segment, offset) before the best seen is taken: bounds a search.
    pub tie_walk: u32,
    /// Times, at least 1; default 16, torch `u32::MAX` (never). A large request does not break up a
    /// wholly idle segment of at least so many times its size while there is headroom to grow by
    /// what it needs: idle segments stay whole, for large requests and for trims.
    pub spare_idle_ratio: u32,
    /// Blocks; default 4, torch 0. Before it grows for that reason, so many next larger free blocks
    /// are looked at for one in a segment that is in use anyway.
    pub spare_idle_count: u32,
    /// Default `true`, torch `false`. A block of at most an eighth of `small_max` that is freed
    /// waits for the next request of exactly its size, unmerged, until another one takes its place
    /// or anything else is looked at: hits take 22 ns instead of 44. (Larger blocks merge at once:
    /// all kept apart, two of 23 traces were 14 and 27 % larger.)
    pub front_cache: bool,
    /// Default `true`, torch `false`. Physical pages that leave an expandable segment are kept and
    /// mapped elsewhere, instead of going back to the driver.
    pub page_recycling: bool,
    /// A fraction, finite and not negative; default `Some(0.01)`, torch `None` (off). As
    /// `headroom`, for what grows by pages, where it can be much less: a growth that would push
    /// reserved above it takes pages out of holes elsewhere (see `page_recycling`), and not only
    /// wholly free segments. With `None` `headroom` is for pages too.
    pub page_headroom: Option<f64>,
    /// A fraction of the high-water mark of active bytes; default 1/2048, torch 0 (off). Physical
    /// memory comes in chunks of at most this size, made of pages of `small_segment` in both size
    /// groups: so that two thousand fill a device, and what a partly used chunk strands is as
    /// little for a large program as for a small one. With 0 a chunk is one page, as in PyTorch:
    /// `small_segment` or `large_segment`.
    pub chunk_share: f64,
    /// `false` in both presets. While a graph is captured, reuse blocks that were allocated in it
    /// and used by other streams, once these have been joined: the graph orders their last use
    /// before what comes next. Looks at the graph when a request finds no other block. PyTorch's
    /// key of the same name.
    pub graph_capture_record_stream_reuse: bool,
    /// Pinned host memory.
    pub pinned: PinnedConfig,
}

/// Knobs of pinned host memory; a part of [`Config`]. Heeded by `CudaAllocator::alloc_pinned` are
/// `max_round_threshold` and `max_cached_size`; the others are read and written for PyTorch's sake:
/// memory is asked of the driver, events are looked at when memory is asked for, and segments are
/// shared by small requests anyway.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PinnedConfig {
    /// `false` in both presets. Take ordinary memory, touch it and register it with the driver
    /// (several threads can touch), instead of asking the driver for pinned memory.
    /// PyTorch's key `pinned_use_cuda_host_register`.
    pub use_host_register: bool,
    /// Threads, a power of two up to 128; 1 in both presets. They touch pages under
    /// `use_host_register`; PyTorch's manual recommends 8.
    pub num_register_threads: u32,
    /// `false` in both presets. A thread of its own watches events of freed host blocks.
    pub use_background_threads: bool,
    /// Bytes; 0 (none) in both presets. One pinned segment of this size is made at the start, and
    /// small requests are carved from it.
    pub reserve_segment_size: Bytes,
    /// Bytes; default `Some(0)` (nothing), torch `None` (everything). The largest request that is
    /// rounded up to a power of two; that can waste as much as the request.
    pub max_round_threshold: Option<Bytes>,
    /// Bytes; `None` (no limit) in both presets. Requests above this are neither rounded nor
    /// cached: a free gives them back at once.
    pub max_cached_size: Option<Bytes>,
}

impl Default for Config {
    /// The preset of this crate.
    fn default() -> Self {
        Self {
            split_remainder_large: GRANULE,
            segment_share: 0.015,
            segment_batch: 64 * MIB,
            whole_fit_parts: 20,
            headroom: Some(0.03),
            headroom_learned_max: 0.25,
            cross_stream: true,
            harvest_every_allocate: false,
            event_batch_count: 16,
            trim_private_pools: true,
            exact_growth: true,
            tie_walk: 1,
            spare_idle_ratio: 16,
            spare_idle_count: 4,
            collect_without_limit: true,
            page_recycling: true,
            page_headroom: Some(0.01),
            chunk_share: 1.0 / 2048.0,
            front_cache: true,
            pinned: PinnedConfig { max_round_threshold: Some(0), ..PinnedConfig::torch() },
            ..Self::torch()
        }
    }
}

impl Config {
    /// PyTorch's CUDA caching allocator: its constants, its tie-breaks, its limits of reuse.
    pub const fn torch() -> Self {
        Self {
            small_max: MIB,
            small_segment: 2 * MIB,
            large_segment: 20 * MIB,
            large_min: 10 * MIB,
            large_round: 2 * MIB,
            split_remainder_small: GRANULE,
            split_remainder_large: MIB + GRANULE,
            segment_share: 0.0,
            segment_batch: 0,
            whole_fit_parts: u32::MAX,
            max_split_size: None,
            max_non_split_rounding: 20 * MIB,
            roundup_power2_divisions: [0; ROUNDUP_BUCKETS],
            garbage_collection_threshold: None,
            memory_fraction: 1.0,
            memory_limit: None,
            reject_before_driver: false,
            expandable_segments: false,
            headroom: None,
            headroom_learned_max: 0.0,
            trim_age: None,
            cross_stream: false,
            harvest_every_allocate: true,
            event_batch_count: 1,
            trim_private_pools: false,
            exact_growth: false,
            tie_walk: u32::MAX,
            spare_idle_ratio: u32::MAX,
            spare_idle_count: 0,
            collect_without_limit: false,
            page_recycling: false,
            page_headroom: None,
            chunk_share: 0.0,
            front_cache: false,
            graph_capture_record_stream_reuse: false,
            pinned: PinnedConfig::torch(),
        }
    }

    /// Checks that the fields make sense, alone and together (K1 to K7 of the module).
    ///
    /// # Errors
    /// [`ConfigError::BadValue`] for the first field that does not, with what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_sizes()?;
        self.validate_splitting()?;
        self.validate_fractions()?;
        self.validate_counts()
    }

    /// K1 and K2.
    fn validate_sizes(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("small_max", self.small_max),
            ("small_segment", self.small_segment),
            ("large_segment", self.large_segment),
            ("large_min", self.large_min),
            ("large_round", self.large_round),
            ("split_remainder_small", self.split_remainder_small),
            ("split_remainder_large", self.split_remainder_large),
        ];
        for (field, size) in sizes {
            let ok = size > 0 && is_granular(size) && size <= SEGMENT_MAX;
            check(ok, field, size, "a multiple of 512 from 512 to 2199023255040")?;
        }
        let ok = self.small_max <= self.small_segment;
        check(ok, "small_max", self.small_max, "at most small_segment")?;
        let ok = self.large_min <= self.large_segment;
        check(ok, "large_min", self.large_min, "at most large_segment")
    }

    /// K3 and K4.
    fn validate_splitting(&self) -> Result<(), ConfigError> {
        if let Some(size) = self.max_split_size {
            let ok = is_granular(size) && size >= self.large_segment && size <= REQUEST_MAX;
            check(ok, "max_split_size", size, "a multiple of 512 from large_segment to 2^60")?;
        }
        let size = self.max_non_split_rounding;
        let ok = is_granular(size) && size <= REQUEST_MAX;
        check(ok, "max_non_split_rounding", size, "a multiple of 512 up to 2^60")?;
        for divisions in self.roundup_power2_divisions {
            let ok = divisions == 0 || divisions.is_power_of_two();
            check(ok, "roundup_power2_divisions", divisions, "0 or a power of two up to 128")?;
        }
        Ok(())
    }

    /// K5.
    fn validate_fractions(&self) -> Result<(), ConfigError> {
        let ok = is_memory_fraction(self.memory_fraction);
        check(ok, "memory_fraction", self.memory_fraction, "a number from 0 to 1")?;
        if let Some(threshold) = self.garbage_collection_threshold {
            let ok = is_threshold(threshold);
            check(ok, "garbage_collection_threshold", threshold, THRESHOLD_ALLOWED)?;
        }
        if let Some(headroom) = self.headroom {
            let ok = headroom.is_finite() && headroom >= 0.0;
            check(ok, "headroom", headroom, "a finite number, at least 0")?;
        }
        let learned = self.headroom_learned_max;
        let ok = learned.is_finite() && learned >= 0.0;
        check(ok, "headroom_learned_max", learned, "a finite number, at least 0")?;
        let headroom = self.page_headroom.unwrap_or(0.0);
        let ok = headroom.is_finite() && headroom >= 0.0;
        check(ok, "page_headroom", headroom, "a finite number, at least 0")?;
        let share = self.chunk_share;
        check(
            share.is_finite() && share >= 0.0,
            "chunk_share",
            share,
            "a finite number, at least 0",
        )?;
        let share = self.segment_share;
        check((0.0..=1.0).contains(&share), "segment_share", share, "a number from 0 to 1")
    }

    /// K6 and K7.
    fn validate_counts(&self) -> Result<(), ConfigError> {
        check(self.event_batch_count >= 1, "event_batch_count", 0, "at least 1")?;
        check(self.tie_walk >= 1, "tie_walk", 0, "at least 1")?;
        check(self.spare_idle_ratio >= 1, "spare_idle_ratio", 0, "at least 1")?;
        check(self.whole_fit_parts >= 1, "whole_fit_parts", 0, "at least 1")?;
        let threads = self.pinned.num_register_threads;
        check(is_thread_count(threads), "pinned.num_register_threads", threads, THREADS_ALLOWED)?;
        let size = self.pinned.reserve_segment_size;
        let ok = is_granular(size) && size <= SEGMENT_MAX;
        check(ok, "pinned.reserve_segment_size", size, "a multiple of 512 up to 2199023255040")
    }
}

impl PinnedConfig {
    const fn torch() -> Self {
        Self {
            use_host_register: false,
            num_register_threads: 1,
            use_background_threads: false,
            reserve_segment_size: 0,
            max_round_threshold: None,
            max_cached_size: None,
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The string has a key that does not exist.
    UnknownKey {
        /// The key as it was written, without white space.
        key: String,
    },
    /// A key of the string, or a field of [`Config`], has a value that is not allowed.
    BadValue {
        /// The key or field.
        key: &'static str,
        /// The value as it was written, without white space.
        value: String,
        /// What is allowed instead, in words.
        allowed: &'static str,
    },
    /// A part of the string is not of the form `key:value`.
    NotASetting {
        /// The part, without white space.
        text: String,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::UnknownKey { key } => {
                write!(f, "{key} is no key of the configuration; the keys are ")?;
                for (index, name) in torch_conf::key_names().enumerate() {
                    write!(f, "{}{name}", if index == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            ConfigError::BadValue { key, value, allowed } => {
                let value = if value.is_empty() { "an empty value" } else { value };
                write!(f, "{key}: {value} is not allowed: {allowed}")
            }
            ConfigError::NotASetting { text } => {
                write!(f, "\"{text}\" is no setting: write key:value or key:[k:v,k:v], with commas")
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// What [`is_threshold`] allows.
const THRESHOLD_ALLOWED: &str = "a number above 0 and below 1";
/// What [`is_thread_count`] allows.
const THREADS_ALLOWED: &str = "a power of two from 1 to 128";

fn check(
    ok: bool,
    key: &'static str,
    value: impl fmt::Display,
    allowed: &'static str,
) -> Result<(), ConfigError> {
    if ok { Ok(()) } else { Err(ConfigError::BadValue { key, value: value.to_string(), allowed }) }
}

fn is_granular(size: Bytes) -> bool {
    size.is_multiple_of(GRANULE)
}

fn is_memory_fraction(fraction: f64) -> bool {
    (0.0..=1.0).contains(&fraction)
}

fn is_threshold(threshold: f64) -> bool {
    threshold > 0.0 && threshold < 1.0
}

fn is_thread_count(count: u32) -> bool {
    count.is_power_of_two() && count <= REGISTER_THREADS_MAX
}

#[cfg(test)]
mod tests;
