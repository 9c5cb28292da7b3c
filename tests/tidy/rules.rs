//! The rules. Each looks at the whole tree and returns what breaks it.

use super::scan::Source;

/// The modules of the crate in reading order: each may use only those above it.
pub(crate) const LAYERS: &[&str] = &[
    "units",
    "id",
    "ds",
    "config",
    "core",
    "report",
    "backend",
    "allocator",
    "vec",
    "surface",
    "trace",
    "plan",
    "ffi",
];

/// Pairs that never see each other, whatever their order: the policy and what owns the memory.
const STRANGERS: &[(&str, &str)] = &[("backend", "core"), ("core", "backend")];

/// What the top level may hold; names that start with a dot come on top.
const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "src",
    "shaders",
    "tests",
    "benches",
    "examples",
    "scripts",
    "rustfmt.toml",
    "clippy.toml",
    // Build output, and what cargo itself adds to a packaged crate.
    "target",
    "Cargo.toml.orig",
];

/// What the top level must hold.
const REQUIRED: &[&str] =
    &["Cargo.toml", "README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE", "src"];

/// What the deterministic modules must do without, wherever in a path it stands.
const IMPURE_NAMES: &[&str] = &[
    "HashMap",
    "HashSet",
    "RandomState",
    "Instant",
    "SystemTime",
    "println",
    "print",
    "eprintln",
    "eprint",
];

/// Modules of the standard library that the deterministic modules must do without.
const IMPURE_STD: &[&str] = &["sync", "thread", "env", "fs", "io", "net", "process"];

/// Where `unsafe` may stand in `src`: system calls, driver calls, C symbols, typed views of memory
/// that the host can see, what keeps a stream's state alive without a count of its own, and
/// launches of kernels.
const UNSAFE_PLACES: &[&str] = &[
    "src/allocator/held",
    "src/backend/host",
    "src/backend/cuda",
    "src/backend/wgpu",
    "src/bin/aquifer/linear/launch",
    "src/ffi",
    "src/surface/cuda",
    "src/vec",
];

/// First components of paths that mean the same on every machine.
const SYSTEM_ROOTS: &[&str] = &["bin", "dev", "etc", "lib", "opt", "proc", "sys", "usr"];

const COLUMNS_MAX: usize = 100;
const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

/// Lines of code that may stand between a SAFETY comment and its block, when a statement spans
/// lines.
const SAFETY_DISTANCE_MAX: usize = 3;

/// What the rules look at.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Every name in the root directory.
    pub(crate) top: Vec<String>,
    pub(crate) files: Vec<Source>,
}

/// One breach of a rule.
#[derive(Debug)]
pub(crate) struct Hit {
    pub(crate) path: String,
    /// From 0.
    pub(crate) line: usize,
    /// What an exception has to name: a function, a word, a path.
    pub(crate) subject: String,
    pub(crate) message: String,
}

pub(crate) type Rule = fn(&Tree) -> Vec<Hit>;

/// All rules by name.
pub(crate) const RULES: &[(&str, Rule)] = &[
    ("top-level", top_level),
    ("required", required),
    ("layers", layers),
    ("modules", modules),
    ("purity", purity),
    ("preamble", preamble),
    ("width", width),
    ("ptx", ptx),
    ("file-length", file_length),
    ("function-length", function_length),
    ("words", words),
    ("macros", macros),
    ("machine-paths", machine_paths),
    ("file-names", file_names),
    ("reserve", reserve),
    ("getters", getters),
    ("unsafe-place", unsafe_place),
    ("safety-comments", safety_comments),
];

fn hit(source: &Source, line: usize, subject: &str, message: impl Into<String>) -> Hit {
    Hit { path: source.path.clone(), line, subject: subject.to_string(), message: message.into() }
}

impl Tree {
    fn rust(&self) -> impl Iterator<Item = &Source> {
        self.files.iter().filter(|source| source.is_rust())
    }

    /// The library and the program, with their unit tests.
    fn src(&self) -> impl Iterator<Item = &Source> {
        self.rust().filter(|source| source.path.starts_with("src/"))
    }
}

