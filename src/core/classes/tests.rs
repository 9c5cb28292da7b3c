use super::*;
use crate::units::GIB;

#[test]
fn rounding_follows_the_documented_steps() {
    let config = Config::torch();
    for (size, rounded) in [(1, 512), (512, 512), (513, 1024), (1000, 1024), (MIB + 1, MIB + 512)] {
        assert_eq!(round(size, &config), rounded, "{size}");
    }
}

#[test]
fn divisions_round_between_powers_of_two() {
    let mut config = Config::torch();
    config.roundup_power2_divisions = [4; 16];
    assert_eq!(round(1200, &config), 1536, "above 512 x 4 only: {}", round(1200, &config));
    assert_eq!(round(5 * MIB, &config), 5 * MIB);
    assert_eq!(round(5 * MIB + 1, &config), 6 * MIB);
    assert_eq!(round(8 * MIB, &config), 8 * MIB, "powers of two stay");
    assert_eq!(round(1100 * GIB, &config), 1280 * GIB, "the last bucket is open");
}

#[test]
fn segments_have_pytorchs_sizes() {
    let config = Config::torch();
    let cases = [
        (512, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 512, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 512, 12 * MIB),
    ];
    for (size, segment) in cases {
        assert_eq!(segment_size(size, &config), segment, "{size}");
    }
}

/// A growth by 2 MiB granules, for a program with so many bytes active and so much headroom.
fn shared(rounded: Bytes, active: Bytes, room: Bytes) -> Bytes {
    let demand = Demand { active, room, granularity: 2 * MIB, segment_max: 4 * GIB };
    shared_size(rounded, &demand, &Config::default())
}

#[test]
fn shared_segments_hold_as_many_blocks_as_headroom_has_room_for() {
    assert_eq!(shared(9 * MIB, 10 * GIB, 130 * MIB), 14 * 9 * MIB);
    assert_eq!(shared(9 * MIB, 10 * GIB, 0), 2 * 9 * MIB, "those of the least segment");
    assert_eq!(shared(9 * MIB, 10 * GIB, GIB), 154 * MIB, "17 blocks, within the share");
    assert_eq!(shared(300 * MIB, 10 * GIB, GIB), 300 * MIB, "alone where few fit");
    assert_eq!(shared(60 * MIB, 10 * GIB, GIB), 60 * MIB, "alone where two fit: fewer than eight");
    assert_eq!(shared(9 * GIB, 10 * GIB, 0), 9 * GIB, "larger than the largest: its own");
}

#[test]
fn shared_segments_waste_little_of_the_granules() {
    // 10.08 MiB: alone it would take 12 of the device.
    let rounded = 20_644 * GRANULE;
    assert_eq!(shared(rounded, 10 * GIB, 0), 122 * MIB, "12 blocks");
    // Where no number within the share does, the best one is taken.
    assert_eq!(shared(5 * MIB / 2, 40 * MIB, 0), 10 * MIB, "4 blocks, to the byte");
    assert_eq!(shared(3 * MIB + GRANULE, 40 * MIB, 0), 10 * MIB, "3 blocks, in 10 MiB");
}

#[test]
fn small_programs_get_small_segments() {
    assert_eq!(shared(13 * MIB / 10 / GRANULE * GRANULE, 24 * MIB, 0), 6 * MIB);
    assert_eq!(shared(MIB + GRANULE, MIB + GRANULE, 0), 2 * MIB, "the first one");
    assert_eq!(shared(20 * MIB, 20 * MIB, 0), 20 * MIB);
}

#[test]
fn shared_segments_hold_the_request_whatever_the_program_is_like() {
    let sizes = [MIB + GRANULE, 3 * MIB, 10 * MIB, 333 * MIB + GRANULE, 5 * GIB];
    let amounts = [0, MIB, 19 * MIB, GIB, 100 * GIB, crate::units::REQUEST_MAX];
    for (rounded, active) in sizes.iter().flat_map(|&size| amounts.map(|more| (size, more))) {
        for room in amounts {
            let size = shared(rounded, active.saturating_add(rounded), room);
            assert!(size >= rounded && size.is_multiple_of(2 * MIB), "{rounded}, {active}, {room}");
            let most = (4 * GIB).max(rounded + 2 * MIB);
            assert!(size <= most, "{rounded}, {active}, {room}: {size} is more than a segment");
        }
    }
}
