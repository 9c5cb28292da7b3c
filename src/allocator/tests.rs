use super::*;
use crate::backend::Host;
use crate::id::ArenaId;
use crate::units::MIB;

#[test]
fn addresses_are_kept_from_the_first_free_by_address_on() {
    let allocator = Allocator::new(Host::new(), Config::default());
    let addresses = &allocator.shared.addresses;
    let raw = |size| allocator.request(size).allocate_raw().expect("host memory");
    let free =
        |one: &RawAllocation| allocator.free_address(one.address.expect("the host has addresses"));
    let all: Vec<_> = (1..100).map(|size| raw(size * 100)).collect();
    let owned = allocator.allocate(100).expect("host memory");
    assert_eq!(addresses.len(), 0, "nobody asked yet");
    free(&all[0]).expect("it is live");
    assert_eq!(addresses.len(), all.len() - 1);
    assert!(free(&all[0]).is_err(), "freed before");
    for one in &all[1..] {
        allocator.free_raw(one.id).expect("it is live");
    }
    assert_eq!(addresses.len(), 0);

    let owned_address = owned.address().expect("the host has addresses");
    assert!(allocator.free_address(owned_address).is_err(), "an owner frees it");
    let tagged = allocator.request(100).tag(allocator.tag("a")).allocate_raw();
    let given_up = [owned.into_raw(), raw(100), tagged.expect("host memory")];
    assert_eq!(addresses.len(), 3, "given up, plain and with a tag");
    given_up.iter().for_each(|one| free(one).expect("it is live"));
    assert!(given_up.iter().all(|one| allocator.free_raw(one.id).is_err()), "freed before");
    assert_eq!((addresses.len(), allocator.memory_allocated()), (0, 0));
    allocator.verify();
}

#[test]
fn cells_are_found_by_number_and_no_number_does_harm() {
    let allocator = Allocator::new(Host::new(), Config::default());
    let streams: Vec<_> = (1..200).map(|number| allocator.stream(number)).collect();
    let cells = &allocator.shared.cells;
    assert_eq!(cells.len(), 200);
    for (at, cell) in cells.iter().enumerate() {
        assert_eq!(cell.id.index(), at);
    }
    for stream in &streams {
        assert_eq!(cells.get(ArenaId(stream.index())).map(|cell| cell.id.0), Some(stream.index()));
    }
    assert!([200, 4095, 1 << 20, u32::MAX].iter().all(|&id| cells.get(ArenaId(id)).is_none()));
    let nonsense = AllocationId::from_bits(0xFFF0_0000_1234_5678);
    assert_eq!(allocator.free_raw(nonsense), Err(FreeError::Unknown));
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

/// Between a free and its settling, which may be another thread's, a peak is behind.
#[test]
fn no_peak_is_below_what_is_there_whenever_it_is_asked() {
    let allocator = Allocator::new(Host::new(), Config::torch());
    let stream = allocator.stream(1);
    let raw = || allocator.request(MIB + MIB / 2).on(&stream).allocate_raw().expect("host memory");
    let [_first, second, _third] = [raw(), raw(), raw()];
    allocator.reset_peak_memory_stats();
    let freed = stream.cell.lock().arena.free(second.id, allocator.config());
    assert!(freed.expect("it is live").settle, "one more free piece than ever");
    let gauge = allocator.memory_stats().inactive_split.all;
    assert_eq!((gauge.current, gauge.peak), (2, 2));
}

/// As a dropped allocation does: a second panic would abort.
#[test]
fn raw_frees_that_unwind_past_a_broken_invariant_do_nothing() {
    struct Owner<'a>(&'a Allocator<Host>, RawAllocation);
    impl Drop for Owner<'_> {
        fn drop(&mut self) {
            let address = self.1.address.expect("the host has addresses");
            assert!(self.0.free_raw(self.1.id).is_ok() && self.0.free_address(address).is_ok());
        }
    }
    let allocator = Allocator::new(Host::new(), Config::default());
    let outcome = std::panic::catch_unwind(|| {
        let raw = allocator.request(100).allocate_raw().expect("host memory");
        let _owner = Owner(&allocator, raw);
        let _inside = allocator.shared.default_cell.lock();
        panic!("an invariant is broken");
    });
    assert!(outcome.is_err());
    assert!(std::panic::catch_unwind(|| allocator.allocate(100)).is_err(), "nothing is trusted");
}
