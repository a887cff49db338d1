//! Reads a tokenizer folder the way transformers 5.23 does (`tokenization_utils_base._from_pretrained`,
//! `CLIPTokenizer`, `T5Tokenizer`): of a `tokenizer.json` only vocabulary, merges, added tokens and the
//! precompiled character map are used, the rest of the pipeline is always the same.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use super::{Tokenizer, charsmap, clip};
use crate::io::{read, read_json, require_folder};

/// Lengths beyond this mean "no limit": transformers writes 1e30 where none is known.
const LARGEST_LENGTH: f64 = 1e20;

/// More tokens without a meaning of their own than any T5 has.
const MOST_EXTRA: u64 = 10_000;

/// The words CLIP's BPE runs on.
const CLIP_WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// The special tokens of CLIP.
pub(super) const TRANSFORMERS: [&str; 2] = ["<|startoftext|>", "<|endoftext|>"];
/// What open_clip calls them.
pub(super) const OPEN_CLIP: [&str; 2] = ["<start_of_text>", "<end_of_text>"];

/// The order in which transformers adds the named special tokens.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Clip,
    T5,
}

impl Kind {
    fn of(model: &Value) -> Self {
        if model["type"] == "Unigram" || model["vocab"].is_array() { Kind::T5 } else { Kind::Clip }
    }

    fn default_token(self, name: &str) -> Option<&'static str> {
        match (self, name) {
            (Kind::Clip, "bos_token") => Some(TRANSFORMERS[0]),
            (Kind::Clip, "eos_token" | "unk_token" | "pad_token") => Some(TRANSFORMERS[1]),
            (Kind::T5, "eos_token") => Some("</s>"),
            (Kind::T5, "unk_token") => Some("<unk>"),
            (Kind::T5, "pad_token") => Some("<pad>"),
            _ => None,
        }
    }
}

pub(super) fn load(folder: &Path) -> Result<Tokenizer> {
    require_folder(folder, "tokenizer")?;
    let (file, whole) = read_model(folder)?;
    let kind = Kind::of(&whole["model"]);
    let settings = Settings::read(folder, kind, &whole)?;
    let normalizer = normalizer(kind, &whole["normalizer"]);
    if normalizer["type"] == "Precompiled" {
        let map = normalizer["precompiled_charsmap"].as_str().context("it is missing");
        map.and_then(charsmap::check).with_context(|| format!("{}: precompiled_charsmap", file.display()))?;
    }

    let pipeline = [normalizer, pre_tokenizer(kind, TRANSFORMERS)];
    assemble(folder, &file, kind, &whole["model"], pipeline, settings)
}

/// CLIP's own vocabulary with these two special tokens.
pub(super) fn built_in(special: [&str; 2]) -> Tokenizer {
    let [begin, end] = special;
    let token = |text| AddedToken::from(text, true);
    let named = vec![
        ("bos_token", token(begin)),
        ("eos_token", token(end)),
        ("unk_token", token(end)),
        ("pad_token", token(end)),
    ];
    let settings = Settings { named, added: vec![token(begin), token(end)], max_length: Some(77) };
    let (name, kind) = (Path::new("the built-in CLIP tokenizer"), Kind::Clip);
    let pipeline = [normalizer(kind, &Value::Null), pre_tokenizer(kind, special)];
    assemble(name, name, kind, &clip::model(begin, end), pipeline, settings).expect("the vocabulary is whole")
}

