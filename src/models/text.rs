//! Prompts to what the transformer is conditioned on, as diffusers' `StableDiffusion3Pipeline.encode_prompt`.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};

use super::clip::{ClipText, ClipTextOutput};
use super::lora::file::{LoraFile, TEXT_ENCODERS};
use super::mmdit;
use super::network::Condition;
use super::source::Model;
use super::t5::T5;
use super::tokenizer::Tokenizer;
use crate::device::{DType, Device, Tensor};
use crate::ops::{copy, linear};

/// The most tokens a prompt may take in T5; diffusers refuses more.
pub const LONGEST_SEQUENCE: usize = 512;

/// Prompts that go through the encoders together; results do not depend on it.
const MICRO_BATCH: usize = 8;

/// CLIP-L, CLIP-G and, where the pipeline has it, T5.
pub struct TextEncoders {
    clip: [(Tokenizer, ClipText); 2],
    t5: Option<(Tokenizer, T5)>,
    /// Tokens that every prompt takes in the CLIPs: the first tokenizer's limit.
    clip_length: usize,
    joint_attention_dim: usize,
    device: Device,
}

/// Tokens that every prompt takes in the CLIPs, given the first tokenizer of a pipeline.
fn clip_length(tokenizer: &Tokenizer) -> Result<usize> {
    let file = || format!("{}/tokenizer_config.json: no model_max_length", tokenizer.folder().display());
    tokenizer.max_length().with_context(file)
}

/// The condition of `b` prompts, in the type of the encoders that it comes from.
pub struct PromptEmbeds {
    /// `[b, clip_length + max_sequence_length, joint_attention_dim]`.
    pub prompt_embeds: Tensor,
    /// `[b, pooled]`: the two CLIPs' `text_embeds`.
    pub pooled_prompt_embeds: Tensor,
}

impl PromptEmbeds {
    /// These embeddings as the transformer's condition at `timestep` `[b]`.
    pub fn condition<'a>(&'a self, timestep: &'a [f32]) -> Condition<'a> {
        Condition { timestep, prompt_embeds: &self.prompt_embeds, pooled_prompt_embeds: &self.pooled_prompt_embeds }
    }

    /// Bytes they take.
    pub fn bytes(&self) -> usize {
        let bytes = |t: &Tensor| t.dtype().bytes(t.len());
        bytes(&self.prompt_embeds) + bytes(&self.pooled_prompt_embeds)
    }

    /// The embeddings of the prompts `rows`, in that order.
    pub fn rows(&self, rows: &[usize]) -> Self {
        Self {
            prompt_embeds: copy::gather(&self.prompt_embeds, rows),
            pooled_prompt_embeds: copy::gather(&self.pooled_prompt_embeds, rows),
        }
    }

    /// The prompts of all `parts`, one part after the other.
    pub fn concat(parts: &[&Self]) -> Self {
        let all = |part: fn(&Self) -> &Tensor| copy::concat(&parts.iter().map(|p| part(p)).collect::<Vec<_>>());
        Self { prompt_embeds: all(|p| &p.prompt_embeds), pooled_prompt_embeds: all(|p| &p.pooled_prompt_embeds) }
    }
}

/// A prompt that was longer than an encoder takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncated {
    /// The prompt.
    pub prompt: String,
    /// The encoder's folder in the pipeline.
    pub encoder: &'static str,
    /// How many tokens at the end were not seen.
    pub dropped: usize,
}

/// One line about prompts that an encoder does not see whole: the first of them, and how many there are.
pub fn describe_truncated(truncated: &[Truncated]) -> Option<String> {
    let first = truncated.first()?;
    let more = match truncated.len() - 1 {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    };
    let Truncated { prompt, encoder, dropped } = first;
    Some(format!("{prompt:?} is longer than {encoder} takes: the last {dropped} tokens are not seen{more}"))
}

impl TextEncoders {
    /// Maps the text encoders and tokenizers of `model`.
    ///
    /// # Errors
    /// Names the file and what is missing in it, or the two components whose sizes do not fit each other.
    pub fn load(model: &Model, device: &Device) -> Result<Self> {
        let sizes = mmdit::Config::load(model.component("transformer")?)?.sizes();
        let text = Self::load_for(model, sizes.text, device)?;
        let (want, got) = (sizes.pooled, text.pooled_dim());
        ensure!(
            want == got,
            "{}: the text encoders pool to {got} values, the transformer expects {want}",
            model.path().display()
        );
        Ok(text)
    }