/// Whether the file is `module.rs` or lies in `module/`.
fn within(source: &Source, module: &str) -> bool {
    let rest = source.path.strip_prefix(module);
    rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// `foo/tests.rs`, or anything in a `tests` directory.
fn is_test(source: &Source) -> bool {
    source.path.split('/').any(|part| part == "tests" || part == "tests.rs")
}

/// `src/core/state.rs` is `[core, state]`, `src/core/mod.rs` is `[core]`; a crate root is empty.
fn module_of(source: &Source) -> Vec<&str> {
    let inner = source.path.strip_prefix("src/").unwrap_or("").trim_end_matches(".rs");
    if inner == "lib" || inner.starts_with("bin/") {
        return Vec::new();
    }
    inner.split('/').filter(|part| *part != "mod").collect()
}

fn top_level(tree: &Tree) -> Vec<Hit> {
    let allowed = |name: &&String| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str());
    let message = "does not belong in the top level; see TOP_LEVEL in tests/tidy/rules.rs";
    tree.top
        .iter()
        .filter(allowed)
        .map(|name| Hit {
            path: name.clone(),
            line: 0,
            subject: name.clone(),
            message: message.into(),
        })
        .collect()
}

fn required(tree: &Tree) -> Vec<Hit> {
    REQUIRED
        .iter()
        .filter(|name| !tree.top.iter().any(|top| top == *name))
        .map(|name| Hit {
            path: name.to_string(),
            line: 0,
            subject: name.to_string(),
            message: "is missing".into(),
        })
        .collect()
}

fn layers(tree: &Tree) -> Vec<Hit> {
    let mut hits = Vec::new();
    for source in tree.src() {
        let module = module_of(source);
        let Some(own) = module.first() else { continue };
        for (line, path) in source.paths() {
            let Some(used) = top_module(&path, module.len()) else { continue };
            if let Some(message) = layer_breach(own, used) {
                hits.push(hit(source, line, used, message));
            }
        }
    }
    hits
}

/// The name that `path` looks up in the crate's root, if it does, from a module at `depth`.
fn top_module(path: &[String], depth: usize) -> Option<&str> {
    let climbs = path.iter().take_while(|segment| *segment == "super").count();
    let at_root = if path.first()? == "crate" { 1 } else { climbs };
    let named = path.get(at_root)?.as_str();
    match at_root {
        1 if climbs == 0 && named != "self" => Some(named),
        // An inline module adds a `super` that the path of the file does not show, so what is
        // found this way counts only if it is the name of a module.
        _ if climbs > 0 && climbs >= depth && LAYERS.contains(&named) => Some(named),
        _ => None,
    }
}

fn layer_breach(own: &str, used: &str) -> Option<String> {
    let place = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    let Some(place_used) = place(used) else {
        return Some(format!("`crate::{used}`: name the module, re-exports are for users"));
    };
    if STRANGERS.contains(&(own, used)) {
        return Some(format!("{own} and {used} never see each other"));
    }
    // A module that is not in LAYERS is the business of `modules`.
    let above = place_used <= place(own)?;
    (!above).then(|| format!("{own} uses {used}, which is not above it"))
}

/// Every file is declared by its parent, and every module of the root has a place in LAYERS.
fn modules(tree: &Tree) -> Vec<Hit> {
    let mut hits = Vec::new();
    for source in tree.src() {
        let Some((parents, name)) = parents(&source.path) else { continue };
        let declared = tree.files.iter().any(|file| {
            parents.contains(&file.path)
                && (0..file.tokens.len())
                    .any(|at| file.token(at) == "mod" && file.token(at + 1) == name)
        });
        if !declared {
            let message = format!("no `mod {name};` in {}: dead file", parents.join(" or "));
            hits.push(hit(source, 0, &name, message));
        }
        if module_of(source).len() == 1 && !LAYERS.contains(&name.as_str()) {
            hits.push(hit(source, 0, &name, "has no place in LAYERS in tests/tidy/rules.rs"));
        }
    }
    hits
}

/// The files that may declare the module at `path`, and its name; `None` for crate roots.
fn parents(path: &str) -> Option<(Vec<String>, String)> {
    let stem = path.strip_suffix(".rs")?;
    let stem = stem.strip_suffix("/mod").unwrap_or(stem);
    let (dir, name) = stem.rsplit_once('/')?;
    let is_program = dir == "src/bin" || dir.starts_with("src/bin/") && name == "main";
    if is_program || stem == "src/lib" || stem == "src/main" {
        return None;
    }
    let parents = match dir {
        "src" => vec!["src/lib.rs".to_string()],
        _ => [".rs", "/mod.rs", "/main.rs"].map(|end| format!("{dir}{end}")).to_vec(),
    };
    Some((parents, name.to_string()))
}

fn purity(tree: &Tree) -> Vec<Hit> {
    let pure = |source: &&Source| within(source, "src/core") || within(source, "src/ds");
    let mut hits = Vec::new();
    for source in tree.src().filter(pure).filter(|source| !is_test(source)) {
        for (line, path) in source.paths() {
            let of_std = matches!(path[0].as_str(), "std" | "core" | "alloc");
            let named = path.iter().find(|name| IMPURE_NAMES.contains(&name.as_str()));
            let module = path.get(1).filter(|name| IMPURE_STD.contains(&name.as_str()));
            if let Some(name) = named.or(module.filter(|_| of_std)) {
                let message = format!("`{name}`: no lock, clock, environment, I/O or hash order");
                hits.push(hit(source, line, name, message));
            }
        }
    }
    hits
}

