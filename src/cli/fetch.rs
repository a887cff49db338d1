use std::path::PathBuf;

use anyhow::{Result, ensure};
use engine::io::hub::{ENDPOINT, Fetched, Hub, HubFile};
use engine::io::output_folder;
use engine::telemetry::{Progress, bytes, say};
use serde::Serialize;

use super::json::{self, JsonArg};

/// Download a model from a model hub.
///
/// What was interrupted goes on where it ended, and every file is checked against the hub's checksum. A token is taken from HF_TOKEN,
/// the hub's address from HF_ENDPOINT.
#[derive(clap::Args)]
#[command(after_long_help = json::keys(KEYS))]
pub struct Args {
    /// Repository, such as stabilityai/stable-diffusion-3.5-medium.
    #[arg(value_name = "OWNER/NAME")]
    repo: String,
    /// Folder for the files; models/NAME if left out.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Branch, tag or commit.
    #[arg(long, value_name = "REVISION", default_value = "main")]
    revision: String,
    /// Fetch these files instead of those that engine reads (safetensors, configs, tokenizers): * stands for any characters.
    #[arg(long, value_name = "PATTERN", num_args = 1.., conflicts_with = "all")]
    include: Vec<String>,
    /// Fetch every file.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    json: JsonArg,
}

const KEYS: &[(&str, &str)] = &[
    ("repo", "the repository"),
    ("commit", "what the revision was"),
    ("folder", "where the files are"),
    ("files[].path", "in that folder"),
    ("files[].bytes", "its size"),
    ("files[].was_there", "whether it did not have to be downloaded"),
    ("files[].resumed_at", "bytes that an earlier try had left"),
];

/// What --json gives.
#[derive(Serialize)]
struct Answer {
    repo: String,
    commit: String,
    folder: PathBuf,
    files: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    path: String,
    bytes: u64,
    was_there: bool,
    resumed_at: u64,
}

/// Bytes in one step of the progress that is shown.
const STEP: u64 = 1 << 20;

pub fn run(args: Args) -> Result<()> {
    let variable = |name| std::env::var(name).ok().map(|value| value.trim().to_string()).filter(|v| !v.is_empty());
    let hub = Hub::new(variable("HF_ENDPOINT").as_deref().unwrap_or(ENDPOINT), variable("HF_TOKEN"))?;
    let repo = hub.list(&args.repo, &args.revision)?;
    let files: Vec<&HubFile> = match (args.all, args.include.is_empty()) {
        (true, _) => repo.files.iter().collect(),
        (false, true) => repo.needed(),
        (false, false) => repo.matching(&args.include)?,
    };
    let has: Vec<&str> = repo.files.iter().map(|f| f.path.as_str()).take(8).collect();
    let names = has.join(", ");
    ensure!(
        !files.is_empty(),
        "{}: no file that engine reads; --include takes others, of which it has {names}",
        repo.name
    );
    let name = args.repo.rsplit('/').next().unwrap_or_default();
    let folder = args.out.unwrap_or_else(|| PathBuf::from("models").join(name));
    output_folder(&folder)?;
    let total: u64 = files.iter().map(|f| f.size).sum();
    say(&format!("{} at {} -> {}: {} files, {}", repo.name, repo.commit, folder.display(), files.len(), bytes(total)));
    let progress = Progress::new("fetch (MiB)", total / STEP);
    let (mut entries, mut done) = (Vec::new(), 0);
    for file in files {
        let fetched = hub.fetch(&repo, file, &folder, &mut |n| {
            progress.step((done + n) / STEP - done / STEP);
            done += n;
        })?;
        let (was_there, resumed_at) = match fetched {
            Fetched::WasThere => (true, 0),
            Fetched::Downloaded(had) => (false, had),
        };
        entries.push(Entry { path: file.path.clone(), bytes: file.size, was_there, resumed_at });
    }
    progress.finish();
    let answer = Answer { repo: repo.name, commit: repo.commit, folder, files: entries };
    args.json.answer(&answer, || {
        let there = answer.files.iter().filter(|f| f.was_there).count();
        let (count, folder) = (answer.files.len(), answer.folder.display());
        format!("{folder}: {count} files, {there} of them were there; every checksum is the hub's\n")
    })
}
