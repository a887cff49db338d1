use crate::device::{Tensor, Weight};
use crate::io::Scope;
use crate::ops;

/// A frozen linear layer `y = x·Wᵀ + b`.
pub struct Linear {
    /// `[out, in]`.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Weight>,
}

impl Linear {
    /// The layer under `scope`: `weight` `[outputs, inputs]`, and `bias` `[outputs]` if there is to be one.
    pub fn load(scope: &Scope, inputs: usize, outputs: usize, bias: bool) -> Self {
        Self {
            weight: scope.tensor("weight", &[outputs, inputs]),
            bias: bias.then(|| scope.tensor("bias", &[outputs])),
        }
    }

    /// `x` `[.., in]` to `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        ops::linear::forward(x, &self.weight, self.bias.as_ref(), None)
    }
}
