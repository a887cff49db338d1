use std::ops::RangeInclusive;

use anyhow::{Result, bail, ensure};

use super::TrainConfig;
use super::raw::Aggregation;
use crate::io::check_multiple;
use crate::models::text::LONGEST_SEQUENCE;
use crate::rewards::DIFFERENTIABLE;
use crate::rollout::schedule::check_steps;

/// What a config is resolved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// A training run.
    Train,
    /// One evaluation; keys about training do not matter.
    Evaluate,
}

/// A checked config with the sizes that follow from it.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What it was resolved for.
    pub job: Job,
    /// What the file and the overrides said.
    pub raw: TrainConfig,
    /// Height and width of an image in pixels.
    pub resolution: usize,
    /// Height and width of a latent in its own pixels.
    pub latent: usize,
    /// What an epoch makes of each of its prompts.
    pub each: Each,
    /// Images per epoch.
    pub images: usize,
    /// Training points per epoch.
    pub points: usize,
    /// Images per evaluation.
    pub eval_images: usize,
}

/// The largest count a key may have: products of three stay far from overflow, and the memory plan judges the rest.
const MOST: usize = 1 << 20;

/// What a config is checked against.
#[derive(Clone, Copy, Debug)]
pub struct ModelSizes {
    /// Pixels per latent pixel and axis.
    pub downscale: usize,
    /// Latent pixels per token and axis.
    pub patch: usize,
    /// Most tokens per axis.
    pub max_tokens: usize,
    /// The model's own latent side.
    pub own_latent: usize,
}

/// What an epoch makes of each of its prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Each {
    /// Images that are judged: more than it has seeds, if samples fork.
    pub images: usize,
    /// Training points.
    pub points: usize,
}

impl ModelSizes {
    /// Height and width in pixels of the images of a run.
    ///
    /// # Errors
    /// If the config asks for a size that the model cannot make: names the nearest that it can.
    pub fn resolution(&self, raw: &TrainConfig) -> Result<usize> {
        let asked = raw.rollout.resolution;
        let resolution = if asked == 0 { self.own_latent * self.downscale } else { asked };
        check_multiple("rollout.resolution", resolution, self.downscale * self.patch, self.max_tokens)?;
        Ok(resolution)
    }
}

impl Resolved {
    /// Checks `raw` and derives the sizes.
    ///
    /// # Errors
    /// Names the key, what was found, and the nearest value that works.
    pub fn new(
        raw: TrainConfig,
        job: Job,
        sizes: ModelSizes,
        [train_prompts, eval_prompts]: [usize; 2],
        each: Each,
    ) -> Result<Self> {
        raw.check()?;
        let r = &raw.rollout;
        let prompts = r.num_prompts_per_epoch;
        ensure!(
            prompts <= train_prompts || job == Job::Evaluate,
            "rollout.num_prompts_per_epoch is {prompts}, but {} has only {train_prompts} prompts",
            raw.prompts.train.display()
        );
        ensure!(
            raw.eval.num_prompts <= eval_prompts,
            "eval.num_prompts is {}, but {} has only {eval_prompts} prompts",
            raw.eval.num_prompts,
            raw.prompts.eval.display()
        );
        let resolution = sizes.resolution(&raw)?;
        let (images, points) = (prompts * each.images, prompts * each.points);
        if job == Job::Train {
            divides("rollout.batch_size", r.batch_size, images, "images per epoch")?;
            r.sampler.check("rollout.noise_level", r.noise_level)?;
            divides("train.batch_size", raw.train.batch_size, points, "training points per epoch")?;
            raw.check_gradients()?;
        }
        let evaluated = if raw.eval.num_prompts == 0 { eval_prompts } else { raw.eval.num_prompts };
        Ok(Self {
            job,
            resolution,
            latent: resolution / sizes.downscale,
            each,
            images,
            points,
            eval_images: evaluated * raw.eval.num_images_per_prompt,
            raw,
        })
    }

