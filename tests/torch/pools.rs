//! G, H and I of the list: captures and private pools.
//!
//! A capture here makes no backend call: its pool has to be primed. What PyTorch's tests say of the
//! memory that a capture takes is therefore tested with a route into the pool, which is what
//! PyTorch's own capture uses underneath.

use std::sync::Barrier;

use aquifer::backend::{Backend, MemoryKind, Sim, SimOptions};
use aquifer::report::oom::OomCause;
use aquifer::report::snapshot::{BlockState, SegmentSnapshot};
use aquifer::units::{GIB, MIB};
use aquifer::{Allocation, Bytes, PoolId, PoolOptions, PrivatePool};

use super::{Dice, Lab, address, in_both_modes, layout};

const SMALL_BUFFER: Bytes = 2 * MIB;
const LARGE_BUFFER: Bytes = 20 * MIB;

in_both_modes! {
    g1_graph_capture_oom,
    g2_graph_memory_stats,
    g3_graph_record_stream,
    g4_sharing_a_pool_saves_one_segment,
    g5_capture_reset_recapture,
    g6_graph_allocator_propagates_stream,
    g7_other_threads_allocate_during_a_capture,
    h3_check_pool_live_allocations,
    h4_allocate_in_thread_to_pool,
    i1_mempool_id,
    i2_pool_id_in_snapshot,
    i3_mempool_empty_cache,
    i4_mempool_with_allocator,
    i5_tensor_delete_after_allocator_delete,
    i6_mempool_limited_memory,
    i7_release_cached_blocks_during_diversion,
    i8_block_free_not_deferred,
    i9_no_split,
    i10_deleted_mempool_not_used_on_oom,
    i11_empty_cache_multithread,
    i12_nested_mempool,
    i13_context_multithread,
    i16_same_order_same_addresses,
    i17_reserved_bytes_by_private_pools,
}

fn pool_of(lab: &Lab) -> PrivatePool<Sim> {
    lab.allocator.create_pool(PoolOptions::default())
}

/// `size` bytes on the default stream, led to a pool.
#[track_caller]
fn get_in(lab: &Lab, pool: &PrivatePool<Sim>, size: Bytes) -> Allocation<Sim> {
    let _route = pool.route_thread();
    lab.get(size)
}

fn segments_of(lab: &Lab, id: PoolId) -> Vec<SegmentSnapshot> {
    lab.segments().into_iter().filter(|segment| segment.pool_id == id).collect()
}

/// G1 `test_graph_capture_oom`: a capture that finds no memory fails as such, and everything lives.
fn g1_graph_capture_oom(expandable: bool) {
    let lab = Lab::of(GIB, expandable);
    let (stream, pool) = (lab.allocator.stream(1), pool_of(&lab));
    let guard = lab.allocator.begin_capture(&stream, &pool);
    let error = lab.allocator.allocate_on(&stream, 2 * GIB).expect_err("more than there is");
    assert!(error.to_string().starts_with("out of memory"), "{error}");
    drop(guard);
    lab.allocator.allocate_on(&stream, MIB).expect("the device works on");
    lab.allocator.verify();
}

/// The statistics of one group that `test_graph_memory_stats_…` looks at.
fn graph_stats(lab: &Lab, group: &str) -> [i64; 4] {
    let gauges = ["segment", "reserved_bytes", "active", "active_bytes"];
    gauges.map(|gauge| lab.stat(&format!("{gauge}.{group}.current")))
}

