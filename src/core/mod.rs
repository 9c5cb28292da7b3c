//! The policy: a pure, deterministic state machine. No lock, clock, environment, input or output,
//! hash order, unsafe code or backend type is in here; memory and events are opaque values that it
//! carries.
//!
//! In reading order:
//!
//! | file        | what it owns |
//! |-------------|--------------|
//! | `classes`   | request size → block size → segment size |
//! | `block`     | one block record and its states |
//! | `chunks`    | physical memory behind a range of addresses |
//! | `segment`   | one segment: its blocks in address order; split and merge |
//! | `bins`      | free blocks of a pool by size; exact best fit |
//! | `pool`      | (stream, size group, owner): bins and idle segments |
//! | `ledger`    | one `apply(entry)` moves every counter; leased peaks |
//! | `fit`       | which free block serves a request, and how much of it |
//! | `arena`     | one stream's part of the state; the hot path |
//! | `hit`       | what a hit does, line by line |
//! | `warm`      | the front cache: small blocks by their exact size |
//! | `lifetime`  | which streams still use a freed block; when a free completes |
//! | `harvest`   | events: recording, polling, waiting |
//! | `owners`    | private pools and captures |
//! | `recording` | work that is written down and not submitted |
//! | `step`      | what the core asks of the shell |
//! | `state`     | everything in one hand; commits |
//! | `miss`      | one request that missed: how far it is |
//! | `ladder`    | what is tried on a miss, in which order |
//! | `headroom`  | how much may be reserved, and what experience adds |
//! | `trim`      | what is given back, in which order, and why |
//! | `pages`     | pages of one range: claiming, unmapping, merging |
//! | `recycle`   | which free pages can be taken out, and taking them |
//! | `expand`    | virtual memory: mapping of pages |
//! | `dismantle` | taking an arena apart |
//! | `verify`    | checks every numbered invariant |

pub(crate) mod arena;
pub(crate) mod bins;
pub(crate) mod block;
pub(crate) mod chunks;
pub(crate) mod classes;
pub(crate) mod dismantle;
pub(crate) mod expand;
pub(crate) mod fit;
pub(crate) mod harvest;
pub(crate) mod headroom;
pub(crate) mod hit;
pub(crate) mod ladder;
pub(crate) mod ledger;
pub(crate) mod lifetime;
pub(crate) mod miss;
pub(crate) mod owners;
pub(crate) mod pages;
pub(crate) mod pool;
pub(crate) mod recording;
pub(crate) mod recycle;
pub(crate) mod segment;
pub(crate) mod state;
pub(crate) mod step;
pub(crate) mod trim;
pub(crate) mod verify;
pub(crate) mod warm;
