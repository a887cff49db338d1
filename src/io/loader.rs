//! Takes the tensors a model expects out of a file, checking name, shape, type and content, and reports
//! everything that is wrong in one go before anything runs.

use std::cell::RefCell;
use std::collections::BTreeSet;

use anyhow::{Result, bail};
use rayon::prelude::*;

use super::{TensorFile, did_you_mean};
use crate::device::Weight;

/// How many problems are listed before the rest is only counted.
const LISTED: usize = 5;

/// One pass over a component's file.
pub struct Loader<'a> {
    file: &'a TensorFile,
    taken: RefCell<BTreeSet<String>>,
    problems: RefCell<Vec<String>>,
    ignored: &'a [&'a str],
}

impl<'a> Loader<'a> {
    /// A loader over `file`. Tensors that contain one of `ignored` in their name may be left over.
    pub fn new(file: &'a TensorFile, ignored: &'a [&'a str]) -> Self {
        Self { file, taken: RefCell::default(), problems: RefCell::default(), ignored }
    }

    /// The scope of all names.
    pub fn root(&'a self) -> Scope<'a> {
        Scope { loader: self, prefix: String::new() }
    }

    /// Ends the pass.
    ///
    /// # Errors
    /// Lists tensors that were missing, had another shape or type, were not expected, or hold a value that is
    /// not finite.
    pub fn finish(self) -> Result<()> {
        let taken = self.taken.into_inner();
        let mut problems = self.problems.into_inner();
        let expected = || taken.iter().map(String::as_str);
        for name in self.file.names() {
            if !taken.contains(name) && !self.ignored.iter().any(|i| name.contains(i)) {
                let hint = did_you_mean(name, expected());
                problems.push(format!("unexpected tensor '{name}'{hint}"));
            }
        }
        if problems.is_empty() {
            let names: Vec<&String> = taken.iter().collect();
            problems = names
                .par_iter()
                .filter_map(|name| {
                    let weight = self.file.entry(name)?.weight()?;
                    let at = weight.elems().first_non_finite()?;
                    Some(format!("tensor '{name}' holds {} at element {at}", weight.elems().get(at)))
                })
                .collect();
        }
        if problems.is_empty() {
            return Ok(());
        }
        let more = problems.len().saturating_sub(LISTED);
        problems.truncate(LISTED);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        bail!("{}: {}{more}", self.file.path().display(), problems.join("; "))
    }
}

/// The tensors under one prefix.
#[derive(Clone)]
pub struct Scope<'a> {
    loader: &'a Loader<'a>,
    prefix: String,
}

impl Scope<'_> {
    /// The scope `name` inside this one.
    pub fn sub(&self, name: impl std::fmt::Display) -> Self {
        Self { loader: self.loader, prefix: self.path(&name.to_string()) }
    }

    /// The full name of the module this scope stands for.
    pub fn name(&self) -> &str {
        &self.prefix
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    /// Whether the file holds a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.loader.file.entry(&self.path(name)).is_some()
    }

    /// The tensor `name` with exactly `shape`. A problem is kept for [`Loader::finish`]; the weight that is
    /// returned then is empty and must not be used.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Weight {
        let path = self.path(name);
        let problem = match self.loader.file.entry(&path) {
            None => {
                let hint = did_you_mean(&path, self.loader.file.names());
                format!("missing tensor '{path}' {shape:?}{hint}")
            }
            Some(entry) if entry.shape() != shape => {
                format!("tensor '{path}' has shape {:?}, the config asks for {shape:?}", entry.shape())
            }
            Some(entry) => match entry.weight() {
                None => format!("tensor '{path}' is {}, expected F32, F16 or BF16", entry.dtype_name()),
                Some(weight) => {
                    self.loader.taken.borrow_mut().insert(path);
                    return weight;
                }
            },
        };
        self.loader.taken.borrow_mut().insert(path);
        self.loader.problems.borrow_mut().push(problem);
        Weight::owned(Vec::new(), vec![0; shape.len().max(1)])
    }
}
