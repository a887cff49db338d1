//! The machine that a pickle is a program for: a stack, marks on it, and a memo of values to be used again.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use super::{Id, Node, Object, Pickle, literal};

/// Reads one pickle and says how many bytes it took.
pub(super) fn read(bytes: &[u8]) -> Result<(Pickle<'_>, usize)> {
    let mut machine =
        Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    loop {
        let start = machine.at;
        match machine.step().with_context(|| format!("pickle, at byte {start}"))? {
            Some(root) => return Ok((Pickle { nodes: machine.nodes, root }, machine.at)),
            None => continue,
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Lengths of the stack.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    /// Does what the next opcode says; the value that was pickled if it is the last one.
    fn step(&mut self) -> Result<Option<Id>> {
        match self.u8()? {
            b'.' => return self.pop().map(Some),
            0x80 => {
                let protocol = self.u8()?;
                ensure!(protocol <= 5, "protocol {protocol}, expected one up to 5");
            }
            // A frame only says how much to read at once.
            0x95 => _ = self.u64()?,

            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                // As in Python, a mark is taken off where it lies on top.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => _ = self.since_mark()?,
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }

            b'N' => self.push(Node::None)?,
            0x88 => self.push(Node::Bool(true))?,
            0x89 => self.push(Node::Bool(false))?,
            b'I' => {
                let node = match self.line()? {
                    b"00" => Node::Bool(false),
                    b"01" => Node::Bool(true),
                    line => literal::integer(line).context("not a whole number")?,
                };
                self.push(node)?;
            }
            b'L' => {
                let node = literal::integer(self.line()?).context("not a whole number")?;
                self.push(node)?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Node::Int(value.into()))?;
            }
            b'K' => {
                let value = self.u8()?;
                self.push(Node::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Node::Int(value.into()))?;
            }
            0x8A => {
                let length = self.u8()?.into();
                let node = literal::long(self.take(length)?);
                self.push(node)?;
            }
            0x8B => {
                let length = self.u32()?.into();
                let node = literal::long(self.take(length)?);
                self.push(node)?;
            }
            b'F' => {
                let node = literal::float(self.line()?).context("not a number")?;
                self.push(node)?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Node::Float(value))?;
            }

            b'S' => {
                let node = literal::quoted(self.line()?).context("not a string in quotes")?;
                self.push(node)?;
            }
            b'T' => {
                let length = self.u32()?.into();
                let node = literal::string(self.take(length)?.into());
                self.push(node)?;
            }
            b'U' => {
                let length = self.u8()?.into();
                let node = literal::string(self.take(length)?.into());
                self.push(node)?;
            }
            b'V' => {
                let node = literal::raw_unicode(self.line()?).context("not a text with escapes")?;
                self.push(node)?;
            }
            0x8C => {
                let length = self.u8()?.into();
                self.text(length)?;
            }
            b'X' => {
                let length = self.u32()?.into();
                self.text(length)?;
            }
            0x8D => {
                let length = self.u64()?;
                self.text(length)?;
            }
            b'C' => {
                let length = self.u8()?.into();
                self.binary(length)?;
            }
            b'B' => {
                let length = self.u32()?.into();
                self.binary(length)?;
            }
            0x8E | 0x96 => {
                let length = self.u64()?;
                self.binary(length)?;
            }

            b']' => self.push(Node::List(Vec::new()))?,
            b')' => self.push(Node::Tuple(Vec::new()))?,
            b'}' => self.push(Node::Dict(Vec::new()))?,
            0x8F => self.push(Node::Set(Vec::new()))?,
            b'l' => {
                let items = self.since_mark()?;
                self.push(Node::List(items))?;
            }
            b't' => {
                let items = self.since_mark()?;
                self.push(Node::Tuple(items))?;
            }
            0x91 => {
                let items = self.since_mark()?;
                self.push(Node::Set(items))?;
            }
            b'd' => {
                let entries = pairs(&self.since_mark()?)?;
                self.push(Node::Dict(entries))?;
            }
            opcode @ 0x85..=0x87 => {
                let items = self.pop_last(usize::from(opcode - 0x84))?;
                self.push(Node::Tuple(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.since_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let entry = self.pop_last(2)?;
                self.insert(&entry)?;
            }
            b'u' => {
                let entries = self.since_mark()?;
                self.insert(&entries)?;
            }

            b'g' => {
                let place = self.place()?;
                self.recall(place)?;
            }
            b'h' => {
                let place = self.u8()?.into();
                self.recall(place)?;
            }
            b'j' => {
                let place = self.u32()?.into();
                self.recall(place)?;
            }
            b'p' => {
                let place = self.place()?;
                self.remember(place)?;
            }
            b'q' => {
                let place = self.u8()?.into();
                self.remember(place)?;
            }
            b'r' => {
                let place = self.u32()?.into();
                self.remember(place)?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,

            b'c' => {
                let (module, name) = (self.name()?, self.name()?);
                self.push(Node::Global(module, name))?;
            }
            0x93 => {
                let names = self.pop_last(2)?;
                for id in &names {
                    ensure!(matches!(self.nodes[*id as usize], Node::Text(_)), "a global is named by a text");
                }
                self.push(Node::Global(names[0], names[1]))?;
            }
            0x82 => {
                let code = self.u8()?.into();
                self.extension(code)?;
            }
            0x83 => {
                let code = u16::from_le_bytes(self.array()?).into();
                self.extension(code)?;
            }
            0x84 => {
                let code = self.u32()?;
                self.extension(code)?;
            }
            b'R' | 0x81 => {
                let both = self.pop_last(2)?;
                self.object(both[0], both[1])?;
            }
            0x92 => {
                let all = self.pop_last(3)?;
                self.object(all[0], all[1])?;
            }
            b'i' => {
                let (module, name) = (self.name()?, self.name()?);
                let callable = self.add(Node::Global(module, name))?;
                let args = self.since_mark()?;
                let args = self.add(Node::Tuple(args))?;
                self.object(callable, args)?;
            }
            b'o' => {
                let mut args = self.since_mark()?;
                ensure!(!args.is_empty(), "an object of nothing");
                let callable = args.remove(0);
                let args = self.add(Node::Tuple(args))?;
                self.object(callable, args)?;
            }
            // The state of an object stays unread.
            b'b' => {
                self.pop()?;
                self.top()?;
            }
            b'P' => {
                let node = literal::string(self.line()?.into());
                let id = self.add(node)?;
                self.push(Node::Persistent(id))?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id))?;
            }
            opcode @ (0x97 | 0x98) => bail!("opcode {opcode:#04x} wants a buffer from outside of the pickle"),
            opcode => bail!("opcode {opcode:#04x} is none of Python's; damaged, or no pickle"),
        }
        Ok(None)
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let end = usize::try_from(count).ok().and_then(|n| self.at.checked_add(n));
        let Some(bytes) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            bail!("{count} bytes are wanted, {} are left; truncated or damaged", self.bytes.len() - self.at);
        };
        self.at += bytes.len();
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N as u64)?.try_into()?)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// The rest of the line, without its end.
    fn line(&mut self) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|b| *b == b'\n').context("a line without an end; truncated or damaged")?;
        self.at += length + 1;
        Ok(&rest[..length])
    }

    /// A place in the memo, as text.
    fn place(&mut self) -> Result<u64> {
        let line = self.line()?;
        std::str::from_utf8(line).ok().and_then(|l| l.trim().parse().ok()).context("not a place in the memo")
    }

    /// A line with one of a global's names.
    fn name(&mut self) -> Result<Id> {
        let line = self.line()?;
        self.add(Node::Text(String::from_utf8_lossy(line)))
    }

    /// A new value.
    fn add(&mut self, node: Node<'a>) -> Result<Id> {
        let id = Id::try_from(self.nodes.len()).context("too many values")?;
        self.nodes.push(node);
        Ok(id)
    }

    fn push(&mut self, node: Node<'a>) -> Result<()> {
        let id = self.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    fn text(&mut self, length: u64) -> Result<()> {
        let bytes = self.take(length)?;
        self.push(Node::Text(String::from_utf8_lossy(bytes)))
    }

    fn binary(&mut self, length: u64) -> Result<()> {
        let bytes = self.take(length)?;
        self.push(Node::Bytes(bytes.into()))
    }

    /// Where the part of the stack begins that can be taken from: what lies below a mark cannot.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id> {
        self.stack[self.floor()..].last().copied().context("nothing is on the stack; damaged")
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// The last `count` values on the stack.
    fn pop_last(&mut self, count: usize) -> Result<Vec<Id>> {
        let start = self.stack.len().checked_sub(count).filter(|start| *start >= self.floor());
        let start = start.with_context(|| format!("fewer than {count} values are on the stack; damaged"))?;
        Ok(self.stack.split_off(start))
    }

    /// All values since the last mark.
    fn since_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().context("no mark is on the stack; damaged")?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, place: u64) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, place: u64) -> Result<()> {
        let id = *self.memo.get(&place).with_context(|| format!("nothing is at place {place} of the memo; damaged"))?;
        self.stack.push(id);
        Ok(())
    }

    /// Puts `items` at the end of the list on top. Objects that are like lists stay unread.
    fn append(&mut self, items: &[Id]) -> Result<()> {
        let top = self.top()?;
        match &mut self.nodes[top as usize] {
            Node::List(list) | Node::Set(list) => list.extend(items),
            Node::Object(_) => {}
            _ => bail!("something is appended to what is no list; damaged"),
        }
        Ok(())
    }

    /// Puts keys and values, which alternate, into the dict on top.
    fn insert(&mut self, alternating: &[Id]) -> Result<()> {
        let new = pairs(alternating)?;
        let top = self.top()?;
        match &mut self.nodes[top as usize] {
            Node::Dict(entries) => entries.extend(new),
            Node::Object(object) => object.items.extend(new),
            _ => bail!("an entry is put into what is no dict; damaged"),
        }
        Ok(())
    }

    fn object(&mut self, callable: Id, args: Id) -> Result<()> {
        ensure!(matches!(self.nodes[args as usize], Node::Tuple(_)), "a call takes a tuple; damaged");
        self.push(Node::Object(Box::new(Object { callable, args, items: Vec::new() })))
    }

    /// A global that only Python's registry of extensions can name.
    fn extension(&mut self, code: u32) -> Result<()> {
        let module = self.add(Node::Text("copyreg".into()))?;
        let name = self.add(Node::Text(format!("extension_{code}").into()))?;
        self.push(Node::Global(module, name))
    }
}

fn pairs(alternating: &[Id]) -> Result<Vec<(Id, Id)>> {
    ensure!(alternating.len().is_multiple_of(2), "a dict's last key has no value; damaged");
    Ok(alternating.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}
