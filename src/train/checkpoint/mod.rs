//! The state of a run on disk: `checkpoints/epoch-000123/` holds `state.safetensors` (every tensor, f32) and
//! `state.json` (everything else and checksums), `checkpoints/latest` names the newest.
//!
//! A crash at any moment leaves a checkpoint to resume from: a folder is filled under a temporary name, synced and
//! renamed; only then `latest` is moved on, and only then older ones go.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::device::{Device, Tensor};
use crate::io::folder::{REPLACED, TEMPORARY, hidden, replace, settle};
use crate::io::safetensors::{TensorFile, save as save_tensors};
use crate::io::write::write_atomic;
use crate::models::lora::{self, Layout, Module};
use crate::ops::copy;

/// Version of the layout; another one is refused.
const FORMAT: u32 = 1;
const TENSORS: &str = "state.safetensors";
const STATE: &str = "state.json";
const LATEST: &str = "latest";

/// All that a run needs to go on.
#[derive(Clone, Default)]
pub struct Checkpoint {
    /// Tensors by name: adapters and moments.
    pub tensors: BTreeMap<String, Tensor>,
    /// Counters, the config and the like. Finite f64 come back with the same bits; others become null.
    pub meta: Value,
}

impl Checkpoint {
    /// Adds the parameters of a flat buffer as `<prefix>.<name>`.
    pub fn insert(&mut self, prefix: &str, flat: &Tensor, layout: &Layout, modules: &[Module]) {
        let named = lora::named(&flat.to(&Device::Cpu), layout, modules).into_iter();
        self.tensors.extend(named.map(|(name, t)| (format!("{prefix}.{name}"), t)));
    }

    /// The flat buffer that [`Checkpoint::insert`] added under `prefix`, on `device`.
    ///
    /// # Errors
    /// Names the tensor that is missing or has another shape.
    pub fn flat(&self, prefix: &str, layout: &Layout, modules: &[Module], device: &Device) -> Result<Tensor> {
        let mut flat = Tensor::scratch(device, &[layout.len()]);
        for (name, at, shape) in layout.parameters(modules) {
            let name = format!("{prefix}.{name}");
            let stored = self.tensors.get(&name).with_context(|| format!("the checkpoint has no tensor '{name}'"))?;
            ensure!(
                stored.shape() == shape,
                "the checkpoint's tensor '{name}' has shape {:?}, the config asks for {shape:?}",
                stored.shape()
            );
            copy::flat_into(&mut flat, at, &stored.to(device));
        }
        Ok(flat)
    }
}

/// What `state.json` holds after its first line, which is the checksum of all that follows it.
#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    files: BTreeMap<String, FileSum>,
    meta: Value,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct FileSum {
    bytes: u64,
    crc32: String,
}

impl FileSum {
    fn of(path: &Path) -> Result<Self> {
        let read = || -> std::io::Result<Self> {
            let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
            let (mut hasher, mut bytes) = (crc32fast::Hasher::new(), 0);
            loop {
                let chunk = file.fill_buf()?;
                if chunk.is_empty() {
                    return Ok(Self { bytes, crc32: hex(hasher.finalize()) });
                }
                hasher.update(chunk);
                let length = chunk.len();
                bytes += length as u64;
                file.consume(length);
            }
        };
        read().with_context(|| format!("cannot read {}", path.display()))
    }
}

fn hex(crc: u32) -> String {
    format!("{crc:08x}")
}

fn first_line(rest: &str) -> String {
    format!("{{\"crc32\": \"{}\",", hex(crc32fast::hash(rest.as_bytes())))
}

fn folder_name(epoch: u64) -> String {
    format!("epoch-{epoch:06}")
}

fn epoch_of(name: &str) -> Option<u64> {
    name.strip_prefix("epoch-")?.parse().ok().filter(|epoch| folder_name(*epoch) == name)
}

/// The name of the checkpoint in `.epoch-000123.<end>`.
fn unhidden<'a>(name: &'a str, end: &str) -> Option<&'a str> {
    name.strip_prefix('.')?.strip_suffix(end)?.strip_suffix('.').filter(|name| epoch_of(name).is_some())
}

