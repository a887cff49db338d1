//! MMDiT, the transformer of SD3 and SD3.5 (`SD3Transformer2DModel` of diffusers): forward, and backward by hand
//! to the LoRA factors and to the latent.

mod attention;
mod block;
mod config;
mod embed;
mod mlp;
mod modulation;
mod positions;

use std::cell::RefCell;
use std::iter;
use std::ops::Range;

use anyhow::{Result, bail};

use self::block::Block;
use self::embed::{PatchEmbed, TimeTextEmbed};
use super::Linear;
use super::lora::{Adapters, LoraLinear, Module, Rows, Trained};
use super::network::{Checkpointing, Condition, Network, Saved, Sizes};
use super::source::Component;
use crate::device::{DType, Device, Precision, Tensor, range, workers};
use crate::io::{Loader, Scope};
use crate::ops::adaln::{self, Chunk};
use crate::ops::linear::{InputGrad, Then, backward};
use crate::ops::patchify::{self, Order, Patches};
use crate::ops::{activation, copy, fp8};

pub use self::config::Config;

/// The transformer with its frozen weights.
pub struct Mmdit {
    config: Config,
    /// Whether its weights are so few that reading them once for every piece of a batch costs nothing.
    small: bool,
    device: Device,
    /// What activations are kept in.
    activations: DType,
    patch_embed: PatchEmbed,
    time_text_embed: TimeTextEmbed,
    context_embedder: LoraLinear,
    blocks: Vec<Block>,
    norm_out: LoraLinear,
    proj_out: LoraLinear,
    modules: Vec<Module>,
}

/// Bytes of weights that stay in the processor's last cache.
const SMALL: u64 = 32 << 20;
/// Rows of a piece of a batch at most, and of all that gradients are added up over: part of the definition of a gradient.
const PIECE: usize = 16;
/// Rows that are worth a piece.
const LEAST: usize = 4;

/// What a forward keeps for its backward, of a piece of the batch.
struct Kept {
    blocks: Vec<block::Saved>,
    x: Tensor,
    /// Scale and shift of the last norm.
    modulation: Tensor,
    patches: Patches,
}

/// The first `rows` samples of `x` for later: `x` itself if these are all, a copy if they are not, so that the rest can go.
fn keep(x: &Tensor, rows: usize) -> Tensor {
    if rows == x.dim(0) { x.clone() } else { copy::owned(&x.slice(0..rows)) }
}

/// The rows of a backward: all of them went through the trained adapter.
fn trained_rows(x: &Tensor, trained: &Trained) -> Rows {
    Rows::all(Some(trained.slot), x.dim(0))
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

    /// A layer whose factors the backward reaches.
    fn linear(&self, name: &str, inputs: usize, outputs: usize) -> LoraLinear {
        self.load(name, inputs, outputs, true)
    }

    /// A layer whose factors it does not reach.
    fn outer(&self, name: &str, inputs: usize, outputs: usize) -> LoraLinear {
        self.load(name, inputs, outputs, false)
    }

    fn load(&self, name: &str, inputs: usize, outputs: usize, trainable: bool) -> LoraLinear {
        let scope = self.scope.sub(name);
        let mut modules = self.modules.borrow_mut();
        modules.push(Module { name: scope.name().to_string(), inputs, outputs, trainable });
        LoraLinear { base: Linear::load(&scope, inputs, outputs, true), index: modules.len() - 1 }
    }
}

impl Mmdit {
    /// Maps the transformer `component` (in a folder, `config.json` and `diffusion_pytorch_model*.safetensors`).
    ///
    /// # Errors
    /// As [`super::load_network`]; also if its velocity has other channels than its latent.
    pub fn load(component: impl Into<Component>, device: &Device, precision: Precision) -> Result<Self> {
        let component = component.into();
        let config = Config::load(&component)?;
        let (channels, velocity) = (config.in_channels, config.velocity_channels());
        if velocity != channels {
            bail!(
                "{}: the transformer maps {channels} channels to {velocity}, expected the same",
                component.path().display()
            );
        }
        let file = component.weights("diffusion_pytorch_model")?;
        let loader = Loader::new(&file, &[], device).precision(precision);
        let model = Self::build(config, file.bytes() <= SMALL, device, &loader.root());
        loader.finish()?;
        Ok(model)
    }

