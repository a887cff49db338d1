//! A model folder with an adapter folded into its weights.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use super::{AdapterBank, Module, Slot};
use crate::device::Device;
use crate::io::safetensors::Entry;
use crate::io::{TensorFile, output_folder};
use crate::models::index::ModelIndex;
use crate::ops::linear;
use anyhow::{Context, Result, bail};

/// The stem of the transformer's weight files.
const STEM: &str = "diffusion_pytorch_model";

/// Copies the pipeline in `model` to `out`, with `W + s·B·A` of `slot` in place of the adapted weights `W`, in the type they were
/// stored in.
///
/// # Errors
/// If `out` is the model's folder or lies in it; or names the file that cannot be read or written.
pub fn pipeline(model: &Path, modules: &[Module], bank: &AdapterBank, slot: Slot, out: &Path) -> Result<()> {
    if lies_in(out, model)? {
        bail!("cannot write to {}: it is or lies in the model's own folder {}", out.display(), model.display());
    }
    let index = ModelIndex::load(model)?;
    output_folder(out)?;
    copy_file(&model.join("model_index.json"), &out.join("model_index.json"))?;
    for component in index.components() {
        copy_folder(&model.join(component), &out.join(component), &|name| {
            // These are written anew.
            component == "transformer" && name.starts_with(STEM)
        })?;
    }
    let file = TensorFile::open_component(&model.join("transformer"), STEM)?;
    let mut merged: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (index, module) in modules.iter().enumerate() {
        let Some(factor) = bank.factor(slot, index) else { continue };
        let name = format!("{}.weight", module.name);
        let stored = file.entry(&name).and_then(|e| e.tensor(&Device::Cpu));
        let stored = stored.with_context(|| format!("{}: no tensor '{name}'", file.path().display()))?;
        merged.insert(name, linear::merge(&stored, &factor.a, &factor.b, bank.scale()).to_raw());
    }
    let tensors = file
        .entries()
        .map(|(name, entry)| {
            let data = merged.get(name).map_or(Cow::Borrowed(entry.raw()), |m| Cow::Borrowed(m.as_slice()));
            (name.to_string(), Stored { entry, data })
        })
        .collect::<Vec<_>>();
    let path = out.join("transformer").join(format!("{STEM}.safetensors"));
    let temporary = path.with_extension("tmp");
    let metadata = [("format".to_string(), "pt".to_string())].into();
    safetensors::serialize_to_file(tensors, Some(metadata), &temporary)
        .map_err(anyhow::Error::from)
        .and_then(|()| Ok(std::fs::File::open(&temporary)?.sync_all()?))
        .and_then(|()| Ok(std::fs::rename(&temporary, &path)?))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A tensor to be written as it is stored.
struct Stored<'a> {
    entry: &'a Entry,
    data: Cow<'a, [u8]>,
}

impl safetensors::View for Stored<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        self.entry.dtype()
    }
    fn shape(&self) -> &[usize] {
        self.entry.shape()
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }
    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// Whether `path`, which need not exist, is `folder` or below it.
fn lies_in(path: &Path, folder: &Path) -> Result<bool> {
    let real = |p: &Path| p.canonicalize().with_context(|| format!("cannot read {}", p.display()));
    let path = std::path::absolute(path).with_context(|| format!("cannot write {}", path.display()))?;
    let existing = path.ancestors().find(|p| p.exists()).unwrap_or(&path);
    Ok(real(existing)?.starts_with(real(folder)?))
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Copies a folder, leaving out the files whose name `skip` says.
fn copy_folder(from: &Path, to: &Path, skip: &dyn Fn(&str) -> bool) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_folder(&path, &target, skip)?;
        } else if !skip(&entry.file_name().to_string_lossy()) {
            copy_file(&path, &target)?;
        }
    }
    Ok(())
}
