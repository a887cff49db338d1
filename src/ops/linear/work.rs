//! What the products take, by their shapes: for plans of a GPU.

use super::{Adapted, Lora, Then};
use crate::device::work::{Kind, Work};
use crate::device::{DType, Tensor};

/// The type that is multiplied: the weight's where the activations are of it or can be rounded to it.
fn multiplied(weight: &Tensor, activations: &Tensor) -> DType {
    let fits = activations.dtype() == DType::F32 || activations.dtype() == weight.dtype();
    if fits { weight.dtype() } else { DType::F32 }
}

/// `x·Wᵀ` of all layers, and the low-rank products before it. `kept` is what is kept beside the results.
pub(super) fn forward(x: &Tensor, layers: &[Adapted], kept: Option<&Tensor>, then: Then) -> Vec<Work> {
    let (m, k, dtype) = (x.rows(), x.width(), multiplied(layers[0].layer.weight, x));
    let per_sample = m / x.dim(0).max(1);
    let mut works: Vec<Work> = Vec::new();
    let mut additions = 0;
    let loras: Vec<&Lora> = layers.iter().flat_map(|l| l.lora).collect();
    for (i, first) in loras.iter().enumerate() {
        let rows = first.samples.len() * per_sample;
        additions += 2 * (rows * first.b.len()) as u64;
        // Those of the same samples are one product, which reads them once.
        if loras[..i].iter().all(|l| l.samples != first.samples) {
            let rank = loras.iter().filter(|l| l.samples == first.samples).map(|l| l.a.dim(0)).sum();
            works.push(low(x, rows, rank, dtype));
        }
    }
    let n = layers.iter().map(|l| l.layer.weight.dim(0)).sum();
    let weights = layers.iter().map(|l| l.layer.weight.bytes() + l.layer.bias.map_or(0, Tensor::bytes));
    let residual = match then {
        Then::Add(residual) | Then::AddGated { residual, .. } => residual.bytes(),
        Then::Nothing | Then::Activate(_) => 0,
    };
    let results = x.dtype().computed().bytes(m * n) + kept.map_or(0, Tensor::bytes);
    let main = Work::of(Kind::Product, dtype, [m, n, k]);
    works.push(
        Work { flops: main.flops + additions, ..main }.moving(x.bytes() + weights.sum::<usize>() + residual, results),
    );
    works
}

/// `x·Aᵀ` of so many rows, for so many ranks together.
fn low(x: &Tensor, rows: usize, rank: usize, dtype: DType) -> Work {
    let k = x.width();
    let read = x.dtype().bytes(rows * k) + DType::F32.bytes(rank * k);
    Work::of(Kind::Product, dtype, [rows, rank, k]).moving(read, dtype.bytes(rows * rank))
}

/// `dy·W` with the low-rank products of its addition and, where they are trained, of the factors' gradients. `dx` is the
/// bytes that are read and written of it.
pub(super) fn backward(
    dy: &Tensor,
    weight: &Tensor,
    x: Option<&Tensor>,
    lora: Option<&Lora>,
    dx: Option<[usize; 2]>,
) -> Vec<Work> {
    let (m, outputs, inputs, dtype) = (dy.rows(), weight.dim(0), weight.dim(1), multiplied(weight, dy));
    let rank = lora.map_or(0, |l| l.a.dim(0));
    let mut works = Vec::new();
    if lora.is_some() {
        works.push(low(dy, m, rank, dtype));
    }
    if let Some([read, written]) = dx {
        let main = Work::of(Kind::Product, dtype, [m, inputs, outputs]);
        let flops = main.flops + 2 * (m * rank * inputs) as u64;
        works.push(Work { flops, ..main }.moving(dy.bytes() + weight.bytes() + read, written));
    }
    if let (Some(x), Some(_)) = (x, lora) {
        let small = dtype.bytes(m * rank);
        works.push(low(x, m, rank, dtype));
        let sum = |of: &Tensor, shape: [usize; 3]| {
            Work::of(Kind::RowSum, dtype, shape).moving(of.bytes() + small, DType::F32.bytes(shape[1] * shape[2]))
        };
        works.extend([sum(x, [m, rank, inputs]), sum(dy, [m, outputs, rank])]);
    }
    works
}
