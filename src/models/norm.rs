use crate::device::Tensor;
use crate::io::Scope;
use crate::ops;

/// Layer normalisation with scale and shift.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// The parameters `weight` and `bias` `[width]` under `scope`.
    pub fn load(scope: &Scope, width: usize, eps: f32) -> Self {
        Self { weight: scope.tensor("weight", &[width]), bias: scope.tensor("bias", &[width]), eps }
    }

    /// `x` `[.., width]`, each row normalised.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        ops::layer_norm::forward(x, &self.weight, &self.bias, self.eps)
    }

    /// Adds the gradient to `x` to `dx`, if `dy` is that to the result.
    pub fn backward(&self, dx: &mut Tensor, dy: &Tensor, x: &Tensor) {
        ops::layer_norm::backward(dx, dy, x, &self.weight, self.eps);
    }
}
