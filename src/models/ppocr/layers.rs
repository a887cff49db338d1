use crate::device::Tensor;
use crate::io::Scope;
use crate::ops::conv2d::{self, Window};
use crate::ops::pointwise::{self, Bend, Curve, Weight};
use crate::ops::{depthwise, squeeze};

/// A 1x1 convolution.
pub(super) struct Pointwise {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Pointwise {
    /// The layer under `scope`, of `inputs` channels.
    pub fn load(scope: &Scope, inputs: usize) -> Self {
        let [outputs, _] = scope.shape("weight");
        Self::sized(scope, inputs, outputs)
    }

    /// As [`Pointwise::load`], of a layer that must have `outputs`.
    pub fn sized(scope: &Scope, inputs: usize, outputs: usize) -> Self {
        Self { bias: Some(scope.tensor("bias", &[outputs])), ..Self::without_bias(scope, inputs, outputs) }
    }

    /// As [`Pointwise::sized`], of a layer that has no bias.
    pub fn without_bias(scope: &Scope, inputs: usize, outputs: usize) -> Self {
        Self { weight: Weight::of(&scope.tensor("weight", &[outputs, inputs])), bias: None }
    }

    /// Channels of the result.
    pub fn outputs(&self) -> usize {
        self.weight.outputs()
    }

    /// `[.., in]` to `[.., out]`.
    pub fn forward(&self, x: &Tensor, bend: impl Into<Bend>) -> Tensor {
        pointwise::forward(x, &self.weight, self.bias.as_ref(), bend, None)
    }

    /// As [`Pointwise::forward`], added to `residual`.
    pub fn add(&self, x: &Tensor, residual: &Tensor) -> Tensor {
        pointwise::forward(x, &self.weight, self.bias.as_ref(), Curve::Line, Some(residual))
    }
}

/// A convolution over all channels.
pub(super) struct Conv {
    /// `[out, kh, kw, in]`.
    weight: Tensor,
    bias: Tensor,
}

impl Conv {
    /// The layer under `scope`, of `inputs` channels and windows `kernel` high and wide.
    pub fn load(scope: &Scope, inputs: usize, kernel: [usize; 2]) -> Self {
        let [outputs, ..] = scope.shape::<4>("weight");
        Self { bias: scope.tensor("bias", &[outputs]), ..Self::without_bias(scope, inputs, outputs, kernel) }
    }

    /// As [`Conv::load`], of a layer that must have `outputs` and has no bias.
    pub fn without_bias(scope: &Scope, inputs: usize, outputs: usize, kernel: [usize; 2]) -> Self {
        let weight = scope.tensor("weight", &[outputs, inputs, kernel[0], kernel[1]]);
        Self { bias: Tensor::zeros(&weight.device(), &[outputs]), weight: conv2d::arranged(&weight) }
    }

    /// Channels of the result.
    pub fn outputs(&self) -> usize {
        self.weight.dim(0)
    }

    /// `[b, h, w, in]` to `[b, ⌈h/stride⌉, ⌈w/stride⌉, out]`, with half a window of zeros around it.
    pub fn forward(&self, x: &Tensor, stride: usize, bend: impl Into<Bend>) -> Tensor {
        let (down, across) = (self.weight.dim(1) / 2, self.weight.dim(2) / 2);
        let window = Window { stride, padding: [across, across, down, down] };
        let mut y = conv2d::forward(x, &self.weight, &self.bias, window, None);
        let bend = bend.into();
        if bend != Curve::Line.into() {
            pointwise::apply(&mut y, bend);
        }
        y
    }
}

/// A depthwise convolution.
pub(super) struct Depthwise {
    /// `[k·k, channels]`.
    weight: Tensor,
    bias: Tensor,
}

impl Depthwise {
    /// The layer under `scope`, of `channels` with windows of `kernel`.
    pub fn load(scope: &Scope, channels: usize, kernel: usize) -> Self {
        let weight = depthwise::arranged(&scope.tensor("weight", &[channels, 1, kernel, kernel]));
        Self { weight, bias: scope.tensor("bias", &[channels]) }
    }

    /// `[b, h, w, c]` to `[b, ⌈h/stride⌉, ⌈w/stride⌉, c]`, strides down and across.
    pub fn forward(&self, x: &Tensor, stride: [usize; 2], bend: impl Into<Bend>) -> Tensor {
        depthwise::forward(x, &self.weight, &self.bias, stride, bend)
    }
}

/// The small network of squeeze and excitation.
pub(super) struct Gates {
    squeeze: Pointwise,
    excite: Pointwise,
    gate: Bend,
}

impl Gates {
    /// The layers `squeeze` and `excite` under `scope`, that end in `gate`.
    pub fn load(scope: &Scope, channels: usize, gate: Bend) -> Self {
        let squeeze = Pointwise::load(&scope.sub("squeeze"), channels);
        Self { excite: Pointwise::sized(&scope.sub("excite"), squeeze.outputs(), channels), squeeze, gate }
    }

    /// Every channel of `x` times its gate, in place.
    pub fn forward(&self, x: &mut Tensor) {
        let hidden = self.squeeze.forward(&squeeze::means(x), Curve::Relu);
        squeeze::excite(x, &self.excite.forward(&hidden, self.gate));
    }
}
