//! MMDiT, the transformer of SD3 and SD3.5 (`SD3Transformer2DModel` of diffusers): forward, and backward by hand
//! to the LoRA factors and to the latent.

mod block;
mod config;
mod embed;
mod stream;

use std::cell::RefCell;
use std::path::Path;

use anyhow::Result;

use self::block::{Block, BlockSaved};
use self::embed::{PatchEmbed, TimeTextEmbed};
use super::Linear;
use super::lora::{Adapter, LoraLinear, Module};
use crate::device::Tensor;
use crate::io::{Loader, Scope, TensorFile, check_multiple};
use crate::ops::adaln;
use crate::ops::linear::{InputGrad, backward};
use crate::ops::patchify::{self, Order, Patches};

pub use self::config::Config;

/// What the forward keeps for the backward, and what is computed again; the results are the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Checkpointing {
    /// Keep everything.
    #[default]
    None,
    /// Keep only the input of each block: least memory, one more forward.
    Block,
    /// Keep projections and attention results; norms and MLPs are computed again.
    Selective,
}

/// The transformer with its frozen weights.
pub struct Mmdit {
    /// Its sizes.
    pub config: Config,
    patch_embed: PatchEmbed,
    time_text_embed: TimeTextEmbed,
    context_embedder: Linear,
    blocks: Vec<Block>,
    norm_out: Linear,
    proj_out: Linear,
    modules: Vec<Module>,
}

/// What the velocity is conditioned on.
#[derive(Clone, Copy)]
pub struct Condition<'a> {
    /// `1000·sigma` per sample, `[b]`.
    pub timestep: &'a [f32],
    /// `[b, l, joint_attention_dim]`.
    pub prompt_embeds: &'a Tensor,
    /// `[b, pooled_projection_dim]`.
    pub pooled_prompt_embeds: &'a Tensor,
}

/// What a forward keeps for its backward.
pub struct Saved {
    embedding: Tensor,
    blocks: Vec<BlockSaved>,
    x: Tensor,
    patches: Patches,
}

/// Loads linear layers and numbers those that an adapter can be put on.
struct LoraScope<'a> {
    scope: Scope<'a>,
    modules: &'a RefCell<Vec<Module>>,
}

impl LoraScope<'_> {
    fn sub(&self, name: &str) -> Self {
        Self { scope: self.scope.sub(name), modules: self.modules }
    }

    fn linear(&self, name: &str, inputs: usize, outputs: usize) -> LoraLinear {
        let scope = self.scope.sub(name);
        let mut modules = self.modules.borrow_mut();
        modules.push(Module { name: scope.name().to_string(), inputs, outputs });
        LoraLinear { base: Linear::load(&scope, inputs, outputs, true), index: modules.len() - 1 }
    }
}

/// The layers of a transformer of this `config` that an adapter can be put on; needs no weights.
pub fn modules(config: &Config) -> Vec<Module> {
    let nothing = TensorFile::empty(Path::new(""));
    Mmdit::build(config.clone(), &Loader::new(&nothing, &[]).root()).modules
}

impl Mmdit {
    /// Maps the transformer in `folder` (`config.json`, `diffusion_pytorch_model*.safetensors`).
    ///
    /// # Errors
    /// If a file is missing or damaged, or a tensor's name, shape, type or content is not what the config asks for.
    pub fn load(folder: &Path) -> Result<Self> {
        let config = Config::load(folder)?;
        let file = TensorFile::open_component(folder, "diffusion_pytorch_model")?;
        let loader = Loader::new(&file, &[]);
        let model = Self::build(config, &loader.root());
        loader.finish()?;
        Ok(model)
    }

    fn build(config: Config, root: &Scope) -> Self {
        let (modules, d) = (RefCell::default(), config.hidden());
        let blocks = (0..config.num_layers)
            .map(|i| {
                let scope = root.sub("transformer_blocks").sub(i);
                Block::load(&LoraScope { scope, modules: &modules }, &config, i)
            })
            .collect();
        let width = config.patch_size * config.patch_size * config.velocity_channels();
        Self {
            patch_embed: PatchEmbed::load(&root.sub("pos_embed"), &config),
            time_text_embed: TimeTextEmbed::load(&root.sub("time_text_embed"), &config),
            context_embedder: Linear::load(&root.sub("context_embedder"), config.joint_attention_dim, d, true),
            blocks,
            norm_out: Linear::load(&root.sub("norm_out.linear"), d, 2 * d, true),
            proj_out: Linear::load(&root.sub("proj_out"), d, width, true),
            modules: modules.into_inner(),
            config,
        }
    }

