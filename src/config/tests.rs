//! Presets, validation and the configuration strings.

use std::ffi::OsString;

use super::torch_conf::{first_set, key_names};
use super::*;
use crate::units::{GIB, KIB};

/// Reads one string on top of the torch preset.
fn read(settings: &str) -> Config {
    Config::from_torch_conf(settings).unwrap_or_else(|error| panic!("{settings}: {error}"))
}

/// The torch preset with one change.
fn torch_with(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::torch();
    change(&mut config);
    config
}

/// The divisions that PyTorch would use for a size of so many MiB.
fn divisions_at(config: &Config, size_mib: u32) -> u8 {
    config.roundup_power2_divisions[(size_mib.max(1).ilog2() as usize).min(ROUNDUP_BUCKETS - 1)]
}

/// A small deterministic generator (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

#[test]
fn the_torch_preset_has_pytorchs_constants() {
    let torch = Config::torch();
    assert_eq!(torch.small_max, 1_048_576);
    assert_eq!(torch.small_segment, 2_097_152);
    assert_eq!(torch.large_segment, 20_971_520);
    assert_eq!(torch.large_min, 10_485_760);
    assert_eq!(torch.large_round, 2_097_152);
    assert_eq!(torch.split_remainder_small, 512);
    assert_eq!(torch.split_remainder_large, 1_048_576 + 512, "the remainder exceeds 1 MiB");
    assert_eq!(torch.max_split_size, None);
    assert_eq!(torch.max_non_split_rounding, 20_971_520);
    assert_eq!(torch.roundup_power2_divisions, [0; 16]);
    assert_eq!(torch.garbage_collection_threshold, None);
    assert_eq!((torch.memory_fraction, torch.memory_limit), (1.0, None));
    assert_eq!((torch.headroom, torch.trim_age), (None, None));
    assert!(!torch.reject_before_driver && !torch.expandable_segments && !torch.cross_stream);
    assert!(!torch.trim_private_pools && !torch.exact_growth && !torch.page_recycling);
    assert_eq!((torch.page_headroom, torch.chunk_share), (None, 0.0), "pages of one size");
    assert!(!torch.front_cache);
    assert!(torch.harvest_every_allocate && !torch.graph_capture_record_stream_reuse);
    assert_eq!((torch.event_batch_count, torch.tie_walk), (1, u32::MAX));
    let pinned = PinnedConfig {
        use_host_register: false,
        num_register_threads: 1,
        use_background_threads: false,
        reserve_segment_size: 0,
        max_round_threshold: None,
        max_cached_size: None,
    };
    assert_eq!(torch.pinned, pinned);
}

#[test]
fn the_default_preset_differs_from_torch_in_these_fields_only() {
    let expected = torch_with(|config| {
        config.split_remainder_large = 512;
        config.segment_share = 0.015;
        config.segment_batch = 64 << 20;
        config.whole_fit_parts = 20;
        config.headroom = Some(0.03);
        config.cross_stream = true;
        config.harvest_every_allocate = false;
        config.event_batch_count = 16;
        config.trim_private_pools = true;
        config.exact_growth = true;
        config.tie_walk = 1;
        config.spare_idle_ratio = 16;
        config.spare_idle_count = 4;
        config.headroom_learned_max = 0.25;
        config.collect_without_limit = true;
        config.page_recycling = true;
        config.page_headroom = Some(0.01);
        config.chunk_share = 1.0 / 2048.0;
        config.front_cache = true;
        config.pinned.max_round_threshold = Some(0);
    });
    assert_eq!(Config::default(), expected);
}

#[test]
fn both_presets_are_valid() {
    assert_eq!(Config::default().validate(), Ok(()));
    assert_eq!(Config::torch().validate(), Ok(()));
}

