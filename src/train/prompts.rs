use std::collections::{BTreeSet, HashMap};

use anyhow::Result;

use crate::device::Device;
use crate::models::text::{PromptEmbeds, TextEncoders};

/// Embeddings are kept for later epochs up to this many bytes, and encoded again beyond that.
const MOST_BYTES: usize = 1 << 29;

/// Encodes prompts when they first come up and remembers the result.
pub struct PromptBank {
    encoders: TextEncoders,
    max_sequence_length: usize,
    known: HashMap<String, PromptEmbeds>,
}

impl PromptBank {
    /// An empty bank.
    pub fn new(encoders: TextEncoders, max_sequence_length: usize) -> Self {
        Self { encoders, max_sequence_length, known: HashMap::new() }
    }

    /// The embeddings of `prompts`, one row each, in their order.
    ///
    /// # Errors
    /// As [`TextEncoders::encode`].
    pub fn encode(&mut self, prompts: &[&str]) -> Result<PromptEmbeds> {
        let held: usize = self.known.values().map(PromptEmbeds::bytes).sum();
        if held > MOST_BYTES {
            self.known.clear();
        }
        let new: BTreeSet<&str> = prompts.iter().copied().filter(|p| !self.known.contains_key(*p)).collect();
        let new: Vec<String> = new.into_iter().map(str::to_string).collect();
        if !new.is_empty() {
            let encoded = self.encoders.encode(&new, self.max_sequence_length)?;
            self.known.extend(new.into_iter().enumerate().map(|(i, prompt)| (prompt, encoded.rows(&[i]))));
        }
        Ok(PromptEmbeds::concat(&prompts.iter().map(|p| &self.known[*p]).collect::<Vec<_>>()))
    }

    /// Fills the bank as far as it goes with stand-ins for `count` prompts, for a plan of a run that has seen them all.
    pub fn fill_plan(&mut self, device: &Device, count: usize) -> Result<()> {
        debug_assert!(device.is_plan());
        let one = self.encoders.encode(&[String::new()], self.max_sequence_length)?;
        let fitting = MOST_BYTES / one.bytes().max(1) + 1;
        for i in 0..count.min(fitting) {
            self.known.insert(format!("\0{i}"), one.rows(&[0]));
        }
        Ok(())
    }
}
