use aquifer::Config;

use super::{KNOBS, ablations, set};

/// Fields that `--config` sets under PyTorch's names, and one that nothing here would heed: the
/// program never calls `maintain`.
const ELSEWHERE: [&str; 11] = [
    "large_segment",
    "max_split_size",
    "max_non_split_rounding",
    "roundup_power2_divisions",
    "garbage_collection_threshold",
    "memory_fraction",
    "reject_before_driver",
    "expandable_segments",
    "graph_capture_record_stream_reuse",
    "pinned",
    "trim_age",
];

#[test]
fn every_field_can_be_set() {
    // The names of the fields themselves are what stands one step in.
    let text = format!("{:#?}", Config::default());
    let fields = text.lines().filter_map(|line| line.strip_prefix("    "));
    let names = fields.filter(|line| line.starts_with(char::is_alphabetic));
    let mut names: Vec<_> = names.filter_map(|line| line.split_once(':')).map(|at| at.0).collect();
    let mut known: Vec<_> = KNOBS.iter().map(|knob| knob.name).chain(ELSEWHERE).collect();
    names.sort_unstable();
    known.sort_unstable();
    assert_eq!(names, known);
}

#[test]
fn knobs_read_what_they_write() {
    for preset in [Config::default(), Config::torch()] {
        for knob in KNOBS {
            let mut config = Config::torch();
            set(&mut config, &format!("{}={}", knob.name, (knob.read)(&preset))).expect(knob.name);
            assert_eq!((knob.read)(&config), (knob.read)(&preset), "{}", knob.name);
        }
    }
    let mut config = Config::default();
    for setting in ["headroom=off", " spare_idle_count = 9", "large_min=4MiB", "tie_walk=all"] {
        set(&mut config, setting).expect(setting);
    }
    assert_eq!((config.headroom, config.spare_idle_count), (None, 9));
    assert_eq!((config.large_min, config.tie_walk), (4 << 20, u32::MAX));
}

#[test]
fn each_ablation_changes_one_thing_and_is_valid() {
    let all = ablations();
    assert!(all.iter().any(|(name, _)| name == "headroom = off"));
    for (name, config) in all {
        config.validate().expect(&name);
        let changed =
            KNOBS.iter().filter(|knob| (knob.read)(&config) != (knob.read)(&Config::default()));
        assert_eq!(changed.count(), 1, "{name}");
    }
}

#[test]
fn what_is_refused() {
    for (setting, reason) in [
        ("headroom", "write NAME=VALUE"),
        ("headrom=1", "`headrom` is no knob; the knobs are headroom, "),
        ("headroom=", "an empty value is not allowed"),
        ("headroom=much", "much is not allowed: a number"),
        ("front_cache=1", "true or false"),
        ("spare_idle_count=-1", "a whole number"),
        ("small_max=1MB", "KiB"),
    ] {
        let error = set(&mut Config::default(), setting).expect_err(setting);
        assert!(error.contains(reason), "{setting}: {error}");
    }
}
