//! One kind of token inside a block: its modulation, its projections into attention and out of it, its MLP.

use super::LoraScope;
use crate::device::{Tensor, Weight};
use crate::models::Linear;
use crate::models::lora::{Adapter, LoraLinear};
use crate::ops::heads::{self, Part};
use crate::ops::linear::InputGrad;
use crate::ops::{activation, adaln, gate};

/// Which chunks a stream's modulation has, in the order of diffusers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Modulation {
    /// shift, scale, gate of the attention; shift, scale, gate of the MLP.
    Full,
    /// As [`Modulation::Full`], then shift, scale, gate of the second attention.
    Dual,
    /// scale, shift: the text tokens of the last block, which nothing reads afterwards.
    NormOnly,
}

/// Projections to queries, keys and values, and from the attention's result.
pub(super) struct Projections {
    qkv: [LoraLinear; 3],
    /// RMS norms of queries and keys.
    norms: [Option<Weight>; 2],
    out: Option<LoraLinear>,
}

pub(super) struct Stream {
    modulation: Linear,
    chunks: Modulation,
    pub attention: Projections,
    mlp: Option<[LoraLinear; 2]>,
}

/// What one attention and MLP of a stream keep for the backward.
pub(super) struct StreamSaved {
    /// The block's input.
    pub x: Tensor,
    /// The modulated input of the projections; kept where one of them is trained.
    normed: Option<Tensor>,
    /// Queries, keys and values as projected, `[b, n, d]`.
    qkv: [Tensor; 3],
    /// The attention's result, `[b, n, d]`.
    pub attended: Option<Tensor>,
    /// The input of the MLP's norm.
    middle: Option<Tensor>,
    mlp: Option<MlpSaved>,
}

struct MlpSaved {
    /// The modulated input; kept where the first layer is trained.
    normed: Option<Tensor>,
    /// Before the GELU.
    hidden: Tensor,
    /// After the GELU; kept where the second layer is trained.
    activated: Option<Tensor>,
}

impl StreamSaved {
    /// The attention's result.
    pub(super) fn attended(&self) -> &Tensor {
        self.attended.as_ref().expect("set by the forward")
    }

    /// Keeps projections and attention results; norms and the MLP are computed again.
    pub(super) fn thin(&mut self) {
        self.normed = None;
        self.mlp = None;
    }
}

impl Projections {
    /// `names`: queries, keys, values; norms of queries and keys, output.
    pub(super) fn load(
        scope: &LoraScope,
        d: usize,
        [qkv, [norm_q, norm_k, out]]: [[&str; 3]; 2],
        norm: Option<usize>,
        has_out: bool,
    ) -> Self {
        Self {
            qkv: qkv.map(|name| scope.linear(name, d, d)),
            norms: [norm_q, norm_k].map(|name| norm.map(|width| scope.scope.sub(name).tensor("weight", &[width]))),
            out: has_out.then(|| scope.linear(out, d, d)),
        }
    }

    fn norm(&self, operand: usize) -> Option<&Weight> {
        self.norms.get(operand).and_then(Option::as_ref)
    }

    fn trains_inputs(&self, adapter: Option<&Adapter>) -> bool {
        self.qkv.iter().any(|l| l.is_adapted(adapter))
    }

    /// Writes this stream's tokens into the joint operands.
    pub(super) fn fill(&self, operands: &mut [Tensor; 3], saved: &StreamSaved, part: Part) {
        for (i, (operand, x)) in operands.iter_mut().zip(&saved.qkv).enumerate() {
            heads::split_into(operand, x, part, self.norm(i));
        }
    }

    /// `x += gate·out(attended)`, if there is an output.
    pub(super) fn add_output(
        &self,
        x: &mut Tensor,
        saved: &StreamSaved,
        modulation: &Tensor,
        gate: usize,
        adapter: Option<&Adapter>,
    ) {
        if let Some(out) = &self.out {
            gate::forward(x, &out.forward(saved.attended(), adapter), modulation, gate);
        }
    }

    /// The gradient to the attention's result, from that to the residual stream.
    pub(super) fn output_backward(
        &self,
        dx: &Tensor,
        saved: &StreamSaved,
        modulation: &Tensor,
        gate: usize,
        adapter: &Adapter,
        grads: &mut Adapter,
    ) -> Tensor {
        let out = self.out.as_ref().expect("a stream whose result is read has an output");
        let dy = gate::backward(dx, modulation, gate);
        let mut d = Tensor::scratch(dy.shape());
        out.backward(&dy, Some(saved.attended()), adapter, grads, InputGrad::Overwrite(&mut d));
        d
    }

    /// The gradient to the modulated input, from those to the joint operands.
    pub(super) fn backward(
        &self,
        d: [Tensor; 3],
        part: Part,
        saved: &StreamSaved,
        adapter: &Adapter,
        grads: &mut Adapter,
    ) -> Tensor {
        let mut dnormed = Tensor::scratch(saved.x.shape());
        for (i, d) in d.iter().enumerate() {
            let d = heads::backward(d, part, &saved.qkv[i], self.norm(i));
            let into = if i == 0 { InputGrad::Overwrite(&mut dnormed) } else { InputGrad::Add(&mut dnormed) };
            self.qkv[i].backward(&d, saved.normed.as_ref(), adapter, grads, into);
        }
        dnormed
    }
}

