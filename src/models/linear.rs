use crate::device::{DType, Tensor};
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
    /// The layer under `scope`: `weight` `[outputs, inputs]`, rounded if the scope asks for it and it is in single precision or
    /// in blocks, and `bias` `[outputs]` if
    /// there is to be one.
    pub fn load(scope: &Scope, inputs: usize, outputs: usize, bias: bool) -> Self {
        let stored = scope.stored("weight", &[outputs, inputs]);
        Self {
            weight: match scope.rounding() {
                Some(dtype) if matches!(stored.dtype(), DType::F32 | DType::Blocks(_)) => {
                    linear::rounded(&stored, dtype)
                }
                _ => stored,
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
