use half::{bf16, f16};

use super::{Adapted, InputGrad, Lora, LoraGrad, Then};
use crate::device::{DType, Tensor};
use crate::ops::activation::{self, Activation};
use crate::ops::adaln::Chunk;
use crate::ops::cpu::Shared;
use crate::ops::cpu::gemm::{Epilogue, Low, Mat, Product, matmul, products};

/// `outputs[i] = then(layers[i](x))`; what the last layer gives before `then` also goes to `hidden`, as far as that has
/// rows. `low[i][j]` takes `x·Aᵀ` of addition `j` of layer `i`.
pub(super) fn forward(
    outputs: &mut [&mut Tensor],
    hidden: Option<&mut Tensor>,
    low: &mut [&mut Vec<Tensor>],
    x: &Tensor,
    layers: &[Adapted],
    then: Then,
) {
    let (m, width) = (x.rows(), x.width());
    let per_sample = m / x.dim(0).max(1);
    let rows_of = |l: &Lora| l.samples.start * per_sample..l.samples.end * per_sample;
    project(low, x, layers, per_sample);

    let lows: Vec<Vec<Low>> = layers
        .iter()
        .zip(low.iter())
        .map(|(layer, low)| {
            let each = layer.lora.iter().zip(low.iter());
            each.map(|(l, low)| Low { rows: rows_of(l), a: Mat::of(low), b: Mat::of(&l.b).t(), scale: l.scale })
                .collect()
        })
        .collect();
    let biases: Vec<_> = layers.iter().map(|l| l.layer.bias.map(|b| b.elems().to_f32())).collect();
    let kept = hidden.map(|h| (h.rows(), Shared::new(h.host_mut())));
    let finishes: Vec<_> = biases
        .iter()
        .zip(layers)
        .map(|(bias, layer)| {
            let (kept, width) = (&kept, layer.layer.weight.dim(0));
            let follow = Follow::new(then, width, per_sample);
            move |i: usize, first: usize, row: &mut [f32]| {
                if let Some(bias) = bias {
                    row.iter_mut().zip(&bias[first..]).for_each(|(v, b)| *v += b);
                }
                if let Some((rows, hidden)) = kept
                    && i < *rows
                {
                    // SAFETY: this piece of the row belongs to the task that finishes it.
                    unsafe { hidden.slice(i * width + first, row.len()) }.copy_from_slice(row);
                }
                follow.run(row, i, first, width);
            }
        })
        .collect();
    let products_of =
        outputs.iter_mut().zip(layers).zip(lows.iter().zip(&finishes)).map(|((y, layer), (low, finish))| {
            let outputs = layer.layer.weight.dim(0);
            let b = Mat::weight(layer.layer.weight).t();
            Product { low, finish: Some(finish), ..Product::new(y.host_mut(), outputs, b) }
        });
    products(Mat::new(x.host(), m, width), products_of.collect());
}

/// `x·Aᵀ` of every addition, those of the same samples in one pass over `x`.
fn project(low: &mut [&mut Vec<Tensor>], x: &Tensor, layers: &[Adapted], per_sample: usize) {
    let mut jobs: Vec<(&Lora, &mut Tensor)> =
        layers.iter().zip(low).flat_map(|(layer, low)| layer.lora.iter().zip(low.iter_mut())).collect();
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
            Then::Nothing => Self::Nothing,
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

pub(super) fn backward(
    dy: &Tensor,
    weight: &Tensor,
    x: Option<&Tensor>,
    lora: Option<(&Lora, &mut (Tensor, Option<Tensor>))>,
    grad: Option<LoraGrad>,
    dx: InputGrad,
) {
    let (rows, inputs) = (dy.rows(), weight.dim(1));
    let dx = match dx {
        InputGrad::Skip => None,
        InputGrad::Overwrite(dx) => Some((dx, false)),
        InputGrad::Add(dx) => Some((dx, true)),
    };
    let lora = lora.map(|(l, (up, down))| {
        matmul(up.host_mut(), l.a.dim(0), Mat::of(dy), Mat::of(&l.b), Epilogue::default());
        (l, &*up, down)
    });
    if let Some((dx, accumulate)) = dx {
        let low = lora.iter().map(|(l, up, _)| Low { rows: 0..rows, a: Mat::of(up), b: Mat::of(&l.a), scale: l.scale });
        let low: Vec<Low> = low.collect();
        let product = Product { accumulate, low: &low, ..Product::new(dx.host_mut(), inputs, Mat::weight(weight)) };
        products(Mat::of(dy), vec![product]);
    }
    let (Some((l, up, Some(down))), Some(grad), Some(x)) = (lora, grad, x) else { return };
    let rank = l.a.dim(0);
    matmul(down.host_mut(), rank, Mat::of(x), Mat::of(&l.a).t(), Epilogue::default());
    let add = Epilogue { scale: l.scale, accumulate: true, bias: None };
    let flat = grad.flat.host_mut();
    matmul(&mut flat[grad.b..][..l.b.len()], rank, Mat::of(dy).t(), Mat::of(down), add);
    matmul(&mut flat[grad.a..][..l.a.len()], inputs, Mat::of(up).t(), Mat::of(x), add);
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
