//! Bytes and alignment arithmetic: the only file that masks or shifts a size.
//!
//! Sizes cross the public surface in [`Bytes`]. Inside the core they are counted in *granules* of
//! [`GRANULE`] bytes, so that a block record holds an offset and a size in 32 bits each and a
//! segment may still span 2 TiB.

/// A size, offset or limit in bytes.
pub type Bytes = u64;

/// 1024 bytes.
pub const KIB: Bytes = 1 << 10;
/// 1024² bytes.
pub const MIB: Bytes = 1 << 20;
/// 1024³ bytes.
pub const GIB: Bytes = 1 << 30;

/// The quantum of every block: sizes and offsets of blocks are multiples of this many bytes.
pub const GRANULE: Bytes = 512;

/// The largest request that is looked at; anything above is refused outright (1 EiB, as PyTorch).
pub const REQUEST_MAX: Bytes = 1 << 60;

/// The largest segment the core can describe: 2³² − 1 granules, just under 2 TiB.
pub const SEGMENT_MAX: Bytes = (u32::MAX as Bytes) * GRANULE;

/// `value` rounded up to a multiple of `alignment`, a power of two or not; saturates at `u64::MAX`.
///
/// # Panics
/// If `alignment` is 0.
#[inline]
pub const fn align_up(value: Bytes, alignment: Bytes) -> Bytes {
    let rest = value % alignment;
    if rest == 0 { value } else { value.saturating_add(alignment - rest) }
}

/// `value` rounded down to a multiple of `alignment`.
///
/// # Panics
/// If `alignment` is 0.
#[inline]
pub const fn align_down(value: Bytes, alignment: Bytes) -> Bytes {
    value - value % alignment
}

/// Bytes to granules, rounding up; the caller has checked that the size is at most [`SEGMENT_MAX`].
#[inline]
pub(crate) const fn to_granules(size: Bytes) -> u32 {
    debug_assert!(size <= SEGMENT_MAX);
    size.div_ceil(GRANULE) as u32
}

/// Granules to bytes.
#[inline]
pub(crate) const fn to_bytes(granules: u32) -> Bytes {
    granules as Bytes * GRANULE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_exact_at_the_edges() {
        assert_eq!(align_up(0, 512), 0);
        assert_eq!(align_up(1, 512), 512);
        assert_eq!(align_up(512, 512), 512);
        assert_eq!(align_up(u64::MAX - 1, 512), u64::MAX);
        assert_eq!(align_up(10, 3), 12);
        assert_eq!(align_down(1023, 512), 512);
        assert_eq!(to_granules(SEGMENT_MAX), u32::MAX);
        assert_eq!(to_bytes(u32::MAX), SEGMENT_MAX);
    }
}