/// G2 `test_graph_memory_stats_and_use_result_after_destroy_graph`: what a pool takes for three
/// live tensors of each size, and what is left once only one lives on without the pool.
fn g2_graph_memory_stats(expandable: bool) {
    let own = 12 * MIB;
    // Size, group, fixed segments while the pool lives and after, reserved bytes of expandable
    // ones.
    for (size, group, segments, (fixed, fixed_left), (grown, grown_left)) in [
        (512, "small_pool", 1, (SMALL_BUFFER, SMALL_BUFFER), (SMALL_BUFFER, SMALL_BUFFER)),
        (MIB, "small_pool", 2, (2 * SMALL_BUFFER, SMALL_BUFFER), (2 * SMALL_BUFFER, SMALL_BUFFER)),
        (MIB + 512, "large_pool", 1, (LARGE_BUFFER, LARGE_BUFFER), (LARGE_BUFFER, LARGE_BUFFER)),
        (10 * MIB - 512, "large_pool", 2, (40 * MIB, LARGE_BUFFER), (40 * MIB, 40 * MIB)),
        (10 * MIB + 512, "large_pool", 3, (3 * own, own), (40 * MIB, LARGE_BUFFER)),
    ] {
        let lab = Lab::new(expandable);
        let stream = lab.allocator.stream(1);
        let get = || lab.allocator.allocate_on(&stream, size).expect("a tensor");
        let a = get();
        let before = graph_stats(&lab, group);
        let pool = pool_of(&lab);
        let route = pool.route_stream(&stream);
        // b = a.clone(); five times b = b.clone() + 1
        let mut b = get();
        for _ in 0..5 {
            let clone = get();
            let sum = get();
            drop(clone);
            b = sum;
        }
        drop(route);
        let count = |fixed: i64| if expandable { 0 } else { fixed };
        let bytes = |fixed: Bytes, grown: Bytes| if expandable { grown } else { fixed } as i64;
        for _ in 0..2 {
            let after = graph_stats(&lab, group);
            let delta: Vec<i64> = after.iter().zip(before).map(|(now, then)| now - then).collect();
            let expected = [count(segments), bytes(fixed, grown), 1, size as i64];
            assert_eq!(delta, expected, "{size} bytes, the pool alive");
            lab.allocator.empty_cache();
        }
        drop(pool);
        lab.allocator.empty_cache();
        let after = graph_stats(&lab, group);
        let delta: Vec<i64> = after.iter().zip(before).map(|(now, then)| now - then).collect();
        let expected = [count(1), bytes(fixed_left, grown_left), 1, size as i64];
        assert_eq!(delta, expected, "{size} bytes, the pool gone");
        assert!(lab.sim.is_accessible(address(&b), size), "the result is still there");
        drop((a, b));
        lab.allocator.empty_cache();
        assert_eq!(lab.sim.used_bytes(), 0);
    }
}

/// G3 `test_graph_record_stream`: during a capture no event is asked for or recorded on its
/// streams; what is freed then while used by another of its streams is put off, and recovered
/// later.
fn g3_graph_record_stream(expandable: bool) {
    let lab = Lab::asynchronous(GIB, expandable);
    let [s0, s1, s2] = [1, 2, 3].map(|raw| lab.allocator.stream(raw));
    let outstanding = lab.allocator.allocate_on(&s1, 12).expect("a tensor");
    let pool = pool_of(&lab);
    pool.prime(&s1, 12).expect("a small segment");
    lab.sim.submit(1);
    lab.allocator.record_stream(&outstanding, &s0);
    drop(outstanding);

    let calls = lab.sim.calls();
    let captures = [&s1, &s2].map(|stream| lab.allocator.begin_capture(stream, &pool));
    let b = lab.allocator.allocate_on(&s1, 12).expect("the pool was primed");
    let at = address(&b);
    lab.allocator.record_stream(&b, &s2);
    drop(b);
    let c = lab.allocator.allocate_on(&s1, 12).expect("the pool was primed");
    assert_ne!(address(&c), at, "b is put off");
    assert_eq!(lab.block_at(at).map(|block| block.state), Some(BlockState::Pending));
    drop(c);
    assert_eq!(lab.sim.calls(), calls, "a capture calls no backend");
    drop(captures);

    // The next request records what was put off, and finds it once the device has passed it.
    lab.get(12);
    lab.sim.complete_all();
    lab.get(12);
    let pending = lab.stat("active.all.current") - lab.stat("allocation.all.current");
    assert_eq!(pending, 0, "both are recovered");
    lab.allocator.verify();
}

