use crate::device::{Precision, Tensor};
use crate::io::Scope;
use crate::ops::linear::{self, Layer, Then};

/// A frozen linear layer `y = x·Wᵀ + b`.
pub struct Linear {
    /// `[out, in]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// The layer under `scope`: `weight` `[outputs, inputs]`, in the precision that the scope asks for, and `bias` `[outputs]` if
    /// there is to be one.
    pub fn load(scope: &Scope, inputs: usize, outputs: usize, bias: bool) -> Self {
        let stored = scope.stored("weight", &[outputs, inputs]);
        Self {
            weight: match scope.precision() {
                Precision::Half(dtype) if stored.dtype() != dtype => linear::rounded(&stored, dtype),
                Precision::Wide(wide) => stored.multiplied(Some(wide)),
                Precision::Half(_) | Precision::Stored => stored,
            },
            bias: bias.then(|| scope.tensor("bias", &[outputs])),
        }
    }

    /// The layer as the op takes it.
    pub fn layer(&self) -> Layer<'_> {
        Layer { weight: &self.weight, bias: self.bias.as_ref() }
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