#[test]
fn validation_names_the_field_that_is_wrong() {
    type Change = fn(&mut Config);
    let cases: &[(&str, Change)] = &[
        ("small_max", |c| c.small_max = 0),
        ("small_max", |c| c.small_max = 1000),
        ("small_max", |c| c.small_max = 4 * MIB),
        ("small_segment", |c| c.small_segment = SEGMENT_MAX + GRANULE),
        ("large_segment", |c| c.large_segment = 0),
        ("large_segment", |c| c.large_segment = u64::MAX),
        ("large_min", |c| c.large_min = 21 * MIB),
        ("large_min", |c| c.large_segment = 8 * MIB),
        ("large_round", |c| c.large_round = 0),
        ("large_round", |c| c.large_round = MIB + 1),
        ("split_remainder_small", |c| c.split_remainder_small = 256),
        ("split_remainder_large", |c| c.split_remainder_large = 0),
        ("max_split_size", |c| c.max_split_size = Some(19 * MIB)),
        ("max_split_size", |c| c.max_split_size = Some(20 * MIB + 1)),
        ("max_split_size", |c| c.max_split_size = Some(REQUEST_MAX + GRANULE)),
        ("max_non_split_rounding", |c| c.max_non_split_rounding = 1),
        ("max_non_split_rounding", |c| c.max_non_split_rounding = 2 * REQUEST_MAX),
        ("roundup_power2_divisions", |c| c.roundup_power2_divisions[15] = 3),
        ("memory_fraction", |c| c.memory_fraction = -0.1),
        ("memory_fraction", |c| c.memory_fraction = 1.5),
        ("memory_fraction", |c| c.memory_fraction = f64::NAN),
        ("garbage_collection_threshold", |c| c.garbage_collection_threshold = Some(0.0)),
        ("garbage_collection_threshold", |c| c.garbage_collection_threshold = Some(1.0)),
        ("garbage_collection_threshold", |c| c.garbage_collection_threshold = Some(f64::NAN)),
        ("headroom", |c| c.headroom = Some(-0.01)),
        ("headroom_learned_max", |c| c.headroom_learned_max = -0.01),
        ("headroom_learned_max", |c| c.headroom_learned_max = f64::NAN),
        ("page_headroom", |c| c.page_headroom = Some(-0.01)),
        ("page_headroom", |c| c.page_headroom = Some(f64::INFINITY)),
        ("chunk_share", |c| c.chunk_share = -0.01),
        ("chunk_share", |c| c.chunk_share = f64::NAN),
        ("headroom", |c| c.headroom = Some(f64::INFINITY)),
        ("headroom", |c| c.headroom = Some(f64::NAN)),
        ("event_batch_count", |c| c.event_batch_count = 0),
        ("tie_walk", |c| c.tie_walk = 0),
        ("spare_idle_ratio", |c| c.spare_idle_ratio = 0),
        ("whole_fit_parts", |c| c.whole_fit_parts = 0),
        ("segment_share", |c| c.segment_share = -0.1),
        ("segment_share", |c| c.segment_share = 1.5),
        ("segment_share", |c| c.segment_share = f64::NAN),
        ("pinned.num_register_threads", |c| c.pinned.num_register_threads = 0),
        ("pinned.num_register_threads", |c| c.pinned.num_register_threads = 6),
        ("pinned.num_register_threads", |c| c.pinned.num_register_threads = 256),
        ("pinned.reserve_segment_size", |c| c.pinned.reserve_segment_size = 100),
        ("pinned.reserve_segment_size", |c| c.pinned.reserve_segment_size = u64::MAX - 511),
    ];
    for (index, (field, change)) in cases.iter().enumerate() {
        let mut config = Config::default();
        change(&mut config);
        match config.validate() {
            Err(ConfigError::BadValue { key, .. }) => assert_eq!(key, *field, "case {index}"),
            other => panic!("case {index}, {field}: {other:?}"),
        }
    }
}

#[test]
fn validation_accepts_the_edges() {
    let config = torch_with(|config| {
        config.small_max = 512;
        config.small_segment = 512;
        config.large_min = 512;
        config.large_segment = SEGMENT_MAX;
        config.large_round = SEGMENT_MAX;
        config.max_split_size = Some(REQUEST_MAX);
        config.max_non_split_rounding = REQUEST_MAX;
        config.roundup_power2_divisions = [128; ROUNDUP_BUCKETS];
        config.memory_fraction = 0.0;
        config.memory_limit = Some(1);
        config.garbage_collection_threshold = Some(f64::MIN_POSITIVE);
        config.headroom = Some(0.0);
        config.trim_age = Some(Duration::ZERO);
        config.event_batch_count = 1;
        config.tie_walk = 1;
        config.pinned.num_register_threads = 128;
        config.pinned.reserve_segment_size = SEGMENT_MAX;
    });
    assert_eq!(config.validate(), Ok(()));
}