/// G4 `test_graph_two_successive`: two graphs that share a pool take one segment of 2 MiB less.
fn g4_sharing_a_pool_saves_one_segment(expandable: bool) {
    let reserved = |shared: bool| {
        let lab = Lab::new(expandable);
        let pools = [pool_of(&lab), pool_of(&lab)];
        let graph = |pool: &PrivatePool<Sim>| {
            let mut b = get_in(&lab, pool, 4000);
            for _ in 0..5 {
                let temporary = get_in(&lab, pool, 4000);
                b = get_in(&lab, pool, 4000);
                drop(temporary);
            }
            b
        };
        let results = [graph(&pools[0]), graph(&pools[usize::from(!shared)])];
        let reserved = lab.allocator.memory_reserved();
        drop(results);
        reserved
    };
    assert_eq!(reserved(false) - reserved(true), SMALL_BUFFER);
}

/// G5 `test_graph_capture_reset_recapture`: a capture, its pool dropped, and another one: the books
/// are as before each time. (The generators of random numbers are kernels' business.)
fn g5_capture_reset_recapture(expandable: bool) {
    let lab = Lab::new(expandable);
    let stream = lab.allocator.stream(1);
    let before = lab.allocator.memory_stats();
    for _ in 0..3 {
        let pool = pool_of(&lab);
        pool.prime(&stream, 4000).expect("a small segment");
        let capture = lab.allocator.begin_capture(&stream, &pool);
        let b = lab.allocator.allocate_on(&stream, 512).expect("the pool was primed");
        let offset = lab.allocator.allocate_on(&stream, 512).expect("the pool was primed");
        drop(capture);
        assert_eq!(lab.allocator.memory_stats().active.all.current, 2);
        assert_eq!(lab.allocator.memory_stats().active_bytes.all.current, 1024);
        drop((b, offset, pool));
        lab.allocator.empty_cache();
        let after = lab.allocator.memory_stats();
        assert_eq!(after.active.all.current, before.active.all.current);
        assert_eq!(after.reserved_bytes.all.current, before.reserved_bytes.all.current);
        assert_eq!(lab.sim.used_bytes(), 0);
    }
}

/// G6 `test_cuda_graph_allocator_propagates_stream`: a second stream of a graph takes its memory
/// from the same pool, in a segment of its own.
fn g6_graph_allocator_propagates_stream(expandable: bool) {
    let lab = Lab::new(expandable);
    let (s0, s1) = (lab.allocator.stream(1), lab.allocator.stream(2));
    let _x = [lab.get(10_240_000 * 4), lab.get(10_240_000 * 4)];
    let known: Vec<PoolId> = lab.segments().iter().map(|segment| segment.pool_id).collect();
    let pool = pool_of(&lab);
    let routes = [pool.route_stream(&s0), pool.route_stream(&s1)];
    let _z = lab.allocator.allocate_on(&s0, 10_240_000 * 4).expect("a tensor");
    let _w = lab.allocator.allocate_on(&s1, 10_240_000 * 4).expect("a tensor");
    drop(routes);
    let new: Vec<PoolId> = lab.segments().iter().map(|segment| segment.pool_id).collect();
    let new: Vec<&PoolId> = new.iter().filter(|id| !known.contains(id)).collect();
    assert_eq!(new, [&pool.id(); 2]);
}

/// G7 `test_cuda_graph_error_options`: while one thread captures, another may allocate and grow.
fn g7_other_threads_allocate_during_a_capture(expandable: bool) {
    let lab = Lab::new(expandable);
    let (stream, pool) = (lab.allocator.stream(1), pool_of(&lab));
    let capture = lab.allocator.begin_capture(&stream, &pool);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| lab.allocator.request(100 * MIB).allocate_raw());
        let raw = other.join().expect("no panic").expect("memory");
        lab.allocator.free_raw(raw.id).expect("it is live");
    });
    drop(capture);
    assert_eq!(segments_of(&lab, PoolId::default()).len(), 1);
    assert_eq!(segments_of(&lab, pool.id()).len(), 0);
}

