//! What people put beside a checkpoint of one file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Kind;

/// Folders, seen from the checkpoint's, in which its parts may lie: its own, and those of ComfyUI.
const FOLDERS: [&str; 5] = ["", "text_encoders", "vae", "../text_encoders", "../vae"];
/// Endings of files with tensors.
const ENDINGS: [&str; 2] = ["safetensors", "gguf"];

/// How the names of files with a part begin, for messages.
pub(super) fn names(kind: Kind) -> Vec<String> {
    starts(kind).iter().map(|start| format!("{start}.safetensors")).collect()
}

fn starts(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Transformer => &[],
        Kind::Vae => &["sd3_vae", "sd3.5_vae", "vae"],
        Kind::ClipL => &["clip_l"],
        Kind::ClipG => &["clip_g"],
        Kind::T5 => &["t5xxl", "t5-v1_1-xxl"],
    }
}

/// Whether a file `name` is the part: the whole name, or, of T5, which is there in many types, its beginning.
fn is(name: &str, kind: Kind) -> bool {
    let Some((stem, ending)) = name.rsplit_once('.') else { return false };
    let stem = stem.to_ascii_lowercase();
    let fits = |start: &&str| if kind == Kind::T5 { stem.starts_with(*start) } else { stem == **start };
    ENDINGS.contains(&ending) && starts(kind).iter().any(fits)
}

/// The one file near `checkpoint` with the part, if there is one.
///
/// # Errors
/// Names them if there are several.
pub(super) fn file(checkpoint: &Path, kind: Kind) -> Result<Option<PathBuf>> {
    let own = checkpoint.parent().unwrap_or(Path::new(""));
    for folder in FOLDERS {
        let folder = own.join(folder);
        let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
        if !folder.is_dir() {
            continue;
        }
        let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut found: Vec<PathBuf> = entries
            .flatten()
            .filter(|e| is(&e.file_name().to_string_lossy(), kind))
            .map(|e| e.path())
            .filter(|path| path.is_file())
            .collect();
        found.sort();
        match &found[..] {
            [] => {}
            [one] => return Ok(Some(one.clone())),
            several => {
                let several: Vec<String> = several.iter().map(|p| p.display().to_string()).collect();
                let (name, flag) = (checkpoint.display(), super::flag(kind));
                bail!(
                    "{name}: beside it there are {}; --{flag} (or parts.{}) says which",
                    several.join(" and "),
                    kind.key()
                )
            }
        }
    }
    Ok(None)
}

/// The folder `name` beside `checkpoint`, if there is one.
pub(super) fn folder(checkpoint: &Path, name: &str) -> Option<PathBuf> {
    let folder = checkpoint.parent().unwrap_or(Path::new("")).join(name);
    folder.is_dir().then_some(folder)
}
