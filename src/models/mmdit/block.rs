//! One joint block: image and text tokens attend to each other, each with its own weights (Esser et al. 2024,
//! "Scaling rectified flow transformers", figure 2), and in SD3.5 Medium the image tokens once more to themselves.

use std::iter;
use std::ops::Range;

use super::attention::{self as side, Projections};
use super::mlp::{self, Mlp};
use super::modulation::{Kind, Modulation, Modulator};
use super::{Config, LoraScope, keep};
use crate::device::{DType, Tensor};
use crate::models::lora::{Adapters, Trained};
use crate::models::network::Checkpointing;
use crate::ops::attention::{self, Attention, Heads, Mask, Part};
use crate::ops::{adaln, gate};

/// One kind of token.
struct Stream {
    modulator: Modulator,
    attention: Projections,
    mlp: Option<Mlp>,
}

pub(super) struct Block {
    image: Stream,
    context: Stream,
    /// The second attention of the image tokens.
    dual: Option<Projections>,
    heads: Heads,
}

/// What a block keeps for its backward. With activation checkpointing some of it is computed again.
pub(super) struct Saved {
    x: Tensor,
    context: Tensor,
    /// Of the image and of the text tokens.
    modulation: [Modulation; 2],
    rest: Option<Rest>,
}

/// What the backward needs of the middle of a block; everything in the order of [`Block::sides`] and [`Block::mlps`].
struct Rest {
    sides: Vec<side::Saved>,
    /// Softmax denominators of the joint attention, and of the second.
    lse: Vec<Tensor>,
    /// The MLPs' inputs, and what they kept.
    mlps: Vec<(Tensor, Option<mlp::Saved>)>,
}

/// The stream that a side belongs to: those of the joint attention are one of each, the second attention is the image's.
const STREAM: [usize; 3] = [0, 1, 0];

impl Block {
    pub(super) fn load(scope: &LoraScope, config: &Config, index: usize) -> Self {
        let last = index + 1 == config.num_layers;
        let dual = config.dual_attention_layers.contains(&index);
        let d = config.hidden();
        let head = config.qk_norm.is_some().then_some(config.attention_head_dim);
        let joint = scope.sub("attn");
        let image = [["to_q", "to_k", "to_v"], ["norm_q", "norm_k", "to_out.0"]];
        let context = [["add_q_proj", "add_k_proj", "add_v_proj"], ["norm_added_q", "norm_added_k", "to_add_out"]];
        let (image_kind, context_kind) =
            (if dual { Kind::Dual } else { Kind::Full }, if last { Kind::NormOnly } else { Kind::Full });
        let image_attention = Projections::load(&joint, d, image, head, true);
        let heads = Heads {
            count: config.num_attention_heads,
            scale: 1.0 / (config.attention_head_dim as f32).sqrt(),
            compute: image_attention.dtype(),
        };
        Self {
            image: Stream {
                modulator: Modulator::load(scope, "norm1.linear", d, image_kind),
                attention: image_attention,
                mlp: Some(Mlp::load(&scope.sub("ff"), d)),
            },
            context: Stream {
                modulator: Modulator::load(scope, "norm1_context.linear", d, context_kind),
                attention: Projections::load(&joint, d, context, head, !last),
                mlp: (!last).then(|| Mlp::load(&scope.sub("ff_context"), d)),
            },
            dual: dual.then(|| Projections::load(&scope.sub("attn2"), d, image, head, true)),
            heads,
        }
    }

    /// The same with the weights of attention and MLPs in e4m3. What makes the modulation of one vector a sample is not worth it.
    pub(super) fn quantised(&self) -> Self {
        let stream = |s: &Stream| Stream {
            modulator: s.modulator.clone(),
            attention: s.attention.quantised(),
            mlp: s.mlp.as_ref().map(Mlp::quantised),
        };
        Self {
            image: stream(&self.image),
            context: stream(&self.context),
            dual: self.dual.as_ref().map(Projections::quantised),
            heads: self.heads,
        }
    }

    /// The type that its weights are multiplied in.
    pub(super) fn dtype(&self) -> DType {
        self.heads.compute
    }

