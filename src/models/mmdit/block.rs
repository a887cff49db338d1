//! One joint block: image and text tokens attend to each other, each with its own weights (Esser et al. 2024,
//! "Scaling rectified flow transformers", figure 2), and in SD3.5 Medium the image tokens once more to themselves.

use super::Config;
use super::stream::{Modulation, Projections, Stream, StreamSaved};
use super::{Checkpointing, LoraScope};
use crate::device::Tensor;
use crate::models::lora::Adapter;
use crate::ops::{adaln, attention, heads::Part};

pub(super) struct Block {
    image: Stream,
    context: Stream,
    /// The second attention of the image tokens.
    dual: Option<Projections>,
    heads: usize,
    head_dim: usize,
}

/// What a block keeps for its backward. With activation checkpointing some of it is computed again.
pub(super) struct BlockSaved {
    x: Tensor,
    context: Tensor,
    rest: Option<Rest>,
}

struct Rest {
    image: StreamSaved,
    context: StreamSaved,
    dual: Option<StreamSaved>,
    /// Softmax denominators of the joint and of the second attention.
    lse: [Option<Tensor>; 2],
}

/// Queries, keys and values `[b, heads, n, d]`.
type Operands = [Tensor; 3];

impl Block {
    pub(super) fn load(scope: &LoraScope, config: &Config, index: usize) -> Self {
        let last = index + 1 == config.num_layers;
        let dual = config.dual_attention_layers.contains(&index);
        let d = config.hidden();
        let norm = config.qk_norm.is_some().then_some(config.attention_head_dim);
        let attention = scope.sub("attn");
        let image = [["to_q", "to_k", "to_v"], ["norm_q", "norm_k", "to_out.0"]];
        let context = [["add_q_proj", "add_k_proj", "add_v_proj"], ["norm_added_q", "norm_added_k", "to_add_out"]];
        Self {
            image: Stream::load(
                scope,
                d,
                "norm1.linear",
                if dual { Modulation::Dual } else { Modulation::Full },
                Projections::load(&attention, d, image, norm, true),
                Some("ff"),
            ),
            context: Stream::load(
                scope,
                d,
                "norm1_context.linear",
                if last { Modulation::NormOnly } else { Modulation::Full },
                Projections::load(&attention, d, context, norm, !last),
                (!last).then_some("ff_context"),
            ),
            dual: dual.then(|| Projections::load(&scope.sub("attn2"), d, image, norm, true)),
            heads: config.num_attention_heads,
            head_dim: config.attention_head_dim,
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// The joint operands of both streams, or of one.
    fn operands(&self, streams: &[(&Projections, &StreamSaved, Part)]) -> Operands {
        let (first, last) = (streams[0].1, streams[streams.len() - 1].2);
        let shape = [first.x.dim(0), self.heads, last.offset + last.len, self.head_dim];
        let mut operands = std::array::from_fn(|_| Tensor::scratch(&shape));
        for (projections, saved, part) in streams {
            projections.fill(&mut operands, saved, *part);
        }
        operands
    }

    /// Image tokens `x` `[b, n, d]` and text tokens `context` `[b, l, d]` through the block; `embedding` `[b, d]` is
    /// `silu(time + text)`. The last block's text tokens come out unchanged: nothing reads them.
    pub(super) fn forward(
        &self,
        x: Tensor,
        context: Tensor,
        embedding: &Tensor,
        adapter: Option<&Adapter>,
    ) -> (Tensor, Tensor, BlockSaved) {
        let parts = parts(&x, &context);
        let modulation = [self.image.modulation(embedding), self.context.modulation(embedding)];
        let mut image = self.image.project(&self.image.attention, x.clone(), &modulation[0], 0, adapter);
        let mut text = self.context.project(&self.context.attention, context.clone(), &modulation[1], 0, adapter);

        let [q, k, v] =
            self.operands(&[(&self.image.attention, &image, parts[0]), (&self.context.attention, &text, parts[1])]);
        let (mut out, lse) = attention::forward_joint(&q, &k, &v, self.scale(), &parts);
        text.attended = out.pop();
        image.attended = out.pop();

        let mut y = x.clone();
        self.image.attention.add_output(&mut y, &image, &modulation[0], self.image.gate(), adapter);
        let (mut dual, mut dual_lse) = (None, None);
        if let Some(projections) = &self.dual {
            let mut saved = self.image.project(projections, x.clone(), &modulation[0], 6, adapter);
            let part = [parts[0]];
            let [q, k, v] = self.operands(&[(projections, &saved, parts[0])]);
            let (mut out, lse) = attention::forward_joint(&q, &k, &v, self.scale(), &part);
            saved.attended = out.pop();
            projections.add_output(&mut y, &saved, &modulation[0], 8, adapter);
            (dual, dual_lse) = (Some(saved), Some(lse));
        }
        self.image.feed_forward(&mut y, &mut image, &modulation[0], adapter);

        let mut c = context.clone();
        self.context.attention.add_output(&mut c, &text, &modulation[1], self.context.gate(), adapter);
        self.context.feed_forward(&mut c, &mut text, &modulation[1], adapter);

        let rest = Rest { image, context: text, dual, lse: [Some(lse), dual_lse] };
        (y, c, BlockSaved { x, context, rest: Some(rest) })
    }

    /// Fills again what [`BlockSaved::thin`] dropped; the same operations in the same order, so the same bits.
    fn restore(&self, saved: BlockSaved, embedding: &Tensor, adapter: &Adapter) -> (Tensor, Tensor, Rest) {
        let BlockSaved { x, context, rest } = saved;
        let Some(mut rest) = rest else {
            let (_, _, again) = self.forward(x, context, embedding, Some(adapter));
            return (again.x, again.context, again.rest.expect("a forward keeps everything"));
        };
        let modulation = [self.image.modulation(embedding), self.context.modulation(embedding)];
        self.image.restore(&self.image.attention, &mut rest.image, &modulation[0], 0, adapter);
        self.context.restore(&self.context.attention, &mut rest.context, &modulation[1], 0, adapter);
        if let (Some(projections), Some(dual)) = (&self.dual, &mut rest.dual) {
            self.image.restore_normed(projections, dual, &modulation[0], 6, adapter);
        }
        (x, context, rest)
    }

    /// From the gradients to the outputs (`dcontext` `None`: nothing read them) to those to the inputs. Adds the
    /// gradients of the adapter's factors to `grads`.
    pub(super) fn backward(
        &self,
        dx: Tensor,
        dcontext: Option<Tensor>,
        saved: BlockSaved,
        embedding: &Tensor,
        adapter: &Adapter,
        grads: &mut Adapter,
    ) -> (Tensor, Tensor) {
        let (x, context, rest) = self.restore(saved, embedding, adapter);
        let parts = parts(&x, &context);
        let modulation = [self.image.modulation(embedding), self.context.modulation(embedding)];
        let mut dx = self.image.feed_forward_backward(dx, &rest.image, &modulation[0], adapter, grads);
        let image_out =
            self.image.attention.output_backward(&dx, &rest.image, &modulation[0], self.image.gate(), adapter, grads);

        let text_attended = rest.context.attended();
        let (mut dcontext, text_out) = match dcontext {
            None => (Tensor::zeros(context.shape()), Tensor::zeros(text_attended.shape())),
            Some(d) => {
                let d = self.context.feed_forward_backward(d, &rest.context, &modulation[1], adapter, grads);
                let out = self.context.attention.output_backward(
                    &d,
                    &rest.context,
                    &modulation[1],
                    self.context.gate(),
                    adapter,
                    grads,
                );
                (d, out)
            }
        };

        let dual_gradient = self.dual.as_ref().zip(rest.dual.as_ref()).map(|(projections, saved)| {
            let dout = projections.output_backward(&dx, saved, &modulation[0], 8, adapter, grads);
            let [q, k, v] = self.operands(&[(projections, saved, parts[0])]);
            let lse = rest.lse[1].as_ref().expect("kept with the second attention");
            let d = attention::backward(&[&dout], &[saved.attended()], lse, (&q, &k, &v), self.scale(), &parts[..1]);
            projections.backward(d.into(), parts[0], saved, adapter, grads)
        });

        let streams =
            [(&self.image.attention, &rest.image, parts[0]), (&self.context.attention, &rest.context, parts[1])];
        let [q, k, v] = self.operands(&streams);
        let lse = rest.lse[0].as_ref().expect("always kept");
        let outs = [rest.image.attended(), text_attended];
        let d: Operands =
            attention::backward(&[&image_out, &text_out], &outs, lse, (&q, &k, &v), self.scale(), &parts).into();
        for (i, (stream, dinput)) in [(&self.image, &mut dx), (&self.context, &mut dcontext)].into_iter().enumerate() {
            let (projections, saved, part) = streams[i];
            let dnormed = projections.backward(d.clone(), part, saved, adapter, grads);
            adaln::backward(dinput, &dnormed, &saved.x, &modulation[i], stream.shift_scale(0).1);
        }
        if let Some(dnormed) = dual_gradient {
            adaln::backward(&mut dx, &dnormed, &x, &modulation[0], self.image.shift_scale(6).1);
        }
        (dx, dcontext)
    }
}

impl BlockSaved {
    /// Drops what `policy` says is computed again in the backward.
    pub(super) fn thin(mut self, policy: Checkpointing) -> Self {
        match policy {
            Checkpointing::None => {}
            Checkpointing::Block => self.rest = None,
            Checkpointing::Selective => {
                if let Some(rest) = &mut self.rest {
                    rest.image.thin();
                    rest.context.thin();
                    rest.dual.iter_mut().for_each(StreamSaved::thin);
                }
            }
        }
        self
    }
}

fn parts(x: &Tensor, context: &Tensor) -> [Part; 2] {
    [Part { offset: 0, len: x.dim(1) }, Part { offset: x.dim(1), len: context.dim(1) }]
}
