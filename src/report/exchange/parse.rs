//! The reader of JSON, into the same tree as a pickle's.
//!
//! A text that occurs again is kept once, as keys do in every object. Nesting beyond
//! [`DEPTH_MAX`] is refused; nothing recurses.

use std::collections::HashMap;
use std::io::Read;

use super::error::{SnapshotError, SnapshotFault as Fault};
use super::tree::{TEXT_MAX, Tree, Value};

/// Arrays and objects within each other; the schema needs 6.
const DEPTH_MAX: usize = 64;

/// Reads one JSON text to its end.
pub(super) fn read(input: impl Read) -> Result<Tree, SnapshotError> {
    let input = std::io::BufReader::with_capacity(64 << 10, input).bytes();
    let mut parser = Parser {
        input,
        next: None,
        offset: 0,
        tree: Tree::new(),
        known: HashMap::new(),
        open: Vec::new(),
        text: Vec::new(),
    };
    match parser.run() {
        Ok(()) => {
            parser.tree.bytes = parser.offset;
            Ok(parser.tree)
        }
        Err(fault) => Err(fault.at(parser.offset)),
    }
}

/// An array or object that is not at its end yet.
struct Open {
    node: u32,
    object: bool,
}

struct Parser<I> {
    input: I,
    /// The byte at `offset`, once it was looked at.
    next: Option<u8>,
    offset: u64,
    tree: Tree,
    known: HashMap<Box<[u8]>, Value>,
    open: Vec<Open>,
    text: Vec<u8>,
}

impl<I: Iterator<Item = std::io::Result<u8>>> Parser<I> {
    fn run(&mut self) -> Result<(), Fault> {
        loop {
            // A value begins here.
            let value = match self.after_space()? {
                bracket @ (b'[' | b'{') => match self.begin(bracket == b'{')? {
                    Some(value) => value,
                    None => continue,
                },
                b'"' => self.quoted()?,
                b't' => self.keyword(b"true", Value::Boolean(true))?,
                b'f' => self.keyword(b"false", Value::Boolean(false))?,
                b'n' => self.keyword(b"null", Value::None)?,
                b'-' | b'0'..=b'9' => self.number()?,
                _ => return Err(Fault::Expected { what: "a value of JSON" }),
            };
            if !self.place(value)? {
                break;
            }
        }
        match self.space() {
            Err(Fault::CutShort) => Ok(()),
            Ok(()) => Err(Fault::Expected { what: "the end of the file" }),
            Err(fault) => Err(fault),
        }
    }

    /// Enters an array or object; if it is empty, it is a value already.
    fn begin(&mut self, object: bool) -> Result<Option<Value>, Fault> {
        if self.open.len() == DEPTH_MAX {
            return Err(Fault::TooMuch { what: "arrays within each other" });
        }
        let node = self.tree.node(self.offset);
        self.advance();
        let end = if object { b'}' } else { b']' };
        if self.after_space()? == end {
            self.advance();
            return Ok(Some(node_value(node, object)));
        }
        self.open.push(Open { node, object });
        if object {
            self.key()?;
        }
        Ok(None)
    }

    /// Puts a value where it belongs, and ends what it ends; `false` if that is everything.
    fn place(&mut self, mut value: Value) -> Result<bool, Fault> {
        loop {
            let Some(&Open { node, object }) = self.open.last() else {
                self.tree.root = value;
                return Ok(false);
            };
            self.tree.nodes[node as usize].items.push(value);
            match (self.after_space()?, object) {
                (b',', _) => {
                    self.advance();
                    if object {
                        self.key()?;
                    }
                    return Ok(true);
                }
                (b'}', true) | (b']', false) => {
                    self.advance();
                    self.open.pop();
                    value = node_value(node, object);
                }
                (_, true) => return Err(Fault::Expected { what: "`,` or `}`" }),
                (_, false) => return Err(Fault::Expected { what: "`,` or `]`" }),
            }
        }
    }

    fn key(&mut self) -> Result<(), Fault> {
        if self.after_space()? != b'"' {
            return Err(Fault::Expected { what: "a key in quotation marks" });
        }
        let key = self.quoted()?;
        if self.after_space()? != b':' {
            return Err(Fault::Expected { what: "`:`" });
        }
        self.advance();
        if let Some(open) = self.open.last() {
            self.tree.nodes[open.node as usize].items.push(key);
        }
        Ok(())
    }

