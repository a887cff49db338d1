//! Writes GGUF files for tests.

/// A tensor: its name, its type's name, its shape (outermost first), its bytes.
pub type Written<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);

/// The number of a type in `enum ggml_type`.
fn number(dtype: &str) -> u32 {
    const TYPES: [(&str, u32); 15] = [
        ("F32", 0),
        ("F16", 1),
        ("Q4_0", 2),
        ("Q4_1", 3),
        ("Q5_0", 6),
        ("Q5_1", 7),
        ("Q8_0", 8),
        ("Q2_K", 10),
        ("Q3_K", 11),
        ("Q4_K", 12),
        ("Q5_K", 13),
        ("Q6_K", 14),
        ("IQ4_NL", 20),
        ("IQ4_XS", 23),
        ("BF16", 30),
    ];
    TYPES.iter().find(|(name, _)| *name == dtype).unwrap().1
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A file of version 3 with a few keys and these tensors.
pub fn file(tensors: &[Written]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(3u64.to_le_bytes());
    text(&mut out, "general.architecture");
    out.extend(8u32.to_le_bytes());
    text(&mut out, "sd3");
    text(&mut out, "general.alignment");
    out.extend(4u32.to_le_bytes());
    out.extend(64u32.to_le_bytes());
    // An array of texts, as tokenizers have them.
    text(&mut out, "tokenizer.ggml.tokens");
    out.extend(9u32.to_le_bytes());
    out.extend(8u32.to_le_bytes());
    out.extend(2u64.to_le_bytes());
    text(&mut out, "a");
    text(&mut out, "b");
    let mut offset = 0u64;
    for (name, dtype, shape, bytes) in tensors {
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|n| out.extend((*n as u64).to_le_bytes()));
        out.extend(number(dtype).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = (offset + bytes.len() as u64).next_multiple_of(64);
    }
    for (.., bytes) in tensors {
        out.resize(out.len().next_multiple_of(64), 0);
        out.extend(bytes);
    }
    out
}
