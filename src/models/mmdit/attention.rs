//! The streams' sides of attentions: norm and projections into them, the projections out of them; those of a block in
//! lock-step.

use super::modulation::Modulated;
use super::{LoraScope, keep};
use crate::device::{DType, Tensor};
use crate::models::lora::{self, Adapters, Backward, Call, LoraLinear, Trained};
use crate::ops::adaln::{self, Chunk};
use crate::ops::attention::{OutputGrad, Part, PartGrad};
use crate::ops::linear::{InputGrad, Output, Then};
use crate::ops::rms_norm;

/// Added to the mean square of queries and keys, as in diffusers' `Attention(qk_norm="rms_norm")`.
const QK_EPS: f32 = 1e-6;

/// Projections to queries, keys and values, and from the attention's result.
pub(super) struct Projections {
    qkv: [LoraLinear; 3],
    /// RMS norms of queries and keys, over the width of a head.
    norms: Option<[Tensor; 2]>,
    out: Option<LoraLinear>,
}

/// A side, the residual stream that it reads, `[b, n, d]`, and what modulates it.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub side: &'a Projections,
    pub x: &'a Tensor,
    pub modulated: Modulated<'a>,
}

/// Queries, keys and values as the attention takes them.
pub(super) struct Operands([Tensor; 3]);

impl Operands {
    pub(super) fn part(&self) -> Part<'_> {
        let [q, k, v] = &self.0;
        Part { q, k, v }
    }
}

/// What the backward needs of one side.
pub(super) struct Saved {
    /// The modulated input of the projections, where one of them is trained; computed again if it was dropped.
    normed: Option<Tensor>,
    /// Queries, keys and values as projected, `[b, n, d]`.
    projected: [Tensor; 3],
    /// `1/rms` of the heads of queries and keys, where they are normalised.
    inverse_rms: [Option<Tensor>; 2],
    /// The attention's result, `[b, n, d]`.
    pub attended: Tensor,
}

/// What [`forward`] keeps of a side until the attention's result is there.
pub(super) struct Pending {
    normed: Option<Tensor>,
    projected: [Tensor; 3],
    inverse_rms: [Option<Tensor>; 2],
    rows: usize,
}

impl Pending {
    pub(super) fn finish(self, attended: &Tensor) -> Saved {
        let Self { normed, projected, inverse_rms, rows } = self;
        Saved { normed, projected, inverse_rms, attended: keep(attended, rows) }
    }
}

impl Saved {
    /// Drops what is computed again with `selective` checkpointing.
    pub(super) fn thin(&mut self) {
        self.normed = None;
    }

    /// What the attention's backward starts from.
    pub(super) fn output_grad<'a>(&'a self, dout: &'a Tensor) -> OutputGrad<'a> {
        OutputGrad { out: &self.attended, dout }
    }
}

impl Projections {
    /// `names`: queries, keys, values; norms of queries and keys, output. `head` is the width of a head where queries and
    /// keys are normalised.
    pub(super) fn load(
        scope: &LoraScope,
        d: usize,
        [qkv, [norm_q, norm_k, out]]: [[&str; 3]; 2],
        head: Option<usize>,
        has_out: bool,
    ) -> Self {
        Self {
            qkv: qkv.map(|name| scope.linear(name, d, d)),
            norms: head.map(|width| [norm_q, norm_k].map(|name| scope.scope.sub(name).tensor("weight", &[width]))),
            out: has_out.then(|| scope.linear(out, d, d)),
        }
    }

    /// The same with weights in e4m3.
    pub(super) fn quantised(&self) -> Self {
        Self {
            qkv: self.qkv.each_ref().map(LoraLinear::quantised),
            norms: self.norms.clone(),
            out: self.out.as_ref().map(LoraLinear::quantised),
        }
    }

    /// The type that the weights are multiplied in.
    pub(super) fn dtype(&self) -> DType {
        self.qkv[0].base.weight.multiplied_in()
    }

    fn covered(&self, adapters: &Adapters) -> bool {
        self.qkv.iter().any(|l| adapters.cover(l.index))
    }

    /// The norm of queries (0) or keys (1); values (2) have none.
    fn norm(&self, i: usize) -> Option<&Tensor> {
        self.norms.as_ref()?.get(i)
    }

    /// The operands of a saved forward.
    pub(super) fn operands(&self, saved: &Saved) -> Operands {
        let again = |i: usize| {
            let inverse = saved.inverse_rms.get(i).and_then(Option::as_ref);
            match self.norm(i).zip(inverse) {
                Some((weight, inverse)) => rms_norm::forward_again(&saved.projected[i], weight, inverse),
                None => saved.projected[i].clone(),
            }
        };
        Operands(std::array::from_fn(again))
    }
}

impl<'a> Input<'a> {
    /// Where the result of the attention goes, and what it is gated with.
    fn exit(&self) -> Option<(&'a LoraLinear, Chunk<'a>)> {
        self.side.out.as_ref().zip(self.modulated.gate)
    }
}

