//! What makes one training method differ from another: at which points of the noising process it trains, and the
//! loss and its gradient to the velocity there. The rest (rollout, rewards, backward, optimiser) is shared.

pub mod advantage;
pub mod ram;

use crate::device::Tensor;
use crate::device::philox::Stream;

pub use ram::Ram;

/// Velocities at a batch of training points, `[n, channels, h, w]` each, all conditional, without guidance.
pub struct Velocities<'a> {
    /// The trained policy's.
    pub theta: &'a Tensor,
    /// The base model's: no adapter.
    pub reference: &'a Tensor,
    /// The lagged policy's.
    pub old: &'a Tensor,
}

/// What a batch of training points was made from.
pub struct Points<'a> {
    /// Clean latents, `[n, channels, h, w]`.
    pub x0: &'a Tensor,
    /// Noise, of the same shape.
    pub noise: &'a Tensor,
    /// Times in (0, 1], `[n]`.
    pub t: &'a [f32],
    /// Advantages of the images, `[n]`.
    pub advantage: &'a [f32],
}

impl Points<'_> {
    /// `x_t = (1 − t)·x0 + t·noise`, like `x0`.
    pub fn noised(&self) -> Tensor {
        let per = self.x0.len() / self.t.len();
        let mut x = self.x0.clone();
        for ((x, noise), t) in x.data_mut().chunks_exact_mut(per).zip(self.noise.data().chunks_exact(per)).zip(self.t) {
            x.iter_mut().zip(noise).for_each(|(x, e)| *x = (1.0 - t) * *x + t * e);
        }
        x
    }
}

/// A training method.
pub trait Algorithm: Sync {
    /// Its name in configs.
    fn name(&self) -> &'static str;

    /// Draws the time of one training point.
    fn time(&self, stream: &mut Stream) -> f32;

    /// Adds the loss of the points, weighted by `1/total`, and writes its gradient to `v.theta` into `dv`. The other
    /// velocities, the points and the advantages are constants.
    fn loss(&self, v: &Velocities, points: &Points, total: usize, dv: &mut Tensor) -> f64;
}
