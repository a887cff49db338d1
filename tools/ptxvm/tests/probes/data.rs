//! Numbers to compute with, and how far results are from where they should be.

use half::bf16;
use ptxvm::{Arg, Memory, TensorMap};

/// Normal numbers, the same everywhere.
#[derive(Debug, Clone, Copy)]
pub struct Draw(u64);

impl Draw {
    pub fn new(seed: u64) -> Draw {
        Draw(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ x >> 31
    }

    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 * 2f64.powi(-53)
    }

    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    pub fn halves(&mut self, n: usize) -> Vec<bf16> {
        (0..n).map(|_| bf16::from_f64(self.normal())).collect()
    }
}

pub fn wide(v: &[bf16]) -> Vec<f64> {
    v.iter().map(|v| v.to_f64()).collect()
}

pub fn raw(v: &[bf16]) -> Vec<u8> {
    v.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn halves(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
}

pub fn floats(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect()
}

/// Norm of the difference by the norm of the reference.
pub fn relative(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let d = norm(&mut got.iter().zip(want).map(|(a, b)| a - b));
    if d.is_nan() { f64::INFINITY } else { d / norm(&mut want.iter().copied()) }
}

pub fn largest(got: &[f64], want: &[f64]) -> f64 {
    got.iter().zip(want).map(|(a, b)| if a.is_nan() { f64::INFINITY } else { (a - b).abs() }).fold(0.0, f64::max)
}

/// `a · bᵀ` of `[m, k]` and `[n, k]`.
pub fn product(a: &[f64], b: &[f64], m: usize, n: usize, k: usize) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            out[i * n + j] = (0..k).map(|l| a[i * k + l] * b[j * k + l]).sum();
        }
    }
    out
}

/// `[m, n]` to `[n, m]`.
pub fn transposed<T: Copy>(a: &[T], m: usize, n: usize) -> Vec<T> {
    (0..m * n).map(|i| a[i % m * n + i / m]).collect()
}

/// A dense tensor map of 2-byte elements, innermost first.
pub fn map(m: &mut Memory, base: u64, dims: &[u64], tile: &[u32], swizzle: u32) -> Arg {
    Arg::Map(words(m, base, dims, tile, swizzle))
}

pub fn words(m: &mut Memory, base: u64, dims: &[u64], tile: &[u32], swizzle: u32) -> [u64; 16] {
    let strides = (1..dims.len()).map(|d| dims[..d].iter().product::<u64>() * 2).collect();
    let map = TensorMap {
        kind: None,
        elem: 2,
        base,
        dims: dims.to_vec(),
        strides,
        tile: tile.to_vec(),
        steps: vec![1; dims.len()],
        swizzle,
    };
    m.tensor_map(map).unwrap()
}

/// Several maps in one struct.
pub fn maps(all: &[[u64; 16]]) -> Arg {
    Arg::Bytes(all.iter().flatten().flat_map(|w| w.to_le_bytes()).collect())
}
