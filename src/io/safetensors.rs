//! Memory-mapped safetensors: single files and sharded ones.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use safetensors::{Dtype, SafeTensors};

use crate::device::{DType, Device, MOST_AXES, MappedFile, Tensor};
use crate::io::damage::{explain, short};
use crate::io::write::write_atomic_with;
use crate::io::{did_you_mean, read, read_json};

/// The tensors of one safetensors file, or of all shards of one model component.
pub struct TensorFile {
    path: PathBuf,
    files: usize,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

/// Where one tensor is stored.
#[derive(Clone)]
pub struct Entry {
    file: Arc<MappedFile>,
    bytes: std::ops::Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Entry {
    /// The sizes of the axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The stored type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The stored type, by its safetensors name.
    pub fn dtype_name(&self) -> String {
        format!("{:?}", self.dtype)
    }

    /// Bytes in the file.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The tensor where `device` has it, in the type it is stored in, if the engine computes with that type and as many
    /// axes. On the CPU it is a view of the mapped file.
    pub fn tensor(&self, device: &Device) -> Option<Tensor> {
        let dtype = match self.dtype {
            _ if self.shape.len() > MOST_AXES => return None,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::Bf16,
            _ => return None,
        };
        Some(match device {
            Device::Cpu => Tensor::mapped(&self.file, self.bytes.clone(), dtype, &self.shape),
            Device::Plan(ledger) => Tensor::planned(ledger, dtype, &self.shape),
        })
    }

    /// The raw little-endian bytes.
    pub fn raw(&self) -> &[u8] {
        &self.file[self.bytes.clone()]
    }
}

impl TensorFile {
    /// A file without tensors.
    pub fn empty(path: &Path) -> Self {
        Self { path: path.to_path_buf(), files: 0, tensors: BTreeMap::new(), metadata: BTreeMap::new() }
    }

    /// Maps one safetensors file.
    ///
    /// # Errors
    /// Names the file and what is wrong with it: missing, truncated, header longer than the file, offsets that
    /// overlap or leave the file.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = Self::empty(path);
        file.map(path)?;
        Ok(file)
    }

    /// Maps the weights of a model component: the shards that `<stem>.safetensors.index.json` lists, or
    /// `<stem>.safetensors` where there is no index or, beside that file, not all of its shards. As in diffusers, an index
    /// with all its shards comes first: it is the newer one when a model is saved again in the same folder. Where there is
    /// neither, the only variant, such as `<stem>.fp16.safetensors`.
    ///
    /// # Errors
    /// As [`TensorFile::open`]; also if neither file exists, the index names a file elsewhere, or a shard lacks a tensor
    /// that the index puts there.
    pub fn open_component(folder: &Path, stem: &str) -> Result<Self> {
        let plain = Weights { single: format!("{stem}.safetensors"), index: format!("{stem}.safetensors.index.json") };
        let Weights { single, index } = if plain.are_in(folder) { plain } else { only_variant(folder, stem)? };
        let (single, index) = (folder.join(single), folder.join(index));
        if !index.exists() {
            return Self::open(&single);
        }
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let Index { weight_map } = read_json(&index)?;
        let shards: std::collections::BTreeSet<&String> = weight_map.values().collect();
        if let Some(shard) = shards.iter().find(|shard| !read::is_plain_name(shard)) {
            bail!("{}: lists '{}', expected the name of a file beside it", index.display(), short(shard));
        }
        if single.exists() && !shards.iter().all(|shard| folder.join(shard).exists()) {
            return Self::open(&single);
        }
        let mut file = Self::empty(&index);
        for shard in shards {
            let mut one = Self::empty(&index);
            one.map(&folder.join(shard)).with_context(|| format!("{}: lists {shard}", index.display()))?;
            // A tensor comes from the shard that the index names, whatever else holds one of that name.
            one.tensors.retain(|name, _| weight_map.get(name).is_none_or(|of| of == shard));
            file.tensors.extend(one.tensors);
            file.metadata.extend(one.metadata);
            file.files += 1;
        }
        for (name, shard) in &weight_map {
            if !file.tensors.contains_key(name) {
                bail!("{}: tensor '{}' is not in {shard}, where the index puts it", index.display(), short(name));
            }
        }
        Ok(file)
    }

    fn map(&mut self, path: &Path) -> Result<()> {
        let file = read::open(path)?;
        let length = file.metadata().with_context(|| format!("cannot read {}", path.display()))?.len();
        if length < 8 {
            bail!("{}: not a safetensors file: {length} bytes, the header's length alone takes 8", path.display());
        }
        let map = MappedFile::new(&file, path).with_context(|| format!("cannot map {}", path.display()))?;
        let map = Arc::new(map);
        read::check_is_not_lfs_pointer(path, &map)?;
        let parsed =
            SafeTensors::deserialize(&map).map_err(|e| anyhow!("{}: {}", path.display(), explain(&map, &e)))?;
        let base = map.as_ptr().addr();
        for (name, view) in parsed.iter() {
            let start = view.data().as_ptr().addr() - base;
            let entry = Entry {
                file: map.clone(),
                bytes: start..start + view.data().len(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
            };
            self.tensors.insert(name.to_string(), entry);
        }
        if let Ok((_, header)) = SafeTensors::read_metadata(&map) {
            self.metadata.extend(header.metadata().clone().unwrap_or_default());
        }
        self.files += 1;
        Ok(())
    }

    /// The file (or index) the tensors come from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many files the tensors are spread over.
    pub fn files(&self) -> usize {
        self.files
    }

    /// Bytes of all tensors together.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|e| e.size() as u64).sum()
    }

