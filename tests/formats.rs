//! Snapshots and traces as files of other programs: what is written opens in their viewers, what
//! they write is read, and nothing that a file says does harm.
//!
//! `formats/torch_snapshot_small.pickle` was written by PyTorch. It comes from
//! `github.com/silmont2000/assignment2-systems` (`mem_snapshot.pickle`), a fork of
//! `stanford-cs336/assignment2-systems` under the MIT licence in `formats/cs336-MIT.txt`; the file
//! names in its stacks are cut to their last part.

#[path = "formats/chance.rs"]
mod chance;
#[path = "formats/damage.rs"]
mod damage;
#[path = "formats/pickles.rs"]
mod pickles;
#[path = "formats/speed.rs"]
mod speed;
mod support;
#[path = "formats/torch.rs"]
mod torch;
#[path = "formats/traces.rs"]
mod traces;
#[path = "formats/viewer.rs"]
mod viewer;
