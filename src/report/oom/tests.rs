use super::*;

const MIB: Bytes = 1 << 20;

/// 8 MiB do not fit a device of 64: 60 are allocated, 2 cached, 2 the driver's.
fn report() -> OomReport {
    OomReport {
        cause: OomCause::NoRoom,
        requested: 8 * MIB,
        location: Location::caller(),
        tag: None,
        limit: None,
        limit_is_fraction: false,
        device_total: Some(64 * MIB),
        device_free: Some(0),
        allocated: 60 * MIB,
        pending: 0,
        reserved: 62 * MIB,
        releasable: 0,
        usable_free: 2 * MIB,
        usable_count: 3,
        largest_free: MIB,
        private_free: 0,
        holders: vec![Holder {
            bytes: 60 * MIB,
            count: 4,
            location: "src/model.rs:12".into(),
            tag: Some("weights".into()),
            age: None,
        }],
        tags: Vec::new(),
        could_expand: false,
        could_be_lent: false,
    }
}

/// What would help, were the report different.
fn hint(change: impl FnOnce(&mut OomReport)) -> String {
    let mut report = report();
    change(&mut report);
    let text = report.to_string();
    assert!(text.ends_with(&format!("What would help: {}.", report.hint())), "{text}");
    report.hint()
}

/// Every hint, and what makes it the right one.
#[test]
fn each_hint_has_its_moment() {
    type Change = fn(&mut OomReport);
    let cases: &[(Change, &str)] = &[
        (|r| r.cause = OomCause::Capture, "PrivatePool::prime"),
        (|r| r.cause = OomCause::Paused, "PrivatePool::resume"),
        (|r| r.requested = 65 * MIB, "the request alone exceeds the device"),
        (
            |r| r.limit = Some(7 * MIB),
            "alone exceeds the memory limit; raise it (set_memory_limit)",
        ),
        (
            |r| (r.limit, r.limit_is_fraction) = (Some(7 * MIB), true),
            "alone exceeds the memory limit; raise it (set_memory_fraction)",
        ),
        (|r| r.pending = 8 * MIB, "recorded and not submitted; submit it"),
        (|r| r.could_be_lent = true, "PoolOptions::use_on_oom"),
        (
            |r| (r.usable_free, r.could_expand) = (8 * MIB, true),
            "cannot be joined; switch on Config::expandable_segments",
        ),
        (|r| r.usable_free = 8 * MIB, "keep long-lived allocations apart in a private pool"),
        (
            |r| (r.limit, r.device_free) = (Some(64 * MIB), Some(8 * MIB)),
            "the memory limit is in the way, not the device; raise it (set_memory_limit)",
        ),
        (|r| (r.limit, r.device_free) = (Some(63 * MIB), None), "the memory limit is in the way"),
        (
            |r| r.device_free = Some(9 * MIB),
            "refuses it in one piece; ask for it in smaller pieces",
        ),
        (
            |r| (r.device_free, r.could_expand) = (Some(9 * MIB), true),
            "refuses it in one piece; switch on Config::expandable_segments",
        ),
        (
            |r| (r.reserved, r.allocated) = (12 * MIB, 10 * MIB),
            "most of the device (52.00 MiB) is in use outside this allocator",
        ),
        (|_| {}, "hold less: most is 60.00 MiB in 4 by src/model.rs:12 [weights]"),
        (|r| r.holders.clear(), "the device's memory is in use outside this allocator"),
    ];
    for (change, expected) in cases {
        let hint = hint(change);
        assert!(hint.contains(expected), "`{expected}` is not in: {hint}");
    }
}