#[test]
fn every_key_sets_its_field() {
    type Change = fn(&mut Config);
    let cases: &[(&str, Change)] = &[
        ("large_segment_size_mb:11", |c| {
            c.large_segment = 11 * MIB;
            c.max_non_split_rounding = 11 * MIB;
        }),
        ("large_segment_size_mb:2097151", |c| {
            c.large_segment = 2_097_151 * MIB;
            c.max_non_split_rounding = 2_097_151 * MIB;
        }),
        ("max_split_size_mb:20", |c| c.max_split_size = Some(20 * MIB)),
        ("max_split_size_mb:1099511627776", |c| c.max_split_size = Some(REQUEST_MAX)),
        ("max_non_split_rounding_mb:64", |c| c.max_non_split_rounding = 64 * MIB),
        ("roundup_power2_divisions:4", |c| c.roundup_power2_divisions = [4; 16]),
        ("garbage_collection_threshold:0.8", |c| c.garbage_collection_threshold = Some(0.8)),
        ("expandable_segments:True", |c| c.expandable_segments = true),
        ("expandable_segments:False", |_| ()),
        ("expandable_segments_handle_type:posix_fd", |_| ()),
        ("expandable_segments_handle_type:fabric_handle", |_| ()),
        ("expandable_segments_handle_type:unspecified", |_| ()),
        ("per_process_memory_fraction:0", |c| c.memory_fraction = 0.0),
        ("per_process_memory_fraction:0.5", |c| c.memory_fraction = 0.5),
        ("per_process_memory_fraction:1", |_| ()),
        ("throw_on_cudamalloc_oom:True", |c| c.reject_before_driver = true),
        ("graph_capture_record_stream_reuse:True", |c| c.graph_capture_record_stream_reuse = true),
        ("backend:native", |_| ()),
        ("release_lock_on_cudamalloc:True", |_| ()),
        ("release_lock_on_hipmalloc:False", |_| ()),
        ("pinned_use_cuda_host_register:True", |c| c.pinned.use_host_register = true),
        ("pinned_use_hip_host_register:True", |c| c.pinned.use_host_register = true),
        ("pinned_num_register_threads:128", |c| c.pinned.num_register_threads = 128),
        ("pinned_use_background_threads:True", |c| c.pinned.use_background_threads = true),
        ("pinned_reserve_segment_size_mb:256", |c| c.pinned.reserve_segment_size = 256 * MIB),
        ("pinned_free_catch_all:True", |_| ()),
        ("pinned_max_round_threshold_mb:128", |c| c.pinned.max_round_threshold = Some(128 * MIB)),
        ("pinned_max_cached_size_mb:0", |c| c.pinned.max_cached_size = Some(0)),
    ];
    for (settings, change) in cases {
        assert_eq!(read(settings), torch_with(change), "{settings}");
    }
    for name in key_names() {
        let prefix = format!("{name}:");
        assert!(cases.iter().any(|(settings, _)| settings.starts_with(&prefix)), "{name} untested");
    }
}

