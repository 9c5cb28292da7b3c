//! The reader of pickles: the opcodes of plain data, protocols 2 to 5, and nothing that runs code.
//!
//! ```text
//!   stack   [ … value value ┊ value value value ]      marks: where ┊ is
//!   memo    [ value, value, … ]                        what BINGET fetches
//! ```
//!
//! A pickle claims hardly any sizes: a text its length, and that many bytes have to come; a frame
//! its length, which is not needed. The memo may have gaps, but not more places than bytes were
//! read. So memory is at most some 50 bytes for each byte that was really there.

use std::io::{self, BufReader, Read};

use super::error::{SnapshotError, SnapshotFault as Fault};
use super::tree::{TEXT_MAX, Tree, Value};

const VALUE_BELOW: Fault = Fault::Expected { what: "a value below" };
const LIST_BELOW: Fault = Fault::Expected { what: "a list below" };
const DICT_BELOW: Fault = Fault::Expected { what: "a dict below" };
const MARK_BELOW: Fault = Fault::Expected { what: "a mark below" };

/// Reads one pickle; what comes after it is not looked at.
pub(super) fn read(input: impl Read) -> Result<Tree, SnapshotError> {
    let mut machine = Machine {
        input: BufReader::with_capacity(64 << 10, input),
        offset: 0,
        tree: Tree::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        next: 0,
        text: Vec::new(),
    };
    loop {
        let offset = machine.offset;
        match machine.step() {
            Ok(false) => {}
            Ok(true) => {
                machine.tree.bytes = machine.offset;
                return Ok(machine.tree);
            }
            Err(Fault::CutShort) => return Err(Fault::CutShort.at(machine.offset)),
            Err(fault) => return Err(fault.at(offset)),
        }
    }
}

struct Machine<R> {
    input: BufReader<R>,
    /// Bytes read.
    offset: u64,
    tree: Tree,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
    /// The place that MEMOIZE fills next: it counts what was put.
    next: usize,
    text: Vec<u8>,
}

