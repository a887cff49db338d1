//! Takes the tensors a model expects out of a file, checking name, shape, type and content, and reports
//! everything that is wrong in one go before anything runs.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use half::{bf16, f16};
use rayon::prelude::*;

use super::damage::short;
use super::{Entry, TensorFile, nearest};
use crate::device::{DType, Device, Precision, Tensor, Wide};

/// How many problems are listed before the rest is only counted.
const LISTED: usize = 5;

/// A tensor that is not as expected.
enum Problem {
    Missing(String, Vec<usize>),
    Unexpected(String),
    Other(String),
}

/// One pass over a component's file.
pub struct Loader<'a> {
    file: &'a TensorFile,
    taken: RefCell<BTreeSet<String>>,
    problems: RefCell<Vec<Problem>>,
    ignored: &'a [&'a str],
    device: Device,
    precision: Precision,
}

impl<'a> Loader<'a> {
    /// A loader of `file` to `device`. Tensors that contain one of `ignored` in their name may be left over.
    pub fn new(file: &'a TensorFile, ignored: &'a [&'a str], device: &Device) -> Self {
        let (taken, problems) = (RefCell::default(), RefCell::default());
        Self { file, taken, problems, ignored, device: device.clone(), precision: Precision::Stored }
    }

    /// Says what matrices are to be multiplied in.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// What stands for a tensor that is in no file: a matrix in half precision.
    fn outline(&self, shape: &[usize]) -> Tensor {
        let dtype = if shape.len() < 2 { DType::F32 } else { DType::Bf16 };
        match &self.device {
            Device::Gpu(_) if self.device.is_plan() => Tensor::scratch_of(&self.device, dtype, shape),
            Device::Plan(ledger) => Tensor::planned(ledger, dtype, shape),
            device if self.file.is_random() => made_up(device, dtype, shape),
            _ => Tensor::planned(&Arc::default(), dtype, shape),
        }
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
        if self.file.outlined().is_some() {
            let path = self.file.path().display();
            let fits = self.device.is_plan() || self.file.is_random();
            ensure!(fits, "{path}: there are only shapes, which are for --dry-run --device plan:CHIP");
            return Ok(());
        }
        let taken = self.taken.into_inner();
        let mut problems = self.problems.into_inner();
        let unexpected =
            self.file.names().filter(|n| !taken.contains(*n) && !self.ignored.iter().any(|i| n.contains(i)));
        problems.extend(unexpected.map(|n| Problem::Unexpected(n.to_string())));
        if problems.is_empty() && !self.device.is_plan() {
            let names: Vec<&String> = taken.iter().collect();
            // What is rounded to f16 must be in its range.
            let most = if self.precision == Precision::Half(DType::F16) { f16::MAX.to_f32() } else { f32::MAX };
            problems = names
                .par_iter()
                .filter_map(|name| {
                    let entry = self.file.entry(name)?;
                    if let Some((at, found)) = entry.first_non_finite() {
                        return Some(Problem::Other(format!("tensor '{name}' holds {found} at element {at}")));
                    }
                    let (at, found) = entry.first_beyond(most).filter(|_| entry.shape().len() > 1)?;
                    Some(Problem::Other(format!(
                        "tensor '{name}' holds {found} at element {at}, and f16 ends at 65504; bf16 and f32 do not"
                    )))
                })
                .collect();
        }
        if problems.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> =
            problems.iter().take(LISTED).map(|p| describe(p, &problems, self.file, &taken)).collect();
        let more = match problems.len() - lines.len() {
            0 => String::new(),
            n => format!("; and {n} more"),
        };
        bail!("{}: {}{more}", self.file.path().display(), lines.join("; "))
    }
}

/// Numbers small enough to stay in range through all layers of a network, in single precision or bf16.
fn made_up(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    let values = (0..shape.iter().product::<usize>()).map(|i| (i % 251) as f32 * 2e-4 - 2.5e-2);
    let bytes: Vec<u8> = match dtype {
        DType::F32 => values.flat_map(f32::to_le_bytes).collect(),
        _ => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
    };
    Tensor::from_raw(device, dtype, 1.0, &bytes, shape)
}

/// The words for one problem. A misspelt name is sought among the names without a partner first: they differ by a
/// spelling, where those of other layers differ by a number.
fn describe(problem: &Problem, all: &[Problem], file: &TensorFile, expected: &BTreeSet<String>) -> String {
    match problem {
        Problem::Other(text) => text.clone(),
        Problem::Missing(name, shape) => {
            let alone = all.iter().filter_map(|p| if let Problem::Unexpected(n) = p { Some(n.as_str()) } else { None });
            let hint = nearest(name, alone).or_else(|| nearest(name, file.names()));
            let hint = hint.map(|n| format!(", the nearest in the file is '{}'", short(n))).unwrap_or_default();
            format!("missing tensor '{name}' {shape:?}{hint}")
        }
        Problem::Unexpected(name) => {
            let alone = all.iter().filter_map(|p| if let Problem::Missing(n, _) = p { Some(n.as_str()) } else { None });
            let hint = nearest(name, alone).or_else(|| nearest(name, expected.iter().map(String::as_str)));
            let hint = hint.map(|n| format!(", the nearest expected is '{n}'")).unwrap_or_default();
            format!("unexpected tensor '{}'{hint}", short(name))
        }
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
        let file = self.loader.file;
        file.outlined().is_some_and(|with| with.contains(&name)) || file.entry(&self.path(name)).is_some()
    }

    /// The shape of the tensor `name` in the file, for networks whose sizes are those of their tensors; of one that is not
    /// there, has other axes or is empty, ones.
    pub fn shape<const N: usize>(&self, name: &str) -> [usize; N] {
        let entry = self.loader.file.entry(&self.path(name));
        let shape = entry.and_then(|e| e.shape().try_into().ok());
        shape.filter(|shape: &[usize; N]| !shape.contains(&0)).unwrap_or([1; N])
    }

    /// What matrices are to be multiplied in.
    pub fn precision(&self) -> Precision {
        self.loader.precision
    }

    /// How matrices are to be multiplied if in single precision whatever their type.
    pub fn wide(&self) -> Option<Wide> {
        match self.loader.precision {
            Precision::Wide(wide) => Some(wide),
            Precision::Stored | Precision::Half(_) => None,
        }
    }

    /// The tensor `name` with exactly `shape`, decoded if it is stored in blocks. A problem is kept for [`Loader::finish`];
    /// what is returned then stands for the tensor and has no content.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Tensor {
        let stored = self.stored(name, shape);
        match (stored.dtype(), &self.loader.device) {
            (DType::Blocks(_), device) if device.is_plan() => stored.scratch_like(shape),
            (DType::Blocks(_), device) => {
                let values = self.loader.file.entry(&self.path(name)).and_then(Entry::to_f32);
                Tensor::from_slice(device, &values.expect("blocks are numbers"), shape)
            }
            _ => stored,
        }
    }

