//! Folders that are written whole: filled under a hidden name, synced, then renamed, so that a folder of the name is there
//! with all that belongs in it, the old or the new.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::write::sync_folder;

/// Ends the hidden name of a folder that is being filled or removed, and means nothing if it is left over.
pub const TEMPORARY: &str = "tmp";
/// Ends the hidden name of a folder that makes room for a new one of its name.
pub const REPLACED: &str = "replaced";

/// `.name.<end>`.
pub fn hidden(name: &str, end: &str) -> String {
    format!(".{name}.{end}")
}

/// Renames a file or folder.
///
/// # Errors
/// Names both.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

/// Makes the names in `folder` survive a power failure.
fn sync(folder: &Path) -> Result<()> {
    sync_folder(folder).with_context(|| format!("cannot sync {}", folder.display()))
}

/// Writes the folder `name` in `folder` by `fill`, in the place of one that may be there. Only for who has `folder` to itself.
///
/// # Errors
/// Names what cannot be written, or those of `fill`; what was there before is still there then.
pub fn replace(folder: &Path, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let (path, temporary) = (folder.join(name), folder.join(hidden(name, TEMPORARY)));
    let fill = |path: &Path| {
        fs::create_dir(path).with_context(|| format!("cannot create {}", path.display()))?;
        fill(path)?;
        sync(path)
    };
    let written = fill(&temporary).and_then(|()| publish(folder, &temporary, name));
    if written.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    written.map(|()| path)
}

/// Gives the filled folder its name.
fn publish(folder: &Path, temporary: &Path, name: &str) -> Result<()> {
    let (path, replaced) = (folder.join(name), folder.join(hidden(name, REPLACED)));
    // A folder cannot be renamed over another: the one that is there steps aside, and [`settle`] knows that name too.
    let occupied = path.exists();
    if occupied {
        rename(&path, &replaced)?;
    }
    if let Err(e) = rename(temporary, &path) {
        if occupied {
            let _ = fs::rename(&replaced, &path);
        }
        return Err(e);
    }
    sync(folder)?;
    let _ = fs::remove_dir_all(&replaced);
    Ok(())
}

/// Removes what a crash or a full disk left of [`replace`] for `name`, and puts back a folder that was on its way to be
/// replaced.
///
/// # Errors
/// If it cannot be put back.
pub fn settle(folder: &Path, name: &str) -> Result<()> {
    let (path, replaced) = (folder.join(name), folder.join(hidden(name, REPLACED)));
    if replaced.exists() && !path.exists() {
        rename(&replaced, &path)?;
    }
    let _ = fs::remove_dir_all(&replaced);
    let _ = fs::remove_dir_all(folder.join(hidden(name, TEMPORARY)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    /// What is in the file `a` of the folder `x`.
    fn content(folder: &Path) -> String {
        fs::read_to_string(folder.join("x/a")).unwrap()
    }

    fn write(text: &'static str) -> impl FnOnce(&Path) -> Result<()> {
        move |path| Ok(fs::write(path.join("a"), text)?)
    }

    #[test]
    fn a_folder_is_the_old_or_the_new_one_and_nothing_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let names = || fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        replace(dir.path(), "x", write("old")).unwrap();
        let failed = replace(dir.path(), "x", |path| {
            write("half")(path)?;
            bail!("no more")
        });
        assert_eq!((failed.unwrap_err().to_string(), content(dir.path())), ("no more".into(), "old".into()));
        assert_eq!(names(), ["x"]);
        assert_eq!(replace(dir.path(), "x", write("new")).unwrap(), dir.path().join("x"));
        assert_eq!((content(dir.path()), names()), ("new".into(), vec!["x".into()]));
    }

    #[test]
    fn what_a_crash_left_is_put_back_or_removed() {
        let dir = tempfile::tempdir().unwrap();
        replace(dir.path(), "x", write("old")).unwrap();
        let [path, replaced, temporary] = ["x", ".x.replaced", ".x.tmp"].map(|name| dir.path().join(name));
        // Between the two renames.
        fs::rename(&path, &replaced).unwrap();
        fs::create_dir(&temporary).unwrap();
        settle(dir.path(), "x").unwrap();
        assert_eq!((content(dir.path()), replaced.exists(), temporary.exists()), ("old".into(), false, false));
        // After them.
        fs::create_dir(&replaced).unwrap();
        settle(dir.path(), "x").unwrap();
        assert_eq!((content(dir.path()), replaced.exists()), ("old".into(), false));
    }
}
