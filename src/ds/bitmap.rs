//! A set of 1,024 slots with "first member at or after" in constant time.
//!
//! ```text
//! summary   1 0 0 1 …      bit w: words[w] is not empty          (16 bits)
//!           │     │
//! words     ▼     ▼        bit b of words[w]: slot 64·w + b      (16 × 64 bits)
//! ```
//!
//! I: bit `w` of `summary` is set ⇔ `words[w] != 0`. A search reads at most two words and the
//! summary: about 2 ns.

/// Number of slots.
pub(crate) const SLOTS: usize = 1024;

/// A two-level bitmap over [`SLOTS`] slots.
#[derive(Debug, Clone)]
pub(crate) struct Bitmap {
    summary: u16,
    words: [u64; SLOTS / 64],
}

impl Bitmap {
    pub(crate) const fn new() -> Self {
        Self { summary: 0, words: [0; SLOTS / 64] }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.summary == 0
    }

    #[inline]
    pub(crate) fn set(&mut self, slot: usize) {
        self.words[slot / 64] |= 1 << (slot % 64);
        self.summary |= 1 << (slot / 64);
    }

    #[inline]
    pub(crate) fn clear(&mut self, slot: usize) {
        self.words[slot / 64] &= !(1 << (slot % 64));
        if self.words[slot / 64] == 0 {
            self.summary &= !(1 << (slot / 64));
        }
    }

    #[inline]
    pub(crate) fn contains(&self, slot: usize) -> bool {
        self.words[slot / 64] >> (slot % 64) & 1 == 1
    }

    /// The first member at or after `slot`; `slot` may be [`SLOTS`], past the end.
    #[inline]
    pub(crate) fn first_from(&self, slot: usize) -> Option<usize> {
        let word = slot / 64;
        let here = *self.words.get(word)? & (!0 << (slot % 64));
        if here != 0 {
            return Some(word * 64 + here.trailing_zeros() as usize);
        }
        // The shift is at most 16, so it is done in 32 bits.
        let later = u32::from(self.summary) & (!0 << (word + 1));
        (later != 0).then(|| {
            let word = later.trailing_zeros() as usize;
            word * 64 + self.words[word].trailing_zeros() as usize
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_plain_set_on_every_question() {
        let mut bitmap = Bitmap::new();
        let mut naive = std::collections::BTreeSet::new();
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..2_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let slot = (seed >> 33) as usize % SLOTS;
            if seed >> 20 & 1 == 0 {
                bitmap.set(slot);
                naive.insert(slot);
            } else {
                bitmap.clear(slot);
                naive.remove(&slot);
            }
            assert_eq!(bitmap.contains(slot), naive.contains(&slot));
            assert_eq!(bitmap.is_empty(), naive.is_empty());
            for from in [0, slot, slot + 1, SLOTS - 1, SLOTS] {
                assert_eq!(bitmap.first_from(from), naive.range(from..).next().copied(), "{from}");
            }
        }
    }
}
