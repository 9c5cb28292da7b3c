//! Proof that each rule can fail: for every one, text that breaks it, and text that comes close.

use super::rules::{LAYERS, RULES, Tree};
use super::scan::{Function, Source};
use super::{Exception, judge};

/// A tree that breaks nothing, with `files` put in or replaced.
fn tree(files: &[(&str, &str)]) -> Tree {
    let modules: Vec<String> = LAYERS.iter().map(|name| format!("mod {name};\n")).collect();
    let lib = format!("//! All modules.\n{}", modules.concat());
    let tidy = [("src/lib.rs", lib.as_str()), ("README.md", "# Words\n")];
    let kept = tidy.iter().filter(|(path, _)| files.iter().all(|(new, _)| new != path));
    let mut top: Vec<String> =
        ["Cargo.toml", "README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE", "src"]
            .map(String::from)
            .to_vec();
    for (path, _) in files {
        let root = path.split('/').next().expect("a first component");
        if !top.iter().any(|name| name == root) {
            top.push(root.to_string());
        }
    }
    Tree { top, files: kept.chain(files).map(|(path, text)| Source::new(path, text)).collect() }
}

/// Rule, line from 1, path, text: one breach each.
const BAD: &[(&str, usize, &str, &str)] = &[
    ("top-level", 1, "docs/a.md", "words\n"),
    ("layers", 2, "src/id.rs", "//! x\nuse crate::config::Config;\n"),
    ("layers", 4, "src/ds.rs", "//! x\nuse crate::{\n  units::Bytes as config,\n  core::{A},\n};"),
    ("layers", 2, "src/units.rs", "//! x\nfn f() -> u64 { crate::ds::ring::LENGTH }\n"),
    ("layers", 2, "src/units.rs", "//! x\nuse super::core;\n"),
    ("layers", 2, "src/core.rs", "//! x\nuse crate::backend::Lost;\n"),
    ("layers", 2, "src/backend.rs", "//! x\nuse crate::core::State;\n"),
    ("layers", 2, "src/trace.rs", "//! x\nuse crate::Allocator;\n"),
    ("modules", 1, "src/core/lost.rs", "//! Declared nowhere.\n"),
    ("modules", 1, "src/bin/aquifer/lost.rs", "//! Declared nowhere.\n"),
    ("purity", 2, "src/core.rs", "//! x\nuse std::sync::Arc;\n"),
    ("purity", 2, "src/core.rs", "//! x\nuse std::{fmt, thread::spawn};\n"),
    ("purity", 2, "src/core.rs", "//! x\nfn f() { ::std::env::args(); }\n"),
    ("purity", 2, "src/core.rs", "//! x\nuse ::std::fs::read;\n"),
    ("purity", 2, "src/core.rs", "//! x\nuse std::io::Write;\n"),
    ("purity", 2, "src/core.rs", "//! x\nuse std::time::{Duration, Instant};\n"),
    ("purity", 2, "src/core.rs", "//! x\nfn f(now: time::SystemTime) {}\n"),
    ("purity", 2, "src/ds.rs", "//! x\ntype Map = std::collections::HashMap<u8, u8>;\n"),
    ("purity", 2, "src/ds.rs", "//! x\nuse std::collections::{HashSet as Set, BTreeMap};\n"),
    ("purity", 2, "src/ds.rs", "//! x\nfn f() { println!(); }\n"),
    ("preamble", 1, "src/units.rs", "// Owns nothing.\n"),
    ("preamble", 1, "tests/model.rs", "use std::fmt;\n//! Late.\n"),
    ("words", 2, "src/units.rs", "//! x\n// TODO: later\n"),
    ("words", 1, "src/units.rs", "//! FIXME\n"),
    ("words", 2, "README.md", "# Words\nXXX\n"),
    ("macros", 2, "src/units.rs", "//! x\nfn f() { todo!() }\n"),
    ("macros", 2, "src/units.rs", "//! x\nfn f() { unimplemented!() }\n"),
    ("macros", 2, "tests/model.rs", "//! x\nfn f() { dbg!(1); }\n"),
    ("machine-paths", 2, "src/units.rs", concat!("//! x\n// see /home/", "ann/trace.gz\n")),
    ("machine-paths", 1, "README.md", "See [notes](../elsewhere/notes.md).\n"),
    ("machine-paths", 2, "tests/model.rs", "//! x\n// from ../elsewhere/notes.md\n"),
    ("ptx", 2, "shaders/cuda/a.ptx", "// \"x\"\n// left \u{b7} right\n"),
    ("file-names", 1, "tests/common/mod.rs", "//! x\n"),
    ("file-names", 1, "tests/pool_manager.rs", "//! x\n"),
    ("reserve", 2, "src/plan.rs", "//! x\npub fn try_reserve(n: u64) {}\n"),
    ("getters", 2, "src/plan.rs", "//! x\ntrait T { fn get_size(&self) -> u64; }\n"),
    ("unsafe-place", 3, "src/core.rs", "//! x\n// SAFETY: none.\nfn f() { unsafe { g() } }\n"),
    ("unsafe-place", 2, "src/trace.rs", "//! x\n#[unsafe(no_mangle)] fn f() {}\n"),
    ("safety-comments", 3, "src/ffi.rs", "//! x\nfn f() {\n  unsafe { g() }\n}\n"),
    ("safety-comments", 3, "src/ffi.rs", "//! x\n// Because.\nunsafe impl Send for A {}\n"),
    ("safety-comments", 3, "src/ffi.rs", "//! x\n/// Does it.\npub unsafe fn f() {}\n"),
    (
        "safety-comments",
        3,
        "src/ffi.rs",
        "//! x\n/// Not this one.\npub unsafe extern \"C\" fn f() {}\n",
    ),
    (
        "safety-comments",
        5,
        "src/ffi.rs",
        "//! x\nfn f() {\n  // SAFETY: for one.\n  unsafe { g() };\n  unsafe { h() };\n}\n",
    ),
    (
        "safety-comments",
        7,
        "src/ffi.rs",
        "//! x\n// SAFETY: too far away.\nfn f(\n) {\n\n  let a = 1;\n  unsafe { g(a) };\n}\n",
    ),
];

