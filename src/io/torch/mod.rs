//! Files of PyTorch's `torch.save`: a pickle that says what tensors there are, and the numbers, mapped where they lie. Two formats:
//! a zip archive (`torch/serialization.py`, since 1.6) and pickles that follow one another (before, and still on request). Only
//! tensors are taken out of the pickle; nothing else in it is built, and no code is run.

mod archive;
mod legacy;
mod tensor;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, bail};
use safetensors::Dtype;

use super::entry::Entry;
use super::pickle::{Pickle, Value};
use crate::device::MappedFile;
use crate::io::short;

/// Where the numbers of each storage lie in the file.
type Storages = HashMap<String, Range<usize>>;

/// Keys under which a checkpoint of more than a model keeps the model's tensors, the likelier first.
const NESTED: [&str; 2] = ["state_dict", "model"];
/// What is put before every name by `DataParallel`.
const WRAPPER: &str = "module.";

/// What a file holds, by name.
#[derive(Default)]
pub(super) struct Contents {
    pub tensors: BTreeMap<String, Entry>,
    /// What stands in the place of a tensor, in words.
    pub others: BTreeMap<String, String>,
    /// Texts, numbers and truths beside the tensors.
    pub metadata: BTreeMap<String, String>,
}

/// Whether a file that begins with `start` is one, as far as can be told.
pub(super) fn is_torch(start: &[u8]) -> bool {
    archive::is_zip(start) || legacy::is_pickle(start)
}

/// The tensors of `file`.
///
/// # Errors
/// Says what is wrong: damage, another byte order, or no tensors where a model has them, with the name of what is there instead.
pub(super) fn read(file: &Arc<MappedFile>) -> Result<Contents> {
    let (pickle, storages) = if archive::is_zip(file) { archive::read(file)? } else { legacy::read(file)? };
    let top = pickle.root();
    if top.entries().is_none() {
        bail!("the file's object is {}, expected a dict of tensors{}", top.describe(), advice(top));
    }
    let nested = NESTED.iter().find_map(|key| top.get(key).filter(|v| v.entries().is_some()));
    let mut contents = Contents::default();
    let mut views = tensor::Views::new(file, &storages);
    for (key, value) in nested.unwrap_or(top).entries().into_iter().flatten() {
        let Some(name) = key.as_str() else { continue };
        let name = name.strip_prefix(WRAPPER).unwrap_or(name);
        // A name that is there twice counts the last time.
        contents.tensors.remove(name);
        contents.others.remove(name);
        match views.tensor(name, value)? {
            Ok(entry) => drop(contents.tensors.insert(name.to_string(), entry)),
            Err(words) => drop(contents.others.insert(name.to_string(), words)),
        }
    }
    if contents.tensors.is_empty()
        && let Some((name, value)) =
            nested.unwrap_or(top).entries().and_then(|mut all| all.find(|(_, v)| v.call().is_some()))
    {
        let name = short(name.as_str().unwrap_or_default());
        bail!("there are no tensors; '{name}' is {}{}", value.describe(), advice(value));
    }
    let plain = top.entries().into_iter().flatten().filter_map(|(key, value)| Some((key.as_str()?, plain(value)?)));
    contents.metadata.extend(plain.map(|(key, value)| (key.to_string(), value)));
    Ok(contents)
}

/// What to do about an object that only code could make.
fn advice(value: Value) -> &'static str {
    if value.call().is_none() {
        return "";
    }
    "; code in a file is never run: save the model's state_dict()"
}

/// A plain value as text, if it is one.
fn plain(value: Value) -> Option<String> {
    let text = value.as_str().map(|text| short(text).into_owned());
    let text = text.or_else(|| value.as_int().map(|n| n.to_string()));
    text.or_else(|| value.as_f64().map(|n| n.to_string())).or_else(|| value.as_bool().map(|b| b.to_string()))
}

/// The type of the numbers in a storage of class `torch.<name>`.
fn dtype_of(class: Value) -> Option<Dtype> {
    let ("torch", name) = class.as_global()? else { return None };
    Some(match name {
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "DoubleStorage" => Dtype::F64,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

/// A storage as a pickle refers to it.
struct Reference<'p> {
    class: Value<'p>,
    key: &'p str,
    /// Where a part of a storage begins, in elements: before 0.4 tensors could share one that way.
    start: usize,
}

impl<'p> Reference<'p> {
    /// The storage that `value` refers to, wherever it was when it was saved.
    fn of(value: Value<'p>) -> Option<Self> {
        let mut parts = value.as_persistent()?.items()?;
        let is_storage = parts.next()?.as_str() == Some("storage");
        let (class, key) = (parts.next()?, parts.next()?.as_str()?);
        // The device and the number of elements.
        let mut rest = parts.skip(2);
        let start = match rest.next() {
            Some(part) if !part.is_none() => part.items()?.nth(1)?.as_usize()?,
            _ => 0,
        };
        is_storage.then_some(Self { class, key, start })
    }
}

/// A pickle that has to be all there is.
fn only<'a>(bytes: &'a [u8], what: &str) -> Result<Pickle<'a>> {
    let (pickle, length) = Pickle::read(bytes)?;
    if length != bytes.len() {
        bail!("{what} goes on after its end; damaged");
    }
    Ok(pickle)
}
