use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value};

use crate::io::read::is_plain_name;
use crate::io::{did_you_mean, read_json, require_folder, short};

/// The pipeline whose folder layout the engine knows.
const CLASS: &str = "StableDiffusion3Pipeline";
/// Others of diffusers that are made of the same parts.
const SIBLINGS: [&str; 2] = ["StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"];

/// The model that is meant by `path`: itself, or, if that is a model's root in the cache of Hugging Face's hub
/// (`models--<owner>--<name>`), the snapshot that its branch `main` is at.
pub fn folder(path: &Path) -> PathBuf {
    let snapshot = || {
        let name = std::fs::read_to_string(path.join("refs/main")).ok()?;
        let folder = path.join("snapshots").join(name.trim());
        (is_plain_name(name.trim()) && folder.is_dir()).then_some(folder)
    };
    if path.join("model_index.json").exists() { None } else { snapshot() }.unwrap_or_else(|| path.to_path_buf())
}

/// `model_index.json`: which components a pipeline folder has.
pub struct ModelIndex {
    path: PathBuf,
    class: Option<String>,
    /// Classes by name.
    present: BTreeMap<String, String>,
}

impl ModelIndex {
    /// Reads `model_index.json` of the pipeline in `folder`.
    ///
    /// # Errors
    /// As [`ModelIndex::of_any`]; also names the class if it is another pipeline's.
    pub fn load(folder: &Path) -> Result<Self> {
        let index = Self::of_any(folder)?;
        match index.class.as_deref() {
            Some(class) if class == CLASS || SIBLINGS.contains(&class) => Ok(index),
            Some(other) => bail!("{}: _class_name is {}, expected {CLASS}", index.path.display(), short(other)),
            None => bail!("{}: no _class_name, expected {CLASS}", index.path.display()),
        }
    }

    /// Reads `model_index.json` in `folder`, whatever pipeline it is of.
    ///
    /// # Errors
    /// Names the file if it is missing or not JSON, and a component that lies elsewhere.
    pub fn of_any(folder: &Path) -> Result<Self> {
        require_folder(folder, "model")?;
        let path = folder.join("model_index.json");
        let entries: Map<String, Value> = read_json(&path)?;
        let class = entries.get("_class_name").and_then(Value::as_str).map(str::to_string);
        let mut present = BTreeMap::new();
        for (name, value) in entries.into_iter().filter(|(name, _)| !name.starts_with('_')) {
            if !is_plain_name(&name) {
                bail!("{}: component '{}', expected the name of a folder beside it", path.display(), short(&name));
            }
            // A component is [library, class]; one that was left out is [null, null].
            if let Some(class) = value.get(1).and_then(Value::as_str) {
                present.insert(name, class.to_string());
            }
        }
        Ok(Self { path, class, present })
    }

    /// The pipeline's class, if the file says.
    pub fn class(&self) -> Option<&str> {
        self.class.as_deref()
    }

    /// All components and their classes.
    pub fn classes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.present.iter().map(|(name, class)| (name.as_str(), class.as_str()))
    }

    /// The names of all components, which are those of their folders.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.present.keys().map(String::as_str)
    }

    /// Whether the pipeline has component `name`.
    pub fn has(&self, name: &str) -> bool {
        self.present.contains_key(name)
    }

    /// Fails unless the pipeline has component `name`.
    ///
    /// # Errors
    /// Names the file and the component.
    pub fn require(&self, name: &str) -> Result<()> {
        let hint = || did_you_mean(name, self.present.keys().map(String::as_str));
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
    fn a_component_that_lies_elsewhere_is_refused_by_name() {
        for name in ["../vae", "/etc", "a/b", ".."] {
            let text =
                format!(r#"{{"_class_name": "StableDiffusion3Pipeline", "{name}": ["diffusers", "AutoencoderKL"]}}"#);
            let message = load(&text).err().unwrap().to_string();
            assert!(message.contains(&format!("model_index.json: component '{name}', expected")), "{message}");
        }
    }

    #[test]
    fn the_root_of_a_hub_cache_stands_for_its_main_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = dir.path().join("snapshots/abc123");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir(dir.path().join("refs")).unwrap();
        let points_to = |name: &str| std::fs::write(dir.path().join("refs/main"), name).unwrap();
        points_to("abc123");
        assert_eq!(folder(dir.path()), snapshot);
        assert_eq!(folder(&snapshot), snapshot);
        for elsewhere in ["missing", "../..", ""] {
            points_to(elsewhere);
            assert_eq!(folder(dir.path()), dir.path());
        }
    }

    #[test]
    fn another_pipeline_is_refused_naming_its_class_and_the_file() {
        let message = load(r#"{"_class_name": "FluxPipeline"}"#).err().unwrap().to_string();
        assert!(message.contains("model_index.json: _class_name is FluxPipeline"), "{message}");
        assert!(load("{}").err().unwrap().to_string().contains("no _class_name"));
        assert!(format!("{:#}", load("nonsense").err().unwrap()).contains("model_index.json"));
    }
}
