//! Whether the character map of a T5 tokenizer holds what its reader relies on: SentencePiece writes a trie as a double
//! array (`Darts::DoubleArray`) and the texts it leads to, and the reader follows either wherever it points.

use anyhow::{Context, Result, ensure};

/// Whether a unit's node has a value.
fn has_leaf(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

/// The byte that leads to a unit's node, with a bit that is set for values.
fn label(unit: u32) -> u32 {
    unit & (1 << 31 | 0xFF)
}

/// From a unit's own place to where its children are, by exclusive or with their bytes.
fn offset(unit: u32) -> usize {
    ((unit >> 10) as usize) << ((unit & 1 << 9) >> 6)
}

/// Checks `precompiled_charsmap` of a `tokenizer.json`.
///
/// # Errors
/// If it is cut short or leads outside of itself.
pub(super) fn check(text: &str) -> Result<()> {
    let bytes = base64(text).context("it is not base64")?;
    let (size, rest) = bytes.split_first_chunk().context("it is empty")?;
    let size = u32::from_le_bytes(*size) as usize / 4 * 4;
    let (trie, texts) = rest.split_at_checked(size).context("it is cut short")?;
    let texts = std::str::from_utf8(texts).context("its texts are not UTF-8")?;
    let units: Vec<u32> = trie.chunks_exact(4).map(|u| u32::from_le_bytes(u.try_into().expect("four bytes"))).collect();
    let unit = |at: usize| units.get(at).copied().context("it leads outside of its trie");
    // All nodes that some text reaches, by where their children are.
    let start = offset(unit(0)?);
    let (mut seen, mut open) = (vec![false; units.len()], vec![start]);
    while let Some(node) = open.pop() {
        for byte in 1..=255 {
            let child = unit(node ^ byte as usize)?;
            if label(child) != byte {
                continue;
            }
            let node = node ^ byte as usize ^ offset(child);
            let value = unit(node)?;
            let text = (value & !(1 << 31)) as usize;
            ensure!(!has_leaf(child) || texts.is_char_boundary(text), "it leads outside of its texts");
            if !std::mem::replace(&mut seen[node], true) {
                open.push(node);
            }
        }
    }
    Ok(())
}

/// The bytes of padded base64; nothing if `text` is not that to the last bit, at which the reader would panic.
fn base64(text: &str) -> Option<Vec<u8>> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let body = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - body.len() > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(body.len() / 4 * 3 + 3);
    for four in body.as_bytes().chunks(4) {
        let bits = four.iter().try_fold(0, |bits, c| Some(bits << 6 | u32::from(value(*c)?)))?;
        let whole = (bits << (6 * (4 - four.len()))).to_be_bytes();
        let (bytes, unused) = whole[1..].split_at(four.len() - 1);
        if unused.iter().any(|bits| *bits != 0) {
            return None;
        }
        out.extend(bytes);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map with a trie of one block, in which `a` leads to `text`.
    fn map(text: u32, texts: &[u8]) -> Vec<u8> {
        let mut units = [0u32; 256];
        // The root's children begin at 0; `a` has a value, which is at its place with its offset of 1.
        let a = u32::from(b'a');
        units[a as usize] = 1 << 10 | 1 << 8 | a;
        units[a as usize ^ 1] = 1 << 31 | text;
        let units = units.iter().flat_map(|u| u.to_le_bytes());
        1024u32.to_le_bytes().into_iter().chain(units).chain(texts.iter().copied()).collect()
    }

    fn encoded(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let digit = |bits: u32, place: u32| char::from(DIGITS[(bits >> (18 - 6 * place) & 63) as usize]);
        let three = |three: &[u8]| {
            let bits = (0..3).fold(0, |bits, i| bits << 8 | u32::from(three.get(i).copied().unwrap_or(0)));
            let digits = (0..4).map(move |place| if place as usize <= three.len() { digit(bits, place) } else { '=' });
            digits.collect::<String>()
        };
        bytes.chunks(3).map(three).collect()
    }

    #[test]
    fn a_whole_map_is_accepted_and_one_that_leads_outside_of_itself_is_not() {
        for texts in ["bc\0", "bc", "ä\0"] {
            let bytes = map(0, texts.as_bytes());
            assert_eq!(base64(&encoded(&bytes)).unwrap(), bytes);
            check(&encoded(&bytes)).unwrap();
        }
        let shorter = map(0, b"bc\0")[..900].to_vec();
        let fewer = [&1020u32.to_le_bytes()[..], &map(0, b"bc\0")[4..]].concat();
        for (bytes, want) in [
            (map(4, b"bc\0"), "outside of its texts"),
            (map(1, "ä\0".as_bytes()), "outside of its texts"),
            (map(0, b"\xFF"), "not UTF-8"),
            (shorter, "cut short"),
            (fewer, "outside of its trie"),
            (vec![0; 4], "outside of its trie"),
            (vec![0; 3], "empty"),
        ] {
            let error = check(&encoded(&bytes)).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        for text in ["a*bc", "AAA", "AAAAA===", "AAB=", "AB==", "A=AA", "ä"] {
            assert_eq!(check(text).unwrap_err().to_string(), "it is not base64", "{text}");
        }
    }
}
