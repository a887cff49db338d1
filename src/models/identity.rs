//! What a model is, wherever it lies: checksums of what is read from its folder. They tell a change from a copy; they are no
//! protection against someone who means to deceive.

use std::path::Path;

use anyhow::{Context, Result};
use rayon::prelude::*;
use serde_json::Value;

use super::source::{Component, Model, STEMS};
use crate::io::{TensorFile, read, read_json};

/// Files of tokenizers that are not JSON.
const TOKENIZERS: [&str; 2] = ["merges.txt", "spiece.model"];
/// What files of tensors end in.
const TENSORS: [&str; 4] = [".safetensors", ".bin", ".pt", ".pth"];
/// Bytes that one thread sums up at a time.
const CHUNK: usize = 1 << 24;

/// The checksum of `model`: of every component's name and [content](of_component).
///
/// # Errors
/// If a file cannot be read.
pub fn of_model(model: &Model) -> Result<String> {
    let mut sum = crc32fast::Hasher::new();
    for (name, component) in model.components() {
        sum.update(name.as_bytes());
        sum.update(of_component(component)?.as_bytes());
    }
    Ok(format!("{:08x}", sum.finalize()))
}

/// The checksum of a model or tokenizer: its tensors by name, in whatever files they are, and its settings but for those that
/// begin with an underscore, which say where a file comes from.
///
/// # Errors
/// If a file cannot be read.
pub fn of_component(component: impl Into<Component>) -> Result<String> {
    let component = component.into();
    let mut sum = crc32fast::Hasher::new();
    match component.tensors() {
        Some((file, settings)) => {
            sum.update(&of_tensors(file).to_le_bytes());
            sum.update(settings.to_string().as_bytes());
        }
        None => add_folder(&mut sum, &component)?,
    }
    Ok(format!("{:08x}", sum.finalize()))
}

/// The checksum of what a reward reads at `path`: of a folder [as of any](of_component), and of all files of tensors there if
/// none has a name that transformers or diffusers gives; of a file, its tensors, or its bytes if they are none.
///
/// # Errors
/// If a file cannot be read.
pub fn of_path(path: &Path) -> Result<String> {
    let mut sum = crc32fast::Hasher::new();
    if !path.is_dir() {
        add_file(&mut sum, path)?;
        return Ok(format!("{:08x}", sum.finalize()));
    }
    let whole = of_component(path)?;
    let names = listed(path)?;
    let is_tensors = |name: &&String| TENSORS.iter().any(|end| name.ends_with(end));
    let files: Vec<&String> = names.iter().filter(is_tensors).collect();
    if files.is_empty() || STEMS.iter().any(|stem| has_weights(&names, stem)) {
        return Ok(whole);
    }
    sum.update(whole.as_bytes());
    files.iter().try_for_each(|name| add_file(&mut sum, &path.join(name)))?;
    Ok(format!("{:08x}", sum.finalize()))
}

/// The names in `folder` that are not hidden, in order.
fn listed(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|n| !n.starts_with('.')).collect();
    names.sort();
    Ok(names)
}

/// Whether the weights `stem` are among `names`: a file, or the index of several.
fn has_weights(names: &[String], stem: &str) -> bool {
    names.iter().any(|n| n.starts_with(&format!("{stem}.")) && n.contains(".safetensors"))
}

fn add_file(sum: &mut crc32fast::Hasher, path: &Path) -> Result<()> {
    match TensorFile::open(path) {
        Ok(file) => sum.update(&of_tensors(&file).to_le_bytes()),
        Err(_) => sum.update(&read::bytes(path)?),
    }
    Ok(())
}

fn add_folder(sum: &mut crc32fast::Hasher, component: &Component) -> Result<()> {
    let folder = component.path();
    let names = listed(folder)?;
    let has = |name: String| names.contains(&name);
    for stem in STEMS {
        if has_weights(&names, stem) {
            sum.update(&of_tensors(&component.weights(stem)?).to_le_bytes());
        }
    }
    for name in names.iter().filter(|n| n.ends_with(".json") && !n.contains(".index.")) {
        let mut settings: Value = read_json(&folder.join(name))?;
        if let Some(object) = settings.as_object_mut() {
            object.retain(|key, _| !key.starts_with('_') || key == "_class_name");
            // As text in an order of its own: serde_json may keep the file's.
            let sorted: std::collections::BTreeMap<String, Value> = std::mem::take(object).into_iter().collect();
            object.extend(sorted);
        }
        sum.update(name.as_bytes());
        sum.update(settings.to_string().as_bytes());
    }
    for name in TOKENIZERS.iter().filter(|name| has(name.to_string())) {
        sum.update(&read::bytes(&folder.join(name))?);
    }
    Ok(())
}

