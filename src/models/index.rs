use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value};

use crate::io::{did_you_mean, read_json, require_folder};

/// The only pipeline whose folder layout the engine knows.
const CLASS: &str = "StableDiffusion3Pipeline";

/// `model_index.json`: which components a pipeline folder has.
pub struct ModelIndex {
    path: PathBuf,
    present: BTreeSet<String>,
}

impl ModelIndex {
    /// Reads `model_index.json` of the pipeline in `folder`.
    ///
    /// # Errors
    /// Names the file if it is missing or not JSON, and the class if it is another pipeline's.
    pub fn load(folder: &Path) -> Result<Self> {
        require_folder(folder, "model")?;
        let path = folder.join("model_index.json");
        let entries: Map<String, Value> = read_json(&path)?;
        match entries.get("_class_name").and_then(Value::as_str) {
            Some(CLASS) => {}
            Some(other) => bail!("{}: _class_name is {other}, expected {CLASS}", path.display()),
            None => bail!("{}: no _class_name, expected {CLASS}", path.display()),
        }
        // A component is [library, class]; one that was left out is [null, null].
        let is_present = |v: &Value| v.as_array().is_some_and(|pair| pair.iter().any(|p| !p.is_null()));
        let present = entries.iter().filter(|(k, v)| !k.starts_with('_') && is_present(v));
        let present = present.map(|(k, _)| k.clone()).collect();
        Ok(Self { path, present })
    }

    /// The names of all components, which are those of their folders.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.present.iter().map(String::as_str)
    }

    /// Whether the pipeline has component `name`.
    pub fn has(&self, name: &str) -> bool {
        self.present.contains(name)
    }

    /// Fails unless the pipeline has component `name`.
    ///
    /// # Errors
    /// Names the file and the component.
    pub fn require(&self, name: &str) -> Result<()> {
        let hint = || did_you_mean(name, self.present.iter().map(String::as_str));
        ensure!(self.has(name), "{}: the pipeline has no '{name}'{}", self.path.display(), hint());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<ModelIndex> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model_index.json"), text).unwrap();
        ModelIndex::load(dir.path())
    }

    #[test]
    fn components_that_are_null_or_missing_are_absent() {
        let index = load(
            r#"{"_class_name": "StableDiffusion3Pipeline", "vae": ["diffusers", "AutoencoderKL"],
                "text_encoder_3": [null, null], "_diffusers_version": "0.42.1"}"#,
        );
        let index = index.unwrap();
        assert!(index.has("vae") && index.require("vae").is_ok());
        assert!(!index.has("text_encoder_3") && !index.has("tokenizer"));
        let message = index.require("text_encoder_3").unwrap_err().to_string();
        assert!(message.contains("model_index.json: the pipeline has no 'text_encoder_3'"), "{message}");
    }

    #[test]
    fn another_pipeline_is_refused_naming_its_class_and_the_file() {
        let message = load(r#"{"_class_name": "FluxPipeline"}"#).err().unwrap().to_string();
        assert!(message.contains("model_index.json: _class_name is FluxPipeline"), "{message}");
        assert!(load("{}").err().unwrap().to_string().contains("no _class_name"));
        assert!(format!("{:#}", load("nonsense").err().unwrap()).contains("model_index.json"));
    }
}
