//! The values that protocols 0 and 1 write as text.

use std::borrow::Cow;

use super::Node;

/// Longest decimal number that 128 bits can surely hold.
const MOST_DIGITS: usize = 38;

/// A whole number in decimal digits, which Python 2 ends with an `L` where it is a long one.
pub(super) fn integer(line: &[u8]) -> Option<Node<'static>> {
    let digits = std::str::from_utf8(line.strip_suffix(b"L").unwrap_or(line)).ok()?.trim();
    match digits.parse() {
        Ok(value) => Some(Node::Int(value)),
        Err(_) => {
            let digits = digits.strip_prefix(['-', '+']).unwrap_or(digits);
            (digits.len() > MOST_DIGITS && digits.bytes().all(|b| b.is_ascii_digit())).then_some(Node::Large)
        }
    }
}

/// A whole number in as few bytes as it takes, lowest first, in two's complement.
pub(super) fn long(bytes: &[u8]) -> Node<'static> {
    if bytes.len() > 16 {
        return Node::Large;
    }
    let negative = bytes.last().is_some_and(|b| *b >= 0x80);
    let mut all = [if negative { 0xFF } else { 0 }; 16];
    all[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i128::from_le_bytes(all))
}

/// A number as Python prints it.
pub(super) fn float(line: &[u8]) -> Option<Node<'static>> {
    std::str::from_utf8(line).ok()?.trim().parse().ok().map(Node::Float)
}

/// A string of Python 2: a text if it can be one, bytes otherwise.
pub(super) fn string(bytes: Cow<'_, [u8]>) -> Node<'_> {
    match bytes {
        Cow::Borrowed(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Node::Text(text.into()),
            Err(_) => Node::Bytes(bytes.into()),
        },
        Cow::Owned(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Node::Text(text.into()),
            Err(e) => Node::Bytes(e.into_bytes().into()),
        },
    }
}

/// A string of Python 2 in quotes, with escapes.
pub(super) fn quoted(line: &[u8]) -> Option<Node<'_>> {
    let line = line.trim_ascii();
    let (first, last) = (*line.first()?, *line.last()?);
    if line.len() < 2 || first != last || !matches!(first, b'\'' | b'"') {
        return None;
    }
    let inner = &line[1..line.len() - 1];
    if !inner.contains(&b'\\') {
        return Some(string(inner.into()));
    }
    let (mut out, mut at) = (Vec::new(), 0);
    while let Some(byte) = inner.get(at) {
        at += 1;
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        let escaped = *inner.get(at)?;
        at += 1;
        let byte = match escaped {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'a' => 7,
            b'b' => 8,
            b'v' => 11,
            b'f' => 12,
            b'x' => {
                at += 2;
                u8::try_from(digits(inner.get(at - 2..at)?, 16)?).ok()?
            }
            b'0'..=b'7' => {
                let count = inner[at..].iter().take(2).take_while(|b| matches!(b, b'0'..=b'7')).count();
                at += count;
                // As in Python, the ninth bit is lost.
                digits(&inner[at - count - 1..at], 8)? as u8
            }
            b'\\' | b'\'' | b'"' => escaped,
            // What is no escape stays as it is.
            _ => {
                out.push(b'\\');
                escaped
            }
        };
        out.push(byte);
    }
    Some(string(out.into()))
}

/// A text as Latin-1, in which `\u` and `\U` escape what that cannot say. Halves of surrogate pairs, which no text can hold, are
/// replaced.
pub(super) fn raw_unicode(line: &[u8]) -> Option<Node<'_>> {
    if line.is_ascii() && !line.contains(&b'\\') {
        return std::str::from_utf8(line).ok().map(|text| Node::Text(text.into()));
    }
    let (mut out, mut at) = (String::new(), 0);
    while let Some(byte) = line.get(at) {
        at += 1;
        let length = match (byte, line.get(at)) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                out.push(char::from(*byte));
                continue;
            }
        };
        let code = digits(line.get(at + 1..at + 1 + length)?, 16)?;
        at += 1 + length;
        out.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
    }
    Some(Node::Text(out.into()))
}

fn digits(bytes: &[u8], radix: u32) -> Option<u32> {
    bytes.iter().try_fold(0, |n: u32, b| Some(n.wrapping_mul(radix) | char::from(*b).to_digit(radix)?))
}
