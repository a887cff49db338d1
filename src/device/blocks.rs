//! Numbers that are stored smaller than the engine computes with: fp8, and the block formats of llama.cpp's GGUF files
//! (`ggml-quants.c`; the values are those of its `gguf` package to the bit).

use half::f16;

/// A format of which a block of bytes stands for some elements; a row of a matrix is whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Blocks {
    /// fp8 with 4 bits of exponent and 3 of mantissa, no infinities ("fn"): up to 448.
    F8E4M3,
    /// fp8 with 5 bits of exponent and 2 of mantissa: the upper half of an f16.
    F8E5M2,
    /// 32 elements of 4 bits and a scale.
    Q4_0,
    /// 32 elements of 4 bits, a scale and a minimum.
    Q4_1,
    /// 32 elements of 5 bits and a scale.
    Q5_0,
    /// 32 elements of 5 bits, a scale and a minimum.
    Q5_1,
    /// 32 elements of 8 bits and a scale.
    Q8_0,
    /// 256 elements of 2 bits, 16 scales and minima of 4 bits.
    Q2K,
    /// 256 elements of 3 bits, 16 scales of 6 bits.
    Q3K,
    /// 256 elements of 4 bits, 8 scales and minima of 6 bits.
    Q4K,
    /// 256 elements of 5 bits, 8 scales and minima of 6 bits.
    Q5K,
    /// 256 elements of 6 bits, 16 scales of 8 bits.
    Q6K,
    /// 32 elements of 4 bits that index a table, and a scale.
    Iq4Nl,
    /// 256 elements of 4 bits that index the same table, 8 scales of 6 bits.
    Iq4Xs,
}

/// What the 4 bits of the `IQ4` formats stand for.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Blocks {
    /// All formats.
    pub const ALL: [Self; 14] = [
        Self::F8E4M3,
        Self::F8E5M2,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
    ];

    /// Its name in safetensors or GGUF.
    pub fn name(self) -> &'static str {
        match self {
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
        }
    }

    /// Elements of a block.
    pub fn elements(self) -> usize {
        match self {
            Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Xs => 136,
        }
    }

    /// Writes what the blocks of `bytes` stand for, times `scale`, to `out`, which has exactly that many elements.
    pub fn decode(self, bytes: &[u8], scale: f32, out: &mut [f32]) {
        let (of_bytes, of_elements) = (self.bytes(), self.elements());
        assert_eq!(bytes.len() / of_bytes * of_elements, out.len(), "{} blocks", self.name());
        let each = |decode: fn(&[u8], &mut [f32]), out: &mut [f32]| {
            bytes.chunks_exact(of_bytes).zip(out.chunks_exact_mut(of_elements)).for_each(|(b, y)| decode(b, y));
        };
        match self {
            Self::F8E4M3 => out.iter_mut().zip(bytes).for_each(|(y, b)| *y = e4m3(*b)),
            Self::F8E5M2 => {
                out.iter_mut().zip(bytes).for_each(|(y, b)| *y = f16::from_bits(u16::from(*b) << 8).to_f32());
            }
            Self::Q4_0 => each(q4_0, out),
            Self::Q4_1 => each(q4_1, out),
            Self::Q5_0 => each(q5_0, out),
            Self::Q5_1 => each(q5_1, out),
            Self::Q8_0 => each(q8_0, out),
            Self::Q2K => each(q2_k, out),
            Self::Q3K => each(q3_k, out),
            Self::Q4K => each(q4_k, out),
            Self::Q5K => each(q5_k, out),
            Self::Q6K => each(q6_k, out),
            Self::Iq4Nl => each(iq4_nl, out),
            Self::Iq4Xs => each(iq4_xs, out),
        }
        if scale != 1.0 {
            out.iter_mut().for_each(|y| *y *= scale);
        }
    }
}

/// The number at `at`, two bytes.
fn half(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

fn e4m3(b: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(b >> 3 & 15), u32::from(b & 7));
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        // Subnormal: multiples of 2^-9.
        (0, _) => mantissa as f32 / 512.0,
        _ => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    };
    if b & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Calls `f` with the element's number and its four bits: the low ones of all bytes first, then the high ones.
fn nibbles(q: &[u8], mut f: impl FnMut(usize, u8)) {
    for (i, q) in q.iter().enumerate() {
        f(i, q & 15);
    }
    for (i, b) in q.iter().enumerate() {
        f(q.len() + i, b >> 4);
    }
}

fn q4_0(b: &[u8], y: &mut [f32]) {
    let d = half(b, 0);
    nibbles(&b[2..18], |i, q| y[i] = d * (f32::from(q) - 8.0));
}

fn q4_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half(b, 0), half(b, 2));
    nibbles(&b[4..20], |i, q| y[i] = d * f32::from(q) + m);
}

