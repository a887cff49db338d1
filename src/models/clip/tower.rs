use crate::device::Tensor;
use crate::io::Scope;
use crate::models::Linear;
use crate::models::clip::config::HiddenAct;
use crate::ops;
use crate::ops::activation::Activation;
use crate::ops::attention::{Heads, Mask, Part};
use crate::ops::linear::{self, Then};

/// Layer normalisation with scale and shift.
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    pub fn load(scope: &Scope, width: usize, eps: f32) -> Self {
        Self { weight: scope.tensor("weight", &[width]), bias: scope.tensor("bias", &[width]), eps }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        ops::layer_norm::forward(x, &self.weight, &self.bias, self.eps)
    }
}

/// What both towers' blocks are built from.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub width: usize,
    pub inner: usize,
    pub heads: usize,
    pub layers: usize,
    pub act: HiddenAct,
    pub eps: f32,
    pub causal: bool,
}

/// The pre-norm transformer that text and images share.
pub(super) struct Tower {
    blocks: Vec<Block>,
    shape: Shape,
}

/// The residual stream at the end of a [`Tower`], `[b, n, width]` each.
pub(super) struct Hidden {
    /// Before the last block.
    pub penultimate: Tensor,
    /// After the last block.
    pub last: Tensor,
}

struct Block {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Tower {
    /// The blocks `layers.N` under `scope`.
    pub fn load(scope: &Scope, shape: Shape) -> Self {
        let Shape { width, inner, eps, .. } = shape;
        let block = |i: usize| {
            let layer = scope.sub("layers").sub(i);
            let (attention, mlp) = (layer.sub("self_attn"), layer.sub("mlp"));
            let square = |name: &str| Linear::load(&attention.sub(name), width, width, true);
            Block {
                norm1: LayerNorm::load(&layer.sub("layer_norm1"), width, eps),
                q: square("q_proj"),
                k: square("k_proj"),
                v: square("v_proj"),
                out: square("out_proj"),
                norm2: LayerNorm::load(&layer.sub("layer_norm2"), width, eps),
                fc1: Linear::load(&mlp.sub("fc1"), width, inner, true),
                fc2: Linear::load(&mlp.sub("fc2"), inner, width, true),
            }
        };
        Self { blocks: (0..shape.layers).map(block).collect(), shape }
    }

    /// `x` in the type that activations are kept in.
    pub fn activations(&self, x: Tensor) -> Tensor {
        ops::copy::cast(&x, x.device().activations(self.blocks[0].q.weight.dtype()))
    }

    /// All linear layers, with their names under that of the tower.
    pub fn linears(&mut self) -> impl Iterator<Item = (String, &mut Linear)> {
        self.blocks.iter_mut().enumerate().flat_map(|(i, block)| {
            let Block { q, k, v, out, fc1, fc2, .. } = block;
            let attention = [("q_proj", q), ("k_proj", k), ("v_proj", v), ("out_proj", out)];
            let attention = attention.map(|(name, linear)| (format!("layers.{i}.self_attn.{name}"), linear));
            attention
                .into_iter()
                .chain([("fc1", fc1), ("fc2", fc2)].map(|(name, l)| (format!("layers.{i}.mlp.{name}"), l)))
        })
    }

    /// All blocks over `x` `[b, n, width]`.
    pub fn forward(&self, mut x: Tensor) -> Hidden {
        let (last, before) = self.blocks.split_last().expect("the config has at least one layer");
        for block in before {
            x = block.forward(&x, &self.shape);
        }
        Hidden { last: last.forward(&x, &self.shape), penultimate: x }
    }
}

impl Block {
    /// `y = x + attention(norm1(x))`, then `y + mlp(norm2(y))`.
    fn forward(&self, x: &Tensor, shape: &Shape) -> Tensor {
        let scale = 1.0 / ((shape.width / shape.heads) as f32).sqrt();
        let heads = Heads { count: shape.heads, scale, compute: self.q.weight.dtype() };
        let y = self.norm1.forward(x);
        let [q, k, v] = linear::forward_each(&y, [&self.q, &self.k, &self.v].map(|l| l.layer().into()));
        let mask = Mask { causal: shape.causal, bias: None };
        let attended = ops::attention::forward(&[Part { q: &q, k: &k, v: &v }], heads, mask);
        let x = self.out.then(&attended.out[0], Then::Add(x));

        let activation = match shape.act {
            HiddenAct::QuickGelu => Activation::QuickGelu,
            HiddenAct::Gelu => Activation::GeluErf,
        };
        let hidden = self.fc1.then(&self.norm2.forward(&x), Then::Activate(activation));
        self.fc2.then(&hidden, Then::Add(&x))
    }
}