/// Path and text: each comes close to a breach and is none.
const GOOD: &[(&str, &str)] = &[
    ("src/core.rs", "//! No std::sync, HashMap or unsafe.\nuse std::fmt;\nuse crate::ds::ring;\n"),
    (
        "src/core.rs",
        "//! x\nuse std::time::Duration;\nfn print_me() -> &'static str { \"println\" }",
    ),
    ("src/ds/tests.rs", "use std::collections::HashMap;\n"),
    ("src/ds.rs", "//! x\nmod inner { use super::Local; }\npub(crate) fn f() {}\nmod tests;\n"),
    ("src/report.rs", "//! x\nuse crate::{core::State, units as u, report::own};\n"),
    ("src/units.rs", "//! x\nconst C: char = '\"'; // a quote, and then no string\nfn f() {}\n"),
    ("src/units.rs", "//! x\nconst S: &str = r#\"todo!() \"# ; /* dbg!( /* */ todo!() */\n"),
    ("src/units.rs", "//! x\nfn reserved() {}\nfn mem_get_info() {}\nfn get_mut() {}\n"),
    ("src/backend.rs", "//! x\nuse crate::units::Bytes;\nfn reserve(size: Bytes) {}\n"),
    ("src/bin/aquifer/main.rs", "//! x\nuse aquifer::Allocator;\nuse crate::options;\n"),
    ("src/units.rs", "//! Read from /proc/self/status, at 3 / 4, either/or, https://a.b/c/d.\n"),
    ("tests/model.rs", "//! x\nconst P: &str = include_str!(\"../src/lib.rs\");\n"),
    ("src/ffi.rs", "//! x\ntype F = unsafe extern \"C\" fn(u64);\ntype G = unsafe fn();\n"),
    ("src/ffi.rs", "//! x\n/// # Safety\n/// - One.\n#[inline]\npub unsafe fn f() {}\n"),
    ("src/ffi.rs", "//! x\n// SAFETY: a,\n// and b.\nlet x = f(\n  1,\n  unsafe { g() },\n);\n"),
];

#[test]
fn every_bad_snippet_is_one_breach() {
    for (rule, line, path, text) in BAD {
        let mut tree = tree(&[(path, text)]);
        // A module below a directory needs a parent that says nothing of it.
        if path.contains("lost") {
            tree.files.push(Source::new("src/core.rs", "//! x\n"));
        }
        let line = if *rule == "top-level" { "docs:1".into() } else { format!("{path}:{line}") };
        let breaches = judge(&tree, &[]);
        let expected = format!("{line}: [{rule}]");
        let found = breaches.iter().filter(|breach| breach.starts_with(&expected)).count();
        assert!(found == 1 && breaches.len() == 1, "{expected} for\n{text}\nbut {breaches:#?}");
    }
}

#[test]
fn good_snippets_are_no_breach() {
    for (path, text) in GOOD {
        let mut files = vec![(*path, *text)];
        if *path == "src/ds/tests.rs" {
            files.push(("src/ds.rs", "//! x\nmod tests;\n"));
        }
        let breaches = judge(&tree(&files), &[]);
        assert!(breaches.is_empty(), "{text}\n{breaches:#?}");
    }
}

