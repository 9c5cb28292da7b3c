//! The writer of pickles: protocol 2, and of its opcodes only those that every viewer knows.
//!
//! ```text
//!   0x80 2                                  PROTO
//!   }  (  key value key value …  u          EMPTY_DICT MARK … SETITEMS
//!   ]  (  item … item  e  (  item …  e      EMPTY_LIST MARK … APPENDS, at most 1000 items each
//!   X n text   q id                         BINUNICODE, BINPUT: said once …
//!   h id                                    BINGET: … and referred to from then on
//!   K M J 0x8a                              BININT1, BININT2, BININT, LONG1: by size
//!   .                                       STOP
//! ```
//!
//! The memo is where the size goes: words have the ids below 64, so a key costs two bytes whenever
//! it is met; texts, frames and whole call stacks, with the tag in front, follow in order of
//! appearance. PyTorch's own files share frames, but write every stack out, 5 bytes a frame.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use super::layout::{Sink, TAG_FILE};
use super::out::Out;
use super::words::Word;
use crate::report::history::{Frame, Frames};

/// Memo ids below this are those of words.
const WORDS_MAX: u32 = 64;

const _: () = assert!(Word::TEXTS.len() <= WORDS_MAX as usize);

/// Items of a list between two APPENDS; viewers pass them as arguments of one call.
const BATCH: u32 = 1000;

/// A stack of calls by what it points to: equal pointers, equal content.
type Place = (usize, usize, usize);

/// Writes one pickle.
pub(super) struct Pickle<'a, W> {
    out: Out<W>,
    /// Bit by word: whether it is in the memo.
    said: u64,
    memo: u32,
    texts: HashMap<&'a str, u32>,
    frames: HashMap<&'a Frame, u32>,
    stacks: HashMap<(&'a [Frame], Option<&'a str>), u32>,
    places: HashMap<Place, u32>,
    last: Option<(Place, u32)>,
    /// Items so far in the open batch of each open list.
    batches: Vec<u32>,
}

impl<W: Write> Pickle<'_, W> {
    pub(super) fn new(output: W) -> Self {
        let mut out = Out::new(output);
        out.bytes(&[0x80, 2]);
        Self {
            out,
            said: 0,
            memo: WORDS_MAX,
            texts: HashMap::new(),
            frames: HashMap::new(),
            stacks: HashMap::new(),
            places: HashMap::new(),
            last: None,
            batches: Vec::new(),
        }
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.byte(b'.');
        self.out.finish()
    }

    fn refer(&mut self, id: u32) {
        match u8::try_from(id) {
            Ok(id) => self.out.bytes(&[b'h', id]),
            Err(_) => {
                self.out.byte(b'j');
                self.out.bytes(&id.to_le_bytes());
            }
        }
    }

    /// Puts what was written last into the memo.
    fn put(&mut self) -> u32 {
        let id = self.memo;
        self.memo += 1;
        match u8::try_from(id) {
            Ok(id) => self.out.bytes(&[b'q', id]),
            Err(_) => {
                self.out.byte(b'r');
                self.out.bytes(&id.to_le_bytes());
            }
        }
        id
    }

    fn spell(&mut self, text: &str) {
        // A text of 4 GiB is cut: no name is that long.
        let len = u32::try_from(text.len()).unwrap_or(0);
        self.out.byte(b'X');
        self.out.bytes(&len.to_le_bytes());
        self.out.bytes(&text.as_bytes()[..len as usize]);
    }
}

impl<'a, W: Write> Pickle<'a, W> {
    fn frame(&mut self, frame: &'a Frame) {
        if let Some(&id) = self.frames.get(frame) {
            return self.refer(id);
        }
        self.begin_dict();
        self.key(Word::Filename);
        self.text(&frame.file);
        self.key(Word::Line);
        self.number(frame.line.into());
        self.key(Word::Name);
        self.text(&frame.name);
        self.end_dict();
        let id = self.put();
        self.frames.insert(frame, id);
    }

    fn tag_frame(&mut self, tag: &str) {
        self.begin_dict();
        self.key(Word::Filename);
        self.spell(TAG_FILE);
        self.key(Word::Line);
        self.number(0);
        self.key(Word::Name);
        self.spell(&format!("[{tag}]"));
        self.end_dict();
    }

