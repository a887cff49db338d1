//! Tokens to a module: variables, functions, and statements with their operands (PTX ISA 4 and 5).

use crate::error::{Error, Found, Result};
use crate::lex::{Spot, Token, tokens};
use crate::types::{Space, Type};

mod body;
mod tree;

pub use tree::{Function, Instruction, Kind, Operand, Param, Source, Statement, Variable};

/// Parses a text; `file` is its name in messages.
pub fn parse(file: &str, text: &str) -> Result<Source> {
    let error = |line, message| Error::Parse { file: file.to_string(), line, message };
    let all = tokens(text).map_err(|(line, m)| error(line, m))?;
    let mut p = Parser { all: &all, at: 0 };
    p.module(file).map_err(|m| error(p.line(), m))
}

/// Larger variables would not fit a device this crate plays.
const LARGEST: u64 = 1 << 31;

struct Parser<'a> {
    all: &'a [Spot],
    at: usize,
}

impl Parser<'_> {
    /// The line of the token last taken.
    fn line(&self) -> u32 {
        self.all.get(self.at.saturating_sub(1)).or(self.all.last()).map_or(1, |t| t.1)
    }

    fn peek(&self) -> Option<&Token> {
        self.all.get(self.at).map(|t| &t.0)
    }

    fn take(&mut self) -> Found<Token> {
        let t = self.all.get(self.at).ok_or("the end of the file, expected more")?;
        self.at += 1;
        Ok(t.0.clone())
    }

    fn is(&self, c: char) -> bool {
        self.peek() == Some(&Token::Mark(c))
    }

    fn eat(&mut self, c: char) -> bool {
        let yes = self.is(c);
        self.at += usize::from(yes);
        yes
    }

    fn need(&mut self, c: char) -> Found<()> {
        match self.take()? {
            Token::Mark(m) if m == c => Ok(()),
            t => Err(format!("found {}, expected `{c}`", show(&t))),
        }
    }

    fn word(&mut self) -> Found<String> {
        match self.take()? {
            Token::Word(w) => Ok(w),
            t => Err(format!("found {}, expected a name", show(&t))),
        }
    }

    fn int(&mut self) -> Found<u64> {
        match self.take()? {
            Token::Int(v) => Ok(v),
            t => Err(format!("found {}, expected an integer", show(&t))),
        }
    }

    fn small(&mut self) -> Found<u32> {
        u32::try_from(self.int()?).map_err(|_| "a number beyond 32 bits".into())
    }

    fn module(&mut self, file: &str) -> Found<Source> {
        let mut m = Source {
            file: file.to_string(),
            version: (0, 0),
            target: String::new(),
            variables: Vec::new(),
            functions: Vec::new(),
            files: Vec::new(),
        };
        while self.peek().is_some() {
            let w = self.word()?;
            match w.as_str() {
                ".version" => m.version = self.version()?,
                ".target" => {
                    m.target = self.word()?;
                    while self.eat(',') {
                        self.word()?;
                    }
                }
                ".address_size" => {
                    let n = self.int()?;
                    if n != 64 {
                        return Err(format!("found addresses of {n} bits, expected 64"));
                    }
                }
                ".file" => self.file(&mut m.files)?,
                ".section" => self.skip_block()?,
                ".visible" | ".weak" | ".extern" | ".common" | ".entry" | ".func" | ".global" | ".const"
                | ".shared" => self.object(w, &mut m)?,
                _ => return Err(format!("found `{w}`, expected a directive of a module")),
            }
        }
        if m.version == (0, 0) || m.target.is_empty() {
            return Err("no .version or no .target in it".into());
        }
        Ok(m)
    }

    fn version(&mut self) -> Found<(u32, u32)> {
        let t = self.take()?;
        let Token::Float(v, _) = t else { return Err(format!("found {}, expected a version", show(&t))) };
        let tenths = (f32::from_bits(v) * 10.0).round() as u32;
        if !(10..=88).contains(&tenths) {
            return Err(format!("found PTX {}.{}, at most 8.8 is known here", tenths / 10, tenths % 10));
        }
        Ok((tenths / 10, tenths % 10))
    }

    fn file(&mut self, files: &mut Vec<(u64, String)>) -> Found<()> {
        let n = self.int()?;
        match self.take()? {
            Token::Text(t) => files.push((n, t)),
            t => return Err(format!("found {}, expected a path", show(&t))),
        }
        while self.eat(',') {
            self.int()?;
        }
        Ok(())
    }

    /// Debugging sections say nothing about what runs.
    fn skip_block(&mut self) -> Found<()> {
        while !self.eat('{') {
            self.take()?;
        }
        while !self.eat('}') {
            self.take()?;
        }
        Ok(())
    }

    /// A variable or a function, after its first word.
    fn object(&mut self, first: String, m: &mut Source) -> Found<()> {
        let (mut w, mut external) = (first, false);
        while let ".visible" | ".weak" | ".extern" | ".common" = w.as_str() {
            external |= w == ".extern";
            w = self.word()?;
        }
        match w.as_str() {
            ".entry" | ".func" => {
                if let Some(mut f) = self.function(w == ".entry")? {
                    // what lies outside of a function's own memory is a variable of the module, which others cannot name
                    for s in &mut f.body {
                        if let Kind::Variable(v) = &mut s.kind
                            && matches!(v.space, Space::Global | Space::Const)
                        {
                            let own = format!("{} {}", f.name, v.name);
                            let alias = Kind::Alias(v.name.clone(), own.clone());
                            v.name = own;
                            let Kind::Variable(v) = std::mem::replace(&mut s.kind, alias) else { continue };
                            m.variables.push(v);
                        }
                    }
                    m.functions.retain(|g| g.name != f.name || !g.body.is_empty());
                    if m.functions.iter().any(|g| g.name == f.name) {
                        return Err(format!("`{}` is defined twice", f.name));
                    }
                    m.functions.push(f);
                }
            }
            _ => {
                let space =
                    Space::named(w.trim_start_matches('.')).ok_or_else(|| format!("found `{w}`, expected a space"))?;
                self.variables(space, external, &mut m.variables)?;
            }
        }
        Ok(())
    }

    /// Variables after the space, up to `;`.
    fn variables(&mut self, space: Space, external: bool, out: &mut Vec<Variable>) -> Found<()> {
        let (mut align, mut ty, mut lanes) = (None, None, 1u64);
        while ty.is_none() {
            let w = self.word()?;
            match w.trim_start_matches('.') {
                "align" => align = Some(self.small()?),
                "v2" => lanes = 2,
                "v4" => lanes = 4,
                t => ty = Some(Type::named(t).ok_or_else(|| format!("found `{w}`, expected a type"))?),
            }
        }
        let ty = ty.ok_or("no type")?;
        loop {
            let name = self.word()?;
            let (mut count, mut unsized_) = (1u64, false);
            while self.eat('[') {
                if self.eat(']') {
                    unsized_ = true;
                } else {
                    count = count.checked_mul(self.int()?).filter(|&n| n <= LARGEST).ok_or("an array too large")?;
                    self.need(']')?;
                }
            }
            let each = u64::from(ty.bytes()) * lanes;
            let mut addresses = Vec::new();
            let init = if self.eat('=') { Some(self.initial(ty, &mut addresses)?) } else { None };
            let size = match (&init, unsized_) {
                (Some(i), true) => i.len() as u64,
                (None, true) if external => 0,
                (None, true) => return Err(format!("`{name}` has no size")),
                _ => count.checked_mul(each).filter(|&n| n <= LARGEST).ok_or("a variable too large")?,
            };
            let align = align.unwrap_or(each as u32);
            if !align.is_power_of_two() || align > 4096 {
                return Err(format!("`{name}` is aligned to {align}, expected a power of two up to 4096"));
            }
            if init.as_ref().is_some_and(|i| i.len() as u64 > size) {
                return Err(format!("`{name}` has more initial values than room"));
            }
            out.push(Variable { space, name, align, size, external, init, addresses });
            if !self.eat(',') {
                break;
            }
        }
        self.need(';')
    }

    /// An initialiser: a number or the address of a variable, or several in braces.
    fn initial(&mut self, ty: Type, addresses: &mut Vec<(usize, String)>) -> Found<Vec<u8>> {
        let mut out = Vec::new();
        let mut depth = 0;
        loop {
            if self.eat('{') {
                depth += 1;
                continue;
            }
            if self.eat('}') {
                depth -= 1;
            } else if let Some(Token::Word(w)) = self.peek().cloned() {
                self.at += 1;
                if ty.bits() != 64 || w == "generic" {
                    return Err(format!("found `{w}`, expected a number or the name of a variable, of 64 bits"));
                }
                addresses.push((out.len(), w));
                out.extend([0; 8]);
            } else {
                let v = match self.number()? {
                    Operand::Int(v) => v,
                    Operand::Float(_, d) if ty == Type::F64 => d,
                    Operand::Float(f, _) => u64::from(f),
                    o => return Err(format!("found `{o}`, expected a number")),
                };
                out.extend_from_slice(&v.to_le_bytes()[..ty.bytes() as usize]);
            }
            if depth <= 0 {
                return Ok(out);
            }
            self.eat(',');
        }
    }

    fn number(&mut self) -> Found<Operand> {
        let minus = self.eat('-');
        match self.take()? {
            Token::Int(v) => Ok(Operand::Int(if minus { v.wrapping_neg() } else { v })),
            Token::Float(f, d) if minus => Ok(Operand::Float(f ^ 1 << 31, d ^ 1 << 63)),
            Token::Float(f, d) => Ok(Operand::Float(f, d)),
            t => Err(format!("found {}, expected a number", show(&t))),
        }
    }

    fn params(&mut self) -> Found<Vec<Param>> {
        let mut out = Vec::new();
        self.need('(')?;
        while !self.eat(')') {
            let w = self.word()?;
            if w != ".param" && w != ".reg" {
                return Err(format!("found `{w}`, expected `.param`"));
            }
            let (mut align, mut ty, mut lanes) = (None, None, None);
            while ty.is_none() {
                let w = self.word()?;
                match w.trim_start_matches('.') {
                    "align" => align = Some(self.small()?),
                    "ptr" | "global" | "shared" | "const" => {}
                    "v2" => lanes = Some(2),
                    "v4" => lanes = Some(4),
                    t => ty = Some(Type::named(t).ok_or_else(|| format!("found `{w}`, expected a type"))?),
                }
            }
            let ty = ty.ok_or("no type")?;
            // `.ptr .global .align 4` may follow the type
            while matches!(self.peek(), Some(Token::Word(w)) if [".ptr", ".global", ".shared", ".const", ".align"].contains(&w.as_str()))
            {
                if self.word()? == ".align" {
                    self.int()?;
                }
            }
            let name = self.word()?;
            let mut size = ty.bytes() * lanes.unwrap_or(1);
            if self.eat('[') {
                size = size.checked_mul(self.small()?).filter(|&n| n <= 32764).ok_or("a parameter too large")?;
                self.need(']')?;
            }
            let align = align.unwrap_or(ty.bytes());
            if !align.is_power_of_two() || align > 4096 {
                return Err(format!("`{name}` is aligned to {align}, expected a power of two up to 4096"));
            }
            out.push(Param { name, align, size, ty, lanes, register: w == ".reg" });
            self.eat(',');
        }
        Ok(out)
    }

    /// A kernel or a function after its directive; nothing for a declaration.
    fn function(&mut self, entry: bool) -> Found<Option<Function>> {
        let results = if !entry && self.is('(') { self.params()? } else { Vec::new() };
        let name = self.word()?;
        let params = if self.is('(') { self.params()? } else { Vec::new() };
        let mut f = Function { name, entry, params, results, max_threads: 1024, threads: None, body: Vec::new() };
        loop {
            match self.take()? {
                Token::Mark(';') => return Ok(None),
                Token::Mark('{') => break,
                Token::Word(w) => match w.as_str() {
                    ".maxntid" | ".reqntid" => {
                        let mut n = [1u32; 3];
                        for (i, v) in n.iter_mut().enumerate() {
                            if i == 0 || self.eat(',') {
                                *v = self.small()?;
                            }
                        }
                        let all = n.iter().try_fold(1u32, |a, &b| a.checked_mul(b)).ok_or("too many threads")?;
                        f.max_threads = all;
                        f.threads = (w == ".reqntid").then_some(n);
                    }
                    ".minnctapersm" | ".maxnreg" | ".maxnctapersm" => {
                        self.int()?;
                    }
                    ".noreturn" => {}
                    ".reqnctapercluster" | ".maxclusterrank" => {
                        let mut n = self.int()?;
                        while self.eat(',') {
                            n = n.saturating_mul(self.int()?);
                        }
                        if w == ".reqnctapercluster" && n != 1 {
                            return Err(format!("found clusters of {n} blocks, expected 1"));
                        }
                    }
                    ".explicitcluster" => {}
                    _ => return Err(format!("found `{w}`, expected a directive of a function")),
                },
                t => return Err(format!("found {}, expected a body", show(&t))),
            }
        }
        self.body(&mut f.body)?;
        Ok(Some(f))
    }
}

fn show(t: &Token) -> String {
    match t {
        Token::Word(w) => format!("`{w}`"),
        Token::Int(v) => format!("`{v}`"),
        Token::Float(v, _) => format!("`{}`", f32::from_bits(*v)),
        Token::Text(t) => format!("\"{t}\""),
        Token::Mark(c) => format!("`{c}`"),
    }
}