/// A tokenizer of the parts that `file` in `folder` has.
fn assemble(
    folder: &Path,
    file: &Path,
    kind: Kind,
    stored: &Value,
    [normalizer, pre_tokenizer]: [Value; 2],
    settings: Settings,
) -> Result<Tokenizer> {
    let mut inner: tokenizers::Tokenizer = serde_json::from_value(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": null,
        "model": model(kind, stored, &settings),
    }))
    .with_context(|| format!("{}: not a tokenizer of CLIP or T5", file.display()))?;
    inner.add_tokens(&settings.added);

    let id = |name: &str| -> Result<u32> {
        let token = &settings.token(name).with_context(|| format!("{}: no {name}", folder.display()))?.content;
        inner.token_to_id(token).with_context(|| format!("{}: {name} '{token}' has no id", file.display()))
    };
    let bos = if kind == Kind::Clip { Some(id("bos_token")?) } else { None };
    let (eos, pad) = (id("eos_token")?, id("pad_token")?);
    Ok(Tokenizer { bos, eos, pad, max_length: settings.max_length, inner, folder: folder.to_path_buf(), clean: None })
}

/// `tokenizer.json`, or the same made of `vocab.json` and `merges.txt`; with the name for error messages.
fn read_model(folder: &Path) -> Result<(std::path::PathBuf, Value)> {
    let [whole, vocab, merges] = ["tokenizer.json", "vocab.json", "merges.txt"].map(|f| folder.join(f));
    if whole.exists() {
        let value: Value = read_json(&whole)?;
        ensure!(!value["model"]["vocab"].is_null(), "{}: no model.vocab", whole.display());
        return Ok((whole, value));
    }
    if !vocab.exists() || !merges.exists() {
        bail!("{}: no tokenizer: looked for tokenizer.json, and for vocab.json with merges.txt", folder.display());
    }
    let words: Map<String, Value> = read_json(&vocab)?;
    let text = read::text(&merges)?;
    let mut pairs = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.starts_with("#version")) {
        let [left, right] = line.split(' ').collect::<Vec<_>>()[..] else {
            bail!("{}, line {}: expected two symbols, found {line:?}", merges.display(), i + 1);
        };
        ensure!(
            words.contains_key(&format!("{left}{right}")),
            "{}, line {}: '{left}{right}' is not in vocab.json",
            merges.display(),
            i + 1
        );
        pairs.push(json!([left, right]));
    }
    Ok((vocab, json!({"added_tokens": [], "model": {"type": "BPE", "vocab": words, "merges": pairs}})))
}

fn model(kind: Kind, stored: &Value, settings: &Settings) -> Value {
    match kind {
        Kind::Clip => json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": settings.token("unk_token").map(|t| &t.content),
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": stored["vocab"],
            "merges": stored["merges"],
        }),
        Kind::T5 => json!({"type": "Unigram", "unk_id": 2, "byte_fallback": false, "vocab": stored["vocab"]}),
    }
}

