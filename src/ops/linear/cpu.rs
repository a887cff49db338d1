use half::{bf16, f16};

use super::{Backward, Branch, Call, InputGrad, Lora, Lows, Output, Then};
use crate::device::{DType, Tensor};
use crate::ops::activation::{self, Activation};
use crate::ops::adaln::Chunk;
use crate::ops::cpu::Shared;
use crate::ops::cpu::gemm::{Epilogue, Finish, Low, Mat, Product, matmul, products};
use crate::ops::rms_norm;

/// A call, where `x·Aᵀ` of its additions goes, and where its result goes.
type Job<'a> = (&'a Call<'a>, &'a mut Vec<Tensor>, &'a mut Output);

/// `low[i][j]` takes `x·Aᵀ` of addition `j` of call `i`.
pub(super) fn forward(outputs: &mut [Output], low: &mut [Vec<Tensor>], calls: &[Call]) {
    let jobs = calls.iter().zip(low).zip(outputs.iter_mut());
    let mut jobs: Vec<Job> = jobs.map(|((call, low), output)| (call, low, output)).collect();
    while let Some((first, ..)) = jobs.first() {
        let x = first.x;
        let of_others = jobs.iter().position(|(call, ..)| !std::ptr::eq(call.x, x)).unwrap_or(jobs.len());
        let others = jobs.split_off(of_others);
        of_one_input(x, jobs);
        jobs = others;
    }
    for (call, output) in calls.iter().zip(outputs) {
        if let Then::Normalise { weight, eps } = call.then {
            rms_norm::forward_in_place(&mut output.y, weight, eps, output.inverse_rms.as_mut());
        }
    }
}

