//! GGUF, the file format of llama.cpp (`docs/gguf.md` of ggml), versions 2 and 3: little-endian, header and data in one file.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use safetensors::Dtype;

use super::entry::{Entry, Stored};
use crate::device::{Blocks, MappedFile};
use crate::io::short;

/// How a file begins.
const MAGIC: &[u8] = b"GGUF";
/// Bytes that tensors begin at multiples of, unless the file says otherwise.
const ALIGNMENT: u64 = 32;
/// Most axes of a tensor.
const MOST_AXES: u32 = 4;
/// Arrays of arrays, at most.
const DEEPEST: usize = 4;
/// Key, followed by a tensor's name, of the shape that a tensor had before it was flattened to whole blocks.
const SHAPE: &str = "comfy.gguf.orig_shape.";

/// The tensors and the plain values of the header, by name.
type Contents = (BTreeMap<String, Entry>, BTreeMap<String, String>);

/// Whether a file that begins with `start` is one.
pub(super) fn is_gguf(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// Where each tensor of `file` is, and the texts, numbers and truths of its header as text.
///
/// # Errors
/// Says what is wrong: another version, a header that leaves the file, a tensor of unknown type or outside of the file.
pub(super) fn read(file: &Arc<MappedFile>) -> Result<Contents> {
    let mut header = Reader { file, at: MAGIC.len() };
    let version = header.u32()?;
    ensure!((2..=3).contains(&version), "GGUF version {version}, expected 2 or 3");
    let (tensors, keys) = (header.u64()?, header.u64()?);
    let (mut metadata, mut shapes, mut alignment) = (BTreeMap::new(), BTreeMap::new(), ALIGNMENT);
    for _ in 0..keys {
        let key = header.text()?;
        let kind = header.u32()?;
        match header.value(kind, 0).with_context(|| format!("key '{}'", short(&key)))? {
            Value::Whole(n) if key == "general.alignment" => alignment = n,
            Value::Wholes(sizes) => {
                shapes.extend(key.strip_prefix(SHAPE).map(|name| (name.to_string(), sizes)));
            }
            Value::Whole(n) => drop(metadata.insert(key, n.to_string())),
            Value::Text(text) => drop(metadata.insert(key, text)),
            Value::Other => {}
        }
    }
    ensure!(alignment.is_power_of_two() && alignment <= 1 << 20, "general.alignment is {alignment}");

    struct Head {
        name: String,
        shape: Vec<usize>,
        stored: Stored,
        offset: u64,
    }
    let mut heads = Vec::new();
    for _ in 0..tensors {
        let name = header.text()?;
        let shown = || format!("tensor '{}'", short(&name));
        let axes = header.u32()?;
        ensure!(axes <= MOST_AXES, "{} has {axes} axes, expected at most {MOST_AXES}", shown());
        let sizes: Vec<u64> = (0..axes).map(|_| header.u64()).collect::<Result<_>>()?;
        // Innermost first there.
        let shape: Vec<usize> = sizes.iter().rev().map(|n| usize::try_from(*n)).collect::<Result<_, _>>()?;
        let kind = header.u32()?;
        let stored = stored_as(kind).with_context(|| {
            format!(
                "{} is of type {}, expected F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K or IQ4",
                shown(),
                kind_name(kind)
            )
        })?;
        heads.push(Head { offset: header.u64()?, stored, shape, name });
    }

    let data = (header.at as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for Head { name, shape, stored, offset } in heads {
        let outside = || format!("tensor '{}' {shape:?} does not lie in the file; it is damaged", short(&name));
        let size = size_of(stored, &shape).with_context(|| {
            format!("tensor '{}' {shape:?} is not made of whole blocks of {}", short(&name), stored.name())
        })?;
        let start = data.checked_add(offset).and_then(|s| usize::try_from(s).ok()).with_context(outside)?;
        let end = start.checked_add(size).filter(|end| *end <= file.len()).with_context(outside)?;
        let entry = Entry::new(file, start..end, stored, &shape);
        let entry = match shapes.get(&name) {
            Some(own) => {
                let own: Vec<usize> = own.iter().map(|n| *n as usize).collect();
                let fits = size_of(stored, &own) == Some(size);
                ensure!(fits, "key '{SHAPE}{}' is {own:?}, expected whole blocks of {shape:?}", short(&name));
                entry.reshaped(&own)
            }
            None => entry,
        };
        if tensors.insert(name.clone(), entry).is_some() {
            bail!("tensor '{}' is there twice", short(&name));
        }
    }
    Ok((tensors, metadata))
}

/// Bytes of a tensor, if its rows are whole blocks and the numbers stay within reason.
fn size_of(stored: Stored, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n))?;
    match stored {
        Stored::Plain(dtype) => elements.checked_mul(dtype.bitsize() / 8),
        Stored::Blocks(blocks) => {
            let row = shape.last().copied().unwrap_or(1);
            row.is_multiple_of(blocks.elements()).then_some(())?;
            (elements / blocks.elements()).checked_mul(blocks.bytes())
        }
    }
}

