//! A run as a page: one HTML file with everything in it, which asks no network and needs no script for its curves and
//! pictures.
//!
//! A [`Run`] is what is in its folder; `series` are numbers over epochs, `chart` draws them as SVG, `pictures` cuts
//! sample grids apart, `keys` compares configurations, and `page` puts them together. Markup is made by templates that
//! escape whatever is put into them.

mod chart;
mod checks;
mod gallery;
mod keys;
mod page;
mod pictures;
pub mod plot;
mod rewards;
mod run;
mod series;
mod work;

use std::path::{Path, PathBuf};

use anyhow::Result;

pub use keys::{Difference, differences};
pub use pictures::{PROMPTS, Shown, Shows};
pub use run::{ABOUT, About, Axis, Run};
pub use series::written;

use crate::io::{output_file, write_atomic};

/// The page in a run's folder.
pub const FILE: &str = "report.html";

/// Writes the page about the runs in `folders`, compared if there are several, to `output`.
///
/// # Errors
/// Names the folder or file that is missing or not what was expected, or cannot be written.
pub fn write(folders: &[PathBuf], output: &Path) -> Result<()> {
    let runs = run::read_all(folders)?;
    let page = page::page(&runs);
    output_file(output)?;
    write_atomic(output, page.as_bytes())
}

/// Writes the page about the run in `folder` into that folder; gives its path.
///
/// # Errors
/// As [`write()`].
pub fn update(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(FILE);
    write(&[folder.to_path_buf()], &path)?;
    Ok(path)
}
