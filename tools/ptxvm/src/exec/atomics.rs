//! Atomics of lanes (PTX ISA 9.7.13.4 and 9.7.13.5), and what they make of two values.

use half::{bf16, f16};

use super::row::{address_list, aligned, placed, resolve};
use super::{Block, Warp};
use crate::finding::{Kind, Step, fault_at};
use crate::numeric::{Narrow, add_narrow};
use crate::program::{Address, Rmw};
use crate::regs::{LANES, Reg};
use crate::types::{Space, Type};

impl Block<'_> {
    /// Lanes one after the other: in which order is the schedule's.
    pub(super) fn atom(
        &mut self,
        warp: &mut Warp,
        ex: u32,
        (space, ty, op): (Space, Type, Rmw),
        dst: Option<Reg>,
        to: Address,
        (a, b): (Reg, Option<Reg>),
    ) -> Step {
        let mut at = [(0, 0); LANES];
        let n = address_list(warp, ex, to, &mut at);
        let len = ty.bytes() as usize;
        let turn = if self.launch.options.schedule == crate::options::Schedule::Eager {
            0
        } else {
            self.rng.below(n as u64) as usize
        };
        at[..n].rotate_left(turn);
        self.watch.release();
        for &(l, p) in &at[..n] {
            let (space, p) = resolve(space, p);
            aligned(p, len, l)?;
            let (x, y) = (warp.regs.lane(a, l), b.map_or(0, |b| warp.regs.lane(b, l)));
            let f = |old: u64| modify(ty, op, old, x, y);
            let old = match space {
                Space::Global => placed(self.launch.memory.update(p, len, &self.watch, f), l, p)?,
                Space::Shared => {
                    self.ordinary(p, len, l)?;
                    if let Some(s) = &mut self.shadow {
                        s.atomic(warp.id, p as usize, len)?;
                    }
                    let v = placed(self.shared.load(p, len), l, p)?;
                    let old = u64::from(v[0]) | if len == 8 { u64::from(v[1]) << 32 } else { 0 };
                    let new = f(old);
                    placed(self.shared.store(p, len, [new as u32, (new >> 32) as u32, 0, 0]), l, p)?;
                    old
                }
                _ => return fault_at(Kind::OutOfBounds, l, p, "an atomic outside of global and shared memory"),
            };
            if let Some(d) = dst {
                warp.regs.set_lane(d, l, old);
            }
        }
        self.watch.acquire();
        self.count(space, &at[..n], len, true);
        Ok(())
    }
}

/// The new value of an atomic.
pub(super) fn modify(ty: Type, op: Rmw, old: u64, x: u64, y: u64) -> u64 {
    let (o32, x32) = (old as u32, x as u32);
    match (op, ty) {
        (Rmw::Add, Type::F32) => (f32::from_bits(o32) + f32::from_bits(x32)).to_bits().into(),
        (Rmw::Add, Type::F64) => (f64::from_bits(old) + f64::from_bits(x)).to_bits(),
        (_, Type::F16 | Type::F16x2) => halves(ty, old, x, |a, b| narrow(op, f16::from_bits(a), f16::from_bits(b))),
        (_, Type::Bf16 | Type::Bf16x2) => halves(ty, old, x, |a, b| narrow(op, bf16::from_bits(a), bf16::from_bits(b))),
        (Rmw::Add, _) => old.wrapping_add(x),
        (Rmw::Min, Type::S32) => (o32 as i32).min(x32 as i32) as u32 as u64,
        (Rmw::Max, Type::S32) => (o32 as i32).max(x32 as i32) as u32 as u64,
        (Rmw::Min, Type::S64) => (old as i64).min(x as i64) as u64,
        (Rmw::Max, Type::S64) => (old as i64).max(x as i64) as u64,
        (Rmw::Min, _) => old.min(x),
        (Rmw::Max, _) => old.max(x),
        (Rmw::And, _) => old & x,
        (Rmw::Or, _) => old | x,
        (Rmw::Xor, _) => old ^ x,
        (Rmw::Inc, _) => {
            if o32 >= x32 {
                0
            } else {
                u64::from(o32) + 1
            }
        }
        (Rmw::Dec, _) => {
            if o32 == 0 || o32 > x32 {
                x32.into()
            } else {
                u64::from(o32) - 1
            }
        }
        (Rmw::Exch, _) => x,
        (Rmw::Cas, _) => {
            if old == x {
                y
            } else {
                old
            }
        }
    }
}

/// An operation on one or two halves of a word.
fn halves(ty: Type, old: u64, x: u64, f: impl Fn(u16, u16) -> u16) -> u64 {
    let low = u64::from(f(old as u16, x as u16));
    if ty.bits() == 16 { low } else { low | u64::from(f((old >> 16) as u16, (x >> 16) as u16)) << 16 }
}

fn narrow<T: Narrow + Bits>(op: Rmw, a: T, b: T) -> u16 {
    match op {
        Rmw::Min if a.wide() <= b.wide() => a,
        Rmw::Max if a.wide() >= b.wide() => a,
        Rmw::Min | Rmw::Max => b,
        _ => add_narrow(a, b),
    }
    .bits()
}

trait Bits {
    fn bits(self) -> u16;
}

impl Bits for f16 {
    fn bits(self) -> u16 {
        self.to_bits()
    }
}

impl Bits for bf16 {
    fn bits(self) -> u16 {
        self.to_bits()
    }
}
