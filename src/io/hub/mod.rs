//! Repositories of a model hub: what is in one, what of it is needed here, and how it comes to this machine. The hub's own crate
//! (`hf-hub` 1.0) begins an interrupted file anew, checks no checksum, and brings an asynchronous runtime.

mod download;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::http::{Client, Failure, FailureKind, check_url, header};
use super::read::is_plain_name;
use super::short;

pub use download::{Checksum, Fetched};

/// Where the hub is if nothing else is said.
pub const ENDPOINT: &str = "https://huggingface.co";
/// How long a hub may be silent.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often in a row something is tried that fails.
const TRIES: u32 = 5;

/// A model hub.
pub struct Hub {
    endpoint: String,
    client: Client,
    has_token: bool,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubFile {
    /// Its place in the repository, with `/` between folders.
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// What its content must give.
    pub checksum: Checksum,
}

/// A repository at one moment.
#[derive(Clone, Debug)]
pub struct Repo {
    /// `owner/name`.
    pub name: String,
    /// The commit that was listed.
    pub commit: String,
    /// All its files.
    pub files: Vec<HubFile>,
}

impl Hub {
    /// The hub at `endpoint`, asked with `token` if there is one.
    ///
    /// # Errors
    /// If the endpoint is no address.
    pub fn new(endpoint: &str, token: Option<String>) -> Result<Self> {
        check_url(endpoint).context("HF_ENDPOINT")?;
        let has_token = token.is_some();
        let client = Client::for_downloads(endpoint, PATIENCE, token);
        Ok(Self { endpoint: endpoint.trim_end_matches('/').into(), client, has_token })
    }

    /// What is in the repository `name` at `revision`, a branch, tag or commit.
    ///
    /// # Errors
    /// In one line: no such repository or revision, a token or licence that is needed, no answer.
    pub fn list(&self, name: &str, revision: &str) -> Result<Repo> {
        let parts: Vec<&str> = name.split('/').collect();
        ensure!(
            matches!(parts.len(), 1 | 2) && parts.iter().all(|part| is_plain_name(part)),
            "'{}' is no repository, expected owner/name",
            short(name)
        );
        ensure!(!revision.is_empty(), "--revision is empty, expected a branch, tag or commit");
        let revision = revision.replace('/', "%2F");
        let url = format!("{}/api/models/{name}/revision/{revision}?blobs=true", self.endpoint);
        let named = |e: Failure| Failure { what: format!("{url}: {e}"), ..e };
        let body = patiently(|| {
            let reply = self.client.get(&url, &[]).map_err(named)?;
            match self.explain(name, &revision, reply.status().as_u16(), header(reply.headers(), "x-error-code")) {
                Some(what) => Err(Failure { what, kind: FailureKind::Refused }),
                None => self.client.success(reply).map_err(named),
            }
        })?;
        let listing: Value =
            serde_json::from_slice(&body).map_err(|e| anyhow!("{url}: answered what is not JSON ({e})"))?;
        let commit = listing["sha"].as_str().with_context(|| format!("{url}: answered without 'sha'"))?;
        let siblings = listing["siblings"].as_array().with_context(|| format!("{url}: answered without 'siblings'"))?;
        let file = |one: &Value| {
            HubFile::listed(one).with_context(|| format!("{url}: answered with a file that is not as it should be"))
        };
        Ok(Repo { name: name.into(), commit: commit.into(), files: siblings.iter().map(file).collect::<Result<_>>()? })
    }

    /// Brings `file` of `repo` into `folder`, going on where an earlier try ended, and checks it. `on_bytes` is told of progress.
    ///
    /// # Errors
    /// In one line: what the hub refuses, that it was interrupted too often, that the content has another checksum, that the file
    /// cannot be written.
    pub fn fetch(&self, repo: &Repo, file: &HubFile, folder: &Path, on_bytes: &mut dyn FnMut(u64)) -> Result<Fetched> {
        let target = folder.join(file.path.split('/').collect::<PathBuf>());
        let url = format!("{}/{}/resolve/{}/{}", self.endpoint, repo.name, repo.commit, encoded(&file.path));
        download::fetch(&self.client, &url, &target, file, on_bytes, |status, code| {
            self.explain(&repo.name, &repo.commit, status, code)
        })
    }