#[test]
fn every_key_refuses_what_pytorch_refuses() {
    let booleans = &["", "true", "FALSE", "1", "0", "yes", "True:False", "[True]", "Truetrue"];
    let sizes = &["", "-1", "20abc", "1.5", "0x20", "17592186044416", "18446744073709551616"];
    let cases: &[(&str, &[&str])] = &[
        ("large_segment_size_mb", &["0", "1", "10", "2097152"]),
        ("max_split_size_mb", &["0", "2", "19", "1099511627777"]),
        ("max_non_split_rounding_mb", &["0", "19"]),
        ("roundup_power2_divisions", &["", "0", "3", "256", "-4", "[", "]", "[64]", "[64:3]"]),
        ("roundup_power2_divisions", &["[100:4]", "[0:4]", "[64:8", "64:8]", "[64:8,,128:2]"]),
        ("roundup_power2_divisions", &["[,]", "[64:8:2]", "[64:256]", "[[64:8]]", "[>]", "[a:b]"]),
        ("garbage_collection_threshold", &["", "0", "1", "1.2", "-0.5", "NaN", "inf", "0.5x"]),
        ("expandable_segments", booleans),
        ("expandable_segments_handle_type", &["", "fd", "POSIX_FD"]),
        ("per_process_memory_fraction", &["", "-0.1", "1.01", "NaN", "half"]),
        ("throw_on_cudamalloc_oom", booleans),
        ("graph_capture_record_stream_reuse", booleans),
        ("backend", &["", "cudaMallocAsync", "hipMallocAsync", "Native"]),
        ("release_lock_on_cudamalloc", booleans),
        ("release_lock_on_hipmalloc", booleans),
        ("pinned_use_cuda_host_register", booleans),
        ("pinned_use_hip_host_register", booleans),
        ("pinned_num_register_threads", &["", "0", "3", "256", "1024", "-1"]),
        ("pinned_use_background_threads", booleans),
        ("pinned_reserve_segment_size_mb", &["0", "2097152"]),
        ("pinned_free_catch_all", booleans),
        ("pinned_max_round_threshold_mb", &["1099511627777"]),
        ("pinned_max_cached_size_mb", &["1099511627777"]),
    ];
    for name in key_names() {
        assert!(cases.iter().any(|(key, _)| *key == name), "{name} untested");
    }
    for (name, values) in cases {
        let sizes: &[&str] = if name.ends_with("_mb") { sizes } else { &[] };
        for bad in values.iter().chain(sizes) {
            match Config::from_torch_conf(&format!("{name}:{bad}")) {
                Err(ConfigError::BadValue { key, value, .. }) => {
                    assert_eq!((key, value.as_str()), (*name, *bad));
                }
                other => panic!("{name}:{bad} gave {other:?}"),
            }
        }
    }
}

#[test]
fn errors_say_what_is_allowed() {
    let cases = [
        (
            "garbage_collection_threshold:1.2",
            "garbage_collection_threshold: 1.2 is not allowed: a number above 0 and below 1",
        ),
        ("expandable_segments:true", "expandable_segments: true is not allowed: True or False"),
        (
            "expandable_segments:",
            "expandable_segments: an empty value is not allowed: True or False",
        ),
        (
            "release_lock_on_hipmalloc:no",
            "release_lock_on_hipmalloc: no is not allowed: True or False (the lock is released \
             either way)",
        ),
        (
            "pinned_num_register_threads:1024",
            "pinned_num_register_threads: 1024 is not allowed: a power of two from 1 to 128",
        ),
        (
            "backend:cudaMallocAsync",
            "backend: cudaMallocAsync is not allowed: native; instead of cudaMallocAsync give the \
             allocator a backend that takes its segments from a memory pool of the driver",
        ),
        (
            "expandable_segments",
            "\"expandable_segments\" is no setting: write key:value or key:[k:v,k:v], with commas",
        ),
    ];
    for (settings, message) in cases {
        let error = Config::from_torch_conf(settings).expect_err(settings);
        assert_eq!(error.to_string(), message);
    }
    let error = Config::from_torch_conf("max_splt_size_mb:40").expect_err("the key is misspelt");
    assert_eq!(error, ConfigError::UnknownKey { key: "max_splt_size_mb".to_owned() });
    let message = error.to_string();
    assert!(message.starts_with("max_splt_size_mb is no key of the configuration; the keys are "));
    assert!(key_names().all(|name| message.contains(name)), "{message}");
}

#[test]
fn white_space_trailing_commas_and_empty_strings_are_no_errors() {
    let expected = torch_with(|config| {
        config.max_split_size = Some(64 * MIB);
        config.roundup_power2_divisions = [2; ROUNDUP_BUCKETS];
    });
    let settings = " max_split_size_mb : 6 4 ,\n\troundup_power2_divisions:[ 1:2, > : 2 , ] ,";
    assert_eq!(read(settings), expected);
    assert_eq!(read(""), Config::torch());
    assert_eq!(read(" \t\r\n"), Config::torch());
    assert_eq!(read("roundup_power2_divisions:[]"), Config::torch());
    for settings in [",", ",expandable_segments:True", "expandable_segments:True,,", "]"] {
        let error = Config::from_torch_conf(settings);
        assert!(matches!(error, Err(ConfigError::NotASetting { .. })), "{settings}: {error:?}");
    }
    for settings in [":", ":True", "Expandable_segments:True"] {
        let error = Config::from_torch_conf(settings);
        assert!(matches!(error, Err(ConfigError::UnknownKey { .. })), "{settings}: {error:?}");
    }
}