/// Queries, keys and values of each side, and what is kept of the first `rows` samples.
pub(super) fn forward(inputs: &[Input], adapters: &Adapters, rows: usize) -> Vec<(Operands, Pending)> {
    let normed: Vec<Tensor> =
        inputs.iter().map(|i| adaln::forward(i.x, i.modulated.shift, i.modulated.scale)).collect();
    let calls = inputs.iter().zip(&normed).flat_map(|(Input { side, .. }, x)| {
        side.qkv.iter().enumerate().map(move |(i, layer)| {
            let normalise = |weight| Then::Normalise { weight, eps: QK_EPS };
            Call { layer, x, then: side.norm(i).map_or(Then::Nothing, normalise), kept: rows }
        })
    });
    let mut outputs = lora::forward_group(&calls.collect::<Vec<_>>(), adapters).into_iter();
    let mut next = || {
        let Output { y, hidden, inverse_rms } = outputs.next().expect("three per side");
        let projected = if inverse_rms.is_some() { hidden } else { keep(&y, rows) };
        (y, projected, inverse_rms)
    };
    let of_side = |(input, normed): (&Input, Tensor)| {
        let [(q, of_q, inverse_q), (k, of_k, inverse_k), (v, of_v, _)] = [next(), next(), next()];
        let normed = (rows > 0 && input.side.covered(adapters)).then(|| keep(&normed, rows));
        let (projected, inverse_rms) = ([of_q, of_k, of_v], [inverse_q, inverse_k]);
        (Operands([q, k, v]), Pending { normed, projected, inverse_rms, rows })
    };
    inputs.iter().zip(normed).map(of_side).collect()
}

/// `x + gate·out(attended)` of each side; `x` itself where the stream's result is not read.
pub(super) fn output<const N: usize>(sides: [(Input, &Tensor); N], adapters: &Adapters) -> [Tensor; N] {
    let calls = sides.iter().filter_map(|(input, attended)| {
        let (layer, gate) = input.exit()?;
        Some(Call { layer, x: attended, then: Then::AddGated { residual: input.x, gate }, kept: 0 })
    });
    let mut outputs = lora::forward_group(&calls.collect::<Vec<_>>(), adapters).into_iter();
    sides.map(|(input, _)| match input.exit() {
        Some(_) => outputs.next().expect("one per call").y,
        None => input.x.clone(),
    })
}

/// From the gates of each side times the gradients to the residual streams behind it to the gradients to the attentions'
/// results.
pub(super) fn output_backward(sides: Vec<(Input, &Saved, Tensor)>, trained: &mut Trained) -> Vec<Tensor> {
    let mut d: Vec<Tensor> = sides.iter().map(|(.., dy)| dy.scratch_like(dy.shape())).collect();
    let calls = sides.iter().zip(&mut d).map(|((Input { side, .. }, saved, dy), d)| Backward {
        x: Some(&saved.attended),
        layers: vec![(side.out.as_ref().expect("a stream whose result is read has an output"), dy)],
        dx: InputGrad::Overwrite(d),
    });
    lora::backward_group(calls.collect(), trained);
    d
}

/// From the gradients to the operands of each side to those to its modulated input, unless those are not wanted: then only
/// the factors get theirs, and the result is empty.
pub(super) fn backward(
    inputs: &[Input],
    saved: &[Saved],
    d: Vec<PartGrad>,
    trained: &mut Trained,
    want_inputs: bool,
) -> Vec<Tensor> {
    let normed_again = |(Input { side, x, modulated }, saved): (&Input, &Saved)| {
        let is_needed = saved.normed.is_none() && side.qkv.iter().any(|l| trained.covers(l.index));
        is_needed.then(|| adaln::forward(x, modulated.shift, modulated.scale))
    };
    let again: Vec<Option<Tensor>> = inputs.iter().zip(saved).map(normed_again).collect();
    let mut d: Vec<[Option<Tensor>; 3]> = d.into_iter().map(|d| [d.q, Some(d.k), Some(d.v)]).collect();
    for ((input, saved), d) in inputs.iter().zip(saved).zip(&mut d) {
        for (i, inverse) in saved.inverse_rms.iter().enumerate() {
            if let (Some(d), Some(weight), Some(inverse)) = (&mut d[i], input.side.norm(i), inverse) {
                rms_norm::backward(d, &saved.projected[i], weight, inverse);
            }
        }
    }
    let mut dnormed: Vec<Tensor> =
        if want_inputs { inputs.iter().map(|i| i.x.scratch_like(i.x.shape())).collect() } else { Vec::new() };
    let mut into = dnormed.iter_mut();
    let calls = inputs.iter().zip(saved).zip(&again).zip(&d).map(|(((input, saved), again), d)| Backward {
        x: saved.normed.as_ref().or(again.as_ref()),
        layers: input.side.qkv.iter().zip(d).filter_map(|(layer, d)| Some((layer, d.as_ref()?))).collect(),
        dx: into.next().map_or(InputGrad::Skip, InputGrad::Overwrite),
    });
    lora::backward_group(calls.collect(), trained);
    dnormed
}
