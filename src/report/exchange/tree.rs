//! What a file says, before anybody has looked at what it means: values, and lists of values.
//!
//! Lists, tuples and dicts are nodes of an array, so that a file may share them, nest them as deep
//! as it likes, or even put one into itself: nothing here recurses. A dict is a list of keys and
//! values by turns.

use std::sync::Arc;

use super::words::Word;

/// The longest text, in bytes.
pub(super) const TEXT_MAX: usize = 16 << 20;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    None,
    Boolean(bool),
    Integer(i64),
    /// A number from 2^63 on.
    Large(u64),
    Float(f64),
    /// By index; words have the first ones.
    Text(u32),
    /// By index of the node.
    List(u32),
    Dict(u32),
}

const _: () = assert!(size_of::<Value>() <= 16);

#[derive(Debug)]
pub(super) struct Node {
    /// Where it begins in the file.
    pub(super) offset: u64,
    pub(super) items: Vec<Value>,
}

#[derive(Debug)]
pub(super) struct Tree {
    pub(super) root: Value,
    pub(super) texts: Vec<Arc<str>>,
    pub(super) nodes: Vec<Node>,
    /// Bytes of the file.
    pub(super) bytes: u64,
}

impl Tree {
    pub(super) fn new() -> Self {
        let texts = Word::TEXTS.iter().map(|&text| Arc::from(text)).collect();
        Self { root: Value::None, texts, nodes: Vec::new(), bytes: 0 }
    }

    /// Takes a text in; a word becomes that word.
    pub(super) fn text(&mut self, text: &str) -> Value {
        if let Some(word) = Word::TEXTS.iter().position(|word| *word == text) {
            return Value::Text(word as u32);
        }
        self.texts.push(Arc::from(text));
        Value::Text((self.texts.len() - 1) as u32)
    }

    /// A new node without items, by index.
    pub(super) fn node(&mut self, offset: u64) -> u32 {
        self.nodes.push(Node { offset, items: Vec::new() });
        (self.nodes.len() - 1) as u32
    }

    /// The value of a key in a dict; the last, if it is there several times.
    pub(super) fn find(&self, dict: u32, key: Word) -> Option<Value> {
        let wanted = Value::Text(key as u32);
        let pairs = self.nodes[dict as usize].items.chunks_exact(2);
        pairs.rev().find(|pair| pair[0] == wanted).map(|pair| pair[1])
    }
}