#[test]
fn a_rejection_has_hints_of_its_own() {
    let rejected = |change: fn(&mut OomReport)| {
        hint(|report| {
            report.cause = OomCause::Rejected;
            change(report);
        })
    };
    let hint = rejected(|r| (r.limit, r.releasable) = (Some(62 * MIB), 8 * MIB));
    assert!(hint.contains("empty_cache: 8.00 MiB"), "{hint}");
    let hint = rejected(|r| (r.limit, r.releasable) = (Some(62 * MIB), 7 * MIB));
    assert!(hint.contains("raise it (set_memory_limit)"), "{hint}");
    let hint = rejected(|r| (r.limit, r.limit_is_fraction) = (Some(62 * MIB), true));
    assert!(hint.contains("raise it (set_memory_fraction)"), "{hint}");
    // It is the device that is full: there is no limit to raise.
    let hint = rejected(|_| {});
    assert!(hint.starts_with("hold less"), "{hint}");
    let hint = rejected(|r| r.limit = Some(64 * MIB));
    assert!(hint.starts_with("hold less"), "{hint}");
    let hint = rejected(|r| r.requested = 65 * MIB);
    assert!(hint.contains("exceeds the device"), "{hint}");
}

/// Nothing is recommended that is there already, or that there is nothing of.
#[test]
fn no_hint_is_vain() {
    for bits in 0..1 << 9 {
        let mut report = report();
        let is = |bit: u32| bits >> bit & 1 == 1;
        report.cause = if is(0) { OomCause::Rejected } else { OomCause::NoRoom };
        report.limit = is(1).then_some(if is(2) { 7 * MIB } else { 63 * MIB });
        report.could_expand = is(3);
        report.usable_free = if is(4) { 9 * MIB } else { 0 };
        report.device_free =
            [None, Some(0), Some(9 * MIB)][usize::from(is(5)) + usize::from(is(6))];
        report.could_be_lent = is(7);
        report.releasable = if is(8) { 9 * MIB } else { 0 };
        let hint = report.hint();
        let says = |word: &str| hint.contains(word);
        assert!(!says("expandable_segments") || report.could_expand, "{hint}");
        assert!(!says("limit") || report.limit.is_some(), "{hint}");
        assert!(!says("use_on_oom") || report.could_be_lent, "{hint}");
        assert!(!says("empty_cache") || report.releasable > 0, "{hint}");
    }
}

#[test]
fn the_text_says_why_the_free_bytes_do_not_do() {
    let mut report = report();
    report.limit = Some(70 * MIB);
    report.private_free = 3 * MIB;
    report.device_free = Some(MIB / 2);
    report.tags = holders::by_tag(&report.holders);
    report.tags[0].count = 9;
    let text = report.to_string();
    for part in [
        "out of memory: tried to allocate 8.00 MiB at src/report/oom/tests.rs:",
        "; the device has 64.00 MiB, of which 512.00 KiB are free and 1.50 MiB used outside",
        "; limit 70.00 MiB, which leaves 8.00 MiB",
        "; reserved 62.00 MiB = allocated 60.00 MiB + pending 0 B + cached 2.00 MiB",
        " + cached 2.00 MiB (releasable 0 B)",
        "; this request could use 2.00 MiB of it, in 3 pieces of at most 1.00 MiB",
        "; 3.00 MiB of it are in private pools",
        "; held: 60.00 MiB in 4 by src/model.rs:12 [weights]",
        "; by tag: [weights] 60.00 MiB in 9",
    ] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn tags_are_summed_over_lines() {
    let holder = |bytes, tag: Option<&str>, location: &str| Holder {
        bytes,
        count: 2,
        location: location.into(),
        tag: tag.map(String::from),
        age: None,
    };
    let holders = [holder(5, Some("a"), "x:1"), holder(4, None, "x:2"), holder(3, None, "x:3")];
    let totals = holders::by_tag(&holders);
    let shown: Vec<String> = totals.iter().map(TagTotal::to_string).collect();
    assert_eq!(shown, ["[no tag] 7 B in 4", "[a] 5 B in 2"]);
    assert!(holders::by_tag(&holders[1..]).is_empty(), "no tag: nothing to say");
}