    /// Why the hub refuses something of `repo`, if it does for a known reason.
    fn explain(&self, repo: &str, revision: &str, status: u16, code: Option<&str>) -> Option<String> {
        let token = if self.has_token {
            "the account of the token in HF_TOKEN"
        } else {
            "an account, and its token set as HF_TOKEN"
        };
        match (status, code) {
            (401 | 403, Some("GatedRepo")) => {
                Some(format!("{repo}: its licence must be accepted at {}/{repo} with {token}", self.endpoint))
            }
            (404, Some("RevisionNotFound")) => Some(format!("{repo}: there is no revision '{revision}'")),
            (401, _) if self.has_token => {
                Some(format!("{repo}: answered 401: no such repository, or the token in HF_TOKEN is not valid for it"))
            }
            (401, _) => {
                Some(format!("{repo}: answered 401: no such repository, or one that wants a token in HF_TOKEN"))
            }
            (403, _) => Some(format!("{repo}: answered 403: the token in HF_TOKEN may not read it")),
            (404, _) => Some(format!("{repo}: answered 404: no such repository or file at {}", self.endpoint)),
            _ => None,
        }
    }
}

impl HubFile {
    /// The file that an entry of a listing tells of; nothing if it is not as it should be.
    fn listed(entry: &Value) -> Option<Self> {
        let path = entry["rfilename"].as_str().filter(|path| path.split('/').all(is_plain_name))?;
        let (size, sum) = match &entry["lfs"] {
            Value::Null => (&entry["size"], &entry["blobId"]),
            lfs => (&lfs["size"], &lfs["sha256"]),
        };
        Some(Self { path: path.into(), size: size.as_u64()?, checksum: Checksum::parse(sum.as_str()?)? })
    }

    fn folder(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    fn name(&self) -> &str {
        self.path.rsplit_once('/').map_or(self.path.as_str(), |(_, name)| name)
    }
}

/// Endings of files that this program reads in a model's folder.
const READ_HERE: [&str; 5] = [".safetensors", ".json", ".txt", ".model", ".jinja"];
/// Files that make a folder a part of a model.
const MAKE_A_PART: [&str; 4] =
    ["config.json", "tokenizer_config.json", "scheduler_config.json", "preprocessor_config.json"];

impl Repo {
    /// The files that this program reads: weights as safetensors, configs, tokenizers. Of a model in parts, not what lies beside
    /// them; of weights in several variants, the one without a name.
    pub fn needed(&self) -> Vec<&HubFile> {
        let paths: BTreeSet<&str> = self.files.iter().map(|f| f.path.as_str()).collect();
        let in_parts = paths.contains("model_index.json");
        let is_part = |folder: &str| MAKE_A_PART.iter().any(|name| paths.contains(format!("{folder}/{name}").as_str()));
        let variant = Regex::new(r"^(.+)\.(?:fp16|bf16|fp32|ema|non_ema)((?:-[0-9]+-of-[0-9]+)?\.safetensors|\.safetensors\.index\..+|\.index\..+)$").expect("a pattern");
        let has_plain = |file: &HubFile, stem: &str| {
            let of_folder = self.files.iter().filter(|other| other.folder() == file.folder());
            let starts = [format!("{stem}.safetensors"), format!("{stem}-00001-of-")];
            of_folder.map(HubFile::name).any(|name| starts.iter().any(|start| name.starts_with(start.as_str())))
        };
        let is_needed = |file: &&HubFile| {
            let is_read = READ_HERE.iter().any(|end| file.path.ends_with(end));
            let is_beside = in_parts
                && match file.folder() {
                    "" => file.path.ends_with(".safetensors"),
                    folder => !is_part(folder),
                };
            let other = variant.captures(file.name()).is_some_and(|found| has_plain(file, &found[1]));
            // A model's index of parts in another framework, and the like.
            let is_foreign = file.name().ends_with(".bin.index.json") || file.name().starts_with('.');
            is_read && !is_beside && !other && !is_foreign
        };
        self.files.iter().filter(is_needed).collect()
    }