    /// All layers that an adapter can be put on.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Checks that a latent of `height` by `width` can be cut into tokens that have positions.
    ///
    /// # Errors
    /// Says which side does not fit and the nearest that does.
    pub fn check_latent_size(&self, height: usize, width: usize) -> Result<()> {
        [("latent height", height), ("latent width", width)].iter().try_for_each(|(what, side)| {
            check_multiple(what, *side, self.config.patch_size, self.config.pos_embed_max_size)
        })
    }

    /// The velocity of `latent` `[b, channels, h, w]` under `condition`, of the same shape. `adapter` `None` is the
    /// reference model.
    pub fn forward(&self, latent: &Tensor, condition: Condition, adapter: Option<&Adapter>) -> Tensor {
        self.run(latent, condition, adapter, |_| ()).0
    }

    /// As [`Mmdit::forward`], keeping what [`Mmdit::backward`] needs.
    pub fn forward_saved(
        &self,
        latent: &Tensor,
        condition: Condition,
        adapter: &Adapter,
        policy: Checkpointing,
    ) -> (Tensor, Saved) {
        let mut blocks = Vec::with_capacity(self.blocks.len());
        let (velocity, embedding, x, patches) =
            self.run(latent, condition, Some(adapter), |saved| blocks.push(saved.thin(policy)));
        (velocity, Saved { embedding, blocks, x, patches })
    }

    fn run(
        &self,
        latent: &Tensor,
        condition: Condition,
        adapter: Option<&Adapter>,
        mut keep: impl FnMut(BlockSaved),
    ) -> (Tensor, Tensor, Tensor, Patches) {
        let p = self.config.patch_size;
        let grid = (latent.dim(2) / p, latent.dim(3) / p);
        let patches = Patches { channels: self.config.in_channels, size: p, grid };
        let mut x = self.patch_embed.forward(latent, &patches);
        let embedding = self.time_text_embed.forward(condition.timestep, condition.pooled_prompt_embeds);
        let mut context = self.context_embedder.forward(condition.prompt_embeds);
        for block in &self.blocks {
            let saved;
            (x, context, saved) = block.forward(x, context, &embedding, adapter);
            keep(saved);
        }
        // AdaLayerNormContinuous: scale before shift.
        let normed = adaln::forward(&x, &self.norm_out.forward(&embedding), 1, 0);
        let out = Patches { channels: self.config.velocity_channels(), ..patches };
        (patchify::inverse(&self.proj_out.forward(&normed), &out, Order::ChannelLast), embedding, x, patches)
    }

    /// From `dvelocity` `[b, channels, h, w]` to the gradients of the adapter's factors, added to `grads`, and, if
    /// `want_dlatent`, the gradient to the latent.
    pub fn backward(
        &self,
        dvelocity: &Tensor,
        saved: Saved,
        adapter: &Adapter,
        grads: &mut Adapter,
        want_dlatent: bool,
    ) -> Option<Tensor> {
        let Saved { embedding, blocks, x, patches } = saved;
        let out = Patches { channels: self.config.velocity_channels(), ..patches };
        let dtokens = patchify::forward(dvelocity, &out, Order::ChannelLast);
        let mut dnormed = Tensor::scratch(x.shape());
        backward(&dtokens, &self.proj_out.weight, None, None, None, InputGrad::Overwrite(&mut dnormed));
        let mut dx = Tensor::zeros(x.shape());
        adaln::backward(&mut dx, &dnormed, &x, &self.norm_out.forward(&embedding), 0);
        let mut dcontext = None;
        for (block, saved) in self.blocks.iter().zip(blocks).rev() {
            let d;
            (dx, d) = block.backward(dx, dcontext, saved, &embedding, adapter, grads);
            dcontext = Some(d);
        }
        want_dlatent.then(|| self.patch_embed.backward(&dx, &patches))
    }
}
