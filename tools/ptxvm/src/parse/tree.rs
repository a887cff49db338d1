//! What a PTX file says: variables, functions, statements.

use crate::types::{Space, Type};

/// A whole PTX file.
#[derive(Debug, Clone)]
pub struct Source {
    /// The name given with the text.
    pub file: String,
    /// `.version`, at most 8.8.
    pub version: (u32, u32),
    /// `.target`, such as `sm_90a`.
    pub target: String,
    /// Variables outside of functions.
    pub variables: Vec<Variable>,
    /// Kernels and device functions.
    pub functions: Vec<Function>,
    /// Paths by `.file` index.
    pub files: Vec<(u64, String)>,
}

/// A variable in some space, with what it starts as.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Where it lies.
    pub space: Space,
    /// Its name.
    pub name: String,
    /// Alignment in bytes.
    pub align: u32,
    /// Size in bytes; 0 for the unsized array of dynamic shared memory.
    pub size: u64,
    /// `.extern`: dynamic shared memory.
    pub external: bool,
    /// The first bytes, where there is an initialiser; the rest is zero.
    pub init: Option<Vec<u8>>,
    /// Where addresses of other variables belong in it, 64 bits each.
    pub addresses: Vec<(usize, String)>,
}

/// A parameter of a function.
#[derive(Debug, Clone)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Alignment in bytes.
    pub align: u32,
    /// Size in bytes.
    pub size: u32,
    /// Type of an element, and registers of a vector; `.reg` parameters are registers.
    pub ty: Type,
    pub lanes: Option<u32>,
    pub register: bool,
}

/// A kernel or a device function.
#[derive(Debug, Clone)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// `.entry`, not `.func`.
    pub entry: bool,
    /// In order.
    pub params: Vec<Param>,
    /// What it returns.
    pub results: Vec<Param>,
    /// `.maxntid`, or 1,024.
    pub max_threads: u32,
    /// `.reqntid`.
    pub threads: Option<[u32; 3]>,
    /// The body.
    pub body: Vec<Statement>,
}

/// A statement and its line.
#[derive(Debug, Clone)]
pub struct Statement {
    /// Line of the PTX, from 1.
    pub line: u32,
    /// What it is.
    pub kind: Kind,
}

/// Kinds of statements.
#[derive(Debug, Clone)]
pub enum Kind {
    /// `name:`.
    Label(String),
    /// `{` of a scope.
    Open,
    /// `}` of a scope.
    Close,
    /// `.reg`: a type, registers of a vector, and names; a count for `%r<9>`.
    Registers(Type, Option<u32>, Vec<(String, Option<u32>)>),
    /// A variable of the function.
    Variable(Variable),
    /// A name for a variable of another name.
    Alias(String, String),
    /// `.loc file line column`.
    Place(u64, u64),
    /// An instruction.
    Instruction(Instruction),
}

/// An instruction as written.
#[derive(Debug, Clone)]
pub struct Instruction {
    /// `@p` or `@!p`: the name, and whether it is negated.
    pub guard: Option<(String, bool)>,
    /// The opcode: `ld`.
    pub op: String,
    /// Its modifiers without dots: `global`, `nc`, `v4`, `u32`.
    pub mods: Vec<String>,
    /// In order.
    pub operands: Vec<Operand>,
}

impl Instruction {
    /// The opcode with its modifiers, as written.
    pub fn name(&self) -> String {
        let mut s = self.op.clone();
        for m in &self.mods {
            s.push('.');
            s.push_str(m);
        }
        s
    }

    /// Whether it has a modifier.
    pub fn has(&self, m: &str) -> bool {
        self.mods.iter().any(|x| x == m)
    }
}

/// An operand as written.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// A register, a special register, a variable, a label.
    Name(String),
    /// `!p`.
    Not(String),
    /// An integer, the sign carried through 64 bits.
    Int(u64),
    /// The bits of an f32 and of an f64.
    Float(u32, u64),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `d|p`.
    Pair(Box<Operand>, Box<Operand>),
    /// `[base+offset]`.
    Address(Box<Operand>, i64),
    /// `[map, {x, y}]`.
    Tensor(Box<Operand>, Vec<Operand>),
    /// `(a, b)` of a call.
    List(Vec<Operand>),
    /// `a + 1` outside of an address.
    Sum(String, i64),
}

impl std::fmt::Display for Operand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |l: &[Operand]| l.iter().map(Operand::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Operand::Name(n) => f.write_str(n),
            Operand::Not(n) => write!(f, "!{n}"),
            Operand::Int(v) => write!(f, "{}", *v as i64),
            Operand::Float(v, _) => write!(f, "0f{v:08X}"),
            Operand::Vector(l) => write!(f, "{{{}}}", list(l)),
            Operand::Pair(a, b) => write!(f, "{a}|{b}"),
            Operand::Address(b, 0) => write!(f, "[{b}]"),
            Operand::Address(b, o) => write!(f, "[{b}+{o}]"),
            Operand::Tensor(b, c) => write!(f, "[{b}, {{{}}}]", list(c)),
            Operand::List(l) => write!(f, "({})", list(l)),
            Operand::Sum(n, v) => write!(f, "{n} + {v}"),
        }
    }
}