    /// As [`Scope::tensor`], but as it is stored, for what is decoded where it is used.
    pub fn stored(&self, name: &str, shape: &[usize]) -> Tensor {
        if self.loader.file.outlined().is_some() {
            return self.loader.outline(shape);
        }
        let path = self.path(name);
        let file = self.loader.file;
        let problem = match file.entry(&path) {
            None if file.other(&path).is_some() => {
                let other = file.other(&path).unwrap_or_default();
                Problem::Other(format!("'{path}' is {other}, expected a tensor"))
            }
            None => Problem::Missing(path.clone(), shape.to_vec()),
            Some(entry) if entry.shape() != shape => {
                Problem::Other(format!("tensor '{path}' has shape {:?}, the config asks for {shape:?}", entry.shape()))
            }
            Some(entry) => match entry.tensor(&self.loader.device) {
                None => Problem::Other(format!(
                    "tensor '{path}' is {}, expected F32, F16 or BF16, or fp8 or the blocks of a GGUF",
                    entry.stored().name()
                )),
                Some(tensor) => {
                    self.loader.taken.borrow_mut().insert(path);
                    return tensor;
                }
            },
        };
        self.loader.taken.borrow_mut().insert(path);
        self.loader.problems.borrow_mut().push(problem);
        Tensor::planned(&Arc::default(), DType::F32, shape)
    }
}