/// H3 `test_check_pool_live_allocations`: the live blocks of a pool are exactly those held.
fn h3_check_pool_live_allocations(expandable: bool) {
    let lab = Lab::new(expandable);
    let pool = pool_of(&lab);
    let live = || {
        let mut live = Vec::new();
        for segment in segments_of(&lab, pool.id()) {
            let base = segment.address.expect("an address");
            let held = segment.blocks.iter().filter(|b| b.state == BlockState::Allocated);
            live.extend(held.map(|block| base + block.offset));
        }
        live.sort_unstable();
        live
    };
    let _outside = lab.get(LARGE_BUFFER);
    let mut tensors: Vec<_> = (1..8).map(|n| get_in(&lab, &pool, n * 700_000)).collect();
    while !tensors.is_empty() {
        let mut held: Vec<u64> = tensors.iter().map(address).collect();
        held.sort_unstable();
        assert_eq!(live(), held);
        tensors.remove(tensors.len() / 2);
    }
    assert_eq!(live(), []);
}

/// H4 `test_allocate_in_thread_to_pool`: only the routed thread uses the pool: a small segment and
/// three large ones, or one range of each; nothing once the pool is gone and the cache emptied.
fn h4_allocate_in_thread_to_pool(expandable: bool) {
    let lab = Lab::new(expandable);
    let pool = pool_of(&lab);
    drop(get_in(&lab, &pool, 16));
    let alloc_three = || {
        let [a, b] = [lab.get(LARGE_BUFFER), lab.get(LARGE_BUFFER)];
        drop((lab.get(LARGE_BUFFER), a, b));
    };
    let both = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let route = pool.route_thread();
            both.wait();
            for _ in 0..10 {
                alloc_three();
            }
            drop(route);
            alloc_three();
        });
        scope.spawn(|| {
            both.wait();
            for _ in 0..10 {
                drop([lab.get(LARGE_BUFFER), lab.get(LARGE_BUFFER)]);
            }
        });
    });
    let id = pool.id();
    assert_eq!(segments_of(&lab, id).len(), if expandable { 2 } else { 4 });
    drop(pool);
    lab.allocator.empty_cache();
    assert_eq!(segments_of(&lab, id).len(), 0);
    assert_eq!(lab.sim.used_bytes(), 0);
}

/// H5 `test_expandable_segment_checkpoint_growth`, without the checkpoints: what is left of the
/// last page after 2 MiB, after 32 MiB in its place, and after 2 MiB again.
#[test]
fn h5_expandable_checkpoint_growth() {
    let lab = Lab::new(true);
    let pool = pool_of(&lab);
    let blocks = || {
        let segments = segments_of(&lab, pool.id());
        assert_eq!(segments.len(), 1);
        layout(&segments[0])
    };
    let small = get_in(&lab, &pool, 2 * MIB);
    assert_eq!(blocks(), [(2 * MIB, true), (18 * MIB, false)]);
    drop(small);
    let large = get_in(&lab, &pool, 32 * MIB);
    assert_eq!(blocks(), [(32 * MIB, true), (8 * MIB, false)]);
    drop(large);
    let _small = get_in(&lab, &pool, 2 * MIB);
    assert_eq!(blocks(), [(2 * MIB, true), (38 * MIB, false)]);
}

/// I1 `test_mempool_id`, `test_mempool_multithread`: ids are unique, their first part is 0.
fn i1_mempool_id(expandable: bool) {
    let lab = Lab::new(expandable);
    let mut ids = vec![pool_of(&lab).id(), pool_of(&lab).id()];
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| pool_of(&lab).id())).collect();
        ids.extend(threads.into_iter().map(|thread| thread.join().expect("no panic")));
    });
    assert!(ids.iter().all(|id| id.0 == 0 && *id != PoolId::default()), "{ids:?}");
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 6);
}

