//! Files that are written: under a fresh name in the same folder, synced, then renamed, so that a file is there whole or
//! not at all, and nothing that a name leads to elsewhere is touched.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Begins and ends the names of files that are being written; one that is left over means nothing.
const HIDDEN: &str = ".";
const TEMPORARY: &str = ".tmp";

/// A new file beside `path`. A name that is taken, be it by a link that someone has put there, is never opened.
fn fresh(path: &Path) -> std::io::Result<(PathBuf, File)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for number in 0..1000 {
        let name = format!("{HIDDEN}{name}.{}-{number}{TEMPORARY}", std::process::id());
        let temporary = path.with_file_name(name);
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            opened => return opened.map(|file| (temporary, file)),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// Writes a whole file.
///
/// # Errors
/// Names the file if it cannot be written; nothing is left behind then.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| Ok(file.write_all(bytes)?))
}

/// Writes a whole file with `write`.
///
/// # Errors
/// As [`write_atomic`], and those of `write`.
pub fn write_atomic_with(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let (temporary, mut file) = fresh(path).with_context(cannot)?;
    let written = write(&mut file).and_then(|()| {
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        Ok(sync_folder(path.parent().unwrap_or(Path::new("")))?)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.with_context(cannot)
}

/// Makes the names in `folder` survive a power failure, where the system can.
///
/// # Errors
/// If the disk fails.
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    // Only unix lets a folder be opened and synced, and not on every file system.
    if cfg!(unix) {
        match File::open(folder)?.sync_all() {
            Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {}
            done => done?,
        }
    }
    Ok(())
}

/// Makes sure that `path` is a folder that can be written to; makes it if it is not there.
///
/// # Errors
/// Names the folder if it cannot be made or written to.
pub fn output_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot create the output folder {}", path.display()))?;
    fresh(&path.join("engine"))
        .and_then(|(probe, _)| std::fs::remove_file(probe))
        .with_context(|| format!("cannot write to the output folder {}", path.display()))
}

/// As [`output_folder`], for the folder that the file `path` is to be in.
///
/// # Errors
/// As [`output_folder`], or if `path` is a folder itself.
pub fn output_file(path: &Path) -> Result<()> {
    if path.is_dir() {
        bail!("cannot write {}: it is a folder, expected a file", path.display());
    }
    output_folder(path.parent().unwrap_or(Path::new("")))
}

/// Removes files from `folder` that processes which were killed had begun to write. Only for who has the folder to itself;
/// what cannot be removed stays.
pub fn remove_leftovers(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_leftover = name.to_str().is_some_and(|n| n.starts_with(HIDDEN) && n.ends_with(TEMPORARY));
        if is_leftover && entry.file_type().is_ok_and(|kind| !kind.is_dir()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_atomic(&path, b"old").unwrap();
        let error = write_atomic_with(&path, |file| {
            file.write_all(b"ne")?;
            bail!("no more")
        });
        assert!(format!("{:#}", error.unwrap_err()).ends_with("a.txt: no more"));
        assert_eq!((std::fs::read(&path).unwrap(), names(dir.path())), (b"old".to_vec(), vec!["a.txt".to_string()]));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_place_of_the_temporary_or_of_the_file_itself_is_not_followed() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let (folder, precious) = (dir.path().join("out"), dir.path().join("precious"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(&precious, "precious").unwrap();
        let guess = |name: &str| folder.join(format!(".{name}.{}-0.tmp", std::process::id()));
        for name in ["a.txt", "engine"] {
            symlink(&precious, guess(name)).unwrap();
        }
        symlink(&precious, folder.join("a.txt")).unwrap();
        write_atomic(&folder.join("a.txt"), b"mine").unwrap();
        output_folder(&folder).unwrap();
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        assert_eq!(std::fs::read_to_string(folder.join("a.txt")).unwrap(), "mine");
        remove_leftovers(&folder);
        assert_eq!(names(&folder), ["a.txt"]);
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    }

    #[test]
    fn leftovers_are_files_that_were_being_written_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".a.txt.7-0.tmp", ".b.12.tmp", "c.tmp", ".d", ".lock"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::create_dir(dir.path().join(".folder.tmp")).unwrap();
        remove_leftovers(dir.path());
        assert_eq!(names(dir.path()), [".d", ".folder.tmp", ".lock", "c.tmp"]);
    }
}
