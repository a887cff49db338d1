//! From noise and prompts to latents.

use anyhow::{Result, bail};

use super::sampler::Step;
use super::schedule::Schedule;
use crate::device::Tensor;
use crate::device::philox::Key;
use crate::models::lora::{AdapterBank, Adapters, Rows, Slot};
use crate::models::network::Network;
use crate::models::text::PromptEmbeds;
use crate::ops::products::{self, Weights};
use crate::ops::step::{self, Inputs, Row};
use crate::ops::{copy, norm};

/// Who samples: a network, perhaps with an adapter.
#[derive(Clone, Copy)]
pub struct Policy<'a> {
    /// The network.
    pub network: &'a dyn Network,
    /// Maps noise levels to the network's time input.
    pub schedule: &'a Schedule,
    /// Adapters, and the one this policy goes through; `None` is the reference model.
    pub adapter: Option<(&'a AdapterBank, Slot)>,
}

/// The steps to take.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    /// The sampler's table.
    pub steps: &'a [Step],
    /// Classifier-free guidance scale (Ho and Salimans 2022); up to 1 the unconditional branch is left out.
    pub guidance: f32,
    /// The stream of each sample's noise, for steps that have some; the number of the step is added to its draw.
    pub noise: &'a [Key],
}

impl Path<'_> {
    /// Whether the unconditional branch is needed.
    pub fn is_guided(&self) -> bool {
        self.guidance > 1.0
    }

    /// The stream of each sample's noise in step `i`.
    fn keys(&self, i: usize) -> Vec<Key> {
        let drawn = if self.steps[i].s == 0.0 { &[] } else { self.noise };
        drawn.iter().map(|key| Key { step: i as u32, ..*key }).collect()
    }
}

/// What a step saw.
pub struct Visit<'a> {
    /// The number of the step.
    pub step: usize,
    /// The sample before it.
    pub x: &'a Tensor,
    /// The sample after it.
    pub next: &'a Tensor,
    /// The conditional velocity there.
    pub velocity: Tensor,
    /// What the step was made from.
    pub inputs: Inputs<'a>,
}

impl Visit<'_> {
    /// The velocity with guidance, rounded as the step rounds it.
    pub fn guided(&self) -> Tensor {
        guided(self.inputs)
    }
}

/// The velocity of `inputs` with guidance, rounded as a step rounds it.
pub fn guided(inputs: Inputs) -> Tensor {
    step::forward(inputs, Row { b: 1.0, ..Row::default() })
}

/// How probable each of `next` is after `step` from `x` with `velocity`, by the order of operations that the step itself takes:
/// a policy that has not changed says the same of it bit for bit.
pub fn log_probs(x: &Tensor, velocity: &Tensor, next: &Tensor, step: &Step) -> Vec<f64> {
    let log_prob = step.log_prob.expect("a step with noise");
    let terms = [(step.a, x), (step.b, velocity), (-1.0, next)];
    let terms = terms.map(|(w, of)| (Weights::All(w as f32), of)).to_vec();
    products::forward(&[products::Difference { terms }]).iter().map(|p| log_prob.of(p.gram[0][0])).collect()
}

/// Fails if one of `latents` `[b, ..]` holds what is not a number, which would be decoded to a black picture; `prompt` gives
/// each sample's.
///
/// # Errors
/// Names the sample's prompt.
pub fn check_finite<'a>(latents: &Tensor, prompt: impl Fn(usize) -> &'a str) -> Result<()> {
    let Some((at, value)) = norm::first_non_finite(latents) else { return Ok(()) };
    bail!(
        "the latent of {:?} holds {value}: the model's numbers overflow on it",
        prompt(at * latents.dim(0) / latents.len())
    )
}

/// Goes along `path` from `noise` `[b, channels, h, w]`, sample `i` conditioned on row `i` of `prompts`. `negative`, one
/// row that guidance leads away from, is needed if there is guidance. `on_step` is called after each step.
///
/// # Errors
/// What `on_step` reports; the rest of the steps is left out then.
pub fn sample(
    policy: Policy,
    path: Path,
    noise: Tensor,
    prompts: &PromptEmbeds,
    negative: Option<&PromptEmbeds>,
    mut on_step: impl FnMut(Visit) -> Result<()>,
) -> Result<Tensor> {
    let batch = noise.dim(0);
    assert_eq!(prompts.prompt_embeds.dim(0), batch, "one prompt per sample");
    let draws = path.steps.iter().any(|s| s.s != 0.0);
    assert!(!draws || path.noise.len() == batch, "one stream of noise per sample");
    let is_guided = path.is_guided();
    // One batch, unconditional half first, as diffusers runs it.
    let both = is_guided.then(|| {
        let negative = negative.expect("guidance needs a negative prompt");
        PromptEmbeds::concat(&[&negative.rows(&vec![0; batch]), prompts])
    });
    let condition = both.as_ref().unwrap_or(prompts);
    let count = if is_guided { 2 * batch } else { batch };
    let rows = Rows::all(policy.adapter.map(|(_, slot)| slot), count);
    let adapters = Adapters { bank: policy.adapter.map(|(bank, _)| bank), rows: &rows };
    let keeps_history = path.steps.iter().any(|s| s.history != [0.0; 2]);
    let mut history = [None, None];
    let mut x = noise;
    for (i, at) in x.device().rehearse(path.steps).enumerate() {
        let timestep = vec![policy.schedule.timestep(at.sigma); count];
        let keys = path.keys(i);
        let (velocity, next, clean) = x.device().region(|| {
            let doubled = is_guided.then(|| copy::concat(&[&x, &x]));
            let input = doubled.as_ref().unwrap_or(&x);
            let velocity = policy.network.forward(input, condition.condition(&timestep), &adapters);
            drop(doubled);
            let inputs = Inputs {
                x: &x,
                velocity: &velocity,
                guidance: is_guided.then_some(path.guidance),
                history: history.each_ref().map(Option::as_ref),
                noise: &keys,
            };
            let next = step::forward(inputs, at.row());
            let clean = keeps_history.then(|| step::clean(inputs, at.sigma));
            (velocity, next, clean)
        });
        let inputs = Inputs {
            x: &x,
            velocity: &velocity,
            guidance: is_guided.then_some(path.guidance),
            history: [None; 2],
            noise: &[],
        };
        on_step(Visit { step: i, x: &x, next: &next, velocity: velocity.slice(count - batch..count), inputs })?;
        x = next;
        if clean.is_some() {
            let [last, _] = history;
            history = [clean, last];
        }
    }
    Ok(x)
}
