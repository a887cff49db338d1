//! What a run will need, computed before anything is loaded.

use anyhow::{Result, bail};

use super::{Job, Resolved};
use crate::models::autoencoder;
use crate::models::mmdit::{Checkpointing, Config};

/// Images that are decoded together; changes memory, not results.
pub const DECODE_BATCH: usize = 32;

/// Embeddings of prompts are kept for later epochs up to this many bytes, and encoded again beyond that.
pub const PROMPT_CACHE: u64 = 1 << 29;

/// One kind of memory.
pub struct Row {
    /// What it holds.
    pub what: &'static str,
    /// Bytes.
    pub bytes: u64,
}

/// What a run needs.
pub struct MemoryPlan {
    /// Kinds of memory, in the order they come up.
    pub rows: Vec<Row>,
}

/// What the plan is made from, beside the config.
pub struct Inputs {
    /// The transformer's sizes.
    pub transformer: Config,
    /// Channels of the two finest levels of the VAE, finest first.
    pub vae_channels: (usize, usize),
    /// Bytes of the pipeline's mapped weights.
    pub weights: u64,
    /// Bytes of the reward models' mapped weights.
    pub reward_weights: u64,
    /// Values in one adapter.
    pub adapter: usize,
    /// Text tokens per prompt.
    pub text_tokens: usize,
    /// Different prompts.
    pub prompts: usize,
    /// Whether the layers of the MLP are trained: the first, the second.
    pub trained_mlp: (bool, bool),
}

/// Width units a token of one stream keeps per block: input, modulated input, queries, keys, values, attention,
/// the MLP's input and its hidden layer.
fn units_per_token(policy: Checkpointing, mlp: (bool, bool)) -> usize {
    match policy {
        Checkpointing::None => 1 + 1 + 3 + 1 + 1 + 4 + usize::from(mlp.0) + 4 * usize::from(mlp.1),
        Checkpointing::Selective => 1 + 3 + 1 + 1,
        Checkpointing::Block => 1,
    }
}

/// Width units a token of the second attention keeps: modulated input, queries, keys, values, attention.
fn dual_units(policy: Checkpointing) -> usize {
    match policy {
        Checkpointing::None => 5,
        Checkpointing::Selective => 4,
        Checkpointing::Block => 0,
    }
}

/// Bytes of activations one forward and backward over `batch` training points needs.
pub fn activations(i: &Inputs, tokens: usize, batch: usize, policy: Checkpointing) -> u64 {
    let (c, text) = (&i.transformer, i.text_tokens);
    let d = c.hidden();
    let per_block = (tokens + text) * units_per_token(policy, i.trained_mlp);
    let saved = c.num_layers * per_block + c.dual_attention_layers.len() * tokens * dual_units(policy);
    // One block at work in the backward: everything it keeps, restored, and the gradients of the widest part.
    let restored = (tokens + text) * units_per_token(Checkpointing::None, i.trained_mlp) + tokens * 5;
    let working = restored + (tokens + text) * 12;
    ((saved + working) * d * batch * 4) as u64
}

