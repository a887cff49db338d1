use crate::device::{Precision, Tensor};
use crate::io::Scope;
use crate::ops::linear::{self, Layer, Lora, Then};
use crate::ops::{dequantise, fp8};

/// A frozen linear layer `y = x·Wᵀ + b`.
#[derive(Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    /// The weight in e4m3, where that is what is multiplied: then there is no backward.
    pub fp8: Option<fp8::Rows>,
}

impl Linear {
    /// The layer under `scope`: `weight` `[outputs, inputs]`, in the precision that the scope asks for, and `bias` `[outputs]` if
    /// there is to be one.
    pub fn load(scope: &Scope, inputs: usize, outputs: usize, bias: bool) -> Self {
        let stored = scope.stored("weight", &[outputs, inputs]);
        Self::with(stored, bias.then(|| scope.tensor("bias", &[outputs])), scope.precision())
    }

    /// The layer with `stored` as its weight, in `precision`.
    pub fn with(stored: Tensor, bias: Option<Tensor>, precision: Precision) -> Self {
        let weight = match precision {
            Precision::Half(dtype) if stored.dtype() != dtype => linear::rounded(&stored, dtype),
            Precision::Wide(wide) => stored.multiplied(Some(wide)),
            Precision::Half(_) | Precision::Stored => stored,
        };
        Self { weight, bias, fp8: None }
    }

    /// The same layer with its weight in e4m3, if there are kernels for its shape; else the layer itself.
    pub fn quantised(&self) -> Self {
        let fits = fp8::fits(self.weight.dim(0), self.weight.dim(1));
        Self { fp8: fits.then(|| fp8::quantise(&dequantise::forward(&self.weight))), ..self.clone() }
    }

    /// The layer as the op takes it.
    pub fn layer(&self) -> Layer<'_> {
        Layer { weight: &self.weight, bias: self.bias.as_ref() }
    }

    /// The layer with `weight`, its own in e4m3, and what `lora` adds for all samples.
    pub(super) fn in_fp8<'a>(&'a self, weight: &'a fp8::Rows, lora: &'a [Lora]) -> fp8::Layer<'a> {
        assert!(lora.len() <= 1, "in fp8 all samples go through one adapter");
        fp8::Layer { weight, bias: self.bias.as_ref(), lora: lora.first() }
    }

    /// `x` `[.., in]` to `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.then(x, Then::Nothing)
    }

    /// `x` `[.., in]` to `then(..)` `[.., out]`.
    pub fn then(&self, x: &Tensor, then: Then) -> Tensor {
        linear::forward(x, self.layer(), then)
    }
}