    /// Adds the factors that `lora` has for the CLIP encoders to their weights.
    ///
    /// # Errors
    /// As [`LoraFile::bank`].
    pub fn merge(&mut self, lora: &LoraFile) -> Result<()> {
        self.clip.iter_mut().zip(TEXT_ENCODERS).try_for_each(|((_, clip), component)| clip.merge(lora, component))
    }

    fn load_for(model: &Model, joint_attention_dim: usize, device: &Device) -> Result<Self> {
        let clip = |encoder: &str, tokenizer: &str| -> Result<(Tokenizer, ClipText)> {
            let (encoder, tokenizer) = (model.component(encoder)?, model.component(tokenizer)?);
            Ok((Tokenizer::of(tokenizer)?, ClipText::load(encoder, device)?))
        };
        let clip = [clip("text_encoder", "tokenizer")?, clip("text_encoder_2", "tokenizer_2")?];
        let t5 = if model.has("text_encoder_3") {
            let (tokenizer, t5) = (model.component("tokenizer_3")?, model.component("text_encoder_3")?);
            Some((Tokenizer::of(tokenizer)?, T5::load(t5, device)?))
        } else {
            None
        };

        let shown = model.path().display();
        let clip_length = clip_length(&clip[0].0)?;
        for ((_, encoder), name) in clip.iter().zip(["text_encoder", "text_encoder_2"]) {
            let positions = encoder.config().max_position_embeddings;
            ensure!(
                clip_length <= positions,
                "{}/tokenizer_config.json: model_max_length is {clip_length}, but {name} has max_position_embeddings \
                 {positions}",
                clip[0].0.folder().display()
            );
        }
        let width: usize = clip.iter().map(|(_, model)| model.config().hidden_size).sum();
        ensure!(
            width <= joint_attention_dim,
            "{shown}: text_encoder and text_encoder_2 are {width} wide together, the transformer's joint_attention_dim \
             is {joint_attention_dim}"
        );
        if let Some((_, t5)) = &t5 {
            let width = t5.config().d_model;
            ensure!(
                width == joint_attention_dim,
                "{shown}: text_encoder_3 is {width} wide, the transformer's joint_attention_dim is {joint_attention_dim}"
            );
        }
        Ok(Self { clip, t5, clip_length, joint_attention_dim, device: device.clone() })
    }

    /// The types of the embeddings and of the pooled ones, as diffusers has them: embeddings have the type of the first CLIP
    /// and of T5, pooled ones that of both CLIPs, and single precision where the two differ.
    fn types(&self) -> [DType; 2] {
        let [first, second] = self.clip.each_ref().map(|(_, model)| model.dtype());
        let t5 = self.t5.as_ref().map_or(first, |(_, model)| model.dtype());
        [t5, second].map(|other| if other == first { first } else { DType::F32 })
    }

    /// Width of the pooled embeddings.
    pub fn pooled_dim(&self) -> usize {
        self.clip.iter().map(|(_, model)| model.config().projection_dim).sum()
    }

    /// Tokens of a prompt when T5 gets `max_sequence_length` of them.
    pub fn tokens(&self, max_sequence_length: usize) -> usize {
        self.clip_length + max_sequence_length
    }

