//! Calls become the code of what they call, in scopes of their own, before anything is decoded: a function is run like
//! the rest of a kernel, and recursion is refused. Operands that need more than one instruction are taken apart here too.

use std::collections::HashSet;

use crate::error::Found;
use crate::parse::{Function, Instruction, Kind, Operand, Param, Source, Statement, Variable};
use crate::types::{Space, Type};

/// More code than any kernel has.
const LIMIT: usize = 1 << 20;

/// The body of a kernel without calls, or the line of one that cannot be followed.
pub(super) fn body(source: &Source, f: &Function) -> Result<Vec<Statement>, (u32, String)> {
    let mut i = Inliner { source, out: Vec::new(), hoisted: HashSet::new(), first: Vec::new(), names: 0, line: 1 };
    i.function(f, &mut vec![&f.name], None).map_err(|m| (i.line, m))?;
    i.first.extend(i.out);
    Ok(i.first)
}

struct Inliner<'a> {
    source: &'a Source,
    out: Vec<Statement>,
    /// Shared variables of functions: one each, however often it is called.
    hoisted: HashSet<String>,
    first: Vec<Statement>,
    /// Names made up so far.
    names: u32,
    line: u32,
}

fn name(n: impl Into<String>) -> Operand {
    Operand::Name(n.into())
}

impl<'a> Inliner<'a> {
    fn put(&mut self, kind: Kind) {
        self.out.push(Statement { line: self.line, kind });
    }

    fn op(&mut self, op: &str, mods: &[&str], operands: Vec<Operand>) {
        let mods = mods.iter().map(|m| m.to_string()).collect();
        self.put(Kind::Instruction(Instruction { guard: None, op: op.into(), mods, operands }));
    }

