use rayon::prelude::*;

use crate::device::Tensor;
use crate::device::philox::{Key, block};
use crate::ops::math::{horner, ln, wide};

/// Blocks that are made side by side, so that they vectorise.
const BLOCKS: usize = 16;

pub(super) fn normal(out: &mut Tensor, keys: &[Key]) {
    let per = out.len() / keys.len().max(1);
    out.host_mut().par_chunks_exact_mut(per.max(1)).zip(keys).for_each(|(row, key)| normals(row, key.words(), 0));
}

/// Element `4·first + i` of the stream with these words to `out[i]`: words 0 and 1 of block `n` make elements `4n` and
/// `4n + 1`, words 2 and 3 the other two. In a pair the first word gives the radius and the second the angle, and the
/// cosine comes first (Box and Muller 1958).
pub(in crate::ops) fn normals(out: &mut [f32], words: [u32; 4], first: u64) {
    for (i, out) in out.chunks_mut(4 * BLOCKS).enumerate() {
        let mut made = [[0.0f32; BLOCKS]; 4];
        make(&mut made, words, first + (i * BLOCKS) as u64);
        for (e, v) in out.iter_mut().enumerate() {
            *v = made[e % 4][e / 4];
        }
    }
}

wide! {
    fn make(out: &mut [[f32; BLOCKS]; 4], words: [u32; 4], first: u64) {
        let [o0, o1, o2, o3] = out;
        for (i, (((o0, o1), o2), o3)) in o0.iter_mut().zip(o1).zip(o2).zip(o3).enumerate() {
            let [a, b, c, d] = block(words, first + i as u64);
            (*o0, *o1) = pair(a, b);
            (*o2, *o3) = pair(c, d);
        }
    }
}

/// sin(πρ/2)/ρ and (cos(πρ/2) - 1)/ρ² in powers of ρ².
const SIN: [u32; 4] = [0x3FC9_0FDB, 0xBF25_5DDD, 0x3DA3_2F63, 0xBB96_CDDC];
const COS: [u32; 4] = [0xBF9D_E9E6, 0x3E81_E0EF, 0xBCAA_E2F0, 0x3A6C_EABE];
/// `-2·ln(w·2⁻²⁴)` for `0 < w < 2²⁴`, to 0.87 units in the last place.
#[inline(always)]
pub(super) fn minus_two_ln(w: u32) -> f32 {
    -2.0 * ln(w as f32 * (1.0 / 16_777_216.0))
}

/// Cosine and sine of `2π·w·2⁻²⁴`, to 1.7 units in the last place.
#[inline(always)]
pub(super) fn cos_sin(w: u32) -> (f32, f32) {
    let q = (w + (1 << 21)) >> 22;
    let rho = w.wrapping_sub(q << 22) as i32 as f32 * (1.0 / 4_194_304.0);
    let z = rho * rho;
    let s = rho * horner(&SIN, z);
    let c = 1.0 + z * horner(&COS, z);
    let (cos, sin) = if q & 1 == 1 { (s, c) } else { (c, s) };
    let flip = |v: f32, by: u32| f32::from_bits(v.to_bits() ^ (by & 1) << 31);
    (flip(cos, (q + 1) >> 1), flip(sin, q >> 1))
}

/// Two independent standard normal numbers of two random words.
#[inline(always)]
fn pair(a: u32, b: u32) -> (f32, f32) {
    let radius = minus_two_ln((a >> 8) | 1).sqrt();
    let (cos, sin) = cos_sin((b >> 8) | 1);
    (radius * cos, radius * sin)
}
