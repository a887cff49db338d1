mod backward;

use std::sync::OnceLock;

use super::Config;
use crate::device::{DType, Precision, Tensor};
use crate::io::Scope;
use crate::ops::attention::{self, Heads, Mask, Part};
use crate::ops::conv2d::{self, Window};
use crate::ops::copy::cast;
use crate::ops::{group_norm, linear};

/// Added to every variance; diffusers passes it to all normalisations of `AutoencoderKL`.
const EPS: f32 = 1e-6;

/// A convolution with its bias.
pub(super) struct Conv {
    /// `[out, in, k, k]`, in the precision that was asked for.
    stored: Tensor,
    /// The weight as the op takes it, of the type of images in half precision; made when it is first needed.
    ready: OnceLock<Tensor>,
    /// The same as the op's backward takes it.
    turned: OnceLock<Tensor>,
    /// `[out]`.
    bias: Tensor,
    window: Window,
}

impl Conv {
    pub fn load(scope: &Scope, inputs: usize, outputs: usize, kernel: usize, window: Window) -> Self {
        Self {
            stored: precise(scope, scope.tensor("weight", &[outputs, inputs, kernel, kernel])),
            ready: OnceLock::new(),
            turned: OnceLock::new(),
            bias: scope.tensor("bias", &[outputs]),
            window,
        }
    }

    /// A 3x3 convolution that keeps the size.
    pub fn load3(scope: &Scope, inputs: usize, outputs: usize) -> Self {
        Self::load(scope, inputs, outputs, 3, Window::same(3))
    }

    /// A 1x1 convolution.
    pub fn load1(scope: &Scope, inputs: usize, outputs: usize) -> Self {
        Self::load(scope, inputs, outputs, 1, Window::same(1))
    }

    /// A linear layer over the channels of every pixel, weight `[channels, channels]`. As a convolution it keeps images in
    /// the type they are in, whatever the weight is stored in.
    pub fn load_linear(scope: &Scope, channels: usize) -> Self {
        let stored = precise(scope, scope.tensor("weight", &[channels, channels]));
        Self {
            stored: stored.reshape(&[channels, channels, 1, 1]),
            ready: OnceLock::new(),
            turned: OnceLock::new(),
            bias: scope.tensor("bias", &[channels]),
            window: Window::same(1),
        }
    }

    /// `x` `[b, h, w, in]` to `[b, h', w', out]`, plus `add`.
    pub fn forward(&self, x: &Tensor, add: Option<&Tensor>) -> Tensor {
        conv2d::forward(x, self.ready(x, conv2d::arranged), &self.bias, self.window, add)
    }

    /// As [`Conv::forward`], in single precision whatever `x` is in.
    pub fn single(&self, x: &Tensor) -> Tensor {
        conv2d::forward_to(DType::F32, x, self.ready(x, conv2d::arranged), &self.bias, self.window, None)
    }

    /// The type of its weight.
    pub fn dtype(&self) -> DType {
        self.stored.dtype()
    }

    fn ready(&self, x: &Tensor, order: fn(&Tensor) -> Tensor) -> &Tensor {
        self.ready.get_or_init(|| self.ordered(x, order))
    }

    /// The weight in another order, of the type of `x` if that is half precision.
    fn ordered(&self, x: &Tensor, order: fn(&Tensor) -> Tensor) -> Tensor {
        match (order(&self.stored), x.dtype()) {
            (weight, DType::F32) => weight,
            (weight, half) => cast(&weight, half),
        }
    }

    /// `x` `[b, h, w, in]`, enlarged twofold, to `[b, 2h, 2w, out]`; a convolution is used in one of the two ways.
    fn doubled(&self, x: &Tensor) -> Tensor {
        conv2d::doubled(x, self.ready(x, conv2d::folded), &self.bias)
    }
}

/// A weight in the precision that the scope asks for.
fn precise(scope: &Scope, weight: Tensor) -> Tensor {
    match scope.precision() {
        Precision::Half(dtype) if weight.dtype() != dtype => linear::rounded(&weight, dtype),
        Precision::Wide(_) => cast(&weight, DType::F32),
        Precision::Half(_) | Precision::Stored => weight,
    }
}

/// A group normalisation.
pub(super) struct Norm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
}

impl Norm {
    pub fn load(scope: &Scope, config: &Config, channels: usize) -> Self {
        Self {
            weight: scope.tensor("weight", &[channels]),
            bias: scope.tensor("bias", &[channels]),
            groups: config.norm_num_groups,
        }
    }

    pub fn forward(&self, x: &Tensor, silu: bool) -> Tensor {
        group_norm::forward(x, self.parameters(), silu)
    }

    fn parameters(&self) -> group_norm::Norm<'_> {
        group_norm::Norm { weight: &self.weight, bias: &self.bias, groups: self.groups, eps: EPS }
    }
}

/// Two normalised 3x3 convolutions around a shortcut (`ResnetBlock2D`).
pub(super) struct Resnet {
    norm1: Norm,
    conv1: Conv,
    norm2: Norm,
    conv2: Conv,
    shortcut: Option<Conv>,
}

impl Resnet {
    pub fn load(scope: &Scope, config: &Config, inputs: usize, outputs: usize) -> Self {
        Self {
            norm1: Norm::load(&scope.sub("norm1"), config, inputs),
            conv1: Conv::load3(&scope.sub("conv1"), inputs, outputs),
            norm2: Norm::load(&scope.sub("norm2"), config, outputs),
            conv2: Conv::load3(&scope.sub("conv2"), outputs, outputs),
            shortcut: (inputs != outputs).then(|| Conv::load1(&scope.sub("conv_shortcut"), inputs, outputs)),
        }
    }

