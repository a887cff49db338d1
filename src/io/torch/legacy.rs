//! The format before zip: pickles of a magic number, a version, facts about the machine, the object, and the keys of its
//! storages, then the storages in the order of the keys, each after its number of elements.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use super::{Reference, Storages, dtype_of};
use crate::io::pickle::Pickle;
use crate::io::short;

/// The number that a file begins with.
const MAGIC: i128 = 0x1950_A86A_20F9_469C_FC6C;
/// The version that there is.
const VERSION: i128 = 1001;

/// Whether a file begins as a pickle of protocol 2 or later does, and not as a safetensors file whose header happens to be
/// as long as those bytes say.
pub(super) fn is_pickle(start: &[u8]) -> bool {
    matches!(start, [0x80, 2..=5, ..]) && start.get(8) != Some(&b'{')
}

/// The pickle of the object, and where its storages are.
pub(super) fn read(file: &[u8]) -> Result<(Pickle<'_>, Storages)> {
    let mut at = 0;
    let mut next = |what: &str| {
        let (pickle, length) = Pickle::read(&file[at..]).with_context(|| format!("{what}, from byte {at}"))?;
        at += length;
        Ok::<_, anyhow::Error>((pickle, at))
    };
    let (magic, _) = next("the magic number")?;
    if magic.root().as_int() != Some(MAGIC) {
        bail!("a pickle, but not one of torch.save: it begins with what is {}", magic.root().describe());
    }
    let (version, _) = next("the version")?;
    ensure!(version.root().as_int() == Some(VERSION), "a version other than {VERSION}");
    let (machine, _) = next("the facts about the machine")?;
    let little = machine.root().get("little_endian").and_then(|v| v.as_bool());
    ensure!(little == Some(true), "written by a machine that is not little-endian");
    let (object, _) = next("the object")?;
    let (keys, mut at) = next("the keys of the storages")?;

    let mut sizes = HashMap::new();
    for reference in object.persistent().filter_map(Reference::of) {
        let class = reference.class;
        let dtype = dtype_of(class).with_context(|| format!("a storage is {}, which is not read", class.describe()))?;
        let size = dtype.bitsize() / 8;
        let before = sizes.insert(reference.key, size);
        ensure!(before.is_none_or(|b| b == size), "storage '{}' is of several types", short(reference.key));
    }
    let mut storages = Storages::new();
    for key in keys.root().items().context("the keys of the storages are no list")? {
        let key = key.as_str().context("a storage's key is no text")?;
        let outside = || format!("storage '{}' does not lie in the file; truncated or damaged", short(key));
        let size = sizes.get(key).with_context(|| format!("storage '{}' is of no tensor", short(key)))?;
        let count = file.get(at..).and_then(|rest| rest.first_chunk()).with_context(outside)?;
        let start = at + count.len();
        let length = usize::try_from(u64::from_le_bytes(*count)).ok().and_then(|n| n.checked_mul(*size));
        at = length.and_then(|n| n.checked_add(start)).filter(|end| *end <= file.len()).with_context(outside)?;
        storages.insert(key.to_string(), start..at);
    }
    Ok((object, storages))
}
