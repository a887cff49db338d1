//! Files with one part or several: which tensors are whose, and what diffusers and transformers call them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{Component, Kind, Place, sizes};
use crate::io::{Entry, TensorFile, with_factors};
use crate::models::names::{autoencoder, t5, transformer};

/// How the names of a part's tensors begin in files with several.
fn prefixes(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Transformer => &["model.diffusion_model.", "diffusion_model."],
        Kind::Vae => &["first_stage_model.", "vae."],
        Kind::ClipL => &["text_encoders.clip_l.transformer."],
        Kind::ClipG => &["text_encoders.clip_g.transformer."],
        Kind::T5 => &["text_encoders.t5xxl.transformer."],
    }
}

/// Tensors that tell a part whose names have no prefix.
fn is_bare(kind: Kind, name: &str) -> bool {
    let starts = |starts: &[&str]| starts.iter().any(|s| name.starts_with(s));
    match kind {
        Kind::Transformer => starts(&["joint_blocks.", "transformer_blocks."]),
        Kind::Vae => starts(&["decoder.conv_in.", "encoder.conv_in."]),
        Kind::ClipL | Kind::ClipG => starts(&["text_model.embeddings.token_embedding.", "embeddings.token_embedding."]),
        Kind::T5 => starts(&["enc.blk.", "encoder.block.0."]),
    }
}

/// The tensors of `kind` in `file`, without the beginning of their names; none if there are none.
fn tensors(file: &TensorFile, kind: Kind) -> Option<BTreeMap<String, Entry>> {
    for prefix in prefixes(kind) {
        let own = |(name, entry): (&str, &Entry)| Some((name.strip_prefix(prefix)?.to_string(), entry.clone()));
        let own: BTreeMap<String, Entry> = file.entries().filter_map(own).collect();
        if !own.is_empty() {
            return Some(own);
        }
    }
    file.names()
        .any(|name| is_bare(kind, name))
        .then(|| file.entries().map(|(name, entry)| (name.to_string(), entry.clone())).collect())
}

/// All parts that `file` has.
///
/// # Errors
/// Names the file if it has no transformer, or settings cannot be told from its tensors.
pub(super) fn split(file: &TensorFile) -> Result<BTreeMap<String, Component>> {
    let mut parts = BTreeMap::new();
    for kind in Kind::ALL {
        // Without a prefix a file is one part, and as the model that is the transformer.
        let has_prefix = file.names().any(|name| prefixes(kind).iter().any(|p| name.starts_with(p)));
        let own = (has_prefix || kind == Kind::Transformer).then(|| tensors(file, kind)).flatten();
        if let Some(own) = own {
            parts.insert(kind.component().to_string(), part(file, kind, own)?);
        }
    }
    ensure!(
        parts.contains_key(Kind::Transformer.component()),
        "{}: no transformer of SD3: no tensor's name begins with 'model.diffusion_model.', 'joint_blocks.' or \
         'transformer_blocks.'",
        file.path().display()
    );
    Ok(parts)
}

/// The part `kind` at `path`: a file, or a folder in the layout of diffusers.
///
/// # Errors
/// Names the file if it cannot be read or has no such part.
pub(super) fn of_kind(path: &Path, kind: Kind) -> Result<Component> {
    if path.is_dir() {
        return Ok(path.into());
    }
    let file = TensorFile::open(path)?;
    let own = tensors(&file, kind).with_context(|| {
        let other = Kind::ALL.into_iter().find(|kind| tensors(&file, *kind).is_some());
        let other = other.map(|k| format!("; it looks like the {}", k.component())).unwrap_or_default();
        format!("{}: has no tensors of a {}{other}", path.display(), kind.component())
    })?;
    part(&file, kind, own)
}

fn part(file: &TensorFile, kind: Kind, own: BTreeMap<String, Entry>) -> Result<Component> {
    let own = with_factors(file, own)?;
    let names = || own.keys().map(String::as_str);
    let mut own = match kind {
        Kind::Transformer if transformer::is_original(names()) => transformer::to_diffusers(own),
        Kind::Vae if autoencoder::is_original(names()) => autoencoder::to_diffusers(own),
        Kind::T5 if t5::is_original(names()) => t5::to_transformers(own),
        _ => own,
    };
    if matches!(kind, Kind::ClipL | Kind::ClipG) {
        // What only a model with images has.
        own.remove("logit_scale");
        if kind == Kind::ClipL {
            // As in diffusers, whatever the file has: SD3 takes what the first encoder pools as it is.
            let width = sizes::clip_width(&own).unwrap_or(0);
            ensure_width(file, width)?;
            let identity: Vec<f32> = (0..width * width).map(|i| f32::from(i % (width + 1) == 0)).collect();
            own.insert("text_projection.weight".to_string(), Entry::of_f32(&identity, &[width, width]));
        }
    }
    let settings = sizes::settings(kind, &own).with_context(|| file.path().display().to_string())?;
    let place = Place::Tensors { file: file.with(own), settings };
    Ok(Component { path: file.path().to_path_buf(), place })
}

/// Wider than any CLIP: a damaged file.
const WIDEST: usize = 4096;

fn ensure_width(file: &TensorFile, width: usize) -> Result<()> {
    if !(1..=WIDEST).contains(&width) {
        bail!("{}: the table of tokens is {width} wide, expected 1 to {WIDEST}", file.path().display());
    }
    Ok(())
}
