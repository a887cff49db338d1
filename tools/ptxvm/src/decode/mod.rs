//! Statements to a [`Kernel`]: names become rows, labels become places, modifiers become variants. Whatever is not
//! understood is refused here, by name, before anything runs.

mod alu;
mod convert;
mod copies;
mod inline;
mod matrix;
mod memory;
mod sync;

use std::collections::HashMap;

use crate::error::{Error, Found, Result};
use crate::parse::{Function, Instruction, Kind, Operand, Source, Statement};
use crate::program::{Address, Exec, Inst, Kernel, Lanes, Slot, Special, Strength};
use crate::regs::{File, Reg};
use crate::types::{Space, Type};

/// Where parameters appear to a kernel that takes their address.
pub const PARAM: u64 = 0x7000_0000_0000;
/// Where shared memory appears to generic addresses.
pub const SHARED: u64 = 0x7100_0000_0000;
/// Where local memory appears to generic addresses.
pub const LOCAL: u64 = 0x7200_0000_0000;
/// What follows the last window.
pub const WINDOWS_END: u64 = 0x7300_0000_0000;

/// Decodes one kernel of a file; `perturb` is the seed that moves approximate results inside of their bounds.
pub fn decode(source: &Source, f: &Function, perturb: Option<u64>) -> Result<Kernel> {
    let error = |line, message| Error::Parse { file: source.file.clone(), line, message };
    let body = inline::body(source, f).map_err(|(line, m)| error(line, m))?;
    let mut c = Context::new(source, f).map_err(|m| error(1, m))?;
    c.perturb = perturb;
    c.labels(&body);
    let (mut opened, mut inner, mut place) = (0u32, vec![0u32], (0, 0));
    for s in &body {
        let scope = inner.last().copied().unwrap_or(0);
        match &s.kind {
            Kind::Open => {
                opened += 1;
                inner.push(opened);
                c.scopes.push(Scope::default());
            }
            Kind::Close => {
                inner.pop();
                c.scopes.pop();
            }
            Kind::Label(_) => {}
            Kind::Place(file, line) => place = (*file as u32, *line as u32),
            Kind::Registers(ty, lanes, names) => c.declare(*ty, *lanes, names),
            Kind::Alias(name, of) => c.alias(name, of).map_err(|m| error(s.line, m))?,
            Kind::Variable(v) => c.variable(v).map_err(|m| error(s.line, m))?,
            Kind::Instruction(i) => {
                let inst =
                    c.instruction(i, scope, s.line, place).map_err(|m| error(s.line, format!("{}: {m}", i.name())))?;
                c.kernel.code.push(inst);
            }
        }
    }
    c.kernel.has_nc = c.kernel.code.iter().any(|i| matches!(i.exec, Exec::Load { order: Strength::Constant, .. }));
    Ok(c.kernel)
}

/// Names of one scope.
#[derive(Default)]
struct Scope {
    /// `%r<9>`: prefix to type and count.
    ranges: HashMap<String, (Type, u32)>,
    /// Names in use, with their rows.
    regs: HashMap<String, (Type, Reg)>,
    /// Registers of vectors, by the vector's name.
    vectors: HashMap<String, u32>,
    /// Variables: what holds their address. Those in `.param` are in local memory.
    variables: HashMap<String, (Space, u64)>,
    /// Other names of variables of the module.
    globals: HashMap<String, (Space, Option<u32>)>,
}

/// Fails unless register `name` of type `declared` can stand for `ty`; a `loose` one may be wider.
fn fits(name: &str, declared: Type, ty: Type, loose: bool) -> Found<()> {
    let fits = if loose {
        declared.bits() >= ty.bits() && (declared == Type::Pred) == (ty == Type::Pred)
    } else {
        declared.bits() == ty.bits()
    };
    if fits { Ok(()) } else { Err(format!("found `{name}` of {} bits, expected {} bits", declared.bits(), ty.bits())) }
}

