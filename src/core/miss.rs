//! One request that missed: how far it is on the ladder, and what it met there.

use crate::core::arena::Want;
use crate::core::harvest::{Harvest, Polled};
use crate::core::trim::Trim;
use crate::id::ArenaId;
use crate::units::Bytes;

/// Requests that the device refuses at one time could wake each other for ever. Each of them starts
/// over so many times because others were refused, and any number of times when memory came back.
const PATIENCE: u32 = 1;

/// A request on its way up the ladder.
#[derive(Debug)]
pub(crate) struct Miss<'a> {
    pub(crate) want: Want<'a>,
    pub(crate) arena: ArenaId,
    pub(super) rung: usize,
    pub(super) started: bool,
    pub(super) harvest: Harvest,
    /// How far it was asked whether work on free pages is done.
    pub(super) polled_holes: Polled,
    /// Events are to be harvested before the first search.
    pub(super) harvest_first: bool,
    /// The program has callbacks that were not asked yet.
    pub(super) callbacks: bool,
    /// Growing was refused, and nothing has come free since.
    pub(super) refused: bool,
    /// More than the usual segment was refused, or more pages than are needed: from now on no more
    /// is asked for.
    pub(super) modest: bool,
    /// It was asked which streams the captured one has joined.
    pub(super) asked_joins: bool,
    /// There are no addresses for another range.
    pub(super) no_range: bool,
    /// The limit refused last, not the device: a growth of others that fails makes room.
    pub(super) limited: bool,
    /// How often memory had come back when growing was tried last, and by this request since.
    pub(super) returns: u64,
    /// Likewise, how often a growth was refused, which may have held what this one lacked.
    pub(super) refusals: u64,
    /// How often this request starts over yet, after the device refused it, for no better reason.
    pub(super) patience: u32,
    /// What the device said was free when it refused.
    pub(super) device_free: Option<Bytes>,
    pub(super) trim: Option<Trim>,
}

impl<'a> Miss<'a> {
    pub(crate) fn new(arena: ArenaId, want: Want<'a>, harvest: bool, callbacks: bool) -> Self {
        Self {
            want,
            arena,
            rung: 0,
            started: false,
            harvest: Harvest::default(),
            polled_holes: Polled::default(),
            harvest_first: harvest,
            callbacks,
            refused: false,
            modest: false,
            asked_joins: false,
            no_range: false,
            limited: false,
            returns: 0,
            refusals: 0,
            patience: PATIENCE,
            device_free: None,
            trim: None,
        }
    }

    /// The device, which says so much is free, refused to grow.
    pub(crate) fn refuse(&mut self, device_free: Option<Bytes>) {
        (self.refused, self.limited) = (true, false);
        self.device_free = device_free;
    }

    /// The limit refused to grow; the device was not asked.
    pub(crate) fn limit(&mut self) {
        (self.refused, self.limited) = (true, true);
    }

    /// A callback gave memory back, or none did; `left`: there are more to ask.
    pub(crate) fn called_back(&mut self, freed: bool, left: bool) {
        self.callbacks = left;
        self.refused &= !freed;
    }

    /// This request itself made memory come back: nothing new for it.
    pub(crate) fn own_return(&mut self) {
        self.returns += 1;
    }

    /// A growth of this request was refused: nothing new for it.
    pub(crate) fn own_refusal(&mut self) {
        self.refusals += 1;
    }

    /// More than the usual segment, or than the pages that are needed, was refused: the same rung
    /// asks for that.
    pub(crate) fn ask_for_less(&mut self) {
        self.modest = true;
        self.stay();
    }

    /// All is tried anew, from the first growth on.
    pub(crate) fn start_over(&mut self, rung: usize) {
        self.rung = rung;
        self.trim = None;
        self.relieve();
    }

    /// The present rung is tried once more.
    pub(crate) fn stay(&mut self) {
        self.rung -= 1;
    }

    /// Memory came free: growing may work now.
    pub(crate) fn relieve(&mut self) {
        self.refused = false;
    }
}
