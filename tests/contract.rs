//! What the allocator promises, on every backend: one suite, stamped over the host, the simulated
//! device, one with virtual memory, one whose work goes on until a hand finishes it, and buffers of
//! wgpu: on the adapter of this machine, and on wgpu's own backend that computes nothing.
//!
//! A failure that is known is declared in [`KNOWN`] with its reason; a test that is declared there
//! and passes fails, so that the list cannot go stale.

#[cfg(feature = "wgpu")]
#[path = "support/bounded.rs"]
mod bounded;
#[cfg(all(feature = "cuda", target_os = "linux"))]
#[path = "support/cuda.rs"]
mod cuda;
#[cfg(all(feature = "cuda", target_os = "linux"))]
#[path = "support/cuda_device.rs"]
mod cuda_device;
#[path = "contract/front.rs"]
mod front;
#[cfg(feature = "wgpu")]
#[path = "support/gpu.rs"]
mod gpu;
#[path = "contract/histories.rs"]
mod histories;
#[path = "contract/limits.rs"]
mod limits;
#[path = "contract/memory.rs"]
mod memory;
#[path = "contract/oom.rs"]
mod oom;
#[path = "contract/pauses.rs"]
mod pauses;
#[path = "contract/pools.rs"]
mod pools;
#[path = "contract/recordings.rs"]
mod recordings;
#[path = "contract/scopes.rs"]
mod scopes;
#[path = "contract/streams.rs"]
mod streams;
mod support;
#[path = "contract/watches.rs"]
mod watches;

use std::panic::{AssertUnwindSafe, catch_unwind};

use aquifer::backend::{Host, Sim};
use aquifer::{Allocator, Config};
#[cfg(feature = "wgpu")]
use bounded::Bounded;
#[cfg(all(feature = "cuda", target_os = "linux"))]
use cuda_device::CudaDevice;
use support::{Device, MIB, asynchronous_sim, expandable, sim, virtual_sim};

/// A backend that the suite runs over.
struct Subject<D> {
    name: &'static str,
    /// Whether this machine has it; if not, that has been said by then.
    is_there: fn() -> bool,
    /// A device of so many bytes.
    make: fn(u64) -> D,
    config: fn() -> Config,
}

impl<D: Device> Subject<D> {
    /// A device of 128 MiB and an allocator over it.
    fn fresh(&self) -> (D, Allocator<D>) {
        self.with(128 * MIB, |_| {})
    }

    /// A device of so many bytes, and an allocator whose configuration differs in some fields.
    fn with(&self, capacity: u64, change: impl FnOnce(&mut Config)) -> (D, Allocator<D>) {
        let device = (self.make)(capacity);
        let mut config = (self.config)();
        change(&mut config);
        (device.clone(), Allocator::new(device, config))
    }

    fn is_expandable(&self) -> bool {
        (self.config)().expandable_segments
    }
}

/// Backend, test, reason.
const KNOWN: &[(&str, &str, &str)] = &[
    ("sim_virtual", "idle_memory_goes_after_its_age", AGE_OF_SEGMENTS),
    ("cuda_pages", "idle_memory_goes_after_its_age", AGE_OF_SEGMENTS),
];

const AGE_OF_SEGMENTS: &str =
    "age is kept for whole segments; pages of a range go by trims and recycling alone";

fn judge<D: Device>(subject: &Subject<D>, test: &str, run: fn(&Subject<D>)) {
    if !(subject.is_there)() {
        return;
    }
    let known = KNOWN.iter().find(|known| (known.0, known.1) == (subject.name, test));
    let Some((_, _, reason)) = known else { return run(subject) };
    let passed = catch_unwind(AssertUnwindSafe(|| run(subject))).is_ok();
    assert!(!passed, "{test} passes on {}: take it out of KNOWN ({reason})", subject.name);
}

const fn subject<D>(name: &'static str, make: fn(u64) -> D) -> Subject<D> {
    Subject { name, is_there: || true, make, config: Config::default }
}

const HOST: Subject<Host> = subject("host", Host::with_capacity);
const SIM: Subject<Sim> = subject("sim", sim);
const SIM_VIRTUAL: Subject<Sim> =
    Subject { config: expandable, ..subject("sim_virtual", virtual_sim) };
const SIM_ASYNCHRONOUS: Subject<Sim> = subject("sim_asynchronous", asynchronous_sim);
#[cfg(feature = "wgpu")]
const WGPU: Subject<Bounded> =
    Subject { is_there: || gpu::Gpu::shared().is_some(), ..subject("wgpu", Bounded::adapter) };