fn names_in(folder: &Path) -> Result<Vec<String>> {
    let list = || -> std::io::Result<Vec<String>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    list().with_context(|| format!("cannot read {}", folder.display()))
}

/// Writes `checkpoint` as that of `epoch` into `folder`, makes it the latest and removes all but the `keep` newest up
/// to it (at least this one stays). Checkpoints of later epochs, which a run resumed from an earlier one may find,
/// stay until their epoch comes again. Returns the path of the checkpoint. The caller holds the run's lock.
///
/// # Errors
/// Names the file that cannot be written; everything saved before is still there then.
pub fn save(folder: &Path, epoch: u64, checkpoint: &Checkpoint, keep: usize) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    tidy(folder)?;
    let name = folder_name(epoch);
    let path = replace(folder, &name, |path| fill(path, checkpoint))?;
    write_atomic(&folder.join(LATEST), format!("{name}\n").as_bytes())?;
    prune(folder, epoch, keep)?;
    Ok(path)
}

/// Does what a process that was killed had left undone after it had saved `epoch`, or what fewer `keep` ask for: in a run that
/// has nothing more to save nobody else would.
///
/// # Errors
/// If `folder` cannot be read, or a checkpoint on its way to be replaced not be put back.
pub fn finish(folder: &Path, epoch: u64, keep: usize) -> Result<()> {
    tidy(folder)?;
    prune(folder, epoch, keep)
}

/// Makes the checkpoint at `path` the latest of `folder`, if it is one of those there; says whether it is.
///
/// # Errors
/// If that cannot be written.
pub fn make_latest(folder: &Path, path: &Path) -> Result<bool> {
    let real = |p: &Path| p.canonicalize().ok();
    let name = path.file_name().and_then(|n| n.to_str()).filter(|n| epoch_of(n).is_some());
    let Some(name) = name.filter(|_| path.parent().and_then(real).is_some_and(|of| Some(of) == real(folder))) else {
        return Ok(false);
    };
    write_atomic(&folder.join(LATEST), format!("{name}\n").as_bytes())?;
    Ok(true)
}

/// Removes what a crash or a full disk left behind, and puts back a checkpoint that was on its way to be replaced.
fn tidy(folder: &Path) -> Result<()> {
    for name in names_in(folder)? {
        if let Some(original) = unhidden(&name, REPLACED).or_else(|| unhidden(&name, TEMPORARY)) {
            settle(folder, original)?;
        }
    }
    Ok(())
}

/// Writes the files of a checkpoint into the new folder `path`.
fn fill(path: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let tensors = path.join(TENSORS);
    save_tensors(&tensors, checkpoint.tensors.clone(), &BTreeMap::new())?;
    let files = BTreeMap::from([(TENSORS.to_string(), FileSum::of(&tensors)?)]);
    let manifest = Manifest { format: FORMAT, files, meta: checkpoint.meta.clone() };
    let text = serde_json::to_string_pretty(&manifest)?;
    let rest = format!("{}\n", text.strip_prefix("{\n").expect("an object with fields"));
    write_atomic(&path.join(STATE), format!("{}\n{rest}", first_line(&rest)).as_bytes())
}

/// Removes all checkpoints up to `epoch` but the `keep` newest.
fn prune(folder: &Path, epoch: u64, keep: usize) -> Result<()> {
    let mut epochs: Vec<u64> = names_in(folder)?.iter().filter_map(|n| epoch_of(n)).filter(|e| *e <= epoch).collect();
    epochs.sort_unstable_by(|a, b| b.cmp(a));
    for epoch in epochs.into_iter().skip(keep.max(1)) {
        let name = folder_name(epoch);
        let doomed = folder.join(hidden(&name, TEMPORARY));
        // Renamed first, so that half a checkpoint never looks like one. What cannot be removed now is tried again
        // at the next save: not a reason to stop a run.
        if fs::rename(folder.join(&name), &doomed).is_ok() {
            let _ = fs::remove_dir_all(&doomed);
        }
    }
    Ok(())
}

