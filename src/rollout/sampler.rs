//! The deterministic sampler: explicit Euler steps along the velocity field.

use anyhow::Result;

use crate::device::Tensor;
use crate::models::lora::Adapter;
use crate::models::mmdit::Mmdit;
use crate::models::text::PromptEmbeds;
use crate::ops::euler;
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
    /// Whether the unconditional branch is needed.
    pub fn is_guided(&self) -> bool {
        self.guidance > 1.0
    }

    /// Integrates from `noise` `[b, channels, h, w]` at `sigma = 1` to the latent at 0, sample `i` conditioned on row `i`
    /// of `prompts`. `negative`, one row that guidance leads away from, is needed if there is guidance. `on_step` is
    /// called after each step.
    ///
    /// # Errors
    /// What `on_step` reports; the rest of the steps is left out then.
    pub fn euler(
        &self,
        noise: Tensor,
        prompts: &PromptEmbeds,
        negative: Option<&PromptEmbeds>,
        mut on_step: impl FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        let batch = noise.dim(0);
        assert_eq!(prompts.prompt_embeds.dim(0), batch, "one prompt per sample");
        let guided = self.is_guided();
        // One batch, unconditional half first, as diffusers runs it.
        let both = guided.then(|| {
            let negative = negative.expect("guidance needs a negative prompt");
            PromptEmbeds::concat(&[&negative.rows(&vec![0; batch]), prompts])
        });
        let condition = both.as_ref().unwrap_or(prompts);
        let sigmas = self.schedule.sigmas(self.steps);
        let mut x = noise;
        for pair in sigmas.windows(2) {
            let copies = if guided { 2 } else { 1 };
            let timestep = vec![self.schedule.timestep(pair[0]); copies * batch];
            let input = if guided { Tensor::concat(&[&x, &x]) } else { x.clone() };
            let velocity = self.model.forward(&input, condition.condition(&timestep), self.adapter);
            euler::step(&mut x, &velocity, guided.then_some(self.guidance), pair[1] - pair[0]);
            on_step()?;
        }
        Ok(x)
    }
}