/// The rules whose breach is a number or an absence, at the limit and one beyond it.
#[test]
fn limits_are_exact() {
    let breaches = |path: &str, text: &str| judge(&tree(&[(path, text)]), &[]).len();
    let wide = |columns: usize| format!("//! {}\n", "ü".repeat(columns - 4));
    assert_eq!((breaches("src/id.rs", &wide(100)), breaches("src/id.rs", &wide(101))), (0, 1));
    let long = |lines: usize| format!("//!\n{}", "//\n".repeat(lines - 1));
    assert_eq!((breaches("src/id.rs", &long(500)), breaches("src/id.rs", &long(501))), (0, 1));
    assert_eq!(breaches("tests/model.rs", &long(501)), 0);
    let function = |lines: usize| format!("//!\nfn f(\n) {{\n{}}}\n", "\"}\";\n".repeat(lines - 3));
    assert_eq!(
        (breaches("src/id.rs", &function(70)), breaches("src/id.rs", &function(71))),
        (0, 1)
    );
    let mut bare = tree(&[]);
    bare.top.retain(|name| name != "CHANGELOG.md");
    assert_eq!(judge(&bare, &[]), ["CHANGELOG.md:1: [required] is missing"]);
    let unknown = tree(&[("src/lib.rs", "//!\nmod stray;"), ("src/stray.rs", "//!\n")]);
    assert!(judge(&unknown, &[])[0].contains("has no place in LAYERS"));
}

#[test]
fn every_rule_has_been_broken() {
    const ELSEWHERE: &[&str] = &["required", "width", "file-length", "function-length"];
    for (rule, _) in RULES {
        let broken = BAD.iter().any(|(bad, ..)| bad == rule) || ELSEWHERE.contains(rule);
        assert!(broken, "no snippet breaks {rule}");
    }
}

#[test]
fn an_exception_excuses_what_it_names_and_nothing_else() {
    let tree = tree(&[("src/plan.rs", "//! x\nfn reserve_a() {}\nfn reserve_b() {}\n")]);
    let exception =
        |subject| Exception { rule: "reserve", path: "src/plan.rs", subject, reason: "r" };
    let breaches = judge(&tree, &[exception("reserve_a"), exception("reserve_c")]);
    assert_eq!(breaches.len(), 2, "{breaches:#?}");
    assert!(breaches[0].starts_with("src/plan.rs:3: [reserve]"));
    assert!(breaches[1].starts_with("src/plan.rs: [exceptions] stale"));
}

#[test]
fn the_scanner_tells_code_from_the_rest() {
    let text = concat!(
        "let a = \"x // \\\" y\"; // \"c\n",
        "let b = br##\"q\"# \" \"##; let c = '\\''; let d = b'\"';\n",
        "fn f<'a>(x: &'a str) /* { /* { */ \" */ {}\n",
        "let e = \"two\n  lines {\"; let r#type = 1;\n",
    );
    let source = Source::new("a.rs", text);
    let code: Vec<String> = source.code.iter().map(|line| line.replace(' ', "")).collect();
    let expected =
        ["leta=;", "letb=;letc=;letd=b;", "fnf<'a>(x:&'astr){}", "lete=", ";letr#type=1;"];
    assert_eq!(code, expected);
    assert_eq!(source.comments[0].trim(), "// \"c");
    assert_eq!(source.code[0].chars().count(), source.lines[0].chars().count());
}

#[test]
fn the_scanner_finds_functions() {
    let text = "fn a();\nfn b(x: [u8; 2]) -> impl Fn() where X: Y,\n{\n  fn c() { {} }\n}\n\
                type T = fn(u8);\nmacro_rules! m { () => { fn $f() {} }; }\n";
    let function = |name: &str, first, last| Function { name: name.into(), first, last };
    let found = Source::new("a.rs", text).functions();
    assert_eq!(found, [function("b", 1, 4), function("c", 3, 3)]);
}

#[test]
fn the_scanner_finds_paths() {
    let text = "use a::{b::{c, d as e}, f::*, self};\nlet x = ::g::h::<i::J>();\nuse ::{k::l, m};";
    let paths: Vec<String> =
        Source::new("a.rs", text).paths().into_iter().map(|(_, path)| path.join("::")).collect();
    let expected = [
        "use", "a::b::c", "a::b::d", "a::f", "a::self", "let", "x", "g::h", "i::J", "use", "k::l",
        "m",
    ];
    assert_eq!(paths, expected);
}
