//! Tensors as views of storages: mapped where their numbers follow one another, gathered where they do not.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result};
use safetensors::Dtype;

use super::{Reference, Storages, dtype_of};
use crate::device::MappedFile;
use crate::io::entry::{Entry, Stored};
use crate::io::pickle::Value;
use crate::io::short;

/// Most axes of a tensor in PyTorch.
const MOST_AXES: usize = 64;
/// Parameters within parameters, at most.
const DEEPEST: usize = 8;

/// Makes the tensors of one file.
pub(super) struct Views<'a> {
    file: &'a Arc<MappedFile>,
    storages: &'a Storages,
    /// Bytes that may still be gathered: a view that repeats its numbers could be of any size.
    left: usize,
}

/// What a pickle says of a tensor; sizes and steps outermost first, in elements.
struct View<'p> {
    storage: Value<'p>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
    /// Whether its numbers are others than those in the storage.
    changed: bool,
}

impl<'a> Views<'a> {
    pub(super) fn new(file: &'a Arc<MappedFile>, storages: &'a Storages) -> Self {
        Self { file, storages, left: file.len() }
    }

    /// The tensor `name`, or what `value` is instead.
    ///
    /// # Errors
    /// If it is a tensor that contradicts the file.
    pub(super) fn tensor(&mut self, name: &str, value: Value) -> Result<Result<Entry, String>> {
        let Some(view) = view_of(value) else { return Ok(Err(value.describe())) };
        let shown = || format!("tensor '{}'", short(name));
        let reference = Reference::of(view.storage).with_context(|| format!("{} has no storage; damaged", shown()))?;
        let Some(dtype) = dtype_of(reference.class) else {
            return Ok(Err(format!("a tensor of {}", reference.class.describe())));
        };
        if view.changed {
            return Ok(Err("a conjugated or negated view".into()));
        }
        let storage = self.storages.get(reference.key);
        let storage =
            storage.with_context(|| format!("{}: no storage '{}' in the file", shown(), short(reference.key)))?;
        let size = dtype.bitsize() / 8;
        let offset = view.offset.checked_add(reference.start);
        let outside = || format!("{} {:?} does not lie in its storage; damaged", shown(), view.shape);
        let end = offset.and_then(|offset| view.end(offset)).filter(|end| *end <= storage.len() / size);
        let (offset, _) = offset.zip(end).with_context(outside)?;
        let count = view.count().with_context(outside)?;
        let start = storage.start + offset * size;
        if view.is_contiguous() {
            let bytes = if count == 0 { storage.start..storage.start } else { start..start + count * size };
            return Ok(Ok(Entry::new(self.file, bytes, Stored::of(dtype), &view.shape)));
        }
        match count.checked_mul(size).and_then(|bytes| self.left.checked_sub(bytes)) {
            None => Ok(Err("a view that repeats more numbers than the file has".into())),
            Some(left) => {
                self.left = left;
                Ok(Ok(self.gather(&view, start..storage.end, dtype)))
            }
        }
    }

    /// The elements of a view in their order, in memory of their own.
    fn gather(&self, view: &View, storage: Range<usize>, dtype: Dtype) -> Entry {
        let (storage, size) = (&self.file[storage], dtype.bitsize() / 8);
        let count = view.count().expect("checked");
        let (mut bytes, mut index, mut at) = (Vec::with_capacity(count * size), vec![0; view.shape.len()], 0);
        for _ in 0..count {
            bytes.extend_from_slice(&storage[at * size..(at + 1) * size]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += view.strides[axis];
                if index[axis] < view.shape[axis] {
                    break;
                }
                at -= view.strides[axis] * view.shape[axis];
                index[axis] = 0;
            }
        }
        Entry::of_bytes(bytes, Stored::of(dtype), &view.shape)
    }
}

/// The tensor that `value` would be, as itself or as a parameter.
fn view_of(value: Value) -> Option<View> {
    let mut value = value;
    for _ in 0..DEEPEST {
        let (callable, mut args) = value.call()?;
        match callable.as_global()? {
            ("torch._utils", "_rebuild_parameter") => value = args.next()?,
            ("torch._utils", "_rebuild_tensor_v2") => {
                let (storage, offset) = (args.next()?, args.next()?.as_usize()?);
                let (shape, strides) = (sizes(args.next()?)?, sizes(args.next()?)?);
                // After whether it has a gradient, and hooks.
                let changes = args.nth(2).and_then(Value::entries);
                let changed = changes.is_some_and(|mut all| all.any(|(_, value)| value.as_bool() == Some(true)));
                return (shape.len() == strides.len()).then_some(View { storage, offset, shape, strides, changed });
            }
            _ => return None,
        }
    }
    None
}

fn sizes(value: Value) -> Option<Vec<usize>> {
    let items = value.items()?;
    (items.len() <= MOST_AXES).then(|| items.map(Value::as_usize).collect())?
}

impl View<'_> {
    /// How many elements it has.
    fn count(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n))
    }

    /// One past the last element that it has in its storage, if it begins at `offset`.
    fn end(&self, offset: usize) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let mut axes = self.shape.iter().zip(&self.strides);
        let last = axes.try_fold(offset, |last, (n, stride)| last.checked_add((n - 1).checked_mul(*stride)?))?;
        last.checked_add(1)
    }

    /// Whether its elements follow one another in their order.
    fn is_contiguous(&self) -> bool {
        let mut step = Some(1usize);
        let mut axes = self.shape.iter().zip(&self.strides).rev();
        self.shape.contains(&0)
            || axes.all(|(n, stride)| {
                let follows = *n == 1 || step == Some(*stride);
                step = step.and_then(|s| s.checked_mul(*n));
                follows
            })
    }
}