/// I2 `test_pool_id_in_snapshot`: a segment names its pool.
fn i2_pool_id_in_snapshot(expandable: bool) {
    let lab = Lab::new(expandable);
    let pool = pool_of(&lab);
    let inside = get_in(&lab, &pool, LARGE_BUFFER);
    let outside = lab.get(LARGE_BUFFER);
    for (tensor, id) in [(inside, pool.id()), (outside, PoolId::default())] {
        let segments = segments_of(&lab, id);
        assert_eq!(segments.len(), 1);
        assert_eq!(segments[0].address, Some(address(&tensor)));
    }
}

/// I3 `test_mempool_empty_cache(_inactive)`: a dropped pool's memory goes only after its last
/// tensor.
fn i3_mempool_empty_cache(expandable: bool) {
    let lab = Lab::new(expandable);
    let pool = pool_of(&lab);
    let (id, tensor) = (pool.id(), get_in(&lab, &pool, LARGE_BUFFER));
    drop(pool);
    lab.allocator.empty_cache();
    assert_eq!(segments_of(&lab, id).len(), 1);
    assert!(lab.sim.is_accessible(address(&tensor), LARGE_BUFFER));
    drop(tensor);
    lab.allocator.empty_cache();
    assert_eq!(segments_of(&lab, id).len(), 0);
    let calls = lab.sim.calls();
    assert_eq!((calls.free, calls.unmap), if expandable { (0, 1) } else { (1, 0) });
    // Inactive from the start: nothing was ever taken from it.
    drop(pool_of(&lab));
    assert_eq!(lab.allocator.empty_cache(), 0);
}

/// I4 `test_mempool_with_allocator`: the count of its users, segments as tensors come, all of it
/// back when it is dropped.
fn i4_mempool_with_allocator(expandable: bool) {
    let lab = Lab::new(expandable);
    let pool = pool_of(&lab);
    // Of a range the pages count that are behind it.
    let counted = || {
        let segments = segments_of(&lab, pool.id());
        let bytes: Bytes = segments.iter().map(|segment| segment.total_size).sum();
        if expandable { (bytes / SMALL_BUFFER) as usize } else { segments.len() }
    };
    assert_eq!(pool.use_count(), 1);
    let route = pool.route_thread();
    assert_eq!(pool.use_count(), 2);
    let first = lab.get(MIB);
    drop(route);
    assert_eq!(pool.use_count(), 1);
    let route = pool.route_thread();
    assert_eq!(counted(), 1);
    let second = lab.get(MIB);
    assert_eq!(counted(), 1, "it fits beside the first");
    let third = lab.get(MIB);
    assert_eq!(counted(), 2);
    drop(route);
    assert_eq!(counted(), 2);
    drop((first, second, third));
    assert_eq!(counted(), 2, "cached");
    assert!(lab.sim.used_bytes() > 0);
    drop(pool);
    assert_eq!(lab.sim.used_bytes(), 0, "a pool that is dropped empties its cache");
}

/// I5 `test_tensor_delete_after_allocator_delete`: a live tensor keeps what it needs.
fn i5_tensor_delete_after_allocator_delete(expandable: bool) {
    let lab = Lab::new(expandable);
    let pool = pool_of(&lab);
    let tensor = get_in(&lab, &pool, LARGE_BUFFER);
    let Lab { sim, allocator } = lab;
    drop((pool, allocator));
    assert!(sim.is_accessible(address(&tensor), LARGE_BUFFER));
    drop(tensor);
    assert_eq!((sim.used_bytes(), sim.leaked()), (0, 0));
}

