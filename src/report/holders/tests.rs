use super::*;

#[test]
fn a_long_list_of_what_is_held_is_cut_short() {
    let holder = |line: usize| Holder {
        bytes: 512,
        count: 2,
        location: format!("src/model.rs:{line}"),
        tag: None,
        age: Some(7),
    };
    let text = |count: usize| Outlived(&(0..count).map(holder).collect::<Vec<_>>()).to_string();
    assert!(text(20).ends_with("\n  512 B in 2 by src/model.rs:19"), "{}", text(20));
    assert!(text(23).ends_with("src/model.rs:19\n  and 3 more places"), "{}", text(23));
    assert!(text(23).contains("dropped while 11.50 KiB in 46 are held"), "{}", text(23));
}
