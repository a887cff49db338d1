use std::collections::{BTreeSet, HashMap};

use anyhow::Result;

use crate::device::Device;
use crate::models::lora::file::LoraFile;
use crate::models::text::{PromptEmbeds, TextEncoders};

/// Embeddings of earlier epochs are kept as long as all together take no more bytes.
const MOST_BYTES: usize = 1 << 29;

/// Encodes prompts when they first come up and remembers the result, in the type of the encoders.
pub struct PromptBank {
    encoders: TextEncoders,
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
    /// An empty bank.
    pub fn new(encoders: TextEncoders, max_sequence_length: usize) -> Self {
        Self { encoders, max_sequence_length, known: HashMap::new(), round: 0 }
    }

    /// Adds the factors that `lora` has for the text encoders to their weights.
    ///
    /// # Errors
    /// As [`TextEncoders::merge`].
    pub fn merge(&mut self, lora: &LoraFile) -> Result<()> {
        self.known.clear();
        self.encoders.merge(lora)
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

    /// The embeddings of `prompts`, one row each, in their order.
    ///
    /// # Errors
    /// As [`TextEncoders::encode`].
    pub fn encode(&mut self, prompts: &[&str]) -> Result<PromptEmbeds> {
        let new: BTreeSet<&str> = prompts.iter().copied().filter(|p| !self.known.contains_key(*p)).collect();
        let new: Vec<String> = new.into_iter().map(str::to_string).collect();
        let used = self.round;
        if !new.is_empty() {
            let encoded = self.encoders.encode(&new, self.max_sequence_length)?;
            let known = |(i, prompt)| (prompt, Known { embeds: encoded.rows(&[i]), used });
            self.known.extend(new.into_iter().enumerate().map(known));
        }
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
    pub fn fill_plan(&mut self, device: &Device, count: usize) -> Result<()> {
        debug_assert!(device.is_plan());
        let one = self.encoders.encode(&[String::new()], self.max_sequence_length)?;
        let fitting = MOST_BYTES / one.bytes().max(1) + 1;
        for i in 0..count.min(fitting) {
            self.known.insert(format!("\0{i}"), Known { embeds: one.rows(&[0]), used: 0 });
        }
        Ok(())
    }
}