/// What is known while a kernel is decoded.
pub(crate) struct Context<'a> {
    kernel: Kernel,
    scopes: Vec<Scope>,
    globals: HashMap<&'a str, (Space, Option<u32>)>,
    /// Labels by scope and name; parents of scopes.
    places: HashMap<(u32, String), u32>,
    parents: Vec<u32>,
    constants: HashMap<(File, u64), Reg>,
    specials: HashMap<(File, Special), Reg>,
    reads: Vec<Reg>,
    writes: Vec<Reg>,
    perturb: Option<u64>,
    carry: Option<Reg>,
}

/// Names of the registers of a vector.
const PARTS: [&str; 4] = ["x", "y", "z", "w"];

impl<'a> Context<'a> {
    fn new(source: &'a Source, f: &Function) -> Found<Context<'a>> {
        let mut kernel = Kernel {
            name: f.name.clone(),
            params: Vec::new(),
            param_bytes: 0,
            code: Vec::new(),
            rows: [0; 3],
            constants: Vec::new(),
            specials: Vec::new(),
            statics: Vec::new(),
            dynamic_align: 1,
            local_bytes: 0,
            max_threads: f.max_threads,
            threads: f.threads,
            has_wgmma: false,
            has_nc: false,
        };
        for p in &f.params {
            let offset = kernel.param_bytes.next_multiple_of(p.align);
            kernel.params.push(Slot { name: p.name.clone(), offset, size: p.size });
            kernel.param_bytes = offset + p.size;
            if kernel.param_bytes > 32764 {
                return Err(format!("`{}` has more than 32,764 bytes of parameters", f.name));
            }
        }
        let mut globals = HashMap::new();
        let mut c_static = 0u32;
        for (n, v) in source.variables.iter().enumerate() {
            match (v.space, v.external) {
                (Space::Shared, true) => {
                    kernel.dynamic_align = kernel.dynamic_align.max(v.align);
                    globals.insert(v.name.as_str(), (Space::Shared, None));
                }
                (Space::Shared, false) => {
                    let at = place_static(&mut kernel.statics, &mut c_static, v.align, v.size)?;
                    globals.insert(v.name.as_str(), (Space::Shared, Some(at)));
                }
                _ => {
                    globals.insert(v.name.as_str(), (v.space, Some(n as u32)));
                }
            }
        }
        Ok(Context {
            kernel,
            scopes: vec![Scope::default()],
            globals,
            places: HashMap::new(),
            parents: vec![0],
            constants: HashMap::new(),
            specials: HashMap::new(),
            reads: Vec::new(),
            writes: Vec::new(),
            perturb: None,
            carry: None,
        })
    }

    /// Finds every label before the code that names it.
    fn labels(&mut self, body: &[Statement]) {
        let (mut inner, mut at) = (vec![0u32], 0);
        for s in body {
            let scope = inner.last().copied().unwrap_or(0);
            match &s.kind {
                Kind::Open => {
                    inner.push(self.parents.len() as u32);
                    self.parents.push(scope);
                }
                Kind::Close => {
                    inner.pop();
                }
                Kind::Label(l) => {
                    self.places.insert((scope, l.clone()), at);
                }
                Kind::Instruction(_) => at += 1,
                _ => {}
            }
        }
    }

    fn declare(&mut self, ty: Type, lanes: Option<u32>, names: &[(String, Option<u32>)]) {
        for (name, count) in names {
            match (lanes, count) {
                (Some(lanes), count) => {
                    for n in 0..count.map_or(1, |n| n.min(4096)) {
                        let name = if count.is_some() { format!("{name}{n}") } else { name.clone() };
                        for part in &PARTS[..lanes as usize] {
                            self.declare(ty, None, &[(format!("{name}.{part}"), None)]);
                        }
                        if let Some(s) = self.scopes.last_mut() {
                            s.vectors.insert(name, lanes);
                        }
                    }
                }
                (None, Some(n)) => {
                    if let Some(s) = self.scopes.last_mut() {
                        s.ranges.insert(name.clone(), (ty, *n));
                    }
                }
                (None, None) => {
                    let reg = self.row(ty);
                    if let Some(s) = self.scopes.last_mut() {
                        s.regs.insert(name.clone(), (ty, reg));
                    }
                }
            }
        }
    }

    /// Another name for a variable.
    fn alias(&mut self, name: &str, of: &str) -> Found<()> {
        let local = self.scopes.iter().rev().find_map(|s| s.variables.get(of).copied());
        let global = self.scopes.iter().rev().find_map(|s| s.globals.get(of)).or(self.globals.get(of)).copied();
        let Some(s) = self.scopes.last_mut() else { return Ok(()) };
        match (local, global) {
            (Some(v), _) => {
                s.variables.insert(name.into(), v);
            }
            (_, Some(v)) => {
                s.globals.insert(name.into(), v);
            }
            _ => return Err(format!("found `{of}`, expected a variable")),
        }
        Ok(())
    }

    /// The space of the variable that an address names.
    pub(crate) fn space_of(&mut self, o: &Operand) -> Option<Space> {
        let Operand::Address(base, _) = o else { return None };
        let Operand::Name(n) = &**base else { return None };
        if self.register(n).is_some() {
            return None;
        }
        if let Some(v) = self.scopes.iter().rev().find_map(|s| s.variables.get(n)) {
            return Some(if v.0 == Space::Param { Space::Local } else { v.0 });
        }
        let global = self.scopes.iter().rev().find_map(|s| s.globals.get(n)).or(self.globals.get(n.as_str()));
        global.map(|g| g.0)
    }

    /// A register with the carry of `add.cc` and its like.
    pub(crate) fn carry(&mut self) -> Reg {
        if let Some(r) = self.carry {
            return r;
        }
        let r = self.row(Type::Pred);
        self.carry = Some(r);
        r
    }

    fn variable(&mut self, v: &crate::parse::Variable) -> Found<()> {
        let at = match v.space {
            Space::Shared => {
                let mut top = self.kernel.statics.last().map_or(0, |s| s.1);
                u64::from(place_static(&mut self.kernel.statics, &mut top, v.align, v.size)?)
            }
            Space::Local | Space::Param => {
                let at = self.kernel.local_bytes.next_multiple_of(v.align);
                self.kernel.local_bytes = u32::try_from(u64::from(at) + v.size)
                    .ok()
                    .filter(|&n| n <= 512 << 10)
                    .ok_or("more than 512 KB of local memory")?;
                u64::from(at)
            }
            s => return Err(format!("a variable in {s:?} memory inside of a function is not supported")),
        };
        if let Some(s) = self.scopes.last_mut() {
            s.variables.insert(v.name.clone(), (v.space, at));
        }
        Ok(())
    }

    fn row(&mut self, ty: Type) -> Reg {
        let file = file_of(ty);
        let n = &mut self.kernel.rows[file as usize];
        *n += 1;
        Reg { file, row: *n as u32 - 1 }
    }

    /// The registers of a vector where its name stands.
    fn parts(&self, o: &Operand) -> Option<Operand> {
        let Operand::Name(n) = o else { return None };
        for s in self.scopes.iter().rev() {
            if s.regs.contains_key(n) {
                return None;
            }
            if let Some(&lanes) = s.vectors.get(n) {
                return Some(Operand::Vector(
                    PARTS[..lanes as usize].iter().map(|p| Operand::Name(format!("{n}.{p}"))).collect(),
                ));
            }
        }
        None
    }

    /// A declared register: its type and row.
    fn register(&mut self, name: &str) -> Option<(Type, Reg)> {
        if let Some((base, part)) = name.rsplit_once('.')
            && let Some(n) = ["r", "g", "b", "a"].iter().position(|p| *p == part)
        {
            return self.register(&format!("{base}.{}", PARTS[n]));
        }
        for n in (0..self.scopes.len()).rev() {
            if let Some(&r) = self.scopes[n].regs.get(name) {
                return Some(r);
            }
            let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
            let index: Option<u32> = name[prefix.len()..].parse().ok();
            if let (Some(&(ty, count)), Some(index)) = (self.scopes[n].ranges.get(prefix), index)
                && index < count
            {
                let reg = self.row(ty);
                self.scopes[n].regs.insert(name.to_string(), (ty, reg));
                return Some((ty, reg));
            }
            if self.scopes[n].variables.contains_key(name) || self.scopes[n].globals.contains_key(name) {
                return None;
            }
        }
        None
    }

    /// A row that holds bits.
    pub(crate) fn constant(&mut self, ty: Type, bits: u64) -> Reg {
        let file = file_of(ty);
        let bits = if ty.bits() == 64 { bits } else { bits & ((1 << ty.bits()) - 1) };
        if let Some(&r) = self.constants.get(&(file, bits)) {
            return r;
        }
        let r = self.row(ty);
        self.constants.insert((file, bits), r);
        self.kernel.constants.push((r, bits));
        r
    }

    fn special(&mut self, ty: Type, s: Special) -> Reg {
        let file = file_of(ty);
        if let Some(&r) = self.specials.get(&(file, s)) {
            return r;
        }
        let r = self.row(ty);
        self.specials.insert((file, s), r);
        self.kernel.specials.push((r, s));
        r
    }

    /// The address of a variable or a parameter, in its space's own window unless `generic`.
    fn symbol(&mut self, name: &str, ty: Type) -> Option<Reg> {
        for s in self.scopes.iter().rev() {
            if let Some(&(_, at)) = s.variables.get(name) {
                return Some(self.constant(ty, at));
            }
        }
        if let Some(p) = self.kernel.params.iter().find(|p| p.name == name) {
            let at = PARAM + u64::from(p.offset);
            return Some(self.constant(ty, at));
        }
        let alias = self.scopes.iter().rev().find_map(|s| s.globals.get(name));
        match *alias.or(self.globals.get(name))? {
            (Space::Shared, None) => Some(self.special(ty, Special::Dynamic)),
            (Space::Shared, Some(at)) => Some(self.constant(ty, u64::from(at))),
            (_, Some(n)) => Some(self.special(ty, Special::Variable(n))),
            _ => None,
        }
    }

    /// A source of a type. The register must be as wide as the type, unless `loose` (conversions, stores).
    fn source(&mut self, o: &Operand, ty: Type, loose: bool) -> Found<Reg> {
        match o {
            Operand::Int(v) => Ok(match ty {
                Type::F32 | Type::F64 | Type::F16 | Type::Bf16 => {
                    return Err(format!("found `{o}`, expected a number of {ty:?}"));
                }
                _ => self.constant(ty, *v),
            }),
            Operand::Float(f, d) => match ty.bits() {
                32 => Ok(self.constant(ty, u64::from(*f))),
                64 => Ok(self.constant(ty, *d)),
                _ => Err(format!("found `{o}`, expected a value of {ty:?}")),
            },
            Operand::Name(n) => {
                if let Some((t, r)) = self.register(n) {
                    fits(n, t, ty, loose)?;
                    self.reads.push(r);
                    return Ok(r);
                }
                if let Some(s) = special_named(n) {
                    return match (s, ty.bits()) {
                        (Some(s), 32) => Ok(self.special(ty, s)),
                        (Some(s), 16) => Ok(self.special(Type::U32, s)),
                        (Some(_), b) => Err(format!("found `{n}` of 32 bits, expected {b} bits")),
                        (None, _) => Err(format!("the special register `{n}` is not supported")),
                    };
                }
                if n == "WARP_SZ" {
                    return Ok(self.constant(ty, 32));
                }
                self.symbol(n, ty).ok_or_else(|| format!("found `{n}`, which is not declared"))
            }
            _ => Err(format!("found `{o}`, expected a register or a number")),
        }
    }

    /// A source as wide as its type.
    pub(crate) fn read(&mut self, o: &Operand, ty: Type) -> Found<Reg> {
        self.source(o, ty, false)
    }

    /// A source that may be wider than its type.
    pub(crate) fn read_loose(&mut self, o: &Operand, ty: Type) -> Found<Reg> {
        self.source(o, ty, true)
    }

    /// A destination; `_` is a row nobody reads.
    pub(crate) fn write(&mut self, o: &Operand, ty: Type, loose: bool) -> Found<Reg> {
        let Operand::Name(n) = o else { return Err(format!("found `{o}`, expected a register to write")) };
        if n == "_" {
            return Ok(self.row(ty));
        }
        let (t, r) = self.register(n).ok_or_else(|| format!("found `{n}`, which is not a declared register"))?;
        fits(n, t, ty, loose)?;
        self.writes.push(r);
        Ok(r)
    }

    /// The width a destination was declared with.
    pub(crate) fn width(&mut self, o: &Operand) -> u32 {
        match o {
            Operand::Name(n) => self.register(n).map_or(32, |r| r.0.bits()),
            _ => 32,
        }
    }

    /// A predicate source, which may be negated.
    pub(crate) fn predicate(&mut self, o: &Operand) -> Found<(Reg, bool)> {
        match o {
            Operand::Not(n) => Ok((self.read(&Operand::Name(n.clone()), Type::Pred)?, true)),
            Operand::Int(v) => Ok((self.constant(Type::Pred, u64::from(*v != 0)), false)),
            _ => Ok((self.read(o, Type::Pred)?, false)),
        }
    }

    /// `[base + offset]`.
    pub(crate) fn address(&mut self, o: &Operand) -> Found<Address> {
        let (base, offset) = match o {
            Operand::Address(b, o) => (&**b, *o),
            _ => return Err(format!("found `{o}`, expected an address")),
        };
        Ok(Address { base: self.base(base)?, offset })
    }

    pub(crate) fn base(&mut self, o: &Operand) -> Found<Reg> {
        match o {
            Operand::Name(n) if self.register(n).is_some_and(|r| r.0.bits() == 32) => self.read(o, Type::U32),
            _ => self.read(o, Type::U64),
        }
    }

    /// The elements of `{a, b}`, or the one operand.
    pub(crate) fn vector<'o>(&self, o: &'o Operand) -> &'o [Operand] {
        match o {
            Operand::Vector(v) => v,
            o => std::slice::from_ref(o),
        }
    }

    fn target(&self, o: &Operand, scope: u32) -> Found<u32> {
        let Operand::Name(n) = o else { return Err(format!("found `{o}`, expected a label")) };
        let mut s = scope;
        loop {
            if let Some(&p) = self.places.get(&(s, n.clone())) {
                return Ok(p);
            }
            if s == 0 {
                return Err(format!("found `{n}`, which is no label"));
            }
            s = self.parents[s as usize];
        }
    }

    fn instruction(&mut self, i: &Instruction, scope: u32, line: u32, place: (u32, u32)) -> Found<Inst> {
        self.reads.clear();
        self.writes.clear();
        let with_parts;
        let i = if i.operands.iter().any(|o| self.parts(o).is_some()) {
            let operands = i.operands.iter().map(|o| self.parts(o).unwrap_or_else(|| o.clone())).collect();
            with_parts = Instruction { operands, ..i.clone() };
            &with_parts
        } else {
            i
        };
        let guard = match &i.guard {
            None => None,
            Some((n, negated)) => {
                let r = self.read(&Operand::Name(n.clone()), Type::Pred)?;
                Some((r.row, *negated))
            }
        };
        // A guard is read in every lane that comes here; operands only where it holds. The guard is checked apart.
        self.reads.clear();
        let exec = match i.op.as_str() {
            "bra" => {
                let mut m = Mods::of(i);
                m.take("uni");
                m.done()?;
                Exec::Branch(self.target(operand(i, 0)?, scope)?)
            }
            "ret" | "exit" => {
                let mut m = Mods::of(i);
                m.take("uni");
                m.done()?;
                Exec::Exit
            }
            "trap" | "brkpt" => Exec::Trap,
            _ => self.body(i)?,
        };
        Ok(Inst {
            exec,
            guard,
            line,
            place,
            reads: self.reads.as_slice().into(),
            writes: self.writes.as_slice().into(),
            name: i.name().into(),
        })
    }

    fn body(&mut self, i: &Instruction) -> Found<Exec> {
        for family in [alu::decode, convert::decode, memory::decode, sync::decode, copies::decode, matrix::decode] {
            if let Some(e) = family(self, i)? {
                return Ok(e);
            }
        }
        Err("this instruction is not supported".into())
    }
}

