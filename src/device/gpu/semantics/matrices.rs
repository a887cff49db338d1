//! Fragments, descriptors and products of matrix units (PTX ISA 9.7.14.5, 9.7.15.5).

use anyhow::{Result, ensure};
use half::{bf16, f16};

use super::{Check, equal, floats, given, gpu, hash, launch, one_block, room, small, words};
use crate::device::gpu::{Arg, Swizzle, TensorMapDesc};
use crate::device::{DType, Device, Tensor};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "fragments of ldmatrix and mma", hopper: false, exact: true, run: mma, judge: multiplied },
    Check { name: "layouts of descriptors", hopper: true, exact: true, run: layouts, judge: laid_out },
    Check { name: "fragments of wgmma", hopper: true, exact: true, run: rows, judge: rows_multiplied },
    Check { name: "sums of wgmma of every width", hopper: true, exact: false, run: widths, judge: summed },
];

/// Rounds to the bits of a half.
type Narrow = fn(f32) -> u16;

/// Halves of both types, by the suffix of their kernels.
const HALVES: [(&str, Narrow); 2] =
    [("f16", |x| f16::from_f32(x).to_bits()), ("bf16", |x| bf16::from_f32(x).to_bits())];

/// A matrix of halves, row by row.
fn matrix(rows: usize, columns: usize, bits: fn(f32) -> u16, value: impl Fn(usize, usize) -> f32) -> Vec<u16> {
    (0..rows * columns).map(|i| bits(value(i / columns, i % columns))).collect()
}

// ---- mma ----

fn mma(device: &Device, _: usize) -> Vec<Tensor> {
    let run = |(name, bits)| {
        let [a, b] = [0, 1].map(|side| matrix(16, 16, bits, |r, c| small(side, r, c)));
        let [a, b] = [a, b].map(|m| given(device, bytemuck::cast_slice(&m)));
        let (mut loaded, mut d) = (room(device, 64 * 32), room(device, 16 * 16 * 4));
        let args = [a.arg(), b.arg(), loaded.arg_mut(), d.arg_mut()];
        launch(device, &format!("semantics_mma_{name}"), one_block(64), args);
        [loaded, d]
    };
    HALVES.into_iter().flat_map(run).collect()
}

fn multiplied(out: &[Vec<u8>], _: usize) -> Result<String> {
    for ((name, bits), out) in HALVES.into_iter().zip(out.chunks(2)) {
        let pair = |side: usize, first: (usize, usize), second: (usize, usize)| {
            let half = |(r, c)| u32::from(bits(small(side, r, c)));
            half(first) | half(second) << 16
        };
        let loaded: Vec<u32> = (0..64 * 8)
            .map(|n| {
                let (lane, i) = (n / 8 % 32, n % 8);
                let (g, q) = (lane / 4, 2 * (lane % 4));
                // Matrices 0 to 3: upper and lower rows of the left columns, then of the right ones.
                let (r, c) = (8 * (i % 2), 8 * (i % 4 / 2));
                match i {
                    0..4 => pair(0, (r + g, c + q), (r + g, c + q + 1)),
                    _ => pair(1, (r + q, c + g), (r + q + 1, c + g)),
                }
            })
            .collect();
        equal(&format!("ldmatrix, {name}"), &words(&out[0]), &loaded)?;
        let want: Vec<u32> = (0..256)
            .map(|n| (0..16).map(|k| small(0, n / 16, k) * small(1, k, n % 16)).sum::<f32>() + 1.0)
            .map(f32::to_bits)
            .collect();
        equal(&format!("mma, {name}"), &words(&out[1]), &want)?;
    }
    Ok(String::new())
}

// ---- wgmma ----

/// Bytes of a row of a panel and its swizzle.
const PANELS: [(u32, Swizzle); 4] = [(16, Swizzle::None), (32, Swizzle::B32), (64, Swizzle::B64), (128, Swizzle::B128)];

/// Kernels, and whether A and B are M- and N-major.
const MAJORS: [(&str, [bool; 2]); 4] =
    [("kk", [false; 2]), ("kn", [false, true]), ("mk", [true, false]), ("mn", [true; 2])];

/// Boxes of a matrix of halves `[rows, 64]`.
fn map(device: &Device, of: &Tensor, dtype: DType, tile: [u32; 2], rows: usize, swizzle: Swizzle) -> Arg {
    let Arg::Ptr(base) = of.arg() else { unreachable!("an address") };
    gpu(device).tensor_map(&TensorMapDesc {
        dtype,
        base,
        dims: vec![64, rows as u64],
        strides: vec![128],
        tile: tile.into(),
        steps: vec![1, 1],
        swizzle,
    })
}

