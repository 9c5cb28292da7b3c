//! Interned names for allocations.

use std::collections::HashMap;
use std::sync::PoisonError;

use crate::allocator::sync::RwLock;
use crate::id::Tag;

/// Names by tag and tags by name. Names are never forgotten: use few.
pub(super) struct Tags {
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    names: Vec<String>,
    tags: HashMap<String, Tag>,
}

impl Tags {
    pub(super) fn new() -> Self {
        Self { table: RwLock::default() }
    }

    /// The tag of a name; the same name gives the same tag.
    pub(super) fn intern(&self, name: &str) -> Tag {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(&tag) = table.tags.get(name) {
            return tag;
        }
        drop(table);
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(&tag) = table.tags.get(name) {
            return tag;
        }
        table.names.push(name.to_owned());
        // Tag 0 is no tag.
        let tag = Tag(u32::try_from(table.names.len()).expect("fewer than 2^32 names"));
        table.tags.insert(name.to_owned(), tag);
        tag
    }

    /// The name of a tag; `None` for no tag.
    pub(super) fn name(&self, tag: Tag) -> Option<String> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let index = (tag.0 as usize).checked_sub(1)?;
        table.names.get(index).cloned()
    }
}
