//! Prompts to what the transformer is conditioned on, as diffusers' `StableDiffusion3Pipeline.encode_prompt`.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::clip::ClipText;
use super::index::ModelIndex;
use super::mmdit::Condition;
use super::t5::T5;
use super::tokenizer::Tokenizer;
use crate::device::Tensor;

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
}

/// Tokens that every prompt takes in the CLIPs, given the first tokenizer of the pipeline in `folder`.
fn clip_length(folder: &Path, tokenizer: &Tokenizer) -> Result<usize> {
    let file = || format!("{}/tokenizer/tokenizer_config.json: no model_max_length", folder.display());
    tokenizer.max_length().with_context(file)
}

/// The condition of `b` prompts.
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

    /// The embeddings of the prompts `rows`, in that order.
    pub fn rows(&self, rows: &[usize]) -> Self {
        Self {
            prompt_embeds: self.prompt_embeds.gather(rows),
            pooled_prompt_embeds: self.pooled_prompt_embeds.gather(rows),
        }
    }

    /// The prompts of all `parts`, one part after the other.
    pub fn concat(parts: &[&Self]) -> Self {
        let all = |part: fn(&Self) -> &Tensor| Tensor::concat(&parts.iter().map(|p| part(p)).collect::<Vec<_>>());
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
    /// The encoders and tokenizers of the pipeline in `folder`. `joint_attention_dim` is the transformer's.
    ///
    /// # Errors
    /// Names the file and what is missing in it, or the two components whose sizes do not fit each other.
    pub fn load(folder: &Path, index: &ModelIndex, joint_attention_dim: usize) -> Result<Self> {
        let clip = |encoder: &str, tokenizer: &str| -> Result<(Tokenizer, ClipText)> {
            index.require(encoder)?;
            index.require(tokenizer)?;
            Ok((Tokenizer::load(&folder.join(tokenizer))?, ClipText::load(&folder.join(encoder))?))
        };
        let clip = [clip("text_encoder", "tokenizer")?, clip("text_encoder_2", "tokenizer_2")?];
        let t5 = if index.has("text_encoder_3") {
            index.require("tokenizer_3")?;
            let (tokenizer, t5) = (folder.join("tokenizer_3"), folder.join("text_encoder_3"));
            Some((Tokenizer::load(&tokenizer)?, T5::load(&t5)?))
        } else {
            None
        };

        let shown = folder.display();
        let clip_length = clip_length(folder, &clip[0].0)?;
        for ((_, model), name) in clip.iter().zip(["text_encoder", "text_encoder_2"]) {
            let positions = model.config().max_position_embeddings;
            ensure!(
                clip_length <= positions,
                "{shown}/tokenizer/tokenizer_config.json: model_max_length is {clip_length}, but {name} has \
                 max_position_embeddings {positions}"
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
        Ok(Self { clip, t5, clip_length, joint_attention_dim })
    }

    /// Tokens that every prompt takes in the CLIPs of the pipeline in `folder`; reads no weights.
    ///
    /// # Errors
    /// If the first tokenizer cannot be read.
    pub fn clip_tokens(folder: &Path) -> Result<usize> {
        clip_length(folder, &Tokenizer::load(&folder.join("tokenizer"))?)
    }

    /// Whether the pipeline has T5; without it, its part of the condition is zero.
    pub fn has_t5(&self) -> bool {
        self.t5.is_some()
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

        let tokens = self.tokens(max_sequence_length);
        let mut embeds = Tensor::scratch(&[prompts.len(), tokens, self.joint_attention_dim]);
        let mut pooled = Tensor::scratch(&[prompts.len(), self.pooled_dim()]);
        for (batch, prompts) in distinct.chunks(MICRO_BATCH).enumerate() {
            let encoded = self.encode_batch(prompts, max_sequence_length)?;
            for (i, at) in order.iter().enumerate() {
                if let Some(row) = at.checked_sub(batch * MICRO_BATCH).filter(|row| *row < prompts.len()) {
                    copy_row(&mut embeds, i, &encoded.0, row);
                    copy_row(&mut pooled, i, &encoded.1, row);
                }
            }
            on_batch(prompts.len());
        }
        Ok(PromptEmbeds { prompt_embeds: embeds, pooled_prompt_embeds: pooled })
    }

    /// `prompt_embeds` and `pooled_prompt_embeds` of a few prompts.
    fn encode_batch(&self, prompts: &[&str], max_sequence_length: usize) -> Result<(Tensor, Tensor)> {
        let b = prompts.len();
        let mut outputs = Vec::new();
        for ((tokenizer, model), encoder) in self.clip.iter().zip(["text_encoder", "text_encoder_2"]) {
            let vocabulary = model.config().vocab_size;
            let ids = tokenize(tokenizer, prompts, self.clip_length, vocabulary, encoder)?;
            outputs.push(model.forward(&ids));
        }
        let mut pooled = Tensor::scratch(&[b, outputs.iter().map(|o| o.text_embeds.width()).sum()]);
        beside(pooled.data_mut(), outputs.iter().map(|o| &o.text_embeds));

        let mut embeds = Tensor::zeros(&[b, self.clip_length + max_sequence_length, self.joint_attention_dim]);
        let mut clip = Tensor::zeros(&[b, self.clip_length, self.joint_attention_dim]);
        beside(clip.data_mut(), outputs.iter().map(|o| &o.hidden));
        let t5 = match &self.t5 {
            None => None,
            Some((tokenizer, model)) => {
                let vocabulary = model.config().vocab_size;
                let ids = tokenize(tokenizer, prompts, max_sequence_length, vocabulary, "text_encoder_3")?;
                Some(model.forward(&ids))
            }
        };
        let (front, back) = (clip.len() / b, max_sequence_length * self.joint_attention_dim);
        for (i, row) in embeds.data_mut().chunks_exact_mut(front + back).enumerate() {
            row[..front].copy_from_slice(&clip.data()[i * front..(i + 1) * front]);
            if let Some(t5) = &t5 {
                row[front..].copy_from_slice(&t5.data()[i * back..(i + 1) * back]);
            }
        }
        Ok((embeds, pooled))
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

/// Writes the rows of `parts` beside each other into the rows of `out`; what is right of them stays.
fn beside<'a>(out: &mut [f32], parts: impl Iterator<Item = &'a Tensor>) {
    let mut from = 0;
    for part in parts {
        let width = out.len() / part.rows();
        for (out, row) in out.chunks_exact_mut(width).zip(part.data().chunks_exact(part.width())) {
            out[from..from + part.width()].copy_from_slice(row);
        }
        from += part.width();
    }
}

/// `out[i] = x[row]` along the outermost axis.
fn copy_row(out: &mut Tensor, i: usize, x: &Tensor, row: usize) {
    let n = x.len() / x.dim(0);
    out.data_mut()[i * n..(i + 1) * n].copy_from_slice(&x.data()[row * n..(row + 1) * n]);
}