#[cfg(feature = "wgpu")]
const WGPU_NOOP: Subject<Bounded> = subject("wgpu_noop", Bounded::noop);

#[cfg(all(feature = "cuda", target_os = "linux"))]
const CUDA: Subject<CudaDevice> =
    Subject { config: expandable, ..subject("cuda_pages", CudaDevice::with_pages) };
#[cfg(all(feature = "cuda", target_os = "linux"))]
const CUDA_POOL: Subject<CudaDevice> = subject("cuda_pool", CudaDevice::with_pool);
#[cfg(all(feature = "cuda", target_os = "linux"))]
const CUDA_PLAIN: Subject<CudaDevice> = subject("cuda_plain", CudaDevice::plain);

/// Stamps one backend's tests.
macro_rules! stamp {
    (
        $(#[$attribute:meta])* $backend:ident, $subject:expr;
        $($module:ident::{$($test:ident),* $(,)?};)*
    ) => {
        $(#[$attribute])*
        mod $backend {
            $($(
                #[test]
                fn $test() {
                    crate::judge(&$subject, stringify!($test), crate::$module::$test);
                }
            )*)*
        }
    };
}

/// Stamps the whole suite; the second list needs a simulated device.
macro_rules! suite {
    ($($(#[$attribute:meta])* $backend:ident: $subject:expr;)*) => {$(
        stamp! { $(#[$attribute])* $backend, $subject;
            memory::{
                allocations_do_not_overlap, zero_size_holds_nothing, alignment_is_kept_or_refused,
                what_is_beyond_the_device, exhaustion_is_an_error_and_nothing_more,
                empty_cache_returns_what_was_announced, trim_to_keeps_its_floor,
                dropping_the_allocator_returns_all, allocations_outlive_the_allocator,
                a_stream_handle_keeps_no_memory, raw_allocations_are_freed_once,
                raw_allocations_are_freed_by_address, foreign_ids_are_refused,
                a_foreign_allocation_is_misuse, statistics_follow, device_calls_are_counted,
                the_error_says_what_would_help,
            };
            limits::{
                a_limit_binds, a_fraction_binds, fractions_out_of_range_are_refused,
                rejection_comes_before_the_driver, callbacks_by_priority_once_each,
                callbacks_are_not_asked_without_need, a_panic_in_a_callback_is_contained,
                a_callback_that_frees_helps, a_callback_may_allocate, a_dropped_callback_is_silent,
                idle_memory_goes_after_its_age, garbage_collection_needs_no_fraction,
                cached_memory_follows_the_high_water_mark,
            };
            oom::{
                the_error_tells_holes_from_room, the_limit_is_blamed_where_it_is_to_blame,
                a_private_pool_that_would_do_is_named, observers_are_told_once_of_each_failure,
                an_observer_may_do_anything,
            };
            pools::{
                routes_lead_requests, the_innermost_route_wins, a_pool_serves_nobody_else,
                a_pool_may_help_out, a_pool_may_help_out_other_streams,
                unsplit_pools_give_segments_whole, a_live_pool_is_trimmed,
                a_released_pool_goes, a_released_pool_goes_as_it_is_freed,
                a_released_pool_goes_when_streams_are_done, pools_keep_their_statistics,
                a_primed_pool_stays_primed,
            };
            scopes::{
                a_scope_tells_what_it_did, a_scope_names_who_holds_what,
                scopes_overlap_as_they_like, scopes_leave_the_statistics_alone,
                a_scope_sees_all_threads,
            };
            watches::{
                a_threshold_fires_once_a_crossing, fractions_are_of_the_limit_or_the_device,
                what_rises_in_the_cache_is_seen_by_the_clock, a_watch_may_do_anything,
                a_batch_is_halved_until_it_fits, a_batch_of_one_that_does_not_fit_is_an_error,
            };
            front::{
                the_next_request_of_the_size_has_the_block, what_waits_merges_before_anything_grows,
                statistics_see_what_waits_as_free, another_stream_gets_what_waits,
                what_is_freed_of_a_released_pool_does_not_wait, peaks_see_what_comes_out_of_it,
            };
            histories::{
                what_happens_is_recorded, a_history_agrees_with_the_state, the_oldest_events_go,
                actions_can_be_skipped, failures_and_remarks_are_recorded, observers_hear_of_events,
                observers_may_own_memory, observers_hear_of_pools,
            };
            streams::{
                the_same_stream_reuses_at_once, other_streams_reuse_what_is_free,
                a_stream_that_goes_strands_nothing,
                frees_before_a_stream_goes_strand_nothing, a_new_stream_takes_the_place_over,
                handles_of_forgotten_streams_are_misuse, the_default_stream_stays,
                live_allocations_survive_their_stream,
            };
        }
    )*};
}

suite! {
    host: crate::HOST;
    sim: crate::SIM;
    sim_virtual: crate::SIM_VIRTUAL;
    sim_asynchronous: crate::SIM_ASYNCHRONOUS;
    #[cfg(feature = "wgpu")]
    wgpu: crate::WGPU;
    #[cfg(feature = "wgpu")]
    wgpu_noop: crate::WGPU_NOOP;
    #[cfg(all(feature = "cuda", target_os = "linux"))]
    cuda_pages: crate::CUDA;
    #[cfg(all(feature = "cuda", target_os = "linux"))]
    cuda_pool: crate::CUDA_POOL;
    #[cfg(all(feature = "cuda", target_os = "linux"))]
    cuda_plain: crate::CUDA_PLAIN;
}

/// Stamps what needs a backend whose streams are one queue.
macro_rules! one_queue {
    ($($(#[$attribute:meta])* $backend:ident: $subject:expr;)*) => {$(
        stamp! { $(#[$attribute])* $backend, $subject;
            recordings::{
                a_recording_has_its_memory_back_at_once, others_get_nothing_of_an_open_recording,
                what_was_freed_before_a_recording_is_lent, a_use_in_a_recording_is_waited_for,
                a_trim_leaves_open_recordings_alone, exhaustion_beside_a_recording_is_an_error,
                the_error_says_what_waits_for_a_recording, a_recording_stream_cannot_be_forgotten,
                segments_can_be_avoided,
                a_pool_can_be_named, exclusive_segments_are_made_to_measure,
            };
        }
    )*};
}

one_queue! {
    one_queue_host: crate::HOST;
    one_queue_sim: crate::SIM;
    one_queue_sim_virtual: crate::SIM_VIRTUAL;
    #[cfg(feature = "wgpu")]
    one_queue_wgpu: crate::WGPU;
    #[cfg(feature = "wgpu")]
    one_queue_wgpu_noop: crate::WGPU_NOOP;
}

/// Stamps what needs virtual memory.
macro_rules! pausing {
    ($($(#[$attribute:meta])* $backend:ident: $subject:expr;)*) => {$(
        stamp! { $(#[$attribute])* $backend, $subject;
            pauses::{
                a_paused_pool_gives_its_memory_back, a_paused_pool_hands_nothing_out,
                what_is_dropped_while_paused_is_free_after_it, a_pool_without_room_stays_paused,
                a_pool_that_goes_while_paused_strands_nothing,
                an_allocator_that_goes_with_a_paused_pool, no_pause_beside_a_capture,
            };
        }
    )*};
}

pausing! {
    pausing_sim_virtual: crate::SIM_VIRTUAL;
    #[cfg(all(feature = "cuda", target_os = "linux"))]
    pausing_cuda_pages: crate::CUDA;
}

stamp! { on_sim, crate::SIM;
    pauses::{only_virtual_memory_is_paused};
    front::{what_waits_is_lost_with_the_device};
    memory::{the_largest_segment_can_be_had};
    pools::{a_capture_makes_no_call, a_captured_pool_keeps_its_memory};
    limits::{a_lost_device_serves_nothing};
    streams::{a_hit_makes_no_call};
}
stamp! { on_sim_virtual, crate::SIM_VIRTUAL;
    oom::{expandable_segments_are_recommended_where_they_help};
    front::{what_waits_is_lost_with_the_device};
    memory::{the_largest_segment_can_be_had};
    pools::{a_capture_makes_no_call, a_captured_pool_keeps_its_memory};
    limits::{a_lost_device_serves_nothing, a_refused_growth_leaves_its_donors_alone};
    streams::{a_hit_makes_no_call, pages_stay_while_work_runs_after_the_allocator};
}
stamp! { on_sim_asynchronous, crate::SIM_ASYNCHRONOUS;
    pools::{a_capture_makes_no_call};
    streams::{
        recorded_streams_are_waited_for, a_wait_of_one_stream_is_not_one_of_all,
        events_are_recorded_lazily,
    };
}