/// I6 `test_mempool_limited_memory_with_allocator`: a pool that helps out serves others when memory
/// is out, from what it has, at the same address; a pool that does not help out does not.
fn i6_mempool_limited_memory(expandable: bool) {
    let lab = Lab::of(GIB, expandable);
    lab.allocator.set_memory_limit(Some(80 * MIB));
    let aloof = pool_of(&lab);
    let helpful = lab.allocator.create_pool(PoolOptions { use_on_oom: true, ..Default::default() });
    let a = get_in(&lab, &aloof, 40 * MIB);
    let b = get_in(&lab, &helpful, 40 * MIB);
    let b_address = address(&b);
    assert_eq!(lab.refused(40 * MIB), OomCause::NoRoom);
    drop((a, b));
    let c = lab.get(30 * MIB);
    assert_eq!(address(&c), b_address);
    assert_eq!(lab.refused(30 * MIB), OomCause::NoRoom, "the other pool is not for everyone");
    drop(c);
    let e = get_in(&lab, &helpful, 20 * MIB);
    assert_eq!(address(&e), b_address, "the pool itself can still use it");
    drop(get_in(&lab, &aloof, 20 * MIB));
    lab.allocator.verify();
}

/// I7 `test_release_cached_blocks_during_diversion`, `test_oom_recovery_releases_cached_blocks`:
/// what the default pool has cached is released for a request that is led to a private pool.
fn i7_release_cached_blocks_during_diversion(expandable: bool) {
    let lab = Lab::of(GIB, expandable);
    lab.allocator.set_memory_limit(Some(80 * MIB));
    drop(lab.get(60 * MIB));
    assert_eq!(lab.allocator.memory_reserved(), 60 * MIB);
    let pool = pool_of(&lab);
    let _tensor = get_in(&lab, &pool, 60 * MIB);
    assert_eq!(lab.allocator.memory_reserved(), 60 * MIB);
    assert_eq!(segments_of(&lab, PoolId::default()).len(), 0);
    lab.allocator.verify();
}

/// I8 `test_block_free_not_deferred`: a route is no capture: a free that waits for a stream
/// completes while the route is on.
fn i8_block_free_not_deferred(expandable: bool) {
    let lab = Lab::asynchronous(GIB, expandable);
    let side = lab.allocator.stream(1);
    let pool = pool_of(&lab);
    let _route = pool.route_thread();
    let x = lab.get(LARGE_BUFFER);
    let at = address(&x);
    lab.sim.submit(1);
    lab.allocator.record_stream(&x, &side);
    drop(x);
    let y = lab.get(LARGE_BUFFER);
    assert_ne!(address(&y), at, "the side stream still uses it");
    lab.sim.complete(1);
    let z = lab.get(LARGE_BUFFER);
    assert_eq!(address(&z), at);
}

/// I9 `test_no_split`: each block of 4 MiB takes all of what was got for it; a normal pool splits.
fn i9_no_split(expandable: bool) {
    let lab = Lab::new(expandable);
    let whole = lab.allocator.create_pool(PoolOptions { no_split: true, ..Default::default() });
    let _held = [get_in(&lab, &whole, 4 * MIB), get_in(&lab, &whole, 4 * MIB)];
    let blocks: Vec<_> = segments_of(&lab, whole.id()).iter().map(layout).collect();
    let block = (LARGE_BUFFER, true);
    let expected = if expandable { vec![vec![block; 2]] } else { vec![vec![block]; 2] };
    assert_eq!(blocks, expected);

    let normal = pool_of(&lab);
    let _held = [get_in(&lab, &normal, 4 * MIB), get_in(&lab, &normal, 4 * MIB)];
    let blocks: Vec<_> = segments_of(&lab, normal.id()).iter().map(layout).collect();
    assert_eq!(blocks, [[(4 * MIB, true), (4 * MIB, true), (12 * MIB, false)]]);
    lab.allocator.verify();
}

