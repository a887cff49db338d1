use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use anyhow::Result;

use crate::device::Device;
use crate::models::lora::file::LoraFile;
use crate::models::source::Model;
use crate::models::text::{PromptEmbeds, TextEncoders};

/// Embeddings of earlier epochs are kept as long as all together take no more bytes.
const MOST_BYTES: usize = 1 << 29;

/// Encodes prompts when they first come up and remembers the result, in the type of the encoders.
pub struct PromptBank {
    /// Absent while their memory is given back.
    encoders: Option<TextEncoders>,
    model: Model,
    /// What was added to their weights.
    merged: Vec<Arc<LoraFile>>,
    device: Device,
    /// Whether they go as soon as all prompts at hand are encoded.
    leave: bool,
    max_sequence_length: usize,
    known: HashMap<String, Known>,
    /// Counts what goes through prompts one after another: epochs and evaluations.
    round: u64,
}

/// A prompt's embeddings and the round they were last used in.
struct Known {
    embeds: PromptEmbeds,
    used: u64,
}

impl PromptBank {
    /// An empty bank with the `encoders` of `model` on `device`; with `leave` they are there only while they encode.
    pub fn new(encoders: TextEncoders, model: Model, device: &Device, leave: bool, max_sequence_length: usize) -> Self {
        Self {
            encoders: Some(encoders),
            model,
            merged: Vec::new(),
            device: device.clone(),
            leave,
            max_sequence_length,
            known: HashMap::new(),
            round: 0,
        }
    }

    /// Adds the factors that `lora` has for the text encoders to their weights.
    ///
    /// # Errors
    /// As [`TextEncoders::merge`].
    pub fn merge(&mut self, lora: &Arc<LoraFile>) -> Result<()> {
        self.known.clear();
        self.encoders()?.merge(lora)?;
        self.merged.push(lora.clone());
        Ok(())
    }

    /// The encoders, which come back if they have left.
    fn encoders(&mut self) -> Result<&mut TextEncoders> {
        let encoders = match self.encoders.take() {
            Some(encoders) => encoders,
            None => {
                let mut encoders = TextEncoders::load(&self.model, &self.device)?;
                self.merged.iter().try_for_each(|lora| encoders.merge(lora))?;
                encoders
            }
        };
        Ok(self.encoders.insert(encoders))
    }

    /// All prompts at hand are encoded: the encoders leave, if they are to.
    pub fn release(&mut self) {
        if self.leave && self.encoders.take().is_some() {
            self.device.trim();
        }
    }

    /// An epoch or evaluation begins: what comes up from now on stays until the next one does.
    pub fn next_round(&mut self) {
        self.round += 1;
        let mut held: usize = self.known.values().map(|k| k.embeds.bytes()).sum();
        if held <= MOST_BYTES {
            return;
        }
        let mut oldest: Vec<(u64, String)> = self.known.iter().map(|(prompt, k)| (k.used, prompt.clone())).collect();
        oldest.sort_unstable();
        for (_, prompt) in oldest {
            if held <= MOST_BYTES {
                break;
            }
            held -= self.known.remove(&prompt).map_or(0, |k| k.embeds.bytes());
        }
    }

    /// Encodes those of `prompts` that are new.
    ///
    /// # Errors
    /// As [`TextEncoders::encode`], or [`TextEncoders::load`] where the encoders had left.
    pub fn prepare(&mut self, prompts: &[&str]) -> Result<()> {
        let new: BTreeSet<&str> = prompts.iter().copied().filter(|p| !self.known.contains_key(*p)).collect();
        let new: Vec<String> = new.into_iter().map(str::to_string).collect();
        if new.is_empty() {
            return Ok(());
        }
        let (length, used) = (self.max_sequence_length, self.round);
        let device = self.device.clone();
        let encoders = self.encoders()?;
        let encoded = device.once(|| encoders.encode(&new, length))?;
        for (i, prompt) in new.into_iter().enumerate() {
            let embeds = self.device.lasting(|| encoded.rows(&[i]));
            self.known.insert(prompt, Known { embeds, used });
        }
        Ok(())
    }

    /// The embeddings of `prompts`, one row each, in their order.
    ///
    /// # Errors
    /// As [`PromptBank::prepare`].
    pub fn encode(&mut self, prompts: &[&str]) -> Result<PromptEmbeds> {
        self.prepare(prompts)?;
        let used = self.round;
        for prompt in prompts {
            if let Some(known) = self.known.get_mut(*prompt) {
                known.used = used;
            }
        }
        Ok(PromptEmbeds::concat(&prompts.iter().map(|p| &self.known[*p].embeds).collect::<Vec<_>>()))
    }

    /// Fills the bank as far as it goes with stand-ins for `count` prompts, for a plan of a run that has seen them all.
    ///
    /// # Errors
    /// As [`TextEncoders::encode`].
    pub fn fill_plan(&mut self, count: usize) -> Result<()> {
        debug_assert!(self.device.is_plan());
        let length = self.max_sequence_length;
        let one = self.encoders()?.encode(&[String::new()], length)?;
        let fitting = MOST_BYTES / one.bytes().max(1) + 1;
        for i in 0..count.min(fitting) {
            let embeds = self.device.lasting(|| one.rows(&[0]));
            self.known.insert(format!("\0{i}"), Known { embeds, used: 0 });
        }
        Ok(())
    }
}
