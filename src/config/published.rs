//! The published configs, which are built into the program.

use crate::io::built_in::FILES;

/// What the files of configs end in.
const ENDING: &str = ".toml";

/// A published config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its path under configs/ without the ending, such as `tiny/ram_geneval`.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
}

impl Published {
    /// All of them, in the order of names.
    pub fn all() -> impl Iterator<Item = Self> {
        FILES.iter().filter_map(|(file, text)| Some(Self { name: file.strip_suffix(ENDING)?, text }))
    }

    /// The one that `named` names: with or without `.toml`, with or without the folder configs/.
    pub fn named(named: &str) -> Option<Self> {
        let name = plain(named);
        Self::all().find(|one| one.name == name)
    }

    /// The name nearest to `named`, also if only the last part of it is near: first of all one whose last part it is.
    pub fn nearest(named: &str) -> Option<&'static str> {
        let last = |name: &'static str| name.rsplit('/').next().unwrap_or(name);
        let names = || Self::all().map(|one| one.name);
        let name = plain(named);
        let ends_in = |part: &str| names().find(|name| last(name) == part);
        let whole = ends_in(name).or_else(|| crate::io::nearest(name, names()));
        whole.or_else(|| ends_in(crate::io::nearest(name.rsplit('/').next()?, names().map(last))?))
    }

    /// What it is for: the first sentence of its first comment.
    pub fn description(&self) -> String {
        let comment = self.text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
        let text = comment.collect::<Vec<_>>().join(" ");
        let end = text.find(". ").map_or(text.len(), |end| end + 1);
        text[..end].to_string()
    }
}

/// `named` as names of published configs are written.
fn plain(named: &str) -> &str {
    let name = named.strip_prefix("configs/").unwrap_or(named);
    name.strip_suffix(ENDING).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_config_is_found_by_each_of_its_names_and_says_what_it_is_for() {
        for one in Published::all() {
            let names = [one.name.to_string(), format!("{}.toml", one.name), format!("configs/{}.toml", one.name)];
            assert!(names.iter().all(|name| Published::named(name) == Some(one)), "{names:?}");
            let description = one.description();
            assert!(description.len() > 20 && description.ends_with('.'), "{}: {description}", one.name);
            super::super::parse(one.name, one.text).unwrap().check().unwrap();
        }
        assert!(
            ["", "configs/", "ram", "ram_pickscore.tom", "/ram_pickscore.toml", "tiny"]
                .iter()
                .all(|name| Published::named(name).is_none())
        );
    }

    #[test]
    fn the_nearest_name_may_be_in_another_folder() {
        assert_eq!(Published::nearest("ram_pikscore.toml"), Some("ram_pickscore"));
        assert_eq!(Published::nearest("ram_jpeg"), Some("tiny/ram_jpeg"));
        assert_eq!(Published::nearest("/somewhere/tiny/ram_jpgg.toml"), Some("tiny/ram_jpeg"));
        assert_eq!(Published::nearest("something else"), None);
    }
}
