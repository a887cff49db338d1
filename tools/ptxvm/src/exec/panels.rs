//! Operands of `wgmma` as panels of numbers, and their product. A panel is read once for an instruction; products are exact
//! and summed in f64 by ascending k, then with the accumulator, and rounded once: the ISA asks for single precision at
//! least, in an order it leaves open.

use std::sync::LazyLock;

use half::f16;

use super::copies::swizzle;
use super::matrix::tf32;
use crate::finding::{Kind, Step, fault};
use crate::numeric::from_fp8;
use crate::program::Elem;
use crate::regs::LANES;

/// The deepest product, of bytes.
pub(super) const DEPTH: usize = 32;

/// Eight neighbouring rows of A or columns of B, by k.
pub(super) type Panel = [[f64; 8]; DEPTH];

/// A matrix in shared memory as its descriptor says (9.7.15.5.1.2). Whatever its elements are, it has 32 bytes of k where it
/// is K-major; M- or N-major are only those of two bytes, with 16 of k.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    base: u32,
    lbo: u32,
    sbo: u32,
    mode: u32,
    rows: u32,
    /// M- or N-major.
    trans: bool,
}

impl Matrix {
    pub(super) fn new(desc: u64, rows: u32, trans: bool) -> Step<Matrix> {
        let field = |at: u32| ((desc >> at & 0x3FFF) << 4) as u32;
        if desc >> 49 & 7 != 0 {
            return fault(
                Kind::Descriptor,
                format!("a matrix descriptor {desc:#x} with a base offset, which is not supported"),
            );
        }
        let mode = [0, 128, 64, 32][(desc >> 62) as usize];
        Ok(Matrix { base: field(0), lbo: field(16), sbo: field(32), mode, rows, trans })
    }

    /// Where sixteen neighbouring bytes lie: K-major of row `i`, the half `j` of k; M- or N-major of rows from `8i`, k = `j`.
    #[inline(always)]
    fn chunk(&self, i: u32, j: u32) -> u32 {
        let w = self.mode.max(16) / 16;
        let (lbo, sbo) = (self.lbo, self.sbo);
        let a = match (self.trans, self.mode) {
            (false, 0) => (i % 8) * 16 + (i / 8) * sbo + j * lbo,
            (false, _) => (i % 8) * 16 * w + (i / 8) * sbo + j * 16,
            (true, 0) => i * sbo + (j % 8) * 16 + (j / 8) * lbo,
            (true, _) => (i % w) * 16 + (i / w) * lbo + (j % 8) * 16 * w + (j / 8) * sbo,
        };
        swizzle(self.base.wrapping_add(a), self.mode)
    }

    /// Addresses of all its chunks, sixteen for eight rows: by row and half of k, or by k.
    pub(super) fn chunks(self) -> impl Iterator<Item = u32> {
        let (n, m) = if self.trans { (self.rows / 8, 16) } else { (self.rows, 2) };
        (0..n).flat_map(move |i| (0..m).map(move |j| self.chunk(i, j)))
    }
}

/// Elements of one register or chunk.
trait Format {
    /// Bytes of an element.
    const BYTES: usize;
    fn value(&self, bits: u32) -> f64;
}

struct Bf16;
struct F16;
struct Tf32;
struct Fp8(&'static [f64; 256]);

impl Format for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn value(&self, bits: u32) -> f64 {
        f32::from_bits(bits << 16).into()
    }
}

impl Format for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn value(&self, bits: u32) -> f64 {
        f16::from_bits(bits as u16).to_f32().into()
    }
}

impl Format for Tf32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn value(&self, bits: u32) -> f64 {
        tf32(bits).into()
    }
}

impl Format for Fp8 {
    const BYTES: usize = 1;
    #[inline(always)]
    fn value(&self, bits: u32) -> f64 {
        self.0[bits as usize & 255]
    }
}

/// The numbers of all bytes, by E4M3 and E5M2.
static FP8: LazyLock<[[f64; 256]; 2]> =
    LazyLock::new(|| [false, true].map(|e5m2| std::array::from_fn(|b| from_fp8(b as u8, e5m2).into())));

