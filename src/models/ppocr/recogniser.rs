//! en_PP-OCRv4_rec: PP-LCNetV3 (depthwise separable convolutions with scalars behind every activation), two blocks of
//! attention over the line (SVTR, Du et al. 2022), and a classifier of every step for CTC.

use std::path::Path;

use anyhow::{Result, ensure};

use super::layers::{Conv, Depthwise, Gates, Pointwise};
use crate::device::{DType, Device, Tensor};
use crate::io::{Loader, Scope, TensorFile};
use crate::ops::attention::{self, Heads, Mask, Part};
use crate::ops::linear::{self, Layer, Then};
use crate::ops::pointwise::{Bend, Curve};
use crate::ops::{activation::Activation, copy, layer_norm, pool};

/// Window and stride (down, across) of every block.
const BLOCKS: [(usize, [usize; 2]); 14] = [
    (3, [1, 1]),
    (3, [1, 1]),
    (3, [1, 1]),
    (3, [2, 1]),
    (3, [1, 1]),
    (3, [1, 2]),
    (5, [1, 1]),
    (5, [1, 1]),
    (5, [1, 1]),
    (5, [1, 1]),
    (5, [2, 1]),
    (5, [1, 1]),
    (5, [2, 1]),
    (5, [1, 1]),
];
const ATTENTION_BLOCKS: usize = 2;
const HEADS: usize = 8;
/// What is pooled at the end: the rest of the height, and two steps.
const POOL: [usize; 2] = [3, 2];
const GATE: Bend = Bend { curve: Curve::HardSigmoid { slope: 1.0 / 6.0 }, scale: 1.0, shift: 0.0 };

/// What a line of text says.
pub struct Recogniser {
    stem: Conv,
    blocks: Vec<Block>,
    neck: Neck,
    head: Linear,
}

/// A depthwise separable convolution.
struct Block {
    depthwise: Depthwise,
    after_depthwise: Bend,
    gates: Option<Gates>,
    point: Pointwise,
    after_point: Bend,
    stride: [usize; 2],
}

/// Attention over the steps of a line, beside what comes in.
struct Neck {
    reduce: Conv,
    widen: Pointwise,
    blocks: Vec<AttentionBlock>,
    norm: Norm,
    restore: Pointwise,
    merge: Conv,
    narrow: Pointwise,
}

struct AttentionBlock {
    norm1: Norm,
    /// Queries, keys, values.
    qkv: [Linear; 3],
    out: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
}

struct Linear {
    weight: Tensor,
    bias: Tensor,
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl Recogniser {
    /// The height of its input.
    pub const HEIGHT: usize = 48;

    /// The network in `path`, rec.safetensors.
    ///
    /// # Errors
    /// Names the file, and the tensors that are missing or not as expected.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let loader = Loader::new(&file, &[], device);
        let root = loader.root();
        let stem = Conv::load(&root.sub("stem"), 3, [3, 3]);
        let (mut channels, mut blocks) = (stem.outputs(), Vec::new());
        for (i, (kernel, stride)) in BLOCKS.into_iter().enumerate() {
            let block = Block::load(&root.sub("blocks").sub(i), channels, kernel, stride);
            channels = block.point.outputs();
            blocks.push(block);
        }
        let neck = Neck::load(&root.sub("neck"), channels);
        let [classes, _] = root.sub("head").shape("weight");
        let head = Linear::load(&root.sub("head"), neck.narrow.outputs(), classes);
        let width = neck.widen.outputs();
        loader.finish()?;
        ensure!(
            width.is_multiple_of(HEADS),
            "{}: neck.widen has {width} outputs, expected a multiple of {HEADS}",
            path.display()
        );
        Ok(Self { stem, blocks, neck, head })
    }

    /// What it tells apart at every step: characters, and that there is none.
    pub fn classes(&self) -> usize {
        self.head.weight.dim(0)
    }

    /// Logits of every step. `pixels` `[b, 48, w, 3]` in -1..1; returns `[b, steps, classes]`, a step for 8 columns.
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        let mut x = self.stem.forward(pixels, 2, Curve::Line);
        for block in &self.blocks {
            x = block.forward(x);
        }
        let x = self.neck.forward(&pool::average(&x, POOL));
        let (b, steps, width) = (x.dim(0), x.dim(1) * x.dim(2), x.dim(3));
        self.head.forward(&x.reshape(&[b, steps, width]), Then::Nothing)
    }
}

impl Block {
    fn load(scope: &Scope, inputs: usize, kernel: usize, stride: [usize; 2]) -> Self {
        let bend = |name: &str| {
            let scalar = |of: &str| scope.sub(name).tensor(of, &[1]).to_host()[0];
            Bend { curve: Curve::HardSwish, scale: scalar("scale"), shift: scalar("shift") }
        };
        Self {
            depthwise: Depthwise::load(&scope.sub("depthwise"), inputs, kernel),
            after_depthwise: bend("depthwise"),
            gates: scope.has("squeeze.weight").then(|| Gates::load(scope, inputs, GATE)),
            point: Pointwise::load(&scope.sub("point"), inputs),
            after_point: bend("point"),
            stride,
        }
    }

