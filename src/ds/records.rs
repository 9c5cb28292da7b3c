//! Records by number: a vector, and the numbers that can be used again.
//!
//! ```text
//! records   A  B  ·  D  ·          a number whose record is vacant keeps what was left there
//! vacant    [4, 2]                 the last one is used first
//! ```
//!
//! A slab without the mark that tells a vacant entry from an occupied one: the owner of the records
//! knows, and an access is one comparison and one multiplication (the crate `slab` has two of each:
//! 90 instructions of a hit). O(1).

use std::ops::{Index, IndexMut};

/// Records by number.
#[derive(Debug)]
pub(crate) struct Records<T> {
    records: Vec<T>,
    vacant: Vec<u32>,
}

impl<T> Records<T> {
    pub(crate) const fn new() -> Self {
        Self { records: Vec::new(), vacant: Vec::new() }
    }

    /// How many are not vacant.
    pub(crate) fn len(&self) -> usize {
        self.records.len() - self.vacant.len()
    }

    /// Puts a record where one was vacated last, or at the end; returns its number.
    #[inline]
    pub(crate) fn insert(&mut self, record: T) -> usize {
        match self.vacant.pop() {
            Some(number) => {
                self.records[number as usize] = record;
                number as usize
            }
            None => self.append(record),
        }
    }

    #[cold]
    fn append(&mut self, record: T) -> usize {
        self.records.push(record);
        self.records.len() - 1
    }

    /// All records, the vacant ones among them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.records.iter()
    }

    /// The number may be used again. What is there stays, for the owner to mark.
    #[inline]
    pub(crate) fn vacate(&mut self, number: usize) {
        debug_assert!(number < self.records.len());
        self.vacant.push(number as u32);
    }

    /// The record of that number, vacant or not; `None` if there never was one.
    #[inline]
    pub(crate) fn get(&self, number: usize) -> Option<&T> {
        self.records.get(number)
    }
}

impl<T> Index<usize> for Records<T> {
    type Output = T;

    #[inline]
    fn index(&self, number: usize) -> &T {
        &self.records[number]
    }
}

impl<T> IndexMut<usize> for Records<T> {
    #[inline]
    fn index_mut(&mut self, number: usize) -> &mut T {
        &mut self.records[number]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_the_last_one_first() {
        let mut records = Records::new();
        let numbers = ["a", "b", "c"].map(|name| records.insert(name));
        assert_eq!((numbers, records.len()), ([0, 1, 2], 3));
        records.vacate(0);
        records.vacate(2);
        assert_eq!(records.len(), 1);
        assert_eq!((records.insert("d"), records.insert("e"), records.insert("f")), (2, 0, 3));
        assert_eq!((records[2], records[0], records.get(3)), ("d", "e", Some(&"f")));
        assert_eq!((records.len(), records.get(4)), (4, None));
    }
}
