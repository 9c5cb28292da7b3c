//! Data structures that know no allocator word.

pub(crate) mod bitmap;
pub(crate) mod records;