    /// The sizes that follow from the config, one line each.
    pub fn describe(&self) -> String {
        let (r, t, each) = (&self.raw.rollout, &self.raw.train, self.each);
        let (prompts, seeds) = (r.num_prompts_per_epoch, r.num_images_per_prompt);
        let rows = [
            (
                "images per epoch",
                if each.images == seeds {
                    format!("{prompts} prompts x {seeds} = {}", self.images)
                } else {
                    format!("{prompts} prompts x {seeds} seeds x {} forks = {}", each.images / seeds, self.images)
                },
            ),
            ("training points per epoch", format!("{prompts} prompts x {} = {}", each.points, self.points)),
            (
                "rollout",
                format!(
                    "{} steps, guidance {}, {} batches of {}",
                    r.num_inference_steps,
                    r.guidance_scale,
                    self.images / r.batch_size,
                    r.batch_size
                ),
            ),
            ("update", format!("{} batches of {} points", self.points / t.batch_size, t.batch_size)),
            ("learning rate", self.raw.optimizer.describe()),
            (
                "evaluation",
                format!(
                    "{} images, {} steps, guidance {}",
                    self.eval_images, self.raw.eval.num_inference_steps, self.raw.eval.guidance_scale
                ),
            ),
            ("image", format!("{0} x {0} pixels, latent {1} x {1}", self.resolution, self.latent)),
        ];
        rows.iter().map(|(k, v)| format!("  {k:<26} {v}\n")).collect()
    }
}

impl TrainConfig {
    /// Checks what does not depend on the model or the prompts.
    ///
    /// # Errors
    /// Names the key, what was found, and what is expected.
    pub fn check(&self) -> Result<()> {
        let r = &self.rollout;
        for (key, value) in [
            ("num_epochs", self.num_epochs as usize),
            ("rollout.num_prompts_per_epoch", r.num_prompts_per_epoch),
            ("rollout.num_images_per_prompt", r.num_images_per_prompt),
            ("rollout.batch_size", r.batch_size),
            ("train.batch_size", self.train.batch_size),
            ("lora.rank", self.lora.rank),
            ("ema.interval", self.ema.interval as usize),
            ("eval.num_images_per_prompt", self.eval.num_images_per_prompt),
            ("checkpoint.keep", self.checkpoint.keep),
        ] {
            at_least_one(key, value)?;
        }
        let warmup = self.optimizer.warmup;
        ensure!(warmup as usize <= MOST, "optimizer.warmup is {warmup}, expected at most {MOST}");
        check_steps("rollout.num_inference_steps", r.num_inference_steps)?;
        check_steps("eval.num_inference_steps", self.eval.num_inference_steps)?;
        let method = self.method()?;
        let images_per_prompt = r.num_images_per_prompt;
        ensure!(
            images_per_prompt >= 2 || method.compares_within_seeds() || self.algorithm.follows_gradients(),
            "rollout.num_images_per_prompt is {images_per_prompt}, expected at least 2: an image is compared with the others of its prompt"
        );
        let sequence = self.prompts.max_sequence_length;
        ensure!(
            (1..=LONGEST_SEQUENCE).contains(&sequence),
            "prompts.max_sequence_length is {sequence}, expected 1 to {LONGEST_SEQUENCE}"
        );
        for (key, value, range) in [
            ("rollout.guidance_scale", f64::from(r.guidance_scale), 0.0..=100.0),
            ("eval.guidance_scale", f64::from(self.eval.guidance_scale), 0.0..=100.0),
            ("ema.decay", f64::from(self.ema.decay), 0.0..=0.99999),
            ("optimizer.lr", self.optimizer.lr, 0.0..=1.0),
            ("optimizer.beta1", self.optimizer.beta1, 0.0..=0.99999),
            ("optimizer.beta2", self.optimizer.beta2, 0.0..=0.9999999),
            ("optimizer.weight_decay", self.optimizer.weight_decay, 0.0..=1.0),
            ("optimizer.eps", self.optimizer.eps, 1e-30..=1.0),
            ("optimizer.max_grad_norm", self.optimizer.max_grad_norm, 0.0..=f64::MAX),
            ("optimizer.max_grad_outlier", self.optimizer.max_grad_outlier, 0.0..=f64::MAX),
            ("stop.max_velocity_growth", self.stop.max_velocity_growth, 0.0..=f64::MAX),
            ("stop.max_velocity_distance", self.stop.max_velocity_distance, 0.0..=f64::MAX),
            ("stop.max_flat_groups", self.stop.max_flat_groups, 0.0..=1.0),
            ("lora.alpha", f64::from(self.lora.alpha), 1e-6..=1e6),
        ] {
            within(key, value, range)?;
        }
        method.check(self.algorithm)?;
        ensure!(!self.rewards.is_empty(), "[rewards] is empty, expected at least one name = weight");
        ensure!(!self.lora.targets.is_empty(), "lora.targets is empty, expected at least one layer name");
        Ok(())
    }
}

