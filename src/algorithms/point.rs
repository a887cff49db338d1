//! What passes between a method and the training loop: points, differences of velocities there, and what their loss is.

use crate::config::method::GradientAt;
use crate::device::philox::{Key, Purpose};
use crate::ops::products::Weights;
use crate::rollout::branch::Fork;

/// One place that is trained at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The number of the image whose clean latent it is made of.
    pub image: usize,
    /// Its time in (0, 1].
    pub t: f32,
    /// The stream of its noise.
    pub noise: Key,
    /// The image's advantage.
    pub advantage: f64,
    /// The step of the rollout that it is, for methods that are trained on those.
    pub step: usize,
    /// How likely the policy that sampled it found it, for methods that compare; none if that is the trained one as it is.
    pub log_prob_old: Option<f64>,
    /// What the gradient of its image's reward is times, for methods that follow it.
    pub gradient_scale: f64,
    /// The loss looks at points of the same number together: those of a pair or a group at one time. None: at this one alone.
    pub together: Option<usize>,
    /// What the terms of its loss are times, for methods where that depends on the other points of an optimiser step.
    pub share: Share,
}

/// What the terms of a point's loss are times.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    /// What makes good images likelier.
    pub policy: f64,
    /// What holds the policy to the reference.
    pub anchor: f64,
}

impl Point {
    /// A point whose noise is not drawn yet.
    pub fn new(image: usize, t: f32, advantage: f64) -> Self {
        let (noise, share) = (Key::new(0, Purpose::ForwardNoise), Share::default());
        Self { image, t, noise, advantage, step: 0, log_prob_old: None, gradient_scale: 1.0, together: None, share }
    }
}

/// A tensor of a batch of points, one row per point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// The trained policy's velocity.
    Theta,
    /// The reference's.
    Reference,
    /// The lagged policy's.
    Old,
    /// The noise.
    Noise,
    /// The clean latent.
    X0,
    /// The sample before a step of the rollout.
    X,
    /// The sample after it.
    Next,
    /// The mean of the step by the policy that sampled.
    MeanOld,
    /// The gradient of the reward to the clean latent that the method takes it at.
    RewardGradient,
    /// The velocity of the policy that sampled, with guidance.
    VelocityOld,
}

/// `Σ weight·operand`, added up in the order it is written in.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Weights and operands.
    pub terms: Vec<(Weight, Operand)>,
}

/// A factor on an operand of a difference.
#[derive(Clone, Debug)]
pub enum Weight {
    /// The same for every point.
    All(f32),
    /// Each point's own.
    Rows(Vec<f32>),
}

impl Weight {
    /// As the op takes it.
    pub fn weights(&self) -> Weights<'_> {
        match self {
            Self::All(w) => Weights::All(*w),
            Self::Rows(w) => Weights::Rows(w),
        }
    }
}

impl Difference {
    /// The sum of operands with signs.
    pub fn signed(terms: &[(f32, Operand)]) -> Self {
        Self { terms: terms.iter().map(|(w, o)| (Weight::All(*w), *o)).collect() }
    }

    /// `who − y`: by how much a velocity misses that of the point, `y = noise − x0`.
    pub fn mismatch(who: Operand) -> Self {
        Self::signed(&[(1.0, who), (-1.0, Operand::Noise), (1.0, Operand::X0)])
    }

    /// `θ − other`.
    pub fn from(other: Operand) -> Self {
        Self::signed(&[(1.0, Operand::Theta), (-1.0, other)])
    }
}

/// Which velocities besides the trained policy's are evaluated at every point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The reference's.
    pub reference: bool,
    /// The lagged policy's.
    pub old: bool,
    /// The means of the rollout's steps.
    pub mean_old: bool,
    /// The gradients of the rewards to clean latents, these ones, and the samples before every step of the rollout.
    pub reward_gradient: Option<GradientAt>,
    /// The velocities of the rollout's steps, and their noise in the place of the samples after.
    pub velocity_old: bool,
}

