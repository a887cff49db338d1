//! Training. [`Setup::train_epoch`] reads top to bottom as the algorithm; [`run`] goes round.

mod absent;
pub mod best;
pub mod checkpoint;
mod drift;
pub mod ema;
pub mod guard;
mod judge;
pub mod learning_rate;
mod line;
pub mod plan;
pub mod points;
mod prompts;
mod recorded;
pub mod rehearse;
pub mod report;
pub mod rollout;
pub mod run;
pub mod scaler;
pub mod setup;
pub mod speed;
pub mod state;
pub mod update;

use std::borrow::Cow;

use anyhow::Result;

use self::guard::Interrupt;
use self::report::{EpochReport, EvalReport};
use self::rollout::{Job, Order};
use self::setup::Setup;
use self::state::State;
use crate::algorithms::Scored;
use crate::algorithms::advantage::{group_normalised_sum, group_spread, numbered};
use crate::config::raw::Aggregation;
use crate::data::Prompt;
use crate::data::sampler::{Sample, groups};
use crate::models::lora::{AdapterBank, Slot};
use crate::rollout::branch::forks;
use crate::telemetry::{Clock, range};

/// Random numbers of epoch `e` are keyed by `e + 1`; 0 is for evaluation, whose images are the same at every epoch.
const EVAL_EPOCH: u32 = 0;

/// Rewards none of which is another, nor the mean of some.
fn different(count: usize) -> Vec<f64> {
    (0..count).map(|i| (i as f64 / count as f64).exp()).collect()
}

impl Setup {
    /// One epoch of training. `state` is changed only when everything has succeeded.
    ///
    /// # Errors
    /// [`Interrupted`](guard::Interrupted), or what a reward or an encoder reports.
    pub fn train_epoch(&mut self, state: &mut State, interrupt: &Interrupt) -> Result<EpochReport> {
        let (raw, epoch) = (self.config.raw.clone(), state.epoch);
        let _range = range(format_args!("epoch {epoch}"));
        let mut clock = Clock::start();
        self.prompts.next_round();

        // Images of this epoch's prompts by the policy that samples, and what they are worth.
        let (prompts, repeats) = (raw.rollout.num_prompts_per_epoch, raw.rollout.num_images_per_prompt);
        let samples = groups(self.train.prompts.len(), prompts, repeats, raw.seed, epoch);
        let of_sample: Vec<Prompt> = samples.iter().map(|s| self.train.prompts[s.prompt].clone()).collect();
        let forks = forks(self.algorithm.forks(), samples.len());
        let order = Order {
            adapter: Some((&state.bank, self.algorithm.rollout(state.moments.steps))),
            samples: &samples,
            prompts: &of_sample,
            forks: &forks,
            epoch: epoch + 1,
            job: Job {
                steps: raw.rollout.num_inference_steps,
                guidance: raw.rollout.guidance_scale,
                what: "rollout",
                trains: true,
            },
            keep_pictures: false,
            window: self.algorithm.window(raw.seed, epoch + 1),
        };
        let rollout = self.rollout(&order, &mut clock, interrupt)?;

        // Prompts that a set holds twice are one group; forks of a sample are one for each step. Of a group that was not judged
        // as a whole, nothing is learnt.
        let group: Vec<Cow<str>> = match &forks[..] {
            [] => of_sample.iter().map(|p| p.text.as_str().into()).collect(),
            forks => forks.iter().map(|fork| fork.group().into()).collect(),
        };
        let group: Vec<&str> = group.iter().map(AsRef::as_ref).collect();
        let judged = absent::judged(&rollout.scores.missing, &group)?;
        let why = rollout.scores.missing.values().next().cloned();
        let rollout = if judged.skipped > 0 { rollout.of(&judged.images) } else { rollout };
        let group: Vec<&str> = judged.images.iter().map(|i| group[*i]).collect();
        let images: Vec<usize> = judged.images.iter().map(|i| order.sample(*i)).collect();
        let texts: Vec<&str> = images.iter().map(|i| of_sample[*i].text.as_str()).collect();

        // How much better an image is than the others of its prompt.
        let rewards = match raw.reward_aggregation {
            Aggregation::Sum => rollout.scores.weighted.clone(),
            Aggregation::Gdpo => group_normalised_sum(&self.rewards.weighed(&rollout.scores), &group),
        };
        // Nothing is judged in a plan; in a run every image may be worth training on.
        let rewards = if self.device.is_plan() { different(rewards.len()) } else { rewards };
        let advantages = self.algorithm.advantages(&rewards, &group);
        let recorded = rollout.recorded.as_ref();
        let scored = Scored {
            advantages: &advantages.values,
            groups: &numbered(&group),
            key: &|purpose, image, draw| samples[images[image]].key(raw.seed, purpose, epoch + 1, draw),
            steps: recorded.map_or(&[], |r| &r.steps),
            log_probs: recorded.map_or(&[], |r| &r.log_probs),
            forks: recorded.map_or(&[], |r| &r.forks),
            gradient_norms: &rollout.gradient_norms(),
        };

        // The points of each optimiser step; loss, gradient, step.
        self.device.phase("update");
        let mut report = EpochReport::new(rollout.scores.clone(), advantages.clone());
        let sampled = order.count() as f64;
        report.reward_ms = rollout.reward_seconds.iter().map(|(name, s)| (*name, 1e3 * s / sampled)).collect();
        report.group_spread = group_spread(&rewards, &group);
        report.skipped_groups = why.map(|why| (judged.skipped, why));
        let updates = self.algorithm.updates(&scored);
        assert_eq!(updates.len(), self.algorithm.updates_per_epoch());
        for (i, points) in updates.iter().enumerate() {
            // Once a step is taken, the epoch is finished.
            let _range = range("update");
            let update = self.update(state, &rollout, &texts, points, (i == 0).then_some(interrupt))?;
            report.add(&update, self.algorithm.compares_with_rollout());
        }
        state.epoch += 1;
        clock.lap("update");
        (report.total, report.seconds) = (clock.total(), clock.seconds());
        Ok(report)
    }

    /// Samples and scores the held-out prompts with an adapter, or without, from the same noise every time.
    ///
    /// # Errors
    /// As [`Setup::train_epoch`].
    pub fn evaluate(&mut self, adapter: Option<(&AdapterBank, Slot)>, interrupt: &Interrupt) -> Result<EvalReport> {
        let eval = self.config.raw.eval.clone();
        self.prompts.next_round();
        let prompts = if eval.num_prompts == 0 { self.eval.prompts.len() } else { eval.num_prompts };
        let samples: Vec<Sample> = (0..prompts)
            .flat_map(|prompt| (0..eval.num_images_per_prompt as u32).map(move |repeat| Sample { prompt, repeat }))
            .collect();
        let of_image: Vec<Prompt> = samples.iter().map(|s| self.eval.prompts[s.prompt].clone()).collect();
        let order = Order {
            adapter,
            samples: &samples,
            prompts: &of_image,
            forks: &[],
            epoch: EVAL_EPOCH,
            job: Job {
                steps: eval.num_inference_steps,
                guidance: eval.guidance_scale,
                what: "evaluation",
                trains: false,
            },
            keep_pictures: true,
            window: None,
        };
        let rollout = self.rollout(&order, &mut Clock::start(), interrupt)?;
        Ok(EvalReport { scores: rollout.scores, images: rollout.pictures, prompts: of_image })
    }
}