    /// The sides of the attentions: image, text and, where there is a second attention, the image again.
    fn sides<'a>(
        &'a self,
        x: &'a Tensor,
        context: &'a Tensor,
        [image, text]: &'a [Modulation; 2],
    ) -> Vec<side::Input<'a>> {
        let mut sides = vec![
            side::Input { side: &self.image.attention, x, modulated: image.attention() },
            side::Input { side: &self.context.attention, x: context, modulated: text.attention() },
        ];
        sides.extend(self.dual.as_ref().map(|dual| side::Input { side: dual, x, modulated: image.dual() }));
        sides
    }

    /// The MLPs, whose inputs are `middle`: that of the image and, but in the last block, that of the text.
    fn mlps<'a>(
        &'a self,
        middle: impl IntoIterator<Item = &'a Tensor>,
        modulation: &'a [Modulation; 2],
    ) -> Vec<mlp::Input<'a>> {
        let mlps = [&self.image, &self.context].into_iter().filter_map(|stream| stream.mlp.as_ref());
        let inputs = mlps.zip(middle).zip(modulation);
        inputs.map(|((mlp, x), modulation)| mlp::Input { mlp, x, modulated: modulation.mlp() }).collect()
    }

    fn attend(&self, operands: &[side::Operands]) -> Attention {
        let parts: Vec<Part> = operands.iter().map(side::Operands::part).collect();
        attention::forward(&parts, self.heads, Mask::default())
    }

    /// Image tokens `x` `[b, n, d]` and text tokens `context` `[b, l, d]` through the block; `embedding` `[b, d]` is
    /// `silu(time + text)`. Keeps, as `keep` says, what the backward needs of the first `rows` samples. The last block's
    /// text tokens come out unchanged: nothing reads them.
    pub(super) fn forward(
        &self,
        x: Tensor,
        context: Tensor,
        embedding: &Tensor,
        adapters: &Adapters,
        (rows, policy): (usize, Checkpointing),
    ) -> (Tensor, Tensor, Option<Saved>) {
        let modulation = [&self.image, &self.context].map(|stream| stream.modulator.forward(embedding, adapters));
        let inner = if policy == Checkpointing::Block { 0 } else { rows };
        let (y, c, rest) = self.run(&x, &context, &modulation, adapters, inner);
        let saved = (rows > 0).then(|| Saved {
            x: keep(&x, rows),
            context: keep(&context, rows),
            modulation: modulation.each_ref().map(|m| m.keep(rows)),
            rest: rest.map(|r| if policy == Checkpointing::Selective { r.thin() } else { r }),
        });
        (y, c, saved)
    }

    fn run(
        &self,
        x: &Tensor,
        context: &Tensor,
        modulation: &[Modulation; 2],
        adapters: &Adapters,
        rows: usize,
    ) -> (Tensor, Tensor, Option<Rest>) {
        let sides = self.sides(x, context, modulation);
        let (operands, pending): (Vec<_>, Vec<_>) = side::forward(&sides, adapters, rows).into_iter().unzip();
        let (joint, second) = operands.split_at(2);
        let mut done = vec![self.attend(joint)];
        done.extend(self.dual.is_some().then(|| self.attend(second)));
        drop(operands);

        let attended: Vec<&Tensor> = done.iter().flat_map(|a| &a.out).collect();
        let [mut y, c] = side::output([(sides[0], attended[0]), (sides[1], attended[1])], adapters);
        if let Some(&dual) = sides.get(2) {
            [y] = side::output([(side::Input { x: &y, ..dual }, attended[2])], adapters);
        }

        let middle = [y, c];
        let (mut ends, kept): (Vec<_>, Vec<_>) =
            mlp::forward(&self.mlps(&middle, modulation), adapters, rows).into_iter().unzip();
        let rest = (rows > 0).then(|| Rest {
            sides: pending.into_iter().zip(attended).map(|(side, attended)| side.finish(attended)).collect(),
            lse: done.iter().map(|a| keep(&a.lse, rows)).collect(),
            mlps: middle.iter().zip(kept).map(|(x, kept)| (keep(x, rows), kept)).collect(),
        });
        // The text tokens of the last block have no MLP.
        let [_, c] = middle;
        let c = if ends.len() == 2 { ends.pop().expect("two") } else { c };
        (ends.pop().expect("that of the image"), c, rest)
    }

    /// What the forward kept, with what was dropped computed again: the same operations in the same order, so the same
    /// bits.
    fn restore(&self, saved: &mut Saved, adapters: &Adapters) -> Rest {
        let Saved { x, context, modulation, rest } = saved;
        let Some(mut rest) = rest.take() else {
            let rows = x.dim(0);
            return self.run(x, context, modulation, adapters, rows).2.expect("all rows are kept");
        };
        if rest.mlps.iter().any(|(_, kept)| kept.is_none()) {
            let again = mlp::restore(&self.mlps(rest.mlps.iter().map(|(x, _)| x), modulation), adapters);
            rest.mlps.iter_mut().zip(again).for_each(|((_, kept), again)| *kept = Some(again));
        }
        rest
    }

    /// From the gradients to the outputs (`dcontext` `None`: nothing read them) to those to the inputs, unless
    /// `want_inputs` is false: then only the trained factors get theirs.
    pub(super) fn backward(
        &self,
        dx: Tensor,
        dcontext: Option<Tensor>,
        mut saved: Saved,
        trained: &mut Trained,
        want_inputs: bool,
    ) -> Option<(Tensor, Tensor)> {
        let rows = super::trained_rows(&saved.x, trained);
        let rest = self.restore(&mut saved, &Adapters { bank: Some(trained.bank), rows: &rows });
        let Saved { x, context, modulation, .. } = saved;
        let sides = self.sides(&x, &context, &modulation);

        // Of the streams whose results were read.
        let mut d: Vec<Tensor> = iter::once(dx).chain(dcontext).collect();
        let mlps = self.mlps(rest.mlps.iter().map(|(x, _)| x), &modulation);
        let kept = rest.mlps.iter().map(|(_, kept)| kept.as_ref().expect("saved by the forward or restored"));
        let read: Vec<usize> = (0..sides.len()).filter(|s| STREAM[*s] < d.len()).collect();
        let gate = |s: &usize| sides[*s].modulated.gate.expect("a stream whose result is read has a gate");
        let gates: Vec<_> = read.iter().map(gate).collect();
        let (joint, second) = gates.split_at(d.len());
        let mut gated = mlp::backward(&mut d, &mlps.into_iter().zip(kept).collect::<Vec<_>>(), joint, trained);
        gated.extend(second.iter().map(|gate| gate::backward(&d[0], *gate)));
        let outputs = read.iter().zip(gated).map(|(s, gated)| (sides[*s], &rest.sides[*s], gated));
        let mut dout = [const { None }; STREAM.len()];
        for (s, d) in read.iter().zip(side::output_backward(outputs.collect(), trained)) {
            dout[*s] = Some(d);
        }

        let attend_backward = |of: Range<usize>, lse: &Tensor| {
            let operands: Vec<_> = of.clone().map(|s| sides[s].side.operands(&rest.sides[s])).collect();
            let parts: Vec<Part> = operands.iter().map(side::Operands::part).collect();
            let outputs: Vec<_> = of.map(|s| dout[s].as_ref().map(|d| rest.sides[s].output_grad(d))).collect();
            attention::backward(&outputs, lse, &parts, self.heads)
        };
        let mut doperands = attend_backward(0..2, &rest.lse[0]);
        doperands.extend(rest.lse.get(1).into_iter().flat_map(|lse| attend_backward(2..3, lse)));

        let dnormed = side::backward(&sides, &rest.sides, doperands, trained, want_inputs);
        if !want_inputs {
            return None;
        }
        if d.len() == 1 {
            d.push(context.zeros_like(context.shape()));
        }
        for ((input, dnormed), stream) in sides.iter().zip(&dnormed).zip(STREAM) {
            adaln::backward(&mut d[stream], dnormed, input.x, input.modulated.scale);
        }
        let dcontext = d.pop();
        d.pop().zip(dcontext)
    }
}

impl Rest {
    /// Drops what `selective` checkpointing computes again: modulated inputs and MLPs.
    fn thin(mut self) -> Self {
        self.sides.iter_mut().for_each(side::Saved::thin);
        self.mlps.iter_mut().for_each(|(_, kept)| *kept = None);
        self
    }
}
