use super::*;

fn gauge(current: u64, peak: u64, allocated: u64, freed: u64) -> Gauge {
    Gauge { current, peak, allocated, freed }
}

fn pools(large_pool: Gauge, small_pool: Gauge) -> PoolGauges {
    let sum = |of: fn(&Gauge) -> u64| of(&large_pool) + of(&small_pool);
    let all = gauge(sum(|g| g.current), sum(|g| g.peak), sum(|g| g.allocated), sum(|g| g.freed));
    PoolGauges { all, small_pool, large_pool }
}

/// A step of a training, as it could be: from bytes to PiB, from single blocks to millions.
fn stats() -> MemoryStats {
    let (kib, mib, gib, tib) = (1 << 10, 1 << 20, 1 << 30, 1 << 40);
    let bytes = pools(
        gauge(180 * mib + 5, 3 * gib, 2000 * tib, 2000 * tib - 180 * mib),
        gauge(72 * kib, 1060 * kib, 4170 * kib, 4097 * kib),
    );
    let counts = pools(gauge(12, 4000, 2_000_000, 1_999_988), gauge(900_000, 900_001, 1, 0));
    MemoryStats {
        allocated_bytes: bytes,
        active_bytes: bytes,
        requested_bytes: pools(gauge(786_431, 786_432, 786_433, 0), Gauge::default()),
        reserved_bytes: bytes,
        allocation: counts,
        active: counts,
        segment: pools(gauge(7, 8, 9, 2), gauge(1, 1, 1, 0)),
        oversize_segments: gauge(1, 2, 750_000, 749_999),
        num_ooms: 3,
        num_alloc_retries: 12_345_678,
        ..MemoryStats::default()
    }
}

const FULL: &str = "\
|===========================================================================|
|             Aquifer memory summary, NVIDIA H100 80GB HBM3, 0              |
|---------------------------------------------------------------------------|
|            Device OOMs: 3          |        Allocation retries: 12345678  |
|===========================================================================|
|        Metric         | Cur Usage  | Peak Usage | Tot Alloc  | Tot Freed  |
|---------------------------------------------------------------------------|
| Allocated memory      | 184392 KiB |   3073 MiB |   2000 TiB |   1999 TiB |
|       from large pool | 184320 KiB |   3072 MiB |   2000 TiB |   1999 TiB |
|       from small pool |     72 KiB |      1 MiB |      0 TiB |      0 TiB |
|---------------------------------------------------------------------------|
| Active memory         | 184392 KiB |   3073 MiB |   2000 TiB |   1999 TiB |
|       from large pool | 184320 KiB |   3072 MiB |   2000 TiB |   1999 TiB |
|       from small pool |     72 KiB |      1 MiB |      0 TiB |      0 TiB |
|---------------------------------------------------------------------------|
| Requested memory      | 786431 B   |    768 KiB |    768 KiB |      0 B   |
|       from large pool | 786431 B   |    768 KiB |    768 KiB |      0 B   |
|       from small pool |      0 B   |      0 KiB |      0 KiB |      0 B   |
|---------------------------------------------------------------------------|
| GPU reserved memory   | 184392 KiB |   3073 MiB |   2000 TiB |   1999 TiB |
|       from large pool | 184320 KiB |   3072 MiB |   2000 TiB |   1999 TiB |
|       from small pool |     72 KiB |      1 MiB |      0 TiB |      0 TiB |
|---------------------------------------------------------------------------|
| Non-releasable memory |      0 B   |      0 B   |      0 B   |      0 B   |
|       from large pool |      0 B   |      0 B   |      0 B   |      0 B   |
|       from small pool |      0 B   |      0 B   |      0 B   |      0 B   |
|---------------------------------------------------------------------------|
| Allocations           |     900 K  |     904 K  |    2000 K  |    1999 K  |
|       from large pool |       0 K  |       4 K  |    2000 K  |    1999 K  |
|       from small pool |     900 K  |     900 K  |       0 K  |       0 K  |
|---------------------------------------------------------------------------|
| Active allocs         |     900 K  |     904 K  |    2000 K  |    1999 K  |
|       from large pool |       0 K  |       4 K  |    2000 K  |    1999 K  |
|       from small pool |     900 K  |     900 K  |       0 K  |       0 K  |
|---------------------------------------------------------------------------|
| GPU reserved segments |       8    |       9    |      10    |       2    |
|       from large pool |       7    |       8    |       9    |       2    |
|       from small pool |       1    |       1    |       1    |       0    |
|---------------------------------------------------------------------------|
| Non-releasable allocs |       0    |       0    |       0    |       0    |
|       from large pool |       0    |       0    |       0    |       0    |
|       from small pool |       0    |       0    |       0    |       0    |
|---------------------------------------------------------------------------|
| Oversize allocations  |       0    |       0    |       0    |       0    |
|---------------------------------------------------------------------------|
| Oversize GPU segments |       1    |       2    |     750 K  |  749999    |
|===========================================================================|";

#[test]
fn the_layout_is_that_of_pytorch() {
    let stats = stats();
    let device = Some("NVIDIA H100 80GB HBM3, 0");
    let text = Summary { stats: &stats, device, abbreviated: false }.to_string();
    assert_eq!(text, FULL);
    assert!(text.lines().all(|line| line.len() == WIDTH + 2));
}

#[test]
fn the_abbreviated_table_leaves_the_parts_out() {
    let text = stats().to_string();
    let expected: String = FULL
        .lines()
        .filter(|line| !line.contains(" pool |"))
        .map(|line| format!("{line}\n"))
        .collect();
    let title = |text: &str| text.lines().nth(1).map(|line| line.trim_matches(['|', ' ']).len());
    assert_eq!(title(&text), Some("Aquifer memory summary".len()));
    let rest = |text: &str| text.lines().skip(2).collect::<Vec<_>>().join("\n");
    assert_eq!(rest(&text), rest(&expected));
    assert!(text.lines().all(|line| line.len() == WIDTH + 2));
}

#[test]
fn a_long_name_moves_no_bar() {
    let device = "a device whose maker thought that names cannot be long enough, ünï ".repeat(2);
    let stats = MemoryStats::default();
    let text = Summary { stats: &stats, device: Some(&device), abbreviated: true }.to_string();
    assert!(text.lines().all(|line| line.chars().count() == WIDTH + 2), "{text}");
}

#[test]
fn the_largest_units_are_the_last() {
    assert_eq!(Kind::Bytes.show(u64::MAX, u64::MAX), " 16383 PiB");
    assert_eq!(Kind::Count.show(3_000_000_000, 3_000_000_000), "   3000 M ");
}