    fn stack(&mut self, frames: &'a [Frame], tag: Option<&'a str>) -> u32 {
        if let Some(&id) = self.stacks.get(&(frames, tag)) {
            self.refer(id);
            return id;
        }
        self.begin_list();
        if let Some(tag) = tag {
            self.item();
            self.tag_frame(tag);
        }
        for frame in frames {
            self.item();
            self.frame(frame);
        }
        self.end_list();
        let id = self.put();
        self.stacks.insert((frames, tag), id);
        id
    }
}

impl<'a, W: Write> Sink<'a> for Pickle<'a, W> {
    fn begin_dict(&mut self) {
        self.out.bytes(b"}(");
    }

    fn key(&mut self, key: Word) {
        self.word(key);
    }

    fn key_text(&mut self, key: &str) {
        self.spell(key);
    }

    fn end_dict(&mut self) {
        self.out.byte(b'u');
    }

    fn begin_list(&mut self) {
        self.out.bytes(b"](");
        self.batches.push(0);
    }

    fn item(&mut self) {
        if let Some(batch) = self.batches.last_mut() {
            *batch += 1;
            if *batch > BATCH {
                *batch = 1;
                self.out.bytes(b"e(");
            }
        }
    }

    fn end_list(&mut self) {
        self.batches.pop();
        self.out.byte(b'e');
    }

    fn pair(&mut self, first: u64, second: u64) {
        self.number(first);
        self.number(second);
        self.out.byte(0x86);
    }

    #[inline]
    fn number(&mut self, number: u64) {
        match number {
            0..0x100 => self.out.bytes(&[b'K', number as u8]),
            0x100..0x1_0000 => {
                let [low, high] = (number as u16).to_le_bytes();
                self.out.bytes(&[b'M', low, high]);
            }
            0x1_0000..0x8000_0000 => {
                let [a, b, c, d] = (number as u32).to_le_bytes();
                self.out.bytes(&[b'J', a, b, c, d]);
            }
            _ => {
                // Signed, in as few bytes as will do; more than 8 some viewers do not add up.
                let number = number.min(i64::MAX as u64);
                let len = (65 - number.leading_zeros()).div_ceil(8) as usize;
                self.out.bytes(&[0x8a, len as u8]);
                self.out.bytes(&number.to_le_bytes()[..len]);
            }
        }
    }

    fn minus_one(&mut self) {
        self.out.bytes(&[b'J', 0xff, 0xff, 0xff, 0xff]);
    }

    fn float(&mut self, number: f64) {
        self.out.byte(b'G');
        self.out.bytes(&number.to_be_bytes());
    }

    fn boolean(&mut self, value: bool) {
        self.out.byte(if value { 0x88 } else { 0x89 });
    }

    fn none(&mut self) {
        self.out.byte(b'N');
    }

    #[inline]
    fn word(&mut self, word: Word) {
        let bit = 1 << word as u64;
        if self.said & bit != 0 {
            return self.out.bytes(&[b'h', word as u8]);
        }
        self.said |= bit;
        self.spell(word.text());
        self.out.bytes(&[b'q', word as u8]);
    }

    fn text(&mut self, text: &'a str) {
        if let Some(&id) = self.texts.get(text) {
            return self.refer(id);
        }
        self.spell(text);
        let id = self.put();
        self.texts.insert(text, id);
    }

    #[inline]
    fn frames(&mut self, frames: &'a Frames, tag: Option<&'a Arc<str>>) {
        if frames.is_empty() && tag.is_none() {
            return self.out.byte(b']');
        }
        let tag_place = tag.map_or(0, |tag| tag.as_ptr().addr());
        let place = (frames.as_ptr().addr(), frames.len(), tag_place);
        if let Some((last, id)) = self.last
            && last == place
        {
            return self.refer(id);
        }
        let id = match self.places.get(&place) {
            Some(&id) => {
                self.refer(id);
                id
            }
            None => {
                let id = self.stack(frames, tag.map(|tag| &**tag));
                self.places.insert(place, id);
                id
            }
        };
        self.last = Some((place, id));
    }
}