impl Stream {
    pub(super) fn load(
        scope: &LoraScope,
        d: usize,
        modulation: &str,
        chunks: Modulation,
        attention: Projections,
        mlp: Option<&str>,
    ) -> Self {
        let count = match chunks {
            Modulation::Full => 6,
            Modulation::Dual => 9,
            Modulation::NormOnly => 2,
        };
        Self {
            modulation: Linear::load(&scope.scope.sub(modulation), d, count * d, true),
            chunks,
            attention,
            mlp: mlp.map(|name| {
                let scope = scope.sub(name);
                [scope.linear("net.0.proj", d, 4 * d), scope.linear("net.2", 4 * d, d)]
            }),
        }
    }

    /// All chunks for a batch, `[b, chunks·d]`; `embedding` `[b, d]`.
    pub(super) fn modulation(&self, embedding: &Tensor) -> Tensor {
        self.modulation.forward(embedding)
    }

    /// The chunks for shift and scale of the attention whose chunks begin at `first`.
    pub(super) fn shift_scale(&self, first: usize) -> (usize, usize) {
        if self.chunks == Modulation::NormOnly { (1, 0) } else { (first, first + 1) }
    }

    /// The chunk for the gate of the joint attention.
    pub(super) fn gate(&self) -> usize {
        2
    }

    fn norm(&self, x: &Tensor, modulation: &Tensor, first: usize) -> Tensor {
        let (shift, scale) = self.shift_scale(first);
        adaln::forward(x, modulation, shift, scale)
    }

    /// Norm, modulation and projections before an attention whose chunks begin at `first`.
    pub(super) fn project(
        &self,
        projections: &Projections,
        x: Tensor,
        modulation: &Tensor,
        first: usize,
        adapter: Option<&Adapter>,
    ) -> StreamSaved {
        let normed = self.norm(&x, modulation, first);
        let qkv = projections.qkv.each_ref().map(|l| l.forward(&normed, adapter));
        let normed = projections.trains_inputs(adapter).then_some(normed);
        StreamSaved { x, normed, qkv, attended: None, middle: None, mlp: None }
    }

    /// Computes the modulated input of the projections again.
    pub(super) fn restore_normed(
        &self,
        projections: &Projections,
        saved: &mut StreamSaved,
        modulation: &Tensor,
        first: usize,
        adapter: &Adapter,
    ) {
        if saved.normed.is_none() && projections.trains_inputs(Some(adapter)) {
            saved.normed = Some(self.norm(&saved.x, modulation, first));
        }
    }

    /// Computes again what [`StreamSaved::thin`] dropped.
    pub(super) fn restore(
        &self,
        projections: &Projections,
        saved: &mut StreamSaved,
        modulation: &Tensor,
        first: usize,
        adapter: &Adapter,
    ) {
        self.restore_normed(projections, saved, modulation, first, adapter);
        if let (None, Some(middle)) = (&saved.mlp, &saved.middle) {
            saved.mlp = self.mlp_forward(middle, modulation, Some(adapter)).map(|(saved, _)| saved);
        }
    }

    /// The MLP's saved state and its activated hidden layer.
    fn mlp_forward(&self, x: &Tensor, modulation: &Tensor, adapter: Option<&Adapter>) -> Option<(MlpSaved, Tensor)> {
        let [up, down] = self.mlp.as_ref()?;
        let normed = adaln::forward(x, modulation, 3, 4);
        let hidden = up.forward(&normed, adapter);
        let mut activated = hidden.clone();
        activation::gelu_tanh(&mut activated);
        let saved = MlpSaved {
            normed: up.is_adapted(adapter).then_some(normed),
            hidden,
            activated: down.is_adapted(adapter).then(|| activated.clone()),
        };
        Some((saved, activated))
    }

    /// `x += gate·mlp(norm(x))`, if there is an MLP.
    pub(super) fn feed_forward(
        &self,
        x: &mut Tensor,
        saved: &mut StreamSaved,
        modulation: &Tensor,
        adapter: Option<&Adapter>,
    ) {
        let Some((mlp, activated)) = self.mlp_forward(x, modulation, adapter) else { return };
        let [_, down] = self.mlp.as_ref().expect("there is one");
        saved.middle = Some(x.clone());
        saved.mlp = Some(mlp);
        gate::forward(x, &down.forward(&activated, adapter), modulation, 5);
    }

    /// The gradient to the MLP's input, from that to its output.
    pub(super) fn feed_forward_backward(
        &self,
        mut dx: Tensor,
        saved: &StreamSaved,
        modulation: &Tensor,
        adapter: &Adapter,
        grads: &mut Adapter,
    ) -> Tensor {
        let ([up, down], Some(mlp), Some(middle)) =
            (self.mlp.as_ref().expect("its result is read"), &saved.mlp, &saved.middle)
        else {
            unreachable!("saved by the forward or restored")
        };
        let dy = gate::backward(&dx, modulation, 5);
        let mut dhidden = Tensor::scratch(mlp.hidden.shape());
        down.backward(&dy, mlp.activated.as_ref(), adapter, grads, InputGrad::Overwrite(&mut dhidden));
        activation::gelu_tanh_backward(&mut dhidden, &mlp.hidden);
        let mut dnormed = Tensor::scratch(middle.shape());
        up.backward(&dhidden, mlp.normed.as_ref(), adapter, grads, InputGrad::Overwrite(&mut dnormed));
        adaln::backward(&mut dx, &dnormed, middle, modulation, 4);
        dx
    }
}