    /// The free-form strings of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All tensors by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.tensors.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor `name`, if there is one.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name)
    }

    /// The tensor `name` in single precision, in memory of its own on `device`.
    ///
    /// # Errors
    /// If it is missing (naming the nearest one that exists), not of a floating-point type, or of too many axes.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let entry = self.entry(name).with_context(|| {
            format!("{}: no tensor '{name}'{}", self.path.display(), did_you_mean(name, self.names()))
        })?;
        if entry.shape.len() > MOST_AXES {
            let (file, axes) = (self.path.display(), entry.shape.len());
            bail!("{file}: tensor '{name}' has {axes} axes, expected at most {MOST_AXES}");
        }
        if entry.dtype == Dtype::F64 {
            let values: Vec<f64> = bytemuck::pod_collect_to_vec(entry.raw());
            let narrowed: Vec<f32> = values.iter().map(|v| *v as f32).collect();
            return Ok(Tensor::from_slice(device, &narrowed, &entry.shape));
        }
        let mapped = entry.tensor(&Device::Cpu).with_context(|| {
            let (file, found) = (self.path.display(), entry.dtype_name());
            format!("{file}: tensor '{name}' is {found}, expected F64, F32, F16 or BF16")
        })?;
        Ok(Tensor::from_slice(device, &mapped.elems().to_f32(), mapped.shape()))
    }

    /// As [`TensorFile::tensor`], but also checks the shape.
    ///
    /// # Errors
    /// As [`TensorFile::tensor`], or if the shape differs, naming both.
    pub fn tensor_of(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
        let t = self.tensor(name, device)?;
        if t.shape() != shape {
            bail!("{}: tensor '{name}' has shape {:?}, expected {shape:?}", self.path.display(), t.shape());
        }
        Ok(t)
    }
}

/// The names that a component's weights may have.
struct Weights {
    single: String,
    index: String,
}

impl Weights {
    fn are_in(&self, folder: &Path) -> bool {
        folder.join(&self.single).exists() || folder.join(&self.index).exists()
    }
}

/// The weights of the one variant that `folder` has of `stem`, by diffusers' names.
fn only_variant(folder: &Path, stem: &str) -> Result<Weights> {
    let names = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let variant = |name: &str| {
        let rest = name.strip_prefix(stem)?;
        let single = rest.strip_prefix('.').and_then(|r| r.strip_suffix(".safetensors"));
        let index = rest.strip_prefix(".safetensors.index.").and_then(|r| r.strip_suffix(".json"));
        single.or(index).filter(|v| !v.is_empty() && !v.contains(['.', '-'])).map(str::to_string)
    };
    let found: std::collections::BTreeSet<String> =
        names.flatten().filter_map(|e| variant(&e.file_name().to_string_lossy())).collect();
    let found: Vec<String> = found.into_iter().collect();
    let shown = folder.display();
    match &found[..] {
        [v] => Ok(Weights {
            single: format!("{stem}.{v}.safetensors"),
            index: format!("{stem}.safetensors.index.{v}.json"),
        }),
        [] => bail!("{shown}: no weights: looked for {stem}.safetensors and {stem}.safetensors.index.json"),
        several => bail!(
            "{shown}: the weights {stem} are there as {}; leave one, or rename it to {stem}.safetensors",
            several.join(" and ")
        ),
    }
}

/// Writes single-precision tensors to a safetensors file. No more than one tensor at a time is in this process's memory for
/// it.
///
/// # Errors
/// Names the file if it cannot be written.
pub fn save(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    let heads = tensors.iter().map(|(name, t)| (name.as_str(), Dtype::F32, t.shape()));
    write(path, heads, metadata, |file| {
        Ok(tensors.values().try_for_each(|t| file.write_all(bytemuck::cast_slice(&t.to_host())))?)
    })
}

/// Writes the tensors of `file` as they are stored, but for the bytes that `replaced` has of some.
///
/// # Errors
/// Names the file if it cannot be written.
pub fn save_stored(
    path: &Path,
    file: &TensorFile,
    replaced: &BTreeMap<String, Vec<u8>>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    // Wide types first, as the library has it: then every element lies at a multiple of its size.
    let mut entries: Vec<(&str, &Entry)> = file.entries().collect();
    entries.sort_by_key(|(_, e)| std::cmp::Reverse(e.dtype().bitsize()));
    let heads = entries.iter().map(|(name, e)| (*name, e.dtype(), e.shape()));
    write(path, heads, metadata, |out| {
        Ok(entries
            .iter()
            .try_for_each(|(name, e)| out.write_all(replaced.get(*name).map_or(e.raw(), Vec::as_slice)))?)
    })
}

/// Writes the header of tensors that follow one another, then `data`.
fn write<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, Dtype, &'a [usize])>,
    metadata: &BTreeMap<String, String>,
    data: impl FnOnce(&mut std::fs::File) -> Result<()>,
) -> Result<()> {
    // The library would write the metadata in the order of a hash map; here the same content gives the same bytes.
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut end = 0;
    for (name, dtype, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let head = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        header.insert(name.to_string(), head);
    }
    let mut header = serde_json::to_string(&header)?;
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    write_atomic_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        data(file)
    })
}