/// The checkpoint in `folder` to resume from: the one that `latest` names, or, where that file or its checkpoint is
/// missing, the newest whose checksums hold. `None` if there is none. Changes nothing.
///
/// # Errors
/// If the folder cannot be read, or holds checkpoints of which every one is damaged.
pub fn latest(folder: &Path) -> Result<Option<PathBuf>> {
    if !folder.exists() {
        return Ok(None);
    }
    if let Ok(name) = fs::read_to_string(folder.join(LATEST)) {
        let name = name.trim();
        let candidates = [name.to_string(), hidden(name, REPLACED)].map(|n| folder.join(n));
        if let Some(path) = candidates.into_iter().find(|path| epoch_of(name).is_some() && path.is_dir()) {
            return Ok(Some(path));
        }
    }
    newest_whole(folder)
}

/// The newest checkpoint in `folder` whose checksums hold; `None` if there is no checkpoint at all.
///
/// # Errors
/// If the folder cannot be read, or every checkpoint in it is damaged.
pub fn newest_whole(folder: &Path) -> Result<Option<PathBuf>> {
    let names = names_in(folder)?;
    let plain = names.iter().filter_map(|n| Some((epoch_of(n)?, true, n)));
    let replaced = names.iter().filter_map(|n| Some((epoch_of(unhidden(n, REPLACED)?)?, false, n)));
    let mut found: Vec<(u64, bool, &String)> = plain.chain(replaced).collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    let mut newest_error = None;
    for (_, _, name) in found {
        let path = folder.join(name);
        match verify(&path) {
            Ok(_) => return Ok(Some(path)),
            Err(e) => newest_error = newest_error.or(Some(e)),
        }
    }
    newest_error.map_or(Ok(None), Err)
}

/// The checkpoint that a user means by `path`: itself, the latest in a folder of checkpoints, or that of a run.
///
/// # Errors
/// If there is none, saying where it was looked for; or as [`latest`].
pub fn find(path: &Path) -> Result<PathBuf> {
    ensure!(path.is_dir(), "no such checkpoint folder: {}", path.display());
    if path.join(STATE).exists() {
        return Ok(path.to_path_buf());
    }
    for folder in [path.join("checkpoints"), path.to_path_buf()] {
        if let Some(found) = latest(&folder)? {
            return Ok(found);
        }
    }
    bail!("{}: neither a checkpoint ({STATE}) nor a folder with checkpoints/epoch-… in it", path.display())
}

/// Checks the format and every checksum of the checkpoint at `path`.
fn verify(path: &Path) -> Result<Manifest> {
    let file = path.join(STATE);
    let name = file.display();
    let text = fs::read(&file).with_context(|| format!("not a checkpoint: cannot read {name}"))?;
    let parsed = std::str::from_utf8(&text).ok().and_then(|text| {
        let (first, rest) = text.split_once('\n')?;
        (first == first_line(rest)).then(|| serde_json::from_str::<Value>(&format!("{{{rest}"))).transpose().ok()?
    });
    let state = parsed.with_context(|| format!("{name} is damaged: its checksum does not match"))?;
    let format = state.get("format").cloned().unwrap_or_default();
    ensure!(format == FORMAT, "{name} has checkpoint format {format}, this version reads format {FORMAT}");
    let state: Manifest = serde_json::from_value(state).with_context(|| format!("{name}: not a checkpoint's state"))?;
    for (name, want) in &state.files {
        let file = path.join(name);
        let found = FileSum::of(&file)?;
        let file = file.display();
        ensure!(found.bytes == want.bytes, "{file} is damaged: {} bytes instead of {}", found.bytes, want.bytes);
        ensure!(found.crc32 == want.crc32, "{file} is damaged: its checksum does not match that in {STATE}");
    }
    Ok(state)
}

/// Reads the checkpoint at `path`.
///
/// # Errors
/// Names the file that is missing, damaged (a single flipped bit is noticed) or of another version.
pub fn load(path: &Path) -> Result<Checkpoint> {
    let state = verify(path)?;
    let file = TensorFile::open(&path.join(TENSORS))?;
    let tensors =
        file.names().map(|name| Ok((name.to_string(), file.tensor(name, &Device::Cpu)?))).collect::<Result<_>>()?;
    Ok(Checkpoint { tensors, meta: state.meta })
}

#[cfg(test)]
mod tests;
