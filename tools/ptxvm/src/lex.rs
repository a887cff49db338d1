//! Text to tokens (PTX ISA 4.2 to 4.5): words keep their dots and `::`, comments are gone, lines are remembered.

use crate::error::Found;

/// One token.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// An identifier, a directive or an opcode with its modifiers: `%r1`, `.reg`, `ld.global.nc.v4.u32`, `%tid.x`.
    Word(String),
    /// An integer, sign apart.
    Int(u64),
    /// `0f3F800000`, or a decimal number with a point, as the bits of an f32 and of an f64.
    Float(u32, u64),
    /// What stands between quotes.
    Text(String),
    /// Any other character.
    Mark(char),
}

/// A token and its line, from 1.
pub type Spot = (Token, u32);

/// All tokens of a text, or the line and what is wrong there.
pub fn tokens(text: &str) -> Result<Vec<Spot>, (u32, String)> {
    let b = text.as_bytes();
    let (mut at, mut line, mut out) = (0, 1u32, Vec::new());
    while at < b.len() {
        let c = b[at];
        if c == b'\n' {
            line += 1;
            at += 1;
        } else if c.is_ascii_whitespace() {
            at += 1;
        } else if b[at..].starts_with(b"//") {
            while at < b.len() && b[at] != b'\n' {
                at += 1;
            }
        } else if b[at..].starts_with(b"/*") {
            let opened = line;
            at += 2;
            while !b[at..].starts_with(b"*/") {
                if at >= b.len() {
                    return Err((opened, "a comment that is not closed".into()));
                }
                line += u32::from(b[at] == b'\n');
                at += 1;
            }
            at += 2;
        } else if c == b'"' {
            let end = b[at + 1..].iter().position(|&c| c == b'"' || c == b'\n').map(|n| at + 1 + n);
            let end = end.filter(|&e| b[e] == b'"').ok_or((line, "a text that is not closed".to_string()))?;
            out.push((Token::Text(String::from_utf8_lossy(&b[at + 1..end]).into_owned()), line));
            at = end + 1;
        } else if c.is_ascii_digit() {
            let start = at;
            while at < b.len() && (b[at].is_ascii_alphanumeric() || b[at] == b'.' || exponent_sign(b, start, at)) {
                at += 1;
            }
            out.push((number(&text[start..at]).map_err(|e| (line, e))?, line));
        } else if starts_word(c) {
            let start = at;
            while at < b.len() && (in_word(b[at]) || pair(b, at)) {
                at += if pair(b, at) { 2 } else { 1 };
            }
            let word = &text[start..at];
            // `.reg.u32` is two words, `ld.global` one
            if word.starts_with('.') && word[1..].contains('.') {
                out.extend(word[1..].split('.').map(|w| (Token::Word(format!(".{w}")), line)));
            } else {
                out.push((Token::Word(word.to_string()), line));
            }
        } else if c.is_ascii() {
            out.push((Token::Mark(c as char), line));
            at += 1;
        } else {
            return Err((line, format!("the byte {c:#04x}, which PTX does not use")));
        }
    }
    Ok(out)
}

fn starts_word(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

fn in_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

/// `::` inside a word, as in `shared::cta`; a label ends in one colon.
fn pair(b: &[u8], at: usize) -> bool {
    b[at] == b':' && b.get(at + 1) == Some(&b':') && b.get(at + 2).is_some_and(u8::is_ascii_alphabetic)
}

/// `1.5e-3`, but not the minus of `0x1e-3`.
fn exponent_sign(b: &[u8], start: usize, at: usize) -> bool {
    matches!(b[at], b'+' | b'-') && matches!(b[at - 1], b'e' | b'E') && b[start..at].contains(&b'.')
}

fn number(s: &str) -> Found<Token> {
    let bad = || format!("`{s}`, expected a number");
    let bits = |digits: &str, n: usize| (digits.len() == n).then(|| u64::from_str_radix(digits, 16).ok()).flatten();
    if let Some(d) = s.strip_prefix("0f").or(s.strip_prefix("0F")) {
        let v = bits(d, 8).ok_or_else(bad)? as u32;
        return Ok(Token::Float(v, f64::from(f32::from_bits(v)).to_bits()));
    }
    if let Some(d) = s.strip_prefix("0d").or(s.strip_prefix("0D")) {
        let v = bits(d, 16).ok_or_else(bad)?;
        return Ok(Token::Float((f64::from_bits(v) as f32).to_bits(), v));
    }
    if s.contains('.') {
        let v: f64 = s.parse().map_err(|_| bad())?;
        return Ok(Token::Float((v as f32).to_bits(), v.to_bits()));
    }
    let s = s.trim_end_matches('U');
    let radix = |digits: &str, r| u64::from_str_radix(digits, r).map(Token::Int).map_err(|_| bad());
    match s.as_bytes() {
        [b'0', b'x' | b'X', ..] => radix(&s[2..], 16),
        [b'0', b'b' | b'B', ..] => radix(&s[2..], 2),
        [b'0', _, ..] => radix(&s[1..], 8),
        _ => radix(s, 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_dots_and_pairs_of_colons_and_labels_do_not() {
        let t = tokens("$L_1:\n @%p1 ld.shared::cta.v2.f32 {%f1, _}, [%r1+-4]; // x\n0f3F800000 0x10 1.5").unwrap();
        assert_eq!(t[0], (Token::Word("$L_1".into()), 1));
        assert_eq!(t[1], (Token::Mark(':'), 1));
        assert_eq!(t[4], (Token::Word("ld.shared::cta.v2.f32".into()), 2));
        let n = t.len();
        assert_eq!(t[n - 3].0, Token::Float(0x3F80_0000, 1f64.to_bits()));
        assert_eq!(t[n - 2].0, Token::Int(16));
        assert_eq!(t[n - 1].0, Token::Float(1.5f32.to_bits(), 1.5f64.to_bits()));
    }

    #[test]
    fn damage_is_refused_with_its_line() {
        assert_eq!(tokens("a\n/* b").unwrap_err().0, 2);
        assert_eq!(tokens("\n\n\"abc\n").unwrap_err().0, 3);
        assert!(tokens("0fzz").unwrap_err().1.contains("expected a number"));
        assert!(tokens("99999999999999999999").is_err());
    }
}
