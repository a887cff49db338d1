use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use engine::io::{TensorFile, read_json, require_folder};
use engine::models::index::ModelIndex;
use engine::models::source::STEMS;
use engine::telemetry::bytes;
use engine::train::checkpoint;
use serde::Serialize;
use serde_json::{Map, Value};

use super::json::{self, JsonArg};
use super::model_folder;

/// Say what is in a model folder, a checkpoint, or a file of safetensors, GGUF or PyTorch.
///
/// Tensors, shapes, types, sizes and configuration. Only headers are read, so that the answer comes at once however
/// large the file is, and no code in it is run.
#[derive(clap::Args)]
#[command(after_long_help = json::keys(KEYS))]
pub struct Args {
    /// Pipeline folder (with model_index.json), component or checkpoint folder, output folder of a run for its latest
    /// checkpoint, or .safetensors, .gguf, .pth, .pt or .bin file.
    #[arg(value_parser = model_folder)]
    path: PathBuf,
    #[command(flatten)]
    json: JsonArg,
}

const KEYS: &[(&str, &str)] = &[
    ("path", "what was inspected"),
    ("class", "of a pipeline"),
    ("parts[].name", "component or file"),
    ("parts[].class", "of diffusers or transformers"),
    ("parts[].config", "settings by name"),
    ("parts[].sizes", "as total"),
    ("parts[].metadata", "of a file, by name"),
    ("parts[].tensors[].name", "of every tensor, but in a pipeline"),
    ("parts[].tensors[].dtype", "as it is stored"),
    ("parts[].tensors[].shape", "list of numbers"),
    ("parts[].tensors[].bytes", "in the file"),
    ("total.files", "how many"),
    ("total.tensors", "how many"),
    ("total.parameters", "how many"),
    ("total.bytes", "of all tensors"),
    ("total.dtypes", "bytes of each type"),
];

/// What a component's config says that tells it from others of its class.
const ESSENTIALS: [&str; 32] = [
    "num_layers",
    "num_hidden_layers",
    "num_attention_heads",
    "attention_head_dim",
    "num_heads",
    "d_model",
    "d_ff",
    "hidden_size",
    "intermediate_size",
    "hidden_act",
    "projection_dim",
    "joint_attention_dim",
    "pooled_projection_dim",
    "dual_attention_layers",
    "qk_norm",
    "pos_embed_max_size",
    "sample_size",
    "patch_size",
    "in_channels",
    "latent_channels",
    "block_out_channels",
    "scaling_factor",
    "shift_factor",
    "vocab_size",
    "max_position_embeddings",
    "feed_forward_proj",
    "num_train_timesteps",
    "shift",
    "model_max_length",
    "r",
    "lora_alpha",
    "target_modules",
];

/// A folder with the components it is made of, or one component, or one file.
#[derive(Serialize)]
struct Report {
    path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<String>,
    parts: Vec<Component>,
    total: Sizes,
}

/// One component or file.
#[derive(Serialize)]
struct Component {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<String>,
    config: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sizes: Option<Sizes>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<TensorInfo>,
}

#[derive(Serialize, Default)]
struct Sizes {
    files: usize,
    tensors: usize,
    parameters: usize,
    bytes: usize,
    /// Bytes of each type.
    dtypes: BTreeMap<String, usize>,
}

#[derive(Serialize)]
struct TensorInfo {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: usize,
}

impl Sizes {
    fn of(file: &TensorFile) -> Self {
        let mut sizes = Self { files: file.files(), ..Self::default() };
        for (_, entry) in file.entries() {
            sizes.tensors += 1;
            sizes.parameters += entry.shape().iter().product::<usize>();
            sizes.bytes += entry.size();
            *sizes.dtypes.entry(entry.stored().name()).or_default() += entry.size();
        }
        sizes
    }

    fn add(&mut self, other: &Self) {
        self.files += other.files;
        self.tensors += other.tensors;
        self.parameters += other.parameters;
        self.bytes += other.bytes;
        for (dtype, bytes) in &other.dtypes {
            *self.dtypes.entry(dtype.clone()).or_default() += bytes;
        }
    }
}

pub fn run(args: Args) -> Result<()> {
    let report = inspect(&args.path)?;
    args.json.answer(&report, || table(&report))
}

