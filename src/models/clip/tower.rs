use crate::device::Tensor;
use crate::io::Scope;
use crate::models::clip::config::HiddenAct;
use crate::models::{LayerNorm, Linear};
use crate::ops;
use crate::ops::activation::Activation;
use crate::ops::attention::{Attention, Heads, Mask, OutputGrad, Part};
use crate::ops::linear::{self, Backward, Branch, InputGrad, Then};

/// What both towers' blocks are built from.
#[derive(Clone, Copy)]
pub(in crate::models) struct Shape {
    pub width: usize,
    pub inner: usize,
    pub heads: usize,
    pub layers: usize,
    pub act: HiddenAct,
    pub eps: f32,
    pub causal: bool,
}

/// The pre-norm transformer that text and images share.
pub(in crate::models) struct Tower {
    blocks: Vec<Block>,
    shape: Shape,
}

/// The residual stream at the end of a [`Tower`], `[b, n, width]` each.
pub(in crate::models) struct Hidden {
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
        ops::copy::cast(&x, x.device().activations(self.blocks[0].q.weight.multiplied_in()))
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

    /// What the last block gives for the first token of each, `[b, width]`: nobody asks it for the others'.
    pub fn first(&self, x: Tensor) -> Tensor {
        let (last, before) = self.blocks.split_last().expect("the config has at least one layer");
        last.first(&before.iter().fold(x, |x, block| block.forward(&x, &self.shape)), &self.shape)
    }

    /// What the last block gives, and what [`Tower::backward`] needs of each.
    pub fn kept(&self, mut x: Tensor) -> (Tensor, Vec<Kept>) {
        let mut all = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (y, kept) = block.kept(x, &self.shape);
            all.push(kept);
            x = y;
        }
        (x, all)
    }

    /// The gradient to the input of all blocks; `kept` is of [`Tower::kept`], `d` the gradient to what the last block gave.
    pub fn backward(&self, kept: &[Kept], d: Tensor) -> Tensor {
        self.blocks.iter().zip(kept).rev().fold(d, |d, (block, kept)| block.backward(kept, d, &self.shape))
    }
}

impl Shape {
    fn activation(&self) -> Activation {
        match self.act {
            HiddenAct::QuickGelu => Activation::QuickGelu,
            HiddenAct::Gelu => Activation::GeluErf,
        }
    }
}

/// Queries, keys and values of a block, what they give, and what that adds up to with the input.
struct Attended {
    qkv: [Tensor; 3],
    attention: Attention,
    sum: Tensor,
}

/// What the backward of a block needs of its forward: nothing is computed again.
pub(in crate::models) struct Kept {
    x: Tensor,
    attended: Attended,
    /// What the activation is given.
    hidden: Tensor,
}

impl Block {
    fn heads(&self, shape: &Shape) -> Heads {
        let scale = 1.0 / ((shape.width / shape.heads) as f32).sqrt();
        Heads { count: shape.heads, scale, compute: self.q.weight.multiplied_in() }
    }

    /// Queries, keys and values of `x`, and what they give.
    fn mix(&self, x: &Tensor, shape: &Shape) -> ([Tensor; 3], Attention) {
        let y = self.norm1.forward(x);
        let qkv = linear::forward_each(&y, [&self.q, &self.k, &self.v].map(|l| l.layer().into()));
        let [q, k, v] = &qkv;
        let mask = Mask { causal: shape.causal, bias: None };
        let attention = ops::attention::forward(&[Part { q, k, v }], self.heads(shape), mask);
        (qkv, attention)
    }

    fn attend(&self, x: &Tensor, shape: &Shape) -> Attended {
        let (qkv, attention) = self.mix(x, shape);
        let sum = self.out.then(&attention.out[0], Then::Add(x));
        Attended { qkv, attention, sum }
    }

    /// `y = x + attention(norm1(x))`, then `y + mlp(norm2(y))`.
    fn forward(&self, x: &Tensor, shape: &Shape) -> Tensor {
        self.mlp(&self.attend(x, shape).sum, shape)
    }

    /// The same for the first token of each.
    fn first(&self, x: &Tensor, shape: &Shape) -> Tensor {
        let (_, attention) = self.mix(x, shape);
        let sum = self.out.then(&first_tokens(&attention.out[0]), Then::Add(&first_tokens(x)));
        self.mlp(&sum, shape)
    }

    /// `x + mlp(norm2(x))`.
    fn mlp(&self, x: &Tensor, shape: &Shape) -> Tensor {
        let hidden = self.fc1.then(&self.norm2.forward(x), Then::Activate(shape.activation()));
        self.fc2.then(&hidden, Then::Add(x))
    }

    /// As [`Block::forward`], and what [`Block::backward`] needs.
    fn kept(&self, x: Tensor, shape: &Shape) -> (Tensor, Kept) {
        let attended = self.attend(&x, shape);
        let y = self.norm2.forward(&attended.sum);
        let (activated, hidden) = linear::forward_activated(&y, self.fc1.layer().into(), shape.activation(), x.dim(0));
        (self.fc2.then(&activated, Then::Add(&attended.sum)), Kept { x, attended, hidden })
    }

    /// The gradient to the input, if `d` is that to the result.
    fn backward(&self, kept: &Kept, mut d: Tensor, shape: &Shape) -> Tensor {
        let Kept { x, attended: Attended { qkv: [q, k, v], attention: Attention { out, lse }, sum }, hidden } = kept;
        let mut dhidden = to_input(&d, &self.fc2);
        ops::activation::backward(&mut dhidden, hidden, shape.activation());
        self.norm2.backward(&mut d, &to_input(&dhidden, &self.fc1), sum);

        let dout = to_input(&d, &self.out);
        let outputs = [Some(OutputGrad { out: &out[0], dout: &dout })];
        let parts = [Part { q, k, v }];
        let grads = ops::attention::backward(&outputs, lse, &parts, self.heads(shape)).remove(0);
        let dq = grads.q.as_ref().expect("the part's result was read");
        let branches = [(dq, &self.q), (&grads.k, &self.k), (&grads.v, &self.v)];
        let branches = branches.map(|(dy, l)| Branch { dy, weight: &l.weight, lora: None, grad: None });
        let mut dy = x.scratch_like(x.shape());
        let call = Backward { x: None, branches: branches.into(), dx: InputGrad::Overwrite(&mut dy) };
        linear::backward_group(vec![call], None);
        self.norm1.backward(&mut d, &dy, x);
        d
    }
}

/// The gradient to the input of `linear`.
fn to_input(dy: &Tensor, linear: &Linear) -> Tensor {
    let mut dx = dy.scratch_like(&[dy.dim(0), dy.dim(1), linear.weight.dim(1)]);
    linear::backward(dy, &linear.weight, None, None, None, InputGrad::Overwrite(&mut dx));
    dx
}

/// The first token of each of `[b, n, width]`.
pub(super) fn first_tokens(x: &Tensor) -> Tensor {
    let (b, n, width) = (x.dim(0), x.dim(1), x.dim(2));
    let first: Vec<usize> = (0..b).map(|i| i * n).collect();
    ops::copy::gather(&x.clone().reshape(&[b * n, width]), &first)
}
