//! Bodies of functions: scopes, declarations, instructions and their operands.

use super::tree::{Instruction, Kind, Operand, Statement};
use super::{Parser, show};
use crate::error::Found;
use crate::lex::Token;
use crate::types::{Space, Type};

impl Parser<'_> {
    pub(super) fn body(&mut self, out: &mut Vec<Statement>) -> Found<()> {
        let mut depth = 1;
        while depth > 0 {
            let t = self.take()?;
            let line = self.line();
            let kind = match t {
                Token::Mark('{') => {
                    depth += 1;
                    Kind::Open
                }
                Token::Mark('}') => {
                    depth -= 1;
                    Kind::Close
                }
                Token::Mark(';') => continue,
                Token::Mark('@') => {
                    let negated = self.eat('!');
                    let guard = self.word()?;
                    let op = self.word()?;
                    Kind::Instruction(self.instruction(Some((guard, negated)), op)?)
                }
                Token::Word(w) if self.is(':') => {
                    self.at += 1;
                    Kind::Label(w)
                }
                Token::Word(w) if w.starts_with('.') => match self.directive(&w, line, out)? {
                    Some(k) => k,
                    None => continue,
                },
                Token::Word(w) => Kind::Instruction(self.instruction(None, w)?),
                t => return Err(format!("found {}, expected an instruction", show(&t))),
            };
            if depth > 0 {
                out.push(Statement { line, kind });
            }
        }
        Ok(())
    }

    fn directive(&mut self, w: &str, line: u32, out: &mut Vec<Statement>) -> Found<Option<Kind>> {
        match w {
            ".reg" => {
                let mut t = self.word()?;
                let lanes = match t.as_str() {
                    ".v2" => Some(2),
                    ".v4" => Some(4),
                    _ => None,
                };
                if lanes.is_some() {
                    t = self.word()?;
                }
                let ty =
                    Type::named(t.trim_start_matches('.')).ok_or_else(|| format!("found `{t}`, expected a type"))?;
                let mut names = Vec::new();
                loop {
                    let name = self.word()?;
                    let mut count = None;
                    if self.eat('<') {
                        count = Some(self.small()?.min(1 << 20));
                        self.need('>')?;
                    }
                    names.push((name, count));
                    if !self.eat(',') {
                        break;
                    }
                }
                self.need(';')?;
                Ok(Some(Kind::Registers(ty, lanes, names)))
            }
            ".loc" => {
                let (file, at) = (self.int()?, self.int()?);
                self.int()?;
                // inlined places name the function and the place they were inlined at
                while self.eat(',') {
                    self.word()?;
                    while !matches!(self.peek(), Some(Token::Mark(',')) | None) && self.line_of_next() == self.line() {
                        self.at += 1;
                    }
                }
                Ok(Some(Kind::Place(file, at)))
            }
            ".pragma" => {
                while !self.eat(';') {
                    self.take()?;
                }
                Ok(None)
            }
            ".shared" | ".local" | ".param" | ".const" | ".global" => {
                let mut v = Vec::new();
                let space = Space::named(&w[1..]).ok_or("no space")?;
                self.variables(space, false, &mut v)?;
                out.extend(v.into_iter().map(|v| Statement { line, kind: Kind::Variable(v) }));
                Ok(None)
            }
            _ => Err(format!("found `{w}`, which is not supported inside of a function")),
        }
    }

    fn line_of_next(&self) -> u32 {
        self.all.get(self.at).map_or(0, |t| t.1)
    }

    pub(super) fn instruction(&mut self, guard: Option<(String, bool)>, word: String) -> Found<Instruction> {
        let mut parts = word.split('.').map(String::from);
        let op = parts.next().unwrap_or_default();
        let mut operands = Vec::new();
        while !self.eat(';') {
            operands.push(self.operand()?);
            if !self.eat(',') {
                self.need(';')?;
                break;
            }
        }
        Ok(Instruction { guard, op, mods: parts.collect(), operands })
    }

    pub(super) fn operand(&mut self) -> Found<Operand> {
        let first = match self.peek().ok_or("the end of the file, expected an operand")? {
            Token::Mark('{') => Operand::Vector(self.list('{', '}')?),
            Token::Mark('(') => Operand::List(self.list('(', ')')?),
            Token::Mark('[') => self.address()?,
            Token::Mark('!') => {
                self.at += 1;
                Operand::Not(self.word()?)
            }
            Token::Word(_) => {
                let name = self.word()?;
                if !self.is('+') {
                    Operand::Name(name)
                } else {
                    self.at += 1;
                    Operand::Sum(name, self.int()? as i64)
                }
            }
            _ => self.number()?,
        };
        if self.eat('|') {
            return Ok(Operand::Pair(first.into(), Operand::Name(self.word()?).into()));
        }
        Ok(first)
    }

    pub(super) fn list(&mut self, open: char, close: char) -> Found<Vec<Operand>> {
        self.need(open)?;
        let mut out = Vec::new();
        while !self.eat(close) {
            out.push(match self.peek() {
                Some(Token::Word(_)) => Operand::Name(self.word()?),
                _ => self.number()?,
            });
            if !self.eat(',') {
                self.need(close)?;
                break;
            }
        }
        Ok(out)
    }

    pub(super) fn address(&mut self) -> Found<Operand> {
        self.need('[')?;
        let base = match self.peek() {
            Some(Token::Word(_)) => Operand::Name(self.word()?),
            _ => self.number()?,
        };
        let mut offset = 0i64;
        while self.is('+') || self.is('-') {
            let minus = self.is('-');
            self.at += 1;
            let minus = minus ^ self.eat('-');
            let v = self.int()? as i64;
            offset = offset.wrapping_add(if minus { v.wrapping_neg() } else { v });
        }
        if self.eat(',') {
            let coordinates = self.list('{', '}')?;
            self.need(']')?;
            return Ok(Operand::Tensor(base.into(), coordinates));
        }
        self.need(']')?;
        Ok(Operand::Address(base.into(), offset))
    }
}
