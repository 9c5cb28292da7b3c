//! Faults on command, and the record of the calls.
//!
//! ```text
//!   call ──▶ counted? ── no ──────────────────────────▶ goes on (unless its own symbol is planned)
//!               │ yes: number n
//!               ▼
//!            lost? ─▶ 700    planned n? ─▶ code    from ≤ n? ─▶ code    else goes on
//! ```
//!
//! F1: `made` is the number of counted calls; numbers in the plan are larger than it.
//! F2: a call that is made to fail is in the log and in the counts, like any other.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::abi::{Answer, Code};

/// Calls whose order is remembered; older ones are forgotten.
const LOG_MAX: usize = 1 << 18;

#[derive(Debug, Default)]
pub(crate) struct Faults {
    counts: HashMap<&'static str, u64>,
    log: VecDeque<(&'static str, u64)>,
    made: u64,
    planned: BTreeMap<u64, i32>,
    from: Option<(u64, i32)>,
    lost_at: Option<u64>,
    by_symbol: Vec<(String, u64, i32)>,
    /// Symbols that the test does not want to be counted, nor to fail by number.
    exempt: BTreeSet<String>,
    lost: bool,
}

impl Faults {
    /// Notes one call and says whether it has to fail. `counted` is false for the few calls that
    /// stay outside of the numbering.
    pub(crate) fn enter(
        &mut self,
        symbol: &'static str,
        counted: bool,
        log: Option<u64>,
    ) -> Answer {
        *self.counts.entry(symbol).or_insert(0) += 1;
        if let Some(subject) = log {
            if self.log.len() == LOG_MAX {
                self.log.pop_front();
            }
            self.log.push_back((symbol, subject));
        }
        if !self.by_symbol.is_empty() {
            self.enter_symbol(symbol)?;
        }
        if !counted || !self.exempt.is_empty() && self.exempt.contains(symbol) {
            return if counted && self.lost { Err(Code::ILLEGAL_ADDRESS) } else { Ok(()) };
        }
        self.made += 1;
        self.lost |= self.lost_at.is_some_and(|at| self.made >= at);
        if self.lost {
            return Err(Code::ILLEGAL_ADDRESS);
        }
        let always = self.from.filter(|&(first, _)| self.made >= first).map(|(_, code)| code);
        match self.planned.remove(&self.made).or(always) {
            Some(code) => Err(Code(code)),
            None => Ok(()),
        }
    }

    fn enter_symbol(&mut self, symbol: &str) -> Answer {
        let mut fault = None;
        for (name, left, code) in self.by_symbol.iter_mut().filter(|(name, ..)| name == symbol) {
            *left -= 1;
            if *left == 0 {
                fault = Some(*code);
                name.clear();
            }
        }
        self.by_symbol.retain(|(name, ..)| !name.is_empty());
        fault.map_or(Ok(()), |code| Err(Code(code)))
    }

    pub(crate) fn fail_at(&mut self, nth: u64, code: i32) {
        self.planned.insert(self.made + nth.max(1), code);
    }

    pub(crate) fn fail_from(&mut self, nth: u64, code: i32) {
        self.from = Some((self.made + nth.max(1), code));
    }

    pub(crate) fn fail_call(&mut self, symbol: String, nth: u64, code: i32) {
        self.by_symbol.push((symbol, nth.max(1), code));
    }

    pub(crate) fn lose_at(&mut self, nth: u64) {
        self.lost_at = Some(self.made + nth.max(1));
    }

    /// The device is gone from now on.
    pub(crate) fn lose(&mut self) {
        self.lost = true;
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Forgets all plans, and the loss.
    pub(crate) fn heal(&mut self) {
        self.planned.clear();
        self.by_symbol.clear();
        self.from = None;
        self.lost_at = None;
        self.lost = false;
    }

    /// Whether `symbol` is numbered; all are at first.
    pub(crate) fn count_symbol(&mut self, symbol: String, counted: bool) {
        if counted {
            self.exempt.remove(&symbol);
        } else {
            self.exempt.insert(symbol);
        }
    }

    pub(crate) fn made(&self) -> u64 {
        self.made
    }

    pub(crate) fn calls(&self, symbol: &str) -> u64 {
        self.counts.get(symbol).copied().unwrap_or(0)
    }

    /// Symbols with their counts, by name.
    pub(crate) fn table(&self) -> Vec<(&'static str, u64)> {
        let mut table: Vec<_> = self.counts.iter().map(|(name, count)| (*name, *count)).collect();
        table.sort_unstable();
        table
    }

    pub(crate) fn take_log(&mut self) -> VecDeque<(&'static str, u64)> {
        std::mem::take(&mut self.log)
    }
}
