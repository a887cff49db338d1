//! Memory-mapped tensors: single files, of safetensors, GGUF or PyTorch, and sharded ones.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use safetensors::{Dtype, SafeTensors};

use super::entry::{Entry, Stored};
use super::{gguf, torch};
use crate::device::{DType, Device, MOST_AXES, MappedFile, Tensor};
use crate::io::damage::{explain, short};
use crate::io::write::write_atomic_with;
use crate::io::{did_you_mean, read, read_json};

/// What precedes all names in files that several processes have written.
const WRAPPER: &str = "module.";

/// The tensors of one file, of all shards of one model component, or some of them under other names.
#[derive(Clone)]
pub struct TensorFile {
    path: PathBuf,
    files: usize,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    /// What a file of PyTorch has in the place of a tensor, in words.
    others: BTreeMap<String, String>,
    /// Where there are no tensors but whatever shapes are asked for, those that need not be there and are.
    outline: Option<&'static [&'static str]>,
    /// Whether those have numbers.
    random: bool,
}

impl TensorFile {
    /// A file without tensors.
    pub fn empty(path: &Path) -> Self {
        let (tensors, metadata, others) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { path: path.to_path_buf(), files: 0, tensors, metadata, others, outline: None, random: false }
    }

    /// What stands for a file in a plan: every tensor that a model asks for, without content, and of those that it can do
    /// without, the ones named `with`.
    pub fn outline(path: &Path, with: &'static [&'static str]) -> Self {
        Self { outline: Some(with), ..Self::empty(path) }
    }

    /// As [`TensorFile::outline`], with numbers that mean nothing: for measurements.
    pub fn random(path: &Path, with: &'static [&'static str]) -> Self {
        Self { random: true, ..Self::outline(path, with) }
    }

    /// Whether its tensors are made up.
    pub(super) fn is_random(&self) -> bool {
        self.random
    }

    /// The tensors that an outline has beside those that must be there; `None` if it is a file.
    pub(super) fn outlined(&self) -> Option<&'static [&'static str]> {
        self.outline
    }

    /// Maps one file of safetensors, GGUF or PyTorch (`.pth`, `.pt`, `.bin`; no code in it is run), whatever its name. In the
    /// last, tensors under `state_dict` or `model` are taken, and names lose a leading `module.`.
    ///
    /// # Errors
    /// Names the file and what is wrong with it: missing, truncated, header longer than the file, offsets that
    /// overlap or leave the file, or objects of Python that are no tensors.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = Self::empty(path);
        file.map(path)?;
        Ok(file)
    }

    /// Maps the weights of a model component: the shards that `<stem>.safetensors.index.json` lists, or
    /// `<stem>.safetensors` where there is no index or, beside that file, not all of its shards. As in diffusers, an index
    /// with all its shards comes first: it is the newer one when a model is saved again in the same folder. Where there is
    /// neither, the only variant, such as `<stem>.fp16.safetensors`, or what PyTorch saved, `pytorch_model.bin`. If there is
    /// the `variant` that is asked for, that.
    ///
    /// # Errors
    /// As [`TensorFile::open`]; also if neither file exists, the index names a file elsewhere, or a shard lacks a tensor
    /// that the index puts there.
    pub fn open_component(folder: &Path, stem: &str, variant: Option<&str>) -> Result<Self> {
        let plain = Weights { single: format!("{stem}.safetensors"), index: format!("{stem}.safetensors.index.json") };
        let asked = variant.map(|v| Weights::of_variant(folder, stem, v)).filter(|w| w.are_in(folder));
        let Weights { single, index } = match asked {
            Some(asked) => asked,
            None if plain.are_in(folder) => plain,
            None => match Weights::of_torch(stem) {
                torch if TensorFile::variants(folder, stem).is_empty() && torch.are_in(folder) => torch,
                _ => only_variant(folder, stem)?,
            },
        };
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
            file.others.extend(one.others);
            file.files += 1;
        }
        for (name, shard) in &weight_map {
            if !file.tensors.contains_key(name) {
                bail!("{}: tensor '{}' is not in {shard}, where the index puts it", index.display(), short(name));
            }
        }
        Ok(file)
    }

    /// Whether PyTorch saved the weights `stem` in `folder`.
    pub fn is_of_torch(folder: &Path, stem: &str) -> bool {
        Weights::of_torch(stem).are_in(folder)
    }

    /// The variants of the weights `stem` in `folder`, sorted.
    pub fn variants(folder: &Path, stem: &str) -> Vec<String> {
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let variant = |name: &str| {
            let rest = name.strip_prefix(stem)?;
            let single = rest.strip_prefix('.').and_then(|r| r.strip_suffix(".safetensors"));
            let index = rest.strip_prefix(".safetensors.index.").and_then(|r| r.strip_suffix(".json"));
            let old = rest.strip_prefix(".safetensors.").and_then(|r| r.strip_suffix(".index.json"));
            single.or(index).or(old).filter(|v| !v.is_empty() && !v.contains(['.', '-'])).map(str::to_string)
        };
        let found: std::collections::BTreeSet<String> =
            names.filter_map(|e| variant(&e.file_name().to_string_lossy())).collect();
        found.into_iter().collect()
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
        if gguf::is_gguf(&map) {
            let (tensors, metadata) = gguf::read(&map).with_context(|| path.display().to_string())?;
            self.tensors.extend(tensors);
            self.metadata.extend(metadata);
            self.files += 1;
            return Ok(());
        }
        if torch::is_torch(&map) {
            let contents = torch::read(&map).with_context(|| path.display().to_string())?;
            self.tensors.extend(contents.tensors);
            self.metadata.extend(contents.metadata);
            self.others.extend(contents.others);
            self.files += 1;
            return Ok(());
        }
        let parsed =
            SafeTensors::deserialize(&map).map_err(|e| anyhow!("{}: {}", path.display(), explain(&map, &e)))?;
        let base = map.as_ptr().addr();
        for (name, view) in parsed.iter() {
            let start = view.data().as_ptr().addr() - base;
            let bytes = start..start + view.data().len();
            self.tensors.insert(name.to_string(), Entry::new(&map, bytes, Stored::of(view.dtype()), view.shape()));
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

    /// Bytes of all tensors together; of an outline, more than any.
    pub fn bytes(&self) -> u64 {
        if self.outline.is_some() {
            return u64::MAX;
        }
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

    /// The file without what `DataParallel` puts before every name, if all have it.
    pub fn unwrapped(self) -> Self {
        if self.tensors.is_empty() || !self.names().all(|name| name.starts_with(WRAPPER)) {
            return self;
        }
        let bare = |(name, entry): (&str, &Entry)| (name[WRAPPER.len()..].to_string(), entry.clone());
        self.with(self.entries().map(bare).collect())
    }

    /// The file with `tensors` in the place of its own.
    pub fn with(&self, tensors: BTreeMap<String, Entry>) -> Self {
        Self { tensors, ..self.clone() }
    }

    /// The tensor `name`, if there is one.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name)
    }

    /// What a file of PyTorch has as `name` in the place of a tensor, in words: `made by os.system`.
    pub fn other(&self, name: &str) -> Option<&str> {
        self.others.get(name).map(String::as_str)
    }

    /// The tensor `name` in single precision, in memory of its own on `device`.
    ///
    /// # Errors
    /// If it is missing (naming the nearest one that exists), not of a floating-point type, or of too many axes.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let entry = self.entry(name).with_context(|| {
            if let Some(other) = self.other(name) {
                return format!("{}: '{name}' is {other}, expected a tensor", self.path.display());
            }
            format!("{}: no tensor '{name}'{}", self.path.display(), did_you_mean(name, self.names()))
        })?;
        if entry.shape().len() > MOST_AXES {
            let (file, axes) = (self.path.display(), entry.shape().len());
            bail!("{file}: tensor '{name}' has {axes} axes, expected at most {MOST_AXES}");
        }
        let values = entry.to_f32().with_context(|| {
            let (file, found) = (self.path.display(), entry.stored().name());
            format!("{file}: tensor '{name}' is {found}, expected floating-point numbers")
        })?;
        Ok(Tensor::from_slice(device, &values, entry.shape()))
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
    /// Those of `variant`, whose index older versions of diffusers call otherwise.
    fn of_variant(folder: &Path, stem: &str, variant: &str) -> Self {
        let old = format!("{stem}.safetensors.{variant}.index.json");
        let index = if folder.join(&old).exists() { old } else { format!("{stem}.safetensors.index.{variant}.json") };
        Self { single: format!("{stem}.{variant}.safetensors"), index }
    }

    /// Those of the same component that PyTorch saved.
    fn of_torch(stem: &str) -> Self {
        let stem = if stem == "model" { "pytorch_model" } else { stem };
        Self { single: format!("{stem}.bin"), index: format!("{stem}.bin.index.json") }
    }

    fn are_in(&self, folder: &Path) -> bool {
        folder.join(&self.single).exists() || folder.join(&self.index).exists()
    }
}

