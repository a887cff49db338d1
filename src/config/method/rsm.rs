//! The keys of RSM.

use std::fmt;

use anyhow::{Result, bail, ensure};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::KlDenominator;
use crate::config::resolved::within;
use crate::io::did_you_mean;

/// Reward Score Matching without gradients of the reward (arXiv 2604.17415).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RsmKeys {
    /// Whether images are forks of deterministic trunks, or whole stochastic trajectories.
    pub sampler: RsmSampler,
    /// `branch`: how many forks each step of a trunk has: `base`, `highsnr`, `highsnr2`, `base2`, `lowsnr` or `lowsnr2` (the
    /// default), which are for 10 steps, or a list of a number for each step. The last step is not trained on, and its number
    /// does not matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
    /// `matching`, the score that the reward asks for, or `ppo`, the ratio of likelihoods.
    pub loss: RsmLoss,
    /// How the loss is weighed over the steps.
    pub reweight: Reweight,
    /// How far a log-ratio (`matching`) or a ratio less 1 (`ppo`) may go the way that the advantage points.
    pub clip_range: f64,
    /// Advantages are clamped to plus and minus this.
    pub advantage_clip: f64,
    /// Weight of the divergence from the reference.
    pub kl_weight: f64,
    /// By which variance that divergence is divided. `std_dev` is the published code's `heuristic_kldenom_trick`.
    pub kl_denominator: KlDenominator,
    /// `branch`: whether steps without forks hold the policy to the reference too.
    pub anchors: bool,
    /// Whether the unconditional velocity of guidance is trained too.
    pub cfg_uncond_grad: bool,
    /// Optimiser steps of an epoch, each over a share of its images.
    pub updates_per_epoch: usize,
    /// Added to the standard deviation of the rewards, which is that of a group with `branch` and that of an epoch else.
    pub advantage_eps: f64,
}

impl Default for RsmKeys {
    /// The published settings for GenEval.
    fn default() -> Self {
        Self {
            sampler: RsmSampler::default(),
            profile: None,
            loss: RsmLoss::default(),
            reweight: Reweight::default(),
            clip_range: 1e-4,
            advantage_clip: 5.0,
            kl_weight: 0.004,
            kl_denominator: KlDenominator::StepStd,
            anchors: true,
            cfg_uncond_grad: true,
            updates_per_epoch: 2,
            advantage_eps: 1e-4,
        }
    }
}

impl RsmKeys {
    pub(super) fn check(&self) -> Result<()> {
        within("rsm.clip_range", self.clip_range, 0.0..=1.0)?;
        within("rsm.advantage_clip", self.advantage_clip, 1e-3..=1e3)?;
        within("rsm.kl_weight", self.kl_weight, 0.0..=1e6)?;
        within("rsm.updates_per_epoch", self.updates_per_epoch as f64, 1.0..=1e3)?;
        within("rsm.advantage_eps", self.advantage_eps, 0.0..=1.0)?;
        ensure!(
            (self.loss, self.reweight) != (RsmLoss::Ppo, Reweight::Fairclip2),
            "rsm.reweight is 'fairclip2', which scales the hinge of matching and is not defined for a ratio; with rsm.loss = \
             'ppo' expected base, pcpo, tempflow, guard or fairclip"
        );
        if self.sampler == RsmSampler::Default && self.profile.is_some() {
            bail!(
                "rsm.profile says how a trunk forks, and rsm.sampler is 'default', which has no trunks; leave it out"
            );
        }
        Ok(())
    }

