//! `mma` (PTX ISA 9.7.14). Products are exact and summed in f64, with the accumulator, and rounded once: the ISA asks for
//! single precision at least, in an order it leaves open.

use half::f16;

use crate::program::{Elem, Mma};
use crate::regs::{LANES, Reg, Regs};

/// The ten bits of a fraction that tf32 has.
pub(super) fn tf32(w: u32) -> f32 {
    f32::from_bits(w & 0xFFFF_E000)
}

/// `mma.m16n8kK`: fragments as in 9.7.14.5.
pub(super) fn mma(r: &mut Regs, m: &Mma) {
    let [d, a, b, c] = &m.regs;
    if let Elem::Int(_) | Elem::Fp8(_) = m.elem {
        return mma_bytes(r, m);
    }
    let k = usize::from(m.k);
    let (mut fa, mut fb) = ([[0f64; 16]; 16], [[0f64; 8]; 16]);
    match m.elem {
        Elem::Tf32 => {
            for l in 0..LANES {
                let (g, q) = (l / 4, l % 4);
                for (i, reg) in a.iter().enumerate() {
                    fa[g + 8 * (i & 1)][4 * (i >> 1) + q] = tf32(r.word[reg.row as usize][l]).into();
                }
                for (i, reg) in b.iter().enumerate() {
                    fb[4 * i + q][g] = tf32(r.word[reg.row as usize][l]).into();
                }
            }
        }
        Elem::F16 => halves(r, (&a[..], &b[..]), (&mut fa, &mut fb), |h| f16::from_bits(h).to_f32()),
        _ => halves(r, (&a[..], &b[..]), (&mut fa, &mut fb), |h| f32::from_bits(u32::from(h) << 16)),
    }
    let mut p = [[0f64; 8]; 16];
    for (row, fa) in p.iter_mut().zip(&fa) {
        for (x, fb) in fa[..k].iter().zip(&fb) {
            for (s, y) in row.iter_mut().zip(fb) {
                *s = x.mul_add(*y, *s);
            }
        }
    }
    for l in 0..LANES {
        let (g, q) = (l / 4, 2 * (l % 4));
        for i in 0..2 {
            let row = &p[g + 8 * i];
            if m.half {
                let w = r.word[c[i].row as usize][l];
                let sum = |v: f64, h: u16| {
                    u32::from(
                        crate::numeric::to_f16(
                            (v + f64::from(f16::from_bits(h))) as f32,
                            crate::numeric::Round::Nearest,
                        )
                        .to_bits(),
                    )
                };
                r.word[d[i].row as usize][l] = sum(row[q], w as u16) | sum(row[q + 1], (w >> 16) as u16) << 16;
            } else {
                for j in 0..2 {
                    let old = f32::from_bits(r.word[c[2 * i + j].row as usize][l]);
                    r.word[d[2 * i + j].row as usize][l] = ((row[q + j] + f64::from(old)) as f32).to_bits();
                }
            }
        }
    }
}

/// Fragments of halves: four neighbouring lanes have eight neighbouring elements of a row of A, or of a column of B.
#[inline(always)]
fn halves(
    r: &Regs,
    (a, b): (&[Reg], &[Reg]),
    (fa, fb): (&mut [[f64; 16]; 16], &mut [[f64; 8]; 16]),
    value: impl Fn(u16) -> f32,
) {
    for (i, reg) in a.iter().enumerate() {
        for (g, words) in r.word[reg.row as usize].as_chunks::<4>().0.iter().enumerate() {
            let (row, _) = fa[g + 8 * (i & 1)][8 * (i >> 1)..].as_chunks_mut::<2>();
            for (to, w) in row.iter_mut().zip(words) {
                *to = [value(*w as u16).into(), value((*w >> 16) as u16).into()];
            }
        }
    }
    for (i, reg) in b.iter().enumerate() {
        for (g, words) in r.word[reg.row as usize].as_chunks::<4>().0.iter().enumerate() {
            for (q, w) in words.iter().enumerate() {
                fb[8 * i + 2 * q][g] = value(*w as u16).into();
                fb[8 * i + 2 * q + 1][g] = value((*w >> 16) as u16).into();
            }
        }
    }
}

/// `mma` of bytes: four of a row of A or of a column of B in each register.
fn mma_bytes(r: &mut Regs, m: &Mma) {
    let [d, a, b, c] = &m.regs;
    let k = usize::from(m.k);
    let value = |byte: u32, side: usize| match m.elem {
        Elem::Int(signed) if signed[side] => f64::from(byte as u8 as i8),
        Elem::Fp8(e5m2) => f64::from(crate::numeric::from_fp8(byte as u8, e5m2[side])),
        _ => f64::from(byte as u8),
    };
    let (mut fa, mut fb) = ([[0f64; 32]; 16], [[0f64; 32]; 8]);
    for l in 0..LANES {
        let (g, q) = (l / 4, l % 4);
        for e in 0..4 {
            for (i, reg) in a.iter().enumerate() {
                fa[g + 8 * (i & 1)][16 * (i >> 1) + 4 * q + e] = value(r.word[reg.row as usize][l] >> (8 * e), 0);
            }
            for (i, reg) in b.iter().enumerate() {
                fb[g][16 * i + 4 * q + e] = value(r.word[reg.row as usize][l] >> (8 * e), 1);
            }
        }
    }
    for l in 0..LANES {
        let (g, q) = (l / 4, 2 * (l % 4));
        for (i, (d, c)) in d.iter().zip(c).enumerate() {
            let old = r.word[c.row as usize][l];
            // exact for integers: 32 products of 16 bits
            let sum = |row: usize, col: usize| (0..k).map(|x| fa[row][x] * fb[col][x]).sum::<f64>();
            r.word[d.row as usize][l] = if m.half {
                let half = |j: usize| {
                    let old = f64::from(f16::from_bits((old >> (16 * j)) as u16));
                    let v = (sum(g + 8 * i, q + j) + old) as f32;
                    u32::from(crate::numeric::to_f16(v, crate::numeric::Round::Nearest).to_bits()) << (16 * j)
                };
                half(0) | half(1)
            } else {
                let s = sum(g + 8 * (i >> 1), q + (i & 1));
                match m.elem {
                    Elem::Int(_) if m.saturates => {
                        (s as i64 + i64::from(old as i32)).clamp(i32::MIN.into(), i32::MAX.into()) as u32
                    }
                    Elem::Int(_) => (s as i64 as u32).wrapping_add(old),
                    _ => ((s + f64::from(f32::from_bits(old))) as f32).to_bits(),
                }
            };
        }
    }
}