#[test]
fn lists_of_divisions_mean_what_pytorchs_tests_expect() {
    let list = read("roundup_power2_divisions:[64:8,128:2,256:2,512:2,1024:1,>:1]");
    assert_eq!(divisions_at(&list, 84), 8);
    assert_eq!(divisions_at(&list, 400), 2);
    assert_eq!(list.roundup_power2_divisions, [8, 8, 8, 8, 8, 8, 8, 2, 2, 2, 1, 1, 1, 1, 1, 1]);

    let one = read("roundup_power2_divisions:4");
    assert!([1, 84, 400, 100_000].iter().all(|&size| divisions_at(&one, size) == 4));
}

#[test]
fn keys_of_divisions_cover_from_themselves_to_their_double() {
    let bucket = |settings: &str| read(settings).roundup_power2_divisions;
    let with = |from: usize, to: usize, count: u8| {
        let mut buckets = [0; ROUNDUP_BUCKETS];
        buckets[from..to].fill(count);
        buckets
    };
    let config = read("roundup_power2_divisions:[1:1,256:4]");
    assert_eq!([255, 256, 511, 512].map(|size| divisions_at(&config, size)), [0, 4, 4, 0]);
    // The first key fills everything below it, a later one only its own bucket.
    assert_eq!(bucket("roundup_power2_divisions:[256:4]"), with(0, 9, 4));
    assert_eq!(bucket("roundup_power2_divisions:[1:0,256:4]"), with(8, 9, 4));
    // `>` leaves the last key alone; keys behind the last bucket share it.
    assert_eq!(bucket("roundup_power2_divisions:[256:0,>:8]"), with(9, 16, 8));
    assert_eq!(bucket("roundup_power2_divisions:[1:0,32768:8]"), with(15, 16, 8));
    assert_eq!(bucket("roundup_power2_divisions:[1:0,1048576:8,>:2]"), with(15, 16, 8));
    // Without a key before it, `>` starts behind the first bucket, as in PyTorch.
    assert_eq!(bucket("roundup_power2_divisions:[>:8]"), with(1, 16, 8));
    assert_eq!(bucket("roundup_power2_divisions:[>:8,4:2,>:0]"), with(0, 3, 2));
}

#[test]
fn each_string_resets_what_pytorch_resets_and_keeps_the_rest() {
    let mut config = read(
        "max_split_size_mb:40,roundup_power2_divisions:4,garbage_collection_threshold:0.5,\
         large_segment_size_mb:24,max_non_split_rounding_mb:48,expandable_segments:True,\
         per_process_memory_fraction:0.25,throw_on_cudamalloc_oom:True,\
         pinned_num_register_threads:8,pinned_max_cached_size_mb:32",
    );
    config.headroom = Some(0.5);
    config.memory_limit = Some(GIB);
    config.apply_torch_conf("pinned_use_background_threads:True").expect("a legal string");
    let expected = torch_with(|config| {
        config.large_segment = 24 * MIB;
        config.max_non_split_rounding = 24 * MIB;
        config.expandable_segments = true;
        config.memory_fraction = 0.25;
        config.reject_before_driver = true;
        config.pinned.num_register_threads = 8;
        config.pinned.max_cached_size = Some(32 * MIB);
        config.pinned.use_background_threads = true;
        config.headroom = Some(0.5);
        config.memory_limit = Some(GIB);
    });
    assert_eq!(config, expected);
}

#[test]
fn the_large_segment_is_read_before_the_sizes_that_depend_on_it() {
    let config = read("max_non_split_rounding_mb:12,max_split_size_mb:12,large_segment_size_mb:12");
    assert_eq!(config.max_split_size, Some(12 * MIB));
    assert_eq!(config.max_non_split_rounding, 12 * MIB);
    for settings in [
        "max_split_size_mb:39,large_segment_size_mb:40",
        "large_segment_size_mb:40,max_non_split_rounding_mb:39",
    ] {
        Config::from_torch_conf(settings).expect_err(settings);
    }
}

