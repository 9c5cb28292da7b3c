use super::parse;

#[test]
fn numbers_and_suffixes() {
    let cases = [
        ("1", 1),
        ("25301942272", 25_301_942_272),
        ("3K", 3 << 10),
        ("3KiB", 3 << 10),
        ("3M", 3 << 20),
        ("80GiB", 80 << 30),
        ("80G", 80 << 30),
        ("1T", 1 << 40),
        ("1TiB", 1 << 40),
        ("18446744073709551615", u64::MAX),
    ];
    for (text, bytes) in cases {
        assert_eq!(parse(text), Ok(bytes), "{text}");
    }
}

#[test]
fn what_is_refused() {
    for (text, reason) in [
        ("", "whole number"),
        ("GiB", "whole number"),
        ("-1", "no unit"),
        ("1.5GiB", "no unit"),
        ("1GB", "no unit"),
        ("1 GiB", "no unit"),
        ("0", "too few"),
        ("0T", "too few"),
        ("18446744073709551616", "64 bits"),
        ("16777216TiB", "64 bits"),
    ] {
        let error = parse(text).expect_err(text);
        assert!(error.contains(reason), "{text}: {error}");
    }
}