/// The loss of some points and its gradient: `dL/dv = (1/D)·Σ_k coefficients[k]·difference_k` for each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loss {
    /// The points' share of the loss.
    pub value: f64,
    /// One per difference and point.
    pub coefficients: Vec<Vec<f64>>,
    /// How much likelier the trained policy makes each point than the one that sampled it, of methods that compare.
    pub ratios: Vec<f64>,
    /// How many of these were clipped.
    pub clipped: usize,
    /// What the policy makes of the pairs, of methods that learn from those.
    pub pairs: Pairs,
}

/// What a policy makes of pairs of a winner and a loser, added up over them. An error is the mean square by which a velocity misses
/// that of a point, and grows by so much from the reference to the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pairs {
    /// How many there are.
    pub count: usize,
    /// How many are told apart as they should be: the winner's error has grown less than the loser's.
    pub told_apart: usize,
    /// The growths of the winners' errors.
    pub winners: f64,
    /// The growths of the losers' errors.
    pub losers: f64,
}

impl Pairs {
    /// One pair, whose errors have grown by so much.
    pub fn one(winner: f64, loser: f64) -> Self {
        Self { count: 1, told_apart: usize::from(winner < loser), winners: winner, losers: loser }
    }
}

impl std::ops::AddAssign for Pairs {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.told_apart += other.told_apart;
        self.winners += other.winners;
        self.losers += other.losers;
    }
}

impl Loss {
    /// The same for the points in runs of these `lengths`; the value, what was clipped and the pairs go with the first.
    pub fn split(self, lengths: impl IntoIterator<Item = usize>) -> Vec<Self> {
        let mut start = 0;
        let run = |length: usize| {
            let range = start..start + length;
            start += length;
            let is_first = range.start == 0;
            Self {
                value: if is_first { self.value } else { 0.0 },
                clipped: if is_first { self.clipped } else { 0 },
                pairs: if is_first { self.pairs } else { Pairs::default() },
                coefficients: self.coefficients.iter().map(|c| c[range.clone()].to_vec()).collect(),
                ratios: self.ratios.get(range).unwrap_or_default().to_vec(),
            }
        };
        lengths.into_iter().map(run).collect()
    }
}

/// Which steps of an epoch's rollouts a method is trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Those that add noise; the others follow the ODE.
    pub noisy: Vec<usize>,
    /// Those that are trained on, in their order.
    pub trained: Vec<usize>,
}

impl Window {
    /// Noise at the steps of `noisy`, training at those of `trained`.
    pub fn new(noisy: impl IntoIterator<Item = usize>, trained: impl IntoIterator<Item = usize>) -> Self {
        Self { noisy: noisy.into_iter().collect(), trained: trained.into_iter().collect() }
    }
}

/// Classifier-free guidance of the velocities that a loss compares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// Its scale.
    pub scale: f32,
    /// Whether the unconditional velocity is trained too.
    pub trains_unconditional: bool,
}

/// What an epoch's points are made from.
pub struct Scored<'a> {
    /// One per image.
    pub advantages: &'a [f64],
    /// The number of each image's group; numbers are given in the order of the groups' first images.
    pub groups: &'a [usize],
    /// The stream of a use for an image and a draw.
    pub key: &'a dyn Fn(Purpose, usize, u32) -> Key,
    /// The steps that were recorded, and how likely each image's was: step by step, all images of one after the other.
    pub steps: &'a [usize],
    /// As said.
    pub log_probs: &'a [f64],
    /// The lengths of the gradients of the reward, for methods that follow them: one per image, or as many for each recorded step.
    pub gradient_norms: &'a [f64],
    /// Where each image left its trunk, if images are forks; the recorded step is that one alone.
    pub forks: &'a [Fork],
}

impl Scored<'_> {
    /// How likely the recorded `step` of an image was, where that is known.
    pub(super) fn log_prob(&self, step: usize, image: usize) -> Option<f64> {
        let row = self.steps.iter().position(|s| *s == step)?;
        self.log_probs.get(row * self.advantages.len() + image).copied()
    }

    /// The length of the gradient of the reward that `point` is led by.
    pub(super) fn gradient_norm(&self, point: &Point) -> f64 {
        let images = self.advantages.len();
        let is_of_steps = self.gradient_norms.len() > images;
        let row = self.steps.iter().position(|step| is_of_steps && *step == point.step).unwrap_or(0);
        self.gradient_norms[row * images + point.image]
    }
}
