use super::*;

const G: usize = Gauge::AllocatedBytes as usize;

fn allocate(ledger: &mut Ledger, size: u32) {
    ledger.apply(Group::Large, Entry::Allocate { size, requested: to_bytes(size) });
}

fn free(ledger: &mut Ledger, size: u32) {
    ledger.apply(Group::Large, Entry::Free { size });
    ledger.apply(Group::Large, Entry::Complete { size, requested: to_bytes(size) });
}

/// The peak of a sum over two arenas, against one counter that both move.
#[test]
fn leased_peaks_equal_a_shared_counter() {
    let mut seed = 7_u64;
    let mut next = |bound: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % bound
    };
    let (mut a, mut b) = (Ledger::new(false), Ledger::new(false));
    let mut spare: Spare = [[0; GAUGES]; ROWS];
    let (mut live, mut peak, mut settled) = (vec![Vec::new(), Vec::new()], 0, 0);
    for _ in 0..5_000 {
        let which = next(2) as usize;
        let ledger = if which == 0 { &mut a } else { &mut b };
        if next(5) < 3 || live[which].is_empty() {
            let size = 1 + next(100) as u32;
            let admitted = ledger.admits(Group::Large, size, to_bytes(size), (0, 0));
            allocate(ledger, size);
            live[which].push(size);
            if !admitted {
                settle(&mut [&mut a, &mut b], &mut spare);
                settled += 1;
            }
        } else {
            let at = next(live[which].len() as u64) as usize;
            free(ledger, live[which].swap_remove(at));
        }
        let sum: u64 = live.iter().flatten().map(|&size| to_bytes(size)).sum();
        peak = peak.max(sum);
        assert_eq!(peaks(&[&a, &b], &spare)[ALL][G], peak);
        assert_eq!(a.now(ALL, G) + b.now(ALL, G), sum);
        if next(50) == 0 && sum < peak {
            reset_peaks(&mut [&mut a, &mut b], &mut spare);
            peak = sum;
        }
    }
    assert!(settled < 4_000, "leases spare most operations the slow way: {settled}");
}

#[test]
fn totals_count_what_came_and_left_since_the_reset() {
    let mut ledger = Ledger::new(true);
    allocate(&mut ledger, 4);
    allocate(&mut ledger, 2);
    free(&mut ledger, 4);
    assert_eq!(ledger.moved(1, G), (6 * 512, 4 * 512));
    ledger.reset_accumulated();
    assert_eq!(ledger.moved(1, G), (0, 0));
    free(&mut ledger, 2);
    assert_eq!(ledger.moved(ALL, G), (0, 2 * 512));
    ledger.apply(Group::Large, Entry::Adopt { size: 8 });
    ledger.apply(Group::Large, Entry::Surrender { size: 3 });
    assert_eq!(ledger.moved(ALL, Gauge::ReservedBytes as usize), (0, 0));
    assert_eq!(ledger.bytes(Gauge::ReservedBytes), 5 * 512);
}

/// What waits for other streams is active and no longer allocated, so that each has its own peak.
#[test]
fn the_peak_of_what_is_allocated_is_seen_below_that_of_what_is_active() {
    let mut ledger = Ledger::new(true);
    let peak =
        |ledger: &Ledger, gauge: Gauge| peaks(&[ledger], &[[0; GAUGES]; ROWS])[ALL][gauge as usize];
    let counts = |ledger: &Ledger| [Gauge::Allocation, Gauge::Active].map(|g| peak(ledger, g));
    let bytes = |ledger: &Ledger| {
        [Gauge::AllocatedBytes, Gauge::ActiveBytes].map(|gauge| peak(ledger, gauge) / to_bytes(1))
    };
    let complete = |size| Entry::Complete { size, requested: to_bytes(size) };
    // Two large ones wait while two small ones are allocated: then more small ones fit below.
    allocate(&mut ledger, 80);
    allocate(&mut ledger, 80);
    ledger.apply(Group::Large, Entry::Free { size: 80 });
    ledger.apply(Group::Large, Entry::Free { size: 80 });
    allocate(&mut ledger, 8);
    allocate(&mut ledger, 8);
    assert_eq!((counts(&ledger), bytes(&ledger)), ([2, 4], [160, 176]));
    ledger.apply(Group::Large, complete(80));
    ledger.apply(Group::Large, complete(80));
    allocate(&mut ledger, 8);
    assert_eq!((counts(&ledger), bytes(&ledger)), ([3, 4], [160, 176]), "more, though smaller");
    // The other way round: few large ones after many small ones.
    free(&mut ledger, 8);
    free(&mut ledger, 8);
    allocate(&mut ledger, 164);
    assert_eq!((counts(&ledger), bytes(&ledger)), ([3, 4], [172, 176]), "larger, though fewer");
}
