//! A model folder with an adapter folded into its weights.

use std::collections::BTreeMap;
use std::path::Path;

use super::{AdapterBank, Module, Slot};
use crate::device::Device;
use crate::io::write::write_atomic_with;
use crate::io::{output_folder, read, safetensors};
use crate::models::source::Model;
use crate::ops::linear;
use anyhow::{Context, Result, bail};

/// The stem of the transformer's weight files.
const STEM: &str = "diffusion_pytorch_model";

/// Copies the pipeline in `model` to `out`, with `W + s·B·A` of `slot` in place of the adapted weights `W`, in the type they were
/// stored in.
///
/// # Errors
/// If the model is not one folder; if `out` is that folder or lies in it; or names the file that cannot be read or written.
pub fn pipeline(model: &Model, modules: &[Module], bank: &AdapterBank, slot: Slot, out: &Path) -> Result<()> {
    let transformer = model.component("transformer")?;
    let (true, None) = (transformer.is_folder(), model.describe()) else {
        bail!(
            "{}: a merged model is a copy of a folder in the layout of diffusers, and this one is not in one; \
             --format diffusers exports the LoRA by itself",
            model.path().display()
        );
    };
    let components = model.components().map(|(name, _)| name);
    let (stored, model) = (transformer.weights(STEM)?, model.path());
    if lies_in(out, model)? {
        bail!("cannot write to {}: it is or lies in the model's own folder {}", out.display(), model.display());
    }
    output_folder(out)?;
    copy_file(&model.join("model_index.json"), &out.join("model_index.json"))?;
    for component in components {
        copy_folder(&model.join(component), &out.join(component), &|name| {
            // These are written anew.
            component == "transformer" && is_weights(name)
        })?;
    }
    let mut merged: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (index, module) in modules.iter().enumerate() {
        let Some(factor) = bank.factor(slot, index) else { continue };
        let name = format!("{}.weight", module.name);
        let weight = stored.entry(&name).and_then(|e| e.tensor(&Device::Cpu));
        let weight = weight.with_context(|| format!("{}: no tensor '{name}'", stored.path().display()))?;
        merged.insert(name, linear::merge(&weight, &factor.a, &factor.b, bank.scale()).to_raw());
    }
    let folder = out.join("transformer");
    let path = folder.join(format!("{STEM}.safetensors"));
    safetensors::save_stored(&path, &stored, &merged, &[("format".to_string(), "pt".to_string())].into())?;
    // An index of an earlier export would come before the new file.
    for name in names_in(&folder)? {
        if is_weights(&name) && !path.ends_with(&name) {
            let old = folder.join(&name);
            std::fs::remove_file(&old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    Ok(())
}

/// Whether a file of the transformer's folder holds weights or lists those that do.
fn is_weights(name: &str) -> bool {
    name.starts_with(STEM) && name.contains(".safetensors")
}

fn names_in(folder: &Path) -> Result<Vec<String>> {
    let names = std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect());
    names.with_context(|| format!("cannot read {}", folder.display()))
}

/// Whether `path`, which need not exist, is `folder` or below it.
fn lies_in(path: &Path, folder: &Path) -> Result<bool> {
    let real = |p: &Path| p.canonicalize().with_context(|| format!("cannot read {}", p.display()));
    let path = std::path::absolute(path).with_context(|| format!("cannot write {}", path.display()))?;
    let existing = path.ancestors().find(|p| p.exists()).unwrap_or(&path);
    Ok(real(existing)?.starts_with(real(folder)?))
}

/// Copies a file under a fresh name: one that is there may be a link to the very file that is read.
fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let mut source = read::open(from)?;
    write_atomic_with(to, |file| std::io::copy(&mut source, file).map(|_| ()).context("cannot copy"))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Copies a folder, leaving out the files whose name `skip` says.
fn copy_folder(from: &Path, to: &Path, skip: &dyn Fn(&str) -> bool) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for name in names_in(from)? {
        let (path, target) = (from.join(&name), to.join(&name));
        if path.is_dir() {
            copy_folder(&path, &target, skip)?;
        } else if !skip(&name) {
            copy_file(&path, &target)?;
        }
    }
    Ok(())
}
