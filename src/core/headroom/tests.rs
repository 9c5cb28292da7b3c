use super::*;

#[test]
fn only_what_was_given_back_and_grown_again_teaches() {
    let mut regret = Regret::default();
    regret.grown(800, 1000);
    assert_eq!(regret.learned, 0, "nothing was given back");
    regret.released(800);
    regret.grown(400, 1000);
    assert_eq!(regret.learned, 0, "another size");
    regret.grown(800, 1000);
    assert_eq!(regret.learned, 50);
    regret.grown(800, 1000);
    assert_eq!(regret.learned, 50, "it was given back once only");
}

#[test]
fn learning_has_a_limit_and_the_list_a_length() {
    let mut regret = Regret::default();
    for size in 1..=10_000 {
        regret.released(size);
    }
    assert_eq!(regret.ghosts.len(), GHOSTS_MAX);
    regret.grown(1, 1_000_000);
    assert_eq!(regret.learned, 0, "forgotten");
    for size in (10_001 - GHOSTS_MAX as Bytes)..=10_000 {
        regret.grown(size, 7_000);
    }
    assert_eq!(regret.learned, 7_000);
}
