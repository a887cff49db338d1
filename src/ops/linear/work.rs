//! What the products take, by their shapes: for plans of a GPU.

use super::{Backward, Branch, Call, InputGrad, Lora, Then};
use crate::device::work::{Kind, Work};
use crate::device::{DType, Tensor};

/// The type that is multiplied: the weight's where the activations are of it or can be rounded to it.
fn multiplied(weight: &Tensor, activations: &Tensor) -> DType {
    let fits = activations.dtype() == DType::F32 || activations.dtype() == weight.dtype();
    if fits { weight.dtype() } else { DType::F32 }
}

/// `x·Wᵀ` of all calls, and the low-rank products before it.
pub(super) fn forward(calls: &[Call]) -> Vec<Work> {
    let (mut works, mut mains) = (Vec::new(), Vec::new());
    let of_one_input = calls.chunk_by(|a, b| std::ptr::eq(a.x, b.x));
    for calls in of_one_input {
        let x = calls[0].x;
        let dtype = multiplied(calls[0].layer.layer.weight, x);
        let loras: Vec<&Lora> = calls.iter().flat_map(|c| c.layer.lora).collect();
        let per_sample = x.rows() / x.dim(0).max(1);
        let mut additions = 0;
        for (i, first) in loras.iter().enumerate() {
            let rows = first.samples.len() * per_sample;
            additions += 2 * (rows * first.b.len()) as u64;
            // Those of the same samples are one product, which reads them once.
            if loras[..i].iter().all(|l| l.samples != first.samples) {
                let rank = loras.iter().filter(|l| l.samples == first.samples).map(|l| l.a.dim(0)).sum();
                works.push(low(x, rows, rank, dtype));
            }
        }
        let n = calls.iter().map(|c| c.layer.layer.weight.dim(0)).sum();
        let main = Work::of(Kind::Product, dtype, [x.rows(), n, x.width()]);
        let [read, written] =
            calls.iter().map(moved).fold([x.bytes(), 0], |[r, w], [read, written]| [r + read, w + written]);
        join(&mut mains, Work { flops: main.flops + additions, ..main }.moving(read, written));
    }
    works.extend(mains);
    works
}

/// Bytes that a product reads beside its input, and those that it writes.
fn moved(call: &Call) -> [usize; 2] {
    let Call { x, layer, then, kept } = call;
    let weight = layer.layer.weight;
    let row = x.dtype().computed().bytes(weight.dim(0));
    let kept = x.rows() / x.dim(0).max(1) * kept;
    let (residual, hidden) = match then {
        Then::Add(residual) | Then::AddGated { residual, .. } => (residual.bytes(), 0),
        Then::Activate(_) | Then::Normalise { .. } => (0, kept * row),
        Then::Nothing => (0, 0),
    };
    [weight.bytes() + layer.layer.bias.map_or(0, Tensor::bytes) + residual, x.rows() * row + hidden]
}

/// Products that differ in their rows alone are tiles of one launch.
fn join(mains: &mut Vec<Work>, work: Work) {
    let alike = |w: &&mut Work| w.shape[1..] == work.shape[1..] && w.dtype == work.dtype;
    match mains.iter_mut().find(alike) {
        Some(w) => {
            w.shape[0] += work.shape[0];
            w.flops += work.flops;
            w.read += work.read;
            w.written += work.written;
        }
        None => mains.push(work),
    }
}

/// `x·Aᵀ` of so many rows, for so many ranks together.
fn low(x: &Tensor, rows: usize, rank: usize, dtype: DType) -> Work {
    let k = x.width();
    let read = x.dtype().bytes(rows * k) + DType::F32.bytes(rank * k);
    Work::of(Kind::Product, dtype, [rows, rank, k]).moving(read, dtype.bytes(rows * rank))
}

/// `dy·W` of all branches with the low-rank products of their additions and, where they are trained, of the factors' gradients.
pub(super) fn backward(calls: &[Backward]) -> Vec<Work> {
    let (mut lows, mut mains, mut sums) = (Vec::new(), Vec::new(), Vec::new());
    for Backward { x, branches, dx } in calls {
        for (i, Branch { dy, weight, lora, grad }) in branches.iter().enumerate() {
            let (m, outputs, inputs, dtype) = (dy.rows(), weight.dim(0), weight.dim(1), multiplied(weight, dy));
            let rank = lora.map_or(0, |l| l.a.dim(0));
            if lora.is_some() {
                lows.push(low(dy, m, rank, dtype));
            }
            if let Some(target) = dx.target() {
                let adds = i > 0 || !matches!(dx, InputGrad::Overwrite(_));
                let main = Work::of(Kind::Product, dtype, [m, inputs, outputs]);
                let flops = main.flops + 2 * (m * rank * inputs) as u64;
                let read = dy.bytes() + weight.bytes() + if adds { target.bytes() } else { 0 };
                join(&mut mains, Work { flops, ..main }.moving(read, target.bytes()));
            }
            if let (Some(x), Some(_), Some(_)) = (x, lora, grad) {
                let small = dtype.bytes(m * rank);
                lows.push(low(x, m, rank, dtype));
                let sum = |of: &Tensor, shape: [usize; 3]| {
                    Work::of(Kind::RowSum, dtype, shape)
                        .moving(of.bytes() + small, DType::F32.bytes(shape[1] * shape[2]))
                };
                sums.extend([sum(x, [m, rank, inputs]), sum(dy, [m, outputs, rank])]);
            }
        }
    }
    [lows, mains, sums].concat()
}
