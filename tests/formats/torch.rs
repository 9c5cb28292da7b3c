//! What PyTorch itself wrote: read, and the figures that Python's own pickle module finds in it.

use aquifer::report::history::Action;
use aquifer::report::snapshot::{BlockState, Snapshot};

use crate::pickles::{json, pickle};
use crate::viewer;

pub(crate) const SMALL: &[u8] = include_bytes!("torch_snapshot_small.pickle");

/// The fixture in figures, computed with Python from `pickle.load`.
#[test]
fn a_genuine_snapshot_is_read() {
    let snapshot = Snapshot::read_pickle(SMALL).expect("PyTorch wrote it");
    let count = |action| snapshot.history.iter().filter(|event| event.action == action).count();
    assert_eq!(snapshot.history.len(), 97);
    assert_eq!(count(Action::Alloc), 36);
    assert_eq!((count(Action::FreeRequested), count(Action::FreeCompleted)), (26, 26));
    assert_eq!(count(Action::SegmentAlloc), 9);
    let sum = |bytes: fn(&aquifer::report::snapshot::SegmentSnapshot) -> u64| {
        snapshot.segments.iter().map(bytes).sum::<u64>()
    };
    assert_eq!(snapshot.segments.len(), 9);
    assert_eq!(sum(|segment| segment.total_size), 3_781_165_056);
    assert_eq!(sum(|segment| segment.allocated_size), 31_719_936);
    assert_eq!(sum(|segment| segment.active_size), 31_719_936);
    assert_eq!(sum(|segment| segment.requested_size), 31_719_428);
    let blocks: Vec<_> = snapshot.segments.iter().flat_map(|segment| &segment.blocks).collect();
    let free = blocks.iter().filter(|block| block.state == BlockState::Free).count();
    assert_eq!((blocks.len(), free), (20, 10));
    let first = &snapshot.history[0];
    assert_eq!(first.action, Action::SegmentAlloc);
    assert_eq!((first.time_us, first.size), (1_772_688_692_031_317, 20_971_520));
    let last = &snapshot.history[96];
    assert_eq!((last.address, last.size, last.frames.len()), (139_780_117_496_320, 4, 28));
    let frame = &last.frames[13];
    assert_eq!((&*frame.file, frame.line, &*frame.name), ("_tensor.py", 626, "backward"));
    let frames: usize = snapshot.history.iter().map(|event| event.frames.len()).sum();
    assert_eq!(frames, 2784);
}

/// Written again it is the same to the viewer, and takes a quarter of the room.
#[test]
fn a_genuine_snapshot_is_written_again() {
    let snapshot = Snapshot::read_pickle(SMALL).expect("PyTorch wrote it");
    let ours = pickle(&snapshot);
    let (theirs, seen) = (viewer::open(SMALL), viewer::open(&ours));
    assert_eq!(seen, theirs);
    assert_eq!(seen[0].peak, 3_249_143_816);
    let read = Snapshot::read_pickle(&ours[..]).expect("our own pickle");
    assert_eq!(read.history, snapshot.history);
    let text = json(&snapshot);
    assert_eq!(Snapshot::read_json(&text[..]).expect("our own JSON"), read);
    println!("{} bytes by PyTorch, {} by us, {} as JSON", SMALL.len(), ours.len(), text.len());
    assert!(ours.len() * 2 <= SMALL.len());
}