impl MemoryPlan {
    /// The plan of a resolved config.
    pub fn new(r: &Resolved, i: &Inputs) -> Self {
        let c = &i.transformer;
        let tokens = (r.latent / c.patch_size).pow(2);
        let latent = (c.in_channels * r.latent * r.latent * 4) as u64;
        let pixels = (r.resolution * r.resolution) as u64;
        let guidance = match r.job {
            Job::Train => r.raw.rollout.guidance_scale.max(r.raw.eval.guidance_scale),
            Job::Evaluate => r.raw.eval.guidance_scale,
        };
        let sampled = r.raw.rollout.batch_size * if guidance > 1.0 { 2 } else { 1 };
        // A forward without backward holds one block's activations at a time.
        let sampling = ((tokens + i.text_tokens) * 24 * c.hidden() * sampled * 4) as u64;
        // One image at work at the finest level (the enlarged input, its normalised copy, a result of the level's own
        // channels twice), or one per thread if they are small; and the decoded batch.
        let at_work = (2 * i.vae_channels.1 + 2 * i.vae_channels.0) as u64 * autoencoder::at_once(pixels) as u64;
        let decoding = (at_work + 3 * DECODE_BATCH as u64) * pixels * 4;
        let prompt = (i.text_tokens * c.joint_attention_dim * 4) as u64;
        let mut rows = vec![Row { what: "weights (mapped from files)", bytes: i.weights }];
        if i.reward_weights > 0 {
            rows.push(Row { what: "reward models (mapped)", bytes: i.reward_weights });
        }
        let (copies, images, points) = match r.job {
            Job::Train => (6, r.images.max(r.eval_images), r.raw.train.batch_size),
            Job::Evaluate => (1, r.eval_images, 0),
        };
        rows.push(Row { what: "adapters, moments, averages", bytes: copies * 4 * i.adapter as u64 });
        if r.job == Job::Train {
            let bytes = activations(i, tokens, points, r.raw.train.activation_checkpointing);
            rows.push(Row { what: "training activations", bytes });
        }
        rows.extend([
            Row { what: "sampling activations", bytes: sampling },
            Row { what: "decoding", bytes: decoding },
            Row { what: "latents and images", bytes: images as u64 * (latent + 3 * pixels) },
            Row {
                what: "prompt embeddings",
                bytes: (prompt * i.prompts as u64).min(PROMPT_CACHE) + prompt * 2 * (points + sampled) as u64,
            },
        ]);
        Self { rows }
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.rows.iter().map(|r| r.bytes).sum()
    }

    /// The plan as a table.
    pub fn table(&self) -> String {
        let mut out: String = self.rows.iter().map(|r| format!("  {:<32} {:>12}\n", r.what, human(r.bytes))).collect();
        out += &format!("  {:<32} {:>12}\n", "total", human(self.total()));
        out
    }

    /// Fails if more is needed than `available` bytes, naming the setting to change.
    ///
    /// # Errors
    /// With the nearest batch sizes and `train.activation_checkpointing` that fit, if any do.
    pub fn check(&self, available: u64, r: &Resolved, i: &Inputs) -> Result<()> {
        if self.total() <= available {
            return Ok(());
        }
        let choice = match r.job {
            Job::Train => smaller_training(available, r, i),
            Job::Evaluate => smaller_evaluation(available, r, i),
        };
        let choice = choice.unwrap_or_else(|| {
            "no smaller batch fits either: use fewer images, a smaller resolution or a smaller model".into()
        });
        let what = if r.job == Job::Train { "run" } else { "evaluation" };
        bail!("the {what} needs {}, {} are available; {choice}", human(self.total()), human(available))
    }
}

/// Whether the plan of `r` with `change` fits.
fn fits(available: u64, r: &Resolved, i: &Inputs, change: impl FnOnce(&mut Resolved)) -> bool {
    let mut smaller = r.clone();
    change(&mut smaller);
    MemoryPlan::new(&smaller, i).total() <= available
}

/// The largest batches that fit, with as little recomputation as it takes; the sampling batch is touched last.
fn smaller_training(available: u64, r: &Resolved, i: &Inputs) -> Option<String> {
    let (train, sampled) = (r.raw.train.batch_size, r.raw.rollout.batch_size);
    let now = r.raw.train.activation_checkpointing;
    let policies = [(now, ""), (Checkpointing::Selective, "selective"), (Checkpointing::Block, "block")];
    let divisors = |most: usize, of: usize| (1..=most).rev().filter(move |n| of.is_multiple_of(*n));
    for sampled_now in divisors(sampled, r.images) {
        for (policy, name) in policies {
            let fits = |batch: &usize| {
                fits(available, r, i, |r| {
                    r.raw.train.batch_size = *batch;
                    r.raw.train.activation_checkpointing = policy;
                    r.raw.rollout.batch_size = sampled_now;
                })
            };
            let Some(batch) = divisors(train, r.points).find(fits) else { continue };
            let mut keys = Vec::new();
            keys.extend((batch != train).then(|| format!("train.batch_size = {batch}")));
            keys.extend((!name.is_empty()).then(|| format!("train.activation_checkpointing = \"{name}\"")));
            keys.extend((sampled_now != sampled).then(|| format!("rollout.batch_size = {sampled_now}")));
            return Some(format!("{} fits", keys.join(" and ")));
        }
    }
    None
}