/// The weights of the one variant that `folder` has of `stem`.
fn only_variant(folder: &Path, stem: &str) -> Result<Weights> {
    let found = TensorFile::variants(folder, stem);
    let shown = folder.display();
    match &found[..] {
        [v] => Ok(Weights::of_variant(folder, stem, v)),
        [] => bail!("{shown}: no weights: looked for {stem}.safetensors and {stem}.safetensors.index.json"),
        several => bail!(
            "{shown}: the weights {stem} are there as {}; --variant (or variant in a config) says which",
            several.join(" and ")
        ),
    }
}

/// Writes tensors to a safetensors file, in the type they have. No more than one tensor at a time is in this process's memory for
/// it.
///
/// # Errors
/// Names the file if it cannot be written.
pub fn save(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let stored = |t: &Tensor| match t.dtype() {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
        DType::U8 => Dtype::U8,
        DType::Blocks(_) => panic!("{t:?} is decoded before it is saved"),
    };
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    let mut tensors: Vec<(String, Dtype, Tensor)> =
        tensors.into_iter().map(|(name, t)| (name, stored(&t), t)).collect();
    // Wide types first: then every element lies at a multiple of its size.
    tensors.sort_by_key(|(_, dtype, _)| std::cmp::Reverse(dtype.bitsize()));
    let heads = tensors.iter().map(|(name, dtype, t)| (name.as_str(), *dtype, t.shape()));
    write(path, heads, metadata, |file| Ok(tensors.iter().try_for_each(|(.., t)| file.write_all(&t.to_raw()))?))
}

/// Writes the tensors of `file` as they are stored, but for the bytes that `replaced` has of some.
///
/// # Errors
/// Names the file if it cannot be written, or the tensor that safetensors has no type for.
pub fn save_stored(
    path: &Path,
    file: &TensorFile,
    replaced: &BTreeMap<String, Vec<u8>>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut entries: Vec<(&str, &Entry, Dtype)> = Vec::new();
    for (name, entry) in file.entries() {
        let dtype = entry.stored().dtype().with_context(|| {
            format!(
                "{}: tensor '{name}' is {}, which safetensors has not",
                file.path().display(),
                entry.stored().name()
            )
        })?;
        entries.push((name, entry, dtype));
    }
    // Wide types first, as the library has it: then every element lies at a multiple of its size.
    entries.sort_by_key(|(_, _, dtype)| std::cmp::Reverse(dtype.bitsize()));
    let heads = entries.iter().map(|(name, e, dtype)| (*name, *dtype, e.shape()));
    write(path, heads, metadata, |out| {
        Ok(entries
            .iter()
            .try_for_each(|(name, e, _)| out.write_all(replaced.get(*name).map_or(e.raw(), Vec::as_slice)))?)
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
