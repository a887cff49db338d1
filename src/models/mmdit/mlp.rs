//! The MLP of a stream, with its norm before it and its gate after it.

use super::modulation::Modulated;
use super::{LoraScope, keep};
use crate::device::Tensor;
use crate::models::lora::{Adapters, LoraLinear, Trained};
use crate::ops::activation::{self, Activation};
use crate::ops::adaln::{self, Chunk};
use crate::ops::gate;
use crate::ops::linear::{InputGrad, Then};

/// `down(gelu(up(x)))`.
pub(super) struct Mlp {
    up: LoraLinear,
    down: LoraLinear,
}

/// What the backward needs.
pub(super) struct Saved {
    /// The modulated input; kept where the first layer is trained.
    normed: Option<Tensor>,
    /// Before the GELU.
    hidden: Tensor,
    /// After the GELU; kept where the second layer is trained.
    activated: Option<Tensor>,
}

impl Mlp {
    pub(super) fn load(scope: &LoraScope, d: usize) -> Self {
        Self { up: scope.linear("net.0.proj", d, 4 * d), down: scope.linear("net.2", 4 * d, d) }
    }

    /// The hidden layer, and what is kept of the first `rows` samples of `x` `[b, n, d]`.
    fn hidden(&self, x: &Tensor, modulated: Modulated, adapters: &Adapters, rows: usize) -> (Tensor, Option<Saved>) {
        let normed = adaln::forward(x, modulated.shift, modulated.scale);
        if rows == 0 {
            return (self.up.forward(&normed, adapters, Then::Activate(Activation::GeluTanh)), None);
        }
        let (activated, hidden) = self.up.forward_activated(&normed, adapters, Activation::GeluTanh, rows);
        let saved = Saved {
            normed: adapters.cover(self.up.index).then(|| keep(&normed, rows)),
            hidden,
            activated: adapters.cover(self.down.index).then(|| keep(&activated, rows)),
        };
        (activated, Some(saved))
    }

    /// `x + gate·mlp(norm(x))`, and what is kept of the first `rows` samples.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        modulated: Modulated,
        adapters: &Adapters,
        rows: usize,
    ) -> (Tensor, Option<Saved>) {
        let (activated, saved) = self.hidden(x, modulated, adapters, rows);
        let gate = modulated.gate.expect("an MLP has a gate");
        (self.down.forward(&activated, adapters, Then::AddGated { residual: x, gate }), saved)
    }

    /// Computes again what a forward over the saved rows kept.
    pub(super) fn restore(&self, x: &Tensor, modulated: Modulated, adapters: &Adapters) -> Saved {
        self.hidden(x, modulated, adapters, x.dim(0)).1.expect("all rows are kept")
    }

    /// The gradient to `x`, from that to the output; and that times `before`, the gate of what `x` is the sum of.
    pub(super) fn backward(
        &self,
        mut dx: Tensor,
        saved: &Saved,
        x: &Tensor,
        modulated: Modulated,
        trained: &mut Trained,
        before: Chunk,
    ) -> (Tensor, Tensor) {
        let dy = gate::backward(&dx, modulated.gate.expect("an MLP has a gate"));
        let mut dhidden = dy.scratch_like(saved.hidden.shape());
        self.down.backward(&dy, saved.activated.as_ref(), trained, InputGrad::Overwrite(&mut dhidden));
        drop(dy);
        activation::gelu_tanh_backward(&mut dhidden, &saved.hidden);
        let mut dnormed = x.scratch_like(x.shape());
        self.up.backward(&dhidden, saved.normed.as_ref(), trained, InputGrad::Overwrite(&mut dnormed));
        drop(dhidden);
        let gated = adaln::backward_gated(&mut dx, &dnormed, x, modulated.scale, before);
        (dx, gated)
    }
}
