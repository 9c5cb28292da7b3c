use super::{Percentiles, Singles, percentiles};

#[test]
fn the_clock_is_taken_off_and_the_tail_is_found() {
    // 1000 pairs: 985 of 70, 14 of 200 and one of 9000; the clock takes 20, and once 500.
    let mut times: Vec<u64> = [vec![70; 985], vec![200; 14], vec![9000]].concat();
    times.reverse();
    let mut empty = vec![20; 999];
    empty.push(500);
    let found = percentiles(&mut times, &mut empty);
    assert_eq!(found, Percentiles { p50: 50.0, p99: 180.0, p99_9: 8980.0 });
    // What is faster than the clock takes no time.
    assert_eq!(percentiles(&mut [10], &mut [20]).p50, 0.0);
}

#[test]
fn one_bad_round_of_three_does_not_show() {
    let round = |ns: f64| Percentiles { p50: ns, p99: 2.0 * ns, p99_9: 3.0 * ns };
    let singles = |rounds: &[f64]| Singles { rounds: rounds.iter().map(|&ns| round(ns)).collect() };
    let mut all = singles(&[50.0, 5000.0]);
    all.append(singles(&[60.0]));
    assert_eq!(all.percentiles(), round(60.0));
}

#[test]
fn a_pair_that_fails_ends_the_round() {
    let mut singles = Singles::default();
    let mut left = 3;
    let result = singles.round(10, || {
        left -= 1;
        if left == 0 { Err("no more") } else { Ok(()) }
    });
    assert_eq!((result, left), (Err("no more"), 0));
    assert!(singles.rounds.is_empty());
}
