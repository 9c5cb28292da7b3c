use super::*;
use crate::core::block::State;
use crate::id::SegmentId;

fn block(size: u32, offset: u32) -> Block {
    Block {
        offset,
        size,
        prev: BlockId::NONE,
        next: BlockId::NONE,
        segment: SegmentId(0),
        serial: 0,
        tick: 0,
        state: State::Free(Links::NONE),
    }
}

#[test]
fn classes_are_exact_below_a_mebibyte_and_monotone_above() {
    for size in 0..2048 {
        let class = Class::of(size);
        assert_eq!(class.octave * SLOTS + class.slot, size as usize);
    }
    let mut last = Class::of(2047);
    for size in (2048..1 << 22).chain((1 << 22..u32::MAX).step_by(65_537)) {
        let class = Class::of(size);
        assert!((class.octave, class.slot) >= (last.octave, last.slot), "{size}");
        last = class;
    }
    assert_eq!(Class::of(u32::MAX), Class { octave: OCTAVES - 1, slot: SLOTS - 1 });
}

#[test]
fn agrees_with_a_sorted_set_on_seeded_programs() {
    let segments: Slab<Segment<()>> = Slab::new();
    for seed in 0..40_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |bound: u32| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u32 % bound
        };
        let (mut blocks, mut bins) = (Records::new(), Bins::new());
        let mut naive = std::collections::BTreeSet::new();
        for step in 0..400 {
            if next(3) > 0 || naive.is_empty() {
                let size = match next(4) {
                    0 => 1 + next(8),
                    1 => 1 + next(2000),
                    2 => 5_000_000 + next(4_000),
                    _ => 1 + next(u32::MAX - 1),
                };
                let id = BlockId::from_index(blocks.insert(block(size, step)));
                bins.insert(&mut blocks, &segments, id, u32::MAX);
                naive.insert((size, step, id));
            } else {
                let nth = next(naive.len() as u32) as usize;
                let gone = *naive.iter().nth(nth).expect("in range");
                naive.remove(&gone);
                bins.remove(&mut blocks, gone.2);
                blocks.vacate(gone.2.index());
            }
            assert_eq!(bins.verify(&blocks), naive.len(), "seed {seed}");
            let smallest = bins.best_fit(&blocks, 0);
            let all = std::iter::successors(smallest, |&id| bins.after(&blocks, id));
            let all: Vec<_> = all.collect();
            let expected: Vec<_> = naive.iter().map(|entry| entry.2).collect();
            assert_eq!(all, expected, "seed {seed}");
            let size = 1 + next(u32::MAX - 1);
            let expected = naive.range((size, 0, BlockId(0))..).next().map(|entry| entry.2);
            assert_eq!(bins.best_fit(&blocks, size), expected, "seed {seed}");
            let largest = bins.largest(&blocks).map(|id| blocks[id.index()].size);
            assert_eq!(largest, naive.last().map(|entry| entry.0), "seed {seed}");
        }
    }
}
