//! The shell where it is easiest to get wrong: the end of an allocator whose allocations live on,
//! streams and pools whose numbers are taken over, misuse that must not break anything for others.
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use aquifer::{Allocator, Config};

use support::{MIB, assert_emptied, sim};

#[test]
fn one_stream_too_many_breaks_nothing_for_others() {
    let allocator = Allocator::new(sim(64 * MIB), Config::default());
    let held = allocator.allocate(MIB).expect("there is room");
    for raw in 1..=4094 {
        allocator.stream(raw);
    }
    let refused = catch_unwind(AssertUnwindSafe(|| allocator.stream(5000)));
    assert!(refused.is_err(), "the documented limit");
    assert_eq!(allocator.memory_allocated(), MIB);
    // There is room again, for the one that was refused too.
    allocator.forget_stream(1);
    drop(allocator.allocate_on(&allocator.stream(5000), MIB).expect("there is room"));
    drop(held);
    assert_emptied(&allocator);
}
