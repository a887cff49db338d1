//! What is wrong with a safetensors file, in the words of someone who has the file in front of them: the library
//! only names the kind of fault, so the header is read once more to find the tensor.

use safetensors::{Dtype, SafeTensorError};
use serde_json::Value;

/// Longest tensor name that is quoted whole: in a damaged header a name can be anything.
const LONGEST_NAME: usize = 120;

/// Explains why the library refused the file that holds `bytes` (8 at least).
pub(super) fn explain(bytes: &[u8], error: &SafeTensorError) -> String {
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("checked: at least 8 bytes"));
    let Some(text) = usize::try_from(header).ok().and_then(|n| bytes.get(8..n.checked_add(8)?)) else {
        return format!("the header claims {header} bytes, the file has {}; truncated or not safetensors", bytes.len());
    };
    let json: Value = match serde_json::from_slice(text) {
        Ok(json) => json,
        Err(e) => return format!("the header of {header} bytes is not JSON ({e}); damaged or not safetensors"),
    };
    let Value::Object(header) = &json else { return "the header is not a JSON object; not safetensors".into() };
    let mut spans = Vec::new();
    for (name, info) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        match span(info) {
            Ok((start, end)) => spans.push((start, end, name.as_str())),
            Err(fault) => return format!("tensor '{}' {fault}", short(name)),
        }
    }
    placement(spans, bytes.len() - 8 - text.len())
        .unwrap_or_else(|| format!("not a valid safetensors file: {}", short(&error.to_string())))
}

/// A name or message cut to a length that fits in a line.
pub(crate) fn short(name: &str) -> std::borrow::Cow<'_, str> {
    match name.char_indices().nth(LONGEST_NAME) {
        Some((end, _)) => format!("{}…", &name[..end]).into(),
        None => name.into(),
    }
}

/// The byte range of one tensor, or how its entry contradicts itself.
fn span(info: &Value) -> Result<(u64, u64), String> {
    let dtype = info["dtype"].as_str().ok_or("has no dtype")?;
    let parsed: Dtype = serde_json::from_value(info["dtype"].clone())
        .map_err(|_| format!("has dtype '{dtype}', which safetensors does not know"))?;
    let sizes: Option<Vec<u64>> = info["shape"].as_array().and_then(|s| s.iter().map(Value::as_u64).collect());
    let shape = sizes.ok_or("has no shape of whole numbers")?;
    let offsets: Option<Vec<u64>> = info["data_offsets"].as_array().and_then(|s| s.iter().map(Value::as_u64).collect());
    let Some([start, end]) = offsets.as_deref() else { return Err("has no data_offsets of two whole numbers".into()) };
    if end < start {
        return Err(format!("ends at byte {end}, before it starts at {start}"));
    }
    let bits = shape.iter().try_fold(parsed.bitsize() as u64, |n, side| n.checked_mul(*side));
    match bits {
        None => Err(format!("has the impossible shape {shape:?}")),
        Some(bits) if bits != (end - start).saturating_mul(8) => {
            Err(format!("is {dtype} {shape:?}, which takes {} bytes, but has {}", bits.div_ceil(8), end - start))
        }
        Some(_) => Ok((*start, *end)),
    }
}

/// Where the tensors do not follow one another from the start of the data to its end.
fn placement(mut spans: Vec<(u64, u64, &str)>, length: usize) -> Option<String> {
    spans.sort_unstable();
    let length = length as u64;
    if let Some((start, end, name)) = spans.iter().find(|s| s.1 > length) {
        let name = short(name);
        return Some(format!(
            "tensor '{name}' lies at bytes {start}..{end} of {length} bytes of data; truncated or damaged"
        ));
    }
    let (mut at, mut before) = (0, "the header");
    for (start, end, name) in spans {
        if start != at {
            let how = if start < at { "overlaps" } else { "leaves a gap after" };
            return Some(format!(
                "tensor '{}' at byte {start} {how} '{}', which ends at {at}",
                short(name),
                short(before)
            ));
        }
        (at, before) = (end, name);
    }
    (at < length).then(|| format!("{} bytes follow the last tensor; damaged", length - at))
}
