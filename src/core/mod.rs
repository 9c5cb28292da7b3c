//! The policy: a pure, deterministic state machine. No lock, clock, environment, input or output,
//! hash order, unsafe code or backend type is in here; memory and events are opaque values that it
//! carries.
//!
//! # The policy on one page
//!
//! ```text
//!   request ─▶ hit: the stream's own cache                                   ns, no backend call
//!                │ nothing fits
//!                ▼
//!              another stream's free block, after a wait on the device       record + wait
//!                │ none, or a small request that will hit in its own segment from then on
//!                ▼
//!              would growing exceed (1 + h) · high-water of active bytes?
//!                │ no                          │ yes
//!                │                             ├─ pages:    move them out of holes   2 a chunk
//!                │                             └─ segments: give idle ones back      1 a segment
//!                ▼
//!              grow: several blocks of this size while headroom has room     1 for many requests
//!                │ refused
//!                ▼
//!              give back what is missing ─ wait for submitted work ─ give back all ─ fail
//! ```
//!
//! What a step costs decides its place: a wait on the device is cheaper than a growth and dearer
//! than a hit, so what one stream has free is lent to another that would have to grow by a segment
//! of its own, and not to one that makes small requests. What is given back too early is regretted
//! (`headroom`): a program that repeats itself makes fewer and fewer calls, most in the end none.
//!
//! What is kept: at most 3 % above the most that was ever active, and what regret adds. Where a
//! growth makes a segment (`classes`), it holds several blocks of the size that missed, for most of
//! what was lost was the remainder at the end of each segment; where memory is scarce it does not.
//! What long-lived blocks can spoil is kept from them (`fit`): an idle segment 16 times as large as
//! a request stays whole as long as there is room to grow.
//!
//! What is *not* done: to learn how long blocks live and to place them by that. Told the true
//! lifetimes of every block, placement by them (at the ends of holes, in segments apart, beside
//! neighbours that die soon; 190 variants) saves at most 0.11 % of what is reserved and 0.17 % of
//! the smallest device; learned from sizes it costs more than that, for what stays for ever comes
//! once, in the sizes of what does not. What is left of waste are the remainders of idle segments
//! that were made for another size and broken up for want of room.
//!
//! Measured over 23 traces of real programs, cold, on an unlimited simulated device; bytes as
//! multiples of the peak of live bytes, geometric mean and worst of the 21 above 1 GiB, and calls
//! for 1,000 requests over all:
//!
//! | policy                    | most reserved | worst | smallest device | calls |
//! |---------------------------|---------------|-------|-----------------|-------|
//! | PyTorch's                 |         1.236 | 13.23 |           1.047 |    27 |
//! | default                   |         1.029 | 1.101 |           1.024 |    11 |
//! | default, expandable       |         1.008 | 1.014 |           1.004 |   183 |
//!
//! With each mechanism switched off, one at a time: `benches/results/results.md`, "ablation".
//!
//! # Files
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
//! | `note`      | what the core tells for a history |
//! | `step`      | what the core asks of the shell |
//! | `state`     | everything in one hand; commits |
//! | `miss`      | one request that missed: how far it is |
//! | `ladder`    | what is tried on a miss, in which order |
//! | `headroom`  | how much may be reserved, and what experience adds |
//! | `trim`      | what is given back, in which order, and why |
//! | `pages`     | pages of one range: claiming, unmapping, merging |
//! | `recycle`   | which free pages can be taken out, and taking them |
//! | `expand`    | virtual memory: mapping of pages |
//! | `pause`     | private pools whose memory goes back while their addresses stay |
//! | `scopes`    | peaks of several stretches of time at once; what was there when one began |
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
pub(crate) mod note;
pub(crate) mod owners;
pub(crate) mod pages;
pub(crate) mod pause;
pub(crate) mod pool;
pub(crate) mod recording;
pub(crate) mod recycle;
pub(crate) mod scopes;
pub(crate) mod segment;
pub(crate) mod state;
pub(crate) mod step;
pub(crate) mod trim;
pub(crate) mod verify;
pub(crate) mod warm;
