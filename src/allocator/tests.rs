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
