use anyhow::{Context, Result, ensure};

use crate::io::{TensorFile, short};

/// The shapes of a file's tensors, from which a network's sizes are read.
pub struct Sizes<'a>(pub &'a TensorFile);

impl Sizes<'_> {
    /// The shape of tensor `name`, of `N` axes, none of which is empty.
    ///
    /// # Errors
    /// Names the file, and the tensor that is missing or has another number of axes.
    pub fn of<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let path = self.0.path().display();
        let shape = self.0.entry(name).with_context(|| format!("{path}: missing tensor '{name}'"))?.shape();
        let fits = shape.len() == N && !shape.contains(&0);
        ensure!(fits, "{path}: tensor '{}' has shape {shape:?}, expected {N} axes", short(name));
        Ok(shape.try_into().expect("as many axes"))
    }

    /// How many modules there are under `prefix`, which are numbered from 0 on.
    pub fn count(&self, prefix: &str) -> usize {
        let number =
            |name: &str| name.strip_prefix(prefix)?.strip_prefix('.')?.split_once('.')?.0.parse::<usize>().ok();
        let found: std::collections::BTreeSet<usize> = self.0.names().filter_map(number).collect();
        // No more than are there, whatever numbers the names hold.
        found.iter().enumerate().take_while(|(i, n)| i == *n).count()
    }

    /// Fails for tensor `name` if its shape does not say what was `expected`.
    ///
    /// # Errors
    /// Names the file, the tensor and its shape.
    pub fn ensure(&self, holds: bool, name: &str, expected: &str) -> Result<()> {
        let (path, shape) =
            (self.0.path().display(), self.0.entry(name).map(|e| e.shape().to_vec()).unwrap_or_default());
        ensure!(holds, "{path}: tensor '{}' has shape {shape:?}, expected {expected}", short(name));
        Ok(())
    }
}