impl<R: Read> Machine<R> {
    /// One opcode; `true` at the end.
    fn step(&mut self) -> Result<bool, Fault> {
        let at = self.offset;
        let [opcode] = self.bytes()?;
        if at == 0 && opcode != 0x80 {
            return Err(Fault::Expected { what: "a pickle of protocol 2 to 5" });
        }
        match opcode {
            0x80 => match self.bytes()? {
                [2..=5] => {}
                [version] => return Err(Fault::Protocol { version }),
            },
            0x95 => drop(self.bytes::<8>()?),
            b'.' => {
                self.tree.root = self.pop()?;
                return Ok(true);
            }
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Boolean(true)),
            0x89 => self.stack.push(Value::Boolean(false)),
            b'K' => self.push_integer(|[byte]: [u8; 1]| byte.into())?,
            b'M' => self.push_integer(|bytes| u16::from_le_bytes(bytes).into())?,
            b'J' => self.push_integer(|bytes| i32::from_le_bytes(bytes).into())?,
            0x8a => self.long()?,
            b'G' => {
                let number = f64::from_be_bytes(self.bytes()?);
                self.stack.push(Value::Float(number));
            }
            0x8c => {
                let [len] = self.bytes()?;
                self.text(len.into())?;
            }
            b'X' => {
                let len = u32::from_le_bytes(self.bytes()?);
                self.text(len.into())?;
            }
            0x8d => {
                let len = u64::from_le_bytes(self.bytes()?);
                self.text(len)?;
            }
            _ => self.shape(opcode, at)?,
        }
        Ok(false)
    }

    /// The opcodes of lists, dicts, tuples and the memo.
    fn shape(&mut self, opcode: u8, at: u64) -> Result<(), Fault> {
        match opcode {
            b']' | b')' => {
                let list = self.tree.node(at);
                self.stack.push(Value::List(list));
            }
            b'}' => {
                let dict = self.tree.node(at);
                self.stack.push(Value::Dict(dict));
            }
            b'a' => {
                let item = self.pop()?;
                let list = self.list_on_top()?;
                self.tree.nodes[list].items.push(item);
            }
            b'e' => {
                let from = self.marks.pop().ok_or(MARK_BELOW)?;
                let list = self.below(from, LIST_BELOW, list_of)?;
                self.tree.nodes[list].items.extend(self.stack.drain(from..));
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                let from = self.stack.len();
                let dict = self.below(from, DICT_BELOW, dict_of)?;
                self.tree.nodes[dict].items.extend([key, value]);
            }
            b'u' => {
                let from = self.marks.pop().ok_or(MARK_BELOW)?;
                self.even(from)?;
                let dict = self.below(from, DICT_BELOW, dict_of)?;
                self.tree.nodes[dict].items.extend(self.stack.drain(from..));
            }
            b't' | b'l' | b'd' => {
                let from = self.marks.pop().ok_or(MARK_BELOW)?;
                if opcode == b'd' {
                    self.even(from)?;
                }
                self.gather(from, at, opcode == b'd');
            }
            0x85..=0x87 => {
                let len = usize::from(opcode - 0x84);
                let from = self.stack.len().checked_sub(len).ok_or(VALUE_BELOW)?;
                if from < self.fence() {
                    return Err(VALUE_BELOW);
                }
                self.gather(from, at, false);
            }
            0x94 => self.put(self.next)?,
            b'q' => {
                let [place] = self.bytes()?;
                self.put(place.into())?;
            }
            b'r' => {
                let place = u32::from_le_bytes(self.bytes()?);
                self.put(place as usize)?;
            }
            b'h' => {
                let [place] = self.bytes()?;
                self.fetch(place.into())?;
            }
            b'j' => {
                let place = u32::from_le_bytes(self.bytes()?);
                self.fetch(place as usize)?;
            }
            byte => return Err(Fault::Opcode { byte, name: name_of(byte) }),
        }
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(failed)?;
        self.offset += N as u64;
        Ok(bytes)
    }

    fn push_integer<const N: usize>(&mut self, read: fn([u8; N]) -> i64) -> Result<(), Fault> {
        let bytes = self.bytes()?;
        self.stack.push(Value::Integer(read(bytes)));
        Ok(())
    }

    /// LONG1: so many bytes, signed.
    fn long(&mut self) -> Result<(), Fault> {
        let [len] = self.bytes()?;
        let mut bytes = [0; 16];
        let used = bytes.get_mut(..len.into()).filter(|used| used.len() <= 9);
        let used = used.ok_or(Fault::TooMuch { what: "bits of an integer" })?;
        self.input.read_exact(used).map_err(failed)?;
        self.offset += u64::from(len);
        let negative = used.last().is_some_and(|last| *last >= 0x80);
        if negative {
            bytes[len.into()..].fill(0xff);
        }
        let number = i128::from_le_bytes(bytes);
        self.stack.push(match (i64::try_from(number), u64::try_from(number)) {
            (Ok(number), _) => Value::Integer(number),
            (_, Ok(number)) => Value::Large(number),
            _ => return Err(Fault::TooMuch { what: "bits of an integer" }),
        });
        Ok(())
    }

    fn text(&mut self, len: u64) -> Result<(), Fault> {
        if len > TEXT_MAX as u64 {
            return Err(Fault::TooMuch { what: "bytes of a text" });
        }
        self.text.clear();
        // What is taken grows as it comes, whatever the length says.
        let count = self.input.by_ref().take(len).read_to_end(&mut self.text).map_err(failed)?;
        self.offset += count as u64;
        if (count as u64) < len {
            return Err(Fault::CutShort);
        }
        // Python lets lone surrogates through in texts: they become a sign of replacement.
        let value = self.tree.text(&String::from_utf8_lossy(&self.text));
        self.stack.push(value);
        if self.text.capacity() > 1 << 20 {
            self.text = Vec::new();
        }
        Ok(())
    }

    /// Below this, values belong to what was begun before the last mark.
    fn fence(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Value, Fault> {
        if self.stack.len() <= self.fence() {
            return Err(VALUE_BELOW);
        }
        self.stack.pop().ok_or(VALUE_BELOW)
    }

    fn list_on_top(&self) -> Result<usize, Fault> {
        self.below(self.stack.len(), LIST_BELOW, list_of)
    }

    /// The node of the value just below a place of the stack.
    fn below(
        &self,
        place: usize,
        otherwise: Fault,
        node_of: fn(Value) -> Option<u32>,
    ) -> Result<usize, Fault> {
        let index = place.checked_sub(1).filter(|index| *index >= self.fence());
        let node = index.and_then(|index| self.stack.get(index)).and_then(|value| node_of(*value));
        node.map(|node| node as usize).ok_or(otherwise)
    }

    fn even(&self, from: usize) -> Result<(), Fault> {
        let is_even = (self.stack.len() - from).is_multiple_of(2);
        if is_even { Ok(()) } else { Err(Fault::Expected { what: "a value for each key" }) }
    }

    /// Values become a tuple, a list or a dict.
    fn gather(&mut self, from: usize, at: u64, dict: bool) {
        let node = self.tree.node(at);
        self.tree.nodes[node as usize].items = self.stack.drain(from..).collect();
        self.stack.push(if dict { Value::Dict(node) } else { Value::List(node) });
    }

    fn put(&mut self, place: usize) -> Result<(), Fault> {
        let value = *self.stack[self.fence()..].last().ok_or(VALUE_BELOW)?;
        // Ids are given out by counting, and ours begin below 256.
        if place as u64 > self.offset + 0x100 {
            return Err(Fault::TooMuch { what: "places of the memo" });
        }
        if place >= self.memo.len() {
            self.memo.resize(place + 1, None);
        }
        self.next += usize::from(self.memo[place].is_none());
        self.memo[place] = Some(value);
        Ok(())
    }

    fn fetch(&mut self, place: usize) -> Result<(), Fault> {
        let value = self.memo.get(place).copied().flatten();
        let value = value.ok_or(Fault::Expected { what: "something in the memo" })?;
        self.stack.push(value);
        Ok(())
    }
}

fn list_of(value: Value) -> Option<u32> {
    if let Value::List(list) = value { Some(list) } else { None }
}

fn dict_of(value: Value) -> Option<u32> {
    if let Value::Dict(dict) = value { Some(dict) } else { None }
}

fn failed(error: io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Fault::CutShort,
        _ => Fault::Io(error),
    }
}

/// What Python calls the opcodes that are refused.
fn name_of(byte: u8) -> &'static str {
    match byte {
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'B' => "BINBYTES",
        b'C' => "SHORT_BINBYTES",
        b'F' => "FLOAT",
        b'I' => "INT",
        b'L' => "LONG",
        b'P' => "PERSID",
        b'Q' => "BINPERSID",
        b'R' => "REDUCE",
        b'S' => "STRING",
        b'T' => "BINSTRING",
        b'U' => "SHORT_BINSTRING",
        b'V' => "UNICODE",
        b'b' => "BUILD",
        b'c' => "GLOBAL",
        b'g' => "GET",
        b'i' => "INST",
        b'o' => "OBJ",
        b'p' => "PUT",
        0x81 => "NEWOBJ",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x8b => "LONG4",
        0x8e => "BINBYTES8",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x93 => "STACK_GLOBAL",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => "",
    }
}
