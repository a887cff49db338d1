//! Where the parts of a model are: a folder in the layout of diffusers, one file with everything or some of it, or a folder
//! with files in the place of some parts. Whatever a file calls its tensors, a [`Component`] gives them the names of diffusers
//! and transformers.

mod beside;
mod single;
mod sizes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::index::{self, ModelIndex};
use super::outline;
use crate::io::{TensorFile, did_you_mean, read_json, require_folder};

/// What the names of weight files in a folder begin with.
pub const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
/// The tokenizers of a pipeline, in the order of its text encoders.
const TOKENIZERS: [&str; 3] = ["tokenizer", "tokenizer_2", "tokenizer_3"];

/// What a user names as the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    /// A pipeline folder, its root in the hub's cache, or a file.
    pub model: PathBuf,
    /// Which variant of weights to take where a folder has it, such as `fp16`.
    pub variant: Option<String>,
    /// Files in the place of parts.
    pub parts: Parts,
}

/// Files (or folders in the layout of diffusers) in the place of a model's own parts.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Parts {
    /// The transformer: safetensors or GGUF, under the names of diffusers or of the original.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transformer: Option<PathBuf>,
    /// The autoencoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<PathBuf>,
    /// The first text encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_l: Option<PathBuf>,
    /// The second text encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_g: Option<PathBuf>,
    /// The third text encoder: safetensors or GGUF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub t5xxl: Option<PathBuf>,
    /// A folder with the folders `tokenizer`, `tokenizer_2` and, for T5, `tokenizer_3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizers: Option<PathBuf>,
}

/// A part whose weights can be in a file of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Transformer,
    Vae,
    ClipL,
    ClipG,
    T5,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Transformer, Self::Vae, Self::ClipL, Self::ClipG, Self::T5];

    /// Its folder in a pipeline.
    fn component(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Vae => "vae",
            Self::ClipL => "text_encoder",
            Self::ClipG => "text_encoder_2",
            Self::T5 => "text_encoder_3",
        }
    }

    /// Its key in [`Parts`]; the flag has a dash for the underscore.
    fn key(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Vae => "vae",
            Self::ClipL => "clip_l",
            Self::ClipG => "clip_g",
            Self::T5 => "t5xxl",
        }
    }

    fn of(self, parts: &Parts) -> Option<&PathBuf> {
        match self {
            Self::Transformer => parts.transformer.as_ref(),
            Self::Vae => parts.vae.as_ref(),
            Self::ClipL => parts.clip_l.as_ref(),
            Self::ClipG => parts.clip_g.as_ref(),
            Self::T5 => parts.t5xxl.as_ref(),
        }
    }
}

/// One part of a model: its settings and its weights.
#[derive(Clone)]
pub struct Component {
    path: PathBuf,
    place: Place,
}

#[derive(Clone)]
enum Place {
    /// A folder in the layout of diffusers.
    Folder { variant: Option<String> },
    /// Tensors under the names that such a folder would have, and the settings that follow from them.
    Tensors { file: TensorFile, settings: Value },
    /// Nothing but settings.
    Outline { settings: Value },
    /// Settings, and numbers that mean nothing.
    Random { settings: Value },
}

impl From<&Path> for Component {
    fn from(folder: &Path) -> Self {
        Self { path: folder.to_path_buf(), place: Place::Folder { variant: None } }
    }
}

impl From<&PathBuf> for Component {
    fn from(folder: &PathBuf) -> Self {
        folder.as_path().into()
    }
}

impl From<&Component> for Component {
    fn from(part: &Component) -> Self {
        part.clone()
    }
}

impl Component {
    /// The transformer at `path`: a folder in the layout of diffusers, or a file.
    ///
    /// # Errors
    /// Names the file if it cannot be read or has no transformer.
    pub fn transformer(path: &Path) -> Result<Self> {
        single::of_kind(path, Kind::Transformer)
    }

