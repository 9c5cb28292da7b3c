//! Every driver call of every scenario fails once, in every way a driver can fail.
//!
//! ```text
//!   undisturbed run ─▶ n calls ─▶ n runs: call k answers out of memory      ─┐
//!                                 n runs: call k answers invalid value       ├─▶ judged
//!                                 n runs: from call k on the device is lost ─┘
//! ```
//!
//! However the call fails:
//!
//! - nothing panics, the strict fake sees no misuse, and the books stay true after every step;
//! - after a refusal at most that one operation has failed, the next request is served, and in the
//!   end all has come back: contexts, memory, addresses, pools, streams, events, descriptors;
//! - after a loss every request answers so, and tearing everything down is quiet.
//!
//! The calls that take the allocator, the streams and the context down are swept too, and so are
//! those that open the device. What cudarc leaks when its own calls fail is named in [`judge`].
//!
//! | file        | what it has                                |
//! |-------------|--------------------------------------------|
//! | `stage`     | one run: who fails, what is expected then  |
//! | `scenarios` | the programs over memory of every source   |
//! | `features`  | graphs, pinned memory, pauses, sharing     |
//! | `open`      | the opening of devices                     |
#![cfg(all(feature = "cuda", target_os = "linux"))]

#[path = "support/cuda.rs"]
mod cuda;
#[path = "cuda_faults/features.rs"]
mod features;
#[path = "cuda_faults/judge.rs"]
mod judge;
#[path = "cuda_faults/open.rs"]
mod open;
#[path = "cuda_faults/scenarios.rs"]
mod scenarios;
#[path = "cuda_faults/stage.rs"]
mod stage;

use aquifer::backend::{CudaOptions, CudaSource};
use aquifer::{Config, CudaAllocator};

use cuda::{Fake, Options};
use judge::{sweep, sweep_contexts};
use stage::Scenario;

/// What kind of memory a sweep runs over.
#[derive(Debug, Clone)]
struct Setup {
    name: &'static str,
    options: CudaOptions,
    config: Config,
    /// Whether work goes on until it is waited for.
    asynchronous: bool,
    /// Whether the calls fail too that enter and leave the context: half of all, and the same for
    /// memory of every source.
    entries: bool,
}

/// The call that every entry makes, and makes again when it ends.
const ENTRY: &str = "cuThreadExchangeStreamCaptureMode";

const MIB: u64 = 1 << 20;
const CAPACITY: u64 = 128 * MIB;

impl Setup {
    fn new(source: CudaSource) -> Self {
        let options = CudaOptions { source: Some(source), ..CudaOptions::default() };
        let config = CudaAllocator::recommended_config(source);
        Self { name: "", options, config, asynchronous: false, entries: false }
    }

    /// Ranges of addresses and chunks.
    fn pages() -> Self {
        Self { entries: true, ..Self::new(CudaSource::Virtual) }
    }

    /// Segments of one chunk each.
    fn whole_pages() -> Self {
        Self { config: Config::default(), ..Self::new(CudaSource::Virtual) }
    }

    fn pool() -> Self {
        Self::new(CudaSource::Pool)
    }

    fn plain() -> Self {
        Self::new(CudaSource::Plain)
    }

    fn exportable(mut self) -> Self {
        self.options.exportable = true;
        self
    }

    fn asynchronous(self) -> Self {
        Self { asynchronous: true, ..self }
    }

    fn fake(&self) -> Fake {
        let asynchronous = self.asynchronous;
        let options =
            Options { devices: 2, capacity: CAPACITY, asynchronous, ..Options::default() };
        let fake = Fake::fresh(options);
        fake.count_call(ENTRY, self.entries);
        fake
    }
}

/// Stamps one test for each scenario and setup.
macro_rules! sweeps {
    ($($scenario:path { $($name:ident: $setup:expr;)* })*) => {$($(
        #[test]
        fn $name() {
            let run: Scenario = $scenario;
            sweep(&Setup { name: stringify!($name), ..$setup }, run);
        }
    )*)*};
}

sweeps! {
    scenarios::grow {
        grow_pages: Setup::pages();
        grow_whole_pages: Setup::whole_pages();
        grow_pool: Setup::pool();
        grow_plain: Setup::plain();
    }
    scenarios::trims {
        trims_pages: Setup::pages();
        trims_whole_pages: Setup::whole_pages();
        trims_pool: Setup::pool();
        trims_plain: Setup::plain();
    }
    scenarios::streams {
        streams_pages: Setup::pages().asynchronous();
        streams_whole_pages: Setup::whole_pages().asynchronous();
        streams_pool: Setup::pool().asynchronous();
        streams_plain: Setup::plain().asynchronous();
    }
    scenarios::foreign_copies {
        foreign_copies_pages: Setup::pages().asynchronous();
        foreign_copies_pool: Setup::pool().asynchronous();
    }
    scenarios::forgets {
        forgets_pages: Setup::pages().asynchronous();
        forgets_pool: Setup::pool().asynchronous();
        forgets_plain: Setup::plain().asynchronous();
    }
    scenarios::teardown {
        teardown_pages: Setup::pages().asynchronous();
        teardown_whole_pages: Setup::whole_pages().asynchronous();
        teardown_pool: Setup::pool().asynchronous();
        teardown_plain: Setup::plain().asynchronous();
    }
    features::graphs {
        graphs_pages: Setup::pages();
        graphs_whole_pages: Setup::whole_pages();
        graphs_pool: Setup::pool();
        graphs_plain: Setup::plain();
        graphs_pages_asynchronous: Setup::pages().asynchronous();
    }
    features::unannounced_graphs {
        unannounced_graphs_pages: Setup::pages();
    }
    features::pinned {
        pinned_pages: Setup::pages().asynchronous();
        pinned_plain: Setup::plain().asynchronous();
    }
    features::pauses {
        pauses_pages: Setup::pages();
        pauses_pages_asynchronous: Setup::pages().asynchronous();
    }
    features::shares {
        shares_pages: Setup::pages().exportable();
        shares_whole_pages: Setup::whole_pages().exportable();
    }
}

/// The calls that look at the thread's context and change it, with another device's current there.
#[test]
fn contexts_pages() {
    sweep_contexts(&Setup { name: "contexts_pages", ..Setup::pages() }, scenarios::trims_alone);
}

#[test]
fn contexts_plain() {
    sweep_contexts(&Setup { name: "contexts_plain", ..Setup::plain() }, scenarios::trims_alone);
}