    fn build(config: Config, small: bool, device: &Device, root: &Scope) -> Self {
        let (modules, d) = (RefCell::default(), config.hidden());
        let scope = LoraScope { scope: root.clone(), modules: &modules };
        let blocks: Vec<Block> = (0..config.num_layers)
            .map(|i| Block::load(&scope.sub("transformer_blocks").sub(&i.to_string()), &config, i))
            .collect();
        let width = config.patch_size * config.patch_size * config.velocity_channels();
        let proj_out = scope.outer("proj_out", d, width);
        Self {
            patch_embed: PatchEmbed::load(&root.sub("pos_embed"), &config),
            time_text_embed: TimeTextEmbed::load(&scope.sub("time_text_embed"), &config),
            context_embedder: scope.outer("context_embedder", config.joint_attention_dim, d),
            // Files whose blocks are small often have what surrounds them in another type.
            activations: device.activations(blocks[0].dtype()),
            blocks,
            norm_out: scope.outer("norm_out.linear", d, 2 * d),
            proj_out,
            modules: modules.into_inner(),
            device: device.clone(),
            small,
            config,
        }
    }

    /// The velocity, and what `keep` says of the first `rows` samples.
    fn run(
        &self,
        latent: &Tensor,
        condition: Condition,
        adapters: &Adapters,
        rows: usize,
        policy: Checkpointing,
    ) -> (Tensor, Kept) {
        let p = self.config.patch_size;
        let grid = (latent.dim(2) / p, latent.dim(3) / p);
        let patches = Patches { channels: self.config.in_channels, size: p, grid };
        let [latent, text, pooled] = [latent, condition.prompt_embeds, condition.pooled_prompt_embeds]
            .map(|input| copy::cast(input, self.activations));
        let mut x = self.patch_embed.forward(&latent, &patches);
        let embedding = self.time_text_embed.forward(condition.timestep, &pooled, adapters);
        let mut context = self.context_embedder.forward(&text, adapters, Then::Nothing);
        drop((latent, text, pooled));
        let mut blocks = Vec::with_capacity(if rows > 0 { self.blocks.len() } else { 0 });
        for (i, block) in self.blocks.iter().enumerate() {
            let _range = range(format_args!("block {i}"));
            let saved;
            (x, context, saved) = block.forward(x, context, &embedding, adapters, (rows, policy));
            blocks.extend(saved);
        }
        let modulation = self.norm_out.forward(&embedding, adapters, Then::Nothing);
        let [scale, shift] = [0, 1].map(|index| Chunk { modulation: &modulation, index });
        let normed = adaln::forward(&x, shift, scale);
        let out = Patches { channels: self.config.velocity_channels(), ..patches };
        let tokens = self.proj_out.forward(&normed, adapters, Then::Nothing);
        let velocity = copy::cast(&patchify::inverse(&tokens, &out, Order::ChannelLast), DType::F32);
        (velocity, Kept { blocks, x: keep(&x, rows), modulation: keep(&modulation, rows), patches })
    }
}

impl Network for Mmdit {
    fn device(&self) -> &Device {
        &self.device
    }

    fn sizes(&self) -> Sizes {
        self.config.sizes()
    }

    fn modules(&self) -> &[Module] {
        &self.modules
    }

    fn multiplies_in(&self) -> DType {
        self.blocks[0].dtype()
    }

    fn quantised(&self) -> Result<Box<dyn Network>> {
        fp8::check(&self.device, self.activations)?;
        Ok(Box::new(Self {
            config: self.config.clone(),
            device: self.device.clone(),
            patch_embed: self.patch_embed.clone(),
            time_text_embed: self.time_text_embed.clone(),
            context_embedder: self.context_embedder.clone(),
            blocks: self.blocks.iter().map(Block::quantised).collect(),
            norm_out: self.norm_out.clone(),
            proj_out: self.proj_out.clone(),
            modules: self.modules.clone(),
            ..*self
        }))
    }

    fn forward(&self, x: &Tensor, condition: Condition, adapters: &Adapters) -> Tensor {
        self.in_pieces(x, condition, adapters, 0, Checkpointing::Block).0
    }

    fn forward_saved(
        &self,
        x: &Tensor,
        condition: Condition,
        adapters: &Adapters,
        keep: Checkpointing,
    ) -> (Tensor, Saved) {
        let (velocity, kept) = self.in_pieces(x, condition, adapters, adapters.rows.trained(), keep);
        (velocity, Saved::new(kept))
    }