    /// A part with these settings in the place of its own, and weights that mean nothing: to measure how fast such a part is.
    pub fn random(&self, settings: Value) -> Self {
        Self { path: self.path.clone(), place: Place::Random { settings } }
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file `name` of a folder says, with the path for messages; of a part that is no folder, what such a file would
    /// say.
    ///
    /// # Errors
    /// Names the file if it is missing or not JSON.
    pub fn settings(&self, name: &str) -> Result<(PathBuf, Value)> {
        match &self.place {
            Place::Folder { .. } => {
                let path = self.path.join(name);
                let settings = read_json(&path)?;
                Ok((path, settings))
            }
            Place::Tensors { settings, .. } | Place::Outline { settings } | Place::Random { settings } => {
                Ok((self.path.clone(), settings.clone()))
            }
        }
    }

    /// Its tensors; in a folder, the weights `stem`.
    ///
    /// # Errors
    /// As [`TensorFile::open_component`].
    pub fn weights(&self, stem: &str) -> Result<TensorFile> {
        match &self.place {
            Place::Folder { variant } => TensorFile::open_component(&self.path, stem, variant.as_deref()),
            Place::Tensors { file, .. } => Ok(file.clone()),
            Place::Outline { .. } => Ok(TensorFile::outline(&self.path, outline::WITH)),
            Place::Random { .. } => Ok(TensorFile::random(&self.path, outline::WITH)),
        }
    }

    /// Whether it is a folder in the layout of diffusers.
    pub fn is_folder(&self) -> bool {
        matches!(self.place, Place::Folder { .. })
    }

    /// The settings of a part of which there is nothing else.
    pub(super) fn outline(&self) -> Option<&Value> {
        if let Place::Outline { settings } = &self.place { Some(settings) } else { None }
    }

    /// Settings and tensors of a part that is no folder.
    pub(super) fn tensors(&self) -> Option<(&TensorFile, &Value)> {
        match &self.place {
            Place::Folder { .. } | Place::Outline { .. } | Place::Random { .. } => None,
            Place::Tensors { file, settings } => Some((file, settings)),
        }
    }
}

/// A model with all its parts found.
#[derive(Clone)]
pub struct Model {
    path: PathBuf,
    /// By the names that their folders have in a pipeline.
    parts: BTreeMap<String, Component>,
}

impl Model {
    /// The pipeline in `folder`.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn in_folder(folder: &Path) -> Result<Self> {
        Self::open(&Source { model: folder.to_path_buf(), ..Source::default() })
    }

    /// Finds the parts of `source`. Reads the headers of files, no weights.
    ///
    /// # Errors
    /// Names the file or part that is missing, is no part of an SD3 pipeline, or is there more than once.
    pub fn open(source: &Source) -> Result<Self> {
        if source.model == Path::new(outline::SD35_MEDIUM) {
            return Ok(Self::outlined(&source.model));
        }
        let path = index::folder(&source.model);
        ensure!(path.exists(), "model: no such folder or file: {}", path.display());
        let mut model = if path.is_file() {
            ensure!(source.variant.is_none(), "variant: {} is a file; folders have variants", path.display());
            Self { parts: single::split(&TensorFile::open(&path)?)?, path }
        } else {
            let index = ModelIndex::load(&path)?;
            let part = |name: &str| Component {
                path: path.join(name),
                place: Place::Folder { variant: source.variant.clone() },
            };
            let parts = index.components().map(|name| (name.to_string(), part(name))).collect();
            if let Some(variant) = &source.variant {
                check_variant(&path, &index, variant)?;
            }
            Self { path, parts }
        };
        for kind in Kind::ALL {
            let Some(file) = kind.of(&source.parts) else { continue };
            let part = single::of_kind(file, kind).with_context(|| format!("{} (--{})", kind.key(), flag(kind)))?;
            model.parts.insert(kind.component().to_string(), part);
        }
        if model.path.is_file() {
            model.complete(&source.parts)?;
        }
        if let Some(folder) = &source.parts.tokenizers {
            let named = |e| anyhow::anyhow!("tokenizers (--tokenizers): {e}");
            require_folder(folder, "folder of tokenizers").map_err(named)?;
            for name in TOKENIZERS.iter().filter(|name| folder.join(name).is_dir()) {
                model.parts.insert(name.to_string(), folder.join(name).as_path().into());
            }
        }
        Ok(model)
    }

    /// Stable Diffusion 3.5 Medium without its weights.
    fn outlined(path: &Path) -> Self {
        let part = |settings| Component { path: path.to_path_buf(), place: Place::Outline { settings } };
        let parts = outline::sd35_medium().map(|(name, settings)| (name.to_string(), part(settings)));
        Self { path: path.to_path_buf(), parts: parts.into() }
    }