    fn forward(&self, x: Tensor) -> Tensor {
        let mut x = self.depthwise.forward(&x, self.stride, self.after_depthwise);
        if let Some(gates) = &self.gates {
            gates.forward(&mut x);
        }
        self.point.forward(&x, self.after_point)
    }
}

impl Neck {
    fn load(scope: &Scope, channels: usize) -> Self {
        let reduce = Conv::load(&scope.sub("reduce"), channels, [1, 3]);
        let widen = Pointwise::load(&scope.sub("widen"), reduce.outputs());
        let width = widen.outputs();
        let blocks = (0..ATTENTION_BLOCKS).map(|i| AttentionBlock::load(&scope.sub("blocks").sub(i), width));
        let blocks = blocks.collect();
        let restore = Pointwise::load(&scope.sub("restore"), width);
        let merge = Conv::load(&scope.sub("merge"), channels + restore.outputs(), [1, 3]);
        let narrow = Pointwise::load(&scope.sub("narrow"), merge.outputs());
        Self { reduce, widen, blocks, norm: Norm::load(&scope.sub("norm"), width, 1e-6), restore, merge, narrow }
    }

    /// `[b, 1, steps, channels]` to `[b, 1, steps, width]`.
    fn forward(&self, x: &Tensor) -> Tensor {
        let mut hidden = self.widen.forward(&self.reduce.forward(x, 1, Curve::Silu), Curve::Silu);
        let (image, tokens) = (hidden.shape().to_vec(), [hidden.dim(0), hidden.dim(1) * hidden.dim(2), hidden.dim(3)]);
        hidden = hidden.reshape(&tokens);
        for block in &self.blocks {
            hidden = block.forward(&hidden);
        }
        let hidden = self.norm.forward(&hidden).reshape(&image);
        let hidden = self.restore.forward(&hidden, Curve::Silu);
        let beside = beside(x, &hidden);
        self.narrow.forward(&self.merge.forward(&beside, 1, Curve::Silu), Curve::Silu)
    }
}

/// The channels of both, `[b, 1, steps, ..]`.
fn beside(x: &Tensor, y: &Tensor) -> Tensor {
    let (b, steps, width) = (x.dim(0), x.dim(1) * x.dim(2), x.dim(3) + y.dim(3));
    let mut out = x.scratch_like(&[b, steps, width]);
    copy::block_into(&mut out, 0, 0, &x.clone().reshape(&[b, steps, x.dim(3)]));
    copy::block_into(&mut out, 0, x.dim(3), &y.clone().reshape(&[b, steps, y.dim(3)]));
    out.reshape(&[b, x.dim(1), x.dim(2), width])
}

impl AttentionBlock {
    fn load(scope: &Scope, width: usize) -> Self {
        let all = Linear::load(&scope.sub("qkv"), width, 3 * width);
        let part = |i: usize| {
            let rows = i * width..(i + 1) * width;
            Linear { weight: all.weight.slice(rows.clone()), bias: all.bias.slice(rows) }
        };
        let [inner, _] = scope.sub("fc1").shape("weight");
        Self {
            norm1: Norm::load(&scope.sub("norm1"), width, 1e-5),
            qkv: [0, 1, 2].map(part),
            out: Linear::load(&scope.sub("out"), width, width),
            norm2: Norm::load(&scope.sub("norm2"), width, 1e-5),
            fc1: Linear::load(&scope.sub("fc1"), width, inner),
            fc2: Linear::load(&scope.sub("fc2"), inner, width),
        }
    }

    /// `y = x + attention(norm1(x))`, then `y + mlp(norm2(y))`.
    fn forward(&self, x: &Tensor) -> Tensor {
        let scale = 1.0 / ((x.width() / HEADS) as f32).sqrt();
        let heads = Heads { count: HEADS, scale, compute: DType::F32 };
        let y = self.norm1.forward(x);
        let [q, k, v] = linear::forward_each(&y, [0, 1, 2].map(|i| self.qkv[i].layer().into()));
        let attended = attention::forward(&[Part { q: &q, k: &k, v: &v }], heads, Mask::default());
        let x = self.out.forward(&attended.out[0], Then::Add(x));
        let hidden = self.fc1.forward(&self.norm2.forward(&x), Then::Activate(Activation::Silu));
        self.fc2.forward(&hidden, Then::Add(&x))
    }
}

impl Linear {
    fn load(scope: &Scope, inputs: usize, outputs: usize) -> Self {
        Self { weight: scope.tensor("weight", &[outputs, inputs]), bias: scope.tensor("bias", &[outputs]) }
    }

    fn layer(&self) -> Layer<'_> {
        Layer { weight: &self.weight, bias: Some(&self.bias) }
    }

    fn forward(&self, x: &Tensor, then: Then) -> Tensor {
        linear::forward(x, self.layer(), then)
    }
}

impl Norm {
    fn load(scope: &Scope, width: usize, eps: f32) -> Self {
        Self { weight: scope.tensor("weight", &[width]), bias: scope.tensor("bias", &[width]), eps }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        layer_norm::forward(x, &self.weight, &self.bias, self.eps)
    }
}
