use super::*;

fn allocate(id: u64, size: Bytes, stream: u32) -> Event {
    Event::Allocate { id, size, stream }
}

/// Applies `event`, which must break a rule, and shows that it left no mark.
fn refused(checker: &mut Checker, event: &Event) -> Fault {
    let before = checker.clone();
    let fault = checker.apply(event).expect_err("the event breaks a rule");
    assert_eq!(checker.summary, before.summary);
    assert_eq!(checker.seen, before.seen);
    assert_eq!(checker.live, before.live);
    assert_eq!(checker.live_bytes, before.live_bytes);
    assert_eq!(checker.streams, before.streams);
    fault
}

#[test]
fn each_rule_is_upheld_and_a_refused_event_leaves_no_mark() {
    let checker = &mut Checker::default();
    checker.apply(&allocate(7, 100, 0)).expect("valid");
    checker.apply(&allocate(8, 1, 0)).expect("valid");
    checker.apply(&Event::Free { id: 8 }).expect("valid");

    assert!(matches!(refused(checker, &allocate(9, 0, 0)), Fault::ZeroSize { id: 9 }));
    assert!(matches!(refused(checker, &allocate(9, 1, STREAMS_MAX)), Fault::StreamTooLarge));
    assert!(matches!(refused(checker, &allocate(9, 1, u32::MAX)), Fault::StreamTooLarge));
    assert!(matches!(refused(checker, &allocate(7, 1, 0)), Fault::ReusedId { id: 7 }));
    assert!(matches!(refused(checker, &allocate(8, 1, 0)), Fault::ReusedId { id: 8 }));
    assert!(matches!(refused(checker, &allocate(9, u64::MAX - 99, 0)), Fault::LiveBytesOverflow));
    assert!(matches!(refused(checker, &Event::Free { id: 8 }), Fault::FreedId { id: 8 }));
    assert!(matches!(refused(checker, &Event::Free { id: 9 }), Fault::UnknownId { id: 9 }));
    let on = |id, stream| Event::Use { id, stream };
    assert!(matches!(refused(checker, &on(8, 1)), Fault::FreedId { id: 8 }));
    assert!(matches!(refused(checker, &on(9, 1)), Fault::UnknownId { id: 9 }));
    assert!(matches!(refused(checker, &on(7, STREAMS_MAX)), Fault::StreamTooLarge));

    // The edges of the same rules.
    checker.apply(&allocate(9, u64::MAX - 100, STREAMS_MAX - 1)).expect("just fits");
    assert_eq!(checker.summary().peak_live_bytes, u64::MAX);
}

#[test]
fn ids_that_share_a_word_or_lie_far_apart_are_told_apart() {
    let checker = &mut Checker::default();
    let ids = [0, 1, 63, 64, 65, 127, 128, 1 << 32, u64::MAX - 1, u64::MAX];
    for id in ids {
        assert!(!checker.was_seen(id), "{id}");
        checker.apply(&allocate(id, 1, 0)).expect("a new id");
        assert!(checker.was_seen(id), "{id}");
    }
    for id in ids {
        assert!(matches!(refused(checker, &allocate(id, 1, 0)), Fault::ReusedId { .. }), "{id}");
        checker.apply(&Event::Free { id }).expect("live");
        assert!(matches!(refused(checker, &allocate(id, 1, 0)), Fault::ReusedId { .. }), "{id}");
    }
    assert_eq!(checker.live_bytes, 0);
    assert_eq!(checker.summary().peak_live_bytes, ids.len() as u64);
}

#[test]
fn dense_ids_are_kept_in_one_bit_each() {
    let checker = &mut Checker::default();
    for id in (0..100_000).rev() {
        checker.apply(&allocate(id, 1, 0)).expect("a new id");
        checker.apply(&Event::Free { id }).expect("live");
    }
    assert_eq!(checker.seen.len(), 100_000_usize.div_ceil(64));
    assert!(checker.live.is_empty());
}

#[test]
fn summary_counts_each_kind_and_each_stream_once() {
    let checker = &mut Checker::default();
    let events = [
        Event::Marker("start".to_owned()),
        allocate(0, 10, 0),
        allocate(1, 20, 64),
        Event::Use { id: 0, stream: 64 },
        Event::Use { id: 0, stream: 65_535 },
        Event::Free { id: 1 },
        allocate(2, 15, 0),
    ];
    for event in &events {
        checker.apply(event).expect("valid");
    }
    let expected = Summary {
        events: 7,
        allocations: 3,
        frees: 1,
        uses: 2,
        markers: 1,
        streams: 3,
        peak_live_bytes: 30,
    };
    assert_eq!(checker.summary(), expected);
    assert_eq!(checker.streams.len(), 1024);
}