    /// The prompts that an encoder will not see whole, each once per such encoder.
    ///
    /// # Errors
    /// If a prompt cannot be tokenized.
    pub fn truncated<'a>(
        &self,
        prompts: impl IntoIterator<Item = &'a str>,
        max_sequence_length: usize,
    ) -> Result<Vec<Truncated>> {
        let clip = self.clip.iter().map(|(tokenizer, _)| (tokenizer, self.clip_length));
        let t5 = self.t5.iter().map(|(tokenizer, _)| (tokenizer, max_sequence_length));
        let encoders: Vec<_> = clip.chain(t5).zip(["text_encoder", "text_encoder_2", "text_encoder_3"]).collect();
        let mut truncated = Vec::new();
        for prompt in prompts {
            for ((tokenizer, length), encoder) in &encoders {
                let dropped = tokenizer.encode(prompt, *length)?.dropped;
                if dropped > 0 {
                    truncated.push(Truncated { prompt: prompt.to_string(), encoder, dropped });
                }
            }
        }
        Ok(truncated)
    }

    /// The condition of every prompt, in their order; equal prompts are encoded once. `max_sequence_length` is T5's
    /// share of the tokens.
    ///
    /// # Errors
    /// If `max_sequence_length` is 0 or above 512, or a prompt holds a token that an encoder has no embedding for.
    pub fn encode(&self, prompts: &[String], max_sequence_length: usize) -> Result<PromptEmbeds> {
        self.encode_with(prompts, max_sequence_length, |_| ())
    }

    /// As [`TextEncoders::encode`]; calls `on_batch` with how many more distinct prompts are done.
    ///
    /// # Errors
    /// As [`TextEncoders::encode`].
    pub fn encode_with(
        &self,
        prompts: &[String],
        max_sequence_length: usize,
        mut on_batch: impl FnMut(usize),
    ) -> Result<PromptEmbeds> {
        ensure!(
            (1..=LONGEST_SEQUENCE).contains(&max_sequence_length),
            "max_sequence_length is {max_sequence_length}, expected 1 to {LONGEST_SEQUENCE}"
        );
        let mut distinct: Vec<&str> = Vec::new();
        let mut place = HashMap::new();
        let order: Vec<usize> = prompts
            .iter()
            .map(|prompt| {
                *place.entry(prompt.as_str()).or_insert_with(|| {
                    distinct.push(prompt);
                    distinct.len() - 1
                })
            })
            .collect();

        let mut encoded = Vec::new();
        for prompts in distinct.chunks(MICRO_BATCH) {
            encoded.push(self.device.region(|| self.encode_batch(prompts, max_sequence_length))?);
            on_batch(prompts.len());
        }
        let all = PromptEmbeds::concat(&encoded.iter().collect::<Vec<_>>());
        Ok(if order.iter().copied().eq(0..distinct.len()) { all } else { all.rows(&order) })
    }

    /// The condition of a few prompts.
    fn encode_batch(&self, prompts: &[&str], max_sequence_length: usize) -> Result<PromptEmbeds> {
        let (b, tokens) = (prompts.len(), self.tokens(max_sequence_length));
        let mut prompt_embeds = Tensor::zeros(&self.device, &[b, tokens, self.joint_attention_dim]);
        let mut pooled = Tensor::scratch(&self.device, &[b, 1, self.pooled_dim()]);
        let (mut column, mut pooled_column) = (0, 0);
        for ((tokenizer, model), encoder) in self.clip.iter().zip(["text_encoder", "text_encoder_2"]) {
            let vocabulary = model.config().vocab_size;
            let ids = tokenize(tokenizer, prompts, self.clip_length, vocabulary, encoder)?;
            let ClipTextOutput { hidden, text_embeds, .. } = model.forward(&ids);
            let width = text_embeds.width();
            copy::block_into(&mut prompt_embeds, 0, column, &hidden);
            copy::block_into(&mut pooled, 0, pooled_column, &text_embeds.reshape(&[b, 1, width]));
            (column, pooled_column) = (column + hidden.width(), pooled_column + width);
        }
        if let Some((tokenizer, model)) = &self.t5 {
            let vocabulary = model.config().vocab_size;
            let ids = tokenize(tokenizer, prompts, max_sequence_length, vocabulary, "text_encoder_3")?;
            copy::block_into(&mut prompt_embeds, self.clip_length, 0, &model.forward(&ids));
        }
        let pooled = pooled.reshape(&[b, self.pooled_dim()]);
        let stored = |x: Tensor, dtype| if dtype == DType::F32 { x } else { linear::rounded(&x, dtype) };
        let [prompt, pool] = self.types();
        Ok(PromptEmbeds { prompt_embeds: stored(prompt_embeds, prompt), pooled_prompt_embeds: stored(pooled, pool) })
    }
}

/// The ids of every prompt at `length`.
fn tokenize(
    tokenizer: &Tokenizer,
    prompts: &[&str],
    length: usize,
    vocabulary: usize,
    encoder: &'static str,
) -> Result<Vec<Vec<u32>>> {
    let ids = |prompt: &&str| {
        let ids = tokenizer.encode(prompt, length)?.ids;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            anyhow::bail!(
                "{}: token {id} of {prompt:?} has no embedding, {encoder} has {vocabulary}",
                tokenizer.folder().display()
            );
        }
        Ok(ids)
    };
    prompts.iter().map(ids).collect()
}
