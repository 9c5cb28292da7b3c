//! Typed handles: small integers that cannot be mixed up.
//!
//! All are indices into a slab, so they may be reused after their thing died; [`AllocationId`]
//! alone carries a serial number that tells a stale handle from a live one.

use std::fmt;

macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) struct $name(pub(crate) u32);

        // Each kind uses what it needs of these.
        #[allow(dead_code)]
        impl $name {
            /// No such thing; ends lists.
            pub(crate) const NONE: Self = Self(u32::MAX);

            #[inline]
            pub(crate) fn index(self) -> usize {
                self.0 as usize
            }

            #[inline]
            pub(crate) fn is_none(self) -> bool {
                self == Self::NONE
            }

            /// The handle of slab entry `index`; 2³² − 1 entries are more than memory holds.
            #[inline]
            pub(crate) fn from_index(index: usize) -> Self {
                debug_assert!(index < u32::MAX as usize);
                Self(index as u32)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    Self::NONE => f.write_str("-"),
                    Self(index) => write!(f, concat!(stringify!($name), "{}"), index),
                }
            }
        }
    };
}

index! {
    /// One stream's part of the state, in order of registration.
    ArenaId
}
index! {
    /// A block of one arena.
    BlockId
}
index! {
    /// A segment of one arena.
    SegmentId
}
index! {
    /// An owner of pools: 0 is the default one, others are private pools.
    OwnerId
}
index! {
    /// An index into a side table of an arena.
    SideId
}

impl OwnerId {
    pub(crate) const DEFAULT: Self = Self(0);
}

/// Names a private pool. As in PyTorch a pair, whose first part is 0 for pools made by users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PoolId(pub u32, pub u32);

/// An interned name that users give to allocations; 0 is "no tag".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Tag(pub(crate) u32);

/// Names one live allocation; a stale id (its allocation was freed) is recognised as such.
///
/// Packs into a `u64` for foreign callers: 12 bits of arena, 28 of block, 24 of serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllocationId(u64);

impl AllocationId {
    /// The id of every zero-size allocation: it holds nothing, and freeing it does nothing.
    pub const EMPTY: Self = Self(u64::MAX);
    pub(crate) const ARENA_MAX: u32 = 1 << 12;
    pub(crate) const BLOCK_MAX: u32 = 1 << 28;

    #[inline]
    pub(crate) fn new(arena: ArenaId, block: BlockId, serial: u32) -> Self {
        // A full arena table is refused before it gets here.
        debug_assert!(arena.0 < Self::ARENA_MAX);
        assert!(block.0 < Self::BLOCK_MAX, "one stream has more than 2^28 blocks");
        let serial = u64::from(serial & Self::SERIAL_MASK);
        Self(u64::from(arena.0) << 52 | u64::from(block.0) << 24 | serial)
    }

    pub(crate) const SERIAL_MASK: u32 = (1 << 24) - 1;

    #[inline]
    pub(crate) fn arena(self) -> ArenaId {
        ArenaId((self.0 >> 52) as u32)
    }

    #[inline]
    pub(crate) fn block(self) -> BlockId {
        BlockId((self.0 >> 24) as u32 & (Self::BLOCK_MAX - 1))
    }

    #[inline]
    pub(crate) fn serial(self) -> u32 {
        self.0 as u32 & Self::SERIAL_MASK
    }

    /// The id as one integer, to be handed through a C interface.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The id that [`to_bits`](Self::to_bits) packed; any other number is a stale id, never harm.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_pack_and_unpack() {
        let id = AllocationId::new(ArenaId(4094), BlockId(AllocationId::BLOCK_MAX - 1), u32::MAX);
        assert_eq!(id.arena(), ArenaId(4094));
        assert_eq!(id.block(), BlockId(AllocationId::BLOCK_MAX - 1));
        assert_eq!(id.serial(), AllocationId::SERIAL_MASK);
        assert_eq!(AllocationId::from_bits(id.to_bits()), id);
        assert_ne!(id, AllocationId::EMPTY);
    }
}