#[test]
fn the_last_of_two_equal_keys_counts() {
    let config = read(
        "max_split_size_mb:40,expandable_segments:True,roundup_power2_divisions:[1:8,>:8],\
         max_split_size_mb:60,expandable_segments:False,roundup_power2_divisions:[2:4]",
    );
    assert_eq!(config.max_split_size, Some(60 * MIB));
    assert!(!config.expandable_segments);
    assert_eq!(config.roundup_power2_divisions[..3], [4, 4, 0]);
    // Two names of one key are one key.
    let config = read("pinned_use_cuda_host_register:True,pinned_use_hip_host_register:False");
    assert!(!config.pinned.use_host_register);
    Config::from_torch_conf("max_split_size_mb:2,max_split_size_mb:40").expect_err("2 is illegal");
}

#[test]
fn an_error_leaves_the_configuration_unchanged() {
    let before = read("max_split_size_mb:40,roundup_power2_divisions:[256:4],backend:native");
    for bad in [
        "expandable_segments:True,max_split_size_mb:2",
        "max_split_size_mb:80,expandable_segments:maybe",
        "expandable_segments:True,nonsense:1",
        "expandable_segments:True,nonsense",
        "large_segment_size_mb:50,max_split_size_mb:49",
        "garbage_collection_threshold:0.5,pinned_num_register_threads:1024",
    ] {
        let mut config = before.clone();
        config.apply_torch_conf(bad).expect_err(bad);
        assert_eq!(config, before, "{bad}");
    }
    // Fields that were set by hand are checked too.
    let mut config = before.clone();
    config.tie_walk = 0;
    let unchanged = config.clone();
    let error = config.apply_torch_conf("expandable_segments:True").expect_err("tie_walk is 0");
    assert_eq!(error.to_string(), "tie_walk: 0 is not allowed: at least 1");
    assert_eq!(config, unchanged);
}

#[test]
fn what_is_written_is_canonical() {
    let cases = [
        ("", ""),
        ("backend:native,release_lock_on_cudamalloc:True,expandable_segments:False", ""),
        ("max_split_size_mb:0128", "max_split_size_mb:128"),
        (
            "expandable_segments:True, max_split_size_mb:40, large_segment_size_mb:32",
            "large_segment_size_mb:32,max_split_size_mb:40,expandable_segments:True",
        ),
        ("large_segment_size_mb:32,max_non_split_rounding_mb:32", "large_segment_size_mb:32"),
        ("garbage_collection_threshold:8e-1", "garbage_collection_threshold:0.8"),
        ("pinned_use_hip_host_register:True", "pinned_use_cuda_host_register:True"),
        ("roundup_power2_divisions:[1:4,>:4]", "roundup_power2_divisions:4"),
        ("roundup_power2_divisions:[256:0,>:0]", ""),
        (
            "roundup_power2_divisions:[64:8,128:2,256:2,512:2,1024:1,2048:1,>:1]",
            "roundup_power2_divisions:[64:8,128:2,256:2,512:2,>:1]",
        ),
        ("roundup_power2_divisions:[256:4,512:0]", "roundup_power2_divisions:[256:4]"),
        ("roundup_power2_divisions:[>:8]", "roundup_power2_divisions:[1:0,>:8]"),
    ];
    for (settings, canonical) in cases {
        let config = read(settings);
        assert_eq!(config.to_torch_conf(), canonical, "{settings}");
        assert_eq!(read(canonical), config, "{settings}");
    }
    assert_eq!(Config::default().to_torch_conf(), "pinned_max_round_threshold_mb:0");
}

#[test]
fn what_the_format_cannot_say_is_left_out() {
    let config = torch_with(|config| {
        config.large_min = 4 * MIB;
        config.large_segment = 8 * MIB;
        config.max_split_size = Some(9 * MIB);
        config.max_non_split_rounding = 30 * MIB + 512 * KIB;
        config.pinned.max_cached_size = Some(1);
        config.memory_fraction = f64::NAN;
        config.reject_before_driver = true;
    });
    assert_eq!(config.to_torch_conf(), "throw_on_cudamalloc_oom:True");
}