fn layouts(device: &Device, _: usize) -> Vec<Tensor> {
    let sides = [0, 1].map(|side| {
        let m = matrix(64, 64, HALVES[1].1, |r, c| small(side, r, c));
        given(device, bytemuck::cast_slice(&m))
    });
    let mut all = Vec::new();
    for (name, _) in MAJORS {
        for (width, swizzle) in PANELS {
            let mut out = room(device, 64 * 64 * 4);
            let [a, b] = sides.each_ref().map(|m| map(device, m, DType::Bf16, [width / 2, 64], 64, swizzle));
            launch(device, &format!("semantics_layout_{name}"), one_block(128), [a, b, out.arg_mut(), width.into()]);
            all.push(out);
        }
    }
    all
}

fn laid_out(out: &[Vec<u8>], _: usize) -> Result<String> {
    for ((name, across), out) in MAJORS.into_iter().zip(out.chunks(PANELS.len())) {
        // What lies at row r and column c is of row c where the operand is M- or N-major.
        let of = |side: usize, r: usize, k: usize| if across[side] { small(side, k, r) } else { small(side, r, k) };
        let want: Vec<u32> =
            (0..64 * 64).map(|n| (0..64).map(|k| of(0, n / 64, k) * of(1, n % 64, k)).sum::<f32>().to_bits()).collect();
        for ((width, _), out) in PANELS.into_iter().zip(out) {
            equal(&format!("{name}, rows of {width} bytes"), &words(out), &want)?;
        }
    }
    Ok(String::new())
}

fn rows(device: &Device, _: usize) -> Vec<Tensor> {
    let run = |((name, bits), dtype)| {
        let [a, b] =
            [0, 1].map(|side| given(device, bytemuck::cast_slice(&matrix(64, 64, bits, |r, c| small(side, r, c)))));
        let mut out = room(device, 64 * 64 * 4);
        let b = map(device, &b, dtype, [64, 64], 64, Swizzle::B128);
        launch(device, &format!("semantics_rows_{name}"), one_block(128), [a.arg(), b, out.arg_mut()]);
        out
    };
    HALVES.into_iter().zip([DType::F16, DType::Bf16]).map(run).collect()
}

fn rows_multiplied(out: &[Vec<u8>], _: usize) -> Result<String> {
    let want: Vec<u32> = (0..64 * 64)
        .map(|n| (0..64).map(|k| small(0, n / 64, k) * small(1, n % 64, k)).sum::<f32>().to_bits())
        .collect();
    HALVES.iter().zip(out).try_for_each(|((name, _), out)| equal(name, &words(out), &want))?;
    Ok(String::new())
}

const WIDTHS: [usize; 7] = [16, 32, 64, 96, 128, 192, 256];

/// Of both signs and many sizes.
fn wild(side: u64, r: usize, c: usize) -> f32 {
    let h = hash(side + 5, r * 64 + c);
    let size = 2f32.powi((h >> 40) as i32 % 8 - 4);
    bf16::from_f32(size * ((h as u32) as f32 / 2f32.powi(31) - 1.0)).to_f32()
}

fn widths(device: &Device, _: usize) -> Vec<Tensor> {
    let [a, b] = [(0, 64), (1, 256)].map(|(side, rows)| {
        given(device, bytemuck::cast_slice(&matrix(rows, 64, HALVES[1].1, |r, c| wild(side, r, c))))
    });
    let run = |n: usize| {
        let mut out = room(device, 64 * n * 4);
        let of_a = map(device, &a, DType::Bf16, [64, 64], 64, Swizzle::B128);
        let of_b = map(device, &b, DType::Bf16, [64, n as u32], 256, Swizzle::B128);
        launch(device, &format!("semantics_width_{n}"), one_block(128), [of_a, of_b, out.arg_mut()]);
        out
    };
    WIDTHS.map(run).into()
}

fn summed(out: &[Vec<u8>], _: usize) -> Result<String> {
    let widest = floats(&out[WIDTHS.len() - 1]);
    let mut worst = 0f64;
    for (n, out) in WIDTHS.into_iter().zip(out) {
        let got = floats(out);
        ensure!(got.len() == 64 * n, "{} numbers, expected {}", got.len(), 64 * n);
        for (i, got) in got.into_iter().enumerate() {
            let (r, c) = (i / n, i % n);
            let products = (0..64).map(|k| f64::from(wild(0, r, k)) * f64::from(wild(1, c, k)));
            let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
            let off = (f64::from(got) - sum).abs() / (size * 2f64.powi(-23));
            // As many roundings, or truncations, as there are products.
            ensure!(off <= 64.0, "m64n{n}: row {r}, column {c} is {got:e}, expected {sum:e}");
            ensure!(
                got.to_bits() == widest[r * 256 + c].to_bits(),
                "m64n{n}: row {r}, column {c} has other bits than by m64n256: results depend on the tile"
            );
            worst = worst.max(off);
        }
    }
    Ok(format!("off by up to {worst:.2} * 2^-23 of the sizes of 64 products; the same bits at every width"))
}
