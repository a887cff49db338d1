//! Arithmetic, logic, comparisons and moves (PTX ISA 9.7.1 to 9.7.8).

use half::{bf16, f16};

use super::{Context, Mods, operand, operands};
use crate::error::Found;
use crate::numeric::*;
use crate::parse::{Instruction, Operand};
use crate::program::Exec;
use crate::regs::*;
use crate::types::Type;

/// Sources of two, three and four operands after the destination.
struct Args {
    d: Reg,
    s: [Reg; 4],
}

fn args(c: &mut Context, i: &Instruction, d: Type, s: &[Type]) -> Found<Args> {
    if i.operands.len() != s.len() + 1 {
        return Err(format!("found {} operands, expected {}", i.operands.len(), s.len() + 1));
    }
    let mut regs = [Reg { file: File::Word, row: 0 }; 4];
    for (n, &ty) in s.iter().enumerate() {
        regs[n] = c.read(&i.operands[n + 1], ty)?;
    }
    Ok(Args { d: c.write(&i.operands[0], d, false)?, s: regs })
}

fn three(s: [Reg; 4]) -> [Reg; 3] {
    [s[0], s[1], s[2]]
}

/// One closure per integer type: `T` names the type inside of it.
macro_rules! ints {
    ($ty:expr, $T:ident => $e:expr) => {
        match $ty {
            Type::U16 | Type::B16 => {
                type $T = u16;
                $e
            }
            Type::S16 => {
                type $T = i16;
                $e
            }
            Type::U32 | Type::B32 => {
                type $T = u32;
                $e
            }
            Type::S32 => {
                type $T = i32;
                $e
            }
            Type::U64 | Type::B64 => {
                type $T = u64;
                $e
            }
            Type::S64 => {
                type $T = i64;
                $e
            }
            t => return Err(format!("found type {t:?}, expected an integer type")),
        }
    };
}

mod arithmetic;
mod bits;
mod compare;
mod float;
mod moves;

/// The decoded instruction, if it is one of this family.
pub(super) fn decode(c: &mut Context, i: &Instruction) -> Found<Option<Exec>> {
    let alu = match i.op.as_str() {
        "addc" | "subc" | "madc" => arithmetic::carried(c, i)?,
        "add" | "sub" | "mad" if i.has("cc") => arithmetic::carried(c, i)?,
        "mul24" | "mad24" => arithmetic::of_24_bits(c, i)?,
        "vshl" | "vshr" => bits::video_shift(c, i)?,
        "mapa" => return moves::cluster(c, i).map(Some),
        "getctarank" => return moves::cluster(c, i).map(Some),
        "isspacep" => moves::in_space(c, i)?,
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs" | "neg" => {
            return arithmetic::arithmetic(c, i).map(Some);
        }
        "and" | "or" | "xor" | "not" | "cnot" => bits::logic(c, i)?,
        "shl" | "shr" | "shf" => bits::shift(c, i)?,
        "bfe" | "bfi" | "bfind" | "brev" | "clz" | "popc" | "prmt" | "lop3" | "sad" | "dp4a" | "dp2a" | "bmsk"
        | "szext" => bits::bits(c, i)?,
        "setp" | "set" => compare::compare(c, i)?,
        "selp" | "slct" => compare::select(c, i)?,
        "mov" => moves::moves(c, i)?,
        "ex2" | "lg2" | "rcp" | "rsqrt" | "sqrt" | "tanh" | "sin" | "cos" => return float::unary_float(c, i).map(Some),
        "copysign" | "testp" => compare::sign(c, i)?,
        _ => return Ok(None),
    };
    Ok(Some(Exec::Alu(alu)))
}
