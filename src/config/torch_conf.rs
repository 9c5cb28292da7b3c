//! The strings of `PYTORCH_CUDA_ALLOC_CONF`: reading, and writing in one canonical form.
//!
//! ```text
//!   settings := [ setting { "," setting } [ "," ] ]
//!   setting  := key ":" ( value | "[" [ k ":" v { "," k ":" v } [ "," ] ] "]" )
//! ```
//!
//! White space is ignored wherever it stands, and booleans are exactly `True` and `False`. What
//! PyTorch does is done here too:
//!
//! - Each string resets `max_split_size_mb`, `roundup_power2_divisions` and
//!   `garbage_collection_threshold` to off, and `max_non_split_rounding_mb` to the size of a large
//!   segment. All other keys keep their value unless the string names them.
//! - `large_segment_size_mb` is read before the rest, wherever it stands.
//! - Of a key that is given twice the last value counts (though all of them must be legal).
//!
//! Three things differ. A number is a number to its end (`20abc` and `-1` are refused, where C++
//! reads 20 and 2⁶⁴ − 1); a size above 2⁶⁰ bytes is an error and not cut; and an error leaves the
//! configuration as it was.
//!
//! These keys are accepted and change nothing, so that strings which work in PyTorch work here:
//!
//! - `backend:native`. The asynchronous backend is refused: a backend is a type here.
//! - `release_lock_on_cudamalloc`: the lock is never held across a driver call. `True` is always
//!   the case, and `False` does not undo it.
//! - `pinned_free_catch_all`: no memory that another allocator made is ever freed here.
//! - `expandable_segments_handle_type`: memory is not shared with other processes.
//!
//! Reading costs O(length of the string × number of keys) and happens once in a program.
#![forbid(unsafe_code)]

use std::ffi::OsString;

use super::{
    Config, ConfigError, ROUNDUP_BUCKETS, THREADS_ALLOWED, THRESHOLD_ALLOWED, is_memory_fraction,
    is_thread_count, is_threshold,
};
use crate::units::{Bytes, MIB, REQUEST_MAX, SEGMENT_MAX};

/// The string that configures PyTorch in this environment, if there is one.
///
/// `PYTORCH_CUDA_ALLOC_CONF` comes first, then `PYTORCH_ALLOC_CONF`; the first that is set counts,
/// empty or not, and they are not combined. PyTorch itself asks in either order, depending on the
/// key. This is the only place of the crate that looks at the environment, and nothing calls it but
/// you.
///
/// # Examples
/// ```
/// use aquifer::config::{Config, torch_conf_from_env};
///
/// let mut config = Config::default();
/// if let Some(settings) = torch_conf_from_env() {
///     config.apply_torch_conf(&settings)?;
/// }
/// # Ok::<(), aquifer::config::ConfigError>(())
/// ```
pub fn torch_conf_from_env() -> Option<String> {
    first_set(|name| std::env::var_os(name))
}

/// Bytes that are no text become replacement characters, for the parser to refuse: a setting that
/// cannot be read must not pass for one that is absent.
pub(super) fn first_set(variable: impl Fn(&str) -> Option<OsString>) -> Option<String> {
    ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"]
        .into_iter()
        .find_map(variable)
        .map(|value| value.to_string_lossy().into_owned())
}

impl Config {
    /// [`Config::torch`] with the settings of a `PYTORCH_CUDA_ALLOC_CONF` string.
    ///
    /// # Errors
    /// As [`Config::apply_torch_conf`].
    ///
    /// # Examples
    /// ```
    /// use aquifer::config::Config;
    /// use aquifer::units::MIB;
    ///
    /// let config = Config::from_torch_conf("expandable_segments:True, max_split_size_mb:128")?;
    /// assert_eq!(config.max_split_size, Some(128 * MIB));
    /// let error = Config::from_torch_conf("garbage_collection_threshold:1.2").unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     "garbage_collection_threshold: 1.2 is not allowed: a number above 0 and below 1"
    /// );
    /// # Ok::<(), aquifer::config::ConfigError>(())
    /// ```
    pub fn from_torch_conf(settings: &str) -> Result<Self, ConfigError> {
        let mut config = Self::torch();
        config.apply_torch_conf(settings)?;
        Ok(config)
    }