/// A legal setting, by chance.
fn random_setting(random: &mut Random) -> String {
    let boolean = random.pick(&["True", "False"]);
    let size = 20 + random.below(500);
    let fraction = (1 + random.below(997)) as f64 / 999.0;
    match random.below(12) {
        0 => format!("max_split_size_mb:{}", 100 + size),
        1 => format!("max_non_split_rounding_mb:{}", 100 + size),
        2 => format!("large_segment_size_mb:{}", 11 + random.below(90)),
        3 => format!("garbage_collection_threshold:{fraction}"),
        4 => format!("per_process_memory_fraction:{fraction}"),
        5 => format!("expandable_segments:{boolean}"),
        6 => format!("throw_on_cudamalloc_oom:{boolean}"),
        7 => format!("pinned_max_cached_size_mb:{size}"),
        8 => format!("pinned_reserve_segment_size_mb:{size}"),
        9 => format!("roundup_power2_divisions:{}", 2u32.pow(random.below(8) as u32)),
        10 => format!("pinned_num_register_threads:{}", 2u32.pow(random.below(8) as u32)),
        _ => {
            let mut list = Vec::new();
            for _ in 0..random.below(7) {
                let key = 2u32.pow(random.below(18) as u32).to_string();
                let key = if random.below(6) == 0 { ">" } else { &key };
                list.push(format!("{key}:{}", random.pick(&["0", "1", "2", "4", "8", "128"])));
            }
            format!("roundup_power2_divisions:[{}]", list.join(","))
        }
    }
}

#[test]
fn written_strings_read_back_the_same() {
    for seed in 1..=3000 {
        let mut random = Random(seed);
        let settings: Vec<String> =
            (0..random.below(8)).map(|_| random_setting(&mut random)).collect();
        let config = read(&settings.join(","));
        let canonical = config.to_torch_conf();
        assert_eq!(read(&canonical), config, "seed {seed}: {settings:?} gave {canonical}");
        assert_eq!(read(&canonical).to_torch_conf(), canonical, "seed {seed}");
        let mut again = config.clone();
        again.apply_torch_conf(&canonical).expect("its own settings are legal");
        assert_eq!(again, config, "seed {seed}: {canonical} on itself");
    }
}

#[test]
fn nothing_that_is_read_makes_it_panic() {
    let names: Vec<&str> = key_names().collect();
    let pieces = [
        ":",
        ",",
        "[",
        "]",
        ">",
        "True",
        "False",
        "native",
        "0",
        "1",
        "20",
        "64",
        "0.5",
        "-1",
        "1e9",
        "[64:8,128:2,>:4]",
        "18446744073709551615",
        "99999999999999999999",
        " ",
        "\t",
        "\0",
        "é",
        "→",
        "\u{2003}",
        "x",
        "::",
        "[[",
        "]]",
    ];
    let (mut legal, mut refused) = (0, 0);
    for seed in 1..=20_000 {
        let mut random = Random(seed);
        let mut settings = String::new();
        for _ in 0..random.below(12) {
            let from = if random.below(3) == 0 { &names[..] } else { &pieces[..] };
            settings.push_str(random.pick(from));
        }
        let mut config = Config::default();
        match config.apply_torch_conf(&settings) {
            Ok(()) => {
                legal += 1;
                assert_eq!(config.validate(), Ok(()), "{settings:?}");
                read(&config.to_torch_conf());
            }
            Err(error) => {
                refused += 1;
                assert_eq!(config, Config::default(), "{settings:?}");
                assert!(!error.to_string().is_empty());
            }
        }
    }
    assert!(legal > 100 && refused > 100, "{legal} legal, {refused} refused: no test of both");
}

#[test]
fn the_cuda_variable_comes_before_the_general_one() {
    let environment = |cuda: Option<&'static str>, general: Option<&'static str>| {
        first_set(move |name| match name {
            "PYTORCH_CUDA_ALLOC_CONF" => cuda.map(OsString::from),
            "PYTORCH_ALLOC_CONF" => general.map(OsString::from),
            other => panic!("{other} was asked for"),
        })
    };
    assert_eq!(environment(None, None), None);
    assert_eq!(environment(None, Some("b")).as_deref(), Some("b"));
    assert_eq!(environment(Some("a"), Some("b")).as_deref(), Some("a"));
    assert_eq!(environment(Some(""), Some("b")).as_deref(), Some(""), "set but empty is set");
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_no_text_is_refused_by_the_parser_and_not_ignored() {
    use std::os::unix::ffi::OsStringExt;
    let read = first_set(|_| Some(OsString::from_vec(b"expandable_segments:Tr\xffe".to_vec())));
    Config::from_torch_conf(&read.expect("it is set")).expect_err("it is no text");
}
