//! The backward of heads too wide for kernels that make the scores again as they go, of autoencoders: all scores of a head are
//! written out, twice, and the rest is products of matrices in f32.

use super::{OutputGrad, Part, PartArg, PartGrad, STATS_STEP, Sequence, small};
use crate::device::gpu::{Grid, suffix};
use crate::device::{DType, Tensor};
use crate::ops::attention::Heads;
use crate::ops::copy::{block_into, cast, columns, rows_into};
use crate::ops::linear::{self, InputGrad, Layer, Then};

/// The widest heads of the kernels that need no room for scores.
const WIDEST: usize = 128;

/// Whether [`backward`] takes it: one sequence whose result was read, of wide heads.
pub(super) fn fits(outputs: &[Option<OutputGrad>], parts: &[Part], heads: Heads) -> bool {
    matches!((outputs, parts), ([Some(_)], [_])) && parts[0].q.dim(2) / heads.count > WIDEST
}

pub(super) fn backward(grads: &mut PartGrad, output: &OutputGrad, lse: &Tensor, part: &Part, heads: Heads) {
    let &[batch, n, width] = part.q.shape() else { panic!("attention: q {:?}", part.q) };
    let d = width / heads.count;
    let stats = statistics(output, lse, part, heads);
    let step = stats.dim(3);
    let dtype = grads.k.dtype();
    for sample in 0..batch {
        let mut of_sample = [(); 3].map(|()| Tensor::scratch(&lse.device(), &[1, n, width]));
        for head in 0..heads.count {
            let of = |t: &Tensor| {
                let own = t.slice(sample..sample + 1);
                let own = if heads.count == 1 { own } else { columns(&own, head * d, d) };
                cast(&own, DType::F32).reshape(&[n, d])
            };
            let [q, k, v, dout] = [part.q, part.k, part.v, output.dout].map(of);
            let at = |which: usize| stats.view(((which * batch + sample) * heads.count + head) * step, &[n]);
            let weigh = |a: [&Tensor; 2], b: [&Tensor; 2], by_column: bool| {
                weights(a, b, [&at(0), &at(1)], heads.scale, by_column)
            };
            let [_, ds] = weigh([&q, &k], [&dout, &v], false);
            let dq = times(&ds, &k);
            drop(ds);
            // The same transposed.
            let [p, ds] = weigh([&k, &q], [&v, &dout], true);
            for (to, from) in of_sample.iter_mut().zip([dq, times(&ds, &q), times(&p, &dout)]) {
                block_into(to, 0, head * d, &from.reshape(&[1, n, d]));
            }
        }
        let results = [grads.q.as_mut().expect("the result was read"), &mut grads.k, &mut grads.v];
        results.into_iter().zip(&of_sample).for_each(|(to, from)| rows_into(to, sample, &cast(from, dtype)));
    }
}

/// `lse` and `Σ out·dout` of every query, `[2, batch, heads, queries]`, filled up to a multiple of [`STATS_STEP`].
fn statistics(output: &OutputGrad, lse: &Tensor, part: &Part, heads: Heads) -> Tensor {
    let (batch, n, dtype) = (lse.dim(0), small(part.q.dim(1)), output.out.dtype());
    let mut s = Sequence::new(&[[part.q, part.k, part.v].map(Tensor::clone)], heads, false);
    s.stats = n.next_multiple_of(STATS_STEP);
    let (out, dout) = (output.out.address(), output.dout.address());
    s.part[0] = PartArg { queries: n, out, dout, ..s.part[0] };
    let mut stats = Tensor::scratch(&lse.device(), &[2, batch, heads.count, s.stats as usize]);
    let grid = Grid::of([(s.stats as usize).div_ceil(32), heads.count, batch], 256);
    let args = [s.arg(dtype), lse.arg(), stats.arg_mut(), 1.0f32.into()];
    lse.gpu().launch("attention_backward", &format!("attention_backward_statistics_{}", suffix(dtype)), grid, args);
    stats
}

/// `a·bᵀ`.
fn along([a, b]: [&Tensor; 2]) -> Tensor {
    linear::forward(a, Layer { weight: b, bias: None }, Then::Nothing)
}

/// `a·b`.
fn times(a: &Tensor, b: &Tensor) -> Tensor {
    let mut product = Tensor::scratch(&a.device(), &[a.dim(0), b.dim(1)]);
    linear::backward(a, b, None, None, None, InputGrad::Overwrite(&mut product));
    product
}

/// The probabilities `p = exp(scale·a₀a₁ᵀ − lse)` and the gradients `scale·p·(b₀b₁ᵀ − delta)` to what they are made of; queries
/// are rows, or columns.
fn weights(a: [&Tensor; 2], b: [&Tensor; 2], stats: [&Tensor; 2], scale: f32, by_column: bool) -> [Tensor; 2] {
    let (mut p, mut ds) = (along(a), along(b));
    let (rows, columns) = (p.dim(0), p.dim(1));
    let grid = Grid::of([columns.div_ceil(256), rows.min(1024), 1], 256);
    let sizes = [small(rows).into(), small(columns).into(), scale.into(), u32::from(by_column).into()];
    let args = [p.arg_mut(), ds.arg_mut(), stats[0].arg(), stats[1].arg()].into_iter().chain(sizes);
    a[0].gpu().launch("attention_backward", "attention_backward_weights", grid, args);
    [p, ds]
}
