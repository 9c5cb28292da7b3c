use super::*;
use crate::backend::Host;

#[test]
fn addresses_of_what_was_freed_by_id_are_forgotten() {
    let allocator = Allocator::new(Host::new(), Config::default());
    let raw = |size| allocator.request(size).allocate_raw().expect("host memory");
    let all: Vec<_> = (1..100).map(|size| raw(size * 100)).collect();
    assert_eq!(allocator.shared.addresses().len(), all.len());
    for one in &all {
        allocator.free_raw(one.id).expect("it is live");
    }
    assert_eq!(allocator.shared.addresses().len(), 0);

    let last = raw(100);
    allocator.free_address(last.address.expect("the host has addresses")).expect("it is live");
    assert!(allocator.free_raw(last.id).is_err(), "freed before");
    assert_eq!(allocator.shared.addresses().len(), 0);
}

#[test]
fn no_cell_outlives_those_who_hold_it() {
    let weak_of = |allocator: &Allocator<Host>| Arc::downgrade(&allocator.shared.default_cell);
    let new = || Allocator::new(Host::new(), Config::default());

    let allocator = new();
    let (cell, block) = (weak_of(&allocator), allocator.allocate(100).expect("host memory"));
    drop(block);
    assert!(cell.upgrade().is_some(), "the allocator lives");
    drop(allocator);
    assert!(cell.upgrade().is_none(), "nobody is left");

    let allocator = new();
    let cell = weak_of(&allocator);
    let sizes = [0, 100, 5 << 20];
    let blocks = sizes.map(|size| allocator.allocate(size).expect("host memory"));
    drop(allocator);
    for block in blocks {
        assert!(cell.upgrade().is_some(), "an allocation lives");
        drop(block);
    }
    assert!(cell.upgrade().is_none(), "the last allocation is gone");

    let allocator = new();
    let (cell, stream) = (weak_of(&allocator), allocator.default_stream());
    let raw = allocator.request(100).allocate_raw().expect("host memory");
    drop(allocator);
    assert!(cell.upgrade().is_some(), "a handle of the stream lives");
    drop(stream);
    assert!(cell.upgrade().is_none(), "{raw:?} keeps nothing");
}