    /// A name that no text has.
    fn fresh(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what} {}", self.names)
    }

    /// The statements of a function; `end` is where its returns go.
    fn function(&mut self, f: &'a Function, path: &mut Vec<&'a str>, end: Option<&str>) -> Found<()> {
        for s in &f.body {
            self.line = s.line;
            if self.out.len() > LIMIT {
                return Err("calls make more code than any kernel has".into());
            }
            match &s.kind {
                Kind::Variable(v) if v.space == Space::Shared && path.len() > 1 => {
                    let own = format!("{} {}", f.name, v.name);
                    if self.hoisted.insert(own.clone()) {
                        let v = Variable { name: own.clone(), ..v.clone() };
                        self.first.push(Statement { line: s.line, kind: Kind::Variable(v) });
                    }
                    self.put(Kind::Alias(v.name.clone(), own));
                }
                Kind::Instruction(i) if i.op == "call" => self.call(i, path)?,
                Kind::Instruction(i) if i.op == "ret" && end.is_some() => {
                    let operands = vec![name(end.unwrap_or_default())];
                    let i = Instruction { op: "bra".into(), mods: Vec::new(), operands, ..i.clone() };
                    self.put(Kind::Instruction(i));
                }
                Kind::Instruction(i) => self.plain(i)?,
                _ => self.out.push(s.clone()),
            }
        }
        Ok(())
    }

    /// An instruction without `a + 1`, and without accesses wider than 16 bytes.
    fn plain(&mut self, i: &Instruction) -> Found<()> {
        let mut i = i.clone();
        for n in 0..i.operands.len() {
            if let Operand::Sum(base, by) = &i.operands[n] {
                let (base, by) = (name(base.clone()), Operand::Int(*by as u64));
                let ty = i.mods.last().and_then(|m| Type::named(m)).ok_or("found a sum, expected a register")?;
                let (ty, mods) = if ty.bits() == 64 { (Type::S64, "s64") } else { (Type::S32, "s32") };
                let sum = self.fresh("sum");
                self.put(Kind::Registers(ty, None, vec![(sum.clone(), None)]));
                self.op("add", &[mods], vec![name(sum.clone()), base, by]);
                i.operands[n] = name(sum);
            }
        }
        let bytes = i.mods.last().and_then(|m| Type::named(m)).map_or(0, Type::bytes);
        let at = usize::from(i.op == "ld");
        let wide = i.mods.iter().position(|m| m == "v8" && bytes == 4 || m == "v4" && bytes == 8);
        if let (Some(m), "ld" | "st", Some(Operand::Vector(v)), Some(Operand::Address(base, offset))) =
            (wide, i.op.as_str(), i.operands.get(1 - at), i.operands.get(at))
        {
            let (v, base, offset, guard) = (v.clone(), base.clone(), *offset, i.guard.clone());
            i.mods[m] = if bytes == 4 { "v4" } else { "v2" }.into();
            for (n, half) in v.chunks(v.len().div_ceil(2)).enumerate() {
                let mut i = Instruction { guard: guard.clone(), ..i.clone() };
                i.operands[at] = Operand::Address(base.clone(), offset + 16 * n as i64);
                i.operands[1 - at] = Operand::Vector(half.to_vec());
                self.put(Kind::Instruction(i));
            }
            return Ok(());
        }
        self.put(Kind::Instruction(i));
        Ok(())
    }

    fn call(&mut self, i: &Instruction, path: &mut Vec<&'a str>) -> Found<()> {
        let mut rest: Vec<&Operand> = i.operands.iter().collect();
        let list = |o: Option<&&Operand>| match o {
            Some(Operand::List(l)) => Some(l.clone()),
            _ => None,
        };
        let results = list(rest.first()).inspect(|_| {
            rest.remove(0);
        });
        let Some(Operand::Name(to)) = rest.first() else { return Err("call: expected a function".into()) };
        let args = list(rest.get(1)).unwrap_or_default();
        let results = results.unwrap_or_default();
        if to == "__assertfail" {
            let i = Instruction { op: "trap".into(), mods: Vec::new(), operands: Vec::new(), ..i.clone() };
            self.put(Kind::Instruction(i));
            return Ok(());
        }
        let source = self.source;
        let f = source.functions.iter().find(|f| !f.entry && f.name == *to);
        let f = f.ok_or_else(|| format!("call: `{to}` has no body here"))?;
        if path.contains(&f.name.as_str()) {
            return Err(format!("call: `{to}` calls itself, which is not supported"));
        }
        if args.len() != f.params.len() || results.len() != f.results.len() {
            return Err(format!(
                "call: {} arguments and {} results, `{to}` has {} and {}",
                args.len(),
                results.len(),
                f.params.len(),
                f.results.len()
            ));
        }
        let (end, past) = (self.fresh("end of call"), self.fresh("past call"));
        if let Some((p, negated)) = &i.guard {
            self.put(Kind::Instruction(Instruction {
                guard: Some((p.clone(), !negated)),
                op: "bra".into(),
                mods: Vec::new(),
                operands: vec![name(past.clone())],
            }));
        }
        // two scopes: names of the caller are not hidden by those of the function while values are handed over
        self.put(Kind::Open);
        let ins: Vec<String> = args.iter().zip(&f.params).map(|(a, p)| self.hand(p, a, true)).collect::<Found<_>>()?;
        let outs: Vec<String> =
            results.iter().zip(&f.results).map(|(a, p)| self.hand(p, a, false)).collect::<Found<_>>()?;
        self.put(Kind::Open);
        for (p, own) in f.params.iter().zip(&ins) {
            self.formal(p, own, true);
        }
        for (p, own) in f.results.iter().zip(&outs) {
            self.formal(p, own, false);
        }
        let line = self.line;
        path.push(&f.name);
        self.function(f, path, Some(&end))?;
        path.pop();
        self.line = line;
        self.put(Kind::Label(end));
        for (p, own) in f.results.iter().zip(&outs).filter(|(p, _)| p.register) {
            self.copy(p, name(own.clone()), name(p.name.clone()));
        }
        self.put(Kind::Close);
        for ((p, own), a) in f.results.iter().zip(&outs).zip(&results).filter(|((p, _), _)| p.register) {
            self.copy(p, a.clone(), name(own.clone()));
        }
        self.put(Kind::Close);
        self.put(Kind::Label(past));
        Ok(())
    }

    /// A name between caller and function: another one for a variable, or a register with the value.
    fn hand(&mut self, p: &Param, actual: &Operand, value: bool) -> Found<String> {
        let own = self.fresh("parameter");
        match actual {
            _ if p.register => {
                self.put(Kind::Registers(p.ty, p.lanes, vec![(own.clone(), None)]));
                if value {
                    self.copy(p, name(own.clone()), actual.clone());
                }
            }
            Operand::Name(a) => self.put(Kind::Alias(own.clone(), a.clone())),
            o => return Err(format!("call: found `{o}`, expected a variable in .param")),
        }
        Ok(own)
    }

    fn formal(&mut self, p: &Param, own: &str, value: bool) {
        if p.register {
            self.put(Kind::Registers(p.ty, p.lanes, vec![(p.name.clone(), None)]));
            if value {
                self.copy(p, name(p.name.clone()), name(own));
            }
        } else {
            self.put(Kind::Alias(p.name.clone(), own.into()));
        }
    }

    fn copy(&mut self, p: &Param, to: Operand, from: Operand) {
        let ty = match p.ty.bits() {
            1 => "pred",
            8 | 16 => "b16",
            32 => "b32",
            _ => "b64",
        };
        match p.lanes {
            Some(n) => self.op("mov", &[if n == 2 { "v2" } else { "v4" }, ty], vec![to, from]),
            None => self.op("mov", &[ty], vec![to, from]),
        }
    }
}