/// I10 `test_deleted_mempool_not_used_on_oom`: a pool that is gone helps nobody out, but what it
/// had is free for everyone.
fn i10_deleted_mempool_not_used_on_oom(expandable: bool) {
    let lab = Lab::of(GIB, expandable);
    lab.allocator.set_memory_limit(Some(40 * MIB));
    let helpful = lab.allocator.create_pool(PoolOptions { use_on_oom: true, ..Default::default() });
    let id = helpful.id();
    drop(get_in(&lab, &helpful, 20 * MIB));
    drop(helpful);
    let _held = [lab.get(20 * MIB), lab.get(20 * MIB)];
    assert_eq!(segments_of(&lab, id).len(), 0);
    assert_eq!(lab.refused(20 * MIB), OomCause::NoRoom);
}

/// I11 `test_mempool_emptycache_multithread`: emptying the cache leaves what a live pool has.
fn i11_empty_cache_multithread(expandable: bool) {
    let lab = Lab::new(expandable);
    let pool = pool_of(&lab);
    drop((get_in(&lab, &pool, LARGE_BUFFER), lab.get(LARGE_BUFFER)));
    std::thread::scope(|scope| {
        let emptied = scope.spawn(|| lab.allocator.empty_cache());
        assert_eq!(emptied.join().expect("no panic"), LARGE_BUFFER);
    });
    let segments = segments_of(&lab, pool.id());
    assert_eq!((segments.len(), segments[0].total_size), (1, LARGE_BUFFER));
    assert_eq!(lab.segments().len(), 1);
}

/// I12 `test_nested_mempool`: the inner pool wins.
fn i12_nested_mempool(expandable: bool) {
    let lab = Lab::new(expandable);
    let pools = [pool_of(&lab), pool_of(&lab), pool_of(&lab)];
    let mut data = Vec::new();
    {
        let _first = pools[0].route_thread();
        data.push(lab.get(LARGE_BUFFER));
        {
            let _second = pools[1].route_thread();
            data.push(lab.get(LARGE_BUFFER));
            {
                let _third = pools[2].route_thread();
                data.push(lab.get(LARGE_BUFFER));
            }
            data.push(lab.get(LARGE_BUFFER));
        }
        data.push(lab.get(LARGE_BUFFER));
    }
    let segments = pools.each_ref().map(|pool| segments_of(&lab, pool.id()));
    assert_eq!(segments.each_ref().map(|of| of.len()), if expandable { [1; 3] } else { [2, 2, 1] });
    let bytes = segments.map(|of| of.iter().map(|segment| segment.allocated_size).sum::<Bytes>());
    assert_eq!(bytes, [40 * MIB, 40 * MIB, 20 * MIB]);
    assert_eq!(segments_of(&lab, PoolId::default()).len(), 0);
}

/// I13 `test_mempool_ctx_multithread`: another thread's request stays in the default pool.
fn i13_context_multithread(expandable: bool) {
    let lab = Lab::new(expandable);
    let pool = pool_of(&lab);
    let _route = pool.route_thread();
    let _inside = lab.get(LARGE_BUFFER);
    let outside =
        std::thread::scope(|scope| scope.spawn(|| lab.get(LARGE_BUFFER)).join().expect("no panic"));
    let default = segments_of(&lab, PoolId::default());
    assert_eq!((default.len(), default[0].address), (1, outside.address()));
    assert_eq!(segments_of(&lab, pool.id()).len(), 1);
}

/// I14 `test_mempool_expandable`: a pool with memory of its own sort is not expandable, while the
/// default pool is. (Pages have no sort: a range cannot hold what the pool was made for.)
#[test]
fn i14_mempool_expandable() {
    let lab = Lab::new(true);
    let kind = MemoryKind(1);
    let pool = lab.allocator.create_pool(PoolOptions { kind, ..Default::default() });
    let _held = [get_in(&lab, &pool, LARGE_BUFFER), lab.get(LARGE_BUFFER)];
    let expandable = |id| segments_of(&lab, id).iter().map(|s| s.expandable).collect::<Vec<_>>();
    assert_eq!(expandable(PoolId::default()), [true]);
    assert_eq!(expandable(pool.id()), [false], "the pool asked for memory of {kind:?}");
    lab.allocator.verify();
}

