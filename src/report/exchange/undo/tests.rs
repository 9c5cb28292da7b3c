use super::contradictions;
use crate::report::history::{Action, Event};
use crate::report::snapshot::Snapshot;

fn history(events: &[(Action, u64, u64)]) -> Snapshot {
    let event =
        |&(action, address, size): &(Action, u64, u64)| Event::new(action, address, size, 0, 0);
    Snapshot { history: events.iter().map(event).collect(), ..Snapshot::default() }
}

fn left_out(events: &[(Action, u64, u64)]) -> Vec<usize> {
    let found = contradictions(&history(events));
    let is_out = |index: &usize| found.as_ref().is_some_and(|found| found.has(*index));
    (0..events.len()).filter(is_out).collect()
}

use Action::{
    Alloc, FreeCompleted, FreeRequested, Oom, SegmentAlloc, SegmentFree, SegmentMap, SegmentUnmap,
};

#[test]
fn a_whole_life_is_consistent() {
    let life = [
        (SegmentAlloc, 4096, 4096),
        (Alloc, 4096, 100),
        (Alloc, 5120, 100),
        (FreeRequested, 4096, 100),
        (FreeCompleted, 4096, 100),
        (FreeRequested, 5120, 100),
        (Oom, 0, 1 << 40),
        (FreeCompleted, 5120, 100),
        (SegmentFree, 4096, 4096),
    ];
    // Whatever the oldest events are that were lost.
    for from in 0..life.len() {
        assert!(left_out(&life[from..]).is_empty(), "from {from}");
    }
}

#[test]
fn pages_come_and_go_in_other_pieces() {
    let life = [
        (SegmentMap, 0x1000, 0x4000),
        (SegmentUnmap, 0x2000, 0x1000),
        (SegmentMap, 0x2000, 0x1000),
        (SegmentUnmap, 0x1000, 0x2000),
        (SegmentUnmap, 0x3000, 0x2000),
    ];
    for from in 0..life.len() {
        assert!(left_out(&life[from..]).is_empty(), "from {from}");
    }
}

#[test]
fn what_viewers_stumble_over_is_left_out() {
    // No memory to free in: both events go.
    assert_eq!(left_out(&[(FreeRequested, 4096, 1), (FreeCompleted, 4096, 1)]), [0, 1]);
    // Never pending.
    assert_eq!(left_out(&[(FreeRequested, 4096, 1), (SegmentFree, 4096, 4096)]), [0]);
    // Live twice.
    let twice = [
        (FreeRequested, 4096, 1),
        (FreeCompleted, 4096, 1),
        (FreeCompleted, 4096, 1),
        (SegmentFree, 4096, 4096),
    ];
    assert_eq!(left_out(&twice), [0, 1]);
    // Memory that comes with a block in it, memory twice, memory of another size.
    let full = [(SegmentAlloc, 4096, 4096), (FreeCompleted, 4096, 1), (SegmentFree, 4096, 4096)];
    assert_eq!(left_out(&full), [0]);
    assert_eq!(left_out(&[(SegmentFree, 4096, 8192), (SegmentFree, 8192, 4096)]), [0]);
    assert_eq!(left_out(&[(SegmentAlloc, 4096, 512), (SegmentFree, 4096, 4096)]), [0]);
    assert_eq!(left_out(&[(SegmentMap, u64::MAX, 2), (SegmentFree, 4096, 0)]), [0, 1]);
    // Gone, but never there.
    assert_eq!(left_out(&[(Alloc, 4096, 1)]), [0]);
}
