//! The steps of a rollout that methods are trained on, which compare how likely policies make them.

use std::ops::Range;

use crate::algorithms::Needs;
use crate::config::method::GradientAt;
use crate::device::philox::Key;
use crate::device::{Device, Tensor};
use crate::ops::copy;
use crate::ops::step::{self, Inputs, Row};
use crate::rollout::branch::Fork;
use crate::rollout::sample::{self, Visit};
use crate::rollout::sampler::Step;

/// Steps of a rollout as they were taken.
pub struct Recorded {
    /// Which steps of the samples.
    pub steps: Vec<usize>,
    /// The samples before, of each step all samples, one step after the other: `[steps·samples, channels, h, w]`.
    pub x: Tensor,
    /// The velocities there, with guidance, where they are wanted or forks take a step along them.
    pub velocity: Option<Tensor>,
    /// The means of the steps that add noise, where they are wanted.
    pub mean: Option<Tensor>,
    /// The clean latents that the velocities point at, `x − σ·v`, like `x`, where the gradients of the reward there are wanted;
    /// then those.
    pub reward_gradient: Option<Tensor>,
    /// What came after by a step with noise, where it is wanted: like `x`, or if images are forks, `[images, channels, h, w]`.
    pub next: Option<Tensor>,
    /// How probable that was.
    pub log_probs: Vec<f64>,
    /// Where each image left its trunk, if images are forks.
    pub forks: Vec<Fork>,
}

impl Recorded {
    /// Room for `steps` of `samples` latents of `shape` on `device`, and for their forks.
    pub fn new(
        device: &Device,
        steps: Vec<usize>,
        samples: usize,
        shape: [usize; 3],
        forks: &[Fork],
        needs: Needs,
    ) -> Self {
        let before = steps.len() * samples;
        let after = if forks.is_empty() { before } else { forks.len() };
        let blank = |rows: usize| Tensor::scratch(device, &[&[rows], &shape[..]].concat());
        let wants_next = !needs.velocity_old;
        Self {
            steps,
            x: blank(before),
            velocity: (needs.velocity_old || !forks.is_empty()).then(|| blank(before)),
            mean: needs.mean_old.then(|| blank(before)),
            reward_gradient: (needs.reward_gradient == Some(GradientAt::OneStep)).then(|| blank(before)),
            next: wants_next.then(|| blank(after)),
            log_probs: if wants_next { vec![0.0; after] } else { Vec::new() },
            forks: forks.to_vec(),
        }
    }

    /// Takes in a step of the samples from `first` on; `noisy` is that step, as it is where it adds noise.
    pub fn take(&mut self, visit: &Visit, noisy: &Step, first: usize) {
        if !self.steps.contains(&visit.step) {
            return;
        }
        let (row, velocity) = (self.row(visit.step, first), visit.guided());
        copy::rows_into(&mut self.x, row, visit.x);
        if let Some(velocities) = &mut self.velocity {
            copy::rows_into(velocities, row, &velocity);
        }
        if let Some(mean) = &mut self.mean {
            copy::rows_into(mean, row, &step::forward(visit.inputs, Row { s: 0.0, ..noisy.row() }));
        }
        if let Some(clean) = &mut self.reward_gradient {
            let to_clean = Row { a: 1.0, b: -noisy.sigma, ..Row::default() };
            copy::rows_into(clean, row, &step::forward(visit.inputs, to_clean));
        }
        if self.forks.is_empty() {
            self.put(row, visit.x, &velocity, visit.next, noisy);
        }
    }

    /// Takes the step `noisy` from the trunks of `images`, which leave theirs there with the noise of `keys`.
    pub fn fork(&mut self, images: Range<usize>, noisy: &Step, keys: &[Key]) -> Tensor {
        let rows: Vec<usize> = images.clone().map(|image| self.before(self.forks[image].step, image)).collect();
        let x = copy::gather(&self.x, &rows);
        let velocity = copy::gather(self.velocity.as_ref().expect("kept for forks"), &rows);
        let inputs = Inputs { x: &x, velocity: &velocity, guidance: None, history: [None; 2], noise: keys };
        let next = step::forward(inputs, noisy.row());
        self.put(images.start, &x, &velocity, &next, noisy);
        next
    }

    /// Takes in what came after `x`, from `row` on.
    fn put(&mut self, row: usize, x: &Tensor, velocity: &Tensor, next: &Tensor, noisy: &Step) {
        let Some(all) = &mut self.next else { return };
        copy::rows_into(all, row, next);
        if noisy.log_prob.is_none() {
            return;
        }
        let log_probs = sample::log_probs(x, velocity, next, noisy);
        self.log_probs[row..row + log_probs.len()].copy_from_slice(&log_probs);
    }

    /// The same of some of the images.
    pub fn of(self, images: &[usize]) -> Self {
        if !self.forks.is_empty() {
            return Self {
                next: self.next.as_ref().map(|next| copy::gather(next, images)),
                log_probs: images.iter().filter_map(|i| self.log_probs.get(*i)).copied().collect(),
                forks: images.iter().map(|i| self.forks[*i]).collect(),
                ..self
            };
        }
        let pairs = self.steps.iter().flat_map(|step| images.iter().map(move |i| (*step, *i)));
        let rows: Vec<usize> = pairs.map(|(step, i)| self.row(step, i)).collect();
        let cut = |t: &Tensor| copy::gather(t, &rows);
        Self {
            x: cut(&self.x),
            velocity: self.velocity.as_ref().map(cut),
            mean: self.mean.as_ref().map(cut),
            reward_gradient: self.reward_gradient.as_ref().map(cut),
            next: self.next.as_ref().map(cut),
            log_probs: rows.iter().filter_map(|row| self.log_probs.get(*row)).copied().collect(),
            ..self
        }
    }

    /// The row of a sample before `step`.
    fn row(&self, step: usize, sample: usize) -> usize {
        let place = self.steps.iter().position(|s| *s == step).expect("a recorded step");
        place * (self.x.dim(0) / self.steps.len()) + sample
    }

    /// The row of what `image` was before `step`.
    pub fn before(&self, step: usize, image: usize) -> usize {
        self.row(step, self.forks.get(image).map_or(image, |fork| fork.trunk))
    }

    /// The row of what `image` was after `step`, which is the step where it left its trunk, if it did.
    pub fn after(&self, step: usize, image: usize) -> usize {
        if self.forks.is_empty() { self.row(step, image) } else { image }
    }
}
