//! One joint block: image and text tokens attend to each other, each with its own weights (Esser et al. 2024,
//! "Scaling rectified flow transformers", figure 2), and in SD3.5 Medium the image tokens once more to themselves.

use super::attention::{self as side, Projections};
use super::mlp::{self, Mlp};
use super::modulation::{Kind, Modulation, Modulator};
use super::{Config, LoraScope, keep};
use crate::device::{DType, Tensor};
use crate::models::lora::{Adapters, Trained};
use crate::models::network::Checkpointing;
use crate::ops::attention::{self, Attention, Heads, Mask, Part};
use crate::ops::gate;

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

struct Rest {
    image: StreamSaved,
    context: StreamSaved,
    /// Softmax denominators of the joint attention.
    lse: Tensor,
    /// The second attention, and its softmax denominators.
    dual: Option<(side::Saved, Tensor)>,
}

struct StreamSaved {
    attention: side::Saved,
    /// The MLP's input, and what it kept; absent where there is no MLP.
    mlp: Option<(Tensor, Option<mlp::Saved>)>,
}

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

    /// The type of its weights.
    pub(super) fn dtype(&self) -> DType {
        self.heads.compute
    }

    fn attend(&self, parts: &[Part]) -> Attention {
        attention::forward(parts, self.heads, Mask::default())
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
        let [image, text] = modulation;
        let (image_part, image_kept) = self.image.attention.forward(x, image.attention(), adapters, rows);
        let (text_part, text_kept) = self.context.attention.forward(context, text.attention(), adapters, rows);
        let Attention { out, lse } = self.attend(&[image_part.part(), text_part.part()]);
        drop((image_part, text_part));
        let [image_out, text_out] = &out[..] else { unreachable!("two parts") };

        let mut y = self.image.attention.output(x, image_out, image.attention(), adapters);
        let mut dual_saved = None;
        if let Some(dual) = &self.dual {
            let (part, kept) = dual.forward(x, image.dual(), adapters, rows);
            let Attention { out, lse } = self.attend(&[part.part()]);
            y = dual.output(&y, &out[0], image.dual(), adapters);
            dual_saved = (rows > 0).then(|| (kept.finish(&out[0]), keep(&lse, rows)));
        }
        let c = self.context.attention.output(context, text_out, text.attention(), adapters);

        let finish = |stream: &Stream, middle: Tensor, modulation: &Modulation| match &stream.mlp {
            None => (middle, None),
            Some(mlp) => {
                let (y, saved) = mlp.forward(&middle, modulation.mlp(), adapters, rows);
                (y, saved.map(|s| (keep(&middle, rows), Some(s))))
            }
        };
        let (y, image_mlp) = finish(&self.image, y, image);
        let (c, text_mlp) = finish(&self.context, c, text);
        let rest = (rows > 0).then(|| Rest {
            image: StreamSaved { attention: image_kept.finish(image_out), mlp: image_mlp },
            context: StreamSaved { attention: text_kept.finish(text_out), mlp: text_mlp },
            lse: keep(&lse, rows),
            dual: dual_saved,
        });
        (y, c, rest)
    }

    /// What the forward kept, with what was dropped computed again: the same operations in the same order, so the same
    /// bits.
    fn restore(&self, saved: &mut Saved, adapters: &Adapters) -> Rest {
        let Saved { x, context, modulation, rest } = saved;
        let Some(mut rest) = rest.take() else {
            let rows = x.dim(0);
            return self.run(x, context, modulation, adapters, rows).2.expect("all rows are kept");
        };
        let streams = [(&self.image, &mut rest.image), (&self.context, &mut rest.context)];
        for ((stream, saved), modulation) in streams.into_iter().zip(modulation.iter()) {
            if let (Some(mlp), Some((middle, saved @ None))) = (&stream.mlp, &mut saved.mlp) {
                *saved = Some(mlp.restore(middle, modulation.mlp(), adapters));
            }
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
        let [image, text] = &modulation;

        let (mut dx, gated) = self.image.mlp_backward(dx, &rest.image, image, trained);
        let image_dout = self.image.attention.output_backward(&gated, &rest.image.attention, trained);
        drop(gated);
        let (mut dcontext, text_dout) = match dcontext {
            None => (None, None),
            Some(d) => {
                let (d, gated) = self.context.mlp_backward(d, &rest.context, text, trained);
                let dout = self.context.attention.output_backward(&gated, &rest.context.attention, trained);
                (Some(d), Some(dout))
            }
        };

        // Through both attentions before anything is added to `dx`, from which they start.
        let dual = self.dual.as_ref().zip(rest.dual).map(|(dual, (saved, lse))| {
            let gated = gate::backward(&dx, image.dual().gate.expect("a second attention has a gate"));
            let dout = dual.output_backward(&gated, &saved, trained);
            drop(gated);
            let operands = dual.operands(&saved);
            let output = [Some(saved.output_grad(&dout))];
            let d = attention::backward(&output, &lse, &[operands.part()], self.heads);
            (dual, saved, d)
        });
        let joint = {
            let operands = [
                self.image.attention.operands(&rest.image.attention),
                self.context.attention.operands(&rest.context.attention),
            ];
            let outputs = [
                Some(rest.image.attention.output_grad(&image_dout)),
                text_dout.as_ref().map(|d| rest.context.attention.output_grad(d)),
            ];
            let parts = operands.each_ref().map(|o| o.part());
            attention::backward(&outputs, &rest.lse, &parts, self.heads)
        };

        let mut dinputs = want_inputs.then(|| {
            let dcontext = dcontext.take().unwrap_or_else(|| context.zeros_like(context.shape()));
            (&mut dx, dcontext)
        });
        let [image_d, text_d]: [_; 2] = joint.try_into().unwrap_or_else(|_| unreachable!("two parts"));
        let (dx_into, dcontext_into) = match &mut dinputs {
            Some((dx, dcontext)) => (Some(&mut **dx), Some(dcontext)),
            None => (None, None),
        };
        let side = &self.image.attention;
        side.backward(image_d, &rest.image.attention, &x, image.attention(), trained, dx_into);
        let side = &self.context.attention;
        side.backward(text_d, &rest.context.attention, &context, text.attention(), trained, dcontext_into);
        if let Some((dual, saved, mut d)) = dual {
            let dx_into = dinputs.as_mut().map(|(dx, _)| &mut **dx);
            dual.backward(d.remove(0), &saved, &x, image.dual(), trained, dx_into);
        }
        let dcontext = dinputs.map(|(_, dcontext)| dcontext)?;
        Some((dx, dcontext))
    }
}

impl Stream {
    /// The gradient to what the attention was added to, and its gate times that.
    fn mlp_backward(
        &self,
        d: Tensor,
        saved: &StreamSaved,
        modulation: &Modulation,
        trained: &mut Trained,
    ) -> (Tensor, Tensor) {
        let (Some(mlp), Some((middle, Some(saved)))) = (&self.mlp, &saved.mlp) else {
            unreachable!("saved by the forward or restored")
        };
        let before = modulation.attention().gate.expect("a stream whose result is read has a gate");
        mlp.backward(d, saved, middle, modulation.mlp(), trained, before)
    }
}

impl Rest {
    /// Drops what `selective` checkpointing computes again: modulated inputs and MLPs.
    fn thin(mut self) -> Self {
        for stream in [&mut self.image, &mut self.context] {
            stream.attention.thin();
            if let Some((_, saved)) = &mut stream.mlp {
                *saved = None;
            }
        }
        if let Some((dual, _)) = &mut self.dual {
            dual.thin();
        }
        self
    }
}
