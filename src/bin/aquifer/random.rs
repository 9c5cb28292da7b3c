//! Seeded numbers: the same seed gives the same numbers on every machine.

use aquifer::Bytes;

/// How many sizes are drawn in advance: drawing one takes longer than a cached allocation.
const SIZES: usize = 1 << 14;

/// Marsaglia's xorshift with a multiplication at the end (xorshift64*): two nanoseconds a number,
/// and good enough to choose blocks by.
#[derive(Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// Different seeds give different sequences.
    pub(crate) fn new(seed: u64) -> Self {
        // Odd, so never the one state that stays where it is, zero.
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) << 1 | 1 }
    }

    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// Sizes spread evenly over the powers of two: as many from 1 to 2 KiB as from 8 to 16 MiB.
#[derive(Debug)]
pub(crate) struct Sizes {
    drawn: Vec<Bytes>,
}

impl Sizes {
    /// From `least` to `most` bytes.
    pub(crate) fn new(random: &mut Random, least: Bytes, most: Bytes) -> Self {
        let span = (most as f64 / least as f64).log2();
        let size = |random: &mut Random| {
            let unit = (random.next() >> 11) as f64 / (1u64 << 53) as f64;
            ((least as f64 * (unit * span).exp2()) as Bytes).clamp(least, most)
        };
        Self { drawn: (0..SIZES).map(|_| size(random)).collect() }
    }

    /// One of them.
    pub(crate) fn draw(&self, random: &mut Random) -> Bytes {
        self.drawn[random.below(self.drawn.len())]
    }
}