    fn backward(&self, dvelocity: &Tensor, saved: Saved, trained: &mut Trained, want_dx: bool) -> Option<Tensor> {
        let mut kept: Vec<Kept> = saved.take();
        let mut end = 0;
        let mut next = |kept: Kept| {
            let start = end;
            end += kept.x.dim(0);
            (kept, dvelocity.slice(start..end))
        };
        if kept.len() == 1 {
            let (kept, dvelocity) = next(kept.remove(0));
            return self.backward_of(&dvelocity, kept, trained, want_dx);
        }
        let Trained { bank, slot, grads } = trained;
        let pieces: Vec<(Kept, Tensor)> = kept.into_iter().map(next).collect();
        let done = self.device.side_by_side(pieces, |(kept, dvelocity)| {
            let mut grads = Tensor::zeros(&self.device, grads.shape());
            let dx = self.backward_of(&dvelocity, kept, &mut Trained { bank, slot: *slot, grads: &mut grads }, want_dx);
            (grads, dx)
        });
        let (of_pieces, dx): (Vec<Tensor>, Vec<Option<Tensor>>) = done.into_iter().unzip();
        of_pieces.iter().for_each(|g| activation::add(grads, g));
        let dx: Option<Vec<Tensor>> = dx.into_iter().collect();
        dx.map(|dx| copy::concat(&dx.iter().collect::<Vec<_>>()))
    }
}

impl Mmdit {
    /// The rows that go through the network together. Where weights are few, ops are too: then the threads divide the batch
    /// among themselves rather than every op. The first `kept` rows are for a backward, whose gradients must not depend on
    /// the number of threads.
    fn pieces(&self, rows: usize, kept: usize) -> Vec<Range<usize>> {
        if !self.small || matches!(self.device, Device::Gpu(_)) {
            return iter::once(0..rows).collect();
        }
        let cut = |from: usize, to: usize, most: usize| (from..to).step_by(most).map(move |i| i..(i + most).min(to));
        let most = (rows - kept).div_ceil(workers()).clamp(LEAST, PIECE);
        cut(0, kept, PIECE).chain(cut(kept, rows, most)).collect()
    }

    /// The velocity, and what `keep` says of the first `kept` samples.
    fn in_pieces(
        &self,
        x: &Tensor,
        condition: Condition,
        adapters: &Adapters,
        kept: usize,
        policy: Checkpointing,
    ) -> (Tensor, Vec<Kept>) {
        assert_eq!(adapters.rows.count(), x.dim(0), "one adapter per row");
        let done = self.device.side_by_side(self.pieces(x.dim(0), kept), |piece| {
            let (timestep, prompt_embeds, pooled) = condition.rows(piece.clone());
            let condition = Condition { timestep, prompt_embeds: &prompt_embeds, pooled_prompt_embeds: &pooled };
            let rows = adapters.rows.slice(piece.clone());
            let adapters = Adapters { rows: &rows, ..*adapters };
            let kept = kept.saturating_sub(piece.start).min(piece.len());
            self.run(&x.slice(piece), condition, &adapters, kept, policy)
        });
        let (velocities, kept): (Vec<Tensor>, Vec<Kept>) = done.into_iter().unzip();
        let kept = kept.into_iter().filter(|k| k.x.dim(0) > 0).collect();
        (copy::concat(&velocities.iter().collect::<Vec<_>>()), kept)
    }

    fn backward_of(&self, dvelocity: &Tensor, kept: Kept, trained: &mut Trained, want_dx: bool) -> Option<Tensor> {
        let Kept { blocks, x, modulation, patches } = kept;
        let out = Patches { channels: self.config.velocity_channels(), ..patches };
        let dtokens = patchify::forward(&copy::cast(dvelocity, self.activations), &out, Order::ChannelLast);
        let mut dnormed = x.scratch_like(x.shape());
        backward(&dtokens, &self.proj_out.base.weight, None, None, None, InputGrad::Overwrite(&mut dnormed));
        let mut dx = x.zeros_like(x.shape());
        adaln::backward(&mut dx, &dnormed, &x, Chunk { modulation: &modulation, index: 0 });
        drop((dnormed, dtokens, x));
        let mut dcontext = None;
        for (i, (block, saved)) in self.blocks.iter().zip(blocks).enumerate().rev() {
            let _range = range(format_args!("block {i} backward"));
            // Nothing reads the gradient to the first block's input, unless someone wants that to the latent.
            let (d, dc) = block.backward(dx, dcontext, saved, trained, i > 0 || want_dx)?;
            (dx, dcontext) = (d, Some(dc));
        }
        want_dx.then(|| copy::cast(&self.patch_embed.backward(&dx, &patches), DType::F32))
    }
}
