//! Files as people have them: regular ones only, and what a download left out is named as such.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::built_in;

/// How the file begins that Git leaves in the place of one that Git LFS has (github.com/git-lfs/git-lfs, docs/spec.md).
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Opens a regular file for reading.
///
/// # Errors
/// Names the file if it is missing, a folder, or something else that reading might wait for, such as a named pipe.
pub fn open(path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?.file_type();
    if kind.is_dir() {
        bail!("{} is a folder, expected a file", path.display());
    }
    if !kind.is_file() {
        bail!("{} is not a regular file", path.display());
    }
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Fails if `start`, the first bytes of the file at `path`, are those of a Git LFS pointer.
///
/// # Errors
/// Names the file and what fetches the true one.
pub fn check_is_not_lfs_pointer(path: &Path, start: &[u8]) -> Result<()> {
    if start.starts_with(LFS_POINTER) {
        bail!("{} is a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'", path.display());
    }
    Ok(())
}

/// The bytes of a regular file, or of one that is [built in](built_in).
///
/// # Errors
/// As [`open`] and [`built_in::text`]; also if it cannot be read, or is a Git LFS pointer.
pub fn bytes(path: &Path) -> Result<Vec<u8>> {
    if built_in::is_named(path) {
        return Ok(built_in::text(path)?.as_bytes().to_vec());
    }
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    check_is_not_lfs_pointer(path, &bytes)?;
    Ok(bytes)
}

/// The text of a regular file, without a byte order mark.
///
/// # Errors
/// As [`bytes`]; also if it is not UTF-8.
pub fn text(path: &Path) -> Result<String> {
    let text = String::from_utf8(bytes(path)?).with_context(|| format!("{} is not UTF-8 text", path.display()))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text))
}

/// Reads a JSON file into `T`.
///
/// # Errors
/// As [`text`]; also if it is not what was expected.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&text(path)?).with_context(|| format!("{}: not the JSON that was expected", path.display()))
}

/// Whether `name`, which a downloaded file gives, is the name of something in the same folder.
pub fn is_plain_name(name: &str) -> bool {
    use std::path::Component;
    let mut parts = Path::new(name).components();
    // A backslash separates folders where the file may have been made.
    !name.contains('\\') && matches!((parts.next(), parts.next()), (Some(Component::Normal(one)), None) if one == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_is_named_and_never_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| format!("{:#}", text(path).unwrap_err());
        assert!(error(dir.path()).ends_with("is a folder, expected a file"));
        assert!(error(&dir.path().join("missing")).starts_with("cannot open "));
        #[cfg(unix)]
        {
            let pipe = dir.path().join("pipe");
            assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
            assert!(error(&pipe).ends_with("pipe is not a regular file"));
            assert!(error(Path::new("/dev/zero")).ends_with("/dev/zero is not a regular file"));
        }
    }

    #[test]
    fn a_git_lfs_pointer_is_named_as_one_and_a_byte_order_mark_is_no_text() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n").unwrap();
        assert!(text(file.path()).unwrap_err().to_string().contains("is a Git LFS pointer"));
        std::fs::write(file.path(), "\u{feff}{}").unwrap();
        assert_eq!(text(file.path()).unwrap(), "{}");
        std::fs::write(file.path(), [0xFF]).unwrap();
        assert!(format!("{:#}", text(file.path()).unwrap_err()).contains("is not UTF-8 text"));
    }

    #[test]
    fn names_that_lead_elsewhere_are_not_plain() {
        assert!(["vae", "model-00001-of-00002.safetensors", "..vae", "a b"].iter().all(|name| is_plain_name(name)));
        let elsewhere = ["", ".", "..", "/", "../vae", "a/b", "/etc", "vae/", "./vae", "a\\b"];
        assert!(!elsewhere.iter().any(|name| is_plain_name(name)));
    }
}
