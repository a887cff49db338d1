//! What a run will need, computed before anything is loaded.

use anyhow::{Result, bail};

use super::Resolved;
use crate::models::mmdit::{Checkpointing, Config};

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
pub struct Inputs<'a> {
    /// The transformer's sizes.
    pub transformer: &'a Config,
    /// Bytes of all mapped weight files.
    pub weights: u64,
    /// Values in one adapter.
    pub adapter: usize,
    /// Text tokens per prompt.
    pub text_tokens: usize,
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
    let (c, text) = (i.transformer, i.text_tokens);
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
        let c = i.transformer;
        let tokens = (r.latent / c.patch_size).pow(2);
        let latent = (c.in_channels * r.latent * r.latent * 4) as u64;
        let pixels = (3 * r.resolution * r.resolution) as u64;
        let batch = r.raw.train.batch_size;
        let guided = if r.raw.rollout.guidance_scale > 1.0 { 2 } else { 1 };
        let rollout_batch = r.raw.rollout.batch_size * guided;
        // A forward without backward holds one block's activations at a time.
        let rollout = ((tokens + i.text_tokens) * 24 * c.hidden() * rollout_batch * 4) as u64;
        let prompt = (i.text_tokens * c.joint_attention_dim * 4) as u64;
        Self {
            rows: vec![
                Row { what: "weights (mapped from files)", bytes: i.weights },
                Row { what: "adapters, moments, averages", bytes: 6 * 4 * i.adapter as u64 },
                Row {
                    what: "training activations",
                    bytes: activations(i, tokens, batch, r.raw.train.activation_checkpointing),
                },
                Row { what: "rollout activations", bytes: rollout },
                Row { what: "latents and images of an epoch", bytes: r.images as u64 * (latent + pixels) },
                Row {
                    what: "prompt embeddings",
                    bytes: prompt * (r.raw.rollout.num_prompts_per_epoch + 2 * (batch + rollout_batch)) as u64,
                },
            ],
        }
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
    /// With the table and the nearest `train.batch_size` or `train.activation_checkpointing` that fits, if any does.
    pub fn check(&self, available: u64, r: &Resolved, i: &Inputs) -> Result<()> {
        if self.total() <= available {
            return Ok(());
        }
        let fits = |batch: usize, policy: Checkpointing| {
            let mut smaller = r.clone();
            smaller.raw.train.batch_size = batch;
            smaller.raw.train.activation_checkpointing = policy;
            Self::new(&smaller, i).total() <= available
        };
        let now = (r.raw.train.batch_size, r.raw.train.activation_checkpointing);
        let policies = [(now.1, ""), (Checkpointing::Selective, "selective"), (Checkpointing::Block, "block")];
        let choice = policies.iter().find_map(|(policy, name)| {
            let batch = (1..=now.0).rev().find(|b| r.points.is_multiple_of(*b) && fits(*b, *policy))?;
            let policy = if name.is_empty() {
                String::new()
            } else {
                format!(" and train.activation_checkpointing = \"{name}\"")
            };
            Some(format!("; train.batch_size = {batch}{policy} fits"))
        });
        let choice = choice.unwrap_or_else(|| {
            "; no smaller batch fits either: use a smaller rollout.batch_size, resolution or model".into()
        });
        bail!("the run needs {}, {} are available{choice}", human(self.total()), human(available))
    }
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