fn normalizer(kind: Kind, stored: &Value) -> Value {
    match kind {
        Kind::Clip => json!({"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]}),
        Kind::T5 => {
            let precompiled = |n: &&Value| n["type"] == "Precompiled";
            let parts = stored["normalizers"].as_array().into_iter().flatten();
            let map = |n: &Value| json!({"type": "Precompiled", "precompiled_charsmap": n["precompiled_charsmap"]});
            std::iter::once(stored).chain(parts).find(precompiled).map(map).unwrap_or_default()
        }
    }
}

/// `special` are the two tokens that words of CLIP are cut at.
fn pre_tokenizer(kind: Kind, special: [&str; 2]) -> Value {
    let parts = match kind {
        Kind::Clip => json!([
            {"type": "Split", "pattern": {"Regex": format!("{}|{CLIP_WORDS}", special.map(literal).join("|"))}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]),
        Kind::T5 => json!([
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        ]),
    };
    json!({"type": "Sequence", "pretokenizers": parts})
}

/// A pattern of `text` and nothing else.
fn literal(text: &str) -> String {
    text.replace('|', r"\|")
}

/// What the small files beside the vocabulary say.
struct Settings {
    named: Vec<(&'static str, AddedToken)>,
    /// All tokens matched as a whole, in the order in which new ones get ids.
    added: Vec<AddedToken>,
    max_length: Option<usize>,
}

impl Settings {
    fn read(folder: &Path, kind: Kind, whole: &Value) -> Result<Self> {
        let path = folder.join("tokenizer_config.json");
        let mut config: Map<String, Value> = if path.exists() { read_json(&path)? } else { Map::new() };
        let wrong = |key: &str| anyhow!("{}: key '{key}': not a token", path.display());

        let mut by_id: Vec<(u64, AddedToken)> = Vec::new();
        if let Some(stored) = config.get("added_tokens_decoder") {
            for (id, token) in stored.as_object().ok_or_else(|| wrong("added_tokens_decoder"))? {
                let token = read_token(token, false).ok_or_else(|| wrong("added_tokens_decoder"))?;
                by_id.push((id.parse().map_err(|_| wrong("added_tokens_decoder"))?, token));
            }
        } else {
            let map = folder.join("special_tokens_map.json");
            if map.exists() {
                config.extend(read_json::<Map<String, Value>>(&map)?);
            }
            for token in whole["added_tokens"].as_array().into_iter().flatten() {
                let found = token["id"].as_u64().zip(read_token(token, false));
                by_id.push(found.with_context(|| format!("{}: bad added_tokens", folder.display()))?);
            }
        }
        by_id.sort_by_key(|(id, _)| *id);
        let mut added: Vec<AddedToken> = by_id.into_iter().map(|(_, token)| token).collect();

        let mut named = Vec::new();
        for name in NAMED {
            let token = match config.get(name) {
                None | Some(Value::Null) => kind.default_token(name).map(|t| AddedToken::from(t, true)),
                Some(value) => Some(read_token(value, true).ok_or_else(|| wrong(name))?),
            };
            named.extend(token.map(|t| (name, t)));
        }
        let mut extra = Vec::new();
        for key in ["extra_special_tokens", "additional_special_tokens"] {
            for token in config.get(key).and_then(Value::as_array).into_iter().flatten() {
                extra.push(read_token(token, true).ok_or_else(|| wrong(key))?);
            }
        }
        if kind == Kind::T5 && extra.is_empty() {
            let count = config.get("extra_ids").and_then(Value::as_u64).unwrap_or(100);
            let file = path.display();
            ensure!(count <= MOST_EXTRA, "{file}: key 'extra_ids' is {count}, expected at most {MOST_EXTRA}");
            extra.extend((0..count).map(|i| AddedToken::from(format!("<extra_id_{i}>"), true)));
        }
        for token in &mut added {
            token.special |= named.iter().any(|(_, n)| n.content == token.content);
        }
        for token in named.iter().map(|(_, t)| t).chain(&extra) {
            if added.iter().all(|a| a.content != token.content) {
                added.push(token.clone());
            }
        }
        Ok(Self { named, added, max_length: length(&path, config.get("model_max_length"))? })
    }

    fn token(&self, name: &str) -> Option<&AddedToken> {
        self.named.iter().find(|(n, _)| *n == name).map(|(_, t)| t)
    }
}

/// A token that is stored as a string, or as an object with `content` and flags. `special` is what a string, or an
/// object that does not say, is taken for.
fn read_token(value: &Value, special: bool) -> Option<AddedToken> {
    if let Some(content) = value.as_str() {
        return Some(AddedToken::from(content, special));
    }
    let flag = |key: &str| value[key].as_bool();
    let special = flag("special").unwrap_or(special);
    Some(
        AddedToken::from(value["content"].as_str()?, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)),
    )
}

/// `model_max_length`, which may be missing or stand for infinity.
fn length(path: &Path, value: Option<&Value>) -> Result<Option<usize>> {
    let Some(value) = value.filter(|v| !v.is_null()) else { return Ok(None) };
    let number = value.as_f64().filter(|n| *n >= 1.0 && n.fract() == 0.0);
    let Some(number) = number else {
        bail!("{}: key 'model_max_length': expected a positive whole number, found {value}", path.display());
    };
    Ok((number < LARGEST_LENGTH).then_some(number as usize))
}
