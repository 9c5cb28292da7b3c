use super::{Curve, LEFT, STEPS_MAX, number, svg, tick, ticks, unit};

/// A curve of class `own` through these values.
fn curve(values: &[u64]) -> Curve {
    let mut curve = Curve::new("own", "own", values.len());
    values.iter().enumerate().for_each(|(index, &value)| curve.add(index, value));
    curve
}

#[test]
fn steps_keep_peaks() {
    assert_eq!(curve(&[1, 5, 2]).steps, [1, 5, 2]);
    // 2500 events in 1000 steps, with one peak: it is in the step of its event.
    let mut values = vec![7; 2500];
    values[1234] = 99;
    let curve = curve(&values);
    assert_eq!(curve.steps.len(), STEPS_MAX);
    assert_eq!(curve.steps.iter().position(|&value| value == 99), Some(1234 * 1000 / 2500));
    assert_eq!(curve.highest(), 99);
}

#[test]
fn a_path_goes_in_steps_and_leaves_out_what_does_not_change() {
    // Four steps of a quarter of the frame's 782 pixels; 10 bytes at its top.
    assert_eq!(curve(&[0, 10, 10, 5]).path(10.0), "M64 292.0H259.5V58.0H650.5V175.0H846.0");
    let mut live = Curve::new("live", "live", 2);
    live.add(0, 10);
    // The run ended after the first of two events.
    assert_eq!(live.path(10.0), "M64 292H64.0V58.0H455.0V292Z");
    assert_eq!(LEFT, 64.0);
}

#[test]
fn ticks_are_round() {
    for (most, step) in [(1.49, 0.5), (27.9, 5.0), (421.7, 100.0), (90.0, 20.0), (5.0, 1.0)] {
        assert!((tick(most) - step).abs() < 1e-9, "{most}: {}", tick(most));
    }
    assert_eq!(ticks(1.5, 0.5).map(number).collect::<Vec<_>>(), ["0", "0.5", "1", "1.5"]);
    assert_eq!(unit(f64::from(1 << 30)).0, "GiB");
    assert_eq!(unit(1.0), ("bytes", 1.0));
}

#[test]
fn a_picture_has_everything_and_escapes_names() {
    let picture = svg("a<b & \"c\"", &[curve(&[3 << 30, 2 << 30])]);
    for part in [
        "<svg xmlns=",
        "a&lt;b &amp; &quot;c&quot;",
        "prefers-color-scheme:dark",
        ">GiB</text>",
        "own, peak 3.00 GiB",
        "events: allocations, frees",
        "class=\"line own\"",
    ] {
        assert!(picture.contains(part), "{part} is missing in {picture}");
    }
    assert!(picture.ends_with("</svg>\n"));
    // Nothing to show is no reason to divide by nothing.
    let empty = svg("empty", &[Curve::new("own", "own", 0)]);
    assert!(!empty.contains("NaN") && !empty.contains("inf"), "{empty}");
}