/// Shared variables lie apart by more than an access, so that running over one does not look like using the next.
fn place_static(statics: &mut Vec<(u32, u32)>, top: &mut u32, align: u32, size: u64) -> Found<u32> {
    let gap = if statics.is_empty() { 0 } else { 16 };
    let at = (*top + gap).next_multiple_of(align);
    let end = u32::try_from(size).ok().and_then(|s| at.checked_add(s)).filter(|&e| e <= 1 << 20);
    *top = end.ok_or("more shared memory than any device has")?;
    statics.push((at, *top));
    Ok(at)
}

fn file_of(ty: Type) -> File {
    match ty.bits() {
        1 => File::Flag,
        64 => File::Wide,
        _ => File::Word,
    }
}

/// Something for names of special registers; nothing inside for those that no program here may depend on.
fn special_named(n: &str) -> Option<Option<Special>> {
    if let Some((base, axis)) = n.rsplit_once('.') {
        let axis = match axis {
            "x" => 0,
            "y" => 1,
            "z" => 2,
            _ => return None,
        };
        return match base {
            "%tid" => Some(Some(Special::Tid(axis))),
            "%ntid" => Some(Some(Special::Ntid(axis))),
            "%ctaid" | "%clusterid" => Some(Some(Special::Ctaid(axis))),
            "%cluster_ctaid" => Some(Some(Special::Fixed(0))),
            "%cluster_nctaid" => Some(Some(Special::Fixed(1))),
            "%nctaid" | "%nclusterid" => Some(Some(Special::Nctaid(axis))),
            _ => Some(None),
        };
    }
    match n {
        "%cluster_ctarank" => Some(Some(Special::Fixed(0))),
        "%cluster_nctarank" => Some(Some(Special::Fixed(1))),
        "%laneid" => Some(Some(Special::Lane)),
        "%warpid" => Some(Some(Special::Warp)),
        "%nwarpid" => Some(Some(Special::Warps)),
        "%lanemask_eq" => Some(Some(Special::LaneMask(Lanes::Eq))),
        "%lanemask_le" => Some(Some(Special::LaneMask(Lanes::Le))),
        "%lanemask_lt" => Some(Some(Special::LaneMask(Lanes::Lt))),
        "%lanemask_ge" => Some(Some(Special::LaneMask(Lanes::Ge))),
        "%lanemask_gt" => Some(Some(Special::LaneMask(Lanes::Gt))),
        "%clock" | "%clock64" | "%clock_hi" | "%globaltimer" | "%smid" | "%nsmid" | "%gridid"
        | "%dynamic_smem_size" | "%total_smem_size" => Some(None),
        _ => None,
    }
}

