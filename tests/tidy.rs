//! The house style as a test: reads the text of the repository and fails where it breaks a rule.
//!
//! `tidy/scan.rs` reads Rust as text, `tidy/rules.rs` holds the rules and their numbers, and
//! `tidy/snippets.rs` breaks each rule on purpose, so that none of them can fall silent. Where
//! breaking a rule is the better thing, [`EXCEPTIONS`] says so by name and with the reason.

#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/scan.rs"]
mod scan;
#[path = "tidy/snippets.rs"]
mod snippets;

use std::fs;
use std::path::Path;

use rules::{Hit, RULES, Tree};
use scan::Source;

/// A breach that stays, and why.
#[derive(Debug)]
struct Exception {
    rule: &'static str,
    path: &'static str,
    /// What is named in the breach: a function, a word, a path; empty where a rule names nothing.
    subject: &'static str,
    reason: &'static str,
}

/// All of them. One that excuses nothing any more is a breach itself.
const EXCEPTIONS: &[Exception] = &[
    Exception {
        rule: "unsafe-place",
        path: "src/backend/mod.rs",
        subject: "unsafe trait",
        reason: "typed access rests on what a backend promises of its memory; the contract is here",
    },
    Exception {
        rule: "unsafe-place",
        path: "src/backend/mod.rs",
        subject: "unsafe fn",
        reason: "a declaration of that contract, with its conditions; there is no unsafe code",
    },
];

/// Files that are read beside Rust; data (traces, golden files) is not.
const TEXT: &[&str] = &["rs", "md", "toml", "sh", "py", "wgsl", "cu", "ptx", "yml", "yaml"];

#[test]
fn the_repository_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tree = Tree { top: names(root), files: read(root) };
    assert!(tree.files.len() > 5, "the sources were not found in {}", root.display());
    let breaches = judge(&tree, EXCEPTIONS);
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

/// Every breach in words, less the exceptions, plus the exceptions that excuse nothing.
fn judge(tree: &Tree, exceptions: &[Exception]) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut used = vec![false; exceptions.len()];
    for (rule, check) in RULES {
        for hit in check(tree) {
            let excuse = exceptions.iter().position(|exception| excuses(exception, rule, &hit));
            match excuse {
                Some(at) => used[at] = true,
                None => {
                    let Hit { path, line, message, .. } = hit;
                    breaches.push(format!("{path}:{}: [{rule}] {message}", line + 1));
                }
            }
        }
    }
    for (exception, used) in exceptions.iter().zip(used) {
        let Exception { rule, path, subject, reason } = exception;
        if !used {
            breaches.push(format!("{path}: [exceptions] stale: {rule} `{subject}` ({reason})"));
        }
        if reason.is_empty() {
            breaches.push(format!("{path}: [exceptions] {rule} `{subject}` has no reason"));
        }
    }
    breaches
}

fn excuses(exception: &Exception, rule: &str, hit: &Hit) -> bool {
    exception.rule == rule && exception.path == hit.path && exception.subject == hit.subject
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.expect("an entry of a directory").file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

/// All text below the root, in the order of the paths.
fn read(root: &Path) -> Vec<Source> {
    let mut files = Vec::new();
    let mut open = vec![String::new()];
    while let Some(dir) = open.pop() {
        for name in names(&root.join(&dir)) {
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            let full = root.join(&path);
            let kind = fs::symlink_metadata(&full).expect("the kind of a file").file_type();
            let is_text = path.starts_with(".ci/")
                || full.extension().is_some_and(|end| TEXT.iter().any(|text| end == *text));
            if kind.is_dir() && !path.ends_with("target") && path != ".git" {
                open.push(path);
            } else if kind.is_file() && is_text {
                let text = fs::read_to_string(&full).unwrap_or_else(|e| panic!("{path}: {e}"));
                files.push(Source::new(&path, &text));
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}