    /// For a plan: networks that have a folder with settings and no weights, without them; and a line about it.
    ///
    /// # Errors
    /// If the settings cannot be read.
    pub fn outline_missing(&mut self) -> Result<Option<String>> {
        let mut missing = Vec::new();
        for name in Kind::ALL.map(Kind::component) {
            let Some(part) = self.parts.get_mut(name) else { continue };
            let is_weights = |e: std::fs::DirEntry| e.path().extension().is_some_and(|e| e == "safetensors");
            let mut files = std::fs::read_dir(&part.path).into_iter().flatten().flatten();
            if part.is_folder() && part.path.join("config.json").exists() && !files.any(is_weights) {
                let (_, settings) = part.settings("config.json")?;
                part.place = Place::Outline { settings };
                missing.push(name);
            }
        }
        let line =
            || format!("{}: no weights of {}; planned with their shapes", self.path.display(), missing.join(", "));
        Ok((!missing.is_empty()).then(line))
    }

    /// Adds to a file what it lacks: what lies beside it, and the scheduler that all SD3 models have.
    fn complete(&mut self, given: &Parts) -> Result<()> {
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Transformer) {
            if self.has(kind.component()) {
                continue;
            }
            if let Some(file) = beside::file(&self.path, kind)? {
                self.parts.insert(kind.component().to_string(), single::of_kind(&file, kind)?);
            }
        }
        for name in TOKENIZERS {
            if let Some(folder) = beside::folder(&self.path, name) {
                self.parts.insert(name.to_string(), folder.as_path().into());
            }
        }
        let scheduler =
            json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 1000});
        let file = TensorFile::empty(&self.path);
        let place = Place::Tensors { file, settings: scheduler };
        self.parts.insert("scheduler".to_string(), Component { path: self.path.clone(), place });

        let shown = self.path.display();
        for kind in [Kind::Transformer, Kind::Vae, Kind::ClipL, Kind::ClipG] {
            if !self.has(kind.component()) {
                bail!(
                    "{shown}: has no {}, and there is no {} beside it; --{} FILE (or parts.{} in a config) gives one",
                    kind.component(),
                    beside::names(kind).join(" or "),
                    flag(kind),
                    kind.key()
                );
            }
        }
        if given.tokenizers.is_none() && !self.has(TOKENIZERS[0]) {
            bail!(
                "{shown}: a file has no tokenizers, and there is no folder '{}' beside it; --tokenizers FOLDER (or \
                 parts.tokenizers in a config) gives one that has them: that of any SD3 model in the layout of diffusers",
                TOKENIZERS[0]
            );
        }
        Ok(())
    }

    /// The folder or file that the model was opened as.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a part `name`.
    pub fn has(&self, name: &str) -> bool {
        self.parts.contains_key(name)
    }

    /// The part `name`.
    ///
    /// # Errors
    /// If there is none, naming the model and the nearest that exists.
    pub fn component(&self, name: &str) -> Result<&Component> {
        let hint = || did_you_mean(name, self.parts.keys().map(String::as_str));
        self.parts.get(name).with_context(|| format!("{}: the pipeline has no '{name}'{}", self.path.display(), hint()))
    }

    /// All parts by name.
    pub fn components(&self) -> impl Iterator<Item = (&str, &Component)> {
        self.parts.iter().map(|(name, part)| (name.as_str(), part))
    }

    /// One line about parts that are not where the model is, or are not there; none if all are in its folder.
    pub fn describe(&self) -> Option<String> {
        let elsewhere = |(name, part): (&String, &Component)| {
            (part.path != self.path && !part.path.starts_with(&self.path))
                .then(|| format!("{name} from {}", part.path.display()))
        };
        let mut words: Vec<String> = self.parts.iter().filter_map(elsewhere).collect();
        if self.path.is_file() && !self.has(Kind::T5.component()) {
            words.push("no T5: prompts go through the two CLIPs alone".to_string());
        }
        (!words.is_empty()).then(|| words.join(", "))
    }
}

fn flag(kind: Kind) -> String {
    kind.key().replace('_', "-")
}

/// Fails unless some component in `folder` has weights of `variant`.
fn check_variant(folder: &Path, index: &ModelIndex, variant: &str) -> Result<()> {
    let mut all = std::collections::BTreeSet::new();
    for component in index.components() {
        for stem in STEMS {
            all.extend(TensorFile::variants(&folder.join(component), stem));
        }
    }
    if all.contains(variant) {
        return Ok(());
    }
    let found = match all.len() {
        0 => "it has no variants".to_string(),
        _ => format!("it has {}", all.iter().map(String::as_str).collect::<Vec<_>>().join(", ")),
    };
    bail!(
        "{}: no weights of variant '{variant}'; {found}{}",
        folder.display(),
        did_you_mean(variant, all.iter().map(String::as_str))
    )
}
