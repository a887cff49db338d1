//! One step of any sampler: guidance, noise, the next sample and how probable it is, in one pass.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::Tensor;
use crate::device::philox::Key;

/// The numbers of one step: `x' = a·x + b·v + history[0]·m1 + history[1]·m2 + s·ε`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Row {
    /// Factor on the sample.
    pub a: f32,
    /// Factor on the velocity.
    pub b: f32,
    /// Factors on the clean predictions of the one and of two calls before.
    pub history: [f32; 2],
    /// Standard deviation of the noise.
    pub s: f32,
}

/// What a step is made from.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The sample, `[b, ..]`.
    pub x: &'a Tensor,
    /// The velocity there, shaped as `x`; with guidance `[2b, ..]`, the unconditional half first.
    pub velocity: &'a Tensor,
    /// Classifier-free guidance scale `g` (Ho and Salimans 2022): `v = u + g·(c − u)`.
    pub guidance: Option<f32>,
    /// Earlier clean predictions, the latest first, where the row has factors for them.
    pub history: [Option<&'a Tensor>; 2],
    /// The stream of each sample's noise, where the row has noise.
    pub noise: &'a [Key],
}

impl Inputs<'_> {
    fn check(&self) {
        let (x, v) = (self.x, self.velocity);
        let copies = if self.guidance.is_some() { 2 } else { 1 };
        assert!(v.dim(0) == copies * x.dim(0) && v.shape()[1..] == x.shape()[1..], "step: {v:?} for {x:?}");
        assert!(self.history.iter().flatten().all(|m| m.shape() == x.shape()), "step: history for {x:?}");
    }
}

/// The next sample.
///
/// Every operation is rounded to f32 on its own, in the order of the formula (`((a·x + b·v) + b1·m1) + …`), and terms whose
/// factor is zero are left out: a stochastic sampler without noise is the deterministic one bit for bit, and draws nothing.
pub fn forward(inputs: Inputs, row: Row) -> Tensor {
    inputs.check();
    assert!(row.s == 0.0 || inputs.noise.len() == inputs.x.dim(0), "step: noise for {:?}", inputs.x);
    let mut next = inputs.x.scratch_like(inputs.x.shape());
    dispatch!(inputs.x, forward(&mut next, inputs, row));
    next
}

/// `⟨x' − μ, x' − μ⟩` of each sample: the mean square of what the noise has added to the mean `μ` of the step, from which
/// its log-probability follows. Differences are taken in f32 in the order of [`forward`], squares and sums in f64.
pub fn residuals(next: &Tensor, inputs: Inputs, row: Row) -> Vec<f64> {
    inputs.check();
    assert_eq!(next.shape(), inputs.x.shape(), "step: residuals");
    let mut means = vec![0.0; next.dim(0)];
    dispatch!(next, residuals(&mut means, next, inputs, row));
    means
}

/// The clean prediction `m = x − σ·v` that samplers with a history keep.
pub fn clean(inputs: Inputs, sigma: f32) -> Tensor {
    forward(inputs, Row { a: 1.0, b: -sigma, ..Row::default() })
}