impl TrainConfig {
    /// Checks that a method that follows the gradient of the rewards has one.
    fn check_gradients(&self) -> Result<()> {
        let name = self.algorithm.name();
        if !self.algorithm.follows_gradients() {
            return Ok(());
        }
        let counts = self.rewards.iter().filter(|(_, keys)| keys.weight != 0.0);
        for (reward, _) in counts {
            ensure!(
                DIFFERENTIABLE.contains(&reward.as_str()),
                "rewards.{reward}: it has no gradient, which '{name}' follows; those that have one are {}; weight 0 only reports it",
                DIFFERENTIABLE.join(", ")
            );
        }
        ensure!(
            self.reward_aggregation == Aggregation::Sum,
            "reward_aggregation is 'gdpo', but '{name}' follows the gradient of the weighted sum; set it to 'sum'"
        );
        Ok(())
    }
}

/// Fails unless `value` is a count.
pub(super) fn at_least_one(key: &str, value: usize) -> Result<()> {
    ensure!(value >= 1, "{key} is {value}, expected at least 1");
    ensure!(value <= MOST, "{key} is {value}, expected at most {MOST}");
    Ok(())
}

/// Fails unless `value` is in `range`.
pub(super) fn within(key: &str, value: f64, range: RangeInclusive<f64>) -> Result<()> {
    ensure!(range.contains(&value), "{key} is {value}, expected {} to {}", range.start(), range.end());
    Ok(())
}

/// Fails unless `value` divides `total`, naming the nearest numbers that do.
fn divides(key: &str, value: usize, total: usize, what: &str) -> Result<()> {
    if total.is_multiple_of(value) {
        return Ok(());
    }
    let below = (1..value).rev().find(|v| total.is_multiple_of(*v)).expect("1 divides");
    let above = (value + 1..=total).find(|v| total.is_multiple_of(*v)).map(|v| format!(" and {v}")).unwrap_or_default();
    bail!("{key} is {value}, which does not divide the {total} {what}; the nearest that do are {below}{above}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: ModelSizes = ModelSizes { downscale: 8, patch: 2, max_tokens: 16, own_latent: 8 };

    fn resolve(changes: &str) -> Result<Resolved> {
        let text = format!(
            "algorithm='ram'\nmodel='m'\nnum_epochs=1\nprompts={{train='t',eval='e'}}\nrewards={{geneval=1}}\nram={{reward_multiplier=1}}\n{changes}"
        );
        let raw = super::super::parse("c", &text).unwrap();
        let images = raw.rollout.num_images_per_prompt;
        let points = raw.ram.as_ref().expect("given above").num_noisings * images;
        Resolved::new(raw, Job::Train, SIZES, [100, 10], Each { images, points })
    }

    #[test]
    fn sizes_follow_from_the_published_defaults() {
        let r = resolve("").unwrap();
        assert_eq!((r.images, r.points, r.resolution, r.latent), (1152, 9216, 64, 8));
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused_with_the_nearest_that_do() {
        let cases = [
            (
                "rollout={resolution=70}",
                "rollout.resolution is 70, expected a multiple of 16 up to 256; the nearest is 64",
            ),
            (
                "rollout={resolution=999}",
                "rollout.resolution is 999, expected a multiple of 16 up to 256; the nearest is 256",
            ),
            (
                "rollout={batch_size=7}",
                "rollout.batch_size is 7, which does not divide the 1152 images per epoch; the nearest that do are 6 and 8",
            ),
            ("rollout={num_prompts_per_epoch=101}", "rollout.num_prompts_per_epoch is 101, but t has only 100 prompts"),
            ("rollout={num_images_per_prompt=1}", "rollout.num_images_per_prompt is 1, expected at least 2"),
            (
                "rollout={num_images_per_prompt=4611686018427387904}",
                "rollout.num_images_per_prompt is 4611686018427387904, expected at most 1048576",
            ),
            ("eval={num_inference_steps=1000000}", "eval.num_inference_steps is 1000000, expected 1 to 10000"),
            ("train={batch_size=0}", "train.batch_size is 0, expected at least 1"),
            ("lora={rank=0}", "lora.rank is 0, expected at least 1"),
            (
                "eval={num_images_per_prompt=99999999}",
                "eval.num_images_per_prompt is 99999999, expected at most 1048576",
            ),
            ("optimizer={eps=0.0}", "optimizer.eps is 0, expected"),
        ];
        for (change, want) in cases {
            let e = resolve(change).unwrap_err().to_string();
            assert!(e.starts_with(want), "{e}");
        }
    }
}
