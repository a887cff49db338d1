use super::{EPS, GROUPS};
use crate::device::Tensor;
use crate::io::Scope;
use crate::models::Linear;
use crate::ops::affine::{self, Affine};
use crate::ops::conv2d::{self, Window};
use crate::ops::group_norm;
use crate::ops::linear::Then;

/// A convolution of images `[b, h, w, in]`, followed by a group normalisation.
pub(super) struct Normed {
    conv: Conv,
    weight: Tensor,
    bias: Tensor,
}

enum Conv {
    /// Of single pixels.
    One(Linear),
    /// Of 3x3 pixels: the weight as the op has it, and the bias.
    Three(Tensor, Tensor),
}

impl Normed {
    /// The convolution `0` and the normalisation `1` under `scope`.
    pub fn load(scope: &Scope, [inputs, outputs]: [usize; 2], kernel: usize, has_bias: bool) -> Self {
        let (conv, norm) = (scope.sub("0"), scope.sub("1"));
        let conv = if kernel == 1 {
            Conv::One(pixelwise(&conv, inputs, outputs, has_bias))
        } else {
            let weight = conv2d::arranged(&conv.tensor("weight", &[outputs, inputs, kernel, kernel]));
            let bias =
                if has_bias { conv.tensor("bias", &[outputs]) } else { Tensor::zeros(&weight.device(), &[outputs]) };
            Conv::Three(weight, bias)
        };
        Self { conv, weight: norm.tensor("weight", &[outputs]), bias: norm.tensor("bias", &[outputs]) }
    }

    /// `[b, h, w, in]` to `[b, h, w, out]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let y = match &self.conv {
            Conv::One(linear) => linear.forward(x),
            Conv::Three(weight, bias) => conv2d::forward(x, weight, bias, Window::same(3), None),
        };
        let norm = group_norm::Norm { weight: &self.weight, bias: &self.bias, groups: GROUPS, eps: EPS };
        group_norm::forward(&y, norm, false)
    }
}

/// A convolution of single pixels, `[out, in, 1, 1]` in files, as the linear layer that it is.
pub(super) fn pixelwise(scope: &Scope, inputs: usize, outputs: usize, has_bias: bool) -> Linear {
    Linear {
        weight: scope.tensor("weight", &[outputs, inputs, 1, 1]).reshape(&[outputs, inputs]),
        bias: has_bias.then(|| scope.tensor("bias", &[outputs])),
        fp8: None,
    }
}

/// `max(x, 0)`.
pub(super) fn relu(x: &Tensor) -> Tensor {
    affine::forward(x, Affine { limits: [0.0, f32::INFINITY], ..Affine::default() })
}

/// Two linear layers with a [`relu`] between them, around a shortcut.
pub(super) struct FeedForward {
    fc1: Linear,
    fc2: Linear,
}

impl FeedForward {
    /// The layers `fc1` and `fc2` under `scope`.
    pub fn load(scope: &Scope, width: usize, inner: usize) -> Self {
        Self {
            fc1: Linear::load(&scope.sub("fc1"), width, inner, true),
            fc2: Linear::load(&scope.sub("fc2"), inner, width, true),
        }
    }

    /// `x + fc2(relu(fc1(x)))`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.fc2.then(&relu(&self.fc1.forward(x)), Then::Add(x))
    }
}
