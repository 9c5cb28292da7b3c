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