fn inspect(path: &Path) -> Result<Report> {
    if !path.exists() {
        bail!("no such file or folder: {}", path.display());
    }
    let latest;
    let path = match path.join("checkpoints").is_dir() {
        true => {
            latest = checkpoint::find(path)?;
            latest.as_path()
        }
        false => path,
    };
    let (class, parts) = if path.join("model_index.json").exists() {
        pipeline(path)?
    } else if path.is_dir() {
        (None, folder(path)?)
    } else {
        (None, vec![Component::new(file_name(path), &TensorFile::open(path)?, true)])
    };
    let mut total = Sizes::default();
    parts.iter().filter_map(|p| p.sizes.as_ref()).for_each(|s| total.add(s));
    Ok(Report { path: path.to_path_buf(), class, parts, total })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// All components that `model_index.json` names, in its order of names.
fn pipeline(path: &Path) -> Result<(Option<String>, Vec<Component>)> {
    let index = ModelIndex::of_any(path)?;
    let mut parts = Vec::new();
    for (name, class) in index.classes() {
        let folder = path.join(name);
        require_folder(&folder, &format!("component '{name}' of model_index.json"))?;
        let weights = STEMS.into_iter().find(|stem| has_weights(&folder, stem));
        let mut part = match weights {
            Some(stem) => Component::new(name.to_string(), &TensorFile::open_component(&folder, stem, None)?, false),
            None => Component::without_tensors(name.to_string()),
        };
        part.configure(&folder)?;
        part.class = Some(class.to_string());
        parts.push(part);
    }
    Ok((index.class().map(str::to_string), parts))
}

fn has_weights(folder: &Path, stem: &str) -> bool {
    let names =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    names.into_iter().any(|n| n.starts_with(&format!("{stem}.")) && n.contains(".safetensors"))
}

/// The weights in a component or checkpoint folder, shards of one model together, and its JSON files.
fn folder(path: &Path) -> Result<Vec<Component>> {
    let mut names: Vec<String> = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|e| Ok(file_name(&e?.path()))).collect())
        .with_context(|| format!("cannot read {}", path.display()))?;
    names.sort();
    let mut parts = Vec::new();
    for stem in names.iter().filter_map(|n| n.strip_suffix(".safetensors.index.json")) {
        parts.push(Component::new(stem.to_string(), &TensorFile::open_component(path, stem, None)?, true));
    }
    if parts.is_empty() && !names.iter().any(|n| n.ends_with(".safetensors")) {
        // What transformers wrote before; other files of PyTorch may hold anything.
        if let Some(stem) = STEMS.into_iter().find(|stem| TensorFile::is_of_torch(path, stem)) {
            parts.push(Component::new(stem.to_string(), &TensorFile::open_component(path, stem, None)?, true));
        }
    }
    let is_shard = |name: &str| parts.iter().any(|p| name.starts_with(&format!("{}-", p.name)));
    let single: Vec<&String> = names.iter().filter(|n| n.ends_with(".safetensors") && !is_shard(n)).collect();
    for name in single {
        parts.push(Component::new(name.clone(), &TensorFile::open(&path.join(name))?, true));
    }
    for name in names.iter().filter(|n| n.ends_with(".json") && !n.ends_with(".index.json")) {
        let mut part = Component::without_tensors(name.clone());
        part.read_config(&path.join(name))?;
        if !part.config.is_empty() || part.class.is_some() {
            parts.push(part);
        }
    }
    if parts.is_empty() {
        bail!(
            "{}: nothing to inspect: looked for model_index.json, *.safetensors, pytorch_model.bin and *.json",
            path.display()
        );
    }
    Ok(parts)
}

impl Component {
    fn without_tensors(name: String) -> Self {
        Self { name, class: None, config: Map::new(), sizes: None, metadata: BTreeMap::new(), tensors: Vec::new() }
    }

    fn new(name: String, file: &TensorFile, list: bool) -> Self {
        let tensors = file.entries().filter(|_| list).map(|(name, entry)| TensorInfo {
            name: name.to_string(),
            dtype: entry.stored().name(),
            shape: entry.shape().to_vec(),
            bytes: entry.size(),
        });
        let (sizes, metadata) = (Some(Sizes::of(file)), file.metadata().clone());
        Self { sizes, metadata, tensors: tensors.collect(), ..Self::without_tensors(name) }
    }