/// The types of `enum ggml_type` that are read.
fn stored_as(kind: u32) -> Option<Stored> {
    Some(match kind {
        0 => Stored::Plain(Dtype::F32),
        1 => Stored::Plain(Dtype::F16),
        2 => Stored::Blocks(Blocks::Q4_0),
        3 => Stored::Blocks(Blocks::Q4_1),
        6 => Stored::Blocks(Blocks::Q5_0),
        7 => Stored::Blocks(Blocks::Q5_1),
        8 => Stored::Blocks(Blocks::Q8_0),
        10 => Stored::Blocks(Blocks::Q2K),
        11 => Stored::Blocks(Blocks::Q3K),
        12 => Stored::Blocks(Blocks::Q4K),
        13 => Stored::Blocks(Blocks::Q5K),
        14 => Stored::Blocks(Blocks::Q6K),
        20 => Stored::Blocks(Blocks::Iq4Nl),
        23 => Stored::Blocks(Blocks::Iq4Xs),
        24 => Stored::Plain(Dtype::I8),
        25 => Stored::Plain(Dtype::I16),
        26 => Stored::Plain(Dtype::I32),
        27 => Stored::Plain(Dtype::I64),
        28 => Stored::Plain(Dtype::F64),
        30 => Stored::Plain(Dtype::BF16),
        _ => return None,
    })
}

/// The name of a type that is not read.
fn kind_name(kind: u32) -> String {
    const NAMES: [(u32, &str); 12] = [
        (9, "Q8_1"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
    ];
    NAMES.iter().find(|(k, _)| *k == kind).map_or_else(|| format!("number {kind}"), |(_, name)| name.to_string())
}

/// What a key of the header says.
enum Value {
    Whole(u64),
    Wholes(Vec<u64>),
    Text(String),
    /// What nothing is made of.
    Other,
}

/// The header from some byte on.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn bytes(&mut self, count: u64) -> Result<&[u8]> {
        let end =
            usize::try_from(count).ok().and_then(|n| self.at.checked_add(n)).filter(|end| *end <= self.file.len());
        let Some(end) = end else {
            bail!("the header ends with the file, after {} bytes; it is damaged or cut off", self.file.len());
        };
        let bytes = &self.file[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes(4)?.try_into()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes(8)?.try_into()?))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u64()?;
        Ok(String::from_utf8_lossy(self.bytes(length)?).into_owned())
    }

    /// The value of type `kind`, inside `depth` arrays.
    fn value(&mut self, kind: u32, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::Whole(u64::from(self.bytes(1)?[0])),
            2 => Value::Whole(u64::from(u16::from_le_bytes(self.bytes(2)?.try_into()?))),
            4 => Value::Whole(u64::from(self.u32()?)),
            10 => Value::Whole(self.u64()?),
            5 => u64::try_from(i32::from_le_bytes(self.bytes(4)?.try_into()?)).map_or(Value::Other, Value::Whole),
            11 => u64::try_from(i64::from_le_bytes(self.bytes(8)?.try_into()?)).map_or(Value::Other, Value::Whole),
            1 | 7 => self.bytes(1).map(|_| Value::Other)?,
            3 => self.bytes(2).map(|_| Value::Other)?,
            6 => self.bytes(4).map(|_| Value::Other)?,
            12 => self.bytes(8).map(|_| Value::Other)?,
            8 => Value::Text(self.text()?),
            9 => {
                ensure!(depth < DEEPEST, "arrays within arrays, {DEEPEST} deep");
                let (of, count) = (self.u32()?, self.u64()?);
                let mut wholes = Vec::new();
                for _ in 0..count {
                    match self.value(of, depth + 1)? {
                        // More than a shape has is of no interest.
                        Value::Whole(n) if wholes.len() < 8 => wholes.push(n),
                        _ => {}
                    }
                }
                Value::Wholes(wholes)
            }
            _ => bail!("values of type {kind} are unknown"),
        })
    }
}
