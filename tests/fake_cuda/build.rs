//! Gives the library both names that programs ask the loader for, whatever its file is called.
//!
//! ```text
//!   libfake_cuda.so   SONAME libcuda.so     the driver
//!         ▲ needs it
//!   libcuda.so.1      SONAME libcuda.so.1   empty: a look-up through it finds the driver's symbols
//! ```
//!
//! A library has one SONAME, hence the second one. It lies in the build directory of this crate,
//! and the driver tells its path.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=CC");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    let dir = std::env::var("OUT_DIR").expect("cargo names the build directory");
    let dir = Path::new(&dir);
    // An empty library to link against: what counts is the name that it leaves in the second one.
    link(dir, "libcuda.so", &[]);
    link(dir, "libcuda.so.1", &["-Wl,--no-as-needed", "libcuda.so"]);
}

/// Links an empty library whose SONAME is its file's name.
fn link(dir: &Path, name: &str, more: &[&str]) {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let soname = format!("-Wl,-soname,{name}");
    let mut command = Command::new(compiler);
    command.current_dir(dir).args(["-shared", "-nostdlib", "-o", name, &soname]);
    command.args(["-x", "c", "/dev/null", "-x", "none"]).args(more);
    let status = command.status().expect("a C compiler, as Rust itself needs one to link");
    assert!(status.success(), "{command:?}: {status}");
}
