use rayon::prelude::*;

use super::{Bend, Curve};
use crate::device::{Tensor, workers};
use crate::ops::cpu::gemm::{KC, Left, Mat, NR, Panels, pack_f32, tiles};
use crate::ops::cpu::{Shared, at_least, repeated};
use crate::ops::math::{self, wide};

/// Elements of the result that a task finishes together: they are still in the second-level cache when they are bent.
const BAND: usize = 1 << 16;
/// Elements per task that only bends.
const GRAIN: usize = 1 << 14;

/// In panels, in the weight's place.
pub(super) fn pack(w: &mut Tensor) {
    let (outputs, inputs) = (w.dim(0), w.dim(1));
    let padded = outputs.next_multiple_of(NR);
    let mut packed = Tensor::scratch(&w.device(), &[inputs, padded]);
    let panels = packed.host_mut();
    for k in (0..inputs).step_by(KC) {
        let steps = k..(k + KC).min(inputs);
        pack_f32(&mut panels[padded * k..padded * steps.end], Mat::weight(w).t(), steps, 0..outputs);
    }
    *w = packed;
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, by: Bend, add: Option<&Tensor>) {
    let (rows, inputs, outputs, padded) = (x.rows(), x.width(), y.width(), w.dim(1));
    if rows * outputs == 0 {
        return;
    }
    let bias = bias.map_or_else(|| vec![0.0; outputs], |b| b.elems().to_f32().into_owned());
    let bias = repeated(&bias);
    let band = (BAND / outputs).clamp(1, rows.div_ceil(workers()).max(1));
    let (x, packed, add, out) = (x.host(), w.host(), add.map(Tensor::host), Shared::new(y.host_mut()));
    (0..rows.div_ceil(band)).into_par_iter().with_min_len(at_least(1)).for_each(|task| {
        let rows = task * band..((task + 1) * band).min(rows);
        for k in (0..inputs).step_by(KC) {
            let steps = KC.min(inputs - k);
            let left = Left { ptr: x[rows.start * inputs + k..].as_ptr(), row_stride: inputs, step: 1 };
            let right = Panels { ptr: packed[padded * k..].as_ptr(), depth: steps };
            let to = (out.at(rows.start * outputs), outputs);
            // SAFETY: the rows lie inside `x`, the panels hold all columns, and the rows of the result are this task's.
            unsafe { tiles([rows.len(), outputs], steps, left, right, to, 1.0, k > 0) };
        }
        // SAFETY: as above.
        let done = unsafe { out.slice(rows.start * outputs, rows.len() * outputs) };
        bend(done, &bias, by);
        if let Some(add) = add {
            plus(done, &add[rows.start * outputs..][..done.len()]);
        }
    });
}

pub(super) fn apply(x: &mut Tensor, by: Bend) {
    let bias = [0.0; 256];
    x.host_mut().par_chunks_mut(GRAIN).with_min_len(at_least(1)).for_each(|x| bend(x, &bias, by));
}

wide! {
    fn plus(x: &mut [f32], y: &[f32]) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }
}

/// `x` plus the bias, [repeated], bent.
pub(in crate::ops) fn bend(x: &mut [f32], bias: &[f32], Bend { curve, scale, shift }: Bend) {
    match curve {
        Curve::Line => line(x, bias, scale, shift),
        Curve::Relu => relu(x, bias, scale, shift),
        Curve::HardSwish => hard_swish(x, bias, scale, shift),
        Curve::HardSigmoid { slope } => hard_sigmoid(x, bias, slope, scale, shift),
        Curve::Silu => silu(x, bias, scale, shift),
        Curve::Sigmoid => sigmoid(x, bias, scale, shift),
    }
}

/// `f(x + bias)` of every element.
#[inline(always)]
fn each(x: &mut [f32], bias: &[f32], f: impl Fn(f32) -> f32) {
    for several in x.chunks_mut(bias.len()) {
        several.iter_mut().zip(bias).for_each(|(v, b)| *v = f(*v + b));
    }
}

wide! {
    fn line(x: &mut [f32], bias: &[f32], scale: f32, shift: f32) {
        each(x, bias, |v| v.mul_add(scale, shift));
    }
}

wide! {
    fn relu(x: &mut [f32], bias: &[f32], scale: f32, shift: f32) {
        each(x, bias, |v| v.max(0.0).mul_add(scale, shift));
    }
}

wide! {
    fn hard_swish(x: &mut [f32], bias: &[f32], scale: f32, shift: f32) {
        let scale = scale / 6.0;
        each(x, bias, |v| (v * (v + 3.0).clamp(0.0, 6.0)).mul_add(scale, shift));
    }
}

wide! {
    fn hard_sigmoid(x: &mut [f32], bias: &[f32], slope: f32, scale: f32, shift: f32) {
        each(x, bias, |v| v.mul_add(slope, 0.5).clamp(0.0, 1.0).mul_add(scale, shift));
    }
}

wide! {
    fn silu(x: &mut [f32], bias: &[f32], scale: f32, shift: f32) {
        each(x, bias, |v| (v * math::sigmoid(v)).mul_add(scale, shift));
    }
}

wide! {
    fn sigmoid(x: &mut [f32], bias: &[f32], scale: f32, shift: f32) {
        each(x, bias, |v| math::sigmoid(v).mul_add(scale, shift));
    }
}