    /// Applies a `PYTORCH_CUDA_ALLOC_CONF` string, such as
    /// `max_split_size_mb:128,roundup_power2_divisions:[256:1,512:2,>:8]`.
    ///
    /// Four settings go back to their defaults when the string does not name them:
    /// `max_split_size`, `max_non_split_rounding` (to `large_segment`), `roundup_power2_divisions`
    /// and `garbage_collection_threshold`. The empty string does only that.
    ///
    /// # Errors
    /// [`ConfigError`] for an unknown key, a value that is not allowed, a part that is no setting,
    /// or fields that [`validate`](Config::validate) refuses in the end; `self` is unchanged then.
    pub fn apply_torch_conf(&mut self, settings: &str) -> Result<(), ConfigError> {
        let settings: String = settings.chars().filter(|c| !c.is_whitespace()).collect();
        let settings = split_settings(&settings)?;
        let mut config = self.clone();
        config.max_split_size = None;
        config.max_non_split_rounding = config.large_segment;
        config.roundup_power2_divisions = [0; ROUNDUP_BUCKETS];
        config.garbage_collection_threshold = None;
        // The order of the table and not of the string: sizes of splitting are measured against the
        // size of a large segment, which is the first key.
        for key in KEYS {
            for setting in settings.iter().filter(|setting| std::ptr::eq(setting.key, key)) {
                (key.read)(&mut config, setting.value).ok_or_else(|| setting.refused())?;
            }
        }
        config.validate()?;
        *self = config;
        Ok(())
    }

    /// The settings in which this differs from [`Config::torch`], as PyTorch would be given them:
    /// keys in one fixed order, no white space, the shortest list of divisions.
    ///
    /// [`Config::from_torch_conf`] reads the result back to the same values. What the format cannot
    /// say (sizes that are no whole MiB, values that PyTorch refuses, our own fields) is left out.
    ///
    /// # Examples
    /// ```
    /// use aquifer::config::Config;
    ///
    /// let config = Config::from_torch_conf("expandable_segments : True, backend:native")?;
    /// assert_eq!(config.to_torch_conf(), "expandable_segments:True");
    /// # Ok::<(), aquifer::config::ConfigError>(())
    /// ```
    pub fn to_torch_conf(&self) -> String {
        let mut settings = Vec::new();
        let mut config = Self::torch();
        for key in KEYS {
            let Some(value) = (key.write)(self) else { continue };
            let mut next = config.clone();
            if (key.read)(&mut next, &value).is_some() && next != config {
                settings.push(format!("{}:{value}", key.names[0]));
                config = next;
            }
        }
        settings.join(",")
    }
}

/// All names of all keys, in the order of the table.
pub(super) fn key_names() -> impl Iterator<Item = &'static str> {
    KEYS.iter().flat_map(|key| key.names.iter().copied())
}

/// One `key:value`, the key found.
struct Setting<'a> {
    key: &'static Key,
    name: &'static str,
    value: &'a str,
}

impl Setting<'_> {
    fn refused(&self) -> ConfigError {
        let allowed = self.key.allowed;
        ConfigError::BadValue { key: self.name, value: self.value.to_owned(), allowed }
    }
}

/// Takes a string without white space apart, at the commas that are not in brackets.
fn split_settings(text: &str) -> Result<Vec<Setting<'_>>, ConfigError> {
    let mut settings = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut in_list = false;
        let end = rest.find(|c| {
            in_list = c == '[' || in_list && c != ']';
            c == ',' && !in_list
        });
        let (part, after) = match end {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, ""),
        };
        let Some((name, value)) = part.split_once(':') else {
            return Err(ConfigError::NotASetting { text: part.to_owned() });
        };
        settings.push(find_key(name, value)?);
        rest = after;
    }
    Ok(settings)
}

fn find_key<'a>(written: &str, value: &'a str) -> Result<Setting<'a>, ConfigError> {
    for key in KEYS {
        if let Some(name) = key.names.iter().find(|name| **name == written) {
            return Ok(Setting { key, name, value });
        }
    }
    Err(ConfigError::UnknownKey { key: written.to_owned() })
}

/// A row of the table: how one key is read and written.
struct Key {
    /// The name in PyTorch's CUDA build first, then that of its ROCm build.
    names: &'static [&'static str],
    /// Puts the value into the configuration; `None` if it is not allowed.
    read: fn(&mut Config, &str) -> Option<()>,
    /// The value as `read` takes it; `None` if there is no text for it, or nothing to say.
    write: fn(&Config) -> Option<String>,
    /// What `read` allows, in words.
    allowed: &'static str,
}

