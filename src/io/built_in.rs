//! Files that are part of the program: what stood under configs/ when it was built. Such a file is named in the place of a
//! path, as in `built-in:tiny/prompts_test.jsonl`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::did_you_mean;

/// Every file: its path in configs/ and its text, in the order of paths.
pub const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/configs.rs"));

/// What the name of a built-in file begins with.
const PREFIX: &str = "built-in:";
/// The folder where the files stood.
const FOLDER: &str = "configs";

/// Whether `path` names a built-in file, be there one of that name or not.
pub fn is_named(path: &Path) -> bool {
    path.to_str().is_some_and(|name| name.starts_with(PREFIX))
}

/// The text of the built-in file that `path` names.
///
/// # Errors
/// If there is none of that name: says the nearest.
pub fn text(path: &Path) -> Result<&'static str> {
    let name = path.to_str().unwrap_or_default();
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    let found = FILES.iter().find(|(file, _)| *file == name);
    let names = FILES.iter().map(|(file, _)| *file);
    Ok(found.with_context(|| format!("no file '{name}' is built in{}", did_you_mean(name, names)))?.1)
}

/// A built-in file in the place of `path`, and a line about it, if nothing is there and it is the path that one had.
pub fn stand_in(path: &mut PathBuf, what: &str) -> Option<String> {
    let name = path.strip_prefix(FOLDER).ok()?.to_str()?.replace('\\', "/");
    if path.exists() || !FILES.iter().any(|(file, _)| *file == name) {
        return None;
    }
    let built_in = format!("{PREFIX}{name}");
    let line = format!("{what}: there is no {} here; taken: {built_in}", path.display());
    *path = built_in.into();
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_under_configs_is_built_in_and_no_other() {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER);
        let (mut there, mut todo) = (Vec::new(), vec![top.clone()]);
        while let Some(folder) = todo.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => todo.push(path),
                    false => there.push(path),
                }
            }
        }
        there.sort();
        let built_in: Vec<PathBuf> = FILES.iter().map(|(name, _)| top.join(name)).collect();
        assert_eq!(there, built_in);
        assert!(there.len() >= 8);
        for ((_, text), path) in FILES.iter().zip(there) {
            assert_eq!(*text, std::fs::read_to_string(path).unwrap());
        }
    }

    #[test]
    fn a_built_in_file_stands_in_only_for_its_own_path_where_nothing_is() {
        let test = |path: &str| {
            let mut path = PathBuf::from(path);
            let line = stand_in(&mut path, "prompts.eval");
            (path.to_str().unwrap().to_string(), line)
        };
        // Tests run in the folder of the package, where the files are.
        let there = "configs/tiny/prompts_test.jsonl";
        assert_eq!(test(there), (there.into(), None));
        for other in ["tiny/prompts_test.jsonl", "configs/tiny/prompts.jsonl", "/configs/tiny/prompts_test.jsonl", "x"]
        {
            assert_eq!(test(other), (other.into(), None));
        }
    }

    #[test]
    fn a_misspelt_built_in_file_is_named_with_the_nearest() {
        let e = text(Path::new("built-in:tiny/prompt_test.jsonl")).unwrap_err().to_string();
        assert_eq!(e, "no file 'tiny/prompt_test.jsonl' is built in; did you mean 'tiny/prompts_test.jsonl'?");
        assert!(is_named(Path::new("built-in:x")) && !is_named(Path::new("a/built-in:x")));
    }
}
