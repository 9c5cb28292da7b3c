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