    /// The next byte, which is not taken yet.
    fn peek(&mut self) -> Result<u8, Fault> {
        if let Some(byte) = self.next {
            return Ok(byte);
        }
        let byte = self.input.next().ok_or(Fault::CutShort)?.map_err(Fault::Io)?;
        self.next = Some(byte);
        Ok(byte)
    }

    fn advance(&mut self) {
        self.next = None;
        self.offset += 1;
    }

    fn take(&mut self) -> Result<u8, Fault> {
        let byte = self.peek()?;
        self.advance();
        Ok(byte)
    }

    fn space(&mut self) -> Result<(), Fault> {
        while matches!(self.peek()?, b' ' | b'\t' | b'\n' | b'\r') {
            self.advance();
        }
        Ok(())
    }

    fn after_space(&mut self) -> Result<u8, Fault> {
        self.space()?;
        self.peek()
    }

    fn keyword(&mut self, word: &[u8], value: Value) -> Result<Value, Fault> {
        for &byte in word {
            if self.peek()? != byte {
                return Err(Fault::Expected { what: "true, false or null" });
            }
            self.advance();
        }
        Ok(value)
    }

    fn number(&mut self) -> Result<Value, Fault> {
        self.text.clear();
        let wrong = loop {
            match self.peek() {
                Ok(byte @ (b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')) => {
                    self.text.push(byte);
                    self.advance();
                }
                Ok(_) => break Fault::Expected { what: "a number" },
                Err(Fault::CutShort) => break Fault::CutShort,
                Err(fault) => return Err(fault),
            }
            if self.text.len() > 400 {
                return Err(Fault::TooMuch { what: "digits of a number" });
            }
        };
        let digits = std::str::from_utf8(&self.text).unwrap_or("");
        if let Ok(number) = digits.parse() {
            return Ok(Value::Integer(number));
        }
        if let Ok(number) = digits.parse() {
            return Ok(Value::Large(number));
        }
        digits.parse().map(Value::Float).map_err(|_| wrong)
    }

    fn quoted(&mut self) -> Result<Value, Fault> {
        self.advance();
        self.text.clear();
        loop {
            match self.take()? {
                b'"' => break,
                b'\\' => self.escape()?,
                0..0x20 => return Err(Fault::Expected { what: "no control byte in a text" }),
                byte => self.text.push(byte),
            }
            if self.text.len() > TEXT_MAX {
                return Err(Fault::TooMuch { what: "bytes of a text" });
            }
        }
        if let Some(&value) = self.known.get(&self.text[..]) {
            return Ok(value);
        }
        let text = std::str::from_utf8(&self.text);
        let value = self.tree.text(text.map_err(|_| Fault::Expected { what: "UTF-8" })?);
        self.known.insert(self.text[..].into(), value);
        Ok(value)
    }

    fn escape(&mut self) -> Result<(), Fault> {
        let byte = match self.take()? {
            byte @ (b'"' | b'\\' | b'/') => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => return self.code_point(),
            _ => return Err(Fault::Expected { what: "an escape of JSON" }),
        };
        self.text.push(byte);
        Ok(())
    }

    /// `\uXXXX`, or two of them; half a pair becomes a sign of replacement.
    fn code_point(&mut self) -> Result<(), Fault> {
        let mut code = self.hex()?;
        if (0xd800..0xdc00).contains(&code) && self.peek()? == b'\\' {
            self.advance();
            if self.peek()? != b'u' {
                self.push_char(code);
                return self.escape();
            }
            self.advance();
            let low = self.hex()?;
            if (0xdc00..0xe000).contains(&low) {
                code = 0x1_0000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            } else {
                self.push_char(code);
                code = low;
            }
        }
        self.push_char(code);
        Ok(())
    }

    fn push_char(&mut self, code: u32) {
        let char = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
        self.text.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
    }

    fn hex(&mut self) -> Result<u32, Fault> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = char::from(self.take()?).to_digit(16);
            code = code * 16 + digit.ok_or(Fault::Expected { what: "four hexadecimal digits" })?;
        }
        Ok(code)
    }
}

fn node_value(node: u32, object: bool) -> Value {
    if object { Value::Dict(node) } else { Value::List(node) }
}