/// All but the norms of calls of `x`, which is prepared once.
fn of_one_input(x: &Tensor, mut jobs: Vec<Job>) {
    let per_sample = x.rows() / x.dim(0).max(1);
    project(x, &mut jobs, per_sample);
    let (mut lows, mut finishes, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
    for (call, low, Output { y, hidden, .. }) in jobs {
        let rows_of = |l: &Lora| l.samples.start * per_sample..l.samples.end * per_sample;
        let each = call.layer.lora.iter().zip(low.iter());
        let each = each.map(|(l, t)| Low { rows: rows_of(l), a: Mat::of(t), b: Mat::of(&l.b).t(), scale: l.scale });
        lows.push(each.collect::<Vec<Low>>());
        let (width, kept) = (y.width(), hidden.rows());
        let hidden = Shared::new(hidden.host_mut());
        let bias = call.layer.layer.bias.map(|b| b.elems().to_f32());
        let follow = Follow::new(call.then, width, per_sample);
        finishes.push(move |i: usize, first: usize, row: &mut [f32]| {
            if let Some(bias) = &bias {
                row.iter_mut().zip(&bias[first..]).for_each(|(v, b)| *v += b);
            }
            if i < kept {
                // SAFETY: this piece of the row belongs to the task that finishes it.
                unsafe { hidden.slice(i * width + first, row.len()) }.copy_from_slice(row);
            }
            follow.run(row, i, first, width);
        });
        outputs.push((y.host_mut(), width, Mat::weight(call.layer.layer.weight).t()));
    }
    let all = outputs.into_iter().zip(lows.iter().zip(&finishes)).map(|((y, width, weight), (low, finish))| Product {
        low,
        finish: Some(finish),
        ..Product::new(y, width, weight)
    });
    products(Mat::of(x), all.collect());
}

/// `x·Aᵀ` of every addition, those of the same samples in one pass over `x`.
fn project(x: &Tensor, jobs: &mut [Job], per_sample: usize) {
    let mut jobs: Vec<(&Lora, &mut Tensor)> =
        jobs.iter_mut().flat_map(|(call, low, _)| call.layer.lora.iter().zip(low.iter_mut())).collect();
    while let Some((first, _)) = jobs.first() {
        let samples = first.samples.clone();
        let (same, others) = jobs.into_iter().partition(|(l, _)| l.samples == samples);
        jobs = others;
        let same: Vec<(&Lora, &mut Tensor)> = same;
        let x = x.slice(samples.clone());
        let a = Mat::new(x.host(), samples.len() * per_sample, x.width());
        products(a, same.into_iter().map(|(l, t)| Product::new(t.host_mut(), l.a.dim(0), Mat::of(&l.a).t())).collect());
    }
}

/// [`Then`] with the numbers at hand.
#[derive(Clone, Copy)]
enum Follow<'a> {
    Nothing,
    Activate(Activation),
    Add(&'a [f32]),
    /// The residual, the modulation, its width, where the gate begins in it, and rows per sample.
    AddGated(&'a [f32], &'a [f32], usize, usize, usize),
}

impl<'a> Follow<'a> {
    /// `then` for outputs of `width` columns and `per_sample` rows.
    fn new(then: Then<'a>, width: usize, per_sample: usize) -> Self {
        match then {
            // Norms are of whole heads: they come after the products.
            Then::Nothing | Then::Normalise { .. } => Self::Nothing,
            Then::Activate(kind) => Self::Activate(kind),
            Then::Add(residual) => Self::Add(residual.host()),
            Then::AddGated { residual, gate: Chunk { modulation, index } } => {
                Self::AddGated(residual.host(), modulation.host(), modulation.width(), index * width, per_sample)
            }
        }
    }

    /// Columns from `first` on of row `i` of `width`.
    fn run(self, row: &mut [f32], i: usize, first: usize, width: usize) {
        match self {
            Self::Nothing => {}
            Self::Activate(kind) => activation::apply(row, kind),
            Self::Add(residual) => {
                row.iter_mut().zip(&residual[i * width + first..]).for_each(|(y, r)| *y += r);
            }
            Self::AddGated(residual, modulation, across, at, per_sample) => {
                let gate = &modulation[i / per_sample * across + at + first..];
                let residual = &residual[i * width + first..];
                row.iter_mut().zip(residual).zip(gate).for_each(|((y, r), gate)| *y = r + gate * *y);
            }
        }
    }
}

pub(super) fn backward(calls: &mut [Backward], lows: &mut [Vec<Lows>], mut flat: Option<&mut Tensor>) {
    for (call, lows) in calls.iter_mut().zip(lows) {
        for (i, (branch, lows)) in call.branches.iter().zip(lows).enumerate() {
            if let (Some(l), Some((up, _))) = (branch.lora, lows.as_mut()) {
                matmul(up.host_mut(), l.a.dim(0), Mat::of(branch.dy), Mat::of(&l.b), Epilogue::default());
            }
            let up = lows.as_ref().map(|(up, _)| up);
            match &mut call.dx {
                InputGrad::Skip => {}
                InputGrad::Overwrite(dx) => to_input(dx, branch, up, i > 0, None),
                InputGrad::Add(dx) => to_input(dx, branch, up, true, None),
                InputGrad::ThroughGelu { dx, hidden } => to_input(dx, branch, up, false, Some(hidden)),
            }
            if let (Some(x), Some(flat)) = (call.x, flat.as_deref_mut()) {
                to_factors(branch, lows, x, flat);
            }
        }
    }
}

/// `dx = dy·W + s·up·A`, times the slope of the activation at `hidden` where there is one.
fn to_input(dx: &mut Tensor, branch: &Branch, up: Option<&Tensor>, accumulate: bool, hidden: Option<&Tensor>) {
    let (rows, inputs) = (branch.dy.rows(), branch.weight.dim(1));
    let low =
        branch.lora.zip(up).map(|(l, up)| Low { rows: 0..rows, a: Mat::of(up), b: Mat::of(&l.a), scale: l.scale });
    let low: Vec<Low> = low.into_iter().collect();
    let hidden = hidden.map(Tensor::host);
    let slope = |i: usize, first: usize, row: &mut [f32]| {
        let hidden = &hidden.expect("only used where there is one")[i * inputs + first..];
        activation::gelu_tanh_gradient(row, hidden);
    };
    let finish: Option<&Finish> = if hidden.is_some() { Some(&slope) } else { None };
    let product = Product::new(dx.host_mut(), inputs, Mat::weight(branch.weight));
    products(Mat::of(branch.dy), vec![Product { accumulate, low: &low, finish, ..product }]);
}

fn to_factors(branch: &Branch, lows: &mut Lows, x: &Tensor, flat: &mut Tensor) {
    let (Some(l), Some((up, Some(down))), Some([a, b])) = (branch.lora, lows, branch.grad) else { return };
    let rank = l.a.dim(0);
    matmul(down.host_mut(), rank, Mat::of(x), Mat::of(&l.a).t(), Epilogue::default());
    let add = Epilogue { scale: l.scale, accumulate: true, bias: None };
    let flat = flat.host_mut();
    matmul(&mut flat[b..][..l.b.len()], rank, Mat::of(branch.dy).t(), Mat::of(down), add);
    matmul(&mut flat[a..][..l.a.len()], x.width(), Mat::of(up).t(), Mat::of(x), add);
}

pub(super) fn merge(merged: &mut Tensor, weight: &Tensor, a: &Tensor, b: &Tensor, scale: f32) {
    let mut sum = weight.elems().to_f32().into_owned();
    matmul(&mut sum, a.width(), Mat::of(b), Mat::of(a), Epilogue { scale, accumulate: true, bias: None });
    store(merged, &sum);
}

pub(super) fn round(out: &mut Tensor, weight: &Tensor) {
    store(out, &weight.elems().to_f32());
}

/// Rounds `values` to the type of `out`.
fn store(out: &mut Tensor, values: &[f32]) {
    let dtype = out.dtype();
    let bytes = out.host_bytes_mut();
    match dtype {
        DType::F32 => bytes.copy_from_slice(bytemuck::cast_slice(values)),
        DType::F16 => {
            let out: &mut [f16] = bytemuck::cast_slice_mut(bytes);
            out.iter_mut().zip(values).for_each(|(o, v)| *o = f16::from_f32(*v));
        }
        DType::Bf16 => {
            let out: &mut [bf16] = bytemuck::cast_slice_mut(bytes);
            out.iter_mut().zip(values).for_each(|(o, v)| *o = bf16::from_f32(*v));
        }
        DType::U8 | DType::Blocks(_) => unreachable!("nothing is rounded to bytes"),
    }
}