    /// `[b, h, w, in]` to `[b, h, w, out]`.
    fn forward(&self, x: &Tensor) -> Tensor {
        let h = self.conv1.forward(&self.norm1.forward(x, true), None);
        let h = self.norm2.forward(&h, true);
        match &self.shortcut {
            Some(shortcut) => self.conv2.forward(&h, Some(&shortcut.forward(x, None))),
            None => self.conv2.forward(&h, Some(x)),
        }
    }
}

/// Single-head self-attention over all pixels (`Attention` of diffusers with `residual_connection`).
pub(super) struct Attention {
    norm: Norm,
    q: Conv,
    k: Conv,
    v: Conv,
    out: Conv,
}

impl Attention {
    pub fn load(scope: &Scope, config: &Config, channels: usize) -> Self {
        // Checkpoints from before diffusers 0.17 have the names of the block this replaced.
        let old = scope.has("query.weight");
        let linear = |new, before| Conv::load_linear(&scope.sub(if old { before } else { new }), channels);
        Self {
            norm: Norm::load(&scope.sub("group_norm"), config, channels),
            q: linear("to_q", "query"),
            k: linear("to_k", "key"),
            v: linear("to_v", "value"),
            out: linear("to_out.0", "proj_attn"),
        }
    }

    /// `[b, h, w, c]` to the same.
    fn forward(&self, x: &Tensor) -> Tensor {
        let [q, k, v] = self.operands(&self.norm.forward(x, false));
        let mut attention = attention::forward(&[Part { q: &q, k: &k, v: &v }], self.heads(x), Mask::default());
        self.out.forward(&attention.out.remove(0).reshape(x.shape()), Some(x))
    }

    /// Queries, keys and values, `[b, pixels, c]` each.
    fn operands(&self, normed: &Tensor) -> [Tensor; 3] {
        let sequence = [normed.dim(0), normed.dim(1) * normed.dim(2), normed.dim(3)];
        [&self.q, &self.k, &self.v].map(|conv| conv.forward(normed, None).reshape(&sequence))
    }

    fn heads(&self, x: &Tensor) -> Heads {
        Heads { count: 1, scale: 1.0 / (x.width() as f32).sqrt(), compute: x.dtype() }
    }
}

/// One of the things an image goes through between the first convolution and the last normalisation.
pub(super) enum Block<'a> {
    Resnet(&'a Resnet),
    Attention(&'a Attention),
    Halve(&'a Conv),
    Double(&'a Conv),
}

impl Block<'_> {
    /// `[b, h, w, in]` to `[b, h', w', out]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Resnet(resnet) => resnet.forward(x),
            Self::Attention(attention) => attention.forward(x),
            Self::Halve(conv) => conv.forward(x, None),
            Self::Double(conv) => conv.doubled(x),
        }
    }
}

/// The coarsest level (`UNetMidBlock2D`).
pub(super) struct Mid {
    first: Resnet,
    attention: Option<Attention>,
    second: Resnet,
}

impl Mid {
    pub fn load(scope: &Scope, config: &Config, channels: usize) -> Self {
        let attention = || Attention::load(&scope.sub("attentions.0"), config, channels);
        Self {
            first: Resnet::load(&scope.sub("resnets.0"), config, channels, channels),
            attention: config.mid_block_add_attention.then(attention),
            second: Resnet::load(&scope.sub("resnets.1"), config, channels, channels),
        }
    }

    /// Its blocks, in order.
    pub fn blocks(&self) -> impl Iterator<Item = Block<'_>> {
        let attention = self.attention.as_ref().map(Block::Attention);
        [Some(Block::Resnet(&self.first)), attention, Some(Block::Resnet(&self.second))].into_iter().flatten()
    }
}

/// A level's change of size.
pub(super) enum Resize {
    /// None: the last level.
    Keep,
    /// Half (`Downsample2D`).
    Halve(Conv),
    /// Twice (`Upsample2D`).
    Double(Conv),
}

impl Resize {
    /// The convolution of a level of the encoder.
    pub fn halve(scope: &Scope, channels: usize) -> Self {
        Self::Halve(Conv::load(&scope.sub("downsamplers.0.conv"), channels, channels, 3, Window::halving()))
    }

    /// The convolution of a level of the decoder.
    pub fn double(scope: &Scope, channels: usize) -> Self {
        Self::Double(Conv::load3(&scope.sub("upsamplers.0.conv"), channels, channels))
    }
}

/// One level: residual blocks, then a change of size unless it is the last (`DownEncoderBlock2D`,
/// `UpDecoderBlock2D`).
pub(super) struct Level {
    resnets: Vec<Resnet>,
    resize: Resize,
}

impl Level {
    /// A level with `layers` residual blocks.
    pub fn load(scope: &Scope, config: &Config, inputs: usize, outputs: usize, layers: usize, resize: Resize) -> Self {
        let resnet = |i| {
            let inputs = if i == 0 { inputs } else { outputs };
            Resnet::load(&scope.sub(format_args!("resnets.{i}")), config, inputs, outputs)
        };
        Self { resnets: (0..layers).map(resnet).collect(), resize }
    }

    /// Its blocks, in order.
    pub fn blocks(&self) -> impl Iterator<Item = Block<'_>> {
        let resize = match &self.resize {
            Resize::Keep => None,
            Resize::Halve(conv) => Some(Block::Halve(conv)),
            Resize::Double(conv) => Some(Block::Double(conv)),
        };
        self.resnets.iter().map(Block::Resnet).chain(resize)
    }
}
