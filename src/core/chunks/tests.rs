use super::*;

fn chunk(start: u32, size: u32) -> Chunk {
    Chunk { start, size }
}

fn list(chunks: &[(u32, u32)]) -> Chunks {
    let mut list = Chunks::default();
    chunks.iter().for_each(|&(start, size)| list.insert(chunk(start, size)));
    list
}

#[test]
fn chunks_are_found_where_they_lie_as_a_whole() {
    let chunks = list(&[(40, 10), (0, 10), (10, 20), (50, 1)]);
    assert_eq!(chunks.within(0, 51), [chunk(0, 10), chunk(10, 20), chunk(40, 10), chunk(50, 1)]);
    assert_eq!(chunks.within(1, 50), [chunk(10, 20), chunk(40, 10)]);
    assert_eq!(chunks.within(10, 29), []);
    assert_eq!(chunks.within(30, 40), [], "nothing is mapped there");
    assert_eq!(chunks.within(12, 13), [], "the inside of a chunk");
}

#[test]
fn what_is_taken_is_gone() {
    let mut chunks = list(&[(0, 10), (10, 20), (40, 10)]);
    assert_eq!(chunks.take(5, 45), [chunk(10, 20)]);
    assert_eq!(chunks.all(), [chunk(0, 10), chunk(40, 10)]);
}

#[test]
fn taken_chunks_go_where_they_fit_and_new_ones_fill_up() {
    let run = |offset, size| Run { offset: to_bytes(offset), size: to_bytes(size) };
    let taken = [chunk(900, 4), chunk(100, 30), chunk(200, 6)];
    let pieces = cut(&[run(0, 8), run(20, 10)], &taken, to_bytes(3));
    let shown: Vec<_> =
        pieces.iter().map(|piece| (piece.offset / 512, piece.size / 512, piece.taken)).collect();
    // 30 granules fit nowhere: they are left over.
    let expected = [(0, 6, Some(2)), (6, 2, None), (20, 4, Some(0)), (24, 3, None), (27, 3, None)];
    assert_eq!(shown, expected);
}