/// The largest sampling batch that fits.
fn smaller_evaluation(available: u64, r: &Resolved, i: &Inputs) -> Option<String> {
    let fits = |batch: &usize| fits(available, r, i, |r| r.raw.rollout.batch_size = *batch);
    let batch = (1..r.raw.rollout.batch_size).rev().find(fits)?;
    Some(format!("--batch-size {batch} fits"))
}

/// Bytes as a person reads them.
pub fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// Memory the system says can still be used, if it says so.
pub fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resolved::ModelSizes;

    /// SD3.5 Medium at 512x512 with the published settings, eight adapted layers of each of 24 blocks.
    fn medium() -> (Resolved, Inputs) {
        let text = "algorithm='ram'\nmodel='m'\nnum_epochs=1\nprompts={train='t',eval='e'}\nrewards={geneval=1}\n\
                    ram={reward_multiplier=100}\nrollout={resolution=512}";
        let sizes = ModelSizes { downscale: 8, patch: 2, max_tokens: 384, own_latent: 128 };
        let resolved = Resolved::new(super::super::parse("c", text).unwrap(), Job::Train, sizes, 100, 10).unwrap();
        let transformer = serde_json::from_value(serde_json::json!({
            "sample_size": 128, "patch_size": 2, "in_channels": 16, "num_layers": 24, "attention_head_dim": 64,
            "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
            "dual_attention_layers": (0..13).collect::<Vec<usize>>(), "qk_norm": "rms_norm"
        }));
        let inputs = Inputs {
            transformer: transformer.unwrap(),
            vae_channels: (128, 256),
            weights: 16 << 30,
            reward_weights: 0,
            adapter: 24 * 8 * 32 * 2 * 1536,
            text_tokens: 77 + 128,
            prompts: 100,
            trained_mlp: (false, false),
        };
        (resolved, inputs)
    }

    #[test]
    fn a_plan_that_does_not_fit_names_settings_that_do() {
        let (resolved, inputs) = medium();
        let plan = MemoryPlan::new(&resolved, &inputs);
        assert!(plan.check(plan.total(), &resolved, &inputs).is_ok());
        for gib in [20, 22, 24, 32, 40] {
            let message = plan.check(gib << 30, &resolved, &inputs).unwrap_err().to_string();
            let keys = message.split("; ").nth(1).unwrap().strip_suffix(" fits").unwrap();
            let mut changes = resolved.raw.clone();
            for key in keys.split(" and ") {
                match key.split_once(" = ").unwrap() {
                    ("train.batch_size", n) => changes.train.batch_size = n.parse().unwrap(),
                    ("rollout.batch_size", n) => changes.rollout.batch_size = n.parse().unwrap(),
                    ("train.activation_checkpointing", "\"block\"") => {
                        changes.train.activation_checkpointing = Checkpointing::Block;
                    }
                    ("train.activation_checkpointing", _) => {
                        changes.train.activation_checkpointing = Checkpointing::Selective;
                    }
                    other => panic!("{other:?}"),
                }
            }
            let smaller = Resolved { raw: changes, ..resolved.clone() };
            assert!(MemoryPlan::new(&smaller, &inputs).total() <= gib << 30, "{message}");
        }
        let none = plan.check(1 << 30, &resolved, &inputs).unwrap_err().to_string();
        assert!(none.contains("no smaller batch fits"), "{none}");
    }

    #[test]
    fn checkpointing_saves_what_it_should() {
        let (_, inputs) = medium();
        let bytes = |policy| activations(&inputs, 1024, 16, policy);
        let [none, selective, block] = [Checkpointing::None, Checkpointing::Selective, Checkpointing::Block].map(bytes);
        assert!(block < selective && selective < none && none > 4 * block);
    }
}
