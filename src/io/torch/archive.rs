//! The zip archive: `<name>/data.pkl`, and the numbers of the storage `key` in `<name>/data/<key>`, neither compressed.

use std::io::Cursor;
use std::ops::Range;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::{Storages, only};
use crate::io::pickle::Pickle;
use crate::io::short;

/// What the pickle is called, in the only folder of the archive.
const PICKLE: &str = "/data.pkl";

pub(super) fn is_zip(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04")
}

/// The pickle of an archive, and where its storages are.
pub(super) fn read(file: &[u8]) -> Result<(Pickle<'_>, Storages)> {
    let mut archive = ZipArchive::new(Cursor::new(file))
        .map_err(|e| anyhow!("a zip archive that ends too early or is damaged ({})", short(&e.to_string())))?;
    let entries: Vec<Named> = (0..archive.len()).map(|i| entry(&mut archive, i, file.len())).collect::<Result<_>>()?;
    let folder = entries.iter().find_map(|(name, _)| name.strip_suffix(PICKLE));
    let folder = folder.context("a zip archive without an entry that ends in /data.pkl: not a file of torch.save")?;
    let inside = |name: &str| name.strip_prefix(folder).and_then(|name| name.strip_prefix('/')).map(str::to_string);
    if entries.iter().any(|(name, _)| inside(name).as_deref() == Some("constants.pkl")) {
        bail!("a TorchScript archive, which holds a program; expected tensors alone, as torch.save(state_dict) writes");
    }
    let (mut pickle, mut storages) = (None, Storages::new());
    for (name, bytes) in &entries {
        let Some(name) = inside(name) else { continue };
        match (name.as_str(), name.strip_prefix("data/")) {
            ("data.pkl", _) => pickle = Some(bytes.clone().map_err(Error::msg)?),
            ("byteorder", _) => {
                let order = &file[bytes.clone().map_err(Error::msg)?];
                ensure!(order == b"little", "byte order '{}', expected 'little'", order.escape_ascii());
            }
            (_, Some(key)) => drop(storages.insert(key.to_string(), bytes.clone().map_err(Error::msg)?)),
            _ => {}
        }
    }
    let pickle = only(&file[pickle.context("no data.pkl")?], PICKLE)?;
    Ok((pickle, storages))
}

/// Name and place of an entry, or why it cannot be used where it lies.
type Named = (String, Result<Range<usize>, String>);

/// The entry `i`.
fn entry(archive: &mut ZipArchive<Cursor<&[u8]>>, i: usize, length: usize) -> Result<Named> {
    let damaged = |e: ZipError| anyhow!("entry {i} of the zip archive is damaged ({})", short(&e.to_string()));
    let entry = archive.by_index_raw(i).map_err(damaged)?;
    let name = entry.name().map_err(damaged)?.into_owned();
    if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
        let words = format!("entry '{}' is compressed or encrypted; torch.save stores it as it is", short(&name));
        return Ok((name, Err(words)));
    }
    let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
    let end = start.zip(usize::try_from(entry.size()).ok()).and_then(|(start, size)| start.checked_add(size));
    let bytes = match (start, end) {
        (Some(start), Some(end)) if end <= length && entry.size() == entry.compressed_size() => Ok(start..end),
        _ => Err(format!("entry '{}' does not lie in the file; damaged", short(&name))),
    };
    Ok((name, bytes))
}
