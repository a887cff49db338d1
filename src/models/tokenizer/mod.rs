//! Text to token ids: the byte-level BPE of CLIP, the unigram model of T5 and the pieces of BERT, as transformers 5 builds them.

mod charsmap;
mod clean;
mod clip;
mod folder;
mod sentencepiece;
#[cfg(test)]
mod tests;
mod wordpiece;

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};

use crate::models::source::Component;

pub use sentencepiece::SentencePiece;
pub use wordpiece::WordPiece;

/// The tokenizer of one `tokenizer*` folder of a pipeline.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    folder: PathBuf,
    bos: Option<u32>,
    eos: u32,
    pad: u32,
    max_length: Option<usize>,
    /// What is done to a text first.
    clean: Option<fn(&str) -> String>,
}

/// The ids of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Exactly as many as were asked for: begin, text, end, padding.
    pub ids: Vec<u32>,
    /// How many tokens of the text did not fit.
    pub dropped: usize,
}

impl Tokenizer {
    /// The tokenizer in `folder`: `tokenizer.json`, or CLIP's `vocab.json` with `merges.txt`; special tokens and
    /// the length limit from `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// # Errors
    /// Names the file that is missing, or that does not hold what a CLIP or T5 tokenizer consists of.
    pub fn load(folder: &Path) -> Result<Self> {
        folder::load(folder)
    }

    /// The tokenizer of a part of a model.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn of(part: &Component) -> Result<Self> {
        match part.outline() {
            Some(settings) => Ok(Self::blank(settings["model_max_length"].as_u64().unwrap_or(77) as usize)),
            None => Self::load(part.path()),
        }
    }

    /// One that knows no words, for plans: every text is begin, end and padding.
    pub fn blank(max_length: usize) -> Self {
        let inner = tokenizers::Tokenizer::new(tokenizers::models::bpe::BPE::default());
        Self { inner, folder: PathBuf::new(), bos: Some(0), eos: 1, pad: 1, max_length: Some(max_length), clean: None }
    }

    /// CLIP's, which is part of the program, as transformers uses it.
    pub fn clip() -> Self {
        folder::built_in(folder::TRANSFORMERS)
    }

    /// CLIP's, as open_clip uses it: with straight quotes, entities resolved, and what else it cleans of a text first.
    pub fn open_clip() -> Self {
        Self { clean: Some(clean::clean), ..folder::built_in(folder::OPEN_CLIP) }
    }

    /// The most tokens the model takes, if the folder says so.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// The folder this was loaded from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The ids of `text`, padded or cut to `length`; the end token, and CLIP's begin token, are always kept.
    /// As transformers' `padding="max_length", truncation=True`.
    ///
    /// # Errors
    /// If `length` has no room for begin and end, or the text has a piece the vocabulary cannot express.
    pub fn encode(&self, text: &str, length: usize) -> Result<Encoded> {
        let special = 1 + usize::from(self.bos.is_some());
        ensure!(length >= special, "{}: cannot cut a text to {length} tokens, {special} are special", self.name());
        let cleaned = self.clean.map(|clean| clean(text));
        let text = cleaned.as_deref().unwrap_or(text);
        let body = self.inner.encode_fast(text, false).map_err(|e| anyhow!("{}: {text:?}: {e}", self.name()))?;
        let body = body.get_ids();
        let kept = body.len().min(length - special);
        let mut ids = Vec::with_capacity(length);
        ids.extend(self.bos);
        ids.extend_from_slice(&body[..kept]);
        ids.push(self.eos);
        ids.resize(length, self.pad);
        Ok(Encoded { ids, dropped: body.len() - kept })
    }

    fn name(&self) -> std::path::Display<'_> {
        self.folder.display()
    }
}