fn preamble(tree: &Tree) -> Vec<Hit> {
    tree.rust()
        .filter(|source| !(source.path.starts_with("src/") && is_test(source)))
        .filter(|source| !source.lines.first().is_some_and(|line| line.starts_with("//!")))
        .map(|source| hit(source, 0, "", "does not open with `//!`: say what the file owns"))
        .collect()
}

fn width(tree: &Tree) -> Vec<Hit> {
    let code = [".rs", ".wgsl", ".cu", ".ptx", ".sh", ".py"];
    let of_code = |source: &&Source| {
        code.iter().any(|end| source.path.ends_with(end)) || source.path.starts_with(".ci/")
    };
    let mut hits = Vec::new();
    for source in tree.files.iter().filter(of_code) {
        for (line, text) in source.lines.iter().enumerate() {
            let columns = text.chars().count();
            if columns > COLUMNS_MAX {
                hits.push(hit(source, line, "", format!("{columns} > {COLUMNS_MAX} columns")));
            }
        }
    }
    hits
}

/// The assembler of NVIDIA refuses anything but ASCII, in comments too.
fn ptx(tree: &Tree) -> Vec<Hit> {
    let mut hits = Vec::new();
    for source in tree.files.iter().filter(|source| source.path.ends_with(".ptx")) {
        let breach = source.lines.iter().position(|text| !text.is_ascii());
        hits.extend(breach.map(|line| hit(source, line, "", "PTX is ASCII, comments included")));
    }
    hits
}

fn file_length(tree: &Tree) -> Vec<Hit> {
    tree.rust()
        .filter(|source| !is_test(source) && source.lines.len() > FILE_LINES_MAX)
        .map(|source| {
            let message = format!("{} > {FILE_LINES_MAX} lines", source.lines.len());
            hit(source, FILE_LINES_MAX, "", message)
        })
        .collect()
}

fn function_length(tree: &Tree) -> Vec<Hit> {
    let mut hits = Vec::new();
    for source in tree.rust() {
        for function in source.functions() {
            let length = function.last - function.first + 1;
            if length > FUNCTION_LINES_MAX {
                let message =
                    format!("fn {}: {length} > {FUNCTION_LINES_MAX} lines", function.name);
                hits.push(hit(source, function.first, &function.name, message));
            }
        }
    }
    hits
}

fn words(tree: &Tree) -> Vec<Hit> {
    const BANNED: &[&str] = &["TODO", "FIXME", "XXX"];
    let mut hits = Vec::new();
    for source in &tree.files {
        for text in [&source.comments, &source.code] {
            for (line, text) in text.iter().enumerate() {
                let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
                if let Some(word) = words.find(|word| BANNED.contains(word)) {
                    hits.push(hit(source, line, word, format!("{word}: do it or drop it")));
                }
            }
        }
    }
    hits
}

fn macros(tree: &Tree) -> Vec<Hit> {
    const BANNED: &[&str] = &["todo", "unimplemented", "dbg"];
    let mut hits = Vec::new();
    for source in tree.rust() {
        for (at, token) in source.tokens.iter().enumerate() {
            if BANNED.contains(&token.text.as_str()) && source.token(at + 1) == "!" {
                let message = format!("{}! is not left behind", token.text);
                hits.push(hit(source, token.line, &token.text, message));
            }
        }
    }
    hits
}

/// Paths that hold on one machine only: absolute ones outside the system's directories, and
/// relative ones that climb out of the repository.
fn machine_paths(tree: &Tree) -> Vec<Hit> {
    let mut hits = Vec::new();
    for source in &tree.files {
        for (line, text) in source.lines.iter().enumerate() {
            let opens = |c: char| c.is_whitespace() || "\"'`(=:,[<".contains(c);
            for word in text.split(opens).filter(|word| is_machine_path(word, &source.path)) {
                hits.push(hit(source, line, word, format!("`{word}` exists on one machine only")));
            }
        }
    }
    hits
}

fn is_machine_path(word: &str, file: &str) -> bool {
    let is_name = |part: &str| part.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    if let Some(absolute) = word.strip_prefix('/') {
        let mut parts = absolute.split('/');
        let root = parts.next().unwrap_or("");
        return is_name(root) && !SYSTEM_ROOTS.contains(&root) && parts.next().is_some_and(is_name);
    }
    let climbs = word.split('/').take_while(|part| *part == "..").count();
    let depth = file.matches('/').count();
    let lands = word.split('/').nth(climbs).unwrap_or("");
    let lands: String =
        lands.chars().take_while(|c| c.is_alphanumeric() || "._-".contains(*c)).collect();
    climbs > depth
        || climbs > 0 && climbs == depth && is_name(&lands) && !TOP_LEVEL.contains(&lands.as_str())
}

