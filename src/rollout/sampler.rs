//! The deterministic sampler: explicit Euler steps along the velocity field.

use crate::device::Tensor;
use crate::models::lora::Adapter;
use crate::models::mmdit::{Condition, Mmdit};
use crate::models::text::PromptEmbeds;
use crate::rollout::schedule::Schedule;

/// One sampling policy: a model, perhaps an adapter, and how to integrate.
#[derive(Clone, Copy)]
pub struct Sampler<'a> {
    /// The transformer.
    pub model: &'a Mmdit,
    /// The policy's adapter; `None` is the reference model.
    pub adapter: Option<&'a Adapter>,
    /// Noise levels.
    pub schedule: &'a Schedule,
    /// Number of steps.
    pub steps: usize,
    /// Classifier-free guidance scale `g` (Ho and Salimans 2022); up to 1 the unconditional branch is left out.
    pub guidance: f32,
}

impl Sampler<'_> {
    /// Integrates from `noise` `[b, channels, h, w]` at `sigma = 1` to the latent at 0. Sample `i` is conditioned on
    /// row `rows[i]` of `prompts`, and, under guidance, away from row 0 of `negative`. `on_step` is called after
    /// each step.
    pub fn euler(
        &self,
        noise: Tensor,
        prompts: &PromptEmbeds,
        rows: &[usize],
        negative: &PromptEmbeds,
        mut on_step: impl FnMut(),
    ) -> Tensor {
        let batch = noise.dim(0);
        assert_eq!(rows.len(), batch, "one prompt per sample");
        let guided = self.guidance > 1.0;
        let condition = if guided {
            // One batch, unconditional half first, as diffusers runs it.
            let [uncond, cond] = [negative.rows(&vec![0; batch]), prompts.rows(rows)];
            PromptEmbeds::concat(&uncond, &cond)
        } else {
            prompts.rows(rows)
        };
        let sigmas = self.schedule.sigmas(self.steps);
        let mut x = noise;
        for pair in sigmas.windows(2) {
            let copies = if guided { 2 } else { 1 };
            let timestep = vec![self.schedule.timestep(pair[0]); copies * batch];
            let input = if guided { Tensor::concat(&[&x, &x]) } else { x.clone() };
            let velocity = self.model.forward(&input, condition.condition(&timestep), self.adapter);
            let dt = pair[1] - pair[0];
            let (u, c) = velocity.data().split_at(if guided { x.len() } else { 0 });
            if guided {
                for ((x, u), c) in x.data_mut().iter_mut().zip(u).zip(c) {
                    *x += (u + self.guidance * (c - u)) * dt;
                }
            } else {
                x.data_mut().iter_mut().zip(c).for_each(|(x, v)| *x += v * dt);
            }
            on_step();
        }
        x
    }
}

impl PromptEmbeds {
    /// These embeddings as the model's condition at `timestep`.
    pub fn condition<'a>(&'a self, timestep: &'a [f32]) -> Condition<'a> {
        Condition { timestep, prompt_embeds: &self.prompt_embeds, pooled_prompt_embeds: &self.pooled_prompt_embeds }
    }

    /// The embeddings of the prompts `rows`, in that order.
    pub fn rows(&self, rows: &[usize]) -> Self {
        Self {
            prompt_embeds: self.prompt_embeds.gather(rows),
            pooled_prompt_embeds: self.pooled_prompt_embeds.gather(rows),
            truncated: Vec::new(),
        }
    }

    /// The prompts of `a`, then those of `b`.
    pub fn concat(a: &Self, b: &Self) -> Self {
        Self {
            prompt_embeds: Tensor::concat(&[&a.prompt_embeds, &b.prompt_embeds]),
            pooled_prompt_embeds: Tensor::concat(&[&a.pooled_prompt_embeds, &b.pooled_prompt_embeds]),
            truncated: Vec::new(),
        }
    }
}
