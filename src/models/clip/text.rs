use anyhow::Result;

use super::config::TextConfig;
use super::tower::{Hidden, Shape, Tower};
use crate::device::{DType, Device, Tensor};
use crate::io::{Loader, Scope};
use crate::models::lora::file::LoraFile;
use crate::models::lora::{Module, Slot};
use crate::models::source::Component;
use crate::models::{LayerNorm, Linear};
use crate::ops;

/// The id that `eos_token_id` has in files older than transformers 4.31, whatever the tokenizer says.
const LEGACY_EOS: u32 = 2;

/// Token and position embedding, causal blocks, final norm.
pub(super) struct TextTower {
    tokens: Tensor,
    positions: Tensor,
    tower: Tower,
    norm: LayerNorm,
    eos: u32,
}

impl TextTower {
    pub fn load(scope: &Scope, config: &TextConfig) -> Self {
        let width = config.hidden_size;
        let embeddings = scope.sub("embeddings");
        let shape = Shape {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            layers: config.num_hidden_layers,
            act: config.hidden_act,
            eps: config.layer_norm_eps,
            causal: true,
        };
        Self {
            tokens: embeddings.sub("token_embedding").stored("weight", &[config.vocab_size, width]),
            positions: embeddings.sub("position_embedding").tensor("weight", &[config.max_position_embeddings, width]),
            tower: Tower::load(&scope.sub("encoder"), shape),
            norm: LayerNorm::load(&scope.sub("final_layer_norm"), width, config.layer_norm_eps),
            eos: config.eos_token_id,
        }
    }

    /// `ids` are `b` rows of equal length `n`; both results `[b, n, width]`, the last one after the final norm.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Hidden {
        let (b, n) = (ids.len(), ids.first().map_or(0, Vec::len));
        assert!(b > 0 && ids.iter().all(|row| row.len() == n), "clip text: rows of unequal length");
        assert!(n > 0 && n <= self.positions.dim(0), "clip text: {n} tokens, {} positions", self.positions.dim(0));
        let width = self.tokens.dim(1);
        let x = ops::embedding::forward(&ids.concat(), &self.tokens).reshape(&[b, n, width]);
        let mut x = self.tower.activations(x);
        ops::position::add(&mut x, &self.positions, &[0]);
        let hidden = self.tower.forward(x);
        Hidden { last: self.norm.forward(&hidden.last), ..hidden }
    }

    /// The rows of `last` `[b, n, width]` at the end tokens, `[b, width]`.
    pub fn pool(&self, last: &Tensor, ids: &[Vec<u32>]) -> Tensor {
        let (b, n, width) = (last.dim(0), last.dim(1), last.dim(2));
        let ends: Vec<usize> = ids.iter().enumerate().map(|(i, ids)| i * n + end_position(ids, self.eos)).collect();
        ops::copy::gather(&last.clone().reshape(&[b * n, width]), &ends)
    }
}

/// Where `ids` ends: at the first `eos`, or for [`LEGACY_EOS`] at the first of the largest id; 0 if there is none
/// (as transformers' argmax of a comparison).
pub(super) fn end_position(ids: &[u32], eos: u32) -> usize {
    let end = if eos == LEGACY_EOS { ids.iter().copied().max().unwrap_or(eos) } else { eos };
    ids.iter().position(|id| *id == end).unwrap_or(0)
}

/// A text encoder with projection (`CLIPTextModelWithProjection`).
pub struct ClipText {
    config: TextConfig,
    tower: TextTower,
    projection: Linear,
}

/// What a text encoder says about `b` prompts of `n` tokens.
pub struct ClipTextOutput {
    /// `hidden_states[-2]`: before the last block, not normalised, `[b, n, width]`.
    pub hidden: Tensor,
    /// After the final norm, `[b, n, width]`.
    pub last_hidden: Tensor,
    /// The end token's `last_hidden`, projected, `[b, projection]`.
    pub text_embeds: Tensor,
}

impl ClipText {
    /// The encoder `component`: in a folder, `config.json` and `model.safetensors`.
    ///
    /// # Errors
    /// Names the file and the key or tensor that is missing or not as expected.
    pub fn load(component: impl Into<Component>, device: &Device) -> Result<Self> {
        let component = component.into();
        let config = TextConfig::load(&component)?;
        let file = component.weights("model")?;
        let loader = Loader::new(&file, super::IGNORED, device);
        let root = loader.root();
        // Some versions of transformers write the tower's names without their first part.
        let bare = root.has("embeddings.token_embedding.weight");
        let tower = TextTower::load(&if bare { root.clone() } else { root.sub("text_model") }, &config);
        let projection = Linear::load(&root.sub("text_projection"), config.hidden_size, config.projection_dim, false);
        loader.finish()?;
        Ok(Self { config, tower, projection })
    }

    /// Adds the factors that `lora` has for the encoder, which is `component` of its pipeline, to the weights.
    ///
    /// # Errors
    /// As [`LoraFile::bank`].
    pub fn merge(&mut self, lora: &LoraFile, component: &str) -> Result<()> {
        let blocks = self.tower.tower.linears().map(|(name, l)| (format!("text_model.encoder.{name}"), l));
        let linears: Vec<(String, &mut Linear)> =
            blocks.chain([("text_projection".to_string(), &mut self.projection)]).collect();
        let module = |(name, l): &(String, &mut Linear)| {
            let (outputs, inputs) = (l.weight.dim(0), l.weight.dim(1));
            Module { name: name.clone(), inputs, outputs, trainable: false }
        };
        let modules: Vec<Module> = linears.iter().map(module).collect();
        let device = self.tower.tokens.device();
        let Some(bank) = lora.bank(component, &modules, &device)? else { return Ok(()) };
        for (i, (_, linear)) in linears.into_iter().enumerate() {
            if let Some(factor) = bank.factor(Slot::Theta, i) {
                linear.weight = ops::linear::merge(&linear.weight, &factor.a, &factor.b, bank.scale());
            }
        }
        Ok(())
    }

    /// What its weights are stored in, as its table of tokens is.
    pub fn dtype(&self) -> DType {
        self.tower.tokens.dtype().computed()
    }

    /// What the encoder was built from.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// `ids` are rows of equal length, at most `max_position_embeddings`, all below `vocab_size`.
    pub fn forward(&self, ids: &[Vec<u32>]) -> ClipTextOutput {
        let Hidden { penultimate, last } = self.tower.forward(ids);
        let text_embeds = self.projection.forward(&self.tower.pool(&last, ids));
        let [hidden, last_hidden, text_embeds] =
            [penultimate, last, text_embeds].map(|x| ops::copy::cast(&x, DType::F32));
        ClipTextOutput { hidden, last_hidden, text_embeds }
    }
}
