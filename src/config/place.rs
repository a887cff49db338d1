//! Where a config is that a user names: a file, or in the program.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::published::Published;
use super::{TrainConfig, overridden};
use crate::io::{built_in, nearest, read};
use crate::telemetry::say;

/// Where a config is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file.
    File(PathBuf),
    /// In the program.
    BuiltIn(Published),
}

impl Place {
    /// The file that `named` names, with `.toml` put after it or not; where there is none, the published config.
    ///
    /// # Errors
    /// If there is neither: says the nearest names of both.
    pub fn find(named: &Path) -> Result<Self> {
        let text = named.to_str().unwrap_or_default();
        let mut with_ending = named.as_os_str().to_owned();
        with_ending.push(".toml");
        let with_ending = PathBuf::from(with_ending);
        let published = Published::named(text);
        // A folder that happens to have the name is not what is meant.
        if named.exists() && !(named.is_dir() && published.is_some()) {
            return Ok(Self::File(named.to_path_buf()));
        }
        if with_ending.is_file() {
            return Ok(Self::File(with_ending));
        }
        if let Some(published) = published {
            return Ok(Self::BuiltIn(published));
        }
        bail!(
            "cannot read the config {}: No such file, and none of that name is built in (see 'engine configs'){}",
            named.display(),
            near(named)
        )
    }

    /// What it is called, without folder and ending.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            Self::BuiltIn(one) => one.name.rsplit('/').next().unwrap_or(one.name).to_string(),
        }
    }

    /// Reads it and applies overrides of the form `key.path=value`. Says so if it is a published one, or takes built-in prompts.
    ///
    /// # Errors
    /// One line naming the file and line, or the override, with the key, what was found, and the nearest valid name.
    pub fn load(&self, overrides: &[String]) -> Result<TrainConfig> {
        let text = match self {
            Self::File(path) => {
                read::text(path).with_context(|| format!("cannot read the config {}", path.display()))?
            }
            Self::BuiltIn(one) => one.text.to_string(),
        };
        let mut config = overridden(&self.to_string(), &text, overrides)?;
        if let Self::BuiltIn(one) = self {
            say(&format!(
                "config: there is no file of that name here; taken: '{0}', which is built in ('engine configs --print {0}' shows it)",
                one.name
            ));
        }
        let prompts = &mut config.prompts;
        for (path, key) in [(&mut prompts.train, "prompts.train"), (&mut prompts.eval, "prompts.eval")] {
            built_in::stand_in(path, key).iter().for_each(|line| say(line));
        }
        Ok(config)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::BuiltIn(one) => write!(f, "{} (built in)", one.name),
        }
    }
}

/// Words about the file beside `named`, and the published config, whose names are nearest.
fn near(named: &Path) -> String {
    let folder = named.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files: Vec<String> = files.filter_map(|f| f.file_name().into_string().ok()).collect();
    let name = named.file_name().unwrap_or_default().to_string_lossy();
    let file = nearest(&name, files.iter().map(String::as_str));
    match (file, Published::nearest(&named.to_string_lossy())) {
        (Some(file), None) => format!("; did you mean '{file}'?"),
        (None, Some(built_in)) => format!("; did you mean '{built_in}', which is built in?"),
        (Some(file), Some(built_in)) => format!("; did you mean '{file}'? (built in: '{built_in}')"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(named: &Path) -> String {
        Place::find(named).unwrap_err().to_string()
    }

    #[test]
    fn a_file_comes_before_a_published_config_and_a_folder_of_its_name_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("mine.toml"), "").unwrap();
        std::fs::create_dir(at("other")).unwrap();
        assert_eq!(Place::find(&at("mine.toml")).unwrap(), Place::File(at("mine.toml")));
        assert_eq!(Place::find(&at("mine")).unwrap(), Place::File(at("mine.toml")));
        assert_eq!(Place::find(&at("mine")).unwrap().name(), "mine");
        // It is there, and reading it says what is wrong with it.
        assert_eq!(Place::find(&at("other")).unwrap(), Place::File(at("other")));
        // Tests run in the folder of the package, where configs/tiny is a folder and ram_ocr is nothing.
        let built_in = Place::find(Path::new("ram_ocr")).unwrap();
        assert_eq!((built_in.name().as_str(), built_in.to_string().as_str()), ("ram_ocr", "ram_ocr (built in)"));
        assert_eq!(Place::find(Path::new("tiny/ram_jpeg.toml")).unwrap().name(), "ram_jpeg");
    }

    #[test]
    fn a_mistyped_name_is_told_the_nearest_of_both_kinds() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ram_ocr2.toml"), "").unwrap();
        let e = error(&folder.path().join("ram_orc2.toml"));
        assert!(e.ends_with("; did you mean 'ram_ocr2.toml'? (built in: 'ram_ocr')"), "{e}");
        let e = error(Path::new("ram_pikscore"));
        assert!(e.ends_with("; did you mean 'ram_pickscore', which is built in?"), "{e}");
        assert!(error(Path::new("something else")).ends_with("(see 'engine configs')"));
    }
}