/// I16 `test_multi_threads_alloc_in_same_order`, `test_nccl_mem_alloc_addresses_in_random_order`:
/// after splits and merges the same requests get the same blocks, by the age of their segments,
/// whatever the addresses are.
fn i16_same_order_same_addresses(virtual_memory: bool) {
    let lab = Lab::with(
        aquifer::Config::torch(),
        SimOptions { virtual_memory, granularity: 2 * MIB, ..Default::default() },
    );
    // Holes below let later segments have lower addresses than earlier ones.
    let mut plugs: Vec<_> = (0..4)
        .map(|_| lab.sim.allocate(LARGE_BUFFER, MemoryKind::default()).expect("a plug"))
        .collect();
    let stream = lab.allocator.stream(1);
    let take = |size| lab.allocator.allocate_on(&stream, size).expect("memory");
    let mut tensors = vec![take(LARGE_BUFFER)];
    while let Some(plug) = plugs.pop() {
        lab.sim.free(plug);
        tensors.push(take(LARGE_BUFFER));
    }
    let first: Vec<u64> = tensors.iter().map(address).collect();
    assert_eq!(first.is_sorted(), virtual_memory, "fixed segments are in no order");
    let mut dice = Dice::new(16);
    for _ in 0..5 {
        while !tensors.is_empty() {
            tensors.swap_remove(dice.roll(tensors.len() as u64) as usize);
        }
        let parts: Vec<_> = (0..12).map(|n| take(2 * MIB + n * 100_000)).collect();
        drop(parts);
        tensors = first.iter().map(|_| take(LARGE_BUFFER)).collect();
        assert_eq!(tensors.iter().map(address).collect::<Vec<_>>(), first);
    }
}

/// I17 `test_reserved_bytes_by_private_pools(_expandable)`: what each pool holds, under its id.
fn i17_reserved_bytes_by_private_pools(expandable: bool) {
    let lab = Lab::new(expandable);
    let pools = [pool_of(&lab), pool_of(&lab)];
    let ids = pools.each_ref().map(|pool| pool.id());
    let of = |id: PoolId| lab.allocator.memory_stats().reserved_bytes_by_private_pools[&id];
    let key = |id: PoolId| format!("reserved_bytes_by_private_pools.{}_{}.all.current", id.0, id.1);
    drop(get_in(&lab, &pools[0], 40 * MIB));
    drop(get_in(&lab, &pools[1], 1000));
    let _outside = lab.get(100 * MIB);
    assert_eq!(ids.map(|id| of(id).all.current), [40 * MIB, 2 * MIB]);
    assert_eq!(ids.map(|id| lab.stat(&key(id))), [40 << 20, 2 << 20]);
    assert_eq!(ids.map(|id| of(id).large_pool.current), [40 * MIB, 0]);
    assert_eq!(ids.map(|id| of(id).small_pool.current), [0, 2 * MIB]);
    lab.allocator.empty_cache();
    assert_eq!(ids.map(|id| of(id).all.current), [40 * MIB, 2 * MIB], "they live");

    drop(get_in(&lab, &pools[0], 80 * MIB));
    let (now, peak) = (of(ids[0]).all.current, of(ids[0]).all.peak);
    assert_eq!((now, peak), if expandable { (80 * MIB, 80 * MIB) } else { (120 * MIB, 120 * MIB) });
    let [first, _second] = pools;
    drop(first);
    lab.allocator.empty_cache();
    let gone = of(ids[0]).all;
    assert_eq!((gone.current, gone.peak, gone.allocated, gone.freed), (0, peak, peak, peak));
    assert_eq!(of(ids[1]).all.current, 2 * MIB, "the other one lives on");
    lab.allocator.reset_peak_memory_stats();
    lab.allocator.reset_accumulated_memory_stats();
    let gone = of(ids[0]).all;
    assert_eq!((gone.peak, gone.allocated, gone.freed), (0, 0, 0));
    assert_eq!(of(ids[1]).all.peak, 2 * MIB);
}