/// Calls a function of a format with that of A (0) or B (1).
macro_rules! by_format {
    ($elem:expr, $side:expr, $f:ident($($a:expr),*)) => {
        match $elem {
            Elem::F16 => $f(&F16, $($a),*),
            Elem::Tf32 => $f(&Tf32, $($a),*),
            Elem::Fp8(e5m2) => $f(&Fp8(&FP8[usize::from(e5m2[$side])]), $($a),*),
            _ => $f(&Bf16, $($a),*),
        }
    };
}

/// Element `n` of a word.
#[inline(always)]
fn element<F: Format>(f: &F, word: u32, n: usize) -> f64 {
    let bits = 8 * F::BYTES as u32;
    f.value(if bits == 32 { word } else { word >> (bits * n as u32) & ((1 << bits) - 1) })
}

fn chunk<F: Format>(f: &F, memory: &[u8], at: u32) -> [f64; 16] {
    let bytes = &memory[at as usize..at as usize + 16];
    let mut out = [0.0; 16];
    for (w, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
        let word = u32::from_le_bytes(*word);
        for e in 0..4 / F::BYTES {
            out[4 / F::BYTES * w + e] = element(f, word, e);
        }
    }
    out
}

/// Eight rows of the sixteen chunks that hold them.
fn from_chunks<F: Format>(f: &F, memory: &[u8], at: &[u32], trans: bool, to: &mut Panel) {
    for (n, &at) in at.iter().enumerate() {
        let c = chunk(f, memory, at);
        if trans {
            to[n].copy_from_slice(&c[..8]);
        } else {
            let each = 16 / F::BYTES;
            for (e, v) in c[..each].iter().enumerate() {
                to[n % 2 * each + e][n / 2] = *v;
            }
        }
    }
}

pub(super) fn read_chunks(elem: Elem, side: usize, memory: &[u8], at: &[u32], trans: bool, to: &mut Panel) {
    by_format!(elem, side, from_chunks(memory, at, trans, to));
}

/// Eight rows of A in the registers that hold them: the first and the second half of k.
fn from_registers<F: Format>(f: &F, halves: [&[u32; LANES]; 2], to: &mut Panel) {
    let each = 4 / F::BYTES;
    for (half, words) in halves.iter().enumerate() {
        for (l, &word) in words.iter().enumerate() {
            for e in 0..each {
                to[4 * each * half + each * (l % 4) + e][l / 4] = element(f, word, e);
            }
        }
    }
}

pub(super) fn read_registers(elem: Elem, halves: [&[u32; LANES]; 2], to: &mut Panel) {
    by_format!(elem, 0, from_registers(halves, to));
}

/// The columns of B in the order of accumulators: the even ones, then the odd ones.
pub(super) fn even_then_odd(b: &mut [[f64; 8]]) {
    for row in b {
        *row = [row[0], row[2], row[4], row[6], row[1], row[3], row[5], row[7]];
    }
}

/// Eight rows by the even and by the odd ones of eight columns: value `4g + q` is of row g and of column 2q or 2q + 1, as
/// lanes hold accumulators.
pub(super) fn product(k: usize, a: &Panel, b: &Panel) -> [[f64; LANES]; 2] {
    let mut out = [[0.0; LANES]; 2];
    // four rows at once: what is summed stays in registers
    for rows in 0..2 {
        let mut sums = [[[0f64; 4]; 4]; 2];
        for (a, b) in a[..k].iter().zip(b) {
            for (odd, sums) in sums.iter_mut().enumerate() {
                for (g, sums) in sums.iter_mut().enumerate() {
                    for (q, s) in sums.iter_mut().enumerate() {
                        *s = a[4 * rows + g].mul_add(b[4 * odd + q], *s);
                    }
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(&sums) {
            out[16 * rows..16 * rows + 16].copy_from_slice(sums.as_flattened());
        }
    }
    out
}