/// An operand by number, or what is missing.
pub(crate) fn operand(i: &Instruction, n: usize) -> Found<&Operand> {
    i.operands.get(n).ok_or_else(|| format!("found {} operands, expected more", i.operands.len()))
}

/// Exactly so many operands.
pub(crate) fn operands<const N: usize>(i: &Instruction) -> Found<[&Operand; N]> {
    let all: Vec<&Operand> = i.operands.iter().collect();
    all.try_into().map_err(|v: Vec<_>| format!("found {} operands, expected {N}", v.len()))
}

/// The modifiers of an instruction, taken one by one: what is left over is not understood, and refused.
pub(crate) struct Mods<'a> {
    left: Vec<&'a str>,
}

impl<'a> Mods<'a> {
    pub(crate) fn of(i: &'a Instruction) -> Mods<'a> {
        Mods { left: i.mods.iter().map(String::as_str).collect() }
    }

    /// Takes a modifier if it is there.
    pub(crate) fn take(&mut self, name: &str) -> bool {
        let at = self.left.iter().position(|m| *m == name);
        at.map(|n| self.left.remove(n)).is_some()
    }

    /// Takes the first one that something is made of.
    pub(crate) fn find<T>(&mut self, f: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (n, v) = self.left.iter().enumerate().find_map(|(n, m)| f(m).map(|v| (n, v)))?;
        self.left.remove(n);
        Some(v)
    }

    /// Takes the last modifier, which must be a type.
    pub(crate) fn ty(&mut self) -> Found<Type> {
        let last = self.left.pop().ok_or("found no type")?;
        Type::named(last).ok_or_else(|| format!("found `.{last}`, expected a type"))
    }

    /// Nothing may be left.
    pub(crate) fn done(&self) -> Found<()> {
        match self.left.first() {
            None => Ok(()),
            Some(m) => Err(format!("the modifier `.{m}` is not supported here")),
        }
    }
}