    /// How many forks each of `steps` steps has; none for whole trajectories.
    ///
    /// # Errors
    /// If the profile is for another number of steps.
    pub fn forks(&self, steps: usize) -> Result<Option<Vec<usize>>> {
        if self.sampler == RsmSampler::Default {
            return Ok(None);
        }
        let profile = self.profile.clone().unwrap_or(Profile::Named(ProfileName::Lowsnr2));
        let mut counts = match &profile {
            Profile::Named(name) => {
                let counts = name.counts();
                ensure!(
                    steps == counts.len(),
                    "rsm.profile '{}' is for {} steps, and rollout.num_inference_steps is {steps}; expected a list of {steps} \
                     fork counts, or {} steps",
                    name.name(),
                    counts.len(),
                    counts.len()
                );
                counts.to_vec()
            }
            Profile::Counts(counts) => {
                ensure!(
                    steps == counts.len(),
                    "rsm.profile has {} fork counts, and rollout.num_inference_steps is {steps}; expected one for each step",
                    counts.len()
                );
                counts.clone()
            }
        };
        // Hardly a step, and one that the published code leaves out.
        counts.truncate(steps - 1);
        if let Some(step) = counts.iter().position(|k| *k > MOST_FORKS) {
            bail!("rsm.profile has {} forks at step {step}, expected at most {MOST_FORKS}", counts[step]);
        }
        ensure!(counts.iter().any(|k| *k > 1), "rsm.profile has no step with 2 forks or more: nothing to compare");
        Ok(Some(counts))
    }
}

/// Most forks of a trunk at a step.
const MOST_FORKS: usize = 1 << 10;

/// How images are sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RsmSampler {
    /// Each seed is a trunk along the ODE; forks leave it by one step with noise and go on along the ODE (TempFlow-GRPO).
    #[default]
    Branch,
    /// Every step adds noise, as in Flow-GRPO.
    Default,
}

/// What an image's advantage acts on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RsmLoss {
    /// The velocity, matched to where the noise of good images points.
    #[default]
    Matching,
    /// The ratio of likelihoods, with PPO's clipping.
    Ppo,
}

/// How a loss is weighed over the steps. With `s` the standard deviation of a step's noise and `Δt` its length:
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reweight {
    /// As the log-ratio does.
    Base,
    /// Velocities by `Δt` times a constant.
    Pcpo,
    /// By `2.25·s`.
    Tempflow,
    /// By `s` and without the log-ratio's second-order term, over `Δt`.
    Guard,
    /// The hinge by `s²`, the whole by `1/s²`: the same slope, clipped fairly.
    Fairclip,
    /// The hinge by `s²`, the whole by `1/(s·Δt)`.
    #[default]
    Fairclip2,
}

/// How many forks each step of a trunk has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Profile {
    /// A published one.
    Named(ProfileName),
    /// A number for each step.
    Counts(Vec<usize>),
}

/// The published profiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProfileName {
    /// As many everywhere.
    Base,
    /// More where there is little noise.
    Highsnr,
    /// The same without the last trained step.
    Highsnr2,
    /// As many everywhere but at the last trained step.
    Base2,
    /// None where there is little noise, as many in all as `base`.
    Lowsnr,
    /// The first four steps alone: the paper's.
    Lowsnr2,
}

impl ProfileName {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Base, Self::Highsnr, Self::Highsnr2, Self::Base2, Self::Lowsnr, Self::Lowsnr2];

    /// Its name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Highsnr => "highsnr",
            Self::Highsnr2 => "highsnr2",
            Self::Base2 => "base2",
            Self::Lowsnr => "lowsnr",
            Self::Lowsnr2 => "lowsnr2",
        }
    }

    /// Forks of each step of ten.
    pub fn counts(self) -> [usize; 10] {
        match self {
            Self::Base => [6; 10],
            Self::Highsnr => [3, 3, 4, 5, 6, 7, 7, 8, 11, 6],
            Self::Highsnr2 => [4, 5, 5, 6, 7, 8, 9, 10, 0, 6],
            Self::Base2 => [7, 7, 7, 7, 7, 7, 6, 6, 0, 6],
            Self::Lowsnr => [6, 6, 8, 10, 11, 13, 0, 0, 0, 6],
            Self::Lowsnr2 => [6, 6, 8, 10, 0, 0, 0, 0, 0, 6],
        }
    }
}