const BOOLEAN: &str = "True or False";
const MIB_ALLOWED: &str = "a whole number of MiB up to 1099511627776";
const SPLIT_ALLOWED: &str =
    "a whole number of MiB from large_segment_size_mb (20 if not given) up to 1099511627776";

/// Every key. The first must stay the first: see [`Config::apply_torch_conf`].
static KEYS: &[Key] = &[
    Key {
        names: &["large_segment_size_mb"],
        read: read_large_segment,
        write: |config| mib_text(config.large_segment),
        allowed: "a whole number of MiB above 10 (large_min) and below 2097152",
    },
    Key {
        names: &["max_split_size_mb"],
        read: |config, text| {
            config.max_split_size = Some(mib(text).filter(|&size| size >= config.large_segment)?);
            Some(())
        },
        write: |config| config.max_split_size.and_then(mib_text),
        allowed: SPLIT_ALLOWED,
    },
    Key {
        names: &["max_non_split_rounding_mb"],
        read: |config, text| {
            let size = mib(text).filter(|&size| size >= config.large_segment)?;
            config.max_non_split_rounding = size;
            Some(())
        },
        write: |config| mib_text(config.max_non_split_rounding),
        allowed: SPLIT_ALLOWED,
    },
    Key {
        names: &["roundup_power2_divisions"],
        read: |config, text| {
            config.roundup_power2_divisions = divisions(text)?;
            Some(())
        },
        write: |config| Some(divisions_text(&config.roundup_power2_divisions)),
        allowed: "a power of two up to 128, or a list such as [256:1,512:2,>:8] of MiB, powers of \
                  two, and divisions, powers of two up to 128 or 0",
    },
    Key {
        names: &["garbage_collection_threshold"],
        read: |config, text| {
            let threshold = number(text).filter(|&threshold| is_threshold(threshold))?;
            config.garbage_collection_threshold = Some(threshold);
            Some(())
        },
        write: |config| config.garbage_collection_threshold.map(|threshold| threshold.to_string()),
        allowed: THRESHOLD_ALLOWED,
    },
    Key {
        names: &["expandable_segments"],
        read: |config, text| boolean(text).map(|on| config.expandable_segments = on),
        write: |config| boolean_text(config.expandable_segments),
        allowed: BOOLEAN,
    },
    Key {
        names: &["expandable_segments_handle_type"],
        read: |_, text| matches!(text, "unspecified" | "posix_fd" | "fabric_handle").then_some(()),
        write: |_| None,
        allowed: "unspecified, posix_fd or fabric_handle (none of them has an effect)",
    },
    Key {
        names: &["per_process_memory_fraction"],
        read: |config, text| {
            config.memory_fraction = number(text).filter(|&part| is_memory_fraction(part))?;
            Some(())
        },
        write: |config| Some(config.memory_fraction.to_string()),
        allowed: "a number from 0 to 1",
    },
    Key {
        names: &["throw_on_cudamalloc_oom"],
        read: |config, text| boolean(text).map(|on| config.reject_before_driver = on),
        write: |config| boolean_text(config.reject_before_driver),
        allowed: BOOLEAN,
    },
    Key {
        names: &["graph_capture_record_stream_reuse"],
        read: |config, text| boolean(text).map(|on| config.graph_capture_record_stream_reuse = on),
        write: |config| boolean_text(config.graph_capture_record_stream_reuse),
        allowed: BOOLEAN,
    },
    Key {
        names: &["backend"],
        read: |_, text| (text == "native").then_some(()),
        write: |_| None,
        allowed: "native; instead of cudaMallocAsync give the allocator a backend that takes its \
                  segments from a memory pool of the driver",
    },
    Key {
        names: &["release_lock_on_cudamalloc", "release_lock_on_hipmalloc"],
        read: |_, text| boolean(text).map(drop),
        write: |_| None,
        allowed: "True or False (the lock is released either way)",
    },
    Key {
        names: &["pinned_use_cuda_host_register", "pinned_use_hip_host_register"],
        read: |config, text| boolean(text).map(|on| config.pinned.use_host_register = on),
        write: |config| boolean_text(config.pinned.use_host_register),
        allowed: BOOLEAN,
    },
    Key {
        names: &["pinned_num_register_threads"],
        read: |config, text| {
            let count = text.parse().ok().filter(|&count| is_thread_count(count))?;
            config.pinned.num_register_threads = count;
            Some(())
        },
        write: |config| Some(config.pinned.num_register_threads.to_string()),
        allowed: THREADS_ALLOWED,
    },
    Key {
        names: &["pinned_use_background_threads"],
        read: |config, text| boolean(text).map(|on| config.pinned.use_background_threads = on),
        write: |config| boolean_text(config.pinned.use_background_threads),
        allowed: BOOLEAN,
    },
    Key {
        names: &["pinned_reserve_segment_size_mb"],
        read: |config, text| {
            let size = mib(text).filter(|&size| size > 0 && size <= SEGMENT_MAX)?;
            config.pinned.reserve_segment_size = size;
            Some(())
        },
        write: |config| mib_text(config.pinned.reserve_segment_size),
        allowed: "a whole number of MiB above 0 and below 2097152",
    },
    Key {
        names: &["pinned_free_catch_all"],
        read: |_, text| boolean(text).map(drop),
        write: |_| None,
        allowed: BOOLEAN,
    },
    Key {
        names: &["pinned_max_round_threshold_mb"],
        read: |config, text| mib(text).map(|size| config.pinned.max_round_threshold = Some(size)),
        write: |config| config.pinned.max_round_threshold.and_then(mib_text),
        allowed: MIB_ALLOWED,
    },
    Key {
        names: &["pinned_max_cached_size_mb"],
        read: |config, text| mib(text).map(|size| config.pinned.max_cached_size = Some(size)),
        write: |config| config.pinned.max_cached_size.and_then(mib_text),
        allowed: MIB_ALLOWED,
    },
];

