//! What open_clip does to a text before its tokenizer sees it: `ftfy.fix_text`, HTML entities, white space, lower case.
//! Of ftfy 6.3 there is everything but the repair of text that was decoded wrongly once, and entities in capitals.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use tokenizers::NormalizedString;

/// Characters that ftfy writes as several.
const LIGATURES: [(char, &str); 22] = [
    ('Ĳ', "IJ"),
    ('ĳ', "ij"),
    ('ŉ', "ʼn"),
    ('Ǳ', "DZ"),
    ('ǲ', "Dz"),
    ('ǳ', "dz"),
    ('Ǆ', "D\u{17D}"),
    ('ǅ', "D\u{17E}"),
    ('ǆ', "d\u{17E}"),
    ('Ǉ', "LJ"),
    ('ǈ', "Lj"),
    ('ǉ', "lj"),
    ('Ǌ', "NJ"),
    ('ǋ', "Nj"),
    ('ǌ', "nj"),
    ('ﬀ', "ff"),
    ('ﬁ', "fi"),
    ('ﬂ', "fl"),
    ('ﬃ', "ffi"),
    ('ﬄ', "ffl"),
    ('ﬅ', "ſt"),
    ('ﬆ', "st"),
];

/// What Windows has where Latin-1 has the controls from U+0080 on; `\0` where it has nothing.
const WINDOWS: [char; 32] = [
    '€', '\0', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\0', 'Ž', '\0', '\0', '‘', '’', '“', '”', '•',
    '–', '—', '˜', '™', 'š', '›', 'œ', '\0', 'ž', 'Ÿ',
];

/// An entity that nobody can mistake for text.
static ENTITY: LazyLock<Regex> = LazyLock::new(|| Regex::new("&#?[0-9A-Za-z]{1,24};").expect("a constant"));
/// Colours and the like of a terminal.
static ESCAPE: LazyLock<Regex> = LazyLock::new(|| Regex::new("\x1B\\[[0-9;]*[a-zA-Z]").expect("a constant"));

/// `text` as open_clip's tokenizer sees it.
pub(super) fn clean(text: &str) -> String {
    let fixed = fix(text);
    let unescaped = htmlize::unescape(htmlize::unescape(fixed).as_ref()).into_owned();
    unescaped.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// `ftfy.fix_text`, which goes on until nothing changes.
fn fix(text: &str) -> String {
    let has_markup = text.contains('<');
    let mut text = text.to_string();
    loop {
        let unescaped = if has_markup { Cow::Borrowed(text.as_str()) } else { ENTITY.replace_all(&text, entity) };
        let simple = unescaped.chars().fold(String::with_capacity(unescaped.len()), |mut simple, c| {
            simplify(c, &mut simple);
            simple
        });
        let mut shown = ESCAPE.replace_all(&simple, "").into_owned();
        shown.retain(|c| !is_control(c));
        let fixed = normalised(&shown, |s| s.nfc());
        if fixed == text {
            return fixed;
        }
        text = fixed;
    }
}

/// What an entity stands for; itself if for nothing.
fn entity(found: &Captures) -> String {
    let unescaped = htmlize::unescape(&found[0]);
    if unescaped.contains(';') { found[0].to_string() } else { unescaped.into_owned() }
}

/// Adds `c`, or what is written for it: ligatures as letters, full and half width as the usual one, quotes straight.
fn simplify(c: char, text: &mut String) {
    let c = match c {
        '\u{80}'..='\u{9F}' => Some(WINDOWS[c as usize - 0x80]).filter(|w| *w != '\0').unwrap_or(c),
        _ => c,
    };
    if let Some((_, letters)) = LIGATURES.iter().find(|(ligature, _)| *ligature == c) {
        return text.push_str(letters);
    }
    match c {
        '\u{3000}' => text.push(' '),
        '\u{FF01}'..='\u{FFEF}' => text.push_str(&normalised(c.encode_utf8(&mut [0; 4]), |s| s.nfkc())),
        '\u{2BC}' | '\u{2018}'..='\u{201B}' => text.push('\''),
        '\u{201C}'..='\u{201F}' => text.push('"'),
        '\r' | '\u{2028}' | '\u{2029}' => text.push('\n'),
        other => text.push(other),
    }
}

fn is_control(c: char) -> bool {
    matches!(
        c,
        '\0'..='\u{8}' | '\u{B}' | '\u{E}'..='\u{1F}' | '\u{7F}' | '\u{206A}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFC}'
    )
}

fn normalised(text: &str, form: impl Fn(&mut NormalizedString) -> &mut NormalizedString) -> String {
    let mut text = NormalizedString::from(text);
    form(&mut text);
    text.get().to_string()
}