    /// The files whose path one of `patterns` matches; `*` stands for any characters, `?` for one.
    ///
    /// # Errors
    /// Names a pattern that none matches.
    pub fn matching(&self, patterns: &[String]) -> Result<Vec<&HubFile>> {
        let patterns: Vec<(Regex, &String)> =
            patterns.iter().map(|text| Ok((glob(text)?, text))).collect::<Result<_>>()?;
        for (pattern, text) in &patterns {
            if !self.files.iter().any(|file| pattern.is_match(&file.path)) {
                let some: Vec<&str> = self.files.iter().map(|f| f.path.as_str()).take(8).collect();
                let more = if self.files.len() > some.len() { ", …" } else { "" };
                bail!(
                    "--include '{}': no file of {} is called so; it has {}{more}",
                    short(text),
                    self.name,
                    some.join(", ")
                );
            }
        }
        Ok(self.files.iter().filter(|file| patterns.iter().any(|(pattern, _)| pattern.is_match(&file.path))).collect())
    }
}

fn glob(text: &str) -> Result<Regex> {
    let pattern = format!("^{}$", regex::escape(text).replace(r"\*", ".*").replace(r"\?", "."));
    RegexBuilder::new(&pattern).size_limit(1 << 20).build().with_context(|| format!("--include '{}'", short(text)))
}

/// `path` as a part of an address.
fn encoded(path: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let one = |byte: u8| if is_plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") };
    path.bytes().map(one).collect()
}

/// What `try_once` gives, tried again after longer and longer waits while the other side is away.
fn patiently<T>(mut try_once: impl FnMut() -> Result<T, Failure>) -> Result<T> {
    let mut tries = 0;
    loop {
        match try_once() {
            Ok(done) => return Ok(done),
            Err(e) if !e.kind.may_pass() || tries + 1 >= TRIES => return Err(anyhow!("{e}")),
            Err(_) => std::thread::sleep(wait(tries)),
        }
        tries += 1;
    }
}

/// How long to wait after so many failures in a row.
fn wait(failures: u32) -> Duration {
    Duration::from_millis(250) * (1 << failures.min(7))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo(paths: &[&str]) -> Repo {
        let file = |path: &&str| HubFile {
            path: path.to_string(),
            size: 1,
            checksum: Checksum::parse(&"0".repeat(40)).unwrap(),
        };
        Repo { name: "a/b".into(), commit: "c".into(), files: paths.iter().map(file).collect() }
    }

    fn paths(files: Vec<&HubFile>) -> Vec<&str> {
        files.into_iter().map(|f| f.path.as_str()).collect()
    }

    #[test]
    fn of_a_model_in_parts_its_parts_are_needed_and_nothing_beside() {
        let repo = repo(&[
            ".gitattributes",
            "LICENSE.md",
            "README.md",
            "model_index.json",
            "sd3.5_medium.safetensors",
            "sample.png",
            "scheduler/scheduler_config.json",
            "text_encoders/t5xxl_fp16.safetensors",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "text_encoder/model.fp16.safetensors",
            "text_encoder_3/config.json",
            "text_encoder_3/model-00001-of-00002.safetensors",
            "text_encoder_3/model-00002-of-00002.safetensors",
            "text_encoder_3/model.fp16-00001-of-00002.safetensors",
            "text_encoder_3/model.safetensors.index.json",
            "text_encoder_3/model.safetensors.index.fp16.json",
            "text_encoder_3/spiece.model",
            "tokenizer/tokenizer_config.json",
            "tokenizer_3/spiece.model",
            "tokenizer_3/tokenizer_config.json",
            "tokenizer/merges.txt",
            "transformer/config.json",
            "transformer/diffusion_pytorch_model.safetensors",
        ]);
        let needed = paths(repo.needed());
        assert_eq!(
            needed,
            [
                "model_index.json",
                "scheduler/scheduler_config.json",
                "text_encoder/config.json",
                "text_encoder/model.safetensors",
                "text_encoder_3/config.json",
                "text_encoder_3/model-00001-of-00002.safetensors",
                "text_encoder_3/model-00002-of-00002.safetensors",
                "text_encoder_3/model.safetensors.index.json",
                "text_encoder_3/model.safetensors.index.fp16.json",
                "text_encoder_3/spiece.model",
                "tokenizer/tokenizer_config.json",
                "tokenizer_3/spiece.model",
                "tokenizer_3/tokenizer_config.json",
                "tokenizer/merges.txt",
                "transformer/config.json",
                "transformer/diffusion_pytorch_model.safetensors",
            ]
        );
    }

    #[test]
    fn of_other_models_weights_configs_and_tokenizers_are_needed() {
        let clip =
            ["config.json", "merges.txt", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "tokenizer.json"];
        assert_eq!(paths(repo(&clip).needed()), ["config.json", "merges.txt", "model.safetensors", "tokenizer.json"]);
        // The only weights there are, whatever they are called.
        assert_eq!(
            paths(repo(&["a.fp16.safetensors", "pytorch_model.bin.index.json"]).needed()),
            ["a.fp16.safetensors"]
        );
        assert!(repo(&["HPS_v2.1_compressed.pt"]).needed().is_empty());
    }

    #[test]
    fn patterns_match_whole_paths_and_one_that_matches_nothing_is_named() {
        let repo = repo(&["a.pt", "b/a.pt", "b/c.bin", "[x].txt"]);
        let of = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|p| p.to_string()).collect();
            repo.matching(&patterns).map(|files| paths(files).join(" ")).map_err(|e| e.to_string())
        };
        assert_eq!(of(&["*.pt"]), Ok("a.pt b/a.pt".into()));
        assert_eq!(of(&["?.pt", "[x].*"]), Ok("a.pt [x].txt".into()));
        assert_eq!(
            of(&["*", "d*"]),
            Err("--include 'd*': no file of a/b is called so; it has a.pt, b/a.pt, b/c.bin, [x].txt".into())
        );
    }

    #[test]
    fn a_file_that_would_lead_elsewhere_is_not_taken() {
        let entry = |path: &str| serde_json::json!({ "rfilename": path, "size": 3, "blobId": "0".repeat(40) });
        assert!(HubFile::listed(&entry("a/b.json")).is_some());
        for path in ["../b.json", "/etc/passwd", "a/../../b", "", "a//b", "a\\..\\b"] {
            assert_eq!(HubFile::listed(&entry(path)), None, "{path}");
        }
        assert_eq!(encoded("a b/ü+.txt"), "a%20b/%C3%BC%2B.txt");
    }
}
