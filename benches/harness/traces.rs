//! Which traces there are: those beside the benches, and more if they are named.
//!
//! `--traces PATH` (may be repeated) and the variable `AQUIFER_TRACES` (paths as in `PATH`) name
//! files, or folders with files, that end in `.mtrace` or `.mtrace.gz`. What is not there is said
//! on standard error and left out.

use std::path::{Path, PathBuf};

use super::{Run, values};

/// Events that are run for a figure, more or less: short traces get more rounds.
const EVENTS: usize = 3_000_000;

/// How often a trace of so many events is run.
pub(crate) fn rounds(run: Run, events: usize) -> usize {
    run.rounds((EVENTS / events.max(1)).clamp(5, 40))
}

/// The variable.
const VARIABLE: &str = "AQUIFER_TRACES";

/// All of them by name and path, in order of their names; of two with the same name, the first.
pub(crate) fn traces() -> Vec<(String, PathBuf)> {
    let args: Vec<String> = std::env::args().collect();
    let mut places = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(SHIPPED)];
    places.extend(values(&args, "--traces").map(PathBuf::from));
    if let Some(paths) = std::env::var_os(VARIABLE) {
        places.extend(std::env::split_paths(&paths));
    }
    if places.len() == 1 {
        eprintln!("traces: only those of benches/traces; {VARIABLE} or --traces names more");
    }
    let mut traces: Vec<(String, PathBuf)> = Vec::new();
    for path in places.iter().flat_map(|place| files(place)) {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = file.trim_end_matches(".gz").trim_end_matches(".mtrace").to_owned();
        if traces.iter().all(|(known, _)| *known != name) {
            traces.push((name, path));
        }
    }
    traces.sort();
    traces
}

/// From the package that the bench belongs to; that beside CubeCL lies in `benches/cubecl`.
const SHIPPED: &str = match env!("CARGO_PKG_NAME").as_bytes() {
    b"aquifer" => "benches/traces",
    _ => "../traces",
};

/// The file, or the traces in the folder, in order of their names.
fn files(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let Ok(entries) = std::fs::read_dir(place) else {
        eprintln!("traces: {} is not there, and left out", place.display());
        return Vec::new();
    };
    let is_trace = |path: &PathBuf| {
        let name = path.to_string_lossy();
        name.ends_with(".mtrace") || name.ends_with(".mtrace.gz")
    };
    let paths = entries.filter_map(|entry| entry.ok()).map(|entry| entry.path());
    let mut paths: Vec<_> = paths.filter(is_trace).collect();
    paths.sort();
    paths
}
