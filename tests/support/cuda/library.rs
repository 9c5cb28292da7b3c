//! Finding and loading the fake CUDA driver.
//!
//! ```text
//!   test executable  target/debug/deps/name-…
//!        │ beside it
//!        ▼
//!   libfake_cuda.so ── dlopen by absolute path, once per process, never closed
//!        │ SONAME libcuda.so; then the empty libcuda.so.1 that needs it, see its build script
//!        ▼
//!   dlopen("libcuda.so") or dlopen("libcuda.so.1") by anybody afterwards: this one
//! ```

use std::ffi::{CStr, CString, c_char, c_void};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;

/// The loaded library; it stays until the process ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Library {
    handle: *mut c_void,
}

// SAFETY: a handle of the loader may be used by all threads, and this one is never closed.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// Loads the library, once per process.
    ///
    /// # Panics
    /// If it was not built, or if another `libcuda` is loaded already.
    pub(crate) fn load() -> Self {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        *LIBRARY.get_or_init(|| {
            let maps = fs::read_to_string("/proc/self/maps").expect("the list of mappings");
            let stranger = maps.lines().find(|line| line.contains("libcuda.so"));
            assert!(
                stranger.is_none(),
                "another CUDA driver is loaded: {}",
                stranger.unwrap_or("")
            );
            let path = library_path();
            let name = CString::new(path.as_os_str().as_bytes()).expect("a path without zeros");
            let library = open(&name, libc::RTLD_NOW | libc::RTLD_GLOBAL);
            assert!(!library.is_null(), "{} cannot be loaded: {}", path.display(), loader_error());
            let library = Library { handle: library };
            let second = library.second_name();
            assert!(!open(second, libc::RTLD_NOW).is_null(), "{second:?}: {}", loader_error());
            for name in [c"libcuda.so", c"libcuda.so.1"] {
                let by_name = Library { handle: open(name, libc::RTLD_NOW | libc::RTLD_NOLOAD) };
                assert!(!by_name.handle.is_null(), "{name:?} is not loaded: {}", loader_error());
                let [found, own] = [by_name, library].map(|library| library.symbol("cuInit"));
                assert_eq!(found, own, "{name:?} is not {}", path.display());
            }
            library
        })
    }

    /// The path of the library that makes this one `libcuda.so.1` too.
    fn second_name(self) -> &'static CStr {
        let address = self.symbol("fakecuda_second_name");
        // SAFETY: the library exports this name with this type.
        let path = unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *const c_char>(address)
        };
        // SAFETY: it asks for nothing.
        let path = unsafe { path() };
        // SAFETY: a constant of a library that is never closed; it ends with a zero.
        unsafe { CStr::from_ptr(path) }
    }

    /// The address of an exported function.
    ///
    /// # Panics
    /// If there is none of this name.
    pub(crate) fn symbol(self, name: &str) -> *mut c_void {
        let text = CString::new(name).expect("a name without zeros");
        // SAFETY: the handle is open, the name ends with a zero.
        let address = unsafe { libc::dlsym(self.handle, text.as_ptr()) };
        assert!(!address.is_null(), "the fake has no {name}: {}", loader_error());
        address
    }
}

fn open(name: &CStr, flags: i32) -> *mut c_void {
    // SAFETY: the name ends with a zero; the library does nothing when it is loaded.
    unsafe { libc::dlopen(name.as_ptr(), flags) }
}

fn loader_error() -> String {
    // SAFETY: the text is valid until the next call of the loader in this thread.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "no reason given".into();
    }
    // SAFETY: not null, so it is a text that ends with a zero.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// The library lies beside the test executable, or in the directory above it.
pub(crate) fn library_path() -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test");
    let file = "libfake_cuda.so";
    let dirs = test.ancestors().skip(1).take(2);
    let mut paths = dirs.flat_map(|dir| [dir.join(file), dir.join("deps").join(file)]);
    paths.find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("{file} is not beside {}: `cargo test` builds it", test.display())
    })
}