impl<'de> Deserialize<'de> for Profile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Profile;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the name of a profile, or a list of fork counts")
            }

            fn visit_str<E: Error>(self, found: &str) -> Result<Profile, E> {
                let names = || ProfileName::ALL.into_iter().map(ProfileName::name);
                let named = ProfileName::ALL.into_iter().find(|one| one.name() == found);
                named.map(Profile::Named).ok_or_else(|| {
                    let known: Vec<&str> = names().collect();
                    let hint = did_you_mean(found, names());
                    E::custom(format!(
                        "no profile '{found}', expected one of {} or a list of fork counts{hint}",
                        known.join(", ")
                    ))
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Profile, A::Error> {
                let mut counts = Vec::new();
                while let Some(count) = list.next_element()? {
                    counts.push(count);
                }
                Ok(Profile::Counts(counts))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Result<RsmKeys, String> {
        let keys: RsmKeys = toml::from_str(text).map_err(|e| e.to_string())?;
        keys.check().map_err(|e| e.to_string())?;
        // A checkpoint holds what it was made with.
        assert_eq!(toml::from_str::<RsmKeys>(&toml::to_string(&keys).unwrap()).unwrap(), keys);
        Ok(keys)
    }

    /// §10.1: as many trained forks as published, the last step not among them.
    #[test]
    fn profiles_have_the_published_number_of_forks() {
        for (name, forks) in ProfileName::ALL.into_iter().zip([54, 54, 54, 54, 54, 30]) {
            let keys = keys(&format!("profile = '{}'", name.name())).unwrap();
            assert_eq!(keys.forks(10).unwrap().unwrap().iter().sum::<usize>(), forks, "{name:?}");
        }
        let listed = keys("profile = [2, 0, 3, 9]").unwrap();
        assert_eq!(listed.forks(4).unwrap().unwrap(), [2, 0, 3]);
        assert_eq!(keys("sampler = 'default'").unwrap().forks(10).unwrap(), None);
    }

    #[test]
    fn profiles_of_another_number_of_steps_are_refused() {
        let e = |text: &str, steps| keys(text).unwrap().forks(steps).unwrap_err().to_string();
        assert_eq!(
            e("profile = 'base2'", 20),
            "rsm.profile 'base2' is for 10 steps, and rollout.num_inference_steps is 20; expected a list of 20 fork counts, or 10 steps"
        );
        assert!(e("", 8).starts_with("rsm.profile 'lowsnr2' is for 10 steps, and rollout.num_inference_steps is 8"));
        assert!(
            e("profile = [2, 2]", 3)
                .ends_with("has 2 fork counts, and rollout.num_inference_steps is 3; expected one for each step")
        );
        assert!(e("profile = [1, 1, 4]", 3).ends_with("nothing to compare"), "the last step is not trained on");
        assert!(e("profile = [2000, 1]", 2).contains("2000 forks at step 0, expected at most 1024"));
    }

    #[test]
    fn what_is_not_defined_is_refused_with_the_reason() {
        let e = keys("loss = 'ppo'\nreweight = 'fairclip2'").unwrap_err();
        assert!(e.contains("not defined for a ratio") && e.contains("expected base, pcpo"), "{e}");
        let e = keys("loss = 'ppo'").unwrap_err();
        assert!(e.contains("'fairclip2'"), "the default is named: {e}");
        let e = keys("sampler = 'default'\nprofile = 'base'").unwrap_err();
        assert!(e.contains("which has no trunks; leave it out"), "{e}");
        let e = keys("profile = 'lowsnr3'").unwrap_err();
        assert!(e.contains("no profile 'lowsnr3', expected one of base,") && e.contains("did you mean 'lowsnr"), "{e}");
        assert!(keys("profile = 3").unwrap_err().contains("the name of a profile, or a list of fork counts"));
        assert!(keys("profile = [2, -1]").is_err());
    }
}
