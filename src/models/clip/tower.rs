use crate::device::{Tensor, Weight};
use crate::io::Scope;
use crate::models::Linear;
use crate::models::clip::config::Activation;
use crate::ops;
use crate::ops::attention::Mask;

/// Layer normalisation with scale and shift.
pub(super) struct LayerNorm {
    weight: Weight,
    bias: Weight,
    eps: f32,
}

impl LayerNorm {
    pub fn load(scope: &Scope, width: usize, eps: f32) -> Self {
        Self { weight: scope.tensor("weight", &[width]), bias: scope.tensor("bias", &[width]), eps }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        ops::layer_norm::forward(x, Some(&self.weight), Some(&self.bias), self.eps)
    }
}

/// What both towers' blocks are built from.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub width: usize,
    pub inner: usize,
    pub heads: usize,
    pub layers: usize,
    pub act: Activation,
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

    /// All blocks over `x` `[b, n, width]`.
    pub fn forward(&self, mut x: Tensor) -> Hidden {
        let (last, before) = self.blocks.split_last().expect("the config has at least one layer");
        for block in before {
            block.forward(&mut x, &self.shape);
        }
        let penultimate = x.clone();
        last.forward(&mut x, &self.shape);
        Hidden { penultimate, last: x }
    }
}

impl Block {
    /// `x += attention(norm1(x)); x += mlp(norm2(x))`.
    fn forward(&self, x: &mut Tensor, shape: &Shape) {
        let scale = 1.0 / ((shape.width / shape.heads) as f32).sqrt();
        let y = self.norm1.forward(x);
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|l| ops::heads::split(&l.forward(&y), shape.heads));
        let y = ops::attention::forward(&q, &k, &v, scale, Mask { causal: shape.causal, bias: None });
        ops::activation::add(x, &self.out.forward(&y.out));

        let mut y = self.fc1.forward(&self.norm2.forward(x));
        match shape.act {
            Activation::QuickGelu => ops::activation::quick_gelu(&mut y),
            Activation::Gelu => ops::activation::gelu_erf(&mut y),
        }
        ops::activation::add(x, &self.fc2.forward(&y));
    }
}
