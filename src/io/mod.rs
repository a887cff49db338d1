//! Files: mapped tensors, each checked before use, and what is written back. [`http`] is the way to other machines.

pub mod built_in;
mod damage;
mod entry;
pub mod folder;
mod gguf;
pub mod http;
pub mod hub;
pub mod image;
pub mod loader;
pub mod origins;
pub mod pickle;
pub mod read;
pub mod safetensors;
mod scaled;
mod torch;
pub mod write;

use std::path::Path;

use anyhow::{Result, bail};

pub(crate) use damage::short;
pub use entry::{Entry, Stored};
pub use loader::{Loader, Scope};
pub use read::read_json;
pub use safetensors::TensorFile;
pub use scaled::with_factors;
pub use write::{output_file, output_folder, write_atomic};

/// Fails unless `path` is an existing folder, saying what was looked for.
///
/// # Errors
/// Names the folder and what it was wanted for.
pub fn require_folder(path: &Path, what: &str) -> Result<()> {
    if !path.exists() {
        bail!("{what}: no such folder: {}", path.display());
    }
    if !path.is_dir() {
        bail!("{what}: {} is a file, expected a folder", path.display());
    }
    Ok(())
}

/// Fails unless `value` is a multiple of `step`, at least 1 and at most `most` of them.
///
/// # Errors
/// Names `what`, what was found, and the nearest value that works.
pub fn check_multiple(what: &str, value: usize, step: usize, most: usize) -> Result<()> {
    if value > 0 && value.is_multiple_of(step) && value / step <= most {
        return Ok(());
    }
    let (nearest, most) = ((value.saturating_add(step / 2) / step).clamp(1, most) * step, most * step);
    bail!("{what} is {value}, expected a multiple of {step} up to {most}; the nearest is {nearest}")
}

/// The name in `known` that is closest to `name`, if any is close enough to be a likely misspelling.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The edit distance is at least the difference of the lengths: most names need no more than a look.
    known
        .into_iter()
        .filter(|k| name.len().abs_diff(k.len()) * 3 <= name.len().max(k.len()))
        .map(|k| (strsim::damerau_levenshtein(name, k), k))
        .min()
        .filter(|(distance, k)| *distance * 3 <= name.len().max(k.len()))
        .map(|(_, k)| k)
}

/// `; did you mean 'x'?` for the nearest known name, or nothing.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, known).map(|n| format!("; did you mean '{n}'?")).unwrap_or_default()
}
