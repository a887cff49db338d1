use rayon::prelude::*;

use super::{Inputs, Row};
use crate::device::Tensor;
use crate::ops::cpu::ordered_sum;
use crate::ops::math::wide;
use crate::ops::noise::normals;

/// Elements per piece; whole blocks of random numbers.
const PIECE: usize = 1 << 12;

/// The inputs of a piece of one sample.
#[derive(Clone, Copy)]
struct Piece<'a> {
    x: &'a [f32],
    v: &'a [f32],
    /// The unconditional velocity and the guidance scale.
    guidance: Option<(&'a [f32], f32)>,
    history: [Option<&'a [f32]>; 2],
}

impl<'a> Piece<'a> {
    /// `len` elements of sample `sample` from `first` on.
    fn of(inputs: &Inputs<'a>, sample: usize, first: usize, len: usize) -> Self {
        let (samples, per) = (inputs.x.dim(0), inputs.x.len() / inputs.x.dim(0));
        let cut = |t: &'a Tensor, sample: usize| &t.host()[sample * per + first..][..len];
        let conditional = sample + if inputs.guidance.is_some() { samples } else { 0 };
        Self {
            x: cut(inputs.x, sample),
            v: cut(inputs.velocity, conditional),
            guidance: inputs.guidance.map(|g| (cut(inputs.velocity, sample), g)),
            history: inputs.history.map(|m| m.map(|m| cut(m, sample))),
        }
    }
}

wide! {
    /// The mean of the step, every operation rounded on its own.
    fn mean(out: &mut [f32], p: Piece, row: Row) {
        match p.guidance {
            None => out.copy_from_slice(p.v),
            Some((u, g)) => out.iter_mut().zip(u.iter().zip(p.v)).for_each(|(o, (u, c))| *o = u + g * (c - u)),
        }
        out.iter_mut().zip(p.x).for_each(|(o, x)| *o = row.a * x + row.b * *o);
        for (m, factor) in p.history.iter().zip(row.history) {
            if factor != 0.0 {
                let m = m.expect("a row with a factor for history is given it");
                out.iter_mut().zip(m).for_each(|(o, m)| *o += factor * m);
            }
        }
    }
}

pub(super) fn forward(next: &mut Tensor, inputs: Inputs, row: Row) {
    let per = (next.len() / next.dim(0).max(1)).max(1);
    next.host_mut().par_chunks_exact_mut(per).enumerate().for_each(|(sample, next)| {
        next.par_chunks_mut(PIECE).enumerate().for_each(|(i, next)| {
            mean(next, Piece::of(&inputs, sample, i * PIECE, next.len()), row);
            if row.s != 0.0 {
                let mut noise = [0.0; PIECE];
                let noise = &mut noise[..next.len()];
                normals(noise, inputs.noise[sample].words(), (i * PIECE / 4) as u64);
                next.iter_mut().zip(noise.iter()).for_each(|(x, e)| *x += row.s * e);
            }
        });
    });
}

pub(super) fn residuals(means: &mut [f64], next: &Tensor, inputs: Inputs, row: Row) {
    let per = next.len() / next.dim(0).max(1);
    means.par_iter_mut().enumerate().for_each(|(sample, out)| {
        let next = &next.host()[sample * per..][..per];
        let mut mean_of = vec![0.0; per];
        mean(&mut mean_of, Piece::of(&inputs, sample, 0, per), row);
        let square = |i: usize| {
            let d = f64::from(next[i] - mean_of[i]);
            d * d
        };
        *out = ordered_sum(per, square) / per as f64;
    });
}