    /// Takes over the config of a component's folder, whatever it is called there.
    fn configure(&mut self, folder: &Path) -> Result<()> {
        for name in ["config.json", "scheduler_config.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            if path.exists() {
                self.read_config(&path)?;
            }
        }
        Ok(())
    }

    /// The essentials of one JSON file: of a model's config the keys listed above, of others all plain values.
    fn read_config(&mut self, path: &Path) -> Result<()> {
        let Value::Object(json) = read_json(path)? else { return Ok(()) };
        let class = json.get("_class_name").or_else(|| json.get("architectures")?.get(0));
        self.class = class.and_then(Value::as_str).map(str::to_string);
        let is_config =
            self.class.is_some() || path.file_name().is_some_and(|n| n.to_string_lossy().contains("config"));
        let essential = |(key, value): &(String, Value)| match is_config {
            true => ESSENTIALS.contains(&key.as_str()) && !value.is_null(),
            false => value.is_number() || value.is_string() || value.is_boolean(),
        };
        self.config.extend(json.into_iter().filter(essential));
        Ok(())
    }
}

/// The report for people.
fn table(report: &Report) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out += text.trim_end();
        out.push('\n');
    };
    line(match &report.class {
        Some(class) => format!("{} in {}", cut(class), report.path.display()),
        None => report.path.display().to_string(),
    });
    let name_width = report.parts.iter().map(|p| cut(&p.name).chars().count()).max().unwrap_or(0).max(5);
    for part in &report.parts {
        let class = part.class.as_deref().map(cut).unwrap_or_default();
        let sizes = part.sizes.as_ref().map(sizes_text).unwrap_or_default();
        line(format!(
            "\n{:name_width$}  {class}{}{sizes}",
            cut(&part.name),
            if class.is_empty() || sizes.is_empty() { "" } else { ": " }
        ));
        for (key, value) in &part.config {
            line(format!("  {} = {}", cut(key), short(value)));
        }
        for (key, value) in &part.metadata {
            line(format!("  [{}] {}", cut(key), cut(value)));
        }
        let width = |f: fn(&TensorInfo) -> usize| part.tensors.iter().map(f).max().unwrap_or(0);
        let (names, types, shapes) = (
            width(|t| cut(&t.name).chars().count()),
            width(|t| t.dtype.len()).max(4),
            width(|t| shape_text(&t.shape).chars().count()),
        );
        for t in &part.tensors {
            let size = bytes(t.bytes as u64);
            line(format!("  {:names$}  {:types$}  {:shapes$}  {size:>9}", cut(&t.name), t.dtype, shape_text(&t.shape)));
        }
    }
    if report.parts.iter().filter(|p| p.sizes.is_some()).count() > 1 {
        line(format!("\n{:name_width$}  {}", "total", sizes_text(&report.total)));
    }
    out
}

fn sizes_text(s: &Sizes) -> String {
    let mut dtypes: Vec<_> = s.dtypes.iter().collect();
    dtypes.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
    let dtypes: Vec<&str> = dtypes.iter().map(|(d, _)| d.as_str()).collect();
    let files = if s.files > 1 { format!(", {} files", s.files) } else { String::new() };
    let (tensors, parameters, size) = (s.tensors, count_text(s.parameters), bytes(s.bytes as u64));
    format!("{tensors} tensors, {parameters} parameters, {size}, {}{files}", dtypes.join(" + "))
}

fn shape_text(shape: &[usize]) -> String {
    cut(&format!("{shape:?}"))
}

fn short(value: &Value) -> String {
    cut(&value.as_str().map_or_else(|| value.to_string(), str::to_string))
}

/// The start of a text that may be very long, in one line.
fn cut(text: &str) -> String {
    const LENGTH: usize = 100;
    let line: String = text.chars().take(LENGTH).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(LENGTH).is_some() { line + "…" } else { line }
}

fn count_text(n: usize) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", n as f64 / 1e6),
        _ => format!("{:.3} B", n as f64 / 1e9),
    }
}
