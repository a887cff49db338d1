//! The MLPs of the streams, with their norms before them and their gates after them; those of a block in lock-step.

use super::modulation::Modulated;
use super::{LoraScope, keep};
use crate::device::Tensor;
use crate::models::lora::{self, Adapters, Backward, Call, LoraLinear, Trained};
use crate::ops::activation::Activation;
use crate::ops::adaln::{self, Chunk};
use crate::ops::gate;
use crate::ops::linear::{InputGrad, Output, Then};

/// `down(gelu(up(x)))`.
pub(super) struct Mlp {
    up: LoraLinear,
    down: LoraLinear,
}

/// An MLP, the residual stream that it reads, `[b, n, d]`, and what modulates it.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub mlp: &'a Mlp,
    pub x: &'a Tensor,
    pub modulated: Modulated<'a>,
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

    /// The same with weights in e4m3.
    pub(super) fn quantised(&self) -> Self {
        Self { up: self.up.quantised(), down: self.down.quantised() }
    }
}

/// The hidden layers, and what is kept of the first `rows` samples.
fn hidden(inputs: &[Input], adapters: &Adapters, rows: usize) -> Vec<(Tensor, Option<Saved>)> {
    let normed: Vec<Tensor> =
        inputs.iter().map(|i| adaln::forward(i.x, i.modulated.shift, i.modulated.scale)).collect();
    let then = Then::Activate(Activation::GeluTanh);
    let calls = inputs.iter().zip(&normed).map(|(i, x)| Call { layer: &i.mlp.up, x, then, kept: rows });
    let outputs = lora::forward_group(&calls.collect::<Vec<_>>(), adapters);
    let save = |((Input { mlp, .. }, normed), output): ((&Input, &Tensor), Output)| {
        let saved = (rows > 0).then(|| Saved {
            normed: adapters.cover(mlp.up.index).then(|| keep(normed, rows)),
            hidden: output.hidden,
            activated: adapters.cover(mlp.down.index).then(|| keep(&output.y, rows)),
        });
        (output.y, saved)
    };
    inputs.iter().zip(&normed).zip(outputs).map(save).collect()
}

/// `x + gate·mlp(norm(x))` of each, and what is kept of the first `rows` samples.
pub(super) fn forward(inputs: &[Input], adapters: &Adapters, rows: usize) -> Vec<(Tensor, Option<Saved>)> {
    let (activated, saved): (Vec<Tensor>, Vec<Option<Saved>>) = hidden(inputs, adapters, rows).into_iter().unzip();
    let calls = inputs.iter().zip(&activated).map(|(&Input { mlp, x, modulated }, activated)| {
        let gate = modulated.gate.expect("an MLP has a gate");
        Call { layer: &mlp.down, x: activated, then: Then::AddGated { residual: x, gate }, kept: 0 }
    });
    let outputs = lora::forward_group(&calls.collect::<Vec<_>>(), adapters);
    outputs.into_iter().map(|o| o.y).zip(saved).collect()
}

/// Computes again what a forward over the saved rows kept.
pub(super) fn restore(inputs: &[Input], adapters: &Adapters) -> Vec<Saved> {
    let rows = inputs.first().map_or(0, |i| i.x.dim(0));
    let saved = hidden(inputs, adapters, rows).into_iter().map(|(_, saved)| saved);
    saved.map(|s| s.expect("all rows are kept")).collect()
}

/// From the gradients `dx` to the outputs to those to the residual streams, in place; of as many as there are. Returns the
/// latter times `before`, gates of what the residual streams are sums of.
pub(super) fn backward(
    dx: &mut [Tensor],
    inputs: &[(Input, &Saved)],
    before: &[Chunk],
    trained: &mut Trained,
) -> Vec<Tensor> {
    let inputs = &inputs[..dx.len()];
    let gated = |(dx, (input, _)): (&Tensor, &(Input, &Saved))| {
        gate::backward(dx, input.modulated.gate.expect("an MLP has a gate"))
    };
    let dy: Vec<Tensor> = dx.iter().zip(inputs).map(gated).collect();
    let mut dhidden: Vec<Tensor> = inputs.iter().map(|(_, s)| s.hidden.scratch_like(s.hidden.shape())).collect();
    let down = inputs.iter().zip(&dy).zip(&mut dhidden).map(|(((Input { mlp, .. }, saved), dy), dx)| Backward {
        x: saved.activated.as_ref(),
        layers: vec![(&mlp.down, dy)],
        dx: InputGrad::ThroughGelu { dx, hidden: &saved.hidden },
    });
    lora::backward_group(down.collect(), trained);
    drop(dy);

    let mut dnormed: Vec<Tensor> = inputs.iter().map(|(i, _)| i.x.scratch_like(i.x.shape())).collect();
    let up = inputs.iter().zip(&dhidden).zip(&mut dnormed).map(|(((Input { mlp, .. }, saved), dy), dx)| Backward {
        x: saved.normed.as_ref(),
        layers: vec![(&mlp.up, dy)],
        dx: InputGrad::Overwrite(dx),
    });
    lora::backward_group(up.collect(), trained);
    drop(dhidden);
    let norm = dx.iter_mut().zip(inputs).zip(&dnormed).zip(before);
    norm.map(|(((dx, (input, _)), dnormed), before)| {
        adaln::backward_gated(dx, dnormed, input.x, input.modulated.scale, *before)
    })
    .collect()
}
