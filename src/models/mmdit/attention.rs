//! One stream's side of an attention: norm and projections into it, the projection out of it.

use super::modulation::Modulated;
use super::{LoraScope, keep};
use crate::device::{DType, Tensor};
use crate::models::lora::{Adapters, LoraLinear, Trained};
use crate::ops::attention::{OutputGrad, Part, PartGrad};
use crate::ops::linear::{InputGrad, Then};
use crate::ops::{adaln, rms_norm};

/// Added to the mean square of queries and keys, as in diffusers' `Attention(qk_norm="rms_norm")`.
const QK_EPS: f32 = 1e-6;

/// Projections to queries, keys and values, and from the attention's result.
pub(super) struct Projections {
    qkv: [LoraLinear; 3],
    /// RMS norms of queries and keys, over the width of a head.
    norms: Option<[Tensor; 2]>,
    out: Option<LoraLinear>,
}

/// Queries, keys and values as the attention takes them.
pub(super) struct Operands([Tensor; 3]);

impl Operands {
    pub(super) fn part(&self) -> Part<'_> {
        let [q, k, v] = &self.0;
        Part { q, k, v }
    }
}

/// What the backward needs of one stream's side.
pub(super) struct Saved {
    /// The modulated input of the projections, where one of them is trained; computed again if it was dropped.
    normed: Option<Tensor>,
    /// Queries, keys and values as projected, `[b, n, d]`.
    projected: [Tensor; 3],
    /// The attention's result, `[b, n, d]`.
    pub attended: Tensor,
}

/// What [`Projections::forward`] keeps until the attention's result is there.
pub(super) struct Pending {
    normed: Option<Tensor>,
    projected: [Tensor; 3],
    rows: usize,
}

impl Pending {
    pub(super) fn finish(self, attended: &Tensor) -> Saved {
        Saved { normed: self.normed, projected: self.projected, attended: keep(attended, self.rows) }
    }
}

impl Saved {
    /// Drops what is computed again with `selective` checkpointing.
    pub(super) fn thin(&mut self) {
        self.normed = None;
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

    /// The type of the weights.
    pub(super) fn dtype(&self) -> DType {
        self.qkv[0].base.weight.dtype()
    }

    fn covered(&self, adapters: &Adapters) -> bool {
        self.qkv.iter().any(|l| adapters.cover(l.index))
    }

    /// Queries, keys and values of `x` `[b, n, d]`, and what is kept of the first `rows` samples.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        modulated: Modulated,
        adapters: &Adapters,
        rows: usize,
    ) -> (Operands, Pending) {
        let normed = adaln::forward(x, modulated.shift, modulated.scale);
        let operands = LoraLinear::forward_each(self.qkv.each_ref(), &normed, adapters);
        let normed = (rows > 0 && self.covered(adapters)).then(|| keep(&normed, rows));
        let projected = operands.each_ref().map(|t| keep(t, rows));
        (self.normalised(operands), Pending { normed, projected, rows })
    }

    /// Queries and keys normalised; in place where nothing else holds them.
    fn normalised(&self, operands: [Tensor; 3]) -> Operands {
        let Some(norms) = &self.norms else { return Operands(operands) };
        let [q, k, v] = operands;
        let norm = |x: Tensor, weight: &Tensor| match x.unshared() {
            Ok(mut own) => {
                rms_norm::forward_in_place(&mut own, weight, QK_EPS);
                own
            }
            Err(shared) => rms_norm::forward(&shared, weight, QK_EPS),
        };
        Operands([norm(q, &norms[0]), norm(k, &norms[1]), v])
    }

    /// The operands of a saved forward.
    pub(super) fn operands(&self, saved: &Saved) -> Operands {
        self.normalised(saved.projected.clone())
    }

    /// `residual + gate·out(attended)`; `residual` itself where the stream's result is not read.
    pub(super) fn output(
        &self,
        residual: &Tensor,
        attended: &Tensor,
        modulated: Modulated,
        adapters: &Adapters,
    ) -> Tensor {
        match (&self.out, modulated.gate) {
            (Some(out), Some(gate)) => out.forward(attended, adapters, Then::AddGated { residual, gate }),
            _ => residual.clone(),
        }
    }

    /// The gradient to the attention's result, from the gate times that to the residual stream.
    pub(super) fn output_backward(&self, gated: &Tensor, saved: &Saved, trained: &mut Trained) -> Tensor {
        let out = self.out.as_ref().expect("a stream whose result is read has an output");
        let mut d = gated.scratch_like(gated.shape());
        out.backward(gated, Some(&saved.attended), trained, InputGrad::Overwrite(&mut d));
        d
    }

    /// From the gradients to the operands to that of `x`, which is added to `dx`; without one only the factors get theirs.
    pub(super) fn backward(
        &self,
        d: PartGrad,
        saved: &Saved,
        x: &Tensor,
        modulated: Modulated,
        trained: &mut Trained,
        dx: Option<&mut Tensor>,
    ) {
        let again;
        let normed = match &saved.normed {
            Some(normed) => Some(normed),
            None if self.qkv.iter().any(|l| trained.covers(l.index)) => {
                again = adaln::forward(x, modulated.shift, modulated.scale);
                Some(&again)
            }
            None => None,
        };
        let mut dnormed = dx.is_some().then(|| x.scratch_like(x.shape()));
        let mut first = true;
        for (i, d) in [d.q, Some(d.k), Some(d.v)].into_iter().enumerate() {
            let Some(mut d) = d else { continue };
            if let Some(weight) = self.norms.as_ref().and_then(|n| n.get(i)) {
                rms_norm::backward(&mut d, &saved.projected[i], weight, QK_EPS);
            }
            let into = match &mut dnormed {
                None => InputGrad::Skip,
                Some(dnormed) if first => InputGrad::Overwrite(dnormed),
                Some(dnormed) => InputGrad::Add(dnormed),
            };
            self.qkv[i].backward(&d, normed, trained, into);
            first = false;
        }
        if let (Some(dx), Some(dnormed)) = (dx, dnormed) {
            adaln::backward(dx, &dnormed, x, modulated.scale);
        }
    }
}

impl Saved {
    /// What the attention's backward starts from.
    pub(super) fn output_grad<'a>(&'a self, dout: &'a Tensor) -> OutputGrad<'a> {
        OutputGrad { out: &self.attended, dout }
    }
}