fn of_tensors(file: &TensorFile) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    for (name, entry) in file.entries() {
        let scale = if entry.scale() == 1.0 { String::new() } else { format!(" {:08x}", entry.scale().to_bits()) };
        sum.update(format!("{name} {} {:?}{scale}", entry.stored().name(), entry.shape()).as_bytes());
        let of_chunk = |chunk: &[u8]| {
            let mut sum = crc32fast::Hasher::new();
            sum.update(chunk);
            sum
        };
        let chunks: Vec<crc32fast::Hasher> = entry.raw().par_chunks(CHUNK).map(of_chunk).collect();
        chunks.iter().for_each(|chunk| sum.combine(chunk));
    }
    sum.finalize()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::device::{Device, Tensor};
    use crate::io::safetensors::save;

    fn tensor(x: f32) -> Tensor {
        Tensor::from_slice(&Device::Cpu, &[x, 1.0], &[2])
    }

    #[test]
    fn it_is_that_of_the_content_and_not_of_where_or_how_it_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str, b: f32, config: &str| {
            let folder = dir.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            let tensors = [("a".to_string(), tensor(0.0)), ("b".to_string(), tensor(b))];
            save(&folder.join("model.safetensors"), tensors, &BTreeMap::new()).unwrap();
            std::fs::write(folder.join("config.json"), config).unwrap();
            folder
        };
        let sum = |folder: &Path| of_component(folder).unwrap();
        let one = sum(&folder("one", 2.0, r#"{"layers": 3, "width": 4, "_name_or_path": "x"}"#));
        assert_eq!(one, sum(&folder("same", 2.0, r#"{ "width": 4, "layers": 3 }"#)));
        assert_ne!(one, sum(&folder("other weights", -2.0, r#"{"layers": 3, "width": 4}"#)));
        assert_ne!(one, sum(&folder("other settings", 2.0, r#"{"layers": 3, "width": 5}"#)));

        let shards = folder("shards", 2.0, r#"{"layers": 3, "width": 4}"#);
        std::fs::remove_file(shards.join("model.safetensors")).unwrap();
        for (file, name, x) in [("one.safetensors", "a", 0.0), ("two.safetensors", "b", 2.0)] {
            save(&shards.join(file), [(name.to_string(), tensor(x))], &BTreeMap::new()).unwrap();
        }
        let index = r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
        std::fs::write(shards.join("model.safetensors.index.json"), index).unwrap();
        assert_eq!(one, sum(&shards));
    }

    #[test]
    fn a_file_is_its_tensors_or_its_bytes_and_a_folder_all_its_files_of_tensors() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let put = |name: &str, x: f32| save(&path(name), [("a".to_string(), tensor(x))], &BTreeMap::new()).unwrap();
        put("head.pth", 1.0);
        let (file, folder) = (of_path(&path("head.pth")).unwrap(), of_path(dir.path()).unwrap());
        put("same.pt", 1.0);
        assert_eq!(of_path(&path("same.pt")).unwrap(), file);
        assert_ne!(of_path(dir.path()).unwrap(), folder);
        put("same.pt", 2.0);
        assert_ne!(of_path(&path("same.pt")).unwrap(), file);
        // Where a model is under a known name, others are copies of it.
        put("model.safetensors", 3.0);
        let folder = of_path(dir.path()).unwrap();
        put("same.pt", 4.0);
        assert_eq!(of_path(dir.path()).unwrap(), folder);
        std::fs::write(path("dict.txt"), "a").unwrap();
        let text = of_path(&path("dict.txt")).unwrap();
        std::fs::write(path("dict.txt"), "b").unwrap();
        assert_ne!(of_path(&path("dict.txt")).unwrap(), text);
        assert!(of_path(&path("nowhere")).is_err());
    }
}