fn file_names(tree: &Tree) -> Vec<Hit> {
    const BANNED: &[&str] = &["base", "util", "utils", "common"];
    let mut hits = Vec::new();
    for source in tree.rust() {
        let mut names = source.path.trim_end_matches(".rs").split('/');
        if let Some(name) = names.find(|name| BANNED.contains(name) || name.contains("manager")) {
            hits.push(hit(source, 0, name, format!("`{name}` says nothing: name the content")));
        }
    }
    hits
}

/// Function names of `src` with the line of each, bodies or not.
fn function_names(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    let is_fn = |at: &usize| source.token(*at) == "fn";
    (0..source.tokens.len()).filter(is_fn).map(|at| (source.tokens[at].line, source.token(at + 1)))
}

/// Address space is reserved by a backend; everyone else allocates, grows or maps.
fn reserve(tree: &Tree) -> Vec<Hit> {
    let mut hits = Vec::new();
    for source in tree.src().filter(|source| !within(source, "src/backend")) {
        for (line, name) in function_names(source) {
            if name.split('_').any(|part| part == "reserve") {
                hits.push(hit(source, line, name, format!("fn {name}: `reserve` is no verb here")));
            }
        }
    }
    hits
}

/// `get` and `get_mut` look something up; a getter has the name of what it returns.
fn getters(tree: &Tree) -> Vec<Hit> {
    let mut hits = Vec::new();
    for source in tree.src() {
        for (line, name) in function_names(source) {
            if name.starts_with("get_") && name != "get_mut" {
                hits.push(hit(source, line, name, format!("fn {name}: drop the `get_`")));
            }
        }
    }
    hits
}

fn unsafe_place(tree: &Tree) -> Vec<Hit> {
    let mut hits = Vec::new();
    let allowed = |source: &Source| UNSAFE_PLACES.iter().any(|place| within(source, place));
    for source in tree.src().filter(|source| !allowed(source)) {
        for (at, token) in source.tokens.iter().enumerate().filter(|(_, t)| t.text == "unsafe") {
            let subject = format!("unsafe {}", source.token(at + 1));
            let message = format!("`{subject}` does not belong here");
            hits.push(hit(source, token.line, &subject, message));
        }
    }
    hits
}

fn safety_comments(tree: &Tree) -> Vec<Hit> {
    let mut hits = Vec::new();
    for source in tree.rust() {
        for at in 0..source.tokens.len() {
            let needed = if source.token(at) == "unsafe" { safety_of(source, at) } else { None };
            let Some((marks, distance)) = needed else { continue };
            let line = source.tokens[at].line;
            if !is_justified(source, line, marks, distance) {
                let message = format!("no `{}` just above the `unsafe`", marks.join("` or `"));
                hits.push(hit(source, line, "", message));
            }
        }
    }
    hits
}

/// The comments one of which must stand above the `unsafe` at `at`, and how many lines of code may
/// lie between; `None` where it is part of a type or an attribute.
fn safety_of(source: &Source, at: usize) -> Option<(&'static [&'static str], usize)> {
    let item = Some((["# Safety", "SAFETY:"].as_slice(), 0));
    let is_named =
        |at: usize| source.token(at).starts_with(|c: char| c.is_alphabetic() || c == '_');
    match (source.token(at + 1), source.token(at + 2)) {
        ("{", _) => Some((&["SAFETY:"], SAFETY_DISTANCE_MAX)),
        ("impl", _) => Some((&["SAFETY:"], 0)),
        ("trait", _) | ("extern", "{") => item,
        ("fn", _) if is_named(at + 2) => item,
        ("extern", "fn") if is_named(at + 3) => item,
        _ => None,
    }
}

/// Walks up over comments and attributes, and over at most `distance` lines of anything else, but
/// not past another `unsafe`: a comment speaks for one.
fn is_justified(source: &Source, line: usize, marks: &[&str], mut distance: usize) -> bool {
    for above in (0..line).rev() {
        if marks.iter().any(|mark| source.comments[above].contains(mark)) {
            return true;
        }
        let code = source.code[above].trim();
        let is_comment = code.is_empty() && !source.comments[above].trim().is_empty();
        if is_comment || code.starts_with("#[") {
            continue;
        }
        if distance == 0 || code.contains("unsafe") {
            return false;
        }
        distance -= 1;
    }
    false
}