fn q5_0(b: &[u8], y: &mut [f32]) {
    let (d, high) = (half(b, 0), u32::from_le_bytes([b[2], b[3], b[4], b[5]]));
    nibbles(&b[6..22], |i, q| y[i] = d * (f32::from(q | (high >> i << 4 & 16) as u8) - 16.0));
}

fn q5_1(b: &[u8], y: &mut [f32]) {
    let (d, m, high) = (half(b, 0), half(b, 2), u32::from_le_bytes([b[4], b[5], b[6], b[7]]));
    nibbles(&b[8..24], |i, q| y[i] = d * f32::from(q | (high >> i << 4 & 16) as u8) + m);
}

fn q8_0(b: &[u8], y: &mut [f32]) {
    let d = half(b, 0);
    y.iter_mut().zip(&b[2..34]).for_each(|(y, q)| *y = d * f32::from(*q as i8));
}

fn q2_k(b: &[u8], y: &mut [f32]) {
    let (scales, qs, d, dmin) = (&b[..16], &b[16..80], half(b, 80), half(b, 82));
    for (i, y) in y.chunks_exact_mut(16).enumerate() {
        let (scale, min) = (d * f32::from(scales[i] & 15), dmin * f32::from(scales[i] >> 4));
        let (qs, shift) = (&qs[32 * (i / 8) + 16 * (i % 2)..], 2 * (i / 2 % 4));
        y.iter_mut().zip(qs).for_each(|(y, q)| *y = scale * f32::from(q >> shift & 3) - min);
    }
}

fn q3_k(b: &[u8], y: &mut [f32]) {
    let (mask, qs, scales, d) = (&b[..32], &b[32..96], &b[96..108], half(b, 108));
    for (i, y) in y.chunks_exact_mut(16).enumerate() {
        let low = if i < 8 { scales[i] & 15 } else { scales[i - 8] >> 4 };
        let high = scales[8 + i % 4] >> (2 * (i / 4)) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let at = 16 * (i % 2);
        let (qs, mask, shift) = (&qs[32 * (i / 8) + at..], &mask[at..], 2 * (i / 2 % 4));
        for ((y, q), mask) in y.iter_mut().zip(qs).zip(mask) {
            let above = if mask >> (i / 2) & 1 == 1 { 0.0 } else { 4.0 };
            *y = scale * (f32::from(q >> shift & 3) - above);
        }
    }
}

/// Scale and minimum of sub-block `j` of a `Q4_K` or `Q5_K`.
fn scale_and_min(b: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = match j {
        0..4 => (b[j] & 63, b[j + 4] & 63),
        _ => (b[j + 4] & 15 | b[j - 4] >> 2 & 48, b[j + 4] >> 4 | b[j] >> 2 & 48),
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin, scales, qs) = (half(b, 0), half(b, 2), &b[4..16], &b[16..144]);
    for (j, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(scales, j);
        let (scale, min, shift) = (d * scale, dmin * min, 4 * (j % 2));
        y.iter_mut().zip(&qs[32 * (j / 2)..]).for_each(|(y, q)| *y = scale * f32::from(q >> shift & 15) - min);
    }
}

fn q5_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin, scales, high, qs) = (half(b, 0), half(b, 2), &b[4..16], &b[16..48], &b[48..176]);
    for (j, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(scales, j);
        let (scale, min, shift) = (d * scale, dmin * min, 4 * (j % 2));
        for ((y, q), high) in y.iter_mut().zip(&qs[32 * (j / 2)..]).zip(high) {
            *y = scale * f32::from(q >> shift & 15 | (high >> j & 1) << 4) - min;
        }
    }
}

fn q6_k(b: &[u8], y: &mut [f32]) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half(b, 208));
    for (i, y) in y.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[i] as i8);
        // Of the half: which group of 32, and which half of that.
        let (half, group, at) = (i / 8, i / 2 % 4, 16 * (i % 2));
        let (low, high) = (&low[64 * half + 32 * (group % 2) + at..], &high[32 * half + at..]);
        for ((y, low), high) in y.iter_mut().zip(low).zip(high) {
            let q = low >> (4 * (group / 2)) & 15 | (high >> (2 * group) & 3) << 4;
            *y = scale * (f32::from(q) - 32.0);
        }
    }
}

fn iq4_nl(b: &[u8], y: &mut [f32]) {
    let d = half(b, 0);
    nibbles(&b[2..18], |i, q| y[i] = d * f32::from(IQ4[usize::from(q)]));
}

fn iq4_xs(b: &[u8], y: &mut [f32]) {
    let (d, high, low) = (half(b, 0), u16::from_le_bytes([b[2], b[3]]), &b[4..8]);
    for (j, y) in y.chunks_exact_mut(32).enumerate() {
        let scale = low[j / 2] >> (4 * (j % 2)) & 15 | ((high >> (2 * j) & 3) as u8) << 4;
        let scale = d * (f32::from(scale) - 32.0);
        nibbles(&b[8 + 16 * j..][..16], |i, q| y[i] = scale * f32::from(IQ4[usize::from(q)]));
    }
}