/// A large segment must be larger than any request that shares one, and brings the slack of blocks
/// that are not split with it.
fn read_large_segment(config: &mut Config, text: &str) -> Option<()> {
    let size = mib(text).filter(|&size| size > config.large_min && size <= SEGMENT_MAX)?;
    config.large_segment = size;
    config.max_non_split_rounding = size;
    Some(())
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

fn boolean_text(on: bool) -> Option<String> {
    Some(if on { "True" } else { "False" }.to_owned())
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok()
}

fn mib(text: &str) -> Option<Bytes> {
    text.parse::<Bytes>().ok()?.checked_mul(MIB).filter(|&size| size <= REQUEST_MAX)
}

fn mib_text(size: Bytes) -> Option<String> {
    size.is_multiple_of(MIB).then(|| (size / MIB).to_string())
}

/// One number for all buckets, or a list: key `K` is the bucket of sizes in [K, 2K) MiB. The first
/// key also fills the buckets below it, and `>` those above the key before it.
///
/// PyTorch's manual calls `K` an upper bound; its code, and its tests, do what is done here.
fn divisions(text: &str) -> Option<[u8; ROUNDUP_BUCKETS]> {
    let Some(list) = text.strip_prefix('[') else {
        return Some([text.parse().ok().filter(|n: &u8| n.is_power_of_two())?; ROUNDUP_BUCKETS]);
    };
    let list = list.strip_suffix(']')?;
    let mut buckets = [0; ROUNDUP_BUCKETS];
    let mut first = true;
    let mut last = 0;
    for pair in list.strip_suffix(',').unwrap_or(list).split(',').filter(|_| !list.is_empty()) {
        let (key, count) = pair.split_once(':')?;
        let count = count.parse().ok().filter(|n: &u8| *n == 0 || n.is_power_of_two())?;
        if key == ">" {
            buckets[last + 1..].fill(count);
            continue;
        }
        let key: u64 = key.parse().ok().filter(|key: &u64| key.is_power_of_two())?;
        last = (key.ilog2() as usize).min(ROUNDUP_BUCKETS - 1);
        if first {
            buckets[..last].fill(count);
            first = false;
        }
        buckets[last] = count;
    }
    Some(buckets)
}

/// The shortest text that [`divisions`] reads as these buckets; the 0 of all buckets off is one
/// that PyTorch refuses, so it is never written: a string that does not name the key says the same.
fn divisions_text(buckets: &[u8; ROUNDUP_BUCKETS]) -> String {
    let (lowest, highest) = (buckets[0], buckets[ROUNDUP_BUCKETS - 1]);
    let Some(above_lowest) = buckets.iter().position(|&count| count != lowest) else {
        return lowest.to_string();
    };
    let last = buckets.iter().rposition(|&count| count != highest).unwrap_or(0);
    let mut list: Vec<String> = (above_lowest - 1..=last)
        .map(|key| format!("{}:{}", 2u32.pow(key as u32), buckets[key]))
        .collect();
    if highest != 0 {
        list.push(format!(">:{highest}"));
    }
    format!("[{}]", list.join(","))
}
